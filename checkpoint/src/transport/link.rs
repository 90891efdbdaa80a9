//! The thread that owns a link.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::lease::LeaseGrants;
use crate::protocol::{DecodeError, MESSAGE_LIMIT, Message, Taken, encode};
use crate::transport::bypass::Bypass;
use crate::transport::charge;
use crate::transport::frames::{Arrival, Assembler};
use crate::transport::handle::{Control, Link, LinkEnd, LinkEvent};
use crate::transport::waker::Waker;
use crate::transport::ways::{Shown, Ways};
use crate::transport::wire::Wire;
use crate::vm::Fault;
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Bulk frames that may wait for their turn; each has a megabyte at the most. Few, so that they are still in the cache.
const BULK_QUEUE: usize = 8;
/// Buffers of frames that wait to be filled again: all that a bypass may have under way.
const SPARE_QUEUE: usize = 32;
/// Commands that may wait; the owner drains them at every turn.
const CONTROL_QUEUE: usize = 1024;
/// Events that may wait: the frames of a full window, and as many small messages again.
const EVENT_QUEUE: usize = 8192;
/// Buffers that wait for bulk of the peer.
const SPENT: usize = 64;
/// Bulk frames are taken up only while less than this is unsent, so that urgent ones do not wait long.
const UNSENT_LOW: usize = 1 << 20;
/// A peer that lets this much pile up does not read.
const UNSENT_LIMIT: usize = 64 << 20;
/// Messages taken from the socket before the other side of the loop gets its turn.
const BURST: usize = 8;
/// Heartbeats without an answer that are remembered.
const HEARTBEATS_OPEN: usize = 256;
/// How long the last words may take.
const LINGER: Duration = Duration::from_millis(500);

struct Heartbeats {
    interval: Duration,
    lease: Duration,
    next: Instant,
    number: u64,
    open: VecDeque<(u64, Instant)>,
}

/// What the owner thread owns.
pub(super) struct Owner {
    wire: Wire,
    ways: Ways,
    assembler: Assembler,
    waker: Arc<Waker>,
    control: Receiver<Control>,
    bulk: Receiver<Vec<u8>>,
    /// A bulk frame for which there is no credit yet.
    next_bulk: Option<Vec<u8>>,
    spare: Sender<Vec<u8>>,
    /// Buffers for what comes.
    spent: Receiver<Vec<u8>>,
    events: Sender<LinkEvent>,
    end: Arc<OnceLock<LinkEnd>>,
    /// Bulk bytes that we may send.
    credit: u64,
    /// Bulk bytes that the peer may send.
    allowance: u64,
    /// Credit that was given back but not yet told.
    returned: u64,
    /// Whether bytes may wait that poll does not see.
    unread: bool,
    heartbeats: Option<Heartbeats>,
    grants: Option<LeaseGrants>,
}

/// Why the loop ends.
enum Stop {
    /// The handle was dropped.
    Dropped,
    Ended(LinkEnd),
}

impl Stop {
    fn peer(text: impl Into<String>) -> Self {
        Self::Ended(LinkEnd { fault: Fault::Peer, text: text.into() })
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::peer("the other host closed the connection"),
            ErrorKind::InvalidData => Self::peer(match refusal_of_keys(&error) {
                Some(alert) => format!(
                    "the other host does not accept this host's certificate ({alert}): \
                     both need keys made by one run of `holdfast keys`"
                ),
                None => format!("what came over the connection is damaged: {error}"),
            }),
            _ => Self::peer(format!("the connection broke: {error}")),
        }
    }
}

impl From<DecodeError> for Stop {
    fn from(fault: DecodeError) -> Self {
        Self::peer(format!("the other host sent what is no message: {fault}"))
    }
}

/// What TLS said when the peer ended the handshake: a host that dialled learns only after it that its
/// own certificate was not accepted.
pub(super) fn refusal_of_keys(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}

