//! `holdfast bench bulk`: what the guest sends to the client, in each mode and at each epoch's length.
//!
//! One guest on a pair of hosts; its mode and its epochs are changed while it runs. For each length of an
//! epoch all modes have their turn within the same minutes, so that a machine whose speed drifts favours
//! none of them: a row of mode native carries the epoch of those beside which it was taken. Everything is
//! on the client's clock. A row during which the protection was lost is taken again.

mod complaints;
mod matrix;
mod ratios;
mod row;
mod size;

use super::{Output, write_json};
use crate::cli::Failure;
use crate::config::Mode;
use clap::Args;
use complaints::Listened;
use holdfast_lab::apps::App;
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::emulator::WireSpec;
use holdfast_report::run::Machine;
use matrix::Matrix;
use row::Row;
use serde_json::json;
use size::Size;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub(crate) struct BulkOptions {
    /// Modes, in the order in which they take their turns. Mode aware gives the guest its agent, in
    /// all of them.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "native,commit,speculative")]
    modes: Vec<Mode>,
    /// Lengths of an epoch, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "10,25,50,100,200")]
    epochs: Vec<u64>,
    /// Let the guest's output end epochs early (`epoch_policy = "adaptive"`); their lengths are the longest then.
    #[arg(long)]
    adaptive: bool,
    /// Sizes of transfers, each on an open connection and with the connection's set-up; "0" for none.
    #[arg(long, value_delimiter = ',', default_value = "64KiB,1MiB,16MiB")]
    sizes: Vec<Size>,
    /// Transfers of each size at most; fewer, but three at least, where they take longer than 10 s.
    #[arg(long, default_value_t = 15)]
    transfers: usize,
    /// Seconds of the streams without end; 0 for none.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Numbers of such streams at the same time.
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    connections: Vec<usize>,
    /// The wire between the hosts and the client, such as "delay=10ms,loss=0.5%"; a plain cable without it.
    #[arg(long, value_name = "WORDS", default_value = "")]
    wire: WireSpec,
    /// Captures the headers of each run that is measured, at the client, and compares what tshark complains of
    /// with the same row of mode native.
    #[arg(long)]
    captures: bool,
    /// With --captures: measures each row without a capture as well, and says what capturing costs.
    #[arg(long, requires = "captures")]
    capture_cost: bool,
    /// How often everything is measured; `bench compare` wants five rounds.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Leave out iperf3, which measures the streams without end a second time.
    #[arg(long)]
    without_iperf3: bool,
    /// Chooses the streams and the wire's fates.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What a run found.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    listened: Vec<Listened>,
    /// Rows that could not be taken, and why.
    refused: Vec<String>,
}

/// Runs the benchmark.
pub(super) fn run(options: &BulkOptions) -> Result<(), Failure> {
    check(options)?;
    options.output.check()?;
    let qemu = Qemu::at(&options.qemu).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let machine = machine(options, &qemu)?;
    let mut found = Found::default();
    let matrix = Matrix::start(options, qemu)?;
    println!("{}", row::HEADING);
    let cells = options.epochs.iter().flat_map(|epoch| options.modes.iter().map(move |mode| (*epoch, *mode)));
    let ended = (1..=options.rounds).try_for_each(|round| {
        cells.clone().try_for_each(|(epoch, mode)| matrix.cell((round, epoch, mode), &mut found))
    });
    let wire = matrix.end();
    complaints::compare(&mut found.listened);
    // What was measured before a failure is worth its while.
    print!("{}", ratios::table(&found.rows, !options.wire.is_plain()));
    print!("{}", complaints::list(&found.listened));
    print!("{}", complaints::cost(&found.rows));
    found.refused.iter().for_each(|refused| println!("refused: {refused}"));
    if let Some(path) = &options.output.json {
        let document = json!({
            "bench": "bulk",
            "machine": machine,
            "rows": found.rows,
            "ratios": ratios::all(&found.rows),
            "aims": ratios::aims(&found.rows, !options.wire.is_plain()),
            "complaints": found.listened,
            "refused": found.refused,
            "wire_frames": wire?,
        });
        write_json(path, &document)?;
    }
    ended?;
    if found.rows.iter().any(|row| !row.stream_exact) {
        return Err(Failure::Failed("a stream was not exact".into()));
    }
    match found.refused.len() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "{count} rows could not be taken, as the protection was lost again and again; mend: measure on a \
             machine with nothing else to do"
        ))),
    }
}

fn check(options: &BulkOptions) -> Result<(), Failure> {
    let usage = |what: String| Err(Failure::Usage(what));
    if let Some(epoch) = options.epochs.iter().find(|epoch| !(5..=10_000).contains(*epoch)) {
        return usage(format!("--epochs: {epoch} is not between 5 and 10000 ms"));
    }
    if let Some(count) = options.connections.iter().find(|count| !(1..=1000).contains(*count)) {
        return usage(format!("--connections: {count} is not between 1 and 1000"));
    }
    if options.rounds == 0 {
        return usage("--rounds: at least 1".into());
    }
    if options.captures && !options.modes.contains(&Mode::Native) {
        return usage("--captures compares with mode native; mend: name it among --modes".into());
    }
    Ok(())
}

/// What the figures depend on beside the program.
fn machine(options: &BulkOptions, qemu: &Qemu) -> Result<Machine, Failure> {
    let artifacts = Artifacts::locate().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let apps: &[App] = if options.without_iperf3 { &[] } else { &[App::Iperf3] };
    let mut machine = super::machine::this(qemu, &artifacts, apps);
    let mut more = |name: &str, value| drop(machine.more.insert(name.into(), value));
    more("adaptive", json!(options.adaptive));
    more("captures", json!(options.captures));
    more("seed", json!(options.seed));
    more("wire", json!(options.wire.to_string()));
    more("guest_settings", json!("net.ipv4.tcp_no_metrics_save=1"));
    Ok(machine)
}
