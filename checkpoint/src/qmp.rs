//! QEMU's machine protocol: one JSON object a line over a Unix socket.
//!
//! One thread owns a connection and waits in `poll(2)`, always with a deadline; a checkpoint is a
//! handful of commands and must not pay for a second thread. Replies are matched to commands by
//! number, so that the late reply of a command that was given up does not answer the next one. Events
//! that arrive in between are queued, oldest dropped first beyond a bound, and picked by a predicate.
//!
//! QEMU is trusted no further than any peer (RB-1): lines and queues are bounded, and whatever is not
//! understood ends the connection with an error, for the stream's place is lost then.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, sendmsg,
    socket, sockopt,
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest line that QEMU may send; the longest real one, its schema, has about 300 KB.
const LINE_LIMIT: usize = 8 << 20;

/// Most events that wait for somebody to ask for them.
const EVENT_LIMIT: usize = 1024;

/// How long a command may take unless its caller says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// Why QEMU could not be spoken to.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The operator: nothing listens there.
    #[error(
        "cannot connect to QEMU's monitor at {}: {source}; \
         start QEMU with -qmp unix:{},server=on,wait=off and name the same path",
        path.display(), path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The operator: something listens, but it does not greet.
    #[error(
        "nothing greeted within {limit:?} at {}: a monitor serves one client at a time and another one \
         (libvirt, a shell) may hold it, or it is no QMP monitor; give Holdfast a -qmp socket of its own",
        path.display()
    )]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// QEMU ended or closed the connection.
    #[error("QEMU closed its monitor: it ended, or somebody took the monitor over")]
    Closed,
    /// The connection broke.
    #[error("the connection to QEMU's monitor broke: {0}")]
    Io(#[from] io::Error),
    /// What came is not the protocol.
    #[error("QEMU's monitor sent what is not QMP ({reason}); is this socket a QMP monitor?")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer {what} within {limit:?}: it hangs or its host is overloaded")]
    Timeout {
        /// Command or event that was waited for.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        desc: String,
    },
}

/// Something that QEMU reported by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, as `STOP`.
    pub name: String,
    /// Its data; null when it has none.
    pub data: Value,
}

/// A command that was sent and not yet answered.
#[derive(Debug)]
#[must_use = "the reply tells whether it worked"]
pub struct Pending {
    id: u64,
    command: String,
}

/// A command's number and its result, or the class and words of its refusal.
type Reply = (u64, Result<Value, (String, String)>);

/// A connection to a QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    greeting: Value,
    input: Vec<u8>,
    /// Bytes of `input` that are known to hold no end of line.
    scanned: usize,
    events: VecDeque<Event>,
    /// The reply to the last command, until it is taken.
    reply: Option<Reply>,
    last_id: u64,
}

