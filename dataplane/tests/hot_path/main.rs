//! The whole way of packets through a polling core, ring to wire and back, costs no allocation and no system call a
//! packet, in every mode, over cuts and releases; and no lock that anybody else may hold.
//!
//! Rings, device and core are the real ones; the frontend of the `vhost` crate plays QEMU, a driver simulator the
//! guest, and the wire is in memory. Another thread looks at all that may be looked at meanwhile. Locks that nobody
//! contends for make no system call: that the core's crates take none is what `clippy.toml` beside them sees to.

mod calls;
#[expect(dead_code, reason = "shared with the tests of the rings, which use all of it")]
#[path = "../../../vhost-user/tests/driver/mod.rs"]
mod driver;
mod host;
#[expect(dead_code, reason = "shared with the tests of the endpoint, which use all of it")]
#[path = "../endpoint/machine.rs"]
mod machine;
mod talk;

use driver::GuestRam;
use holdfast_dataplane::sample::Offloaded;
use holdfast_dataplane::{Mode, sample};
use holdfast_epoch::EpochId;
use holdfast_packet::guest_channel::{Ask, ETHERTYPE, LINK};
use holdfast_speculation::EngineConfig;
use host::{Host, PORT, Spent};
use machine::{Machine, RX, TX};
use nix::libc;
use talk::Talk;

const COMMIT: Mode = Mode::Commit { first: EpochId::FIRST };

/// What the core allocates for a cut and a release, however much is held: a list of the ports for each.
const COMMIT_ALLOCATIONS: u64 = 2;

/// Segments that clients send in a burst.
const SEGMENTS: u32 = 20;

/// Has the guest take its buffers back; says whether there were any.
fn recycle(machine: &mut Machine<'_>) -> bool {
    machine.queues[TX].take_used();
    let received = machine.queues[RX].take_used();
    received.iter().for_each(|&(head, _)| machine.give_buffer(0, head as u16));
    !received.is_empty()
}

/// The guest polls, as a driver under load does: it asks for no notifications.
fn ask_for_none(machine: &Machine<'_>) {
    machine.queues.iter().for_each(|queue| queue.ram.write_u16(queue.available_gpa(), 1));
}

/// Small frames, a large one, and one that speaks of addresses; segments of a client, which are merged.
struct Traffic {
    from_client: sample::Tcp,
}

impl Traffic {
    fn new() -> Self {
        let like = sample::Tcp::data(false, vec![3; 1400]);
        Self {
            from_client: sample::Tcp {
                source: sample::CLIENT,
                destination: sample::GUEST,
                ports: (40000, 5002),
                ..like
            },
        }
    }

    /// Frames that a burst makes on the wire.
    const FRAMES: usize = 8 + 1 + 9;

    fn burst(&mut self, host: &Host, machine: &mut Machine<'_>) -> Spent {
        (0..8).for_each(|fill| machine.send(&sample::opaque(sample::CLIENT, sample::GUEST, 100, fill)));
        machine.send(&sample::arp(sample::GUEST, [10, 0, 0, 2]));
        let large = sample::Tcp { ports: (5003, 40001), ..sample::Tcp::data(false, vec![5; 12_000]) };
        let (header, bytes) = large.offloaded(1400);
        machine.send_offloaded(&header, &bytes);
        for _ in 0..SEGMENTS {
            assert!(host.peer.put(&self.from_client.bytes()), "memory for frames");
            self.from_client.sequence = self.from_client.sequence.wrapping_add(1400);
        }
        let spent = host.settle();
        assert!(recycle(machine), "the guest has received");
        spent
    }
}

fn native_output(host: &Host) {
    let ram = GuestRam::new();
    let (mut machine, _) = host.meanwhile(|host| Machine::boot(&host.socket, &ram));
    ask_for_none(&machine);
    let mut traffic = Traffic::new();
    for round in 0..20 {
        let spent = traffic.burst(host, &mut machine);
        assert_eq!(host.peer.drop_sent(), Traffic::FRAMES);
        // The first one fills what is kept for later.
        assert!(round == 0 || spent == Spent::NOTHING, "round {round}: {spent:?}");
    }
}

#[test]
fn native_output_costs_no_allocation_and_no_system_call() {
    native_output(&Host::new(None));
}

#[test]
fn output_that_another_core_carries_costs_no_allocation_and_no_system_call() {
    native_output(&Host::over(1, None));
}

