//! What must hold after every run.

use crate::scene::{Scene, VM, wait_epochs, wait_until};
use holdfast_lab::audit::{AuditRecord, CommitLog, read_audit};
use holdfast_lab::capture::Captured;
use holdfast_lab::join::{JoinReport, join};
use holdfast_lab::monitor::Monitor;
use holdfast_lab::pair::{Appliance, Pair, VmPlan};
use holdfast_lab::pcap::{CapturedFrame, Pcap, encode};
use holdfast_lab::protection::{Grant, held_spans, misdated, read_grants, unheld};
use holdfast_lab::topology::guest_mac;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// What the client may miss of a guest that moves: the lease and its margin, the standby's start under
/// translation on a busy machine, and the client's own retransmission.
pub const GAP_BUDGET: Duration = Duration::from_secs(12);
/// Length of the epochs in which a guest is halted.
const LONG_EPOCH_MS: u64 = 200;
/// A file's time may be behind by a tick of the kernel's coarse clock, at 100 a second.
const COARSE_CLOCK_NS: u64 = 10_000_000;
/// For so long after it was granted the machine, a host announces it: the guest has come up by then.
const ANNOUNCED: Duration = Duration::from_secs(2 + GAP_BUDGET.as_secs());
/// Attempts to halt a guest outside of a pause.
const HALTS: usize = 10;
/// Frames of a burst that may be under way when a process is stopped between its look at the lease and
/// its sending: `docs/decisions/0005-lease-beside-arbiter.md`.
pub const BURST: usize = 32;

/// O3, O5 and O7 of a run in which the only VM, of one NIC, went from host A to host B.
pub fn all_is_well_after_the_move(scene: &mut Scene) {
    let (a, b) = scene.wires();
    nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
    one_transmitter(guest_mac(1), &a, &b, 0);
    all_is_well(scene);
}

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

    /// Joins what is judged of the capture.
    fn join(
        &self,
        audit: &[AuditRecord],
        commits: &CommitLog,
        judged: impl Fn(&CapturedFrame) -> bool,
    ) -> JoinReport {
        assert_eq!(self.captured.dropped, 0, "the capture lost frames: the join would say nothing");
        let mut capture = self.captured.open().expect("a capture");
        let mut frames = Vec::new();
        while let Some(frame) = capture.next_frame().expect("a frame") {
            if judged(&frame) {
                frames.push(frame);
            }
        }
        join_frames(audit, commits, &frames, &self.captured.path.with_extension("judged.pcap"))
    }
}

/// Joins these frames, by way of a file.
fn join_frames(
    audit: &[AuditRecord],
    commits: &CommitLog,
    frames: &[CapturedFrame],
    path: &Path,
) -> JoinReport {
    fs::write(path, encode(frames)).expect("a capture");
    join(audit, commits, &mut Pcap::open(path).expect("a capture")).expect("a join")
}

/// What a VM's frames are known by: its ports' numbers, and the addresses of the NICs of all others.
struct Whose {
    ports: Range<u16>,
    others: Vec<[u8; 6]>,
}

impl Whose {
    fn of(pair: &Pair, vm: &str) -> Self {
        let vms = &pair.options.vms;
        let place = vms.iter().position(|plan| plan.name == vm).expect("a VM of the pair");
        let nics = |plans: &[VmPlan]| plans.iter().map(|plan| u16::from(plan.nics)).sum::<u16>();
        let (first, all) = (nics(&vms[..place]), nics(vms));
        let ports = first..first + u16::from(vms[place].nics);
        // NICs are numbered from one, ports from zero.
        let others = (0..all).filter(|port| !ports.contains(port)).map(|port| guest_mac(port as u8 + 1));
        Self { others: others.collect(), ports }
    }

    /// Whether no other VM is known to have sent it; what nobody is known to send is this one's too.
    fn may_have_sent(&self, frame: &[u8]) -> bool {
        !self.others.iter().any(|mac| frame.get(6..12) == Some(&mac[..]))
    }
}

/// An unsolicited neighbour advertisement: a Holdfast to which a guest came sends the same, bit by bit, as
/// the guest does, and the audit has the guest's alone, by which the appliance's would be measured.
fn is_advertisement(frame: &[u8]) -> bool {
    const TO_ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ADVERTISEMENT: u8 = 136;
    frame.starts_with(&TO_ALL_NODES) && frame.get(54) == Some(&ADVERTISEMENT)
}