impl Qmp {
    /// Connects, awaits the greeting and leaves the negotiation mode, all within `limit`.
    ///
    /// # Errors
    /// When nothing listens, nothing greets in time, or what greets is not QMP.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let no_greeting = || QmpError::NoGreeting { path: path.to_owned(), limit };
        let socket = open(path).map_err(|errno| match errno {
            // The queue of those who wait for the monitor is full.
            Errno::EAGAIN => no_greeting(),
            errno => QmpError::Connect { path: path.to_owned(), source: errno.into() },
        })?;
        let mut qmp = Self {
            socket,
            greeting: Value::Null,
            input: Vec::with_capacity(4096),
            scanned: 0,
            events: VecDeque::new(),
            reply: None,
            last_id: 0,
        };
        while qmp.greeting.is_null() {
            if !qmp.pump(deadline, None)? {
                return Err(no_greeting());
            }
        }
        qmp.execute_within("qmp_capabilities", Value::Null, limit)?;
        Ok(qmp)
    }

    /// QEMU's version as it greeted: major, minor, micro.
    ///
    /// # Errors
    /// When the greeting does not say.
    pub fn version(&self) -> Result<(u64, u64, u64), QmpError> {
        let version = &self.greeting["version"]["qemu"];
        let part = |name: &str| {
            version[name].as_u64().ok_or_else(|| malformed(format!("no {name} version in the greeting")))
        };
        Ok((part("major")?, part("minor")?, part("micro")?))
    }

    /// Process that listens on the socket, as the kernel tells it.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer_pid(&self) -> Result<i32, QmpError> {
        let credentials = getsockopt(&self.socket, sockopt::PeerCredentials).map_err(io::Error::from)?;
        Ok(credentials.pid())
    }

    /// Runs a command; `arguments` is an object, or null for none.
    ///
    /// # Errors
    /// [`QmpError::Refused`] when QEMU answers with an error, others when it cannot be spoken to.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, COMMAND_LIMIT)
    }

    /// Runs a command that may take up to `limit`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let pending = self.begin(command, arguments, None)?;
        self.finish(&pending, limit)
    }

    /// Runs a command that takes a descriptor over.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_fd(
        &mut self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        let pending = self.begin(command, arguments, Some(fd))?;
        self.finish(&pending, COMMAND_LIMIT)
    }

    /// Sends a command without awaiting its reply.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn begin(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Pending, QmpError> {
        self.last_id += 1;
        let mut message = json!({ "execute": command, "id": self.last_id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        self.send(message.to_string().as_bytes(), fd)?;
        Ok(Pending { id: self.last_id, command: command.to_owned() })
    }

    /// Awaits the reply of a command that was sent.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn finish(&mut self, pending: &Pending, limit: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(reply) = self.take_reply(pending) {
                return reply;
            }
            if !self.pump(deadline, None)? {
                return Err(QmpError::Timeout { what: pending.command.clone(), limit });
            }
        }
    }

    /// The reply of a command that was sent, if it has come.
    pub fn take_reply(&mut self, pending: &Pending) -> Option<Result<Value, QmpError>> {
        let (_, reply) = self.reply.take_if(|(id, _)| *id == pending.id)?;
        let command = pending.command.clone();
        Some(reply.map_err(|(class, desc)| QmpError::Refused { command, class, desc }))
    }

    /// Takes the oldest queued event that fits.
    pub fn take_event(&mut self, fits: impl Fn(&Event) -> bool) -> Option<Event> {
        let at = self.events.iter().position(fits)?;
        self.events.remove(at)
    }

    /// Awaits an event that fits; `what` names it in the error.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] when it does not come in time.
    pub fn wait_event(
        &mut self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.take_event(&fits) {
                return Ok(event);
            }
            if !self.pump(deadline, None)? {
                return Err(QmpError::Timeout { what: what.to_owned(), limit });
            }
        }
    }

    /// Waits until QEMU said something, the descriptor `also` is ready for what is asked of it, or
    /// the deadline passed (false); takes in what QEMU said.
    ///
    /// # Errors
    /// When the connection broke or carries what is not QMP.
    pub fn pump(
        &mut self,
        deadline: Instant,
        also: Option<(BorrowedFd<'_>, PollFlags)>,
    ) -> Result<bool, QmpError> {
        let monitor = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
        let (other, wanted) = also.unwrap_or((self.socket.as_fd(), PollFlags::empty()));
        let mut fds = [monitor, PollFd::new(other, wanted)];
        let count = if also.is_some() { 2 } else { 1 };
        let ready = poll(&mut fds[..count], timeout_until(deadline));
        let monitor_ready = fds[0].any().unwrap_or(true);
        match ready {
            Ok(0) => Ok(Instant::now() < deadline),
            Ok(_) => {
                if monitor_ready {
                    self.take_in()?;
                }
                Ok(true)
            }
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    /// The connection's descriptor, readable when QEMU said something: for a loop that waits for
    /// several things and then calls [`Qmp::pump`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there and sorts its lines.
    fn take_in(&mut self) -> Result<(), QmpError> {
        let mut chunk = [0; 16 << 10];
        let read = loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.input.extend_from_slice(&chunk[..read]);
        let mut start = 0;
        while let Some(end) = self.input[self.scanned..].iter().position(|&byte| byte == b'\n') {
            let end = self.scanned + end;
            let message = serde_json::from_slice(&self.input[start..end])
                .map_err(|error| malformed(error.to_string()))?;
            self.sort(message)?;
            (start, self.scanned) = (end + 1, end + 1);
        }
        self.input.drain(..start);
        self.scanned = self.input.len();
        if self.scanned > LINE_LIMIT {
            return Err(malformed(format!("a line of more than {LINE_LIMIT} bytes")));
        }
        Ok(())
    }

    fn sort(&mut self, mut message: Value) -> Result<(), QmpError> {
        if let Some(name) = message["event"].as_str() {
            let event = Event { name: name.to_owned(), data: message["data"].take() };
            if self.events.len() == EVENT_LIMIT {
                self.events.pop_front();
            }
            self.events.push_back(event);
        } else if message.get("QMP").is_some() {
            self.greeting = message["QMP"].take();
        } else if let Some(error) = message.get("error") {
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            let reply = Err((text("class"), text("desc")));
            self.reply = self.id_of(&message)?.map(|id| (id, reply));
        } else if message.get("return").is_some() {
            let id = self.id_of(&message)?;
            self.reply = id.map(|id| (id, Ok(message["return"].take())));
        } else {
            return Err(malformed("neither greeting, reply nor event".to_owned()));
        }
        Ok(())
    }

    /// The number of the command that a reply answers; none for a command that was given up.
    fn id_of(&self, message: &Value) -> Result<Option<u64>, QmpError> {
        match message["id"].as_u64() {
            Some(id) if id <= self.last_id => Ok((id == self.last_id).then_some(id)),
            _ => Err(malformed(format!("a reply to no command: {}", message["error"]["desc"]))),
        }
    }

    fn send(&mut self, mut bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), QmpError> {
        let deadline = Instant::now() + COMMAND_LIMIT;
        let raw: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let mut rights: &[_] = &[ControlMessage::ScmRights(&raw)];
        if fd.is_none() {
            rights = &[];
        }
        while !bytes.is_empty() {
            let sent = sendmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(bytes)],
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    rights = &[];
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_writable(deadline)?,
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(QmpError::Closed),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    fn wait_writable(&self, deadline: Instant) -> Result<(), QmpError> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, timeout_until(deadline)) {
            Ok(0) => Err(QmpError::Timeout { what: "a command".to_owned(), limit: COMMAND_LIMIT }),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }
}

fn open(path: &Path) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn malformed(reason: String) -> QmpError {
    QmpError::Malformed { reason }
}

/// The time that is left, rounded up, so that a wait does not end before its deadline.
fn timeout_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests;
