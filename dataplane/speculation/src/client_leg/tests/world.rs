//! A sender, a client and a path between them, in virtual time and from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bench::{MS, START};
use super::client::{Answer, Client};
use crate::client_leg::{
    ClientAck, Kind, Sender, SenderConfig, SenderState, SentLog, TimeoutOutcome, Transmit,
};
use crate::{SeqNum, Time};

/// Headers on the wire: Ethernet with preamble and gap, IPv4, TCP with timestamps.
const OVERHEAD: u32 = 38 + 20 + 32;

/// Numbers from a seed (xorshift*).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }

    /// True in so many of 10,000 cases.
    fn chance(&mut self, of_10000: u32) -> bool {
        self.below(10_000) < u64::from(of_10000)
    }
}

/// What the path does, per direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) delay: Duration,
    /// Bytes a second; 0: any.
    pub(super) rate: u64,
    /// Bytes that wait for the path at most.
    pub(super) queue: u32,
    /// Of 10,000.
    pub(super) loss: u32,
    pub(super) ack_loss: u32,
    pub(super) duplication: u32,
    pub(super) reordering: u32,
}

pub(super) const PERFECT: Path = Path {
    delay: Duration::from_millis(5),
    rate: 0,
    queue: u32::MAX,
    loss: 0,
    ack_loss: 0,
    duplication: 0,
    reordering: 0,
};

/// What happens to the world from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Commit(u32),
    Close,
    /// The path takes segments of so many bytes; the sender is told.
    Mss(u16),
    Failover,
    Outage(bool),
    Reading(bool),
    Buffer(u32),
    Renege,
    Talk,
}

enum Packet {
    Data(Transmit),
    Answer(Answer),
}

pub(super) struct World {
    pub(super) config: SenderConfig,
    pub(super) sender: Sender,
    pub(super) log: SentLog,
    pub(super) client: Client,
    pub(super) path: Path,
    pub(super) now: Time,
    dice: Dice,
    wire: BTreeMap<(Time, u64), Packet>,
    acts: BTreeMap<(Time, u64), Act>,
    count: u64,
    busy_until: Time,
    outage: bool,
    path_mss: u32,
    closed: bool,
    /// What the backup knows: una, and the client's window.
    ledger: (SeqNum, u32),
    pub(super) silent: bool,
    pub(super) sent_bytes: u64,
    pub(super) bursts: Vec<(Time, u32)>,
    pub(super) probes: u32,
    steps: u64,
    /// A recount looks at every record: not after each step where there are many.
    pub(super) check_every: u64,
}

impl World {
    pub(super) fn new(config: SenderConfig, buffer: u32, path: Path, log: usize, seed: u64) -> Self {
        let now = Time::from_ns(1_000_000_000);
        Self {
            config,
            sender: Sender::new(config, START, buffer, now),
            log: SentLog::new(log),
            client: Client::new(config.sack, buffer),
            path,
            now,
            dice: Dice::new(seed),
            wire: BTreeMap::new(),
            acts: BTreeMap::new(),
            count: 0,
            busy_until: now,
            outage: false,
            path_mss: config.mss.into(),
            closed: false,
            ledger: (START, buffer),
            silent: false,
            sent_bytes: 0,
            bursts: Vec::new(),
            probes: 0,
            steps: 0,
            check_every: 1,
        }
    }

    pub(super) fn at(&mut self, after: Duration, act: Act) {
        self.count += 1;
        self.acts.insert((self.now + after, self.count), act);
    }

    pub(super) fn is_over(&self) -> bool {
        self.silent || (self.acts.is_empty() && self.sender.is_done())
    }

