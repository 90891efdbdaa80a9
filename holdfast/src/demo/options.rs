//! What the demonstration can be told.

use crate::cli::Failure;
use crate::config::Mode;
use clap::{Args, ValueEnum};
use holdfast_lab::emulator::WireSpec;
use holdfast_lab::pair::Victim;
use std::path::PathBuf;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kill {
    /// The guest's QEMU.
    Qemu,
    /// Host A's Holdfast.
    Holdfast,
    /// Everything on host A at once.
    Host,
    /// Nobody: the streams run to their end on host A.
    None,
}

impl Kill {
    /// The victim in the laboratory, if there is one.
    pub(crate) const fn victim(self) -> Option<Victim> {
        match self {
            Self::Qemu => Some(Victim::Qemu),
            Self::Holdfast => Some(Victim::Holdfast),
            Self::Host => Some(Victim::Host),
            Self::None => None,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DemoOptions {
    /// What is done with the guest's output.
    #[arg(long, value_enum, default_value_t = Mode::Speculative)]
    pub(crate) mode: Mode,
    /// Leave out the shorter run in mode commit that mode speculative has beside it.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Milliseconds from one checkpoint to the next.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(5..=10_000))]
    pub(crate) epoch_ms: u64,
    /// Seconds for which the streams run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(crate) duration: u64,
    /// Who is killed amid the streams.
    #[arg(long, value_enum, default_value_t = Kill::Host)]
    pub(crate) kill: Kill,
    /// The wire between the hosts and the client, such as "delay=10ms,loss=0.5%"; a plain cable without it.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) wire: WireSpec,
    /// Which way the epochs go from host to host.
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    pub(crate) transport: Transport,
    /// The wire of the bypass, such as "loss=1%,reorder=1%,corrupt=0.1%"; a plain cable without it.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) bypass_wire: WireSpec,
    /// Chooses the streams and the moment of the kill; printed, so that a run can be repeated.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub(crate) qemu: PathBuf,
    /// Where the figures are written.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Which way the epochs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// The hosts' connection.
    Tcp,
    /// A DPDK port of their own, and the connection where that is lost.
    Bypass,
}

impl From<Transport> for holdfast_lab::pair::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Bypass => Self::Bypass,
        }
    }
}

/// Refuses, with exit code 3, a host on which the laboratory cannot run.
pub(crate) fn check_host() -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::HostLacks(
            "the laboratory makes network namespaces and tracks QEMU's memory, which takes root; \
             mend: sudo holdfast …"
                .into(),
        ));
    }
    let lacks = crate::check_host::lacks_for_demo();
    if lacks.is_empty() { Ok(()) } else { Err(Failure::HostLacks(lacks.join("\n"))) }
}
