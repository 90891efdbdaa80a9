//! The configuration as the program uses it: every value in range, every reference resolved.

use super::Fault;
use super::bypass::Bypass;
use super::cores;
use super::exception::Exception;
use super::mode::Mode;
use super::raw::{
    RawBackup, RawConfig, RawListen, RawMode, RawNic, RawReduction, RawReplication, RawRole, RawSpeculation,
    RawVm,
};
use holdfast_checkpoint::reduction::Reduction;
use holdfast_checkpoint::vm::EpochRule;
use holdfast_dpdk_config::{CoreMap, Dpdk, Wire};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) host: String,
    pub(crate) control_socket: PathBuf,
    pub(crate) frame_audit: Option<PathBuf>,
    pub(crate) dpdk: Dpdk,
    pub(crate) cores: CoreMap,
    pub(crate) wires: Vec<Wire>,
    pub(crate) replication: Option<Replication>,
    pub(crate) arbiter: Option<PathBuf>,
    pub(crate) vms: Vec<Vm>,
}

/// How this host and its peer reach each other.
#[derive(Clone, Debug)]
pub(crate) struct Replication {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    /// None only with the laboratory's plaintext flag.
    pub(crate) keys: Option<PathBuf>,
    /// The way of the epochs past the kernel.
    pub(crate) bypass: Option<Bypass>,
}

/// The side a host takes when the arbiter has no record of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    Backup,
}

/// One VM on this host.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) speculation: Speculation,
    pub(crate) reduction: Reduction,
    pub(crate) role: Role,
    pub(crate) epoch: Duration,
    pub(crate) epoch_rule: EpochRule,
    /// For an `epoch_rule` that is given while the VM runs and names no other.
    pub(crate) max_paused_percent: u64,
    pub(crate) epochs_in_flight: usize,
    pub(crate) lease: Duration,
    pub(crate) qemu_timeout: Duration,
    pub(crate) qmp: Option<PathBuf>,
    pub(crate) accept_unreplicated_disks: bool,
    pub(crate) backup: Option<Standby>,
    pub(crate) nics: Vec<Nic>,
}

/// Bounds of mode `speculative`, and what does not speculate in it: kept in the other modes as well, as the
/// mode may change while the VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Speculation {
    /// Bytes that each port of the VM may hold for its clients.
    pub(crate) escrow_bytes: usize,
    /// Bytes of these that one flow may have.
    pub(crate) flow_bytes: usize,
    /// Flows of a port that are known at a time; others get plain output commit.
    pub(crate) flows: usize,
    /// Flows that keep plain output commit.
    pub(crate) except: Vec<Exception>,
}

/// How this host backs the VM up.
#[derive(Clone, Debug)]
pub(crate) struct Standby {
    pub(crate) image: PathBuf,
    pub(crate) memory_bytes: u64,
    pub(crate) qmp: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) commit_log: PathBuf,
}

/// Which side listens on a vhost-user socket, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    Listen(PathBuf),
    Connect(PathBuf),
}

/// One NIC of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    pub(crate) socket: Socket,
    /// Permission bits and group of a socket that is listened on; as the process has it where none is given.
    pub(crate) socket_mode: Option<u32>,
    pub(crate) socket_group: Option<String>,
    pub(crate) wire: String,
    pub(crate) queue_pairs: u16,
    /// Processor of the polling thread of each pair; none: all are with the wire.
    pub(crate) pair_cores: Option<Vec<u32>>,
    pub(crate) offloads: bool,
    pub(crate) escrow_bytes: usize,
}

/// Collects faults while the checks go on.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(
        &mut self,
        key: impl Into<String>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.0.push(Fault { key: key.into(), problem: problem.into(), mend: mend.into() });
    }

    fn range(&mut self, key: String, value: u64, low: u64, high: u64) {
        if !(low..=high).contains(&value) {
            let name = key.rsplit('.').next().unwrap_or_default().to_owned();
            self.add(
                key,
                format!("{value} is not between {low} and {high}"),
                format!("{name} = {}", value.clamp(low, high)),
            );
        }
    }
}

