//! Epoch machine, dirty tracking, page pipeline, transport, image, QEMU control, arbiter.

pub mod arbiter;
pub mod pages;
