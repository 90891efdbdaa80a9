//! Guest memory as the frontend describes it: regions of guest physical addresses, each a part of a
//! memory file.
//!
//! A [`GuestMemory`] is immutable and shared by reference count. A table that says the same as the
//! one before yields the same object, so that 20 to 100 stop/cont a second map nothing. Addresses of
//! the guest become [`Segment`]s, which lie inside one region; bytes move only through them.

mod dirty;
mod file;
mod log;
#[cfg(all(test, loom))]
mod modelled;

pub use dirty::{DirtyBitmap, PAGE_BYTES};
pub use file::{FileIdentity, MapError, MemoryFile, MemoryFiles, OutOfFile};
pub use log::{DirtyLog, LogError};

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use thiserror::Error;

/// Regions in a table, at most; what the protocol's messages can carry.
pub const MAX_REGIONS: usize = 32;

/// A guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// An address in the frontend's own address space, by which it names the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddress(pub u64);

/// One region as the frontend described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest physical address.
    pub gpa: Gpa,
    /// Bytes.
    pub bytes: u64,
    /// First address in the frontend's address space.
    pub frontend: FrontendAddress,
    /// Where the region begins in its file.
    pub offset: u64,
}

/// One region and the file that it is a part of.
#[derive(Clone, Debug)]
pub struct Region {
    spec: RegionSpec,
    file: Arc<MemoryFile>,
}

impl Region {
    /// What the frontend said of it.
    #[must_use]
    pub const fn spec(&self) -> RegionSpec {
        self.spec
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &Arc<MemoryFile> {
        &self.file
    }
}

/// Why a memory table was refused; the frontend is at fault unless the text says otherwise.
#[derive(Debug, Error)]
pub enum TableError {
    /// A file could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The table is empty or too long.
    #[error("peer: a memory table of {0} regions; 1 to {MAX_REGIONS} are possible")]
    Regions(usize),
    /// A region reaches beyond its file or wraps around.
    #[error("peer: the region at {gpa} ({bytes:#x} bytes) does not lie inside its file of {file:#x} bytes")]
    OutsideFile {
        /// Where the region begins.
        gpa: Gpa,
        /// Its size.
        bytes: u64,
        /// Size of the file.
        file: u64,
    },
    /// Two regions overlap.
    #[error("peer: the regions at {0} and {1} overlap")]
    Overlap(Gpa, Gpa),
}

/// A piece of guest memory inside one region; made by [`GuestMemory`] after its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    region: u16,
    len: u32,
    offset: u64,
    gpa: u64,
}

impl Segment {
    /// Bytes in the segment; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub const fn len(&self) -> u32 {
        self.len
    }
}

/// The memory of one guest.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    files: Vec<Arc<MemoryFile>>,
}

impl GuestMemory {
    /// Builds the memory from the frontend's table.
    ///
    /// # Errors
    /// When the table contradicts itself or its files, or a file cannot be mapped.
    pub fn new(files: &MemoryFiles, table: &[(RegionSpec, File)]) -> Result<Self, TableError> {
        if table.is_empty() || table.len() > MAX_REGIONS {
            return Err(TableError::Regions(table.len()));
        }
        let mut regions = Vec::with_capacity(table.len());
        for (spec, file) in table {
            let file = files.map(file)?;
            let inside = spec.offset.checked_add(spec.bytes).is_some_and(|end| end <= file.len());
            let sane = spec.bytes > 0
                && spec.gpa.0.checked_add(spec.bytes).is_some()
                && spec.frontend.0.checked_add(spec.bytes).is_some();
            if !inside || !sane {
                return Err(TableError::OutsideFile { gpa: spec.gpa, bytes: spec.bytes, file: file.len() });
            }
            regions.push(Region { spec: *spec, file });
        }
        regions.sort_by_key(|region: &Region| region.spec.gpa);
        for pair in regions.windows(2) {
            let (low, high) = (pair[0].spec, pair[1].spec);
            if low.gpa.0 + low.bytes > high.gpa.0 {
                return Err(TableError::Overlap(low.gpa, high.gpa));
            }
        }
        let mut distinct: Vec<Arc<MemoryFile>> = Vec::new();
        for region in &regions {
            if !distinct.iter().any(|file| Arc::ptr_eq(file, &region.file)) {
                distinct.push(Arc::clone(&region.file));
            }
        }
        Ok(Self { regions, files: distinct })
    }

