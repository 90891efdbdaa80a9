//! Epochs, terms and the token that release demands.
//!
//! An epoch is open while the guest runs in it, sealed once its state is captured, replicated once
//! all of it has been handed to the transport, and committed once the backup has confirmed that it
//! holds all of it. Each step consumes the one before:
//!
//! ```text
//! Epoch<Open> --seal--> Epoch<Sealed> --replicated--> Epoch<Replicated> --commit--> Epoch<Committed>
//!      ^                      |                             |                            |
//!      '---- next ------------'                             '-- abort (pages stay dirty) '--> ReleaseToken
//! ```
//!
//! Only a committed epoch yields a [`ReleaseToken`], and only a token opens the escrow, so that a
//! release before the commit does not compile (OC-1).
//!
//! Pure: no I/O, no clock, no threads.
#![deny(clippy::disallowed_methods)]

mod chunk;
mod ids;
mod state;

pub use chunk::StreamChunk;
pub use ids::{EpochId, Term};
pub use state::{
    Committed, Confirmation, ConfirmationError, Digest, Epoch, InFlight, Open, ReleaseToken, Replicated,
    Sealed,
};
