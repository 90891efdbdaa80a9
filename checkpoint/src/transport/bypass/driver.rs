//! The thread that runs the port of the bypass.
//!
//! A turn: frames that came, what is due, lanes both ways, frames that go. After a turn with nothing in it the
//! thread sleeps until a lane, a frame or a deadline wakes it, unless it is to keep its processor. A port that
//! cannot tell when frames come is looked at again after a short wait.
#![expect(unsafe_code, reason = "the port's descriptor is borrowed for the time of a wait")]

use super::Nic;
use super::lane::{Arrived, News, Order, Outgoing};
use super::stall::Stall;
use crate::protocol::FRAME_HEAD;
use crate::transport::waker::Waker;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use holdfast_bypass::{Class, Counters, Event, PathId, Port, Token};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of records that may wait for a path's window; bulk stays with its owner beyond.
const WAITING: usize = 1 << 20;
/// Frames sent in a turn, before it is looked for those that came.
const FRAMES: usize = 128;
/// Turns without anything to do before the thread sleeps.
const IDLE_TURNS: u32 = 16;
/// Longest sleep.
const LONG: Duration = Duration::from_millis(200);
/// Waits for a port that cannot tell: short while there is traffic, longer when there is none.
const BLIND_SHORT: Duration = Duration::from_micros(100);
const BLIND_LONG: Duration = Duration::from_millis(1);
/// For how long after the last frame a port counts as having traffic.
const RECENT: Duration = Duration::from_millis(10);
/// Wait for a port that is full.
const FULL: Duration = Duration::from_micros(100);
/// Between two times that the counters are shown.
const SHOW: Duration = Duration::from_millis(5);

/// The thread's end of a lane.
pub(in crate::transport) struct LaneEnd {
    pub(super) token: Token,
    pub(super) orders: Receiver<Order>,
    pub(super) urgent: Receiver<Outgoing>,
    pub(super) bulk: Receiver<Outgoing>,
    pub(in crate::transport) news: Sender<News>,
    pub(in crate::transport) records: Sender<Arrived>,
    /// Buffers of records that were dealt with.
    pub(super) spare: Receiver<Vec<u8>>,
    /// When records have no room the owner rings once it took one.
    pub(super) stall: Arc<Stall>,
    pub(super) owner: Arc<Waker>,
    /// The path that is up, and its number.
    pub(super) path: Option<(PathId, u64)>,
    /// The path that was dialled last.
    pub(super) dialled: Option<(PathId, u64)>,
}

pub(super) struct Driver {
    nic: Box<dyn Nic>,
    port: Port,
    new_lanes: Receiver<LaneEnd>,
    lanes: Vec<LaneEnd>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    counters: Arc<Mutex<Counters>>,
    poll: bool,
    /// Whether the port had no room for a frame.
    full: bool,
    last_frame: Instant,
    shown: Instant,
}

impl Driver {
    pub(super) fn new(
        nic: Box<dyn Nic>,
        port: Port,
        new_lanes: Receiver<LaneEnd>,
        waker: Arc<Waker>,
        stop: Arc<AtomicBool>,
        counters: Arc<Mutex<Counters>>,
        poll: bool,
    ) -> Self {
        let (last_frame, shown) = (Instant::now(), Instant::now());
        let lanes = Vec::new();
        Self { nic, port, new_lanes, lanes, waker, stop, counters, poll, full: false, last_frame, shown }
    }

    pub(super) fn run(mut self) {
        if let Err(errno) = set_timerslack(1) {
            tracing::warn!(%errno, "short waits of the bypass will be about 50 us longer");
        }
        let _kept = self.nic.begin();
        let mut idle = 0;
        while !self.stop.load(Ordering::Acquire) {
            idle = if self.turn() { 0 } else { idle + 1 };
            if idle >= IDLE_TURNS && !self.poll {
                self.sleep();
                idle = 0;
            }
        }
    }

    /// Whether there was something to do.
    ///
    /// With the thread of the link a page of a synchronisation costs 0.7 us at either end (`holdfast bench pages`,
    /// `memif` with packets of 16,384 bytes).
    fn turn(&mut self) -> bool {
        let now = Instant::now();
        let mut busy = self.receive(now);
        busy |= self.take_up(now);
        self.port.handle_timeout(now);
        self.announce(now);
        for at in 0..self.lanes.len() {
            busy |= self.serve(at, now);
        }
        busy |= self.send(now);
        if now >= self.shown + SHOW {
            self.shown = now;
            self.show();
        }
        busy
    }

    /// Shows the counters, unless somebody looks at them just now.
    #[expect(clippy::disallowed_methods, reason = "a few times a second, and it waits for nobody")]
    fn show(&self) {
        if let Ok(mut counters) = self.counters.try_lock() {
            *counters = self.port.counters();
        }
    }

    fn receive(&mut self, now: Instant) -> bool {
        let port = &mut self.port;
        let came = self.nic.receive(&mut |frame| port.handle_frame(frame, now));
        if came > 0 {
            self.last_frame = now;
        }
        came > 0
    }

    /// Takes new lanes and orders up, and lets lanes go whose owner is gone.
    fn take_up(&mut self, now: Instant) -> bool {
        let mut busy = false;
        while let Ok(lane) = self.new_lanes.try_recv() {
            busy = true;
            self.port.await_peer(lane.token);
            self.lanes.push(lane);
        }
        let port = &mut self.port;
        self.lanes.retain_mut(|lane| {
            loop {
                match lane.orders.try_recv() {
                    Ok(Order::Dial(path)) => lane.dialled = Some((port.dial(lane.token, path, now), path)),
                    Ok(Order::Leave(path)) => {
                        for (id, _) in lane.path.take_if(|(_, number)| *number == path).iter() {
                            port.close(*id, now);
                        }
                    }
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => {
                        port.forget(lane.token, now);
                        return false;
                    }
                }
            }
        });
        busy
    }

