//! A flow whose handshake is under way: what each side's SYN said.
//!
//! A flow may speculate only if both SYNs were seen and nothing in them is unknown (options, data in
//! a SYN, AccECN, IP options): everything else gets plain output commit. RFC 9293 §3.5 is followed for
//! the usual handshake; a simultaneous open stays plain.

use crate::emission::Pattern;
use crate::key::Side;
use crate::lent::Loan;
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::time::Time;
use crate::window::{Scale, Scaled};
use holdfast_packet::headers::flag;

/// What one side's SYN said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        let hello = Self::read(segment);
        let ecn_bits = segment.flags & (flag::ECE | flag::CWR);
        let strange = segment.accurate_ecn
            || (ecn_bits != 0 && !hello.ecn)
            || segment.flags & (flag::FIN | flag::RST | flag::URG) != 0
            || segment.len > 0
            || segment.options.unknown
            || segment.options.sack_at.is_some()
            || segment.ip_options;
        (!strange).then_some(hello)
    }

    /// What is known in a SYN, whatever else it has.
    pub(crate) fn read(segment: &Segment) -> Self {
        let answer = segment.has(flag::ACK);
        // RFC 3168 §6.1.1: both bits ask, ECE alone agrees. CWR alone, or AE, speak of AccECN (RFC 9768).
        let ecn_bits = segment.flags & (flag::ECE | flag::CWR);
        let ecn = ecn_bits == if answer { flag::ECE } else { flag::ECE | flag::CWR };
        Self {
            iss: segment.seq,
            mss: segment.options.mss,
            scale: segment.options.window_scale.map(Scale::new),
            sack: segment.options.sack_permitted,
            tsval: segment.options.timestamps.map(|found| found.value),
            ecn,
            window: Scaled(segment.window),
            pattern: Pattern::of(segment),
        }
    }
}

/// A handshake under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) initiator: Side,
    pub(crate) syn: Hello,
    pub(crate) answer: Option<Hello>,
    /// Edge of the window that the guest was shown in the client's SYN, relative to its first byte.
    pub(crate) shown: u32,
    /// The client's SYN came more than once.
    pub(crate) again: bool,
    /// A scale that was lent to the client.
    pub(crate) loan: Option<Loan>,
    /// Something in it is not understood: the flow stays plain, and is known only for its lent scale.
    pub(crate) strange: bool,
    /// When it began.
    pub(crate) since: Time,
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
    /// Scale that was lent to the client.
    pub(crate) lent: Option<Scale>,
    /// The flow stays plain.
    pub(crate) strange: bool,
}

impl Opening {
    /// The handshake that `sender` begins with a SYN.
    pub(crate) const fn new(sender: Side, syn: Hello, now: Time) -> Self {
        Self {
            initiator: sender,
            syn,
            answer: None,
            shown: 0,
            again: false,
            loan: None,
            strange: false,
            since: now,
        }
    }

    /// What the client's SYN said, if there was one.
    pub(crate) fn client(&self) -> Option<Hello> {
        if self.initiator == Side::Client { Some(self.syn) } else { self.answer }
    }

    /// What the guest's SYN said, if there was one.
    fn guest(&self) -> Option<Hello> {
        if self.initiator == Side::Guest { Some(self.syn) } else { self.answer }
    }

    /// The ACK of the client's SYN, if that is an answer.
    pub(crate) fn acknowledged_by_client(&self) -> Option<SeqNum> {
        (self.initiator == Side::Guest).then(|| self.syn.iss + 1)
    }

    /// Scale of the guest's windows.
    pub(crate) fn guest_scale(&self) -> Scale {
        self.guest().and_then(|hello| hello.scale).unwrap_or(Scale::NONE)
    }

    /// Whether a scale may be lent to the client whose SYN this is: it offers none, the guest does or may
    /// yet, and the guest has not seen another SYN of this attempt, which may have said something else.
    pub(crate) fn may_lend(&self, segment: &Segment) -> bool {
        let unscaled = self.client().is_some_and(|hello| hello.scale.is_none());
        let wanted = self.initiator == Side::Client || self.syn.scale.is_some();
        self.is_of_client(segment) && unscaled && wanted && !self.again && !self.strange
    }

    /// Whether this is the SYN of the client that counts.
    pub(crate) fn is_of_client(&self, segment: &Segment) -> bool {
        let ack = segment.has(flag::ACK).then_some(segment.ack);
        self.client().is_some_and(|hello| hello.iss == segment.seq) && ack == self.acknowledged_by_client()
    }

    /// Whether a reset ends it: one of the client exactly where the guest expects it (RFC 5961 §3.2), one of
    /// the guest that is about this attempt (RFC 9293 §3.10.7).
    pub(crate) fn is_ended_by(&self, sender: Side, segment: &Segment) -> bool {
        let next = |hello: Option<Hello>| hello.map(|hello| hello.iss + 1);
        let acks_client = segment.has(flag::ACK) && Some(segment.ack) == next(self.client());
        match sender {
            Side::Client => Some(segment.seq) == next(self.client()),
            Side::Guest => acks_client || Some(segment.seq) == next(self.guest()),
        }
    }

    /// Takes up another SYN of the handshake; false when it belongs to no handshake that is understood.
    pub(crate) fn syn(&mut self, sender: Side, segment: &Segment, hello: Hello) -> bool {
        match (sender == self.initiator, segment.has(flag::ACK)) {
            // Sent again, perhaps with fewer options, or a new attempt.
            (true, false) => {
                let same = hello.iss == self.syn.iss;
                if !same {
                    self.answer = None;
                    self.shown = 0;
                    self.loan = None;
                }
                self.again = same && (self.again || sender == Side::Client);
                self.syn = hello;
                true
            }
            (false, true) if segment.ack == self.syn.iss + 1 => {
                let same = self.answer.is_some_and(|answer| answer.iss == hello.iss);
                if sender == Side::Client {
                    self.again = self.answer.is_some();
                    self.loan = self.loan.filter(|_| same);
                }
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
        let answer = self.answer?;
        let completes = sender == self.initiator
            && segment.flags & (flag::SYN | flag::RST | flag::ACK) == flag::ACK
            && segment.ack == answer.iss + 1
            // Behind a first segment that was lost, others may come.
            && segment.seq.minus(self.syn.iss + 1) >= 0
            && segment.seq.bytes_since(self.syn.iss + 1) <= u32::from(u16::MAX);
        completes.then(|| self.handshake(answer))
    }

    /// The handshake as far as it is known, of a flow that must be known for its lent scale.
    pub(crate) fn broken_off(&self) -> Option<Handshake> {
        self.answer.map(|answer| Handshake { strange: true, ..self.handshake(answer) })
    }

    fn handshake(&self, answer: Hello) -> Handshake {
        let (guest, client, answered) = match self.initiator {
            Side::Guest => (self.syn, answer, false),
            Side::Client => (answer, self.syn, true),
        };
        let lent = self.loan.map(|loan| loan.scale);
        Handshake { guest, client, shown: self.shown, answered, lent, strange: self.strange }
    }
}
