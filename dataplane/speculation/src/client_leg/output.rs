//! What leaves a sender, and when.

use std::time::Duration;

use super::congestion::CongestionControl;
use super::pacing::Pace;
use super::recovery::Phase;
use super::sender::Sender;
use super::sent_log::{Fate, NIL, Record, SentLog};
use super::timers::Timer;
use super::{Kind, Transmit};
use crate::{SeqNum, Time};

/// RFC 9293 §3.8.6.2.1: 0.1 to 1.0 s.
const OVERRIDE: Duration = Duration::from_millis(200);
/// When a full log is looked at again.
const LOG_RETRY: Duration = Duration::from_millis(10);

impl Sender {
    /// The next segment to be sent now, if there is one. Retransmissions go before new data.
    ///
    /// What it answers counts as sent: a segment for which there was no room after all is repaired as a
    /// lost one.
    ///
    /// Bounded by a constant, but for the first call after [`Sender::set_mss`]; no allocation; 26 ns a
    /// segment (bench `client_leg`). A burst of calls at one moment is bounded by the congestion window,
    /// and once there is an RTT by the pace's quantum: ten segments, or what the pace gives in a
    /// millisecond.
    pub fn poll_transmit(&mut self, now: Time, log: &mut SentLog) -> Option<Transmit> {
        if self.silent {
            return None;
        }
        if std::mem::take(&mut self.resegment) {
            let mss = self.mss;
            self.board.lose_where(log, |record| record.len > mss);
        }
        self.check_persist(now, log);
        if self.persist.is_active() {
            return if self.persist.is_due() { self.send_window_probe(now, log) } else { None };
        }
        self.timers.stop(Timer::Hold);
        if std::mem::take(&mut self.tail_probe) {
            let probe = self.send_tail_probe(now, log);
            if probe.is_some() {
                return probe;
            }
        }
        if self.board.lost() > 0 {
            // Nothing new overtakes what is lost: it meets the same limits.
            return self.retransmit(now, log);
        }
        self.send_new(now, log, false)
    }

    /// RFC 9293 §3.8.6.1: one byte, or the FIN, into the zero window.
    fn send_window_probe(&mut self, now: Time, log: &mut SentLog) -> Option<Transmit> {
        self.persist.sent();
        if self.board.is_empty() {
            let len = u32::from(self.nxt.before(self.end));
            let probe = Record { again: true, ..self.record(now, len, len == 0) };
            if !self.board.send(log, probe) {
                return None;
            }
            self.advance(1);
        }
        let head = log.get_mut(self.board.head()?);
        head.again = true;
        let len = head.len.min(1);
        self.asked(now);
        self.probes = self.probes.saturating_add(1);
        self.last_sent = now;
        Some(self.segment(self.una, len, len == 0, Kind::Probe))
    }

    /// RFC 8985 §7.3: new data if there is some, or else the last segment again.
    fn send_tail_probe(&mut self, now: Time, log: &mut SentLog) -> Option<Transmit> {
        if !self.may_probe_tail() {
            return None;
        }
        if let Some(segment) = self.send_new(now, log, true) {
            self.rack.probed(self.nxt, false);
            return Some(segment);
        }
        let tail = self.board.tail()?;
        let record = *log.get(tail);
        let in_window = !record.end().after(self.una + self.window.size());
        if record.fate != Fate::InFlight || record.cut_short || !in_window {
            return None;
        }
        self.board.send_again(log, tail, now);
        self.rack.probed(self.nxt, true);
        self.sent(now, record.span());
        self.retransmissions = self.retransmissions.saturating_add(1);
        Some(self.segment(record.seq, record.len, record.fin, Kind::Retransmission))
    }

    /// The next lost segment, within the window, the congestion window and the pace.
    fn retransmit(&mut self, now: Time, log: &mut SentLog) -> Option<Transmit> {
        let index = self.board.next_lost(log)?;
        let record = *log.get(index);
        let room = (self.una + self.window.size()).bytes_since(record.seq);
        let whole = record.span().min(self.mss + u32::from(record.fin && record.len <= self.mss));
        if room == 0 || (room < whole && record.seq != self.una) {
            // Beyond a window that has shrunk: its RTO is running (RFC 9293 §3.8.6).
            return None;
        }
        if !self.urgent && !self.may_leave(now, whole.min(room)) {
            return None;
        }
        let mut short = room < whole;
        if record.len > self.mss && !short {
            short = !self.board.split(log, index, self.mss);
        }
        self.fill_tail(log, index, room);
        self.board.send_again(log, index, now);
        let record = log.get_mut(index);
        record.cut_short = short;
        let len = record.len.min(self.mss).min(room);
        let fin = record.fin && len == record.len && len < room;
        let seq = record.seq;
        if self.urgent && matches!(self.phase, Phase::Timeout { .. }) {
            self.asked(now);
        }
        self.urgent = false;
        self.sent(now, len + u32::from(fin));
        self.retransmissions = self.retransmissions.saturating_add(1);
        Some(self.segment(seq, len, fin, Kind::Retransmission))
    }

