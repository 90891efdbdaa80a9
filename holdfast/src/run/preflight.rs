//! What can be seen to be wrong before anything is started: all of it, not the first.
//!
//! The parts check again for themselves when they start, as what is seen here may change until then.

use super::Link;
use super::machine::group_number;
use crate::cli::Failure;
use crate::config::{Config, Fault, Mode, Socket};
use crate::control::Server;
use holdfast_dpdk_config::{Problems, WireKind};
use holdfast_hugepages_setup::{Root, lacking_capabilities};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What was opened on the way.
pub(super) struct Ready {
    pub(super) server: Server,
    pub(super) link: Option<Link>,
}

/// Opens the control socket and the replication link. Refuses a configuration that names what is not there
/// or is taken, with all that is found; and a user who may not do what the configuration asks for.
pub(super) fn check(config: &Config) -> Result<Ready, Failure> {
    check_privileges(config)?;
    // First, as it makes the folder in which other sockets may lie too.
    let server =
        Server::open(&config.control_socket).map_err(|fault| format!("host.control_socket: {fault}"));
    let link = config.replication.as_ref().map(Link::open).transpose();
    let mut faults = Vec::new();
    check_cores(config, &mut faults);
    check_wires(config, &mut faults);
    if let Some(directory) = &config.arbiter {
        check_arbiter(directory, &mut faults);
    }
    for (number, vm) in config.vms.iter().enumerate() {
        for (card, nic) in vm.nics.iter().enumerate() {
            if let Socket::Listen(path) = &nic.socket {
                check_socket(&format!("vm[{number}].nic[{card}].socket"), path, &mut faults);
            }
            if let Some(Err(problem)) = nic.socket_group.as_deref().map(group_number) {
                faults.push(fault(
                    format!("vm[{number}].nic[{card}].socket_group"),
                    problem,
                    "name one of those that `getent group` shows, to which QEMU's user belongs",
                ));
            }
        }
    }
    let mut lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    match (server, link) {
        (Ok(server), Ok(link)) if lines.is_empty() => return Ok(Ready { server, link }),
        (server, link) => lines.extend(server.err().into_iter().chain(link.err())),
    }
    Err(Failure::Usage(match lines.as_slice() {
        [only] => only.clone(),
        several => format!("{} faults:\n  {}", several.len(), several.join("\n  ")),
    }))
}

fn fault(key: impl Into<String>, problem: impl Into<String>, mend: impl Into<String>) -> Fault {
    Fault { key: key.into(), problem: problem.into(), mend: mend.into() }
}

fn check_privileges(config: &Config) -> Result<(), Failure> {
    let mut needed: Vec<&str> = Vec::new();
    for wire in &config.wires {
        needed.extend(match wire.kind {
            WireKind::Kernel { .. } | WireKind::AfPacket { .. } => &["CAP_NET_RAW"][..],
            WireKind::AfXdp { .. } => &["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"],
            WireKind::Tap { .. } => &["CAP_NET_ADMIN"],
            WireKind::Memif { .. } | WireKind::Pci { .. } => &[],
        });
    }
    if config.vms.iter().any(|vm| vm.mode != Mode::Native) {
        needed.extend(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
    }
    let mut lacking = lacking_capabilities(&Root::default());
    lacking.retain(|name| needed.contains(name));
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Failure::HostLacks(format!(
        "this user may not open the wires or follow the memory of a guest (without {}); mend: run as root, or by \
         the systemd unit, or give these in AmbientCapabilities=",
        lacking.join(", ")
    )))
}

/// Processors that are named and not there.
fn check_cores(config: &Config, faults: &mut Vec<Fault>) {
    // When the system does not say, the threads themselves find out.
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else { return };
    let present: Vec<u32> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .map(|cpu| cpu as u32)
        .collect();
    let mut problems = Problems::default();
    config.cores.check_against(&present, &mut problems);
    faults.extend(problems.0.into_iter().map(|problem| fault(problem.key, problem.what, problem.mend)));
}

fn check_wires(config: &Config, faults: &mut Vec<Fault>) {
    for (number, wire) in config.wires.iter().enumerate() {
        let (WireKind::Kernel { iface } | WireKind::AfPacket { iface } | WireKind::AfXdp { iface, .. }) =
            &wire.kind
        else {
            continue;
        };
        if if_nametoindex(iface.as_str()).is_err() {
            faults.push(fault(
                format!("wire[{number}].iface"),
                format!("there is no interface {iface} in this network namespace"),
                "name one of those that `ip link` shows",
            ));
        }
    }
}

fn check_arbiter(directory: &Path, faults: &mut Vec<Fault>) {
    let problem = match std::fs::metadata(directory) {
        Ok(meta) if meta.is_dir() => return,
        Ok(_) => "it is no folder".to_owned(),
        Err(error) => error.to_string(),
    };
    faults.push(fault(
        "arbiter.directory",
        format!("{} cannot be used: {problem}", directory.display()),
        "mount the filesystem that both hosts share, and name a folder there that exists",
    ));
}

/// As the device will find it when it listens.
fn check_socket(key: &str, path: &Path, faults: &mut Vec<Fault>) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        faults.push(fault(
            key,
            format!("the folder {} is not there", folder.display()),
            format!("mkdir -p {}, or name another path", folder.display()),
        ));
        return;
    }
    let Ok(meta) = std::fs::symlink_metadata(path) else { return };
    if !meta.file_type().is_socket() {
        faults.push(fault(
            key,
            format!("{} exists and is not a socket", path.display()),
            "remove it, or name another path",
        ));
        return;
    }
    match UnixStream::connect(path) {
        // Left over: the device replaces it.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        _ => faults.push(fault(
            key,
            format!("{} is served by another process", path.display()),
            "end that process, or give this NIC a path of its own",
        )),
    }
}
