//! When a guest's output had to be held, by the word of others than the host that held it (OC-1).
//!
//! The flag of an audit's record is the dataplane's own word: one that forgot to hold says of itself that it
//! need not have. Here the arbiter and the backup are asked instead. A grant that is not solo says that the
//! backup may ask for the machine; once the backup has committed an epoch in that term, every frame of the guest
//! is held until the next grant, whoever gets it.
//!
//! ```text
//!   grants    | solo        | not solo                               | solo
//!   commits   |             |        |first     |          |         |
//!   held      |             | maybe  |<--------- every frame ------->|
//! ```

use crate::audit::{AuditRecord, CommitLog};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the arbiter granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The term.
    pub term: u64,
    /// Name of the host that holds it.
    pub holder: String,
    /// Whether that host may transmit without a backup that confirms.
    pub solo: bool,
    /// CLOCK_REALTIME when it was granted, at the latest.
    pub granted_realtime_ns: u64,
}

#[derive(Deserialize)]
struct Written {
    term: u64,
    holder: String,
    solo: bool,
}

/// Two clocks are read one after the other.
const CLOCKS_APART_NS: u64 = 1_000_000;

/// The arbiter's grants of one VM, of which it has a folder, in the order of their terms.
pub fn read_grants(folder: &Path) -> io::Result<Vec<Grant>> {
    let mut grants = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // What is not linked to its name yet was not granted.
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("term-")) {
            continue;
        }
        let Written { term, holder, solo } = serde_json::from_slice(&fs::read(&path)?)?;
        // The link to its name, which is the grant, is the file's last change.
        let meta = path.metadata()?;
        let granted_realtime_ns = meta.ctime() as u64 * 1_000_000_000 + meta.ctime_nsec() as u64;
        grants.push(Grant { term, holder, solo, granted_realtime_ns });
    }
    grants.sort_by_key(|grant| grant.term);
    Ok(grants)
}

/// A time in which a host had to hold its guest's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSpan {
    /// The term in which the backup committed meanwhile.
    pub term: u64,
    /// CLOCK_REALTIME in nanoseconds.
    pub time: Range<u64>,
}

impl HeldSpan {
    /// Whether a record was written then, for certain.
    fn covers(&self, record: &AuditRecord, realtime_ahead_ns: u64) -> bool {
        let sure =
            self.time.start.saturating_add(CLOCKS_APART_NS)..self.time.end.saturating_sub(CLOCKS_APART_NS);
        sure.contains(&(record.monotonic_ns + realtime_ahead_ns))
    }
}

/// When `host` had to hold its guest's output, in order. `commits` is the log of its backup.
pub fn held_spans(host: &str, grants: &[Grant], commits: &CommitLog) -> Vec<HeldSpan> {
    let span = |(place, grant): (usize, &Grant)| {
        let term = grant.term;
        let first = commits.commits().iter().find(|commit| commit.term == term)?;
        let end = grants.get(place + 1).map_or(u64::MAX, |next| next.granted_realtime_ns);
        Some(HeldSpan { term, time: first.realtime_ns..end }).filter(|span| !span.time.is_empty())
    };
    let held = |(_, grant): &(usize, &Grant)| grant.holder == host && !grant.solo;
    grants.iter().enumerate().filter(held).filter_map(span).collect()
}

/// Places of the records that say of a frame of these times that it need not be held.
pub fn unheld(audit: &[AuditRecord], spans: &[HeldSpan], realtime_ahead_ns: u64) -> Vec<usize> {
    places(audit, |record| {
        !record.protected && spans.iter().any(|span| span.covers(record, realtime_ahead_ns))
    })
}

/// Places of the records of these times that name an epoch which had been committed before the guest sent the
/// frame: such a frame waited for nothing. Of records that were written when a frame was taken from the guest.
pub fn misdated(
    audit: &[AuditRecord],
    spans: &[HeldSpan],
    commits: &CommitLog,
    realtime_ahead_ns: u64,
) -> Vec<usize> {
    // A later term may count an epoch again.
    let committed: HashMap<(u64, u64), u64> =
        commits.commits().iter().map(|commit| ((commit.term, commit.epoch), commit.realtime_ns)).collect();
    places(audit, |record| {
        let at = record.monotonic_ns + realtime_ahead_ns;
        let span = spans.iter().find(|span| span.covers(record, realtime_ahead_ns));
        let committed = span.and_then(|span| committed.get(&(span.term, record.epoch)));
        record.protected && committed.is_some_and(|committed| committed + CLOCKS_APART_NS < at)
    })
}