    /// A small segment at SND.NXT that is sent again without a loss (it was a zero-window probe, or the
    /// rest of a larger segment) takes new bytes with it.
    fn fill_tail(&mut self, log: &mut SentLog, index: u32, room: u32) {
        let record = *log.get(index);
        let limit = self.mss.min(room);
        if !self.phase.is_open() || self.board.tail() != Some(index) || record.fin || record.len >= limit {
            return;
        }
        let bytes = self.end.bytes_since(self.nxt).min(limit - record.len);
        let len = record.len + bytes;
        let fin = self.closed && self.nxt + bytes == self.end && len < room;
        self.board.grow_tail(log, bytes, fin);
        self.advance(bytes + u32::from(fin));
    }

    /// The next segment that this sender has not sent, within all limits; `probing`, only the client's.
    fn send_new(&mut self, now: Time, log: &mut SentLog, probing: bool) -> Option<Transmit> {
        if !self.nxt.before(self.last()) {
            self.timers.stop(Timer::Override);
            return None;
        }
        let data = self.end.bytes_since(self.nxt);
        let usable = (self.una + self.window.size()).bytes_since(self.nxt);
        let len = data.min(self.mss).min(usable);
        let fin = self.closed && len == data && len < usable;
        let span = len + u32::from(fin);
        if span == 0 {
            return None;
        }
        if data > 0 && !self.is_worth(now, usable, data, len, probing) {
            return None;
        }
        if !probing {
            if self.board.is_empty() {
                let stale = now.since(self.last_sent) > self.rtt.timeout();
                self.control.resumes(self.mss, now, stale);
            }
            if !self.may_leave(now, span) {
                return None;
            }
        }
        let again = self.reconnecting && self.nxt.before(self.reach);
        let kind = if self.nxt.before(self.reach) { Kind::Retransmission } else { Kind::New };
        if !self.board.send(log, Record { again, ..self.record(now, len, fin) }) {
            self.timers.set(Timer::Hold, now + LOG_RETRY);
            return None;
        }
        let mut segment = self.segment(self.nxt, len, fin, kind);
        if kind == Kind::New && len > 0 {
            segment.ect = self.ecn;
            segment.cwr = std::mem::take(&mut self.cwr);
        }
        self.retransmissions = self.retransmissions.saturating_add(u32::from(kind == Kind::Retransmission));
        self.advance(span);
        self.sent(now, span);
        self.usage.note(self.una, self.nxt, self.pipe(), false);
        if !probing {
            self.arm_tail_probe(now);
        }
        Some(segment)
    }

    /// Sender's silly window avoidance (RFC 9293 §3.8.6.2.1), with its override timer.
    fn is_worth(&mut self, now: Time, usable: u32, data: u32, len: u32, probing: bool) -> bool {
        if self.window.is_worth(usable, data, len, self.mss) {
            self.timers.stop(Timer::Override);
            self.overridden = false;
            return true;
        }
        if probing || self.overridden {
            return std::mem::take(&mut self.overridden);
        }
        if !self.timers.is_set(Timer::Override) {
            self.timers.set(Timer::Override, now + OVERRIDE);
        }
        false
    }

    /// Whether the congestion window and the pace let a segment of `span` leave.
    fn may_leave(&mut self, now: Time, span: u32) -> bool {
        let pipe = self.pipe();
        if pipe > 0 && pipe.saturating_add(span) > self.control.window() {
            self.usage.note(self.una, self.nxt, pipe, true);
            return false;
        }
        match self.pacer.check(now, &self.pace()) {
            Ok(()) => true,
            Err(at) => {
                self.timers.set(Timer::Hold, at);
                false
            }
        }
    }

    fn pace(&self) -> Pace {
        Pace {
            window: self.control.window(),
            mss: self.mss,
            slow_start: self.control.in_slow_start(),
            srtt: self.rtt.smoothed(),
        }
    }

    fn record(&self, now: Time, len: u32, fin: bool) -> Record {
        Record {
            sent_at: now,
            seq: self.nxt,
            len,
            next: NIL,
            prev: NIL,
            behind: NIL,
            ahead: NIL,
            fate: Fate::InFlight,
            fin,
            again: false,
            cut_short: false,
        }
    }

    fn segment(&self, seq: SeqNum, len: u32, fin: bool, kind: Kind) -> Transmit {
        let push = len > 0 && seq + len == self.end;
        Transmit { seq, len, fin, push, cwr: false, ect: false, kind }
    }

    fn advance(&mut self, span: u32) {
        self.nxt = self.nxt + span;
        self.reach = self.reach.later(self.nxt);
    }

    /// Something left (RFC 6298 §5.1).
    fn sent(&mut self, now: Time, span: u32) {
        let pace = self.pace();
        self.pacer.sent(now, span, &pace);
        self.last_sent = now;
        if !self.timers.is_set(Timer::Retransmit) {
            self.timers.set(Timer::Retransmit, now + self.rtt.timeout());
        }
    }
}
