//! The pipeline without a guest: pages written by a test, a real link, and a backup that gathers them.

mod ahead;
mod allocations;
mod huge;
mod reduction;
mod stream;

use super::*;
use crate::backup::{BackupSession, CommitLog, Outcome};
use crate::gate::spoken::{Speaker, Spoken};
use crate::gate::{CutReport, GateError, GateState, GuestMemorySource, MemoryError, MemoryFacts, PortLimits};
use crate::image::{Image, ImageConfig};
use crate::keys::{Identity, make_pair};
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use crate::protocol::{Begin, DeviceDigest, Hello, Message, PROTOCOL_VERSION};
use crate::reduction::Reduction;
use crate::tracker::{DirtyTracker, FileIdentity, ScanStats, TrackError};
use crate::transport::{Incoming, Link, LinkEvent, Listener, Security, TcpTransport, Transport, WINDOW};
use crossbeam_channel::{Receiver, TrySendError, unbounded};
use holdfast_epoch::{Digest, Epoch, ReleaseToken, Term};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PAGES: u64 = 600;
const CHUNKS: usize = 4;
const TERM: Term = Term::new(3);
const SOON: Duration = Duration::from_secs(20);

/// Memory that the test writes, and who is told of it.
#[derive(Clone)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// As QEMU's writes are found.
    tracked: Arc<Mutex<PageSet>>,
    /// As Holdfast's own writes are found.
    own: Arc<Mutex<PageSet>>,
    /// Whether the next scan fails, after it has found what it finds.
    blind: Arc<AtomicBool>,
    /// Nobody has ever written to the pages from this one on.
    blank_from: Arc<AtomicU64>,
}

impl Memory {
    fn new(pages: u64) -> Self {
        let set = || Arc::new(Mutex::new(PageSet::with_capacity(pages)));
        let len = usize::try_from(pages).expect("small") * PAGE_SIZE;
        let bytes = Arc::new(Mutex::new(vec![0; len]));
        let blank_from = Arc::new(AtomicU64::new(u64::MAX));
        Self { bytes, tracked: set(), own: set(), blind: Arc::default(), blank_from }
    }

    fn put(&self, page: u64, fill: u8) {
        let from = usize::try_from(page).expect("small") * PAGE_SIZE;
        self.bytes.lock().unwrap()[from..from + PAGE_SIZE].fill(fill);
    }

    fn write(&self, page: u64, fill: u8) {
        self.put(page, fill);
        self.tracked.lock().unwrap().insert(PageIndex(page));
    }

    fn write_by_ring(&self, page: u64, fill: u8) {
        self.put(page, fill);
        self.own.lock().unwrap().insert(PageIndex(page));
    }

    fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.bytes.lock().unwrap()).as_bytes())
    }

    fn facts(&self) -> MemoryFacts {
        let len = self.bytes.lock().unwrap().len() as u64;
        MemoryFacts { identity: FileIdentity { dev: 0, ino: 0 }, len, page_size: PAGE_SIZE as u64 }
    }
}

impl GuestMemorySource for Memory {
    fn facts(&mut self) -> Result<MemoryFacts, MemoryError> {
        Ok(Self::facts(self))
    }

    fn read(&mut self, first: PageIndex, out: &mut [u8]) -> Result<(), MemoryError> {
        let from = usize::try_from(first.offset()).expect("small");
        let end = first.0 + (out.len() / PAGE_SIZE) as u64;
        assert!(end <= self.blank_from.load(Ordering::Relaxed), "to read it would be to allocate it");
        out.copy_from_slice(&self.bytes.lock().unwrap()[from..from + out.len()]);
        Ok(())
    }

    fn content_from(&mut self, from: PageIndex) -> Range<u64> {
        match self.blank_from.load(Ordering::Relaxed) {
            blank if from.0 < blank => from.0..blank,
            _ => u64::MAX..u64::MAX,
        }
    }

