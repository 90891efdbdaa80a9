//! A path: one QUIC connection, and the records in its streams.
//!
//! Each end opens two streams, urgent first. The urgent one begins with a greeting: the token of the session
//! that the path belongs to, and the number that the dialling host gave it. Whoever dialled says it first; whoever
//! was dialled says the same once it knows the session.

use crate::quic::{BULK_WINDOW, URGENT_ROOM};
use crate::record::{Assembler, Head, Record};
use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, ConnectionId, Dir, Event, FrameStats, ReadError,
    ReadableError, StreamId, VarInt, WriteError,
};
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a path may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(2);
const MAGIC: [u8; 8] = *b"HFBYPASS";
const GREETING: usize = MAGIC.len() + 32 + 8;
/// What a peer is told that is not greeted.
const NOT_WANTED: u32 = 1;

/// Which session a path belongs to: 32 bytes that both ends draw from their control connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 32]);

impl Token {
    /// Where the first packets of the session's path of this number are addressed to. Without the token nobody can
    /// tell, so that a stranger on the link cannot take the places of handshakes.
    pub(crate) fn address_of(&self, number: u64) -> ConnectionId {
        let number = number.to_le_bytes();
        let proof = blake3::keyed_hash(&self.0, &number);
        let mut address = [0; NUMBER_LEN + PROOF_LEN];
        address[..NUMBER_LEN].copy_from_slice(&number);
        address[NUMBER_LEN..].copy_from_slice(&proof.as_bytes()[..PROOF_LEN]);
        ConnectionId::new(&address)
    }

    /// Whether a first packet that was sent there is for a path of the session.
    pub(crate) fn owns(&self, address: &ConnectionId) -> bool {
        let number = address.first_chunk().copied().map(u64::from_le_bytes);
        number.is_some_and(|number| self.address_of(number) == *address)
    }
}

const NUMBER_LEN: usize = size_of::<u64>();
/// Bytes that prove who made an address: what is left of the longest that QUIC has.
const PROOF_LEN: usize = 12;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// How much of a hurry a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Past all bulk.
    Urgent = 0,
    /// In order, behind the urgent records that were sent before it.
    Bulk = 1,
}

/// Why a path is no more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Lost {
    /// Nothing comes from the peer any more.
    #[error("nothing comes over the port: is the interface up on both hosts, and the MTU right on the way?")]
    Silent,
    /// The peer ended it, or said what cannot be.
    #[error("the other host: {0}")]
    Peer(String),
    /// It was closed here.
    #[error("closed by this host")]
    Host,
}

impl From<ConnectionError> for Lost {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Silent,
            ConnectionError::LocallyClosed => Self::Host,
            other => Self::Peer(other.to_string()),
        }
    }
}

/// What became of a path since it was looked at last.
pub(crate) enum News {
    /// The peer named this session and this number of the path.
    Greeted(Token, u64),
    Lost(Lost),
}

/// One QUIC connection and what waits for its streams.
pub(crate) struct Path {
    pub(crate) handle: ConnectionHandle,
    pub(crate) connection: Connection,
    /// The session it was opened for, or that the peer named.
    pub(crate) token: Option<Token>,
    /// Which of the session's paths it is.
    pub(crate) number: u64,
    dialled: bool,
    up_by: Option<Instant>,
    /// Whether it was told to be lost; it lingers until the peer knows.
    pub(crate) ended: bool,
    /// Own streams, by class.
    own: Option<[StreamId; 2]>,
    /// The peer's streams, by class.
    theirs: [Option<StreamId>; 2],
    waiting: [VecDeque<Bytes>; 2],
    waiting_bytes: usize,
    assemblers: [Assembler; 2],
    greeting: Vec<u8>,
    urgent_sent: u64,
    urgent_received: u64,
    /// QUIC frames that came in packets that were accepted.
    accepted: u64,
}

impl Path {
    pub(crate) fn new(
        handle: ConnectionHandle,
        connection: Connection,
        session: Option<(Token, u64)>,
        limit: usize,
        now: Instant,
    ) -> Self {
        Self {
            handle,
            connection,
            token: session.map(|(token, _)| token),
            number: session.map_or(0, |(_, number)| number),
            dialled: session.is_some(),
            up_by: Some(now + UP_WITHIN),
            ended: false,
            own: None,
            theirs: [None; 2],
            waiting: Default::default(),
            waiting_bytes: 0,
            assemblers: [Assembler::new(limit), Assembler::new(limit)],
            greeting: Vec::with_capacity(GREETING),
            urgent_sent: 0,
            urgent_received: 0,
            accepted: 0,
        }
    }

