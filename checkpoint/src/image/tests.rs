use super::*;
use crate::host_needs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

const PAGES: u64 = 64;
const LEN: u64 = PAGES * PAGE_SIZE as u64;
const TERM: Term = Term::new(3);
const DIGEST: Digest = Digest([9; 32]);

fn tmpfs_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn config(dir: &Path, len: u64) -> ImageConfig {
    ImageConfig { vm: "vm".to_owned(), memory: dir.join("memory"), record: dir.join("record"), len }
}

/// What page `page` holds when epoch `epoch` wrote it last; some pages are zeros.
fn content(epoch: u64, page: u64) -> [u8; PAGE_SIZE] {
    let seed = epoch * 1_000_003 + page;
    let mut bytes = [0; PAGE_SIZE];
    if seed % 7 != 0 {
        for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk
                .copy_from_slice(&(seed << 20 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
    }
    bytes
}

fn is_zero(bytes: &[u8; PAGE_SIZE]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn pages_of(epoch: u64, pages: impl IntoIterator<Item = u64>) -> StagedPages {
    let mut staged = StagedPages::new();
    for page in pages {
        let bytes = content(epoch, page);
        if is_zero(&bytes) { staged.push_zero(PageIndex(page)) } else { staged.push(PageIndex(page), &bytes) }
    }
    staged
}

fn staged(epoch: u64, pages: StagedPages) -> StagedEpoch {
    let device = format!("devices at {epoch}").into_bytes();
    let gate = GateState::whole(format!("gate at {epoch}").into_bytes());
    StagedEpoch::verified((TERM, EpochId::new(epoch)), pages, device, gate, &DIGEST, &DIGEST).unwrap()
}

fn valid(epoch: u64) -> ImageState {
    ImageState::Valid { term: TERM, epoch: EpochId::new(epoch) }
}

/// An image that holds epoch 1, every page written by it.
fn synchronised(dir: &Path) -> Image {
    let mut image = Image::create(config(dir, LEN)).unwrap();
    image.begin_sync(TERM, EpochId::FIRST).unwrap();
    for page in 0..PAGES {
        image.write_base(PageIndex(page), Some(&content(99, page))).unwrap();
    }
    image.apply(staged(1, pages_of(1, 0..PAGES))).unwrap();
    image
}

/// Digest of a memory of which `writer` tells who wrote each page last.
fn expected_digest(writer: &[u64]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (page, &epoch) in (0..).zip(writer) {
        hasher.update(&content(epoch, page));
    }
    Digest(*hasher.finalize().as_bytes())
}

#[test]
fn an_image_grows_from_nothing_to_the_checkpoints_that_were_applied() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    assert_eq!((image.state(), image.digest()), (valid(1), expected_digest(&[1; PAGES as usize])));
    let mut writer = [1; PAGES as usize];
    for epoch in 2..9 {
        let pages: Vec<u64> = (0..PAGES).filter(|page| page % epoch == 0).collect();
        pages.iter().for_each(|&page| writer[page as usize] = epoch);
        image.apply(staged(epoch, pages_of(epoch, pages))).unwrap();
        assert_eq!((image.state(), image.digest()), (valid(epoch), expected_digest(&writer)));
    }
    let last = image.last().unwrap();
    assert_eq!((&*last.device_state, &*last.gate_state.bytes), (&b"devices at 8"[..], &b"gate at 8"[..]));
}

/// CK-1: only the next epoch is applied, and a refused one leaves no trace.
#[test]
fn an_epoch_out_of_order_is_refused() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    let before = image.digest();
    let other_term = |term| StagedEpoch { term: Term::new(term), ..staged(2, pages_of(2, [5])) };
    for wrong in [staged(1, pages_of(1, [5])), staged(3, pages_of(3, [5])), other_term(2), other_term(4)] {
        let fault = image.apply(wrong).unwrap_err();
        assert!(matches!(fault, ImageError::OutOfOrder { .. }), "{fault}");
        assert!(fault.to_string().contains("epoch 2 of term 3 comes next"), "{fault}");
        assert_eq!((image.state(), image.digest()), (valid(1), before));
    }
    image.apply(staged(2, pages_of(2, [5]))).unwrap();
}

/// CK-1: an epoch whose bytes are not the promised ones never becomes one that could be applied.
#[test]
fn a_damaged_epoch_is_refused() {
    let fault = StagedEpoch::verified(
        (TERM, EpochId::FIRST),
        pages_of(1, [1]),
        Vec::new(),
        GateState::whole(Vec::new()),
        &DIGEST,
        &Digest([0; 32]),
    )
    .unwrap_err();
    assert!(matches!(fault, ImageError::Damaged { .. }), "{fault}");
}

/// CK-1: an epoch with one bad page, or too much state, is refused whole.
#[test]
fn an_epoch_that_does_not_fit_is_refused_whole() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    let before = image.digest();
    let fault = image.apply(staged(2, pages_of(2, [0, 1, PAGES]))).unwrap_err();
    assert!(matches!(fault, ImageError::BeyondMemory { page: PageIndex(PAGES), .. }), "{fault}");
    let large = StagedEpoch { device_state: vec![0; STATE_LIMIT + 1], ..staged(2, StagedPages::new()) };
    assert!(matches!(image.apply(large), Err(ImageError::StateTooLarge { .. })));
    assert_eq!((image.state(), image.digest()), (valid(1), before));
}

