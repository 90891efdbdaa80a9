//! Two hosts on one machine: supervisors with real links, a real arbiter and real QEMUs, and a gate that
//! writes down what it was told.

use crate::arbiter::{Arbiter, FileArbiter, Grant};
use crate::gate::spoken::{Speaker, Spoken, seeded};
use crate::gate::{
    CutReport, GateError, GuestMemorySource, MemoryError, MemoryFacts, OutputGate, PortLimits, Stream,
    Traffic,
};
use crate::keys::{Identity, make_pair};
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use crate::qemu::tests::{LIMIT, MEMORY, command, place};
use crate::qemu::{InspectSettings, Machine, Qemu};
use crate::qmp::Qmp;
use crate::standby::StandbyConfig;
use crate::tracker::{DirtyTracker, FileIdentity, ScanStats, TrackError};
use crate::transport::{Listener, Security, TcpTransport};
use crate::vm::*;
use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(super) const VM: &str = "web";
/// What a gate of the laboratory may hold of its only port, unless a file says more.
pub(super) const PORT: PortLimits = PortLimits { queue_pairs: 1, flows: 64, bytes: 8 << 20 };
/// Long, so that a machine that is busy with other things is not taken for a dead one.
pub(super) const LEASE: Duration = Duration::from_secs(2);
/// Pages of which Holdfast itself writes one before each pause, each in its turn (CK-2): what one epoch
/// forgets is not made good by the next.
const OWN_PAGES: std::ops::Range<u64> = 0x100..0x400;

/// The folder that both hosts, and their processes, share.
pub(super) struct Lab {
    pub(super) dir: tempfile::TempDir,
}

/// One host's folder in the laboratory.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) root: PathBuf,
    pub(super) name: &'static str,
}

impl Lab {
    pub(super) fn new() -> Self {
        let dir = place();
        make_pair(&dir.path().join("a/keys"), &dir.path().join("b/keys")).expect("keys");
        fs::create_dir(dir.path().join("arbiter")).expect("a folder for the arbiter");
        Self { dir }
    }

    /// With gates that speak ahead of their epochs, as usual, or that never do.
    pub(super) fn new_silent(silent: bool) -> Self {
        let lab = Self::new();
        if silent {
            fs::write(lab.dir.path().join("silent"), "").expect("written");
        }
        lab
    }

    /// With a lease within which a host can be started again, however busy the machine is.
    pub(super) fn new_patient() -> Self {
        let lab = Self::new();
        fs::write(lab.dir.path().join("patient"), "").expect("written");
        lab
    }

    pub(super) fn site(&self, name: &'static str) -> Site {
        Site { root: self.dir.path().to_owned(), name }
    }

    pub(super) fn arbiter(&self) -> FileArbiter {
        FileArbiter::open(&self.dir.path().join("arbiter")).expect("the arbiter's folder")
    }

    pub(super) fn grant(&self) -> Grant {
        self.arbiter().read(VM).expect("the arbiter answers").expect("a record")
    }
}

impl Drop for Lab {
    /// Guests live on when their Holdfast ends: the laboratory ends them.
    fn drop(&mut self) {
        for name in ["a", "b"] {
            for socket in ["qmp", "standby.qmp"] {
                let path = self.site(name).path(socket);
                if let Ok(mut qemu) = Qemu::connect(&path, Duration::from_secs(2)) {
                    drop(qemu.quit());
                }
            }
        }
    }
}

