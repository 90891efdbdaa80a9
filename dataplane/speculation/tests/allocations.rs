//! The engine allocates nothing after its construction, and that is bounded: an allocator that counts
//! watches it.

mod ends;

use ends::{Ends, Wire};
use holdfast_counting::{allocations_here, bytes_here};
use holdfast_epoch::EpochId;
use holdfast_packet::headers::flag;
use holdfast_speculation::{Engine, EngineConfig, FlowState, FromGuest, FromWire, Speculation, Time};
use std::time::Duration;

/// An engine, and how much it has allocated since it was made. Frames are made outside of what is
/// counted.
struct Watched {
    engine: Engine,
    now: Time,
    epoch: u64,
    wire: Wire,
    chunk: Vec<u8>,
    state: Vec<u8>,
    allocations: u64,
    emitted: usize,
    taken: usize,
}

impl Watched {
    fn new(config: EngineConfig) -> Self {
        let mut engine = Engine::new(config);
        engine.set_mode(Time::ZERO, Speculation::On);
        Self {
            engine,
            now: Time::ZERO,
            epoch: 0,
            wire: Wire::new(),
            chunk: Vec::with_capacity(1 << 20),
            state: Vec::with_capacity(64 << 20),
            allocations: 0,
            emitted: 0,
            taken: 0,
        }
    }

    fn watch<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        let before = allocations_here();
        let result = work(self);
        self.allocations += allocations_here() - before;
        result
    }

    fn guest(&mut self, frame: &[u8], checksum_done: bool) {
        let verdict = self.watch(|own| ends::from_guest(&mut own.engine, own.now, frame, checksum_done));
        self.taken += usize::from(verdict == FromGuest::Taken);
    }

    fn client(&mut self, frame: &mut [u8]) {
        let verdict = self.watch(|own| own.engine.handle_wire(own.now, frame));
        self.taken += usize::from(verdict == FromWire::Taken);
    }

    /// Room in the window that the guest of a flow sees.
    fn window(&self, ends: &Ends) -> usize {
        let mut flows = self.engine.flows();
        flows.find(|flow| flow.client.1 == ends.ports().1).map_or(0, |flow| flow.window_bytes as usize)
    }

    /// A turn of the core.
    fn turn(&mut self) {
        self.watch(|own| {
            own.chunk.clear();
            while own.engine.stream(64 * 1024, &mut own.chunk) > 0 {
                own.chunk.clear();
            }
            if own.engine.next_deadline().is_some_and(|deadline| deadline <= own.now) {
                own.engine.handle_timeouts(own.now);
            }
            own.emitted += own.engine.poll_guest(own.now, &mut own.wire);
            loop {
                match own.engine.poll_wire(own.now, 32, &mut own.wire) {
                    0 => break,
                    count => own.emitted += count,
                }
            }
        });
    }

    /// An epoch is cut and committed.
    fn epoch(&mut self) {
        self.turn();
        self.watch(|own| {
            own.epoch += 1;
            own.state.clear();
            own.engine.cut(EpochId::new(own.epoch), own.epoch == 1, &mut own.state);
            own.engine.commit(own.now, EpochId::new(own.epoch));
        });
        self.turn();
    }

    /// A handshake begun by the client.
    fn open(&mut self, ends: &Ends) {
        self.client(&mut ends.client_syn());
        self.guest(&ends.guest_syn_ack(), true);
        self.epoch();
        self.client(&mut ends.client_ack(1, 1));
    }

    fn wait(&mut self, by: Duration) {
        let target = self.now + by;
        while let Some(deadline) = self.engine.next_deadline().filter(|deadline| *deadline < target) {
            self.now = deadline.max(self.now + Duration::from_micros(1));
            self.turn();
        }
        self.now = target;
        self.turn();
    }
}

