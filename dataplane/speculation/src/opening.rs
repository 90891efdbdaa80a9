//! A flow whose handshake is under way: what each side's SYN said.
//!
//! A flow may speculate only if both SYNs were seen and nothing in them is unknown (options, data in
//! a SYN, AccECN, IP options): everything else gets plain output commit. RFC 9293 §3.5 is followed for
//! the usual handshake; a simultaneous open stays plain.

use crate::emission::Pattern;
use crate::key::Side;
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::window::{Scale, Scaled};
use holdfast_packet::headers::flag;

/// What one side's SYN said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hello {
    pub(crate) iss: SeqNum,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<Scale>,
    pub(crate) sack: bool,
    pub(crate) tsval: Option<u32>,
    /// It asks for ECN, or agrees to it (RFC 3168 §6.1.1).
    pub(crate) ecn: bool,
    pub(crate) window: Scaled,
    pub(crate) pattern: Pattern,
}

impl Hello {
    /// What a SYN says; none when it has something that is not known.
    pub(crate) fn of(segment: &Segment) -> Option<Self> {
        let answer = segment.has(flag::ACK);
        let ecn_bits = segment.flags & (flag::ECE | flag::CWR);
        // RFC 3168 §6.1.1: both bits ask, ECE alone agrees. CWR alone, or AE, speak of AccECN (RFC 9768).
        let ecn = ecn_bits == if answer { flag::ECE } else { flag::ECE | flag::CWR };
        let strange = segment.accurate_ecn
            || (ecn_bits != 0 && !ecn)
            || segment.flags & (flag::FIN | flag::RST | flag::URG) != 0
            || segment.len > 0
            || segment.options.unknown
            || segment.options.sack_at.is_some()
            || segment.ip_options;
        (!strange).then(|| Self {
            iss: segment.seq,
            mss: segment.options.mss,
            scale: segment.options.window_scale.map(Scale::new),
            sack: segment.options.sack_permitted,
            tsval: segment.options.timestamps.map(|found| found.value),
            ecn,
            window: Scaled(segment.window),
            pattern: Pattern::of(segment),
        })
    }
}

/// A handshake under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    initiator: Side,
    syn: Hello,
    answer: Option<Hello>,
    /// Edge of the window that the guest was shown in the client's SYN, relative to its first byte.
    pub(crate) shown: u32,
}

/// Both SYNs of a handshake that is complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshake {
    pub(crate) guest: Hello,
    pub(crate) client: Hello,
    /// Window that the guest was shown, in bytes beyond its first.
    pub(crate) shown: u32,
    /// The guest answered, and the client has the answer.
    pub(crate) answered: bool,
}

impl Opening {
    /// The handshake that `sender` begins with a SYN.
    pub(crate) const fn new(sender: Side, syn: Hello) -> Self {
        Self { initiator: sender, syn, answer: None, shown: 0 }
    }

    /// Takes up another SYN of the handshake; false when it belongs to no handshake that is understood.
    pub(crate) fn syn(&mut self, sender: Side, segment: &Segment, hello: Hello) -> bool {
        match (sender == self.initiator, segment.has(flag::ACK)) {
            // Sent again, perhaps with fewer options, or a new attempt.
            (true, false) => {
                if hello.iss != self.syn.iss {
                    self.answer = None;
                    self.shown = 0;
                }
                self.syn = hello;
                true
            }
            (false, true) if segment.ack == self.syn.iss + 1 => {
                self.answer = Some(hello);
                true
            }
            // RFC 9293 §3.5: an answer to an older attempt; the initiator resets it.
            (false, true) => true,
            (true, true) | (false, false) => false,
        }
    }

    /// Whether the side that answered sends data already: it has an ACK of its answer that did not come
    /// by, so that nothing is known of what else passes elsewhere.
    pub(crate) fn is_answered_unseen(&self, sender: Side, segment: &Segment) -> bool {
        sender != self.initiator && !segment.has(flag::SYN) && segment.space() > 0
    }

    /// The handshake that this segment completes: the initiator's ACK of the answer.
    pub(crate) fn completed(&self, sender: Side, segment: &Segment) -> Option<Handshake> {
        let (answer, shown) = (self.answer?, self.shown);
        let completes = sender == self.initiator
            && segment.flags & (flag::SYN | flag::RST | flag::ACK) == flag::ACK
            && segment.ack == answer.iss + 1
            // Behind a first segment that was lost, others may come.
            && segment.seq.minus(self.syn.iss + 1) >= 0
            && segment.seq.bytes_since(self.syn.iss + 1) <= u32::from(u16::MAX);
        completes.then_some(match self.initiator {
            Side::Guest => Handshake { guest: self.syn, client: answer, shown, answered: false },
            Side::Client => Handshake { guest: answer, client: self.syn, shown, answered: true },
        })
    }
}
