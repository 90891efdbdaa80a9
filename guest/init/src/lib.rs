//! What the demonstration guest and its client agree on: the pseudo-random stream and the requests.
//!
//! The binary of this crate is the guest's init (see `main.rs`); the laboratory's client links this
//! library, so that both ends compute the same stream.

pub mod protocol;
pub mod stream;
