//! Links over loopback: who is let in, what is bounded, and how fast it goes.

mod bypass;

use super::*;
use crate::keys::{Identity, make_pair};
use crate::lease::LeaseGrants;
use crate::protocol::{
    DeviceDigest, HELLO_LIMIT, Hello, MAGIC, Message, PROTOCOL_VERSION, PageBatch, RefusalCode, encode,
};
use crossbeam_channel::Receiver;
use holdfast_epoch::Term;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

struct Pair {
    dialer: TcpTransport,
    listener: Listener,
    sessions: Receiver<Incoming>,
    _keys: TempDir,
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn pair(tls: bool) -> Pair {
    let keys = TempDir::new().expect("a folder");
    let (a, b) = (keys.path().join("a"), keys.path().join("b"));
    make_pair(&a, &b).expect("keys");
    let side = |dir| match tls {
        true => Security::Tls(Identity::load(dir).expect("keys load")),
        false => Security::LaboratoryPlaintext,
    };
    let listener = Listener::bind(any_port(), side(&b)).expect("a port");
    let sessions = listener.route("web");
    Pair { dialer: TcpTransport::new(listener.address(), side(&a)), listener, sessions, _keys: keys }
}

fn hello() -> Hello {
    Hello {
        ports: Vec::new(),
        version: PROTOCOL_VERSION,
        vm: "web".into(),
        host: "host-a".into(),
        term: Term::new(1),
        memory: 64 << 20,
        page_size: 4096,
        session: 7,
        lease_ms: 300,
        devices: DeviceDigest::default(),
    }
}

fn connected(pair: &Pair) -> (Link, Link) {
    let ours = pair.dialer.dial(SOON).expect("the listener answers");
    ours.send(&Message::Hello(hello()));
    let incoming = pair.sessions.recv_timeout(SOON).expect("the session arrives");
    assert_eq!(incoming.hello, hello());
    (ours, incoming.link)
}

/// Waits until what the link was told has been done: as after a Welcome, which is told last.
fn settle(told: &Link, peer: &Link) {
    told.send(&Message::Summon { term: Term::new(1) });
    assert_eq!(next(peer), Message::Summon { term: Term::new(1) });
}

fn next(link: &Link) -> Message {
    match link.events().recv_timeout(SOON) {
        Ok(LinkEvent::Message { message, .. }) => message,
        other => panic!("expected a message, found {other:?}; end: {:?}", link.end()),
    }
}

fn ended(link: &Link) -> LinkEnd {
    loop {
        match link.events().recv_timeout(SOON) {
            Ok(_) => {}
            Err(error) => {
                assert!(error.is_disconnected(), "the link does not end");
                return link.end();
            }
        }
    }
}

#[test]
fn messages_pass_both_ways_with_and_without_tls() {
    for tls in [true, false] {
        let pair = pair(tls);
        let (primary, backup) = connected(&pair);
        backup.send(&Message::Goodbye { reason: "first".into() });
        assert_eq!(next(&primary), Message::Goodbye { reason: "first".into() });
        primary.send(&Message::Relinquish { term: Term::new(1) });
        assert_eq!(next(&backup), Message::Relinquish { term: Term::new(1) });
        drop(primary);
        assert!(ended(&backup).text.contains("closed"), "{:?}", backup.end());
    }
}

#[test]
fn hosts_with_keys_of_different_pairs_refuse_each_other_in_clear_words() {
    let (one, other) = (pair(true), pair(true));
    let dialer = TcpTransport::new(other.listener.address(), one.dialer.security().clone());
    let words = match dialer.dial(SOON) {
        Err(fault) => fault.to_string(),
        Ok(link) => {
            link.send(&Message::Hello(hello()));
            ended(&link).text
        }
    };
    assert!(words.contains("holdfast keys"), "{words}");
    assert!(other.sessions.recv_timeout(Duration::from_millis(50)).is_err());
    assert_eq!(other.listener.counters().sessions, 0);
}

#[test]
fn only_the_dialling_host_having_wrong_keys_is_told_to_it_too() {
    let (right, wrong) = (pair(true), pair(true));
    // The dialler accepts the listener, but shows a certificate that the listener does not know.
    let mixed = TempDir::new().expect("a folder");
    for (from, name) in [(&wrong, "own.key"), (&wrong, "own.crt"), (&right, "peer.crt")] {
        std::fs::copy(from._keys.path().join("a").join(name), mixed.path().join(name)).expect("copied");
    }
    let keys = Security::Tls(Identity::load(mixed.path()).expect("they fit each other"));
    let link = TcpTransport::new(right.listener.address(), keys).dial(SOON).expect("its half succeeds");
    link.send(&Message::Hello(hello()));
    let words = ended(&link).text;
    assert!(words.contains("does not accept this host's certificate"), "{words}");
}

#[test]
fn a_peer_of_another_version_is_refused_and_told_why() {
    let pair = pair(true);
    for (version, refused) in [(PROTOCOL_VERSION - 1, 1), (PROTOCOL_VERSION + 1, 2)] {
        let link = pair.dialer.dial(SOON).expect("dialled");
        link.send(&Message::Hello(Hello { version, ..hello() }));
        let Message::Refuse(refusal) = next(&link) else { panic!("a refusal was due") };
        assert_eq!(refusal.code, RefusalCode::Version);
        assert!(refusal.text.contains("same release"), "{refusal}");
        assert_eq!(pair.listener.counters().refused, refused);
        let told = pair.listener.last_refusal().expect("a refusal");
        assert!(told.contains(&format!("speaks version {version}:")), "{told}");
    }
}

#[test]
fn a_session_for_a_machine_that_is_not_here_is_refused() {
    let pair = pair(true);
    let link = pair.dialer.dial(SOON).expect("dialled");
    link.send(&Message::Hello(Hello { vm: "mail".into(), ..hello() }));
    let Message::Refuse(refusal) = next(&link) else { panic!("a refusal was due") };
    assert_eq!(refusal.code, RefusalCode::UnknownMachine);
}

/// RB-1: strangers and malformed bytes are cut off, are counted, and reach no supervisor.
#[test]
fn strangers_on_the_replication_port_are_cut_off() {
    let too_long = [&(HELLO_LIMIT as u32 + 1).to_le_bytes()[..], &[1, 0, 0, 0], &MAGIC].concat();
    let no_hello = encode(&Message::Goodbye { reason: "hello?".into() });
    for (tls, bytes) in [
        (true, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (false, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (false, too_long),
        (false, no_hello),
        (false, vec![0xff; 100]),
    ] {
        let pair = pair(tls);
        let mut socket = TcpStream::connect(pair.listener.address()).expect("connected");
        socket.write_all(&bytes).expect("sent");
        let mut answer = Vec::new();
        // A reset is as good as an end.
        drop(socket.read_to_end(&mut answer));
        assert!(pair.sessions.try_recv().is_err());
        let deadline = Instant::now() + SOON;
        while pair.listener.counters().strangers == 0 {
            assert!(Instant::now() < deadline, "not counted: {bytes:?}");
            std::thread::yield_now();
        }
        connected(&pair);
    }
}

/// RB-1: bulk without credit ends the session before it piles up.
#[test]
fn bulk_beyond_the_credit_ends_the_session() {
    let pair = pair(false);
    let (primary, backup) = connected(&pair);
    primary.set_window(u64::MAX);
    backup.allow(100_000);
    settle(&backup, &primary);
    let frame = encode(&Message::Base(PageBatch::from_bytes(vec![0; 60_000])));
    primary.try_send_bulk(frame.clone()).expect("room");
    primary.try_send_bulk(frame).expect("room");
    assert!(matches!(next(&backup), Message::Base(_)));
    assert!(ended(&backup).text.contains("credit"), "{:?}", backup.end());
}

/// RB-1: a flood of small messages ends the session too.
#[test]
fn a_flood_of_messages_ends_the_session() {
    let pair = pair(false);
    let (primary, backup) = connected(&pair);
    for _ in 0..20_000 {
        primary.send(&Message::Summon { term: Term::new(1) });
    }
    // Nobody takes anything from the queue.
    let deadline = Instant::now() + SOON;
    while backup.end.get().is_none() {
        assert!(Instant::now() < deadline, "the link does not end");
        std::thread::yield_now();
    }
    assert!(backup.end().text.contains("floods"), "{:?}", backup.end());
}

/// FO-1: an answered heartbeat is worth the lease from when it was sent; none is answered after the
/// backup's decision to go live.
#[test]
fn heartbeats_extend_the_lease_until_the_grants_close() {
    let pair = pair(true);
    let (primary, backup) = connected(&pair);
    let (grants, lease) = (LeaseGrants::new(Instant::now()), Duration::from_millis(200));
    backup.answer_heartbeats(grants.clone());
    primary.start_heartbeats(Duration::from_millis(5), lease);
    for _ in 0..3 {
        let Ok(LinkEvent::Lease { until, round_trip }) = primary.events().recv_timeout(SOON) else {
            panic!("a lease was due")
        };
        assert!(until <= grants.last() + lease, "counted from the sending, not from the answer");
        assert!(round_trip < SOON);
    }
    grants.close();
    // What was answered before may still arrive; then silence.
    let quiet = Duration::from_millis(100);
    while primary.events().recv_timeout(quiet).is_ok() {
        assert!(grants.last().elapsed() < SOON);
    }
}

/// Bulk goes at speed, and heartbeats are answered all the while.
#[test]
fn bulk_flows_at_speed_and_heartbeats_flow_beside_it() {
    for (tls, least) in [(false, 100), (true, 60)] {
        let pair = pair(tls);
        let (primary, backup) = connected(&pair);
        primary.set_window(WINDOW);
        backup.allow(WINDOW);
        settle(&backup, &primary);
        backup.answer_heartbeats(LeaseGrants::new(Instant::now()));
        primary.start_heartbeats(Duration::from_millis(10), SOON);
        let body = PageBatch::from_bytes(vec![0x5a; 1 << 20]);
        let frame = encode(&Message::Base(body));
        let (count, started) = (512, Instant::now());
        let mut worst = Duration::ZERO;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..count {
                    match backup.events().recv_timeout(SOON) {
                        Ok(LinkEvent::Message { charge, .. }) => backup.grant(charge),
                        other => panic!("expected pages, found {other:?}; {:?}", backup.end()),
                    }
                }
            });
            for _ in 0..count {
                let mut buffer = primary.buffer();
                buffer.extend_from_slice(&frame);
                primary.bulk().send_timeout(buffer, SOON).expect("the link takes it");
                primary.ring();
                while let Ok(event) = primary.events().try_recv() {
                    let LinkEvent::Lease { round_trip, .. } = event else { panic!("{event:?}") };
                    worst = worst.max(round_trip);
                }
            }
        });
        let rate = f64::from(count) / started.elapsed().as_secs_f64();
        println!("tls {tls}: {rate:.0} MiB/s, slowest heartbeat {worst:?}");
        assert!(rate > f64::from(least), "{rate:.0} MiB/s with tls {tls}");
        assert!(!worst.is_zero() && worst < Duration::from_secs(1), "heartbeats stood still: {worst:?}");
    }
}