impl Site {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(self.name).join(name)
    }

    pub(super) fn security(&self) -> Security {
        Security::Tls(Identity::load(&self.path("keys")).expect("keys load"))
    }

    /// Everything that the gate of this host was told, one line each.
    pub(super) fn gate_log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("gate")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// `(epoch, term)` of each line of this host's commit log.
    pub(super) fn commits(&self) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(self.path("commits")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut parts = line.split(' ').map(|part| part.parse().expect("a number"));
                (parts.next().expect("an epoch"), parts.next().expect("a term"))
            })
            .collect()
    }

    pub(super) fn config(&self) -> VmConfig {
        let role = if self.name == "a" { FirstRole::Primary } else { FirstRole::Backup };
        let mut config = VmConfig::new(VM, self.name, role);
        config.epoch = Duration::from_millis(30);
        config.lease = if self.root.join("patient").exists() { LEASE * 5 } else { LEASE };
        config.lease_margin = config.lease / 2;
        config.heartbeat = Duration::from_millis(50);
        config.retry = Duration::from_millis(100);
        config.qemu_timeout = Duration::from_secs(3);
        config.capture_limit = 8 << 20;
        config.backup = Some(BackupConfig {
            image: self.path("image"),
            memory: MEMORY,
            commit_log: self.path("commits"),
            staging_limit: MEMORY,
        });
        config
    }

    fn standby(&self) -> StandbyConfig {
        StandbyConfig {
            argv: command(&self.root, &self.path("image")),
            qmp_socket: self.path("standby.qmp"),
            start_limit: LIMIT,
        }
    }

    /// A QEMU with the test guest, as an operator would start it on this host.
    pub(super) fn start_qemu(&self) -> Process {
        let argv = command(&self.root, &self.path("memory"));
        let monitor = |name| format!("unix:{},server=on,wait=off", self.path(name).display());
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .args(["-qmp", &monitor("qmp"), "-qmp", &monitor("operator.qmp")])
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Process(child)
    }

    /// The operator's own monitor of that QEMU.
    pub(super) fn monitor(&self) -> Qmp {
        Qmp::connect(&self.path("operator.qmp"), LIMIT).expect("a second monitor")
    }

    /// A supervisor of this host in this process.
    pub(super) fn supervise(&self, config: VmConfig, listener: &Listener, peer: SocketAddr) -> VmHandle {
        let peer_log = self.root.join(if self.name == "a" { "b" } else { "a" }).join("commits");
        let last_cut = Arc::new(Mutex::new(None));
        let own = Arc::new(Mutex::new(Vec::new()));
        let gate = WrittenGate {
            host: self.name,
            log: append(&self.path("gate")),
            joint: append(&self.root.join("gates")),
            sealed: append(&self.root.join("spoken")),
            slow: self.root.join("slow"),
            forgets: self.root.join("forgets"),
            larger: self.root.join(format!("larger.{}", self.name)),
            speaks: !self.root.join("silent").exists(),
            speaker: Speaker::new(32),
            kept: None,
            peer_log,
            last_cut: Arc::clone(&last_cut),
            term: Term::NONE,
            bell: bounded(1),
            busy: self.root.join("busy"),
        };
        let inspect = InspectSettings::default();
        let settings = QemuSettings {
            qmp: self.path("qmp"),
            standby: Some(self.standby()),
            inspect,
            timeout: config.qemu_timeout,
        };
        let watched = Watching {
            inner: Box::new(QemuHypervisor::new(settings)),
            site: self.clone(),
            last_cut,
            own: Arc::clone(&own),
        };
        let parts = Parts {
            gate: Box::new(gate),
            memory: Box::new(FileMemory { site: self.clone(), open: None, own }),
            hypervisor: Box::new(watched),
            arbiter: Box::new(FileArbiter::open(&self.root.join("arbiter")).expect("the arbiter's folder")),
            transport: Some(Arc::new(TcpTransport::new(peer, self.security()))),
            incoming: Some(listener.route(VM)),
        };
        spawn(config, parts).expect("the settings fit")
    }

    pub(super) fn listen(&self) -> Listener {
        Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), self.security()).expect("a port")
    }
}

/// A process that ends with the test.
pub(super) struct Process(pub(super) Child);

impl Process {
    pub(super) fn kill(&mut self) {
        // It may have been ended by Holdfast.
        drop(self.0.kill());
        self.0.wait().expect("our child");
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    pub(super) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).expect("a log")
}

/// Waits until `done` gives something.
pub(super) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn wait_for(vm: &VmHandle, role: Role, state: State) -> VmStatus {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = vm.status();
        if (status.role, status.state) == (role, state) {
            return status;
        }
        assert!(Instant::now() < deadline, "{role:?} {state:?} did not come about: {status:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the machine came here, by another failover than the one that is known.
pub(super) fn wait_to_go_live(vm: &VmHandle, before: Option<&FailoverReport>) -> FailoverReport {
    eventually("going live", || {
        let status = vm.status();
        let here = status.role == Role::Primary && status.failover.as_ref() != before;
        status.failover.filter(|_| here)
    })
}

/// The process that has this path in its command line.
pub(super) fn process_with(path: &Path) -> Option<i32> {
    let path = path.display().to_string();
    fs::read_dir("/proc").expect("proc").find_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&path).then_some(pid)
    })
}

