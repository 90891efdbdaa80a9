//! A file that backs guest memory, mapped whole and once, and the registry that keeps it so.
//!
//! Every byte of guest memory that Holdfast reads or writes goes through the few methods here. Each
//! checks its range, so callers are safe code; each write marks the own dirty bitmap (CK-2).
//!
//! The guest writes the same bytes at any moment. No reference into the mapping is ever formed: ring
//! indices are atomics, everything else is copied out once and judged in the copy (RB-1).
//!
//! What this cannot guard against: a frontend that truncates the file under the mapping ends the
//! process with SIGBUS. The frontend is a process of the operator, not of the guest.

#![expect(
    unsafe_code,
    reason = "guest memory is shared with the guest: only raw, checked accesses are possible"
)]

use super::dirty::DirtyBitmap;
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use thiserror::Error;

/// What makes a file the same file: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number, as `st_dev`.
    pub dev: u64,
    /// Inode number, as `st_ino`.
    pub ino: u64,
}

/// Why a file that the frontend sent cannot back guest memory.
#[derive(Debug, Error)]
pub enum MapError {
    /// The host refused to look at or map the file.
    #[error("host: cannot map the guest's memory file: {0}")]
    Host(#[from] io::Error),
    /// The descriptor is not that of a file.
    #[error(
        "peer: a memory region came with a descriptor that is not a regular file; give QEMU memory-backend-file,share=on"
    )]
    NotAFile,
    /// The file is empty.
    #[error("peer: the guest's memory file is empty")]
    Empty,
}

/// An access that does not lie inside the file: a bug or a fault that was not caught before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes at offset {offset:#x} do not lie inside a memory file")]
pub struct OutOfFile {
    /// First byte of the access.
    pub offset: u64,
    /// Bytes accessed.
    pub len: u64,
}

/// One file that backs guest memory. The whole file is mapped, so that any page of it can be read.
#[derive(Debug)]
pub struct MemoryFile {
    identity: FileIdentity,
    page_size: u64,
    map: MmapRaw,
    /// To ask where the file has bytes, by a descriptor of its own: the frontend's has a position that is the
    /// frontend's. None where the file cannot be opened again.
    own: Option<File>,
    dirty: DirtyBitmap,
    #[cfg(all(test, loom))]
    modelled: super::modelled::Modelled,
}

