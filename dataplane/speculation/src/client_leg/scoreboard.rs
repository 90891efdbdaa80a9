//! What one sender has sent and the client has not confirmed: chains of records in the [`SentLog`].
//!
//! ```text
//!  by sequence:  [una ..)[ sacked run )[ .. )[ .. )[ sacked run )[ .. nxt)
//!  flight queue: oldest transmission first          lost queue: lowest first, roughly
//! ```
//!
//! Invariants: the chain covers una..nxt without gap or overlap; a record is in the queue of its fate;
//! `in_flight`, `lost` and `sacked` are the sums of the spans of that fate; two SACKed records are never
//! neighbours. `Scoreboard::check` recounts them for the tests.

use super::sent_log::{Fate, NIL, Record, SentLog};
use crate::{SeqNum, Time};

/// Records that the SACK blocks of one ACK may visit. A window of 12 MB of Ethernet segments; beyond it
/// a block is ignored, which costs a retransmission at worst.
pub(super) const SACK_VISITS: u32 = 8192;

/// The ends of a queue.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: u32,
    last: u32,
}

impl Queue {
    const fn new() -> Self {
        Self { first: NIL, last: NIL }
    }

    fn push_back(&mut self, log: &mut SentLog, index: u32) {
        let last = self.last;
        let record = log.get_mut(index);
        (record.ahead, record.behind) = (last, NIL);
        if last == NIL {
            self.first = index;
        } else {
            log.get_mut(last).behind = index;
        }
        self.last = index;
    }

    fn push_front(&mut self, log: &mut SentLog, index: u32) {
        let first = self.first;
        let record = log.get_mut(index);
        (record.ahead, record.behind) = (NIL, first);
        if first == NIL {
            self.last = index;
        } else {
            log.get_mut(first).ahead = index;
        }
        self.first = index;
    }

    fn insert_behind(&mut self, log: &mut SentLog, other: u32, index: u32) {
        let next = log.get(other).behind;
        if next == NIL {
            return self.push_back(log, index);
        }
        let record = log.get_mut(index);
        (record.ahead, record.behind) = (other, next);
        log.get_mut(other).behind = index;
        log.get_mut(next).ahead = index;
    }

    fn remove(&mut self, log: &mut SentLog, index: u32) {
        let Record { ahead, behind, .. } = *log.get(index);
        if ahead == NIL {
            self.first = behind;
        } else {
            log.get_mut(ahead).behind = behind;
        }
        if behind == NIL {
            self.last = ahead;
        } else {
            log.get_mut(behind).ahead = ahead;
        }
    }
}

/// A segment that the client has now and had not before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivered {
    pub(super) sent_at: Time,
    pub(super) end: SeqNum,
    pub(super) span: u32,
    /// It was sent more than once.
    pub(super) again: bool,
}

/// The records of one sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scoreboard {
    first: u32,
    last: u32,
    flight: Queue,
    lost_queue: Queue,
    /// The SACKed run with the highest sequence numbers.
    top: u32,
    records: u32,
    in_flight: u32,
    lost: u32,
    sacked: u32,
}

impl Scoreboard {
    pub(super) const fn new() -> Self {
        Self {
            first: NIL,
            last: NIL,
            flight: Queue::new(),
            lost_queue: Queue::new(),
            top: NIL,
            records: 0,
            in_flight: 0,
            lost: 0,
            sacked: 0,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.first == NIL
    }

    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) const fn lost(&self) -> u32 {
        self.lost
    }

    pub(super) const fn sacked(&self) -> u32 {
        self.sacked
    }

    /// The record at una.
    pub(super) fn head(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// The record that ends at nxt.
    pub(super) fn tail(&self) -> Option<u32> {
        (self.last != NIL).then_some(self.last)
    }

    /// The record whose last transmission is the oldest of those in flight.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.flight.first != NIL).then_some(self.flight.first)
    }

    /// The lost record to be sent again next: the one at una, or else the first that was found lost.
    pub(super) fn next_lost(&self, log: &SentLog) -> Option<u32> {
        if self.lost_queue.first == NIL {
            return None;
        }
        let head_lost = log.get(self.first).fate == Fate::Lost;
        Some(if head_lost { self.first } else { self.lost_queue.first })
    }

