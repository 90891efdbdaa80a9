//! Joins the capture of a host's wire with its audit of frames and the commit log (OC-1).
//!
//! A frame is known by the hash of its beginning; the k-th of equal frames on the wire is taken for
//! the k-th of them in the audit. It left too early if its epoch was committed after it was captured,
//! or never. A capture is later than the sending, and a commit is logged before it is answered, so a
//! rightful frame is never called early.
//!
//! A record is written before its frame can leave: when it is taken from the guest, or, for one that
//! the dataplane makes in the guest's name (a segment of the client leg, sent again with the same bytes
//! as often as it takes), when it is emitted: each emission has a record of its own, with the epoch of
//! its last byte. So a frame on the wire without a record left by a way that nobody watches, and counts
//! as early too: more equal ones than there are records, or one before its record was written. Only
//! announcements, which are no guest's output, need none.
//!
//! Where frames were held and then dropped, a later equal one is measured by the earlier one's epoch,
//! which can hide an early one: `ambiguous` says for how many frames the counts differ.

use crate::audit::{AuditRecord, CommitLog, frame_hash};
use crate::pcap::{CapturedFrame, Pcap, PcapError};
use crate::report::Summary;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::collections::HashMap;

/// A frame that left before its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EarlyFrame {
    /// The epoch in which the guest sent it; none where there is no record of it.
    pub epoch: Option<u64>,
    /// The place in the audit of what it was measured by.
    pub audit_index: Option<usize>,
    /// When it was captured.
    pub captured_realtime_ns: u64,
    /// When its epoch was committed, if it was.
    pub committed_realtime_ns: Option<u64>,
}

/// What the join found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct JoinReport {
    /// Frames in the capture.
    pub frames_captured: u64,
    /// Of these, frames that the audit knows.
    pub frames_matched: u64,
    /// Of these, frames that had to wait for their commit.
    pub frames_protected: u64,
    /// Announcements in the capture without a record: the appliance's own.
    pub frames_announced: u64,
    /// All others without a record, or before it was written. These are among the early ones.
    pub frames_unaccounted: u64,
    /// Protected frames that left before the commit of their epoch, and frames without a record. Must be 0.
    pub frames_released_early: u64,
    /// Frames of the audit that never left.
    pub frames_never_captured: u64,
    /// Frames of the audit whose hash occurs more than once there, and on the wire another number of
    /// times.
    pub frames_ambiguous: u64,
    /// From the commit of its epoch to the capture of a frame, in microseconds.
    pub release_us: Summary,
    /// The first frames that left early.
    pub early: Vec<EarlyFrame>,
}

const EARLY_NAMED: usize = 16;
/// A record may seem later than its frame by that: two clocks are read one after the other.
const CLOCKS_APART_NS: u64 = 1_000_000;
/// Delays kept for the summary; of a longer capture the first ones.
const MOST_DELAYS: usize = 4 << 20;

/// Joins a capture with the audit and the commits of the host that sent it.
///
/// On the machine that made them, within its uptime: the audit's clock is compared with the capture's.
pub fn join(audit: &[AuditRecord], commits: &CommitLog, capture: &mut Pcap) -> Result<JoinReport, PcapError> {
    let mut join = Join::new(audit, commits, realtime_ahead_ns());
    while let Some(frame) = capture.next_frame()? {
        join.take(&frame);
    }
    Ok(join.finish())
}

/// By how much CLOCK_REALTIME is ahead of CLOCK_MONOTONIC.
fn realtime_ahead_ns() -> u64 {
    let nanoseconds = |clock| {
        clock_gettime(clock).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
    };
    nanoseconds(ClockId::CLOCK_REALTIME).saturating_sub(nanoseconds(ClockId::CLOCK_MONOTONIC))
}

/// Whether a frame announces an address or a MAC (RARP, an ARP announcement, an unsolicited neighbour
/// advertisement): the appliance says these itself when a guest has come to it.
fn is_announcement(frame: &[u8]) -> bool {
    const TO_ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ADVERTISEMENT: u8 = 136;
    let mut at = 12;
    while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    let body = frame.get(at + 2..).unwrap_or_default();
    match frame.get(at..at + 2) {
        Some([0x80, 0x35]) => true,
        // Sender's and target's address are the same.
        Some([0x08, 0x06]) => body.get(14..18).is_some_and(|sender| body.get(24..28) == Some(sender)),
        Some([0x86, 0xdd]) => frame.starts_with(&TO_ALL_NODES) && body.get(40) == Some(&ADVERTISEMENT),
        _ => false,
    }
}

/// The places in the audit of one hash, and how many of them were met on the wire. Chained through
/// `Join::next_equal`, since most frames are unlike all others.
struct Equal {
    last: usize,
    /// The next one to be met; none when all were.
    next: Option<usize>,
    in_audit: u64,
    on_wire: u64,
}

struct Join<'a> {
    audit: &'a [AuditRecord],
    commits: &'a CommitLog,
    realtime_ahead_ns: u64,
    equal: HashMap<u64, Equal>,
    next_equal: Vec<Option<usize>>,
    report: JoinReport,
    delays_us: Vec<f64>,
}

