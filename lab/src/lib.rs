//! One-machine laboratory: namespaces, guests, client, capture, and the join with the commit log.
//!
//! ```text
//!   host A (namespace)        client (namespace)         host B (namespace)
//!   wire0 ------------------- porta  br0  portb ------------------- wire0
//!   repl0 --------------------------------------------------------- repl0
//! ```
//!
//! A wire with delay, loss and the like may lie before the client: see [`emulator`].
//!
//! `holdfast demo`, `bench` and `soak` and the tests of whole guests are written on it. Everything is
//! bound to the life of the process that uses it: namespaces are anonymous and end with the last
//! descriptor, children die with the laboratory, a warden kills what they leave behind and removes
//! the files, and a laboratory that starts sweeps after one that had no warden (see [`scratch`]).
//!
//! Needs root (namespaces) and the tools of `scripts/packages`; no KVM, no huge pages, no network.

pub mod agent;
pub mod apps;
pub mod artifacts;
pub mod audit;
pub mod bulk;
pub mod capture;
pub mod client;
pub mod cpu;
pub mod emulator;
pub mod expert;
pub mod guest;
pub mod initramfs;
pub mod iperf;
pub mod join;
pub mod migration;
pub mod modules;
pub mod monitor;
pub mod netns;
pub mod pair;
pub mod pcap;
pub mod process;
pub mod protection;
pub mod report;
pub mod requirements;
pub mod scratch;
pub mod testpmd;
pub mod topology;
