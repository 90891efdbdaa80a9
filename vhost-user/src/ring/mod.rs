//! Rings of a network device, walked by one polling core.
//!
//! [`Queue`] knows the layouts in memory, split and packed; [`TxRing`] and [`RxRing`] know frames. Another kind
//! of device replaces these and keeps the queue.

mod chain;
mod fault;
#[cfg(all(test, loom))]
mod models;
mod packed;
mod queue;
mod rx;
mod split;
#[cfg(test)]
mod tests;
mod tx;

pub use chain::{Direction, MAX_CHAIN};
pub use fault::RingFault;
pub use queue::{LayoutError, MAX_RING_SIZE, Queue, RingLayout};
pub use rx::RxRing;
pub use tx::{GuestBytes, MAX_FRAME_BYTES, SMALL_FRAME_BYTES, TxRing, Verdict};
