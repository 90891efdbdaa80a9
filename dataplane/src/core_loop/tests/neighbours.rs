//! Several speculating ports on one core: of one VM, of two VMs, and two guests that speak with each other.

use super::ends::End;
use super::*;
use crate::kept::KeptPorts;
use crate::stream::Stream;
use holdfast_epoch::StreamChunk;
use holdfast_speculation::{EngineConfig, FlowState, LedgerLimits};

const LIMITS: LedgerLimits = LedgerLimits { max_flows: 64, held_bytes: 1 << 20 };
const TWO: [PortId; 1] = [PortId(2)];
const BOTH: [PortId; 2] = [PortId(1), PortId(2)];

fn config(flow_bytes: usize) -> PortConfig {
    let engine = EngineConfig { max_flows: 64, held_bytes: 1 << 20, flow_bytes, ..EngineConfig::default() };
    PortConfig { speculation: Some(Box::new(engine)), ..PortConfig::default() }
}

/// A VM's ports, all on one core, and its epochs.
struct Vm<'a> {
    core: &'a Running,
    ports: &'a [PortId],
    stream: Stream,
    kept: KeptPorts,
    epoch: u64,
    /// Chunks of the epoch that runs.
    early: Vec<StreamChunk>,
}

impl<'a> Vm<'a> {
    /// Protected, and speculating; its guests are there already.
    fn protect(core: &'a Running, ports: &'a [PortId]) -> Self {
        let stream = core.handle.stream(ports).expect("a stream");
        core.handle.speculate(ports, true).expect("wanted");
        core.handle.set_mode(ports, COMMIT).expect("protected");
        let kept = KeptPorts::new(&vec![Some(LIMITS); ports.len()]);
        Self { core, ports, stream, kept, epoch: 1, early: Vec::new() }
    }

    /// Ends the epoch, and lets the backup keep it.
    fn seal(&mut self) {
        // A turn between: what its guests have sent by now belongs to it.
        self.core.settle();
        let epoch = EpochId::new(self.epoch);
        let whole = self.epoch == 1;
        let state = self.core.handle.cut(self.ports, epoch, whole).expect("cut").port_state;
        let mut streamed = Vec::new();
        self.early.extend(self.stream.chunks.try_iter());
        // What found no buffer before the cut is of the next epoch.
        for chunk in self.early.extract_if(.., |chunk| chunk.epoch <= epoch) {
            assert_eq!(chunk.epoch, epoch, "all of an epoch comes before its cut returns");
            streamed.push(chunk.bytes);
        }
        let parts: Vec<&[u8]> = streamed.iter().filter(|_| !whole).map(Vec::as_slice).collect();
        self.kept.apply(&state, &parts).expect("SP-2: what was acknowledged is there");
        streamed.into_iter().for_each(|bytes| self.stream.spare.send(bytes).expect("the core takes it back"));
        self.epoch += 1;
        self.core.settle();
    }

    /// The backup has confirmed what was sealed last.
    fn release(&self) {
        self.core.handle.release(self.ports, token(1, self.epoch - 1)).expect("released");
        self.core.settle();
    }

    fn commit(&mut self) {
        self.seal();
        self.release();
    }
}

/// Gives each frame to the end that it is for.
fn hear(frames: impl IntoIterator<Item = Vec<u8>>, pairs: &mut [(&mut End, &End)]) {
    for frame in frames {
        let taken = pairs.iter_mut().any(|(end, from)| end.hear(from, &frame));
        assert!(taken || frame[12..14] == [8, 6], "a frame for nobody: {frame:x?}");
    }
}

fn delivered(guest: &HeapDriver) -> impl Iterator<Item = Vec<u8>> {
    guest.take().into_iter().map(|(_, frame)| frame)
}

