//! One bulk flow through an engine, step by step, for the bench and for the count of allocations.

use holdfast_epoch::EpochId;
use holdfast_packet::sample;
use holdfast_speculation::{Engine, EngineConfig, FromGuest, FromWire, GuestFrame, Sink, Speculation, Time};

/// Payload of a segment, with timestamps on a path of 1500 bytes.
pub(crate) const PAYLOAD: u32 = 1448;

const WARM_UP: u32 = 200;

const FIRST: u32 = 1001;
const CLIENT_FIRST: u32 = 5001;

/// Takes every frame into one buffer, and counts.
pub(crate) struct Count {
    buffer: Vec<u8>,
    /// Frames taken.
    pub(crate) frames: usize,
}

impl Sink for Count {
    fn emit(&mut self, len: usize, _: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        self.frames += 1;
        write(&mut self.buffer[..len]);
        true
    }
}

/// An engine with one open flow.
pub(crate) struct Traffic {
    /// The engine.
    pub(crate) engine: Engine,
    /// Frames that it made.
    pub(crate) sink: Count,
    now: Time,
    epoch: EpochId,
    next: u32,
    confirmed: u32,
    stream: Vec<u8>,
    state: Vec<u8>,
}

fn segment(guest: bool, seq: u32, ack: u32, flags: u8, options: &[u8], payload: usize) -> Vec<u8> {
    let mut made = sample::Tcp::data(false, vec![0x5a; payload]);
    (made.sequence, made.acknowledgement, made.flags) = (seq, ack, flags);
    made.window = 0xffff;
    made.options = options.to_vec();
    if !guest {
        made.ports = (made.ports.1, made.ports.0);
    }
    let mut bytes = made.bytes();
    if !guest {
        // The sum of swapped addresses is the same.
        bytes[..12].rotate_left(6);
        bytes[26..34].rotate_left(4);
    }
    bytes
}

impl Traffic {
    /// A protected port in mode `speculative` with one flow, 16 MiB of window.
    pub(crate) fn new() -> Self {
        let config = EngineConfig { held_bytes: 64 << 20, ..EngineConfig::default() };
        let mut traffic = Self {
            engine: Engine::new(config),
            sink: Count { buffer: vec![0; 2048], frames: 0 },
            now: Time::from_ns(1),
            epoch: EpochId::FIRST,
            next: FIRST,
            confirmed: FIRST,
            stream: Vec::with_capacity(32 << 20),
            state: Vec::with_capacity(1 << 20),
        };
        traffic.engine.set_mode(traffic.now, Speculation::On);
        let options = [2, 4, 5, 0xb4, 1, 3, 3, 9, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
        let syn = &mut segment(false, CLIENT_FIRST - 1, 0, 0x02, &options, 0);
        assert_eq!(traffic.wire(syn), FromWire::Pass);
        let answer = segment(true, FIRST - 1, CLIENT_FIRST, 0x12, &options, 0);
        assert_eq!(traffic.guest(&answer), FromGuest::Pass);
        let stamps = [1, 1, 8, 10, 0, 0, 0, 2, 0, 0, 0, 1];
        let ack = &mut segment(false, CLIENT_FIRST, FIRST, 0x10, &stamps, 0);
        assert_eq!(traffic.wire(ack), FromWire::Pass);
        // Its window grows while it is made use of.
        for _ in 0..WARM_UP {
            let frames = traffic.guest_frames(1);
            traffic.take(&frames);
            traffic.stream_and_acknowledge();
        }
        let mut acks = traffic.client_acks(WARM_UP);
        traffic.seal_and_commit();
        traffic.confirm(&mut acks);
        traffic
    }

    fn guest(&mut self, frame: &[u8]) -> FromGuest {
        let head = &frame[..frame.len().min(256)];
        self.engine.handle_guest(self.now, &GuestFrame { head, frame: &frame, checksum_done: false })
    }

    fn wire(&mut self, frame: &mut [u8]) -> FromWire {
        self.engine.handle_wire(self.now, frame)
    }

    /// The next segments of the guest.
    pub(crate) fn guest_frames(&mut self, count: u32) -> Vec<Vec<u8>> {
        let first = self.next;
        self.next += count * PAYLOAD;
        let stamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2];
        (0..count)
            .map(|nth| segment(true, first + nth * PAYLOAD, CLIENT_FIRST, 0x18, &stamps, PAYLOAD as usize))
            .collect()
    }

    /// The client's ACKs of every second of them.
    pub(crate) fn client_acks(&mut self, count: u32) -> Vec<Vec<u8>> {
        let stamps = [1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 9];
        let first = self.confirmed;
        self.confirmed += count * PAYLOAD;
        let acks = (1..=count).filter(|nth| nth % 2 == 0 || *nth == count);
        acks.map(|nth| segment(false, CLIENT_FIRST, first + nth * PAYLOAD, 0x10, &stamps, 0)).collect()
    }

    /// The guest sends.
    pub(crate) fn take(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            assert_eq!(self.guest(frame), FromGuest::Taken);
        }
    }

    /// What is held goes into the stream, and the guest gets ACKs.
    pub(crate) fn stream_and_acknowledge(&mut self) {
        self.stream.clear();
        while self.engine.stream(64 << 10, &mut self.stream) > 0 {}
        self.engine.poll_guest(self.now, &mut self.sink);
    }

    /// The epoch is sealed and committed.
    pub(crate) fn seal_and_commit(&mut self) {
        self.state.clear();
        self.engine.cut(self.epoch, false, &mut self.state);
        self.engine.commit(self.now, self.epoch);
        self.epoch = self.epoch.next();
    }

    /// Segments leave for the client.
    pub(crate) fn send(&mut self) {
        self.engine.poll_wire(self.now, usize::MAX, &mut self.sink);
    }

    /// The client confirms; what its window or the pace held back leaves in between.
    pub(crate) fn confirm(&mut self, acks: &mut [Vec<u8>]) {
        for ack in acks {
            self.now = Time::from_ns(self.now.as_ns() + 100_000);
            self.engine.handle_timeouts(self.now);
            self.engine.poll_wire(self.now, usize::MAX, &mut self.sink);
            assert_eq!(self.engine.handle_wire(self.now, ack), FromWire::Taken);
        }
        self.engine.poll_guest(self.now, &mut self.sink);
    }

    /// Time passes.
    pub(crate) fn advance(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.engine.handle_timeouts(self.now);
    }
}
