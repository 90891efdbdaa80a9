//! The thread that sends epochs and takes their confirmations.
//!
//! It owns the epochs in flight. A confirmation that matches the oldest of them in term, number and
//! digest gives the token that opens the gate (OC-1); any other ends the session. When the session
//! ends, the page sets of all epochs that were not confirmed come back in the ending (CK-2).
//!
//! It reduces pages, and keeps for that what it sent in this session: nothing of it outlives the thread, so that no
//! epoch that was given up is referred to (CK-1).
//!
//! It also carries the gate's stream across, each chunk ahead of the seal of its epoch (SP-2). It waits for
//! room in the link with it as it does with pages, and nobody waits for it but the capture thread for its
//! chunks: a gate that finds its stream full goes on, and acknowledges nothing more.

use crate::delta;
use crate::digest::{EpochHasher, PageHasher};
use crate::gate::{GateError, GateState};
use crate::pages::{PAGE_SIZE, PageSet};
use crate::primary::stream::Feed;
use crate::primary::{CHUNK_PAGES, Chunk, SharedGate, Stats, Work};
use crate::protocol::{
    FRAME_HEAD, Message, PageBatchWriter, Payload, Refusal, STREAM_LIMIT, Seal, StateKind, begin_pages,
    begin_stream, encode, end_frame,
};
use crate::reduction::{Price, Reducer, Reduction, ReductionFigures, is_zero};
use crate::transport::{Link, LinkEvent};
use crate::vm::Fault;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select, unbounded};
use holdfast_epoch::{Confirmation, ConfirmationError, Epoch, EpochId, InFlight, Sealed, StreamChunk, Term};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that a frame of a chunk has at most, with its heads.
const CHUNK_FRAME: usize = CHUNK_PAGES * (PAGE_SIZE + 8) + 64;

/// Bytes of a state in one message.
const STATE_PIECE: usize = 1 << 20;

/// An epoch as the supervisor hands it over.
pub(crate) type SealedEpoch = Epoch<Sealed<Contents>>;

/// What a sealed epoch carries beside the pages that were already handed over.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) set: PageSet,
    pub(crate) devices: Vec<u8>,
    pub(crate) gate: GateState,
    pub(crate) sealed_at: Instant,
}

/// What is kept of an epoch in flight.
struct Kept {
    set: PageSet,
    sealed_at: Instant,
}

/// What the supervisor is told.
#[derive(Debug)]
pub(crate) enum Report {
    /// The backup holds the epoch, and its output was released.
    Committed { epoch: EpochId, set: PageSet },
    /// The primary may transmit until then.
    Lease { until: Instant, round_trip: Duration },
    /// The backup's operator wants the machine.
    Summoned { term: Term },
    /// The session has ended; nothing follows.
    Ended(Box<Ending>),
}

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) fault: Fault,
    pub(crate) text: String,
    /// What the backup said, if it refused.
    pub(crate) refusal: Option<Refusal>,
    /// Whether the backup ended the session in so many words.
    pub(crate) parted: bool,
    /// Page sets of the epochs that were not confirmed.
    pub(crate) unconfirmed: Vec<PageSet>,
    /// What was not looked at any more: seals in it are not confirmed either.
    pub(crate) work: Receiver<Work>,
}

impl Ending {
    /// The page sets of all epochs that have to be carried again (CK-2).
    pub(crate) fn into_sets(self) -> impl Iterator<Item = PageSet> {
        let left = self.work.try_iter().collect::<Vec<_>>().into_iter().filter_map(|work| match work {
            Work::Seal(epoch) => Some(epoch.abort().set),
            Work::Pages(..) => None,
        });
        self.unconfirmed.into_iter().chain(left)
    }
}

/// The supervisor's ends of a session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: Arc<Link>,
    /// Where seals go, and the capture thread's chunks.
    pub(crate) work: Sender<Work>,
    /// Chunks that were sent.
    pub(crate) free: Receiver<Chunk>,
    pub(crate) reports: Receiver<Report>,
    /// Until when the backup has given time, for who cannot look at the reports now.
    lease: Arc<Mutex<Instant>>,
}