/// A core whose guests 1 and 2 have said who they are.
fn two_guests(flow_bytes: usize) -> (Running, [HeapDriver; 2]) {
    let core = Running::new();
    let guests = [1, 2].map(|number| core.port(number, config(flow_bytes)));
    for (guest, end) in guests.iter().zip([End::new(1), End::new(2)]) {
        guest.send(sample::arp(end.mac, end.ip));
    }
    core.wire(2);
    core.settle();
    guests.iter().for_each(|guest| drop(guest.take()));
    (core, guests)
}

/// Connections of guest 1 with client 11 and of guest 2 with client 12, which commit by `commit`.
fn connect(core: &Running, guests: &[HeapDriver; 2], ends: &mut [(End, End); 2], commit: &mut dyn FnMut()) {
    for (_, (guest, client)) in guests.iter().zip(ends.iter_mut()) {
        core.peer.put(&client.syn(guest));
    }
    core.settle();
    for (driver, (guest, client)) in guests.iter().zip(ends.iter_mut()) {
        hear(delivered(driver), &mut [(guest, client)]);
        driver.send(guest.syn_ack(client));
    }
    commit();
    clients_hear(core, ends);
    for (_, (guest, client)) in guests.iter().zip(ends.iter_mut()) {
        core.peer.put(&client.ack(guest));
    }
    core.settle();
    for (driver, (guest, client)) in guests.iter().zip(ends.iter_mut()) {
        hear(delivered(driver), &mut [(guest, client)]);
    }
}

fn clients_hear(core: &Running, ends: &mut [(End, End); 2]) {
    core.settle();
    let [(guest1, client1), (guest2, client2)] = ends;
    hear(core.peer.take(), &mut [(client1, guest1), (client2, guest2)]);
}

fn ends() -> [(End, End); 2] {
    [(End::new(1), End::new(11)), (End::new(2), End::new(12))]
}

/// SP-1, SP-2, OC-1: the flows of two NICs of a VM run ahead beside each other, are cut, kept and released
/// as one, and go on together on another core; no byte of one gets into the other.
#[test]
fn two_nics_of_one_vm_are_committed_and_taken_over_as_one() {
    let (core, guests) = two_guests(1 << 20);
    let mut vm = Vm::protect(&core, &BOTH);
    let mut ends = ends();
    connect(&core, &guests, &mut ends, &mut || vm.commit());
    vm.commit();
    let sizes = [(20, 500), (15, 700)];
    for (driver, ((guest, client), (count, len))) in guests.iter().zip(ends.iter_mut().zip(sizes)) {
        (0..count).for_each(|_| driver.send(guest.data(client, len)));
    }
    core.settle();
    for (driver, (guest, client)) in guests.iter().zip(ends.iter_mut()) {
        hear(delivered(driver), &mut [(guest, client)]);
        assert_eq!(guest.acked, client_awaits(guest), "acknowledged at once");
    }
    vm.seal();
    assert_eq!(vm.kept.held_bytes(), 20 * 500 + 15 * 700);
    clients_hear(&core, &mut ends);
    assert!(ends.iter().all(|(_, client)| client.got.is_empty()), "nothing leaves before the commit");
    vm.release();
    clients_hear(&core, &mut ends);
    for (guest, client) in &ends {
        assert!(!client.got.is_empty(), "a first flight of both");
        assert_eq!(client.got, guest.content(0..client.got.len()));
    }

    let other = Running::new();
    let _there = [1, 2].map(|number| other.port(number, PortConfig { fenced: true, ..config(1 << 20) }));
    other.handle.speculate(&BOTH, true).expect("wanted");
    other.handle.restore(&BOTH, &mut vm.kept).expect("restored");
    core.handle.fence(&BOTH).expect("fenced");
    other.handle.unfence(&BOTH, Term::new(2)).expect("a newer term");
    other.handle.set_mode(&BOTH, Mode::Native).expect("alone");
    wait_until(|| {
        clients_hear(&other, &mut ends);
        for (guest, client) in &mut ends {
            other.peer.put(&client.ack(guest));
        }
        ends.iter().all(|(guest, client)| client.got.len() == guest.sent)
    });
    for (guest, client) in &ends {
        assert_eq!(client.got, guest.content(0..guest.sent));
    }
}

