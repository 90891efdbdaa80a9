//! Memory carried by Holdfast: the full synchronisation, and workloads in epochs of mode commit.

use super::row::{Measured, Stage as Step};
use super::{Found, PagePath, PagesOptions, Scene, Workload, epochs_of, fill};
use crate::bench::stage::{Setting, Stage, StageSpec, VM};
use crate::cli::Failure;
use crate::config::Mode;
use holdfast_lab::apps::{self, App};
use holdfast_lab::client::{Amount, Content, Direction, Dirty, Pace, SessionSpec};
use holdfast_lab::cpu::{CpuSpent, CpuTimes};
use holdfast_lab::emulator::WireSpec;
use holdfast_lab::pair::Appliance;
use holdfast_lab::topology::guest_ip;
use serde_json::Value;
use std::time::{Duration, Instant};

const PAGE_BYTES: u64 = 4096;
/// Epochs after a change that are not looked at.
const SETTLING: u64 = 4;
/// While a synchronisation is measured no second epoch shall follow the one that ends it.
const SYNC_EPOCH_MS: u64 = 2000;

/// All workloads over one path, on one guest. All begin with a synchronisation, whether its row is wanted or not.
pub(super) fn all(scene: &Scene<'_>, path: PagePath, found: &mut Found) -> Result<(), Failure> {
    let options = scene.options;
    scene.say(path, "boots the guest");
    let stage = Stage::start(StageSpec {
        qemu: scene.qemu.clone(),
        wire: &WireSpec::default(),
        seed: 1,
        first: Setting { mode: Mode::Native, epoch_ms: SYNC_EPOCH_MS, adaptive: false },
        aware: false,
        memory_mib: scene.guest_mib,
        bypass: (path == PagePath::Bypass).then_some(options.bypass_port),
        shape: scene.shape(),
    })?;
    let mut keep = |workload: Workload, taken: Result<Measured, String>| match taken {
        Ok(measured) => found.take(scene, path, workload, &measured),
        Err(lost) => {
            let what = format!("{}, {} MiB, {}", path.name(), scene.guest_mib, workload.name());
            found.refuse(format!("{what}: {lost}"));
        }
    };
    if scene.has(Workload::Sync) {
        scene.say(path, "sync");
        stage.client.dirty(guest_ip(1).into(), fill(scene.guest_mib)).map_err(Failure::failed)?;
        keep(Workload::Sync, sync(&stage, path, options)?);
    }
    stage.change(Setting { mode: Mode::Commit, epoch_ms: options.epoch_ms, adaptive: false })?;
    for workload in options.workloads.iter().copied().filter(|workload| *workload != Workload::Sync) {
        scene.say(path, workload.name());
        let order = order(workload, options);
        stage.client.dirty(guest_ip(1).into(), order).map_err(Failure::failed)?;
        let taken = stage.guarded(Mode::Commit, |stage| in_epochs(stage, path, workload, scene))?;
        keep(workload, taken.map(|(measured, _)| measured));
    }
    stage.end().map(drop)
}

/// What the guest writes beside answering.
fn order(workload: Workload, options: &PagesOptions) -> Dirty {
    let content = match workload {
        Workload::Noise => Content::Noise,
        Workload::Copies => Content::Copies,
        _ => return Dirty::words(0, 0),
    };
    let interval_us = u32::try_from(options.epoch_ms * 1000).unwrap_or(u32::MAX);
    Dirty { pages: options.pages, interval_us, pace: Pace::Spread, content }
}

/// A moment: the clock, what both hosts' Holdfasts have spent, and what the primary says.
struct Look {
    at: Instant,
    primary: CpuTimes,
    backup: CpuTimes,
    status: Value,
    /// Frames that the primary's bypass has made.
    frames: u64,
}

impl Look {
    fn now(stage: &Stage) -> Result<Self, Failure> {
        let cpu = |host: &Appliance| {
            let process = host.process.as_ref().ok_or_else(|| {
                Failure::Failed(format!("the Holdfast of {} has ended; its log says why", host.name))
            })?;
            CpuTimes::of(process.pid()).map_err(Failure::failed)
        };
        let pair = &stage.pair;
        let (at, primary, backup) = (Instant::now(), cpu(&pair.a)?, cpu(&pair.b)?);
        let status = stage.status_with_epochs().map_err(Failure::failed)?;
        let document = pair.a.status().map_err(Failure::failed)?;
        let frames = document["bypass"]["frames_out"].as_u64().unwrap_or(0);
        Ok(Self { at, primary, backup, status, frames })
    }

    fn cpu_since(&self, earlier: &Self) -> Vec<(Step, Duration)> {
        steps(&self.primary.since(&earlier.primary), &self.backup.since(&earlier.backup))
    }
}

