//! Links over a bypass of two real threads; between their ports a cable in memory that can be cut.

use super::*;
use crate::proxy::Proxy;
use crate::transport::{Bypass, BypassSettings, Nic};
use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_counting::{allocations_here, allocations_of, in_process_of_its_own};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

const MTU: u16 = 9000;

/// One end of the cable.
struct Plug {
    mac: [u8; 6],
    to: Sender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
    peer: Arc<EventFd>,
    own: Arc<EventFd>,
    cable: Arc<Cable>,
    written: bool,
}

/// What happens to frames on their way.
#[derive(Default)]
struct Cable {
    cut: AtomicBool,
    /// Of so many frames one is lost; none of 0.
    loses_one_of: AtomicU64,
    frames: AtomicU64,
    /// Allocations of its own, in the ports' threads.
    allocations: AtomicU64,
    stalled: Mutex<bool>,
    goes_on: Condvar,
}

impl Cable {
    /// Frames are put into new memory here, which is no affair of the port's.
    fn apart<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = allocations_here();
        let done = work();
        self.allocations.fetch_add(allocations_here() - before, Ordering::Relaxed);
        done
    }

    /// Holds the threads of both ports where they are: neither port moves a frame, and neither finds out that it
    /// does not.
    fn stall(self: &Arc<Self>) -> Stalled {
        *self.stalled.lock().expect("no panic") = true;
        Stalled(Arc::clone(self))
    }
}

/// While it lives the ports stand still.
struct Stalled(Arc<Cable>);

impl Drop for Stalled {
    fn drop(&mut self) {
        *self.0.stalled.lock().expect("no panic") = false;
        self.0.goes_on.notify_all();
    }
}

impl Nic for Plug {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn receive(&mut self, take: &mut dyn FnMut(&[u8])) -> usize {
        let stalled = self.cable.stalled.lock().expect("no panic");
        drop(self.cable.goes_on.wait_while(stalled, |stalled| *stalled).expect("no panic"));
        let frames: Vec<Vec<u8>> = self.cable.apart(|| self.from.try_iter().take(32).collect());
        frames.iter().for_each(|frame| take(frame));
        frames.len()
    }

    fn send(&mut self, len: usize, write: &mut dyn FnMut(&mut [u8])) -> bool {
        if self.to.is_full() {
            return false;
        }
        let mut frame = self.cable.apart(|| vec![0; len]);
        write(&mut frame);
        let number = self.cable.frames.fetch_add(1, Ordering::Relaxed);
        let one_of = self.cable.loses_one_of.load(Ordering::Relaxed);
        let lost = one_of > 0 && number % one_of == 0;
        if !lost && !self.cable.cut.load(Ordering::Relaxed) {
            self.to.try_send(frame).expect("there was room");
            self.written = true;
        }
        true
    }

    fn flush(&mut self) -> bool {
        if std::mem::take(&mut self.written) {
            self.peer.write(1).expect("room for one");
        }
        true
    }

    fn readable_fd(&self) -> Option<RawFd> {
        Some(self.own.as_raw_fd())
    }

    fn disarm(&mut self) {
        // Empty when something else woke this thread.
        let (Ok(_) | Err(Errno::EAGAIN)) = self.own.read() else { panic!("a descriptor that breaks") };
    }
}

struct Bypassed {
    pair: Pair,
    cable: Arc<Cable>,
    bypass: [Bypass; 2],
}

