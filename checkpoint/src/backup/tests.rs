//! Sessions against a real image, with messages made by hand.

use super::*;
use crate::delta;
use crate::digest::{EpochHasher, PageHasher};
use crate::gate::spoken::{Spoken, seeded};
use crate::gate::{CutReport, OutputGate, PortLimits, Stream};
use crate::image::{ImageConfig, ImageState};
use crate::pages::{PAGE_SIZE, PageIndex};
use crate::protocol::{PageBatch, PageBatchWriter, encode};
use crate::reduction::{Reduced, Reducer, Reduction};
use holdfast_epoch::{Digest, ReleaseToken};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tempfile::TempDir;

const PAGES: u64 = 64;
const LIMIT: u64 = 1 << 20;

struct Bench {
    image: Image,
    log: CommitLog,
    session: BackupSession,
    kept: Arc<Mutex<Spoken>>,
    gate: SharedGate,
    dir: TempDir,
}

/// A gate that only keeps, and is none of a primary.
struct Keeper {
    kept: Arc<Mutex<Spoken>>,
    /// A file that it removes whenever it keeps something.
    harms: PathBuf,
}

impl OutputGate for Keeper {
    fn cut(&mut self, _epoch: EpochId, _whole: bool) -> Result<CutReport, GateError> {
        Err(GateError::Gone)
    }
    fn limits(&self) -> Vec<PortLimits> {
        Vec::new()
    }
    fn stream(&self) -> Option<Stream> {
        None
    }
    fn release(&mut self, _token: ReleaseToken) -> Result<(), GateError> {
        Err(GateError::Gone)
    }
    fn protect(&mut self, _first: EpochId) -> Result<(), GateError> {
        Err(GateError::Gone)
    }
    fn open(&mut self) -> Result<(), GateError> {
        Err(GateError::Gone)
    }
    fn fence(&mut self) {}
    fn admit(&mut self, _term: Term) -> Result<(), GateError> {
        Err(GateError::Gone)
    }
    fn extend_lease(&mut self, _until: Instant) {}
    fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError> {
        self.kept.lock().unwrap().keep(state, stream)?;
        drop(fs::remove_file(&self.harms));
        Ok(())
    }
    fn restore(&mut self) -> Result<(), GateError> {
        Err(GateError::Gone)
    }
    fn announce(&mut self) {}
}

fn term(number: u64) -> Term {
    Term::new(number)
}

fn epoch(number: u64) -> EpochId {
    EpochId::new(number)
}

fn bench() -> Bench {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder on tmpfs");
    let image = Image::create(ImageConfig {
        vm: "web".into(),
        memory: dir.path().join("memory"),
        record: dir.path().join("record"),
        len: PAGES * PAGE_SIZE as u64,
    })
    .expect("room for the image");
    let log = CommitLog::open(&dir.path().join("commits")).expect("a log");
    let kept = Arc::default();
    let keeper = Keeper { kept: Arc::clone(&kept), harms: dir.path().join("nothing") };
    let gate = SharedGate::new(Box::new(keeper));
    Bench { image, log, session: BackupSession::new(term(1), LIMIT), kept, gate, dir }
}

impl Bench {
    fn tell(&mut self, message: Message) -> Result<Outcome, Refusal> {
        self.session.handle(message, &mut self.image, &mut self.log, &self.gate)
    }

    fn refused(&mut self, message: Message) -> RefusalCode {
        let before = (self.image.state(), self.image.digest(), self.kept());
        let refusal = self.tell(message).expect_err("it must be refused");
        assert_eq!(
            (self.image.state(), self.image.digest(), self.kept()),
            before,
            "a refusal changes nothing"
        );
        refusal.code
    }

