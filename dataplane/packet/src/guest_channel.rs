//! What the agent in a guest and Holdfast say to each other, on the link between the guest's network card and
//! Holdfast's port.
//!
//! The agent asks whether Holdfast is there; Holdfast answers what it does with the guest's output, and what time
//! it is. Frames go to an address that no bridge forwards (IEEE 802.1D), with an EtherType for experiments on a
//! link (IEEE 802, local), and never reach a wire.
//!
//! ```text
//! bytes  0  4  magic "HFGC"
//!        4  1  version, 2
//!        5  1  kind: 1 ask, 2 answer
//!        6  2  length of the message in bytes, from the magic on
//!        8  8  nonce, chosen by who asks and returned
//!       16  1  mode: 0 native, 1 commit, 2 speculative, 3 aware      answer alone, from here on
//!       17  3  zero
//!       20  4  length of an epoch in microseconds; zero when there are none
//!       24  8  host's wall clock, in nanoseconds since 1970, when the question came
//!       32  4  how long the guest's output waits for its commit at the least, in microseconds of the guest's own
//!              clock, which stands still in pauses; zero when that is not known
//! ```
//!
//! Numbers are in network order. What a later version adds comes behind, within the length: who does not know it
//! reads over it, and who knows it takes a message that ends before it as if it were zero. Another version is another language: who does not speak it hears nobody. What does not fit is refused as a whole (RB-1).

use crate::headers::{ETHERNET_LEN, Mac};

/// EtherType of the frames.
pub const ETHERTYPE: u16 = 0x88b5;
/// Receiver of the frames, in both directions: what bridges keep to themselves.
pub const LINK: Mac = Mac([0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e]);
/// Sender of the answers.
pub const HOLDFAST: Mac = Mac([0x02, b'H', b'F', b'G', b'C', 0x01]);
/// Length of a question, in bytes.
pub const ASK_LEN: usize = 16;
/// Length of an answer, in bytes.
pub const ANSWER_LEN: usize = 36;
/// Length of one of a Holdfast that does not know the least wait.
const SHORT_ANSWER_LEN: usize = 32;
/// No message of any version is longer, in bytes.
pub const LONGEST: usize = 128;

const MAGIC: [u8; 4] = *b"HFGC";
const VERSION: u8 = 2;
const KIND_ASK: u8 = 1;
const KIND_ANSWER: u8 = 2;

/// What Holdfast does with the output of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMode {
    /// Passes it on.
    Native,
    /// Holds it until it is committed.
    Commit,
    /// Holds it, and acknowledges the guest's TCP data at once.
    Speculative,
    /// As speculative, and the guest's congestion control may know of it.
    Aware,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Comes back with the answer.
    pub nonce: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the question.
    pub nonce: u64,
    /// What is done with the guest's output.
    pub mode: PortMode,
    /// Length of the last epoch, in microseconds; zero when there was none.
    pub epoch_us: u32,
    /// The host's wall clock when the question came, in nanoseconds since 1970.
    pub host_realtime_ns: u64,
    /// How long the guest's output waits for its commit at the least, on the guest's own clock, in microseconds: hardly
    /// an ACK of a client comes sooner. Zero when that is not known.
    pub least_wait_us: u32,
}

/// It is no message of this kind and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Ask {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ASK_LEN] {
        let mut out = [0; ASK_LEN];
        begin(&mut out, KIND_ASK, self.nonce);
        out
    }

    /// Reads what follows the Ethernet header of a frame.
    ///
    /// # Errors
    /// [`Malformed`] when it is anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        message(bytes, KIND_ASK, ASK_LEN).map(|head| Self { nonce: long(head, 8) })
    }
}

impl Answer {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let mut out = [0; ANSWER_LEN];
        begin(&mut out, KIND_ANSWER, self.nonce);
        out[16] = match self.mode {
            PortMode::Native => 0,
            PortMode::Commit => 1,
            PortMode::Speculative => 2,
            PortMode::Aware => 3,
        };
        out[20..24].copy_from_slice(&self.epoch_us.to_be_bytes());
        out[24..32].copy_from_slice(&self.host_realtime_ns.to_be_bytes());
        out[32..36].copy_from_slice(&self.least_wait_us.to_be_bytes());
        out
    }

    /// Reads what follows the Ethernet header of a frame.
    ///
    /// # Errors
    /// [`Malformed`] when it is anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let message = message(bytes, KIND_ANSWER, SHORT_ANSWER_LEN)?;
        let mode = match message[16] {
            0 => PortMode::Native,
            1 => PortMode::Commit,
            2 => PortMode::Speculative,
            3 => PortMode::Aware,
            _ => return Err(Malformed),
        };
        Ok(Self {
            nonce: long(message, 8),
            mode,
            epoch_us: word(message, 20),
            host_realtime_ns: long(message, 24),
            least_wait_us: if message.len() < ANSWER_LEN { 0 } else { word(message, 32) },
        })
    }

    /// The whole frame.
    #[must_use]
    pub fn frame(&self) -> [u8; ETHERNET_LEN + ANSWER_LEN] {
        let mut out = [0; ETHERNET_LEN + ANSWER_LEN];
        out[..6].copy_from_slice(&LINK.0);
        out[6..12].copy_from_slice(&HOLDFAST.0);
        out[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        out[ETHERNET_LEN..].copy_from_slice(&self.encode());
        out
    }
}

