//! The congestion control in the kernel: loaded, the guest's default, and undone without a trace.
//!
//! Where connections are chosen ([`Choice`]), the default stays the guest's: a hook of their control group gives
//! each connection the congestion control as it is established, and is gone with the process.
//!
//! The kernel takes a `tcp_congestion_ops` from a BPF map only once, so each attachment loads the programs anew.
//! A registration outlives the process that made it; what an agent left that was killed is found by its name and
//! undone by the next one, and meanwhile lets no flow be open: the settings are valid for a few seconds only.

use crate::choice::Choice;
use crate::control::{Counters, Settings};
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::{
    Iter, Link, MapCore, MapFlags, MapHandle, MapType, Object, ObjectBuilder, PrintLevel, ProgramMut,
};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Mutex;
use thiserror::Error;

/// The name of the congestion control, and of the map that it is registered by.
pub(crate) const NAME: &str = "holdfast";
/// What a guest gets when nothing is known of its own.
const LAST_RESORT: &str = "reno";
const PROGRAMS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/aware.bpf.o"));
const DEFAULT: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// The congestion control cannot be loaded, or not be undone.
#[derive(Debug, Error)]
pub(crate) enum CongestionError {
    /// The kernel or libbpf refused.
    #[error("{what}: {source}{said}\n  mend: `holdfast-guest probe` says what the kernel lacks")]
    Bpf {
        /// What was being done.
        what: &'static str,
        /// The error.
        source: libbpf_rs::Error,
        /// What libbpf said last.
        said: String,
    },
    /// A file of the kernel could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

fn bpf(what: &'static str) -> impl Fn(libbpf_rs::Error) -> CongestionError {
    move |source| {
        let said = SAID.lock().map(|said| said.join("")).unwrap_or_default();
        let said = if said.is_empty() { said } else { format!("\n{}", said.trim_end()) };
        CongestionError::Bpf { what, source, said }
    }
}

/// The last warnings of libbpf, to be shown when something fails and not otherwise.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
const MOST_SAID: usize = 40;

fn listen() {
    libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| {
        if let Ok(mut said) = SAID.lock() {
            if said.len() == MOST_SAID {
                said.remove(0);
            }
            said.push(text);
        }
    })));
}

/// The guest's default congestion control.
pub(crate) fn default_name() -> Result<String, CongestionError> {
    let read = std::fs::read_to_string(DEFAULT);
    read.map(|text| text.trim().to_owned())
        .map_err(|source| CongestionError::File { path: DEFAULT.into(), source })
}

fn set_default(name: &str) -> Result<(), CongestionError> {
    std::fs::write(DEFAULT, name).map_err(|source| CongestionError::File { path: DEFAULT.into(), source })
}

/// The programs, taken by the kernel.
struct Programs {
    object: Object,
}

impl Programs {
    fn load() -> Result<Self, CongestionError> {
        listen();
        let open = ObjectBuilder::default().name("aware").and_then(|builder| builder.open_memory(PROGRAMS));
        let open = open.map_err(bpf("cannot read the programs"))?;
        let object = open.load().map_err(bpf("the kernel does not take the programs"))?;
        Ok(Self { object })
    }

    fn register(&mut self) -> Result<Link, CongestionError> {
        let mut map = self
            .object
            .maps_mut()
            .find(|map| map.map_type() == MapType::StructOps)
            .expect("the programs have one congestion control");
        map.attach_struct_ops().map_err(bpf("the kernel does not register the congestion control"))
    }

    fn set(&self, settings: &Settings) -> Result<(), CongestionError> {
        let map = self.variable(".data");
        map.update(&0u32.to_ne_bytes(), &settings.encode(), MapFlags::ANY)
            .map_err(bpf("cannot tell the programs what to do"))
    }

    fn counters(&self) -> Counters {
        let map = self.variable(".bss");
        let found = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        found.map(|bytes| Counters::decode(&bytes)).unwrap_or_default()
    }

    /// The map of a section of variables: the name is that of the object, cut, and the section's.
    fn variable(&self, section: &str) -> impl MapCore + '_ {
        self.object
            .maps()
            .find(|map| map.name().to_string_lossy().ends_with(section))
            .expect("the programs have variables")
    }

    /// Gives the sockets of this namespace that have `settings.from` the other congestion control.
    fn move_sockets(&self, settings: &Settings) -> Result<(), CongestionError> {
        self.set(settings)?;
        let link = self.program("holdfast_move").attach().map_err(bpf("cannot look at the sockets"))?;
        let mut sockets = Iter::new(&link).map_err(bpf("cannot look at the sockets"))?;
        let mut nothing = Vec::new();
        sockets
            .read_to_end(&mut nothing)
            .map_err(|source| CongestionError::File { path: "the sockets of the guest".into(), source })?;
        Ok(())
    }

    fn program(&self, name: &str) -> ProgramMut<'_> {
        let mut all = self.object.progs_mut();
        all.find(|program| program.name() == name).expect("the programs have it")
    }
}

