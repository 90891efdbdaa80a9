//! Where the tested program is.

use holdfast_lab::artifacts::TARGET_VARIABLE;
use std::env;
use std::path::{Path, PathBuf};

/// The Holdfast that is tried: `release/holdfast` in `$HOLDFAST_TARGET`, or in the workspace's `target`.
///
/// # Panics
/// When it is not built: these tests are of the program as it is shipped.
pub fn holdfast() -> PathBuf {
    let target = env::var_os(TARGET_VARIABLE)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let program = target.join("release/holdfast");
    assert!(program.exists(), "{} is not built; mend: make build", program.display());
    program
}

/// The seed of a test: `HOLDFAST_SEED`, or the one that the test always has. Printed, so that a failed
/// run can be played again.
pub fn seed(usual: u64) -> u64 {
    let asked = env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = asked.unwrap_or(usual);
    println!("seed {seed}");
    seed
}
