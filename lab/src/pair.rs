//! A pair of hosts with Holdfast on them: configurations, processes, guests, status, kills.
//!
//! ```text
//!   host A: holdfast + QEMU (guest) ---wire--- br0 of the client ---wire--- host B: holdfast + standby QEMU
//!          '---------------------------- replication link ----------------------------'
//! ```
//!
//! What `holdfast demo`, `holdfast soak`, `holdfast bench` and the tests have in common. Everything is
//! real: the program itself as two processes in two namespaces, stock QEMU, TLS between them.

use crate::artifacts::{Artifacts, ArtifactsError, Qemu};
use crate::audit::{AuditError, CommitLog};
use crate::emulator::{WireEmulator, WireSpec};
use crate::guest::{Backend, Guest, GuestSpec, Nic};
use crate::netns::NetnsError;
use crate::process::{Process, ProcessError, ProcessSpec, run_tool};
use crate::scratch::{Scratch, ScratchError};
use crate::topology::{BYPASS, Host, LONG_BYPASS, LONG_WIRE, Topology, TopologyOptions};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Port on which each host takes the other's epochs, inside its namespace.
pub const REPLICATION_PORT: u16 = 7400;
/// A status request answers within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kind of a wire that is memory of two processes.
const MEMIF: &str = "memif";

/// Why a pair could not be set up or asked.
#[derive(Debug, Error)]
pub enum PairError {
    /// The guest's parts are missing.
    #[error(transparent)]
    Artifacts(#[from] ArtifactsError),
    /// A namespace could not be made.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// A process could not be started, or ended too early.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No place for files.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The commit log or the frame audit cannot be read.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A Holdfast does not answer on its control socket.
    #[error("{host} does not answer: {source}; its log ends:\n{tail}")]
    Silent {
        /// Which.
        host: String,
        /// The system's word.
        source: io::Error,
        /// The last lines of its log.
        tail: String,
    },
    /// A Holdfast refused a request.
    #[error("{host} refused: {reason}")]
    Refused {
        /// Which.
        host: String,
        /// Its word.
        reason: String,
    },
    /// A state was not reached in time.
    #[error("{host}: VM {vm} {outcome}")]
    Never {
        /// Which host was asked.
        host: &'static str,
        /// The machine.
        vm: String,
        /// What was awaited, for how long, what it was at last, and the last lines of the host's log.
        outcome: String,
    },
}

/// One VM of a pair.
#[derive(Debug, Clone)]
pub struct VmPlan {
    /// Its name.
    pub name: String,
    /// Its NICs.
    pub nics: u8,
    /// `native` or `commit`.
    pub mode: String,
}

/// Which way the epochs go from host to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The connection alone.
    Tcp,
    /// A DPDK port of their own beside it.
    Bypass,
}

/// What a pair is made from.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// The `holdfast` program.
    pub holdfast: PathBuf,
    /// The VMs, all of which start on host A.
    pub vms: Vec<VmPlan>,
    /// Length of an epoch.
    pub epoch_ms: u64,
    /// Transmit lease.
    pub lease_ms: u64,
    /// The QEMU of both hosts.
    pub qemu: Qemu,
    /// Memory of each guest.
    pub memory_mib: u32,
    /// Whether the frame audit is written.
    pub audit: bool,
    /// Wires and links.
    pub topology: TopologyOptions,
    /// The kind of Holdfast's wires: `kernel` or `af_packet`.
    pub wire_kind: &'static str,
    /// The wire between the hosts and the client; a plain one takes no emulator.
    pub wire: WireSpec,
    /// Seed of the wires' fates.
    pub wire_seed: u64,
    /// Which way the epochs go.
    pub transport: Transport,
    /// The wire of the bypass; a plain one takes no emulator.
    pub bypass_wire: WireSpec,
    /// The kind of its ports: `af_packet`, `kernel`, or `memif`, which needs no cable and takes no emulator.
    pub bypass_kind: &'static str,
    /// Lines added to the `[[vm]]` section of each VM.
    pub vm_lines: String,
    /// Whether QEMU listens on the vhost-user sockets and Holdfast connects, instead of the reverse.
    pub qemu_listens: bool,
    /// Whether the hosts know each other. Without it each Holdfast stands alone: no replication, no
    /// arbiter, no standby.
    pub paired: bool,
    /// A last hand on each guest, before it is started and the standby's command is made of it.
    pub shape: fn(&mut GuestSpec),
}

