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
    /// Whether the frontend enabled the ring; each begins disabled.
    pub(crate) enabled: bool,
    /// The core runs it. The notifiers are with the core then.
    pub(crate) running: bool,
    /// It ran, and the driver has not given it up since.
    pub(crate) in_use: bool,
    pub(crate) kick: Option<Notifier>,
    pub(crate) call: Option<Notifier>,
    pub(crate) error: Option<Notifier>,
}

impl Vring {
    /// Whether frames may pass, by what the frontend said of enabling.
    ///
    /// A ring by which the guest sends runs when it is disabled: a driver puts nothing there then, but what it has
    /// put there before must come out, or its buffers, and the connections that they belong to, would hang until
    /// the driver resets the device. After a reconnection QEMU says nothing at all of a disabled ring.
    pub(crate) const fn is_open(&self, guest_sends: bool) -> bool {
        guest_sends || self.enabled
    }

    /// All that the core needs, when everything has been said.
    pub(crate) fn layout(&self) -> Option<RingLayout> {
        let addresses = self.addresses?;
        (self.size > 0).then_some(RingLayout { size: self.size, ..addresses })
    }
}
