//! Epoch machine, dirty tracking, page pipeline, transport, image, QEMU control, arbiter.

pub mod arbiter;
pub mod gate;
#[cfg(test)]
mod host_needs;
pub mod image;
pub mod pages;
pub mod protocol;
pub mod reduction;
