//! Child processes: started in a namespace, logged to a file, awaited by pidfd, killed on drop.
//!
//! A child gets SIGKILL from the kernel when the laboratory dies. The kernel ties that to the thread
//! that forked, so one thread that lives as long as the process does all the forking.
#![expect(unsafe_code, reason = "pre_exec, pidfd_open")]

use crate::netns::Namespace;
use crate::scratch;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why a child could not be started, watched or ended.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The host's fault, or a package is missing.
    #[error("cannot start {name} ({program}): {source}; is its package installed (scripts/packages)?")]
    Start {
        /// The child's name in the laboratory.
        name: String,
        /// The program.
        program: String,
        /// The system's word.
        source: io::Error,
    },
    /// The host's fault.
    #[error("{name}: {step}: {source}")]
    System {
        /// The child's name in the laboratory.
        name: String,
        /// What was being done.
        step: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The child ended although it was still needed.
    #[error("{name} ended ({status}) before {awaited:?} stood in its log; the log ends:\n{tail}")]
    EndedEarly {
        /// The child's name in the laboratory.
        name: String,
        /// How it ended.
        status: String,
        /// The text that was awaited.
        awaited: String,
        /// The last lines of its log.
        tail: String,
    },
    /// The child did not do it in time.
    #[error("{name}: no {awaited:?} in its log within {seconds} s; the log ends:\n{tail}")]
    Timeout {
        /// The child's name in the laboratory.
        name: String,
        /// The text that was awaited.
        awaited: String,
        /// How long it was awaited.
        seconds: u64,
        /// The last lines of its log.
        tail: String,
    },
}

/// What to start, and where.
pub struct ProcessSpec {
    name: String,
    command: Command,
    namespace: Option<Namespace>,
    log: PathBuf,
    spoken_to: bool,
}

impl ProcessSpec {
    /// `program`, with standard output and error appended to the file `log`.
    pub fn new(name: impl Into<String>, program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            command: Command::new(program),
            namespace: None,
            log: log.into(),
            spoken_to: false,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts it in that network namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Has its standard input written to: see [`Process::input`]. Nothing is there to be read otherwise.
    #[must_use]
    pub fn spoken_to(mut self) -> Self {
        self.spoken_to = true;
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Process, ProcessError> {
        Process::spawn(self)
    }
}

/// A running or ended child. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Process {
    fn spawn(mut spec: ProcessSpec) -> Result<Self, ProcessError> {
        let system = |step, source| ProcessError::System { name: spec.name.clone(), step, source };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)
            .map_err(|source| system("open its log", source))?;
        let log_too = log.try_clone().map_err(|source| system("open its log", source))?;
        let input = if spec.spoken_to { Stdio::piped() } else { Stdio::null() };
        spec.command.stdin(input).stdout(log).stderr(log_too);
        // A group of its own: Ctrl-C at the terminal is for the laboratory, which then ends its children.
        spec.command.process_group(0);
        spec.command.env(scratch::MARK_VARIABLE, scratch::mark());
        bind_to_laboratory(&mut spec.command);
        if let Some(namespace) = &spec.namespace {
            namespace.enter_on_exec(&mut spec.command);
        }
        let program = spec.command.get_program().to_string_lossy().into_owned();
        let name = spec.name;
        let child = fork_in_lasting_thread(spec.command).map_err(|source| ProcessError::Start {
            name: name.clone(),
            program,
            source,
        })?;
        let pidfd = open_pidfd(child.id()).map_err(|source| ProcessError::System {
            name: name.clone(),
            step: "watch it",
            source,
        })?;
        Ok(Self { name, log: spec.log, child, pidfd, status: None })
    }

