//! `holdfast soak`: the story again and again, each time with another seed and another victim.

use super::options::{DemoOptions, Kill, Transport, check_host};
use super::story::tell;
use crate::cli::Failure;
use crate::config::Mode;
use clap::Args;
use holdfast_lab::emulator::WireSpec;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub(crate) struct SoakOptions {
    /// How many runs.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) runs: u64,
    /// What is done with the guest's output.
    #[arg(long, value_enum, default_value_t = Mode::Speculative)]
    pub(crate) mode: Mode,
    /// The wire between the hosts and the client; "" for a plain cable.
    #[arg(long, value_name = "WORDS", default_value = "delay=1ms,loss=0.2%")]
    pub(crate) wire: WireSpec,
    /// Which way the epochs go from host to host.
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    pub(crate) transport: Transport,
    /// The wire of the bypass; "" for a plain cable.
    #[arg(long, value_name = "WORDS", default_value = "loss=1%,reorder=1%,corrupt=0.2%")]
    pub(crate) bypass_wire: WireSpec,
    /// Seed of the first run; the next runs count up from it.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Milliseconds from one checkpoint to the next.
    #[arg(long, default_value_t = 25)]
    pub(crate) epoch_ms: u64,
    /// Seconds for which the streams of a run go on.
    #[arg(long, default_value_t = 6)]
    pub(crate) duration: u64,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub(crate) qemu: PathBuf,
}

/// Runs all; a line a run, and an error when any of them broke the promise.
pub(crate) fn soak(options: &SoakOptions) -> Result<(), Failure> {
    check_host()?;
    if options.mode == Mode::Native {
        return Err(Failure::Usage(
            "nothing survives in mode native; mend: --mode commit or speculative".into(),
        ));
    }
    println!("mode {}, {}, epochs of {} ms", options.mode, options.wire, options.epoch_ms);
    if options.transport == Transport::Bypass {
        println!("epochs over a bypass of {}", options.bypass_wire);
    }
    let mut failed = 0;
    for run in 0..options.runs {
        let seed = options.seed + run;
        let kill = [Kill::Host, Kill::Qemu, Kill::Holdfast][(seed % 3) as usize];
        let one = DemoOptions {
            mode: options.mode,
            alone: true,
            wire: options.wire.clone(),
            transport: options.transport,
            bypass_wire: options.bypass_wire.clone(),
            epoch_ms: options.epoch_ms,
            duration: options.duration,
            kill,
            seed: Some(seed),
            qemu: options.qemu.clone(),
            json: None,
        };
        let result = tell(&one, &mut |line| tracing::debug!("{line}"));
        let line = match result.and_then(|outcome| outcome.verdict().map(|()| outcome)) {
            Ok(outcome) => format!(
                "exact, {} bytes to and from, {} lost on the wire, {} epochs, resumed from {}, silence {:.0} ms, 0 early \
                 of {}{}",
                outcome.stream_bytes,
                outcome.wire_lost_frames.unwrap_or(0),
                outcome.epochs_committed,
                outcome.resumed_from_epoch.unwrap_or(0),
                outcome.client_gap_ms,
                outcome.frames_joined,
                outcome.bypass.as_ref().map_or_else(String::new, |bypass| format!("; {}", bypass.line()))
            ),
            Err(fault) => {
                failed += 1;
                format!("FAILED: {fault}")
            }
        };
        println!("run {:>3}  seed {seed}  kill {kill:?}  {line}", run + 1);
    }
    println!("{} runs, {failed} failed", options.runs);
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::Failed(format!("{failed} of {} runs failed", options.runs)))
    }
}
