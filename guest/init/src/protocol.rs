//! The requests that the guest's services understand: fixed little-endian records.
//!
//! Service on port [`STREAM_PORT`]: any number of [`Request`]s on one connection, served in order. A
//! client that keeps two in flight sees one unbroken stream of any length and ends it when it wants.
//!
//! ```text
//! download   ->  request                 <-  `length` bytes of the stream from `offset` on
//! upload     ->  request, the bytes      <-  verdict
//! echo       ->  request, any bytes      <-  the same bytes
//! ```
//!
//! Port [`ECHO_PORT`] returns what it gets, over TCP and UDP. Port [`DIRTY_PORT`] takes [`Dirty`] and
//! answers with a verdict: from then on the guest writes to that many pages every interval. Where all are
//! written at once they have been written for the first time then.
//!
//! Both ends treat what they read as hostile: records have one fixed length and are checked whole.

use thiserror::Error;

/// TCP port of the stream service.
pub const STREAM_PORT: u16 = 7001;
/// TCP and UDP port of the echo service.
pub const ECHO_PORT: u16 = 7002;
/// TCP port on which the dirtying of memory is set.
pub const DIRTY_PORT: u16 = 7003;
/// The line that the guest writes to its console when all services listen.
pub const READY_LINE: &str = "holdfast-guest: ready";

const REQUEST_MAGIC: u64 = u64::from_le_bytes(*b"HFSTREA1");
const VERDICT_MAGIC: u64 = u64::from_le_bytes(*b"HFVERDI1");
const DIRTY_MAGIC: u64 = u64::from_le_bytes(*b"HFDIRTY2");

/// What is wrong with a record from the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The first eight bytes are not those of the record expected here.
    #[error("the other end sent {found:#018x} where a {record} begins: it speaks something else")]
    Magic {
        /// The record expected.
        record: &'static str,
        /// What was there.
        found: u64,
    },
    /// A direction or a verdict that this version does not know.
    #[error("the other end sent {record} of unknown kind {found}: its version differs")]
    Kind {
        /// The record it was in.
        record: &'static str,
        /// The number sent.
        found: u32,
    },
}

/// Which way a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The guest sends the stream.
    Download,
    /// The client sends the stream and the guest checks it.
    Upload,
    /// The guest returns what the client sends.
    Echo,
}

/// One request to the stream service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which way the bytes go.
    pub direction: Direction,
    /// Seed of the stream.
    pub seed: u64,
    /// First byte of the stream.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Request {
    /// Length of the record.
    pub const LEN: usize = 40;

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let kind: u32 = match self.direction {
            Direction::Download => 1,
            Direction::Upload => 2,
            Direction::Echo => 3,
        };
        let mut out = [0; Self::LEN];
        put(&mut out, 0, REQUEST_MAGIC);
        put(&mut out, 8, u64::from(kind));
        put(&mut out, 16, self.seed);
        put(&mut out, 24, self.offset);
        put(&mut out, 32, self.length);
        out
    }

    /// Reads a record back.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, RecordError> {
        expect(bytes, REQUEST_MAGIC, "request")?;
        let direction = match get(bytes, 8) as u32 {
            1 => Direction::Download,
            2 => Direction::Upload,
            3 => Direction::Echo,
            found => return Err(RecordError::Kind { record: "request", found }),
        };
        Ok(Self { direction, seed: get(bytes, 16), offset: get(bytes, 24), length: get(bytes, 32) })
    }
}

/// The guest's word on an upload, or on a request to dirty memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte was as the stream has it.
    Exact {
        /// Bytes checked.
        bytes: u64,
    },
    /// A byte differed.
    Differs {
        /// Bytes read.
        bytes: u64,
        /// Offset in the stream of the first wrong byte.
        first: u64,
    },
}

impl Verdict {
    /// Length of the record.
    pub const LEN: usize = 32;

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let (kind, bytes, first) = match *self {
            Self::Exact { bytes } => (1, bytes, 0),
            Self::Differs { bytes, first } => (2, bytes, first),
        };
        let mut out = [0; Self::LEN];
        put(&mut out, 0, VERDICT_MAGIC);
        put(&mut out, 8, kind);
        put(&mut out, 16, bytes);
        put(&mut out, 24, first);
        out
    }

    /// Reads a record back.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, RecordError> {
        expect(bytes, VERDICT_MAGIC, "verdict")?;
        match get(bytes, 8) as u32 {
            1 => Ok(Self::Exact { bytes: get(bytes, 16) }),
            2 => Ok(Self::Differs { bytes: get(bytes, 16), first: get(bytes, 24) }),
            found => Err(RecordError::Kind { record: "verdict", found }),
        }
    }
}

