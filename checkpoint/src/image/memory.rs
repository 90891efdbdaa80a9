//! The copy of the guest's memory: a file in memory, allocated whole and mapped.
#![expect(
    unsafe_code,
    reason = "the memory is shared with the standby QEMU, so it is touched by pointer only"
)]

use super::{ImageError, StagedPages};
use crate::pages::{PAGE_SIZE, PageIndex};
use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Bytes whose pages are made ready at a time: less than a millisecond, for which nobody else can map anything.
const READY_STEP: usize = 2 << 20;
/// Words of a page that are looked at as one.
const STRIDE_WORDS: usize = 8;

/// Device and inode of a memory file.
pub(super) type Identity = (u64, u64);

/// The mapped and locked memory file.
#[derive(Debug)]
pub(super) struct Memory {
    map: Arc<MmapRaw>,
    identity: Identity,
    _ready: Ready,
    /// Holds the lock; the mapping alone would not.
    _file: Flock<File>,
}

impl Memory {
    /// Makes the file, or takes the one of this size that is there, and allocates all of it.
    pub(super) fn create(path: &Path, len: u64) -> Result<Self, ImageError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|source| io_error("create", path, source))?;
        let file = lock(file, path)?;
        let found = file.metadata().map_err(|source| io_error("look at", path, source))?.len();
        if found != 0 && found != len {
            return Err(ImageError::Size { path: path.to_owned(), expected: len, found });
        }
        let made = allocate(&file, path, len);
        if let (Err(_), 0) = (&made, found) {
            // Half an allocation keeps memory from everybody else.
            fs::remove_file(path).map_err(|source| io_error("remove", path, source))?;
        }
        made?;
        Self::map(file, path, len)
    }

    /// Takes the file that is there, which must be of this size.
    pub(super) fn open(path: &Path, len: u64) -> Result<Self, ImageError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                let reason = "it is not there".to_owned();
                ImageError::Unusable { path: path.to_owned(), reason }
            } else {
                io_error("open", path, source)
            }
        })?;
        let file = lock(file, path)?;
        let found = file.metadata().map_err(|source| io_error("look at", path, source))?.len();
        if found != len {
            return Err(ImageError::Size { path: path.to_owned(), expected: len, found });
        }
        allocate(&file, path, len)?;
        Self::map(file, path, len)
    }

    fn map(file: Flock<File>, path: &Path, len: u64) -> Result<Self, ImageError> {
        let meta = file.metadata().map_err(|source| io_error("look at", path, source))?;
        let bytes = usize::try_from(len).expect("64-bit hosts only");
        let map =
            MmapOptions::new().len(bytes).map_raw(&*file).map_err(|source| io_error("map", path, source))?;
        let map = Arc::new(map);
        Ok(Self {
            _ready: Ready::begin(Arc::clone(&map)),
            map,
            identity: (meta.dev(), meta.ino()),
            _file: file,
        })
    }

    pub(super) const fn identity(&self) -> Identity {
        self.identity
    }

    /// Copies the pages into the memory.
    ///
    /// Its cost is in that of [`Image::commit`](super::Image::commit).
    pub(super) fn apply(&self, pages: &StagedPages) {
        pages.iter().for_each(|(page, bytes)| self.write(page, bytes));
    }

    /// Writes a page; `None` is all zeros.
    ///
    /// Its cost is in that of [`Image::write_base`](super::Image::write_base).
    ///
    /// # Panics
    /// When the page lies beyond the memory: the caller checks.
    pub(super) fn write(&self, page: PageIndex, bytes: Option<&[u8; PAGE_SIZE]>) {
        let to = self.page(page);
        match bytes {
            // SAFETY: `page` gives a pointer to PAGE_SIZE mapped, writable bytes; `bytes` is our own
            // memory and so does not overlap the mapping.
            Some(bytes) => unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, PAGE_SIZE) },
            // Most of a guest's pages of zeros are so here as well: to look costs half of what a write does.
            None if is_blank(to) => {}
            // SAFETY: as above.
            None => unsafe { ptr::write_bytes(to, 0, PAGE_SIZE) },
        }
    }

    /// Reads a page.
    ///
    /// # Panics
    /// When the page lies beyond the memory: the caller checks.
    pub(super) fn read(&self, page: PageIndex, into: &mut [u8; PAGE_SIZE]) {
        let from = self.page(page);
        // SAFETY: `page` gives a pointer to PAGE_SIZE mapped bytes; `into` is our own memory and so
        // does not overlap the mapping. A standby that runs may write meanwhile: the bytes are then
        // a mix of old and new, and any mix is a valid value of a byte array.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE_SIZE) };
    }

    fn page(&self, page: PageIndex) -> *mut u8 {
        let offset = usize::try_from(page.offset()).expect("64-bit hosts only");
        assert!(
            offset.checked_add(PAGE_SIZE).is_some_and(|end| end <= self.map.len()),
            "page {page} lies beyond the memory"
        );
        // SAFETY: the offset was just checked to lie within the mapping.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }
}