impl<'a> Join<'a> {
    fn new(audit: &'a [AuditRecord], commits: &'a CommitLog, realtime_ahead_ns: u64) -> Self {
        let mut equal: HashMap<u64, Equal> = HashMap::with_capacity(audit.len());
        let mut next_equal = vec![None; audit.len()];
        for (index, record) in audit.iter().enumerate() {
            equal
                .entry(record.hash)
                .and_modify(|equal| {
                    next_equal[equal.last] = Some(index);
                    equal.last = index;
                    equal.in_audit += 1;
                })
                .or_insert(Equal { last: index, next: Some(index), in_audit: 1, on_wire: 0 });
        }
        Self {
            audit,
            commits,
            realtime_ahead_ns,
            equal,
            next_equal,
            report: JoinReport::default(),
            delays_us: Vec::new(),
        }
    }

    fn take(&mut self, frame: &CapturedFrame) {
        self.report.frames_captured += 1;
        let Some(index) = self.record_of(frame) else {
            if is_announcement(&frame.bytes) {
                self.report.frames_announced += 1;
            } else {
                self.report.frames_unaccounted += 1;
                self.early(frame, None, None);
            }
            return;
        };
        self.report.frames_matched += 1;
        let record = &self.audit[index];
        let written = record.monotonic_ns + self.realtime_ahead_ns;
        if record.monotonic_ns > 0 && written > frame.realtime_ns + CLOCKS_APART_NS {
            self.report.frames_unaccounted += 1;
            self.early(frame, Some(index), None);
            return;
        }
        if !record.protected {
            return;
        }
        self.report.frames_protected += 1;
        match self.commits.committed_at(record.epoch) {
            Some(at) if at <= frame.realtime_ns => {
                if self.delays_us.len() < MOST_DELAYS {
                    self.delays_us.push((frame.realtime_ns - at) as f64 / 1e3);
                }
            }
            committed => self.early(frame, Some(index), committed),
        }
    }

    /// The record of the next of equal frames; none when all of them were met already.
    fn record_of(&mut self, frame: &CapturedFrame) -> Option<usize> {
        let equal = self.equal.get_mut(&frame_hash(&frame.bytes))?;
        equal.on_wire += 1;
        let index = equal.next?;
        equal.next = self.next_equal[index];
        Some(index)
    }

    fn early(&mut self, frame: &CapturedFrame, index: Option<usize>, committed: Option<u64>) {
        self.report.frames_released_early += 1;
        if self.report.early.len() < EARLY_NAMED {
            self.report.early.push(EarlyFrame {
                epoch: index.map(|index| self.audit[index].epoch),
                audit_index: index,
                captured_realtime_ns: frame.realtime_ns,
                committed_realtime_ns: committed,
            });
        }
    }

