//! Everything around the engine: the escrow, the backup's ledger, the queues of both ends, and time.

use crate::flow::{Flows, Made};
use crate::script::{Family, Mode, Side};
use crate::seen::{Seen, SeenPacket};
use crate::witness::Mark;
use holdfast_epoch::EpochId;
use holdfast_packet::headers::MAX_HEADERS;
use holdfast_speculation::{
    Engine, EngineConfig, FromGuest, FromWire, GuestFrame, Ledger, LedgerLimits, Rules, Sink, Speculation,
    Time,
};
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes of one chunk of the stream, headers included.
const CHUNK: usize = 64 * 1024;
/// Deadlines that may be due at one moment before the engine counts as stuck.
const MAX_DUE: usize = 10_000;

/// A frame that has arrived somewhere.
#[derive(Debug)]
pub struct Arrival {
    /// The place of its flow.
    pub flow: usize,
    /// What arrived.
    pub seen: Seen,
}

/// An epoch that was cut and is not committed.
struct Sealed {
    epoch: u64,
    name: Option<String>,
    state: Vec<u8>,
    stream: Vec<u8>,
    marks: Vec<Mark>,
}

/// The engine and its surroundings.
pub struct Stage {
    /// The engine under test.
    pub engine: Engine,
    /// What the backup keeps.
    pub ledger: Ledger,
    /// The flows of both ends.
    pub flows: Flows,
    /// Virtual time.
    pub now: Time,
    /// Family of the run.
    pub family: Family,
    config: EngineConfig,
    limits: LedgerLimits,
    /// No epochs: what the guest sends may leave at once.
    pub unprotected: bool,
    /// The backup has a whole state, so that it could go live.
    pub backed: bool,
    open: u64,
    committed: u64,
    whole: bool,
    sealed: VecDeque<Sealed>,
    streamed: Vec<u8>,
    /// The backup's stream takes everything by itself.
    pub streaming: bool,
    /// The guest's queue has room.
    pub guest_takes: bool,
    /// The wire has room.
    pub wire_takes: bool,
    escrow: VecDeque<(u64, Vec<u8>)>,
    /// What arrived at the guest and was not looked at.
    pub at_guest: VecDeque<Arrival>,
    /// The same for the client.
    pub at_client: VecDeque<Arrival>,
}

/// Collects what the engine emits.
struct Collector {
    takes: bool,
    frames: Vec<(Option<EpochId>, Vec<u8>)>,
}

impl Sink for Collector {
    fn emit(&mut self, len: usize, epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        if !self.takes {
            return false;
        }
        // What is not written over is seen by the checksum.
        let mut frame = vec![0xdb; len];
        write(&mut frame);
        self.frames.push((epoch, frame));
        true
    }
}

impl Stage {
    /// An engine in mode on, without flows.
    #[must_use]
    pub fn new(family: Family, config: EngineConfig) -> Self {
        let limits = LedgerLimits { max_flows: config.max_flows, held_bytes: config.held_bytes };
        let mut engine = Engine::new(config.clone());
        engine.set_mode(Time::ZERO, Speculation::On);
        Self {
            engine,
            ledger: Ledger::new(limits),
            flows: Flows::new(family),
            now: Time::ZERO,
            family,
            config,
            limits,
            unprotected: false,
            backed: false,
            open: 1,
            committed: 0,
            whole: true,
            sealed: VecDeque::new(),
            streamed: Vec::new(),
            streaming: true,
            guest_takes: true,
            wire_takes: true,
            escrow: VecDeque::new(),
            at_guest: VecDeque::new(),
            at_client: VecDeque::new(),
        }
    }

    /// What arrived at a side.
    pub fn inbox(&mut self, side: Side) -> &mut VecDeque<Arrival> {
        match side {
            Side::Guest => &mut self.at_guest,
            Side::Client => &mut self.at_client,
        }
    }