impl PairOptions {
    /// One VM with one NIC in mode `mode`.
    pub fn new(holdfast: &Path, qemu: Qemu, mode: &str) -> Self {
        Self {
            holdfast: holdfast.into(),
            vms: vec![VmPlan { name: "guest".into(), nics: 1, mode: mode.into() }],
            epoch_ms: 25,
            lease_ms: 300,
            qemu,
            memory_mib: 256,
            audit: true,
            topology: TopologyOptions::default(),
            wire_kind: "kernel",
            wire: WireSpec::default(),
            wire_seed: 1,
            transport: Transport::Tcp,
            bypass_wire: WireSpec::default(),
            bypass_kind: "af_packet",
            vm_lines: String::new(),
            qemu_listens: false,
            paired: true,
            shape: |_| {},
        }
    }
}

impl PairOptions {
    fn backend(&self, socket: PathBuf) -> Backend {
        if self.qemu_listens { Backend::VhostUserServer { socket } } else { Backend::VhostUser { socket } }
    }
}

/// Holdfast on one of the two hosts.
#[derive(Debug)]
pub struct Appliance {
    /// `host-a` or `host-b`.
    pub name: &'static str,
    /// Its namespace and addresses.
    pub host: Host,
    /// Its control socket.
    pub control: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Its frame audit.
    pub audit: PathBuf,
    program: PathBuf,
    log: PathBuf,
    /// The process, while it runs.
    pub process: Option<Process>,
}

/// Two hosts with Holdfast, a client, and the guests on host A.
#[derive(Debug)]
pub struct Pair {
    /// Host A's Holdfast: the primary at first.
    pub a: Appliance,
    /// Host B's Holdfast: the backup at first.
    pub b: Appliance,
    /// The guests, in the order of the options.
    pub guests: Vec<Guest>,
    /// The emulator of the wire, where there is one.
    pub wire: Option<WireEmulator>,
    /// The emulator of the bypass, where there is one.
    pub bypass_wire: Option<WireEmulator>,
    /// Wires and client.
    pub topology: Topology,
    /// What it was made from.
    pub options: PairOptions,
    /// The files of this run.
    pub scratch: Scratch,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The guest's QEMU on host A.
    Qemu,
    /// Host A's Holdfast.
    Holdfast,
    /// Everything on host A at once.
    Host,
}

