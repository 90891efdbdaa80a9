//! The thread that finds and copies pages.
//!
//! It owns the guest's memory as Holdfast maps it, the tracker, and two sets of pages: *pending*, which
//! the next capture has to carry because an earlier one was given up or because a pass ahead found it and did
//! not copy it, and *current*, which the capture under way has taken. A third, *ahead*, has the pages that
//! passes copied while the guest runs in the open epoch (see [`Ahead`]); what is written to one of them since
//! puts it into the others as well, and it is copied again. A page leaves these sets only by going into a
//! sealed epoch (CK-2).
//!
//! Order matters: a page is first taken from the tracker and from Holdfast's own bitmap, then copied. A
//! write after that is found by the next scan. Of two copies of a page the backup keeps the later one.
//!
//! Of a synchronisation the pages that were never written to are not read: they are zeros, and reading would make the host
//! allocate them.
//!
//! Passes take no more than half of the chunks that there may be, and wait for none: a slow link ends a pass, and
//! the pause finds room.

use crate::gate::{GuestMemorySource, MemoryError, MemoryFacts};
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use crate::primary::ahead::{Ahead, Passed};
use crate::primary::{Chunk, Staging, Work};
use crate::tracker::{DirtyTracker, TrackError};
use crate::urgent::own_thread;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use holdfast_epoch::EpochId;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Chunks that rounds of the running guest make do with: enough that nobody waits, and few enough that they stay in the
/// processor's cache on their way. Only a pause, in which the guest stands still, takes more.
const ROUND_CHUNKS: usize = 8;

/// Sets for captures to come, which come back and are used again.
const SPARE_SETS: usize = 8;

/// Why pages could not be captured. None is forgotten: they stay pending (CK-2).
#[derive(Debug, Error)]
pub(crate) enum CaptureError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The session ended; its end says why.
    #[error("the session ended while pages were captured")]
    SessionEnded,
    /// No tracker is attached: a bug of the caller.
    #[error("no tracker is attached")]
    NotAttached,
}

/// How a round of a running guest ended.
#[derive(Debug)]
pub(crate) struct RoundEnd {
    /// Pages sent in it.
    pub(crate) pages: u64,
    /// Whether it was called off or the session ended: its pages are pending again.
    pub(crate) outcome: Result<(), CaptureError>,
}

/// What a capture of the halted guest took.
#[derive(Debug)]
pub(crate) struct Captured {
    /// The pages; given back by [`Capture::take_back`] when the epoch is aborted.
    pub(crate) set: PageSet,
    /// Copies made while the guest stood still: a page written again during the capture counts twice.
    pub(crate) copies: u64,
    /// Pages that were copied ahead; some of them again while it stood still.
    pub(crate) ahead: u64,
    /// All scans, and how many there were.
    pub(crate) scan: Duration,
    pub(crate) scans: u32,
    pub(crate) copy: Duration,
}

/// Which pages a round of the running guest sends, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// All pages, or those that were written.
    pub(crate) whole: bool,
    /// Ahead of this epoch, or as part of the full synchronisation.
    pub(crate) ahead_of: Option<EpochId>,
}

enum Order {
    Facts(Sender<Result<MemoryFacts, MemoryError>>),
    Attach(MemoryFacts, Box<dyn DirtyTracker>),
    Detach,
    Open(Pipe),
    Round(Round, Sender<RoundEnd>),
    Ahead(EpochId, Instant),
    Halt,
    First(EpochId, Sender<Result<(), CaptureError>>),
    Last(EpochId, Sender<Result<Captured, CaptureError>>),
    GiveUp,
    TakeBack(PageSet),
    Recycle(PageSet),
}

