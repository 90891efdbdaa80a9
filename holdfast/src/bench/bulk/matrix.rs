//! The cells of the matrix: an epoch and a mode each.

use super::complaints::Listened;
use super::row::Row;
use super::{BulkOptions, Found};
use crate::bench::stage::{Setting, Stage, StageSpec, dress};
use crate::cli::Failure;
use crate::config::Mode;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::bulk::{FlowSpec, TransferSpec};
use holdfast_lab::capture::{Capture, Flow};
use holdfast_lab::client::STREAM_PORT;
use holdfast_lab::emulator::Report;
use holdfast_lab::expert::{Complaints, complaints};
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::iperf;
use holdfast_lab::report::percentile;
use holdfast_lab::topology::guest_ip;
use std::time::Duration;

/// Transfers of one row take no longer than that, but for the one that runs then.
const ROW_TIME: Duration = Duration::from_secs(10);
/// What a capture sees: transfers large enough for every phase of TCP, and small ones.
const CAPTURED: [(u64, usize); 2] = [(16 << 20, 2), (64 << 10, 5)];

/// The matrix on its stage.
pub(super) struct Matrix<'a> {
    options: &'a BulkOptions,
    stage: Stage,
    iperf3: bool,
    /// What native was complained of in this epoch's round.
    reference: Complaints,
}

fn plain(spec: &mut GuestSpec) {
    dress(spec, false);
}

fn with_agent(spec: &mut GuestSpec) {
    dress(spec, true);
}

fn with_agent_and_iperf3(spec: &mut GuestSpec) {
    dress(spec, true);
    add_iperf3(spec);
}

fn with_iperf3(spec: &mut GuestSpec) {
    dress(spec, false);
    add_iperf3(spec);
}

fn add_iperf3(spec: &mut GuestSpec) {
    if let Err(fault) = iperf::serve(spec) {
        tracing::warn!("no iperf3 in the guest: {fault}");
    }
}

impl<'a> Matrix<'a> {
    /// Boots the guest, in the first mode.
    pub(super) fn start(options: &'a BulkOptions, qemu: Qemu) -> Result<Self, Failure> {
        let (Some(mode), Some(epoch)) = (options.modes.first(), options.epochs.first()) else {
            return Err(Failure::Usage("no mode or no epoch is named".into()));
        };
        let aware = options.modes.contains(&Mode::Aware);
        let stage = Stage::start(StageSpec {
            qemu,
            wire: &options.wire,
            seed: options.seed,
            first: Setting { mode: *mode, epoch_ms: *epoch, adaptive: options.adaptive },
            aware,
            shape: match (aware, options.without_iperf3) {
                (false, false) => with_iperf3,
                (false, true) => plain,
                (true, false) => with_agent_and_iperf3,
                (true, true) => with_agent,
            },
        })?;
        let words = &stage.pair.guests[0].spec.kernel_words;
        let iperf3 = words.iter().any(|word| word.starts_with("holdfast.exec=/bin/iperf3"));
        Ok(Self { options, stage, iperf3, reference: Complaints::default() })
    }

    /// All rows of one cell; printed as they are taken.
    pub(super) fn cell(&mut self, epoch_ms: u64, mode: Mode, found: &mut Found) -> Result<(), Failure> {
        let options = self.options;
        self.stage.change(Setting { mode, epoch_ms, adaptive: options.adaptive })?;
        let take = |this: &Self, row: &dyn Fn() -> Result<Row, Failure>, found: &mut Found| {
            match this.stage.guarded(mode, |_| row())? {
                Ok((mut row, epochs)) => {
                    row.epochs_committed = epochs;
                    println!("{row}");
                    found.rows.push(row);
                }
                Err(lost) => {
                    let refused = format!("mode {mode}, epochs of {epoch_ms} ms: {lost}");
                    println!("{refused}");
                    found.refused.push(refused);
                }
            }
            Ok::<(), Failure>(())
        };
        // First: what comes late of streams that were broken off might be complained of.
        if options.captures {
            found.listened.push(self.listen(epoch_ms, mode)?);
        }
        for size in options.sizes.iter().filter(|size| size.0 > 0) {
            for setup in [false, true] {
                take(self, &|| self.transfers(epoch_ms, mode, size.0, setup), found)?;
            }
        }
        for connections in options.connections.iter().filter(|_| options.seconds > 0) {
            take(self, &|| self.flows(epoch_ms, mode, *connections), found)?;
        }
        Ok(())
    }