/// Which key of which VM has a path. A VM may use one path twice, as for the monitor of its guest and of
/// its standby, of which a host has one at a time; only its NICs may not share one.
#[derive(Default)]
struct Paths(HashMap<PathBuf, (usize, String)>);

impl Paths {
    fn claim(&mut self, vm: usize, key: String, path: &Path, faults: &mut Faults) {
        let is_nic = key.ends_with(".socket");
        match self.0.get(path) {
            Some((other, used)) if *other != vm || is_nic => {
                let mend = "give each its own path";
                faults.add(key, format!("{} is {used} already", path.display()), mend);
            }
            Some(_) => {}
            None => {
                self.0.insert(path.to_owned(), (vm, key));
            }
        }
    }
}

impl Config {
    /// Checks `raw`; on failure every fault found.
    pub(super) fn check(raw: RawConfig) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        check_name("host.name", &raw.host.name, &mut faults);
        let (dpdk, wires) = match holdfast_dpdk_config::check(&raw.dpdk, &raw.cores, &raw.wires) {
            Ok(checked) => {
                let names = checked.wires.iter().map(|wire| wire.name.clone()).collect();
                (Some(checked), names)
            }
            Err(problems) => {
                for problem in problems.0 {
                    faults.add(problem.key, problem.what, problem.mend);
                }
                (None, HashSet::new())
            }
        };
        let known = dpdk.as_ref().map(|checked| checked.wires.as_slice());
        let replication = raw.replication.map(|part| {
            let bypass = Bypass::check(&part, known, &raw.vms, &mut faults);
            check_replication(part, bypass, &mut faults)
        });
        let arbiter = raw.arbiter.map(|part| part.directory);
        let mut paths = Paths::default();
        let mut names = HashSet::new();
        let mut vms = Vec::new();
        for (index, vm) in raw.vms.into_iter().enumerate() {
            let key = format!("vm[{index}]");
            if !names.insert(vm.name.clone()) {
                faults.add(
                    format!("{key}.name"),
                    format!("'{}' names another VM already", vm.name),
                    "give each VM its own name",
                );
            }
            if vm.mode != RawMode::Native {
                check_protection(&key, &vm.name, replication.as_ref(), arbiter.is_some(), &mut faults);
            }
            let wires = dpdk.is_some().then_some(&wires);
            claim_paths(index, &key, &vm, &mut paths, &mut faults);
            vms.push(check_vm(&key, vm, wires, &mut faults));
        }
        if let Some(dpdk) = &dpdk {
            check_guests_wires(&dpdk.wires, &vms, &mut faults);
            let bypass = replication.as_ref().and_then(|replication| replication.bypass.as_ref());
            cores::check(dpdk, bypass, &vms, raw.host.frame_audit.is_some(), &mut faults);
        }
        match dpdk {
            Some(dpdk) if faults.0.is_empty() => Ok(Self {
                host: raw.host.name,
                control_socket: raw.host.control_socket,
                frame_audit: raw.host.frame_audit,
                dpdk: dpdk.dpdk,
                cores: dpdk.cores,
                wires: dpdk.wires,
                replication,
                arbiter,
                vms,
            }),
            _ => Err(faults.0),
        }
    }
}

/// Longest packets of a wire that guests' cards are on: what common cards take, and what their frames are cut to.
const GUEST_MTU_MAX: u16 = 9216;

fn check_guests_wires(wires: &[Wire], vms: &[Vm], faults: &mut Faults) {
    let nics = vms.iter().enumerate().flat_map(|(vm, found)| found.nics.iter().map(move |nic| (vm, nic)));
    for (vm, nic) in nics {
        let too_long = |wire: &&Wire| wire.name == nic.wire && wire.mtu > GUEST_MTU_MAX;
        if let Some(wire) = wires.iter().find(too_long) {
            faults.add(
                format!("vm[{vm}].nic"),
                format!("packets of {} bytes on '{}' are longer than a guest's may be", wire.mtu, wire.name),
                format!("mtu = {GUEST_MTU_MAX} at most in that [[wire]]: more is for a bypass alone"),
            );
        }
    }
}