    pub(crate) const fn is_up(&self) -> bool {
        self.up_by.is_none() && !self.ended
    }

    /// Whether the packet that was just handled did not get past the AEAD and the replay window.
    pub(crate) fn refused_packet(&mut self) -> bool {
        let accepted = count(&self.connection.stats().frame_rx);
        let refused = accepted == self.accepted && !self.connection.is_handshaking() && !self.ended;
        self.accepted = accepted;
        refused
    }

    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        self.connection.poll_timeout().into_iter().chain(self.up_by).min()
    }

    /// Looks at what the connection has to say.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<News> {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => {
                    if let Err(lost) = self.open_streams() {
                        return Some(News::Lost(lost));
                    }
                }
                Event::ConnectionLost { reason } => return Some(News::Lost(reason.into())),
                Event::HandshakeDataReady
                | Event::Stream(_)
                | Event::DatagramReceived
                | Event::DatagramsUnblocked => {}
            }
        }
        while let Some(stream) = self.connection.streams().accept(Dir::Uni) {
            // No more than two can be opened.
            self.theirs[stream.index() as usize & 1] = Some(stream);
        }
        let late = self.up_by.is_some_and(|by| by <= now);
        if self.up_by.is_some() && !self.ended {
            match self.read_greeting() {
                Ok(Some((token, number))) => return Some(News::Greeted(token, number)),
                Ok(None) if late => return Some(News::Lost(Lost::Silent)),
                Ok(None) => {}
                Err(lost) => return Some(News::Lost(lost)),
            }
        }
        None
    }

    fn open_streams(&mut self) -> Result<(), Lost> {
        let mut streams = self.connection.streams();
        let (Some(urgent), Some(bulk)) = (streams.open(Dir::Uni), streams.open(Dir::Uni)) else {
            return Err(Lost::Peer("it takes no streams".to_owned()));
        };
        self.connection.send_stream(urgent).set_priority(1).expect("just opened");
        self.own = Some([urgent, bulk]);
        if self.dialled {
            self.greet();
        }
        Ok(())
    }

    /// Says which session this is.
    pub(crate) fn greet(&mut self) {
        let token = self.token.expect("known by now");
        let greeting = [&MAGIC[..], &token.0, &self.number.to_le_bytes()].concat();
        self.waiting_bytes += greeting.len();
        self.waiting[Class::Urgent as usize].push_front(greeting.into());
    }

    fn read_greeting(&mut self) -> Result<Option<(Token, u64)>, Lost> {
        let Some(stream) = self.theirs[Class::Urgent as usize] else { return Ok(None) };
        let greeting = &mut self.greeting;
        read(&mut self.connection, stream, |bytes| {
            greeting.extend_from_slice(bytes);
            Ok(GREETING - greeting.len())
        })?;
        let Some((magic, rest)) = self.greeting.split_first_chunk::<8>() else { return Ok(None) };
        if *magic != MAGIC {
            return Err(Lost::Peer("it does not greet".to_owned()));
        }
        let Some((token, number)) = rest.split_first_chunk() else { return Ok(None) };
        Ok(number.first_chunk().map(|number| (Token(*token), u64::from_le_bytes(*number))))
    }

    /// The session is known on both sides.
    pub(crate) fn set_up(&mut self) {
        self.up_by = None;
    }

    /// Ends it; the peer is told.
    pub(crate) fn close(&mut self, reason: &str, now: Instant) {
        self.ended = true;
        self.up_by = None;
        self.waiting = Default::default();
        self.waiting_bytes = 0;
        self.connection.close(now, VarInt::from_u32(NOT_WANTED), Bytes::copy_from_slice(reason.as_bytes()));
    }

    /// Bytes that no stream took yet.
    pub(crate) const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(crate) fn send(&mut self, class: Class, tag: u32, body: Bytes) {
        let head = Head { len: body.len(), tag, after: self.urgent_sent };
        if class == Class::Urgent {
            self.urgent_sent += 1;
        }
        let head = match class {
            // Urgent ones wait for nothing.
            Class::Urgent => Head { after: 0, ..head },
            Class::Bulk => head,
        };
        let queue = &mut self.waiting[class as usize];
        queue.push_back(Bytes::copy_from_slice(&head.bytes()));
        self.waiting_bytes += crate::RECORD_HEAD + body.len();
        if !body.is_empty() {
            queue.push_back(body);
        }
    }

    /// Gives the streams what they take, without a copy. Its cost is in that of [`next_frame`](crate::Port::next_frame).
    pub(crate) fn flush(&mut self) {
        let Some(own) = self.own else { return };
        for (class, window) in [(Class::Urgent, BULK_WINDOW + URGENT_ROOM), (Class::Bulk, BULK_WINDOW)] {
            let queue = &mut self.waiting[class as usize];
            if queue.is_empty() {
                continue;
            }
            self.connection.set_send_window(window);
            let mut stream = self.connection.send_stream(own[class as usize]);
            while let Some(bytes) = queue.front_mut() {
                match stream.write_chunks(std::slice::from_mut(bytes)) {
                    Ok(written) => self.waiting_bytes -= written.bytes,
                    // A stream that is closed belongs to a connection that is lost, which it says itself.
                    Err(WriteError::Blocked | WriteError::Stopped(_) | WriteError::ClosedStream) => break,
                }
                if bytes.is_empty() {
                    queue.pop_front();
                }
            }
        }
    }

    /// The next record of a class, if it is whole; bodies of bulk are put into `spare` buffers while there are some.
    pub(crate) fn receive(&mut self, class: Class, spare: &mut Vec<Vec<u8>>) -> Result<Option<Record>, Lost> {
        let Some(stream) = self.theirs[class as usize] else { return Ok(None) };
        let (assembler, urgent) = (&mut self.assemblers[class as usize], self.urgent_received);
        // Urgent records are small: a buffer of bulk would be wasted on them.
        let mut buffer = || (class == Class::Bulk).then(|| spare.pop()).flatten();
        if assembler.wants(urgent, &mut buffer)? > 0 {
            read(&mut self.connection, stream, |bytes| {
                assembler.take(bytes);
                assembler.wants(urgent, &mut buffer)
            })?;
        }
        let record = assembler.whole(urgent);
        if class == Class::Urgent && record.is_some() {
            self.urgent_received += 1;
        }
        Ok(record)
    }
}

