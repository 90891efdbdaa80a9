//! Compiles the congestion control for the kernel's BPF machine, so that the guest needs no compiler.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/bpf/aware.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed=src/bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR")).join("aware.bpf.o");
    let headers = env::var("DEP_BPF_INCLUDE").expect("libbpf-sys says where its headers are");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let done = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-I", &headers])
        // The macros of libbpf's headers declare arguments that not every program looks at.
        .arg("-Wno-unused-parameter")
        .args(["-c", SOURCE, "-o"])
        .arg(&out)
        .status();
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} cannot compile {SOURCE} for BPF: {status}"),
        Err(fault) => panic!("{clang} does not start: {fault}; mend: scripts/packages, or name one in CLANG"),
    }
    if env::var_os("CARGO_FEATURE_STATIC").is_some() {
        link_what_libelf_needs();
    }
}

/// A static libelf brings no list of what it needs itself: from elfutils 0.189 on that is zstd, too.
fn link_what_libelf_needs() {
    let found = pkg_config::Config::new().statik(true).cargo_metadata(false).probe("libelf");
    if found.is_ok_and(|found| found.libs.iter().any(|library| library == "zstd")) {
        println!("cargo:rustc-link-arg-bins=-lzstd");
    }
}
