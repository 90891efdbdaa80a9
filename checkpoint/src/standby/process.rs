//! The process of a standby and the thread that keeps it.
#![expect(
    unsafe_code,
    reason = "the child asks the kernel to end it with its parent, before it becomes QEMU"
)]

use super::StandbyError;
use crate::tracker::in_process;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Lines of standard error that are kept.
const LINES: usize = 20;

/// Bytes of a line that are kept.
const LINE_BYTES: u64 = 400;

/// How long the keeper may take, after the end of a process, to read its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the keeper knows.
#[derive(Debug, Default)]
struct Known {
    told: Mutex<Told>,
    reaped: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    words: VecDeque<String>,
    status: Option<ExitStatus>,
}

/// A QEMU process that was started as a standby. Killed on drop until the guest in it runs.
#[derive(Debug)]
pub struct QemuProcess {
    pid: i32,
    /// The process itself, not its number, which another one may get.
    handle: OwnedFd,
    known: Arc<Known>,
    keeper: Option<JoinHandle<()>>,
    free: bool,
}

impl QemuProcess {
    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// What it said last on standard error.
    #[must_use]
    pub fn last_words(&self) -> String {
        Vec::from(lock(&self.known).words.clone()).join("\n")
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// [`StandbyError::Ended`] with its last words.
    pub fn check(&self) -> Result<(), StandbyError> {
        if !self.wait_for_end(Duration::ZERO) {
            return Ok(());
        }
        let status = self.wait_for_status();
        let status = status.map_or_else(|| "how, is not known".to_owned(), |status| status.to_string());
        Err(StandbyError::Ended { status, words: self.last_words() })
    }

    /// Waits until the keeper has noticed the end as well, read the rest of what it said, and reaped it.
    fn wait_for_status(&self) -> Option<ExitStatus> {
        let told = lock(&self.known);
        let waited = self.known.reaped.wait_timeout_while(told, LAST_WORDS, |told| told.status.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.status
    }

    /// What it said at its end, which is waited for at most so long; what it said so far if it goes on.
    pub(super) fn words_of_end(&self, limit: Duration) -> String {
        if self.wait_for_end(limit) && self.wait_for_status().is_none() {
            tracing::warn!(pid = self.pid, "the last words of a standby QEMU may be missing");
        }
        self.last_words()
    }

    /// Waits at most so long for its end; says whether it has ended.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        has_ended(&self.handle, limit)
    }

    /// Ends it at once, with the guest.
    pub fn kill(&mut self) {
        // SAFETY: pidfd_send_signal takes a descriptor that we hold, a number, no information and no flags.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.handle.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::error!(pid = self.pid, %error, "a QEMU could not be ended"),
        }
        if let Some(keeper) = self.keeper.take() {
            // The keeper ends when the process does; if it panicked, that was told by then.
            drop(keeper.join());
        }
    }

    /// Lets it live on when Holdfast ends.
    pub(super) fn set_free(&mut self) {
        self.free = true;
        let kept = in_process(self.pid, |stopped| {
            stopped.call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.unsigned_abs().into(), 0, 0])
        });
        match kept {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(pid = self.pid, %error, "the guest will end when Holdfast ends");
            }
            Err(error) => {
                tracing::warn!(pid = self.pid, %error, "the guest will end when Holdfast ends");
            }
        }
    }
}

impl Drop for QemuProcess {
    fn drop(&mut self) {
        if !self.free {
            self.kill();
        }
    }
}

/// The thread that starts, reads and reaps a process.
pub(super) struct Keeper {
    child: Child,
    handle: OwnedFd,
    errors: BufReader<ChildStderr>,
    known: Arc<Known>,
}

impl Keeper {
    /// Starts the command. It is this thread whose end ends the process, so that the caller's thread may
    /// come and go.
    pub(super) fn start(argv: Vec<String>) -> Result<QemuProcess, StandbyError> {
        let program = argv.first().cloned().unwrap_or_default();
        let fault = |source| StandbyError::Spawn { program, source };
        let known = Arc::new(Known::default());
        let shared = Arc::clone(&known);
        let (started, answer) = mpsc::channel();
        let keeper = thread::Builder::new().name("holdfast-keeper".to_owned()).spawn(move || {
            match Self::spawn(&argv, shared) {
                Ok((keeper, handle)) => {
                    let pid = keeper.child.id();
                    // The caller waits for this answer; if it is gone, nobody wants the process.
                    if started.send(Ok((pid, handle))).is_ok() {
                        keeper.keep();
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        let keeper = match keeper {
            Ok(keeper) => keeper,
            Err(source) => return Err(fault(source)),
        };
        match answer.recv().unwrap_or_else(|_| Err(io::Error::other("the keeper thread died"))) {
            Ok((pid, handle)) => Ok(QemuProcess {
                pid: i32::try_from(pid).unwrap_or(-1),
                handle,
                known,
                keeper: Some(keeper),
                free: false,
            }),
            Err(source) => Err(fault(source)),
        }
    }

    fn spawn(argv: &[String], known: Arc<Known>) -> io::Result<(Self, OwnedFd)> {
        let (program, arguments) =
            argv.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let parent = std::process::id();
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                // A parent that died before would not be noticed any more.
                if libc::getppid().unsigned_abs() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
            });
        }
        let mut child = command.spawn()?;
        let handle = match open_process(child.id()) {
            Ok(handle) => handle,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
        };
        let errors = child.stderr.take().ok_or_else(|| io::Error::other("no standard error"))?;
        let theirs = handle.try_clone()?;
        Ok((Self { child, handle, errors: BufReader::new(errors), known }, theirs))
    }

    /// Until the process ends. It is not waited for before it has ended: a wait would also see the stops of
    /// a tracer in this process.
    fn keep(mut self) {
        let mut open = true;
        loop {
            let said = open.then(|| PollFd::new(self.errors.get_ref().as_fd(), PollFlags::POLLIN));
            let mut fds = vec![PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
            fds.extend(said);
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready.get(1) == Some(&true) {
                open = self.take_line();
            } else if ready[0] {
                break;
            }
        }
        let status = self.child.wait();
        match &status {
            Ok(status) => tracing::info!(pid = self.child.id(), %status, "a standby QEMU has ended"),
            Err(error) => tracing::warn!(pid = self.child.id(), %error, "a standby QEMU cannot be reaped"),
        }
        lock(&self.known).status = status.ok();
        self.known.reaped.notify_all();
    }

    /// Takes the lines that are there; false at the end.
    fn take_line(&mut self) -> bool {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.errors).take(LINE_BYTES).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return false;
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            tracing::info!(pid = self.child.id(), %line, "standby QEMU");
            let mut known = lock(&self.known);
            if known.words.len() == LINES {
                known.words.pop_front();
            }
            known.words.push_back(line);
            drop(known);
            if self.errors.buffer().is_empty() {
                return true;
            }
        }
    }
}

fn lock(known: &Known) -> MutexGuard<'_, Told> {
    // Nothing panics while it holds the lock, and lines of text cannot be half changed.
    known.told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits at most so long for the end of a process; says whether it has ended.
pub(super) fn has_ended(process: &OwnedFd, limit: Duration) -> bool {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, timeout), Ok(1))
}

/// A handle on a process, which no later process of the same number can be mistaken for.
pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and no pointer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}
