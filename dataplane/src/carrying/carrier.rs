//! The pairs that a core carries for another, and what the other one has of them.

use super::lane::{Reader, Writer, lane};
use crate::counters::{Block, CoreCounter};
use crate::guest::{GuestFrame, PATIENCE_NS, SMALL_FRAME_BYTES, STUCK_NS, VirtioNetHdr};
use crate::handle::Link;
use crate::rings::{RX, TX, disarm, flow_of};
use holdfast_vhost_user::{Endpoint, Features, RingFault, Verdict};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Frames taken from one pair, and given to it, in one turn.
const BURST: usize = 128;

/// Makes lanes for all pairs of `endpoint`: what its core does with them, and what `card`, the core of the card, has of
/// each.
pub(crate) fn carry(endpoint: Endpoint, own: Arc<Link>, card: Arc<Link>) -> (Carrier, Vec<LaneEnd>) {
    let pairs = endpoint.pairs();
    let is_carried = |pair: &usize| pairs & (1 << pair) != 0;
    let (carried, ends) = (0..u32::BITS as usize)
        .filter(is_carried)
        .map(|pair| {
            let (to_card, from_guest) = lane();
            let (to_guest, from_card) = lane();
            let news = Arc::new(News::default());
            let carried = Pair {
                pair,
                to_card,
                from_card,
                news: Arc::clone(&news),
                handed: 0,
                taken: 0,
                card_is_full: false,
                waits_since_ns: None,
            };
            let core = Arc::clone(&own);
            (carried, LaneEnd { pair, from_guest, to_guest, news, taken: 0, core, is_told: true })
        })
        .unzip();
    (Carrier { endpoint, pairs: carried, card }, ends)
}

/// What the card's core says of a pair to the one that carries it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct News {
    /// Frames of the guest that the card's core has taken out of the lane, since the start.
    taken: AtomicU64,
    /// Nothing is taken from the guest, and what is for it is dropped.
    fenced: AtomicBool,
}

/// What the core of a card has of a pair that another core carries.
#[derive(Debug)]
pub struct LaneEnd {
    pub(crate) pair: usize,
    from_guest: Reader,
    to_guest: Writer,
    news: Arc<News>,
    /// As the news have it.
    taken: u64,
    /// Of the carrying core.
    core: Arc<Link>,
    /// The carrying core was told of all that was put into the lane.
    is_told: bool,
}

impl LaneEnd {
    /// As [`crate::GuestPort::capture`], of one pair; returns how many frames were taken. `sent` is told the number of
    /// the flow of each, where the carrying core gives it.
    ///
    /// Cost: 15 ns a frame of 60 bytes, 41 of 1514, with one copy (`cargo bench -p holdfast-dataplane --bench pairs`).
    #[inline]
    pub(crate) fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
        mut sent: impl FnMut(u32),
    ) -> usize {
        let mut taken = 0;
        while taken < max {
            let found = self.from_guest.offer(|header, flow, bytes| {
                let is_taken = sink(header, &Handed(bytes)) == Verdict::Taken;
                flow.filter(|_| is_taken).into_iter().for_each(&mut sent);
                is_taken
            });
            if found != Some(true) {
                break;
            }
            taken += 1;
        }
        self.took(taken);
        taken
    }

    /// So many frames have left the lane: the guest may have their buffers back.
    fn took(&mut self, frames: usize) {
        if frames > 0 {
            self.taken += frames as u64;
            self.news.taken.store(self.taken, Ordering::Release);
            self.is_told = false;
        }
    }

    /// FO-1: drops what the guest has sent. From now on nothing more is taken from it, and nothing is given to it, or both
    /// are again. Returns how many frames that was.
    pub(crate) fn fence(&mut self, fenced: bool) -> usize {
        // First, so that no more than a burst comes meanwhile. Of a guest that is gone nothing comes after this: another
        // one's rings are started only when its own were left.
        self.news.fenced.store(true, Ordering::Release);
        let mut dropped = 0;
        while self.from_guest.offer(|_, _, _| true).is_some() {
            dropped += 1;
        }
        self.took(dropped);
        self.news.fenced.store(fenced, Ordering::Release);
        self.is_told = false;
        self.flush();
        dropped
    }

    /// As [`crate::GuestPort::deliver`], of one pair.
    ///
    /// Cost: 20 ns for a frame of 60 bytes, 158 for 1514 (`cargo bench -p holdfast-dataplane --bench pairs`).
    #[inline]
    pub(crate) fn deliver(&mut self, header: &VirtioNetHdr, parts: &[&[u8]]) -> bool {
        let len = parts.iter().map(|part| part.len()).sum();
        let done = self.to_guest.push(header, None, len, |mut out| {
            for part in parts {
                let (here, beyond) = out.split_at_mut(part.len());
                here.copy_from_slice(part);
                out = beyond;
            }
        });
        self.is_told &= !done;
        done
    }

    /// Wakes the carrying core, if it sleeps and there is something new for it: frames for the guest, or buffers of the
    /// guest that it may have back.
    #[inline]
    pub(crate) fn flush(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.core.wake_if_asleep();
        }
    }

    /// Whether frames of the guest wait here.
    #[inline]
    pub(crate) fn has_frames(&self) -> bool {
        !self.from_guest.is_empty()
    }
}

