//! Takes sessions that the other host opens, and hands each to its virtual machine.
//!
//! A stranger gets no further than the handshake: a bounded number of connections may be at it at a
//! time, each for a bounded time, and nothing is allocated for a message before its length was judged
//! (RB-1). Only a peer that showed the pair's certificate and spoke a Hello of our version, for a
//! machine that is here, reaches a supervisor.

use crate::protocol::{
    FRAME_HEAD, FrameHead, HELLO_LIMIT, Hello, Message, PROTOCOL_VERSION, Refusal, RefusalCode, decode,
    encode,
};
use crate::transport::bypass::Bypass;
use crate::transport::handle::Incoming;
use crate::transport::link::{last_words, link};
use crate::transport::tcp::Security;
use crate::transport::wire::Wire;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Connections that may be at their handshake at a time.
const GREETING_LIMIT: usize = 32;
/// How long a handshake and a Hello may take.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// Pause after a connection could not be taken, in milliseconds.
const ACCEPT_PAUSE: u8 = 100;
/// Sessions that may wait for their supervisor to look.
const WAITING: usize = 4;

/// What became of the connections that were taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ListenerCounters {
    /// Sessions handed to a supervisor.
    pub sessions: u64,
    /// Connections of strangers, or of peers that did not get through the handshake.
    pub strangers: u64,
    /// Peers that were refused: another version, or a machine that is not here.
    pub refused: u64,
    /// Connections dropped because too many were at their handshake.
    pub dropped: u64,
}

#[derive(Default)]
struct Shared {
    routes: Mutex<HashMap<String, Sender<Incoming>>>,
    bypass: OnceLock<Bypass>,
    last_refusal: Mutex<Option<String>>,
    greeting: AtomicUsize,
    sessions: AtomicU64,
    strangers: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

/// Listens for sessions. Dropping it ends the listening, not the sessions.
pub struct Listener {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Listener {
    /// Listens at `address` (port 0: any).
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr, security: Security) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?);
        let (theirs, stopped) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("hf-listen".to_owned())
            .spawn(move || accept(&socket, &security, &theirs, &stopped))?;
        Ok(Self { address, shared, stop, thread: Some(thread) })
    }

    /// The address that was had.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets sessions that come from now on use the bypass; to be called once at the most.
    pub fn over(&self, bypass: Bypass) {
        assert!(self.shared.bypass.set(bypass).is_ok(), "a host has one bypass");
    }

    /// Sessions for the machine of this name go to the receiver; an earlier one is replaced.
    #[must_use]
    pub fn route(&self, vm: &str) -> Receiver<Incoming> {
        let (sender, receiver) = bounded(WAITING);
        let mut routes = self.shared.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.insert(vm.to_owned(), sender);
        receiver
    }

    /// What became of the connections so far.
    #[must_use]
    pub fn counters(&self) -> ListenerCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        ListenerCounters {
            sessions: get(&shared.sessions),
            strangers: get(&shared.strangers),
            refused: get(&shared.refused),
            dropped: get(&shared.dropped),
        }
    }

    /// Who was refused last before it reached a machine, and why.
    #[must_use]
    pub fn last_refusal(&self) -> Option<String> {
        self.shared.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.write(1).expect("nobody else writes to this eventfd");
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported when it happened.
            drop(thread.join());
        }
    }
}