fn check_name(key: &str, name: &str, faults: &mut Faults) {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 48 || !name.chars().all(fine) || name.starts_with('.') {
        faults.add(
            key,
            format!("'{name}' is not a name of 1 to 48 letters, digits, '-', '_' or '.'"),
            "a name such as \"web-1\"",
        );
    }
}

fn check_replication(raw: RawReplication, bypass: Option<Bypass>, faults: &mut Faults) -> Replication {
    if raw.keys.is_none() && !raw.laboratory_plaintext {
        faults.add(
            "replication.keys",
            "no keys are given, and the replication link carries the guest's memory",
            "run `holdfast keys A-DIR B-DIR`, copy each folder to its host, and set keys = \"/etc/holdfast/keys\"",
        );
    }
    if raw.keys.is_some() && raw.laboratory_plaintext {
        faults.add(
            "replication.laboratory_plaintext",
            "keys and plaintext exclude each other",
            "remove one of the two lines",
        );
    }
    if raw.listen.is_none() && raw.peer.is_none() {
        faults.add(
            "replication.listen",
            "neither an address to listen on nor a peer is given",
            "listen = \"10.0.1.1:7400\" and peer = \"10.0.1.2:7400\"",
        );
    }
    if let (Some(listen), Some(peer)) = (raw.listen, raw.peer) {
        if listen == peer {
            faults.add(
                "replication.peer",
                format!("{peer} is this host's own address, on which it listens"),
                "the address on which the other host listens",
            );
        }
    }
    Replication { listen: raw.listen, peer: raw.peer, keys: raw.keys, bypass }
}

fn check_protection(
    key: &str,
    name: &str,
    replication: Option<&Replication>,
    arbiter: bool,
    faults: &mut Faults,
) {
    if replication.is_none() {
        faults.add(
            format!("{key}.mode"),
            format!("VM '{name}' is to be protected, but there is no [replication]"),
            "add [replication] with listen, peer and keys, or set mode = \"native\"",
        );
    }
    if !arbiter {
        faults.add(
            format!("{key}.mode"),
            format!("VM '{name}' is to be protected, but there is no [arbiter]"),
            "add [arbiter] with directory = a folder on a filesystem that both hosts share",
        );
    }
}

/// No two VMs may share a path.
fn claim_paths(vm: usize, key: &str, raw: &RawVm, paths: &mut Paths, faults: &mut Faults) {
    if let Some(qmp) = &raw.qmp {
        paths.claim(vm, format!("{key}.qmp"), qmp, faults);
    }
    if let Some(backup) = &raw.backup {
        let log = backup.commit_log.as_ref().map(|path| ("commit_log", path));
        for (name, path) in [("image", &backup.image), ("qmp", &backup.qmp)].into_iter().chain(log) {
            paths.claim(vm, format!("{key}.backup.{name}"), path, faults);
        }
    }
    for (index, nic) in raw.nics.iter().enumerate() {
        paths.claim(vm, format!("{key}.nic[{index}].socket"), &nic.socket, faults);
    }
}