/// SP-2: what a gate may hold for its clients is more than the devices may take, and is read back.
#[test]
fn a_gate_state_larger_than_any_device_state_is_read_back() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    let held = vec![5; STATE_LIMIT + 1];
    let large = StagedEpoch { gate_state: GateState::whole(held.clone()), ..staged(2, StagedPages::new()) };
    image.apply(large).unwrap();
    drop(image);
    let image = Image::open(config(dir.path(), LEN)).unwrap();
    assert!(image.last().unwrap().gate_state.bytes == held);
}

#[test]
fn of_two_copies_of_a_page_the_later_one_counts() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    let mut pages = StagedPages::new();
    pages.push(PageIndex(4), &[1; PAGE_SIZE]);
    pages.push_zero(PageIndex(4));
    pages.push_zero(PageIndex(5));
    pages.push(PageIndex(5), &[2; PAGE_SIZE]);
    image.apply(staged(2, pages)).unwrap();
    let mut page = [7; PAGE_SIZE];
    image.read_page(PageIndex(4), &mut page).unwrap();
    assert_eq!(page, [0; PAGE_SIZE]);
    image.read_page(PageIndex(5), &mut page).unwrap();
    assert_eq!(page, [2; PAGE_SIZE]);
}

/// CK-1: a synchronisation that left a page out does not make a checkpoint.
#[test]
fn an_incomplete_synchronisation_is_refused() {
    let dir = tmpfs_dir();
    let mut image = Image::create(config(dir.path(), LEN)).unwrap();
    assert!(matches!(image.write_base(PageIndex(0), None), Err(ImageError::NotSyncing { .. })));
    assert!(matches!(image.apply(staged(1, StagedPages::new())), Err(ImageError::OutOfOrder { .. })));
    image.begin_sync(TERM, EpochId::new(5)).unwrap();
    for page in 2..PAGES {
        image.write_base(PageIndex(page), None).unwrap();
    }
    assert!(matches!(image.apply(staged(5, pages_of(5, [1]))), Err(ImageError::SyncIncomplete { pages: 1 })));
    image.apply(staged(5, pages_of(5, [0, 1]))).unwrap();
    assert_eq!(image.state(), valid(5));
}

#[test]
fn a_reopened_image_goes_on_where_it_was() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    image.apply(staged(2, pages_of(2, [3]))).unwrap();
    let (digest, last) = (image.digest(), image.last().cloned());
    let inode = fs::metadata(image.memory_path()).unwrap().ino();
    drop(image);
    let mut image = Image::open(config(dir.path(), LEN)).unwrap();
    assert_eq!((image.state(), image.digest(), image.last()), (valid(2), digest, last.as_ref()));
    let fault = image.apply(staged(3, StagedPages::new())).unwrap_err();
    assert!(fault.to_string().contains("no session has said"), "{fault}");
    for (term, epoch) in [(3, 2), (3, 1), (2, 9)] {
        let fault = image.resume_at(Term::new(term), EpochId::new(epoch)).unwrap_err();
        assert!(matches!(fault, ImageError::NotNewer { .. }), "{fault}");
    }
    // Epochs 3 and 4 were aborted on the primary: their pages come with epoch 5 (CK-2).
    image.resume_at(TERM, EpochId::new(5)).unwrap();
    image.apply(staged(5, pages_of(5, [1]))).unwrap();
    image.resume_at(Term::new(4), EpochId::FIRST).unwrap();
    assert_eq!(fs::metadata(image.memory_path()).unwrap().ino(), inode, "a standby keeps its mapping");
}

