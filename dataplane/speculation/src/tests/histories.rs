//! Random histories of one flow: a guest and a client by hand, loss and reordering between, epochs that
//! commit late, modes that change, hosts that fail. What must hold is checked at every step.

use super::world::*;
use crate::*;
use holdfast_packet::headers::flag::{ACK, FIN, PSH, RST, SYN};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A guest's TCP, as far as it matters; numbers count from the first byte.
#[derive(Clone)]
struct Guest {
    /// All that its program wrote.
    written: Vec<u8>,
    una: u32,
    next: u32,
    edge: u32,
    /// Bytes of the client that it has.
    has: u32,
    time: u32,
    ts_recent: u32,
    closed: bool,
}

impl Guest {
    fn end(&self) -> u32 {
        self.written.len() as u32
    }

    /// SP-4: looks at what it gets.
    fn get(&mut self, seen: &Seen, times_sent: &[u32]) {
        assert_eq!(seen.flags & (RST | SYN), 0, "{seen:?}");
        let ack = seen.ack.wrapping_sub(G);
        assert!(ack <= self.next, "an ACK of {ack}, {} were sent", self.next);
        let edge = ack + (u32::from(seen.window) << 7);
        assert!(edge >= self.edge, "the edge moves from {} to {edge}", self.edge);
        self.edge = edge;
        self.una = self.una.max(ack);
        let (value, echo) = seen.times.expect("timestamps");
        assert!(times_sent.contains(&value), "the client never sent {value}");
        assert!(echo <= self.time, "{echo} is not of the guest's past");
        let seq = seen.seq.wrapping_sub(C);
        assert!(seq <= self.has + 60_000);
        if seq <= self.has {
            // RFC 7323 §5.3: PAWS must not hit.
            assert!(value >= self.ts_recent, "{value} is older than {}", self.ts_recent);
            self.ts_recent = value;
            self.has = self.has.max(seq + seen.payload.len() as u32);
        }
        assert!(!seen.sack, "SACK blocks are between the client and the client leg");
    }

    fn segment(&mut self, from: u32, len: u32) -> Seg {
        self.time += 1;
        let to = (from + len).min(self.end());
        let mut segment = Seg::data(at(from), C + self.has, &self.written[from as usize..to as usize]);
        if self.closed && to == self.end() && from + len > to {
            segment.flags |= FIN;
        }
        self.next = self.next.max(to + u32::from(segment.flags & FIN != 0));
        segment.times(self.time, self.ts_recent)
    }
}

/// The client's TCP; it outlives all hosts.
struct Client {
    stream: Vec<u8>,
    early: BTreeMap<u32, Vec<u8>>,
    fin_at: Option<u32>,
    fin_seen: bool,
    sent: u32,
    confirmed: u32,
    time: u32,
    ts_recent: u32,
    times: Vec<u32>,
}

impl Client {
    /// SP-3: looks at what it gets.
    fn get(&mut self, seen: &Seen) {
        assert_eq!(seen.flags & (RST | SYN), 0, "{seen:?}");
        let seq = seen.seq.wrapping_sub(G);
        let next = self.stream.len() as u32 + u32::from(self.fin_seen);
        assert!(seq <= next + 70_000, "within the window");
        let (value, _) = seen.times.expect("timestamps");
        if value < self.ts_recent {
            // RFC 7323 §5.3: PAWS; the wire reorders.
            return;
        }
        if seq <= next {
            self.ts_recent = value;
        }
        let ack = seen.ack.wrapping_sub(C);
        assert!(ack <= self.sent, "the guest confirms what was not sent");
        self.confirmed = self.confirmed.max(ack);
        if seen.flags & FIN != 0 {
            let fin_at = seq + seen.payload.len() as u32;
            assert!(self.fin_at.is_none_or(|known| known == fin_at));
            self.fin_at = Some(fin_at);
        }
        let known = self.early.entry(seq).or_default();
        if known.len() < seen.payload.len() {
            *known = seen.payload.clone();
        }
        while let Some((&seq, bytes)) = self.early.range(..=self.stream.len() as u32).next() {
            let have = self.stream.len() - seq as usize;
            let old = have.min(bytes.len());
            assert_eq!(bytes[..old], self.stream[seq as usize..seq as usize + old], "other bytes at {seq}");
            let new = bytes[old..].to_vec();
            self.stream.extend(new);
            self.early.remove(&seq);
        }
        self.fin_seen |= self.fin_at == Some(self.stream.len() as u32);
    }

