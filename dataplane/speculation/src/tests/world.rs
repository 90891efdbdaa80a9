//! What surrounds an engine: a core loop's escrow and queues, a backup's ledger, and frames by hand.

use crate::key::Side;
use crate::segment::{Parsed, Segment};
use crate::*;
use holdfast_epoch::EpochId;
use holdfast_packet::headers::flag::{ACK, FIN, PSH, SYN};
use holdfast_packet::sample;
use std::time::Duration;

pub(super) const GUEST_ISS: u32 = 0xffff_f000;
pub(super) const CLIENT_ISS: u32 = 5000;
/// First bytes of both sides.
pub(super) const G: u32 = GUEST_ISS.wrapping_add(1);
pub(super) const C: u32 = CLIENT_ISS + 1;
/// Port of the guest, and of the client.
pub(super) const PORTS: (u16, u16) = (5001, 40000);

/// A segment to be sent.
#[derive(Clone, Debug)]
pub(super) struct Seg {
    pub(super) v6: bool,
    pub(super) tags: Vec<[u8; 4]>,
    pub(super) ports: (u16, u16),
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Seg {
    /// A pure ACK.
    pub(super) fn ack(seq: u32, ack: u32) -> Self {
        Self {
            v6: false,
            tags: Vec::new(),
            ports: PORTS,
            seq,
            ack,
            flags: ACK,
            window: 500,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// A segment with data.
    pub(super) fn data(seq: u32, ack: u32, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), flags: ACK | PSH, ..Self::ack(seq, ack) }
    }

    pub(super) fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub(super) fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    pub(super) fn times(mut self, value: u32, echo: u32) -> Self {
        self.options.splice(0..0, crate::options::timestamps(value, echo));
        self
    }

    pub(super) fn sack(mut self, left: u32, right: u32) -> Self {
        self.options.extend([1, 1, 5, 10]);
        self.options.extend(left.to_be_bytes());
        self.options.extend(right.to_be_bytes());
        self
    }

    pub(super) fn options(mut self, options: &[u8]) -> Self {
        self.options.extend(options);
        self
    }

    pub(super) fn ports(mut self, guest: u16, client: u16) -> Self {
        self.ports = (guest, client);
        self
    }

    pub(super) fn frame(&self, sender: Side) -> Vec<u8> {
        let (guest, client) = self.ports;
        let mut made = sample::Tcp::data(self.v6, self.payload.clone());
        made.tags = self.tags.clone();
        made.sequence = self.seq;
        made.acknowledgement = self.ack;
        made.flags = self.flags;
        made.window = self.window;
        made.options = self.options.clone();
        made.ports = if sender == Side::Guest { (guest, client) } else { (client, guest) };
        let at = made.transport();
        let mut bytes = made.bytes();
        if sender == Side::Client {
            // The sum of swapped addresses is the same.
            bytes[..12].rotate_left(6);
            let len = if self.v6 { 16 } else { 4 };
            let (source, destination) = bytes[at - 2 * len..at].split_at_mut(len);
            source.swap_with_slice(destination);
        }
        bytes
    }
}

/// A segment that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) times: Option<(u32, u32)>,
    pub(super) sack: bool,
    pub(super) scale: Option<u8>,
    pub(super) ect: bool,
    pub(super) payload: Vec<u8>,
    pub(super) ports: (u16, u16),
}

/// Reads a frame, whose checksum must be right.
pub(super) fn see(frame: &[u8], sender: Side) -> Seen {
    let Parsed::Tcp(found) = Segment::parse(frame, frame.len(), sender) else { panic!("no segment") };
    assert!(found.verifies(frame, sender), "a checksum is wrong: {found:?}");
    let ect = match found.network {
        holdfast_packet::headers::Network::V4(ip) => {
            assert!(holdfast_packet::checksum::Sum::ZERO.bytes(&frame[ip.offset..ip.offset + 20]).verifies());
            ip.service & 3 != 0
        }
        holdfast_packet::headers::Network::V6(ip) => ip.flow >> 20 & 3 != 0,
        _ => panic!("no IP"),
    };
    Seen {
        seq: found.seq.get(),
        ack: found.ack.get(),
        flags: found.flags,
        window: found.window,
        times: found.options.timestamps.map(|stamps| (stamps.value, stamps.echo)),
        sack: found.options.sack_at.is_some(),
        scale: found.options.window_scale,
        ect,
        payload: frame[found.payload_at..found.payload_at + found.len as usize].to_vec(),
        ports: (found.key.guest_port, found.key.client_port),
    }
}

