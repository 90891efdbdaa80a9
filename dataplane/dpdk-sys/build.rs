//! Finds the distribution's DPDK, compiles the shim against it and generates the bindings.

use std::env;
use std::path::PathBuf;

/// Libraries of DPDK that this crate's functions live in. The version decides which of them exist
/// (`rte_log` left `rte_eal` after 22.11), so that only those that pkg-config names are linked.
/// Drivers are plugins, which the EAL loads by itself from the directory compiled into it.
const LIBRARIES: [&str; 6] = ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal", "rte_log"];

/// Functions bound as they are.
const FUNCTIONS: &[&str] = &[
    "hf_.*",
    "rte_eal_hotplug_add",
    "rte_eal_hotplug_remove",
    "rte_eal_init",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_close",
    "rte_eth_dev_get_mtu",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_rx_intr_ctl_q_get_fd",
    "rte_eth_dev_rx_intr_disable",
    "rte_eth_dev_rx_intr_enable",
    "rte_eth_dev_set_link_up",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_promiscuous_enable",
    "rte_strerror",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_version",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim/shim.h");
    println!("cargo:rerun-if-changed=shim/shim.c");

    let dpdk = match pkg_config::Config::new()
        .atleast_version("22.11")
        .cargo_metadata(false)
        .env_metadata(true)
        .probe("libdpdk")
    {
        Ok(found) => found,
        Err(fault) => {
            eprintln!("DPDK 22.11 or newer was not found by pkg-config: {fault}");
            eprintln!("mend: apt-get install libdpdk-dev libclang-dev pkg-config");
            std::process::exit(1);
        }
    };
    for path in &dpdk.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for library in LIBRARIES.iter().filter(|name| dpdk.libs.iter().any(|found| found == *name)) {
        println!("cargo:rustc-link-lib=dylib={library}");
    }

    let flags = compiler_flags();
    compile_shim(&dpdk, &flags);
    generate_bindings(&dpdk, &flags);
}

/// The flags of pkg-config that are neither paths nor definitions: `-march=…`, without which the
/// inline functions of the headers do not compile, and `-include rte_config.h`.
fn compiler_flags() -> Vec<String> {
    let pkg_config = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let output = std::process::Command::new(pkg_config)
        .args(["--cflags-only-other", "libdpdk"])
        .output()
        .expect("pkg-config ran a moment ago");
    assert!(output.status.success(), "pkg-config gave the libraries of libdpdk but not its flags");
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
}

fn compile_shim(dpdk: &pkg_config::Library, flags: &[String]) {
    let mut build = cc::Build::new();
    build.file("shim/shim.c").includes(&dpdk.include_paths).opt_level(3).warnings(true);
    for flag in flags {
        build.flag(flag);
    }
    // The headers of DPDK are not ours to warn about.
    for path in &dpdk.include_paths {
        build.flag(format!("-isystem{}", path.display()));
    }
    build.flag("-Wno-deprecated-declarations").compile("holdfast_dpdk_shim");
}

fn generate_bindings(dpdk: &pkg_config::Library, flags: &[String]) {
    let mut builder = bindgen::Builder::default()
        .header("shim/shim.h")
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("1.85 is a stable version"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .use_core()
        .generate_comments(false)
        .layout_tests(false)
        .derive_copy(true)
        // Their layout differs between the versions: the shim reads them, and Rust has pointers only.
        .blocklist_type("rte_mbuf.*|rte_mem.*|RTE_MARKER.*|rte_iova_t")
        .raw_line("#[repr(C)] pub struct rte_mbuf { _opaque: [u8; 0] }")
        .raw_line("#[repr(C)] pub struct rte_mempool { _opaque: [u8; 0] }")
        .allowlist_type("hf_.*")
        .allowlist_var("HF_.*|RTE_LOG_(EMERG|ALERT|CRIT|ERR|WARNING|NOTICE|INFO|DEBUG)")
        .clang_args(flags)
        .clang_args(dpdk.include_paths.iter().map(|path| format!("-I{}", path.display())));
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    let bindings = builder.generate().expect("the headers of DPDK parse (libclang is installed)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindings.write_to_file(out).expect("OUT_DIR can be written");
}