impl Pair {
    /// Sets hosts, keys and configurations up and starts both Holdfasts; guests are not started yet.
    pub fn start(mut options: PairOptions) -> Result<Self, PairError> {
        let scratch = Scratch::new("pair")?;
        options.topology.long_wire |= !options.wire.is_plain();
        options.topology.bypass |= options.transport == Transport::Bypass && options.bypass_kind != MEMIF;
        options.topology.long_bypass |= options.topology.bypass && !options.bypass_wire.is_plain();
        let topology = Topology::create(&options.topology)?;
        let wire = start_wire(&options, &topology, &scratch)?;
        let bypass_wire = start_bypass_wire(&options, &topology, &scratch)?;
        let folder = |name: &str| scratch.file(name).display().to_string();
        run_tool(None, &options.holdfast.to_string_lossy(), &["keys", &folder("keys-a"), &folder("keys-b")])?;
        make_folder(&scratch.file("arbiter"))?;
        let artifacts = Artifacts::locate()?;
        let mut guests = Vec::new();
        let mut next = 0;
        for vm in &options.vms {
            let mut spec = GuestSpec::new(&vm.name, &options.qemu, &artifacts, &scratch)?;
            spec.memory_mib = options.memory_mib;
            for _ in 0..vm.nics {
                next += 1;
                spec = spec.nic(Nic::numbered(next, options.backend(socket(&scratch, "host-a", next))));
            }
            (options.shape)(&mut spec);
            guests.push(spec);
        }
        let (a, b) = (topology.a.clone(), topology.b.clone());
        let mut a = Appliance::new("host-a", a, &options, &scratch);
        let mut b = Appliance::new("host-b", b, &options, &scratch);
        let (ip_a, ip_b) = (a.host.replication_ip, b.host.replication_ip);
        a.configure(&options, &scratch, &guests, ("primary", ip_a, ip_b))?;
        b.configure(&options, &scratch, &guests, ("backup", ip_b, ip_a))?;
        b.start()?;
        a.start()?;
        let guests = guests
            .into_iter()
            .map(|spec| spec.start(&topology.a.namespace))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { a, b, guests, wire, bypass_wire, topology, options, scratch })
    }

    /// Waits until all guests have booted and, where their mode asks for it, are protected.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<(), PairError> {
        for guest in &mut self.guests {
            guest.wait_ready(patience)?;
        }
        for vm in &self.options.vms {
            let wanted = if vm.mode == "native" { "native" } else { "protected" };
            self.a.wait_state(&vm.name, &[wanted], patience)?;
        }
        Ok(())
    }

    /// The commit log of a VM, as host B wrote it.
    pub fn commit_log(&self, vm: &str) -> Result<CommitLog, PairError> {
        self.commit_log_on(&self.b, vm)
    }

    /// The commit log of a VM, as that host wrote it while it was the backup.
    pub fn commit_log_on(&self, host: &Appliance, vm: &str) -> Result<CommitLog, PairError> {
        Ok(CommitLog::read(&commit_log(&self.scratch, host.name, vm))?)
    }

    /// The vhost-user socket of the `n`-th NIC of all VMs (from 1) on that host.
    pub fn nic_socket(&self, host: &Appliance, n: u8) -> PathBuf {
        socket(&self.scratch, host.name, n)
    }

    /// The copy of a VM's memory on that host, while it is the backup.
    pub fn image(&self, host: &Appliance, vm: &str) -> PathBuf {
        image(&self.scratch, host.name, vm)
    }

    /// The directory of the arbiter.
    pub fn arbiter(&self) -> PathBuf {
        self.scratch.file("arbiter")
    }

    /// Kills with SIGKILL; `vm` says whose QEMU.
    pub fn kill(&mut self, victim: Victim, vm: usize) -> Result<(), PairError> {
        match victim {
            Victim::Qemu => drop(self.guests[vm].process.kill()?),
            Victim::Holdfast => self.a.kill()?,
            Victim::Host => {
                self.topology.a.namespace.kill_all();
                self.a.process = None;
            }
        }
        Ok(())
    }

    /// Ends both Holdfasts as an operator would, and says how each ended.
    pub fn stop(&mut self) -> Result<(), PairError> {
        for appliance in [&mut self.a, &mut self.b] {
            if let Some(mut process) = appliance.process.take() {
                process.terminate(PATIENCE)?;
            }
        }
        Ok(())
    }
}

/// The line that makes polling cores on all processors that pairs of queues name.
fn polling(guests: &[GuestSpec]) -> String {
    let named = guests.iter().flat_map(|guest| &guest.nics).flat_map(|nic| &nic.pair_cores);
    let processors: Vec<_> = named.collect::<BTreeSet<_>>().into_iter().collect();
    if processors.is_empty() { String::new() } else { format!("polling = {processors:?}\n") }
}

impl Appliance {
    fn new(name: &'static str, host: Host, options: &PairOptions, scratch: &Scratch) -> Self {
        Self {
            name,
            host,
            control: scratch.file(&format!("{name}.control")),
            config: scratch.file(&format!("{name}.toml")),
            audit: scratch.memory(&format!("{name}.audit")),
            program: options.holdfast.clone(),
            log: scratch.file(&format!("{name}.log")),
            process: None,
        }
    }