/// OC-1: and it is held until its commit. Each epoch is cut while the machine stands still, as QEMU makes it.
#[test]
fn committed_output_costs_no_allocation_and_no_system_call_from_ring_to_release() {
    let (ram, host) = (GuestRam::new(), Host::new(None));
    let (mut machine, _) = host.meanwhile(|host| Machine::boot(&host.socket, &ram));
    ask_for_none(&machine);
    host.meanwhile(|host| host.handle.set_mode(&PORT, COMMIT).expect("protected"));
    let mut traffic = Traffic::new();
    for epoch in 1..=10 {
        let bursts = 1 + 3 * (epoch as usize % 3);
        let mut spent: Vec<Spent> = (0..bursts).map(|_| traffic.burst(&host, &mut machine)).collect();
        let ((), stop) = host.meanwhile(|_| machine.stop());
        assert_eq!(host.peer.drop_sent(), 0, "held");
        let commit = host.commit(epoch);
        let ((), cont) = host.meanwhile(|_| machine.cont());
        spent.push(host.settle());
        assert_eq!(host.peer.drop_sent(), bursts * Traffic::FRAMES);
        // The first one fills what is kept for later.
        let fair = epoch == 1 || spent.iter().all(|spent| *spent == Spent::NOTHING);
        assert!(fair, "epoch {epoch}: {spent:?}");
        // What was held leaves in the turns of the release.
        let whole = [stop.allocations, commit.allocations, cont.allocations];
        assert_eq!(whole, [0, COMMIT_ALLOCATIONS, 0], "epoch {epoch} of {bursts} bursts");
    }
}

/// The whole way of a flow that runs ahead: taken, streamed, acknowledged, held, sent, confirmed.
fn a_flow_that_runs_ahead(aware: bool) {
    let (ram, host) = (GuestRam::new(), Host::new(Some(Box::<EngineConfig>::default())));
    let (mut machine, _) = host.meanwhile(|host| Machine::boot(&host.socket, &ram));
    ask_for_none(&machine);
    let (stream, _) = host.meanwhile(|host| {
        let stream = host.handle.stream(&PORT).expect("a stream");
        host.handle.speculate(&PORT, true).expect("wanted");
        host.handle.let_agent_attach(&PORT, aware).expect("told");
        host.handle.set_mode(&PORT, COMMIT).expect("protected");
        stream
    });
    let mut talk = Talk::open(&host, &mut machine);
    for epoch in 2..=12 {
        let mut spent = Vec::new();
        if aware {
            let mut question = [&LINK.0[..], &sample::GUEST, &ETHERTYPE.to_be_bytes()].concat();
            question.extend(Ask { nonce: epoch }.encode());
            machine.send(&question);
        }
        spent.push(talk.guest_sends(&host, &mut machine));
        assert!(recycle(&mut machine), "the guest is acknowledged ahead");
        host.commit(epoch);
        spent.extend(talk.client_gets(&host));
        spent.push(talk.client_confirms(&host, &mut machine));
        for chunk in stream.chunks.try_iter() {
            stream.spare.try_send(chunk.bytes).expect("room for what came from there");
        }
        // The first ones fill what is kept for later.
        let fair = epoch <= 3 || spent.iter().all(|spent| *spent == Spent::NOTHING);
        assert!(fair, "epoch {epoch}: {spent:?}");
    }
}

#[test]
fn speculative_output_costs_no_allocation_and_no_system_call() {
    a_flow_that_runs_ahead(false);
}

#[test]
fn neither_does_that_of_a_guest_with_an_agent() {
    a_flow_that_runs_ahead(true);
}

/// A guest that asks for notifications gets one a ring and burst, whatever the number of frames.
#[test]
fn a_guest_that_is_told_costs_a_write_a_burst() {
    let (ram, host) = (GuestRam::new(), Host::new(None));
    let (mut machine, _) = host.meanwhile(|host| Machine::boot(&host.socket, &ram));
    let mut traffic = Traffic::new();
    traffic.burst(&host, &mut machine);
    for round in 0..10 {
        host.peer.drop_sent();
        let spent = traffic.burst(&host, &mut machine);
        // All that there is lies in one burst of either ring.
        let expected = Spent { allocations: 0, calls: 2, last_call: Some(libc::SYS_write) };
        assert_eq!(spent, expected, "round {round}");
    }
}