/// CK-1: what is not a checkpoint is refused with the reason, also by a later process.
#[test]
fn an_image_that_is_no_checkpoint_is_refused_with_the_reason() {
    let dir = tmpfs_dir();
    let config = config(dir.path(), LEN);
    let refused = |part: &str| {
        let fault = Image::open(config.clone()).unwrap_err();
        assert!(matches!(fault, ImageError::Unusable { .. }), "{fault}");
        assert!(fault.to_string().contains(part), "{fault}");
    };
    refused("not there");
    let mut image = Image::create(config.clone()).unwrap();
    assert!(matches!(Image::open(config.clone()), Err(ImageError::InUse { .. })));
    image.begin_sync(TERM, EpochId::FIRST).unwrap();
    drop(image);
    refused("cut off");
    let mut image = synchronised(dir.path());
    image.mark_live(Term::new(4)).unwrap();
    assert!(matches!(image.apply(staged(2, StagedPages::new())), Err(ImageError::Live { .. })));
    assert!(matches!(image.begin_sync(TERM, EpochId::FIRST), Err(ImageError::Live { .. })));
    drop(image);
    refused("run on it since term 4");
    drop(synchronised(dir.path()));
    let other = ImageConfig { vm: "other".to_owned(), ..config.clone() };
    assert!(matches!(Image::open(other), Err(ImageError::OtherVm { .. })));
    let copy = dir.path().join("copy");
    fs::copy(&config.memory, &copy).unwrap();
    fs::rename(&copy, &config.memory).unwrap();
    refused("not the file that the record speaks of");
    drop(Image::create(config.clone()).unwrap());
    refused("never synchronised");
}

/// CK-1, RB-1: a damaged record is refused, whichever byte is hit, and never crashes the reader.
#[test]
fn a_damaged_record_is_refused() {
    let dir = tmpfs_dir();
    let config = config(dir.path(), LEN);
    drop(synchronised(dir.path()));
    let whole = fs::read(&config.record).unwrap();
    let guarded = whole.len() - (0..PAGES).filter(|&page| !is_zero(&content(1, page))).count() * PAGE_SIZE;
    for at in 0..guarded {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x41;
        fs::write(&config.record, &damaged).unwrap();
        let fault = Image::open(config.clone()).unwrap_err();
        assert!(matches!(fault, ImageError::Unusable { .. }), "byte {at}: {fault}");
    }
    for len in [0, 5, 12, 100, guarded - 1, guarded, whole.len() - 1] {
        fs::write(&config.record, &whole[..len]).unwrap();
        assert!(matches!(Image::open(config.clone()), Err(ImageError::Unusable { .. })), "cut at {len}");
    }
    fs::write(&config.record, [&whole[..], &[0]].concat()).unwrap();
    assert!(matches!(Image::open(config.clone()), Err(ImageError::Unusable { .. })), "too long");
    fs::write(&config.record, &whole).unwrap();
    Image::open(config).unwrap();
}

/// SP-2: a checkpoint that counts on what the gate kept in its memory is none to a later process; one whose
/// gate's state says all by itself still is.
#[test]
fn a_checkpoint_without_what_the_gate_kept_is_refused() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    let delta = |epoch: u64| StagedEpoch {
        gate_state: GateState::delta(vec![1]),
        ..staged(epoch, pages_of(epoch, [3]))
    };
    image.apply(delta(2)).unwrap();
    assert_eq!(image.last().unwrap().gate_state, GateState::delta(vec![1]), "in this process it is one");
    drop(image);
    let fault = Image::open(config(dir.path(), LEN)).unwrap_err();
    assert!(matches!(fault, ImageError::KeptLost { term: TERM, .. }), "{fault}");
    assert!(fault.to_string().contains("epoch 2"), "{fault}");
    let mut image = synchronised(dir.path());
    image.apply(delta(2)).unwrap();
    image.apply(staged(3, pages_of(3, [4]))).unwrap();
    drop(image);
    assert_eq!(Image::open(config(dir.path(), LEN)).unwrap().state(), valid(3));
}

