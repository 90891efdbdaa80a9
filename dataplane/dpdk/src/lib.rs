//! Safe layer over DPDK: EAL, pools, owned mbufs, ports, per-core queues.
//!
//! ```text
//!   Eal --+-- Pool ------- alloc --> Mbuf --.            (an Mbuf goes back to its pool on drop)
//!         |                                  v
//!         +-- Port::open --> RxQueue, TxQueue --- bursts of at most 32, by &mut self on one core
//!         |
//!         '-- RegisteredThread: gives a polling thread its own cache of every pool
//! ```
//!
//! What this layer promises over DPDK's own interface:
//! - The EAL starts once in a process ([`Eal::init`]); a second start is an error, not a crash. It
//!   does not keep the machine to itself: the calling thread's affinity is put back, no worker
//!   threads exist, and nothing is shared with other processes.
//! - An [`Mbuf`] is one piece of memory with one owner. Pools live as long as the process, so that
//!   no mbuf can outlive its pool.
//! - A queue belongs to one thread at a time: it may be sent to its core, and is then used by
//!   `&mut self`; it is not `Sync`. A port closes when its handle and all its queues are gone.
//! - What comes from a port or goes to one is checked: frames in several pieces are made one, or
//!   dropped and counted; frames that a port would stumble over are dropped and counted (RB-1).
//!
//! Checksums and segmentation are not done here: [`Port::capabilities`] says what a port offers.
//! DPDK's log lines become events of `tracing`, and the last of them go into errors.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod device;
mod eal;
mod errno;
mod log;
mod mbuf;
mod pool;
mod port;
mod queue;
mod signals;
mod thread;

pub use device::{Device, DeviceError};
pub use eal::{Eal, EalError};
pub use errno::Errno;
pub use mbuf::Mbuf;
pub use pool::{Pool, PoolError};
pub use port::{Capabilities, Link, Port, PortConfig, PortError, PortStats, Step};
pub use queue::{BURST, InterruptError, RxQueue, TxQueue};
pub use thread::{RegisteredThread, ThreadError};