    /// Ends the pair; gives what the emulated wire did.
    pub(super) fn end(self) -> Result<Option<Report>, Failure> {
        self.stage.end()
    }

    fn transfers(&self, epoch_ms: u64, mode: Mode, bytes: u64, setup: bool) -> Result<Row, Failure> {
        let spec = TransferSpec {
            guest: guest_ip(1).into(),
            seed: self.options.seed,
            bytes,
            setup,
            most: self.options.transfers.max(1),
            time: ROW_TIME,
            rest: Duration::ZERO,
            pause: Duration::from_millis(epoch_ms),
        };
        let done = self.stage.client.transfers(&spec).map_err(Failure::failed)?;
        let mut row = Row::new(mode, epoch_ms);
        (row.bytes, row.setup, row.transfers) = (Some(bytes), Some(setup), Some(done.completion_ms.len()));
        row.completion_p50_ms = percentile(&done.completion_ms, 0.5);
        row.completion_p90_ms = percentile(&done.completion_ms, 0.9);
        row.throughput_mbit_s = row.completion_p50_ms.map_or(0.0, |ms| bytes as f64 * 8e-3 / ms);
        row.stream_exact = done.exact;
        Ok(row)
    }

    fn flows(&self, epoch_ms: u64, mode: Mode, connections: usize) -> Result<Row, Failure> {
        let time = Duration::from_secs(self.options.seconds);
        let spec = FlowSpec {
            guest: guest_ip(1).into(),
            seed: self.options.seed,
            connections,
            // TCP's own start does not count, nor do the handshakes of hundreds.
            warm_up: Duration::from_secs(1),
            time,
        };
        let done = self.stage.client.flows(&spec).map_err(Failure::failed)?;
        if let Some(fault) = &done.fault {
            tracing::warn!("mode {mode}, {connections} connections: {fault}");
        }
        let mut row = Row::new(mode, epoch_ms);
        (row.seconds, row.connections) = (Some(self.options.seconds), connections);
        row.throughput_mbit_s = done.throughput_mbit_s;
        row.fairness = Some(done.fairness);
        row.stream_exact = done.exact;
        if self.iperf3 && connections <= iperf::MOST_CONNECTIONS {
            let rate =
                iperf::download(&self.stage.pair.topology.client, guest_ip(1).into(), connections, time);
            row.iperf3_mbit_s = rate.inspect_err(|fault| tracing::warn!("iperf3: {fault}")).ok();
        }
        Ok(row)
    }

    /// Captures transfers at the client, and has tshark look at them.
    fn listen(&mut self, epoch_ms: u64, mode: Mode) -> Result<Listened, Failure> {
        let topology = &self.stage.pair.topology;
        let path = self.stage.pair.scratch.file(&format!("client-{mode}-{epoch_ms}.pcap"));
        let capture = Capture::start(&topology.client, topology.client_interface, Flow::Both, &path)
            .map_err(Failure::failed)?;
        for (bytes, most) in CAPTURED {
            let spec = TransferSpec {
                guest: guest_ip(1).into(),
                seed: self.options.seed,
                bytes,
                setup: true,
                most,
                time: ROW_TIME,
                rest: Duration::ZERO,
                pause: Duration::from_millis(epoch_ms),
            };
            let done = self.stage.client.transfers(&spec).map_err(Failure::failed)?;
            if !done.exact {
                return Err(Failure::Failed("a captured stream was not exact".into()));
            }
        }
        let captured = capture.stop().map_err(Failure::failed)?;
        let said = complaints(&captured.path, STREAM_PORT).map_err(Failure::failed)?;
        if mode == Mode::Native {
            self.reference = said.clone();
        }
        Ok(Listened {
            mode,
            epoch_ms,
            beyond_native: said.beyond(&self.reference),
            complaints: said,
            capture_lost_frames: captured.dropped,
        })
    }
}
