//! The flag of a mailbox: one thread says that there is something for another, which polls.

use crate::atomic::{AtomicBool, Ordering};

/// Raised by one thread, lowered by another.
///
/// Whoever lowers it sees what was left before each raise that this takes back, and a raise after that is there
/// still: so nothing that was left is missed. Both are exchanges: none overlooks another.
#[derive(Debug)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Says that something was left.
    pub(crate) fn raise(&self) {
        self.0.swap(true, Ordering::Release);
    }

    /// Whether something was left: one load.
    #[inline]
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// To be called before what was left is looked for. A plain store would take back a raise that it has not seen,
    /// and with it what was left before.
    pub(crate) fn lower(&self) {
        self.0.swap(false, Ordering::Acquire);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::AtomicU64;
    use loom::sync::Arc;
    use loom::thread;

    /// Two letters are left one after the other while somebody looks; the one who looks in the end has seen both.
    #[test]
    fn what_was_left_before_a_raise_is_not_missed() {
        loom::model(|| {
            let shared = Arc::new((Flag::new(), AtomicU64::new(0)));
            let theirs = Arc::clone(&shared);
            let writer = thread::spawn(move || {
                for letter in 1..=2 {
                    theirs.1.store(letter, Ordering::Relaxed);
                    theirs.0.raise();
                }
            });
            let (flag, left) = &*shared;
            let mut seen = 0;
            let mut look = || {
                if flag.is_raised() {
                    flag.lower();
                    seen = left.load(Ordering::Relaxed);
                }
            };
            (0..2).for_each(|_| look());
            writer.join().expect("it ends");
            look();
            assert_eq!(seen, 2);
        });
    }
}
