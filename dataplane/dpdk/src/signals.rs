//! Keeps `net_tap` from real-time signals.
//!
//! The driver has the kernel send one for every frame, to any thread of the process: blocking calls
//! everywhere would end with EINTR, and a signal lost in a full queue would leave frames lying. When it
//! finds none free, as it is made to here, it asks the descriptor instead, at the cost of a system call
//! for a receive burst that finds nothing.
#![expect(unsafe_code, reason = "signal actions")]

use std::mem;
use std::sync::{Mutex, PoisonError};

/// Runs a step of opening the device of this name; for `net_tap`, while no real-time signal is free.
#[expect(clippy::disallowed_methods, reason = "of control threads, that open devices")]
pub(crate) fn none_free_for<T>(device: &str, step: impl FnOnce() -> T) -> T {
    if !device.starts_with("net_tap") {
        return step();
    }
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = Vec::new();
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: a zeroed `sigaction` is valid; both calls read or write one that is at hand. Ignoring
        // a signal that has the default action loses nothing but its killing this process.
        unsafe {
            let mut current: libc::sigaction = mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut current) != 0
                || current.sa_sigaction != libc::SIG_DFL
            {
                continue;
            }
            let mut ignored: libc::sigaction = mem::zeroed();
            ignored.sa_sigaction = libc::SIG_IGN;
            if libc::sigaction(signal, &raw const ignored, std::ptr::null_mut()) == 0 {
                taken.push((signal, current));
            }
        }
    }
    let done = step();
    for (signal, before) in taken {
        // SAFETY: puts back the action that the same call gave above.
        let returned = unsafe { libc::sigaction(signal, &raw const before, std::ptr::null_mut()) };
        debug_assert_eq!(returned, 0, "what was read can be written back");
    }
    done
}