    fn configure(
        &self,
        options: &PairOptions,
        scratch: &Scratch,
        guests: &[GuestSpec],
        (role, own, peer): (&str, Ipv4Addr, Ipv4Addr),
    ) -> Result<(), PairError> {
        let name = self.name;
        let keys = if name == "host-a" { "keys-a" } else { "keys-b" };
        let mut text = format!(
            "[host]\nname = {name:?}\ncontrol_socket = {:?}\n{}\n\
             [cores]\nidle = \"adaptive\"\n{}\n\
             [dpdk]\nhuge_pages = \"auto\"\nfile_prefix = \"{name}-{}\"\n\n\
             [[wire]]\nname = \"wire0\"\nkind = {:?}\niface = \"{}\"\nmtu = {}\n",
            self.control,
            if options.audit { format!("frame_audit = {:?}\n", self.audit) } else { String::new() },
            polling(guests),
            std::process::id(),
            options.wire_kind,
            crate::topology::WIRE,
            options.topology.mtu,
        );
        if options.paired {
            let bypass = match options.transport {
                Transport::Tcp => String::new(),
                Transport::Bypass => {
                    text += &bypass_wire_section(options, name, scratch);
                    bypass_section(own, peer)
                }
            };
            write!(
                text,
                "\n[replication]\nlisten = \"{own}:{REPLICATION_PORT}\"\npeer = \"{peer}:{REPLICATION_PORT}\"\n\
                 keys = {:?}\n{bypass}\n[arbiter]\ndirectory = {:?}\n",
                scratch.file(keys),
                scratch.file("arbiter"),
            )
            .expect("a string takes all text");
        }
        let mut next = 0;
        for (vm, guest) in options.vms.iter().zip(guests) {
            let image = image(scratch, name, &vm.name);
            let first = next + 1;
            next += vm.nics;
            let sockets = (first..=next).map(|n| options.backend(socket(scratch, name, n)));
            let standby = guest.standby(&format!("{name}-{}-standby", vm.name), &image, sockets.collect());
            let command: Vec<String> = standby.command().iter().map(|word| toml_text(word)).collect();
            // Paths are not apart as the hosts are: host B shall not find host A's guest, which it would
            // take for one of an earlier term.
            let qmp = match name {
                "host-a" => guest.qmp(),
                _ => scratch.file(&format!("{name}.{}.qmp", vm.name)),
            };
            // A host that stands alone is nobody's backup.
            let role = if options.paired { role } else { "primary" };
            write!(
                text,
                "\n[[vm]]\nname = {:?}\nrole = \"{role}\"\nmode = {:?}\nepoch_ms = {}\nlease_ms = {}\nqmp = {:?}\n{}\n",
                vm.name, vm.mode, options.epoch_ms, options.lease_ms, qmp, options.vm_lines
            )
            .expect("a string takes all text");
            for (n, nic) in (first..=next).zip(&guest.nics) {
                let listens = if options.qemu_listens { "qemu" } else { "holdfast" };
                let socket = socket(scratch, name, n);
                write!(
                    text,
                    "\n[[vm.nic]]\nsocket = {socket:?}\nwire = \"wire0\"\nlistens = {listens:?}\nqueue_pairs = {}\n",
                    nic.queue_pairs
                )
                .expect("a string takes all text");
                if !nic.pair_cores.is_empty() {
                    writeln!(text, "pair_cores = {:?}", nic.pair_cores).expect("a string takes all text");
                }
            }
            if !options.paired {
                continue;
            }
            write!(
                text,
                "\n[vm.backup]\nimage = {image:?}\nmemory = \"{}M\"\nqmp = {:?}\ncommit_log = {:?}\ncommand = [{}]\n",
                options.memory_mib,
                standby.qmp(),
                commit_log(scratch, name, &vm.name),
                command.join(", ")
            )
            .expect("a string takes all text");
        }
        write_file(&self.config, &text)
    }

