//! What a run of a benchmark found, for people: one page with plots, and what differs between two runs.
//!
//! ```text
//!  run.json ──► run ──► page ──► one HTML file, plots inside it as SVG
//!                │
//!                └────► compare ◄── another run: ratio, interval, p, verdict, row by row
//! ```
//!
//! Pure: text goes in and text comes out; no file, no clock, no guest, and randomness from a seed alone.
//! [`run`] is the document's definition: who measures writes it, who reads it finds it here.
#![deny(clippy::disallowed_methods)]

pub mod aims;
pub mod compare;
pub mod histogram;
pub mod page;
pub mod run;
pub mod statistics;
