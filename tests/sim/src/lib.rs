//! The seeded simulator of speculative communication.
//!
//! Guest and client are hosts with a TCP that we did not write (smoltcp); between them are a wire that
//! loses, delays, doubles, reorders and corrupts, and the engine under test with plain output commit
//! beside it, an epoch machine, and a backup. A seed determines everything that happens. The
//! invariants SP-1 to SP-4 and OC-1 are judged after every step, from outside: from frames, cuts and
//! commits alone. What fails is shrunk to the smallest scenario that still fails, and printed.
//!
//! No clock, no thread, no I/O in the library.

pub mod breakage;
mod content;
mod guest;
mod host;
mod judge;
mod party;
mod random;
pub mod run;
pub mod scenario;
mod segment;
pub mod shrink;
mod station;
mod surgery;
mod trace;
mod wire;
mod world;

pub use breakage::Breakage;
pub use judge::Violation;
pub use run::{Failure, run, trace};
pub use scenario::Scenario;
pub use shrink::shrink;
pub use world::Summary;