    /// Starts the Holdfast, and waits until it answers.
    pub fn start(&mut self) -> Result<(), PairError> {
        let process = ProcessSpec::new(self.name, &self.program, &self.log)
            .args(["run", "-c"])
            .args([&self.config])
            .env("HOLDFAST_LOG", std::env::var("HOLDFAST_LOG").unwrap_or_else(|_| "info".into()))
            .namespace(&self.host.namespace)
            .spawn()?;
        self.process = Some(process);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match self.status() {
                Ok(_) => return Ok(()),
                Err(fault) => {
                    let running = self.process.as_mut().is_some_and(Process::is_running);
                    if !running || Instant::now() > until {
                        return Err(fault);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// SIGKILLs the Holdfast.
    pub fn kill(&mut self) -> Result<(), PairError> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// SIGSTOPs or SIGCONTs the Holdfast.
    pub fn signal(&self, signal: Signal) -> Result<(), PairError> {
        if let Some(process) = &self.process {
            process.signal(signal)?;
        }
        Ok(())
    }

    /// Last lines of the Holdfast's log.
    pub fn log_tail(&self, lines: usize) -> String {
        crate::process::tail(&self.log, lines)
    }

    /// Sends a request to the control socket.
    pub fn ask(&self, request: &Value) -> Result<Value, PairError> {
        let answer = exchange(&self.control, request).map_err(|source| PairError::Silent {
            host: self.name.into(),
            source,
            tail: self.log_tail(20),
        })?;
        match answer.get("error") {
            Some(reason) => Err(PairError::Refused {
                host: self.name.into(),
                reason: reason.as_str().unwrap_or_default().into(),
            }),
            None => Ok(answer["ok"].clone()),
        }
    }

    /// The whole status document.
    pub fn status(&self) -> Result<Value, PairError> {
        self.ask(&json!({"command": "status", "vm": null}))
    }

    /// The status of one VM.
    pub fn vm(&self, vm: &str) -> Result<Value, PairError> {
        let document = self.ask(&json!({"command": "status", "vm": vm}))?;
        Ok(document["vms"][0].clone())
    }

    /// Waits until the VM's state is one of `wanted`; gives its status.
    pub fn wait_state(&self, vm: &str, wanted: &[&str], patience: Duration) -> Result<Value, PairError> {
        self.wait_for(vm, &wanted.join(" or "), patience, |status| {
            status["state"].as_str().is_some_and(|state| wanted.contains(&state))
        })
    }

    /// Waits until the VM's status fulfils `done`; gives it. `wanted` names it in the error.
    pub fn wait_for(
        &self,
        vm: &str,
        wanted: &str,
        patience: Duration,
        done: impl Fn(&Value) -> bool,
    ) -> Result<Value, PairError> {
        let until = Instant::now() + patience;
        loop {
            let status = self.vm(vm)?;
            if done(&status) {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err(PairError::Never {
                    host: self.name,
                    vm: vm.into(),
                    outcome: format!(
                        "is not {wanted} after {} s but {} ({}); the log ends:
{}",
                        patience.as_secs(),
                        status["state"],
                        status["trouble"],
                        self.log_tail(30)
                    ),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The emulator in the gap of the topology, if it has one.
fn start_wire(
    options: &PairOptions,
    topology: &Topology,
    scratch: &Scratch,
) -> Result<Option<WireEmulator>, PairError> {
    if !options.topology.long_wire {
        return Ok(None);
    }
    let wire = (&options.wire, options.wire_seed);
    let log = scratch.file("wire-emulator.log");
    Ok(Some(WireEmulator::start(&options.holdfast, &topology.switch, LONG_WIRE, wire, &log)?))
}

/// The emulator in the gap of the bypass, if it has one.
fn start_bypass_wire(
    options: &PairOptions,
    topology: &Topology,
    scratch: &Scratch,
) -> Result<Option<WireEmulator>, PairError> {
    let Some(gap) = &topology.bypass_gap else { return Ok(None) };
    let wire = (&options.bypass_wire, options.wire_seed);
    let log = scratch.file("bypass-emulator.log");
    Ok(Some(WireEmulator::start(&options.holdfast, gap, LONG_BYPASS, wire, &log)?))
}

/// The `[[wire]]` of the bypass.
fn bypass_wire_section(options: &PairOptions, host: &str, scratch: &Scratch) -> String {
    let kind = options.bypass_kind;
    let place = if kind == MEMIF {
        // Host B is there first.
        let role = if host == "host-b" { "server" } else { "client" };
        format!("role = {role:?}\nsocket = {:?}\nframes = 1024", scratch.file("bypass.memif"))
    } else {
        format!("iface = {BYPASS:?}\nframes = 4096")
    };
    let mtu = options.topology.bypass_mtu;
    format!("\n[[wire]]\nname = \"bypass\"\nkind = {kind:?}\nmtu = {mtu}\n{place}\n")
}

/// What `[replication]` says of the bypass; the hosts have the addresses there that they have on the link,
/// in a network of its own.
fn bypass_section(own: Ipv4Addr, peer: Ipv4Addr) -> String {
    let there = |on_link: Ipv4Addr| Ipv4Addr::new(10, 97, 0, on_link.octets()[3]);
    format!(
        "transport = \"bypass\"\n\n[replication.bypass]\nwire = \"bypass\"\naddress = \"{}\"\npeer = \"{}\"\n",
        there(own),
        there(peer)
    )
}

fn socket(scratch: &Scratch, host: &str, nic: u8) -> PathBuf {
    scratch.file(&format!("{host}.nic{nic}"))
}

fn image(scratch: &Scratch, host: &str, vm: &str) -> PathBuf {
    scratch.memory(&format!("{host}.{vm}.image"))
}

fn commit_log(scratch: &Scratch, host: &str, vm: &str) -> PathBuf {
    scratch.file(&format!("{host}.{vm}.commits"))
}

/// A TOML string of any text.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(c)).expect("a string takes all text")
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn make_folder(path: &Path) -> Result<(), PairError> {
    fs::create_dir_all(path).map_err(|source| PairError::Write { path: path.into(), source })
}

fn write_file(path: &Path, text: &str) -> Result<(), PairError> {
    fs::write(path, text).map_err(|source| PairError::Write { path: path.into(), source })
}

/// One request and its answer, a line each.
fn exchange(path: &Path, request: &Value) -> io::Result<Value> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
