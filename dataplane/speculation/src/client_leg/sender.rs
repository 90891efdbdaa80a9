//! The sender of one flow: its state, its beginning and its timeouts. What ACKs do is in `input`, what
//! leaves in `output`.

use std::time::Duration;

use super::congestion::{CongestionControl, Control, Signal};
use super::pacing::Pacer;
use super::persist::Persist;
use super::rack::{Losses, Rack};
use super::recovery::{Duplicates, Phase};
use super::rto::RoundTrip;
use super::scoreboard::Scoreboard;
use super::sent_log::{Fate, SentLog};
use super::timers::{Timer, Timers};
use super::usage::Usage;
use super::window::ClientWindow;
use super::{SenderConfig, SenderReport, SenderState, TimeoutOutcome};
use crate::{SeqNum, Time};

/// R2 (RFC 9293 §3.8.3): at least 100 s.
pub(crate) const R2: Duration = Duration::from_secs(100);
/// The least segment: an IPv4 link's least MTU of 68 bytes (RFC 791) less headers and timestamps.
const MIN_MSS: u16 = 16;

/// A TCP sender towards a client; see the [module](super).
#[derive(Debug)]
pub struct Sender {
    /// SND.UNA.
    pub(super) una: SeqNum,
    /// SND.NXT.
    pub(super) nxt: SeqNum,
    /// Bytes before this are committed.
    pub(super) end: SeqNum,
    /// The client may have all before this: SND.NXT, or what a host before this one may have sent.
    pub(super) reach: SeqNum,
    pub(super) mss: u32,
    pub(super) sack: bool,
    pub(super) ecn: bool,
    /// A FIN follows `end`.
    pub(super) closed: bool,
    /// After a failover, before the client's first answer: it may answer what another host sent, so no
    /// RTT is measured (RFC 6298 §3).
    pub(super) reconnecting: bool,
    /// One retransmission leaves whatever window and pace say (RFC 5681 §3.2 step 3, RFC 6298 §5.4).
    pub(super) urgent: bool,
    /// A segment that is too small for its window is to be sent after all (RFC 9293 §3.8.6.2.1).
    pub(super) overridden: bool,
    /// A tail loss probe is to be sent.
    pub(super) tail_probe: bool,
    /// The MSS became smaller: segments in flight are too large.
    pub(super) resegment: bool,
    /// The next new segment has the CWR flag.
    pub(super) cwr: bool,
    /// The client was silent beyond R2.
    pub(super) silent: bool,
    /// The reduction of the window covers what was sent before this (RFC 3168 §6.1.2).
    pub(super) reduced_until: Option<SeqNum>,
    pub(super) phase: Phase,
    pub(super) duplicates: Duplicates,
    pub(super) window: ClientWindow,
    pub(super) board: Scoreboard,
    pub(super) rack: Rack,
    pub(super) rtt: RoundTrip,
    pub(super) control: Control,
    pub(super) usage: Usage,
    pub(super) pacer: Pacer,
    pub(super) persist: Persist,
    pub(super) timers: Timers,
    pub(super) last_sent: Time,
    pub(super) retransmissions: u32,
    pub(super) probes: u32,
    pub(super) timeouts: u32,
}

impl Sender {
    /// A sender with nothing to send yet: all before `start` is confirmed.
    #[must_use]
    pub fn new(config: SenderConfig, start: SeqNum, client_window: u32, now: Time) -> Self {
        let mss = u32::from(config.mss.max(MIN_MSS));
        Self {
            una: start,
            nxt: start,
            end: start,
            reach: start,
            mss,
            sack: config.sack,
            ecn: config.ecn,
            closed: false,
            reconnecting: false,
            urgent: false,
            overridden: false,
            tail_probe: false,
            resegment: false,
            cwr: false,
            silent: false,
            reduced_until: None,
            phase: Phase::Open,
            duplicates: Duplicates::new(start),
            window: ClientWindow::new(client_window),
            board: Scoreboard::new(),
            rack: Rack::new(start),
            rtt: RoundTrip::new(),
            control: Control::new(config.congestion, mss),
            usage: Usage::new(start),
            pacer: Pacer::new(),
            persist: Persist::new(),
            timers: Timers::new(),
            last_sent: now,
            retransmissions: 0,
            probes: 0,
            timeouts: 0,
        }
    }

