//! The two ports, their wire and the clock.

use bytes::Bytes;
use holdfast_bypass::{Class, Event, Lost, PathId, Port, Record, Settings, Token};
use holdfast_checkpoint::keys::Identity;
use rustls::{ClientConfig, ServerConfig};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(crate) const TOKEN: Token = Token([7; 32]);
pub(crate) const RECORD_LIMIT: usize = 1 << 20;
/// Bytes of the headers before a datagram over IPv4.
const HEADERS: usize = 14 + 20 + 8;
/// Bytes that a sender lets wait, as a link's owner does.
const WAITING: usize = 1 << 20;

/// A small generator: each seed is one life of the wire.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What the wire does to frames, each in a thousand.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fates {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
    pub(crate) flipped: u64,
    pub(crate) cut: u64,
    pub(crate) replayed: u64,
    /// Nothing passes.
    pub(crate) dead: bool,
}

pub(crate) struct Side {
    pub(crate) port: Port,
    pub(crate) path: Option<PathId>,
    pub(crate) lost: Option<Lost>,
    /// Records sent and received, by class.
    pub(crate) sent: [u64; 2],
    pub(crate) received: [u64; 2],
    /// Whether it takes bulk.
    pub(crate) reads_bulk: bool,
}

pub(crate) struct World {
    pub(crate) sides: [Side; 2],
    pub(crate) now: Instant,
    dice: Dice,
    pub(crate) fates: Fates,
    under_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    number: u64,
    seen: Vec<(usize, Vec<u8>)>,
    pub(crate) struck: u64,
    /// How long a frame is on its way, unless it is late.
    pub(crate) delay: Duration,
    /// Most frames that a side made at one moment.
    pub(crate) burst: usize,
    /// Most frames that were on their way at a time.
    pub(crate) most_under_way: usize,
    seed: u64,
}

pub(crate) fn settings(last: u8, v6: bool, mtu: u16) -> Settings {
    let address = |last: u8| match v6 {
        true => std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
        false => [10, 0, 0, last].into(),
    };
    Settings {
        mac: [2, 0, 0, 0, 0, last],
        address: address(last),
        peer: address(3 - last),
        peer_mac: None,
        udp_port: 7401,
        mtu,
        record_limit: RECORD_LIMIT,
    }
}

impl World {
    pub(crate) fn new(seed: u64, identities: &[Identity; 2], v6: bool, mtu: u16) -> Self {
        Self::of(seed, identities.each_ref().map(Identity::configs), v6, mtu)
    }

    pub(crate) fn of(seed: u64, configs: [(&ClientConfig, &ServerConfig); 2], v6: bool, mtu: u16) -> Self {
        let now = Instant::now();
        let side = |n: usize| {
            let (client, server) = configs[n];
            let port = Port::new(settings(n as u8 + 1, v6, mtu), client, server, now).expect("it can be");
            let (sent, received) = ([0; 2], [0; 2]);
            Side { port, path: None, lost: None, sent, received, reads_bulk: true }
        };
        Self {
            sides: [side(0), side(1)],
            now,
            dice: Dice::new(seed),
            fates: Fates::default(),
            under_way: BTreeMap::new(),
            number: 0,
            seen: Vec::new(),
            struck: 0,
            delay: Duration::from_micros(100),
            burst: 0,
            most_under_way: 0,
            seed,
        }
    }

    pub(crate) fn connected(seed: u64, identities: &[Identity; 2], v6: bool, mtu: u16) -> Self {
        let mut world = Self::new(seed, identities, v6, mtu);
        world.connect();
        world
    }

    pub(crate) fn connect(&mut self) {
        self.sides[1].port.await_peer(TOKEN);
        self.sides[0].port.dial(TOKEN, 1, self.now);
        self.run(Duration::from_secs(3), |world| world.sides.iter().all(|side| side.path.is_some()));
    }

    /// Runs until `done`; panics when that takes longer than `patience` of virtual time.
    pub(crate) fn run(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) {
        let until = self.now + patience;
        while !done(self) {
            assert!(self.now < until, "seed {}: not done after {patience:?}", self.seed);
            self.turn();
        }
    }

