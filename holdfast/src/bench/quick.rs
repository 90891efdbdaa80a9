//! `holdfast bench quick`: what protection costs, in a few minutes.
//!
//! The same guest on the same wire, four ways in turn: QEMU's own TAP, Holdfast in mode `native`, in mode
//! `commit`, and in mode `commit` with adaptive epochs. Each round boots each of them anew; the figures are
//! medians over the rounds, and the ratios are medians of the rounds' ratios, so that a machine whose speed drifts does
//! not favour one of them.

use super::{Output, write_json};
use crate::cli::Failure;
use clap::Args;
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::client::Direction;
use holdfast_lab::client::{Amount, Client, SessionSpec};
use holdfast_lab::guest::{Backend, GuestSpec, Nic};
use holdfast_lab::netns::Namespace;
use holdfast_lab::pair::{Pair, PairOptions};
use holdfast_lab::report::median;
use holdfast_lab::scratch::Scratch;
use holdfast_lab::topology::{Topology, TopologyOptions, guest_ip};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const READY: Duration = Duration::from_secs(90);
const VM: &str = "guest";
const PATHS: [&str; 4] = ["tap", "native", "commit", "adaptive"];

#[derive(Clone, Debug, Args)]
pub(crate) struct QuickOptions {
    /// Rounds; each boots the guest four ways.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each stream.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Milliseconds from one checkpoint to the next.
    #[arg(long, default_value_t = 25)]
    epoch_ms: u64,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Row {
    round: u32,
    /// `tap`, `native`, `commit` or `adaptive`: `commit` with epochs that follow the output.
    path: &'static str,
    download_mbit_s: f64,
    upload_mbit_s: f64,
    round_trip_p50_us: f64,
    round_trip_p99_us: f64,
    pause_p50_us: Option<f64>,
    pause_p99_us: Option<f64>,
    commit_latency_p50_us: Option<f64>,
    dirty_pages_p50: Option<f64>,
    stream_exact: bool,
}

/// Runs the benchmark.
pub(super) fn run(options: &QuickOptions) -> Result<(), Failure> {
    options.output.check()?;
    let qemu = Qemu::at(&options.qemu).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        for path in PATHS {
            eprintln!("round {round} of {}: {path}", options.rounds);
            let row = match path {
                "tap" => plain(options, &qemu, round)?,
                path => through_holdfast(options, &qemu, round, path)?,
            };
            rows.push(row);
        }
    }
    print!("{}", table(&rows));
    if let Some(path) = &options.output.json {
        let artifacts = Artifacts::locate().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
        let mut machine = super::machine::this(&qemu, &artifacts, &[]);
        machine.more.insert("epoch_ms".into(), json!(options.epoch_ms));
        machine.more.insert("seconds".into(), json!(options.seconds));
        write_json(path, &json!({"bench": "quick", "machine": machine, "rows": rows}))?;
    }
    if rows.iter().all(|row| row.stream_exact) {
        Ok(())
    } else {
        Err(Failure::Failed("a stream was not exact".into()))
    }
}

/// The guest on QEMU's own TAP.
fn plain(options: &QuickOptions, qemu: &Qemu, round: u32) -> Result<Row, Failure> {
    let topology = Topology::create(&TopologyOptions::default()).map_err(Failure::failed)?;
    topology.a.add_tap("tap0").map_err(Failure::failed)?;
    let scratch = Scratch::new("tap").map_err(Failure::failed)?;
    let artifacts = Artifacts::locate().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let spec = GuestSpec::new(VM, qemu, &artifacts, &scratch)
        .map_err(Failure::failed)?
        .nic(Nic::numbered(1, Backend::Tap { interface: "tap0".into() }));
    let mut guest = spec.start(&topology.a.namespace).map_err(Failure::failed)?;
    guest.wait_ready(READY).map_err(Failure::failed)?;
    measure(options, round, "tap", &topology.client)
}