    fn drain_dirty(&mut self, into: &mut PageSet) {
        let mut own = self.own.lock().unwrap();
        into.union_with(&own);
        own.clear();
    }
}

impl DirtyTracker for Memory {
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        let mut tracked = self.tracked.lock().unwrap();
        into.union_with(&tracked);
        tracked.clear();
        if self.blind.swap(false, Ordering::Relaxed) {
            let source = std::io::ErrorKind::InvalidData.into();
            return Err(TrackError::Kernel { pid: 1, what: "scan its page map", source });
        }
        Ok(ScanStats::default())
    }
}

/// What the gates of a test do.
#[derive(Clone)]
struct Told {
    released: Arc<Mutex<Vec<u64>>>,
    /// The primary's stream.
    speaker: Arc<Mutex<Speaker>>,
    /// What the backup keeps.
    kept: Arc<Mutex<Spoken>>,
    stats: Arc<Mutex<Stats>>,
}

impl Told {
    fn new() -> Self {
        let speaker = Arc::new(Mutex::new(Speaker::new(8)));
        let stats = Arc::new(Mutex::new(Stats::new()));
        Self { released: Arc::default(), speaker, kept: Arc::default(), stats }
    }

    fn gate(&self) -> SharedGate {
        SharedGate::new(Box::new(self.clone()))
    }
}

/// Notes the epochs that it releases.
impl OutputGate for Told {
    fn cut(&mut self, _epoch: EpochId, whole: bool) -> Result<CutReport, GateError> {
        let state = self.speaker.lock().unwrap().spoken.state(whole);
        Ok(CutReport { frames: 0, bytes: 0, state })
    }
    fn limits(&self) -> Vec<PortLimits> {
        Vec::new()
    }
    fn stream(&self) -> Option<Stream> {
        Some(self.speaker.lock().unwrap().stream.clone())
    }
    fn release(&mut self, token: ReleaseToken) -> Result<(), GateError> {
        self.released.lock().unwrap().push(token.epoch().get());
        Ok(())
    }
    fn protect(&mut self, _first: EpochId) -> Result<(), GateError> {
        Ok(())
    }
    fn open(&mut self) -> Result<(), GateError> {
        Ok(())
    }
    fn fence(&mut self) {}
    fn admit(&mut self, _term: Term) -> Result<(), GateError> {
        Ok(())
    }
    fn extend_lease(&mut self, _until: Instant) {}
    fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError> {
        self.kept.lock().unwrap().keep(state, stream)
    }
    fn restore(&mut self) -> Result<(), GateError> {
        Ok(())
    }
    fn announce(&mut self) {}
}

/// The other host: takes what comes, applies it and confirms.
struct Backup {
    link: Link,
    image: Image,
    log: CommitLog,
    session: BackupSession,
    gate: SharedGate,
}

impl Backup {
    /// Takes messages until so many epochs more are applied.
    fn gather(&mut self, epochs: usize) {
        let mut left = epochs;
        while left > 0 {
            left -= usize::from(self.take().0 == "Seal");
        }
    }

    /// Takes one message; says which it was and what was staged with it.
    fn take(&mut self) -> (&'static str, Option<EpochId>) {
        let Ok(LinkEvent::Message { message, charge }) = self.link.events().recv_timeout(SOON) else {
            panic!("the link ended: {:?}", self.link.end())
        };
        let taken = match &message {
            Message::Stream(epoch, _) | Message::Pages(epoch, _) => (message.name(), Some(*epoch)),
            Message::Seal(seal) => (message.name(), Some(seal.epoch)),
            _ => (message.name(), None),
        };
        let Self { session, image, log, gate, .. } = self;
        let outcome = session.handle(message, image, log, gate).expect("taken");
        self.link.grant(charge);
        if let Outcome::Committed(answer, _) = outcome {
            self.link.send(&answer);
        }
        taken
    }
}

fn staging(chunks: usize) -> Staging {
    Staging::map(chunks).expect("memory")
}

