//! Both ends of a flow, for tests and benches: frames with the right checksums.

use holdfast_epoch::EpochId;
use holdfast_packet::headers::{MAX_HEADERS, flag};
use holdfast_packet::sample;
use holdfast_speculation::{Engine, FromGuest, GuestFrame, Sink, Time};

const GUEST_START: u32 = u32::MAX - 9_999;
const CLIENT_START: u32 = 77_000;

/// One flow: a client's port for each number below 65,536.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    nth: u32,
    v6: bool,
}

impl Ends {
    pub(crate) fn new(nth: u32, v6: bool) -> Self {
        Self { nth, v6 }
    }

    /// Ports of the guest and the client.
    pub(crate) fn ports(&self) -> (u16, u16) {
        ((5001 + self.nth / 50_000) as u16, (10_000 + self.nth % 50_000) as u16)
    }

    fn segment(&self, from_guest: bool, flags: u8, sequence: u32, ack: u32, payload: Vec<u8>) -> sample::Tcp {
        let mut segment = sample::Tcp::data(self.v6, payload);
        let (own, peer) = if from_guest { (GUEST_START, CLIENT_START) } else { (CLIENT_START, GUEST_START) };
        if from_guest {
            segment.ports = self.ports();
        } else {
            (segment.source, segment.destination) = (sample::CLIENT, sample::GUEST);
            segment.ports = (self.ports().1, self.ports().0);
        }
        segment.flags = flags;
        segment.sequence = own.wrapping_add(sequence);
        segment.acknowledgement = if flags & flag::ACK != 0 { peer.wrapping_add(ack) } else { 0 };
        segment.window = 60_000;
        segment
    }

    /// A frame, with the addresses of a client's packet the other way round.
    fn bytes(&self, segment: &sample::Tcp, from_guest: bool) -> Vec<u8> {
        let mut bytes = segment.bytes();
        if !from_guest {
            // The sums do not change.
            let (at, len) = if self.v6 { (14 + 8, 16) } else { (14 + 12, 4) };
            let (source, destination) = bytes[at..at + 2 * len].split_at_mut(len);
            source.swap_with_slice(destination);
        }
        bytes
    }

    fn syn(&self, from_guest: bool, flags: u8) -> Vec<u8> {
        let mut segment = self.segment(from_guest, flags, 0, 1, Vec::new());
        segment.options = vec![2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 1, 1, 0, 0, 2, 2, 1, 3, 3, 7];
        self.bytes(&segment, from_guest)
    }

    pub(crate) fn client_syn(&self) -> Vec<u8> {
        self.syn(false, flag::SYN)
    }

    pub(crate) fn guest_syn_ack(&self) -> Vec<u8> {
        self.syn(true, flag::SYN | flag::ACK)
    }

    pub(crate) fn client_ack(&self, sequence: u32, ack: u32) -> Vec<u8> {
        self.client_segment(flag::ACK, sequence, ack)
    }

    pub(crate) fn client_segment(&self, flags: u8, sequence: u32, ack: u32) -> Vec<u8> {
        self.bytes(&self.segment(false, flags, sequence, ack, Vec::new()), false)
    }

    pub(crate) fn client_data(&self, sequence: u32, len: usize, ack: u32) -> Vec<u8> {
        self.bytes(&self.segment(false, flag::ACK | flag::PSH, sequence, ack, vec![3; len]), false)
    }

    pub(crate) fn guest_data(&self, sequence: u32, len: usize) -> Vec<u8> {
        let payload = (0..len).map(|nth| (sequence as usize + nth) as u8).collect();
        self.bytes(&self.segment(true, flag::ACK | flag::PSH, sequence, 1, payload), true)
    }

    pub(crate) fn guest_segment(&self, flags: u8, sequence: u32, ack: u32) -> Vec<u8> {
        self.bytes(&self.segment(true, flags, sequence, ack, Vec::new()), true)
    }
}

/// Gives a frame of the guest to the engine.
pub(crate) fn from_guest(engine: &mut Engine, now: Time, frame: &[u8], checksum_done: bool) -> FromGuest {
    let head = &frame[..frame.len().min(MAX_HEADERS)];
    engine.handle_guest(now, &GuestFrame { head, frame: &frame, checksum_done })
}

/// Takes every frame, into the same buffer, and knows what each client has got.
pub(crate) struct Wire {
    buffer: Vec<u8>,
    /// By the client's port: the next byte in order, as an absolute number.
    got: Vec<u32>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; 16 * 1024], got: vec![GUEST_START.wrapping_add(1); 1 << 16] }
    }

    /// The next byte that the client of a flow waits for.
    pub(crate) fn got(&self, ends: &Ends) -> u32 {
        self.got[usize::from(ends.ports().1)].wrapping_sub(GUEST_START)
    }
}

impl Sink for Wire {
    fn emit(&mut self, len: usize, _epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        write(&mut self.buffer[..len]);
        let tcp = if self.buffer[12] == 0x86 { 54 } else { 34 };
        let word = |at: usize| u16::from_be_bytes([self.buffer[at], self.buffer[at + 1]]);
        let sequence = u32::from(word(tcp + 4)) << 16 | u32::from(word(tcp + 6));
        let payload = (len - tcp - usize::from(self.buffer[tcp + 12] >> 4) * 4) as u32;
        let got = &mut self.got[usize::from(word(tcp + 2))];
        let new = got.wrapping_sub(sequence);
        if new < payload {
            *got = sequence.wrapping_add(payload);
        }
        true
    }
}
