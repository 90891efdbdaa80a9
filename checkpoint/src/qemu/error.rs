//! Why QEMU could not be driven.

use crate::qmp::QmpError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Why an operation on a QEMU failed.
#[derive(Debug, Error)]
pub enum QemuError {
    /// The monitor could not be spoken to, or refused.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The operator: QEMU lives where its process id means nothing here.
    #[error(
        "the process behind {} cannot be told: QEMU runs in another process namespace; \
         run Holdfast in the host's, or in QEMU's",
        path.display()
    )]
    NoPid {
        /// The monitor's socket.
        path: PathBuf,
    },
    /// The state of devices and vCPUs could not be saved or loaded.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Why the state of devices and vCPUs could not be saved or loaded.
#[derive(Debug, Error)]
pub enum StateError {
    /// QEMU gave the migration up.
    #[error("QEMU could not {what} the state of its devices: {desc}")]
    Failed {
        /// `save` or `load`.
        what: &'static str,
        /// QEMU's words.
        desc: String,
    },
    /// The operator: guest memory goes into the stream.
    #[error(
        "QEMU wrote more than {limit} bytes of device state, so the guest's memory is in it; start QEMU with \
         -object memory-backend-file,share=on,mem-path=... (from QEMU 8.1 on a memory-backend-memfd does not do)"
    )]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
    /// QEMU did not finish in time.
    #[error("QEMU did not {what} the state of its devices within {limit:?}")]
    Timeout {
        /// `save` or `load`.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The standby ended while it loaded.
    #[error(
        "the standby QEMU did not take the whole state ({taken} of {bytes} bytes) and ended: \
         its command line must describe the same machine as the primary's"
    )]
    Ended {
        /// Bytes that it took.
        taken: usize,
        /// Bytes of state.
        bytes: usize,
    },
    /// The host: no pipe, or it broke.
    #[error("cannot move the state of QEMU's devices through a pipe: {0}")]
    Pipe(#[from] io::Error),
}
