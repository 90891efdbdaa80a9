//! Packet scripts: one situation a file, for each rule of speculative communication.
//!
//! A script says what a guest and a client send, when an epoch is sealed and committed, and which
//! frames the engine must let out in return, each and every one. [`play()`] drives the engine with it in
//! virtual time, once a family of IP. The language is in the README beside this crate.
//!
//! ```text
//!  text --Script::parse--> lines --play--> Stage (engine, escrow, backup's ledger, virtual time)
//!                                    '--> Witness (what must hold for every frame of a flow)
//! ```
//!
//! Frames are made and read by code of this crate alone, so that the parser and the checksums of the
//! dataplane are judged and not trusted. No clock, no threads, no randomness.

pub mod flow;
pub mod frame;
pub mod script;
pub mod seen;
pub mod stage;
pub mod witness;

mod compare;
mod cursor;
mod parse;
mod play;

pub use compare::described;
pub use cursor::SyntaxError;
pub use parse::DEFAULT_FLOW;
pub use play::{Failure, play};
