//! The dataplane: everything that a guest says to the world passes through it, and waits in it.
//!
//! ```text
//!  guest tx ring --capture--> segments --native----------------------> outbox --route--> wire
//!                     |            '---commit--> escrow --release--------^          '--> other guest
//!                     '--speculative--> engine --committed bytes---------'
//!  guest rx ring <-------forged ACKs------'  '--stream--> backup
//!  guest rx ring <--deliver-- merged <-- inbound queue <---route------ wire rx burst
//! ```
//!
//! One polling core runs all of it to completion ([`Core`]); control threads speak to the core
//! through a [`Handle`]. Other cores may carry pairs of a card's queues for it, which takes the walking of rings and
//! the copying of frames off it. A guest's frame becomes frames of the wire's MTU at capture, with one copy
//! ([`segmentation`]); what comes in is merged for a guest that can take it ([`coalescing`]).
//!
//! Invariants:
//! - **OC-1** the [`escrow`] gives frames up only against a [`holdfast_epoch::ReleaseToken`].
//! - **OC-2** one queue a port from capture to the wire: nothing overtakes anything.
//! - **FO-1** a fenced port, or one whose lease has run out, sends nothing ([`Handle`]).
//! - **RB-1** nothing here trusts a length, an offset or a header that came from outside; a guest
//!   that lies loses its own frames, by counted reasons ([`counters`]).
//!
//! On the hot path there is no allocation, lock, log line or system call per packet.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod announcement;
pub mod audit;
mod carrying;
pub mod coalescing;
mod compact;
mod core_loop;
pub mod counters;
mod endpoint;
pub mod escrow;
pub mod frame;
pub mod guest;
pub mod handle;
pub mod heap;
pub mod identity;
pub mod kept;
mod rings;
pub mod sample;
pub mod segmentation;
mod sleep;
pub mod steering;
pub mod stream;
pub mod switch;

pub use audit::Audit;
pub use carrying::LaneEnd;
pub use core_loop::{Core, IdlePolicy, PortId};
pub use counters::Counted;
pub use endpoint::Card;
pub use escrow::{Amount, EscrowError, Limits};
pub use frame::{Frame, Wire};
pub use guest::{GuestFrame, GuestPort};
pub use handle::{Counters, CutReport, GateError, Handle, Mode, PortConfig, PortStatus};
pub use holdfast_packet::{checksum, headers};
pub use holdfast_speculation::{EngineConfig, FlowReport, LedgerLimits, Prefix, Rule, Rules};