/// Waits until so many epochs more are committed.
pub(super) fn wait_for_commits(vm: &VmHandle, more: u64) {
    let goal = vm.status().stats.epochs_committed + more;
    eventually("commits", || (vm.status().stats.epochs_committed >= goal).then_some(()));
}

/// Writes down what it is told; at a release it looks for the commit's line in the peer's log (OC-1).
struct WrittenGate {
    host: &'static str,
    log: File,
    /// What all gates were told, in one order.
    joint: File,
    /// What was said up to each cut.
    sealed: File,
    /// While this file is there, a fence takes long.
    slow: PathBuf,
    /// While this file is there, nothing can be kept.
    forgets: PathBuf,
    /// While this file is there, it may hold more.
    larger: PathBuf,
    /// Unless a file said otherwise as this host started.
    speaks: bool,
    speaker: Speaker,
    kept: Option<Spoken>,
    peer_log: PathBuf,
    last_cut: Arc<Mutex<Option<EpochId>>>,
    term: Term,
    /// Rung at each release, as if the guest answered what it heard by it.
    bell: (Sender<()>, Receiver<()>),
    /// While this file is there, there was more traffic at each look.
    busy: PathBuf,
}

impl WrittenGate {
    /// Says some bytes in this epoch, as far as they can be handed over.
    fn say(&mut self, epoch: EpochId, part: u64) {
        if self.speaks {
            let seed = epoch.get() << 8 | part;
            self.speaker.say(epoch.get(), &seeded(seed, 1 + (seed % 4000) as usize));
        }
    }

    fn note(&mut self, text: String) {
        self.log.write_all(format!("{text}\n").as_bytes()).expect("the gate's log");
        let line = format!("{} {text}\n", self.host);
        self.joint.write_all(line.as_bytes()).expect("the gates' joint log");
    }
}

impl OutputGate for WrittenGate {
    /// The guest has said something all along; what was confirmed is forgotten; and before anybody is told
    /// of the cut, the next epoch has begun to speak.
    fn cut(&mut self, epoch: EpochId, whole: bool) -> Result<CutReport, GateError> {
        self.note(format!("cut {epoch}{}", if whole { " whole" } else { "" }));
        *self.last_cut.lock().expect("no panic") = Some(epoch);
        (2..5).for_each(|part| self.say(epoch, part));
        self.speaker.spoken.confirm_all_but(32 << 10);
        let state = self.speaker.spoken.state(whole || !self.speaks);
        let line = format!("{epoch} {}\n", self.speaker.spoken.digest());
        self.sealed.write_all(line.as_bytes()).expect("the list of what was said");
        (0..2).for_each(|part| self.say(epoch.next(), part));
        Ok(CutReport { frames: 1, bytes: 2, state })
    }

    fn limits(&self) -> Vec<PortLimits> {
        let larger = self.larger.exists();
        vec![if larger { PortLimits { bytes: PORT.bytes * 2, ..PORT } } else { PORT }]
    }

    fn stream(&self) -> Option<Stream> {
        self.speaks.then(|| self.speaker.stream.clone())
    }

    fn traffic(&self) -> Option<Traffic> {
        let (busy, bytes) = (self.busy.clone(), AtomicU64::new(0));
        let bytes = move || {
            // The file has a byte for each look.
            let looked =
                OpenOptions::new().append(true).open(&busy).and_then(|mut file| file.write_all(b"."));
            bytes.fetch_add(if looked.is_ok() { 1 << 20 } else { 0 }, Ordering::Relaxed)
        };
        Some(Traffic { output: self.bell.1.clone(), bytes: Box::new(bytes) })
    }

    fn release(&mut self, token: ReleaseToken) -> Result<(), GateError> {
        // Full when the supervisor has not heard the last one.
        self.bell.0.try_send(()).unwrap_or_default();
        let line = format!("{} {} ", token.epoch(), token.term());
        let log = fs::read_to_string(&self.peer_log).unwrap_or_default();
        let logged = log.lines().any(|found| found.starts_with(&line));
        self.note(format!("release {} {}", token.epoch(), if logged { "logged" } else { "EARLY" }));
        Ok(())
    }

    fn protect(&mut self, first: EpochId) -> Result<(), GateError> {
        self.note(format!("protect {first}"));
        Ok(())
    }