/// When `host` may have announced the machine, which came to it from another host.
fn announced_spans(host: &str, grants: &[Grant]) -> Vec<Range<u64>> {
    let came = grants.windows(2).filter(|pair| pair[0].holder != host && pair[1].holder == host);
    let span = |at: u64| at..at + ANNOUNCED.as_nanos() as u64;
    came.map(|pair| span(pair[1].granted_realtime_ns)).collect()
}

/// O3, OC-1: of what `host` sent for the VM, no frame left before `backup` had committed its epoch, and such
/// frames there were. Frames that were held when the arbiter granted a solo term may leave from then on. Whether
/// a frame had to be held is not the dataplane's word alone: the arbiter's and the backup's count.
pub fn nothing_left_early(
    pair: &Pair,
    vm: &str,
    host: &Appliance,
    backup: &Appliance,
    wire: &Wire,
) -> JoinReport {
    let whose = Whose::of(pair, vm);
    let mut audit = read_audit(&host.audit).expect("the audit of frames");
    audit.retain(|record| whose.ports.contains(&record.port));
    let mut commits = pair.commit_log_on(backup, vm).expect("the commit log");
    let grants = read_grants(&pair.arbiter().join(vm)).expect("the arbiter's directory");
    all_was_held(pair, vm, host, &audit, &grants, &commits);
    for granted in solo_grants(host.name, &grants) {
        commits = with_solo(&commits, &audit, granted);
    }
    let announced = announced_spans(host.name, &grants);
    let is_own = |frame: &CapturedFrame| {
        let then = announced.iter().any(|span| span.contains(&frame.realtime_ns));
        whose.may_have_sent(&frame.bytes) && !(then && is_advertisement(&frame.bytes))
    };
    let report = wire.join(&audit, &commits, is_own);
    println!(
        "{}: {} frames of {vm} left, {} of them held until their commit, {} too early",
        host.name, report.frames_matched, report.frames_protected, report.frames_released_early
    );
    assert_eq!(report.frames_released_early, 0, "{:?}", report.early);
    assert!(report.frames_protected > 0, "no frame was held: nothing was tried: {report:?}");
    report
}

/// OC-1: whatever its dataplane says of itself, `host` held every frame that it took while the guest was
/// protected, and until a commit that came after.
fn all_was_held(
    pair: &Pair,
    vm: &str,
    host: &Appliance,
    audit: &[AuditRecord],
    grants: &[Grant],
    commits: &CommitLog,
) {
    let mut spans = held_spans(host.name, grants, commits);
    let mode = &pair.options.vms.iter().find(|plan| plan.name == vm).expect("a VM of the pair").mode;
    if mode != "commit" {
        // Bytes that were free to go in a solo term may be sent again in a later one.
        spans.truncate(1);
    }
    let ahead = realtime_ahead_ns();
    let unheld = unheld(audit, &spans, ahead);
    println!(
        "{}: {vm} was protected {} times, {} frames not held then",
        host.name,
        spans.len(),
        unheld.len()
    );
    assert!(unheld.is_empty(), "of {spans:?}: {:?}", audit[unheld[0]]);
    if mode == "commit" {
        let misdated = misdated(audit, &spans, commits, ahead);
        assert!(misdated.is_empty(), "{} records, first {:?}", misdated.len(), audit[misdated[0]]);
    }
}