/// Makes the two ends of a link over a wire that is ready, and that may use the bypass.
pub(super) fn link(wire: Wire, peer: String, bypass: Option<&Bypass>) -> io::Result<(Link, Owner)> {
    wire.set_nonblocking()?;
    let waker = Arc::new(Waker::new()?);
    let lane = match (bypass, wire.token()) {
        (Some(bypass), Some(token)) => bypass.lane(token, Arc::clone(&waker)),
        _ => None,
    };
    let shown = Arc::new(Shown::default());
    let (control, controlled) = bounded(CONTROL_QUEUE);
    let (bulk, queued) = bounded(BULK_QUEUE);
    let (spare, spares) = bounded(SPARE_QUEUE);
    let (spent, given_back) = bounded(SPENT);
    let (events, seen) = bounded(EVENT_QUEUE);
    let end = Arc::new(OnceLock::new());
    let owner = Owner {
        wire,
        ways: Ways::new(lane, Arc::clone(&shown)),
        assembler: Assembler::new(MESSAGE_LIMIT),
        waker: Arc::clone(&waker),
        control: controlled,
        bulk: queued,
        next_bulk: None,
        spare,
        spent: given_back,
        events,
        end: Arc::clone(&end),
        credit: 0,
        allowance: 0,
        returned: 0,
        unread: false,
        heartbeats: None,
        grants: None,
    };
    let link =
        Link { control: Some(control), bulk, spare: spares, spent, events: seen, waker, end, peer, shown };
    Ok((link, owner))
}

impl Owner {
    /// Runs until the link ends or its handle is dropped.
    pub(super) fn run(mut self) {
        let stop = loop {
            if let Err(stop) = self.turn() {
                break stop;
            }
        };
        if let Stop::Ended(end) = stop {
            tracing::debug!(text = %end.text, "link ended");
            // Set before the channel closes, so that whoever sees the closing finds the reason.
            drop(self.end.set(end));
            // Whoever waits for the link goes on now, not after the last words.
            self.bulk = crossbeam_channel::never();
            self.events = crossbeam_channel::bounded(0).0;
        }
        if let Err(error) = self.come_back() {
            tracing::debug!(%error, "what was on the bypass was not sent again");
        }
        let Self { wire, events, .. } = self;
        drop(events);
        last_words(wire);
    }

    /// Brings what is on its way over the bypass back to the connection, before that ends.
    fn come_back(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + LINGER;
        let wire = &mut self.wire;
        let mut queued = Ok(());
        self.ways.come_back(|message| queued = wire.queue(encode(&message)).map(drop));
        queued?;
        while self.ways.is_away() {
            self.wire.send(drop)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let mut interest = PollFlags::POLLIN;
            interest.set(PollFlags::POLLOUT, self.wire.has_unsent());
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            poll(&mut [PollFd::new(self.wire.socket(), interest)], PollTimeout::from(millis))?;
            let Self { assembler, wire, .. } = self;
            while let Some(arrival) = assembler.next(|room| wire.read(room), || None)? {
                let arrival = arrival.map_err(|fault| io::Error::new(ErrorKind::InvalidData, fault))?;
                // Nobody is there any more to hear anything else.
                let Message::Back { path, taken } = arrival.message else { continue };
                let rest = self.ways.back(path, taken, Instant::now(), drop).unwrap_or_default();
                for frame in rest {
                    wire.queue(frame.into())?;
                }
            }
        }
        Ok(())
    }

    /// Its cost is in that of [`Link::try_send_bulk`].
    fn turn(&mut self) -> Result<(), Stop> {
        self.obey()?;
        if self.ways.is_overdue() {
            return Err(Stop::peer("the other host does not read"));
        }
        let now = Instant::now();
        self.beat(now)?;
        self.look_at_ways(now)?;
        self.take_up_bulk()?;
        self.ways.tell();
        let spare = &self.spare;
        self.wire.send(|used| drop(spare.try_send(used)))?;
        // Sending may have made room for more: sleep only when the socket is full or nothing waits.
        let more = self.unread || self.ways.has_records() || self.bulk_is_ready();
        let (readable, woken) = self.wait(more)?;
        if woken {
            self.waker.clear();
        }
        if readable || self.unread {
            self.unread = false;
            self.listen()?;
        }
        self.listen_to_bypass()
    }

    /// Finds out what became of the bypass.
    fn look_at_ways(&mut self, now: Instant) -> Result<(), Stop> {
        let Self { ways, wire, .. } = self;
        let mut queued = Ok(());
        ways.turn(now, |message| {
            if let Err(error) = wire.queue(encode(&message)) {
                queued = Err(error);
            }
        });
        Ok(queued?)
    }

