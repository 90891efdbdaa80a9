//! Whether a thread waits for room in a queue that another one empties.
//!
//! The queue says by itself whether it is full, and wakes nobody. Either whoever fills it finds the room that was made, or
//! whoever made the room finds that it is waited for: each shows what it did before it looks at what the other did.

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Of one queue with one thread at each end.
#[derive(Debug)]
pub(super) struct Stall(AtomicBool);

impl Stall {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether whoever fills the queue has to wait; it is woken then.
    pub(super) fn is_stalled(&self, is_full: impl Fn() -> bool) -> bool {
        if !is_full() {
            return false;
        }
        self.0.store(true, Ordering::Relaxed);
        // Without it the look may come before the store is seen.
        fence(Ordering::SeqCst);
        is_full()
    }

    /// Whether whoever fills the queue is to be woken; to be called after something was taken out.
    pub(super) fn ends(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;
    use std::sync::atomic::{AtomicUsize as Count, Ordering as Plain};

    /// The queue is a number that orders nothing: it is full at first, and a place in it is made free once.
    #[test]
    fn nobody_waits_for_room_that_is_there_unless_it_is_woken() {
        static WAITED: Count = Count::new(0);
        static FOUND_ROOM: Count = Count::new(0);
        loom::model(|| {
            let shared = Arc::new((Stall::new(), AtomicUsize::new(1)));
            let theirs = Arc::clone(&shared);
            let emptying = thread::spawn(move || {
                theirs.1.store(0, Ordering::Relaxed);
                theirs.0.ends()
            });
            let waits = shared.0.is_stalled(|| shared.1.load(Ordering::Relaxed) == 1);
            let woken = emptying.join().expect("it ends");
            assert!(woken || !waits, "it waits for room that is there");
            let outcome = if waits { &WAITED } else { &FOUND_ROOM };
            outcome.fetch_add(1, Plain::Relaxed);
        });
        assert!(WAITED.load(Plain::Relaxed) > 0 && FOUND_ROOM.load(Plain::Relaxed) > 0);
    }
}