/// Whether a mapped page is all zeros.
fn is_blank(page: *const u8) -> bool {
    let strides = page.cast::<[u64; STRIDE_WORDS]>();
    (0..PAGE_SIZE / size_of::<[u64; STRIDE_WORDS]>()).all(|stride| {
        // SAFETY: the caller has the pointer from `Memory::page`: PAGE_SIZE mapped bytes. What is read is copied out
        // first, and any bytes are valid numbers.
        let words = unsafe { strides.add(stride).read_unaligned() };
        words.iter().fold(0, |joined, word| joined | word) == 0
    })
}

/// The thread that puts a memory's pages into the page tables before anybody writes to them: a first write costs several
/// times as much as the copying of the page, and a synchronisation has enough to do. It has no part in what the
/// memory holds, and ends with it.
#[derive(Debug)]
struct Ready {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ready {
    fn begin(map: Arc<MmapRaw>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let spawned = thread::Builder::new().name("hf-ready".to_owned()).spawn(move || {
            for from in (0..map.len()).step_by(READY_STEP) {
                let len = READY_STEP.min(map.len() - from);
                let made = map.advise_range(Advice::PopulateWrite, from, len);
                if made.is_err() || stopped.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        // Without it everything is slower and nothing else.
        Self { stop, thread: spawned.ok() }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic over there was reported when it happened.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn lock(file: File, path: &Path) -> Result<Flock<File>, ImageError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => ImageError::InUse { path: path.to_owned() },
        errno => io_error("lock", path, errno.into()),
    })
}

/// Allocates every byte, so that no later access can fail for want of memory.
fn allocate(file: &File, path: &Path, len: u64) -> Result<(), ImageError> {
    let stat = fstatfs(file).map_err(|errno| io_error("look at", path, errno.into()))?;
    let kind = stat.filesystem_type();
    if !in_memory(kind) {
        return Err(ImageError::Filesystem { path: path.to_owned() });
    }
    let unit = u64::try_from(stat.block_size()).unwrap_or(0).max(PAGE_SIZE as u64);
    if len == 0 || len % unit != 0 {
        return Err(ImageError::Unit { path: path.to_owned(), len, unit });
    }
    let meta = file.metadata().map_err(|source| io_error("look at", path, source))?;
    let needed = len.saturating_sub(meta.blocks() * 512);
    let mut available = stat.blocks_available().saturating_mul(unit);
    if kind == TMPFS_MAGIC {
        // A tmpfs without a limit shows no blocks at all; one with a limit may promise more than is there.
        let limited = if stat.blocks() == 0 { u64::MAX } else { available };
        available = limited.min(memory_available());
        if needed > available {
            return Err(no_room(path, needed, available));
        }
    }
    let bytes = i64::try_from(len).map_err(|_| no_room(path, needed, available))?;
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOSPC | Errno::ENOMEM | Errno::EDQUOT | Errno::EFBIG) => {
                return Err(no_room(path, needed, available));
            }
            Err(errno) => return Err(io_error("allocate", path, errno.into())),
        }
    }
}

fn in_memory(kind: FsType) -> bool {
    kind == TMPFS_MAGIC || kind == HUGETLBFS_MAGIC
}

/// Bytes that the host can give without pushing anything out; all there is when it does not say.
fn memory_available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}

fn no_room(path: &Path, needed: u64, available: u64) -> ImageError {
    ImageError::NoRoom { path: path.to_owned(), needed, available }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> ImageError {
    ImageError::Io { what, path: path.to_owned(), source }
}
