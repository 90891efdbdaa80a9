//! The guest on its pair of hosts, and the cells of the matrix: an epoch and a mode each.

use super::complaints::Listened;
use super::row::Row;
use super::{BulkOptions, Found};
use crate::cli::Failure;
use crate::config::Mode;
use holdfast_lab::agent;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::bulk::{FlowSpec, TransferSpec};
use holdfast_lab::capture::{Capture, Flow};
use holdfast_lab::client::{Client, STREAM_PORT};
use holdfast_lab::emulator::{Report, WireEmulator};
use holdfast_lab::expert::{Complaints, complaints};
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::iperf;
use holdfast_lab::pair::{Pair, PairError, PairOptions};
use holdfast_lab::report::percentile;
use holdfast_lab::topology::guest_ip;
use serde_json::{Value, json};
use std::time::Duration;

const VM: &str = "guest";
const READY: Duration = Duration::from_secs(90);
/// A change of mode, with the synchronisation that protection begins with.
const CHANGE: Duration = Duration::from_secs(60);
/// A row is tried that often.
const ATTEMPTS: usize = 3;
/// Transfers of one row take no longer than that, but for the one that runs then.
const ROW_TIME: Duration = Duration::from_secs(10);
/// What a capture sees: transfers large enough for every phase of TCP, and small ones.
const CAPTURED: [(u64, usize); 2] = [(16 << 20, 2), (64 << 10, 5)];
/// For the stacks and buffers of hundreds of connections.
const MEMORY_MIB: u32 = 512;

/// The running pair.
pub(super) struct Matrix<'a> {
    options: &'a BulkOptions,
    pair: Pair,
    client: Client,
    iperf3: bool,
    /// What native was complained of in this epoch's round.
    reference: Complaints,
}

/// Each connection begins anew: what the guest remembers of a client's earlier ones, in another mode, would
/// be measured with it.
const GUEST_SETTING: (&str, &str) = ("net/ipv4/tcp_no_metrics_save", "1");

fn forgetful(spec: &mut GuestSpec) {
    spec.sysctls.push((GUEST_SETTING.0.into(), GUEST_SETTING.1.into()));
}

/// With the agent, which attaches where it is measured.
fn with_agent(spec: &mut GuestSpec) {
    forgetful(spec);
    if let Err(fault) = agent::serve_shell(spec).and_then(|()| agent::serve(spec)) {
        tracing::error!("no agent in the guest: {fault}");
    }
}

fn with_agent_and_iperf3(spec: &mut GuestSpec) {
    with_agent(spec);
    add_iperf3(spec);
}

