//! A speculating port on a running core: what the engine says reaches rings, stream and wire.

use super::*;
use crate::headers::{Layout, Transport, flag};
use crate::kept::KeptPorts;
use crate::stream::Stream;
use holdfast_speculation::{EngineConfig, FlowState, LedgerLimits, Rule, Rules};

const LIMITS: LedgerLimits = LedgerLimits { max_flows: 64, held_bytes: 1 << 20 };

fn config() -> PortConfig {
    let engine = EngineConfig { max_flows: 64, held_bytes: 1 << 20, ..EngineConfig::default() };
    PortConfig { speculation: Some(Box::new(engine)), ..PortConfig::default() }
}

/// A guest that serves one client, and the numbers of both.
struct Talk {
    core: Running,
    guest: HeapDriver,
    stream: Stream,
    segment: sample::Tcp,
}

const GUEST_ISS: u32 = 1000;
const CLIENT_ISS: u32 = 7000;

impl Talk {
    /// The handshake of a protected, speculating guest; epoch 1 is committed.
    fn new() -> Self {
        Self::on(Running::new())
    }

    fn on(core: Running) -> Self {
        let guest = core.port(1, config());
        let stream = core.handle.stream(&ONE).expect("a stream");
        core.handle.speculate(&ONE, true).expect("wanted");
        core.handle.set_mode(&ONE, COMMIT).expect("protected");
        let segment = sample::Tcp { window: 1000, options: vec![], ..sample::Tcp::data(false, vec![]) };
        let talk = Self { core, guest, stream, segment };
        // The switch has to know the guest before something can come for it.
        talk.guest.send(sample::arp(sample::GUEST, [10, 0, 0, 2]));
        talk.seen(1);
        talk.client_sends(flag::SYN, CLIENT_ISS, 0, vec![]);
        talk.guest_hears();
        talk.guest_sends(flag::SYN | flag::ACK, GUEST_ISS, CLIENT_ISS + 1, vec![]);
        talk.seen(2);
        talk.commit(1);
        talk.core.wire(2);
        talk.client_sends(flag::ACK, CLIENT_ISS + 1, GUEST_ISS + 1, vec![]);
        talk.guest_hears();
        talk
    }

    fn guest_sends(&self, flags: u8, sequence: u32, acknowledgement: u32, payload: Vec<u8>) {
        let options = if flags & flag::SYN != 0 { vec![2, 4, 5, 180] } else { vec![] };
        let segment =
            sample::Tcp { flags, sequence, acknowledgement, payload, options, ..self.segment.clone() };
        self.guest.send(segment.bytes());
    }

    fn client_sends(&self, flags: u8, sequence: u32, acknowledgement: u32, payload: Vec<u8>) {
        let options = if flags & flag::SYN != 0 { vec![2, 4, 5, 180] } else { vec![] };
        let answer = sample::Tcp {
            flags,
            sequence,
            acknowledgement,
            payload,
            options,
            destination: self.segment.source,
            source: self.segment.destination,
            ports: (self.segment.ports.1, self.segment.ports.0),
            ..self.segment.clone()
        };
        let mut bytes = answer.bytes();
        // The sample has the guest as the sender.
        let (source, destination) = ([10, 0, 0, 9], [10, 0, 0, 2]);
        bytes[26..30].copy_from_slice(&source);
        bytes[30..34].copy_from_slice(&destination);
        sample::complete(&mut bytes, answer.transport(), false);
        self.core.peer.put(&bytes);
    }

    fn commit(&self, epoch: u64) {
        self.core.handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
        self.core.handle.release(&ONE, token(1, epoch)).expect("released");
    }

    /// Waits until the core has taken `count` frames of the guest.
    fn seen(&self, count: u64) {
        wait_until(|| self.core.count(1, PortCounter::Captured) == count);
    }

    /// The ACK number of the next frame that the guest gets.
    fn guest_hears(&self) -> u32 {
        let mut got = Vec::new();
        wait_until(|| {
            got.extend(self.guest.take());
            !got.is_empty()
        });
        ack_of(&got.pop().expect("one at least").1)
    }
}

fn tcp_of(bytes: &[u8]) -> crate::headers::Tcp {
    match Layout::parse(bytes).map(|layout| layout.transport) {
        Some(Transport::Tcp(tcp)) => tcp,
        other => panic!("no TCP segment: {other:?}"),
    }
}

fn ack_of(bytes: &[u8]) -> u32 {
    tcp_of(bytes).acknowledgement
}