fn bypassed() -> Bypassed {
    let keys = TempDir::new().expect("a folder");
    let (a, b) = (keys.path().join("a"), keys.path().join("b"));
    make_pair(&a, &b).expect("keys");
    let [a, b] = [a, b].map(|dir| Identity::load(&dir).expect("keys load"));
    let cable = Arc::new(Cable::default());
    let descriptor = || Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("a descriptor"));
    let ((to_b, from_a), (to_a, from_b)) = (bounded(1024), bounded(1024));
    let (tell_a, tell_b) = (descriptor(), descriptor());
    let start = |last: u8, identity: &Identity, to, from, own: &Arc<EventFd>, peer: &Arc<EventFd>| {
        let (own, peer, cable) = (Arc::clone(own), Arc::clone(peer), Arc::clone(&cable));
        let nic = Plug { mac: [2, 0, 0, 0, 0, last], to, from, peer, own, cable, written: false };
        let settings = BypassSettings {
            address: [10, 0, 0, last].into(),
            peer: [10, 0, 0, 3 - last].into(),
            peer_mac: None,
            udp_port: 7401,
            mtu: MTU,
            poll: false,
        };
        Bypass::start(nic, &settings, identity).expect("it starts")
    };
    let over_a = start(1, &a, to_b, from_b, &tell_a, &tell_b);
    let over_b = start(2, &b, to_a, from_a, &tell_b, &tell_a);
    let listener = Listener::bind(any_port(), Security::Tls(b)).expect("a port");
    listener.over(over_b.clone());
    let sessions = listener.route("web");
    let dialer = TcpTransport::new(listener.address(), Security::Tls(a)).over(Some(over_a.clone()));
    Bypassed { pair: Pair { dialer, listener, sessions, _keys: keys }, cable, bypass: [over_a, over_b] }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// A session as one is after its Welcome, with heartbeats.
fn session(world: &Bypassed) -> (Link, Link) {
    let (primary, backup) = connected(&world.pair);
    primary.set_window(WINDOW);
    backup.allow(WINDOW);
    settle(&backup, &primary);
    backup.answer_heartbeats(LeaseGrants::new(Instant::now()));
    primary.start_heartbeats(Duration::from_millis(10), SOON);
    (primary, backup)
}

fn over_bypass(primary: &Link, backup: &Link) {
    wait_until("both ways over the bypass", || primary.uses_bypass() && backup.uses_bypass());
}

/// The bulk frame of this number, of a length of its own.
fn numbered(number: u64) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(8 + (number as usize * 7919) % 40_000, number as u8);
    encode(&Message::Base(PageBatch::from_bytes(body)))
}

/// The backup's side of a stream: what comes is checked, confirmed, and answered.
fn check_stream(backup: &Link, count: u64) {
    for number in 0..count {
        match backup.events().recv_timeout(SOON) {
            Ok(LinkEvent::Message { message: Message::Base(batch), charge }) => {
                assert_eq!(encode(&Message::Base(batch)), numbered(number), "number {number}");
                backup.grant(charge);
            }
            other => panic!("expected number {number}, found {other:?}; {:?}", backup.end()),
        }
        backup.send(&Message::Summon { term: Term::new(number) });
    }
}

/// Streams, with `strike` called at each of the primary's frames; every message comes once and in order.
fn stream(primary: &Link, backup: &Link, count: u64, mut strike: impl FnMut(u64)) {
    std::thread::scope(|scope| {
        scope.spawn(|| check_stream(backup, count));
        let mut answered = 0;
        let heed = |answered: &mut u64, event| match event {
            LinkEvent::Lease { .. } => {}
            LinkEvent::Message { message: Message::Summon { term }, .. } => {
                assert_eq!(term, Term::new(*answered), "answers come once and in order");
                *answered += 1;
            }
            other => panic!("{other:?}"),
        };
        for number in 0..count {
            strike(number);
            primary.bulk().send_timeout(numbered(number), SOON).expect("the link takes it");
            primary.ring();
            primary.events().try_iter().for_each(|event| heed(&mut answered, event));
        }
        while answered < count {
            let event = primary.events().recv_timeout(SOON).unwrap_or_else(|_| panic!("{:?}", primary.end()));
            heed(&mut answered, event);
        }
    });
}

#[test]
fn messages_go_over_the_bypass_once_it_is_there() {
    let world = bypassed();
    let (primary, backup) = session(&world);
    over_bypass(&primary, &backup);
    let before = world.bypass[0].counters();
    stream(&primary, &backup, 500, |_| {});
    wait_until("frames are counted", || {
        let sent = holdfast_bypass::Counter::FramesOut;
        world.bypass[0].counters().get(sent) > before.get(sent) + 500
    });
    assert_eq!((primary.bypass_returns(), backup.bypass_returns()), (0, 0));
}

