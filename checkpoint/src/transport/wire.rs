//! A nonblocking socket, in the clear or under TLS, with its unsent bytes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use holdfast_bypass::Token;
use rustls::Connection;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// The socket and what protects it.
pub(super) struct Wire {
    socket: TcpStream,
    cover: Cover,
    /// Bytes given to [`Wire::queue`] since the last time that nothing was unsent.
    backlog: usize,
}

enum Cover {
    Clear { unsent: VecDeque<Vec<u8>>, sent: usize },
    Tls(Box<Connection>),
}

/// Frames written by one system call.
const VECTORS: usize = 16;

impl Wire {
    /// A connection in the clear.
    pub(super) fn clear(socket: TcpStream) -> Self {
        Self { socket, cover: Cover::Clear { unsent: VecDeque::new(), sent: 0 }, backlog: 0 }
    }

    /// Shakes hands under TLS until `deadline`; the socket blocks.
    ///
    /// # Errors
    /// `InvalidData` with TLS's words when the two do not accept each other.
    pub(super) fn tls(socket: TcpStream, mut tls: Connection, deadline: Instant) -> io::Result<Self> {
        let mut wire = &socket;
        tls.set_buffer_limit(None);
        while tls.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            socket.set_write_timeout(Some(left))?;
            while tls.wants_write() {
                tls.write_tls(&mut wire)?;
            }
            if !tls.is_handshaking() {
                break;
            }
            if tls.read_tls(&mut wire)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            take_in(&mut tls, &mut wire)?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut wire)?;
        }
        Ok(Self { socket, cover: Cover::Tls(Box::new(tls)), backlog: 0 })
    }

    /// From now on nothing blocks.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Lets single reads block for `time` at the most.
    pub(super) fn set_read_timeout(&self, time: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(time.max(Duration::from_millis(1))))
    }

    /// What both ends of this connection and nobody else can know: names the session on the bypass (RFC 8446
    /// section 7.5). None in the clear.
    pub(super) fn token(&self) -> Option<Token> {
        let Cover::Tls(tls) = &self.cover else { return None };
        tls.export_keying_material([0; 32], b"EXPORTER-holdfast-bypass", None).ok().map(Token)
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Adds a frame to what is unsent.
    ///
    /// Its cost is in that of [`Link::try_send_bulk`](super::Link::try_send_bulk), as of all here.
    pub(super) fn queue(&mut self, frame: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        self.backlog += frame.len();
        match &mut self.cover {
            Cover::Clear { unsent, .. } => {
                unsent.push_back(frame);
                Ok(None)
            }
            Cover::Tls(tls) => {
                tls.writer().write_all(&frame)?;
                Ok(Some(frame))
            }
        }
    }

    /// Whether something is unsent.
    pub(super) fn has_unsent(&self) -> bool {
        match &self.cover {
            Cover::Clear { unsent, .. } => !unsent.is_empty(),
            Cover::Tls(tls) => tls.wants_write(),
        }
    }

    /// Bytes queued since nothing was unsent.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Sends until nothing is unsent or the socket would block; `done` gets buffers back.
    pub(super) fn send(&mut self, mut done: impl FnMut(Vec<u8>)) -> io::Result<()> {
        let mut socket = &self.socket;
        while match &self.cover {
            Cover::Clear { unsent, .. } => !unsent.is_empty(),
            Cover::Tls(tls) => tls.wants_write(),
        } {
            let outcome = match &mut self.cover {
                Cover::Clear { unsent, sent } => write_frames(&mut socket, unsent, sent, &mut done),
                Cover::Tls(tls) => tls.write_tls(&mut socket),
            };
            match outcome {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.backlog = 0;
        Ok(())
    }

    /// Reads bytes of the stream, as `Read::read`.
    pub(super) fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut socket = &self.socket;
        match &mut self.cover {
            Cover::Clear { .. } => socket.read(room),
            Cover::Tls(tls) => loop {
                match tls.reader().read(room) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    outcome => return outcome,
                }
                if tls.read_tls(&mut socket)? == 0 {
                    return Ok(0);
                }
                take_in(tls, &mut socket)?;
            },
        }
    }

    /// Says that nothing more will be sent; the peer's bytes can still be read.
    pub(super) fn finish(&mut self) {
        if let Cover::Tls(tls) = &mut self.cover {
            tls.send_close_notify();
        }
        // What cannot be sent any more is not missed: the session is over either way.
        drop(self.send(drop));
        drop(self.socket.shutdown(Shutdown::Write));
    }
}

fn write_frames(
    socket: &mut &TcpStream,
    unsent: &mut VecDeque<Vec<u8>>,
    sent: &mut usize,
    done: &mut impl FnMut(Vec<u8>),
) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); VECTORS];
    let mut count = 0;
    for (slice, frame) in slices.iter_mut().zip(unsent.iter()) {
        let from = if count == 0 { *sent } else { 0 };
        *slice = IoSlice::new(&frame[from..]);
        count += 1;
    }
    let written = socket.write_vectored(&slices[..count])?;
    *sent += written;
    while unsent.front().is_some_and(|frame| frame.len() <= *sent) {
        let frame = unsent.pop_front().expect("just looked at");
        *sent -= frame.len();
        done(frame);
    }
    Ok(written)
}

/// Processes what was read; what TLS has to say about a fault is still sent, so that the peer knows.
fn take_in(tls: &mut Connection, socket: &mut &TcpStream) -> io::Result<()> {
    match tls.process_new_packets() {
        Ok(_) => Ok(()),
        Err(fault) => {
            drop(tls.write_tls(socket));
            Err(io::Error::new(ErrorKind::InvalidData, fault))
        }
    }
}