    fn finish(mut self) -> JoinReport {
        for equal in self.equal.values() {
            self.report.frames_never_captured += equal.in_audit.saturating_sub(equal.on_wire);
            if equal.in_audit > 1 && equal.in_audit != equal.on_wire {
                self.report.frames_ambiguous += equal.in_audit;
            }
        }
        self.report.release_us = Summary::of(&self.delays_us);
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcap::encode;
    use std::fs;

    /// Frame `n` of the guest: 300 bytes, of which 256 are hashed.
    fn bytes(n: u8) -> Vec<u8> {
        vec![n; 300]
    }

    fn sent(n: u8, epoch: u64) -> AuditRecord {
        AuditRecord {
            hash: frame_hash(&bytes(n)),
            epoch,
            len: 300,
            port: 0,
            protected: true,
            monotonic_ns: 0,
        }
    }

    fn captured(n: u8, realtime_ns: u64) -> CapturedFrame {
        CapturedFrame { realtime_ns, len: 300, bytes: bytes(n)[..256].to_vec() }
    }

    fn report(audit: &[AuditRecord], commits: &str, frames: &[CapturedFrame]) -> JoinReport {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("capture");
        fs::write(&path, encode(frames)).expect("written");
        let log = CommitLog::parse(commits).expect("a log");
        join(audit, &log, &mut Pcap::open(&path).expect("opened")).expect("joined")
    }

    const COMMITS: &str = "1 1 1000\n2 1 2000\n";

    #[test]
    fn frames_after_their_commit_are_in_order() {
        let audit = [sent(1, 1), sent(2, 2), sent(3, 3)];
        let found = report(&audit, COMMITS, &[captured(1, 1000), captured(2, 2500)]);
        assert_eq!(found.frames_released_early, 0);
        assert_eq!((found.frames_matched, found.frames_unaccounted), (2, 0));
        assert_eq!(found.frames_never_captured, 1);
        assert_eq!(found.release_us.max, 0.5);
    }

    /// OC-1: the join that watches over it must see a frame that left a nanosecond too early.
    #[test]
    fn a_doctored_early_frame_is_found() {
        let found = report(&[sent(1, 1), sent(2, 2)], COMMITS, &[captured(1, 1000), captured(2, 1999)]);
        assert_eq!(found.frames_released_early, 1);
        assert_eq!(found.early[0].epoch, Some(2));
        assert_eq!(found.early[0].committed_realtime_ns, Some(2000));
    }

    /// OC-1: an epoch that nobody confirmed must not be on the wire at all.
    #[test]
    fn a_frame_of_an_epoch_without_commit_is_early_whenever_it_left() {
        let found = report(&[sent(3, 3)], COMMITS, &[captured(3, u64::MAX / 2)]);
        assert_eq!(found.frames_released_early, 1);
        assert_eq!(found.early[0].committed_realtime_ns, None);
    }

    /// OC-1: equal frames are told apart by their order.
    #[test]
    fn the_second_of_two_equal_frames_is_measured_by_its_own_epoch() {
        let audit = [sent(1, 1), sent(1, 2)];
        let found = report(&audit, COMMITS, &[captured(1, 1500), captured(1, 1600)]);
        assert_eq!(found.frames_released_early, 1);
        assert_eq!(found.early[0].audit_index, Some(1));
        let found = report(&audit, COMMITS, &[captured(1, 1500), captured(1, 2000)]);
        assert_eq!(found.frames_released_early, 0);
    }

    /// OC-1: a segment that is sent again with the same bytes has a record for each time, with the epoch of
    /// its last byte, which was committed before the first.
    #[test]
    fn a_frame_sent_again_is_in_order_each_time_it_was_recorded() {
        let audit = [sent(1, 1), sent(2, 2), sent(1, 1), sent(1, 1)];
        let frames = [captured(1, 1000), captured(2, 2100), captured(1, 2200), captured(1, 9000)];
        let found = report(&audit, COMMITS, &frames);
        assert_eq!((found.frames_matched, found.frames_protected, found.frames_released_early), (4, 4, 0));
        assert_eq!((found.frames_never_captured, found.frames_ambiguous), (0, 0));
    }

    /// OC-1: what leaves without a record left by a way that nobody watches, be it unlike all others or the
    /// third of two.
    #[test]
    fn a_frame_without_a_record_is_early() {
        let found = report(&[sent(1, 1)], COMMITS, &[captured(1, 1000), captured(9, 5000)]);
        assert_eq!((found.frames_unaccounted, found.frames_released_early), (1, 1));
        assert_eq!((found.early[0].epoch, found.early[0].audit_index), (None, None));
        let again = [captured(1, 1000), captured(1, 1100), captured(1, 1200)];
        let found = report(&[sent(1, 1), sent(1, 1)], COMMITS, &again);
        assert_eq!((found.frames_unaccounted, found.frames_released_early), (1, 1));
    }

    /// OC-1: a record that is written once the frame has left is none, though the epoch was committed.
    #[test]
    fn a_frame_before_its_record_is_early() {
        let mut audit = [sent(1, 1), sent(1, 1)];
        let now = 10_000_000_000;
        let written = |at: u64| at.saturating_sub(realtime_ahead_ns());
        let base = realtime_ahead_ns() + now;
        audit[0].monotonic_ns = written(base);
        audit[1].monotonic_ns = written(base + 50 * CLOCKS_APART_NS);
        let found = report(&audit, COMMITS, &[captured(1, base), captured(1, base + 50 * CLOCKS_APART_NS)]);
        assert_eq!(found.frames_released_early, 0, "{found:?}");
        let found = report(&audit, COMMITS, &[captured(1, base), captured(1, base + 10 * CLOCKS_APART_NS)]);
        assert_eq!((found.frames_unaccounted, found.frames_released_early), (1, 1), "{found:?}");
        assert_eq!(found.early[0].audit_index, Some(1));
    }

    /// FO-1: a host to which a guest came announces it; these frames are its own.
    #[test]
    fn announcements_need_no_record() {
        let arp = |sender: u8, target: u8| {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
            frame.extend([10, 0, 0, sender, 0, 0, 0, 0, 0, 0, 10, 0, 0, target]);
            frame.resize(60, 0);
            frame
        };
        let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0x00, 0, 7], &frame[12..]].concat();
        let mut rarp = arp(0, 1);
        rarp[12..14].copy_from_slice(&[0x80, 0x35]);
        let mut advertisement = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        advertisement.resize(86, 0);
        advertisement[54] = 136;
        let mut unicast = advertisement.clone();
        unicast[0] = 2;
        let cases = [
            (arp(1, 1), true),
            (tagged(&arp(1, 1)), true),
            (rarp, true),
            (advertisement, true),
            (arp(1, 2), false),
            (unicast, false),
            (vec![0; 5], false),
        ];
        for (frame, may) in cases {
            let captured = CapturedFrame { realtime_ns: 5, len: frame.len() as u32, bytes: frame };
            let found = report(&[], "", std::slice::from_ref(&captured));
            assert_eq!(found.frames_announced == 1, may, "{captured:?}");
            assert_eq!(found.frames_released_early == 0, may, "{captured:?}");
        }
    }

    #[test]
    fn unprotected_frames_may_leave_at_once() {
        let mut audit = [sent(1, 7)];
        audit[0].protected = false;
        let found = report(&audit, "", &[captured(1, 5)]);
        assert_eq!((found.frames_released_early, found.frames_matched), (0, 1));
    }
}
