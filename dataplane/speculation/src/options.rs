//! Options of a TCP header: a bounded parse of at most 40 bytes.

use crate::seq::SeqNum;
use crate::window::Scale;
use arrayvec::ArrayVec;

/// SACK blocks that fit into a header.
pub(crate) const MAX_SACKS: usize = 4;

/// Bytes of the options of a SYN with all that are known.
const SYN_LEN: usize = 24;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// The timestamps option (RFC 7323 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamps {
    pub(crate) value: u32,
    pub(crate) echo: u32,
    /// Where the value begins, counted from the first option byte.
    pub(crate) at: usize,
}

/// What the options of one header say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    /// Where the window scale option begins; it has three bytes.
    pub(crate) scale_at: Option<usize>,
    pub(crate) sack_permitted: bool,
    pub(crate) timestamps: Option<Timestamps>,
    pub(crate) sacks: ArrayVec<(SeqNum, SeqNum), MAX_SACKS>,
    /// Where the SACK option begins and how long it is.
    pub(crate) sack_at: Option<(usize, usize)>,
    /// There is one that is not known, or the list is broken: flows with it do not speculate.
    pub(crate) unknown: bool,
}

impl Options {
    /// Parses the option bytes of a header. Whatever is not understood sets [`Options::unknown`]:
    /// TCP-AO, MD5, MPTCP, Fast Open, AccECN and the ones to come.
    ///
    /// Bound: 40 bytes. Allocations: none.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut options = Self::default();
        // RFC 7323 appendix A: what nearly every segment has.
        if let [NOP, NOP, TIMESTAMPS, 10, a, b, c, d, e, f, g, h] = *bytes {
            let (value, echo) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            options.timestamps = Some(Timestamps { value, echo, at: 4 });
            return options;
        }
        let mut at = 0;
        while let Some(&kind) = bytes.get(at) {
            match kind {
                END => break,
                NOP => at += 1,
                _ => {
                    let len = bytes.get(at + 1).map_or(0, |&len| usize::from(len));
                    let Some(body) = bytes.get(at..at + len).and_then(|option| option.get(2..)) else {
                        options.unknown = true;
                        break;
                    };
                    options.read(kind, body, at);
                    at += len;
                }
            }
        }
        options
    }

    fn read(&mut self, kind: u8, body: &[u8], at: usize) {
        match (kind, body) {
            (MSS, &[high, low]) => self.mss = Some(u16::from_be_bytes([high, low])),
            (WINDOW_SCALE, &[shift]) => {
                self.window_scale = Some(shift);
                self.scale_at = Some(at);
            }
            (SACK_PERMITTED, []) => self.sack_permitted = true,
            (TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
                let (value, echo) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
                self.timestamps = Some(Timestamps { value, echo, at: at + 2 });
            }
            (SACK, blocks) if blocks.len() % 8 == 0 && self.sack_at.is_none() => {
                self.sack_at = Some((at, blocks.len() + 2));
                for block in blocks.chunks_exact(8).take(MAX_SACKS) {
                    let edge = |at: usize| {
                        SeqNum::new(u32::from_be_bytes([
                            block[at],
                            block[at + 1],
                            block[at + 2],
                            block[at + 3],
                        ]))
                    };
                    self.sacks.push((edge(0), edge(4)));
                }
            }
            _ => self.unknown = true,
        }
    }
}

/// The timestamps option with its padding, as it is in nearly every segment (RFC 7323 appendix A).
pub(crate) fn timestamps(value: u32, echo: u32) -> [u8; 12] {
    let mut bytes = [NOP, NOP, TIMESTAMPS, 10, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[4..8].copy_from_slice(&value.to_be_bytes());
    bytes[8..].copy_from_slice(&echo.to_be_bytes());
    bytes
}

/// The options of a SYN (RFC 9293 §3.2, RFC 2018 §2, RFC 7323 §2.2 and §3.2).
pub(crate) fn of_syn(
    mss: Option<u16>,
    sack: bool,
    stamps: Option<(u32, u32)>,
    scale: Scale,
) -> ArrayVec<u8, SYN_LEN> {
    let mut bytes = ArrayVec::new();
    if let Some(mss) = mss {
        bytes.extend([MSS, 4]);
        bytes.extend(mss.to_be_bytes());
    }
    bytes.extend([NOP, WINDOW_SCALE, 3, scale.shift()]);
    if sack {
        bytes.extend([NOP, NOP, SACK_PERMITTED, 2]);
    }
    if let Some((value, echo)) = stamps {
        bytes.extend(timestamps(value, echo));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_options_of_a_syn_are_read() {
        let bytes = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7];
        let options = Options::parse(&bytes);
        assert_eq!((options.mss, options.window_scale, options.scale_at), (Some(1460), Some(7), Some(17)));
        assert!(options.sack_permitted && !options.unknown);
        assert_eq!(options.timestamps, Some(Timestamps { value: 9, echo: 0, at: 8 }));
    }

    #[test]
    fn the_options_of_a_syn_that_is_made_are_read() {
        let made = of_syn(Some(1460), true, Some((9, 8)), Scale::new(7));
        let options = Options::parse(&made);
        assert_eq!((options.mss, options.window_scale), (Some(1460), Some(7)));
        assert_eq!(options.timestamps.map(|stamps| (stamps.value, stamps.echo)), Some((9, 8)));
        assert!(options.sack_permitted && !options.unknown);
        assert_eq!(&of_syn(None, false, None, Scale::new(3))[..], [1, 3, 3, 3]);
    }

    #[test]
    fn what_is_written_is_read_on_the_short_way_and_on_the_long_one() {
        let mut bytes = timestamps(0xdead_beef, 77).to_vec();
        let found = Some(Timestamps { value: 0xdead_beef, echo: 77, at: 4 });
        assert_eq!(Options::parse(&bytes).timestamps, found);
        bytes.extend([1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9]);
        let options = Options::parse(&bytes);
        assert_eq!(options.timestamps, found);
        assert_eq!(options.sacks.as_slice(), [(SeqNum::new(1), SeqNum::new(9))]);
        assert_eq!(options.sack_at, Some((14, 10)));
    }

    /// The options of TCP-AO (RFC 5925), MD5 (RFC 2385), MPTCP (RFC 8684), Fast Open (RFC 7413) and
    /// AccECN (RFC 9768).
    #[test]
    fn options_that_forbid_speculation_are_told() {
        for kind in [29, 19, 30, 34, 172, 174, 254] {
            assert!(Options::parse(&[kind, 4, 0, 0]).unknown, "{kind}");
        }
        for broken in [&[2, 3, 1, 0][..], &[3, 9, 1, 0], &[8, 0, 0, 0], &[8, 1, 0, 0], &[5, 6, 0, 0, 0, 0]] {
            assert!(Options::parse(broken).unknown, "{broken:?}");
        }
        assert!(!Options::parse(&[1, 1, 0, 99]).unknown, "nothing counts behind the end");
    }

    proptest! {
        /// RB-1: no bytes make the parse panic, and what it found lies within them.
        #[test]
        fn no_option_bytes_make_the_parse_panic(bytes in prop::collection::vec(any::<u8>(), 0..41)) {
            let options = Options::parse(&bytes);
            if let Some(found) = options.timestamps {
                prop_assert!(found.at + 8 <= bytes.len());
            }
            if let Some((at, len)) = options.sack_at {
                prop_assert!(at + len <= bytes.len());
            }
        }
    }
}
