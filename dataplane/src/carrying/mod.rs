//! Pairs of queues of one card on several cores.
//!
//! ```text
//!  the guest's rings <--> carrying core --frames--> lane --> the card's core: judges, holds, forwards
//!                          (Carrier)    <--frames-- lane <--  (Card, with one LaneEnd a pair)
//! ```
//!
//! The core that has a card's port is the only one that judges its frames, holds them and lets them go. Another core
//! may *carry* some of the card's pairs: it walks their rings, copies frames out of and into the guest's memory, finds
//! the number of each flow, and notifies the guest. Frames go between the two by [`lane`]s.
//!
//! - **OC-1**, **OC-2**: what a carrying core took out of a ring is in its lane before it says that it has left the ring,
//!   and the cut of an epoch takes all that is there. A frame that finds no room in the escrow then is output of a later
//!   epoch: it is held for longer, never for less. A lane keeps its order.
//! - **CK-2**: a carrying core writes to the guest's memory by its rings, which mark what they write.
//! - **RB-1**: a broken ring stops the device with its rings on all cores.
//!
//! Threading: each end belongs to one core. No locks, no allocations; a system call only where the other core sleeps.

mod carrier;
mod lane;

pub use carrier::LaneEnd;
pub(crate) use carrier::{Carrier, carry};