/// The stages' time, by the names of their threads.
fn steps(primary: &CpuSpent, backup: &CpuSpent) -> Vec<(Step, Duration)> {
    let is_link = |name: &str| matches!(name, "hf-link" | "hf-bypass");
    let supervisor = format!("hf-vm-{VM}");
    let carrying = [
        (Step::Capture, primary.of_threads(|name| name == "hf-capture")),
        (Step::Reduce, primary.of_threads(|name| name == "hf-replicate")),
        (Step::Send, primary.of_threads(is_link)),
        (Step::Receive, backup.of_threads(is_link)),
        (Step::Apply, backup.of_threads(|name| name == supervisor)),
    ];
    let of_stages: Duration = carrying.iter().map(|(_, time)| *time).sum();
    let rest = (primary.whole() + backup.whole()).saturating_sub(of_stages);
    carrying.into_iter().chain([(Step::Rest, rest)]).collect()
}

/// From the session's beginning to the backup's word that it holds a first checkpoint; the processors' time is that
/// from the command on.
fn sync(stage: &Stage, path: PagePath, options: &PagesOptions) -> Result<Result<Measured, String>, Failure> {
    let before = Look::now(stage)?;
    stage.change(Setting { mode: Mode::Commit, epoch_ms: SYNC_EPOCH_MS, adaptive: false })?;
    let after = Look::now(stage)?;
    let cpu = after.cpu_since(&before);
    Ok(synchronised(&before.status, &after.status).and_then(|measured| {
        went_over(path, options, (&before, &after), &measured)?;
        Ok(Measured { cpu, ..measured })
    }))
}

/// What a status says of the first synchronisation: the epoch that ends it has its pages' bytes as well.
fn synchronised(before: &Value, after: &Value) -> Result<Measured, String> {
    let once = |value: fn(&Value) -> &Value| {
        let count = |status: &Value| value(status).as_u64().unwrap_or(0);
        count(after) == count(before) + 1
    };
    if !once(|status| &status["stats"]["full_syncs"]) || !once(|status| &status["link"]["sessions"]) {
        return Err(format!("it was not synchronised at one go ({})", after["trouble"]["text"]));
    }
    let stats = &after["stats"];
    let figure = |value: &Value, name: &str| value.as_u64().ok_or_else(|| format!("the status lacks {name}"));
    let last = &after["epochs"][0];
    let pages = figure(&stats["last_sync_pages"], "last_sync_pages")? + copies(last);
    Ok(Measured {
        pages,
        payload_bytes: pages * PAGE_BYTES,
        wire_bytes: Some(figure(&last["wire_bytes"], "the epoch that ends a synchronisation")?),
        took: Duration::from_millis(figure(&stats["last_sync_ms"], "last_sync_ms")?),
        epochs: None,
        cpu: Vec::new(),
    })
}

/// Pages that were handed over in an epoch, each copy of them.
fn copies(epoch: &Value) -> u64 {
    ["ahead_pages", "pause_pages"].iter().filter_map(|name| epoch[name].as_u64()).sum()
}

/// A row of the bypass is one of the bypass: a link that has no path yet uses the connection.
fn went_over(
    path: PagePath,
    options: &PagesOptions,
    (before, after): (&Look, &Look),
    measured: &Measured,
) -> Result<(), String> {
    if path != PagePath::Bypass {
        return Ok(());
    }
    let link = &after.status["link"];
    let could = after.frames.saturating_sub(before.frames) * u64::from(options.bypass_port.mtu());
    let over = link["over_bypass"].as_bool() == Some(true) && link["bypass_returns"].as_u64() == Some(0);
    // Headers and what is sent again make it more than the bytes that were handed over, not less.
    if over && could >= measured.wire_bytes.unwrap_or(0) / 10 * 9 {
        return Ok(());
    }
    Err(format!(
        "it did not go over the bypass, or not all of it: {} MiB at most of {}; mend: measure on a machine with \
         nothing else to do",
        could >> 20,
        measured.wire_bytes.unwrap_or(0) >> 20
    ))
}

