//! What must hold after every run.

use crate::scene::{Scene, wait_epochs, wait_until};
use holdfast_lab::audit::{AuditRecord, CommitLog, read_audit};
use holdfast_lab::capture::Captured;
use holdfast_lab::join::{JoinReport, join};
use holdfast_lab::monitor::Monitor;
use holdfast_lab::pair::{Appliance, Pair};
use holdfast_lab::pcap::{Pcap, encode};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// What the client may miss of a guest that moves: the lease and its margin, the standby's start under
/// translation on a busy machine, and the client's own retransmission.
pub const GAP_BUDGET: Duration = Duration::from_secs(12);
/// Length of the epochs in which a guest is halted.
const LONG_EPOCH_MS: u64 = 200;
/// A file's time may be behind by a tick of the kernel's coarse clock, at 100 a second.
const COARSE_CLOCK_NS: u64 = 10_000_000;
/// Attempts to halt a guest outside of a pause.
const HALTS: usize = 10;
/// Frames of a burst that may be under way when a process is stopped between its look at the lease and
/// its sending: `docs/decisions/0005-lease-beside-arbiter.md`.
pub const BURST: usize = 32;

/// What one host sent.
pub struct Wire {
    captured: Captured,
}

impl Wire {
    pub(crate) fn new(captured: Captured) -> Self {
        Self { captured }
    }

    /// When frames of a NIC were sent, in nanoseconds of CLOCK_REALTIME.
    pub fn sent_by(&self, mac: [u8; 6]) -> Vec<u64> {
        let mut capture = self.captured.open().expect("a capture");
        let mut times = Vec::new();
        while let Some(frame) = capture.next_frame().expect("a frame") {
            if frame.bytes.get(6..12) == Some(&mac[..]) {
                times.push(frame.realtime_ns);
            }
        }
        times
    }

    fn join(&self, audit: &[AuditRecord], commits: &CommitLog, announced: bool) -> JoinReport {
        assert_eq!(self.captured.dropped, 0, "the capture lost frames: the join would say nothing");
        let mut capture = self.captured.open().expect("a capture");
        if announced {
            let mut frames = Vec::new();
            while let Some(frame) = capture.next_frame().expect("a frame") {
                if !is_advertisement(&frame.bytes) {
                    frames.push(frame);
                }
            }
            let path = self.captured.path.with_extension("without-advertisements.pcap");
            fs::write(&path, encode(&frames)).expect("a capture");
            capture = Pcap::open(&path).expect("a capture");
        }
        join(audit, commits, &mut capture).expect("a join")
    }
}

/// An unsolicited neighbour advertisement: a Holdfast to which a guest came sends the same, bit by bit, as
/// the guest does, and the audit has the guest's alone.
fn is_advertisement(frame: &[u8]) -> bool {
    const TO_ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ADVERTISEMENT: u8 = 136;
    frame.starts_with(&TO_ALL_NODES) && frame.get(54) == Some(&ADVERTISEMENT)
}

/// O3, OC-1: of what `host` sent, no frame left before `backup` had committed its epoch, and such frames
/// there were. Frames that were held when the arbiter granted a solo term may leave from then on.
pub fn nothing_left_early(
    pair: &Pair,
    vm: &str,
    host: &Appliance,
    backup: &Appliance,
    wire: &Wire,
) -> JoinReport {
    let audit = read_audit(&host.audit).expect("the audit of frames");
    let mut commits = pair.commit_log_on(backup, vm).expect("the commit log");
    for granted in solo_grants(pair, vm, host) {
        commits = with_solo(&commits, &audit, granted);
    }
    let came_here = host.process.is_some() && host.vm(vm).expect("a status")["failover"].is_object();
    let report = wire.join(&audit, &commits, came_here);
    println!(
        "{}: {} frames left, {} of them held until their commit, {} too early",
        host.name, report.frames_matched, report.frames_protected, report.frames_released_early
    );
    assert_eq!(report.frames_released_early, 0, "{:?}", report.early);
    assert!(report.frames_protected > 0, "no frame was held: nothing was tried: {report:?}");
    report
}

/// When the arbiter let that host run alone, in nanoseconds of CLOCK_REALTIME, in order.
fn solo_grants(pair: &Pair, vm: &str, host: &Appliance) -> Vec<u64> {
    let mut granted = Vec::new();
    for entry in fs::read_dir(pair.arbiter().join(vm)).expect("the arbiter's directory") {
        let path = entry.expect("an entry of the arbiter").path();
        let text = fs::read_to_string(&path).expect("a grant");
        let Ok(grant) = serde_json::from_str::<Value>(&text) else { continue };
        if grant["solo"] == true && grant["holder"] == host.name {
            // The link to its name, which is the grant, is the file's last change.
            let meta = path.metadata().expect("the grant's file");
            granted.push(meta.ctime() as u64 * 1_000_000_000 + meta.ctime_nsec() as u64);
        }
    }
    granted.sort_unstable();
    granted
}

