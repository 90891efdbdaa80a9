//! Joins the capture of a host's wire with its audit of frames and the commit log (OC-1).
//!
//! A frame is known by the hash of its beginning; the k-th of equal frames on the wire is taken for
//! the k-th of them in the audit. It left too early if its epoch was committed after it was captured,
//! or never. A capture is later than the sending, and a commit is logged before it is answered, so a
//! rightful frame is never called early.
//!
//! Where frames were held and then dropped, a later equal one is measured by the earlier one's epoch,
//! which can hide an early one: `ambiguous` says for how many frames the counts differ.

use crate::audit::{AuditRecord, CommitLog, frame_hash};
use crate::pcap::{CapturedFrame, Pcap, PcapError};
use crate::report::Summary;
use serde::Serialize;
use std::collections::HashMap;

/// A frame that left before its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EarlyFrame {
    /// The epoch in which the guest sent it.
    pub epoch: u64,
    /// Its place in the audit.
    pub audit_index: usize,
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
    /// Frames in the capture that no guest sent, as far as the audit knows: the appliance's own.
    pub frames_unmatched: u64,
    /// Protected frames that left before the commit of their epoch. Must be 0.
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
/// Delays kept for the summary; of a longer capture the first ones.
const MOST_DELAYS: usize = 4 << 20;

/// Joins a capture with the audit and the commits of the host that sent it.
pub fn join(audit: &[AuditRecord], commits: &CommitLog, capture: &mut Pcap) -> Result<JoinReport, PcapError> {
    let mut join = Join::new(audit, commits);
    while let Some(frame) = capture.next_frame()? {
        join.take(&frame);
    }
    Ok(join.finish())
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
    equal: HashMap<u64, Equal>,
    next_equal: Vec<Option<usize>>,
    report: JoinReport,
    delays_us: Vec<f64>,
}

impl<'a> Join<'a> {
    fn new(audit: &'a [AuditRecord], commits: &'a CommitLog) -> Self {
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
        Self { audit, commits, equal, next_equal, report: JoinReport::default(), delays_us: Vec::new() }
    }

    fn take(&mut self, frame: &CapturedFrame) {
        self.report.frames_captured += 1;
        let Some(equal) = self.equal.get_mut(&frame_hash(&frame.bytes)) else {
            self.report.frames_unmatched += 1;
            return;
        };
        equal.on_wire += 1;
        // More of them on the wire than in the audit: the surplus is measured by the last one.
        let index = equal.next.unwrap_or(equal.last);
        equal.next = equal.next.and_then(|index| self.next_equal[index]);
        self.report.frames_matched += 1;
        let record = &self.audit[index];
        if !record.protected {
            return;
        }
        self.report.frames_protected += 1;
        let committed = self.commits.committed_at(record.epoch);
        match committed {
            Some(at) if at <= frame.realtime_ns => {
                if self.delays_us.len() < MOST_DELAYS {
                    self.delays_us.push((frame.realtime_ns - at) as f64 / 1e3);
                }
            }
            _ => {
                self.report.frames_released_early += 1;
                if self.report.early.len() < EARLY_NAMED {
                    self.report.early.push(EarlyFrame {
                        epoch: record.epoch,
                        audit_index: index,
                        captured_realtime_ns: frame.realtime_ns,
                        committed_realtime_ns: committed,
                    });
                }
            }
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
        let found = report(&audit, COMMITS, &[captured(1, 1000), captured(2, 2500), captured(9, 2600)]);
        assert_eq!(found.frames_released_early, 0);
        assert_eq!((found.frames_matched, found.frames_unmatched), (2, 1));
        assert_eq!(found.frames_never_captured, 1);
        assert_eq!(found.release_us.max, 0.5);
    }

    /// OC-1: the join that watches over it must see a frame that left a nanosecond too early.
    #[test]
    fn a_doctored_early_frame_is_found() {
        let found = report(&[sent(1, 1), sent(2, 2)], COMMITS, &[captured(1, 1000), captured(2, 1999)]);
        assert_eq!(found.frames_released_early, 1);
        assert_eq!(found.early[0].epoch, 2);
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
        assert_eq!(found.early[0].audit_index, 1);
        let found = report(&audit, COMMITS, &[captured(1, 1500), captured(1, 2000)]);
        assert_eq!(found.frames_released_early, 0);
    }

    #[test]
    fn unprotected_frames_may_leave_at_once() {
        let mut audit = [sent(1, 7)];
        audit[0].protected = false;
        let found = report(&audit, "", &[captured(1, 5)]);
        assert_eq!((found.frames_released_early, found.frames_matched), (0, 1));
    }
}
