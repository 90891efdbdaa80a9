//! Rings of an endpoint, all those that its core runs: how they are numbered, and what is done with each.

use crate::headers::{Layout, MAX_HEADERS};
use holdfast_vhost_user::{Endpoint, GuestBytes, RingFault, RxRing, TxRing};

/// Of a pair's two rings, the one by which the guest receives.
pub(crate) const RX: usize = 0;
/// The one by which it sends.
pub(crate) const TX: usize = 1;

/// What a ring fault means to an endpoint.
pub(crate) trait StopAt {
    fn stop_at(&mut self, fault: Option<(usize, RingFault)>);
}

impl StopAt for Endpoint {
    #[inline]
    fn stop_at(&mut self, fault: Option<(usize, RingFault)>) {
        if let Some((ring, fault)) = fault {
            self.fault(ring, fault);
        }
    }
}

/// Does something with the rings of one kind up to the first that is broken; which that is, and why.
#[inline]
pub(crate) fn first_fault<R>(
    kind: usize,
    rings: &mut [R],
    mut act: impl FnMut(&mut R) -> Result<(), RingFault>,
) -> Option<(usize, RingFault)> {
    let mut broken = (0..).zip(rings).filter_map(|(pair, ring)| Some((2 * pair + kind, act(ring).err()?)));
    broken.next()
}

/// Asks the guest for no more notifications and takes those that have come, as the core polls again.
pub(crate) fn disarm(endpoint: &mut Endpoint) {
    endpoint.drain_kicks();
    let (tx, rx) = endpoint.rings();
    let sent = first_fault(TX, tx, |ring: &mut TxRing| ring.want_kick(false).map(|_| ()));
    let received = first_fault(RX, rx, |ring: &mut RxRing| ring.want_kick(false).map(|_| ()));
    endpoint.stop_at(sent.or(received));
}

/// The number of a frame's flow. A guest that changes its frame meanwhile steers its own frames elsewhere.
#[inline]
pub(crate) fn flow_of(bytes: &GuestBytes<'_>) -> Option<u32> {
    let mut head = [0; MAX_HEADERS];
    let len = bytes.copy_to(0, &mut head);
    Layout::parse(&head[..len]).map(|layout| layout.flow_hash())
}
