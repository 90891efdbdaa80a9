//! Reads captures in the classic pcap format, as tcpdump writes them: bounded, frame by frame.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

const MAGIC_MICRO: u32 = 0xa1b2_c3d4;
const MAGIC_NANO: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;
/// tcpdump's own greatest snapshot length.
const LONGEST_FRAME: u32 = 256 * 1024;

/// The file is not a capture that can be read.
#[derive(Debug, Error)]
pub enum PcapError {
    /// Not readable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another format, byte order or link.
    #[error("{} is not a capture of Ethernet frames in this machine's byte order: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// One captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFrame {
    /// CLOCK_REALTIME, in nanoseconds.
    pub realtime_ns: u64,
    /// Length on the wire.
    pub len: u32,
    /// Its beginning, as much as was captured.
    pub bytes: Vec<u8>,
}

/// An open capture.
#[derive(Debug)]
pub struct Pcap {
    path: PathBuf,
    reader: BufReader<File>,
    fraction_ns: u64,
}

impl Pcap {
    /// Opens a capture.
    pub fn open(path: &Path) -> Result<Self, PcapError> {
        let failed = |source| PcapError::Read { path: path.into(), source };
        let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(failed)?);
        let mut header = [0; 24];
        reader.read_exact(&mut header).map_err(failed)?;
        let format = |reason| Err(PcapError::Format { path: path.into(), reason });
        let fraction_ns = match word(&header, 0) {
            MAGIC_MICRO => 1000,
            MAGIC_NANO => 1,
            other => return format(format!("it begins with {other:#010x}")),
        };
        let link = word(&header, 20) & 0x0fff_ffff;
        if link != ETHERNET {
            return format(format!("its link type is {link}"));
        }
        Ok(Self { path: path.into(), reader, fraction_ns })
    }

    /// The next frame, or none at the end. A last frame that was cut off counts as the end: the
    /// program that captured was killed while writing.
    pub fn next_frame(&mut self) -> Result<Option<CapturedFrame>, PcapError> {
        let mut header = [0; 16];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let (captured, len) = (word(&header, 8), word(&header, 12));
        if captured > LONGEST_FRAME {
            let reason = format!("a frame of {captured} bytes");
            return Err(PcapError::Format { path: self.path.clone(), reason });
        }
        let mut bytes = vec![0; captured as usize];
        if !self.fill(&mut bytes)? {
            return Ok(None);
        }
        let seconds = u64::from(word(&header, 0));
        let realtime_ns = seconds * 1_000_000_000 + u64::from(word(&header, 4)) * self.fraction_ns;
        Ok(Some(CapturedFrame { realtime_ns, len, bytes }))
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<bool, PcapError> {
        match self.reader.read_exact(into) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(PcapError::Read { path: self.path.clone(), source }),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

/// The bytes of a capture of these frames: for tests of what reads captures.
pub fn encode(frames: &[CapturedFrame]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in [MAGIC_NANO, u32::from_ne_bytes([2, 0, 4, 0]), 0, 0, LONGEST_FRAME, ETHERNET] {
        out.extend_from_slice(&field.to_ne_bytes());
    }
    for frame in frames {
        let (seconds, rest) = (frame.realtime_ns / 1_000_000_000, frame.realtime_ns % 1_000_000_000);
        for field in [seconds as u32, rest as u32, frame.bytes.len() as u32, frame.len] {
            out.extend_from_slice(&field.to_ne_bytes());
        }
        out.extend_from_slice(&frame.bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(realtime_ns: u64) -> CapturedFrame {
        CapturedFrame { realtime_ns, len: 1514, bytes: vec![7; 256] }
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<CapturedFrame>, PcapError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("capture");
        std::fs::write(&path, bytes).expect("written");
        let mut pcap = Pcap::open(&path)?;
        let mut frames = Vec::new();
        while let Some(frame) = pcap.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn frames_are_read_back_with_nanoseconds() {
        let frames = [frame(1_700_000_000_123_456_789), frame(1_700_000_000_123_456_790)];
        assert_eq!(read_all(&encode(&frames)).expect("read"), frames);
    }

    #[test]
    fn a_frame_cut_off_is_the_end_and_a_giant_is_an_error() {
        let mut bytes = encode(&[frame(1), frame(2)]);
        bytes.truncate(bytes.len() - 3);
        assert_eq!(read_all(&bytes).expect("read").len(), 1);
        bytes[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(read_all(&bytes), Err(PcapError::Format { .. })));
        assert!(matches!(read_all(&[0; 24]), Err(PcapError::Format { .. })));
    }

    proptest::proptest! {
        /// RB-1: what is read was written by others.
        #[test]
        fn no_file_makes_the_reader_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut bytes = encode(&[]);
            bytes.extend_from_slice(&body);
            // Frames, an end or an error: all is well that returns.
            drop(read_all(&bytes));
        }
    }
}