/// A sink with room for so many frames.
pub(super) struct Frames {
    pub(super) taken: Vec<(Option<EpochId>, Vec<u8>)>,
    pub(super) room: usize,
}

impl Frames {
    pub(super) fn with_room(room: usize) -> Self {
        Self { taken: Vec::new(), room }
    }
}

impl Sink for Frames {
    fn emit(&mut self, len: usize, epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        if self.taken.len() == self.room {
            return false;
        }
        let mut frame = vec![0xee; len];
        write(&mut frame);
        self.taken.push((epoch, frame));
        true
    }
}

/// An engine and what surrounds it.
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) now: Time,
    /// The open epoch.
    pub(super) epoch: EpochId,
    pub(super) committed: Option<EpochId>,
    /// Frames of the guest that were passed.
    pub(super) escrow: Vec<(EpochId, Vec<u8>)>,
    /// What the guest got, forged or passed, since it was looked at.
    pub(super) guest: Vec<Seen>,
    /// What the client got since it was looked at.
    pub(super) client: Vec<Seen>,
    pub(super) ledger: Ledger,
    /// Streamed in the open epoch.
    pub(super) stream: Vec<u8>,
    /// Sealed epochs that are not committed: state and stream.
    pub(super) sealed: Vec<(EpochId, Vec<u8>, Vec<u8>)>,
    config: EngineConfig,
}

pub(super) fn config() -> EngineConfig {
    EngineConfig {
        max_flows: 64,
        held_bytes: 4 << 20,
        flow_bytes: 1 << 20,
        seed: 7,
        ..EngineConfig::default()
    }
}

pub(super) fn limits(config: &EngineConfig) -> LedgerLimits {
    LedgerLimits { max_flows: config.max_flows, held_bytes: config.held_bytes + (1 << 20) }
}

impl World {
    /// A protected port in mode `speculative`, whose backup has its first epoch.
    pub(super) fn new() -> Self {
        Self::of(config())
    }

    pub(super) fn of(config: EngineConfig) -> Self {
        let mut world = Self::unprotected(config);
        world.engine.set_mode(world.now, Speculation::On);
        world.seal_whole();
        world.commit_all();
        world
    }

    pub(super) fn unprotected(config: EngineConfig) -> Self {
        Self {
            engine: Engine::new(config.clone()),
            now: Time::from_ns(1_000_000_000),
            epoch: EpochId::FIRST,
            committed: None,
            escrow: Vec::new(),
            guest: Vec::new(),
            client: Vec::new(),
            ledger: Ledger::new(limits(&config)),
            stream: Vec::new(),
            sealed: Vec::new(),
            config,
        }
    }

    /// The guest sends; what is passed goes into the escrow, or out in mode off.
    pub(super) fn guest_sends(&mut self, segment: &Seg) -> FromGuest {
        self.guest_sends_frame(&segment.frame(Side::Guest), true)
    }

    /// The guest sends a segment that the engine takes.
    pub(super) fn guest_gives(&mut self, segment: &Seg) {
        assert_eq!(self.guest_sends(segment), FromGuest::Taken, "{segment:?}");
    }

    /// The guest sends a segment that goes its way.
    pub(super) fn guest_passes(&mut self, segment: &Seg) {
        assert_eq!(self.guest_sends(segment), FromGuest::Pass, "{segment:?}");
    }