/// SP-1, OC-1: the guest is acknowledged at once, the stream has its bytes by then, and the wire has them
/// after the commit alone.
#[test]
fn data_is_streamed_then_acknowledged_and_leaves_after_its_commit() {
    let talk = Talk::new();
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 1000]);
    assert_eq!(talk.guest_hears(), GUEST_ISS + 1001);
    let chunk = talk.stream.chunks.recv_timeout(Duration::from_secs(5)).expect("streamed");
    assert_eq!(chunk.epoch, EpochId::new(2));
    assert!(chunk.bytes.windows(1000).any(|bytes| bytes == [7; 1000]));
    talk.core.settle();
    assert!(talk.core.peer.take().is_empty(), "nothing leaves before the commit");
    talk.commit(2);
    let sent = talk.core.wire(1);
    assert_eq!(sent[0][54..], [7; 1000]);
    assert_eq!(talk.core.count(1, PortCounter::Unconfirmed), 1000);
    // A SYN without a window scale is consumed, and shown to the guest with one.
    assert_eq!(talk.core.count(1, PortCounter::Consumed), 1);
    talk.client_sends(flag::ACK, CLIENT_ISS + 1, GUEST_ISS + 1001, vec![]);
    wait_until(|| talk.core.count(1, PortCounter::Consumed) == 2);
}

/// SP-2: with no buffer for the stream nothing is acknowledged; it is as soon as one comes back.
#[test]
fn a_stream_that_nobody_takes_delays_the_acknowledgement() {
    let talk = Talk::new();
    let mut taken = Vec::new();
    for nth in 0.. {
        let (before, chunks) = (talk.core.count(1, PortCounter::Forged), talk.stream.chunks.len());
        talk.guest_sends(flag::ACK, GUEST_ISS + 1 + nth * 10, CLIENT_ISS + 1, vec![1; 10]);
        talk.seen(3 + u64::from(nth));
        // A chunk waits a little for more.
        wait_until(|| talk.stream.chunks.len() > chunks || talk.stream.chunks.is_full());
        talk.core.settle();
        if talk.core.count(1, PortCounter::Forged) == before {
            break;
        }
        assert!(nth < 1000, "the stream is not bounded");
    }
    taken.push(talk.stream.chunks.recv_timeout(Duration::from_secs(5)).expect("a chunk"));
    let before = talk.core.count(1, PortCounter::Forged);
    talk.stream.spare.send(taken.pop().expect("one").bytes).expect("given back");
    wait_until(|| talk.core.count(1, PortCounter::Forged) > before);
}

/// SP-2, SP-3: what the backup kept of a guest's flow goes on on another core, from what the client has not
/// confirmed.
#[test]
fn a_flow_goes_on_where_it_was_kept() {
    let talk = Talk::new();
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 600]);
    talk.guest_hears();
    let state = talk.core.handle.cut(&ONE, EpochId::new(2), true).expect("cut").port_state;
    let mut kept = KeptPorts::new(&[Some(LIMITS)]);
    kept.apply(&state, &[]).expect("a whole state");
    assert_eq!(kept.held_bytes(), 600);

    let other = Running::new();
    let _guest = other.port(1, PortConfig { fenced: true, ..config() });
    other.handle.speculate(&ONE, true).expect("wanted");
    other.handle.restore(&ONE, &mut kept).expect("restored");
    other.settle();
    assert!(other.peer.take().is_empty(), "a fenced port sends nothing");
    other.handle.unfence(&ONE, Term::new(2)).expect("a newer term");
    other.handle.set_mode(&ONE, Mode::Native).expect("alone");
    assert_eq!(other.wire(1)[0][54..], [7; 600]);
    assert_eq!(other.handle.flows(&ONE).expect("told").len(), 1);
}

/// FO-1: a fence drops what was held for clients, too.
#[test]
fn a_fence_ends_all_flows() {
    let talk = Talk::new();
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 600]);
    talk.guest_hears();
    talk.core.handle.cut(&ONE, EpochId::new(2), false).expect("cut");
    talk.core.handle.fence(&ONE).expect("fenced");
    assert_eq!(talk.core.handle.flows(&ONE).expect("told"), []);
    talk.core.settle();
    assert!(talk.core.peer.take().is_empty());
}

