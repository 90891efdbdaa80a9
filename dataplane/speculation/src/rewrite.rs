//! Rewriting of segments in place: fields of the same length, the checksum updated with them
//! (RFC 1624), so that a checksum that was right stays right and one that was wrong stays wrong.

use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::window::Scaled;
use holdfast_packet::checksum;

const NOP: u8 = 1;

/// A segment in its frame, to be rewritten.
pub(crate) struct Rewriter<'a> {
    frame: &'a mut [u8],
    tcp_at: usize,
    options_at: usize,
}

impl<'a> Rewriter<'a> {
    /// Rewrites `segment`, which was parsed from `frame`.
    pub(crate) fn new(frame: &'a mut [u8], segment: &Segment) -> Self {
        Self { frame, tcp_at: segment.tcp_at, options_at: segment.tcp_at + 20 }
    }

    /// Rewrites the segment whose header is at `tcp_at`, in a first fragment that has its checksum.
    pub(crate) fn of_fragment(frame: &'a mut [u8], tcp_at: usize) -> Self {
        Self { frame, tcp_at, options_at: tcp_at + 20 }
    }

    /// Sets the sequence number.
    pub(crate) fn seq(&mut self, seq: SeqNum) {
        self.put(self.tcp_at + 4, &seq.get().to_be_bytes());
    }

    /// Sets the acknowledgement.
    pub(crate) fn ack(&mut self, ack: SeqNum) {
        self.put(self.tcp_at + 8, &ack.get().to_be_bytes());
    }

    /// Sets the window.
    pub(crate) fn window(&mut self, window: Scaled) {
        self.put(self.tcp_at + 14, &window.0.to_be_bytes());
    }

    /// Clears control bits.
    pub(crate) fn clear(&mut self, flags: u8) {
        let at = self.tcp_at + 13;
        let kept = self.frame[at] & !flags;
        self.put(at, &[kept]);
    }

    /// Sets TSval, `at` bytes behind the first option byte.
    pub(crate) fn timestamp_value(&mut self, at: usize, value: u32) {
        self.put(self.options_at + at, &value.to_be_bytes());
    }

    /// Sets TSecr of the timestamps whose value is `at` bytes behind the first option byte.
    pub(crate) fn timestamp_echo(&mut self, at: usize, echo: u32) {
        self.put(self.options_at + at + 4, &echo.to_be_bytes());
    }

    /// Makes NOPs of an option.
    pub(crate) fn blank(&mut self, at: usize, len: usize) {
        for byte in 0..len {
            self.put(self.options_at + at + byte, &[NOP]);
        }
    }

    /// Writes `bytes`, and what they change into the checksum. Words are those of the TCP header, which
    /// begins at an even place of itself, wherever the frame puts it.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let first = (at - self.tcp_at) & !1;
        let last = (at - self.tcp_at + bytes.len()).next_multiple_of(2);
        let word = |frame: &[u8], place: usize| {
            u16::from_be_bytes([frame[place], frame.get(place + 1).copied().unwrap_or(0)])
        };
        let checksum_at = self.tcp_at + 16;
        let mut sum = word(self.frame, checksum_at);
        // At most the words of two numbers: options may lie at odd places.
        let mut before = [0u16; 3];
        let places = (first..last).step_by(2).map(|place| self.tcp_at + place);
        for (old, place) in before.iter_mut().zip(places.clone()) {
            *old = word(self.frame, place);
        }
        self.frame[at..at + bytes.len()].copy_from_slice(bytes);
        for (old, place) in before.iter().zip(places) {
            sum = checksum::replaced(sum, *old, word(self.frame, place));
        }
        self.frame[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Side;
    use crate::segment::Parsed;
    use holdfast_packet::headers::flag;
    use holdfast_packet::sample;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Segment {
        match Segment::parse(bytes, bytes.len(), Side::Client) {
            Parsed::Tcp(segment) => segment,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// RFC 1624: what is rewritten still adds up, with options at odd places too.
        #[test]
        fn a_rewritten_segment_adds_up(
            v6: bool, shift in 0usize..2, seq: u32, ack: u32, window: u16, value: u32, echo: u32,
            payload in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut sample = sample::Tcp::data(v6, payload);
            sample.options = vec![1; shift];
            sample.options.extend([8, 10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
            sample.options.resize(24, 1);
            sample.flags |= flag::ECE;
            let mut bytes = sample.bytes();
            let segment = parse(&bytes);
            let (sack_at, sack_len) = segment.options.sack_at.expect("there is one");
            let stamps = segment.options.timestamps.expect("there are");
            let mut rewriter = Rewriter::new(&mut bytes, &segment);
            rewriter.seq(SeqNum::new(seq));
            rewriter.ack(SeqNum::new(ack));
            rewriter.window(Scaled(window));
            rewriter.timestamp_value(stamps.at, value);
            rewriter.timestamp_echo(stamps.at, echo);
            rewriter.blank(sack_at, sack_len);
            rewriter.clear(flag::ECE);
            let found = parse(&bytes);
            prop_assert!(found.verifies(&bytes, Side::Client));
            prop_assert!(sample::adds_up(&bytes, sample.transport(), v6, 6));
            prop_assert_eq!((found.seq.get(), found.ack.get(), found.window), (seq, ack, window));
            let stamps = found.options.timestamps.expect("they are still there");
            prop_assert_eq!((stamps.value, stamps.echo), (value, echo));
            prop_assert!(found.options.sack_at.is_none() && !found.has(flag::ECE));
            prop_assert_eq!(&bytes[segment.payload_at..], &sample.payload[..]);
        }
    }
}