/// What a guest is told when all that it sent has arrived.
fn client_awaits(guest: &End) -> u32 {
    (u32::from(guest.mac[5]) << 28) + 1 + guest.sent as u32
}

/// SP-2, OC-1, FO-1: two VMs on one core have nothing in common but the core: the stream of one that nobody
/// takes, its commits and its fence change nothing for the other.
#[test]
fn two_vms_on_one_core_do_not_share_a_stream_a_commit_or_a_fence() {
    let (core, guests) = two_guests(1 << 20);
    let (mut first, mut second) = (Vm::protect(&core, &ONE), Vm::protect(&core, &TWO));
    let mut ends = ends();
    connect(&core, &guests, &mut ends, &mut || {
        first.commit();
        second.commit();
    });
    first.commit();
    second.commit();
    // Nobody takes the first VM's chunks: at last it is acknowledged nothing any more.
    let mut taken = 0;
    loop {
        let (guest, client) = &mut ends[0];
        let chunks = first.stream.chunks.len();
        guests[0].send(guest.data(client, 10));
        // A chunk waits a little for more.
        wait_until(|| first.stream.chunks.len() > chunks || first.stream.chunks.is_full());
        core.settle();
        hear(delivered(&guests[0]), &mut [(guest, client)]);
        taken += 1;
        if guest.acked != client_awaits(guest) {
            break;
        }
        assert!(taken < 1000, "the stream is not bounded");
    }
    for _ in 0..100 {
        let (guest, client) = &mut ends[1];
        guests[1].send(guest.data(client, 10));
        core.settle();
        hear(delivered(&guests[1]), &mut [(guest, client)]);
        assert_eq!(guest.acked, client_awaits(guest), "the other VM's stream is its own");
        second.commit();
        clients_hear(&core, &mut ends);
        let (guest, client) = &mut ends[1];
        core.peer.put(&client.ack(guest));
    }
    assert_eq!(ends[1].1.got, ends[1].0.content(0..1000));
    assert!(ends[0].1.got.is_empty(), "a commit of the other VM's releases nothing");

    core.handle.fence(&ONE).expect("fenced");
    assert_eq!(core.handle.flows(&ONE).expect("told"), []);
    let (guest, client) = &mut ends[1];
    guests[1].send(guest.data(client, 10));
    core.settle();
    hear(delivered(&guests[1]), &mut [(guest, client)]);
    assert_eq!(guest.acked, client_awaits(guest));
    second.commit();
    clients_hear(&core, &mut ends);
    assert_eq!(ends[1].1.got, ends[1].0.content(0..1010));
    assert!(ends[0].1.got.is_empty());
    let flows = core.handle.flows(&TWO).expect("told");
    assert!(
        matches!(flows[..], [(PortId(2), ref flow)] if flow.state == FlowState::Speculating),
        "{flows:?}"
    );
}

/// Goes on until `done`. However long a busy machine takes for a round, so many are not needed.
fn rounds(mut done: impl FnMut() -> bool) {
    assert!((0..2000).any(|_| done()), "it did not happen in 2000 rounds");
}

