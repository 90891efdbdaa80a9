//! The story: two hosts and a client, a guest that talks, a kill, and the guest talking on.

use super::options::{DemoOptions, Kill, Transport};
use super::outcome::{BypassOutcome, Outcome};
use crate::cli::Failure;
use crate::config::Mode;
use holdfast_lab::agent;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::audit::read_audit;
use holdfast_lab::capture::{Capture, Captured, Flow};
use holdfast_lab::client::Direction;
use holdfast_lab::client::{Amount, Client, Session, SessionReport, SessionSpec};
use holdfast_lab::emulator::{Report, WireEmulator};
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::join::{JoinReport, join};
use holdfast_lab::pair::{Pair, PairOptions};
use holdfast_lab::topology::guest_ip;
use serde_json::Value;
use std::time::{Duration, Instant};

const VM: &str = "guest";
/// Boot under emulation, and the first full synchronisation.
const READY: Duration = Duration::from_secs(90);
/// After the kill the guest is back within this, or it is not coming.
const FAILOVER: Duration = Duration::from_secs(30);

fn with_agent(spec: &mut GuestSpec) {
    if let Err(fault) = agent::serve(spec) {
        tracing::error!("no agent in the guest: {fault}");
    }
}

/// Plays the story once; `say` is told what happens as it happens.
pub(crate) fn tell(options: &DemoOptions, say: &mut dyn FnMut(&str)) -> Result<Outcome, Failure> {
    let seed = options.seed.unwrap_or_else(random_seed);
    let mode = options.mode.name();
    let kill = if options.mode == Mode::Native { Kill::None } else { options.kill };
    let began = Instant::now();
    let mut say = |text: &str| say(&format!("[{:5.1} s] {text}", began.elapsed().as_secs_f64()));

    let qemu = Qemu::at(&options.qemu).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let version = format!("{}.{}", qemu.version.0, qemu.version.1);
    say(&format!("seed {seed}; two hosts and a client in network namespaces, QEMU {version}, mode {mode}"));
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let mut plan = PairOptions::new(&program, qemu, mode);
    plan.epoch_ms = options.epoch_ms;
    plan.wire = options.wire.clone();
    plan.wire_seed = seed;
    plan.transport = options.transport.into();
    plan.bypass_wire = options.bypass_wire.clone();
    if options.mode == Mode::Aware {
        plan.shape = with_agent;
    }
    let mut pair = Pair::start(plan).map_err(Failure::failed)?;
    say("Holdfast runs on both hosts; the guest boots on host A");
    pair.wait_ready(READY).map_err(Failure::failed)?;
    say(match options.mode {
        Mode::Native => "the guest is up; its output passes through",
        Mode::Commit => {
            "the guest is up and protected: its memory is on host B, its output waits for each commit"
        }
        Mode::Aware => {
            "the guest is up and protected: its memory is on host B, its output waits for each commit, its TCP \
             runs ahead, and its agent may open the windows"
        }
        Mode::Speculative => {
            "the guest is up and protected: its memory is on host B, its output waits for each commit, and its \
             TCP runs ahead"
        }
    });

    let capture = Capture::start(
        &pair.topology.switch,
        pair.topology.a.client_port,
        Flow::Arriving,
        &pair.scratch.file("wire.pcap"),
    )
    .map_err(Failure::failed)?;
    let client = Client::new(&pair.topology.client);
    let start = |direction, salt: u64| {
        client
            .start(SessionSpec::new(direction, guest_ip(1), seed ^ salt, Amount::UntilStopped))
            .map_err(Failure::failed)
    };
    let streams = Streams { download: start(Direction::Download, 0)?, upload: start(Direction::Upload, 1)? };
    let streams_began = Instant::now();
    say("the client fetches one pseudo-random stream from the guest and sends it another");

    let whole = Duration::from_secs(options.duration);
    let moment = kill_moment(seed, whole);
    let before =
        watch(&pair, &streams, streams_began, if kill == Kill::None { whole } else { moment }, &mut say)?;
    let port = pair.a.status().map_err(Failure::failed)?["bypass"].clone();
    let mut killed = None;
    if let Some(victim) = kill.victim() {
        let at = Instant::now();
        pair.kill(victim, 0).map_err(Failure::failed)?;
        let epoch = pair.commit_log(VM).map_err(Failure::failed)?.last().map(|commit| commit.epoch);
        say(&format!("SIGKILL: {victim:?} of host A, after epoch {}", epoch.unwrap_or(0)));
        let live = pair
            .b
            .wait_for(VM, "running on host B", FAILOVER, |status| status["failover"].is_object())
            .map_err(Failure::failed)?;
        say(&format!(
            "host B runs the guest from epoch {}, {} ms after the kill",
            live["failover"]["resumed_from_epoch"],
            at.elapsed().as_millis()
        ));
        killed = Some((at, epoch, live["failover"].clone()));
        let left = whole.saturating_sub(streams_began.elapsed()).max(Duration::from_secs(3));
        watch(&pair, &streams, streams_began, streams_began.elapsed() + left, &mut say)?;
    }
    let until = killed.as_ref().map_or_else(Instant::now, |(at, ..)| *at);
    let (download, upload) = streams.finish();
    say(&format!("the streams end: {:?}, {:?}", download.end, upload.end));

    let captured = capture.stop().map_err(Failure::failed)?;
    let joined = if options.mode.protects() { joined(&pair, &captured)? } else { JoinReport::default() };
    pair.stop().map_err(Failure::failed)?;
    let wire = pair.wire.take().map(WireEmulator::stop).transpose().map_err(Failure::failed)?;
    let bypass_wire = pair.bypass_wire.take().map(WireEmulator::stop).transpose().map_err(Failure::failed)?;
    let bypass = (options.transport == Transport::Bypass).then(|| BypassOutcome {
        wire: options.bypass_wire.to_string(),
        wire_lost_frames: bypass_wire.as_ref().map(Report::missing_frames),
        in_use: before["link"]["over_bypass"] == true,
        returns: before["link"]["bypass_returns"].as_u64().unwrap_or(0),
        sent_frames: port["frames_out"].as_u64().unwrap_or(0),
        refused_datagrams: port["refused_datagrams"].as_u64().unwrap_or(0),
    });
    let failover = killed.as_ref().map(|(_, _, report)| report);
    let outcome = Outcome {
        mode: options.mode,
        kill,
        seed,
        epoch_ms: options.epoch_ms,
        qemu: version,
        epochs_committed: pair.commit_log(VM).map_err(Failure::failed)?.commits().len() as u64,
        pause_p50_us: before["stats"]["pause"]["p50_us"].as_f64(),
        pause_p99_us: before["stats"]["pause"]["p99_us"].as_f64(),
        commit_latency_p50_us: before["stats"]["commit_latency"]["p50_us"].as_f64(),
        dirty_pages_p50: before["stats"]["dirty_pages_p50"].as_f64(),
        replicated_bytes: before["stats"]["replicated_bytes"].as_u64(),
        throughput_mbit_s: download.throughput_between(streams_began, until),
        upload_mbit_s: upload.throughput_between(streams_began, until),
        killed_at_epoch: killed.as_ref().and_then(|(_, epoch, _)| *epoch),
        resumed_from_epoch: failover.and_then(|report| report["resumed_from_epoch"].as_u64()),
        detect_ms: failover.and_then(|report| report["detect_ms"].as_f64()),
        resume_ms: failover.and_then(|report| report["resume_ms"].as_f64()),
        client_gap_ms: download.max_gap.max(upload.max_gap).as_secs_f64() * 1e3,
        stream_bytes: download.bytes + upload.bytes,
        stream_exact: download.exact() && upload.exact() && download.bytes > 0 && upload.bytes > 0,
        stream_ends: vec![format!("{:?}", download.end), format!("{:?}", upload.end)],
        frames_joined: joined.frames_protected,
        frames_released_early: joined.frames_released_early,
        frames_capture_lost: captured.dropped,
        wire: options.wire.to_string(),
        wire_lost_frames: wire.as_ref().map(Report::missing_frames),
        bypass,
        beside: None,
    };
    if outcome.verdict().is_err() {
        say(&format!("logs and captures are kept in {}", pair.scratch.keep().display()));
    }
    Ok(outcome)
}

