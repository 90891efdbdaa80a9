//! Messages to bytes and back.

use crate::gate::PortLimits;
use crate::protocol::message::{
    Begin, DeviceDigest, Hello, ImageHeld, MAGIC, Message, Refusal, RefusalCode, Seal, StateKind, Taken,
    Welcome,
};
use crate::protocol::pages::PageBatch;
use crate::protocol::payload::Payload;
use holdfast_epoch::{Digest, EpochId, StreamChunk, Term};
use thiserror::Error;

/// Bytes in the head of a frame.
pub const FRAME_HEAD: usize = 8;
/// Longest body before the peer is known: a Hello, a Welcome or a Refuse.
pub const HELLO_LIMIT: usize = 4096;
/// Longest body of a session: 256 pages that do not shrink, with room for their heads.
pub const MESSAGE_LIMIT: usize = (1 << 20) + (1 << 16);
/// Most bytes of speculative output in one message; a longer chunk travels in pieces.
pub const STREAM_LIMIT: usize = StreamChunk::LIMIT;
/// Bytes of the epoch's number in front of a body that is mostly payload.
const EPOCH_BYTES: usize = 8;
/// Longest name or text in a message.
const TEXT_LIMIT: usize = 1024;

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const WELCOME: u16 = 2;
    pub(super) const REFUSE: u16 = 3;
    pub(super) const BEGIN: u16 = 4;
    pub(super) const BASE: u16 = 5;
    pub(super) const PAGES: u16 = 6;
    pub(super) const DEVICE_STATE: u16 = 7;
    pub(super) const GATE_STATE: u16 = 8;
    pub(super) const SEAL: u16 = 9;
    pub(super) const COMMITTED: u16 = 10;
    pub(super) const CREDIT: u16 = 11;
    pub(super) const HEARTBEAT: u16 = 12;
    pub(super) const HEARTBEAT_ANSWER: u16 = 13;
    pub(super) const RELINQUISH: u16 = 14;
    pub(super) const SUMMON: u16 = 15;
    pub(super) const GOODBYE: u16 = 16;
    pub(super) const STREAM: u16 = 17;
    pub(super) const OVER: u16 = 18;
    pub(super) const BACK: u16 = 19;
    pub(super) const TAKEN: u16 = 20;
    pub(super) const DEVICE_CHANGE: u16 = 21;
}

