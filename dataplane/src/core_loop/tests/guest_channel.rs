//! The agent in a guest asks, and Holdfast answers: nothing of it goes further than the guest's own port.

use super::*;
use crate::headers::ETHERNET_LEN;
use holdfast_packet::guest_channel::{Answer, Ask, ETHERTYPE, LINK, PortMode};
use holdfast_speculation::EngineConfig;
use std::time::{Instant, SystemTime};

fn speculating() -> PortConfig {
    let engine = EngineConfig { max_flows: 64, held_bytes: 1 << 20, ..EngineConfig::default() };
    PortConfig { speculation: Some(Box::new(engine)), ..PortConfig::default() }
}

fn channel_frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = LINK.0.to_vec();
    bytes.extend(mac(1));
    bytes.extend(ETHERTYPE.to_be_bytes());
    bytes.extend(message);
    bytes
}

fn ask(core: &Running, guest: &HeapDriver, nonce: u64) -> Answer {
    let before = core.count(1, PortCounter::Asked);
    guest.send(channel_frame(&Ask { nonce }.encode()));
    let mut got = Vec::new();
    wait_until(|| {
        got.extend(guest.take());
        !got.is_empty()
    });
    assert_eq!((got.len(), core.count(1, PortCounter::Asked)), (1, before + 1));
    Answer::decode(&got[0].1[ETHERNET_LEN..]).expect("an answer")
}

#[test]
fn a_question_is_answered_with_the_ports_mode_and_epoch_and_the_hosts_time() {
    let core = Running::new();
    let guest = core.port(1, speculating());
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    let native = ask(&core, &guest, 1);
    let after = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    assert_eq!((native.nonce, native.mode, native.epoch_us), (1, PortMode::Native, 0));
    let spoken = u128::from(native.host_realtime_ns);
    assert!((before.as_nanos()..=after.as_nanos()).contains(&spoken));

    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    assert_eq!(ask(&core, &guest, 2).mode, PortMode::Commit);
    core.handle.speculate(&ONE, true).expect("wanted");
    let speculative = ask(&core, &guest, u64::MAX);
    assert_eq!((speculative.nonce, speculative.mode), (u64::MAX, PortMode::Speculative));
    core.handle.let_agent_attach(&ONE, true).expect("told");
    assert_eq!(ask(&core, &guest, 3).mode, PortMode::Aware);
    core.handle.speculate(&ONE, false).expect("not wanted");
    assert_eq!(ask(&core, &guest, 3).mode, PortMode::Commit, "an agent is none without speculation");
    for epoch in 1..=2 {
        core.handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
    }
    let epoch_us = ask(&core, &guest, 4).epoch_us;
    assert!((1..10_000_000).contains(&epoch_us), "{epoch_us} us between two cuts");
    core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    let alone = ask(&core, &guest, 5);
    assert_eq!((alone.mode, alone.epoch_us), (PortMode::Native, 0));
}

/// What the guest says waits for the commit while it runs, and for no part of the pause.
#[test]
fn an_answer_says_how_long_output_waits_at_the_least() {
    const PAUSE: Duration = Duration::from_millis(200);
    let core = Running::new();
    let guest = core.port(1, speculating());
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    assert_eq!(ask(&core, &guest, 1).least_wait_us, 0, "nothing was committed");
    let said = Instant::now();
    guest.send(frame(1, 7));
    core.settle();
    let stopped = Instant::now();
    guest.set_running(false);
    core.settle();
    core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    wait_until(|| stopped.elapsed() > PAUSE);
    let runs = Instant::now();
    guest.set_running(true);
    // Answered by a guest that runs.
    ask(&core, &guest, 2);
    wait_until(|| runs.elapsed() > PAUSE / 10);
    core.handle.release(&ONE, token(1, 1)).expect("released");
    let most = said.elapsed() - PAUSE;
    let wait = Duration::from_micros(ask(&core, &guest, 3).least_wait_us.into());
    assert!(wait > Duration::ZERO && wait <= most, "{wait:?} of {most:?}");
    core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    assert_eq!(ask(&core, &guest, 4).least_wait_us, 0);
}

