//! The gate's stream as the replication thread of a session takes it.
//!
//! ```text
//!           epoch <= first        = open on the wire             > open
//! chunk --> dropped               sent                           held back: nothing more is taken
//!                                                                until the seal of the open one was sent
//! ```
//!
//! SP-2: before a seal goes out, all chunks of its epoch have. They are in the channel once the epoch was
//! cut, so that taking what is there, up to the first chunk of a later epoch, is taking all.
//!
//! Chunks of the session's first epoch and of those before it, which an earlier session may have left, are
//! dropped: that epoch's state is whole. Epoch numbers are never used twice, so that none is mistaken for
//! one of this session.

use crate::gate::{GateError, Stream};
use crossbeam_channel::{Receiver, TryRecvError, never};
use holdfast_epoch::{EpochId, StreamChunk};
use std::cmp::Ordering;

/// What a session takes of a gate's stream.
pub(super) struct Feed {
    stream: Option<Stream>,
    /// The session's first epoch.
    first: EpochId,
    /// The epoch that is open on the wire.
    open: EpochId,
    /// A chunk of a later epoch.
    held: Option<StreamChunk>,
    nothing: Receiver<StreamChunk>,
}

impl Feed {
    /// For a session whose first seal is that of epoch `first`.
    pub(super) fn new(stream: Option<Stream>, first: EpochId) -> Self {
        Self { stream, first, open: first, held: None, nothing: never() }
    }

    /// Where the next chunk comes from; from nowhere while one is held back. What is received is to be
    /// shown to [`Feed::sort`].
    pub(super) fn chunks(&self) -> &Receiver<StreamChunk> {
        match (&self.stream, &self.held) {
            (Some(stream), None) => &stream.chunks,
            _ => &self.nothing,
        }
    }

    /// Gives a chunk back if it is to be sent now.
    ///
    /// # Errors
    /// When its epoch was sealed before: the gate broke its word, and the backup cannot have the bytes any
    /// more with their epoch (SP-2).
    pub(super) fn sort(&mut self, chunk: StreamChunk) -> Result<Option<StreamChunk>, GateError> {
        if chunk.epoch <= self.first {
            self.give_back(chunk.bytes);
            return Ok(None);
        }
        match chunk.epoch.cmp(&self.open) {
            Ordering::Equal => Ok(Some(chunk)),
            Ordering::Greater => {
                self.held = Some(chunk);
                Ok(None)
            }
            Ordering::Less => {
                let text = format!("bytes of epoch {} came after its cut", chunk.epoch);
                self.give_back(chunk.bytes);
                Err(GateError::Misuse(text))
            }
        }
    }

    /// The next chunk of the open epoch, which has been cut; none when there are no more.
    ///
    /// # Errors
    /// As [`Feed::sort`], and when the gate is gone.
    pub(super) fn rest(&mut self) -> Result<Option<StreamChunk>, GateError> {
        loop {
            match self.chunks().try_recv() {
                Ok(chunk) => {
                    if let Some(chunk) = self.sort(chunk)? {
                        return Ok(Some(chunk));
                    }
                }
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => return Err(GateError::Gone),
            }
        }
    }

    /// The seal of the open epoch was sent: the next one is open. Gives the chunk that was held back, if
    /// it is one of that.
    pub(super) fn sealed(&mut self) -> Option<StreamChunk> {
        self.open = self.open.next();
        self.held.take_if(|held| held.epoch == self.open)
    }

    /// A chunk was sent: its buffer is used again.
    pub(super) fn give_back(&self, mut bytes: Vec<u8>) {
        if let Some(stream) = &self.stream {
            bytes.clear();
            // One that finds no room is dropped; the gate makes another.
            drop(stream.spare.try_send(bytes));
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.give_back(held.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Sender, bounded};

    fn chunk(epoch: u64, byte: u8) -> StreamChunk {
        StreamChunk { epoch: EpochId::new(epoch), bytes: vec![byte] }
    }

    /// A session that begins with epoch 5, the gate's end of the stream, and the buffers that came back.
    fn feed() -> (Feed, Sender<StreamChunk>, Receiver<Vec<u8>>) {
        let ((put, chunks), (spare, spares)) = (bounded(16), bounded(16));
        (Feed::new(Some(Stream { chunks, spare }), EpochId::new(5)), put, spares)
    }

    fn rest(feed: &mut Feed) -> Vec<u8> {
        std::iter::from_fn(|| feed.rest().expect("the gate keeps its word"))
            .map(|chunk| chunk.bytes[0])
            .collect()
    }

    /// SP-2: what an earlier session left, and what the first epoch's whole state has, goes nowhere; its
    /// buffers go back.
    #[test]
    fn chunks_up_to_the_first_epoch_are_dropped() {
        let (mut feed, put, spares) = feed();
        for (epoch, byte) in [(3, 1), (4, 2), (5, 3)] {
            put.send(chunk(epoch, byte)).expect("room");
        }
        assert!(rest(&mut feed).is_empty());
        assert_eq!(spares.try_iter().collect::<Vec<_>>(), vec![Vec::<u8>::new(); 3], "empty");
        feed.sealed();
        put.send(chunk(6, 4)).expect("room");
        assert_eq!(rest(&mut feed), [4]);
    }

    /// SP-2: before a seal all chunks of its epoch are taken, and none of a later one; of those one is held
    /// back and the rest stays with the gate.
    #[test]
    fn one_chunk_of_a_later_epoch_is_held_back() {
        let (mut feed, put, spares) = feed();
        feed.sealed();
        for (epoch, byte) in [(6, 1), (6, 2), (7, 3), (7, 4), (9, 5)] {
            put.send(chunk(epoch, byte)).expect("room");
        }
        assert_eq!(rest(&mut feed), [1, 2]);
        assert!(feed.chunks().is_empty(), "nothing more is taken");
        assert_eq!(put.len(), 2);
        assert_eq!(feed.sealed(), Some(chunk(7, 3)));
        assert_eq!(rest(&mut feed), [4]);
        assert_eq!((feed.sealed(), feed.sealed()), (None, Some(chunk(9, 5))), "not before its turn");
        put.send(chunk(10, 6)).expect("room");
        assert!(rest(&mut feed).is_empty());
        drop(feed);
        assert_eq!(spares.len(), 1, "what was held back goes back with the session");
    }

    /// SP-2: a gate that hands over bytes of an epoch that was sealed is not believed.
    #[test]
    fn a_chunk_that_comes_after_its_seal_is_a_fault() {
        let (mut feed, put, _spares) = feed();
        assert_eq!((feed.sealed(), feed.sealed()), (None, None));
        put.send(chunk(6, 1)).expect("room");
        assert!(matches!(feed.rest(), Err(GateError::Misuse(_))));
        drop(put);
        assert!(matches!(feed.rest(), Err(GateError::Gone)));
    }

    #[test]
    fn a_gate_without_a_stream_has_no_chunks() {
        let mut feed = Feed::new(None, EpochId::FIRST);
        assert!(rest(&mut feed).is_empty());
        assert_eq!(feed.sealed(), None);
    }
}