fn check_vm(key: &str, raw: RawVm, wires: Option<&HashSet<String>>, faults: &mut Faults) -> Vm {
    check_name(&format!("{key}.name"), &raw.name, faults);
    faults.range(format!("{key}.epoch_ms"), raw.epoch_ms, 5, 10_000);
    faults.range(format!("{key}.max_paused_percent"), raw.max_paused_percent, 1, 90);
    faults.range(format!("{key}.epochs_in_flight"), raw.epochs_in_flight as u64, 1, 64);
    faults.range(format!("{key}.lease_ms"), raw.lease_ms, 50, 60_000);
    faults.range(format!("{key}.qemu_timeout_ms"), raw.qemu_timeout_ms, 200, 600_000);
    if raw.nics.is_empty() {
        faults.add(
            format!("{key}.nic"),
            "the VM has no NIC, so there is nothing to hold back or pass on",
            "add [[vm.nic]] with socket and wire",
        );
    }
    let role = match raw.role {
        Some(RawRole::Primary) | None => Role::Primary,
        Some(RawRole::Backup) => Role::Backup,
    };
    if raw.mode != RawMode::Native && role == Role::Primary && raw.qmp.is_none() {
        faults.add(
            format!("{key}.qmp"),
            "a protected VM is stopped and resumed by QMP, and no socket is given",
            "qmp = \"/run/vm.qmp\", with -qmp unix:/run/vm.qmp,server=on,wait=off on QEMU's command line",
        );
    }
    if role == Role::Backup && raw.backup.is_none() {
        faults.add(
            format!("{key}.backup"),
            "this host backs the VM up, but [vm.backup] is missing",
            "add [vm.backup] with image, memory, qmp and command",
        );
    }
    let nics: Vec<_> = raw.nics.iter().map(|nic| (nic.socket.clone(), nic.queue_pairs)).collect();
    let backup =
        raw.backup.map(|part| check_backup(&format!("{key}.backup"), &raw.name, part, &nics, faults));
    let speculation = check_speculation(&format!("{key}.speculation"), &raw.speculation, faults);
    let reduction = check_reduction(&format!("{key}.reduction"), &raw.reduction, faults);
    let held = u64::from(raw.speculation.escrow_mib) * raw.nics.len() as u64;
    if raw.speculation.escrow_mib as u64 <= MAX_ESCROW_MIB && held > MAX_ESCROW_MIB {
        faults.add(
            format!("{key}.speculation.escrow_mib"),
            format!(
                "{} NICs of {} MiB each are more than {MAX_ESCROW_MIB} MiB, which one checkpoint carries",
                raw.nics.len(),
                raw.speculation.escrow_mib
            ),
            "give each NIC less",
        );
    }
    let nics = raw
        .nics
        .into_iter()
        .enumerate()
        .map(|(index, nic)| check_nic(&format!("{key}.nic[{index}]"), nic, wires, faults))
        .collect();
    Vm {
        name: raw.name,
        mode: match raw.mode {
            RawMode::Native => Mode::Native,
            RawMode::Commit => Mode::Commit,
            RawMode::Speculative => Mode::Speculative,
            RawMode::Aware => Mode::Aware,
        },
        speculation,
        reduction,
        role,
        epoch: Duration::from_millis(raw.epoch_ms),
        epoch_rule: raw.epoch_policy.rule(raw.max_paused_percent),
        max_paused_percent: raw.max_paused_percent,
        epochs_in_flight: raw.epochs_in_flight,
        lease: Duration::from_millis(raw.lease_ms),
        qemu_timeout: Duration::from_millis(raw.qemu_timeout_ms),
        qmp: raw.qmp,
        accept_unreplicated_disks: raw.accept_unreplicated_disks,
        backup,
        nics,
    }
}

/// Bytes that a VM may hold for its clients, in MiB: the first checkpoint of each session carries them all.
const MAX_ESCROW_MIB: u64 = 384;

fn check_speculation(key: &str, raw: &RawSpeculation, faults: &mut Faults) -> Speculation {
    faults.range(format!("{key}.escrow_mib"), raw.escrow_mib.into(), 1, MAX_ESCROW_MIB);
    let most = u64::from(raw.escrow_mib).clamp(1, MAX_ESCROW_MIB);
    faults.range(format!("{key}.flow_mib"), raw.flow_mib.into(), 1, most);
    faults.range(format!("{key}.flows"), raw.flows.into(), 64, 65536);
    let mut except = Vec::new();
    if raw.except.len() > Exception::MOST {
        faults.add(
            format!("{key}.except"),
            format!(
                "{} exceptions are more than the {} that are looked at",
                raw.except.len(),
                Exception::MOST
            ),
            "name networks that hold several of them",
        );
    }
    for (index, text) in raw.except.iter().enumerate() {
        match text.parse() {
            Ok(exception) => except.push(exception),
            Err(problem) => faults.add(
                format!("{key}.except[{index}]"),
                format!("'{text}' {problem}"),
                "except = [\"22\", \"443=speculative\", \"10.0.0.0/8\", \"fd00::/8\"]: ports of either end, and networks of \
                 clients; the first that fits a flow decides",
            ),
        }
    }
    Speculation {
        escrow_bytes: raw.escrow_mib as usize * (1 << 20),
        flow_bytes: raw.flow_mib as usize * (1 << 20),
        flows: raw.flows as usize,
        except,
    }
}