    fn segment(&mut self, data: u32) -> Seg {
        self.time += 1;
        self.times.push(self.time);
        let next = self.stream.len() as u32 + u32::from(self.fin_seen);
        let mut segment = Seg::data(C + self.sent, at(next), &pattern(self.sent, data as usize));
        segment.flags = if data > 0 { ACK | PSH } else { ACK };
        self.sent += data;
        segment.times(self.time, self.ts_recent)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32),
    Send(u32),
    Repeat(prop::sample::Index, u32),
    Turn,
    /// A little is streamed, and the engine speaks.
    Trickle(usize),
    Arrive {
        lose: bool,
        last: bool,
    },
    Answer {
        data: u32,
        lose: bool,
    },
    GuestAck,
    Seal,
    /// With bytes that were not streamed.
    SealAsItIs,
    Commit,
    Wait(u64),
    Mode(Speculation),
    FailOver,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..9000).prop_map(Step::Write),
        6 => (1u32..9000).prop_map(Step::Send),
        1 => (any::<prop::sample::Index>(), 1u32..3000).prop_map(|(at, len)| Step::Repeat(at, len)),
        5 => Just(Step::Turn),
        2 => (17usize..3000).prop_map(Step::Trickle),
        1 => Just(Step::SealAsItIs),
        8 => (prop::bool::weighted(0.1), prop::bool::weighted(0.2))
            .prop_map(|(lose, last)| Step::Arrive { lose, last }),
        5 => (prop_oneof![3 => Just(0u32), 1 => 1u32..1400], prop::bool::weighted(0.1))
            .prop_map(|(data, lose)| Step::Answer { data, lose }),
        1 => Just(Step::GuestAck),
        3 => Just(Step::Seal),
        3 => Just(Step::Commit),
        1 => (1u64..2000).prop_map(Step::Wait),
        1 => prop::sample::select(vec![Speculation::Off, Speculation::Hold, Speculation::On, Speculation::On])
            .prop_map(Step::Mode),
        1 => Just(Step::FailOver),
    ]
}

struct History {
    world: World,
    guest: Guest,
    client: Client,
    /// The guest at the seals that are not committed, and at the last committed one.
    images: Vec<(u64, Guest)>,
    wire: Vec<Seen>,
    /// Bytes of the program differ in each life.
    life: u8,
    /// The latest time that left for the client.
    latest: u32,
}

