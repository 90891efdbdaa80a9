//! Loss detection by time: RACK, and the tail loss probe (RFC 8985). Used where SACK was negotiated.

use std::time::Duration;

use super::rto::{RoundTrip, nanos};
use super::scoreboard::{Delivered, Scoreboard};
use super::sent_log::SentLog;
use crate::{SeqNum, Time};

/// RFC 8985 §5 (DupThresh of RFC 6675 §2).
const DUP_THRESH: u32 = 3;
/// Recoveries without a DSACK after which the reordering window is small again (RFC 8985 §6.2 step 4).
const CALM_RECOVERIES: u8 = 16;
/// TLP.max_ack_delay: how long a client may delay the ACK of a lone segment (RFC 8985 §7.2). Common
/// systems delay it 40 to 50 ms; a probe too early costs one segment.
const MAX_ACK_DELAY: Duration = Duration::from_millis(50);
/// The least probe timeout: below it the client's scheduler and not the path decides when an ACK comes, and
/// a probe of each burst would be needless (RFC 8985 §7.2 leaves it open).
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(10);

/// The state of RACK for one flow (RFC 8985 §5.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Rack {
    /// RACK.xmit_ts, RACK.end_seq and RACK.rtt in nanoseconds: of the segment sent last of those delivered.
    sent_at: Time,
    end: SeqNum,
    rtt: u64,
    /// RACK.fack.
    highest: SeqNum,
    /// RACK.dsack_round, while there is one.
    dsack_round: SeqNum,
    in_dsack_round: bool,
    /// RACK.reo_wnd_mult.
    multiplier: u8,
    /// RACK.reo_wnd_persist.
    persist: u8,
    reordering_seen: bool,
    /// TLP.end_seq, while a probe is on its way.
    probe_end: SeqNum,
    probing: bool,
    /// TLP.is_retrans.
    probe_again: bool,
    /// An RTT was measured since the last probe (RFC 8985 §7.3).
    measured: bool,
}

/// What RACK found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    /// Some segment is lost that was not before.
    pub(super) any: bool,
    /// Of those that had been sent again: when the latest was.
    pub(super) again: Option<Time>,
    /// When to look again.
    pub(super) recheck: Option<Time>,
}

impl Rack {
    pub(super) const fn new(start: SeqNum) -> Self {
        Self {
            sent_at: Time::ZERO,
            end: start,
            rtt: 0,
            highest: start,
            dsack_round: start,
            in_dsack_round: false,
            multiplier: 1,
            persist: CALM_RECOVERIES,
            reordering_seen: false,
            probe_end: start,
            probing: false,
            probe_again: false,
            measured: true,
        }
    }

    /// A segment was delivered: steps 2 and 3 of RFC 8985 §6.2.
    pub(super) fn delivered(&mut self, now: Time, segment: &Delivered, min_rtt: Duration) {
        let rtt = now.since(segment.sent_at);
        // The ACK may be of the first transmission when it comes that soon.
        let doubtful = segment.again && rtt < min_rtt;
        if !doubtful && sent_after(segment.sent_at, segment.end, self.sent_at, self.end) {
            (self.sent_at, self.end, self.rtt) = (segment.sent_at, segment.end, nanos(rtt));
        }
        if segment.end.after(self.highest) {
            self.highest = segment.end;
        } else if segment.end.before(self.highest) && !segment.again {
            self.reordering_seen = true;
        }
    }

    fn rtt(&self) -> Duration {
        Duration::from_nanos(self.rtt)
    }

    /// An RTT was measured.
    pub(super) fn measured(&mut self) {
        self.measured = true;
    }

    /// Step 4 of RFC 8985 §6.2: a DSACK says that a retransmission was needless.
    pub(super) fn dsack(&mut self, una: SeqNum, nxt: SeqNum, seen: bool) {
        if !una.before(self.dsack_round) {
            self.in_dsack_round = false;
        }
        if seen && !self.in_dsack_round {
            (self.dsack_round, self.in_dsack_round) = (nxt, true);
            self.multiplier = self.multiplier.saturating_add(1);
            self.persist = CALM_RECOVERIES;
        }
    }