    pub(super) fn guest_sends_frame(&mut self, frame: &[u8], checksum_done: bool) -> FromGuest {
        let head = &frame[..frame.len().min(holdfast_packet::headers::MAX_HEADERS)];
        let verdict = self.engine.handle_guest(self.now, &GuestFrame { head, frame: &frame, checksum_done });
        if verdict == FromGuest::Pass {
            if self.engine.mode() == Speculation::Off {
                self.let_out(frame.to_vec());
            } else {
                self.escrow.push((self.epoch, frame.to_vec()));
            }
        }
        verdict
    }

    fn let_out(&mut self, mut frame: Vec<u8>) {
        self.engine.release(self.now, &mut frame);
        if let Parsed::Tcp(_) = Segment::parse(&frame, frame.len(), Side::Guest) {
            self.client.push(see(&frame, Side::Guest));
        }
    }

    /// The client sends; what the guest gets of it, if anything.
    pub(super) fn client_sends(&mut self, segment: &Seg) -> Option<Seen> {
        let mut frame = segment.frame(Side::Client);
        match self.engine.handle_wire(self.now, &mut frame) {
            FromWire::Pass => {
                let seen = see(&frame, Side::Client);
                self.guest.push(seen.clone());
                Some(seen)
            }
            FromWire::Taken => None,
        }
    }

    /// The client sends a SYN; what the guest gets of it, perhaps made anew.
    pub(super) fn client_begins(&mut self, segment: &Seg) -> Seen {
        self.client_sends(segment);
        self.speak();
        self.guest.last().expect("a SYN is passed").clone()
    }

    /// Streams all that is held, and lets the engine speak to the guest.
    pub(super) fn turn(&mut self) {
        while self.engine.stream(1000, &mut self.stream) > 0 {}
        self.speak();
        self.transmit();
    }

    /// Streams all that is held and lets the engine speak to the guest; no backup will look at it.
    pub(super) fn turn_to_guest(&mut self) {
        while self.engine.stream(1000, &mut self.stream) > 0 {}
        self.stream.clear();
        self.speak();
    }

    /// Commits the oldest sealed epoch without a backup.
    pub(super) fn commit_oldest(&mut self) {
        let (epoch, ..) = self.sealed.remove(0);
        self.committed = Some(epoch);
        self.engine.commit(self.now, epoch);
    }

    /// Lets the engine speak to the guest without streaming anything before.
    pub(super) fn speak(&mut self) {
        let mut sink = Frames::with_room(1000);
        self.engine.poll_guest(self.now, &mut sink);
        self.guest.extend(sink.taken.iter().map(|(_, frame)| see(frame, Side::Client)));
    }

    /// Lets the client leg send what it may now.
    pub(super) fn transmit(&mut self) {
        let mut sink = Frames::with_room(10_000);
        self.engine.poll_wire(self.now, 10_000, &mut sink);
        for (epoch, frame) in sink.taken {
            // OC-1: what leaves belongs to a committed epoch.
            let free = epoch.is_none_or(|epoch| Some(epoch) <= self.committed);
            assert!(free, "a frame of {epoch:?} leaves while {:?} is committed", self.committed);
            self.client.push(see(&frame, Side::Guest));
        }
    }

    /// Seals the open epoch.
    pub(super) fn seal(&mut self) -> EpochId {
        self.turn();
        self.seal_as(false)
    }

    pub(super) fn seal_whole(&mut self) -> EpochId {
        self.seal_as(true)
    }

    pub(super) fn seal_as(&mut self, whole: bool) -> EpochId {
        let mut state = Vec::new();
        self.engine.cut(self.epoch, whole, &mut state);
        self.sealed.push((self.epoch, state, std::mem::take(&mut self.stream)));
        let sealed = self.epoch;
        self.epoch = sealed.next();
        sealed
    }