/// Whether a frame belongs to the channel, well-formed or not.
///
/// Bound: two comparisons. Allocations: none.
#[must_use]
pub fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE.to_be_bytes()) && frame.get(..6) == Some(&LINK.0)
}

fn begin(out: &mut [u8], kind: u8, nonce: u64) {
    let len = out.len() as u16;
    out[..4].copy_from_slice(&MAGIC);
    out[4] = VERSION;
    out[5] = kind;
    out[6..8].copy_from_slice(&len.to_be_bytes());
    out[8..16].copy_from_slice(&nonce.to_be_bytes());
}

/// The message at the beginning of `bytes`, which has `least` bytes or more.
fn message(bytes: &[u8], kind: u8, least: usize) -> Result<&[u8], Malformed> {
    let head = bytes.get(..8).ok_or(Malformed)?;
    let len = usize::from(u16::from_be_bytes([head[6], head[7]]));
    if head[..4] != MAGIC || head[4] != VERSION || head[5] != kind || len < least {
        return Err(Malformed);
    }
    bytes.get(..len).ok_or(Malformed)
}

fn word(message: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
}

fn long(message: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&message[at..at + 8]);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: Answer = Answer {
        nonce: 0x0102_0304_0506_0708,
        mode: PortMode::Speculative,
        epoch_us: 25_000,
        host_realtime_ns: 1_800_000_000_000_000_001,
        least_wait_us: 1500,
    };

    #[test]
    fn messages_are_read_back_as_written() {
        let ask = Ask { nonce: 7 };
        assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
        for mode in [PortMode::Native, PortMode::Commit, PortMode::Speculative, PortMode::Aware] {
            let answer = Answer { mode, ..ANSWER };
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        let frame = ANSWER.frame();
        assert!(is_ours(&frame));
        assert_eq!(Answer::decode(&frame[ETHERNET_LEN..]), Ok(ANSWER));
    }

    #[test]
    fn what_a_later_version_adds_and_padding_are_read_over() {
        let mut longer = ANSWER.encode().to_vec();
        longer.extend([9; 8]);
        longer[6..8].copy_from_slice(&44u16.to_be_bytes());
        longer.extend([0; 6]);
        assert_eq!(Answer::decode(&longer), Ok(ANSWER));
    }

    #[test]
    fn an_answer_of_a_holdfast_that_does_not_know_the_least_wait_is_read_without_it() {
        let mut shorter = ANSWER.encode();
        shorter[6..8].copy_from_slice(&32u16.to_be_bytes());
        assert_eq!(Answer::decode(&shorter[..32]), Ok(Answer { least_wait_us: 0, ..ANSWER }));
        assert_eq!(Answer::decode(&shorter), Ok(Answer { least_wait_us: 0, ..ANSWER }), "with padding");
        assert_eq!(Answer::decode(&ANSWER.encode()[..32]), Err(Malformed), "it was cut");
    }

    /// RB-1: a message that is wrong anywhere in its head is none.
    #[test]
    fn a_message_that_does_not_fit_is_refused() {
        for (at, value) in [(0, b'h'), (4, 1), (4, 3), (5, KIND_ANSWER), (6, 0xff), (7, 15)] {
            let mut bytes = Ask { nonce: 7 }.encode();
            bytes[at] = value;
            assert_eq!(Ask::decode(&bytes), Err(Malformed), "byte {at}");
        }
        for len in 0..ASK_LEN {
            assert_eq!(Ask::decode(&Ask { nonce: 7 }.encode()[..len]), Err(Malformed));
        }
        let mut unknown = ANSWER.encode();
        unknown[16] = 4;
        assert_eq!(Answer::decode(&unknown), Err(Malformed));
    }

    proptest! {
        /// RB-1: whatever comes is read or refused.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80), head: bool) {
            let mut bytes = bytes;
            if head && bytes.len() >= 8 {
                bytes[..6].copy_from_slice(b"HFGC\x02\x01");
            }
            if let Ok(ask) = Ask::decode(&bytes) {
                prop_assert_eq!(&ask.encode()[8..], &bytes[8..16]);
            }
            prop_assert!(Answer::decode(&bytes).is_err() || bytes.len() >= SHORT_ANSWER_LEN);
            let ours = bytes.len() >= 14 && bytes[..6] == LINK.0 && bytes[12..14] == [0x88, 0xb5];
            prop_assert_eq!(is_ours(&bytes), ours);
        }
    }
}