/// A frame that the guest can no longer change.
struct Handed<'a>(&'a [u8]);

impl GuestFrame for Handed<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        self.0.copy_to(offset, out);
    }

    fn copied(&self) -> Option<&[u8]> {
        (self.0.len() <= SMALL_FRAME_BYTES).then_some(self.0)
    }
}

/// The pairs of a card that a core carries for the card's own.
pub(crate) struct Carrier {
    endpoint: Endpoint,
    pairs: Vec<Pair>,
    /// Of the card's core.
    card: Arc<Link>,
}

struct Pair {
    pair: usize,
    to_card: Writer,
    from_card: Reader,
    news: Arc<News>,
    /// Frames of the guest that were put into the lane, since the start, and those of them that the card's core had taken
    /// when the guest was last given its buffers back.
    handed: u64,
    taken: u64,
    /// The lane had no room for the next frame of the guest.
    card_is_full: bool,
    /// Since when the next frame for the guest has found no buffers, or no ring that runs.
    waits_since_ns: Option<u64>,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    from_guest: usize,
    to_guest: usize,
    lost: usize,
}

impl Carrier {
    /// Carries frames both ways; returns how many.
    ///
    /// Bound: [`BURST`] frames of each pair and way. Allocations, locks: none; system calls: a notification a ring, and
    /// one if the card's core sleeps. Cost: 54 ns a frame of 60 bytes from the guest and 45 to it, 269 and 150 of 1514
    /// (`cargo bench -p holdfast-dataplane --bench pairs`).
    pub(crate) fn turn(&mut self, counters: &Block<CoreCounter>, clock: impl Fn() -> u64) -> usize {
        let Self { endpoint, pairs, card } = self;
        if endpoint.poll_control() {
            disarm(endpoint);
        }
        let learns = endpoint.pairs_in_use().count_ones() > 1;
        let mut moved = Moved::default();
        for pair in pairs {
            if let Err((ring, fault)) = pair.turn(endpoint, learns, &mut moved, &clock) {
                endpoint.fault(ring, fault);
                break;
            }
        }
        if moved.from_guest > 0 {
            card.wake_if_asleep();
        }
        let Moved { from_guest, to_guest, lost } = moved;
        counters.add(CoreCounter::Carried, (from_guest + to_guest) as u64);
        counters.add(CoreCounter::CarriedLost, lost as u64);
        from_guest + to_guest + lost
    }

    /// Whether nothing comes from the device any more.
    pub(crate) const fn is_finished(&self) -> bool {
        self.endpoint.is_closed()
    }

    /// Asks the guest to notify, as the core is about to sleep; whether it must not, as there is something to do.
    pub(crate) fn arm(&mut self) -> bool {
        let Self { endpoint, pairs, .. } = self;
        let mut waiting = false;
        for Pair { pair, from_card, news, taken, card_is_full, waits_since_ns, .. } in pairs {
            let blocked = waits_since_ns.is_some();
            waiting |= !blocked && !from_card.is_empty();
            waiting |= news.taken.load(Ordering::Acquire) != *taken;
            let takes = !*card_is_full && !news.fenced.load(Ordering::Acquire);
            let armed = arm(endpoint, *pair, takes, blocked);
            match armed {
                Ok(found) => waiting |= found,
                Err((ring, fault)) => {
                    endpoint.fault(ring, fault);
                    return true;
                }
            }
        }
        waiting
    }

