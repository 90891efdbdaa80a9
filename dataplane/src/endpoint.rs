//! A vhost-user endpoint as a guest's network card.
//!
//! The pairs of queues of a card are its core's, but for those that other cores carry ([`crate::carrying`]): the core
//! takes from each in its turn, and everything that it took is one port's output, cut and let go as a whole. What comes
//! in is steered ([`crate::steering`]).
//!
//! A ring fault of the guest, in whichever pair, stops its device: [`Endpoint::fault`] counts it and leaves all
//! rings, and the port is still for the core from then on (RB-1). Rings are numbered as frontends do: the guest
//! receives by the even ones and sends by the odd ones.

use crate::carrying::LaneEnd;
use crate::guest::{GuestFrame, GuestPort, Offloads, Verdict, VirtioNetHdr};
use crate::headers::Layout;
use crate::rings::{RX, StopAt, TX, disarm, first_fault, flow_of};
use crate::steering::{Pairs, Steering};
use holdfast_vhost_user::{Endpoint, GuestBytes, RingFault, RxRing, TxRing};
use std::os::fd::BorrowedFd;

/// A vhost-user device, with one pair of queues or several.
#[derive(Debug)]
pub struct Card {
    endpoint: Endpoint,
    /// None for a card of one pair.
    steering: Option<Steering>,
    /// For each pair what this core has of it, if another one carries it.
    carried: Vec<Option<LaneEnd>>,
    /// The pair that is looked at first the next time.
    first: usize,
}

impl Card {
    /// The card of this endpoint.
    #[must_use]
    pub fn new(mut endpoint: Endpoint) -> Self {
        let pairs = endpoint.rx_rings().len();
        let steering = (pairs > 1).then(Steering::default);
        Self { endpoint, steering, carried: (0..pairs).map(|_| None).collect(), first: 0 }
    }

    /// The same card, of which other cores carry these pairs ([`crate::Handle::carry`]).
    ///
    /// # Panics
    /// When they are another device's, of more pairs.
    #[must_use]
    pub fn with_carried(mut self, ends: Vec<LaneEnd>) -> Self {
        for end in ends {
            let pair = end.pair;
            self.carried[pair] = Some(end);
        }
        self
    }

    /// Pairs by which the guest receives.
    #[inline]
    fn in_use(&self) -> Pairs {
        Pairs::from_bits(self.endpoint.pairs_in_use())
    }

    /// Takes up to `max` frames of one pair; how many, and what fault ended that.
    #[inline]
    fn capture_pair(
        &mut self,
        pair: usize,
        max: usize,
        learns: bool,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> (usize, Option<RingFault>) {
        let Self { endpoint, steering, carried, .. } = self;
        let mut steering = steering.as_mut().filter(|_| learns);
        if let Some(lane) = &mut carried[pair] {
            let sent = |flow| steering.iter_mut().for_each(|steering| steering.sent(flow, pair));
            return (lane.capture(max, sink, sent), None);
        }
        let mut taken = 0;
        let polled = endpoint.tx_rings()[pair].poll(max, |header, bytes| {
            let verdict = sink(header, &bytes);
            if verdict == Verdict::Taken {
                taken += 1;
                if let Some(steering) = &mut steering {
                    flow_of(&bytes).into_iter().for_each(|flow| steering.sent(flow, pair));
                }
            }
            verdict
        });
        if taken > 0 {
            endpoint.count_sent(pair, taken as u64);
        }
        (taken, polled.err())
    }
}

impl GuestFrame for GuestBytes<'_> {
    fn len(&self) -> usize {
        GuestBytes::len(self)
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let copied = GuestBytes::copy_to(self, offset, out);
        out[copied..].fill(0);
    }

    fn copied(&self) -> Option<&[u8]> {
        GuestBytes::copied(self)
    }
}

impl GuestPort for Card {
    fn poll_control(&mut self) {
        // A ring that starts asks for notifications, which a core that polls has no use for.
        if self.endpoint.poll_control() {
            self.disarm();
        }
    }

    fn is_running(&self) -> bool {
        self.endpoint.is_running()
    }

    fn offloads(&self) -> Offloads {
        let features = self.endpoint.negotiated();
        Offloads {
            checksum: features.guest_csum(),
            tso4: features.guest_csum() && features.guest_tso4(),
            tso6: features.guest_csum() && features.guest_tso6(),
        }
    }

    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize {
        let pairs = self.endpoint.tx_rings().len();
        let learns = self.steering.is_some() && self.in_use().count() > 1;
        // Each is first in its turn: one that always has something does not keep the others waiting.
        let first = self.first;
        let mut taken = 0;
        for pair in (first..pairs).chain(0..first) {
            let (count, fault) = self.capture_pair(pair, max - taken, learns, sink);
            if taken == 0 && count > 0 {
                self.first = (pair + 1) % pairs;
            }
            taken += count;
            if let Some(fault) = fault {
                self.endpoint.fault(2 * pair + TX, fault);
                break;
            }
        }
        taken
    }

    fn deliver(&mut self, header: &VirtioNetHdr, parts: &[&[u8]]) -> bool {
        let in_use = self.in_use();
        let pair = self.steering.as_ref().map_or(Some(0), |steering| {
            let layout = parts.first().and_then(|head| Layout::parse(head));
            steering.pair(layout.map_or(0, |layout| layout.flow_hash()), in_use)
        });
        let Some(pair) = pair else { return false };
        if let Some(lane) = &mut self.carried[pair] {
            return lane.deliver(header, parts);
        }
        // One that stands still for a moment takes nothing: what is for it waits, so that it is not overtaken.
        match self.endpoint.rx_rings()[pair].push(header, parts) {
            Ok(done) => {
                self.endpoint.count_received(pair, u64::from(done));
                done
            }
            Err(fault) => {
                self.endpoint.fault(2 * pair + RX, fault);
                false
            }
        }
    }

    fn fence(&mut self, fenced: bool) -> usize {
        self.carried.iter_mut().flatten().map(|lane| lane.fence(fenced)).sum()
    }

    fn has_backlog(&self) -> bool {
        self.carried.iter().flatten().any(LaneEnd::has_frames)
    }

    fn flush(&mut self) {
        self.carried.iter_mut().flatten().for_each(LaneEnd::flush);
        let (tx, rx) = self.endpoint.rings();
        let sent = first_fault(TX, tx, TxRing::flush);
        let received = first_fault(RX, rx, RxRing::flush);
        self.endpoint.stop_at(sent.or(received));
    }

    fn arm(&mut self, capturing: bool, delivering: bool) -> bool {
        let mut waiting = capturing && self.has_backlog();
        let (tx, rx) = self.endpoint.rings();
        let mut fault = None;
        if capturing {
            fault = first_fault(TX, tx, |ring| ring.want_kick(true).map(|found| waiting |= found));
        }
        if delivering {
            fault = fault.or(first_fault(RX, rx, |ring| ring.want_kick(true).map(|_| ())));
        }
        self.endpoint.stop_at(fault);
        waiting
    }

    fn disarm(&mut self) {
        disarm(&mut self.endpoint);
    }

    fn kick_fds<'a>(&'a self, take: &mut dyn FnMut(BorrowedFd<'a>)) {
        self.endpoint.kick_fds().for_each(take);
    }
}
