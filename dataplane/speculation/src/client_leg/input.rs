//! What the client's ACKs do to a sender.

use super::congestion::{Arrived, CongestionControl, Signal};
use super::recovery::Phase;
use super::scoreboard::{Delivered, SACK_VISITS};
use super::sender::Sender;
use super::sent_log::{Fate, SentLog};
use super::timers::Timer;
use super::{ClientAck, Progress};
use crate::{SeqNum, Time};

/// What an ACK says has arrived.
#[derive(Default)]
struct News {
    bytes: u32,
    /// The earliest transmission of what was sent once.
    first: Option<Time>,
    /// Something that was sent more than once is among it.
    again: bool,
}

impl News {
    fn add(&mut self, segment: &Delivered) {
        self.bytes = self.bytes.saturating_add(segment.span);
        if segment.again {
            self.again = true;
        } else {
            self.first = Some(self.first.map_or(segment.sent_at, |first| first.min(segment.sent_at)));
        }
    }
}

impl Sender {
    /// Takes the ACK information of a segment of the client. ACKs of bytes that were never sent, and those
    /// below SND.UNA, change nothing (RFC 9293 §3.10.7.4). Poll afterwards.
    ///
    /// Looks at the records that it frees or finds lost and at most `SACK_VISITS` (8192) others; no
    /// allocation; 44 ns for two segments, 30 ns for a SACK (bench `client_leg`).
    pub fn handle_ack(&mut self, now: Time, ack: &ClientAck<'_>, log: &mut SentLog) -> Progress {
        let edge = self.una + self.window.size();
        if self.silent || ack.ack.before(self.una) || ack.ack.after(self.reach) {
            return self.progress(false);
        }
        let duplicate = self.is_duplicate(ack);
        let was_zero = self.window.is_zero();
        self.window.update(ack.seq, ack.ack, ack.window);
        let confirmed = ack.ack.bytes_since(self.una);
        let dsack = self.sack && is_dsack(ack);
        let news = self.take_news(now, ack, log);
        self.reconnecting = false;
        self.una = ack.ack;
        self.nxt = self.nxt.later(self.una);
        self.duplicates.confirmed(self.una);
        if let (Some(first), false) = (news.first, news.again) {
            self.rtt.sample(now, now.since(first));
            self.rack.measured();
        } else if confirmed > 0 {
            self.rtt.progressed();
        }
        if news.bytes > 0 || confirmed > 0 || was_zero || self.window.is_zero() {
            // The client is there: R2 begins anew (RFC 9293 §3.8.3, §3.8.6.1).
            self.timers.stop(Timer::GiveUp);
        }
        let restart = self.step_recovery(now, ack, confirmed, duplicate, dsack, log);
        self.answer_marks(ack);
        self.reduced_until = self.reduced_until.filter(|&until| !self.una.after(until));
        self.grow(now, &news);
        self.set_timers(now, confirmed > 0 && restart);
        if confirmed > 0 {
            self.persist.progressed();
        }
        self.check_persist(now, log);
        self.progress((self.una + self.window.size()).after(edge))
    }

    fn progress(&self, window_opened: bool) -> Progress {
        Progress {
            freed_to: self.una.earlier(self.end),
            fin_confirmed: self.closed && self.una.after(self.end),
            window_opened,
        }
    }

    /// RFC 5681 §2.
    fn is_duplicate(&self, ack: &ClientAck<'_>) -> bool {
        ack.ack == self.una
            && !self.board.is_empty()
            && !ack.carries_data
            && ack.window == self.window.size()
            && ack.window > 0
    }

    /// Frees what is confirmed (SP-3) and marks what is SACKed.
    fn take_news(&mut self, now: Time, ack: &ClientAck<'_>, log: &mut SentLog) -> News {
        let mut news = News::default();
        let (sack, min_rtt) = (self.sack, self.rtt.minimum());
        let Self { board, rack, .. } = self;
        let mut tell = |segment: Delivered| {
            news.add(&segment);
            if sack {
                rack.delivered(now, &segment, min_rtt);
            }
        };
        board.acknowledge(log, ack.ack, &mut tell);
        if sack {
            let mut visits = SACK_VISITS;
            for &(left, right) in ack.sacks {
                // RFC 2018 §3: between the cumulative ACK and what was sent; DSACKs fall out.
                if left.before(right) && left.after(ack.ack) && !right.after(self.nxt) {
                    board.sack(log, (left, right), &mut visits, &mut tell);
                }
            }
        }
        news
    }

