//! Speculative communication: the guest's TCP runs ahead, the world sees nothing before the commit.
//!
//! ```text
//!            guest leg                                     client leg
//!  guest --data--> held bytes ----stream----> backup   (sender towards the client)
//!    ^               |  '--forged ACK--.                       ^
//!    '---------------+-----------------'                       |
//!                    '---- commit k: bytes of epochs <= k -----'--> wire
//! ```
//!
//! A guest's data is acknowledged at once in the client's name (a *forged ACK*), so that the guest's
//! TCP is not slowed down by output commit. As the ACK of a byte frees it in the guest, the bytes are
//! held here until the client confirms them, and the sender's duties towards the client are ours. The
//! sequence numbers on the wire are the guest's own: nothing is translated.
//!
//! Pure, sans-IO: frames, commits and `now` go in, frames and deadlines come out. No clock, no socket,
//! no threads, no randomness but from a seed.
//!
//! Invariants: **SP-1** forged ACKs cover only bytes that are held, in order, with a valid checksum,
//! and that were handed to the backup's stream; **SP-2** at a cut everything forged is in the stream;
//! **SP-3** bytes are freed on the client's cumulative ACK alone; **SP-4** what the guest sees never
//! moves back and is never invented; **OC-1** the client leg is given committed bytes alone.
#![deny(clippy::disallowed_methods)]

mod admission;
pub mod boundary;
pub mod client_leg;
mod connection;
pub mod counters;
mod delta;
mod emission;
pub mod engine;
mod guest_leg;
mod icmp;
mod key;
pub mod ledger;
mod lent;
mod lists;
mod marks;
mod opening;
mod options;
mod replication;
pub mod report;
mod rewrite;
pub mod rules;
mod segment;
mod send;
mod seq;
mod shared;
mod store;
mod table;
mod time;
mod timers;
mod window;
mod wire_leg;

#[cfg(test)]
mod tests;

pub use boundary::{FromGuest, FromWire, GuestFrame, Payload, Sink};
pub use counters::{EngineCounters, Event};
pub use engine::{Engine, EngineConfig, Speculation};
pub use ledger::{Ledger, LedgerError, LedgerLimits};
pub use report::{FlowReport, FlowState};
pub use rules::{Prefix, Rule, Rules};
pub use seq::SeqNum;
pub use time::Time;