/// A workload under way, for its time.
fn in_epochs(
    stage: &Stage,
    path: PagePath,
    workload: Workload,
    scene: &Scene<'_>,
) -> Result<Measured, Failure> {
    let options = scene.options;
    let patience = |count: u64| {
        let epochs = u32::try_from(10 * count).unwrap_or(u32::MAX);
        Duration::from_secs(60) + Duration::from_millis(options.epoch_ms).saturating_mul(epochs)
    };
    let guest = guest_ip(1);
    let stream = match workload {
        Workload::Bulk => {
            let seed = scene.round.into();
            let spec = SessionSpec::new(Direction::Download, guest, seed, Amount::UntilStopped);
            Some(stage.client.start(spec).map_err(Failure::failed)?)
        }
        _ => None,
    };
    let under_way = || -> Result<(Look, Look), Failure> {
        stage.await_epochs(SETTLING, patience(SETTLING))?;
        let before = Look::now(stage)?;
        if workload == Workload::Redis {
            let (seed, time) = (scene.round.into(), Duration::from_secs(options.seconds));
            apps::measure(App::Redis, &stage.client, guest.into(), seed, time).map_err(Failure::failed)?;
        } else {
            let count = epochs_of(options);
            stage.await_epochs(count, patience(count))?;
        }
        Ok((before, Look::now(stage)?))
    };
    let looks = under_way();
    if let Some(stream) = stream {
        stream.stop();
        let report = stream.finish();
        if !report.exact() {
            return Err(Failure::Failed(format!("the stream ended as {:?}", report.end)));
        }
    }
    let (before, after) = looks?;
    let measured = carried(&before.status, &after.status).map_err(Failure::Failed)?;
    let measured = Measured {
        took: after.at.saturating_duration_since(before.at),
        cpu: after.cpu_since(&before),
        ..measured
    };
    went_over(path, options, (&before, &after), &measured).map_err(Failure::Failed)?;
    Ok(measured)
}

/// The epochs that were committed between two statuses; time and processors are for others to tell.
fn carried(before: &Value, after: &Value) -> Result<Measured, String> {
    let committed = |status: &Value| status["committed_epoch"].as_u64().unwrap_or(0);
    let (first, last) = (committed(before) + 1, committed(after));
    let all = after["epochs"].as_array().map_or(&[][..], Vec::as_slice);
    let between =
        |one: &&Value| one["number"].as_u64().is_some_and(|number| (first..=last).contains(&number));
    let epochs: Vec<&Value> = all.iter().filter(between).collect();
    let (wanted, there) = ((last + 1).saturating_sub(first), epochs.len() as u64);
    if wanted == 0 {
        return Err("no epoch was committed meanwhile".to_owned());
    }
    if there < wanted {
        return Err(format!(
            "of {wanted} epochs that were committed {there} are remembered; mend: fewer --seconds, or longer epochs \
             by --epoch-ms"
        ));
    }
    let pages: u64 = epochs.iter().map(|epoch| copies(epoch)).sum();
    Ok(Measured {
        pages,
        payload_bytes: pages * PAGE_BYTES,
        wire_bytes: Some(epochs.iter().filter_map(|epoch| epoch["wire_bytes"].as_u64()).sum()),
        took: Duration::ZERO,
        epochs: Some(there),
        cpu: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn epoch(number: u64) -> Value {
        json!({"number": number, "dirty_pages": 110, "ahead_pages": 100, "pause_pages": 20,
               "wire_bytes": 50_000, "of_the_future": 1})
    }

    fn status(committed: u64, syncs: u64) -> Value {
        let epochs: Vec<Value> = (committed.saturating_sub(4)..=committed + 2).map(epoch).collect();
        json!({"committed_epoch": committed, "epochs": epochs, "link": {"sessions": syncs},
               "trouble": {"text": "the session with the backup ended"},
               "stats": {"full_syncs": syncs, "last_sync_ms": 250, "last_sync_pages": 1000, "of_the_future": {}}})
    }

    #[test]
    fn epochs_are_those_that_were_committed_between_and_all_of_them() {
        let found = carried(&status(5, 1), &status(8, 1)).expect("three epochs");
        assert_eq!((found.epochs, found.pages, found.wire_bytes), (Some(3), 360, Some(150_000)));
        assert_eq!(found.payload_bytes, 360 * 4096);
        let fault = carried(&status(2, 1), &status(9, 1)).expect_err("two are forgotten");
        assert!(fault.contains("of 7 epochs that were committed 5"), "{fault}");
        carried(&status(8, 1), &status(8, 1)).expect_err("none was committed");
    }

    #[test]
    fn a_synchronisation_has_its_rounds_and_the_epoch_that_ends_it() {
        let found = synchronised(&status(0, 0), &status(1, 1)).expect("one");
        assert_eq!((found.pages, found.wire_bytes), (1120, Some(50_000)));
        assert_eq!(found.took, Duration::from_millis(250));
        let fault = synchronised(&status(0, 0), &status(1, 2)).expect_err("two of them");
        assert!(fault.contains("the session with the backup ended"), "{fault}");
        let mut lacking = status(1, 1);
        lacking["stats"]["last_sync_ms"] = Value::Null;
        assert!(synchronised(&status(0, 0), &lacking).expect_err("no time").contains("last_sync_ms"));
    }
}