/// The congestion control as the guest's default, or that of chosen connections; [`Congestion::detach`] undoes it.
pub(crate) struct Congestion {
    programs: Programs,
    link: Link,
    choice: Choice,
    /// Where connections are chosen: the control group that is watched, while it is there.
    hook: Option<(u64, Link)>,
    /// What the guest had before.
    previous: String,
    settings: Settings,
}

impl Congestion {
    /// Loads the programs, makes them the default or hooks them in, and gives them the sockets that are meant and
    /// have the default now.
    pub(crate) fn attach(
        previous: &str,
        settings: Settings,
        choice: &Choice,
    ) -> Result<Self, CongestionError> {
        let mut programs = Programs::load()?;
        let named = choice.ports.clone();
        let settings = Settings { from: previous.into(), to: NAME.into(), named, ..settings };
        programs.set(&settings)?;
        let link = programs.register()?;
        let (choice, previous) = (choice.clone(), previous.to_owned());
        let mut this = Self { programs, link, choice, hook: None, previous, settings };
        let made = match this.choice.is_everything() {
            true => set_default(NAME).and_then(|()| this.programs.move_sockets(&this.settings)),
            false => this.follow_group(),
        };
        if let Err(fault) = made {
            // The first fault is told; the rest is undone as far as it goes.
            drop(this.detach());
            return Err(fault);
        }
        Ok(this)
    }

    /// Watches the chosen control group, which may come, go, and come again as another one.
    pub(crate) fn follow_group(&mut self) -> Result<(), CongestionError> {
        if self.choice.is_everything() {
            return Ok(());
        }
        let group = self.choice.group();
        let group =
            group.map_err(|source| CongestionError::File { path: "the control group".into(), source })?;
        if group.as_ref().map(|group| group.id) == self.hook.as_ref().map(|(id, _)| *id) {
            return Ok(());
        }
        self.hook = None;
        let Some(group) = group else { return Ok(()) };
        self.settings.cgroup_id = if self.choice.cgroup.is_some() { group.id } else { 0 };
        // The hook first: who is established meanwhile is seen by one of both.
        self.programs.set(&self.settings)?;
        let link = self.programs.program("holdfast_choose").attach_cgroup(group.folder.as_raw_fd());
        self.hook = Some((group.id, link.map_err(bpf("cannot watch the control group"))?));
        self.programs.move_sockets(&self.settings)
    }

    /// Tells the programs what holds from now on; flows begin anew if the ports changed.
    pub(crate) fn set(
        &mut self,
        ports: Vec<i32>,
        fast_us: u32,
        proof_us: u32,
        valid_until_us: u64,
    ) -> Result<(), CongestionError> {
        if ports != self.settings.ports {
            self.settings.generation = self.settings.generation.wrapping_add(1);
        }
        self.settings = Settings { ports, fast_us, proof_us, valid_until_us, ..self.settings.clone() };
        self.programs.set(&self.settings)
    }

    /// What happened since it was attached.
    pub(crate) fn counters(&self) -> Counters {
        self.programs.counters()
    }

    /// Gives the guest back what it had; what of that fails is told, and the rest done.
    pub(crate) fn detach(self) -> Result<(), CongestionError> {
        let Self { programs, link, hook, previous, settings, .. } = self;
        drop(hook);
        // Sockets that the iterator does not see are Reno's from now on.
        let generation = settings.generation.wrapping_add(1);
        let (from, to) = (NAME.into(), previous.clone());
        let (named, cgroup_id) = (Vec::new(), 0);
        let settings = Settings { generation, ports: Vec::new(), from, to, named, cgroup_id, ..settings };
        let restored = restore_default(&previous);
        let moved = programs.move_sockets(&settings);
        drop(link);
        drop(programs);
        restored.and(moved)
    }
}

/// What the operator has set meanwhile stays.
fn restore_default(previous: &str) -> Result<(), CongestionError> {
    if default_name()? == NAME { set_default(previous) } else { Ok(()) }
}

/// Undoes what an agent left that ended without a word; whether there was something.
pub(crate) fn undo(previous: Option<&str>) -> Result<bool, CongestionError> {
    let left: Vec<u32> = MapInfoIter::default()
        .filter(|map| map.ty == MapType::StructOps && map.name.to_string_lossy() == NAME)
        .map(|map| map.id)
        .collect();
    if left.is_empty() {
        return Ok(false);
    }
    let previous = previous.filter(|name| *name != NAME).unwrap_or(LAST_RESORT);
    restore_default(previous)?;
    let settings = Settings { from: NAME.into(), to: previous.into(), ..Settings::default() };
    Programs::load()?.move_sockets(&settings)?;
    for id in left {
        let map = MapHandle::from_map_id(id).map_err(bpf("cannot open what another agent left"))?;
        // Refused of one that is not registered any more and that only a socket holds: nothing is to be undone.
        drop(map.delete(&0u32.to_ne_bytes()));
    }
    Ok(true)
}

/// Whether this kernel takes the programs; nothing is registered.
pub(crate) fn try_load() -> Result<(), CongestionError> {
    Programs::load().map(drop)
}