fn places(audit: &[AuditRecord], wanted: impl Fn(&AuditRecord) -> bool) -> Vec<usize> {
    audit.iter().enumerate().filter(|(_, record)| wanted(record)).map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn grant(term: u64, holder: &str, solo: bool, at_ms: u64) -> Grant {
        Grant { term, holder: holder.to_owned(), solo, granted_realtime_ns: at_ms * MS }
    }

    fn record(at_ms: u64, epoch: Option<u64>) -> AuditRecord {
        let (protected, epoch) = (epoch.is_some(), epoch.unwrap_or_default());
        AuditRecord { hash: at_ms, epoch, len: 60, port: 0, protected, monotonic_ns: at_ms * MS }
    }

    fn log(lines: &[(u64, u64, u64)]) -> CommitLog {
        let line = |(epoch, term, at_ms): &(u64, u64, u64)| format!("{epoch} {term} {}\n", at_ms * MS);
        CommitLog::parse(&lines.iter().map(line).collect::<String>()).expect("a log")
    }

    /// The host runs alone, is protected, alone, protected again, and loses the guest to the other one.
    fn story() -> (Vec<Grant>, CommitLog) {
        let grants = vec![
            grant(1, "a", true, 0),
            grant(2, "a", false, 100),
            grant(3, "a", true, 500),
            grant(4, "a", false, 700),
            grant(5, "b", true, 1000),
            grant(6, "b", false, 1100),
        ];
        (grants, log(&[(1, 2, 150), (2, 2, 250), (3, 4, 800), (4, 4, 900)]))
    }

    #[test]
    fn output_is_to_be_held_from_the_first_commit_of_a_term_to_the_next_grant() {
        let (grants, commits) = story();
        let spans = held_spans("a", &grants, &commits);
        let times = |spans: &[HeldSpan]| -> Vec<_> {
            spans.iter().map(|span| (span.term, span.time.clone())).collect()
        };
        assert_eq!(times(&spans), [(2, 150 * MS..500 * MS), (4, 800 * MS..1000 * MS)]);
        assert!(held_spans("b", &grants, &commits).is_empty(), "nobody committed anything for it");
        assert_eq!(times(&held_spans("a", &grants[..2], &commits)), [(2, 150 * MS..u64::MAX)]);
    }

    /// OC-1: a dataplane that does not hold says so of itself, be it the second time that it should have.
    #[test]
    fn a_doctored_record_that_was_not_held_is_found() {
        let (grants, commits) = story();
        let spans = held_spans("a", &grants, &commits);
        let sound = [(50, None), (120, None), (200, Some(2)), (600, None), (720, None), (850, Some(4))];
        let mut audit: Vec<_> = sound.iter().map(|&(at, epoch)| record(at, epoch)).collect();
        assert_eq!(unheld(&audit, &spans, 0), [0; 0]);
        assert_eq!(unheld(&audit, &spans, 10_000 * MS), [0; 0], "of another time");
        audit[5].protected = false;
        assert_eq!(unheld(&audit, &spans, 0), [5]);
        audit[2].protected = false;
        assert_eq!(unheld(&audit, &spans, 0), [2, 5]);
    }

    /// OC-1: a record that names an epoch which is committed already would let its frame go at once.
    #[test]
    fn a_doctored_record_of_an_epoch_committed_before_is_found() {
        let (grants, commits) = story();
        let spans = held_spans("a", &grants, &commits);
        let misdated = |audit: &[AuditRecord]| misdated(audit, &spans, &commits, 0);
        let mut audit = vec![record(140, Some(1)), record(200, Some(2)), record(880, Some(4))];
        assert_eq!(misdated(&audit), [0; 0]);
        audit[1].epoch = 1;
        assert_eq!(misdated(&audit), [1]);
        // An epoch of an earlier term says nothing: a host that was started again counts anew.
        audit[2].epoch = 2;
        assert_eq!(misdated(&audit), [1]);
        audit[2].epoch = 3;
        assert_eq!(misdated(&audit), [1, 2]);
    }

    #[test]
    fn grants_are_read_in_the_order_of_their_terms() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        write("term-10", r#"{"term": 10, "holder": "b", "solo": false, "more": 1}"#);
        write("term-9", r#"{"term": 9, "holder": "a", "solo": true}"#);
        write(".new-1", "half a gra");
        let grants = read_grants(dir.path()).expect("read");
        let told: Vec<_> = grants.iter().map(|grant| (grant.term, &*grant.holder, grant.solo)).collect();
        assert_eq!(told, [(9, "a", true), (10, "b", false)]);
        assert!(grants.iter().all(|grant| grant.granted_realtime_ns > 1 << 60));
        write("term-11", "rubbish");
        assert!(read_grants(dir.path()).is_err());
    }
}
