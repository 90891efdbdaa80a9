//! The dataplane node: one engine, and plain output commit for what it passes.

use crate::breakage::Breakage;
use crate::party::{EPHEMERAL, SERVICE};
use crate::random::Random;
use crate::scenario::{Mode, Offload, Scenario};
use crate::segment::Segment;
use crate::surgery;
use crate::trace::Trace;
use holdfast_epoch::EpochId;
use holdfast_speculation::client_leg::Congestion;
use holdfast_speculation::{
    Engine, EngineConfig, FromGuest, FromWire, GuestFrame, Ledger, LedgerLimits, Rule, Rules, Sink,
    Speculation, Time,
};
use std::collections::VecDeque;

/// Bytes of a frame that are given as its head.
const HEAD: usize = 256;

/// A frame of the guest that waits for its commit.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) epoch: u64,
    pub(crate) frame: Vec<u8>,
    /// It has a broken checksum since the guest sent it.
    pub(crate) broken: bool,
}

/// One host while it is alive.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) escrow: VecDeque<Waiting>,
    /// The epoch that is open.
    pub(crate) open: u64,
    pub(crate) mode: Mode,
    /// Frames that wait for the guest.
    pub(crate) inbound: VecDeque<Vec<u8>>,
    /// Streamed since the last cut.
    pub(crate) streamed: Vec<u8>,
    payload: usize,
    offload: Offload,
}

/// The engine's configuration in a scenario.
pub(crate) fn config(scenario: &Scenario, term: u64) -> EngineConfig {
    EngineConfig {
        max_flows: scenario.max_flows,
        held_bytes: scenario.held_bytes,
        flow_bytes: scenario.flow_bytes,
        mtu: scenario.mtu,
        congestion: if scenario.cubic { Congestion::Cubic } else { Congestion::NewReno },
        seed: crate::random::spread(scenario.seed.wrapping_add(term)),
        ..EngineConfig::default()
    }
}

/// Rules by which connections of this number and above do not speculate.
pub(crate) fn rules(barred: Option<u16>) -> Rules {
    let ports = |first: u16| barred.map(|number| first + number..=first + 99);
    let rule = |first| {
        ports(first).map(|ports| Rule {
            guest_ports: Some(ports),
            client_ports: None,
            client: None,
            speculate: false,
        })
    };
    Rules::new([rule(SERVICE), rule(EPHEMERAL)].into_iter().flatten())
}

/// The limits of the backup in a scenario: those of the primary.
pub(crate) fn limits(scenario: &Scenario) -> LedgerLimits {
    LedgerLimits { max_flows: scenario.max_flows, held_bytes: scenario.held_bytes }
}

/// The engine's word for a mode.
pub(crate) const fn speculation(mode: Mode) -> Speculation {
    match mode {
        Mode::Native => Speculation::Off,
        Mode::Commit => Speculation::Hold,
        Mode::Speculative => Speculation::On,
    }
}

impl Host {
    pub(crate) fn new(scenario: &Scenario, term: u64, mode: Mode, now: Time) -> Self {
        let headers = if scenario.v6 { 40 } else { 20 };
        let mut engine = Engine::new(config(scenario, term));
        engine.set_mode(now, speculation(mode));
        Self {
            engine,
            escrow: VecDeque::new(),
            open: 1,
            mode,
            inbound: VecDeque::new(),
            streamed: Vec::new(),
            payload: usize::from(scenario.mtu) - headers,
            offload: scenario.guest.offload,
        }
    }

    /// The host that takes over.
    pub(crate) fn restored(scenario: &Scenario, term: u64, mode: Mode, now: Time, ledger: Ledger) -> Self {
        let mut host = Self::new(scenario, term, mode, now);
        host.engine.restore(now, ledger);
        host
    }

    /// A frame of the guest; returns the frames that are to leave or to wait.
    pub(crate) fn capture(&mut self, now: Time, frame: Vec<u8>) -> Vec<Vec<u8>> {
        let whole = Segment::parse(&frame);
        let checksum_done = self.offload == Offload::None || whole.is_none();
        let verdict = self.engine.handle_guest(
            now,
            &GuestFrame { head: &frame[..frame.len().min(HEAD)], frame: &&frame[..], checksum_done },
        );
        match (verdict, whole) {
            (FromGuest::Taken, _) => Vec::new(),
            (FromGuest::Pass, None) => vec![frame],
            (FromGuest::Pass, Some(segment)) => {
                let mut frame = frame;
                if !checksum_done {
                    surgery::complete(&mut frame);
                }
                let options = segment.place.payload - segment.place.tcp;
                surgery::split(frame, self.payload - options)
            }
        }
    }

    /// A frame from the wire, made as the guest is to see it; whether it goes to the guest, whose queue has
    /// `room` for so many.
    pub(crate) fn passes(&mut self, now: Time, frame: &mut [u8], room: usize, trace: &mut Trace) -> bool {
        if self.engine.handle_wire(now, frame) != FromWire::Pass {
            return false;
        }
        let fits = self.inbound.len() < room;
        if !fits {
            trace.frame(now, "no room", frame);
            self.engine.lost_to_guest(frame);
        }
        fits
    }

    /// Frames of epochs up to `epoch` leave the escrow.
    pub(crate) fn take_released(&mut self, epoch: u64) -> Vec<Waiting> {
        let count = self.escrow.iter().take_while(|waiting| waiting.epoch <= epoch).count();
        self.escrow.drain(..count).collect()
    }

    /// Streams everything that is to be streamed, in chunks, or one chunk of it.
    pub(crate) fn stream(&mut self, max: usize, all: bool, broken: Option<Breakage>, random: &mut Random) {
        loop {
            let mut chunk = Vec::with_capacity(max);
            if self.engine.stream(max, &mut chunk) == 0 {
                return;
            }
            if let Some(breakage) = broken {
                breakage.to_backup(random, &mut chunk);
            }
            self.streamed.extend(chunk);
            if !all {
                return;
            }
        }
    }

    /// Ends the open epoch: its state.
    pub(crate) fn cut(&mut self, whole: bool) -> (u64, Vec<u8>) {
        let epoch = self.open;
        let mut state = Vec::new();
        self.engine.cut(EpochId::new(epoch), whole, &mut state);
        self.open += 1;
        (epoch, state)
    }
}

/// Takes frames from the engine, up to a bound.
pub(crate) struct Collector {
    pub(crate) room: usize,
    pub(crate) frames: Vec<(Option<u64>, Vec<u8>)>,
    /// It had to refuse one.
    pub(crate) full: bool,
}

impl Collector {
    pub(crate) const fn new(room: usize) -> Self {
        Self { room, frames: Vec::new(), full: false }
    }
}

impl Sink for Collector {
    fn emit(&mut self, len: usize, epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        if self.room == 0 {
            self.full = true;
            return false;
        }
        self.room -= 1;
        let mut frame = vec![0xa5; len];
        write(&mut frame);
        self.frames.push((epoch.map(EpochId::get), frame));
        true
    }
}