/// Why bytes are no message; the peer is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A frame longer than it may be.
    #[error("a frame of {len} bytes was announced, {limit} are allowed here")]
    TooLong {
        /// Bytes announced.
        len: u32,
        /// Bytes allowed.
        limit: usize,
    },
    /// A frame head whose unused bits are set.
    #[error("the head of a frame is malformed")]
    Head,
    /// A kind of message that this version does not have.
    #[error("a message of unknown kind {0}")]
    Kind(u16),
    /// The body ends early.
    #[error("a {0} message is cut short")]
    Truncated(&'static str),
    /// The body goes on after its end.
    #[error("a {0} message has bytes after its end")]
    Excess(&'static str),
    /// A name or text that is too long or not UTF-8.
    #[error("a {0} message carries a text that is too long or not UTF-8")]
    Text(&'static str),
    /// A field with a value that it cannot have.
    #[error("a {0} message carries an impossible value")]
    Value(&'static str),
    /// The session does not begin as sessions of Holdfast do.
    #[error("the other side does not speak Holdfast's protocol")]
    Stranger,
}

/// Head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes in the body.
    pub len: usize,
    kind: u16,
}

impl FrameHead {
    /// Reads a head; a body longer than `limit`, or than its kind may be, is refused before it is awaited
    /// (RB-1).
    ///
    /// # Errors
    /// When the head cannot be one.
    pub fn parse(bytes: [u8; FRAME_HEAD], limit: usize) -> Result<Self, DecodeError> {
        let [l0, l1, l2, l3, k0, k1, n0, n1] = bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if [n0, n1] != [0, 0] {
            return Err(DecodeError::Head);
        }
        let kind = u16::from_le_bytes([k0, k1]);
        let limit = if kind == kind::STREAM { limit.min(EPOCH_BYTES + STREAM_LIMIT) } else { limit };
        if len as usize > limit {
            return Err(DecodeError::TooLong { len, limit });
        }
        Ok(Self { len: len as usize, kind })
    }

    /// Whether the body counts against the credit of the sender.
    #[must_use]
    pub const fn is_bulk(self) -> bool {
        matches!(
            self.kind,
            kind::BASE
                | kind::PAGES
                | kind::DEVICE_STATE
                | kind::DEVICE_CHANGE
                | kind::GATE_STATE
                | kind::STREAM
                | kind::SEAL
        )
    }
}

/// Begins a frame of pages: of an epoch, or of the base. Records follow by [`PageBatchWriter`](super::PageBatchWriter), then
/// [`end_frame`].
pub(crate) fn begin_pages(epoch: Option<EpochId>, out: &mut Vec<u8>) {
    out.clear();
    match epoch {
        Some(epoch) => {
            begin_frame(kind::PAGES, out);
            put_u64(out, epoch.get());
        }
        None => begin_frame(kind::BASE, out),
    }
}

/// Begins a frame of streamed bytes of an epoch: at most [`STREAM_LIMIT`] of them follow, then
/// [`end_frame`].
pub(crate) fn begin_stream(epoch: EpochId, out: &mut Vec<u8>) {
    out.clear();
    begin_frame(kind::STREAM, out);
    put_u64(out, epoch.get());
}

fn begin_frame(kind: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
}

/// Writes the length into the head of the frame that fills `out`.
pub(crate) fn end_frame(out: &mut [u8]) {
    let len = u32::try_from(out.len() - FRAME_HEAD).expect("a frame is far below 4 GiB");
    assert!(len as usize <= MESSAGE_LIMIT, "a frame of {len} bytes would be refused by the peer");
    out[..4].copy_from_slice(&len.to_le_bytes());
}

/// The whole frame of a message.
///
/// # Panics
/// When the message is longer than its bound, which is a bug of the caller.
#[must_use]
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    match message {
        Message::Hello(hello) => {
            begin_frame(kind::HELLO, &mut out);
            out.extend_from_slice(&MAGIC);
            put_u32(&mut out, hello.version);
            put_text(&mut out, &hello.vm);
            put_text(&mut out, &hello.host);
            put_u64(&mut out, hello.term.get());
            put_u64(&mut out, hello.memory);
            put_u32(&mut out, hello.page_size);
            put_u64(&mut out, hello.session);
            put_u32(&mut out, hello.lease_ms);
            out.extend_from_slice(&hello.devices.0);
            let ports = u16::try_from(hello.ports.len()).expect("a machine has few ports");
            out.extend_from_slice(&ports.to_le_bytes());
            for limits in &hello.ports {
                out.extend_from_slice(&limits.queue_pairs.to_le_bytes());
                put_u32(&mut out, limits.flows);
                put_u64(&mut out, limits.bytes);
            }
        }
        Message::Welcome(welcome) => {
            begin_frame(kind::WELCOME, &mut out);
            put_u32(&mut out, welcome.version);
            put_text(&mut out, &welcome.host);
            put_u64(&mut out, welcome.session);
            out.push(u8::from(welcome.held.is_some()));
            put_u64(&mut out, welcome.held.map_or(0, |held| held.term.get()));
            put_u64(&mut out, welcome.held.map_or(0, |held| held.epoch.get()));
            put_u64(&mut out, welcome.window);
        }
        Message::Refuse(refusal) => {
            begin_frame(kind::REFUSE, &mut out);
            out.extend_from_slice(&(refusal.code as u16).to_le_bytes());
            put_text(&mut out, &refusal.text);
        }
        Message::Begin(begin) => {
            begin_frame(kind::BEGIN, &mut out);
            out.push(u8::from(begin.full));
            put_u64(&mut out, begin.term.get());
            put_u64(&mut out, begin.first.get());
        }
        Message::Base(batch) => {
            begin_frame(kind::BASE, &mut out);
            out.extend_from_slice(batch.as_bytes());
        }
        Message::Pages(epoch, batch) => {
            begin_frame(kind::PAGES, &mut out);
            put_u64(&mut out, epoch.get());
            out.extend_from_slice(batch.as_bytes());
        }
        Message::StatePart(epoch, what, bytes) => {
            let kind = match what {
                StateKind::Devices => kind::DEVICE_STATE,
                StateKind::Gate => kind::GATE_STATE,
            };
            begin_frame(kind, &mut out);
            put_u64(&mut out, epoch.get());
            out.extend_from_slice(bytes);
        }
        Message::DeviceChange(epoch, bytes) => {
            begin_frame(kind::DEVICE_CHANGE, &mut out);
            put_u64(&mut out, epoch.get());
            out.extend_from_slice(bytes);
        }
        Message::Stream(epoch, bytes) => {
            assert!(bytes.len() <= STREAM_LIMIT, "{} streamed bytes are more than a message's", bytes.len());
            begin_stream(*epoch, &mut out);
            out.extend_from_slice(bytes);
        }
        Message::Seal(seal) => {
            begin_frame(kind::SEAL, &mut out);
            put_u64(&mut out, seal.epoch.get());
            put_u64(&mut out, seal.term.get());
            put_u64(&mut out, seal.pages);
            out.push(u8::from(seal.self_contained));
            out.extend_from_slice(&seal.digest.0);
        }
        Message::Committed { epoch, term, digest } => {
            begin_frame(kind::COMMITTED, &mut out);
            put_u64(&mut out, epoch.get());
            put_u64(&mut out, term.get());
            out.extend_from_slice(&digest.0);
        }
        Message::Credit { bytes } => number(kind::CREDIT, *bytes, &mut out),
        Message::Heartbeat { number: n } => number(kind::HEARTBEAT, *n, &mut out),
        Message::HeartbeatAnswer { number: n } => number(kind::HEARTBEAT_ANSWER, *n, &mut out),
        Message::Relinquish { term } => number(kind::RELINQUISH, term.get(), &mut out),
        Message::Summon { term } => number(kind::SUMMON, term.get(), &mut out),
        Message::Goodbye { reason } => {
            begin_frame(kind::GOODBYE, &mut out);
            put_text(&mut out, reason);
        }
        Message::Over { path } => number(kind::OVER, *path, &mut out),
        Message::Back { path, taken } => {
            number(kind::BACK, *path, &mut out);
            put_taken(&mut out, *taken);
        }
        Message::Taken(taken) => {
            begin_frame(kind::TAKEN, &mut out);
            put_taken(&mut out, *taken);
        }
    }
    end_frame(&mut out);
    out
}

fn number(kind: u16, number: u64, out: &mut Vec<u8>) {
    begin_frame(kind, out);
    put_u64(out, number);
}

fn put_taken(out: &mut Vec<u8>, taken: Taken) {
    put_u64(out, taken.urgent);
    put_u64(out, taken.bulk);
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Texts longer than their bound are cut: they are for people.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(TEXT_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&u16::try_from(end).expect("below the limit").to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Reads the body that came with `head`.
///
/// # Errors
/// When the bytes are not such a message.
pub fn decode(head: FrameHead, body: Vec<u8>) -> Result<Message, DecodeError> {
    // Bodies that are mostly payload keep their allocation.
    match head.kind {
        kind::BASE => return Ok(Message::Base(PageBatch::from_bytes(body))),
        kind::PAGES => {
            let (epoch, rest) = split_epoch(body, "Pages")?;
            return Ok(Message::Pages(epoch, PageBatch::from_bytes(rest)));
        }
        kind::DEVICE_STATE => {
            let (epoch, rest) = split_epoch(body, "StatePart")?;
            return Ok(Message::StatePart(epoch, StateKind::Devices, rest));
        }
        kind::GATE_STATE => {
            let (epoch, rest) = split_epoch(body, "StatePart")?;
            return Ok(Message::StatePart(epoch, StateKind::Gate, rest));
        }
        kind::DEVICE_CHANGE => {
            let (epoch, rest) = split_epoch(body, "DeviceChange")?;
            return Ok(Message::DeviceChange(epoch, rest));
        }
        kind::STREAM => {
            let (epoch, rest) = split_epoch(body, "Stream")?;
            return Ok(Message::Stream(epoch, rest));
        }
        _ => {}
    }
    let mut body = Body { rest: &body, name: "?" };
    let message = match head.kind {
        kind::HELLO => body.named("Hello").hello()?,
        kind::WELCOME => body.named("Welcome").welcome()?,
        kind::REFUSE => {
            let code = RefusalCode::of(u16::from_le_bytes(body.named("Refuse").array()?));
            Message::Refuse(Refusal { code, text: body.text()? })
        }
        kind::BEGIN => {
            let full = body.named("Begin").flag()?;
            let term = Term::new(body.u64()?);
            Message::Begin(Begin { full, term, first: EpochId::new(body.u64()?) })
        }
        kind::SEAL => Message::Seal(Seal {
            epoch: EpochId::new(body.named("Seal").u64()?),
            term: Term::new(body.u64()?),
            pages: body.u64()?,
            self_contained: body.flag()?,
            digest: Digest(body.array()?),
        }),
        kind::COMMITTED => Message::Committed {
            epoch: EpochId::new(body.named("Committed").u64()?),
            term: Term::new(body.u64()?),
            digest: Digest(body.array()?),
        },
        kind::CREDIT => Message::Credit { bytes: body.named("Credit").u64()? },
        kind::HEARTBEAT => Message::Heartbeat { number: body.named("Heartbeat").u64()? },
        kind::HEARTBEAT_ANSWER => Message::HeartbeatAnswer { number: body.named("HeartbeatAnswer").u64()? },
        kind::RELINQUISH => Message::Relinquish { term: Term::new(body.named("Relinquish").u64()?) },
        kind::SUMMON => Message::Summon { term: Term::new(body.named("Summon").u64()?) },
        kind::GOODBYE => Message::Goodbye { reason: body.named("Goodbye").text()? },
        kind::OVER => Message::Over { path: body.named("Over").u64()? },
        kind::BACK => Message::Back { path: body.named("Back").u64()?, taken: body.taken()? },
        kind::TAKEN => Message::Taken(body.named("Taken").taken()?),
        unknown => return Err(DecodeError::Kind(unknown)),
    };
    if body.rest.is_empty() { Ok(message) } else { Err(DecodeError::Excess(body.name)) }
}

fn split_epoch(body: Vec<u8>, name: &'static str) -> Result<(EpochId, Payload), DecodeError> {
    let epoch = body.first_chunk::<EPOCH_BYTES>().ok_or(DecodeError::Truncated(name))?;
    let epoch = EpochId::new(u64::from_le_bytes(*epoch));
    Ok((epoch, Payload::behind(body, EPOCH_BYTES)))
}

struct Body<'a> {
    rest: &'a [u8],
    name: &'static str,
}

impl Body<'_> {
    fn named(&mut self, name: &'static str) -> &mut Self {
        self.name = name;
        self
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (found, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated(self.name))?;
        self.rest = rest;
        Ok(*found)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn taken(&mut self) -> Result<Taken, DecodeError> {
        Ok(Taken { urgent: self.u64()?, bulk: self.u64()? })
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(DecodeError::Value(self.name)),
        }
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > TEXT_LIMIT {
            return Err(DecodeError::Text(self.name));
        }
        let (text, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated(self.name))?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| DecodeError::Text(self.name))
    }

    /// Of a Hello in another version only the head is read: it is refused for its version.
    fn hello(&mut self) -> Result<Message, DecodeError> {
        if self.array()? != MAGIC {
            return Err(DecodeError::Stranger);
        }
        let version = self.u32()?;
        if version != super::PROTOCOL_VERSION {
            self.rest = &[];
            return Ok(Message::Hello(Hello {
                version,
                vm: String::new(),
                host: String::new(),
                term: Term::NONE,
                memory: 0,
                page_size: 0,
                session: 0,
                lease_ms: 0,
                devices: DeviceDigest::default(),
                ports: Vec::new(),
            }));
        }
        Ok(Message::Hello(Hello {
            version,
            vm: self.text()?,
            host: self.text()?,
            term: Term::new(self.u64()?),
            memory: self.u64()?,
            page_size: self.u32()?,
            session: self.u64()?,
            lease_ms: self.u32()?,
            devices: DeviceDigest(self.array()?),
            ports: self.ports()?,
        }))
    }

    /// RB-1: room is made for those that are there, not for those that are claimed.
    fn ports(&mut self) -> Result<Vec<PortLimits>, DecodeError> {
        let count = u16::from_le_bytes(self.array()?);
        let ports = (0..count).map(|_| {
            let queue_pairs = u16::from_le_bytes(self.array()?);
            Ok(PortLimits { queue_pairs, flows: self.u32()?, bytes: self.u64()? })
        });
        ports.collect()
    }

    /// As of a Hello, of a Welcome in another version only the head is read.
    fn welcome(&mut self) -> Result<Message, DecodeError> {
        let version = self.u32()?;
        if version != super::PROTOCOL_VERSION {
            self.rest = &[];
            let (host, session, held, window) = (String::new(), 0, None, 0);
            return Ok(Message::Welcome(Welcome { version, host, session, held, window }));
        }
        let host = self.text()?;
        let session = self.u64()?;
        let held = self.flag()?;
        let (term, epoch) = (Term::new(self.u64()?), EpochId::new(self.u64()?));
        Ok(Message::Welcome(Welcome {
            version,
            host,
            session,
            held: held.then_some(ImageHeld { term, epoch }),
            window: self.u64()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PROTOCOL_VERSION;

    fn hello() -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            vm: "web".into(),
            host: "host-a".into(),
            term: Term::new(3),
            memory: 5 << 30,
            page_size: 4096,
            session: 99,
            lease_ms: 300,
            devices: DeviceDigest([9; 32]),
            ports: vec![PortLimits { queue_pairs: 2, flows: 64, bytes: 1 << 40 }, PortLimits::default()],
        }
    }

    fn every_message() -> Vec<Message> {
        let (epoch, term, digest) = (EpochId::new(7), Term::new(3), Digest([5; 32]));
        vec![
            Message::Hello(hello()),
            Message::Welcome(Welcome {
                version: PROTOCOL_VERSION,
                host: "host-b".into(),
                session: 99,
                held: Some(ImageHeld { term, epoch }),
                window: 1 << 24,
            }),
            Message::Refuse(Refusal::new(RefusalCode::StaleTerm, "term 2 is over")),
            Message::Refuse(Refusal::new(RefusalCode::Gate, "bytes are missing")),
            Message::Begin(Begin { full: true, term, first: epoch }),
            Message::Base(PageBatch::from_bytes(vec![1; 8])),
            Message::Pages(epoch, PageBatch::from_bytes(vec![2; 80])),
            Message::StatePart(epoch, StateKind::Devices, vec![3; 5].into()),
            Message::StatePart(epoch, StateKind::Gate, vec![].into()),
            Message::DeviceChange(epoch, vec![5; 9].into()),
            Message::Stream(epoch, vec![4; 7].into()),
            Message::Seal(Seal { epoch, term, pages: 12, self_contained: true, digest }),
            Message::Seal(Seal { epoch, term, pages: 0, self_contained: false, digest }),
            Message::Committed { epoch, term, digest },
            Message::Credit { bytes: 4096 },
            Message::Heartbeat { number: 1 },
            Message::HeartbeatAnswer { number: 1 },
            Message::Relinquish { term },
            Message::Summon { term },
            Message::Goodbye { reason: "unprotected by command".into() },
            Message::Over { path: 1 },
            Message::Back { path: 1, taken: Taken { urgent: 5, bulk: 6 } },
            Message::Taken(Taken { urgent: 5, bulk: 6 }),
        ]
    }

    fn read(frame: &[u8]) -> Result<Message, DecodeError> {
        let (head, body) = frame.split_first_chunk::<FRAME_HEAD>().expect("a head");
        decode(FrameHead::parse(*head, MESSAGE_LIMIT)?, body.to_vec())
    }

    #[test]
    fn every_message_comes_back_as_it_was_sent() {
        for message in every_message() {
            assert_eq!(read(&encode(&message)).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn what_an_epoch_is_made_of_is_bulk_and_nothing_else() {
        for message in every_message() {
            let frame = encode(&message);
            let head = frame[..FRAME_HEAD].try_into().expect("a head");
            let bulk = matches!(
                message,
                Message::Base(_)
                    | Message::Pages(..)
                    | Message::StatePart(..)
                    | Message::DeviceChange(..)
                    | Message::Stream(..)
                    | Message::Seal(_)
            );
            let is_bulk = FrameHead::parse(head, MESSAGE_LIMIT).expect("a head").is_bulk();
            assert_eq!(is_bulk, bulk, "{}", message.name());
        }
    }

    /// RB-1: a message cut at any byte, or with bytes added, is refused without a panic.
    #[test]
    fn messages_of_the_wrong_length_are_refused() {
        for message in every_message() {
            let frame = encode(&message);
            let open_ended = matches!(
                message,
                Message::Base(_)
                    | Message::Pages(..)
                    | Message::StatePart(..)
                    | Message::DeviceChange(..)
                    | Message::Stream(..)
            );
            for len in FRAME_HEAD..frame.len() {
                assert!(open_ended || read(&frame[..len]).is_err(), "{} at {len}", message.name());
            }
            let longer = [frame, vec![0]].concat();
            assert!(open_ended || read(&longer).is_err(), "{} and one byte", message.name());
        }
    }

    /// RB-1: the length is judged before anything is allocated for it.
    #[test]
    fn a_frame_longer_than_its_bound_is_refused_by_its_head() {
        let mut head = [0; FRAME_HEAD];
        head[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            FrameHead::parse(head, HELLO_LIMIT),
            Err(DecodeError::TooLong { len: u32::MAX, limit: HELLO_LIMIT })
        );
        assert_eq!(FrameHead::parse([0, 0, 0, 0, 1, 0, 1, 0], HELLO_LIMIT), Err(DecodeError::Head));
    }

    /// RB-1: streamed bytes have a bound of their own below that of a message; the longest piece fits.
    #[test]
    fn a_stream_message_longer_than_its_bound_is_refused_by_its_head() {
        let whole = Message::Stream(EpochId::new(7), vec![1; STREAM_LIMIT].into());
        let mut frame = encode(&whole);
        assert_eq!(read(&frame), Ok(whole));
        let longer = u32::try_from(STREAM_LIMIT + EPOCH_BYTES + 1).expect("small");
        frame[..4].copy_from_slice(&longer.to_le_bytes());
        let head = *frame.first_chunk().expect("a head");
        let limit = STREAM_LIMIT + EPOCH_BYTES;
        assert_eq!(FrameHead::parse(head, MESSAGE_LIMIT), Err(DecodeError::TooLong { len: longer, limit }));
        assert_eq!(
            FrameHead::parse(head, HELLO_LIMIT),
            Err(DecodeError::TooLong { len: longer, limit: HELLO_LIMIT })
        );
    }

    #[test]
    fn strangers_and_unknown_kinds_are_told_apart() {
        let mut frame = encode(&Message::Hello(hello()));
        frame[FRAME_HEAD] = b'h';
        assert_eq!(read(&frame), Err(DecodeError::Stranger));
        frame[4] = 200;
        assert_eq!(read(&frame), Err(DecodeError::Kind(200)));
    }

    /// A Hello of another version is read far enough to be refused for its version.
    #[test]
    fn the_version_of_a_hello_is_read_whatever_follows_it() {
        for version in [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1] {
            let mut frame = encode(&Message::Hello(Hello { version, ..hello() }));
            frame.extend_from_slice(b"fields of another time");
            let Ok(Message::Hello(found)) = read(&frame) else { panic!("the head is readable") };
            assert_eq!(found.version, version);
        }
    }

    /// The same of a Welcome, by a host that thinks it can speak with this one.
    #[test]
    fn the_version_of_a_welcome_is_read_whatever_follows_it() {
        for version in [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1] {
            let welcome = Welcome { version, host: "b".into(), session: 1, held: None, window: 1 };
            let mut frame = encode(&Message::Welcome(welcome));
            frame.truncate(FRAME_HEAD + 4);
            frame.extend_from_slice(b"fields of another time");
            let Ok(Message::Welcome(found)) = read(&frame) else { panic!("the head is readable") };
            assert_eq!(found.version, version);
        }
    }
}