impl History {
    fn new() -> Self {
        let mut world = World::new();
        world.open_with(&RICH_OPTIONS);
        let guest = Guest {
            written: Vec::new(),
            una: 0,
            next: 0,
            edge: 0,
            has: 0,
            time: 150,
            ts_recent: 101,
            closed: false,
        };
        let client = Client {
            stream: Vec::new(),
            early: BTreeMap::new(),
            fin_at: None,
            fin_seen: false,
            sent: 0,
            confirmed: 0,
            time: 101,
            ts_recent: 100,
            times: vec![100, 101],
        };
        let mut history =
            Self { world, guest, client, images: Vec::new(), wire: Vec::new(), life: 0, latest: 0 };
        history.guest.edge = history.world.flow().window_bytes;
        history.step(&Step::Seal);
        history.step(&Step::Commit);
        history
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(len) if !self.guest.closed => {
                let (from, life) = (self.guest.end(), self.life);
                self.guest.written.extend(pattern(from, len as usize).iter().map(|byte| byte ^ life));
            }
            Step::Close => self.guest.closed = true,
            Step::Write(_) => {}
            Step::Send(len) => {
                let len = len.min(self.guest.edge.saturating_sub(self.guest.next));
                let left = self.guest.end().saturating_sub(self.guest.next);
                let fin = self.guest.closed && len > left && self.guest.next <= self.guest.end();
                if (len > 0 && left > 0) || fin {
                    let segment = self.guest.segment(self.guest.next, len);
                    self.send(&segment);
                }
            }
            Step::Repeat(at, len) => {
                let unconfirmed =
                    self.guest.next.min(self.guest.end()) - self.guest.una.min(self.guest.end());
                if unconfirmed > 0 {
                    let from = self.guest.una + at.index(unconfirmed as usize) as u32;
                    let known = self.guest.next - from;
                    let segment = self.guest.segment(from, len.min(known));
                    self.send(&segment);
                }
            }
            Step::Turn => self.world.turn(),
            Step::Trickle(max) => {
                self.world.engine.stream(max, &mut self.world.stream);
                self.world.speak();
            }
            Step::Arrive { lose, last } => {
                if !self.wire.is_empty() {
                    let seen = if last { self.wire.pop() } else { Some(self.wire.remove(0)) };
                    if let Some(seen) = seen.filter(|_| !lose) {
                        self.client.get(&seen);
                    }
                }
            }
            Step::Answer { data, lose } => {
                let segment = self.client.segment(data);
                if !lose {
                    self.world.client_sends(&segment);
                } else if data > 0 {
                    // Sent again at once: the client's own recovery is not what is tried here.
                    self.world.client_sends(&segment);
                }
            }
            Step::GuestAck => {
                self.guest.time += 1;
                let seq = at(self.guest.next);
                let ack = Seg::ack(seq, C + self.guest.has).times(self.guest.time, self.guest.ts_recent);
                self.send(&ack);
            }
            Step::Seal | Step::SealAsItIs => {
                if self.world.sealed.len() < 12 && self.world.engine.mode() != Speculation::Off {
                    let epoch = match step {
                        Step::Seal => self.world.seal(),
                        _ => self.world.seal_as(false),
                    };
                    self.deliver();
                    self.images.push((epoch.get(), self.guest.clone()));
                }
            }
            Step::Commit => {
                if !self.world.sealed.is_empty() {
                    self.world.commit();
                    let committed = self.world.committed.expect("just now").get();
                    self.images.retain(|(epoch, _)| *epoch >= committed);
                    self.check_ledger();
                }
            }
            Step::Wait(ms) => self.world.run_ms(ms),
            Step::Mode(mode) => self.set_mode(mode),
            Step::FailOver => self.fail_over(),
        }
        self.deliver();
    }

    fn send(&mut self, segment: &Seg) {
        match self.world.guest_sends(segment) {
            FromGuest::Pass | FromGuest::Taken => {}
        }
    }

    fn set_mode(&mut self, mode: Speculation) {
        let was = self.world.engine.mode();
        if was == Speculation::Off && mode != Speculation::Off {
            // A new session with a new backup begins.
            self.world.engine.set_mode(self.world.now, mode);
            self.world.ledger = Ledger::new(limits(&config()));
            self.world.stream.clear();
            let epoch = self.world.seal_whole();
            self.images = vec![(epoch.get(), self.guest.clone())];
            self.world.commit();
            self.check_ledger();
            return;
        }
        if mode == Speculation::Off {
            // Protection ends: what was held in escrow goes first, as the core loop does it.
            self.world.sealed.clear();
            self.world.open_escrow();
        }
        self.world.engine.set_mode(self.world.now, mode);
    }

    fn fail_over(&mut self) {
        if self.world.engine.mode() == Speculation::Off {
            return;
        }
        self.guest = self.images[0].1.clone();
        self.life = self.life.wrapping_add(1);
        // What was not sent at the cut is written anew.
        let keep = self.guest.next.min(self.guest.end());
        if !self.guest.closed {
            self.guest.written.truncate(keep as usize);
        }
        self.world.fail_over();
        // Frames on the wire arrive or not, whatever host sent them.
        self.deliver();
    }

    fn deliver(&mut self) {
        for seen in self.world.guest_got() {
            self.guest.get(&seen, &self.client.times);
        }
        for seen in self.world.client_got() {
            let (value, _) = seen.times.expect("timestamps");
            assert!(value >= self.latest, "time goes back from {} to {value}", self.latest);
            self.latest = value;
            self.wire.push(seen);
        }
        let prefix = self.client.stream.len().min(self.guest.written.len());
        assert_eq!(self.client.stream[..prefix], self.guest.written[..prefix], "the stream is exact");
        assert!(self.client.stream.len() <= self.guest.next as usize, "bytes of a life that never was");
    }

    /// SP-2: the ledger has exactly the bytes that the client had not confirmed at the cut.
    fn check_ledger(&self) {
        let (_, guest) = &self.images[0];
        for kept in self.world.ledger.kept() {
            let Some(record) = kept.row.record() else { continue };
            let base = record.base.get().wrapping_sub(G);
            let end = record.end.get().wrapping_sub(G);
            if kept.bytes.is_empty() {
                continue;
            }
            let bytes = &guest.written[base as usize..(end as usize).min(guest.written.len())];
            assert_eq!(kept.bytes.iter().copied().collect::<Vec<_>>(), bytes);
            let has = self.client.stream.len() as u32;
            assert!(base <= has || guest.una <= has, "a byte is gone that nobody has");
            assert!(guest.una <= end + 1, "the guest was ahead of the backup");
        }
    }

    /// Everything goes well from here on: all is delivered.
    fn finish(&mut self) {
        self.step(&Step::Close);
        for round in 0..400 {
            if self.client.fin_seen && self.guest.una > self.guest.end() {
                break;
            }
            if round % 8 == 7 && self.guest.una < self.guest.next {
                let from = self.guest.una.min(self.guest.end());
                let segment = self.guest.segment(from, 4000.min(self.guest.next - from));
                self.send(&segment);
            }
            self.step(&Step::Send(60_000));
            self.step(&Step::Turn);
            self.step(&Step::Seal);
            self.step(&Step::Commit);
            while !self.wire.is_empty() {
                self.step(&Step::Arrive { lose: false, last: false });
            }
            self.step(&Step::Answer { data: 0, lose: false });
            self.step(&Step::Wait(if round < 40 { 20 } else { 1500 }));
        }
        let (has, flow) = (self.client.stream.len(), self.world.flow());
        let guest = (self.guest.una, self.guest.next, self.guest.edge, self.guest.end());
        assert!(self.client.fin_seen, "the client has {has}, {flow:?}, una next edge end {guest:?}");
        assert_eq!(self.client.stream, self.guest.written);
        assert_eq!(self.guest.una, self.guest.end() + 1, "the guest knows");
        assert_eq!(self.world.engine.held_bytes(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// SP-1, SP-2, SP-3, SP-4, OC-1: whatever happens, the client gets the stream of the guest that
    /// lives on, the guest is told nothing that is not so, and the backup has what it needs.
    #[test]
    fn histories_end_with_an_exact_stream(steps in prop::collection::vec(step(), 1..120)) {
        let mut history = History::new();
        for step in &steps {
            history.step(step);
        }
        history.finish();
    }
}