/// SP-3: a flow that may no longer speculate is worked off, and nothing of it is taken any more.
#[test]
fn rules_that_change_work_a_flow_off() {
    let talk = Talk::new();
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 100]);
    assert_eq!(talk.guest_hears(), GUEST_ISS + 101);
    let rule = Rule { guest_ports: None, client_ports: None, client: None, speculate: false };
    talk.core.handle.set_rules(&ONE, Rules::new([rule])).expect("changed");
    talk.commit(2);
    assert_eq!(talk.core.wire(1)[0][54..], [7; 100]);
    talk.client_sends(flag::ACK, CLIENT_ISS + 1, GUEST_ISS + 101, vec![]);
    wait_until(|| talk.core.handle.flows(&ONE).expect("told")[0].1.state == FlowState::Plain);
    let taken = talk.core.count(1, PortCounter::Taken);
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 101, CLIENT_ISS + 1, vec![8; 100]);
    wait_until(|| talk.core.count(1, PortCounter::Held) == 1);
    assert_eq!(talk.core.count(1, PortCounter::Taken), taken);
}

/// OC-1: with two epochs in flight, the commit of the first lets none of the second's bytes go.
#[test]
fn a_commit_lets_no_bytes_of_the_next_epoch_go() {
    let talk = Talk::new();
    for (epoch, fill) in [(2, 7), (3, 8)] {
        let from = GUEST_ISS + 1 + 100 * (u32::from(fill) - 7);
        talk.guest_sends(flag::ACK | flag::PSH, from, CLIENT_ISS + 1, vec![fill; 100]);
        assert_eq!(talk.guest_hears(), from + 100);
        talk.core.handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
    }
    talk.core.handle.release(&ONE, token(1, 2)).expect("released");
    talk.core.settle();
    let sent = talk.core.wire(1);
    assert_eq!((sent.len(), &sent[0][54..]), (1, &[7; 100][..]));
    talk.client_sends(flag::ACK, CLIENT_ISS + 1, GUEST_ISS + 101, vec![]);
    talk.core.handle.release(&ONE, token(1, 3)).expect("released");
    assert_eq!(talk.core.wire(1)[0][54..], [8; 100]);
}

/// CK-1, SP-2: of an epoch that one port of a VM refuses, no port keeps flows or bytes.
#[test]
fn an_epoch_that_one_port_refuses_brings_no_port_new_bytes() {
    let talk = Talk::new();
    let _other = talk.core.port(2, config());
    let both = [PortId(1), PortId(2)];
    talk.core.handle.set_mode(&both[1..], Mode::Commit { first: EpochId::new(2) }).expect("protected");
    let mut kept = KeptPorts::new(&[Some(LIMITS), Some(LIMITS)]);
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 600]);
    talk.guest_hears();
    let state = talk.core.handle.cut(&both, EpochId::new(2), true).expect("cut").port_state;
    kept.apply(&state, &[]).expect("a whole state");

    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 601, CLIENT_ISS + 1, vec![8; 100]);
    talk.guest_hears();
    let state = talk.core.handle.cut(&both, EpochId::new(3), true).expect("cut").port_state;
    let mut broken = state.clone();
    // The number of flows of the second port is the last there is.
    *broken.last_mut().expect("a state") ^= 1;
    let fault = kept.apply(&broken, &[]).expect_err("refused");
    assert!(matches!(fault, KeptError::Ledger { place: 1, .. }), "{fault}");
    assert_eq!(kept.held_bytes(), 600, "as the epoch before left it");
    kept.apply(&state, &[]).expect("the truth is taken");
    assert_eq!(kept.held_bytes(), 700);
}

/// Alone, nothing of a guest waits for a commit that will not come.
#[test]
fn a_port_that_is_not_protected_any_more_does_not_speculate() {
    let talk = Talk::new();
    talk.core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 100]);
    assert_eq!(talk.core.wire(1)[0][54..], [7; 100]);
    assert_eq!(talk.core.count(1, PortCounter::Taken), 0);
}

/// RB-1: a guest cannot speak in another's name on a flow that speculates.
#[test]
fn a_segment_for_the_engine_from_anothers_mac_is_not_taken() {
    let talk = Talk::new();
    let other = talk.core.port(2, PortConfig::default());
    other.send(frame(2, 1));
    talk.core.wire(1);
    let segment = sample::Tcp {
        flags: flag::ACK | flag::PSH,
        sequence: GUEST_ISS + 1,
        acknowledgement: CLIENT_ISS + 1,
        payload: vec![7; 100],
        ..talk.segment.clone()
    };
    let mut spoofed = segment.bytes();
    spoofed[6..12].copy_from_slice(&mac(2));
    talk.guest.send(spoofed);
    wait_until(|| talk.core.count(1, PortCounter::Taken) + talk.core.drops(1, DropReason::Spoofed) > 0);
    assert_eq!(talk.core.drops(1, DropReason::Spoofed), 1);
    talk.guest.send(segment.bytes());
    assert_eq!(talk.guest_hears(), GUEST_ISS + 101);
    assert_eq!(talk.core.count(1, PortCounter::Taken), 1);
}

