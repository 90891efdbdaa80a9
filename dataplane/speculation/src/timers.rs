//! When flows want to be looked at: a heap with one entry a flow.
//!
//! A heap rather than a wheel: deadlines of pacing are microseconds apart and those of retransmission
//! minutes, and virtual time wants them exact. Four children a node, so that 64 Ki flows are eight
//! levels. An entry is moved only when its flow wants it earlier; a flow that wants it later is asked
//! again when the entry comes up, so that an ACK costs nothing here.

use crate::time::Time;

/// Not in the heap.
const OUT: u32 = u32::MAX;

const CHILDREN: usize = 4;

/// The deadlines of all flows.
#[derive(Debug)]
pub(crate) struct Timers {
    heap: Vec<(Time, u32)>,
    places: Vec<u32>,
}

impl Timers {
    /// No deadlines of `flows` flows.
    pub(crate) fn new(flows: usize) -> Self {
        Self { heap: Vec::with_capacity(flows), places: vec![OUT; flows] }
    }

    /// Bytes of memory that the timers of `flows` flows take.
    pub(crate) const fn footprint(flows: usize) -> usize {
        flows * (size_of::<(Time, u32)>() + size_of::<u32>())
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Time> {
        self.heap.first().map(|&(due, _)| due)
    }

    /// Wakes `flow` at `due`, or earlier if that was wanted before.
    ///
    /// Bound: O(log flows). Allocations: none.
    pub(crate) fn wake(&mut self, flow: u32, due: Time) {
        match self.places[flow as usize] {
            OUT => {
                self.heap.push((due, flow));
                self.rise(self.heap.len() - 1);
            }
            place => {
                let place = place as usize;
                if due < self.heap[place].0 {
                    self.heap[place].0 = due;
                    self.rise(place);
                }
            }
        }
    }

    /// A flow whose deadline has come by `now`; it has none any more.
    pub(crate) fn due(&mut self, now: Time) -> Option<u32> {
        let &(due, flow) = self.heap.first()?;
        (due <= now).then(|| {
            self.cancel(flow);
            flow
        })
    }

    /// The flow wants no wake-up.
    pub(crate) fn cancel(&mut self, flow: u32) {
        let place = std::mem::replace(&mut self.places[flow as usize], OUT);
        if place == OUT {
            return;
        }
        let place = place as usize;
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.places[self.heap[place].1 as usize] = place as u32;
            self.sink(place);
            self.rise(place);
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / CHILDREN;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.swap(place, parent);
            place = parent;
        }
        self.places[self.heap[place].1 as usize] = place as u32;
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let children = place * CHILDREN + 1..(place * CHILDREN + 1 + CHILDREN).min(self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.heap[child].0) else { break };
            if self.heap[place].0 <= self.heap[least].0 {
                break;
            }
            self.swap(place, least);
            place = least;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.places[self.heap[one].1 as usize] = one as u32;
        self.places[self.heap[other].1 as usize] = other as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn flows_come_up_in_the_order_of_their_deadlines(
            steps in prop::collection::vec((0u8..4, 0u32..20, 0u64..100), 1..300),
        ) {
            let mut timers = Timers::new(20);
            let mut model = BTreeMap::new();
            for (step, flow, at) in steps {
                let at = Time::from_ns(at);
                match step {
                    0 | 1 => {
                        timers.wake(flow, at);
                        let due = model.entry(flow).or_insert(at);
                        *due = at.min(*due);
                    }
                    2 => {
                        timers.cancel(flow);
                        model.remove(&flow);
                    }
                    _ => match timers.due(at) {
                        Some(found) => {
                            let due = model.remove(&found).expect("one that waits");
                            prop_assert!(due <= at && model.values().all(|other| *other >= due));
                        }
                        None => prop_assert!(model.values().all(|due| *due > at)),
                    },
                }
                prop_assert_eq!(timers.next(), model.values().min().copied());
            }
        }
    }
}
