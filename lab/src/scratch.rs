//! Folders for sockets, logs and guest memory, and the promise that nothing outlives the laboratory.
//!
//! Each process that uses the laboratory has a mark, `PID-STARTTIME`, which all its children carry in
//! their environment and which names its two folders: `hf-MARK` in the folder for temporary files
//! (logs, captures, sockets) and in `/dev/shm` (guest memory). Three things clean up:
//!
//! 1. [`Scratch`]'s drop, in the ordinary course and when a panic unwinds;
//! 2. the *warden*, a shell that waits for the end of a pipe held by this process: after SIGINT,
//!    SIGKILL or an abort it kills every process with the mark and removes the folders;
//! 3. a sweep at the start, for marks whose process is gone (a warden that was killed as well).

use crate::process::kill_where;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use thiserror::Error;

/// The environment variable that carries the mark.
pub const MARK_VARIABLE: &str = "HOLDFAST_LAB";
/// Set by the operator to any value: logs and captures are kept.
pub const KEEP_VARIABLE: &str = "HOLDFAST_LAB_KEEP";
const PREFIX: &str = "hf-";
/// Guest memory must be on tmpfs (or hugetlbfs), as a page is replaced in it in no time.
const MEMORY_ROOT: &str = "/dev/shm";

/// The host gives no place for files.
#[derive(Debug, Error)]
#[error("cannot make {}: {source}", path.display())]
pub struct ScratchError {
    path: PathBuf,
    source: io::Error,
}

/// Two folders that end with this value.
#[derive(Debug)]
pub struct Scratch {
    files: PathBuf,
    memory: PathBuf,
    keep: AtomicBool,
}

impl Scratch {
    /// New folders; `name` stands in their paths.
    pub fn new(name: &str) -> Result<Self, ScratchError> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        start_warden();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let make = |root: &Path| {
            let path = root.join(format!("{PREFIX}{}", mark())).join(format!("{name}-{number}"));
            fs::create_dir_all(&path).map(|()| path.clone()).map_err(|source| ScratchError { path, source })
        };
        Ok(Self {
            files: make(&std::env::temp_dir())?,
            memory: make(Path::new(MEMORY_ROOT))?,
            keep: AtomicBool::new(std::env::var_os(KEEP_VARIABLE).is_some()),
        })
    }

    /// The folder for logs, sockets and captures.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// A path in the folder for logs, sockets and captures.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// A path in the folder for guest memory (tmpfs).
    pub fn memory(&self, name: &str) -> PathBuf {
        self.memory.join(name)
    }

    /// Keeps the logs and captures (not the memory) past this value's end; gives their folder, moved
    /// to a name that no sweep takes.
    pub fn keep(&self) -> PathBuf {
        self.keep.store(true, Ordering::Relaxed);
        self.kept_path()
    }

    fn kept_path(&self) -> PathBuf {
        let name = self.files.file_name().and_then(|name| name.to_str()).unwrap_or("run");
        std::env::temp_dir().join(format!("holdfast-lab-{}-{name}", mark()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) {
            let kept = self.kept_path();
            match fs::rename(&self.files, &kept) {
                Ok(()) => tracing::info!("logs and captures are kept in {}", kept.display()),
                Err(error) => tracing::warn!("{} cannot be kept: {error}", self.files.display()),
            }
        }
        for path in [&self.files, &self.memory] {
            remove(path);
            // The folder of the mark goes with its last content.
            if let Some(Err(error)) = path.parent().map(fs::remove_dir) {
                tracing::debug!("{}: {error}", path.display());
            }
        }
    }
}

/// This process's mark.
pub fn mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| {
        let pid = std::process::id();
        format!("{pid}-{}", start_time(pid).unwrap_or(0))
    })
}

/// Kills the processes and removes the folders of laboratories that are gone; says how many marks.
pub fn sweep() -> usize {
    let mut swept = std::collections::BTreeSet::new();
    for root in [std::env::temp_dir(), PathBuf::from(MEMORY_ROOT)] {
        let Ok(entries) = fs::read_dir(root) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(mark) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            if !is_orphaned(mark) {
                continue;
            }
            kill_marked(mark);
            remove(&entry.path());
            swept.insert(mark.to_owned());
        }
    }
    swept.len()
}

/// A mark of ours whose process is gone.
fn is_orphaned(mark: &str) -> bool {
    let Some((pid, started)) = mark.split_once('-') else { return false };
    match (pid.parse::<u32>(), started.parse::<u64>()) {
        (Ok(pid), Ok(started)) => start_time(pid) != Some(started),
        _ => false,
    }
}

/// SIGKILLs every process that carries the mark in its environment.
fn kill_marked(mark: &str) {
    let wanted = format!("{MARK_VARIABLE}={mark}");
    let killed = kill_where(
        |process| {
            fs::read(process.join("environ")).is_ok_and(|environment| {
                environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            })
        },
        Duration::from_secs(5),
    );
    if killed > 0 {
        tracing::info!("ended {killed} processes that an earlier laboratory left behind");
    }
}

/// Start time of a process in clock ticks since boot: with the id it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and brackets; the fields are counted behind its last bracket.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{} cannot be removed: {error}", path.display());
        }
        _ => {}
    }
}

/// `$1` the mark, `$2` and `$3` the folders. Reads until the laboratory is gone.
const WARDEN: &str = r#"
trap '' INT TERM HUP QUIT PIPE
while read -r _; do :; done
for process in /proc/[0-9]*; do
    if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "HOLDFAST_LAB=$1"; then
        kill -KILL "${process#/proc/}"
    fi
done 2>/dev/null
rm -rf "$2" "$3"
"#;

/// Sweeps, then starts the warden; once a process.
fn start_warden() {
    static WARDEN_STARTED: OnceLock<()> = OnceLock::new();
    WARDEN_STARTED.get_or_init(|| {
        sweep();
        let folder = format!("{PREFIX}{}", mark());
        let started = Command::new("sh")
            .args(["-c", WARDEN, "holdfast-lab-warden", mark()])
            .arg(std::env::temp_dir().join(&folder))
            .arg(Path::new(MEMORY_ROOT).join(&folder))
            .env_remove(MARK_VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match started {
            // The pipe closes when this process ends, however it ends: that is the signal.
            Ok(warden) => std::mem::forget(warden),
            Err(error) => tracing::warn!("no warden watches over this laboratory: {error}"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_end_with_their_scratch() {
        let scratch = Scratch::new("unit").expect("folders");
        let (file, memory) = (scratch.file("log"), scratch.memory("ram"));
        fs::write(&file, "text").expect("written");
        fs::write(&memory, "bytes").expect("written");
        drop(scratch);
        assert!(!file.exists() && !memory.exists());
    }

    #[test]
    fn a_living_process_is_not_orphaned_and_a_reused_number_is() {
        assert!(!is_orphaned(mark()));
        let pid = std::process::id();
        assert!(is_orphaned(&format!("{pid}-1")));
        assert!(!is_orphaned("something-else"));
    }

    #[test]
    fn processes_of_a_dead_laboratory_are_swept() {
        // A mark of a process that has ended: this one's number with another start.
        let dead = format!("{}-7", std::process::id());
        let folder = std::env::temp_dir().join(format!("{PREFIX}{dead}"));
        fs::create_dir_all(&folder).expect("made");
        let mut orphan = Command::new("sleep").arg("100").env(MARK_VARIABLE, &dead).spawn().expect("starts");
        assert!(sweep() >= 1);
        let status = orphan.wait().expect("ended");
        assert!(!status.success());
        assert!(!folder.exists());
    }
}