    /// Asks for no more notifications, as the core polls again.
    pub(crate) fn disarm(&mut self) {
        disarm(&mut self.endpoint);
    }

    /// Whether something waits of which nobody tells when its time is over.
    pub(crate) fn is_blocked(&self) -> bool {
        self.pairs.iter().any(|pair| pair.waits_since_ns.is_some())
    }

    /// Descriptors by which the guest notifies.
    pub(crate) fn kick_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.endpoint.kick_fds()
    }
}

/// A ring of the frontend's numbering, and how the guest broke it.
type Broken = (usize, RingFault);

fn arm(endpoint: &mut Endpoint, pair: usize, sending: bool, receiving: bool) -> Result<bool, Broken> {
    let mut waiting = false;
    if sending {
        waiting = endpoint.tx_rings()[pair].want_kick(true).map_err(|fault| (2 * pair + TX, fault))?;
    }
    if receiving {
        endpoint.rx_rings()[pair].want_kick(true).map_err(|fault| (2 * pair + RX, fault))?;
    }
    Ok(waiting)
}

impl Pair {
    fn turn(
        &mut self,
        endpoint: &mut Endpoint,
        learns: bool,
        moved: &mut Moved,
        clock: impl Fn() -> u64,
    ) -> Result<(), Broken> {
        let pair = self.pair;
        let sent = self.take(endpoint, learns, moved);
        let received = self.give(endpoint, moved, clock);
        // OC-2: what is in the lane is in the guest's queue still, as far as the guest knows. It takes a flow to another
        // pair only when nothing of it is in a queue.
        self.taken = self.news.taken.load(Ordering::Acquire);
        let kept = (self.handed - self.taken) as usize;
        sent.and_then(|()| endpoint.tx_rings()[pair].flush_but(kept))
            .map_err(|fault| (2 * pair + TX, fault))?;
        received.and_then(|()| endpoint.rx_rings()[pair].flush()).map_err(|fault| (2 * pair + RX, fault))
    }

    /// What the guest sent goes into the lane.
    fn take(&mut self, endpoint: &mut Endpoint, learns: bool, moved: &mut Moved) -> Result<(), RingFault> {
        let Self { pair, to_card, news, handed, card_is_full, .. } = self;
        *card_is_full = false;
        if news.fenced.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut taken = 0;
        let polled = endpoint.tx_rings()[*pair].poll(BURST, |header, bytes| {
            let flow = if learns { flow_of(&bytes) } else { None };
            let is_in = to_card.push(header, flow, bytes.len(), |out| {
                let copied = bytes.copy_to(0, out);
                out[copied..].fill(0);
            });
            if !is_in {
                *card_is_full = true;
                return Verdict::Refused;
            }
            taken += 1;
            Verdict::Taken
        });
        if taken > 0 {
            endpoint.count_sent(*pair, taken as u64);
            *handed += taken as u64;
            moved.from_guest += taken;
        }
        polled.map(drop)
    }

    /// What is in the lane goes to the guest.
    fn give(
        &mut self,
        endpoint: &mut Endpoint,
        moved: &mut Moved,
        clock: impl Fn() -> u64,
    ) -> Result<(), RingFault> {
        let Self { pair, from_card, news, waits_since_ns, .. } = self;
        if news.fenced.load(Ordering::Acquire) {
            while from_card.offer(|_, _, _| true).is_some() {
                moved.lost += 1;
            }
        }
        if from_card.is_empty() {
            *waits_since_ns = None;
            return Ok(());
        }
        let agreed = endpoint.negotiated();
        let ring = &mut endpoint.rx_rings()[*pair];
        let (mut given, mut lost) = (0, 0);
        let mut broken = Ok(());
        let mut waits = false;
        for _ in 0..BURST {
            let found = from_card.offer(|header, _, bytes| {
                // Made for another driver than the one that is there now.
                if !is_agreed(agreed, header) {
                    lost += 1;
                    return true;
                }
                let pushed = ring.push(header, &[bytes]);
                given += usize::from(matches!(pushed, Ok(true)));
                pushed.unwrap_or_else(|fault| {
                    broken = Err(fault);
                    false
                })
            });
            waits = found == Some(false);
            if found != Some(true) {
                break;
            }
        }
        let runs = ring.is_running();
        if given > 0 {
            endpoint.count_received(*pair, given as u64);
        }
        if !waits {
            *waits_since_ns = None;
        } else {
            let now_ns = clock();
            let since = match given + lost {
                0 => *waits_since_ns.get_or_insert(now_ns),
                _ => *waits_since_ns.insert(now_ns),
            };
            let waited_ns = now_ns.saturating_sub(since);
            if runs && waited_ns > STUCK_NS {
                lost += usize::from(from_card.offer(|_, _, _| true).is_some());
                *waits_since_ns = None;
            } else if !runs && waited_ns > PATIENCE_NS {
                while from_card.offer(|_, _, _| true).is_some() {
                    lost += 1;
                }
                *waits_since_ns = None;
            }
        }
        moved.to_guest += given;
        moved.lost += lost;
        broken
    }
}