    /// Commits the oldest sealed epoch: the backup keeps it, and its output goes.
    pub(super) fn commit(&mut self) {
        let (epoch, state, stream) = self.sealed.remove(0);
        self.ledger.apply(&state, &stream).expect("the backup takes every epoch");
        self.committed = Some(epoch);
        let out = std::mem::take(&mut self.escrow);
        let (free, held) = out.into_iter().partition::<Vec<_>, _>(|(of, _)| *of <= epoch);
        self.escrow = held;
        free.into_iter().for_each(|(_, frame)| self.let_out(frame));
        self.engine.commit(self.now, epoch);
        self.transmit();
        self.speak();
    }

    pub(super) fn commit_all(&mut self) {
        while !self.sealed.is_empty() {
            self.commit();
        }
    }

    /// Protection ends: all that is in escrow goes.
    pub(super) fn open_escrow(&mut self) {
        for (_, frame) in std::mem::take(&mut self.escrow) {
            self.let_out(frame);
        }
    }

    /// Seals and commits.
    pub(super) fn epoch(&mut self) {
        self.seal();
        self.commit_all();
    }

    /// Runs timers until `ms` have passed.
    pub(super) fn run_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some(due) = self.engine.next_deadline().filter(|&due| due <= end) {
            self.now = self.now.max(due);
            self.engine.handle_timeouts(self.now);
            self.transmit();
            self.speak();
        }
        self.now = end;
    }

    /// The other host goes on from the last committed epoch: the guest is the one of its cut.
    pub(super) fn fail_over(&mut self) {
        let mut engine = Engine::new(self.config.clone());
        engine.restore(self.now, self.ledger.clone());
        self.engine = engine;
        self.escrow.clear();
        self.sealed.clear();
        self.stream.clear();
        self.guest.clear();
        self.client.clear();
        self.epoch = self.committed.expect("something is committed").next();
        // Solo until there is a new backup.
        self.transmit();
        self.speak();
    }

    /// What the guest got since it was looked at.
    pub(super) fn guest_got(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.guest)
    }

    /// What the client got since it was looked at.
    pub(super) fn client_got(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.client)
    }

    pub(super) fn count(&self, event: Event) -> u64 {
        self.engine.counters().get(event)
    }

    /// The only flow.
    pub(super) fn flow(&self) -> FlowReport {
        let flows = self.engine.flows().collect::<Vec<_>>();
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows[0].clone()
    }

    /// A connection that the client opened, with no options; both windows are 500 bytes at least.
    pub(super) fn open(&mut self) {
        self.open_with(&SYN_OPTIONS);
    }

    /// A connection with these options in both SYNs.
    pub(super) fn open_with(&mut self, options: &[u8]) {
        let times = options.contains(&8);
        let syn = Seg::ack(CLIENT_ISS, 0).flags(SYN).window(60000).options(options);
        self.client_begins(&syn);
        let answer = Seg::ack(GUEST_ISS, C).flags(SYN | ACK).window(60000).options(options);
        self.guest_passes(&answer);
        self.epoch();
        let mut ack = Seg::ack(C, G);
        if times {
            ack = ack.times(101, 100);
        }
        self.client_sends(&ack).expect("the guest needs the end of the handshake");
        self.turn();
        self.guest_got();
        self.client_got();
    }
}

/// MSS 1000 and a window scale of 7.
pub(super) const SYN_OPTIONS: [u8; 8] = [2, 4, 0x03, 0xe8, 1, 3, 3, 7];

/// The same with SACK and timestamps, whose value is 100.
pub(super) const RICH_OPTIONS: [u8; 20] =
    [2, 4, 0x03, 0xe8, 1, 3, 3, 7, 4, 2, 8, 10, 0, 0, 0, 100, 0, 0, 0, 0];

/// Bytes that tell their place.
pub(super) fn pattern(from: u32, len: usize) -> Vec<u8> {
    let places = (0..len as u32).map(|n| from.wrapping_add(n));
    places.map(|n| (n.wrapping_mul(7) ^ (n >> 8)) as u8).collect()
}

pub(super) fn at(offset: u32) -> u32 {
    G.wrapping_add(offset)
}

pub(super) const FIN_ACK: u8 = FIN | ACK;
