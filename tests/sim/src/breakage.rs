//! Broken on purpose: what stands between the engine and its surroundings misbehaves, so that the
//! simulator can show that it would notice.

use crate::random::Random;
use crate::segment::{Segment, flag, option};
use crate::surgery;
use std::fmt;
use std::str::FromStr;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    /// SP-1: a forged ACK covers a byte that the engine was not given.
    AckBeyondHeld,
    /// SP-2: some of the stream is lost, and the backup confirms all the same.
    StreamLost,
    /// SP-3: a byte of a segment to the client is changed.
    ByteChanged,
    /// SP-3: a byte of the stream to the backup is changed; it shows after a failover.
    StreamChanged,
    /// SP-4: the edge of the window that the guest sees moves left.
    EdgeMovesLeft,
    /// SP-4: the guest sees a timestamp that the client did not send.
    InventedTimestamp,
    /// OC-1: the engine is told of a commit that has not happened.
    EarlyCommit,
    /// OC-1: frames that were passed do not wait.
    EarlyRelease,
}

impl Breakage {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::AckBeyondHeld,
        Self::StreamLost,
        Self::ByteChanged,
        Self::StreamChanged,
        Self::EdgeMovesLeft,
        Self::InventedTimestamp,
        Self::EarlyCommit,
        Self::EarlyRelease,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AckBeyondHeld => "sp1",
            Self::StreamLost => "sp2",
            Self::ByteChanged => "sp3",
            Self::StreamChanged => "sp3-stream",
            Self::EdgeMovesLeft => "sp4",
            Self::InventedTimestamp => "sp4-timestamp",
            Self::EarlyCommit => "oc1",
            Self::EarlyRelease => "oc1-passed",
        }
    }

    /// The invariants by which it may be noticed.
    #[must_use]
    pub const fn rules(self) -> &'static [&'static str] {
        match self {
            Self::AckBeyondHeld => &["SP-1"],
            Self::StreamLost => &["SP-2"],
            Self::ByteChanged | Self::StreamChanged => &["SP-3"],
            Self::EdgeMovesLeft | Self::InventedTimestamp => &["SP-4"],
            Self::EarlyCommit | Self::EarlyRelease => &["OC-1"],
        }
    }

    /// Changes a frame of the engine's to the guest.
    pub(crate) fn to_guest(self, random: &mut Random, frame: &mut [u8]) {
        let Some(segment) = Segment::parse(frame).filter(|segment| !segment.has(flag::RST | flag::SYN))
        else {
            return;
        };
        if !random.chance(100) {
            return;
        }
        let place = segment.place;
        match (self, segment.ack) {
            (Self::AckBeyondHeld, Some(ack)) => surgery::set_ack(frame, &place, ack + 1),
            (Self::EdgeMovesLeft, Some(_)) => surgery::set_window(frame, &place, segment.window / 2),
            (Self::InventedTimestamp, _) => {
                let Some(at) = surgery::find_option(frame, &place, option::TIMESTAMPS) else { return };
                let value = segment.timestamp.map_or(0, |(value, _)| value.wrapping_add(1));
                surgery::put(frame, at, &value.to_be_bytes());
            }
            _ => return,
        }
        surgery::complete(frame);
    }

    /// Changes a frame of the engine's to the client.
    pub(crate) fn to_client(self, random: &mut Random, frame: &mut [u8]) {
        let Some(segment) = Segment::parse(frame) else { return };
        if self == Self::ByteChanged && !segment.payload.is_empty() && random.chance(20) {
            let at = random.between(segment.payload.start as u64, segment.payload.end as u64 - 1) as usize;
            frame[at] ^= 0x10;
            surgery::complete(frame);
        }
    }

    /// Changes what is streamed to the backup.
    pub(crate) fn to_backup(self, random: &mut Random, stream: &mut Vec<u8>) {
        match self {
            Self::StreamLost if random.chance(100) => stream.clear(),
            Self::StreamChanged if !stream.is_empty() && random.chance(300) => {
                // The last byte of a piece is a byte of payload.
                if let Some(last) = stream.last_mut() {
                    *last ^= 0x10;
                }
            }
            _ => {}
        }
    }
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Breakage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|breakage| breakage.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|breakage| breakage.name()).collect();
            format!("no such breakage; there are {}", names.join(", "))
        })
    }
}
