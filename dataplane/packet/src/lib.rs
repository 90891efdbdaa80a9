//! Packets as they are on the wire: a bounded parse of their headers, and their checksums.
//!
//! RB-1: nothing here trusts a length, an offset or a header that came from outside.
//!
//! Pure: no I/O, no clock, no threads, no allocation but in [`sample`].
#![deny(clippy::disallowed_methods)]

pub mod checksum;
pub mod guest_channel;
pub mod headers;
pub mod sample;
