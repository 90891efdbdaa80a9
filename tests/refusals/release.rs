//! A peer of another release: one that shows the pair's keys and speaks another version of the protocol.

use crate::daemon::SOON;
use crate::place::Place;
use holdfast_checkpoint::keys::Identity;
use holdfast_checkpoint::protocol::{
    DeviceDigest, FRAME_HEAD, FrameHead, Hello, MESSAGE_LIMIT, Message, PROTOCOL_VERSION, Refusal,
    RefusalCode, Welcome, decode, encode,
};
use holdfast_epoch::Term;
use holdfast_lab::client::Amount;
use holdfast_lab::netns::Namespace;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const OLDER: u32 = PROTOCOL_VERSION - 1;
const NEWER: u32 = PROTOCOL_VERSION + 1;

/// How a backup of another release takes the Hello of this one.
#[derive(Clone, Copy)]
enum Taking {
    /// It refuses, as every release does.
    Refuses,
    /// It thinks that it can speak with this one.
    Welcomes,
}

/// The program meets a peer that speaks another version, on either side of the session, at first and as one
/// host of a protected pair is exchanged: each time the operator is told which versions meet and what to
/// install; the guest's stream stays exact, a standing protection stands, and the same release on both hosts
/// protects again.
#[test]
fn a_peer_of_another_release_is_told_from_others_and_costs_nothing() {
    let Some(mut place) = Place::new("release") else { return };
    let plan = place.plan("web");
    let (on_a, on_b) = place.files(&[&plan]);
    let (host_a, host_b) = (&place.topology.a, &place.topology.b);
    let a = place.start(host_a, &on_a);
    let mut guest = place.boot(&plan);
    guest.wait_ready(SOON).expect("a guest that is up");
    let stream = place.stream(plan.nic, Amount::UntilStopped);
    let theirs = format!("10.98.0.2:{}", on_b.listen.rsplit(':').next().expect("a port"));
    let ours = format!("this host speaks version {PROTOCOL_VERSION} of the replication protocol");
    let meet = |version: u32, taking, state: &str| {
        let keys = place.scratch.file("keys-b");
        let other = OtherRelease::listen(&host_b.namespace, &keys, &theirs, version, taking);
        let version = match taking {
            Taking::Refuses => format!("says: release of version {version}"),
            Taking::Welcomes => format!("it speaks version {version};"),
        };
        let mend = "mend: install the same release on both hosts";
        let status = a.wait_trouble("web", &[&theirs, "another release", &ours, &version, mend]);
        assert_eq!(status["trouble"]["fault"], "operator", "{status}");
        a.wait_state("web", state);
        place.exchange(plan.nic);
        assert!(other.stop() > 0);
    };
    for version in [OLDER, NEWER] {
        meet(version, Taking::Refuses, "native");
        meet(version, Taking::Welcomes, "native");
    }

    let b = place.start(host_b, &on_b);
    let before = a.wait_state("web", "protected");
    for (version, count) in [(OLDER, 1), (NEWER, 2)] {
        let keys = place.scratch.file("keys-a");
        let refusal = introduce(&host_a.namespace, &keys, &theirs, version);
        let versions =
            format!("version {PROTOCOL_VERSION} of the replication protocol and the primary speaks");
        assert_eq!(refusal.code, RefusalCode::Version);
        assert!(refusal.text.contains(&versions), "{refusal}");
        let count = format!("{count} refused");
        let speaks = format!("speaks version {version}: install the same release of Holdfast on both");
        b.command(&["status"]).expect("the backup", 0, &[&count, "refused last: 10.98.0.1: ", &speaks]);
        b.wait_state("web", "ready");
        place.exchange(plan.nic);
    }
    let after = a.vm("web");
    for same in ["state", "term"] {
        assert_eq!(after[same], before[same], "{after}");
    }
    assert_eq!(after["link"]["sessions"], before["link"]["sessions"], "{after}");

    // One host gets the new release before the other does.
    b.stop();
    meet(NEWER, Taking::Refuses, "solo");
    let b = place.start(host_b, &on_b);
    a.wait_state("web", "protected");
    place.exchange(plan.nic);
    stream.stop();
    let report = stream.finish();
    assert!(report.exact() && report.bytes > 0, "{report:?}");
    drop(a);
    b.stop();
}

/// A connection of a host of another release: TLS with the pair's keys, and frames.
struct Talk {
    socket: TcpStream,
    tls: rustls::Connection,
}