/// CK-1: a prepared epoch counts for nothing until it is committed, and never when another took its place.
#[test]
fn an_epoch_that_was_prepared_counts_once_it_is_committed() {
    let dir = tmpfs_dir();
    let mut image = synchronised(dir.path());
    let before = image.digest();
    drop(image.prepare(staged(2, pages_of(2, [5]))).unwrap());
    assert_eq!((image.state(), image.digest()), (valid(1), before));
    let first = image.prepare(staged(2, pages_of(2, [5]))).unwrap();
    image.commit(first).unwrap();
    assert_eq!(image.state(), valid(2));
    let late = image.prepare(staged(3, pages_of(3, [6]))).unwrap();
    image.resume_at(TERM, EpochId::new(9)).unwrap();
    assert!(matches!(image.commit(late), Err(ImageError::OutOfOrder { .. })));
    drop(image);
    let image = Image::open(config(dir.path(), LEN)).unwrap();
    assert_eq!(image.state(), valid(2), "what was prepared is not what is found");
}

/// SP-2, CK-1: when the record cannot be put in its place the gate is ahead of the image: the checkpoint
/// before is let go of if it needs what the gate kept, and only then.
#[test]
fn a_commit_that_fails_leaves_no_checkpoint_that_the_gate_has_left_behind() {
    for (self_contained, left) in [(true, valid(2)), (false, ImageState::Empty)] {
        let dir = tmpfs_dir();
        let mut image = synchronised(dir.path());
        let gate_state = GateState { bytes: vec![1], self_contained };
        image.apply(StagedEpoch { gate_state, ..staged(2, pages_of(2, [3])) }).unwrap();
        let prepared = image.prepare(staged(3, pages_of(3, [4]))).unwrap();
        fs::remove_file(dir.path().join("record.next")).unwrap();
        assert!(matches!(image.commit(prepared), Err(ImageError::Io { .. })));
        assert_eq!((image.state(), image.last().is_some()), (left, self_contained));
    }
}

#[test]
fn memory_of_another_size_is_refused() {
    let dir = tmpfs_dir();
    drop(synchronised(dir.path()));
    for other in [LEN / 2, LEN * 2] {
        let fault = Image::open(config(dir.path(), other)).unwrap_err();
        assert!(matches!(fault, ImageError::Size { found: LEN, .. }), "{fault}");
        let fault = Image::create(config(dir.path(), other)).unwrap_err();
        assert!(matches!(fault, ImageError::Size { found: LEN, .. }), "{fault}");
    }
    let fault = Image::create(config(tmpfs_dir().path(), 5000)).unwrap_err();
    assert!(matches!(fault, ImageError::Unit { unit: 4096, .. }), "{fault}");
}

#[test]
fn a_host_without_room_says_so_before_it_holds_anything() {
    let dir = tmpfs_dir();
    let config = config(dir.path(), 1 << 46);
    let fault = Image::create(config.clone()).unwrap_err();
    assert!(matches!(fault, ImageError::NoRoom { .. }), "{fault}");
    assert!(!config.memory.exists(), "nothing stays behind");
}

#[test]
fn a_path_on_a_disk_is_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let fault = Image::create(config(dir.path(), LEN)).unwrap_err();
    assert!(matches!(fault, ImageError::Filesystem { .. }), "{fault}");
}

/// Runs `test` with a tmpfs of `kib` KiB on a directory, which only this test sees.
fn with_small_tmpfs(kib: u64, test: impl FnOnce(&Path) + Send) {
    if !host_needs::is_root() {
        return;
    }
    let dir = tmpfs_dir();
    std::thread::scope(|scope| {
        // A thread has a mount namespace of its own, and the mount ends with it.
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let options = format!("size={kib}k");
            mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(&*options)).unwrap();
            test(dir.path());
        });
    });
}

/// CK-1: an epoch for which there is no room is refused, and the checkpoint before it stays whole.
#[test]
fn an_epoch_without_room_for_its_record_is_refused_and_harms_nothing() {
    with_small_tmpfs(2048, |dir| {
        let fault = Image::create(config(dir, 4 << 20)).unwrap_err();
        assert!(matches!(fault, ImageError::NoRoom { .. }), "{fault}");
        let mut image = synchronised(dir);
        let before = image.digest();
        fs::write(dir.join("filler"), vec![1; 1_000_000]).unwrap();
        let large = StagedEpoch { device_state: vec![1; 900_000], ..staged(2, pages_of(2, 0..PAGES)) };
        let fault = image.apply(large).unwrap_err();
        assert!(matches!(fault, ImageError::NoRoomForRecord { .. }), "{fault}");
        assert_eq!((image.state(), image.digest()), (valid(1), before));
        fs::remove_file(dir.join("filler")).unwrap();
        image.apply(staged(2, pages_of(2, 0..PAGES))).unwrap();
        drop(image);
        assert_eq!(Image::open(config(dir, LEN)).unwrap().state(), valid(2));
    });
}

