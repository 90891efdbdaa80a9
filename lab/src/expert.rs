//! What tshark's TCP analysis has to say of a capture, counted by complaint, and how two runs differ in it.
//!
//! Its remarks on the ordinary course of a connection (its "chats", and how one closes) are no complaints.
//! It judges by what the capture has: one that lost frames is complained of for them.

use crate::process::{ProcessError, run_tool};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Complaints of one capture: how often each was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Complaints(pub BTreeMap<String, u64>);

/// A complaint that one run has more of than another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// In tshark's words.
    pub complaint: String,
    /// How often in the run that it is compared with.
    pub reference: u64,
    /// How often in the run in question.
    pub here: u64,
}

/// Has tshark look at the connections of a capture that have that port at one end.
///
/// # Errors
/// When tshark is not there or cannot read it.
pub fn complaints(capture: &Path, port: u16) -> Result<Complaints, ProcessError> {
    let experts = format!("expert,tcp.port=={port}");
    let said = run_tool(None, "tshark", &["-n", "-r", &capture.to_string_lossy(), "-q", "-z", &experts])?;
    Ok(parse(&said))
}

impl Complaints {
    /// Those that `reference` lacks altogether come first, then those that it has fewer of.
    pub fn beyond(&self, reference: &Self) -> Vec<Difference> {
        let mut found: Vec<Difference> = self
            .0
            .iter()
            .map(|(complaint, here)| Difference {
                complaint: complaint.clone(),
                reference: reference.0.get(complaint).copied().unwrap_or(0),
                here: *here,
            })
            .filter(|difference| difference.here > difference.reference)
            .collect();
        found.sort_by_key(|difference| difference.reference > 0);
        found
    }
}

/// Lines of `frequency group protocol summary` below headings such as `Warns (12)`.
fn parse(said: &str) -> Complaints {
    let mut complaints = Complaints::default();
    let mut counts = false;
    for line in said.lines() {
        if let Some((heading, rest)) = line.split_once(' ') {
            if rest.starts_with('(') && rest.ends_with(')') && !heading.is_empty() {
                counts = heading != "Chats" && heading != "Comments";
                continue;
            }
        }
        let mut words = line.split_whitespace();
        let Some(count) = words.next().and_then(|word| word.parse::<u64>().ok()).filter(|_| counts) else {
            continue;
        };
        let summary: Vec<&str> = words.skip_while(|word| *word != "TCP").skip(1).collect();
        let summary = summary.join(" ");
        if summary.is_empty() || summary.ends_with("the connection closing") {
            continue;
        }
        // Each duplicate has its number.
        let summary = summary.split(" (#").next().unwrap_or_default().to_owned();
        *complaints.0.entry(summary).or_default() += count;
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\nWarns (20)\n=============\n   Frequency      Group           Protocol  Summary\n         \
        12   Sequence                TCP  TCP Zero Window segment\n           6   Sequence                TCP  \
        D-SACK Sequence\n\nNotes (13)\n=============\n   Frequency      Group           Protocol  Summary\n           \
        3   Sequence                TCP  Duplicate ACK (#1)\n           2   Sequence                TCP  Duplicate \
        ACK (#2)\n           2   Sequence                TCP  This frame initiates the connection closing\n\nChats \
        (17)\n=============\n   Frequency      Group           Protocol  Summary\n        1706   Sequence                \
        TCP  TCP window update\n";

    #[test]
    fn complaints_are_counted_by_kind_and_the_ordinary_course_is_none() {
        let found = parse(SAID);
        let wanted = [("D-SACK Sequence", 6), ("Duplicate ACK", 5), ("TCP Zero Window segment", 12)];
        assert_eq!(found.0, wanted.map(|(text, count)| (text.to_owned(), count)).into());
        assert_eq!(parse("").0.len(), 0);
    }

    #[test]
    fn what_the_other_run_lacks_comes_first() {
        let of = |list: &[(&str, u64)]| {
            Complaints(list.iter().map(|(text, count)| ((*text).to_owned(), *count)).collect())
        };
        let reference = of(&[("a", 3), ("b", 5), ("c", 1)]);
        let beyond = of(&[("a", 4), ("b", 5), ("z", 1)]).beyond(&reference);
        let found: Vec<_> = beyond.iter().map(|d| (d.complaint.as_str(), d.reference, d.here)).collect();
        assert_eq!(found, [("z", 0, 1), ("a", 3, 4)]);
    }

    proptest::proptest! {
        #[test]
        fn no_words_make_the_reader_panic(text: String) {
            drop(parse(&text));
        }
    }
}