/// Begins a session on the primary.
fn session(link: Link, capture: &Capture, told: &Told, settings: &SessionSettings) -> Session {
    link.send(&Message::Begin(Begin { full: settings.full, term: TERM, first: settings.first }));
    let stats = Arc::clone(&told.stats);
    let session = begin(Arc::new(link), told.gate(), stats, settings).expect("a thread");
    capture.open(session.work.clone(), session.free.clone(), staging(settings.chunks));
    session
}

struct Bench {
    memory: Memory,
    capture: Capture,
    session: Session,
    backup: Backup,
    told: Told,
    open: Option<Epoch<holdfast_epoch::Open>>,
    /// The session's first epoch.
    first: EpochId,
    /// Of the last capture: its pages, those copied ahead, copies made in the pause.
    captured: [u64; 3],
    /// State of the devices in it.
    devices: Vec<u8>,
    reduction: Reduction,
    ways: Ways,
    _dir: TempDir,
}

/// A guest's memory, and where its copy is.
struct Guest {
    facts: MemoryFacts,
    source: Box<dyn GuestMemorySource>,
    tracker: Box<dyn DirtyTracker>,
    image: PathBuf,
}

/// How the hosts meet.
struct Ways {
    transport: TcpTransport,
    incoming: Receiver<Incoming>,
    _listener: Listener,
}

impl Ways {
    fn new(dir: &std::path::Path, tls: bool) -> Self {
        let (a, b) = (dir.join("a"), dir.join("b"));
        make_pair(&a, &b).expect("keys");
        let side = |keys| match tls {
            true => Security::Tls(Identity::load(keys).expect("keys load")),
            false => Security::LaboratoryPlaintext,
        };
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), side(&b)).expect("a port");
        let incoming = listener.route("vm");
        let transport = TcpTransport::new(listener.address(), side(&a));
        Self { transport, incoming, _listener: listener }
    }

    /// Both ends of a link whose session was welcomed.
    fn meet(&self, memory: u64, window: u64) -> (Link, Link) {
        let link = self.transport.dial(SOON).expect("dialled");
        link.send(&Message::Hello(Hello {
            version: PROTOCOL_VERSION,
            vm: "vm".into(),
            host: "a".into(),
            term: TERM,
            memory,
            page_size: PAGE_SIZE as u32,
            session: 1,
            lease_ms: 1000,
            devices: DeviceDigest::default(),
            ports: Vec::new(),
        }));
        let backup = self.incoming.recv_timeout(SOON).expect("a session").link;
        backup.allow(window);
        // As a Welcome would say that it is allowed by now.
        backup.send(&Message::Summon { term: TERM });
        assert!(link.events().recv_timeout(SOON).is_ok());
        link.set_window(window);
        (link, backup)
    }
}

impl Bench {
    /// A session that begins with a full synchronisation of `pages` pages, with TLS or in the clear.
    fn begin(pages: u64, tls: bool) -> Self {
        Self::with_chunks(pages, tls, CHUNKS)
    }

    /// The same, with so many chunks for pages on their way.
    fn with_chunks(pages: u64, tls: bool, chunks: usize) -> Self {
        Self::with_reduction(pages, tls, chunks, Reduction::default())
    }

    /// The same, with pages reduced so.
    fn with_reduction(pages: u64, tls: bool, chunks: usize, reduction: Reduction) -> Self {
        let memory = Memory::new(pages);
        let (source, tracker) = (Box::new(memory.clone()), Box::new(memory.clone()));
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let image = dir.path().join("image");
        let guest = Guest { facts: memory.facts(), source, tracker, image };
        Self::of(guest, memory, dir, tls, chunks, reduction)
    }