    /// Whether `other` describes the same bytes at the same places of the same mappings.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.regions.len() == other.regions.len()
            && self
                .regions
                .iter()
                .zip(&other.regions)
                .all(|(a, b)| a.spec == b.spec && Arc::ptr_eq(&a.file, &b.file))
    }

    /// The files, each once.
    #[must_use]
    pub fn files(&self) -> &[Arc<MemoryFile>] {
        &self.files
    }

    /// The regions, lowest address first.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// First address above all regions.
    #[must_use]
    pub fn end(&self) -> Gpa {
        Gpa(self.regions.last().map_or(0, |region| region.spec.gpa.0 + region.spec.bytes))
    }

    /// The part of `gpa..gpa + len` that lies in the region of `gpa`; `None` when no region has it.
    #[inline]
    #[must_use]
    pub fn segment(&self, gpa: Gpa, len: u32) -> Option<Segment> {
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let inside = gpa.0.wrapping_sub(region.spec.gpa.0);
            if inside >= region.spec.bytes || len == 0 {
                return None;
            }
            Some(Segment {
                region: index as u16,
                len: u64::from(len).min(region.spec.bytes - inside) as u32,
                offset: region.spec.offset + inside,
                gpa: gpa.0,
            })
        })
    }

    /// Where `len` bytes at a frontend's address lie: the file, the offset in it, and the guest
    /// physical address. `None` unless one region holds all of them.
    #[must_use]
    pub fn locate(&self, address: FrontendAddress, len: u64) -> Option<(Arc<MemoryFile>, u64, Gpa)> {
        self.regions.iter().find_map(|region| {
            let inside = address.0.wrapping_sub(region.spec.frontend.0);
            let fits = inside < region.spec.bytes && len <= region.spec.bytes - inside;
            fits.then(|| {
                let gpa = Gpa(region.spec.gpa.0 + inside);
                (Arc::clone(&region.file), region.spec.offset + inside, gpa)
            })
        })
    }

    /// Copies up to `out.len()` bytes of the segments, taken as one run, from `skip` on. Returns how
    /// many there were.
    #[inline]
    pub(crate) fn gather(&self, segments: &[Segment], skip: usize, out: &mut [u8]) -> usize {
        let mut skip = skip as u64;
        let mut done = 0;
        // Most frames lie in one piece.
        if let [segment] = segments {
            let take = u64::from(segment.len).saturating_sub(skip).min(out.len() as u64) as usize;
            let Some(region) = self.regions.get(usize::from(segment.region)) else { return 0 };
            let read = region.file.read(segment.offset + skip, &mut out[..take]);
            return if read.is_ok() { take } else { 0 };
        }
        for segment in segments {
            if done == out.len() {
                break;
            }
            let len = u64::from(segment.len);
            if skip >= len {
                skip -= len;
                continue;
            }
            let take = (len - skip).min((out.len() - done) as u64) as usize;
            let Some(region) = self.regions.get(usize::from(segment.region)) else { break };
            if region.file.read(segment.offset + skip, &mut out[done..done + take]).is_err() {
                break;
            }
            done += take;
            skip = 0;
        }
        done
    }

    /// Has the first lines of a segment fetched, for what `direction` does with them: enough for the headers of
    /// a frame; what follows a processor fetches by itself.
    #[inline]
    pub(crate) fn prefetch(&self, segment: &Segment, to_write: bool) {
        const LINE: u64 = 64;
        let Some(region) = self.regions.get(usize::from(segment.region)) else { return };
        for at in [segment.offset, segment.offset + LINE.min(u64::from(segment.len) - 1)] {
            if to_write {
                region.file.prefetch_to_write(at);
            } else {
                region.file.prefetch(at);
            }
        }
    }

    /// As [`Self::scatter`], of two parts into a segment that has room for them; whether they were written.
    #[inline]
    pub(crate) fn put(
        &self,
        segment: &Segment,
        parts: [&[u8]; 2],
        log: Option<&DirtyLog>,
        written: &mut Vec<Segment>,
    ) -> bool {
        let [first, second] = parts;
        let len = (first.len() + second.len()) as u64;
        let Some(region) = self.regions.get(usize::from(segment.region)) else { return false };
        let done = len <= u64::from(segment.len)
            && region.file.write_unmarked(segment.offset, first).is_ok()
            && region.file.write_unmarked(segment.offset + first.len() as u64, second).is_ok();
        if done {
            written.push(Segment { len: len as u32, ..*segment });
            if let Some(log) = log {
                log.mark(segment.gpa, len);
            }
        }
        done
    }

    /// Writes `parts` one after the other over the segments, and appends what was written to `written`, for
    /// [`Self::mark_fenced`]; a log is marked at once. Returns how many bytes found room.
    #[inline]
    pub(crate) fn scatter<'p>(
        &self,
        segments: &[Segment],
        parts: impl Iterator<Item = &'p [u8]>,
        log: Option<&DirtyLog>,
        written: &mut Vec<Segment>,
    ) -> usize {
        let mut parts = parts.filter(|part| !part.is_empty());
        let mut part: &[u8] = &[];
        let mut done = 0;
        for segment in segments {
            let Some(region) = self.regions.get(usize::from(segment.region)) else { break };
            let mut filled = 0_u32;
            while filled < segment.len {
                if part.is_empty() {
                    match parts.next() {
                        Some(next) => part = next,
                        None => break,
                    }
                }
                let take = part.len().min((segment.len - filled) as usize);
                if region.file.write_unmarked(segment.offset + u64::from(filled), &part[..take]).is_err() {
                    break;
                }
                part = &part[take..];
                filled += take as u32;
            }
            if filled == 0 {
                break;
            }
            written.push(Segment { len: filled, ..*segment });
            if let Some(log) = log {
                log.mark(segment.gpa, u64::from(filled));
            }
            done += filled as usize;
        }
        done
    }

    /// Marks what was written, in the own bitmap (CK-2). The caller has put a sequentially consistent fence
    /// between the writes and this.
    #[inline]
    pub(crate) fn mark_fenced(&self, written: &[Segment]) {
        for segment in written {
            if let Some(region) = self.regions.get(usize::from(segment.region)) {
                region.file.mark_fenced(segment.offset, u64::from(segment.len));
            }
        }
    }

    /// Reads one 16-byte descriptor at a guest physical address inside one region.
    #[inline]
    pub(crate) fn load_16_bytes(&self, gpa: Gpa) -> Option<[u64; 2]> {
        let segment = self.segment(gpa, 16)?;
        if segment.len != 16 {
            return None;
        }
        self.regions.get(usize::from(segment.region))?.file.load_16_bytes(segment.offset).ok()
    }
}
