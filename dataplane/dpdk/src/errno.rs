//! Error numbers as DPDK gives them: in `rte_errno`, or negative as a return value.
#![expect(unsafe_code, reason = "calls into DPDK")]

use holdfast_dpdk_sys as sys;
use std::ffi::CStr;
use std::fmt;

/// An error number of DPDK or the system; its display is DPDK's own text for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What the last failed call of this thread left in `rte_errno`.
    pub(crate) fn last() -> Self {
        // SAFETY: reads a thread-local variable of the EAL's library; no precondition.
        Self(unsafe { sys::hf_errno() })
    }

    /// Turns a return value that is negative on failure into a result.
    pub(crate) fn check(returned: i32) -> Result<i32, Self> {
        if returned < 0 { Err(Self(-returned)) } else { Ok(returned) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Drivers return -1 for any failure; a real EPERM shows in their log lines.
        if self.0 == libc::EPERM {
            return f.write_str("it failed (errno 1, which drivers give for any reason)");
        }
        // SAFETY: takes any number and returns a terminated string, static or thread-local, that
        // this thread's next call of the function replaces; it is copied out below, before that.
        let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.0)) };
        write!(f, "{} (errno {})", text.to_string_lossy(), self.0)
    }
}