/// The two streams of a run.
struct Streams {
    download: Session,
    upload: Session,
}

impl Streams {
    fn finish(self) -> (SessionReport, SessionReport) {
        self.download.stop();
        self.upload.stop();
        (self.download.finish(), self.upload.finish())
    }
}

/// Lets the streams run until `until` after their beginning, with a line a second; gives the last
/// status of host A's VM, or of host B's once host A is dead.
fn watch(
    pair: &Pair,
    streams: &Streams,
    began: Instant,
    until: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<Value, Failure> {
    let mut last = Value::Null;
    let mut told = (Instant::now(), streams.download.bytes(), streams.upload.bytes());
    while began.elapsed() < until {
        // A clock of its own: the length of the run is what is measured here, not an event.
        std::thread::sleep(Duration::from_millis(50).min(until.saturating_sub(began.elapsed())));
        let host = if pair.a.process.is_some() { &pair.a } else { &pair.b };
        last = host.vm(VM).map_err(Failure::failed)?;
        let since = told.0.elapsed();
        if since >= Duration::from_secs(1) {
            let (down, up) = (streams.download.bytes(), streams.upload.bytes());
            let rate = |bytes: u64| bytes as f64 * 8e-6 / since.as_secs_f64();
            say(&format!(
                "epoch {}, to the client {:.1} Mbit/s, from the client {:.1} Mbit/s",
                last["committed_epoch"],
                rate(down - told.1),
                rate(up - told.2)
            ));
            told = (Instant::now(), down, up);
        }
        if streams.download.is_finished() || streams.upload.is_finished() {
            return Err(Failure::Failed(format!(
                "a stream ended by itself; the log of {} ends:\n{}",
                host.name,
                host.log_tail(20)
            )));
        }
    }
    Ok(last)
}

/// Joins the capture of host A's wire with host A's frame audit and host B's commit log (OC-1).
fn joined(pair: &Pair, captured: &Captured) -> Result<JoinReport, Failure> {
    let audit = read_audit(&pair.a.audit).map_err(Failure::failed)?;
    let commits = pair.commit_log(VM).map_err(Failure::failed)?;
    let mut capture = captured.open().map_err(Failure::failed)?;
    join(&audit, &commits, &mut capture).map_err(Failure::failed)
}

/// Between a quarter and two thirds of the run, by the seed.
fn kill_moment(seed: u64, whole: Duration) -> Duration {
    let share = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64;
    whole.mul_f64(0.25 + share * 0.42)
}

/// A seed from the clock: it only has to differ between runs, and is printed.
fn random_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 % 1_000_000_007
}