    /// Its name in the laboratory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id. Valid, and no other process's, until [`Process::wait`] has said that it ended.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its standard input, if it is [spoken to](ProcessSpec::spoken_to); the first time only.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The file that has its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last `lines` lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.wait(Duration::ZERO), Ok(None))
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        if self.status.is_some() {
            return Ok(());
        }
        // Not reaped yet, so the number is still this child's.
        match kill(Pid::from_raw(self.pid()), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(self.system("signal it", error.into())),
        }
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGKILL)?;
        let step = "wait for its end";
        let status = match self.status {
            Some(status) => status,
            None => self.child.wait().map_err(|source| self.system(step, source))?,
        };
        self.status = Some(status);
        Ok(status)
    }

    /// SIGTERM, and SIGKILL if it has not ended within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGTERM)?;
        match self.wait(patience)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Waits for its end for as long as `patience`; none if it still runs then.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, ProcessError> {
        if self.status.is_none() && wait_readable(&[self.pidfd.as_fd()], patience) {
            self.status = self.child.try_wait().map_err(|source| self.system("wait for its end", source))?;
        }
        Ok(self.status)
    }

    /// Waits until `text` stands in the file `log` (this child's log by default: see
    /// [`Process::wait_for_log`]), or the child ends, or the time is over.
    pub fn wait_for_text(&mut self, log: &Path, text: &str, patience: Duration) -> Result<(), ProcessError> {
        let deadline = Instant::now() + patience;
        let mut follower = Follower::open(log).map_err(|source| self.system("follow its log", source))?;
        loop {
            if follower.contains(text).map_err(|source| self.system("read its log", source))? {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProcessError::Timeout {
                    name: self.name.clone(),
                    awaited: text.into(),
                    seconds: patience.as_secs(),
                    tail: tail(log, 15),
                });
            }
            if let Some(status) = self.wait(Duration::ZERO)? {
                // What it wrote last counts.
                if follower.contains(text).map_err(|source| self.system("read its log", source))? {
                    return Ok(());
                }
                return Err(ProcessError::EndedEarly {
                    name: self.name.clone(),
                    status: status.to_string(),
                    awaited: text.into(),
                    tail: format!(
                        "{}{}",
                        tail(log, 15),
                        if log == self.log { String::new() } else { self.log_tail(15) }
                    ),
                });
            }
            wait_readable(&[self.pidfd.as_fd(), follower.watch.as_fd()], left);
            follower.clear();
        }
    }

    /// Waits until `text` stands in its log.
    pub fn wait_for_log(&mut self, text: &str, patience: Duration) -> Result<(), ProcessError> {
        let log = self.log.clone();
        self.wait_for_text(&log, text, patience)
    }

    fn system(&self, step: &'static str, source: io::Error) -> ProcessError {
        ProcessError::System { name: self.name.clone(), step, source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!("{error}");
        }
    }
}

/// Runs a short-lived tool to its end and gives its standard output; an error carries its words.
pub fn run_tool(namespace: Option<&Namespace>, program: &str, args: &[&str]) -> Result<String, ProcessError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    if let Some(namespace) = namespace {
        namespace.enter_on_exec(&mut command);
    }
    let name = format!("{program} {}", args.join(" "));
    let output = command.output().map_err(|source| ProcessError::Start {
        name: name.clone(),
        program: program.into(),
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ProcessError::System { name, step: "run", source: io::Error::other(words) })
}

/// The last lines of a text file; what cannot be read is empty.
pub fn tail(path: &Path, lines: usize) -> String {
    const MOST: u64 = 64 * 1024;
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(MOST)))?;
        file.take(MOST).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("  {line}\n")).collect()
}

/// Reads what is appended to a file; woken by inotify.
struct Follower {
    file: File,
    watch: Inotify,
    /// What was read and may still hold the beginning of the text.
    pending: Vec<u8>,
}

