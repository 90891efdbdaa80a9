//! How flows that all want more than they get share a port.

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::headers::flag::{ACK, SYN};
use std::collections::VecDeque;
use std::time::Duration;

/// Epochs, how long the guest stands still after each, and when it commits.
const EPOCH_MS: u64 = 50;
const PAUSE_MS: u64 = 6;
const COMMIT_MS: u64 = 15;
/// Bytes that the guest's device gives in a millisecond, and the largest of its frames.
const INTAKE: u32 = 30_000;
const FRAME: u32 = 16_000;
/// Segments that the wire takes in a millisecond: more than that.
const DRAIN: usize = 45;
/// Bytes that a guest keeps of a flow to send (`tcp_wmem` of Linux).
const SEND_BUFFER: u32 = 4 << 20;
const FIRST_PORT: u16 = 1000;

/// A guest whose flows always have more to send. What their windows let through waits in one queue, that
/// of its device, as with Linux: of all flows, in the order in which it was sent.
struct Crowd {
    world: World,
    at_ms: u64,
    flows: Vec<Flow>,
    queue: VecDeque<(usize, u32)>,
    /// When epochs that are sealed commit.
    commits: VecDeque<u64>,
}

/// Bytes of a flow.
#[derive(Clone, Default)]
struct Flow {
    /// Let through by its window, and taken by the engine.
    sent: u32,
    taken: u32,
    edge: u32,
    /// What its client has.
    got: u32,
}

fn of_flow(flow: usize, segment: Seg) -> Seg {
    segment.ports(80, FIRST_PORT + flow as u16)
}

impl Crowd {
    /// So many flows, all open, with 256 KiB of room each.
    fn new(flows: usize) -> Self {
        let held_bytes = flows * (256 << 10);
        let world =
            World::of(EngineConfig { max_flows: 4096, held_bytes, flow_bytes: held_bytes / 2, ..config() });
        let flows = vec![Flow::default(); flows];
        let mut crowd = Self { world, at_ms: 0, flows, queue: VecDeque::new(), commits: VecDeque::new() };
        for flow in 0..crowd.flows.len() {
            let syn = Seg::ack(CLIENT_ISS, 0).flags(SYN).window(60_000).options(&SYN_OPTIONS);
            crowd.world.client_sends(&of_flow(flow, syn)).expect("a SYN");
            let answer = Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&SYN_OPTIONS);
            crowd.world.guest_passes(&of_flow(flow, answer));
            crowd.world.client_sends(&of_flow(flow, Seg::ack(C, G).window(60_000))).expect("an ACK");
        }
        crowd.hear();
        crowd
    }

    /// The guest hears what it is shown.
    fn hear(&mut self) {
        for seen in self.world.guest_got().iter().filter(|seen| seen.flags & SYN == 0) {
            let flow = &mut self.flows[usize::from(seen.ports.1 - FIRST_PORT)];
            let edge = seen.ack.wrapping_sub(G) + (u32::from(seen.window) << 7);
            assert!(edge >= flow.edge || seen.ack.wrapping_sub(G) < flow.taken, "an edge moves left");
            flow.edge = flow.edge.max(edge);
        }
    }

    /// Puts what a window lets through behind what others have sent.
    fn push(&mut self, number: usize) {
        let flow = &mut self.flows[number];
        while flow.sent < flow.edge.min(flow.taken + SEND_BUFFER) {
            let len = (flow.edge.min(flow.taken + SEND_BUFFER) - flow.sent).min(FRAME);
            flow.sent += len;
            self.queue.push_back((number, len));
        }
    }

    fn take(&mut self) {
        let mut room = INTAKE;
        while room > 0 {
            let Some((number, len)) = self.queue.pop_front() else { return };
            let from = self.flows[number].taken;
            let data = of_flow(number, Seg::data(at(from), C, &vec![7; len as usize]));
            self.world.guest_gives(&data);
            self.flows[number].taken += len;
            room = room.saturating_sub(len);
            self.world.turn_to_guest();
            self.hear();
            self.push(number);
        }
    }

    /// One millisecond, in which the first `active` flows send.
    fn tick(&mut self, active: usize) {
        self.at_ms += 1;
        self.world.now = self.world.now + Duration::from_millis(1);
        self.world.engine.handle_timeouts(self.world.now);
        let place = self.at_ms % (EPOCH_MS + PAUSE_MS);
        if place < EPOCH_MS {
            (0..active).for_each(|flow| self.push(flow));
            self.take();
        } else if place == EPOCH_MS {
            self.world.seal_as(false);
            self.commits.push_back(self.at_ms + COMMIT_MS);
        }
        if self.commits.front() == Some(&self.at_ms) {
            self.commits.pop_front();
            self.world.commit_oldest();
        }
        self.deliver();
    }

    /// What the wire takes in a millisecond reaches the clients, and they confirm it.
    fn deliver(&mut self) {
        let mut sink = Frames::with_room(DRAIN);
        self.world.engine.poll_wire(self.world.now, DRAIN, &mut sink);
        let mut came = vec![false; self.flows.len()];
        for seen in sink.taken.iter().map(|(_, frame)| see(frame, Side::Guest)) {
            let number = usize::from(seen.ports.1 - FIRST_PORT);
            let flow = &mut self.flows[number];
            flow.got = flow.got.max(seen.seq.wrapping_sub(G) + seen.payload.len() as u32);
            came[number] = true;
        }
        for number in (0..came.len()).filter(|&number| came[number]) {
            let ack = Seg::ack(C, at(self.flows[number].got)).window(60_000);
            self.world.client_sends(&of_flow(number, ack));
        }
        self.world.speak();
        self.hear();
    }

    /// What each client got in so many milliseconds in which all flows send.
    fn shares(&mut self, ms: u64) -> Vec<u32> {
        let before: Vec<u32> = self.flows.iter().map(|flow| flow.got).collect();
        (0..ms).for_each(|_| self.tick(self.flows.len()));
        self.flows.iter().zip(before).map(|(flow, before)| flow.got - before).collect()
    }
}

/// Jain's index: 1 when all have the same, 1/n when one has all.
fn fairness(shares: &[u32]) -> f64 {
    let sum: f64 = shares.iter().copied().map(f64::from).sum();
    let squares: f64 = shares.iter().map(|&share| f64::from(share).powi(2)).sum();
    sum * sum / (shares.len() as f64 * squares)
}

/// RFC 9293 §3.8.6: no edge moves left; but a flow that was alone is not promised more again than others.
#[test]
fn flows_that_began_early_get_no_more_than_others_once_all_send() {
    let mut crowd = Crowd::new(64);
    (0..320).for_each(|ms| crowd.tick(1 + ms / 5));
    crowd.shares(500);
    let shares = crowd.shares(1000);
    let (least, most) = (shares.iter().min(), shares.iter().max());
    let index = fairness(&shares);
    assert!(index > 0.95, "{index:.3}, from {least:?} to {most:?} bytes");
    let all: u32 = shares.iter().sum();
    assert!(all > 24_000_000, "nothing is lost by it: {all} bytes");
}

/// Idle flows take nothing from one that sends, and what it is promised is not scarce.
#[test]
fn a_flow_that_sends_alone_has_a_large_window_among_many() {
    let mut crowd = Crowd::new(64);
    (0..200).for_each(|_| crowd.tick(1));
    let flow = &crowd.flows[0];
    assert!(flow.edge - flow.taken > 500_000, "{} bytes", flow.edge - flow.taken);
}