    fn open(&mut self) -> Result<(), GateError> {
        self.note("open".to_owned());
        Ok(())
    }

    fn fence(&mut self) {
        // A polling core that takes its time: nobody may be told before it is done.
        if self.slow.exists() {
            std::thread::sleep(LEASE / 4);
        }
        self.speaker.spoken = Spoken::default();
        self.note("fence".to_owned());
    }

    fn admit(&mut self, term: Term) -> Result<(), GateError> {
        assert!(term > self.term, "FO-1: terms only grow");
        self.term = term;
        self.note(format!("admit {term}"));
        Ok(())
    }

    fn extend_lease(&mut self, _until: Instant) {}

    fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError> {
        if self.forgets.exists() {
            return Err(GateError::State("the laboratory forgets".to_owned()));
        }
        self.kept.get_or_insert_default().keep(state, stream)
    }

    fn restore(&mut self) -> Result<(), GateError> {
        let kept = self.kept.take().ok_or_else(|| GateError::Misuse("nothing was kept".to_owned()))?;
        self.note(format!("restore {}", kept.digest()));
        self.speaker.spoken = kept;
        Ok(())
    }

    fn announce(&mut self) {
        self.note("announce".to_owned());
    }
}

/// The guest's memory by its file: that of the operator's QEMU, or the image once the guest runs on it.
struct FileMemory {
    site: Site,
    open: Option<(File, MemoryFacts)>,
    own: Arc<Mutex<Vec<PageIndex>>>,
}

impl GuestMemorySource for FileMemory {
    fn facts(&mut self) -> Result<MemoryFacts, MemoryError> {
        let live = self.site.gate_log().iter().any(|line| line.starts_with("restore"));
        let path = self.site.path(if live { "image" } else { "memory" });
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|_| MemoryError::NotYet)?;
        let meta = file.metadata()?;
        if meta.len() != MEMORY {
            return Err(MemoryError::NotYet);
        }
        let identity = FileIdentity { dev: meta.dev(), ino: meta.ino() };
        let facts = MemoryFacts { identity, len: meta.len(), page_size: PAGE_SIZE as u64 };
        self.open = Some((file, facts));
        Ok(facts)
    }

    fn read(&mut self, first: PageIndex, out: &mut [u8]) -> Result<(), MemoryError> {
        let (file, _) = self.open.as_ref().ok_or(MemoryError::NotYet)?;
        Ok(file.read_exact_at(out, first.offset())?)
    }

    fn drain_dirty(&mut self, into: &mut PageSet) {
        for page in self.own.lock().expect("no panic").drain(..) {
            into.insert(page);
        }
    }
}

/// A hypervisor that writes down what each epoch's memory and devices were, and checks them when the
/// guest goes live (O6).
struct Watching {
    inner: Box<dyn Hypervisor>,
    site: Site,
    last_cut: Arc<Mutex<Option<EpochId>>>,
    own: Arc<Mutex<Vec<PageIndex>>>,
}

impl Watching {
    fn guest_of(&self, inner: Box<dyn Guest>, memory: &Path) -> Box<dyn Guest> {
        let memory = OpenOptions::new().read(true).write(true).open(memory).expect("the guest's memory");
        Box::new(WatchedGuest {
            inner,
            memory,
            sealed: append(&self.site.root.join("sealed")),
            devices: blake3::hash(b""),
            last_cut: Arc::clone(&self.last_cut),
            own: Arc::clone(&self.own),
            heavy: self.site.root.join("heavy"),
            blind: self.site.root.join("blind"),
            count: 0,
        })
    }
}

fn hash_of(memory: &File) -> blake3::Hash {
    let mut bytes = vec![0; usize::try_from(MEMORY).expect("small")];
    memory.read_exact_at(&mut bytes, 0).expect("the whole memory");
    blake3::hash(&bytes)
}

impl Hypervisor for Watching {
    fn guest(&mut self, memory: &MemoryFacts) -> Result<Box<dyn Guest>, GuestError> {
        let inner = self.inner.guest(memory)?;
        let own = self.site.path("memory");
        let is_own = fs::metadata(&own).is_ok_and(|meta| meta.ino() == memory.identity.ino);
        Ok(self.guest_of(inner, &if is_own { own } else { self.site.path("image") }))
    }