    /// The same of that guest; `memory` is what the test has of it.
    fn of(
        guest: Guest,
        memory: Memory,
        dir: TempDir,
        tls: bool,
        chunks: usize,
        reduction: Reduction,
    ) -> Self {
        let MemoryFacts { len, page_size, .. } = guest.facts;
        let (told, first) = (Told::new(), EpochId::FIRST);
        let capture = Capture::start(guest.source).expect("a thread");
        capture.attach(guest.facts, guest.tracker);
        let image = Image::create(ImageConfig {
            vm: "vm".into(),
            memory: guest.image,
            record: dir.path().join("record"),
            len,
        })
        .expect("room");
        let log = CommitLog::open(&dir.path().join("commits")).expect("a log");
        let ways = Ways::new(dir.path(), tls);
        let (link, backup) = ways.meet(len, WINDOW);
        let cache_bytes = reduction.cache_bytes(len, page_size);
        let settings = SessionSettings {
            keeps_all: cache_bytes >= len,
            in_flight: 3,
            chunks,
            full: true,
            first,
            reduction: reduction.clone(),
            cache_bytes,
        };
        let session = session(link, &capture, &told, &settings);
        let gathered = BackupSession::new(TERM, 2 * len);
        let backup = Backup { link: backup, image, log, session: gathered, gate: told.gate() };
        let open = Some(Epoch::open(TERM, first));
        Self {
            memory,
            capture,
            session,
            backup,
            told,
            open,
            first,
            captured: [0; 3],
            devices: Vec::new(),
            reduction,
            ways,
            _dir: dir,
        }
    }

    /// Another session, which goes on with the image that is held and seals epoch `first` next.
    fn go_on(&mut self, first: u64, window: u64) {
        self.first = EpochId::new(first);
        let len = self.backup.image.len();
        let link;
        (link, self.backup.link) = self.ways.meet(len, window);
        self.backup.session = BackupSession::new(TERM, 2 * len);
        let settings = SessionSettings {
            keeps_all: false,
            in_flight: 3,
            chunks: CHUNKS,
            full: false,
            first: self.first,
            reduction: self.reduction.clone(),
            cache_bytes: self.reduction.cache_bytes(len, PAGE_SIZE as u64),
        };
        self.session = session(link, &self.capture, &self.told, &settings);
        self.open = Some(Epoch::open(TERM, self.first));
    }

    fn round(&self, whole: bool) -> Receiver<RoundEnd> {
        self.capture.round(Round { whole, ahead_of: None })
    }

    /// Captures and seals the open epoch; `meanwhile` happens between the two scans.
    fn seal(&mut self, meanwhile: impl FnOnce(&Memory)) -> Digest {
        let sealed = self.cut(meanwhile);
        self.session.work.send(Work::Seal(Box::new(sealed))).expect("the session stands");
        self.memory.digest()
    }

    /// The open epoch, sealed and not handed over yet.
    fn cut(&mut self, meanwhile: impl FnOnce(&Memory)) -> SealedEpoch {
        let epoch = self.open.take().expect("one is open");
        self.capture.first(epoch.id()).recv().expect("an answer").expect("captured");
        meanwhile(&self.memory);
        let captured = self.capture.last(epoch.id()).recv().expect("an answer").expect("captured");
        self.captured = [captured.set.len(), captured.ahead, captured.copies];
        let gate = self.told.clone().cut(epoch.id(), epoch.id() == self.first).expect("a state").state;
        let mut devices = vec![7; 3 << 20];
        devices[997 * usize::try_from(epoch.id().get()).expect("small")] = 8;
        self.devices.clone_from(&devices);
        let sealed_at = Instant::now();
        let contents = Contents { set: captured.set, devices, gate, sealed_at };
        let (sealed, next) = epoch.seal(contents);
        self.open = Some(next);
        sealed
    }

    fn report(&self) -> Report {
        loop {
            match self.session.reports.recv_timeout(SOON).expect("a report") {
                Report::Lease { .. } => {}
                report => return report,
            }
        }
    }

    fn committed(&self) -> u64 {
        match self.report() {
            Report::Committed { epoch, .. } => epoch.get(),
            other => panic!("a commit was due, not {other:?}"),
        }
    }