/// OC-1, SP-1, SP-3: a TCP flow from a guest to another of the same host, both protected and speculating. The
/// sender runs ahead; the other guest gets nothing whose epoch was not committed; its window, its want of
/// buffers and its commits are waited for; every byte is right.
#[test]
fn a_guest_that_sends_to_its_neighbour_runs_ahead_of_it_and_not_over_it() {
    const HELD: usize = 128 << 10;
    let (core, [driver1, driver2]) = two_guests(HELD);
    let (mut first, mut second) = (Vm::protect(&core, &ONE), Vm::protect(&core, &TWO));
    let (mut sender, mut taker) = (End::new(1), End::new(2));
    driver1.send(sender.syn(&taker));
    core.settle();
    assert_eq!(driver2.take(), [], "a SYN waits for its commit too");
    first.commit();
    hear(delivered(&driver2), &mut [(&mut taker, &sender)]);
    driver2.send(taker.syn_ack(&sender));
    second.commit();
    hear(delivered(&driver1), &mut [(&mut sender, &taker)]);
    driver1.send(sender.ack(&taker));
    first.commit();
    hear(delivered(&driver2), &mut [(&mut taker, &sender)]);

    // What the taker may have by now, and the most that the sender was ahead of that.
    let (mut committed, mut ahead) = (0, 0);
    let mut round = |window: u16, room: Option<usize>, sender: &mut End, taker: &mut End| {
        taker.window = window;
        driver2.set_room(room);
        let mut quiet = 0;
        while quiet < 3 {
            let before = (sender.sent, sender.acked, sender.open);
            while sender.room() >= 1000 {
                driver1.send(sender.data(taker, 1000));
            }
            core.settle();
            hear(delivered(&driver1), &mut [(&mut *sender, &*taker)]);
            quiet = if before == (sender.sent, sender.acked, sender.open) { quiet + 1 } else { 0 };
        }
        ahead = ahead.max(sender.sent - committed);
        hear(delivered(&driver2), &mut [(&mut *taker, &*sender)]);
        assert!(taker.got.len() <= committed, "{} of {committed} committed bytes", taker.got.len());
        first.seal();
        hear(delivered(&driver2), &mut [(&mut *taker, &*sender)]);
        assert!(taker.got.len() <= committed, "a sealed epoch is no committed one");
        committed = sender.sent;
        first.release();
        hear(delivered(&driver2), &mut [(&mut *taker, &*sender)]);
        driver2.send(taker.ack(sender));
        second.commit();
    };
    rounds(|| {
        round(60_000, None, &mut sender, &mut taker);
        sender.sent >= 1 << 20
    });
    assert_eq!(taker.got, sender.content(0..taker.got.len()));
    let flows = core.handle.flows(&ONE).expect("told");
    assert!(matches!(flows[..], [(_, ref flow)] if flow.state == FlowState::Speculating), "{flows:?}");

    // A window that closes: what was within it comes, then nothing; the sender fills what is held for it.
    let within = taker.got.len() + 60_000;
    rounds(|| {
        round(0, None, &mut sender, &mut taker);
        taker.got.len() > within - 1460
    });
    round(0, None, &mut sender, &mut taker);
    let (sent, got) = (sender.sent, taker.got.len());
    assert!(got <= within, "{got} bytes where the window ended at {within}");
    assert!(
        sent - got <= HELD && sender.room() < 1000,
        "{} bytes are held, {} more may come",
        sent - got,
        sender.room()
    );
    round(0, None, &mut sender, &mut taker);
    assert!(sender.sent == sent && taker.got.len() <= within, "all stands");

    let stood = taker.got.len();
    // Then it has a window and no buffers, so that what is on its way waits in the core.
    round(60_000, Some(0), &mut sender, &mut taker);
    round(60_000, Some(0), &mut sender, &mut taker);
    assert_eq!(taker.got.len(), stood);
    rounds(|| {
        round(60_000, None, &mut sender, &mut taker);
        sender.sent >= sent + (1 << 20)
    });
    rounds(|| {
        hear(delivered(&driver2), &mut [(&mut taker, &sender)]);
        driver2.send(taker.ack(&sender));
        first.commit();
        second.commit();
        taker.got.len() == sender.sent
    });
    assert_eq!(taker.got, sender.content(0..sender.sent));
    assert!(
        ahead > 60_000,
        "the sender was {ahead} bytes ahead at the most: no more than the taker's window"
    );
    assert_eq!(core.drops(2, DropReason::InboundFull), 0);
    assert!(core.peer.take().is_empty(), "nothing of it was on the wire");
}
