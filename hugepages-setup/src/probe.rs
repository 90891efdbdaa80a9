//! Kernel features tried for real, each on objects of its own that are gone afterwards.

mod tracking;

use crate::kernel::has_capability;
use crate::root::Root;
use crate::{Row, State};
use std::fs::OpenOptions;
use std::io;

pub(crate) use sockets::{af_xdp, tun};
pub(crate) use tracking::tracking;
pub(crate) use vcpu::kvm;

mod sockets;
mod vcpu;

/// Bit of the capability to trace processes that are not one's own children.
const CAP_SYS_PTRACE: u32 = 19;

fn open_both_ways(root: &Root, path: &str) -> io::Result<std::fs::File> {
    OpenOptions::new().read(true).write(true).open(root.path(path))
}

/// Whether a running process can be seized, as attaching to QEMU does.
pub(crate) fn ptrace(root: &Root) -> Row {
    const NEEDED: &str = "attaching to a running QEMU";
    let row = |found: String| Row::ok("ptrace", "ptrace", found, NEEDED);
    if let Err(fault) = tracking::seize_a_child() {
        return row(format!("a child cannot be seized: {fault}")).lacking(
            State::Missing,
            "allow ptrace: no seccomp filter of a container, kernel.yama.ptrace_scope below 3",
        );
    }
    // Without Yama the kernel asks only for the same user.
    let scope = root.number("proc/sys/kernel/yama/ptrace_scope").unwrap_or(0);
    if has_capability(root, CAP_SYS_PTRACE) {
        return if scope >= 3 {
            row(format!("Yama scope {scope} forbids it for good"))
                .lacking(State::Missing, "start the host with kernel.yama.ptrace_scope below 3")
        } else {
            row("any process (CAP_SYS_PTRACE)".to_owned())
        };
    }
    if scope == 0 {
        row("processes of the same user".to_owned())
            .lacking(State::Limited, "run Holdfast as root or as QEMU's user")
    } else {
        row(format!("only children (Yama scope {scope}, no CAP_SYS_PTRACE)")).lacking(
            State::Missing,
            "run as root or with CAP_SYS_PTRACE, or sysctl kernel.yama.ptrace_scope=0",
        )
    }
}
