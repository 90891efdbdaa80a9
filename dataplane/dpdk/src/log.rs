//! DPDK's log: lines become events of `tracing`, and the last few are kept for errors.
//!
//! The sink is called on whatever thread logs. It takes one short lock, and never from a packet's
//! path: the drivers used here log only while ports are set up or fail.
#![expect(unsafe_code, reason = "a callback from DPDK")]

use crate::Errno;
use holdfast_dpdk_sys as sys;
use std::collections::VecDeque;
use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};

/// Lines kept for the next error.
const KEPT: usize = 16;
/// Bytes of a line that are kept.
const LINE_MAX: usize = 300;

/// What drivers call errors though nothing is amiss: queue disciplines for flow rules that nobody asks
/// for, messages to secondary processes that there are none of, a question whether a descriptor exists.
const HARMLESS: [&str; 8] = [
    "multiq qdisc",
    "Specified qdisc kind is unknown",
    "Disabling rte flow support",
    "Failed to send start req to secondary",
    "Failed to register mp action callback",
    "Rx Intr handle unset",
    "All rt-signals are in use",
    "No free 1048576 kB hugepages",
];

static RECENT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Sends DPDK's log here from now on.
pub(crate) fn install() -> Result<(), Errno> {
    // SAFETY: the sink is a function that lives as long as the process.
    if unsafe { sys::hf_log_to(Some(sink)) } == 0 { Ok(()) } else { Err(Errno(libc::ENOMEM)) }
}

/// Redirects the libraries of the AF_XDP driver too; the EAL must have loaded its drivers.
pub(crate) fn install_for_xdp() {
    // SAFETY: the sink is installed already; the call looks up loaded libraries only.
    unsafe { sys::hf_log_of_xdp() };
}

/// Takes the warnings and errors since the last call, as one line of text.
#[expect(clippy::disallowed_methods, reason = "of control threads, that open devices")]
pub(crate) fn take_recent() -> String {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<String> = recent.drain(..).collect();
    lines.join("; ")
}

#[expect(clippy::disallowed_methods, reason = "a line of the log is none of the hot path")]
unsafe extern "C" fn sink(level: u32, text: *const c_char, len: usize) {
    // SAFETY: DPDK passes `len` readable bytes that stay until this function returns.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len.min(LINE_MAX)) };
    let text = String::from_utf8_lossy(bytes);
    let line = text.trim();
    if line.is_empty() {
        return;
    }
    if HARMLESS.iter().any(|known| line.contains(known)) {
        tracing::debug!(target: "dpdk", "{line}");
        return;
    }
    match level {
        0..=sys::RTE_LOG_ERR => tracing::error!(target: "dpdk", "{line}"),
        sys::RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{line}"),
        sys::RTE_LOG_NOTICE | sys::RTE_LOG_INFO => tracing::info!(target: "dpdk", "{line}"),
        _ => tracing::debug!(target: "dpdk", "{line}"),
    }
    if level <= sys::RTE_LOG_WARNING {
        let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(line.to_owned());
    }
}
