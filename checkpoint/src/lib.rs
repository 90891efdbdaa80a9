//! Epoch machine, dirty tracking, page pipeline, transport, image, QEMU control, arbiter.

pub mod arbiter;
pub mod backup;
mod delta;
mod digest;
pub mod gate;
pub mod heap;
#[cfg(test)]
mod host_needs;
pub mod image;
pub mod keys;
pub mod lease;
pub mod pages;
pub mod primary;
pub mod protocol;
#[cfg(test)]
mod proxy;
pub mod qemu;
pub mod qmp;
pub mod reduction;
pub mod standby;
pub mod tracker;
pub mod transport;
pub mod urgent;
pub mod vm;