    /// Synchronises with pages of ones, as epoch `first`.
    fn synchronise(&mut self, first: u64) {
        let begin = Message::Begin(Begin { full: true, term: term(2), first: epoch(first) });
        assert_eq!(self.tell(begin), Ok(Outcome::Begun { full: true }));
        let (batch, mut hasher) = batch(0..PAGES, 1);
        assert_eq!(self.tell(Message::Base(batch)), Ok(Outcome::Taken));
        let seal = sealed(term(2), epoch(first), &[], Some(hasher.take()));
        assert!(matches!(self.tell(seal), Ok(Outcome::Committed(..))));
    }

    fn kept(&self) -> Spoken {
        self.kept.lock().unwrap().clone()
    }

    /// What comes of epoch `number` of term 2 before its seal, and the seal.
    fn speak(&mut self, number: u64, state: &GateState, stream: &[&[u8]], pages: &[(u64, u8)]) -> Message {
        for part in stream {
            self.tell(Message::Stream(epoch(number), part.to_vec().into())).expect("taken");
        }
        for &(page, fill) in pages {
            self.tell(Message::Pages(epoch(number), batch(page..page + 1, fill).0)).expect("taken");
        }
        self.tell(Message::StatePart(epoch(number), StateKind::Gate, state.bytes.clone().into()))
            .expect("taken");
        sealed_with(term(2), epoch(number), pages, None, state, stream)
    }

    fn log(&self) -> Vec<(u64, u64)> {
        let text = fs::read_to_string(self.dir.path().join("commits")).expect("the log is there");
        let field = |part: Option<&str>| part.and_then(|part| part.parse().ok()).expect("a number");
        text.lines()
            .map(|line| {
                let mut parts = line.split(' ');
                (field(parts.next()), field(parts.next()))
            })
            .collect()
    }
}

fn batch(pages: std::ops::Range<u64>, fill: u8) -> (PageBatch, PageHasher) {
    let (mut hasher, mut bytes) = (PageHasher::default(), Vec::new());
    let (mut reducer, content) = (Reducer::new(&Reduction::default(), 0), [fill; PAGE_SIZE]);
    for page in pages.map(PageIndex) {
        PageBatchWriter::new(&mut bytes).add(page, reducer.reduce(page, &content));
        hasher.add_index(page, fill == 0);
        if fill != 0 {
            hasher.add_bytes(&content);
        }
    }
    (PageBatch::from_bytes(bytes), hasher)
}

/// The seal of an epoch of these pages, each filled with a byte, of a gate that never speaks.
fn sealed(
    term: Term,
    epoch: EpochId,
    pages: &[(u64, u8)],
    base: Option<crate::digest::PagesDigest>,
) -> Message {
    sealed_with(term, epoch, pages, base, &GateState::whole(Vec::new()), &[])
}

/// The same, of a gate with this state and stream.
fn sealed_with(
    term: Term,
    epoch: EpochId,
    pages: &[(u64, u8)],
    base: Option<crate::digest::PagesDigest>,
    state: &GateState,
    stream: &[&[u8]],
) -> Message {
    let mut hasher = EpochHasher::default();
    for &(page, fill) in pages {
        hasher.pages.add_index(PageIndex(page), fill == 0);
        if fill != 0 {
            hasher.pages.add_bytes(&[fill; PAGE_SIZE]);
        }
    }
    hasher.add_state(StateKind::Gate, &state.bytes);
    stream.iter().for_each(|part| hasher.add_stream(part));
    let (pages, self_contained) = (pages.len() as u64, state.self_contained);
    let digest = hasher.take(term, epoch, base, self_contained);
    Message::Seal(Seal { epoch, term, pages, self_contained, digest })
}

fn page_of(image: &Image, page: u64) -> u8 {
    let mut bytes = [0xee; PAGE_SIZE];
    image.read_page(PageIndex(page), &mut bytes).expect("within the image");
    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
    bytes[0]
}