    /// A recovery ended (step 4 of RFC 8985 §6.2).
    pub(super) fn recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.multiplier = 1;
        }
    }

    /// RACK_update_reo_wnd (RFC 8985 §6.2). Instead of the SACKed segments their bytes are counted, as
    /// RFC 6675 §4 (IsLost) does.
    fn reordering_window(&self, rtt: &RoundTrip, recovering: bool, sacked: u32, mss: u32) -> Duration {
        if !self.reordering_seen && (recovering || sacked > (DUP_THRESH - 1) * mss) {
            return Duration::ZERO;
        }
        let window = rtt.minimum() / 4 * u32::from(self.multiplier);
        window.min(rtt.smoothed().unwrap_or(Duration::ZERO))
    }

    /// Step 5 of RFC 8985 §6.2. Looks at the segments that are found lost, and one more.
    pub(super) fn detect(
        &self,
        now: Time,
        board: &mut Scoreboard,
        log: &mut SentLog,
        rtt: &RoundTrip,
        recovering: bool,
        mss: u32,
    ) -> Losses {
        let mut losses = Losses::default();
        let window = self.reordering_window(rtt, recovering, board.sacked(), mss);
        while let Some(index) = board.oldest() {
            let record = *log.get(index);
            if !sent_after(self.sent_at, self.end, record.sent_at, record.end()) {
                break;
            }
            if record.sent_at + self.rtt() + window > now {
                // Those behind it were sent later, at the latest with the one delivered.
                losses.recheck =
                    Some((self.sent_at + self.rtt() + window).max(now + Duration::from_nanos(1)));
                break;
            }
            board.lose(log, index);
            losses.any = true;
            if record.again {
                losses.again = losses.again.max(Some(record.sent_at));
            }
        }
        losses
    }

    /// RACK_mark_losses_on_RTO (RFC 8985 §6.3). A record each.
    pub(super) fn lose_on_timeout(
        &self,
        now: Time,
        board: &mut Scoreboard,
        log: &mut SentLog,
        rtt: &RoundTrip,
        mss: u32,
    ) {
        let window = self.reordering_window(rtt, true, board.sacked(), mss);
        let head = board.head().map(|index| log.get(index).seq);
        board.lose_where(log, |record| {
            Some(record.seq) == head || record.sent_at + self.rtt() + window <= now
        });
    }

    /// TLP_calc_PTO (RFC 8985 §7.2); `rto_at` is when the RTO is due.
    pub(super) fn probe_timeout(&self, now: Time, rtt: &RoundTrip, lone: bool, rto_at: Time) -> Time {
        let timeout = match rtt.smoothed() {
            Some(srtt) => {
                let delay = if lone { MAX_ACK_DELAY } else { Duration::ZERO };
                (2 * srtt + delay).max(MIN_PROBE_TIMEOUT)
            }
            None => Duration::from_secs(1),
        };
        (now + timeout).min(rto_at)
    }

    /// Whether a probe may be sent: none is on its way, and an RTT was measured since (RFC 8985 §7.3).
    pub(super) fn may_probe(&self) -> bool {
        !self.probing && self.measured
    }

    /// A probe leaves (RFC 8985 §7.3).
    pub(super) fn probed(&mut self, nxt: SeqNum, again: bool) {
        (self.probe_end, self.probing) = (nxt, true);
        self.probe_again = again;
        self.measured = false;
    }

    /// TLP_process_ack (RFC 8985 §7.4): whether the probe repaired a loss, to which congestion control
    /// has to respond.
    pub(super) fn probe_repaired(&mut self, ack: SeqNum, dsack: bool, bare_duplicate: bool) -> bool {
        if !self.probing || ack.before(self.probe_end) {
            return false;
        }
        let repaired = self.probe_again && !dsack && ack.after(self.probe_end);
        let over = !self.probe_again || dsack || bare_duplicate;
        self.probing = !(repaired || over);
        repaired
    }

    /// A timeout ends the probe's episode.
    pub(super) fn forget_probe(&mut self) {
        self.probing = false;
    }
}

/// RACK_sent_after (RFC 8985 §6.2 step 2).
fn sent_after(sent_at: Time, end: SeqNum, than: Time, than_end: SeqNum) -> bool {
    sent_at > than || (sent_at == than && end.after(than_end))
}
