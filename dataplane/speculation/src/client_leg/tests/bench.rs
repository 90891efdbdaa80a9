//! A sender on a bench: the test is the client and the clock.

use std::time::Duration;

use crate::client_leg::{
    ClientAck, Congestion, Kind, Progress, Sender, SenderConfig, SentLog, TimeoutOutcome, Transmit,
};
use crate::{SeqNum, Time};

/// Where the streams of these tests begin: sequence numbers wrap within them.
pub(super) const START: SeqNum = SeqNum::new(u32::MAX - 5000);
pub(super) const MSS: u32 = 1000;
pub(super) const MS: Duration = Duration::from_millis(1);

pub(super) const CONFIG: SenderConfig =
    SenderConfig { mss: MSS as u16, sack: true, ecn: false, congestion: Congestion::Cubic };
pub(super) const NO_SACK: SenderConfig =
    SenderConfig { sack: false, congestion: Congestion::NewReno, ..CONFIG };

pub(super) struct Bench {
    pub(super) sender: Sender,
    pub(super) log: SentLog,
    pub(super) now: Time,
    pub(super) window: u32,
}

impl Bench {
    pub(super) fn new(config: SenderConfig) -> Self {
        let now = Time::from_ns(1_000_000_000);
        let window = 1 << 20;
        Self { sender: Sender::new(config, START, window, now), log: SentLog::new(4096), now, window }
    }

    /// A sender that has measured an RTT of `rtt`, with nothing outstanding.
    pub(super) fn measured(config: SenderConfig, rtt: Duration) -> Self {
        let mut bench = Self::new(config);
        bench.commit(MSS);
        assert_eq!(bench.poll().len(), 1);
        bench.pass(rtt);
        bench.ack(MSS);
        assert_eq!(bench.sender.report().srtt, Some(rtt));
        bench
    }

    /// Commits `bytes` more.
    pub(super) fn commit(&mut self, bytes: u32) {
        self.sender.extend(self.sender.end() + bytes);
    }

    /// All that leaves now.
    pub(super) fn poll(&mut self) -> Vec<Transmit> {
        let mut sent = Vec::new();
        while let Some(segment) = self.sender.poll_transmit(self.now, &mut self.log) {
            sent.push(segment);
            assert!(sent.len() < 100_000, "it sends for ever");
        }
        self.check();
        sent
    }

    /// All that leaves within `time`, with its timers.
    pub(super) fn run(&mut self, time: Duration) -> Vec<(Time, Transmit)> {
        let end = self.now + time;
        let mut sent: Vec<_> = self.poll().into_iter().map(|segment| (self.now, segment)).collect();
        while let Some(at) = self.sender.next_deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            assert_ne!(self.timeout(), TimeoutOutcome::Nothing, "a deadline for nothing");
            sent.extend(self.poll().into_iter().map(|segment| (self.now, segment)));
        }
        self.now = end;
        sent
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    pub(super) fn timeout(&mut self) -> TimeoutOutcome {
        self.sender.handle_timeout(self.now, &mut self.log)
    }

    /// To the next deadline, and past it.
    pub(super) fn pass_deadline(&mut self) -> TimeoutOutcome {
        self.now = self.sender.next_deadline().expect("a deadline").max(self.now);
        self.timeout()
    }

    /// The client confirms all before `offset`.
    pub(super) fn ack(&mut self, offset: u32) -> Progress {
        self.ack_with(offset, |_| {})
    }

    /// The same, with SACK blocks of offsets.
    pub(super) fn sack(&mut self, offset: u32, blocks: &[(u32, u32)]) -> Progress {
        let sacks: Vec<_> = blocks.iter().map(|&(left, right)| (START + left, START + right)).collect();
        let ack = ClientAck { sacks: &sacks, ..self.plain(offset) };
        let progress = self.sender.handle_ack(self.now, &ack, &mut self.log);
        self.check();
        progress
    }

    /// The same, changed by `change`.
    pub(super) fn ack_with(&mut self, offset: u32, change: impl FnOnce(&mut ClientAck<'static>)) -> Progress {
        let mut ack = self.plain(offset);
        change(&mut ack);
        let progress = self.sender.handle_ack(self.now, &ack, &mut self.log);
        self.check();
        progress
    }

    fn plain(&self, offset: u32) -> ClientAck<'static> {
        ClientAck {
            seq: SeqNum::new(7),
            ack: START + offset,
            window: self.window,
            carries_data: false,
            sacks: &[],
            ece: false,
        }
    }

    /// The invariants that hold after every call.
    pub(super) fn check(&self) {
        let sender = &self.sender;
        let in_flight = sender.board.check(&self.log, sender.una, sender.nxt);
        assert_eq!(in_flight, sender.report().in_flight_bytes);
        assert!(!sender.nxt.after(sender.last()), "beyond what is committed");
    }
}

/// Offsets and lengths of what was sent.
pub(super) fn ranges(sent: &[Transmit]) -> Vec<(u32, u32)> {
    sent.iter().map(|segment| (segment.seq.bytes_since(START), segment.len)).collect()
}

/// Offsets of the retransmissions among what was sent.
pub(super) fn again(sent: &[Transmit]) -> Vec<u32> {
    let again = sent.iter().filter(|segment| segment.kind == Kind::Retransmission);
    again.map(|segment| segment.seq.bytes_since(START)).collect()
}