impl MemoryFile {
    fn map(file: &File) -> Result<Self, MapError> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.file_type().is_block_device() {
            return Err(MapError::NotAFile);
        }
        if meta.len() == 0 {
            return Err(MapError::Empty);
        }
        let fs = fstatfs(file).map_err(io::Error::from)?;
        let page_size = if fs.filesystem_type() == HUGETLBFS_MAGIC {
            u64::try_from(fs.block_size()).unwrap_or(super::PAGE_BYTES)
        } else {
            super::PAGE_BYTES
        };
        let map = MmapOptions::new().map_raw(file)?;
        Ok(Self {
            identity: FileIdentity { dev: meta.dev(), ino: meta.ino() },
            page_size,
            dirty: DirtyBitmap::new(map.len() as u64),
            map,
            own: File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok(),
            #[cfg(all(test, loom))]
            modelled: super::modelled::Modelled::default(),
        })
    }

    /// Device and inode of the file.
    #[must_use]
    pub const fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Bytes in the file; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty file is refused at mapping")]
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Bytes of a page of the file: 4096, or the huge page size on hugetlbfs.
    #[must_use]
    pub const fn page_size(&self) -> u64 {
        self.page_size
    }

    /// First byte of the mapping, for a reader that has its own checks. The guest writes there.
    #[must_use]
    pub fn base(&self) -> *const u8 {
        self.map.as_ptr()
    }

    /// Takes the pages that Holdfast itself wrote since the last drain, as indices of 4 KiB pages in
    /// the file, lowest first (CK-2). One consumer a file.
    pub fn drain_dirty(&self, sink: &mut dyn FnMut(u64)) {
        self.dirty.drain(sink);
    }

    /// The first bytes at or after `from` that the file has: what lies before them was never written by anybody and is
    /// zeros, and to read it would make the host allocate it. All the rest of the file where the host cannot tell.
    #[must_use]
    pub fn data_from(&self, from: u64) -> Range<u64> {
        let ask = |offset: u64, whence| {
            let file = self.own.as_ref().ok_or(Errno::ENOTSUP)?;
            let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
            lseek(file, offset, whence).map(|found| found.unsigned_abs())
        };
        match ask(from, Whence::SeekData) {
            Ok(start) => start..ask(start, Whence::SeekHole).unwrap_or(self.len()).min(self.len()),
            Err(Errno::ENXIO) => self.len()..self.len(),
            Err(_) => from..self.len(),
        }
    }

    #[inline]
    fn at(&self, offset: u64, len: usize) -> Result<*mut u8, OutOfFile> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.map.len() as u64) {
            return Err(OutOfFile { offset, len: len as u64 });
        }
        // SAFETY: `offset` is at most the length of the mapping, which lives as long as `self`.
        Ok(unsafe { self.map.as_mut_ptr().add(offset as usize) })
    }

    /// Copies bytes out of the file.
    ///
    /// Bound: one copy. Allocations: none. 5 ns for a header of 12 bytes, 2 for 60, 15 for 1514, 62 for 4096
    /// (`cargo bench -p holdfast-vhost-user`).
    ///
    /// # Errors
    /// When the range does not lie inside the file; nothing is copied.
    #[inline]
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfFile> {
        let from = self.at(offset, out.len())?;
        // SAFETY: `at` checked that the source lies in the mapping; the destination is an exclusive
        // slice of this process and cannot overlap it.
        unsafe { copy(from, out.as_mut_ptr(), out.len()) };
        // The copy is what is judged and used from here on: forbid reading the source again.
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copies bytes into the file and marks its pages.
    ///
    /// # Errors
    /// When the range does not lie inside the file; nothing is written.
    #[inline]
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfFile> {
        self.write_unmarked(offset, bytes)?;
        self.mark(offset, bytes.len() as u64);
        Ok(())
    }

    /// Copies bytes into the file; the caller marks them in the same function, when it has written
    /// all pieces of a range, so that a page costs one atomic OR. Its cost is in the
    /// figure of [`RxRing::push`](crate::RxRing::push).
    #[inline]
    pub(super) fn write_unmarked(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfFile> {
        #[cfg(all(test, loom))]
        if let Ok(bytes) = bytes.try_into() {
            if self.modelled.store(offset, u64::from_le_bytes(bytes), Ordering::Relaxed) {
                return Ok(());
            }
        }
        let to = self.at(offset, bytes.len())?;
        // SAFETY: `at` checked that the destination lies in the mapping; the source is a slice of
        // this process and cannot overlap it.
        unsafe { copy(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Has the line at `offset` fetched for reading. A hint: nothing happens where there is none.
    #[inline]
    pub(crate) fn prefetch(&self, offset: u64) {
        if let Ok(at) = self.at(offset, 1) {
            prefetch(at);
        }
    }

    /// The same for writing: another core's copy of it is given up.
    #[inline]
    pub(crate) fn prefetch_to_write(&self, offset: u64) {
        if let Ok(at) = self.at(offset, 1) {
            prefetch_to_write(at);
        }
    }

    /// Marks a range that has just been written. The range was checked by the write.
    ///
    /// Bound: the pages of the range. Allocations: none. Its cost is in the figure of [`RxRing::push`](crate::RxRing::push).
    #[inline]
    pub(crate) fn mark(&self, offset: u64, len: u64) {
        self.dirty.mark(offset, len);
    }

    /// The same, behind a sequentially consistent fence that the caller has put after the write.
    #[inline]
    pub(super) fn mark_fenced(&self, offset: u64, len: u64) {
        self.dirty.mark_fenced(offset, len);
    }

    #[inline]
    fn u16_at(&self, offset: u64) -> Result<&AtomicU16, OutOfFile> {
        let at = self.at(offset, 2)?.cast::<u16>();
        if !at.is_aligned() {
            return Err(OutOfFile { offset, len: 2 });
        }
        // SAFETY: in the mapping and aligned; every access of this process to it is atomic, and the
        // borrow ends with the call.
        Ok(unsafe { AtomicU16::from_ptr(at) })
    }

    /// Reads a 16-bit number of the ring.
    ///
    /// # Errors
    /// When it does not lie inside the file or is not aligned.
    #[inline]
    pub(crate) fn load_u16(&self, offset: u64, order: Ordering) -> Result<u16, OutOfFile> {
        #[cfg(all(test, loom))]
        if let Some(number) = self.modelled.load(offset, order) {
            return Ok(number as u16);
        }
        Ok(u16::from_le(self.u16_at(offset)?.load(order)))
    }

    /// Writes a 16-bit number of the ring and marks its page.
    ///
    /// # Errors
    /// When it does not lie inside the file or is not aligned.
    #[inline]
    pub(crate) fn store_u16(&self, offset: u64, value: u16, order: Ordering) -> Result<(), OutOfFile> {
        #[cfg(all(test, loom))]
        if self.modelled.store(offset, value.into(), order) {
            self.mark(offset, 2);
            return Ok(());
        }
        self.u16_at(offset)?.store(value.to_le(), order);
        self.mark(offset, 2);
        Ok(())
    }

    /// The numbers that loom sees.
    #[cfg(all(test, loom))]
    pub(crate) fn modelled(&self) -> &super::modelled::Modelled {
        &self.modelled
    }

    #[inline]
    fn u64_at(&self, offset: u64) -> Result<&AtomicU64, OutOfFile> {
        let at = self.at(offset, 8)?.cast::<u64>();
        if !at.is_aligned() {
            return Err(OutOfFile { offset, len: 8 });
        }
        // SAFETY: in the mapping and aligned; every access of this process to it is atomic, and the
        // borrow ends with the call.
        Ok(unsafe { AtomicU64::from_ptr(at) })
    }

    /// Reads a 64-bit number of the ring.
    ///
    /// # Errors
    /// When it does not lie inside the file or is not aligned.
    #[inline]
    pub(crate) fn load_u64(&self, offset: u64, order: Ordering) -> Result<u64, OutOfFile> {
        #[cfg(all(test, loom))]
        if let Some(number) = self.modelled.load(offset, order) {
            return Ok(number);
        }
        Ok(u64::from_le(self.u64_at(offset)?.load(order)))
    }

    /// Writes a 64-bit number of the ring; the caller marks it with its burst.
    ///
    /// # Errors
    /// When it does not lie inside the file or is not aligned.
    #[inline]
    pub(crate) fn store_u64_unmarked(
        &self,
        offset: u64,
        value: u64,
        order: Ordering,
    ) -> Result<(), OutOfFile> {
        #[cfg(all(test, loom))]
        if self.modelled.store(offset, value, order) {
            return Ok(());
        }
        self.u64_at(offset)?.store(value.to_le(), order);
        Ok(())
    }

    /// Reads 16 bytes that the guest may be changing, each half in one access: a descriptor.
    ///
    /// # Errors
    /// When they do not lie inside the file.
    #[inline]
    pub(crate) fn load_16_bytes(&self, offset: u64) -> Result<[u64; 2], OutOfFile> {
        let at = self.at(offset, 16)?.cast::<u64>();
        if at.is_aligned() {
            // SAFETY: 16 bytes in the mapping, aligned for u64; accesses of this process are atomic.
            let halves = unsafe { [AtomicU64::from_ptr(at), AtomicU64::from_ptr(at.add(1))] };
            return Ok(halves.map(|half| u64::from_le(half.load(Ordering::Relaxed))));
        }
        let mut bytes = [0; 16];
        self.read(offset, &mut bytes)?;
        let (low, high) = bytes.split_at(8);
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        Ok([half(low), half(high)])
    }
}

/// Copies `len` bytes. Frames are mostly small, and a few wide moves are sooner done than a call.
///
/// # Safety
/// Both ranges are valid for their access and do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    type Wide = [u64; 4];
    const WIDE: usize = size_of::<Wide>();
    const NARROW: usize = size_of::<u64>();
    const HEADER: usize = crate::header::VirtioNetHdr::BYTES;
    if len == HEADER {
        // SAFETY: as of this function; twelve bytes in two moves that do not overlap, as they are made and read.
        unsafe {
            move_one::<u64>(from, to, 0);
            move_one::<u32>(from, to, NARROW);
        }
    } else if (NARROW..=2 * NARROW).contains(&len) {
        // SAFETY: as of this function; both moves lie within `len` bytes.
        unsafe {
            move_one::<u64>(from, to, 0);
            move_one::<u64>(from, to, len - NARROW);
        }
    } else if (WIDE..=4 * WIDE).contains(&len) {
        let mut at = 0;
        // The last move ends with the last byte, over some that were moved before.
        while at < len {
            // SAFETY: as of this function; the move ends at `len` at most.
            unsafe { move_one::<Wide>(from, to, at.min(len - WIDE)) };
            at += WIDE;
        }
    } else {
        // SAFETY: as of this function.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    }
}

/// Moves a `T` at `offset`.
///
/// # Safety
/// Both ranges have a `T` there, and do not overlap.
#[inline]
unsafe fn move_one<T: Copy>(from: *const u8, to: *mut u8, offset: usize) {
    // SAFETY: as of this function; no alignment is asked for.
    unsafe { to.add(offset).cast::<T>().write_unaligned(from.add(offset).cast::<T>().read_unaligned()) };
}

#[inline]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it has no effect but on caches, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[inline]
fn prefetch_to_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, as above; processors that do not know it take it for a no-operation.
    unsafe {
        std::arch::asm!("prefetchw [{at}]", at = in(reg) at, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The memory files that a process has mapped, so that a file is mapped once and has one dirty bitmap,
/// however many devices of a machine and however many tables name it. Cheap to clone; never on the
/// hot path.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles {
    known: Arc<Mutex<HashMap<FileIdentity, Weak<MemoryFile>>>>,
}

impl MemoryFiles {
    /// The mapping of this file: the one there is, or a new one. A file whose length has changed is
    /// mapped anew.
    ///
    /// # Errors
    /// When the file cannot back guest memory.
    #[expect(clippy::disallowed_methods, reason = "files are mapped by control threads")]
    pub fn map(&self, file: &File) -> Result<Arc<MemoryFile>, MapError> {
        let meta = file.metadata()?;
        let identity = FileIdentity { dev: meta.dev(), ino: meta.ino() };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapped) = known.get(&identity).and_then(Weak::upgrade) {
            if mapped.len() == meta.len() {
                return Ok(mapped);
            }
        }
        let mapped = Arc::new(MemoryFile::map(file)?);
        known.retain(|_, file| file.strong_count() > 0);
        known.insert(identity, Arc::downgrade(&mapped));
        Ok(mapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn memfd(name: &std::ffi::CStr) -> std::os::fd::OwnedFd {
        nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memory")
    }

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(bytes).expect("room for the file");
        file
    }

    #[test]
    fn bytes_of_every_length_are_copied_and_no_other() {
        let files = MemoryFiles::default();
        let mapped = files.map(&file(8192)).expect("maps");
        let source: Vec<u8> = (1..=200).collect();
        for len in 0..=source.len() {
            mapped.write(1000, &[0; 300]).expect("inside");
            mapped.write(1003, &source[..len]).expect("inside");
            let mut around = [9; 210];
            mapped.read(1000, &mut around).expect("inside");
            assert_eq!((&around[..3], &around[3..3 + len]), (&[0; 3][..], &source[..len]), "{len} bytes");
            assert!(around[3 + len..].iter().all(|byte| *byte == 0), "{len} bytes");
            let mut back = vec![0; len];
            mapped.read(1003, &mut back).expect("inside");
            assert_eq!(back, source[..len]);
        }
    }

    #[test]
    fn a_file_is_mapped_once_however_often_it_is_named() {
        let files = MemoryFiles::default();
        let backing = file(8192);
        let first = files.map(&backing).expect("maps");
        let again = files.map(&backing.try_clone().expect("a second descriptor")).expect("maps");
        assert!(Arc::ptr_eq(&first, &again));
        assert!(!Arc::ptr_eq(&first, &files.map(&file(8192)).expect("maps")));
    }

    #[test]
    fn a_file_that_grew_is_mapped_anew() {
        let files = MemoryFiles::default();
        let backing = file(4096);
        let first = files.map(&backing).expect("maps");
        backing.set_len(8192).expect("grows");
        let grown = files.map(&backing).expect("maps");
        assert_eq!((first.len(), grown.len()), (4096, 8192));
    }

    #[test]
    fn what_nobody_wrote_is_told_from_what_somebody_did() {
        let backing = File::from(memfd(c"guest"));
        backing.set_len(64 * 4096).expect("room for the file");
        let mapped = MemoryFiles::default().map(&backing).expect("maps");
        assert_eq!(mapped.data_from(0), 64 * 4096..64 * 4096);
        mapped.write(3 * 4096 + 7, &[1; 4096]).expect("inside");
        mapped.write(9 * 4096, &[0]).expect("inside");
        let mut found = Vec::new();
        let mut from = 0;
        while from < mapped.len() {
            let data = mapped.data_from(from);
            from = data.end;
            found.push(data.start / 4096..data.end / 4096);
        }
        assert_eq!(found, [3..5, 9..10, 64..64]);
        assert_eq!(mapped.data_from(4 * 4096), 4 * 4096..5 * 4096, "from within");
        assert!(mapped.data_from(u64::MAX).is_empty(), "nothing");
    }

    #[test]
    fn what_is_no_memory_file_is_refused() {
        let files = MemoryFiles::default();
        assert!(matches!(files.map(&file(0)), Err(MapError::Empty)));
        let null = File::open("/dev/null").expect("opens");
        assert!(matches!(files.map(&null), Err(MapError::NotAFile)));
    }

    /// RB-1: an access outside the file is refused and touches nothing.
    #[test]
    fn accesses_outside_the_file_are_refused() {
        let mut backing = file(4096);
        backing.write_all(b"guest").expect("writes");
        let mapped = MemoryFiles::default().map(&backing).expect("maps");
        let mut out = [0; 5];
        mapped.read(0, &mut out).expect("inside");
        assert_eq!(&out, b"guest");
        for offset in [4092, 4096, u64::MAX - 2, u64::MAX] {
            assert!(mapped.read(offset, &mut out).is_err(), "{offset:#x}");
            assert!(mapped.write(offset, &out).is_err(), "{offset:#x}");
            assert!(mapped.load_16_bytes(offset).is_err(), "{offset:#x}");
        }
        assert!(mapped.load_u16(4095, Ordering::Relaxed).is_err(), "across the end");
        assert!(mapped.load_u16(1, Ordering::Relaxed).is_err(), "not aligned");
        let mut dirty = 0;
        mapped.drain_dirty(&mut |_| dirty += 1);
        assert_eq!(dirty, 0, "refused writes mark nothing");
    }

    /// CK-2: whatever way a page was written by, its bit is set.
    #[test]
    fn every_way_to_write_marks_the_page() {
        let mapped = MemoryFiles::default().map(&file(4 * 4096)).expect("maps");
        mapped.write(4090, &[1; 12]).expect("inside");
        mapped.store_u16(3 * 4096, 7, Ordering::Release).expect("inside");
        let mut pages = Vec::new();
        mapped.drain_dirty(&mut |page| pages.push(page));
        assert_eq!(pages, [0, 1, 3]);
    }
}