/// Handle to the capture thread. Dropping it ends the thread.
pub(crate) struct Capture {
    orders: Option<Sender<Order>>,
    called_off: Arc<AtomicBool>,
    /// Whether passes ahead are to end where they are.
    halting: Arc<AtomicBool>,
    thread_id: i32,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts the thread.
    pub(crate) fn start(memory: Box<dyn GuestMemorySource>) -> std::io::Result<Self> {
        let (orders, taken) = bounded(16);
        let (called_off, halting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let worker = Worker::new(memory, Arc::clone(&called_off), Arc::clone(&halting));
        let (tell, told) = bounded(1);
        let thread = thread::Builder::new().name("hf-capture".to_owned()).spawn(move || {
            tell.send(own_thread()).unwrap_or_default();
            worker.run(&taken);
        })?;
        let thread_id = told.recv().map_err(std::io::Error::other)?;
        Ok(Self { orders: Some(orders), called_off, halting, thread_id, thread: Some(thread) })
    }

    /// Kernel id of the thread.
    pub(crate) const fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// The guest's memory as it is connected now.
    pub(crate) fn facts(&self) -> Result<MemoryFacts, MemoryError> {
        self.ask(Order::Facts)
    }

    /// Watches a guest. Every page must be sent once after this: see [`Round::whole`].
    pub(crate) fn attach(&self, memory: MemoryFacts, tracker: Box<dyn DirtyTracker>) {
        self.order(Order::Attach(memory, tracker));
    }

    /// Watches nothing any more.
    pub(crate) fn detach(&self) {
        self.order(Order::Detach);
    }

    /// Captured pages go to this session, in chunks that were sent, or that wait in the staging memory.
    pub(crate) fn open(&self, work: Sender<Work>, free: Receiver<Chunk>, staging: Staging) {
        let kept = staging.chunks() / 2;
        self.order(Order::Open(Pipe { work, free, staging, kept, taken: 0 }));
    }

    /// Sends pages of the running guest.
    pub(crate) fn round(&self, round: Round) -> Receiver<RoundEnd> {
        self.called_off.store(false, Ordering::Release);
        let (answer, answered) = bounded(1);
        self.order(Order::Round(round, answer));
        answered
    }

    /// Calls a round off, or a pass ahead.
    pub(crate) fn call_off(&self) {
        self.halting.store(true, Ordering::Release);
        self.called_off.store(true, Ordering::Release);
    }

    /// The guest runs in `epoch`, which is to be sealed at `until` or so: its pages may be copied ahead. What was
    /// captured of the epoch before was handed over, and was not less than [`LEAST_OF_EPOCH`](super::LEAST_OF_EPOCH).
    pub(crate) fn ahead(&self, epoch: EpochId, until: Instant) {
        self.halting.store(false, Ordering::Release);
        self.order(Order::Ahead(epoch, until));
    }

    /// The guest is about to stand still: a pass ahead ends where it is, and none begins.
    pub(crate) fn halt(&self) {
        self.halting.store(true, Ordering::Release);
        self.order(Order::Halt);
    }

    /// Begins to capture the halted guest; the answer comes when the first scan and copy are done.
    pub(crate) fn first(&self, epoch: EpochId) -> Receiver<Result<(), CaptureError>> {
        self.halting.store(true, Ordering::Release);
        let (answer, answered) = bounded(1);
        self.order(Order::First(epoch, answer));
        answered
    }

    /// Captures what was written since, and ends the capture; or captures all at once, where nothing was captured
    /// first.
    pub(crate) fn last(&self, epoch: EpochId) -> Receiver<Result<Captured, CaptureError>> {
        self.halting.store(true, Ordering::Release);
        let (answer, answered) = bounded(1);
        self.order(Order::Last(epoch, answer));
        answered
    }

    /// Gives the capture under way up: its pages are pending again (CK-2).
    pub(crate) fn give_up(&self) {
        self.order(Order::GiveUp);
    }

    /// The pages of an aborted epoch are pending again (CK-2).
    pub(crate) fn take_back(&self, set: PageSet) {
        self.order(Order::TakeBack(set));
    }

    /// The set of a committed epoch is not needed any more.
    pub(crate) fn recycle(&self, set: PageSet) {
        self.order(Order::Recycle(set));
    }

    fn order(&self, order: Order) {
        let orders = self.orders.as_ref().expect("there until dropped");
        orders.send(order).expect("the capture thread runs until its handle is dropped");
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> T {
        let (answer, answered) = bounded(1);
        self.order(order(answer));
        answered.recv().expect("the capture thread answers each order")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.call_off();
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported when it happened.
            drop(thread.join());
        }
    }
}

/// The way to a session.
struct Pipe {
    work: Sender<Work>,
    free: Receiver<Chunk>,
    staging: Staging,
    /// Chunks that passes ahead leave to the pause.
    kept: usize,
    /// Chunks that were taken of the staging memory.
    taken: usize,
}

struct Watched {
    tracker: Box<dyn DirtyTracker>,
    /// Pages of aborted captures.
    pending: PageSet,
    /// Pages of the capture under way.
    current: PageSet,
    /// Pages that were copied ahead of an epoch that is not sealed yet.
    ahead: PageSet,
    /// Pages that were written again, not long ago, after they had been copied ahead.
    restless: PageSet,
    /// Pages that passes ahead of this epoch found.
    found: u64,
    /// Pages of one scan.
    fresh: PageSet,
    /// Sets of committed epochs, to be used again.
    spare: Vec<PageSet>,
    copies: u64,
    scan: Duration,
    scans: u32,
    copy: Duration,
}

struct Worker {
    memory: Box<dyn GuestMemorySource>,
    watched: Option<Watched>,
    pipe: Option<Pipe>,
    filling: Option<Chunk>,
    called_off: Arc<AtomicBool>,
    halting: Arc<AtomicBool>,
    ahead: Ahead,
    /// The epoch whose pages are copied ahead.
    open: EpochId,
    /// Why a pass failed, for the next pause to say.
    failed: Option<CaptureError>,
}

impl Worker {
    fn new(
        memory: Box<dyn GuestMemorySource>,
        called_off: Arc<AtomicBool>,
        halting: Arc<AtomicBool>,
    ) -> Self {
        Self {
            memory,
            watched: None,
            pipe: None,
            called_off,
            halting,
            failed: None,
            filling: None,
            ahead: Ahead::new(Instant::now()),
            open: EpochId::FIRST,
        }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let order = match self.ahead.due() {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => orders.recv_deadline(due),
            };
            match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => self.pass_ahead(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whoever asked may have gone: its answer is then not missed.
    fn obey(&mut self, order: Order) {
        match order {
            Order::Facts(answer) => drop(answer.send(self.memory.facts())),
            Order::Attach(memory, tracker) => {
                self.ahead.stop();
                self.failed = None;
                self.watched = Some(Watched::new(memory.len, tracker));
            }
            Order::Detach => {
                self.ahead.stop();
                self.watched = None;
                // Whoever is no primary any more needs no memory for captured pages.
                (self.pipe, self.filling) = (None, None);
            }
            Order::Open(pipe) => {
                self.give_up();
                // The session that ended is told of; what a scan may have lost is not.
                self.failed.take_if(|fault| matches!(fault, CaptureError::SessionEnded));
                self.pipe = Some(pipe);
            }
            Order::Round(round, answer) => drop(answer.send(self.round(round))),
            Order::Ahead(epoch, until) => {
                self.open = epoch;
                self.ahead.begin(Instant::now(), until);
            }
            Order::Halt => self.ahead.stop(),
            Order::First(epoch, answer) => {
                self.ahead.stop();
                drop(answer.send(self.pass(Some(epoch), false, false)));
            }
            Order::Last(epoch, answer) => drop(answer.send(self.last(epoch))),
            Order::GiveUp => self.give_up(),
            Order::TakeBack(set) => {
                if let Some(watched) = &mut self.watched {
                    watched.pending.union_with(&set);
                    watched.recycle(set);
                }
            }
            Order::Recycle(set) => {
                if let Some(watched) = &mut self.watched {
                    watched.recycle(set);
                }
            }
        }
    }

    /// Copies what the running guest has written and seems to have done with.
    fn pass_ahead(&mut self) {
        let started = Instant::now();
        let outcome = self.find_ahead().and_then(|found| Ok((found, self.copy_ahead()?)));
        match outcome {
            Ok((found, copied)) => self.ahead.passed(Instant::now(), started.elapsed(), found, copied),
            Err(fault) => {
                // Of a scan that failed pages may be gone: the pause fails by it too, and says so.
                self.give_up();
                self.failed = Some(fault);
            }
        }
    }

    /// Takes what was written since the last pass; what is worth a copy is in `fresh` then. Says how much was
    /// found.
    ///
    /// Costs a scan, and 2 us a GiB for each of five steps over the sets (`cargo bench -p holdfast-checkpoint -- scan
    /// set`).
    fn find_ahead(&mut self) -> Result<u64, CaptureError> {
        let watched = self.watched.as_mut().ok_or(CaptureError::NotAttached)?;
        watched.fresh.clear();
        let tracked = watched.tracker.collect(&mut watched.fresh);
        self.memory.drain_dirty(&mut watched.fresh);
        // Until it is copied it is the pause's.
        watched.pending.union_with(&watched.fresh);
        let found = watched.fresh.len();
        watched.found += found;
        tracked?;
        watched.fresh.copy_from(&watched.pending);
        watched.fresh.subtract(&watched.ahead);
        watched.fresh.subtract(&watched.restless);
        Ok(found)
    }

    /// Copies pages ahead until all are copied, the pause begins, or its share of the chunks is used up.
    ///
    /// Costs what [`Chunk::fill`] does.
    fn copy_ahead(&mut self) -> Result<u64, CaptureError> {
        let Self { memory, watched, pipe, filling, halting, open, .. } = self;
        let watched = watched.as_mut().ok_or(CaptureError::NotAttached)?;
        let pipe = pipe.as_mut().ok_or(CaptureError::SessionEnded)?;
        // The backup has room for two copies of each page, and the pause may have to send all of them.
        let most = watched.ahead.capacity() / 2;
        let before = watched.ahead.len();
        for run in watched.fresh.runs() {
            let mut at = run.start;
            while at < run.end {
                if halting.load(Ordering::Acquire) || watched.ahead.len() >= most {
                    return Ok(watched.ahead.len() - before);
                }
                let Some(mut chunk) = filling.take().or_else(|| pipe.spare_chunk()) else {
                    return Ok(watched.ahead.len() - before);
                };
                let end = chunk.fill(&mut **memory, at..run.end)?;
                watched.ahead.insert_range(at..end);
                watched.pending.remove_range(at..end);
                at = end;
                pipe.pass_on(Some(*open), chunk, filling)?;
            }
        }
        Ok(watched.ahead.len() - before)
    }

    fn round(&mut self, round: Round) -> RoundEnd {
        let outcome = self.pass(round.ahead_of, round.whole, true).and_then(|()| self.flush(round.ahead_of));
        let Some(watched) = &mut self.watched else { return RoundEnd { pages: 0, outcome } };
        let pages = watched.current.len();
        if outcome.is_err() {
            watched.give_up();
            self.filling = None;
        } else if round.ahead_of.is_some() {
            watched.ahead.union_with(&watched.current);
        }
        watched.current.clear();
        watched.restart_clocks();
        RoundEnd { pages, outcome }
    }

    fn give_up(&mut self) {
        self.ahead.stop();
        self.filling = None;
        if let Some(watched) = &mut self.watched {
            watched.give_up();
        }
    }

    fn last(&mut self, epoch: EpochId) -> Result<Captured, CaptureError> {
        self.ahead.stop();
        self.pass(Some(epoch), false, false)?;
        self.flush(Some(epoch))?;
        let watched = self.watched.as_mut().ok_or(CaptureError::NotAttached)?;
        let found = watched.found;
        let settled = watched.settle();
        let captured = watched.finish();
        let passed = Passed { pages: captured.set.len(), found, settled };
        if self.ahead.sealed(Instant::now(), passed) {
            watched.restless.clear();
        }
        Ok(captured)
    }

    /// Takes what was written and copies it.
    fn pass(&mut self, epoch: Option<EpochId>, whole: bool, may_stop: bool) -> Result<(), CaptureError> {
        if let Some(fault) = self.failed.take() {
            return Err(fault);
        }
        let watched = self.watched.as_mut().ok_or(CaptureError::NotAttached)?;
        let started = Instant::now();
        watched.fresh.clear();
        std::mem::swap(&mut watched.fresh, &mut watched.pending);
        let tracked = watched.tracker.collect(&mut watched.fresh);
        self.memory.drain_dirty(&mut watched.fresh);
        if whole {
            watched.fresh.insert_all();
        }
        watched.current.union_with(&watched.fresh);
        watched.scan += started.elapsed();
        watched.scans += 1;
        tracked?;
        let started = Instant::now();
        let copied = self.copy(epoch, may_stop, whole);
        if let Some(watched) = &mut self.watched {
            watched.copy += started.elapsed();
        }
        copied
    }

    /// Copies what the scan found: of the running guest unless it is called off, and of a whole round those pages that
    /// somebody has written to.
    /// 0.5 us a page with the scan, a third of them zeros (`holdfast bench pages --workloads sync`).
    fn copy(&mut self, epoch: Option<EpochId>, may_stop: bool, whole: bool) -> Result<(), CaptureError> {
        let Self { memory, watched, pipe, filling, called_off, .. } = self;
        let watched = watched.as_mut().ok_or(CaptureError::NotAttached)?;
        let pipe = pipe.as_mut().ok_or(CaptureError::SessionEnded)?;
        let mut content = if whole { 0..0 } else { 0..u64::MAX };
        for run in watched.fresh.runs() {
            let mut at = run.start;
            while at < run.end {
                let mut chunk = match filling.take() {
                    Some(chunk) => chunk,
                    None if !may_stop => pipe.chunk()?,
                    None if called_off.load(Ordering::Acquire) => return Err(CaptureError::SessionEnded),
                    None => pipe.chunk_of_round()?,
                };
                if at >= content.end {
                    content = memory.content_from(PageIndex(at));
                }
                let end = if at < content.start {
                    chunk.fill_with_zeros(at..run.end.min(content.start))
                } else {
                    chunk.fill(&mut **memory, at..run.end.min(content.end))?
                };
                watched.copies += end - at;
                at = end;
                pipe.pass_on(epoch, chunk, filling)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, epoch: Option<EpochId>) -> Result<(), CaptureError> {
        match (self.filling.take(), &mut self.pipe) {
            (Some(chunk), Some(pipe)) => pipe.send(Work::Pages(epoch, chunk)),
            _ => Ok(()),
        }
    }
}

impl Chunk {
    /// Copies pages of a run, as many as there is room for; gives the page after the last one.
    ///
    /// Costs 130 ns a page (`cargo bench -p holdfast-checkpoint -- capture`).
    fn fill(&mut self, memory: &mut dyn GuestMemorySource, run: Range<u64>) -> Result<u64, CaptureError> {
        let (pages, bytes) = self.take_room(run);
        memory.read(PageIndex(pages.start), bytes)?;
        self.pages.extend(pages.clone().map(PageIndex));
        Ok(pages.end)
    }

    /// The same of pages that are zeros.
    ///
    /// Costs 30 ns a page (`cargo bench -p holdfast-checkpoint -- capture`).
    fn fill_with_zeros(&mut self, run: Range<u64>) -> u64 {
        let (pages, bytes) = self.take_room(run);
        bytes.fill(0);
        self.pages.extend(pages.clone().map(PageIndex));
        pages.end
    }

    /// The first pages of a run, as many as there is room for, and the room.
    fn take_room(&mut self, run: Range<u64>) -> (Range<u64>, &mut [u8]) {
        let count = usize::try_from(run.end - run.start).unwrap_or(usize::MAX).min(self.room());
        let from = self.pages.len() * PAGE_SIZE;
        (run.start..run.start + count as u64, &mut self.bytes[from..from + count * PAGE_SIZE])
    }
}

impl Pipe {
    /// A chunk to fill ahead of the pause, if enough are left for the pause.
    fn spare_chunk(&mut self) -> Option<Chunk> {
        if self.free.len() + self.staging.waiting() <= self.kept {
            return None;
        }
        self.chunk().ok()
    }

    /// A chunk to fill: a used one, another one, or the next one that becomes free. While the guest
    /// stands still this is how a slow link makes the pause longer instead of the memory fuller.
    fn chunk(&mut self) -> Result<Chunk, CaptureError> {
        let ready = self.free.try_recv().ok().or_else(|| {
            let chunk = self.staging.take();
            self.taken += usize::from(chunk.is_some());
            chunk
        });
        let mut chunk = ready.or_else(|| self.staging.wait(&self.free)).ok_or(CaptureError::SessionEnded)?;
        chunk.pages.clear();
        Ok(chunk)
    }

    /// A chunk for a round.
    fn chunk_of_round(&mut self) -> Result<Chunk, CaptureError> {
        if self.taken < ROUND_CHUNKS {
            return self.chunk();
        }
        // All that were taken come back this way.
        let mut used = self.free.recv().map_err(|_| CaptureError::SessionEnded)?;
        used.pages.clear();
        Ok(used)
    }

    /// Sends a chunk that is full; one that is not waits for more.
    fn pass_on(
        &self,
        epoch: Option<EpochId>,
        chunk: Chunk,
        filling: &mut Option<Chunk>,
    ) -> Result<(), CaptureError> {
        if chunk.room() == 0 {
            return self.send(Work::Pages(epoch, chunk));
        }
        *filling = Some(chunk);
        Ok(())
    }

    fn send(&self, work: Work) -> Result<(), CaptureError> {
        self.work.send(work).map_err(|_| CaptureError::SessionEnded)
    }
}

impl Watched {
    fn new(len: u64, tracker: Box<dyn DirtyTracker>) -> Self {
        let set = PageSet::for_bytes(len);
        Self {
            tracker,
            pending: set.clone(),
            current: set.clone(),
            ahead: set.clone(),
            restless: set.clone(),
            found: 0,
            fresh: set,
            // A pause asks for no memory: what is not written is not taken.
            spare: (0..SPARE_SETS).map(|_| PageSet::for_bytes(len)).collect(),
            copies: 0,
            scan: Duration::ZERO,
            scans: 0,
            copy: Duration::ZERO,
        }
    }

    fn give_up(&mut self) {
        for set in [&mut self.current, &mut self.ahead] {
            self.pending.union_with(set);
            set.clear();
        }
        self.found = 0;
        self.restart_clocks();
    }

    /// Looks which of the pages that were copied ahead were written again: says how many were not.
    ///
    /// Costs 2 us a GiB for each of four steps over the sets (`cargo bench -p holdfast-checkpoint -- set`).
    fn settle(&mut self) -> u64 {
        if self.ahead.is_empty() && self.restless.is_empty() {
            return 0;
        }
        self.restless.union_with(&self.ahead);
        self.restless.intersect_with(&self.current);
        self.fresh.copy_from(&self.ahead);
        self.fresh.subtract(&self.current);
        self.fresh.len()
    }

    fn finish(&mut self) -> Captured {
        let empty = self.spare.pop().unwrap_or_else(|| PageSet::with_capacity(self.current.capacity()));
        let ahead = self.ahead.len();
        self.current.union_with(&self.ahead);
        self.ahead.clear();
        self.found = 0;
        let captured = Captured {
            set: std::mem::replace(&mut self.current, empty),
            copies: self.copies,
            ahead,
            scan: self.scan,
            scans: self.scans,
            copy: self.copy,
        };
        self.restart_clocks();
        captured
    }

    fn recycle(&mut self, mut set: PageSet) {
        if self.spare.len() < SPARE_SETS && set.capacity() == self.current.capacity() {
            set.clear();
            self.spare.push(set);
        }
    }

    fn restart_clocks(&mut self) {
        (self.copies, self.scan, self.scans, self.copy) = (0, Duration::ZERO, 0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primary::LEAST_OF_EPOCH;
    use std::time::Duration;

    struct NoGuest;

    impl GuestMemorySource for NoGuest {
        fn facts(&mut self) -> Result<MemoryFacts, MemoryError> {
            unreachable!("nobody asks")
        }

        fn read(&mut self, _: PageIndex, _: &mut [u8]) -> Result<(), MemoryError> {
            unreachable!("there is nothing to read")
        }

        fn drain_dirty(&mut self, _: &mut PageSet) {}
    }

    /// A pass is a scan of all memory: one that began in a pause would make it longer by that.
    #[test]
    fn no_pass_ahead_begins_once_the_guest_is_to_stand_still() {
        let now = Instant::now();
        let mut worker = Worker::new(Box::new(NoGuest), Arc::default(), Arc::default());
        worker.ahead.sealed(now, Passed { pages: LEAST_OF_EPOCH, found: 0, settled: 0 });
        worker.obey(Order::Ahead(EpochId::FIRST, now + Duration::from_secs(1)));
        assert!(worker.ahead.due().is_some());
        worker.obey(Order::Halt);
        assert_eq!(worker.ahead.due(), None);
    }
}
