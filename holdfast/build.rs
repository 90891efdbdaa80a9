//! Names the commit that the program is built from, for the records of benchmarks.
//!
//! Only this crate, the last of all, is built again when there is another commit, and only for a release: what a
//! debug build measures is not to be recorded.

use std::env;
use std::path::Path;
use std::process::Command;

/// Where what is in the program comes from: whether something was changed there is looked at again with them.
const SOURCES: [&str; 10] = [
    "src",
    "../Cargo.lock",
    "../checkpoint",
    "../dataplane",
    "../dpdk-config",
    "../guest/init",
    "../hugepages-setup",
    "../lab",
    "../report",
    "../vhost-user",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        SOURCES.iter().for_each(|source| println!("cargo:rerun-if-changed={source}"));
        println!("cargo:rustc-env=HOLDFAST_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
    } else {
        println!("cargo:rustc-env=HOLDFAST_COMMIT=a debug build");
    }
}

/// None where there is no git, or no repository of this program: a tarball may be unpacked inside another one.
fn commit() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.canonicalize().ok()?;
    if Path::new(&top).canonicalize().ok()? != workspace {
        return None;
    }
    // Written on each commit and checkout; a name that is not there would have everything built anew each time.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12"])
}

fn git(words: &[&str]) -> Option<String> {
    let done = Command::new("git").args(words).output().ok()?;
    let said = String::from_utf8(done.stdout).ok()?.trim().to_owned();
    (done.status.success() && !said.is_empty()).then_some(said)
}
