//! Rings of a network device, walked by one polling core.
//!
//! [`SplitQueue`] knows the layout in memory; [`TxRing`] and [`RxRing`] know frames. Another layout
//! (packed) or another kind of device replaces one and keeps the other.

mod chain;
mod fault;
mod rx;
mod split;
#[cfg(test)]
mod tests;
mod tx;

pub use chain::{Direction, MAX_CHAIN};
pub use fault::RingFault;
pub use rx::RxRing;
pub use split::{LayoutError, MAX_RING_SIZE, RingLayout, SplitQueue};
pub use tx::{GuestBytes, MAX_FRAME_BYTES, TxRing, Verdict};