fn with_iperf3(spec: &mut GuestSpec) {
    forgetful(spec);
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
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let (Some(mode), Some(epoch)) = (options.modes.first(), options.epochs.first()) else {
            return Err(Failure::Usage("no mode or no epoch is named".into()));
        };
        let mut plan = PairOptions::new(&program, qemu, mode.name());
        plan.epoch_ms = *epoch;
        if options.adaptive {
            plan.vm_lines = "epoch_policy = \"adaptive\"\n".to_owned();
        }
        plan.audit = false;
        plan.memory_mib = MEMORY_MIB;
        plan.wire = options.wire.clone();
        plan.wire_seed = options.seed;
        plan.shape = match (options.modes.contains(&Mode::Aware), options.without_iperf3) {
            (false, false) => with_iperf3,
            (false, true) => forgetful,
            (true, false) => with_agent_and_iperf3,
            (true, true) => with_agent,
        };
        let mut pair = Pair::start(plan).map_err(Failure::failed)?;
        pair.wait_ready(READY).map_err(Failure::failed)?;
        let client = Client::new(&pair.topology.client);
        let words = &pair.guests[0].spec.kernel_words;
        let iperf3 = words.iter().any(|word| word.starts_with("holdfast.exec=/bin/iperf3"));
        Ok(Self { options, pair, client, iperf3, reference: Complaints::default() })
    }

    /// All rows of one cell; printed as they are taken.
    pub(super) fn cell(&mut self, epoch_ms: u64, mode: Mode, found: &mut Found) -> Result<(), Failure> {
        self.change(epoch_ms, mode)?;
        let options = self.options;
        let take = |this: &Self, row: &dyn Fn() -> Result<Row, Failure>, found: &mut Found| {
            match this.guarded(mode, row)? {
                Ok(row) => {
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
    pub(super) fn end(mut self) -> Result<Option<Report>, Failure> {
        self.pair.stop().map_err(Failure::failed)?;
        self.pair.wire.take().map(WireEmulator::stop).transpose().map_err(Failure::failed)
    }

    fn change(&self, epoch_ms: u64, mode: Mode) -> Result<(), Failure> {
        let host = &self.pair.a;
        let ask = |request: Value| host.ask(&request).map_err(Failure::failed);
        ask(json!({"command": "setmode", "vm": VM, "mode": mode}))?;
        ask(json!({"command": "epoch", "vm": VM, "epoch_ms": epoch_ms}))?;
        let wanted = if mode.protects() { "protected" } else { "native" };
        host.wait_for(VM, wanted, CHANGE, |status| {
            status["state"] == wanted && status["mode"] == mode.name()
        })
        .map_err(Failure::failed)?;
        if self.options.modes.contains(&Mode::Aware) {
            let attached = mode == Mode::Aware;
            agent::wait_attached(&self.client, guest_ip(1).into(), attached, CHANGE)
                .map_err(Failure::failed)?;
        }
        Ok(())
    }

    /// Takes a row, again if the protection was lost meanwhile; what was lost if that does not help.
    fn guarded(
        &self,
        mode: Mode,
        take: &dyn Fn() -> Result<Row, Failure>,
    ) -> Result<Result<Row, String>, Failure> {
        let mut lost = String::new();
        for _ in 0..ATTEMPTS {
            let wanted = if mode.protects() { "protected" } else { "native" };
            let before = self.pair.a.wait_state(VM, &[wanted], CHANGE).map_err(Failure::failed)?;
            let taken = take();
            let after = self.status().map_err(Failure::failed)?;
            let same = |name: &str| before["link"][name] == after["link"][name];
            if after["state"] == wanted && same("sessions") && after["term"] == before["term"] {
                let mut row = taken?;
                let epoch = |status: &Value| status["committed_epoch"].as_u64().unwrap_or(0);
                row.epochs_committed = epoch(&after).saturating_sub(epoch(&before));
                return Ok(Ok(row));
            }
            lost = format!("{wanted} was lost ({}; {})", after["state"], after["trouble"]["text"]);
            tracing::warn!("{lost}: once more");
        }
        Ok(Err(lost))
    }

    fn status(&self) -> Result<Value, PairError> {
        self.pair.a.vm(VM)
    }

    fn transfers(&self, epoch_ms: u64, mode: Mode, bytes: u64, setup: bool) -> Result<Row, Failure> {
        let spec = TransferSpec {
            guest: guest_ip(1).into(),
            seed: self.options.seed,
            bytes,
            setup,
            most: self.options.transfers.max(1),
            time: ROW_TIME,
            pause: Duration::from_millis(epoch_ms),
        };
        let done = self.client.transfers(&spec).map_err(Failure::failed)?;
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
        let done = self.client.flows(&spec).map_err(Failure::failed)?;
        if let Some(fault) = &done.fault {
            tracing::warn!("mode {mode}, {connections} connections: {fault}");
        }
        let mut row = Row::new(mode, epoch_ms);
        (row.seconds, row.connections) = (Some(self.options.seconds), connections);
        row.throughput_mbit_s = done.throughput_mbit_s;
        row.fairness = Some(done.fairness);
        row.stream_exact = done.exact;
        if self.iperf3 && connections <= iperf::MOST_CONNECTIONS {
            let rate = iperf::download(&self.pair.topology.client, guest_ip(1).into(), connections, time);
            row.iperf3_mbit_s = rate.inspect_err(|fault| tracing::warn!("iperf3: {fault}")).ok();
        }
        Ok(row)
    }

    /// Captures transfers at the client, and has tshark look at them.
    fn listen(&mut self, epoch_ms: u64, mode: Mode) -> Result<Listened, Failure> {
        let topology = &self.pair.topology;
        let path = self.pair.scratch.file(&format!("client-{mode}-{epoch_ms}.pcap"));
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
                pause: Duration::from_millis(epoch_ms),
            };
            let done = self.client.transfers(&spec).map_err(Failure::failed)?;
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