    /// An epoch with so many pages that in the next ones some are copied ahead.
    fn write_much(&mut self, epoch: u64) {
        (0..LEAST_OF_EPOCH).for_each(|page| self.memory.write(page, 2));
        self.seal(|_| {});
        self.backup.gather(1);
        assert_eq!(self.committed(), epoch);
    }

    /// Synchronises all of the memory as epoch 1.
    fn synchronise(&mut self) {
        let round = self.round(true);
        let sealed = self.seal(|_| {});
        self.backup.gather(1);
        assert_eq!(self.committed(), 1);
        assert!(round.recv().expect("an answer").outcome.is_ok());
        assert_eq!(self.backup.image.digest(), sealed);
    }
}

/// CK-1, CK-2, OC-1: after each commit the image is the memory at the seal, whoever wrote it and when; the
/// gate is opened for an epoch once its commit is known, and not before.
#[test]
fn the_image_is_the_memory_of_each_seal() {
    let mut bench = Bench::begin(PAGES, true);
    for page in 0..PAGES / 2 {
        bench.memory.put(page, (page % 250) as u8);
    }
    bench.synchronise();
    for epoch in 2..20u8 {
        bench.memory.write(u64::from(epoch) * 3, epoch);
        bench.memory.write_by_ring(PAGES - u64::from(epoch), epoch);
        let sealed = bench.seal(|memory| {
            // As a device that is saved writes; one of these pages was copied already.
            memory.write(u64::from(epoch) * 3, epoch + 100);
            memory.write(PAGES / 2 + u64::from(epoch), epoch);
        });
        assert!(!bench.told.released.lock().unwrap().contains(&u64::from(epoch)), "not before its commit");
        bench.backup.gather(1);
        assert_eq!(bench.committed(), u64::from(epoch));
        assert_eq!(bench.told.released.lock().unwrap().last(), Some(&u64::from(epoch)));
        assert_eq!(bench.backup.image.digest(), sealed, "after epoch {epoch}");
        let devices = &bench.backup.image.last().expect("a checkpoint").device_state;
        assert!(*devices == bench.devices, "the state of the devices after epoch {epoch}");
    }
}

/// CK-1: pages to which nobody has written are in the image as zeros, and are not read.
#[test]
fn a_synchronisation_reads_no_page_that_was_never_written_to() {
    let mut bench = Bench::begin(PAGES, true);
    (0..PAGES / 3).for_each(|page| bench.memory.put(page, (page % 250) as u8));
    bench.memory.blank_from.store(PAGES / 3, Ordering::Relaxed);
    bench.synchronise();
    bench.memory.blank_from.store(u64::MAX, Ordering::Relaxed);
    bench.memory.write(PAGES - 1, 5);
    let sealed = bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.committed(), 2);
    assert_eq!(bench.backup.image.digest(), sealed);
}

