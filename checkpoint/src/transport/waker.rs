//! Wakes a thread that waits for a descriptor: at most one write per sleep.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicBool, Ordering};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicBool, Ordering};

/// A descriptor to wait for, and whether it was written to since its owner last looked around.
#[derive(Debug)]
pub(super) struct Waker {
    pub(super) fd: EventFd,
    rung: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { fd, rung: AtomicBool::new(false) })
    }

    /// To be called when the descriptor is readable, before what it told of is looked for.
    pub(super) fn clear(&self) {
        if let Err(errno) = self.fd.read() {
            // Nothing else reads it, so that it cannot have been emptied; and if it was, nothing is lost.
            tracing::debug!(%errno, "a thread was woken by nothing");
        }
        // Who rings from now on writes again; of who rang before, everything is seen. A plain store could take a
        // ring back without having seen what it told of.
        self.rung.swap(false, Ordering::Acquire);
    }

    /// To be called after what it tells of was put there.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.fd.write(1).expect("an eventfd that is reset at every wake-up has room for 1");
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;
    use loom::thread;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    fn is_readable(waker: &Waker) -> bool {
        let mut fds = [PollFd::new(waker.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).expect("an answer") > 0
    }

    /// Two things are put there one after the other; an owner that would sleep now has seen both. The descriptor is a
    /// real one, and orders nothing.
    #[test]
    fn an_owner_does_not_sleep_over_what_it_was_woken_for() {
        loom::model(|| {
            let shared = Arc::new((Waker::new().expect("a descriptor"), AtomicU64::new(0)));
            let theirs = Arc::clone(&shared);
            let writer = thread::spawn(move || {
                for thing in 1..=2 {
                    theirs.1.store(thing, Ordering::Relaxed);
                    theirs.0.ring();
                }
            });
            let (waker, things) = &*shared;
            let mut seen = 0;
            let mut look = || {
                if is_readable(waker) {
                    waker.clear();
                    seen = things.load(Ordering::Relaxed);
                }
            };
            // Once amid the rings, as far as loom is concerned: it changes threads where the flag is touched.
            thread::yield_now();
            (0..2).for_each(|_| look());
            writer.join().expect("it ends");
            look();
            assert_eq!(seen, 2);
        });
    }
}
