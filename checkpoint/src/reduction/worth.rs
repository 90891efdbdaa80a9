//! Whether a way of reduction pays on this link.
//!
//! A way costs time on the replication thread, for pages that it serves and for those that it is tried on in vain;
//! it saves bytes. What a byte costs is known of the link: see [`Price`]. After so many tries, the *window*, the two
//! are held against each other. A way that saved less than it cost is left out for [`FIRST_REST`] windows, and for
//! twice as many each time that it then fails again, up to [`LONGEST_REST`]; one that pays is not left out.
//!
//! A thread that is taken off its core amid a try makes one window dearer than it was, and costs that way one rest.

use std::time::Duration;

/// Windows that a way rests at first, and at the most: a guest may begin at any time to write what it serves, and a
/// way that is tried on one page in so many costs next to nothing.
const FIRST_REST: u32 = 4;
const LONGEST_REST: u32 = 16;

/// Judges one way.
#[derive(Debug)]
pub(super) struct Worth {
    /// Whether the operator wants it.
    wanted: bool,
    adaptive: bool,
    window: u32,
    tries: u32,
    spent: Duration,
    saved_bytes: u64,
    /// Pages that it is still left out for, and how many that were at first.
    rest: u32,
    rested: u32,
}

impl Worth {
    /// A way that is taken or not; if `adaptive`, only as long as it pays, which is judged every `window` tries.
    pub(super) const fn new(wanted: bool, adaptive: bool, window: u32) -> Self {
        let spent = Duration::ZERO;
        Self { wanted, adaptive, window, tries: 0, spent, saved_bytes: 0, rest: 0, rested: 0 }
    }

    /// Whether it is tried on the page that is next.
    pub(super) const fn is_due(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.wanted
    }

    /// It was tried: it took this time and saved these bytes, each of which costs so much.
    pub(super) fn tried(&mut self, took: Duration, saved_bytes: usize, ns_per_byte: f64) {
        if !self.adaptive {
            return;
        }
        self.tries += 1;
        self.spent += took;
        self.saved_bytes += saved_bytes as u64;
        if self.tries < self.window {
            return;
        }
        let pays = self.saved_bytes as f64 * ns_per_byte >= self.spent.as_nanos() as f64;
        self.rested = if pays {
            0
        } else {
            (self.rested * 2).clamp(FIRST_REST * self.window, LONGEST_REST * self.window)
        };
        self.rest = self.rested;
        (self.tries, self.spent, self.saved_bytes) = (0, Duration::ZERO, 0);
    }
}

/// What a byte on the way costs.
///
/// It costs both hosts some time however fast the link is: it is sealed, goes through two kernels and is opened
/// again. A link that is slower than the replication thread costs that thread in addition what it waits for room.
#[derive(Debug, Default)]
pub(crate) struct Price {
    waited: Duration,
    bytes: u64,
}

/// What a byte costs at the least, as on a link of 4 Gbit/s.
const LEAST_NS_PER_BYTE: f64 = 2.0;

/// The price is that of so many bytes that were sent last, and of those before them ever less.
const LATELY_BYTES: u64 = 8 << 20;

impl Price {
    /// Bytes were handed to the link, after such a wait for room.
    pub(crate) fn sent(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.bytes > LATELY_BYTES {
            (self.bytes, self.waited) = (self.bytes / 2, self.waited / 2);
        }
    }

    /// What a byte costs now.
    pub(crate) fn ns_per_byte(&self) -> f64 {
        LEAST_NS_PER_BYTE + self.waited.as_nanos() as f64 / self.bytes.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    const WINDOW: u32 = 64;
    const FIRST_PAGES: u32 = FIRST_REST * WINDOW;
    const MOST_PAGES: u32 = LONGEST_REST * WINDOW;

    /// Pages of so many on which a way is tried that takes a microsecond and saves so many bytes.
    fn tried_on(worth: &mut Worth, pages: u32, saved: usize, ns_per_byte: f64) -> u32 {
        (0..pages)
            .filter(|_| {
                let due = worth.is_due();
                if due {
                    worth.tried(MICRO, saved, ns_per_byte);
                }
                due
            })
            .count() as u32
    }

    #[test]
    fn a_way_that_pays_is_always_tried() {
        let mut worth = Worth::new(true, true, WINDOW);
        assert_eq!(tried_on(&mut worth, 100_000, 500, 2.0), 100_000, "a microsecond for a microsecond");
    }

    #[test]
    fn a_way_that_does_not_pay_is_tried_ever_less() {
        let mut worth = Worth::new(true, true, WINDOW);
        assert_eq!(tried_on(&mut worth, WINDOW + FIRST_PAGES, 499, 2.0), WINDOW);
        assert_eq!(tried_on(&mut worth, WINDOW + 2 * FIRST_PAGES, 499, 2.0), WINDOW);
        tried_on(&mut worth, 10 * MOST_PAGES, 0, 2.0);
        let tried = tried_on(&mut worth, 10 * (MOST_PAGES + WINDOW), 0, 2.0);
        assert!((9 * WINDOW..=11 * WINDOW).contains(&tried), "{tried}");
    }

    #[test]
    fn a_way_that_pays_again_is_tried_again() {
        let mut worth = Worth::new(true, true, WINDOW);
        tried_on(&mut worth, 100_000, 0, 2.0);
        tried_on(&mut worth, MOST_PAGES + WINDOW, 4096, 2.0);
        assert_eq!(tried_on(&mut worth, 10_000, 4096, 2.0), 10_000);
        // What it has to rest after the next failure is short again.
        assert_eq!(tried_on(&mut worth, 2 * WINDOW + FIRST_PAGES, 0, 2.0), 2 * WINDOW);
    }

    #[test]
    fn the_same_way_pays_on_a_slow_link_and_not_on_a_fast_one() {
        let mut price = Price::default();
        let fast = price.ns_per_byte();
        // 1 Gbit/s.
        (0..100).for_each(|_| price.sent(1 << 20, Duration::from_nanos(8 << 20)));
        let slow = price.ns_per_byte();
        assert!((9.9..10.1).contains(&slow), "{slow}");
        assert!(tried_on(&mut Worth::new(true, true, WINDOW), 10_000, 300, fast) < 1000);
        assert_eq!(tried_on(&mut Worth::new(true, true, WINDOW), 10_000, 300, slow), 10_000);
        (0..100).for_each(|_| price.sent(1 << 20, Duration::ZERO));
        assert!(price.ns_per_byte() < 2.1, "{price:?}");
    }

    #[test]
    fn what_is_not_wanted_is_never_tried_and_what_is_not_adaptive_always() {
        assert_eq!(tried_on(&mut Worth::new(false, true, WINDOW), 1000, 4096, 2.0), 0);
        assert_eq!(tried_on(&mut Worth::new(true, false, WINDOW), 1000, 0, 2.0), 1000);
    }
}
