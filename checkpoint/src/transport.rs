//! Ways to the other host.
//!
//! A [`Link`] is one session's connection: frames go in, messages come out. One thread owns it and
//! nothing else touches it; what others want of it goes through a bounded queue and an eventfd.
//!
//! ```text
//!   replication thread --- bulk frames (bounded, credit) ---.
//!   any thread ----------- urgent messages ----------------. |
//!                                                          v v
//!   peer <== socket (TLS) ==> owner thread: heartbeats, credit, framing
//!                                |
//!                                '--> events: messages, lease
//! ```
//!
//! Urgent messages pass the bulk frames that still wait. Bulk is sent only on the credit which the peer
//! gives, so the peer always reads, its queue is bounded, and heartbeats are never stuck behind a slow
//! backup. A peer that sends without credit, floods, or does not read is cut off (RB-1).
//!
//! [`Transport`] is how a session is opened: by the kernel's TCP with TLS 1.3, or in the clear by an explicit
//! laboratory setting. With a [`Bypass`] the session's messages go over a port of their own once both hosts
//! have a path there; the connection stays, for heartbeats and for when the path is lost (`ways`).

mod bypass;
mod frames;
mod handle;
mod link;
mod listener;
mod tcp;
mod waker;
mod ways;
mod wire;

pub use bypass::{Bypass, BypassError, BypassSettings, Nic};
pub use handle::{Incoming, Link, LinkEnd, LinkEvent};
pub use listener::{Listener, ListenerCounters};
pub use tcp::{Security, TcpTransport};

use std::io;
use std::time::Duration;
use thiserror::Error;

/// Bulk bytes that a receiver lets the sender be ahead.
pub const WINDOW: u64 = 16 << 20;
/// A bulk frame counts as at least so many bytes of credit, so that the window bounds frames as well.
pub const LEAST_CHARGE: u64 = 4096;

/// What a bulk frame with a body of `len` bytes costs.
#[must_use]
pub const fn charge(len: usize) -> u64 {
    if (len as u64) < LEAST_CHARGE { LEAST_CHARGE } else { len as u64 }
}

/// A way to open sessions with the other host.
pub trait Transport: Send + Sync {
    /// Opens a link; takes `timeout` at the most.
    ///
    /// # Errors
    /// When the peer cannot be reached or does not prove who it is.
    fn dial(&self, timeout: Duration) -> Result<Link, LinkError>;

    /// Where sessions are opened to, for people.
    fn peer(&self) -> String;
}

/// Why no link came about.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The peer does not answer.
    #[error("{peer} cannot be reached: {source}; is Holdfast running there, and the way open?")]
    Unreachable {
        /// Address of the peer.
        peer: String,
        /// What the system said.
        source: io::Error,
    },
    /// The peer is not who it should be, or takes us for somebody else.
    #[error(
        "{peer} and this host do not accept each other ({reason}): \
         both need keys made by one run of `holdfast keys`"
    )]
    Stranger {
        /// Address of the peer.
        peer: String,
        /// What TLS said.
        reason: String,
    },
    /// This host cannot make a link.
    #[error("no link can be made on this host: {0}")]
    Host(#[from] io::Error),
}

#[cfg(test)]
mod tests;
