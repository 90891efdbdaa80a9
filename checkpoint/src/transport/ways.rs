//! Which way a link's messages go: its own connection, or a path of the bypass; and how nothing is lost or
//! doubled when that changes.
//!
//! ```text
//!   connection --- path is up: say Over ---> path --- path is lost: say Back ---> waiting --- peer's Back ---> connection
//! ```
//!
//! Each direction changes by itself. *Over* is the last message on the connection but for heartbeats; the peer takes nothing from
//! the path before it has it. Whoever leaves a path says *Back* on the connection, with what it took from it,
//! and takes nothing from it any more; the other answers in kind, and sends again on the connection, in order,
//! what was not taken. Until then it keeps what it sent, and the peer says *Taken* now and then so that this is
//! little. Only the host that dialled the session dials paths, the next when both have left the one before.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::protocol::{Message, Taken, encode};
use crate::transport::bypass::{Arrived, Lane, News};
use bytes::Bytes;
use holdfast_bypass::Class;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two paths.
const DIAL_AGAIN: Duration = Duration::from_secs(1);
/// Messages taken from a path before it is said.
const TELL_AFTER: Taken = Taken { urgent: 64, bulk: 4 };

/// Bytes that a peer may leave untaken; of bulk it gives no more credit than a quarter of this.
const UNTAKEN_BYTES: usize = 64 << 20;
/// Messages that a peer may leave untaken: of one that reads there are some hundred.
const UNTAKEN_MESSAGES: usize = 1 << 16;

/// What is shown of a link's way.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Whether messages go over the bypass.
    pub(super) bypass: AtomicBool,
    /// How often they had to come back from it.
    pub(super) returns: AtomicU64,
}

/// What was sent on a path and is not known to have been taken.
#[derive(Debug, Default)]
struct Kept {
    /// In the order in which they were sent; none for what is not worth sending again.
    frames: [VecDeque<(u64, Option<Bytes>)>; 2],
    bytes: usize,
    sent: u64,
    /// How many were said to be taken.
    taken: Taken,
}

impl Kept {
    fn push(&mut self, class: Class, frame: Option<Bytes>) {
        self.bytes += frame.as_ref().map_or(0, Bytes::len);
        self.frames[class as usize].push_back((self.sent, frame));
        self.sent += 1;
    }

    /// Lets go of what the peer took; `spare` gets what is nobody else's any more. None when it claims to have
    /// taken what was not sent.
    fn trim(&mut self, taken: Taken, mut spare: impl FnMut(Bytes)) -> Option<()> {
        for (class, now, before) in
            [(Class::Urgent, taken.urgent, self.taken.urgent), (Class::Bulk, taken.bulk, self.taken.bulk)]
        {
            for _ in before..now.max(before) {
                let (_, frame) = self.frames[class as usize].pop_front()?;
                let Some(frame) = frame else { continue };
                self.bytes -= frame.len();
                if class == Class::Bulk {
                    spare(frame);
                }
            }
        }
        self.taken.urgent = self.taken.urgent.max(taken.urgent);
        self.taken.bulk = self.taken.bulk.max(taken.bulk);
        Some(())
    }

    /// Everything that is left, in order.
    fn rest(self) -> Vec<Bytes> {
        let mut rest: Vec<_> = self.frames.into_iter().flatten().collect();
        rest.sort_unstable_by_key(|(sent, _)| *sent);
        rest.into_iter().filter_map(|(_, frame)| frame).collect()
    }
}

/// Where this side's messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Connection,
    Path(u64),
    /// The path was left: what it had, and all that follows, waits for the peer's Back.
    Waiting(u64),
}

/// Where the dialling host is with paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialling {
    Never,
    At(Instant),
    /// This path was dialled, and the peer has not left it yet.
    Path(u64),
}

/// The ways of one link.
#[derive(Debug)]
pub(super) struct Ways {
    lane: Option<Lane>,
    sending: Sending,
    kept: Kept,
    dialling: Dialling,
    /// The last path that was dialled.
    dialled: u64,
    /// The path that is up on this side.
    up: Option<u64>,
    /// The path that the peer said it sends on.
    hearing: Option<u64>,
    /// This side has left all paths up to this one.
    left: u64,
    taken: Taken,
    told: Taken,
    /// A record of a path on which the peer was not heard yet.
    early: Option<Arrived>,
    shown: Arc<Shown>,
}