/// Copies of sent pages, in MiB: more than this is the memory of the largest of guests.
const MAX_CACHE_MIB: u64 = 1 << 20;

fn check_reduction(key: &str, raw: &RawReduction, faults: &mut Faults) -> Reduction {
    if let Some(mib) = raw.cache_mib {
        faults.range(format!("{key}.cache_mib"), mib, 0, MAX_CACHE_MIB);
    }
    Reduction {
        ways: raw.ways.clone(),
        cache: raw.cache_mib.map(|mib| mib.min(MAX_CACHE_MIB) << 20),
        adaptive: raw.adaptive,
    }
}

fn check_backup(
    key: &str,
    vm: &str,
    raw: RawBackup,
    nics: &[(PathBuf, u16)],
    faults: &mut Faults,
) -> Standby {
    let memory_bytes = parse_size(&raw.memory).unwrap_or_else(|| {
        faults.add(
            format!("{key}.memory"),
            format!("'{}' is not a size of whole 4 KiB pages", raw.memory),
            "memory = \"512M\", as in -m",
        );
        0
    });
    if raw.command.is_empty() {
        faults.add(format!("{key}.command"), "the command is empty", "command = [\"qemu-system-x86_64\", …]");
    } else {
        if !raw.command.windows(2).any(|pair| pair[0] == "-incoming" && pair[1] == "defer") {
            faults.add(
                format!("{key}.command"),
                "the standby QEMU would start the guest at once",
                "add \"-incoming\", \"defer\" to the command",
            );
        }
        let own = [(&raw.image, "mem-path of its memory"), (&raw.qmp, "QMP socket")];
        for (path, what) in own.into_iter().chain(nics.iter().map(|(nic, _)| (nic, "socket of a NIC"))) {
            if !raw.command.iter().any(|word| mentions(word, &path.to_string_lossy())) {
                faults.add(
                    format!("{key}.command"),
                    format!("the command does not use {} as the {what}", path.display()),
                    "use the same path in the command and here",
                );
            }
        }
    }
    for (socket, queue_pairs) in nics {
        let asked = asked_queues(&raw.command, socket).filter(|asked| asked > queue_pairs);
        if let Some(asked) = asked {
            faults.add(
                format!("{key}.command"),
                format!(
                    "its network on {} asks for {asked} queues, more than the NIC has pairs ({queue_pairs}), which QEMU \
                     would not take",
                    socket.display()
                ),
                format!("queue_pairs = {asked} in its [[vm.nic]], or queues={queue_pairs} in the command"),
            );
        }
    }
    if let Some(size) = backend_size(&raw.command, &raw.image) {
        // One that is no size was told above, or is by QEMU.
        if memory_bytes > 0 && parse_size(size).is_some_and(|bytes| bytes != memory_bytes) {
            faults.add(
                format!("{key}.memory"),
                format!("'{}' is not the size={size} of the memory backend in the command", raw.memory),
                format!("memory = \"{size}\", or the other size in the command"),
            );
        }
    }
    let commit_log = raw.commit_log.unwrap_or_else(|| format!("/var/lib/holdfast/{vm}.commits").into());
    Standby { image: raw.image, memory_bytes, qmp: raw.qmp, command: raw.command, commit_log }
}