/// CK-1, OC-1: an epoch is applied whole after its seal, and its line is in the log when it is confirmed.
#[test]
fn an_epoch_is_applied_at_its_seal_and_logged_before_it_is_confirmed() {
    let mut bench = bench();
    bench.synchronise(5);
    assert_eq!(bench.image.state(), ImageState::Valid { term: term(2), epoch: epoch(5) });
    bench.tell(Message::Pages(epoch(6), batch(3..4, 9).0)).expect("taken");
    assert_eq!(page_of(&bench.image, 3), 1, "nothing is applied before the seal");
    assert_eq!(bench.log(), [(5, 2)]);
    let Ok(Outcome::Committed(answer, held)) = bench.tell(sealed(term(2), epoch(6), &[(3, 9)], None)) else {
        panic!("the epoch is whole")
    };
    assert_eq!(held, ImageHeld { term: term(2), epoch: epoch(6) });
    assert!(matches!(answer, Message::Committed { .. }) && !encode(&answer).is_empty());
    assert_eq!((page_of(&bench.image, 3), page_of(&bench.image, 4)), (9, 1));
    assert_eq!(bench.log(), [(5, 2), (6, 2)]);
}

/// CK-1: an epoch whose bytes are not those that were promised is refused, and the image stays at the
/// last commit.
#[test]
fn an_epoch_with_a_wrong_digest_is_never_applied() {
    let mut bench = bench();
    bench.synchronise(1);
    bench.tell(Message::Pages(epoch(2), batch(3..4, 9).0)).expect("taken");
    let (epoch, term, digest) = (epoch(2), term(2), Digest([0; 32]));
    let lie = Message::Seal(Seal { epoch, term, pages: 1, self_contained: true, digest });
    assert_eq!(bench.refused(lie), RefusalCode::Digest);
    assert_eq!(bench.log(), [(1, 2)]);
}

/// CK-1: the pages of the full synchronisation are covered by the first epoch's digest.
#[test]
fn a_page_damaged_during_the_synchronisation_is_found_at_the_first_seal() {
    let mut bench = bench();
    bench.tell(Message::Begin(Begin { full: true, term: term(2), first: epoch(1) })).expect("begun");
    let (_, mut right) = batch(0..PAGES, 1);
    bench.tell(Message::Base(batch(0..PAGES, 2).0)).expect("taken");
    let seal = sealed(term(2), epoch(1), &[], Some(right.take()));
    assert_eq!(bench.tell(seal).expect_err("damaged").code, RefusalCode::Digest);
    assert!(matches!(bench.image.state(), ImageState::Syncing { .. }), "half an image is no checkpoint");
}

/// CK-1, FO-1: what comes out of order or of an older term is refused, each with its code.
#[test]
fn messages_out_of_order_or_of_an_older_term_are_refused() {
    let mut bench = bench();
    let pages = || batch(0..1, 3).0;
    assert_eq!(bench.refused(Message::Base(pages())), RefusalCode::OutOfOrder);
    assert_eq!(bench.refused(Message::Pages(epoch(1), pages())), RefusalCode::OutOfOrder);
    let stale = Message::Begin(Begin { full: true, term: term(0), first: epoch(1) });
    assert_eq!(bench.refused(stale), RefusalCode::StaleTerm);
    let nothing_held = Message::Begin(Begin { full: false, term: term(1), first: epoch(1) });
    assert_eq!(bench.refused(nothing_held), RefusalCode::OutOfOrder);
    bench.synchronise(4);
    assert_eq!(bench.refused(Message::Base(pages())), RefusalCode::OutOfOrder);
    assert_eq!(bench.refused(Message::Pages(epoch(6), pages())), RefusalCode::OutOfOrder);
    assert_eq!(bench.refused(sealed(term(2), epoch(4), &[], None)), RefusalCode::OutOfOrder);
    assert_eq!(bench.refused(sealed(term(1), epoch(5), &[], None)), RefusalCode::StaleTerm);
    assert_eq!(bench.refused(Message::Relinquish { term: term(1) }), RefusalCode::StaleTerm);
    assert_eq!(bench.tell(Message::Relinquish { term: term(2) }), Ok(Outcome::Relinquished));
}