#[test]
fn the_status_says_since_when_the_agent_has_been_silent() {
    let core = Running::new();
    let guest = core.port(1, speculating());
    let silence = || core.handle.status(&ONE).expect("a status")[0].agent_silence;
    assert_eq!(silence(), None);
    ask(&core, &guest, 1);
    let first = silence().expect("it has asked");
    wait_until(|| silence() > Some(first));
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    assert!(silence() > Some(first), "another mode does not make it unheard");
}

/// OC-1: a question is none of the guest's output: it is neither held nor sent, whatever the mode, and makes
/// nobody known.
#[test]
fn a_question_is_neither_held_nor_sent_nor_learned_from() {
    let core = Running::new();
    let guest = core.port(1, speculating());
    ask(&core, &guest, 1);
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    let output = core.handle.output(&ONE).expect("a bell");
    ask(&core, &guest, 2);
    assert!(output.try_recv().is_err(), "it ends no epoch");
    let cut = core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    assert_eq!((cut.frames, core.count(1, PortCounter::Captured)), (0, 0));
    core.handle.release(&ONE, token(1, 1)).expect("released");
    core.handle.set_mode(&ONE, Mode::Native).expect("alone");
    guest.send(frame(1, 7));
    assert_eq!(core.wire(1), [frame(1, 7)], "the only frame that left");
    let status = core.handle.status(&ONE).expect("a status");
    assert_eq!(status[0].identity.stations().len(), 1, "known by its frame, not by its questions");
}

/// RB-1: what is sent to Holdfast and is no question costs its sender that frame, and nothing else.
#[test]
fn a_malformed_question_is_dropped_and_counted() {
    let core = Running::new();
    let guest = core.port(1, speculating());
    let whole = Ask { nonce: 1 }.encode();
    let mut wrong: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
    for (at, value) in [(0, 0), (4, 1), (5, 2), (6, 0xff), (7, 17)] {
        let mut bytes = whole;
        bytes[at] = value;
        wrong.push(bytes.to_vec());
    }
    wrong.push(vec![0xff; 1486]);
    wrong.push(vec![0xff; 60_000]);
    for message in &wrong {
        guest.send(channel_frame(message));
    }
    guest.send(frame(1, 7));
    assert_eq!(core.wire(1), [frame(1, 7)]);
    assert_eq!(core.drops(1, DropReason::Channel), wrong.len() as u64);
    assert_eq!(core.count(1, PortCounter::Asked), 0);
    assert!(guest.take().is_empty());
}

/// RB-1: answers to a guest that takes none are bounded.
#[test]
fn questions_of_a_guest_that_takes_no_answers_are_bounded() {
    let core = Running::new();
    let limits = Limits { inbound: 10, ..Limits::default() };
    let guest = core.port(1, PortConfig { limits, ..speculating() });
    guest.set_room(Some(0));
    for nonce in 0..300 {
        guest.send(channel_frame(&Ask { nonce }.encode()));
    }
    wait_until(|| core.count(1, PortCounter::Asked) == 300);
    assert!(core.drops(1, DropReason::InboundFull) >= 100);
}

#[test]
fn nobody_on_the_wire_speaks_to_an_agent_in_holdfasts_name() {
    let core = Running::new();
    let guest = core.port(1, speculating());
    guest.send(frame(1, 1));
    core.wire(1);
    let answer =
        Answer { nonce: 1, mode: PortMode::Speculative, epoch_us: 1, host_realtime_ns: 1, least_wait_us: 1 };
    core.peer.put(&answer.frame());
    let other = sample::opaque([0xff; 6], sample::CLIENT, 64, 3);
    core.peer.put(&other);
    let mut got = Vec::new();
    wait_until(|| {
        got.extend(guest.take().into_iter().map(|(_, bytes)| bytes));
        !got.is_empty()
    });
    assert_eq!(got, [other]);
    assert_eq!(core.handle.counters().core.get("wire_unknown_frames"), 1);
}