/// When the pages of an interval are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// All at once, as each interval begins.
    AtOnce,
    /// One after the other, in equal steps across the interval: each page once in it.
    Spread,
}

/// What is written to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// One word, another one each time; the rest of the page is zero.
    Word,
    /// A page of noise, other noise each time: it cannot be compressed.
    Noise,
    /// A copy of one of a few other pages of the guest, which stay as they are; of another one each time. As a
    /// page cache has them that several programs fill from one file.
    Copies,
}

/// Asks the guest to write to `pages` pages every `interval_us` microseconds of its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirty {
    /// Number of 4 KiB pages; none stops it.
    pub pages: u32,
    /// Time from one round to the next.
    pub interval_us: u32,
    /// When in the interval.
    pub pace: Pace,
    /// What.
    pub content: Content,
}

impl Dirty {
    /// Length of the record.
    pub const LEN: usize = 24;
    /// More pages than this are not taken (1 GiB).
    pub const MAX_PAGES: u32 = 1 << 18;

    /// One word to each of `pages` pages, all at once every `interval_us` microseconds.
    #[must_use]
    pub const fn words(pages: u32, interval_us: u32) -> Self {
        Self { pages, interval_us, pace: Pace::AtOnce, content: Content::Word }
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let spread = u64::from(self.pace == Pace::Spread);
        let content: u64 = match self.content {
            Content::Word => 0,
            Content::Noise => 1,
            Content::Copies => 2,
        };
        let mut out = [0; Self::LEN];
        put(&mut out, 0, DIRTY_MAGIC);
        put(&mut out, 8, u64::from(self.pages) | u64::from(self.interval_us) << 32);
        put(&mut out, 16, spread | content << 1);
        out
    }

    /// Reads a record back.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, RecordError> {
        expect(bytes, DIRTY_MAGIC, "dirty request")?;
        let (both, how) = (get(bytes, 8), get(bytes, 16));
        let content = match how >> 1 {
            0 => Content::Word,
            1 => Content::Noise,
            2 => Content::Copies,
            _ => return Err(RecordError::Kind { record: "dirty request", found: how as u32 }),
        };
        Ok(Self {
            pages: (both as u32).min(Self::MAX_PAGES),
            interval_us: (both >> 32) as u32,
            pace: if how & 1 == 0 { Pace::AtOnce } else { Pace::Spread },
            content,
        })
    }
}

fn expect(bytes: &[u8], magic: u64, record: &'static str) -> Result<(), RecordError> {
    let found = get(bytes, 0);
    if found == magic { Ok(()) } else { Err(RecordError::Magic { record, found }) }
}

fn put(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_as_written() {
        let request = Request { direction: Direction::Upload, seed: 1, offset: u64::MAX, length: 7 };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        for verdict in [Verdict::Exact { bytes: 5 }, Verdict::Differs { bytes: 9, first: 4 }] {
            assert_eq!(Verdict::decode(&verdict.encode()), Ok(verdict));
        }
        for (pace, content) in [
            (Pace::AtOnce, Content::Noise),
            (Pace::Spread, Content::Word),
            (Pace::AtOnce, Content::Copies),
            (Pace::Spread, Content::Copies),
        ] {
            let dirty = Dirty { pace, content, ..Dirty::words(200, 10_000) };
            assert_eq!(Dirty::decode(&dirty.encode()), Ok(dirty));
        }
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        let verdict = Verdict::Exact { bytes: 1 }.encode();
        let mut request = [0; Request::LEN];
        request[..Verdict::LEN].copy_from_slice(&verdict);
        assert!(matches!(Request::decode(&request), Err(RecordError::Magic { .. })));
        let mut unknown = Request { direction: Direction::Echo, seed: 0, offset: 0, length: 0 }.encode();
        unknown[8] = 9;
        assert_eq!(Request::decode(&unknown), Err(RecordError::Kind { record: "request", found: 9 }));
        let mut unknown = Dirty::words(1, 1).encode();
        unknown[16] = 6;
        assert_eq!(Dirty::decode(&unknown), Err(RecordError::Kind { record: "dirty request", found: 6 }));
    }
}