    /// A segment leaves for the first time. Answers false when the log is full. Bounded by a constant.
    #[must_use]
    pub(super) fn send(&mut self, log: &mut SentLog, segment: Record) -> bool {
        let Some(index) = log.take() else { return false };
        let last = self.last;
        *log.get_mut(index) = Record { prev: last, next: NIL, fate: Fate::InFlight, ..segment };
        if last == NIL {
            self.first = index;
        } else {
            log.get_mut(last).next = index;
        }
        self.last = index;
        self.records += 1;
        self.in_flight += segment.span();
        self.flight.push_back(log, index);
        true
    }

    /// A record leaves again, whatever it was believed to be but SACKed. Bounded by a constant.
    pub(super) fn send_again(&mut self, log: &mut SentLog, index: u32, now: Time) {
        self.leave(log, index);
        let record = log.get_mut(index);
        record.again = true;
        record.sent_at = now;
        self.enter(log, index, Fate::InFlight);
    }

    /// A record in flight is lost. Bounded by a constant.
    pub(super) fn lose(&mut self, log: &mut SentLog, index: u32) {
        self.leave(log, index);
        self.enter(log, index, Fate::Lost);
    }

    /// All that is in flight is lost; the lost queue is in order afterwards. A record each.
    pub(super) fn lose_all(&mut self, log: &mut SentLog) {
        self.lose_where(log, |_| true);
    }

    /// Those in flight for which `lost` holds are lost, in order. A record each.
    pub(super) fn lose_where(&mut self, log: &mut SentLog, lost: impl Fn(&Record) -> bool) {
        let mut index = self.first;
        while index != NIL {
            let record = log.get(index);
            let next = record.next;
            let loses = match record.fate {
                Fate::Lost => true,
                Fate::InFlight => lost(record),
                Fate::Sacked => false,
            };
            if loses {
                self.leave(log, index);
                self.account(log, index, Fate::Lost);
                self.lost_queue.push_back(log, index);
            }
            index = next;
        }
    }

    /// The client has taken its SACKs back (RFC 2018 §8): what it SACKed is lost. A record each.
    pub(super) fn renege(&mut self, log: &mut SentLog) {
        let mut index = self.first;
        while index != NIL {
            let next = log.get(index).next;
            if log.get(index).fate == Fate::Sacked {
                self.leave(log, index);
                self.enter(log, index, Fate::Lost);
            }
            index = next;
        }
        self.top = NIL;
    }

    /// Cuts a record in two behind `len` bytes, the rest having the same fate. Answers false when the log
    /// is full. Bounded by a constant.
    #[must_use]
    pub(super) fn split(&mut self, log: &mut SentLog, index: u32, len: u32) -> bool {
        let whole = *log.get(index);
        if len >= whole.len || whole.fate == Fate::Sacked {
            return true;
        }
        let Some(rest) = log.take() else { return false };
        *log.get_mut(rest) = Record { seq: whole.seq + len, len: whole.len - len, prev: index, ..whole };
        let front = log.get_mut(index);
        (front.len, front.fin, front.next) = (len, false, rest);
        if whole.next == NIL {
            self.last = rest;
        } else {
            log.get_mut(whole.next).prev = rest;
        }
        self.records += 1;
        match whole.fate {
            Fate::InFlight => self.flight.insert_behind(log, index, rest),
            Fate::Lost => self.lost_queue.insert_behind(log, index, rest),
            Fate::Sacked => {}
        }
        true
    }

    /// The last record takes `bytes` more, and the FIN, as it is sent again. Bounded by a constant.
    pub(super) fn grow_tail(&mut self, log: &mut SentLog, bytes: u32, fin: bool) {
        let Some(index) = self.tail() else { return };
        let fate = log.get(index).fate;
        let more = bytes + u32::from(fin);
        let record = log.get_mut(index);
        record.len += bytes;
        record.fin |= fin;
        *self.sum_of(fate) += more;
    }

