//! The cells of the matrix: an epoch and a mode each.

use super::complaints::Listened;
use super::row::Row;
use super::{BulkOptions, Found};
use crate::bench::stage::{MEMORY_MIB, Setting, Stage, StageSpec, dress};
use crate::cli::Failure;
use crate::config::Mode;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::bulk::{FlowSpec, TransferSpec};
use holdfast_lab::capture::{Capture, Captured};
use holdfast_lab::client::STREAM_PORT;
use holdfast_lab::emulator::Report;
use holdfast_lab::expert::complaints;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::iperf;
use holdfast_lab::report::percentile;
use holdfast_lab::topology::guest_ip;
use std::time::Duration;

/// Transfers of one row take no longer than that, but for the one that runs then.
const ROW_TIME: Duration = Duration::from_secs(10);
/// Of one capture, which is in memory and is read whole: about 60 MB.
const MOST_FRAMES: u64 = 500_000;
/// For the ends of connections, which wait for commits.
const CLOSING: Duration = Duration::from_secs(5);

/// What a row is of.
#[derive(Clone, Copy)]
enum What {
    Transfers { bytes: u64, setup: bool },
    Flows(usize),
}

/// A capture of a row's run, which has ended.
struct Heard {
    captured: Captured,
    left_open: bool,
}

/// The matrix on its stage.
pub(super) struct Matrix<'a> {
    options: &'a BulkOptions,
    stage: Stage,
    iperf3: bool,
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
            memory_mib: MEMORY_MIB,
            bypass: None,
            shape: match (aware, options.without_iperf3) {
                (false, false) => with_iperf3,
                (false, true) => plain,
                (true, false) => with_agent_and_iperf3,
                (true, true) => with_agent,
            },
        })?;
        let words = &stage.pair.guests[0].spec.kernel_words;
        let iperf3 = words.iter().any(|word| word.starts_with("holdfast.exec=/bin/iperf3"));
        Ok(Self { options, stage, iperf3 })
    }

    /// All rows of one cell; printed as they are taken.
    pub(super) fn cell(&self, cell: (u32, u64, Mode), found: &mut Found) -> Result<(), Failure> {
        let (options, (_, epoch_ms, mode)) = (self.options, cell);
        self.stage.change(Setting { mode, epoch_ms, adaptive: options.adaptive })?;
        let sizes = options.sizes.iter().filter(|size| size.0 > 0);
        let transfers =
            sizes.flat_map(|size| [false, true].map(|setup| What::Transfers { bytes: size.0, setup }));
        let flows =
            options.connections.iter().filter(|_| options.seconds > 0).map(|count| What::Flows(*count));
        transfers.chain(flows).try_for_each(|what| self.row(cell, what, found))
    }

    /// One row, with its capture if that is wanted, and once more without it if its cost is.
    fn row(
        &self,
        (round, epoch_ms, mode): (u32, u64, Mode),
        what: What,
        found: &mut Found,
    ) -> Result<(), Failure> {
        let captures = self.options.captures;
        let without = match captures && self.options.capture_cost {
            true => self.stage.guarded(mode, |_| self.take(epoch_ms, mode, what, false))?.ok(),
            false => None,
        };
        match self.stage.guarded(mode, |_| self.take(epoch_ms, mode, what, captures))? {
            Ok(((mut row, heard), epochs)) => {
                (row.round, row.epochs_committed) = (round, epochs);
                row.uncaptured_mbit_s = without.map(|((row, _), _)| row.throughput_mbit_s);
                println!("{row}");
                if let Some(heard) = heard {
                    found.listened.push(listen(&row, &heard)?);
                }
                found.rows.push(row);
            }
            Err(lost) => {
                let refused = format!("mode {mode}, epochs of {epoch_ms} ms: {lost}");
                println!("{refused}");
                found.refused.push(refused);
            }
        }
        Ok(())
    }

    fn take(
        &self,
        epoch_ms: u64,
        mode: Mode,
        what: What,
        captured: bool,
    ) -> Result<(Row, Option<Heard>), Failure> {
        let capture = captured.then(|| self.capture()).transpose()?;
        let row = match what {
            What::Transfers { bytes, setup } => self.transfers(epoch_ms, mode, bytes, setup)?,
            What::Flows(connections) => self.flows(epoch_ms, mode, connections, captured)?,
        };
        let heard = capture.map(|capture| self.end_capture(capture)).transpose()?;
        Ok((row, heard))
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

    fn flows(&self, epoch_ms: u64, mode: Mode, connections: usize, captured: bool) -> Result<Row, Failure> {
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
        // Once for each row, whether it is taken once or twice.
        if self.iperf3 && captured == self.options.captures && connections <= iperf::MOST_CONNECTIONS {
            let rate =
                iperf::download(&self.stage.pair.topology.client, guest_ip(1).into(), connections, time);
            row.iperf3_mbit_s = rate.inspect_err(|fault| tracing::warn!("iperf3: {fault}")).ok();
        }
        Ok(row)
    }

    /// One at the client, of what is about to be measured.
    fn capture(&self) -> Result<Capture, Failure> {
        let topology = &self.stage.pair.topology;
        let path = self.stage.pair.scratch.memory("client.pcap");
        Capture::of_headers(&topology.client, topology.client_interface, STREAM_PORT, MOST_FRAMES, &path)
            .map_err(Failure::failed)
    }

    /// With the ends of its connections: they would be strangers in the next row's.
    fn end_capture(&self, capture: Capture) -> Result<Heard, Failure> {
        let closed = self.stage.client.wait_closed(STREAM_PORT, CLOSING).map_err(Failure::failed)?;
        let captured = capture.stop().map_err(Failure::failed)?;
        Ok(Heard { captured, left_open: !closed })
    }
}

/// Has tshark look at the capture of a row, and removes it.
fn listen(row: &Row, heard: &Heard) -> Result<Listened, Failure> {
    let Captured { path, frames, dropped, cut } = &heard.captured;
    let said = complaints(path, STREAM_PORT).map_err(Failure::failed)?;
    std::fs::remove_file(path).map_err(Failure::failed)?;
    Ok(Listened {
        round: row.round,
        mode: row.mode,
        epoch_ms: row.epoch_ms,
        what: row.kind(),
        frames: *frames,
        cut: *cut,
        capture_lost_frames: *dropped,
        left_open: heard.left_open,
        complaints: said,
        beyond_native: None,
    })
}
