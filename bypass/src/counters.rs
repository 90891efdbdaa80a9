//! What happened at a port, counted.

/// Each thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Frames that came.
    FramesIn,
    /// Frames that were made.
    FramesOut,
    /// Frames that were for somebody else, or of another protocol.
    Foreign,
    /// Frames that were cut short, or whose headers are wrong.
    Malformed,
    /// Datagrams that the AEAD or the replay window refused: flipped, replayed, or nobody's.
    Refused,
    /// Handshakes that were not begun, as they were addressed to no session that is awaited.
    Strange,
    /// Handshakes that were not begun, as too many were under way.
    Crowded,
    /// Packets that had to be sent again.
    Lost,
    /// Paths that came up.
    PathsUp,
    /// Paths that were lost.
    PathsLost,
}

/// Names of the counters, in their order.
const NAMES: [&str; Counter::PathsLost as usize + 1] = [
    "frames_in",
    "frames_out",
    "foreign_frames",
    "malformed_frames",
    "refused_datagrams",
    "strange_handshakes",
    "crowded_handshakes",
    "lost_packets",
    "paths_up",
    "paths_lost",
];

/// The counters of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; NAMES.len()]);

impl Counters {
    pub(crate) const fn add(&mut self, counter: Counter, count: u64) {
        self.0[counter as usize] += count;
    }

    /// What `counter` stands at.
    #[must_use]
    pub const fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.into_iter().zip(self.0)
    }
}