/// RB-1: segments large and small, forged ACKs, cuts, commits, the client leg, ACKs, retransmissions and
/// probes.
#[test]
fn the_hot_path_allocates_nothing() {
    let mut watched = Watched::new(EngineConfig { max_flows: 64, ..EngineConfig::default() });
    let flows: Vec<Ends> = (0..32).map(|nth| Ends::new(nth, nth % 2 == 1)).collect();
    for ends in &flows {
        watched.open(ends);
    }
    let mut next = vec![1; flows.len()];
    for round in 0..60 {
        let wish = [1448, 20_000, 100, 60_000][round % 4];
        for (ends, next) in flows.iter().zip(&mut next) {
            let len = wish.min(watched.window(ends));
            watched.guest(&ends.guest_data(*next, len), len > 1448);
            *next += len as u32;
        }
        // What was sent is sent again, and something behind a gap.
        let (ends, end) = (&flows[round % 32], next[round % 32]);
        watched.guest(&ends.guest_data(end - 10, 10), true);
        watched.guest(&ends.guest_data(end + 200_000, 10), true);
        watched.epoch();
        watched.wait(Duration::from_millis(3));
        // Some ACKs are late, so that retransmissions and probes leave; all confirm in the end.
        let late = round % 5 == 4;
        for ends in flows.iter().filter(|_| !late) {
            let got = watched.wire.got(ends);
            watched.client(&mut ends.client_data(1, 100, got));
            watched.client(&mut ends.client_ack(101, got));
        }
        watched.wait(Duration::from_millis(if late { 900 } else { 10 }));
    }
    for _ in 0..100 {
        watched.wait(Duration::from_millis(100));
        for ends in &flows {
            let got = watched.wire.got(ends);
            watched.client(&mut ends.client_ack(101, got));
        }
    }
    assert!(next.iter().all(|next| *next > 300_000), "windows grow with their use: {next:?}");
    assert_eq!(watched.engine.held_bytes(), 0, "everything was confirmed");
    assert!(watched.emitted > 5_000, "{} frames were emitted", watched.emitted);
    assert!(watched.taken > 3_000, "{} frames were taken", watched.taken);
    assert_eq!(watched.allocations, 0);
}

/// RB-1: ten times as many connections as the table has room for come and go.
#[test]
fn flows_come_and_go_without_an_allocation() {
    let mut watched = Watched::new(EngineConfig { max_flows: 64, ..EngineConfig::default() });
    for nth in 0..640 {
        let ends = Ends::new(nth, nth % 3 == 0);
        watched.open(&ends);
        watched.guest(&ends.guest_data(1, 5_000), false);
        watched.epoch();
        watched.wait(Duration::from_millis(2));
        watched.client(&mut ends.client_ack(1, 5_001));
        watched.wait(Duration::from_millis(2));
        match nth % 4 {
            0 => watched.client(&mut ends.client_segment(flag::RST, 1, 0)),
            1 => watched.guest(&ends.guest_segment(flag::RST | flag::ACK, 5_001, 1), true),
            2 => {
                watched.guest(&ends.guest_segment(flag::FIN | flag::ACK, 5_001, 1), true);
                watched.epoch();
                watched.client(&mut ends.client_segment(flag::FIN | flag::ACK, 1, 5_002));
                watched.guest(&ends.guest_segment(flag::ACK, 5_002, 2), true);
            }
            _ => {}
        }
        watched.epoch();
    }
    assert!(watched.engine.flows().count() <= 64);
    assert_eq!(watched.engine.held_bytes(), 0);
    assert_eq!(watched.allocations, 0);
}

/// RB-1: 64 Ki flows in bounded memory, all of it allocated by the construction.
#[test]
fn the_memory_of_65536_flows_is_bounded_and_allocated_once() {
    const FLOWS: usize = 65_536;
    const HELD: usize = 512 << 20;
    let before = bytes_here();
    let config = EngineConfig { max_flows: FLOWS, held_bytes: HELD, ..EngineConfig::default() };
    let footprint = Engine::footprint(&config);
    let mut engine = Engine::new(config);
    let all = (bytes_here() - before) as usize;
    assert!(all <= footprint, "{all} bytes were allocated, {footprint} announced");
    let beside = all - HELD;
    println!(
        "64 Ki flows: {} MiB, {} bytes a flow beside the {} MiB held",
        all >> 20,
        beside / FLOWS,
        HELD >> 20
    );
    assert!(beside / FLOWS <= 2_048, "{} bytes a flow", beside / FLOWS);
    engine.set_mode(Time::ZERO, Speculation::On);
    let mut watched = Watched {
        engine,
        ..Watched::new(EngineConfig { max_flows: 1, held_bytes: 1 << 20, ..EngineConfig::default() })
    };
    let flows: Vec<Ends> = (0..FLOWS as u32).map(|nth| Ends::new(nth, false)).collect();
    for ends in &flows {
        watched.client(&mut ends.client_syn());
        watched.guest(&ends.guest_syn_ack(), true);
    }
    watched.epoch();
    for ends in &flows {
        watched.client(&mut ends.client_ack(1, 1));
        watched.guest(&ends.guest_data(1, 100), true);
    }
    watched.epoch();
    let speculating = watched
        .engine
        .flows()
        .filter(|flow| flow.state == FlowState::Speculating && flow.held_bytes == 100)
        .count();
    assert_eq!(speculating, FLOWS);
    assert_eq!(watched.allocations, 0, "flows that are established and hold bytes");
}
