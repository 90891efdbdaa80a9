//! The socket of a device: listening or connecting, one frontend at a time, until the device is
//! dropped.
//!
//! The `vhost` crate receives and answers the messages it knows. Two of a network device it does not
//! know (NET_SET_MTU, SEND_RARP), and SET_VRING_ENABLE it refuses before SET_FEATURES, where QEMU 7.2
//! sends it for network devices. The headers of these are peeked at and they are handled here.

use crate::control::Control;
use crate::device::{SocketAccess, SocketRole, SpawnError};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt::PeerCredentials};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost::vhost_user::{BackendReqHandler, Error};

const HEADER_BYTES: usize = 12;
const NEED_REPLY: u32 = 8;
/// Flags of an answer: version 1, reply.
const REPLY: u32 = 1 | 4;

/// First and longest wait between attempts to reach a frontend's socket, and after connections that came to
/// nothing.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The end that is dropped with the device; it ends the control thread wherever it waits.
#[derive(Debug)]
pub(crate) struct Stop {
    token: Option<Sender<()>>,
    wake: Arc<EventFd>,
    socket: Arc<Mutex<Option<UnixStream>>>,
}

/// The control thread's end.
#[derive(Debug)]
pub(crate) struct Stopped {
    token: Receiver<()>,
    wake: Arc<EventFd>,
    socket: Arc<Mutex<Option<UnixStream>>>,
}