impl Ways {
    /// Without a lane everything goes by the connection.
    pub(super) fn new(lane: Option<Lane>, shown: Arc<Shown>) -> Self {
        Self {
            lane,
            sending: Sending::Connection,
            kept: Kept::default(),
            dialling: Dialling::Never,
            dialled: 0,
            up: None,
            hearing: None,
            left: 0,
            taken: Taken::default(),
            told: Taken::default(),
            early: None,
            shown,
        }
    }

    /// From now on paths are dialled: this host opened the session, and the other took it.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.lane.is_some() {
            self.dialling = Dialling::At(now);
        }
    }

    /// When [`Ways::turn`] has something to do.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.dialling {
            Dialling::At(at) => Some(at),
            Dialling::Never | Dialling::Path(_) => None,
        }
    }

    /// Looks at what became of paths; `say` sends on the connection.
    pub(super) fn turn(&mut self, now: Instant, mut say: impl FnMut(Message)) {
        let Some(lane) = &self.lane else { return };
        if self.deadline().is_some_and(|at| at <= now) {
            self.dialled += 1;
            self.dialling = Dialling::Path(self.dialled);
            lane.dial(self.dialled);
        }
        while let Some(news) = self.lane.as_ref().and_then(|lane| lane.news.try_recv().ok()) {
            match news {
                News::Up(path) if path > self.left => {
                    // A path that came instead of another is left by whoever loses the other.
                    self.up = Some(path);
                    (self.taken, self.told) = Default::default();
                }
                News::Up(_) => {}
                News::Lost(path, why) => {
                    if self.up == Some(path) {
                        tracing::warn!(path, %why, "replication comes back from the bypass");
                    } else {
                        tracing::debug!(path, %why, "no path over the bypass");
                    }
                    self.leave(path, &mut say);
                }
            }
        }
        if let (Sending::Connection, Some(path)) = (self.sending, self.up) {
            tracing::info!(path, "replication goes over the bypass");
            self.sending = Sending::Path(path);
            self.shown.bypass.store(true, Ordering::Relaxed);
            say(Message::Over { path });
        }
    }

    /// Leaves a path, and says so, unless that was done.
    fn leave(&mut self, path: u64, say: &mut impl FnMut(Message)) {
        if path <= self.left {
            return;
        }
        self.left = path;
        if let Some(lane) = &self.lane {
            lane.leave(path);
        }
        let was_up = self.up.take_if(|up| *up <= path).is_some();
        let taken = if was_up { self.taken } else { Taken::default() };
        self.early.take_if(|arrived| arrived.path <= path);
        if let Sending::Path(sent) = self.sending {
            if sent <= path {
                self.sending = Sending::Waiting(sent);
                self.shown.bypass.store(false, Ordering::Relaxed);
                self.shown.returns.fetch_add(1, Ordering::Relaxed);
            }
        }
        say(Message::Back { path, taken });
    }

    /// The link is to end: what is on its way must go by the connection.
    pub(super) fn come_back(&mut self, mut say: impl FnMut(Message)) {
        if let Sending::Path(path) = self.sending {
            self.leave(path, &mut say);
        }
    }

    /// Whether messages have left on a path, or wait for one to be left.
    pub(super) fn is_away(&self) -> bool {
        self.sending != Sending::Connection
    }

    /// The peer sends on this path from now on.
    pub(super) fn over(&mut self, path: u64) {
        if path > self.left {
            self.hearing = Some(path);
        }
    }

    /// The peer has left a path; gives what has to be sent on the connection now. None when the peer claims to
    /// have taken what was not sent.
    pub(super) fn back(
        &mut self,
        path: u64,
        taken: Taken,
        now: Instant,
        mut say: impl FnMut(Message),
    ) -> Option<Vec<Bytes>> {
        self.leave(path, &mut say);
        if self.dialling == Dialling::Path(path) {
            self.dialling = Dialling::At(now + DIAL_AGAIN);
        }
        if self.sending != Sending::Waiting(path) {
            return Some(Vec::new());
        }
        self.sending = Sending::Connection;
        let mut kept = std::mem::take(&mut self.kept);
        kept.trim(taken, drop)?;
        Some(kept.rest())
    }

    /// Takes an urgent frame on its way, or gives it back for the connection.
    pub(super) fn send_urgent(&mut self, frame: Vec<u8>) -> Option<Vec<u8>> {
        match (self.sending, &self.lane) {
            (Sending::Path(path), Some(lane)) => {
                let frame = Bytes::from(frame);
                self.kept.push(Class::Urgent, Some(frame.clone()));
                lane.send_urgent(path, frame);
                None
            }
            (Sending::Waiting(_), _) => {
                self.kept.push(Class::Urgent, Some(frame.into()));
                None
            }
            _ => Some(frame),
        }
    }

    /// Sends what is of the moment on the path, if that is the way; it is not sent again.
    pub(super) fn send_passing(&mut self, message: &Message) {
        if let (Sending::Path(path), Some(lane)) = (self.sending, &self.lane) {
            self.kept.push(Class::Urgent, None);
            lane.send_urgent(path, encode(message).into());
        }
    }

    /// Whether bulk has to wait: for a path's room, or for the peer's Back.
    pub(super) fn holds_bulk(&self) -> bool {
        match (self.sending, &self.lane) {
            (Sending::Connection, _) => false,
            (Sending::Path(_), Some(lane)) => !lane.has_room(),
            _ => true,
        }
    }

    /// Takes a bulk frame on its way, or gives it back for the connection; not while [`Ways::holds_bulk`].
    pub(super) fn send_bulk(&mut self, frame: Vec<u8>) -> Option<Vec<u8>> {
        let (Sending::Path(path), Some(lane)) = (self.sending, &self.lane) else { return Some(frame) };
        let frame = Bytes::from(frame);
        self.kept.push(Class::Bulk, Some(frame.clone()));
        lane.send_bulk(path, frame);
        None
    }

    /// Whether the peer has left more untaken than one that reads does: what is kept for it is bounded (RB-1).
    pub(super) fn is_overdue(&self) -> bool {
        let messages: usize = self.kept.frames.iter().map(VecDeque::len).sum();
        self.kept.bytes > UNTAKEN_BYTES || messages > UNTAKEN_MESSAGES
    }

    /// The next record from the path on which the peer is.
    pub(super) fn next(&mut self) -> Option<Arrived> {
        loop {
            let arrived = self.early.take().or_else(|| self.lane.as_ref()?.next())?;
            if arrived.path <= self.left {
                continue;
            }
            if self.hearing != Some(arrived.path) || self.up != Some(arrived.path) {
                self.early = Some(arrived);
                return None;
            }
            match arrived.class {
                Class::Urgent => self.taken.urgent += 1,
                Class::Bulk => self.taken.bulk += 1,
            }
            return Some(arrived);
        }
    }

    /// Gives back a buffer in which something came.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        if let Some(lane) = &self.lane {
            lane.give_back(buffer);
        }
    }

    /// Whether [`Ways::next`] may have something.
    pub(super) fn has_records(&self) -> bool {
        self.early.is_none() && self.lane.as_ref().is_some_and(Lane::has_records)
    }

    /// Says on the path what was taken from it, once it is worth it.
    pub(super) fn tell(&mut self) {
        let due = self.taken.urgent >= self.told.urgent + TELL_AFTER.urgent
            || self.taken.bulk >= self.told.bulk + TELL_AFTER.bulk;
        if due && matches!(self.sending, Sending::Path(_)) {
            self.told = self.taken;
            self.send_passing(&Message::Taken(self.taken));
        }
    }

    /// The peer said what it took so far. None when it claims what was not sent.
    pub(super) fn taken(&mut self, taken: Taken, spare: impl FnMut(Vec<u8>)) -> Option<()> {
        let mut spare = spare;
        self.kept.trim(taken, |frame| {
            // While QUIC has a share of it, it cannot be written to.
            if frame.is_unique() {
                spare(frame.into());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: u8) -> Option<Bytes> {
        Some(Bytes::from(vec![n]))
    }

    #[test]
    fn what_was_not_taken_is_left_in_the_order_of_sending() {
        let mut kept = Kept::default();
        for (n, class) in
            [Class::Urgent, Class::Bulk, Class::Urgent, Class::Bulk, Class::Urgent].iter().enumerate()
        {
            kept.push(*class, frame(n as u8));
        }
        kept.push(Class::Urgent, None);
        kept.push(Class::Bulk, frame(6));
        kept.trim(Taken { urgent: 1, bulk: 0 }, drop).expect("it was sent");
        kept.trim(Taken { urgent: 1, bulk: 1 }, drop).expect("it was sent");
        let rest: Vec<u8> = kept.rest().iter().map(|frame| frame[0]).collect();
        assert_eq!(rest, [2, 3, 4, 6]);
    }

    /// RB-1: a peer cannot confirm what was not sent.
    #[test]
    fn a_peer_that_took_more_than_was_sent_is_found_out() {
        let mut kept = Kept::default();
        kept.push(Class::Bulk, frame(1));
        assert_eq!(kept.trim(Taken { urgent: 0, bulk: 2 }, drop), None);
        let mut kept = Kept::default();
        assert_eq!(kept.trim(Taken { urgent: u64::MAX, bulk: 0 }, drop), None);
    }

    /// RB-1: a peer that says it has room and never that it took anything is found out, by bytes and by messages.
    #[test]
    fn what_a_peer_leaves_untaken_is_bounded() {
        let mut ways = Ways::new(None, Arc::default());
        let large = Bytes::from(vec![0; UNTAKEN_BYTES / 16]);
        for _ in 0..16 {
            assert!(!ways.is_overdue());
            ways.kept.push(Class::Bulk, Some(large.clone()));
        }
        ways.kept.push(Class::Urgent, frame(1));
        assert!(ways.is_overdue());
        ways.kept.trim(Taken { urgent: 0, bulk: 1 }, drop).expect("it was sent");
        assert!(!ways.is_overdue(), "what was taken counts no more");
        for _ in 0..UNTAKEN_MESSAGES {
            ways.kept.push(Class::Urgent, None);
        }
        assert!(ways.is_overdue());
    }

    /// What the peer sent on the connection before its Over comes before what it sent on the path.
    #[test]
    fn nothing_is_taken_from_a_path_before_the_peers_over() {
        use crate::transport::bypass::pair;
        use crate::transport::waker::Waker;
        use holdfast_bypass::{Record, Token};
        let waker = || Arc::new(Waker::new().expect("a descriptor"));
        let (lane, end) = pair(Token([1; 32]), waker(), waker());
        let mut ways = Ways::new(Some(lane), Arc::default());
        let now = Instant::now();
        let record = || Record { tag: 16, body: Vec::new() };
        let arrived = |path| Arrived { path, class: Class::Urgent, record: record() };
        end.news.send(News::Up(1)).expect("open");
        end.records.send(arrived(1)).expect("room");
        let mut said = Vec::new();
        ways.turn(now, |message| said.push(message));
        assert_eq!(said, [Message::Over { path: 1 }]);
        assert!(ways.next().is_none(), "the peer has not said Over");
        ways.over(1);
        assert_eq!(ways.next().map(|arrived| arrived.path), Some(1));
        // What comes from a path that was left is not taken: it is sent again.
        end.records.send(arrived(1)).expect("room");
        said.clear();
        let rest = ways.back(1, Taken::default(), now, |message| said.push(message));
        assert_eq!(said, [Message::Back { path: 1, taken: Taken { urgent: 1, bulk: 0 } }]);
        assert_eq!(rest, Some(Vec::new()));
        end.records.send(arrived(2)).expect("room");
        end.news.send(News::Up(2)).expect("open");
        ways.turn(now, drop);
        ways.over(2);
        assert_eq!(ways.next().map(|arrived| arrived.path), Some(2), "the first path was left");
    }
}
