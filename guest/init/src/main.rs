//! Init and stream server of the demonstration guest: process 1 of its initramfs.
//!
//! It mounts the kernel's file systems, loads the modules listed in `/modules.list` in that order,
//! sets up the network cards as the kernel's command line says, starts the services of
//! [`holdfast_guest_init::protocol`], and says on the console what it does. It never returns; what
//! goes wrong is said on the console and the guest powers itself off, so that a test sees it at once.
//!
//! Words on the kernel's command line:
//!
//! ```text
//! holdfast.ip=eth0,10.99.0.10/24;eth1,fd00::2/64   addresses
//! holdfast.gateway=10.99.0.1                        default route (IPv4)
//! holdfast.mtu=1500                                 of all cards
//! holdfast.sysctl=net/ipv4/tcp_timestamps=0;...     written below /proc/sys
//! holdfast.exec=/bin/iperf3,-s                      a further program, started last; there may be several
//! ```
//!
//! It must be linked statically, as the initramfs has no C library; glibc's static library comes with
//! libc6-dev: `RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p holdfast-guest-init
//! --target x86_64-unknown-linux-gnu`, which `make guest` does.

mod boot;
mod cmdline;
mod dirtier;
mod nic;
mod services;

use cmdline::CommandLine;
use std::process::Command;

fn main() {
    if let Err(error) = run() {
        println!("holdfast-guest: failed: {error}");
    }
    boot::power_off();
}

fn run() -> Result<(), boot::BootError> {
    boot::mount_all()?;
    let command_line = CommandLine::read()?;
    let loaded = boot::load_modules("/modules.list")?;
    println!("holdfast-guest: {loaded} modules loaded");
    nic::set_up(&command_line)?;
    boot::write_sysctls(&command_line.sysctls)?;
    services::start()?;
    println!("{}", holdfast_guest_init::protocol::READY_LINE);
    for words in &command_line.exec {
        let [program, arguments @ ..] = &words[..] else { continue };
        match Command::new(program).args(arguments).spawn() {
            Ok(child) => println!("holdfast-guest: {program} runs as process {}", child.id()),
            Err(error) => println!("holdfast-guest: {program} does not start: {error}"),
        }
    }
    boot::reap_forever()
}
