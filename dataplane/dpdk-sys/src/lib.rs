//! Bindings to the distribution's DPDK (22.11 or 24.11) with a burst-level C shim.
//!
//! Control functions are bound as they are, from a short list in `build.rs`. Everything that DPDK
//! has as a static inline function or a macro, or whose layout differs between the supported
//! versions, goes through `shim/shim.c`: a whole burst of frames crosses the border in one call.
//!
//! Nothing here is safe to call without DPDK's own documentation at hand; the crate
//! `holdfast-dpdk` is the safe layer, and the only user.

mod bindings;

pub use bindings::*;
