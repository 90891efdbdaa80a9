//! Sessions against a real image, with messages made by hand.

use super::*;
use crate::image::{ImageConfig, ImageState};
use crate::pages::PageIndex;
use crate::protocol::{PageBatch, encode};
use crate::reduction::Reducer;
use holdfast_epoch::Digest;
use std::fs;
use tempfile::TempDir;

const PAGES: u64 = 64;
const LIMIT: u64 = 1 << 20;

struct Bench {
    image: Image,
    log: CommitLog,
    session: BackupSession,
    dir: TempDir,
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
    Bench { image, log, session: BackupSession::new(term(1), LIMIT), dir }
}

impl Bench {
    fn tell(&mut self, message: Message) -> Result<Outcome, Refusal> {
        self.session.handle(message, &mut self.image, &mut self.log)
    }

    fn refused(&mut self, message: Message) -> RefusalCode {
        let before = (self.image.state(), self.image.digest());
        let refusal = self.tell(message).expect_err("it must be refused");
        assert_eq!((self.image.state(), self.image.digest()), before, "a refusal changes nothing");
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
    let (mut reducer, mut hasher, mut bytes) = (Reducer::new(true), PageHasher::default(), Vec::new());
    let content = [fill; PAGE_SIZE];
    for page in pages.map(PageIndex) {
        PageBatch::append(&mut bytes, page, reducer.reduce(&content));
        hasher.add_index(page, fill == 0);
        if fill != 0 {
            hasher.add_bytes(&content);
        }
    }
    (PageBatch::from_bytes(bytes), hasher)
}

/// The seal of an epoch of these pages, each filled with a byte.
fn sealed(
    term: Term,
    epoch: EpochId,
    pages: &[(u64, u8)],
    base: Option<crate::digest::PagesDigest>,
) -> Message {
    let mut hasher = EpochHasher::default();
    for &(page, fill) in pages {
        hasher.pages.add_index(PageIndex(page), fill == 0);
        if fill != 0 {
            hasher.pages.add_bytes(&[fill; PAGE_SIZE]);
        }
    }
    Message::Seal(Seal { epoch, term, pages: pages.len() as u64, digest: hasher.take(term, epoch, base) })
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
    let lie = Message::Seal(Seal { epoch: epoch(2), term: term(2), pages: 1, digest: Digest([0; 32]) });
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
    let (beyond, mut broken) = (batch(PAGES..PAGES + 1, 1).0, Vec::new());
    PageBatch::append(&mut broken, PageIndex(0), Reduced::Lz4(&[0xff; 20]));
    assert_eq!(bench.refused(Message::Pages(epoch(2), beyond)), RefusalCode::Malformed);
    assert_eq!(
        bench.refused(Message::Pages(epoch(2), PageBatch::from_bytes(broken))),
        RefusalCode::Malformed
    );
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
