//! The atomics by which threads of this crate meet: the standard library's, or loom's where a model tries out
//! every order of the threads' steps and every value that a load may see.
//!
//! Models are the modules `models` beside the code; `make loom` runs them. What lies in guest memory itself is out
//! of loom's sight, but for the numbers that a model names: see `memory/modelled.rs`.

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