    /// Tells owners what became of paths.
    fn announce(&mut self, now: Instant) {
        while let Some(event) = self.port.poll_event() {
            let token = match &event {
                Event::Up { token, .. } => Some(*token),
                Event::Lost { token, .. } => *token,
            };
            let Some(lane) = self.lanes.iter_mut().find(|lane| Some(lane.token) == token) else { continue };
            let news = match event {
                Event::Up { path, number, .. } => {
                    if let Some((older, _)) = lane.path.replace((path, number)) {
                        self.port.close(older, now);
                    }
                    News::Up(number)
                }
                Event::Lost { path, why, .. } => {
                    let up = lane.path.take_if(|(id, _)| *id == path);
                    match up.or(lane.dialled.filter(|(id, _)| *id == path)) {
                        Some((_, number)) => News::Lost(number, why.to_string()),
                        None => continue,
                    }
                }
            };
            // An owner that is gone is noticed in the next turn.
            drop(lane.news.send(news));
            lane.owner.ring();
        }
    }

    /// Records of one lane, both ways.
    fn serve(&mut self, at: usize, now: Instant) -> bool {
        let (lane, port) = (&mut self.lanes[at], &mut self.port);
        let mut busy = lane.urge(port);
        let mut took = false;
        while lane.path.is_none_or(|(path, _)| port.waiting_bytes(path) < WAITING) {
            let Ok(bulk) = lane.bulk.try_recv() else { break };
            // What was urgent before this was queued goes first.
            lane.urge(port);
            lane.pass(port, Class::Bulk, bulk);
            took = true;
        }
        let delivered = lane.deliver(port, now);
        if took || delivered {
            lane.owner.ring();
        }
        busy |= took || delivered;
        busy
    }

    /// Sends frames as long as the port takes them.
    fn send(&mut self, now: Instant) -> bool {
        let mut sent = 0;
        self.full = false;
        while sent < FRAMES {
            let Some(len) = self.port.next_frame(now) else { break };
            let port = &mut self.port;
            if !self.nic.send(len, &mut |frame| port.take_frame(frame)) {
                self.full = true;
                break;
            }
            sent += 1;
        }
        self.full |= !self.nic.flush();
        sent > 0
    }

    fn sleep(&mut self) {
        self.nic.arm();
        // What came before the port was asked to tell is found by this look.
        if !self.receive(Instant::now()) {
            self.wait();
        }
        self.nic.disarm();
    }

    fn wait(&mut self) {
        let now = Instant::now();
        let due = self.port.next_deadline().map(|due| due.saturating_duration_since(now));
        let mut patience = due.unwrap_or(LONG).min(LONG);
        if self.full {
            patience = patience.min(FULL);
        }
        let port = self.nic.readable_fd();
        if port.is_none() && !self.lanes.is_empty() {
            let recent = now.saturating_duration_since(self.last_frame) < RECENT;
            patience = patience.min(if recent { BLIND_SHORT } else { BLIND_LONG });
        }
        // SAFETY: the descriptor belongs to the port, which this thread owns and which keeps it open; nothing
        // else is done with the port until the wait is over.
        let borrowed = port.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
        let own = self.waker.fd.as_fd();
        let mut fds = [own, borrowed.unwrap_or(own)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // An interrupted wait is a short one.
        let woken = ppoll(&mut fds, Some(TimeSpec::from(patience)), None);
        if woken.is_ok() && fds[0].any() == Some(true) {
            self.waker.clear();
        }
    }
}

impl LaneEnd {
    /// Hands urgent frames to the path.
    fn urge(&self, port: &mut Port) -> bool {
        let mut any = false;
        while let Ok(frame) = self.urgent.try_recv() {
            self.pass(port, Class::Urgent, frame);
            any = true;
        }
        any
    }

    /// A frame's head becomes the record's.
    fn pass(&self, port: &mut Port, class: Class, Outgoing { path, frame }: Outgoing) {
        let Some((id, _)) = self.path.filter(|(_, number)| *number == path) else { return };
        let tag = frame[4..FRAME_HEAD].try_into().expect("four bytes");
        port.send(id, class, u32::from_le_bytes(tag), frame.slice(FRAME_HEAD..));
    }

    /// Hands records to the owner, as many as it has room for; what stays closes the sender's window.
    ///
    /// Its cost is in that of a turn.
    fn deliver(&self, port: &mut Port, now: Instant) -> bool {
        let Some((id, path)) = self.path else { return false };
        self.spare.try_iter().for_each(|buffer| port.give_back(buffer));
        let mut any = false;
        loop {
            if self.stall.is_stalled(|| self.records.is_full()) {
                return any;
            }
            let urgent = port.receive(id, Class::Urgent, now).map(|record| (Class::Urgent, record));
            let next = urgent.or_else(|| Some((Class::Bulk, port.receive(id, Class::Bulk, now)?)));
            let Some((class, record)) = next else { return any };
            // An owner that is gone is noticed in the next turn.
            drop(self.records.try_send(Arrived { path, class, record }));
            any = true;
        }
    }
}
