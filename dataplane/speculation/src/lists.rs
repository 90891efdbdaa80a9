//! Lists of flows with work: intrusive, so that nothing is allocated and no flow is looked for.

/// No flow.
const NONE: u32 = u32::MAX;

/// What flows can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Something is to be said to the guest.
    ToGuest,
    /// Something may be to be sent to the client.
    ToClient,
    /// Bytes are held that were not streamed.
    Unstreamed,
    /// It differs from what the last cut wrote.
    Changed,
    /// It has marks of epochs that are not committed.
    Marked,
    /// Its window waits for room in the byte store.
    Starved,
    /// All flows, the one that was longest without a segment first.
    Age,
    /// Flows whose handshake is under way, the oldest first.
    Opening,
}

const LISTS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    member: bool,
}

/// All lists of an engine.
#[derive(Debug)]
pub(crate) struct Lists {
    links: Vec<[Link; LISTS]>,
    ends: [(u32, u32); LISTS],
}

impl Lists {
    /// Empty lists for `flows` flows.
    pub(crate) fn new(flows: usize) -> Self {
        let out = Link { previous: NONE, next: NONE, member: false };
        Self { links: vec![[out; LISTS]; flows], ends: [(NONE, NONE); LISTS] }
    }

    /// Bytes of memory that lists for `flows` flows take.
    pub(crate) const fn footprint(flows: usize) -> usize {
        flows * size_of::<[Link; LISTS]>()
    }

    /// Puts a flow last, unless it is in the list.
    pub(crate) fn push(&mut self, list: List, flow: u32) {
        let at = list as usize;
        if self.links[flow as usize][at].member {
            return;
        }
        let (first, last) = self.ends[at];
        self.links[flow as usize][at] = Link { previous: last, next: NONE, member: true };
        match last {
            NONE => self.ends[at] = (flow, flow),
            last => {
                self.links[last as usize][at].next = flow;
                self.ends[at] = (first, flow);
            }
        }
    }

    /// Takes a flow out, if it is in the list.
    pub(crate) fn remove(&mut self, list: List, flow: u32) {
        let at = list as usize;
        let link = self.links[flow as usize][at];
        if !link.member {
            return;
        }
        self.links[flow as usize][at].member = false;
        match link.previous {
            NONE => self.ends[at].0 = link.next,
            previous => self.links[previous as usize][at].next = link.next,
        }
        match link.next {
            NONE => self.ends[at].1 = link.previous,
            next => self.links[next as usize][at].previous = link.previous,
        }
    }

    /// The first flow.
    pub(crate) fn first(&self, list: List) -> Option<u32> {
        Some(self.ends[list as usize].0).filter(|&flow| flow != NONE)
    }

    /// The flow behind `flow`, which is in the list.
    pub(crate) fn after(&self, list: List, flow: u32) -> Option<u32> {
        Some(self.links[flow as usize][list as usize].next).filter(|&next| next != NONE)
    }

    /// Takes the first flow out.
    pub(crate) fn pop(&mut self, list: List) -> Option<u32> {
        let first = self.first(list)?;
        self.remove(list, first);
        Some(first)
    }

    /// Whether a flow is in the list.
    pub(crate) fn contains(&self, list: List, flow: u32) -> bool {
        self.links[flow as usize][list as usize].member
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn a_list_is_a_queue_without_doubles(steps in prop::collection::vec((0u8..3, 0u32..8), 1..200)) {
            let mut lists = Lists::new(8);
            let mut model = VecDeque::new();
            for (step, flow) in steps {
                match step {
                    0 => {
                        lists.push(List::Changed, flow);
                        lists.push(List::Age, 7 - flow);
                        if !model.contains(&flow) {
                            model.push_back(flow);
                        }
                    }
                    1 => {
                        lists.remove(List::Changed, flow);
                        model.retain(|&other| other != flow);
                    }
                    _ => prop_assert_eq!(lists.pop(List::Changed), model.pop_front()),
                }
                prop_assert_eq!(lists.contains(List::Changed, flow), model.contains(&flow));
                let walk = std::iter::successors(lists.first(List::Changed), |&at| lists.after(List::Changed, at));
                prop_assert_eq!(walk.collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