/// What the QUIC library allocates for a frame at both its ends, counted by the tests of `holdfast-bypass`, and what a
/// message takes beside that: to share its bytes between threads, to name it, to confirm it.
const ALLOCATIONS_A_FRAME: f64 = 2.3;
const ALLOCATIONS_A_MESSAGE: u64 = 8;

/// Pages, as many as a message has.
fn chunk() -> Message {
    Message::Base(PageBatch::from_bytes(vec![0x5a; 256 * (4096 + 8)]))
}

/// Sends so many messages one after the other.
fn carry(primary: &Link, backup: &Link, frame: &[u8], messages: u64) {
    for _ in 0..messages {
        let mut buffer = primary.buffer();
        buffer.extend_from_slice(frame);
        primary.try_send_bulk(buffer).expect("the one before has arrived");
        match backup.events().recv_timeout(SOON) {
            Ok(LinkEvent::Message { message: Message::Base(batch), charge }) => {
                backup.give_back(batch.into_buffer());
                backup.grant(charge);
            }
            other => panic!("pages were sent, not {other:?}"),
        }
    }
}

#[test]
fn messages_over_the_bypass_cost_few_allocations_each() {
    const MESSAGES: u64 = 200;
    let name = "transport::tests::bypass::messages_over_the_bypass_cost_few_allocations_each";
    if !in_process_of_its_own(name) {
        return;
    }
    let world = bypassed();
    let (primary, backup) = connected(&world.pair);
    primary.set_window(WINDOW);
    backup.allow(WINDOW);
    settle(&backup, &primary);
    backup.answer_heartbeats(LeaseGrants::new(Instant::now()));
    // Few of them, that come between.
    primary.start_heartbeats(Duration::from_secs(1), SOON);
    over_bypass(&primary, &backup);
    let frame = encode(&chunk());
    carry(&primary, &backup, &frame, MESSAGES);
    let counted = || {
        let own = world.cable.allocations.load(Ordering::Relaxed);
        let frames = world.cable.frames.load(Ordering::Relaxed);
        [frames, allocations_of("hf-bypass") - own, allocations_of("hf-link")]
    };
    let before = counted();
    carry(&primary, &backup, &frame, MESSAGES);
    let after = counted();
    let [frames, ports, links] = [0, 1, 2].map(|at| after[at] - before[at]);
    println!(
        "{MESSAGES} messages, {frames} frames: {ports} allocations of both ports, {links} of both links"
    );
    let of_frames = (ALLOCATIONS_A_FRAME * frames as f64) as u64;
    assert!(ports <= of_frames + ALLOCATIONS_A_MESSAGE * MESSAGES, "{ports} for {frames} frames");
    assert!(links <= ALLOCATIONS_A_MESSAGE * MESSAGES / 2, "{links}");
}