impl Follower {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        watch.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        let mut follower = Self { file, watch, pending: Vec::new() };
        follower.file.seek(SeekFrom::Start(0))?;
        Ok(follower)
    }

    fn contains(&mut self, text: &str) -> io::Result<bool> {
        let text = text.as_bytes();
        let mut chunk = [0; 16 * 1024];
        loop {
            let read = self.file.read(&mut chunk)?;
            if read == 0 {
                return Ok(false);
            }
            self.pending.extend_from_slice(&chunk[..read]);
            if self.pending.windows(text.len().max(1)).any(|window| window == text) {
                return Ok(true);
            }
            let keep = self.pending.len().saturating_sub(text.len());
            self.pending.drain(..keep);
        }
    }

    fn clear(&self) {
        // Whatever the events were, the file is read again.
        while self.watch.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// Waits until one of the descriptors is readable; false when the time is over first.
pub(crate) fn wait_readable(descriptors: &[BorrowedFd<'_>], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let mut waits: Vec<PollFd<'_>> =
            descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        // Rounded up, so that the last fraction of a millisecond is not spent turning round.
        let left = i32::try_from(left + u128::from(!patience.is_zero())).unwrap_or(i32::MAX);
        match poll(&mut waits, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(nix::Error::EINTR) if Instant::now() < deadline => {}
            Err(_) => return false,
        }
    }
}

fn bind_to_laboratory(command: &mut Command) {
    let laboratory = std::process::id() as libc::pid_t;
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid, _exit.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It may have died before the call.
            if libc::getppid() != laboratory {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

struct ForkOrder {
    command: Command,
    answer: mpsc::Sender<io::Result<Child>>,
}

static FORKER: OnceLock<Mutex<mpsc::Sender<ForkOrder>>> = OnceLock::new();

fn fork_in_lasting_thread(command: Command) -> io::Result<Child> {
    let orders = FORKER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<ForkOrder>();
        thread::spawn(move || {
            for mut order in inbox {
                if let Err(lost) = order.answer.send(order.command.spawn()) {
                    tracing::warn!("nobody waits for a child: {lost}");
                }
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts processes has ended");
    orders
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(ForkOrder { command, answer })
        .map_err(|_| io::Error::other("the thread that starts processes has ended"))?;
    result.recv().map_err(gone)?
}

fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers; on success it returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Ids of all processes whose `/proc/PID` satisfies `wanted`; this process is never among them.
pub(crate) fn processes_where(wanted: impl Fn(&Path) -> bool) -> Vec<i32> {
    let own = std::process::id() as i32;
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(pid, path)| *pid != own && wanted(path))
        .map(|(pid, _)| pid)
        .collect()
}

/// SIGKILLs every process for which `wanted` holds and waits until none is left, as long as `patience`.
pub(crate) fn kill_where(wanted: impl Fn(&Path) -> bool, patience: Duration) -> usize {
    let deadline = Instant::now() + patience;
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let pids = processes_where(&wanted);
        if pids.is_empty() || Instant::now() >= deadline {
            return killed.len();
        }
        let mut watches = Vec::new();
        for pid in pids {
            // Opened before the test is repeated: the number cannot pass to another process unseen.
            let Ok(pidfd) = open_pidfd(pid as u32) else { continue };
            if !wanted(&PathBuf::from(format!("/proc/{pid}"))) {
                continue;
            }
            // SAFETY: pidfd_send_signal takes a descriptor that is open, a signal, no info, no flags.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    pidfd.as_raw_fd(),
                    libc::SIGKILL,
                    std::ptr::null::<libc::siginfo_t>(),
                    0,
                )
            };
            if sent == 0 {
                killed.insert(pid);
                watches.push(pidfd);
            }
        }
        for watch in &watches {
            wait_readable(&[watch.as_fd()], deadline.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("log");
        (dir, log)
    }

    #[test]
    fn a_child_is_awaited_by_a_line_of_its_log() {
        let (_dir, log) = log();
        let mut child = ProcessSpec::new("greeter", "sh", &log)
            .args(["-c", "echo hello there; exec sleep 100"])
            .spawn()
            .expect("starts");
        child.wait_for_log("hello there", Duration::from_secs(5)).expect("says so");
        assert!(child.is_running());
        let status = child.kill().expect("dies");
        assert!(!status.success());
        assert!(!child.is_running());
    }

    #[test]
    fn a_child_that_ends_early_is_reported_with_its_last_words() {
        let (_dir, log) = log();
        let mut child = ProcessSpec::new("loser", "sh", &log)
            .args(["-c", "echo no luck; exit 3"])
            .spawn()
            .expect("starts");
        let error = child.wait_for_log("ready", Duration::from_secs(5)).expect_err("ends");
        assert!(matches!(error, ProcessError::EndedEarly { .. }), "{error}");
        assert!(error.to_string().contains("no luck"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_what_mends_it() {
        let (_dir, log) = log();
        let error = ProcessSpec::new("ghost", "no-such-program-here", log).spawn().expect_err("absent");
        assert!(error.to_string().contains("scripts/packages"), "{error}");
    }

    #[test]
    fn a_dropped_child_is_dead() {
        let (_dir, log) = log();
        let child = ProcessSpec::new("sleeper", "sleep", log).args(["100"]).spawn().expect("starts");
        let path = PathBuf::from(format!("/proc/{}", child.pid()));
        assert!(path.exists());
        drop(child);
        assert!(!path.exists());
    }
}