/// The seal of an epoch of nothing but this state of its devices.
fn sealed_devices(number: u64, devices: &[u8]) -> Message {
    let mut hasher = EpochHasher::default();
    hasher.add_state(StateKind::Devices, devices);
    let digest = hasher.take(term(2), epoch(number), None, true);
    Message::Seal(Seal { epoch: epoch(number), term: term(2), pages: 0, self_contained: true, digest })
}

/// CK-1: what changed in the state of the devices stands for the state, which is kept whole, and the digest is over
/// all of it.
#[test]
fn a_change_of_the_devices_makes_their_next_state() {
    let mut bench = bench();
    bench.synchronise(1);
    let (mut devices, whole) =
        (vec![5; 4000], Message::StatePart(epoch(2), StateKind::Devices, vec![5; 4000].into()));
    bench.tell(whole).expect("taken");
    assert!(matches!(bench.tell(sealed_devices(2, &devices)), Ok(Outcome::Committed(..))));
    for number in 3..6 {
        let before = devices.clone();
        devices[1000 * number as usize - 2500] = 9;
        let change = delta::between(&before, &devices).expect("a change");
        assert!(change.len() < 100);
        bench.tell(Message::DeviceChange(epoch(number), change.into())).expect("taken");
        assert!(matches!(bench.tell(sealed_devices(number, &devices)), Ok(Outcome::Committed(..))));
        assert_eq!(bench.image.last().expect("a checkpoint").device_state, devices);
    }
    bench.tell(Message::DeviceChange(epoch(6), Vec::new().into())).expect("taken");
    devices[0] ^= 1;
    assert_eq!(bench.refused(sealed_devices(6, &devices)), RefusalCode::Digest);
}

/// RB-1: a change that comes before any state, beside a state, or that fits none is refused.
#[test]
fn a_change_of_the_devices_that_fits_nothing_is_refused() {
    let mut first = bench();
    let begin = Message::Begin(Begin { full: true, term: term(2), first: epoch(1) });
    first.tell(begin).expect("begun");
    let change = |bytes: &[u8]| Message::DeviceChange(epoch(2), bytes.to_vec().into());
    let early = Message::DeviceChange(epoch(1), Vec::new().into());
    assert_eq!(first.refused(early), RefusalCode::OutOfOrder, "the first one is whole");
    for (also_whole, bytes) in [(false, &[1; 9][..]), (true, &[][..])] {
        let mut bench = bench();
        bench.synchronise(1);
        bench.tell(change(bytes)).expect("it is looked at with the seal");
        if also_whole {
            bench.tell(Message::StatePart(epoch(2), StateKind::Devices, vec![5].into())).expect("taken");
        }
        assert_eq!(bench.refused(sealed_devices(2, &[5])), RefusalCode::Malformed);
    }
}

/// CK-2 at the backup: a later session goes on from the commit, skipping the numbers of aborted epochs;
/// what was staged of them is gone with their session.
#[test]
fn a_new_session_goes_on_after_aborted_epochs() {
    let mut bench = bench();
    bench.synchronise(1);
    bench.tell(Message::Pages(epoch(2), batch(3..4, 9).0)).expect("taken");
    bench.session = BackupSession::new(term(2), LIMIT);
    bench.tell(Message::Begin(Begin { full: false, term: term(2), first: epoch(4) })).expect("newer");
    bench.tell(Message::Pages(epoch(4), batch(3..5, 7).0)).expect("taken");
    bench.tell(sealed(term(2), epoch(4), &[(3, 7), (4, 7)], None)).expect("whole");
    assert_eq!((page_of(&bench.image, 3), page_of(&bench.image, 4), page_of(&bench.image, 5)), (7, 7, 1));
}

/// RB-1: an epoch without end is refused at the limit, whether its pages have bytes or not.
#[test]
fn an_epoch_beyond_the_staging_limit_is_refused() {
    for fill in [0, 200] {
        let mut bench = bench();
        bench.synchronise(1);
        let endless =
            (0..100_000).find_map(|_| bench.tell(Message::Pages(epoch(2), batch(0..8, fill).0)).err());
        let refusal = endless.expect("there is a limit");
        assert_eq!(refusal.code, RefusalCode::NoRoom);
        assert!(refusal.text.contains("staging limit"), "{refusal}");
    }
}

