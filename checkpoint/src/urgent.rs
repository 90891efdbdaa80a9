//! Threads that go first while a guest stands still.
//!
//! A pause is a chain of short steps in several threads, of this process and of QEMU. On processors that are
//! shared, each step waits for its turn behind whatever is busy, some milliseconds each time, and the guest
//! stands still meanwhile. For the length of the pause these threads get the lowest real-time priority:
//! they run at once, and for that time only, so that nothing is starved by them.
//!
//! A thread that has a real-time policy of its own keeps it, but for the one that is given here, which is taken
//! for what a Holdfast that was killed in a pause has left. Without the privilege (`CAP_SYS_NICE`) nothing is
//! changed, and pauses take what they take.
//!
//! Source: sched(7).
#![expect(unsafe_code, reason = "scheduling calls that nix does not wrap")]

use std::sync::Once;

/// The lowest real-time priority.
const PRIORITY: i32 = 1;

/// Threads of a pause that is under way; they are as before when this is dropped.
#[derive(Debug)]
pub struct Urgent {
    raised: Vec<i32>,
}

impl Urgent {
    /// Lets these threads, by their kernel ids, go first.
    #[must_use]
    pub fn begin(threads: impl IntoIterator<Item = i32>) -> Self {
        let raised = threads.into_iter().filter(|&thread| is_ordinary(thread) && raise(thread)).collect();
        Self { raised }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        for &thread in &self.raised {
            // One that has ended needs nothing.
            set(thread, libc::SCHED_OTHER, 0);
        }
    }
}

/// Makes threads ordinary again that a process which was killed in a pause has left as they were in it.
pub(crate) fn settle(threads: &[i32]) {
    for &thread in threads {
        let mut param = libc::sched_param { sched_priority: 0 };
        // SAFETY: the kernel writes one parameter.
        let known = unsafe { libc::sched_getparam(thread, &raw mut param) == 0 };
        // SAFETY: a call without pointers.
        let policy = unsafe { libc::sched_getscheduler(thread) };
        if known && policy == libc::SCHED_RR && param.sched_priority == PRIORITY {
            set(thread, libc::SCHED_OTHER, 0);
        }
    }
}

/// Kernel id of the calling thread.
#[must_use]
pub fn own_thread() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Whether a thread has no real-time policy.
pub(crate) fn is_ordinary(thread: i32) -> bool {
    // SAFETY: a call without pointers.
    unsafe { libc::sched_getscheduler(thread) == libc::SCHED_OTHER }
}

fn raise(thread: i32) -> bool {
    static TOLD: Once = Once::new();
    let done = set(thread, libc::SCHED_RR, PRIORITY);
    if !done {
        let error = std::io::Error::last_os_error();
        TOLD.call_once(|| {
            tracing::info!(
                "pauses take longer on busy processors: threads cannot be made to go first ({error})"
            );
        });
    }
    done
}

fn set(thread: i32, policy: i32, priority: i32) -> bool {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one parameter that lives until the call returns.
    unsafe { libc::sched_setscheduler(thread, policy, &raw const param) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_needs;

    #[test]
    fn threads_go_first_for_a_while_and_are_as_before() {
        let own = own_thread();
        assert!(is_ordinary(own));
        let urgent = Urgent::begin([own, i32::MAX]);
        if urgent.raised.is_empty() {
            return host_needs::cannot_run_here("CAP_SYS_NICE", "run the tests as root");
        }
        assert_eq!(urgent.raised, [own], "a thread that is not there is left out");
        assert!(!is_ordinary(own));
        assert!(Urgent::begin([own]).raised.is_empty(), "one that goes first already is left alone");
        assert!(!is_ordinary(own));
        drop(urgent);
        assert!(is_ordinary(own));
        std::mem::forget(Urgent::begin([own]));
        assert!(!is_ordinary(own), "as a process that is killed leaves it");
        settle(&[own]);
        assert!(is_ordinary(own));
    }
}
