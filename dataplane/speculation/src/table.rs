//! The flow table: a fixed slab of flows, found by a hash index.
//!
//! Bound: the flows it was made for. A new flow that finds it full takes the place of one that has
//! not been heard of for long and that nothing depends on (RFC 9293 has no such rule; ours is: never a
//! flow whose guest was shown an ACK ahead of the client's). If there is none, the new flow stays plain.

use crate::connection::Connection;
use crate::key::FlowKey;
use crate::opening::Opening;

const NONE: u32 = u32::MAX;

/// What is known of a flow.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "places are allocated once, for the largest; a box would allocate"
)]
pub(crate) enum Flow {
    /// Nothing: the place is free.
    Vacant,
    /// Its handshake is under way.
    Opening(Opening),
    /// Its handshake was seen in both directions.
    Connection(Connection),
}

/// A place of the table.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: FlowKey,
    pub(crate) flow: Flow,
    /// Which flow of this place it is: bytes of its predecessors are told apart by it.
    pub(crate) generation: u32,
    /// The backup was told of a flow in this place.
    pub(crate) replicated: bool,
    /// The next flow of the bucket, or the next free place.
    next: u32,
}

impl Entry {
    /// Whether the backup is to know of it: a handshake counts only for its lent scale.
    pub(crate) const fn is_kept(&self) -> bool {
        match &self.flow {
            Flow::Connection(_) => true,
            Flow::Opening(opening) => opening.loan.is_some(),
            Flow::Vacant => false,
        }
    }
}

/// The flow table.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    buckets: Vec<u32>,
    free: u32,
    len: usize,
    seed: u64,
}

impl Table {
    /// A table of `flows` places.
    pub(crate) fn new(flows: usize, seed: u64) -> Self {
        let flows = flows.clamp(1, NONE as usize - 1) as u32;
        let entry = |place: u32| Entry {
            key: FlowKey::default(),
            flow: Flow::Vacant,
            generation: 0,
            replicated: false,
            next: if place + 1 == flows { NONE } else { place + 1 },
        };
        let entries = (0..flows).map(entry).collect();
        let buckets = vec![NONE; (flows as usize).next_power_of_two()];
        Self { entries, buckets, free: 0, len: 0, seed }
    }

    /// Bytes of memory that a table of `flows` places takes.
    pub(crate) const fn footprint(flows: usize) -> usize {
        flows * size_of::<Entry>() + flows.next_power_of_two() * size_of::<u32>()
    }

    /// Places.
    pub(crate) fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Flows.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    fn bucket(&self, key: &FlowKey) -> usize {
        key.hash(self.seed) as usize & (self.buckets.len() - 1)
    }

    /// The place of a flow.
    ///
    /// Bound: the flows of a bucket, one on average. Allocations: none. Cost: about 30 ns.
    pub(crate) fn find(&self, key: &FlowKey) -> Option<u32> {
        let mut at = self.buckets[self.bucket(key)];
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.key == *key {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    /// Puts a flow, which is not here, into a free place; none when there is no such place.
    pub(crate) fn insert(&mut self, key: FlowKey, flow: Flow) -> Option<u32> {
        let place = Some(self.free).filter(|&place| place != NONE)?;
        self.fill(place, key, flow);
        self.entries[place as usize].generation = self.entries[place as usize].generation.wrapping_add(1);
        Some(place)
    }

    /// Puts a flow into a place of an empty table that the backup's ledger names.
    pub(crate) fn insert_at(&mut self, place: u32, generation: u32, key: FlowKey, flow: Flow) -> bool {
        if place as usize >= self.entries.len() || self.find(&key).is_some() {
            return false;
        }
        let mut at = self.free;
        let mut before = NONE;
        while at != NONE && at != place {
            before = at;
            at = self.entries[at as usize].next;
        }
        if at == NONE {
            return false;
        }
        // To the front of the free places, from where it is taken.
        if before != NONE {
            self.entries[before as usize].next = self.entries[place as usize].next;
            self.entries[place as usize].next = self.free;
            self.free = place;
        }
        self.fill(place, key, flow);
        self.entries[place as usize].generation = generation;
        true
    }

    fn fill(&mut self, place: u32, key: FlowKey, flow: Flow) {
        let bucket = self.bucket(&key);
        let entry = &mut self.entries[place as usize];
        self.free = entry.next;
        entry.key = key;
        entry.flow = flow;
        entry.next = std::mem::replace(&mut self.buckets[bucket], place);
        self.len += 1;
    }

    /// Frees a place.
    pub(crate) fn remove(&mut self, place: u32) {
        let bucket = self.bucket(&self.entries[place as usize].key);
        let mut at = self.buckets[bucket];
        if at == place {
            self.buckets[bucket] = self.entries[place as usize].next;
        } else {
            while self.entries[at as usize].next != place {
                at = self.entries[at as usize].next;
            }
            self.entries[at as usize].next = self.entries[place as usize].next;
        }
        let entry = &mut self.entries[place as usize];
        entry.flow = Flow::Vacant;
        entry.next = std::mem::replace(&mut self.free, place);
        self.len -= 1;
    }

    /// A place.
    pub(crate) fn entry(&self, place: u32) -> &Entry {
        &self.entries[place as usize]
    }

    /// A place, to be changed.
    pub(crate) fn entry_mut(&mut self, place: u32) -> &mut Entry {
        &mut self.entries[place as usize]
    }

    /// The connection of a place.
    pub(crate) fn connection(&self, place: u32) -> Option<&Connection> {
        match &self.entries[place as usize].flow {
            Flow::Connection(connection) => Some(connection),
            Flow::Opening(_) | Flow::Vacant => None,
        }
    }

    /// The connection of a place, to be changed, and its key.
    pub(crate) fn connection_mut(&mut self, place: u32) -> Option<(&FlowKey, &mut Connection)> {
        let entry = &mut self.entries[place as usize];
        match &mut entry.flow {
            Flow::Connection(connection) => Some((&entry.key, connection)),
            Flow::Opening(_) | Flow::Vacant => None,
        }
    }

    /// All places with a flow.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> + '_ {
        let taken = |(_, entry): &(u32, &Entry)| !matches!(entry.flow, Flow::Vacant);
        (0..).zip(&self.entries).filter(taken)
    }
}