/// The guest on Holdfast.
fn through_holdfast(
    options: &QuickOptions,
    qemu: &Qemu,
    round: u32,
    path: &'static str,
) -> Result<Row, Failure> {
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let mode = if path == "native" { "native" } else { "commit" };
    let mut plan = PairOptions::new(&program, qemu.clone(), mode);
    if path == "adaptive" {
        plan.vm_lines = "epoch_policy = \"adaptive\"\n".to_owned();
    }
    plan.epoch_ms = options.epoch_ms;
    plan.audit = false;
    let mut pair = Pair::start(plan).map_err(Failure::failed)?;
    pair.wait_ready(READY).map_err(Failure::failed)?;
    let mut row = measure(options, round, path, &pair.topology.client)?;
    if mode == "commit" {
        let status = pair.a.vm(VM).map_err(Failure::failed)?;
        if status["state"] != "protected" || status["link"]["sessions"] != 1 {
            return Err(Failure::Failed(format!(
                "the protection was lost while it was measured ({}; {}); mend: measure on a machine with \
                 nothing else to do",
                status["state"], status["trouble"]["text"]
            )));
        }
        let stats = status["stats"].clone();
        row.pause_p50_us = stats["pause"]["p50_us"].as_f64();
        row.pause_p99_us = stats["pause"]["p99_us"].as_f64();
        row.commit_latency_p50_us = stats["commit_latency"]["p50_us"].as_f64();
        row.dirty_pages_p50 = stats["dirty_pages_p50"].as_f64();
    }
    pair.stop().map_err(Failure::failed)?;
    Ok(row)
}

fn measure(
    options: &QuickOptions,
    round: u32,
    path: &'static str,
    client: &Namespace,
) -> Result<Row, Failure> {
    let client = Client::new(client);
    let stream = |direction| -> Result<(f64, bool), Failure> {
        let spec = SessionSpec::new(direction, guest_ip(1), u64::from(round), Amount::UntilStopped);
        let session = client.start(spec).map_err(Failure::failed)?;
        let began = Instant::now();
        let whole = Duration::from_secs(options.seconds);
        while began.elapsed() < whole && !session.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = Instant::now();
        session.stop();
        let report = session.finish();
        // The first second is TCP's own start.
        let rate = report.throughput_between(began + Duration::from_secs(1).min(whole / 4), ended);
        Ok((rate, report.exact()))
    };
    let (download_mbit_s, down_exact) = stream(Direction::Download)?;
    let (upload_mbit_s, up_exact) = stream(Direction::Upload)?;
    let trips = client.round_trips(guest_ip(1).into(), 64, 200).map_err(Failure::failed)?;
    Ok(Row {
        round,
        path,
        download_mbit_s,
        upload_mbit_s,
        round_trip_p50_us: trips.p50,
        round_trip_p99_us: trips.p99,
        pause_p50_us: None,
        pause_p99_us: None,
        commit_latency_p50_us: None,
        dirty_pages_p50: None,
        stream_exact: down_exact && up_exact,
    })
}

/// Medians by path, and the rounds' ratios.
fn table(rows: &[Row]) -> String {
    let of = |path: &str, value: &dyn Fn(&Row) -> f64| {
        median(&rows.iter().filter(|row| row.path == path).map(value).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let ratio = |one: &str, other: &str, value: &dyn Fn(&Row) -> f64| {
        let by = |path: &str| rows.iter().filter(|row| row.path == path).map(value).collect::<Vec<_>>();
        let ratios: Vec<f64> = by(one).iter().zip(by(other)).map(|(a, b)| a / b).collect();
        median(&ratios).unwrap_or(f64::NAN)
    };
    let down = |row: &Row| row.download_mbit_s;
    let up = |row: &Row| row.upload_mbit_s;
    let trip = |row: &Row| row.round_trip_p50_us / 1e3;
    let tail = |row: &Row| row.round_trip_p99_us / 1e3;
    let mut out = String::from("path      guest to client   client to guest   round trip p50        p99\n");
    for path in PATHS {
        out += &format!(
            "{path:<8} {:>10.1} Mbit/s {:>10.1} Mbit/s {:>13.2} ms {:>7.2} ms\n",
            of(path, &down),
            of(path, &up),
            of(path, &trip),
            of(path, &tail)
        );
    }
    out += &format!(
        "native / tap     {:.2} guest to client, {:.2} client to guest\n",
        ratio("native", "tap", &down),
        ratio("native", "tap", &up)
    );
    out += &format!(
        "commit / native  {:.3} guest to client, {:.3} client to guest\n",
        ratio("commit", "native", &down),
        ratio("commit", "native", &up)
    );
    out += &format!(
        "commit: pause p50 {:.1} ms, p99 {:.1} ms; commit latency p50 {:.1} ms; dirty pages p50 {:.0}\n",
        of("commit", &|row| row.pause_p50_us.unwrap_or(f64::NAN) / 1e3),
        of("commit", &|row| row.pause_p99_us.unwrap_or(f64::NAN) / 1e3),
        of("commit", &|row| row.commit_latency_p50_us.unwrap_or(f64::NAN) / 1e3),
        of("commit", &|row| row.dirty_pages_p50.unwrap_or(f64::NAN))
    );
    out
}