const VICTIM_DIR: &str = "HOLDFAST_TEST_IMAGE_DIR";
const VICTIM_PAGES: u64 = 1024;
/// Epochs that the child prepares before it applies them.
const BATCH: u64 = 16;

fn victim_pages(epoch: u64) -> impl Iterator<Item = u64> {
    (0..VICTIM_PAGES).filter(move |page| (page ^ epoch).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 != 0)
}

/// The child of the test below: applies epochs until it is killed.
#[test]
fn applying_process() {
    let Some(dir) = std::env::var_os(VICTIM_DIR) else { return };
    let config = config(Path::new(&dir), VICTIM_PAGES * PAGE_SIZE as u64);
    let mut image = Image::open(config).unwrap();
    let ImageState::Valid { epoch, .. } = image.state() else { panic!("only checkpoints open") };
    image.resume_at(TERM, epoch.next()).unwrap();
    println!("\nready");
    for batch in 0.. {
        let first = epoch.get() + 1 + batch * BATCH;
        let prepared: Vec<_> =
            (first..first + BATCH).map(|epoch| staged(epoch, pages_of(epoch, victim_pages(epoch)))).collect();
        prepared.into_iter().for_each(|epoch| image.apply(epoch).unwrap());
    }
}

/// CK-1: killed at any moment of applying, the image opens as one whole checkpoint.
#[test]
fn a_process_killed_amid_applying_leaves_one_whole_checkpoint() {
    let dir = tmpfs_dir();
    let config = config(dir.path(), VICTIM_PAGES * PAGE_SIZE as u64);
    let mut image = Image::create(config.clone()).unwrap();
    image.begin_sync(TERM, EpochId::FIRST).unwrap();
    image.apply(staged(1, pages_of(1, 0..VICTIM_PAGES))).unwrap();
    drop(image);
    let (mut writer, mut held, mut amid) = (vec![1; VICTIM_PAGES as usize], 1, 0);
    for kill in 0..24u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "image::tests::applying_process", "--nocapture"])
            .env(VICTIM_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        while lines.next().unwrap().unwrap() != "ready" {}
        // Some records later, and a little: busy waiting, for the moments differ by less than a sleep can tell.
        let record = || fs::metadata(&config.record).unwrap().ino();
        for _ in 0..=kill % 6 {
            let before = record();
            while record() == before {
                assert!(victim.try_wait().unwrap().is_none(), "the child ended by itself");
                std::hint::spin_loop();
            }
        }
        let strike = std::time::Instant::now() + std::time::Duration::from_micros(40 * kill);
        while std::time::Instant::now() < strike {
            std::hint::spin_loop();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        let image = Image::open(config.clone()).unwrap();
        let ImageState::Valid { epoch, .. } = image.state() else { panic!("{:?}", image.state()) };
        assert!(epoch.get() >= held, "a checkpoint is never lost");
        // At the end of a batch the child may have been preparing the next one.
        amid += u64::from((epoch.get() - held) % BATCH != 0);
        for epoch in held + 1..=epoch.get() {
            victim_pages(epoch).for_each(|page| writer[page as usize] = epoch);
        }
        held = epoch.get();
        assert_eq!(image.digest(), expected_digest(&writer), "after kill {kill}, at epoch {held}");
        assert_eq!(image.last().unwrap().device_state, format!("devices at {held}").into_bytes());
    }
    assert!(amid > 3, "only {amid} kills struck amid the epochs: the test proves nothing");
}

#[test]
fn an_image_on_huge_pages_works_alike() {
    let Some(mount) = host_needs::HugePages::with_room(LEN_HUGE) else { return };
    let (huge, records) = (tempfile::tempdir_in(mount.path()).unwrap(), tmpfs_dir());
    let config = ImageConfig { memory: huge.path().join("memory"), ..config(records.path(), LEN_HUGE) };
    let odd = ImageConfig { len: LEN_HUGE + PAGE_SIZE as u64, ..config.clone() };
    assert!(matches!(Image::create(odd), Err(ImageError::Unit { .. })));
    let mut image = Image::create(config.clone()).unwrap();
    image.begin_sync(TERM, EpochId::FIRST).unwrap();
    image.apply(staged(1, pages_of(1, 0..LEN_HUGE / PAGE_SIZE as u64))).unwrap();
    let digest = image.digest();
    drop(image);
    assert_eq!(Image::open(config).unwrap().digest(), digest);
}

const LEN_HUGE: u64 = 4 << 20;