impl Talk {
    fn hear(&mut self) -> std::io::Result<Message> {
        let mut head = [0; FRAME_HEAD];
        self.fill(&mut head)?;
        let head = FrameHead::parse(head, MESSAGE_LIMIT).map_err(std::io::Error::other)?;
        let mut body = vec![0; head.len];
        self.fill(&mut body)?;
        decode(head, body).map_err(std::io::Error::other)
    }

    fn fill(&mut self, mut room: &mut [u8]) -> std::io::Result<()> {
        while !room.is_empty() {
            match self.tls.reader().read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => room = &mut room[count..],
                Err(fault) if fault.kind() == ErrorKind::WouldBlock => {
                    self.tls.complete_io(&mut self.socket)?;
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Says the frame, which has fields at its end that this release does not know.
    fn say(&mut self, mut frame: Vec<u8>, more: &[u8]) -> std::io::Result<()> {
        frame.extend_from_slice(more);
        let len = u32::try_from(frame.len() - FRAME_HEAD).expect("short");
        frame[..4].copy_from_slice(&len.to_le_bytes());
        self.tls.writer().write_all(&frame)?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// Dials as a primary that speaks `version` would; gives what it is told.
fn introduce(from: &Namespace, keys: &std::path::Path, to: &str, version: u32) -> Refusal {
    let address: SocketAddr = to.parse().expect("an address");
    let socket = from.run(|| TcpStream::connect_timeout(&address, SOON)).expect("the namespace");
    let socket = socket.expect("a connection");
    socket.set_read_timeout(Some(SOON)).expect("set");
    let tls = Identity::load(keys).expect("keys").dialing().expect("TLS");
    let mut talk = Talk { socket, tls };
    let hello = Hello {
        version,
        vm: "web".into(),
        host: "host-a".into(),
        term: Term::new(99),
        memory: 0,
        page_size: 4096,
        session: 1,
        lease_ms: 100,
        devices: DeviceDigest::default(),
        ports: Vec::new(),
    };
    talk.say(encode(&Message::Hello(hello)), b"fields of another time").expect("said");
    match talk.hear().expect("an answer") {
        Message::Refuse(refusal) => refusal,
        other => panic!("a refusal was due, not {other:?}"),
    }
}

/// A host of another release that listens as a backup.
struct OtherRelease {
    namespace: Namespace,
    address: SocketAddr,
    end: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl OtherRelease {
    fn listen(at: &Namespace, keys: &std::path::Path, address: &str, version: u32, taking: Taking) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let identity = Identity::load(keys).expect("keys");
        let listener = at.run(|| TcpListener::bind(address)).expect("the namespace").expect("bound");
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut greeted = 0;
            while let Ok((socket, _)) = listener.accept() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                socket.set_read_timeout(Some(SOON)).expect("set");
                let mut talk = Talk { socket, tls: identity.accepting().expect("TLS") };
                let Message::Hello(hello) = talk.hear().expect("a Hello") else {
                    panic!("a Hello was due");
                };
                assert_eq!((hello.version, hello.vm.as_str()), (PROTOCOL_VERSION, "web"));
                greeted += 1;
                take(&mut talk, &hello, version, taking);
            }
            greeted
        });
        Self { namespace: at.clone(), address, end, thread }
    }

    /// Ends it; says how many sessions it was asked for.
    fn stop(self) -> usize {
        self.end.store(true, Ordering::Relaxed);
        let last = self.namespace.run(|| TcpStream::connect_timeout(&self.address, SOON));
        drop(last.expect("the namespace").expect("it listens"));
        self.thread.join().expect("no panic")
    }
}

/// Answers a Hello, and listens until the other end has enough.
fn take(talk: &mut Talk, hello: &Hello, version: u32, taking: Taking) {
    match taking {
        Taking::Refuses => {
            let text = format!("release of version {version} does not speak version {}", hello.version);
            talk.say(encode(&Message::Refuse(Refusal::new(RefusalCode::Version, text))), b"")
        }
        Taking::Welcomes => {
            let host = "host-b".to_owned();
            let welcome = Welcome { version, host, session: hello.session, held: None, window: 1 << 20 };
            talk.say(encode(&Message::Welcome(welcome)), b"fields of another time")
        }
    }
    .expect("said");
    // It hangs up, in whatever way.
    while let Ok(message) = talk.hear() {
        assert_eq!(message.name(), "Goodbye", "nothing of the guest goes to another release");
    }
}