    /// Runs for `time`, or until all is done; checks the invariants after each step.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.poll();
        while !self.is_over() {
            let moments = [
                self.acts.keys().next().map(|key| key.0),
                self.wire.keys().next().map(|key| key.0),
                self.sender.next_deadline(),
            ];
            let Some(next) = moments.into_iter().flatten().min() else {
                panic!("nothing happens any more: {:?}", self.sender.report());
            };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            self.step();
            self.time_out();
            self.poll();
            self.steps += 1;
            if self.steps % self.check_every == 0 {
                self.check();
            }
        }
        self.now = if self.is_over() { self.now } else { end };
    }

    fn step(&mut self) {
        if let Some(entry) = self.acts.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let act = entry.remove();
            return self.act(act);
        }
        if let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Packet::Data(segment) => self.arrive(&segment),
                Packet::Answer(answer) => self.hear(&answer),
            }
        }
    }

    fn time_out(&mut self) {
        if self.sender.next_deadline().is_none_or(|at| at > self.now) {
            return;
        }
        match self.sender.handle_timeout(self.now, &mut self.log) {
            TimeoutOutcome::Nothing => panic!("a deadline for nothing"),
            TimeoutOutcome::Poll => {}
            TimeoutOutcome::Silent => self.silent = true,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Commit(bytes) => {
                self.sender.extend(self.sender.end() + bytes);
                self.ledger = (self.sender.unacked(), self.sender.window.size());
            }
            Act::Close => {
                self.closed = true;
                self.sender.close();
            }
            Act::Mss(mss) => {
                self.path_mss = mss.into();
                self.config.mss = mss;
                self.sender.set_mss(mss);
            }
            Act::Failover => self.fail_over(),
            Act::Outage(outage) => self.outage = outage,
            Act::Reading(reading) => {
                if let Some(answer) = self.client.set_reading(reading) {
                    self.reply(answer);
                }
            }
            Act::Buffer(bytes) => {
                let answer = self.client.set_buffer(bytes);
                self.reply(answer);
            }
            Act::Renege => self.client.renege(),
            Act::Talk => {
                let answer = self.client.talk();
                self.reply(answer);
            }
        }
    }

    fn fail_over(&mut self) {
        let end = self.sender.end();
        self.sender.clear(&mut self.log);
        assert_eq!(self.log.used(), 0);
        let (una, window) = self.ledger;
        self.sender = Sender::resumed(self.config, una, end, self.closed, window, self.now);
        assert!(self.sender.next_deadline().is_none());
    }

    fn poll(&mut self) {
        let mut burst = 0;
        while let Some(segment) = self.sender.poll_transmit(self.now, &mut self.log) {
            self.judge(&segment);
            burst += segment.len;
            assert!(burst < 1 << 30, "it sends for ever");
            self.transmit(segment);
        }
        if burst > 0 {
            self.bursts.push((self.now, burst));
        }
        if !self.sender.is_done() && !self.silent {
            let at = self.sender.next_deadline().expect("a deadline while something is outstanding");
            assert!(at > self.now, "a deadline that has passed: {:?}", self.sender);
        }
    }

    /// What holds for each segment that leaves.
    fn judge(&mut self, segment: &Transmit) {
        let sender = &self.sender;
        assert!(segment.len > 0 || segment.fin, "an empty segment");
        assert!(!segment.seq.before(sender.una), "sent below what is confirmed");
        let data_end = segment.seq + segment.len;
        assert!(!data_end.after(sender.end()), "beyond what is committed (OC-1)");
        assert!(!segment.fin || (self.closed && data_end == sender.end()), "a FIN that is not at the end");
        assert!(segment.len <= self.config.mss.into(), "larger than the MSS");
        assert_eq!(segment.push, segment.len > 0 && data_end == sender.end());
        assert!(segment.kind == Kind::New || !(segment.ect || segment.cwr));
        let end = data_end + u32::from(segment.fin);
        if segment.kind == Kind::Probe {
            assert!(sender.window.is_zero() && end.bytes_since(segment.seq) == 1);
            self.probes += 1;
        } else {
            assert!(!end.after(sender.una + sender.window.size()), "beyond the window");
            assert!(end.bytes_since(START) <= self.client.edge, "beyond what the client ever offered");
        }
    }

    fn transmit(&mut self, segment: Transmit) {
        let size = segment.len + OVERHEAD;
        self.sent_bytes += u64::from(segment.len);
        if self.outage || segment.len > self.path_mss || self.dice.chance(self.path.loss) {
            return;
        }
        let mut leaves = self.now;
        if self.path.rate > 0 {
            let waiting = self.busy_until.since(self.now).as_nanos() as u64 * self.path.rate / 1_000_000_000;
            if waiting + u64::from(size) > self.path.queue.into() {
                return;
            }
            let takes = Duration::from_nanos(u64::from(size) * 1_000_000_000 / self.path.rate);
            self.busy_until = self.busy_until.max(self.now) + takes;
            leaves = self.busy_until;
        }
        for _ in 0..=u32::from(self.dice.chance(self.path.duplication)) {
            let at = leaves + self.path.delay + self.detour();
            self.count += 1;
            self.wire.insert((at, self.count), Packet::Data(segment));
        }
    }

    fn detour(&mut self) -> Duration {
        if self.dice.chance(self.path.reordering) {
            let most = (self.path.delay * 2).as_nanos() as u64;
            return Duration::from_nanos(self.dice.below(most));
        }
        Duration::ZERO
    }

    fn arrive(&mut self, segment: &Transmit) {
        let answer = self.client.receive(segment.seq.bytes_since(START), segment.len, segment.fin);
        self.reply(answer);
    }

    fn reply(&mut self, answer: Answer) {
        if self.outage || self.dice.chance(self.path.ack_loss) {
            return;
        }
        let at = self.now + self.path.delay + self.detour();
        self.count += 1;
        self.wire.insert((at, self.count), Packet::Answer(answer));
    }

    fn hear(&mut self, answer: &Answer) {
        let sacks: Vec<_> = answer.sacks.iter().map(|&(left, right)| (START + left, START + right)).collect();
        let ack = ClientAck {
            seq: SeqNum::new(answer.seq),
            ack: START + answer.ack,
            window: answer.window,
            carries_data: answer.carries_data,
            sacks: &sacks,
            ece: false,
        };
        let before = self.sender.unacked();
        let progress = self.sender.handle_ack(self.now, &ack, &mut self.log);
        assert!(!self.sender.unacked().before(before), "SND.UNA went back");
        // SP-3: nothing is free that the client has not received in order.
        assert!(progress.freed_to.bytes_since(START) <= self.client.received);
        assert!(!progress.fin_confirmed || self.client.finished);
    }

    fn check(&self) {
        let sender = &self.sender;
        let in_flight = sender.board.check(&self.log, sender.una, sender.nxt);
        assert_eq!(in_flight, sender.report().in_flight_bytes, "in flight is not what a recount gives");
        assert!(!sender.nxt.after(sender.last()));
        assert_eq!(sender.persist.is_active(), sender.report().state == SenderState::Persist);
    }
}

/// How long after its start a world with so many bytes may take: generous, as it is about ending at all.
pub(super) fn patience(bytes: u64) -> Duration {
    1_000_000 * MS + Duration::from_millis(10 * bytes)
}