#[expect(clippy::disallowed_methods, reason = "of the control thread and of who ends it")]
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stop {
    pub(crate) fn new() -> io::Result<(Self, Stopped)> {
        let (sender, receiver) = bounded(0);
        let wake =
            Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let socket = Arc::new(Mutex::new(None));
        let stopped = Stopped { token: receiver, wake: Arc::clone(&wake), socket: Arc::clone(&socket) };
        Ok((Self { token: Some(sender), wake, socket }, stopped))
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        // First the token: whoever is woken by what follows must find it gone.
        self.token = None;
        if let Err(error) = self.wake.write(1) {
            tracing::error!(%error, "cannot wake a control thread");
        }
        if let Some(socket) = &*lock(&self.socket) {
            // A socket that is closed already needs nothing.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

impl Stopped {
    /// Disconnected when the device is dropped.
    pub(crate) fn receiver(&self) -> Receiver<()> {
        self.token.clone()
    }

    fn requested(&self) -> bool {
        self.token.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits until `fd` is readable, the device is dropped, or the time is over; whether to go on.
    fn wait(&self, fd: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> bool {
        let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        let outcome = match fd {
            Some(fd) => poll(&mut [wake, PollFd::new(fd, PollFlags::POLLIN)], timeout),
            None => poll(&mut [wake], timeout),
        };
        if let Err(errno) = outcome {
            if errno != Errno::EINTR {
                tracing::error!(%errno, "poll failed");
            }
        }
        !self.requested()
    }
}

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Source {
    Listener { listener: UnixListener, path: PathBuf },
    Client(PathBuf),
}

impl Source {
    /// Binds the socket of a server, for those who have access; a client binds nothing.
    pub(crate) fn open(role: SocketRole, access: SocketAccess) -> Result<Self, SpawnError> {
        match role {
            SocketRole::Client(path) => Ok(Self::Client(path)),
            SocketRole::Server(path) => {
                remove_stale(&path)?;
                let listener = UnixListener::bind(&path)
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                    .map_err(|error| SpawnError::Listen { path: path.clone(), error })?;
                let source = Self::Listener { listener, path: path.clone() };
                // On failure the socket goes again with its source.
                allow(&path, access).map_err(|error| SpawnError::Access { path, error })?;
                Ok(source)
            }
        }
    }

    /// The next connection; `None` when the device is dropped. A client waits for `pause` before it tries
    /// again, and longer each time.
    fn next(&self, stopped: &Stopped, pause: &mut Duration) -> Option<UnixStream> {
        loop {
            let attempt = match self {
                Self::Listener { listener, .. } => {
                    if !stopped.wait(Some(listener.as_fd()), PollTimeout::NONE) {
                        return None;
                    }
                    listener.accept().map(|(stream, _)| stream)
                }
                Self::Client(path) => UnixStream::connect(path),
            };
            // An accepted socket does not inherit the listener's mode, but say so.
            match attempt.and_then(|stream| stream.set_nonblocking(false).map(|()| stream)) {
                Ok(stream) => return Some(stream),
                Err(error) => tracing::debug!(%error, ?self, "no connection yet"),
            }
            if !rest(stopped, pause) {
                return None;
            }
        }
    }
}

/// Waits for `pause`, and makes the next one longer; whether to go on.
fn rest(stopped: &Stopped, pause: &mut Duration) -> bool {
    let timeout = PollTimeout::try_from(*pause).unwrap_or(PollTimeout::MAX);
    *pause = (*pause * 2).min(RETRY.1);
    stopped.wait(None, timeout)
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Self::Listener { path, .. } = self {
            if let Err(error) = std::fs::remove_file(&*path) {
                tracing::debug!(%error, path = %path.display(), "socket was removed by somebody else");
            }
        }
    }
}

/// Gives the socket its group before that group's permissions. A frontend that comes in between is refused, and
/// tries again.
fn allow(path: &Path, access: SocketAccess) -> io::Result<()> {
    if access.group.is_some() {
        chown(path, None, access.group)?;
    }
    access.mode.map_or(Ok(()), |mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
}

/// Removes a socket that nobody serves any more: its process was killed.
fn remove_stale(path: &Path) -> Result<(), SpawnError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(SpawnError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| SpawnError::Listen { path: path.to_owned(), error })
        }
        _ => Err(SpawnError::SocketInUse(path.to_owned())),
    }
}

/// Serves one connection after the other until the device is dropped.
pub(crate) fn serve(source: &Source, control: &Arc<Mutex<Control>>, stopped: &Stopped) {
    let mut pause = RETRY.0;
    while let Some(stream) = source.next(stopped, &mut pause) {
        let began = Instant::now();
        let pid = getsockopt(&stream, PeerCredentials).ok().map(|credentials| credentials.pid());
        lock(control).connected(pid.filter(|pid| *pid > 0));
        let outcome = converse(&stream, control, stopped);
        *lock(&stopped.socket) = None;
        let hung_up = matches!(source, Source::Client(_)) && began.elapsed() < RETRY.1;
        let nonsense = outcome.is_err();
        lock(control).disconnected(outcome.err());
        if stopped.requested() {
            break;
        }
        // Somebody who is no frontend is not spoken to again and again without a pause.
        if !(hung_up || nonsense) {
            pause = RETRY.0;
        } else if !rest(stopped, &mut pause) {
            break;
        }
    }
}

/// Handles the messages of one connection. `Err` says what the frontend did wrong.
fn converse(stream: &UnixStream, control: &Arc<Mutex<Control>>, stopped: &Stopped) -> Result<(), String> {
    let host = |error: io::Error| format!("host: cannot prepare the socket: {error}");
    *lock(&stopped.socket) = Some(stream.try_clone().map_err(host)?);
    let mut handler = BackendReqHandler::from_stream(stream.try_clone().map_err(host)?, Arc::clone(control));
    while stopped.wait(Some(stream.as_fd()), PollTimeout::NONE) {
        let outcome = match peek(stream) {
            Peeked::Nothing => continue,
            Peeked::Closed => return Ok(()),
            Peeked::Own { request, need_reply } => answer_own(stream, control, request, need_reply),
            Peeked::Other => handler.handle_request(),
        };
        match outcome {
            Ok(()) => {}
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => return Ok(()),
            Err(_) if stopped.requested() => return Ok(()),
            Err(Error::ReqHandlerError(error)) => return Err(error.to_string()),
            Err(error) => {
                return Err(format!(
                    "peer: {error}; mend: only QEMU's vhost-user netdev may use this socket"
                ));
            }
        }
    }
    Ok(())
}

enum Peeked {
    Nothing,
    Closed,
    /// A message that is handled here.
    Own {
        request: FrontendReq,
        need_reply: bool,
    },
    /// A message that the `vhost` crate handles; it waits for what is missing.
    Other,
}

/// Looks at the next header without taking it, nor the descriptors that come with it.
fn peek(stream: &UnixStream) -> Peeked {
    let mut header = [0; HEADER_BYTES];
    match recv(stream.as_raw_fd(), &mut header, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EAGAIN | Errno::EINTR) => Peeked::Nothing,
        Ok(0) | Err(_) => Peeked::Closed,
        Ok(HEADER_BYTES) => {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
            match FrontendReq::try_from(word(0)) {
                Ok(
                    request @ (FrontendReq::NET_SET_MTU
                    | FrontendReq::SEND_RARP
                    | FrontendReq::SET_VRING_ENABLE),
                ) if word(8) == 8 => Peeked::Own { request, need_reply: word(4) & NEED_REPLY != 0 },
                _ => Peeked::Other,
            }
        }
        Ok(_) => Peeked::Other,
    }
}

/// Takes a message with a body of eight bytes and acts on it.
fn answer_own(
    mut stream: &UnixStream,
    control: &Arc<Mutex<Control>>,
    request: FrontendReq,
    need_reply: bool,
) -> Result<(), Error> {
    let mut message = [0; HEADER_BYTES + 8];
    stream.read_exact(&mut message).map_err(Error::SocketBroken)?;
    let body: [u8; 8] = message[HEADER_BYTES..].try_into().expect("eight bytes");
    let mut control = lock(control);
    let outcome = match request {
        FrontendReq::SET_VRING_ENABLE => {
            let [index, value] = [0, 4].map(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|n| body[at + n])));
            control.set_enabled(index as usize, value)
        }
        FrontendReq::SEND_RARP => {
            control.announce([body[0], body[1], body[2], body[3], body[4], body[5]]);
            Ok(())
        }
        _ => control.set_mtu(u64::from_ne_bytes(body)),
    };
    let acknowledge = control.protocol_features() & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
    drop(control);
    if need_reply && acknowledge {
        let words = [u32::from(request), REPLY, 8].map(u32::to_ne_bytes);
        let mut reply = [0; HEADER_BYTES + 8];
        reply[..HEADER_BYTES].copy_from_slice(words.as_flattened());
        reply[HEADER_BYTES..].copy_from_slice(&u64::from(outcome.is_err()).to_ne_bytes());
        stream.write_all(&reply).map_err(Error::SocketBroken)?;
    }
    Ok(outcome?)
}