    /// Waits for the socket, the eventfd or the next heartbeat.
    fn wait(&self, at_once: bool) -> Result<(bool, bool), Stop> {
        let timeout = if at_once {
            PollTimeout::ZERO
        } else {
            let beat = self.heartbeats.as_ref().map(|beats| beats.next);
            beat.into_iter().chain(self.ways.deadline()).min().map_or(PollTimeout::NONE, |due| {
                let left = due.saturating_duration_since(Instant::now());
                // Rounded up, or the loop would spin for the last fraction of a millisecond.
                let millis = left.as_micros().div_ceil(1000).min(60_000);
                PollTimeout::from(u16::try_from(millis).expect("bounded above"))
            })
        };
        let mut interest = PollFlags::POLLIN;
        if self.wire.has_unsent() {
            interest |= PollFlags::POLLOUT;
        }
        let mut fds = [
            PollFd::new(self.wire.socket(), interest),
            PollFd::new(self.waker.fd.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok((false, false)),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let seen = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let heard = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        Ok((seen(&fds[0]).intersects(heard), seen(&fds[1]).contains(PollFlags::POLLIN)))
    }

    fn obey(&mut self) -> Result<(), Stop> {
        loop {
            match self.control.try_recv() {
                Ok(Control::Urgent(frame)) => self.queue_urgent(frame)?,
                Ok(Control::Window(bytes)) => self.credit = bytes,
                Ok(Control::Allow(bytes)) => self.allowance = bytes,
                Ok(Control::Grant(bytes)) => self.give_back(bytes)?,
                Ok(Control::Heartbeats { interval, lease }) => {
                    let (next, open) = (Instant::now(), VecDeque::with_capacity(HEARTBEATS_OPEN));
                    self.heartbeats = Some(Heartbeats { interval, lease, next, number: 0, open });
                    self.ways.begin(next);
                }
                Ok(Control::Answer(grants)) => self.grants = Some(grants),
                Ok(Control::Close) => {
                    let text = "the session was ended by this host".to_owned();
                    return Err(Stop::Ended(LinkEnd { fault: Fault::Host, text }));
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Stop::Dropped),
            }
        }
    }

    fn queue_urgent(&mut self, frame: Vec<u8>) -> Result<(), Stop> {
        match self.ways.send_urgent(frame) {
            Some(frame) => self.queue_on_connection(frame),
            None => Ok(()),
        }
    }

    fn queue_on_connection(&mut self, frame: Vec<u8>) -> Result<(), Stop> {
        self.wire.queue(frame)?;
        if self.wire.backlog() > UNSENT_LIMIT {
            return Err(Stop::peer("the other host does not read"));
        }
        Ok(())
    }

    /// Credit goes back in pieces that are worth a message.
    fn give_back(&mut self, bytes: u64) -> Result<(), Stop> {
        self.returned += bytes;
        if self.returned >= super::WINDOW / 8 {
            self.allowance += self.returned;
            let frame = encode(&Message::Credit { bytes: self.returned });
            self.returned = 0;
            self.queue_urgent(frame)?;
        }
        Ok(())
    }

    fn beat(&mut self, now: Instant) -> Result<(), Stop> {
        let Some(beats) = &mut self.heartbeats else { return Ok(()) };
        if now < beats.next {
            return Ok(());
        }
        // A thread that was held up does not catch up on the heartbeats it missed.
        beats.next = now + beats.interval;
        beats.number += 1;
        if beats.open.len() == HEARTBEATS_OPEN {
            beats.open.pop_front();
        }
        beats.open.push_back((beats.number, now));
        let message = Message::Heartbeat { number: beats.number };
        // On both ways: the first answer counts.
        self.ways.send_passing(&message);
        self.queue_on_connection(encode(&message))
    }

    fn bulk_is_ready(&self) -> bool {
        // On the connection bulk has its turn when nothing is unsent; on a path, when little is left there.
        let held = match self.ways.is_away() {
            true => self.ways.holds_bulk() || self.wire.backlog() >= UNSENT_LOW,
            false => self.wire.has_unsent(),
        };
        !held && self.next_bulk.as_ref().map_or(!self.bulk.is_empty(), |frame| self.affordable(frame))
    }

    fn affordable(&self, frame: &[u8]) -> bool {
        charge(frame.len() - crate::protocol::FRAME_HEAD) <= self.credit
    }

    fn take_up_bulk(&mut self) -> Result<(), Stop> {
        while self.wire.backlog() < UNSENT_LOW && !self.ways.holds_bulk() {
            let Some(frame) = self.next_bulk.take().or_else(|| self.bulk.try_recv().ok()) else {
                return Ok(());
            };
            if !self.affordable(&frame) {
                self.next_bulk = Some(frame);
                return Ok(());
            }
            self.credit -= charge(frame.len() - crate::protocol::FRAME_HEAD);
            let Some(frame) = self.ways.send_bulk(frame) else { continue };
            if let Some(used) = self.wire.queue(frame)? {
                drop(self.spare.try_send(used));
            }
        }
        Ok(())
    }

    fn listen(&mut self) -> Result<(), Stop> {
        for _ in 0..BURST {
            let Self { assembler, wire, spent, .. } = self;
            match assembler.next(|room| wire.read(room), || spent.try_recv().ok())? {
                Some(arrival) => self.take(arrival?, false)?,
                None => return Ok(()),
            }
        }
        // More may wait inside TLS, where poll does not see it: come back without waiting.
        self.unread = true;
        Ok(())
    }

    fn listen_to_bypass(&mut self) -> Result<(), Stop> {
        for _ in 0..BURST {
            let Some(arrived) = self.ways.next() else { return Ok(()) };
            self.spent.try_iter().take(1).for_each(|used| self.ways.give_back(used));
            let arrival = arrived
                .open()
                .map_err(|fault| Stop::peer(format!("the other host sent what is no message: {fault}")))?;
            self.take(arrival, true)?;
        }
        Ok(())
    }

    fn take(&mut self, Arrival { message, charge }: Arrival, over_bypass: bool) -> Result<(), Stop> {
        if charge > self.allowance {
            return Err(Stop::peer("the other host sent more than it was given credit for"));
        }
        self.allowance -= charge;
        let event = match message {
            Message::Heartbeat { number } => {
                if self.grants.as_ref().is_some_and(|grants| grants.promise(Instant::now())) {
                    // On the way on which it came.
                    let answer = Message::HeartbeatAnswer { number };
                    if !over_bypass {
                        return self.queue_on_connection(encode(&answer));
                    }
                    self.ways.send_passing(&answer);
                }
                return Ok(());
            }
            Message::Over { path } => {
                self.ways.over(path);
                return Ok(());
            }
            Message::Back { path, taken } => return self.come_back_to_connection(path, taken),
            Message::Taken(taken) => {
                let spare = &self.spare;
                let known = self.ways.taken(taken, |used| drop(spare.try_send(used)));
                return known.ok_or_else(|| Stop::peer("the other host confirms what was not sent"));
            }
            Message::Credit { bytes } => {
                self.credit = self.credit.saturating_add(bytes);
                return Ok(());
            }
            Message::HeartbeatAnswer { number } => match self.answered(number) {
                Some(event) => event,
                None => return Ok(()),
            },
            message => LinkEvent::Message { message, charge },
        };
        match self.events.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(Stop::peer("the other host floods this one with messages")),
            Err(TrySendError::Disconnected(_)) => Err(Stop::Dropped),
        }
    }

    /// The peer has left a path of the bypass: what it did not take goes by the connection.
    fn come_back_to_connection(&mut self, path: u64, taken: Taken) -> Result<(), Stop> {
        let Self { ways, wire, .. } = self;
        let mut queued = Ok(());
        let rest = ways.back(path, taken, Instant::now(), |message| {
            queued = wire.queue(encode(&message)).map(drop);
        });
        queued?;
        let rest = rest.ok_or_else(|| Stop::peer("the other host confirms what was not sent"))?;
        for frame in rest {
            self.wire.queue(frame.into())?;
        }
        Ok(())
    }

    fn answered(&mut self, number: u64) -> Option<LinkEvent> {
        let beats = self.heartbeats.as_mut()?;
        let at = beats.open.iter().position(|&(open, _)| open == number)?;
        let (_, sent) = beats.open[at];
        beats.open.drain(..=at);
        Some(LinkEvent::Lease { until: sent + beats.lease, round_trip: sent.elapsed() })
    }
}

/// Sends what is left and waits until the peer has read it: closing at once could destroy it.
pub(super) fn last_words(mut wire: Wire) {
    let deadline = Instant::now() + LINGER;
    let mut finished = false;
    loop {
        if !finished && (!wire.has_unsent() || wire.send(drop).is_err() || !wire.has_unsent()) {
            wire.finish();
            finished = true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut interest = PollFlags::POLLIN;
        if wire.has_unsent() {
            interest |= PollFlags::POLLOUT;
        }
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(wire.socket(), interest)];
        if poll(&mut fds, PollTimeout::from(millis)).is_err() {
            return;
        }
        let mut sink = [0; 1 << 14];
        match wire.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