    /// The guest sends a frame.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn guest_sends(&mut self, made: &Made) -> Result<(), String> {
        let frame = GuestFrame {
            head: &made.frame[..made.frame.len().min(MAX_HEADERS)],
            frame: &made.frame.as_slice(),
            checksum_done: made.checksum_done,
        };
        let passed = self.engine.handle_guest(self.now, &frame) == FromGuest::Pass;
        if passed && Seen::read(&made.finished).is_ok() {
            self.escrow.push_back((self.open, made.finished.clone()));
        }
        self.poll()
    }

    /// The client sends a frame, or a router does.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn wire_brings(&mut self, frame: &[u8]) -> Result<(), String> {
        let mut frame = frame.to_vec();
        let readable = Seen::read(&frame).is_ok();
        // What is broken may be passed on, and is the guest's to judge.
        if self.engine.handle_wire(self.now, &mut frame) == FromWire::Pass {
            if !self.guest_takes {
                self.engine.lost_to_guest(&frame);
            } else if readable {
                self.arrive(Side::Guest, &frame)?;
            }
        }
        self.poll()
    }

    /// A frame takes a way on which the engine does not see it.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn bypass(&mut self, from: Side, frame: &[u8]) -> Result<(), String> {
        let protected = std::mem::replace(&mut self.unprotected, true);
        let arrived = self.arrive(from.other(), frame);
        self.unprotected = protected;
        arrived?;
        self.inbox(from.other()).pop_back();
        Ok(())
    }

    /// A turn of the core: everything that the engine has to say now is said.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn poll(&mut self) -> Result<(), String> {
        for _ in 0..MAX_DUE {
            if self.engine.next_deadline().is_some_and(|deadline| deadline <= self.now) {
                self.engine.handle_timeouts(self.now);
            }
            if self.unprotected {
                self.release(self.open)?;
            }
            if self.streaming {
                self.stream(usize::MAX);
            }
            let mut emitted = 0;
            for side in [Side::Guest, Side::Client] {
                emitted += self.collect(side)?;
            }
            let due = self.engine.next_deadline().is_some_and(|deadline| deadline <= self.now);
            if emitted == 0 && !due {
                return Ok(());
            }
        }
        Err("the engine's deadline stays in the past".to_owned())
    }

    fn collect(&mut self, side: Side) -> Result<usize, String> {
        let takes = if side == Side::Guest { self.guest_takes } else { self.wire_takes };
        let mut collector = Collector { takes, frames: Vec::new() };
        let said = match side {
            Side::Guest => self.engine.poll_guest(self.now, &mut collector),
            Side::Client => self.engine.poll_wire(self.now, 32, &mut collector),
        };
        // One that the client has confirmed while it waited for room is counted, but needs none.
        if said < collector.frames.len() {
            return Err(format!("{said} frames were announced, {} emitted", collector.frames.len()));
        }
        for (epoch, frame) in collector.frames {
            match (side, epoch) {
                (Side::Guest, Some(_)) => return Err("a frame to the guest has an epoch".to_owned()),
                (Side::Client, Some(epoch)) if !self.unprotected && epoch.get() > self.committed => {
                    return Err(format!("OC-1: a frame of epoch {epoch}, which is not committed"));
                }
                _ => self.arrive(side, &frame)?,
            }
        }
        Ok(said)
    }

    fn arrive(&mut self, to: Side, frame: &[u8]) -> Result<(), String> {
        let seen = Seen::read(frame).map_err(|broken| format!("towards the {to}: {broken}"))?;
        let index = self.flows.of(to, &seen);
        if let (SeenPacket::Tcp(tcp), Some(index)) = (&seen.packet, index) {
            let flow = self.flows.at(index);
            flow.witness.arrives(to, tcp, self.unprotected).map_err(|wrong| {
                format!("{wrong}\n  in: >{to} {}", crate::compare::described(&seen, flow, to))
            })?;
        }
        let flow = index.unwrap_or_else(|| self.flows.beside(&seen));
        self.inbox(to).push_back(Arrival { flow, seen });
        Ok(())
    }

    /// The backup's stream takes up to `max` bytes.
    pub fn stream(&mut self, max: usize) {
        let mut left = max;
        while left > 0 {
            let before = self.streamed.len();
            let took = self.engine.stream(left.min(CHUNK), &mut self.streamed);
            debug_assert_eq!(took, self.streamed.len() - before);
            if took == 0 {
                return;
            }
            left = left.saturating_sub(took);
        }
    }

    /// What was streamed since the last seal is lost.
    pub fn lose_stream(&mut self) {
        self.streamed.clear();
    }

    /// What the backup is told of the newest sealed epoch: the flow table and the stream.
    #[must_use]
    pub fn newest_sealed(&self) -> Option<(&[u8], &[u8])> {
        self.sealed.back().map(|sealed| (sealed.state.as_slice(), sealed.stream.as_slice()))
    }

    /// Whether an epoch is sealed and not committed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// The guest stands still; the open epoch ends.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn seal(&mut self, name: Option<String>) -> Result<(), String> {
        if self.unprotected {
            return Err("there are no epochs in mode off".to_owned());
        }
        self.stream(usize::MAX);
        let mut state = Vec::new();
        self.engine.cut(EpochId::new(self.open), self.whole, &mut state);
        let mut stream = std::mem::take(&mut self.streamed);
        if std::mem::take(&mut self.whole) {
            // The state has them all.
            stream.clear();
        }
        let marks = self.flows.iter_mut().map(|flow| flow.witness.mark()).collect();
        self.sealed.push_back(Sealed { epoch: self.open, name, state, stream, marks });
        self.open += 1;
        self.poll()
    }

    /// The backup keeps the oldest sealed epoch, or refuses it.
    ///
    /// # Errors
    /// What the engine did wrong, or that there is none.
    pub fn commit(&mut self, name: Option<&str>) -> Result<Result<(), String>, String> {
        let sealed = self.sealed.pop_front().ok_or("no epoch is sealed")?;
        if name.is_some() && sealed.name.as_deref() != name {
            return Err(format!("the oldest sealed epoch is {:?}", sealed.name));
        }
        if let Err(refusal) = self.ledger.apply(&sealed.state, &sealed.stream) {
            return Ok(Err(refusal.to_string()));
        }
        (self.committed, self.backed) = (sealed.epoch, true);
        for (flow, mark) in self.flows.iter_mut().zip(sealed.marks) {
            flow.witness.commit(mark);
        }
        self.release(sealed.epoch)?;
        self.engine.commit(self.now, EpochId::new(sealed.epoch));
        self.poll()?;
        Ok(Ok(()))
    }

    fn release(&mut self, up_to: u64) -> Result<(), String> {
        while self.escrow.front().is_some_and(|(epoch, _)| *epoch <= up_to) {
            let Some((_, mut frame)) = self.escrow.pop_front() else { break };
            self.engine.release(self.now, &mut frame);
            self.arrive(Side::Client, &frame)?;
        }
        Ok(())
    }

    /// Other rules say which flows may speculate.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn set_rules(&mut self, rules: Rules) -> Result<(), String> {
        self.engine.set_rules(self.now, rules);
        self.poll()
    }

    /// Switches the mode.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), String> {
        let (speculation, unprotected) = match mode {
            Mode::Off => (Speculation::Off, true),
            Mode::Hold => (Speculation::Hold, false),
            Mode::On => (Speculation::On, false),
        };
        if unprotected && !self.unprotected {
            (self.unprotected, self.backed) = (true, false);
            self.sealed.clear();
            self.release(u64::MAX)?;
        }
        if !unprotected && self.unprotected {
            (self.unprotected, self.whole) = (false, true);
            self.ledger = Ledger::new(self.limits);
            self.streamed.clear();
            for flow in self.flows.iter_mut() {
                let mark = flow.witness.mark();
                flow.witness.commit(mark);
            }
        }
        self.engine.set_mode(self.now, speculation);
        self.poll()
    }

    /// The primary is lost with everything that was not committed; the backup runs alone.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn fail_over(&mut self) -> Result<(), String> {
        let ledger = std::mem::replace(&mut self.ledger, Ledger::new(self.limits));
        self.engine = Engine::new(self.config.clone());
        self.engine.restore(self.now, ledger);
        self.sealed.clear();
        self.streamed.clear();
        self.escrow.clear();
        (self.unprotected, self.whole, self.backed) = (true, true, false);
        self.flows.iter_mut().for_each(|flow| flow.witness.roll_back());
        self.poll()
    }

    /// The port is fenced.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn discard(&mut self) -> Result<(), String> {
        self.engine.discard();
        self.escrow.clear();
        self.sealed.clear();
        self.streamed.clear();
        self.poll()
    }

    /// Time passes; what falls due on the way is done when it is due.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn advance(&mut self, by: Duration) -> Result<(), String> {
        let target = self.now + by;
        while self.step(target)? {}
        Ok(())
    }

    /// Goes to the next deadline, at most to `target`; false once that is reached.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn step(&mut self, target: Time) -> Result<bool, String> {
        let next = self.engine.next_deadline().filter(|deadline| *deadline < target);
        self.now = next.unwrap_or(target).max(self.now);
        self.poll()?;
        Ok(next.is_some())
    }
}
