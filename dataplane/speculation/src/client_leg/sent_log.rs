//! The records of segments that were sent and are not confirmed, of all senders of an engine.
//!
//! A slab of fixed capacity with a free list; a record is in its sender's chain by sequence number and,
//! while it is in flight or lost, in the queue of its [`Fate`]. The chains' ends are in the sender's
//! [`super::scoreboard::Scoreboard`].

use crate::{SeqNum, Time};

/// No record.
pub(super) const NIL: u32 = u32::MAX;

/// Where a segment is believed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// On its way; queued in the order of sending.
    InFlight,
    /// Lost; queued for retransmission.
    Lost,
    /// With the client by a SACK, which it may take back (RFC 2018 §8); in no queue. Neighbours are
    /// merged into one record.
    Sacked,
}

/// A segment, or a run of SACKed segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// When it was sent last.
    pub(super) sent_at: Time,
    /// Its first byte.
    pub(super) seq: SeqNum,
    /// Payload bytes.
    pub(super) len: u32,
    /// Neighbours by sequence number. In the free list: the next free one.
    pub(super) next: u32,
    pub(super) prev: u32,
    /// Neighbours in the queue of its fate.
    pub(super) behind: u32,
    pub(super) ahead: u32,
    pub(super) fate: Fate,
    /// It ends with the FIN.
    pub(super) fin: bool,
    /// It was, or may have been, sent more than once: no RTT sample (Karn; RFC 6298 §3).
    pub(super) again: bool,
    /// Its last transmission had its front only, for want of window or of a record for the rest.
    pub(super) cut_short: bool,
}

impl Record {
    /// Sequence numbers that it takes.
    pub(super) const fn span(&self) -> u32 {
        self.len + self.fin as u32
    }

    /// The sequence number behind it.
    pub(super) fn end(&self) -> SeqNum {
        self.seq + self.span()
    }
}

const EMPTY: Record = Record {
    sent_at: Time::ZERO,
    seq: SeqNum::new(0),
    len: 0,
    next: NIL,
    prev: NIL,
    behind: NIL,
    ahead: NIL,
    fate: Fate::InFlight,
    fin: false,
    again: false,
    cut_short: false,
};

/// The slab. Senders find it by parameter; each must always be given the same one.
#[derive(Debug)]
pub struct SentLog {
    records: Box<[Record]>,
    free: u32,
    used: usize,
}

impl SentLog {
    /// A log of `segments` records, 40 bytes each, the only allocation of the client leg. At most
    /// 2^32 - 2 are taken.
    #[must_use]
    pub fn new(segments: usize) -> Self {
        let capacity = u32::try_from(segments).unwrap_or(NIL).min(NIL - 1);
        let record = |i: u32| Record { next: if i + 1 == capacity { NIL } else { i + 1 }, ..EMPTY };
        let free = if capacity == 0 { NIL } else { 0 };
        Self { records: (0..capacity).map(record).collect(), free, used: 0 }
    }

    /// Records there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.records.len()
    }

    /// Records in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    pub(super) fn get(&self, index: u32) -> &Record {
        &self.records[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Record {
        &mut self.records[index as usize]
    }

    /// Takes a free record.
    pub(super) fn take(&mut self) -> Option<u32> {
        let index = self.free;
        if index == NIL {
            return None;
        }
        self.free = self.get(index).next;
        *self.get_mut(index) = EMPTY;
        self.used += 1;
        Some(index)
    }

    /// Gives a record back.
    pub(super) fn give(&mut self, index: u32) {
        self.give_chain(index, index, 1);
    }

    /// Gives the `count` records from `first` to `last`, chained by `next`, back at once.
    pub(super) fn give_chain(&mut self, first: u32, last: u32, count: u32) {
        let free = self.free;
        self.get_mut(last).next = free;
        self.free = first;
        self.used -= count as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_gives_nothing_and_gives_again_what_comes_back() {
        let mut log = SentLog::new(2);
        let (a, b) = (log.take().unwrap(), log.take().unwrap());
        assert!(log.take().is_none());
        assert_eq!(log.used(), 2);
        log.give(a);
        assert_eq!(log.take(), Some(a));
        log.get_mut(a).next = b;
        log.give_chain(a, b, 2);
        assert_eq!(log.used(), 0);
        assert!(log.take().is_some() && log.take().is_some() && log.take().is_none());
    }

    #[test]
    fn a_log_of_nothing_is_full() {
        assert!(SentLog::new(0).take().is_none());
    }

    #[test]
    fn a_record_has_40_bytes() {
        assert_eq!(size_of::<Record>(), 40);
    }
}