    /// Frees all below `ack` (the only place that does, SP-3), and tells of what was not SACKed. A record
    /// each.
    pub(super) fn acknowledge(
        &mut self,
        log: &mut SentLog,
        ack: SeqNum,
        mut delivered: impl FnMut(Delivered),
    ) {
        while let Some(index) = self.head() {
            let record = *log.get(index);
            if !record.seq.before(ack) {
                break;
            }
            let whole = !record.end().after(ack);
            let span = if whole { record.span() } else { ack.bytes_since(record.seq) };
            if record.fate != Fate::Sacked {
                let end = record.seq + span;
                delivered(Delivered { sent_at: record.sent_at, end, span, again: record.again });
            }
            if whole {
                self.free_head(log);
                continue;
            }
            let front = log.get_mut(index);
            front.seq = ack;
            front.len = front.len.saturating_sub(span);
            front.cut_short = false;
            *self.sum_of(record.fate) -= span;
            if record.cut_short && record.fate == Fate::InFlight {
                // What was not sent with its front is still to be sent.
                self.lose(log, index);
            }
        }
    }

    /// Marks what lies in `left..right` as with the client, and tells of each segment. `visits` is the
    /// budget of records to look at.
    pub(super) fn sack(
        &mut self,
        log: &mut SentLog,
        (left, right): (SeqNum, SeqNum),
        visits: &mut u32,
        mut delivered: impl FnMut(Delivered),
    ) {
        let Some(mut index) = self.find(log, left, visits) else { return };
        while index != NIL && *visits > 0 {
            *visits -= 1;
            let record = *log.get(index);
            if record.end().after(right) {
                break;
            }
            if record.fate != Fate::Sacked {
                delivered(Delivered {
                    sent_at: record.sent_at,
                    end: record.end(),
                    span: record.span(),
                    again: record.again,
                });
                index = self.mark_sacked(log, index);
            }
            index = log.get(index).next;
        }
    }

    /// Gives all records back. Bounded by a constant.
    pub(super) fn clear(&mut self, log: &mut SentLog) {
        if self.first != NIL {
            log.give_chain(self.first, self.last, self.records);
        }
        *self = Self::new();
    }

    /// The first record at or behind `left`, from whichever known place is nearest.
    fn find(&self, log: &SentLog, left: SeqNum, visits: &mut u32) -> Option<u32> {
        let head = log.get(self.head()?);
        let from_top = self.top != NIL && {
            let top = log.get(self.top);
            let below = top.seq.minus(left);
            below <= 0 || below < left.minus(head.seq)
        };
        let mut index = if from_top { self.top } else { self.first };
        // Back while it begins behind the block's edge …
        while *visits > 0 && log.get(index).seq.after(left) && log.get(index).prev != NIL {
            *visits -= 1;
            index = log.get(index).prev;
        }
        // … and forward to the first one that does not begin before it.
        while *visits > 0 && index != NIL && log.get(index).seq.before(left) {
            *visits -= 1;
            // A run that the block goes on with counts from its end.
            index = log.get(index).next;
        }
        (index != NIL && *visits > 0).then_some(index)
    }

    /// Marks a record and merges it with SACKed neighbours; answers the record that has it now.
    fn mark_sacked(&mut self, log: &mut SentLog, index: u32) -> u32 {
        self.leave(log, index);
        self.enter(log, index, Fate::Sacked);
        if self.top == NIL || log.get(index).seq.after(log.get(self.top).seq) {
            self.top = index;
        }
        let next = log.get(index).next;
        if next != NIL && log.get(next).fate == Fate::Sacked {
            self.merge_with_next(log, index);
        }
        let prev = log.get(index).prev;
        if prev != NIL && log.get(prev).fate == Fate::Sacked {
            self.merge_with_next(log, prev);
            return prev;
        }
        index
    }

    fn merge_with_next(&mut self, log: &mut SentLog, index: u32) {
        let next = log.get(index).next;
        let Record { len, fin, next: after, .. } = *log.get(next);
        let record = log.get_mut(index);
        record.len += len;
        record.fin = fin;
        record.next = after;
        record.again = true;
        if after == NIL {
            self.last = index;
        } else {
            log.get_mut(after).prev = index;
        }
        if self.top == next {
            self.top = index;
        }
        self.records -= 1;
        log.give(next);
    }

