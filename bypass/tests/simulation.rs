//! Two ports on a wire that loses, delays, doubles, cuts, flips and replays frames, on virtual time: what is
//! sent comes exact and in order, or the path is said to be lost.

use bytes::Bytes;
use holdfast_bypass::{Class, Counter, Event, Lost, PathId, Port, Record, Settings, Token};
use holdfast_checkpoint::keys::{Identity, make_pair};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const TOKEN: Token = Token([7; 32]);
/// Of a session that nobody awaits.
const STRANGE: Token = Token([8; 32]);
const RECORD_LIMIT: usize = 1 << 20;
/// Bytes of the headers before a datagram over IPv4.
const HEADERS: usize = 14 + 20 + 8;
/// Bytes that a sender lets wait, as a link's owner does.
const WAITING: usize = 1 << 20;

/// A small generator: each seed is one life of the wire.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What the wire does to frames, each in a thousand.
#[derive(Clone, Copy, Default)]
struct Fates {
    lost: u64,
    doubled: u64,
    late: u64,
    flipped: u64,
    cut: u64,
    replayed: u64,
    /// Nothing passes.
    dead: bool,
}

struct Side {
    port: Port,
    path: Option<PathId>,
    lost: Option<Lost>,
    /// Records sent and received, by class.
    sent: [u64; 2],
    received: [u64; 2],
    /// Whether it takes bulk.
    reads_bulk: bool,
}

struct World {
    sides: [Side; 2],
    now: Instant,
    dice: Dice,
    fates: Fates,
    under_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    number: u64,
    seen: Vec<(usize, Vec<u8>)>,
    struck: u64,
    seed: u64,
}

fn identities() -> [Identity; 2] {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    make_pair(&a, &b).expect("keys");
    [a, b].map(|dir| Identity::load(&dir).expect("keys load"))
}