    /// The sender of a flow that another host drove before: `una..end` is committed, and any of it (and
    /// the FIN, if there is one) may have been sent. Nothing is known of the path: initial window
    /// (RFC 6928), fresh RTO (RFC 6298 §2.1), and all is sent from `una` on, until the client says how
    /// far it really is.
    #[must_use]
    pub fn resumed(
        config: SenderConfig,
        una: SeqNum,
        end: SeqNum,
        fin: bool,
        client_window: u32,
        now: Time,
    ) -> Self {
        let end = end.later(una);
        let mut sender = Self::new(config, una, client_window, now);
        sender.end = end;
        sender.closed = fin;
        sender.reach = end + u32::from(fin);
        sender.reconnecting = true;
        sender
    }

    /// Bytes before `end` are committed and may be sent (OC-1). An end that is not beyond the last one,
    /// or after [`Self::close`], changes nothing. Poll afterwards.
    pub fn extend(&mut self, end: SeqNum) {
        if !self.closed && end.after(self.end) && end.after(self.una) {
            self.end = end;
        }
    }

    /// What lies before `to` may have reached the client by another way: it may confirm that, as far as
    /// it is committed.
    pub fn may_have(&mut self, to: SeqNum) {
        self.reach = self.reach.later(to.earlier(self.last()));
    }

    /// A FIN follows the last byte; nothing extends the stream after it. Poll afterwards.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The path or the client takes segments of `mss` bytes from now on. Segments in flight that are
    /// larger are lost and leave again in pieces, which is no sign of congestion (RFC 1191 §6.5). Poll
    /// afterwards; that poll looks at each record of the flow once.
    pub fn set_mss(&mut self, mss: u16) {
        let mss = u32::from(mss.max(MIN_MSS));
        self.resegment |= mss < self.mss;
        self.mss = mss;
    }

    /// An RTT that was measured before this sender began, as by the handshake (RFC 6298 §2.2). Counts only
    /// before the first of its own.
    pub fn set_rtt(&mut self, now: Time, rtt: Duration) {
        if self.rtt.smoothed().is_none() && !rtt.is_zero() {
            self.rtt.sample(now, rtt);
        }
    }

    /// Gives all records back, before the sender is dropped. It sends nothing any more.
    pub fn clear(&mut self, log: &mut SentLog) {
        self.board.clear(log);
        self.timers.stop_all();
        self.silent = true;
    }

    /// Whether it sends nothing any more: it was cleared, or its client given up.
    pub(crate) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// SND.UNA: the first byte that the client has not confirmed.
    #[must_use]
    pub fn unacked(&self) -> SeqNum {
        self.una
    }

    /// SND.NXT: the next sequence number, beyond the FIN once it was sent. What a pure ACK has as its
    /// sequence number.
    #[must_use]
    pub fn next(&self) -> SeqNum {
        self.nxt
    }

    /// The end of the committed bytes.
    #[must_use]
    pub fn end(&self) -> SeqNum {
        self.end
    }