/// CK-2: what epochs in flight, a half-captured epoch and the queue carried is handed back when the
/// session ends, and is in the next capture.
#[test]
fn nothing_that_was_not_confirmed_is_forgotten() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    bench.memory.write(1, 1);
    bench.seal(|_| {});
    bench.memory.write_by_ring(2, 2);
    bench.seal(|memory| memory.write(3, 3));
    bench.memory.write(4, 4);
    let half = bench.open.as_ref().expect("one is open").id();
    bench.capture.first(half).recv().expect("an answer").expect("captured");
    bench.backup.link.close();
    let Report::Ended(ending) = bench.report() else { panic!("the session ends") };
    bench.capture.give_up();
    for set in ending.into_sets() {
        bench.capture.take_back(set);
    }
    bench.memory.write(5, 5);
    // Another session takes what comes now.
    let (work, taken) = unbounded();
    let (_free, freed) = unbounded();
    bench.capture.open(work, freed, staging(4));
    bench.capture.first(half.next()).recv().expect("an answer").expect("captured");
    let captured = bench.capture.last(half.next()).recv().expect("an answer").expect("captured");
    assert_eq!(captured.set.iter().map(|page| page.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let copied: Vec<_> = taken
        .try_iter()
        .flat_map(|work| match work {
            Work::Pages(_, chunk) => chunk.iter().map(|(page, bytes)| (page.0, bytes[0])).collect(),
            Work::Seal(_) => Vec::new(),
        })
        .collect();
    assert_eq!(copied, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
}

/// CK-2: what a scan had found before it failed is pending again, whoever wrote it, be the guest running or halted.
#[test]
fn a_scan_that_fails_forgets_nothing() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    let epoch = bench.open.as_ref().expect("one is open").id();
    let failed = |outcome| assert!(matches!(outcome, Err(CaptureError::Track(_))), "{outcome:?}");
    let blind = || bench.memory.blind.store(true, Ordering::Relaxed);
    bench.memory.write(1, 1);
    bench.memory.write_by_ring(2, 2);
    blind();
    let round = bench.capture.round(Round { whole: false, ahead_of: Some(epoch) });
    failed(round.recv().expect("an answer").outcome);
    bench.memory.write(3, 3);
    blind();
    failed(bench.capture.first(epoch).recv().expect("an answer"));
    bench.capture.give_up();
    bench.memory.write(4, 4);
    bench.capture.first(epoch).recv().expect("an answer").expect("captured");
    bench.memory.write(5, 5);
    blind();
    let last = bench.capture.last(epoch).recv().expect("an answer");
    failed(last.map(|_| ()));
    bench.capture.give_up();
    let sealed = bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.committed(), epoch.get());
    assert_eq!(bench.backup.image.digest(), sealed);
}

/// CK-2: a seal that nobody had looked at when the session ended gives its pages back as well.
#[test]
fn a_seal_that_was_still_queued_is_handed_back() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    let stats = Arc::clone(&bench.told.stats);
    // The session's thread stands still with the first pages in its hand; what follows waits behind them.
    let still = stats.lock().unwrap();
    let queued = |bench: &Bench, works: usize| {
        let deadline = Instant::now() + SOON;
        while bench.session.work.len() != works {
            assert!(Instant::now() < deadline, "{} wait", bench.session.work.len());
            std::thread::yield_now();
        }
    };
    bench.memory.write(1, 1);
    bench.seal(|_| {});
    queued(&bench, 1);
    bench.memory.write(2, 2);
    bench.seal(|memory| memory.write(3, 3));
    queued(&bench, 3);
    bench.backup.link.close();
    let deadline = Instant::now() + SOON;
    while !matches!(bench.session.link.try_send_bulk(Vec::new()), Err(TrySendError::Disconnected(_))) {
        assert!(Instant::now() < deadline, "the link does not end");
        std::thread::yield_now();
    }
    drop(still);
    let Report::Ended(ending) = bench.report() else { panic!("the session ends") };
    assert!(ending.unconfirmed.is_empty(), "both were still queued");
    let pages = |set: PageSet| set.iter().map(|page| page.0).collect::<Vec<_>>();
    assert_eq!(ending.into_sets().map(pages).collect::<Vec<_>>(), [vec![1], vec![2, 3]]);
}

/// A round can be called off; its pages are pending again (CK-2).
#[test]
fn a_round_that_is_called_off_forgets_nothing() {
    // Nobody gathers: the round waits for a chunk and stays there.
    let bench = Bench::begin(12_000, false);
    blake3::Hasher::new().finalize_xof().fill(&mut bench.memory.bytes.lock().unwrap());
    let round = bench.round(true);
    assert!(round.recv_timeout(Duration::from_millis(50)).is_err(), "the window is full");
    bench.capture.call_off();
    bench.session.link.close();
    let end = round.recv_timeout(SOON).expect("an answer");
    assert!(end.outcome.is_err());
    let (work, _taken) = unbounded();
    let (_free, freed) = unbounded();
    bench.capture.open(work, freed, staging(200));
    let epoch = EpochId::new(9);
    bench.capture.first(epoch).recv().expect("an answer").expect("captured");
    assert_eq!(bench.capture.last(epoch).recv().expect("an answer").expect("captured").set.len(), 12_000);
}