    fn free_head(&mut self, log: &mut SentLog) {
        let index = self.first;
        let next = log.get(index).next;
        self.leave(log, index);
        if self.top == index {
            self.top = NIL;
        }
        self.first = next;
        if next == NIL {
            self.last = NIL;
        } else {
            log.get_mut(next).prev = NIL;
        }
        self.records -= 1;
        log.give(index);
    }

    fn sum_of(&mut self, fate: Fate) -> &mut u32 {
        match fate {
            Fate::InFlight => &mut self.in_flight,
            Fate::Lost => &mut self.lost,
            Fate::Sacked => &mut self.sacked,
        }
    }

    /// Out of the queue and the sum of its fate.
    fn leave(&mut self, log: &mut SentLog, index: u32) {
        let (fate, span) = (log.get(index).fate, log.get(index).span());
        *self.sum_of(fate) -= span;
        match fate {
            Fate::InFlight => self.flight.remove(log, index),
            Fate::Lost => self.lost_queue.remove(log, index),
            Fate::Sacked => {}
        }
    }

    fn account(&mut self, log: &mut SentLog, index: u32, fate: Fate) {
        log.get_mut(index).fate = fate;
        *self.sum_of(fate) += log.get(index).span();
    }

    /// Into the queue and the sum of a fate.
    fn enter(&mut self, log: &mut SentLog, index: u32, fate: Fate) {
        self.account(log, index, fate);
        match fate {
            Fate::InFlight => self.flight.push_back(log, index),
            Fate::Sacked => {}
            Fate::Lost => {
                let first = self.lost_queue.first;
                if first != NIL && log.get(index).seq.before(log.get(first).seq) {
                    self.lost_queue.push_front(log, index);
                } else {
                    self.lost_queue.push_back(log, index);
                }
            }
        }
    }
}