    /// Whether all bytes, and the FIN if there is one, are confirmed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.una.before(self.last())
    }

    /// When [`Self::handle_timeout`] has to be called, if nothing else happens. Exists as long as
    /// something is unconfirmed and the client was not given up, once `poll_transmit` has answered None.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.earliest()
    }

    /// Runs the timers that are due. At most a look at each record of the flow, on an RTO (RFC 8985
    /// §6.3); no allocation.
    pub fn handle_timeout(&mut self, now: Time, log: &mut SentLog) -> TimeoutOutcome {
        if self.silent {
            return TimeoutOutcome::Nothing;
        }
        let mut due = self.timers.take_due(Timer::GiveUp, now);
        if due && !self.owes_question(now) {
            // RFC 9293 §3.8.3: the caller closes the connection.
            self.timers.stop_all();
            self.silent = true;
            return TimeoutOutcome::Silent;
        }
        due |= self.timers.take_due(Timer::Hold, now);
        if self.timers.take_due(Timer::Override, now) {
            self.overridden = true;
            due = true;
        }
        if self.timers.take_due(Timer::Persist, now) {
            let wait = self.persist.expired(self.rtt.base_timeout());
            self.timers.set(Timer::Persist, now + wait);
            due = true;
        }
        if self.timers.take_due(Timer::Reorder, now) {
            self.detect_losses(now, log);
            due = true;
        }
        if self.timers.take_due(Timer::TailProbe, now) {
            // RFC 8985 §7.3: the RTO is armed again, whether a probe leaves or not.
            self.timers.set(Timer::Retransmit, now + self.rtt.timeout());
            self.tail_probe = self.may_probe_tail();
            due = true;
        }
        if self.timers.take_due(Timer::Retransmit, now) {
            self.retransmission_timeout(now, log);
            due = true;
        }
        if due { TimeoutOutcome::Poll } else { TimeoutOutcome::Nothing }
    }

    /// Whether the client was not asked when it should have been, as nothing could leave: R2 begins anew
    /// with what leaves next. Silence counts only after a question (RFC 9293 §3.8.3).
    fn owes_question(&self, now: Time) -> bool {
        let (timer, waits) = match self.persist.is_active() {
            true => (Timer::Persist, self.persist.is_due()),
            false => (Timer::Retransmit, self.urgent),
        };
        waits || self.timers.get(timer).is_some_and(|due| due <= now)
    }

    /// A question leaves that the client has R2 to answer.
    pub(super) fn asked(&mut self, now: Time) {
        if !self.timers.is_set(Timer::GiveUp) {
            self.timers.set(Timer::GiveUp, now + R2);
        }
    }

    /// A view of the sender.
    #[must_use]
    pub fn report(&self) -> SenderReport {
        SenderReport {
            srtt: self.rtt.smoothed(),
            rto: self.rtt.timeout(),
            cwnd_bytes: self.control.window(),
            ssthresh_bytes: self.control.threshold(),
            client_window_bytes: self.window.size(),
            in_flight_bytes: self.board.in_flight(),
            retransmissions: self.retransmissions.into(),
            probes: self.probes.into(),
            timeouts: self.timeouts.into(),
            state: match self.phase {
                _ if self.silent => SenderState::Silent,
                _ if self.persist.is_active() => SenderState::Persist,
                Phase::Open => SenderState::Open,
                Phase::Fast { .. } => SenderState::Recovery,
                Phase::Timeout { .. } => SenderState::Timeout,
            },
        }
    }

    /// The sequence number that the client's last ACK will have.
    pub(super) fn last(&self) -> SeqNum {
        self.end + u32::from(self.closed)
    }

    /// Bytes believed to be in the network (RFC 6675 §2 "pipe").
    pub(super) fn pipe(&self) -> u32 {
        self.board.in_flight().saturating_sub(if self.sack { 0 } else { self.duplicates.credit() })
    }

    /// A new loss or a mark: the window is reduced, once a window of data.
    pub(super) fn reduce(&mut self, signal: Signal) {
        self.control.congested(self.mss, signal, self.nxt.bytes_since(self.una));
        self.reduced_until = Some(self.nxt);
        self.cwr = self.ecn;
    }

    /// Fast recovery begins (RFC 5681 §3.2, RFC 8985 §6.2).
    pub(super) fn recover(&mut self, now: Time) {
        // Not twice for one window of data (RFC 3168 §6.1.2).
        if self.reduced_until.is_none_or(|until| !self.una.before(until)) {
            self.reduce(Signal::Loss);
        }
        self.phase = Phase::Fast { recover: self.nxt, reduced_at: now };
        self.duplicates.begin(self.nxt);
        self.urgent = true;
        self.tail_probe = false;
        self.timers.stop(Timer::TailProbe);
    }

    /// RACK looks at what is in flight, and what it finds is answered.
    pub(super) fn detect_losses(&mut self, now: Time, log: &mut SentLog) {
        let recovering = !self.phase.is_open();
        let losses: Losses = self.rack.detect(now, &mut self.board, log, &self.rtt, recovering, self.mss);
        match losses.recheck {
            Some(at) if !self.persist.is_active() => self.timers.set(Timer::Reorder, at),
            _ => self.timers.stop(Timer::Reorder),
        }
        if !losses.any {
            return;
        }
        match &mut self.phase {
            Phase::Open => self.recover(now),
            // RFC 5681 §4.3: the loss of a retransmission is a second sign.
            Phase::Fast { reduced_at, .. } if losses.again >= Some(*reduced_at) => {
                *reduced_at = now;
                self.reduce(Signal::Loss);
            }
            Phase::Fast { .. } | Phase::Timeout { .. } => {}
        }
    }

    /// RFC 6298 §5.4 to §5.6, RFC 5681 §3.1, RFC 8985 §6.3.
    fn retransmission_timeout(&mut self, now: Time, log: &mut SentLog) {
        let Some(head) = self.board.head() else { return };
        self.timeouts = self.timeouts.saturating_add(1);
        if log.get(head).fate == Fate::Sacked {
            // The cumulative ACK stops where the client said to have bytes: it has reneged (RFC 2018 §8).
            self.board.renege(log);
        }
        if self.sack {
            self.rack.lose_on_timeout(now, &mut self.board, log, &self.rtt, self.mss);
        } else {
            self.board.lose_all(log);
        }
        let again = matches!(self.phase, Phase::Timeout { head, .. } if head == self.una);
        if again {
            // RFC 5681 §3.1: the threshold is held when the same segment times out again.
            self.control.timed_out_again(self.mss);
        } else {
            self.reduce(Signal::Timeout);
        }
        self.phase = Phase::Timeout { recover: self.nxt, head: self.una };
        self.duplicates.timeout(self.nxt);
        self.rack.forget_probe();
        self.tail_probe = false;
        self.timers.stop(Timer::TailProbe);
        self.timers.stop(Timer::Reorder);
        self.rtt.back_off();
        self.timers.set(Timer::Retransmit, now + self.rtt.timeout());
        self.urgent = true;
    }

    /// Probing begins when the client's window is zero and something waits, and ends when it is not
    /// (RFC 9293 §3.8.6.1). While it goes on, no other timer runs.
    pub(super) fn check_persist(&mut self, now: Time, log: &mut SentLog) {
        let closed = self.window.is_zero() && !self.is_done();
        if closed && !self.persist.is_active() {
            self.timers.stop_all();
            self.tail_probe = false;
            self.overridden = false;
            let wait = self.persist.begin(self.rtt.base_timeout());
            self.timers.set(Timer::Persist, now + wait);
        } else if !closed && self.persist.is_active() {
            self.timers.stop_all();
            if self.persist.end() {
                // What was in flight is older than an RTO: the closed window has not taken it.
                self.board.lose_all(log);
            }
            if !self.board.is_empty() {
                self.timers.set(Timer::Retransmit, now + self.rtt.timeout());
            }
        }
    }

    /// RFC 8985 §7.2 and §7.3.
    pub(super) fn may_probe_tail(&self) -> bool {
        self.sack
            && self.phase.is_open()
            && self.board.in_flight() > 0
            && self.board.sacked() == 0
            && self.board.lost() == 0
            && self.rack.may_probe()
    }

    /// Arms the tail loss probe after new data was sent or confirmed (RFC 8985 §7.2).
    pub(super) fn arm_tail_probe(&mut self, now: Time) {
        match self.timers.get(Timer::Retransmit) {
            Some(rto_at) if self.may_probe_tail() => {
                let lone = self.nxt.bytes_since(self.una) <= self.mss;
                self.timers.set(Timer::TailProbe, self.rack.probe_timeout(now, &self.rtt, lone, rto_at));
            }
            _ => self.timers.stop(Timer::TailProbe),
        }
    }
}
