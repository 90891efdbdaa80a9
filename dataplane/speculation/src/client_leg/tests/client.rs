//! A client's TCP as far as a sender sees it: a small, deterministic receiver.

use std::collections::VecDeque;

/// What the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u32,
    pub(super) carries_data: bool,
    pub(super) sacks: Vec<(u32, u32)>,
}

/// All in offsets from the start of the stream.
#[derive(Debug)]
pub(super) struct Client {
    sack: bool,
    /// Received in order.
    pub(super) received: u32,
    /// Read by its application.
    read: u32,
    pub(super) reading: bool,
    /// Its buffer; may change, so that windows shrink.
    buffer: u32,
    /// Received out of order, the most recent first.
    held: VecDeque<(u32, u32)>,
    /// The right edge furthest to the right of all that it told.
    pub(super) edge: u32,
    /// Where the FIN is, once it was seen.
    fin_at: Option<u32>,
    pub(super) finished: bool,
    /// Data of its own, to make the sequence numbers move.
    seq: u32,
}

impl Client {
    pub(super) fn new(sack: bool, buffer: u32) -> Self {
        Self {
            sack,
            received: 0,
            read: 0,
            reading: true,
            buffer,
            held: VecDeque::new(),
            edge: buffer,
            fin_at: None,
            finished: false,
            seq: 7,
        }
    }

    pub(super) fn window(&self) -> u32 {
        self.buffer.saturating_sub(self.received - self.read)
    }

    /// Takes a segment and answers it.
    pub(super) fn receive(&mut self, from: u32, len: u32, fin: bool) -> Answer {
        let end = (from + len).min(self.received + self.window());
        let complete = end == from + len;
        let mut dsack = None;
        if len > 0 && from + len <= self.received {
            dsack = Some((from, from + len));
        } else if from < end {
            let block = self.hold(from.max(self.received), end);
            if block.0 <= self.received && !self.finished {
                self.received = block.1;
                self.held.retain(|&held| held != block);
            }
        }
        if fin && complete {
            self.fin_at = Some(from + len);
        }
        if self.fin_at == Some(self.received) {
            self.finished = true;
        }
        self.read();
        self.answer(dsack)
    }

    /// Holds a block, merged with what it touches.
    fn hold(&mut self, mut from: u32, mut end: u32) -> (u32, u32) {
        self.held.retain(|&(left, right)| {
            let touches = left <= end && right >= from;
            if touches {
                (from, end) = (from.min(left), end.max(right));
            }
            !touches
        });
        self.held.push_front((from, end));
        (from, end)
    }

    fn read(&mut self) {
        if self.reading {
            self.read = self.received;
        }
    }

    /// The application reads, or stops reading; answers a window update where one is due.
    pub(super) fn set_reading(&mut self, reading: bool) -> Option<Answer> {
        self.reading = reading;
        let before = self.window();
        self.read();
        (self.window() > before).then(|| self.answer(None))
    }

    /// A new size of the buffer.
    pub(super) fn set_buffer(&mut self, buffer: u32) -> Answer {
        self.buffer = buffer;
        self.answer(None)
    }

    /// It forgets what it had SACKed (RFC 2018 §8).
    pub(super) fn renege(&mut self) {
        self.held.clear();
    }

    /// It sends a segment of its own.
    pub(super) fn talk(&mut self) -> Answer {
        let answer = Answer { carries_data: true, ..self.answer(None) };
        self.seq += 10;
        answer
    }

    fn answer(&mut self, dsack: Option<(u32, u32)>) -> Answer {
        self.edge = self.edge.max(self.received + self.window());
        let sacks: Vec<_> = dsack.into_iter().chain(self.held.iter().copied()).take(3).collect();
        Answer {
            seq: self.seq,
            ack: self.received + u32::from(self.finished),
            window: self.window(),
            carries_data: false,
            sacks: if self.sack { sacks } else { Vec::new() },
        }
    }
}