    fn standby(&mut self) -> Result<Box<dyn Standby>, GuestError> {
        let inner = self.inner.standby()?;
        let Self { site, last_cut, own, .. } = self;
        let own_parts = Self {
            inner: Box::new(Nothing),
            site: site.clone(),
            last_cut: Arc::clone(last_cut),
            own: Arc::clone(own),
        };
        Ok(Box::new(WatchedStandby { inner, host: own_parts }))
    }

    fn retire_old(&mut self) {
        self.inner.retire_old();
    }
}

struct Nothing;

impl Hypervisor for Nothing {
    fn guest(&mut self, _memory: &MemoryFacts) -> Result<Box<dyn Guest>, GuestError> {
        Err(GuestError::NotYet("nothing".to_owned()))
    }

    fn standby(&mut self) -> Result<Box<dyn Standby>, GuestError> {
        Err(GuestError::NotYet("nothing".to_owned()))
    }

    fn retire_old(&mut self) {}
}

struct WatchedGuest {
    inner: Box<dyn Guest>,
    memory: File,
    sealed: File,
    devices: blake3::Hash,
    last_cut: Arc<Mutex<Option<EpochId>>>,
    own: Arc<Mutex<Vec<PageIndex>>>,
    /// While this file is there, each epoch is a heavy one.
    heavy: PathBuf,
    /// When this file is there, the next scan of the memory fails.
    blind: PathBuf,
    count: u64,
}

impl WatchedGuest {
    /// Three quarters of the memory, and nothing that could be compressed.
    fn write_much(&mut self) {
        let pages = 0x400..0x1000;
        let mut noise = blake3::Hasher::new();
        noise.update(&self.count.to_le_bytes());
        let mut bytes = vec![0; (pages.end - pages.start) as usize * PAGE_SIZE];
        noise.finalize_xof().fill(&mut bytes);
        self.memory.write_all_at(&bytes, pages.start * PAGE_SIZE as u64).expect("the guest's memory");
        self.own.lock().expect("no panic").extend(pages.map(PageIndex));
    }
}

impl Guest for WatchedGuest {
    fn threads_of_pause(&mut self) -> Vec<i32> {
        self.inner.threads_of_pause()
    }

    fn prepare(&mut self) -> Result<(), GuestError> {
        self.inner.prepare()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        // As Holdfast's rings would: through a mapping of our own, which no tracker of QEMU sees.
        self.count += 1;
        let page = OWN_PAGES.start + self.count % (OWN_PAGES.end - OWN_PAGES.start);
        self.memory
            .write_all_at(&self.count.to_le_bytes(), page * PAGE_SIZE as u64)
            .expect("the guest's memory");
        self.own.lock().expect("no panic").push(PageIndex(page));
        if self.heavy.exists() {
            self.write_much();
        }
        self.inner.stop()
    }

    fn save_devices(&mut self) -> Result<Vec<u8>, GuestError> {
        let devices = self.inner.save_devices()?;
        self.devices = blake3::hash(&devices);
        let epoch = self.last_cut.lock().expect("no panic").expect("cut before save");
        // The guest stands still and nothing of Holdfast writes: this is what the epoch must hold.
        let line = format!("{epoch} {} {}\n", hash_of(&self.memory), self.devices);
        self.sealed.write_all(line.as_bytes()).expect("the list of seals");
        Ok(devices)
    }

    fn cont(&mut self) -> Result<(), GuestError> {
        self.inner.cont()
    }

    fn track(&mut self, memory: &MemoryFacts) -> Result<Box<dyn DirtyTracker>, GuestError> {
        let inner = self.inner.track(memory)?;
        Ok(Box::new(Blinding { inner, blind: self.blind.clone() }))
    }

    fn machine(&mut self) -> Result<Machine, GuestError> {
        self.inner.machine()
    }

    fn objection(&mut self) -> Option<String> {
        self.inner.objection()
    }

    fn changed(&mut self, state: Option<&[u8]>) -> Result<Option<String>, GuestError> {
        self.inner.changed(state)
    }

    fn ended(&self) -> Receiver<()> {
        self.inner.ended()
    }

    fn leave(&mut self) {
        self.inner.leave();
    }

    fn retire(self: Box<Self>) {
        self.inner.retire();
    }
}

/// A tracker of which a scan fails, and what it found is lost, once a file is there, which it takes away.
struct Blinding {
    inner: Box<dyn DirtyTracker>,
    blind: PathBuf,
}