#[cfg(test)]
impl Scoreboard {
    /// Recounts everything and panics where it does not fit; answers the bytes in flight.
    pub(super) fn check(&self, log: &SentLog, una: SeqNum, nxt: SeqNum) -> u32 {
        let (mut sums, mut count, mut at) = ([0_u32; 3], 0, una);
        let (mut index, mut prev, mut top) = (self.first, NIL, NIL);
        let mut was_sacked = false;
        while index != NIL {
            let record = log.get(index);
            assert_eq!((record.seq, record.prev), (at, prev), "the chain has a gap");
            assert!(record.span() > 0, "an empty record");
            let sacked = record.fate == Fate::Sacked;
            assert!(!(sacked && was_sacked), "runs are not merged");
            was_sacked = sacked;
            if sacked {
                top = index;
            }
            sums[record.fate as usize] += record.span();
            count += 1;
            (at, prev, index) = (record.end(), index, record.next);
        }
        assert_eq!((at, prev, count, top), (nxt, self.last, self.records, self.top));
        assert_eq!(sums, [self.in_flight, self.lost, self.sacked], "the sums are wrong");
        let mut queued = 0;
        for (queue, fate) in [(self.flight, Fate::InFlight), (self.lost_queue, Fate::Lost)] {
            let (mut index, mut ahead, mut sum) = (queue.first, NIL, 0);
            let mut time = Time::ZERO;
            while index != NIL {
                let record = log.get(index);
                assert_eq!((record.fate, record.ahead), (fate, ahead));
                if fate == Fate::InFlight {
                    assert!(record.sent_at >= time, "the flight queue is out of order");
                    time = record.sent_at;
                }
                sum += record.span();
                queued += 1;
                (ahead, index) = (index, record.behind);
            }
            assert_eq!((ahead, sum), (queue.last, sums[fate as usize]));
        }
        assert!(queued <= count);
        sums[Fate::InFlight as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: SeqNum = SeqNum::new(u32::MAX - 2500);

    fn sent(count: u32, log: &mut SentLog) -> Scoreboard {
        let mut board = Scoreboard::new();
        for i in 0..count {
            assert!(board.send(log, segment(i)));
        }
        board
    }

    fn segment(i: u32) -> Record {
        Record {
            sent_at: Time::from_ns(u64::from(i)),
            seq: START + i * 1000,
            len: 1000,
            next: NIL,
            prev: NIL,
            behind: NIL,
            ahead: NIL,
            fate: Fate::InFlight,
            fin: false,
            again: false,
            cut_short: false,
        }
    }

    fn sack(board: &mut Scoreboard, log: &mut SentLog, from: u32, to: u32) -> u32 {
        let (mut bytes, mut visits) = (0, SACK_VISITS);
        let block = (START + from * 1000, START + to * 1000);
        board.sack(log, block, &mut visits, |delivered| bytes += delivered.span);
        bytes
    }

    #[test]
    fn a_sack_moves_bytes_out_of_flight_and_frees_none() {
        // RFC 2018 §8, SP-3
        let mut log = SentLog::new(16);
        let mut board = sent(10, &mut log);
        assert_eq!(sack(&mut board, &mut log, 3, 5), 2000);
        assert_eq!(sack(&mut board, &mut log, 3, 6), 1000);
        assert_eq!(sack(&mut board, &mut log, 8, 9), 1000);
        assert_eq!(sack(&mut board, &mut log, 6, 8), 2000);
        assert_eq!((board.in_flight(), board.sacked()), (4000, 6000));
        board.check(&log, START, START + 10_000);
        // A run is one record.
        assert_eq!(log.used(), 5);
        let mut arrived = 0;
        board.acknowledge(&mut log, START + 10_000, |delivered| arrived += delivered.span);
        assert_eq!((arrived, log.used()), (4000, 0));
        assert!(board.is_empty());
    }

    #[test]
    fn half_a_segment_is_not_marked() {
        // RFC 6675 §3
        let mut log = SentLog::new(16);
        let mut board = sent(4, &mut log);
        let mut visits = SACK_VISITS;
        board.sack(&mut log, (START + 1500, START + 2500), &mut visits, |_| panic!());
        assert_eq!(board.sacked(), 0);
    }

    #[test]
    fn a_client_that_reneges_gets_everything_again() {
        // RFC 2018 §8
        let mut log = SentLog::new(16);
        let mut board = sent(10, &mut log);
        sack(&mut board, &mut log, 2, 6);
        sack(&mut board, &mut log, 8, 10);
        board.renege(&mut log);
        assert_eq!((board.sacked(), board.lost()), (0, 6000));
        board.check(&log, START, START + 10_000);
    }

    #[test]
    fn lost_segments_are_sent_again_from_the_lowest() {
        let mut log = SentLog::new(16);
        let mut board = sent(5, &mut log);
        board.lose_all(&mut log);
        let mut order = Vec::new();
        while let Some(index) = board.next_lost(&log) {
            order.push(log.get(index).seq.bytes_since(START) / 1000);
            board.send_again(&mut log, index, Time::from_ns(100));
        }
        assert_eq!(order, [0, 1, 2, 3, 4]);
        board.check(&log, START, START + 5000);
    }

    #[test]
    fn an_ack_within_a_segment_trims_it() {
        let mut log = SentLog::new(16);
        let mut board = sent(3, &mut log);
        board.acknowledge(&mut log, START + 1500, |_| {});
        assert_eq!(board.in_flight(), 1500);
        board.check(&log, START + 1500, START + 3000);
    }

    #[test]
    fn a_record_is_split_where_the_segment_ends() {
        let mut log = SentLog::new(4);
        let mut board = sent(3, &mut log);
        let middle = log.get(board.head().unwrap()).next;
        assert!(board.split(&mut log, middle, 600));
        board.check(&log, START, START + 3000);
        assert!(!board.split(&mut log, middle, 300));
        board.lose_all(&mut log);
        board.acknowledge(&mut log, START + 1600, |_| {});
        assert!(board.split(&mut log, board.head().unwrap(), 100));
        board.check(&log, START + 1600, START + 3000);
    }

    #[test]
    fn the_work_for_a_sack_is_bounded() {
        let mut log = SentLog::new(100);
        let mut board = sent(100, &mut log);
        let mut visits = 10;
        board.sack(&mut log, (START + 50_000, START + 60_000), &mut visits, |_| panic!());
        assert_eq!(visits, 0);
        assert_eq!(board.sacked(), 0);
    }
}
