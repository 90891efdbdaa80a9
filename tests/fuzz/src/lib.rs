//! Fuzzing targets: bytes in, a panic or a broken invariant out (RB-1).
//!
//! ```text
//!  corpus/TARGET/* --Mutator (seeded)--> bytes --Target::run--> Ok, or what was wrong
//! ```
//!
//! A target is a plain function of bytes, so that anything can drive it: the program of this crate
//! (`cargo run -p holdfast-fuzz -- engine --seconds 60`), its test that `make test` runs for a bounded
//! time, or libFuzzer (see the README).

pub mod engine;
pub mod ledger;
pub mod mutator;
pub mod pages;
pub mod parser;

mod input;
mod session;

pub use session::{Finding, Session, Tally};

/// What an input brought about, as numbers: an input that brings a new one is worth more mutations. It
/// stands in for coverage, which a stable compiler does not give to a program about itself.
pub type Features = Vec<u16>;

/// What is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Longest input that is worth its time, in bytes.
    pub max_len: usize,
    /// Runs it.
    pub run: fn(&[u8]) -> Result<Features, String>,
}

/// All targets.
pub const TARGETS: [Target; 4] = [
    Target { name: "parser", max_len: 512, run: parser::run },
    Target { name: "engine", max_len: 1024, run: engine::run },
    Target { name: "ledger", max_len: 1024, run: ledger::run },
    Target { name: "pages", max_len: 512, run: pages::run },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
