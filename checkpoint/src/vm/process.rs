//! A process that somebody else started: its end, and a way to end it.
#![expect(unsafe_code, reason = "process descriptors have no safe interface among our dependencies")]

use crossbeam_channel::{Receiver, bounded};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Watches a process by its descriptor, which no other process can come to have.
#[derive(Debug)]
pub(super) struct Watched {
    pid: i32,
    process: Arc<OwnedFd>,
    stop: Arc<EventFd>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watched {
    /// Watches the process of this number.
    pub(super) fn begin(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and no pointer.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just given us this descriptor, and nothing else knows of it.
        let process = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let stop = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?);
        let (alive, ended) = bounded(0);
        let (theirs, stopped) = (Arc::clone(&process), Arc::clone(&stop));
        let thread = thread::Builder::new().name("hf-watch".to_owned()).spawn(move || {
            let mut fds = [
                PollFd::new(theirs.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            drop(alive);
        })?;
        Ok(Self { pid, process, stop, ended, thread: Some(thread) })
    }

    /// A channel that closes when the process ends.
    pub(super) fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }

    /// Waits so long for the end at the most; says whether it came.
    pub(super) fn wait_for_end(&self, limit: Duration) -> bool {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)], timeout), Ok(1))
    }

    /// Ends the process at once.
    pub(super) fn kill(&self) {
        // SAFETY: pidfd_send_signal takes a descriptor that we hold, a number, no information and no flags.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.process.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::error!(pid = self.pid, %error, "a QEMU could not be ended"),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.write(1).expect("nobody else writes to this eventfd");
        if let Some(thread) = self.thread.take() {
            // It only waits: there is nothing in it to panic.
            drop(thread.join());
        }
    }
}