/// A confirmation that does not match ends the session; nothing is released for it (OC-1).
#[test]
fn a_false_confirmation_releases_nothing() {
    let mut bench = Bench::begin(PAGES, false);
    bench.synchronise();
    bench.memory.write(1, 1);
    bench.seal(|_| {});
    let (epoch, term) = (EpochId::new(2), TERM);
    // The seal must have left first, or nothing is in flight yet; either way it is refused.
    bench.backup.link.send(&Message::Committed { epoch, term, digest: Digest([0; 32]) });
    let Report::Ended(ending) = bench.report() else { panic!("the session ends") };
    assert_eq!(ending.fault, crate::vm::Fault::Peer);
    assert_eq!(*bench.told.released.lock().unwrap(), [1]);
    assert_eq!(ending.into_sets().map(|set| set.len()).sum::<u64>(), 1, "its page comes back");
}

/// How fast pages get across, all stages together; the figures are printed.
#[test]
fn pages_get_across_at_speed() {
    for (tls, fill) in [(false, "noise"), (true, "noise"), (true, "text")] {
        let pages = 64 << 8;
        let mut bench = Bench::begin(pages, tls);
        let mut state = 1u64;
        for word in bench.memory.bytes.lock().unwrap().chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let value = if fill == "noise" { state } else { state >> 56 };
            word.copy_from_slice(&value.to_le_bytes());
        }
        let started = Instant::now();
        let round = bench.round(true);
        // The backup works beside us: the window is smaller than the memory.
        let Bench { backup, capture, session, memory, .. } = &mut bench;
        let sealed = std::thread::scope(|scope| {
            scope.spawn(|| backup.gather(1));
            let epoch = EpochId::FIRST;
            capture.first(epoch).recv().expect("an answer").expect("captured");
            let set = capture.last(epoch).recv().expect("an answer").expect("captured").set;
            let gate = GateState::whole(Vec::new());
            let (devices, sealed_at) = (Vec::new(), Instant::now());
            let (sealed, _) = Epoch::open(TERM, epoch).seal(Contents { set, devices, gate, sealed_at });
            session.work.send(Work::Seal(Box::new(sealed))).expect("the session stands");
            memory.digest()
        });
        let rate = 64.0 / started.elapsed().as_secs_f64();
        println!("tls {tls}, {fill}: {rate:.0} MiB/s captured, reduced, sent, verified, applied");
        assert!(round.recv().expect("an answer").outcome.is_ok());
        assert_eq!(bench.backup.image.digest(), sealed);
    }
}

/// The token of a committed epoch, come by as the product comes by it.
fn token(epoch: u64) -> ReleaseToken {
    let (sealed, _) = Epoch::open(TERM, EpochId::new(epoch)).seal(());
    let digest = Digest([1; 32]);
    let word = holdfast_epoch::Confirmation { term: TERM, epoch: EpochId::new(epoch), digest };
    let (committed, ()) =
        sealed.replicated(digest, |()| ()).commit(&word).map_err(|(_, fault)| fault).unwrap();
    committed.into_release_token()
}

/// FO-1: a commit that comes after the gate was fenced or opened releases nothing, until it holds again.
#[test]
fn a_commit_that_comes_after_fence_or_open_releases_nothing() {
    let gates = Told::new();
    let gate = gates.gate();
    let told = || gates.released.lock().unwrap().clone();
    gate.lock().protect(EpochId::FIRST).unwrap();
    gate.lock().release(token(1)).unwrap();
    gate.lock().fence();
    gate.lock().release(token(2)).unwrap();
    gate.lock().admit(TERM.next()).unwrap();
    gate.lock().release(token(2)).unwrap();
    assert_eq!(told(), [1]);
    gate.lock().protect(EpochId::new(3)).unwrap();
    gate.lock().release(token(3)).unwrap();
    gate.lock().open().unwrap();
    gate.lock().release(token(4)).unwrap();
    assert_eq!(told(), [1, 3]);
}