impl DirtyTracker for Blinding {
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        if !self.blind.exists() {
            return self.inner.collect(into);
        }
        self.inner.collect(&mut PageSet::with_capacity(into.capacity()))?;
        fs::remove_file(&self.blind).expect("removed");
        let source = std::io::ErrorKind::InvalidData.into();
        Err(TrackError::Kernel { pid: 0, what: "see for the laboratory's cloth", source })
    }
}

struct WatchedStandby {
    inner: Box<dyn Standby>,
    host: Watching,
}

impl Standby for WatchedStandby {
    fn machine(&mut self) -> Result<Machine, GuestError> {
        self.inner.machine()
    }

    fn ended(&self) -> Receiver<()> {
        self.inner.ended()
    }

    fn go_live(self: Box<Self>, devices: &[u8]) -> Result<Box<dyn Guest>, GuestError> {
        let image = self.host.site.path("image");
        let memory = hash_of(&File::open(&image).expect("the image"));
        let mut log = append(&self.host.site.path("resumed"));
        writeln!(log, "{memory} {}", blake3::hash(devices)).expect("the list of resumptions");
        let record = fs::read(self.host.site.path("image.record")).expect("the image's record");
        let head = String::from_utf8_lossy(&record[..record.len().min(1 << 10)]);
        let mark = if head.contains("\"what\":{\"live\"") { "live" } else { "a checkpoint" };
        writeln!(append(&self.host.site.path("marked")), "{mark}").expect("the list of marks");
        let guest = self.inner.go_live(devices)?;
        Ok(self.host.guest_of(guest, &image))
    }
}

/// O6, CK-1, SP-2: what was resumed on `site` is what the primary's memory and devices were at that epoch, and
/// what its gate had said and the client had not confirmed.
pub(super) fn assert_resumed_from_seal(site: &Site, epoch: u64) {
    let resumed = fs::read_to_string(site.path("resumed")).expect("it went live");
    let resumed = resumed.lines().last().expect("it went live");
    assert_eq!(resumed, at_seal(site, "sealed", epoch), "not what was sealed as epoch {epoch}");
    // CK-1: a guest that runs changes the memory, which a later process must not take for the checkpoint.
    let marked = fs::read_to_string(site.path("marked")).expect("it went live");
    assert_eq!(
        marked.lines().last(),
        Some("live"),
        "as the guest went live its image's record said otherwise"
    );
    let restored =
        site.gate_log().iter().rev().find_map(|line| line.strip_prefix("restore ").map(str::to_owned));
    let spoken = at_seal(site, "spoken", epoch);
    assert_eq!(restored.as_deref(), Some(&*spoken), "not what was said up to epoch {epoch}");
}

/// The newest line of an epoch in a list that both hosts write.
fn at_seal(site: &Site, list: &str, epoch: u64) -> String {
    let lines = fs::read_to_string(site.root.join(list)).expect("epochs were sealed");
    let prefix = format!("{epoch} ");
    lines.lines().rev().find_map(|line| line.strip_prefix(&prefix)).expect("it was sealed").to_owned()
}

/// OC-1: every release came after its line in the backup's commit log, and in order (OC-2).
pub(super) fn assert_released_after_commit(site: &Site) -> usize {
    let mut last = 0;
    let mut count = 0;
    for line in site.gate_log() {
        let Some(release) = line.strip_prefix("release ") else { continue };
        let (epoch, verdict) = release.split_once(' ').expect("two words");
        assert_eq!(verdict, "logged", "epoch {epoch} was released before it was committed");
        let epoch: u64 = epoch.parse().expect("a number");
        assert!(epoch > last, "releases go up");
        (last, count) = (epoch, count + 1);
    }
    count
}

/// FO-1: the gate that lost the machine was fenced before the other one was lifted for the last time.
pub(super) fn assert_fenced_before_admitted(lost: &Site, won: &Site) {
    let log = fs::read_to_string(lost.root.join("gates")).expect("the gates' joint log");
    let lines: Vec<_> = log.lines().collect();
    let admitted = format!("{} admit", won.name);
    let at = lines.iter().rposition(|line| line.starts_with(&admitted)).expect("it was admitted");
    let of_lost = format!("{} ", lost.name);
    let last = lines[..at].iter().rev().find(|line| line.starts_with(&of_lost));
    assert_eq!(last.copied(), Some(format!("{} fence", lost.name).as_str()), "{lines:#?}");
}
