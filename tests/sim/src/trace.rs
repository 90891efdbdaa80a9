//! What happened, line by line, as tcpdump would write it, with seals and commits between.

use crate::segment::Segment;
use holdfast_speculation::Time;
use std::fmt::{self, Write};

/// The lines of a run; none are kept unless somebody asked.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: Vec<String>,
    on: bool,
}

impl Trace {
    pub(crate) const fn new(on: bool) -> Self {
        Self { lines: Vec::new(), on }
    }

    /// An event.
    pub(crate) fn event(&mut self, now: Time, text: fmt::Arguments<'_>) {
        if self.on {
            self.lines.push(format!("{now} -- {text}"));
        }
    }

    /// A frame at some place.
    pub(crate) fn frame(&mut self, now: Time, place: &str, frame: &[u8]) {
        if !self.on {
            return;
        }
        let mut line = format!("{now} {place:14} ");
        let written = match Segment::parse(frame) {
            Some(segment) => write!(line, "{segment}"),
            None => write!(line, "no TCP segment, {} bytes", frame.len()),
        };
        if written.is_ok() {
            self.lines.push(line);
        }
    }

    /// The lines.
    #[must_use]
    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }
}