/// SP-3, SP-4: a pure ACK of the guest, which is ahead of what its client has, leaves with a number that the
/// client takes: out of the escrow, and without one.
#[test]
fn what_passes_the_engine_is_adapted_as_it_leaves() {
    let talk = Talk::new();
    let first = GUEST_ISS + 1;
    let pure = || {
        let mut sent = Vec::new();
        wait_until(|| {
            sent.extend(talk.core.peer.take().into_iter().filter(|bytes| bytes.len() == 54));
            !sent.is_empty()
        });
        sent.iter().map(|bytes| tcp_of(bytes).sequence).collect::<Vec<_>>()
    };
    // The client's window is of 1000 bytes.
    for nth in 0..2 {
        talk.guest_sends(flag::ACK | flag::PSH, first + nth * 1000, CLIENT_ISS + 1, vec![7; 1000]);
        assert_eq!(talk.guest_hears(), first + (nth + 1) * 1000);
    }
    talk.guest_sends(flag::ACK, first + 2000, CLIENT_ISS + 1, vec![]);
    talk.seen(5);
    talk.commit(2);
    assert_eq!(pure(), [first], "it left before the bytes did");
    wait_until(|| talk.core.count(1, PortCounter::Speculated) > 0);
    talk.core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    talk.guest_sends(flag::ACK, first + 2000, CLIENT_ISS + 1, vec![]);
    assert_eq!(pure(), [first + 1000], "behind the bytes that the window let go");
}

/// SP-3: a large frame of a flow that ran ahead is cut and adapted like all of its frames, also where nothing is
/// held any more and the wire would cut it.
#[test]
fn a_large_frame_of_a_known_flow_is_not_passed_on_whole() {
    let talk = Talk::new();
    talk.core.peer.accept_large();
    talk.core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    let large = sample::Tcp {
        sequence: GUEST_ISS + 1,
        acknowledgement: CLIENT_ISS + 1,
        payload: vec![7; 3000],
        ..talk.segment.clone()
    };
    let (header, bytes) = large.offloaded(1000);
    talk.guest.send_offloaded(header, bytes);
    talk.seen(3);
    talk.core.settle();
    assert_eq!(talk.core.peer.take_large(), []);
}

/// SP-2: what the cut finds captured and not streamed yet is of the epoch that it ends.
#[test]
fn what_is_streamed_at_the_cut_belongs_to_its_epoch() {
    let mut talk = Talk::new();
    let mut core = talk.core.halt();
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 100]);
    assert_eq!(core.capture(), 1);
    assert!(talk.stream.chunks.is_empty());
    thread::scope(|scope| {
        let cut = scope.spawn(|| talk.core.handle.cut(&ONE, EpochId::new(2), false));
        wait_until(|| core.serve() > 0);
        cut.join().expect("no panic").expect("cut");
    });
    let chunk = talk.stream.chunks.try_recv().expect("streamed at the cut");
    assert_eq!(chunk.epoch, EpochId::new(2));
    assert!(chunk.bytes.windows(100).any(|bytes| bytes == [7; 100]));
}

/// OC-1: the audit log has the frames that the engine makes, with the epoch whose commit let them go.
#[test]
fn frames_of_the_engine_are_recorded_before_they_leave() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let talk = Talk::on(Running::with(4096, Some(Audit::create(&path, 100).expect("a log"))));
    talk.guest_sends(flag::ACK | flag::PSH, GUEST_ISS + 1, CLIENT_ISS + 1, vec![7; 100]);
    talk.guest_hears();
    talk.commit(2);
    let sent = talk.core.wire(1);
    assert_eq!(sent[0][54..], [7; 100]);
    let records = crate::audit::read(&path).expect("a log");
    let own: Vec<_> = records.iter().filter(|record| record.hash == crate::audit::hash(&sent[0])).collect();
    assert_eq!(own.len(), 1, "{records:?}");
    assert_eq!((own[0].epoch, own[0].flags), (2, crate::audit::PROTECTED));
}