/// RB-1: pages beyond the memory, and blocks that are no pages, are refused.
#[test]
fn malformed_pages_are_refused() {
    let mut bench = bench();
    bench.synchronise(1);
    let beyond = batch(PAGES..PAGES + 1, 1).0;
    assert_eq!(bench.refused(Message::Pages(epoch(2), beyond)), RefusalCode::Malformed);
    for broken in [Reduced::Lz4(&[0xff; 20]), Reduced::Delta(&[0xff; 20]), Reduced::Same(PageIndex(PAGES))] {
        assert_eq!(bench.refused(Message::Pages(epoch(2), records(&[(0, broken)]))), RefusalCode::Malformed);
    }
}

fn records(records: &[(u64, Reduced<'_>)]) -> PageBatch {
    let mut bytes = Vec::new();
    let mut writer = PageBatchWriter::new(&mut bytes);
    for &(page, reduced) in records {
        writer.add(PageIndex(page), reduced);
    }
    PageBatch::from_bytes(bytes)
}

/// An LZ4 block that holds one page, of this byte.
fn block_of(byte: u8) -> Vec<u8> {
    let page = [byte; PAGE_SIZE];
    match Reducer::new(&Reduction::default(), 0).reduce(PageIndex(0), &page) {
        Reduced::Lz4(block) => block.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// CK-1: what a page refers to is what was sent of it last: in this epoch, or else in those before it.
#[test]
fn references_are_to_what_was_sent_last() {
    let mut bench = bench();
    bench.synchronise(1);
    let (three, nine) = (block_of(3), [9; PAGE_SIZE]);
    let batch = records(&[
        (5, Reduced::Raw(&nine)),
        (6, Reduced::Same(PageIndex(5))),
        (7, Reduced::Same(PageIndex(8))),
        (5, Reduced::Zero),
        (8, Reduced::Same(PageIndex(5))),
        (9, Reduced::Delta(&three)),
        (9, Reduced::Delta(&three)),
        (6, Reduced::Delta(&three)),
        (6, Reduced::Unchanged),
        (10, Reduced::Unchanged),
        (11, Reduced::Unchanged),
    ]);
    bench.tell(Message::Pages(epoch(2), batch)).expect("taken");
    let pages = [
        (5, 9),
        (6, 9),
        (7, 1),
        (5, 0),
        (8, 0),
        (9, 1 ^ 3),
        (9, 1),
        (6, 9 ^ 3),
        (6, 9 ^ 3),
        (10, 1),
        (11, 1),
    ];
    assert!(matches!(bench.tell(sealed(term(2), epoch(2), &pages, None)), Ok(Outcome::Committed(..))));
    let held: Vec<_> = (5..12).map(|page| page_of(&bench.image, page)).collect();
    assert_eq!(held, [0, 9 ^ 3, 1, 0, 1, 1, 1]);
    let batch = records(&[(5, Reduced::Same(PageIndex(6))), (8, Reduced::Unchanged)]);
    bench.tell(Message::Pages(epoch(3), batch)).expect("taken");
    let seal = sealed(term(2), epoch(3), &[(5, 9 ^ 3), (8, 0)], None);
    assert!(matches!(bench.tell(seal), Ok(Outcome::Committed(..))));
    assert_eq!((page_of(&bench.image, 5), page_of(&bench.image, 8)), (9 ^ 3, 0));
}

/// CK-1: a reference to a page that has other bytes than the primary believes ends in no commit.
#[test]
fn a_wrong_reference_is_found_by_the_digest() {
    let three = block_of(3);
    for wrong in [Reduced::Unchanged, Reduced::Same(PageIndex(5)), Reduced::Delta(&three)] {
        let mut bench = bench();
        bench.synchronise(1);
        bench.tell(Message::Pages(epoch(2), records(&[(4, wrong)]))).expect("taken");
        assert_eq!(bench.refused(sealed(term(2), epoch(2), &[(4, 7)], None)), RefusalCode::Digest);
    }
}

/// RB-1: while a synchronisation brings the pages, those that it has not brought yet cannot be referred to.
#[test]
fn a_reference_to_a_page_that_never_came_is_refused() {
    let three = block_of(3);
    for early in [Reduced::Unchanged, Reduced::Same(PageIndex(9)), Reduced::Delta(&three)] {
        let mut bench = bench();
        bench.synchronise(1);
        bench.session = BackupSession::new(term(2), LIMIT);
        bench.tell(Message::Begin(Begin { full: true, term: term(2), first: epoch(2) })).expect("begun");
        let came = records(&[(3, Reduced::Zero), (4, Reduced::Same(PageIndex(3))), (3, Reduced::Unchanged)]);
        bench.tell(Message::Base(came)).expect("what came can be referred to");
        assert_eq!(bench.refused(Message::Base(records(&[(8, early)]))), RefusalCode::Malformed);
        assert_eq!(bench.refused(Message::Pages(epoch(2), records(&[(8, early)]))), RefusalCode::Malformed);
    }
}

/// RB-1, CK-1: whatever records come, they are taken or refused, and nothing of the image changes before a seal.
#[test]
fn any_records_are_taken_or_refused_and_change_nothing_before_a_seal() {
    let mut bench = bench();
    bench.synchronise(1);
    let before = bench.image.digest();
    let mut taken = 0;
    for number in 2..500 {
        bench.session = BackupSession::new(term(2), LIMIT);
        bench
            .tell(Message::Begin(Begin { full: false, term: term(2), first: epoch(number) }))
            .expect("newer");
        let mut bytes = vec![0; 8 * (number as usize % 7)];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        // Pages of the memory, few bytes, and the forms that there are.
        for head in bytes.chunks_mut(8) {
            head[1] &= 0x60;
            head[2] %= PAGES as u8;
            head[3..].fill(0);
        }
        taken += usize::from(bench.tell(Message::Pages(epoch(number), PageBatch::from_bytes(bytes))).is_ok());
        assert_eq!(bench.image.digest(), before);
    }
    assert!((70..498).contains(&taken), "{taken} were taken");
}

/// RB-1: pages that take a few bytes to send count as well.
#[test]
fn unchanged_pages_without_end_are_refused_at_the_staging_limit() {
    let mut bench = bench();
    bench.synchronise(1);
    let many: Vec<_> = (0..PAGES).map(|page| (page, Reduced::Unchanged)).collect();
    let endless = (0..100_000).find_map(|_| bench.tell(Message::Pages(epoch(2), records(&many))).err());
    assert_eq!(endless.expect("there is a limit").code, RefusalCode::NoRoom);
}

/// A full disk under the commit log: the epoch is not confirmed, and the reason names the log.
#[test]
fn an_epoch_that_cannot_be_logged_is_not_confirmed() {
    let mut bench = bench();
    bench.synchronise(1);
    bench.log = CommitLog::open(std::path::Path::new("/dev/full")).expect("a device that is always full");
    let refusal = bench.tell(sealed(term(2), epoch(2), &[], None)).expect_err("not confirmed");
    assert_eq!(refusal.code, RefusalCode::Storage);
    assert!(refusal.text.contains("/dev/full"), "{refusal}");
}

/// What a gate says in epoch 2 after a silent first one.
fn spoken() -> (Spoken, [Vec<u8>; 2]) {
    let parts = [seeded(1, 500), seeded(2, 7)];
    let mut spoken = Spoken::default();
    spoken.hold(&parts.concat());
    (spoken, parts)
}

/// SP-2, CK-1: the gate keeps an epoch's bytes when it is sealed and not before, and with them what it says of
/// later epochs adds up.
#[test]
fn what_was_said_is_kept_with_its_epoch() {
    let mut bench = bench();
    bench.synchronise(1);
    let (mut spoken, [one, two]) = spoken();
    let seal = bench.speak(2, &spoken.state(false), &[&one, &two], &[(3, 9)]);
    assert_eq!(bench.kept(), Spoken::default(), "nothing is kept before the seal");
    assert!(matches!(bench.tell(seal), Ok(Outcome::Committed(..))));
    assert_eq!((bench.kept(), page_of(&bench.image, 3)), (spoken.clone(), 9));
    assert!(!bench.image.last().expect("a checkpoint").gate_state.self_contained);
    spoken.hold(&two);
    spoken.confirm_all_but(20);
    let seal = bench.speak(3, &spoken.state(false), &[&two], &[]);
    assert!(matches!(bench.tell(seal), Ok(Outcome::Committed(..))));
    assert_eq!(bench.kept(), spoken);
}

/// SP-2: streamed bytes that changed on the way, or come in another order, are found by the digest: neither
/// the image nor the gate sees them.
#[test]
fn streamed_bytes_that_were_damaged_are_refused() {
    let damages: [fn(&mut [Vec<u8>; 2]); 4] = [
        |parts| parts[0][100] ^= 1,
        |parts| parts.swap(0, 1),
        |parts| parts[1].truncate(6),
        |parts| parts[1].push(0),
    ];
    for damage in damages {
        let mut bench = bench();
        bench.synchronise(1);
        let (spoken, [one, two]) = spoken();
        let seal = sealed_with(term(2), epoch(2), &[], None, &spoken.state(false), &[&one, &two]);
        let mut parts = [one, two];
        damage(&mut parts);
        bench.speak(2, &spoken.state(false), &[&parts[0], &parts[1]], &[]);
        assert_eq!(bench.refused(seal), RefusalCode::Digest);
        assert_eq!(bench.log(), [(1, 2)]);
    }
}

/// SP-2, CK-1: an epoch that lacks bytes which were acknowledged to the guest is refused whole, although every
/// byte that was sent of it arrived; the checkpoint before it stays, and the gate's part of that.
#[test]
fn an_epoch_that_lacks_bytes_is_not_confirmed() {
    let mut bench = bench();
    bench.synchronise(1);
    let (spoken, [one, two]) = spoken();
    let seal = bench.speak(2, &spoken.state(false), &[&one], &[(3, 9)]);
    assert_eq!(bench.refused(seal), RefusalCode::Gate);
    assert_eq!(bench.log(), [(1, 2)]);
    // The next session begins with a whole state, and the image goes on.
    bench.session = BackupSession::new(term(2), LIMIT);
    bench.tell(Message::Begin(Begin { full: false, term: term(2), first: epoch(4) })).expect("newer");
    let seal = bench.speak(4, &spoken.state(true), &[], &[(3, 7)]);
    assert!(matches!(bench.tell(seal), Ok(Outcome::Committed(..))));
    assert_eq!((bench.kept(), page_of(&bench.image, 3)), (spoken.clone(), 7));
    let mut spoken = spoken;
    spoken.hold(&two);
    let seal = bench.speak(5, &spoken.state(false), &[&two], &[]);
    assert!(matches!(bench.tell(seal), Ok(Outcome::Committed(..))));
    assert_eq!(bench.kept(), spoken);
}

/// SP-2: a session's first epoch says all by itself and has no stream; what was streamed of another epoch than
/// the one that is open is out of order.
#[test]
fn the_first_epoch_of_a_session_must_be_whole() {
    let mut bench = bench();
    bench.synchronise(1);
    assert_eq!(bench.refused(Message::Stream(epoch(1), vec![1].into())), RefusalCode::OutOfOrder);
    assert_eq!(bench.refused(Message::Stream(epoch(3), vec![1].into())), RefusalCode::OutOfOrder);
    bench.session = BackupSession::new(term(2), LIMIT);
    assert_eq!(bench.refused(Message::Stream(epoch(2), vec![1].into())), RefusalCode::OutOfOrder);
    bench.tell(Message::Begin(Begin { full: false, term: term(2), first: epoch(2) })).expect("newer");
    assert_eq!(bench.refused(Message::Stream(epoch(2), vec![1].into())), RefusalCode::OutOfOrder);
    let seal = bench.speak(2, &Spoken::default().state(false), &[], &[]);
    assert_eq!(bench.refused(seal), RefusalCode::Gate);
}

/// CK-1, SP-2: an epoch that the image cannot take is not shown to the gate.
#[test]
fn what_the_image_cannot_take_is_not_kept() {
    let mut bench = bench();
    let begin = Message::Begin(Begin { full: true, term: term(2), first: epoch(1) });
    bench.tell(begin).expect("begun");
    let (spoken, _) = spoken();
    bench.session.staged.base = None;
    let seal = bench.speak(1, &spoken.state(true), &[], &[(3, 9)]);
    assert_eq!(bench.refused(seal), RefusalCode::OutOfOrder);
}

/// CK-1, SP-2: should the image's commit fail after the gate kept the epoch, nothing here may go live: the
/// gate is ahead of the checkpoint.
#[test]
fn a_gate_ahead_of_its_image_leaves_no_checkpoint() {
    let mut bench = bench();
    bench.synchronise(1);
    let (mut spoken, [one, two]) = spoken();
    let seal = bench.speak(2, &spoken.state(false), &[&one, &two], &[]);
    bench.tell(seal).expect("committed");
    let keeper = Keeper { kept: Arc::clone(&bench.kept), harms: bench.dir.path().join("record.next") };
    bench.gate = SharedGate::new(Box::new(keeper));
    spoken.hold(&two);
    let seal = bench.speak(3, &spoken.state(false), &[&two], &[]);
    assert_eq!(bench.tell(seal).expect_err("no record").code, RefusalCode::Storage);
    assert_eq!((bench.image.state(), bench.image.last()), (ImageState::Empty, None));
    assert_eq!(bench.log(), [(1, 2), (2, 2)]);
}

/// RB-1: streamed bytes without end are refused at the limit of an epoch, however small the pieces.
#[test]
fn a_stream_beyond_the_staging_limit_is_refused() {
    for len in [0, 1, 1000] {
        let mut bench = bench();
        bench.synchronise(1);
        let endless =
            (0..100_000).find_map(|_| bench.tell(Message::Stream(epoch(2), vec![1; len].into())).err());
        let refusal = endless.expect("there is a limit");
        assert_eq!(refusal.code, RefusalCode::NoRoom);
        assert!(refusal.text.contains("staging limit"), "{refusal}");
        assert!(bench.session.staged.stream.len() as u64 <= LIMIT);
    }
}

/// CK-1: pages of a synchronisation wait for one another; what refers to them, or overtakes them, comes after them all
/// the same.
#[test]
fn pages_of_a_synchronisation_are_taken_in_the_order_in_which_they_came() {
    let mut bench = bench();
    bench.tell(Message::Begin(Begin { full: true, term: term(2), first: epoch(1) })).expect("begun");
    let ([none, one, two], three) = ([0, 1, 2].map(|fill| [fill; PAGE_SIZE]), block_of(3));
    let batch = records(&[
        (5, Reduced::Raw(&one)),
        (6, Reduced::Same(PageIndex(5))),
        (5, Reduced::Zero),
        (7, Reduced::Raw(&one)),
        (7, Reduced::Raw(&two)),
        (7, Reduced::Delta(&three)),
        (8, Reduced::Lz4(&three)),
        (9, Reduced::Same(PageIndex(8))),
        (4, Reduced::Raw(&two)),
        (4, Reduced::Raw(&none)),
    ]);
    bench.tell(Message::Base(batch)).expect("taken");
    let found = [4, 5, 6, 7, 8, 9].map(|page| page_of(&bench.image, page));
    assert_eq!(found, [0, 0, 1, 2 ^ 3, 3, 3]);
}
