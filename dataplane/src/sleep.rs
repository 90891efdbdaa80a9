//! Whether a polling core sleeps, for other cores that leave something for it.
//!
//! A core that polls finds what was left by itself; one that sleeps has to be woken, by a system call. Either the one
//! that goes to sleep finds what was left at its last look, or the one that left it finds that it sleeps: each shows
//! what it did before it looks at what the other did.

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Of one core.
#[derive(Debug)]
pub(crate) struct Sleep(AtomicBool);

impl Sleep {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Of the core itself: it looks around once more after this, and sleeps if it finds nothing.
    pub(crate) fn begins(&self) {
        self.0.store(true, Ordering::Relaxed);
        // Without it the look may come before the store is seen.
        fence(Ordering::SeqCst);
    }

    /// Of the core itself, which polls again.
    pub(crate) fn ends(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the core is to be woken; to be called after something was left for it. One of those who left something
    /// is told so.
    ///
    /// Cost: one fence.
    pub(crate) fn is_to_be_woken(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;
    use std::sync::atomic::{AtomicUsize as Count, Ordering as Plain};

    /// What is left is a number that orders nothing.
    #[test]
    fn no_core_sleeps_over_what_was_left_for_it() {
        static SLEPT: Count = Count::new(0);
        static FOUND: Count = Count::new(0);
        loom::model(|| {
            let shared = Arc::new((Sleep::new(), AtomicUsize::new(0)));
            let theirs = Arc::clone(&shared);
            let leaving = thread::spawn(move || {
                theirs.1.store(1, Ordering::Relaxed);
                theirs.0.is_to_be_woken()
            });
            shared.0.begins();
            let sleeps = shared.1.load(Ordering::Relaxed) == 0;
            if !sleeps {
                shared.0.ends();
            }
            let woken = leaving.join().expect("it ends");
            assert!(woken || !sleeps, "it sleeps over what was left");
            let outcome = if sleeps { &SLEPT } else { &FOUND };
            outcome.fetch_add(1, Plain::Relaxed);
        });
        assert!(SLEPT.load(Plain::Relaxed) > 0 && FOUND.load(Plain::Relaxed) > 0);
    }
}