    /// Loss detection and the phases of recovery. Answers whether the RTO may be restarted.
    fn step_recovery(
        &mut self,
        now: Time,
        ack: &ClientAck<'_>,
        confirmed: u32,
        duplicate: bool,
        dsack: bool,
        log: &mut SentLog,
    ) -> bool {
        if self.phase.reached(self.una) {
            self.rack.recovered();
            self.duplicates.reset();
            self.urgent = false;
        }
        if self.sack {
            self.rack.dsack(self.una, self.nxt, dsack);
            let bare = confirmed == 0 && ack.sacks.is_empty() && !ack.carries_data;
            if self.rack.probe_repaired(ack.ack, dsack, bare) && self.phase.is_open() {
                // RFC 8985 §7.4: the probe repaired a loss.
                self.reduce(Signal::Loss);
            }
            self.detect_losses(now, log);
            return true;
        }
        match self.phase {
            Phase::Fast { .. } if confirmed > 0 => {
                // RFC 6582 §3.2 step 3: the next hole, at once.
                let first = self.duplicates.partial(confirmed, self.mss);
                self.lose_head(log);
                return first;
            }
            _ if confirmed > 0 => self.duplicates.reset(),
            _ if duplicate && self.duplicates.duplicate(self.una, &self.phase, self.mss) => {
                self.recover(now);
                self.lose_head(log);
            }
            _ => {}
        }
        true
    }

    fn lose_head(&mut self, log: &mut SentLog) {
        if let Some(head) = self.board.head() {
            if log.get(head).fate == Fate::InFlight {
                self.board.lose(log, head);
            }
            self.urgent = true;
        }
    }

    /// RFC 3168 §6.1.2: the window is reduced once for a window of data, and the client is told.
    fn answer_marks(&mut self, ack: &ClientAck<'_>) {
        let new = self.reduced_until.is_none_or(|until| ack.ack.after(until));
        if ack.ece && self.ecn && new && self.phase.is_open() {
            self.reduce(Signal::Loss);
        }
    }

    /// Congestion window growth (RFC 5681 §3.1, RFC 9438 §4).
    fn grow(&mut self, now: Time, news: &News) {
        if news.bytes == 0 || self.phase.is_fast() {
            return;
        }
        let after_timeout = matches!(self.phase, Phase::Timeout { .. });
        // After a timeout without SACK an ACK may cover much that had arrived long before: one segment
        // counts (RFC 3465 §2.3).
        let bytes = if after_timeout && !self.sack { news.bytes.min(self.mss) } else { news.bytes };
        let limited =
            after_timeout || self.usage.is_limited(self.control.window(), self.control.in_slow_start());
        let srtt = self.rtt.smoothed().unwrap_or_default();
        self.control.arrived(self.mss, Arrived { now, bytes, srtt, limited });
    }

    /// RFC 6298 §5.2, §5.3; RFC 8985 §7.2.
    fn set_timers(&mut self, now: Time, restart: bool) {
        if self.board.is_empty() {
            self.timers.stop(Timer::Retransmit);
            self.timers.stop(Timer::TailProbe);
            self.timers.stop(Timer::Reorder);
            self.tail_probe = false;
            self.urgent = false;
        } else if restart && !self.persist.is_active() {
            self.timers.set(Timer::Retransmit, now + self.rtt.timeout());
            self.arm_tail_probe(now);
        }
        if !self.may_probe_tail() {
            self.timers.stop(Timer::TailProbe);
            self.tail_probe = false;
        }
    }
}

/// RFC 2883 §4: the first block is below the cumulative ACK, or within the second.
fn is_dsack(ack: &ClientAck<'_>) -> bool {
    let within =
        |(left, right): (SeqNum, SeqNum), (l, r): (SeqNum, SeqNum)| !left.before(l) && !right.after(r);
    match *ack.sacks {
        [] => false,
        [first, ..] if !first.0.before(first.1) => false,
        [first, ..] if !first.1.after(ack.ack) => true,
        [first, second, ..] => within(first, second),
        [_] => false,
    }
}