    pub(crate) fn turn(&mut self) {
        for n in 0..2 {
            self.work(n);
        }
        let due = self.sides.each_mut().map(|side| side.port.next_deadline());
        let next = self.under_way.keys().next().map(|(at, _)| *at).into_iter();
        let next = next.chain(due.into_iter().flatten()).min().unwrap_or(self.now);
        // A deadline may lie in the past; time goes on all the same.
        self.now = next.max(self.now + Duration::from_micros(20));
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, frame) = entry.remove();
            self.sides[to].port.handle_frame(&frame, self.now);
        }
    }

    fn work(&mut self, n: usize) {
        let (now, seed) = (self.now, self.seed);
        let side = &mut self.sides[n];
        side.port.handle_timeout(now);
        while let Some(event) = side.port.poll_event() {
            match event {
                Event::Up { token, path, number } => {
                    assert_eq!((token, number), (TOKEN, 1));
                    side.path = Some(path);
                }
                Event::Lost { path, why, .. } => {
                    assert!(side.path.is_none_or(|own| own == path));
                    (side.path, side.lost) = (None, Some(why));
                }
            }
        }
        if let Some(path) = side.path {
            while let Some(record) = side.port.receive(path, Class::Urgent, now) {
                side.check(seed, 1 - n, Class::Urgent, &record);
            }
            while side.reads_bulk {
                let Some(record) = side.port.receive(path, Class::Bulk, now) else { break };
                side.check(seed, 1 - n, Class::Bulk, &record);
            }
        }
        let mut burst = 0;
        while let Some(len) = self.sides[n].port.next_frame(now) {
            let mut frame = vec![0; len];
            self.sides[n].port.take_frame(&mut frame);
            self.carry(1 - n, frame);
            burst += 1;
        }
        self.burst = self.burst.max(burst);
        self.most_under_way = self.most_under_way.max(self.under_way.len());
    }

    fn carry(&mut self, to: usize, mut frame: Vec<u8>) {
        let fates = self.fates;
        if fates.dead || self.dice.chance(fates.lost) {
            return;
        }
        if self.dice.chance(fates.doubled) {
            self.struck += 1;
            self.lay(to, frame.clone());
        }
        if fates.replayed > 0 {
            if self.seen.len() < 200 {
                self.seen.push((to, frame.clone()));
            }
            if self.dice.chance(fates.replayed) {
                let at = self.dice.below(self.seen.len() as u64) as usize;
                self.struck += 1;
                let (to, old) = self.seen[at].clone();
                self.lay(to, old);
            }
        }
        if self.dice.chance(fates.flipped) {
            // In the datagram: of the headers nobody reads the sender's MAC and the checksum that is left out.
            let at = HEADERS + self.dice.below((frame.len() - HEADERS) as u64) as usize;
            frame[at] ^= 1 << self.dice.below(8);
            self.struck += 1;
        }
        if self.dice.chance(fates.cut) {
            frame.truncate(self.dice.below(frame.len() as u64) as usize);
            self.struck += 1;
        }
        self.lay(to, frame);
    }

    fn lay(&mut self, to: usize, frame: Vec<u8>) {
        let mut delay = self.delay;
        if self.dice.chance(self.fates.late) {
            delay += Duration::from_micros(self.dice.below(3000));
        }
        self.number += 1;
        self.under_way.insert((self.now + delay, self.number), (to, frame));
    }

    /// Sends the next record of a class, if the path has room.
    pub(crate) fn send(&mut self, n: usize, class: Class) -> bool {
        let (seed, side) = (self.seed, &mut self.sides[n]);
        let Some(path) = side.path else { return false };
        if class == Class::Bulk && side.port.waiting_bytes(path) > WAITING {
            return false;
        }
        let (tag, body) = record(seed, n, class, side.sent[class as usize], side.sent[0]);
        side.port.send(path, class, tag, Bytes::from(body));
        side.sent[class as usize] += 1;
        true
    }

    pub(crate) fn send_all(&mut self, n: usize, (urgent, bulk): (u64, u64), patience: Duration) {
        let until = self.now + patience;
        let order = self.dice.clone();
        let mut order = Dice(order.0 ^ 0x55);
        loop {
            let left = [urgent - self.sides[n].sent[0], bulk - self.sides[n].sent[1]];
            if left == [0, 0] || self.sides[n].lost.is_some() {
                return;
            }
            assert!(self.now < until, "seed {}: {left:?} left after {patience:?}", self.seed);
            let class =
                if left[1] == 0 || (left[0] > 0 && order.chance(300)) { Class::Urgent } else { Class::Bulk };
            if !self.send(n, class) {
                self.turn();
            }
        }
    }
}

/// The record that side `n` sends as its `number`th of a class, after `urgent` urgent ones.
pub(crate) fn record(seed: u64, n: usize, class: Class, number: u64, urgent: u64) -> (u32, Vec<u8>) {
    let mut dice = Dice::new(seed ^ (n as u64) << 40 ^ (class as u64) << 50 ^ number << 8);
    dice.roll();
    let len = match class {
        Class::Urgent => dice.below(200),
        Class::Bulk => dice.below(100_000),
    };
    let mut body = urgent.to_le_bytes().to_vec();
    body.extend((0..len).map(|_| dice.roll() as u8));
    (number as u32, body)
}

impl Side {
    fn check(&mut self, seed: u64, from: usize, class: Class, got: &Record) {
        let number = self.received[class as usize];
        let ahead = u64::from_le_bytes(*got.body.first_chunk().expect("long enough"));
        let (tag, body) = record(seed, from, class, number, ahead);
        assert_eq!(got.tag, tag, "seed {seed}: {class:?} {number} is out of order");
        assert!(got.body == body, "seed {seed}: {class:?} {number} is not what was sent");
        if class == Class::Bulk {
            assert!(ahead <= self.received[0], "seed {seed}: bulk {number} passed an urgent one");
        }
        self.received[class as usize] += 1;
    }
}