impl Session {
    /// Until when the backup has given time; when the session began, at first.
    #[expect(clippy::disallowed_methods, reason = "of the supervisor")]
    pub(crate) fn lease_until(&self) -> Instant {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a session is set up.
pub(crate) struct SessionSettings {
    pub(crate) in_flight: usize,
    /// Chunks that may exist at a time.
    pub(crate) chunks: usize,
    /// Whether a full synchronisation comes first.
    pub(crate) full: bool,
    /// The epoch that is sealed first; its gate state is whole.
    pub(crate) first: EpochId,
    pub(crate) reduction: Reduction,
    /// Bytes of sent pages that may be kept.
    pub(crate) cache_bytes: u64,
    /// Whether that is room for every page of the guest.
    pub(crate) keeps_all: bool,
}

/// Starts the replication thread of a session that was welcomed and begun.
pub(crate) fn begin(
    link: Arc<Link>,
    gate: SharedGate,
    stats: Arc<Mutex<Stats>>,
    settings: &SessionSettings,
) -> std::io::Result<Session> {
    // Room for all there can be: who sends work never waits here, only for a free chunk.
    let (work, taken) = bounded(settings.chunks + settings.in_flight + 8);
    let (free, freed) = bounded(settings.chunks);
    let (reports, reported) = unbounded();
    let lease = Arc::new(Mutex::new(Instant::now()));
    let feed = Feed::new(gate.lock().stream(), settings.first);
    let replicator = Replicator {
        link: Arc::clone(&link),
        work: taken,
        free,
        reports,
        lease: Arc::clone(&lease),
        gate,
        feed,
        stats,
        in_flight: InFlight::new(settings.in_flight),
        reducer: Reducer::new(&settings.reduction, settings.cache_bytes),
        keeps_all: settings.keeps_all,
        price: Price::default(),
        waited: Duration::ZERO,
        hasher: EpochHasher::default(),
        base: settings.full.then(PageHasher::default),
        devices: Vec::new(),
    };
    thread::Builder::new().name("hf-replicate".to_owned()).spawn(move || replicator.run())?;
    Ok(Session { link, work, free: freed, reports: reported, lease })
}

struct Replicator {
    link: Arc<Link>,
    work: Receiver<Work>,
    free: Sender<Chunk>,
    reports: Sender<Report>,
    lease: Arc<Mutex<Instant>>,
    gate: SharedGate,
    feed: Feed,
    stats: Arc<Mutex<Stats>>,
    in_flight: InFlight<Kept>,
    reducer: Reducer,
    /// Whether copies of a full synchronisation last.
    keeps_all: bool,
    price: Price,
    /// For room in the link, since the last pages were sent.
    waited: Duration,
    hasher: EpochHasher,
    /// Until the first seal of a full synchronisation.
    base: Option<PageHasher>,
    /// State of the devices in the epoch that was sent last; none in the session's first.
    devices: Vec<u8>,
}

/// Why the thread ends.
enum Stop {
    LinkEnded,
    /// The supervisor let go of the session.
    Abandoned,
    Refused(Refusal),
    Goodbye(String),
    Confirmation(ConfirmationError),
    Unexpected(&'static str),
    Gate(GateError),
}

impl From<ConfirmationError> for Stop {
    fn from(fault: ConfirmationError) -> Self {
        Self::Confirmation(fault)
    }
}

impl From<GateError> for Stop {
    fn from(fault: GateError) -> Self {
        Self::Gate(fault)
    }
}

impl Replicator {
    fn run(mut self) {
        let stop = loop {
            if let Err(stop) = self.turn() {
                break stop;
            }
        };
        self.end(stop);
    }

    fn turn(&mut self) -> Result<(), Stop> {
        select! {
            recv(self.link.events()) -> event => self.heed(event.map_err(|_| Stop::LinkEnded)?),
            recv(self.work) -> work => match work.map_err(|_| Stop::Abandoned)? {
                Work::Pages(epoch, chunk) => self.send_pages(epoch, chunk),
                Work::Seal(epoch) => self.send_seal(*epoch),
            },
            recv(self.feed.chunks()) -> chunk => {
                let chunk = chunk.map_err(|_| GateError::Gone)?;
                self.feed.sort(chunk)?.map_or(Ok(()), |chunk| self.send_chunk(chunk))
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "of a heartbeat")]
    fn heed(&mut self, event: LinkEvent) -> Result<(), Stop> {
        match event {
            LinkEvent::Lease { until, round_trip } => {
                self.gate.lock().extend_lease(until);
                *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = until;
                self.report(Report::Lease { until, round_trip });
                Ok(())
            }
            LinkEvent::Message { message: Message::Committed { epoch, term, digest }, .. } => {
                self.confirmed(&Confirmation { term, epoch, digest })
            }
            LinkEvent::Message { message: Message::Refuse(refusal), .. } => Err(Stop::Refused(refusal)),
            LinkEvent::Message { message: Message::Goodbye { reason }, .. } => Err(Stop::Goodbye(reason)),
            LinkEvent::Message { message: Message::Summon { term }, .. } => {
                self.report(Report::Summoned { term });
                Ok(())
            }
            LinkEvent::Message { message, .. } => Err(Stop::Unexpected(message.name())),
        }
    }

    /// OC-1: this is the only place where a token comes into being, and only from the backup's word.
    fn confirmed(&mut self, word: &Confirmation) -> Result<(), Stop> {
        let (token, kept) = self.in_flight.confirm(word)?;
        self.gate.lock().release(token)?;
        self.stats().committed(word.epoch, kept.sealed_at.elapsed());
        self.report(Report::Committed { epoch: word.epoch, set: kept.set });
        Ok(())
    }

    /// Reduces, hashes and frames a chunk: 1 us a page of a synchronisation, a third of them zeros (`holdfast bench pages
    /// --workloads sync`).
    fn send_pages(&mut self, epoch: Option<EpochId>, chunk: Chunk) -> Result<(), Stop> {
        let mut frame = self.link.buffer();
        // At once what it can come to: growing would copy it, and take twice as much.
        frame.reserve(CHUNK_FRAME);
        begin_pages(epoch, &mut frame);
        let started = Instant::now();
        self.reducer.set_sparing(epoch.is_none() && !self.keeps_all);
        let mut figures = self.reduce(&chunk, &mut frame);
        let reduced = Instant::now();
        self.hash(epoch, &chunk);
        (figures.reduce_ns, figures.hash_ns) = (nanos(reduced - started), nanos(reduced.elapsed()));
        figures.send_wait_ns = nanos(std::mem::take(&mut self.waited));
        end_frame(&mut frame);
        self.stats().sent_pages(chunk.pages.len(), frame.len(), &figures);
        // A chunk that finds no room is simply freed.
        drop(self.free.try_send(chunk));
        self.send_bulk(frame)
    }

    /// Its cost is that of [`Reducer::reduce`] and of [`PageBatchWriter::add`].
    fn reduce(&mut self, chunk: &Chunk, frame: &mut Vec<u8>) -> ReductionFigures {
        let mut figures = ReductionFigures::default();
        self.reducer.set_price(self.price.ns_per_byte());
        let mut records = PageBatchWriter::new(frame);
        for (page, bytes) in chunk.iter() {
            let reduced = self.reducer.reduce(page, bytes);
            figures.count(reduced.way(), records.add(page, reduced));
        }
        figures.kept_bytes = self.reducer.kept_bytes();
        figures
    }

    /// CK-1: whatever of a page is sent, the backup answers for all of it.
    ///
    /// Costs 540 ns a page (`cargo bench -p holdfast-checkpoint -- digest`).
    fn hash(&mut self, epoch: Option<EpochId>, chunk: &Chunk) {
        let hasher = match (epoch, &mut self.base) {
            (None, Some(base)) => base,
            _ => &mut self.hasher.pages,
        };
        // Pages with bytes that stand side by side are hashed together.
        let mut run = 0..0;
        for (at, (page, bytes)) in chunk.iter().enumerate() {
            let from = at * PAGE_SIZE;
            let zero = is_zero(bytes);
            hasher.add_index(page, zero);
            if zero {
                continue;
            }
            if run.end != from {
                hasher.add_bytes(&chunk.bytes[run]);
                run = from..from;
            }
            run.end = from + PAGE_SIZE;
        }
        hasher.add_bytes(&chunk.bytes[run]);
    }

    fn send_seal(&mut self, epoch: SealedEpoch) -> Result<(), Stop> {
        let (id, term) = (epoch.id(), epoch.term());
        let self_contained = epoch.captured().gate.self_contained;
        let sent = self.send_rest_of_stream().and_then(|()| self.send_states(&epoch));
        let pages = self.hasher.pages.pages();
        let base = self.base.take().map(|mut base| base.take());
        let digest = self.hasher.take(term, id, base, self_contained);
        // In flight before a byte of the seal leaves: from here on an end of the session gives the set
        // back, whatever the backup came to see of it.
        let devices = &mut self.devices;
        self.in_flight.push(epoch.replicated(digest, |contents| {
            *devices = contents.devices;
            Kept { set: contents.set, sealed_at: contents.sealed_at }
        }));
        sent?;
        self.send_bulk(encode(&Message::Seal(Seal { epoch: id, term, pages, self_contained, digest })))?;
        self.stats().sent_whole(id);
        self.feed.sealed().map_or(Ok(()), |chunk| self.send_chunk(chunk))
    }

    /// SP-2: what was acknowledged to the guest in the epoch leaves before its seal.
    fn send_rest_of_stream(&mut self) -> Result<(), Stop> {
        while let Some(chunk) = self.feed.rest()? {
            self.send_chunk(chunk)?;
        }
        Ok(())
    }

    /// Costs what [`PageHasher::add_bytes`] does, and a copy.
    fn send_chunk(&mut self, chunk: StreamChunk) -> Result<(), Stop> {
        let StreamChunk { epoch, bytes } = chunk;
        let sent = bytes.chunks(STREAM_LIMIT).try_for_each(|piece| {
            let mut frame = self.link.buffer();
            begin_stream(epoch, &mut frame);
            frame.extend_from_slice(piece);
            end_frame(&mut frame);
            self.hasher.add_stream(piece);
            self.stats().streamed(piece.len());
            self.send_bulk(frame)
        });
        self.feed.give_back(bytes);
        sent
    }

    /// Costs what [`delta::between`] does, and the digest of all: 60 us for 366 KiB (`cargo bench -p
    /// holdfast-checkpoint -- devices digest`).
    fn send_states(&mut self, epoch: &SealedEpoch) -> Result<(), Stop> {
        let (id, contents) = (epoch.id(), epoch.captured());
        let (devices, gate) = (&contents.devices, &contents.gate.bytes);
        // Whatever of it is sent, the backup answers for all of it (CK-1).
        self.hasher.add_state(StateKind::Devices, devices);
        self.hasher.add_state(StateKind::Gate, gate);
        match delta::between(&self.devices, devices) {
            Some(change) => {
                self.stats().sent(devices.len() - change.len(), 0);
                // One piece at least says that there is a change, be it of nothing.
                let none = change.is_empty().then_some(&[][..]);
                for piece in change.chunks(STATE_PIECE).chain(none) {
                    self.send_part(piece, |bytes| Message::DeviceChange(id, bytes))?;
                }
            }
            None => self.send_state(id, StateKind::Devices, devices)?,
        }
        self.send_state(id, StateKind::Gate, gate)
    }

    fn send_state(&mut self, id: EpochId, kind: StateKind, bytes: &[u8]) -> Result<(), Stop> {
        let mut pieces = bytes.chunks(STATE_PIECE);
        pieces.try_for_each(|piece| self.send_part(piece, |bytes| Message::StatePart(id, kind, bytes)))
    }

    fn send_part(&mut self, piece: &[u8], message: impl Fn(Payload) -> Message) -> Result<(), Stop> {
        let frame = encode(&message(piece.to_vec().into()));
        self.stats().sent(piece.len(), frame.len() + FRAME_HEAD);
        self.send_bulk(frame)
    }

    /// Waits for room in the link's queue; what the peer says meanwhile is heeded.
    fn send_bulk(&mut self, frame: Vec<u8>) -> Result<(), Stop> {
        let bytes = frame.len();
        let mut frame = match self.link.try_send_bulk(frame) {
            Ok(()) => {
                self.price.sent(bytes, Duration::ZERO);
                return Ok(());
            }
            Err(TrySendError::Disconnected(_)) => return Err(Stop::LinkEnded),
            Err(TrySendError::Full(frame)) => Some(frame),
        };
        let link = Arc::clone(&self.link);
        let started = Instant::now();
        while let Some(waiting) = frame.take() {
            // A select takes the frame whether it sends it or not; so room is awaited with an event.
            select! {
                recv(link.events()) -> event => {
                    frame = Some(waiting);
                    self.heed(event.map_err(|_| Stop::LinkEnded)?)?;
                }
                send(link.bulk(), waiting) -> sent => {
                    sent.map_err(|_| Stop::LinkEnded)?;
                    link.ring();
                }
            }
        }
        let waited = started.elapsed();
        self.waited += waited;
        self.price.sent(bytes, waited);
        Ok(())
    }

    fn end(mut self, stop: Stop) {
        let parted = matches!(stop, Stop::Refused(_) | Stop::Goodbye(_));
        let (fault, text, refusal) = match stop {
            Stop::LinkEnded => {
                let end = self.link.end();
                (end.fault, end.text, None)
            }
            Stop::Abandoned => (Fault::Host, "the session was ended by this host".to_owned(), None),
            Stop::Refused(refusal) => (Fault::Peer, format!("the backup refuses: {refusal}"), Some(refusal)),
            Stop::Goodbye(reason) => (Fault::Peer, reason, None),
            Stop::Confirmation(fault) => (Fault::Peer, fault.to_string(), None),
            Stop::Unexpected(name) => (Fault::Peer, format!("the backup sent {name} out of turn"), None),
            Stop::Gate(fault) => (Fault::Host, fault.to_string(), None),
        };
        self.link.close();
        let unconfirmed: Vec<_> = self.in_flight.abort_all().map(|kept| kept.set).collect();
        self.stats().let_go();
        let Self { work, free, reports, feed, reducer, .. } = self;
        drop(reducer);
        // The capture thread may wait for a chunk: it learns that none will come.
        drop(free);
        // Once the end is known another session may take from the stream.
        drop(feed);
        let ending = Ending { fault, text, refusal, parted, unconfirmed, work };
        drop(reports.send(Report::Ended(Box::new(ending))));
    }

    fn report(&self, report: Report) {
        // A supervisor that let go of the session does not miss it.
        drop(self.reports.send(report));
    }

    /// Taken once for a chunk of pages or of the stream, for some sums; others look at them now and then.
    #[expect(clippy::disallowed_methods, reason = "of a chunk, not of a page")]
    fn stats(&self) -> std::sync::MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