/// Reads a stream in order; `take` gets bytes and says how many more it wants, and nothing at first.
///
/// With the copy into a record: 0.06 us for each frame of 1514 bytes that came, 0.2 of 9014
/// (`cargo bench -p holdfast-bypass`).
fn read(
    connection: &mut Connection,
    stream: StreamId,
    mut take: impl FnMut(&[u8]) -> Result<usize, Lost>,
) -> Result<(), Lost> {
    let ended = || Lost::Peer("it ended a stream".to_owned());
    let mut stream = connection.recv_stream(stream);
    let mut chunks = stream.read(true).map_err(|fault| match fault {
        ReadableError::ClosedStream | ReadableError::IllegalOrderedRead => ended(),
    })?;
    let mut wanted = take(&[])?;
    while wanted > 0 {
        match chunks.next(wanted) {
            Ok(Some(chunk)) => wanted = take(&chunk.bytes)?,
            Ok(None) | Err(ReadError::Reset(_)) => return Err(ended()),
            Err(ReadError::Blocked) => break,
        }
    }
    // Whether that opened the peer's window is seen by the next transmission.
    let _ = chunks.finalize().should_transmit();
    Ok(())
}

/// Frames of every kind but padding: each packet has one at least.
const fn count(frames: &FrameStats) -> u64 {
    frames.acks
        + frames.ack_frequency
        + frames.connection_close
        + frames.crypto
        + frames.data_blocked
        + frames.datagram
        + frames.handshake_done as u64
        + frames.immediate_ack
        + frames.max_data
        + frames.max_stream_data
        + frames.max_streams_bidi
        + frames.max_streams_uni
        + frames.new_connection_id
        + frames.new_token
        + frames.path_challenge
        + frames.path_response
        + frames.ping
        + frames.reset_stream
        + frames.retire_connection_id
        + frames.stop_sending
        + frames.stream
        + frames.stream_data_blocked
        + frames.streams_blocked_bidi
        + frames.streams_blocked_uni
}