fn accept(socket: &TcpListener, security: &Security, shared: &Arc<Shared>, stop: &EventFd) {
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue; // interrupted
        }
        if fds[1].revents().is_some_and(|seen| !seen.is_empty()) {
            return;
        }
        let (connection, from) = match socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => {
                // Mostly a lack of descriptors, which passes; the connection stays in the queue.
                tracing::error!(%error, "a connection to the replication port cannot be taken");
                shared.dropped.fetch_add(1, Ordering::Relaxed);
                let mut stopped = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
                match poll(&mut stopped, ACCEPT_PAUSE) {
                    Ok(1) => return,
                    _ => continue,
                }
            }
        };
        if shared.greeting.fetch_add(1, Ordering::AcqRel) >= GREETING_LIMIT {
            shared.greeting.fetch_sub(1, Ordering::AcqRel);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (security, mine) = (security.clone(), Arc::clone(shared));
        let spawned = thread::Builder::new()
            .name("hf-link".to_owned())
            .spawn(move || serve(connection, from, &security, &mine));
        if spawned.is_err() {
            shared.greeting.fetch_sub(1, Ordering::AcqRel);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a connection came to.
enum Greeting {
    /// A session for a machine that is here.
    Session(Box<Hello>, Sender<Incoming>),
    Refused(Refusal),
}

fn serve(connection: TcpStream, from: SocketAddr, security: &Security, shared: &Shared) {
    let deadline = Instant::now() + GREETING_TIME;
    let greeted = shake_hands(connection, security, deadline)
        .and_then(|mut wire| greet(&mut wire, shared, deadline).map(|greeting| (wire, greeting)));
    shared.greeting.fetch_sub(1, Ordering::AcqRel);
    match greeted {
        Err(error) => {
            shared.strangers.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%from, %error, "a connection to the replication port came to nothing: \
                 a stranger, or a host whose keys were not made together with this one's");
        }
        Ok((mut wire, Greeting::Refused(refusal))) => {
            tracing::warn!(%from, %refusal, "a session was refused");
            let told = format!("{}: {refusal}", from.ip());
            *shared.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
            shared.refused.fetch_add(1, Ordering::Relaxed);
            if wire.set_nonblocking().is_ok() && wire.queue(encode(&Message::Refuse(refusal))).is_ok() {
                last_words(wire);
            }
        }
        Ok((wire, Greeting::Session(hello, route))) => {
            match link(wire, from.to_string(), shared.bypass.get()) {
                Err(error) => tracing::error!(%from, %error, "a session could not be set up on this host"),
                Ok((handle, owner)) => {
                    shared.sessions.fetch_add(1, Ordering::Relaxed);
                    let incoming = Incoming { hello: *hello, link: handle };
                    if let Err(TrySendError::Full(late) | TrySendError::Disconnected(late)) =
                        route.try_send(incoming)
                    {
                        late.link.send(&Message::Refuse(Refusal::new(
                            RefusalCode::NotBackup,
                            "this host does not take sessions of the machine now; try again",
                        )));
                    }
                    owner.run();
                }
            }
        }
    }
}

fn shake_hands(socket: TcpStream, security: &Security, deadline: Instant) -> io::Result<Wire> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    match security {
        Security::LaboratoryPlaintext => Ok(Wire::clear(socket)),
        Security::Tls(identity) => {
            Wire::tls(socket, identity.accepting().map_err(io::Error::other)?, deadline)
        }
    }
}

fn greet(wire: &mut Wire, shared: &Shared, deadline: Instant) -> io::Result<Greeting> {
    let mut head = [0; FRAME_HEAD];
    fill(wire, &mut head, deadline)?;
    let invalid = |fault| io::Error::new(ErrorKind::InvalidData, fault);
    let head = FrameHead::parse(head, HELLO_LIMIT).map_err(invalid)?;
    let mut body = vec![0; head.len];
    fill(wire, &mut body, deadline)?;
    match decode(head, body).map_err(invalid)? {
        Message::Hello(hello) => Ok(route(hello, shared)),
        other => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("the first message is {} and not Hello", other.name()),
        )),
    }
}

fn route(hello: Hello, shared: &Shared) -> Greeting {
    if hello.version != PROTOCOL_VERSION {
        return Greeting::Refused(Refusal::new(
            RefusalCode::Version,
            format!(
                "the backup speaks version {PROTOCOL_VERSION} of the replication protocol and the primary \
                 speaks version {}: install the same release of Holdfast on both",
                hello.version
            ),
        ));
    }
    let routes = shared.routes.lock().unwrap_or_else(PoisonError::into_inner);
    match routes.get(&hello.vm) {
        Some(sender) => Greeting::Session(Box::new(hello), sender.clone()),
        None => Greeting::Refused(Refusal::new(
            RefusalCode::UnknownMachine,
            format!(
                "this host has no machine {:?}: give it a [[vm]] of that name in its configuration",
                hello.vm
            ),
        )),
    }
}

/// Reads until `room` is full or the deadline has passed.
fn fill(wire: &mut Wire, mut room: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !room.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        wire.set_read_timeout(left)?;
        match wire.read(room) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => room = &mut room[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