/// Whether a guest with these features takes frames with such a header.
const fn is_agreed(features: Features, header: &VirtioNetHdr) -> bool {
    let large = match header.gso_type & !VirtioNetHdr::GSO_ECN {
        VirtioNetHdr::GSO_NONE => true,
        VirtioNetHdr::GSO_TCPV4 => features.guest_tso4(),
        VirtioNetHdr::GSO_TCPV6 => features.guest_tso6(),
        _ => false,
    };
    large && (header.flags == 0 || features.guest_csum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::Handle;
    use holdfast_vhost_user::features::bits;
    use holdfast_vhost_user::{Device, DeviceConfig};

    #[test]
    fn a_driver_is_given_only_what_it_agreed_to() {
        let header = |flags, gso_type| VirtioNetHdr { flags, gso_type, ..VirtioNetHdr::default() };
        let (plain, checked) = (header(0, 0), header(VirtioNetHdr::NEEDS_CSUM, 0));
        let large = |v6| match v6 {
            false => header(VirtioNetHdr::NEEDS_CSUM, VirtioNetHdr::GSO_TCPV4),
            true => header(VirtioNetHdr::NEEDS_CSUM, VirtioNetHdr::GSO_TCPV6 | VirtioNetHdr::GSO_ECN),
        };
        let all = [plain, checked, large(false), large(true), header(0, VirtioNetHdr::GSO_UDP)];
        let cases = [
            (0, [true, false, false, false, false]),
            (bits::NET_GUEST_CSUM, [true, true, false, false, false]),
            (bits::NET_GUEST_CSUM | bits::NET_GUEST_TSO4, [true, true, true, false, false]),
            (bits::NET_GUEST_CSUM | bits::NET_GUEST_TSO6, [true, true, false, true, false]),
        ];
        for (agreed, expected) in cases {
            assert_eq!(all.map(|header| is_agreed(Features::new(agreed), &header)), expected, "{agreed:#x}");
        }
    }

    /// What waits for a guest that stays away is dropped, however much it is.
    #[test]
    fn frames_for_a_pair_that_does_not_run_are_dropped_in_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = DeviceConfig::listening(&dir.path().join("net0"), 1);
        let (_device, endpoint) = Device::spawn(config, Arc::new(|| {})).expect("a device");
        let (_handle, link, _requests) = Handle::new(Arc::default()).expect("an eventfd");
        let (mut carrier, mut ends) = carry(endpoint, Arc::clone(&link), link);
        let counters = Block::default();
        let turn = |carrier: &mut Carrier, now| carrier.turn(&counters, || now);
        let put = |ends: &mut [LaneEnd]| ends[0].deliver(&VirtioNetHdr::default(), &[&[1; 60]]);
        assert!(put(&mut ends) && put(&mut ends));
        assert_eq!([1, PATIENCE_NS + 1].map(|now| turn(&mut carrier, now)), [0, 0]);
        assert!(put(&mut ends) && carrier.is_blocked());
        assert_eq!([PATIENCE_NS + 2, PATIENCE_NS + 3].map(|now| turn(&mut carrier, now)), [3, 0]);
        assert!(!carrier.is_blocked());
        // What comes then has its own time.
        assert!(put(&mut ends));
        assert_eq!(turn(&mut carrier, PATIENCE_NS + 4), 0);
        assert_eq!(counters.get(CoreCounter::CarriedLost), 3);
    }
}
