//! Device side of vhost-user: control messages, guest memory, polled rings, own dirty bitmap.
//!
//! ```text
//!  QEMU ==socket==> control thread (Device)        messages, tables, features; one thread a device
//!                      |  mailbox: one command at a time, answered by the core
//!                   polling core  (Endpoint)       rings; no lock, allocation or log line a packet
//!                      |
//!                   guest memory  (GuestMemory)    whole files, mapped once; every write is marked
//! ```
//!
//! Invariants enforced here:
//! - CK-2 (its half for Holdfast's own writes): every write to guest memory goes through
//!   [`memory`], which sets the page's bit in the file's own dirty bitmap after the bytes are there.
//!   A ring counts as left only when the polling core said so, and it then has published all it wrote.
//! - RB-1: the guest's descriptors and the frontend's messages are read once into owned values and
//!   checked. A broken ring stops its device, a broken message ends its connection; both are counted,
//!   and no other device notices.
//!
//! A second kind of device brings its own endpoint in place of [`Endpoint`], [`TxRing`] and [`RxRing`];
//! control messages, memory, mailbox and [`ring::Queue`] know nothing of network cards.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod atomic;
mod connection;
mod control;
mod device;
mod endpoint;
pub mod features;
mod flag;
mod header;
mod mailbox;
pub mod memory;
mod notifier;
pub mod ring;
mod shared;
mod vring;

pub use device::{Device, DeviceConfig, MAX_QUEUE_PAIRS, SocketAccess, SocketRole, SpawnError};
pub use endpoint::Endpoint;
pub use features::Features;
pub use header::VirtioNetHdr;
pub use mailbox::Waker;
pub use memory::{FileIdentity, Gpa, GuestMemory, MemoryFile, MemoryFiles};
pub use ring::{GuestBytes, RingFault, RxRing, SMALL_FRAME_BYTES, TxRing, Verdict};
pub use shared::{DeviceEvent, DeviceSnapshot};