fn settings(last: u8, v6: bool, mtu: u16) -> Settings {
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
    fn new(seed: u64, identities: &[Identity; 2], v6: bool, mtu: u16) -> Self {
        let now = Instant::now();
        let side = |n: usize| {
            let (client, server) = identities[n].configs();
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
            seed,
        }
    }

    fn connected(seed: u64, identities: &[Identity; 2], v6: bool, mtu: u16) -> Self {
        let mut world = Self::new(seed, identities, v6, mtu);
        world.sides[1].port.await_peer(TOKEN);
        world.sides[0].port.dial(TOKEN, 1, world.now);
        world.run(Duration::from_secs(3), |world| world.sides.iter().all(|side| side.path.is_some()));
        world
    }

    /// Runs until `done`; panics when that takes longer than `patience` of virtual time.
    fn run(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) {
        let until = self.now + patience;
        while !done(self) {
            assert!(self.now < until, "seed {}: not done after {patience:?}", self.seed);
            self.turn();
        }
    }

    fn turn(&mut self) {
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
        while let Some(len) = self.sides[n].port.next_frame(now) {
            let mut frame = vec![0; len];
            self.sides[n].port.take_frame(&mut frame);
            self.carry(1 - n, frame);
        }
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
        let mut delay = Duration::from_micros(100);
        if self.dice.chance(self.fates.late) {
            delay += Duration::from_micros(self.dice.below(3000));
        }
        self.number += 1;
        self.under_way.insert((self.now + delay, self.number), (to, frame));
    }

    /// Sends the next record of a class, if the path has room.
    fn send(&mut self, n: usize, class: Class) -> bool {
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

    fn send_all(&mut self, n: usize, (urgent, bulk): (u64, u64), patience: Duration) {
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
fn record(seed: u64, n: usize, class: Class, number: u64, urgent: u64) -> (u32, Vec<u8>) {
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

#[test]
fn a_port_that_could_send_to_nobody_is_refused() {
    let identities = identities();
    let (client, server) = identities[0].configs();
    let good = settings(1, false, 1500);
    let nobody = std::net::Ipv4Addr::UNSPECIFIED.into();
    let bad = [
        Settings { udp_port: 0, ..good },
        Settings { peer: nobody, ..good },
        Settings { address: nobody, ..good },
        Settings { peer: good.address, ..good },
        Settings { mtu: 100, ..good },
    ];
    for settings in bad {
        assert!(Port::new(settings, client, server, Instant::now()).is_err(), "{settings:?}");
    }
    Port::new(good, client, server, Instant::now()).expect("it can be");
}

#[test]
fn records_come_exact_and_in_order_over_a_bad_wire() {
    let identities = identities();
    let fates = Fates { lost: 20, doubled: 20, late: 100, flipped: 20, cut: 10, replayed: 20, dead: false };
    let mut struck = 0;
    for seed in 1..=40 {
        let mtu = [1280, 1500, 9000][seed as usize % 3];
        let mut world = World::connected(seed, &identities, seed % 2 == 0, mtu);
        world.fates = fates;
        let patience = Duration::from_secs(60);
        world.send_all(0, (100, 60), patience);
        world.send_all(1, (100, 2), patience);
        world.run(patience, |world| {
            let [a, b] = &world.sides;
            (a.received == b.sent && b.received == a.sent) || a.lost.is_some() || b.lost.is_some()
        });
        assert!(world.sides.iter().all(|side| side.lost.is_none()), "seed {seed}: a path was lost");
        struck += world.struck;
    }
    assert!(struck > 1000, "the wire did too little: {struck}");
}

/// RB-1: flipped, cut, replayed and doubled frames are refused, counted, and change nothing.
#[test]
fn each_strike_is_counted_and_has_no_effect() {
    let identities = identities();
    for (fates, counters) in [
        (
            Fates { flipped: 300, ..Fates::default() },
            &[Counter::Refused, Counter::Malformed, Counter::Foreign][..],
        ),
        (Fates { cut: 300, ..Fates::default() }, &[Counter::Malformed, Counter::Foreign]),
        (Fates { replayed: 300, ..Fates::default() }, &[Counter::Refused]),
        (Fates { doubled: 300, ..Fates::default() }, &[Counter::Refused]),
    ] {
        let mut world = World::connected(5, &identities, false, 1500);
        let before = world.sides.each_ref().map(|side| side.port.counters());
        world.fates = fates;
        world.send_all(0, (20, 4), Duration::from_secs(60));
        world.run(Duration::from_secs(60), |world| world.sides[1].received == world.sides[0].sent);
        world.fates = Fates::default();
        // What is still under way counts too.
        for _ in 0..200 {
            world.turn();
        }
        let counted: u64 = (0..2)
            .flat_map(|n| counters.iter().map(move |counter| (n, *counter)))
            .map(|(n, counter)| world.sides[n].port.counters().get(counter) - before[n].get(counter))
            .sum();
        assert_eq!(counted, world.struck, "{counters:?}");
        assert!(world.struck > 20);
    }
}

#[test]
fn a_path_on_a_dead_wire_is_lost_on_both_sides() {
    let identities = identities();
    for seed in 1..=5 {
        let mut world = World::connected(seed, &identities, false, 9000);
        world.send_all(0, (10, 10), Duration::from_secs(10));
        world.fates.dead = true;
        world.run(Duration::from_secs(5), |world| world.sides.iter().all(|side| side.lost.is_some()));
        assert!(world.sides.iter().all(|side| side.lost == Some(Lost::Silent)));
        // When the wire is back, so is the path.
        world.fates.dead = false;
        world
            .sides
            .iter_mut()
            .for_each(|side| (side.lost, side.sent, side.received) = (None, [0; 2], [0; 2]));
        world.sides[0].port.dial(TOKEN, 1, world.now);
        world.run(Duration::from_secs(3), |world| world.sides.iter().all(|side| side.path.is_some()));
        world.send_all(0, (10, 10), Duration::from_secs(10));
        world.run(Duration::from_secs(10), |world| world.sides[1].received == world.sides[0].sent);
    }
}

/// One frame in fifty lost and as many late, on virtual time: Cubic would take 140 ms for this.
#[test]
fn a_wire_that_loses_a_little_is_not_a_slow_one() {
    let identities = identities();
    let mut world = World::connected(1, &identities, false, 1500);
    world.fates = Fates { lost: 20, late: 20, ..Fates::default() };
    let began = world.now;
    world.send_all(0, (0, 400), Duration::from_secs(60));
    world.run(Duration::from_secs(60), |world| world.sides[1].received == world.sides[0].sent);
    let took = world.now - began;
    assert!(took < Duration::from_millis(20), "20 MB took {took:?}");
}

/// RB-1: a receiver that does not read holds a window and no more, and urgent records pass.
#[test]
fn a_reader_that_stands_still_stops_the_sender_and_urgent_records_pass() {
    let identities = identities();
    let mut world = World::connected(1, &identities, false, 9000);
    world.sides[1].reads_bulk = false;
    for _ in 0..4000 {
        world.send(0, Class::Bulk);
        world.turn();
    }
    let sent = world.sides[0].sent[1];
    assert!(sent < 500, "{sent} records of 50 kB were taken and none was read");
    for _ in 0..5 {
        world.send(0, Class::Urgent);
    }
    world.run(Duration::from_secs(1), |world| world.sides[1].received[0] == 5);
    assert_eq!(world.sides[1].received[1], 0);
    world.sides[1].reads_bulk = true;
    world.run(Duration::from_secs(10), |world| world.sides[1].received == world.sides[0].sent);
}

#[test]
fn a_stranger_and_an_unknown_session_get_no_path() {
    let (ours, others) = (identities(), identities());
    let mixed = [others[0].clone(), ours[1].clone()];
    for (identities, token) in [(&mixed, TOKEN), (&ours, STRANGE)] {
        let mut world = World::new(1, identities, false, 1500);
        world.sides[1].port.await_peer(TOKEN);
        world.sides[0].port.dial(token, 1, world.now);
        world.run(Duration::from_secs(5), |world| world.sides[0].lost.is_some());
        match (token, &world.sides[0].lost) {
            (TOKEN, Some(Lost::Peer(_))) | (STRANGE, Some(Lost::Silent)) => {}
            (_, lost) => panic!("{lost:?}"),
        }
        assert!(world.sides[1].path.is_none());
        assert_eq!(world.sides[1].port.counters().get(Counter::PathsUp), 0);
    }
}

/// RB-1: whoever is on the link and does not know the session's token takes no place of a handshake, however often
/// it knocks.
#[test]
fn strangers_do_not_keep_a_path_from_coming_up() {
    let (ours, others) = (identities(), identities());
    let mut world = World::new(5, &ours, false, 1500);
    let (client, server) = others[0].configs();
    let here = Settings { peer_mac: Some([2, 0, 0, 0, 0, 2]), ..settings(1, false, 1500) };
    let mut stranger = Port::new(here, client, server, world.now).expect("it can be");
    world.sides[1].port.await_peer(TOKEN);
    world.sides[0].port.dial(TOKEN, 1, world.now);
    let mut frame = vec![0; 2048];
    let mut knocked = 0;
    for number in 0..200 {
        stranger.dial(STRANGE, number, world.now);
        stranger.handle_timeout(world.now);
        while let Some(len) = stranger.next_frame(world.now) {
            stranger.take_frame(&mut frame[..len]);
            world.sides[1].port.handle_frame(&frame[..len], world.now);
            knocked += 1;
        }
    }
    assert!(knocked > 0);
    world.run(Duration::from_secs(3), |world| world.sides.iter().all(|side| side.path.is_some()));
    let counters = world.sides[1].port.counters();
    assert!(counters.get(Counter::Strange) >= 200, "{counters:?}");
    assert_eq!(counters.get(Counter::Crowded), 0);
}

/// RB-1: a record beyond the limit ends the path before anything is allocated for it.
#[test]
fn a_record_beyond_the_limit_ends_the_path() {
    let identities = identities();
    let mut world = World::connected(1, &identities, false, 9000);
    let path = world.sides[0].path.expect("connected");
    world.sides[0].port.send(path, Class::Bulk, 1, Bytes::from(vec![0; RECORD_LIMIT + 1]));
    world.run(Duration::from_secs(2), |world| world.sides.iter().all(|side| side.lost.is_some()));
    let Some(Lost::Peer(words)) = &world.sides[1].lost else { panic!("{:?}", world.sides[1].lost) };
    assert!(words.contains("is the limit"), "{words}");
}

/// RB-1: whatever comes from the wire, nothing breaks.
#[test]
fn noise_is_counted_and_nothing_else() {
    let identities = identities();
    let mut world = World::connected(3, &identities, false, 1500);
    let mut dice = Dice::new(99);
    let mut frame = vec![0; 1514];
    let len = {
        let path = world.sides[0].path.expect("connected");
        world.sides[0].port.send(path, Class::Urgent, 0, Bytes::from(record(3, 0, Class::Urgent, 0, 0).1));
        world.sides[0].sent[0] = 1;
        world.sides[0].port.next_frame(world.now).expect("a frame is due")
    };
    world.sides[0].port.take_frame(&mut frame[..len]);
    for _ in 0..20_000 {
        let mut noise = frame[..len].to_vec();
        for _ in 0..=dice.below(4) {
            let at = dice.below(48) as usize;
            noise[at] = dice.roll() as u8;
        }
        noise.truncate(dice.below(len as u64 + 1) as usize);
        world.sides[1].port.handle_frame(&noise, world.now);
    }
    assert_eq!(world.sides[1].lost, None);
    world.sides[1].port.handle_frame(&frame[..len], world.now);
    world.run(Duration::from_secs(2), |world| world.sides[1].received[0] == 1);
}
