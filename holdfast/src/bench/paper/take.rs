//! How each step is measured.

use super::gathered::Taken;
use super::plan::{Extent, Step, What};
use crate::bench::stage::Stage;
use crate::cli::Failure;
use holdfast_lab::apps;
use holdfast_lab::bulk::{FlowSpec, TransferSpec};
use holdfast_lab::topology::guest_ip;
use std::time::Duration;

/// A connection that rests for so long is idle to TCP: its retransmission timer is over (RFC 5681, 4.1).
const IDLE: Duration = Duration::from_millis(300);
/// Bytes of a small request and of its answer.
const REQUEST_BYTES: usize = 64;
/// TCP's own start does not count, nor do the handshakes of hundreds.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures a step on its stage, which has its setting.
pub(super) fn take(stage: &Stage, step: Step, extent: &Extent, seed: u64) -> Result<Taken, Failure> {
    let guest = guest_ip(1).into();
    match step.what {
        What::Stream(connections) => {
            let spec = FlowSpec { guest, seed, connections, warm_up: WARM_UP, time: extent.stream };
            let done = stage.client.flows(&spec).map_err(Failure::failed)?;
            if let Some(fault) = &done.fault {
                tracing::warn!("{connections} connections: {fault}");
            }
            Ok(Taken::Stream {
                mbit_s: done.throughput_mbit_s,
                each_second: done.each_second_mbit_s,
                fairness: done.fairness,
                exact: done.exact,
            })
        }
        What::Transfers { bytes, setup } => {
            let spec = TransferSpec {
                guest,
                seed,
                bytes,
                setup,
                most: extent.transfers,
                time: extent.transfers_time,
                rest: if setup { Duration::ZERO } else { IDLE },
                pause: Duration::from_millis(step.setting.epoch_ms),
            };
            let done = stage.client.transfers(&spec).map_err(Failure::failed)?;
            Ok(Taken::Transfers { completion_ms: done.completion_ms, exact: done.exact })
        }
        What::Latency => {
            let times_us =
                stage.client.request_times_us(guest, REQUEST_BYTES, extent.requests, extent.requests_time);
            Ok(Taken::Latency { times_us: times_us.map_err(Failure::failed)? })
        }
        What::Application(app) => {
            let mut figures = Vec::new();
            for load in 0..extent.loads {
                let done = apps::measure(app, &stage.client, guest, seed ^ u64::from(load), extent.load)
                    .map_err(Failure::failed)?;
                if let Some(fault) = &done.fault {
                    tracing::warn!("{app}: {fault}");
                }
                figures.push(done);
            }
            Ok(Taken::Application(figures))
        }
    }
}
