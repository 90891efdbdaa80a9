//! `holdfast wire-emulator`: stands in for a cable, where the kernel has no netem.

use crate::cli::Failure;
use clap::Args;
use holdfast_lab::emulator::{WireSpec, serve};

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The interface towards the hosts: up, and with all offloads off.
    #[arg(long, value_name = "IF")]
    left: String,
    /// The interface towards the client.
    #[arg(long, value_name = "IF")]
    right: String,
    /// What the wire does, such as "delay=10ms,loss=0.5%,down.rate=100mbit,up.queue=256kib"; "down." is from
    /// left to right, "up." the other way, neither is both. Also: jitter, duplicate, reorder, reorder-by, corrupt.
    #[arg(long, value_name = "WORDS", default_value = "")]
    wire: WireSpec,
    /// Rate of both directions, in 10^6 bits a second.
    #[arg(long)]
    rate_mbit: Option<f64>,
    /// Delay of each direction, in milliseconds.
    #[arg(long)]
    delay_ms: Option<f64>,
    /// Jitter of each direction, in milliseconds.
    #[arg(long)]
    jitter_ms: Option<f64>,
    /// Share of the frames of each direction that are lost, such as 0.005.
    #[arg(long)]
    loss: Option<f64>,
    /// Chooses which frames meet which fate.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Moves frames until a signal ends it.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut wire = options.wire.clone();
    for (key, value, unit) in [
        ("rate", options.rate_mbit, "mbit"),
        ("delay", options.delay_ms, "ms"),
        ("jitter", options.jitter_ms, "ms"),
        ("loss", options.loss, ""),
    ] {
        if let Some(value) = value {
            wire.add(&format!("{key}={value}{unit}")).map_err(|fault| Failure::Usage(fault.to_string()))?;
        }
    }
    serve(&options.left, &options.right, &wire, options.seed).map_err(|fault| {
        Failure::HostLacks(format!("{fault}; mend: name two interfaces that are there, as root"))
    })
}
