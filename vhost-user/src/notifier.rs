//! The eventfds by which guest and device wake each other.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use thiserror::Error;

/// Why a descriptor that the frontend sent cannot be used for notifications.
#[derive(Debug, Error)]
pub(crate) enum NotifierError {
    /// It is something else than an eventfd: writing to it could block a polling core.
    #[error("peer: a ring came with {found} where an eventfd is needed")]
    NotAnEventFd {
        /// What the host says it is.
        found: String,
    },
    /// The host refused to look at it.
    #[error("host: cannot prepare the descriptor of a ring: {0}")]
    Host(#[from] io::Error),
}

/// One eventfd of a ring. Neither end ever blocks.
#[derive(Debug)]
pub(crate) struct Notifier(OwnedFd);

impl Notifier {
    /// Takes over a descriptor from the frontend. It must be an eventfd, so that a peer cannot make a
    /// polling core wait inside a write (RB-1); it is made non-blocking.
    ///
    /// # Errors
    /// When it is no eventfd, or the host refuses.
    pub(crate) fn from_peer(file: File) -> Result<Self, NotifierError> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            return Err(NotifierError::NotAnEventFd { found: link.display().to_string() });
        }
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(io::Error::from)?);
        fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        Ok(Self(OwnedFd::from(file)))
    }

    /// Wakes the other side. A counter that is full means that it has not yet looked: that is enough.
    pub(crate) fn signal(&self) {
        match nix::unistd::write(&self.0, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            // The descriptor is an eventfd of ours, checked at the start: nothing else can fail.
            Err(errno) => debug_assert!(false, "eventfd write: {errno}"),
        }
    }

    /// Takes all signals; whether there were any.
    pub(crate) fn clear(&self) -> bool {
        let mut count = [0; 8];
        nix::unistd::read(&self.0, &mut count).is_ok()
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::EventFd;

    #[test]
    fn a_signal_is_taken_once_and_a_full_counter_does_not_block() {
        let fd = OwnedFd::from(EventFd::from_value(0).expect("an eventfd"));
        nix::unistd::write(&fd, &(u64::MAX - 1).to_ne_bytes()).expect("fills the counter");
        let notifier = Notifier::from_peer(File::from(fd)).expect("an eventfd is taken");
        notifier.signal();
        assert!(notifier.clear());
        assert!(!notifier.clear());
    }

    /// RB-1: a pipe would let a peer stop the polling core.
    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (_reader, writer) = nix::unistd::pipe().expect("a pipe");
        let error = Notifier::from_peer(File::from(writer)).expect_err("refused");
        assert!(error.to_string().contains("pipe"), "{error}");
    }
}
