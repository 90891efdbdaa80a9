//! Looks for written pages in the page map of a process, on several processors where there is much memory.
//!
//! A scan is a part of the pause. So all that it needs is there beforehand: threads that wait for the next one, and room
//! for what they find, as much as can be found. Memory that nothing was found for is not taken.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
#![expect(unsafe_code, reason = "ioctl requests on a page map")]

use super::super::TrackError;
use super::super::maps::Mapping;
use crate::pages::PAGE_SIZE;
use crate::urgent::own_thread;
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Runs of pages that one step of a scan can report.
pub(super) const RUNS: usize = 4096;

/// Memory of a mapping that one thread scans at a time: a scan of it takes half a millisecond while nobody has touched it,
/// and a quarter of one when all of it has been.
pub(super) const PART_BYTES: usize = 1 << 30;

/// Threads that scan, at the most.
const SCANNERS: usize = 8;

/// Written pages that are no farther apart are protected in one step.
pub(super) const NEAR_BYTES: u64 = 2 << 20;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const SCAN_WP_MATCHING: u64 = 1 << 0;
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct PagemapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PagemapScan);

/// The page map of a process.
#[derive(Debug)]
pub(super) struct PageMap {
    pid: i32,
    file: File,
}

impl PageMap {
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, file: File::open(format!("/proc/{pid}/pagemap"))? })
    }

    /// Tries a scan of the page at an address without protecting anything.
    pub(super) fn probe(&self, start: u64) -> Result<(), TrackError> {
        let mut found = [PageRegion::default()];
        self.walk(start..start + PAGE_SIZE as u64, SCAN_CHECK_WPASYNC, &mut found, &mut |_| {})
    }

    /// Scans some parts of the memory; the runs of pages that were written are in the room then, and protected.
    ///
    /// Protecting takes the whole range that it is asked for away from a guest under KVM for a moment, written or
    /// not. So the written pages are looked for first, and only their neighbourhoods are protected.
    ///
    /// Its cost is in that of [`UffdTracker::collect`](super::super::DirtyTracker::collect).
    fn scan(&self, parts: &[Part], Room { found, near, runs }: &mut Room) -> Result<(), TrackError> {
        runs.clear();
        for part in parts {
            near.clear();
            self.walk(part.start..part.end, SCAN_CHECK_WPASYNC, found, &mut |run| match near.last_mut() {
                // A look that goes on where there was no more room may show a run twice.
                Some(last) if run.start <= last.end + NEAR_BYTES => last.end = last.end.max(run.end),
                _ => near.push(run.start..run.end),
            })?;
            for range in near.iter() {
                let first = runs.len();
                self.walk(range.clone(), SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC, found, &mut |run| {
                    let from = (part.offset + (run.start - part.start)) / PAGE_SIZE as u64;
                    let to = from + (run.end - run.start) / PAGE_SIZE as u64;
                    match runs[first..].last_mut() {
                        // As of a look that went on: one run, for which one place is kept.
                        Some(last) if last.end == from => last.end = to,
                        _ => runs.push(from..to),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Shows every run of written pages of a range of the process's addresses.
    fn walk(
        &self,
        range: Range<u64>,
        flags: u64,
        found: &mut [PageRegion],
        each: &mut dyn FnMut(&PageRegion),
    ) -> Result<(), TrackError> {
        let mut at = range.start;
        while at < range.end {
            let mut request = PagemapScan {
                size: size_of::<PagemapScan>() as u64,
                flags,
                start: at,
                end: range.end,
                walk_end: 0,
                vec: found.as_mut_ptr() as u64,
                vec_len: found.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                // Exactly this category, and nothing else to report, makes the kernel count a page that left
                // the page tables as written.
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: the request has the size that it names; `vec` points to `vec_len` regions, which outlive the
            // call and are not otherwise borrowed during it.
            let result = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut request) };
            let runs = match result {
                Ok(runs) => usize::try_from(runs).unwrap_or(0),
                Err(Errno::EINTR) => continue,
                Err(Errno::ESRCH) => return Err(TrackError::Gone { pid: self.pid }),
                Err(Errno::EPERM) => {
                    let change = "a part of it is not watched any more".to_owned();
                    return Err(TrackError::Remapped { pid: self.pid, change });
                }
                Err(errno) => return Err(self.fault(errno.into())),
            };
            found[..runs].iter().for_each(&mut *each);
            if request.walk_end <= at {
                return Err(self.fault(io::ErrorKind::InvalidData.into()));
            }
            at = request.walk_end;
        }
        Ok(())
    }

    const fn fault(&self, source: io::Error) -> TrackError {
        TrackError::Kernel { pid: self.pid, what: "scan its page map", source }
    }
}

/// A part of a mapping: addresses of the process, and the offset in the file of the first.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    end: u64,
    offset: u64,
}

/// Cuts mappings into parts.
fn cut(mappings: &[Mapping]) -> Vec<Part> {
    let parts = |mapping: &Mapping| {
        let (start, end, offset) = (mapping.start, mapping.end, mapping.offset);
        (start..end).step_by(PART_BYTES).map(move |from| Part {
            start: from,
            end: end.min(from + PART_BYTES as u64),
            offset: offset + (from - start),
        })
    };
    mappings.iter().flat_map(parts).collect()
}

/// Room for what one thread finds.
#[derive(Debug)]
struct Room {
    /// In one step.
    found: Vec<PageRegion>,
    /// Neighbourhoods of written pages, in one part.
    near: Vec<Range<u64>>,
    /// Runs of written pages, as indices in the file, in all its parts.
    runs: Vec<Range<u64>>,
}

impl Room {
    fn of(parts: &[Part]) -> Self {
        // Two runs have a page between them, and two neighbourhoods more than that.
        let pages = |part: &Part| usize::try_from((part.end - part.start) / PAGE_SIZE as u64).unwrap_or(0);
        Self {
            found: vec![PageRegion::default(); RUNS],
            near: Vec::with_capacity(PART_BYTES / NEAR_BYTES as usize + 1),
            runs: Vec::with_capacity(parts.iter().map(|part| pages(part) / 2 + 1).sum()),
        }
    }
}

/// What one thread scans, and its room.
#[derive(Debug)]
struct Share {
    parts: Vec<Part>,
    room: Room,
}

impl Share {
    fn scan(&mut self, map: &PageMap) -> Result<(), TrackError> {
        map.scan(&self.parts, &mut self.room)
    }
}

/// A thread that scans its share whenever it is given it.
#[derive(Debug)]
struct Scanner {
    /// Here between two scans.
    share: Option<Share>,
    begin: Option<Sender<Share>>,
    done: Receiver<(Share, Result<(), TrackError>)>,
    thread_id: i32,
    thread: Option<JoinHandle<()>>,
}

impl Scanner {
    fn start(map: &Arc<PageMap>) -> io::Result<Self> {
        let (map, (tell, told)) = (Arc::clone(map), bounded(1));
        let ((begin, begun), (give_back, done)) = (bounded::<Share>(1), bounded(1));
        let thread = thread::Builder::new().name("hf-scan".to_owned()).spawn(move || {
            tell.send(own_thread()).unwrap_or_default();
            while let Ok(mut share) = begun.recv() {
                let outcome = share.scan(&map);
                // A tracker that is gone does not miss it.
                drop(give_back.send((share, outcome)));
            }
        })?;
        let thread_id = told.recv().map_err(io::Error::other)?;
        Ok(Self { share: None, begin: Some(begin), done, thread_id, thread: Some(thread) })
    }

    fn begin(&mut self) {
        let begin = self.begin.as_ref().expect("there until dropped");
        begin.send(self.share.take().expect("here between two scans")).expect("it runs until it is dropped");
    }

    fn end(&mut self) -> Result<(), TrackError> {
        let (share, outcome) = self.done.recv().expect("a scanning thread answers each time");
        self.share = Some(share);
        outcome
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.begin = None;
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported when it happened.
            drop(thread.join());
        }
    }
}

/// All memory, shared out between the calling thread and some more.
#[derive(Debug)]
pub(super) struct Scanners {
    map: Arc<PageMap>,
    own: Share,
    others: Vec<Scanner>,
}

impl Scanners {
    /// Starts as many threads as there are processors for and parts of memory. Where the host has no room for one, the
    /// others scan its share.
    pub(super) fn start(processors: usize, map: PageMap, mappings: &[Mapping]) -> Self {
        let (map, parts) = (Arc::new(map), cut(mappings));
        let wanted = parts.len().min(processors).min(SCANNERS).saturating_sub(1);
        let mut others: Vec<_> = (0..wanted).map_while(|_| Scanner::start(&map).ok()).collect();
        let each = parts.len().div_ceil(others.len() + 1).max(1);
        let mut shares =
            parts.chunks(each).map(|parts| Share { parts: parts.to_vec(), room: Room::of(parts) });
        let own = shares.next().unwrap_or_else(|| Share { parts: Vec::new(), room: Room::of(&[]) });
        others.iter_mut().for_each(|scanner| scanner.share = shares.next());
        others.retain(|scanner| scanner.share.is_some());
        Self { map, own, others }
    }

    pub(super) fn probe(&self, start: u64) -> Result<(), TrackError> {
        self.map.probe(start)
    }

    /// Kernel ids of the threads beside the calling one.
    pub(super) fn thread_ids(&self) -> Vec<i32> {
        self.others.iter().map(|scanner| scanner.thread_id).collect()
    }

    /// Scans everything, and shows each run of written pages, as indices in the file; they are protected now. Shows
    /// none, and says why, when a part could not be scanned.
    ///
    /// Nearly all of it is the kernel's walk through the page tables, an entry in 1.9 ns where a mark stands for a page
    /// that was never touched, in 0.9 ns where there is a page: 0.5 and 0.22 ms a GiB and thread, in cache or not. Two
    /// threads are twice as fast. At 8 GiB on two processors 1.9 to 2.1 ms (`holdfast bench pause --pages 200`).
    pub(super) fn scan(&mut self, each: &mut dyn FnMut(&Range<u64>)) -> Result<(), TrackError> {
        self.others.iter_mut().for_each(Scanner::begin);
        let mut outcome = self.own.scan(&self.map);
        for scanner in &mut self.others {
            // All of them are waited for, whatever became of one.
            outcome = outcome.and(scanner.end());
        }
        outcome?;
        let theirs = self.others.iter().filter_map(|scanner| scanner.share.as_ref());
        [&self.own].into_iter().chain(theirs).flat_map(|share| &share.room.runs).for_each(each);
        Ok(())
    }
}
