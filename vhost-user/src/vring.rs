//! What the frontend has said of one ring, until it runs and while it runs.

use crate::notifier::Notifier;
use crate::ring::RingLayout;

/// One ring, as the control thread knows it.
#[derive(Debug, Default)]
pub(crate) struct Vring {
    /// Entries.
    pub(crate) size: u16,
    /// Where it lies; `size` is filled in at the start.
    pub(crate) addresses: Option<RingLayout>,
    /// Where it goes on.
    pub(crate) base: u16,
    /// The frontend gave a way to notify (or said that there is none): the ring is started.
    pub(crate) started: bool,
    /// The frontend enabled the ring.
    pub(crate) enabled: bool,
    /// The core runs it. The notifiers are with the core then.
    pub(crate) running: bool,
    pub(crate) kick: Option<Notifier>,
    pub(crate) call: Option<Notifier>,
    pub(crate) error: Option<Notifier>,
}

impl Vring {
    /// All that the core needs, when everything has been said.
    pub(crate) fn layout(&self) -> Option<RingLayout> {
        let addresses = self.addresses?;
        (self.size > 0).then_some(RingLayout { size: self.size, ..addresses })
    }
}