/// Bulk as well as what is urgent: all that was sent before the end comes, though the cable is cut.
#[test]
fn last_words_come_by_the_connection_when_the_cable_is_cut() {
    let world = bypassed();
    let (primary, backup) = session(&world);
    over_bypass(&primary, &backup);
    stream(&primary, &backup, 10, |_| {});
    world.cable.cut.store(true, Ordering::Relaxed);
    primary.try_send_bulk(numbered(0)).expect("room");
    primary.send(&Message::Relinquish { term: Term::new(7) });
    settle_sent(&primary);
    primary.close();
    let (mut bulk, mut urgent) = (0, 0);
    while let Ok(event) = backup.events().recv_timeout(SOON) {
        match event {
            LinkEvent::Message { message: Message::Base(_), .. } => bulk += 1,
            LinkEvent::Message { message: Message::Relinquish { .. }, .. } => urgent += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((bulk, urgent), (1, 1), "{:?}", backup.end());
}

/// Waits until the owner has taken up what was queued.
fn settle_sent(link: &Link) {
    wait_until("taken up", || link.bulk().is_empty());
}

/// Leases of heartbeats that were all sent from now on.
fn leases_from_now_on(primary: &Link, count: usize) {
    let now = Instant::now();
    let mut left = count;
    while left > 0 {
        match primary.events().recv_timeout(SOON) {
            Ok(LinkEvent::Lease { until, .. }) => left -= usize::from(until > now + SOON),
            other => panic!("a lease was due, not {other:?}; {:?}", primary.end()),
        }
    }
}

/// FO-1: heartbeats and their answers go both ways, and the first answer counts: a connection that stands still takes
/// no lease away while the bypass lives.
#[test]
fn a_connection_that_stands_still_leaves_the_lease_to_the_bypass() {
    let world = bypassed();
    let proxy = Proxy::start(world.pair.listener.address());
    let dialer = TcpTransport::new(proxy.address, world.pair.dialer.security().clone());
    let dialer = dialer.over(Some(world.bypass[0].clone()));
    let world = Bypassed { pair: Pair { dialer, ..world.pair }, ..world };
    let (primary, backup) = session(&world);
    over_bypass(&primary, &backup);
    // Each takes what comes by the path once it has heard of that by the connection.
    stream(&primary, &backup, 10, |_| {});
    proxy.mute(true, true);
    leases_from_now_on(&primary, 20);
    assert_eq!((primary.bypass_returns(), backup.bypass_returns()), (0, 0));
    proxy.heal();
}

/// FO-1: and a bypass that stands still takes none away while the connection lives, before anybody has found out.
#[test]
fn a_bypass_that_stands_still_leaves_the_lease_to_the_connection() {
    let world = bypassed();
    let (primary, backup) = session(&world);
    over_bypass(&primary, &backup);
    let stalled = world.cable.stall();
    leases_from_now_on(&primary, 20);
    assert!(primary.uses_bypass() && backup.uses_bypass(), "nobody has left the path");
    drop(stalled);
    stream(&primary, &backup, 100, |_| {});
}

#[test]
fn a_port_that_is_lost_and_comes_back_loses_and_doubles_nothing() {
    let world = bypassed();
    let (primary, backup) = session(&world);
    over_bypass(&primary, &backup);
    let cable = &world.cable;
    stream(&primary, &backup, 3000, |number| match number {
        500 | 1500 | 2500 => cable.cut.store(true, Ordering::Relaxed),
        1000 | 2000 => {
            cable.cut.store(false, Ordering::Relaxed);
            over_bypass(&primary, &backup);
        }
        _ => {}
    });
    assert_eq!((primary.bypass_returns(), backup.bypass_returns()), (3, 3));
    assert!(!primary.uses_bypass() && !backup.uses_bypass());
    // Bulk that fits the window all goes by the connection then.
    stream(&primary, &backup, 100, |_| {});
}

#[test]
fn a_cable_that_loses_frames_loses_no_message() {
    let world = bypassed();
    let (primary, backup) = session(&world);
    over_bypass(&primary, &backup);
    world.cable.loses_one_of.store(31, Ordering::Relaxed);
    stream(&primary, &backup, 1000, |_| {});
    let lost = || world.bypass[0].counters().get(holdfast_bypass::Counter::Lost);
    wait_until("losses are counted", || lost() > 0);
    assert_eq!(primary.bypass_returns(), 0);
}

#[test]
fn hosts_of_which_one_has_no_bypass_go_by_the_connection() {
    let world = bypassed();
    let dialer = TcpTransport::new(world.pair.listener.address(), world.pair.dialer.security().clone());
    let pair = Pair { dialer, ..world.pair };
    let (primary, backup) = connected(&pair);
    primary.set_window(WINDOW);
    backup.allow(WINDOW);
    settle(&backup, &primary);
    primary.start_heartbeats(Duration::from_millis(10), SOON);
    stream(&primary, &backup, 100, |_| {});
    assert!(!primary.uses_bypass() && !backup.uses_bypass());
}

/// Sessions of several machines share the port.
#[test]
fn several_sessions_go_over_one_bypass() {
    let world = bypassed();
    let links: Vec<_> = (0..4).map(|_| session(&world)).collect();
    links.iter().for_each(|(primary, backup)| over_bypass(primary, backup));
    std::thread::scope(|scope| {
        for (primary, backup) in &links {
            scope.spawn(move || stream(primary, backup, 200, |_| {}));
        }
    });
    assert!(links.iter().all(|(primary, _)| primary.bypass_returns() == 0));
}
