//! By which pair of queues a guest receives a flow, where its card has several.
//!
//! The guest says so by sending: what comes for a flow goes to the pair by which the guest sent last for it, so
//! that both directions of a connection are one processor's work in the guest. A flow for which nothing was sent
//! yet goes to a pair by its number. The same flow goes to the same pair as long as neither changes, so that its
//! order is kept; when the guest moves it, what was given to the old pair may be read after what the new one
//! has, as with every card that follows its driver. Pairs count that the driver uses, whether they run at the
//! moment or not: a machine that is stopped for a checkpoint keeps its flows where they are.
//!
//! Flows that share a place do not push each other out: one keeps it until it has been silent for a while, and
//! the other stays where its number puts it.
//!
//! Pure: no I/O, no clock, no threads. Bound: a table of fixed size. Allocations: at the start alone.

/// Flows that are known at a time; more share places.
const PLACES: usize = 4096;

/// A flow gives its place up to another when it has sent none of so many frames.
const PATIENCE: u32 = 4 * PLACES as u32;

/// Pairs of queues that the guest's driver uses, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs(u32);

impl Pairs {
    /// Those whose bits are set.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    const fn has(self, pair: u8) -> bool {
        self.0 & (1 << pair) != 0
    }

    /// The one that has `before` in front of it.
    fn nth(self, before: u32) -> usize {
        let rest = (0..before).fold(self.0, |rest, _| rest & rest.wrapping_sub(1));
        rest.trailing_zeros() as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    flow: u32,
    /// Count of frames when the flow sent last.
    sent_at: u32,
    pair: u8,
}

/// Which flow the guest sends by which pair.
#[derive(Debug)]
pub struct Steering {
    places: Box<[Option<Place>]>,
    /// Frames of the guest so far.
    sent: u32,
}

impl Default for Steering {
    fn default() -> Self {
        Self { places: vec![None; PLACES].into(), sent: 0 }
    }
}

impl Steering {
    /// The guest sent a frame of the flow of this number by this pair.
    ///
    /// Bound: one place. Allocations: none. 1.5 ns with 64 flows, 1.7 with 4096 (`cargo bench -p holdfast-dataplane`).
    pub fn sent(&mut self, flow: u32, pair: usize) {
        self.sent = self.sent.wrapping_add(1);
        let place = &mut self.places[flow as usize % PLACES];
        let is_kept = |known: &Place| known.flow != flow && self.sent.wrapping_sub(known.sent_at) < PATIENCE;
        if !place.as_ref().is_some_and(is_kept) {
            *place = Some(Place { flow, sent_at: self.sent, pair: pair as u8 });
        }
    }

    /// The pair for a frame of this flow, of those in use; none when there is none.
    ///
    /// Bound: the number of pairs. Allocations: none. 1.8 ns with 64 flows, 2.1 with 4096, four pairs
    /// (`cargo bench -p holdfast-dataplane`).
    #[must_use]
    pub fn pair(&self, flow: u32, in_use: Pairs) -> Option<usize> {
        let count = in_use.count();
        if count == 0 {
            return None;
        }
        let known = self.places[flow as usize % PLACES].filter(|known| known.flow == flow);
        match known.filter(|known| in_use.has(known.pair)) {
            Some(known) => Some(usize::from(known.pair)),
            // The low bits choose the place: others choose the pair.
            None => Some(in_use.nth((flow >> 16) % count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(numbers: &[usize]) -> Pairs {
        Pairs::from_bits(numbers.iter().fold(0, |bits, pair| bits | 1 << pair))
    }

    /// OC-2: all frames of a flow take one way, and flows are spread, as long as the guest says nothing.
    #[test]
    fn flows_that_the_guest_did_not_send_for_are_spread_over_the_pairs_in_use() {
        let steering = Steering::default();
        let in_use = pairs(&[0, 2, 5]);
        let mut flows = [0; 6];
        for flow in 0..3000_u32 {
            let flow = flow.wrapping_mul(0x9e37_79b9);
            let pair = steering.pair(flow, in_use).expect("one of three");
            assert_eq!(steering.pair(flow, in_use), Some(pair));
            flows[pair] += 1;
        }
        assert!(flows[0] > 900 && flows[2] > 900 && flows[5] > 900, "{flows:?}");
        assert_eq!(steering.pair(7, Pairs::default()), None);
    }

    #[test]
    fn a_flow_comes_back_by_the_pair_on_which_the_guest_sent_last() {
        let mut steering = Steering::default();
        let in_use = pairs(&[0, 1, 2, 3]);
        for pair in [2, 0, 3] {
            steering.sent(77, pair);
            assert_eq!(steering.pair(77, in_use), Some(pair));
        }
        let fewer = pairs(&[0, 1]);
        assert!(steering.pair(77, fewer).is_some_and(|pair| pair < 2), "its pair was switched off");
        assert_eq!(steering.pair(77, in_use), Some(3), "and is there again");
    }

    /// OC-2: two flows that share a place do not throw each other to and fro.
    #[test]
    fn a_flow_keeps_its_place_until_it_has_been_silent_for_long() {
        let mut steering = Steering::default();
        let in_use = pairs(&[0, 1]);
        let (first, second) = (5, 5 + PLACES as u32);
        let by_number = steering.pair(second, in_use);
        for _ in 0..PATIENCE {
            steering.sent(first, 1);
            steering.sent(second, 0);
            steering.sent(second, 1);
            assert_eq!((steering.pair(first, in_use), steering.pair(second, in_use)), (Some(1), by_number));
        }
        let other = 1 - by_number.expect("one of two");
        (0..PATIENCE).for_each(|_| steering.sent(second, other));
        assert_eq!(steering.pair(second, in_use), Some(other), "it has the place to itself");
    }
}