/// Whether a word of a command has this path in it, and not only one that begins like it.
fn mentions(word: &str, path: &str) -> bool {
    let goes_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
    word.match_indices(path).any(|(at, _)| !word[at + path.len()..].starts_with(goes_on))
}

/// What a command says of the size of the memory backend that lies at `image`.
fn backend_size<'a>(command: &'a [String], image: &Path) -> Option<&'a str> {
    let path = format!("mem-path={}", image.display());
    let backend = command.iter().find(|word| word.split(',').any(|part| part == path))?;
    backend.split(',').find_map(|part| part.strip_prefix("size="))
}

/// Queues that a command's network on a NIC's socket asks for; none when the command does not tell.
fn asked_queues(command: &[String], socket: &Path) -> Option<u16> {
    let path = socket.to_string_lossy();
    let chardev = command.iter().find(|word| mentions(word, &path))?;
    let label = format!("chardev={}", chardev.split(',').find_map(|part| part.strip_prefix("id="))?);
    let is_its =
        |word: &&String| word.starts_with("vhost-user,") && word.split(',').any(|part| part == label);
    let network = command.iter().find(is_its)?;
    let queues = network.split(',').find_map(|part| part.strip_prefix("queues="));
    queues.map_or(Some(1), |queues| queues.parse().ok())
}

fn check_nic(key: &str, raw: RawNic, wires: Option<&HashSet<String>>, faults: &mut Faults) -> Nic {
    if raw.socket.as_os_str().len() > 107 {
        faults.add(format!("{key}.socket"), "a unix socket's path has at most 107 bytes", "a shorter path");
    }
    if wires.is_some_and(|wires| !wires.contains(&raw.wire)) {
        faults.add(
            format!("{key}.wire"),
            format!("there is no wire named '{}'", raw.wire),
            "name one of the [[wire]] entries, or add one",
        );
    }
    let socket_mode = check_access(key, &raw, faults);
    faults.range(format!("{key}.queue_pairs"), raw.queue_pairs.into(), 1, 8);
    faults.range(format!("{key}.escrow_mib"), raw.escrow_mib.into(), 1, 4096);
    Nic {
        socket: match raw.listens {
            RawListen::Holdfast => Socket::Listen(raw.socket),
            RawListen::Qemu => Socket::Connect(raw.socket),
        },
        socket_mode,
        socket_group: raw.socket_group,
        wire: raw.wire,
        queue_pairs: raw.queue_pairs,
        pair_cores: raw.pair_cores,
        offloads: raw.offloads,
        escrow_bytes: raw.escrow_mib as usize * (1 << 20),
    }
}

/// Who may connect to the socket of a NIC; its permission bits.
fn check_access(key: &str, raw: &RawNic, faults: &mut Faults) -> Option<u32> {
    let given = [("socket_mode", &raw.socket_mode), ("socket_group", &raw.socket_group)];
    for (name, _) in given.iter().filter(|(_, value)| value.is_some() && raw.listens == RawListen::Qemu) {
        faults.add(
            format!("{key}.{name}"),
            "QEMU makes this socket, and says who may connect to it",
            format!("remove {name}, or let Holdfast listen: listens = \"holdfast\""),
        );
    }
    let text = raw.socket_mode.as_ref()?;
    // Who connects must be able to write, and Holdfast itself looks whether it is served.
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600);
    if mode.is_none() {
        faults.add(
            format!("{key}.socket_mode"),
            format!("'{text}' are no permission bits in octal that let the owner read and write"),
            "socket_mode = \"0660\", for its owner and its group",
        );
    }
    mode
}

/// Bytes of a size such as `512M` or `2G`; none when it is no whole number of 4 KiB pages.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit.trim().to_ascii_uppercase().as_str() {
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes > 0 && bytes % 4096 == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_whole_pages_with_a_unit() {
        let cases = [
            ("512M", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("4096", Some(4096)),
            ("1MiB", Some(1 << 20)),
            ("100", None),
            ("0M", None),
            ("G", None),
            ("12X", None),
            ("99999999999999T", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