/// When the arbiter let that host run alone, in nanoseconds of CLOCK_REALTIME, in order.
fn solo_grants(host: &str, grants: &[Grant]) -> Vec<u64> {
    let solo = grants.iter().filter(|grant| grant.solo && grant.holder == host);
    solo.map(|grant| grant.granted_realtime_ns).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_lab::audit::frame_hash;

    const MS: u64 = 1_000_000;

    fn frame(fill: u8, realtime_ns: u64) -> CapturedFrame {
        CapturedFrame { realtime_ns, len: 60, bytes: vec![fill; 60] }
    }

    /// The record of a frame that was taken and held at that time.
    fn held(fill: u8, epoch: u64, realtime_ns: u64) -> AuditRecord {
        AuditRecord {
            hash: frame_hash(&[fill; 60]),
            epoch,
            len: 60,
            port: 0,
            protected: true,
            monotonic_ns: realtime_ns - realtime_ahead_ns(),
        }
    }

    fn early(name: &str, audit: &[AuditRecord], commits: &CommitLog, frames: &[CapturedFrame]) -> u64 {
        let path = std::env::temp_dir().join(format!("holdfast-oracles-{}-{name}", std::process::id()));
        let report = join_frames(audit, commits, frames, &path);
        fs::remove_file(&path).expect("removed");
        report.frames_released_early
    }

    /// OC-1: a solo term frees what was held when it was granted, from then on and not before; what was held
    /// later waits for its commit.
    #[test]
    fn a_solo_term_frees_nothing_before_its_grant_and_nothing_of_later() {
        let granted = realtime_ns();
        let audit =
            [held(1, 1, granted - 50 * MS), held(2, 2, granted - 20 * MS), held(3, 9, granted + 90 * MS)];
        let commits = CommitLog::parse(&format!("1 2 {}\n", granted - 30 * MS)).expect("a log");
        let freed = with_solo(&commits, &audit, granted);
        let [first, second, third] = [granted - 25 * MS, granted + 10 * MS, granted + 95 * MS];
        let sound = [frame(1, first), frame(2, second)];
        assert_eq!(early("sound", &audit, &commits, &sound), 1, "without the grant");
        assert_eq!(early("sound", &audit, &freed, &sound), 0);
        let before = [frame(1, first), frame(2, granted - 5 * MS)];
        assert_eq!(early("before", &audit, &freed, &before), 1, "a doctored frame before the grant");
        let later = [frame(1, first), frame(2, second), frame(3, third)];
        assert_eq!(early("later", &audit, &freed, &later), 1, "a doctored frame of the next protection");
        // An epoch that was committed before keeps its own commit.
        let first_too_early = [frame(1, granted - 40 * MS)];
        assert_eq!(early("own", &audit, &freed, &first_too_early), 1);
    }

    /// FO-1: only advertisements to all nodes are an appliance's own, and only once the machine came to it.
    #[test]
    fn only_a_host_that_was_granted_the_machine_announces_it() {
        let mut advertisement = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        advertisement.resize(86, 0);
        advertisement[54] = 136;
        assert!(is_advertisement(&advertisement));
        let mut solicitation = advertisement.clone();
        solicitation[54] = 135;
        let mut unicast = advertisement.clone();
        unicast[0] = 2;
        let data = vec![1; 1500];
        for frame in [&solicitation[..], &unicast, &data, &advertisement[..54], &[]] {
            assert!(!is_advertisement(frame), "{frame:?}");
        }
        let grant = |term, holder: &str, at| Grant {
            term,
            holder: holder.to_owned(),
            solo: true,
            granted_realtime_ns: at,
        };
        let grants =
            [grant(1, "a", 10), grant(2, "a", 20), grant(3, "b", 30), grant(4, "b", 40), grant(5, "a", 50)];
        let length = ANNOUNCED.as_nanos() as u64;
        let spans = |host: &str| -> Vec<_> {
            announced_spans(host, &grants).into_iter().map(|span| (span.start, span.end)).collect()
        };
        assert_eq!(spans("a"), [(50, 50 + length)]);
        assert_eq!(spans("b"), [(30, 30 + length)]);
        assert!(announced_spans("a", &grants[..3]).is_empty(), "it never came: it began there");
    }

    /// RB-1: a frame of an unknown sender is the judged VM's.
    #[test]
    fn frames_of_other_vms_are_put_aside_and_no_more() {
        let whose = Whose { ports: 0..1, others: vec![guest_mac(2), guest_mac(3)] };
        let from = |mac: [u8; 6]| [&[0xff; 6][..], &mac, &[8, 0]].concat();
        assert!(whose.may_have_sent(&from(guest_mac(1))));
        assert!(whose.may_have_sent(&from([2, 9, 9, 9, 9, 9])) && whose.may_have_sent(&[1; 8]));
        assert!(!whose.may_have_sent(&from(guest_mac(2))) && !whose.may_have_sent(&from(guest_mac(3))));
    }
}
