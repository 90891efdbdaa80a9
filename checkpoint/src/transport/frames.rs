//! Frames put together from a stream of bytes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::protocol::{DecodeError, FRAME_HEAD, FrameHead, MESSAGE_LIMIT, Message, decode};
use crate::transport::charge;
use std::io::{self, ErrorKind};

/// A message and what it costs the sender's credit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) message: Message,
    pub(super) charge: u64,
}

/// Puts frames together. Nothing is allocated for a body before its length was judged (RB-1).
#[derive(Debug)]
pub(super) struct Assembler {
    limit: usize,
    head: [u8; FRAME_HEAD],
    body: Option<(FrameHead, Vec<u8>)>,
    filled: usize,
}

impl Assembler {
    /// Bodies of up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        assert!(limit <= MESSAGE_LIMIT);
        Self { limit, head: [0; FRAME_HEAD], body: None, filled: 0 }
    }

    /// Calls `read` for more bytes until a message is whole; none when `read` would block. Bodies are put
    /// into buffers of `spare` as long as there are some: fresh memory costs a fault a page.
    ///
    /// Costs 60 ns a page, the copies of `read` among them (`cargo bench -p holdfast-checkpoint -- frame`).
    ///
    /// # Errors
    /// The outer ones are those of `read`; an end of the stream is `UnexpectedEof`.
    pub(super) fn next(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
        mut spare: impl FnMut() -> Option<Vec<u8>>,
    ) -> io::Result<Option<Result<Arrival, DecodeError>>> {
        loop {
            let room = match &mut self.body {
                None => &mut self.head[self.filled..],
                Some((_, body)) => &mut body[self.filled..],
            };
            if !room.is_empty() {
                match read(room) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(count) => self.filled += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            self.filled = 0;
            match self.body.take() {
                Some((head, body)) => return Ok(Some(arrival(head, body))),
                None => match FrameHead::parse(self.head, self.limit) {
                    Ok(head) => {
                        let mut body = if head.is_bulk() { spare().unwrap_or_default() } else { Vec::new() };
                        body.resize(head.len, 0);
                        self.body = Some((head, body));
                    }
                    Err(fault) => return Ok(Some(Err(fault))),
                },
            }
        }
    }
}

fn arrival(head: FrameHead, body: Vec<u8>) -> Result<Arrival, DecodeError> {
    let cost = if head.is_bulk() { charge(body.len()) } else { 0 };
    Ok(Arrival { message: decode(head, body)?, charge: cost })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::encode;

    fn feed(bytes: &[u8], step: usize) -> (Vec<Message>, Option<DecodeError>) {
        let (mut assembler, mut rest, mut found) = (Assembler::new(4096), bytes, Vec::new());
        loop {
            let mut fresh = step;
            let turn = assembler.next(
                |room| {
                    if fresh == 0 || rest.is_empty() {
                        return Err(ErrorKind::WouldBlock.into());
                    }
                    let count = room.len().min(fresh).min(rest.len());
                    room[..count].copy_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    fresh -= count;
                    Ok(count)
                },
                || Some(vec![0xaa; 100]),
            );
            match turn.expect("no error of the stream") {
                Some(Ok(arrival)) => found.push(arrival.message),
                Some(Err(fault)) => return (found, Some(fault)),
                None if rest.is_empty() => return (found, None),
                None => {}
            }
        }
    }

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let sent = [
            Message::Heartbeat { number: 1 },
            Message::Goodbye { reason: "x".repeat(300) },
            Message::Credit { bytes: 3 },
        ];
        let stream: Vec<u8> = sent.iter().flat_map(encode).collect();
        for step in [1, 2, 7, 8, 9, 100, 5000] {
            assert_eq!(feed(&stream, step), (sent.to_vec(), None), "in steps of {step}");
        }
    }

    /// RB-1: the announced length is judged before a body is allocated.
    #[test]
    fn a_body_beyond_the_limit_is_refused_before_it_is_allocated() {
        let mut stream = encode(&Message::Credit { bytes: 1 });
        stream.extend_from_slice(&[0xff, 0xff, 0xff, 0x7f, 5, 0, 0, 0]);
        let (found, fault) = feed(&stream, 3);
        assert_eq!(found.len(), 1);
        assert!(matches!(fault, Some(DecodeError::TooLong { .. })), "{fault:?}");
    }
}