/// The log with a line for each epoch that was under way, and not committed, when a solo term was granted:
/// its frames were free from then on. The one that was open may be sealed under its number later.
fn with_solo(commits: &CommitLog, audit: &[AuditRecord], granted_ns: u64) -> CommitLog {
    let ahead_ns = realtime_ahead_ns();
    let uncommitted = |epoch| commits.committed_at(epoch).is_none_or(|at| at > granted_ns);
    let held: BTreeSet<u64> = audit
        .iter()
        .filter(|record| record.protected && record.monotonic_ns + ahead_ns <= granted_ns + COARSE_CLOCK_NS)
        .map(|record| record.epoch)
        .filter(|epoch| uncommitted(*epoch))
        .collect();
    let mut text = String::new();
    for epoch in held {
        writeln!(text, "{epoch} 0 {granted_ns}").expect("text");
    }
    for commit in commits.commits() {
        writeln!(text, "{} {} {}", commit.epoch, commit.term, commit.realtime_ns).expect("text");
    }
    CommitLog::parse(&text).expect("a log")
}

/// CLOCK_REALTIME now, in nanoseconds.
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

/// By how much CLOCK_REALTIME is ahead of CLOCK_MONOTONIC.
fn realtime_ahead_ns() -> u64 {
    realtime_ns() - nanoseconds(ClockId::CLOCK_MONOTONIC)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// O5, FO-1: once `new` has sent for the guest, `old` sends nothing more, but for `excused` frames.
pub fn one_transmitter(mac: [u8; 6], old: &Wire, new: &Wire, excused: usize) {
    let (old, new) = (old.sent_by(mac), new.sent_by(mac));
    let first = *new.first().expect("the new host sent");
    let late = old.iter().filter(|at| **at >= first).count();
    println!("{} frames of the old host, {} of the new one, {late} late", old.len(), new.len());
    assert!(!old.is_empty(), "the old host sent nothing at all");
    assert!(late <= excused, "{late} frames left the old host after the new one spoke");
}

/// O5, FO-1: between the first and the last frame that `guest_of` sent for the guest, `other` sent none.
pub fn silent_meanwhile(mac: [u8; 6], other: &Wire, guest_of: &Wire) {
    let (other, turn) = (other.sent_by(mac), guest_of.sent_by(mac));
    let (first, last) = (turn.first().expect("frames"), turn.last().expect("frames"));
    let amid = other.iter().filter(|at| (first..=last).contains(at)).count();
    println!("{} frames of one host amid {} of the other, {amid} at the same time", other.len(), turn.len());
    assert_eq!(amid, 0, "both hosts sent at the same time");
}

/// O7: no panic in what the hosts logged, and those that were not killed still run.
pub fn all_is_well(scene: &mut Scene) {
    for host in [&mut scene.pair.a, &mut scene.pair.b] {
        let log = host.log_tail(10_000);
        assert!(!log.contains("panicked"), "{} panicked:\n{log}", host.name);
        if let Some(process) = &mut host.process {
            assert!(process.is_running(), "{} has ended by itself", host.name);
        }
    }
}

/// Halts the guest as its operator would, and waits until that is committed. It stays halted.
pub fn halt_and_commit(primary: &Appliance, vm: &str, qemu: &mut Monitor) {
    // Long epochs, so that a halt seldom falls into a pause of Holdfast's own, with which it would end.
    let longer = json!({"command": "epoch", "vm": vm, "epoch_ms": LONG_EPOCH_MS});
    primary.ask(&longer).expect("longer epochs");
    for _ in 0..HALTS {
        qemu.execute("stop", Value::Null).expect("halted");
        qemu.events().expect("events");
        // More than may be in flight: the last of them began after the halt.
        wait_epochs(primary, vm, 6);
        if !qemu.events().expect("events").iter().any(|event| event == "RESUME") {
            return;
        }
    }
    panic!("the guest does not stay halted");
}

/// O6, CK-1, CK-2: the image on the backup is the halted guest's memory, byte for byte. Gives the offset of
/// the last byte that is not zero: so far the comparison said something.
pub fn image_is_the_memory(memory: &Path, image: &Path) -> u64 {
    const PIECE: usize = 1 << 20;
    let open = |path: &Path| File::open(path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    let (mut memory, mut image) = (open(memory), open(image));
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut offset, mut last) = (0u64, 0u64);
    let mut differing = Vec::new();
    loop {
        let read = memory.read(&mut left).expect("the memory");
        if read == 0 {
            break;
        }
        image.read_exact(&mut right[..read]).expect("the image");
        if left[..read] != right[..read] {
            let pages = left[..read].chunks(4096).zip(right[..read].chunks(4096)).enumerate();
            differing.extend(pages.filter(|(_, (a, b))| a != b).map(|(page, _)| offset + page as u64 * 4096));
        }
        if let Some(at) = left[..read].iter().rposition(|byte| *byte != 0) {
            last = offset + at as u64;
        }
        offset += read as u64;
    }
    assert_eq!(image.read(&mut right).expect("the image"), 0, "the image is longer than the memory");
    assert!(
        differing.is_empty(),
        "{} pages differ, at {:x?} first",
        differing.len(),
        &differing[..differing.len().min(8)]
    );
    last
}

/// Asks QEMU for a live migration to `uri` and waits for its end.
pub fn migrate(source: &mut Monitor, uri: &str, patience: Duration) {
    source.execute("migrate", json!({ "uri": uri })).expect("a migration that begins");
    wait_until("the live migration", patience, || {
        let state = source.execute("query-migrate", Value::Null).expect("a state");
        assert_ne!(state["status"], "failed", "{state}");
        state["status"] == "completed"
    });
}
