//! How many pages went which way, and what that took.

use super::Way;
use serde::Serialize;

/// Pages that went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WayFigures {
    /// How many.
    pub pages: u64,
    /// Bytes handed to the link for them, the heads of their records included.
    pub wire_bytes: u64,
}

/// What became of all pages: of full synchronisations and of epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReductionFigures {
    /// Written, and the same as before.
    pub unchanged: WayFigures,
    /// All zeroes.
    pub zero: WayFigures,
    /// The same as another page.
    pub equal: WayFigures,
    /// Not much different from before.
    pub delta: WayFigures,
    /// Compressed.
    pub compress: WayFigures,
    /// As they are.
    pub whole: WayFigures,
    /// Time that the replication thread spent on finding each page's way.
    pub reduce_ns: u64,
    /// Time that it spent on the digest of pages.
    pub hash_ns: u64,
    /// Time that it waited for room in the link.
    pub send_wait_ns: u64,
    /// Bytes of sent pages that the session keeps to refer to.
    pub kept_bytes: u64,
}

impl ReductionFigures {
    /// A page went this way.
    pub(crate) const fn count(&mut self, way: Option<Way>, wire_bytes: usize) {
        let figures = match way {
            Some(Way::Unchanged) => &mut self.unchanged,
            Some(Way::Zero) => &mut self.zero,
            Some(Way::Equal) => &mut self.equal,
            Some(Way::Delta) => &mut self.delta,
            Some(Way::Compress) => &mut self.compress,
            None => &mut self.whole,
        };
        figures.pages += 1;
        figures.wire_bytes += wire_bytes as u64;
    }

    /// Bytes handed to the link for all pages, the heads of their records included.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        let ways = [self.unchanged, self.zero, self.equal, self.delta, self.compress, self.whole];
        ways.iter().map(|way| way.wire_bytes).sum()
    }

    /// Adds what became of more pages.
    pub(crate) fn add(&mut self, more: &Self) {
        let ways = [
            (&mut self.unchanged, more.unchanged),
            (&mut self.zero, more.zero),
            (&mut self.equal, more.equal),
            (&mut self.delta, more.delta),
            (&mut self.compress, more.compress),
            (&mut self.whole, more.whole),
        ];
        for (all, more) in ways {
            all.pages += more.pages;
            all.wire_bytes += more.wire_bytes;
        }
        self.reduce_ns += more.reduce_ns;
        self.hash_ns += more.hash_ns;
        self.send_wait_ns += more.send_wait_ns;
        self.kept_bytes = more.kept_bytes;
    }
}
