//! Finding written pages: of a process that is this program again, which writes as it is told.
#![expect(unsafe_code, reason = "the process writes to a mapping")]

use crate::measure::{Bench, PAGES};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageSet};
use holdfast_checkpoint::tracker::{DirtyTracker, FileIdentity, UffdTracker};
use memmap2::MmapRaw;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const FILE: &str = "HOLDFAST_BENCH_TRACKED_FILE";
/// Memory that is looked through.
const MEMORY_PAGES: usize = 1 << 18;
/// Pages from one that is written to the next, where they lie scattered.
const STEP: usize = MEMORY_PAGES / PAGES;

/// Writes to a byte of each page that it is told of, if this is the process for that.
pub(crate) fn is_the_process_that_writes() -> bool {
    let Some(path) = std::env::var_os(FILE) else { return false };
    let file = File::options().read(true).write(true).open(path).expect("made by who started this");
    let map = MmapRaw::map_raw(&file).expect("it maps");
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let mut numbers = line.split(' ').map(|number| number.parse::<usize>().expect("a number"));
        let (count, step) = (numbers.next().expect("how many"), numbers.next().expect("how far apart"));
        for page in (0..count).map(|nth| nth * step) {
            assert!(page * PAGE_SIZE < map.len());
            // SAFETY: the byte lies in the mapping, as was just checked; nothing else of this process touches it.
            unsafe { map.as_mut_ptr().add(page * PAGE_SIZE).write_volatile(1) };
        }
        println!("done");
    }
    true
}

struct Writer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.env(FILE, path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut writer = Self { child, input, output: BufReader::new(output) };
        writer.hear();
        writer
    }

    fn hear(&mut self) {
        assert_ne!(self.output.read_line(&mut String::new()).expect("its answer"), 0, "it has ended");
    }

    /// Writes to so many pages, so far apart.
    fn write(&mut self, count: usize, step: usize) {
        writeln!(self.input, "{count} {step}").expect("it listens");
        self.hear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

pub(crate) fn measure(bench: &Bench) {
    let shapes = [("each by itself", STEP), ("in a row", 1)];
    let none = "GiB of which nothing was written";
    if !shapes.iter().any(|(what, _)| bench.wants("scan", what)) && !bench.wants("scan", none) {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = dir.path().join("memory");
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a new file");
    let len = (MEMORY_PAGES * PAGE_SIZE) as u64;
    file.set_len(len).expect("addresses");
    let mut writer = Writer::start(&path);
    writer.write(MEMORY_PAGES, 1);
    let meta = file.metadata().expect("of an open file");
    let identity = FileIdentity { dev: meta.dev(), ino: meta.ino() };
    let pid = i32::try_from(writer.child.id()).expect("a process id");
    let mut tracker = match UffdTracker::attach(pid, identity, len) {
        Ok(tracker) => tracker,
        Err(fault) => return println!("scan     left out: {fault}"),
    };
    let mut set = PageSet::for_bytes(len);
    for (what, step) in shapes {
        let prepare = || writer.write(PAGES, step);
        bench.timed("scan", what, prepare, |()| {
            set.clear();
            let stats = tracker.collect(&mut set).expect("it is there");
            assert_eq!(set.len(), PAGES as u64);
            stats.took
        });
    }
    let look = |tracker: &mut UffdTracker, set: &mut PageSet| {
        set.clear();
        tracker.collect(set).expect("it is there");
    };
    look(&mut tracker, &mut set);
    bench.line_of("scan", (1, "GiB", none), || (), |()| look(&mut tracker, &mut set));
}
