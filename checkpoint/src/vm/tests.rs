//! Two supervisors, real links, a real arbiter and real QEMUs: losses of every kind, and what must hold.

mod lab;
mod plugged;

use super::*;
use crate::gate::PortLimits;
use crate::host_needs;
use crate::protocol::{DeviceDigest, Hello, Message, PROTOCOL_VERSION, Refusal, RefusalCode, Welcome};
use crate::proxy::Proxy;
use crate::qemu::tests::{MEMORY, has_qemu};
use crate::transport::{Incoming, LinkEvent, Listener, TcpTransport, Transport};
use crate::urgent::is_ordinary;
use holdfast_epoch::Term;
use lab::*;
use nix::sys::signal::Signal;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Leave to run, one test at a time: each is two hosts and two QEMUs, whose leases are counted in seconds.
fn can_run() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed says so itself.
    let able = has_qemu() && host_needs::is_root();
    able.then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Two hosts in this process, with a proxy on the way from A to B; the guest runs on A.
struct Couple {
    vm_a: VmHandle,
    vm_b: VmHandle,
    a: Site,
    b: Site,
    qemu: Process,
    way: Proxy,
    listen_a: Listener,
    listen_b: Listener,
    lab: Lab,
}

impl Couple {
    fn start() -> Self {
        Self::start_with(|_| {}, |_| {})
    }

    fn start_with(tune_a: impl FnOnce(&mut VmConfig), tune_b: impl FnOnce(&mut VmConfig)) -> Self {
        Self::start_in(Lab::new(), tune_a, tune_b)
    }

    fn start_in(lab: Lab, tune_a: impl FnOnce(&mut VmConfig), tune_b: impl FnOnce(&mut VmConfig)) -> Self {
        let (a, b) = (lab.site("a"), lab.site("b"));
        let qemu = a.start_qemu();
        let (listen_a, listen_b) = (a.listen(), b.listen());
        let way = Proxy::start(listen_b.address());
        let (mut config_a, mut config_b) = (a.config(), b.config());
        tune_a(&mut config_a);
        tune_b(&mut config_b);
        let vm_b = b.supervise(config_b, &listen_b, listen_a.address());
        let vm_a = a.supervise(config_a, &listen_a, way.address);
        Self { vm_a, vm_b, a, b, qemu, way, listen_a, listen_b, lab }
    }

    /// With a gate that speaks ahead of its epochs, or not.
    fn start_silent(silent: bool) -> Self {
        Self::start_in(Lab::new_silent(silent), |_| {}, |_| {})
    }

    fn protected() -> Self {
        let couple = Self::start();
        wait_for(&couple.vm_a, Role::Primary, State::Protected);
        wait_for_commits(&couple.vm_a, 5);
        couple
    }

    /// Kills the guest's QEMU on A and checks what comes up on B.
    fn fail_over(&mut self) -> FailoverReport {
        let before = self.vm_b.status().failover;
        self.qemu.kill();
        let report = wait_to_go_live(&self.vm_b, before.as_ref());
        assert_fenced_before_admitted(&self.a, &self.b);
        assert_resumed_from_seal(&self.b, report.resumed_from_epoch);
        assert_released_after_commit(&self.a);
        report
    }
}

impl Drop for Couple {
    fn drop(&mut self) {
        // A supervisor that the test ended already says so.
        drop(self.vm_b.shutdown());
        drop(self.vm_a.shutdown());
    }
}

/// OC-1, CK-1, CK-2, FO-1: the guest goes on from the last commit when its QEMU dies, is protected anew on
/// the way back, and is moved back by command without a loss.
#[test]
fn a_guest_outlives_its_qemu_and_returns() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let Couple { vm_a, vm_b, .. } = &couple;
    let (vm_a, vm_b, a, b) = (vm_a.clone(), vm_b.clone(), couple.a.clone(), couple.b.clone());
    wait_for_commits(&vm_a, 20);
    assert!(vm_a.status().stats.streamed_bytes > 0, "its gate spoke ahead of the epochs");
    let slow = couple.lab.dir.path().join("slow");
    fs::write(&slow, "").expect("written");
    let report = couple.fail_over();
    assert_eq!(report.cause, "relinquished");
    assert!(report.detect_ms < LEASE.as_secs_f64() * 1e3, "no lease is waited for: {report:?}");
    assert_eq!(couple.lab.grant().holder, "b");
    assert!(assert_released_after_commit(&a) >= 20);
    assert_eq!(a.gate_log().last().map(String::as_str), Some("fence"), "the old primary is silent");

    // The old primary is the backup now, and takes a whole synchronisation by itself.
    wait_for(&vm_b, Role::Primary, State::Protected);
    wait_for_commits(&vm_b, 5);
    wait_for(&vm_a, Role::Backup, State::Ready);
    vm_a.failover().expect("the primary is asked for the machine");
    let report = wait_to_go_live(&vm_a, None);
    assert_fenced_before_admitted(&b, &a);
    assert_resumed_from_seal(&a, report.resumed_from_epoch);
    assert_eq!(couple.lab.grant().holder, "a");
    assert!(assert_released_after_commit(&b) >= 5);
    wait_for(&vm_a, Role::Primary, State::Protected);
    // Shut down, it hands the machine over once more.
    let before = vm_b.status().failover;
    vm_a.shutdown().expect("ended");
    let report = wait_to_go_live(&vm_b, before.as_ref());
    assert_fenced_before_admitted(&a, &b);
    assert_resumed_from_seal(&b, report.resumed_from_epoch);
    fs::remove_file(&slow).expect("removed");
}

/// CK-2: epochs that were in flight when the connection broke are aborted; the session goes on within the
/// lease, without a synchronisation, and the next epoch carries their pages.
#[test]
fn an_aborted_epochs_pages_are_in_the_next_one() {
    let Some(_turn) = can_run() else { return };
    // A lease that no load of the machine uses up: the session must go on within it.
    let mut couple = Couple::start_with(|config| config.lease = LEASE * 5, |_| {});
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 5);
    for _ in 0..3 {
        let before = couple.vm_a.status();
        couple.way.mute(false, true);
        eventually("epochs in flight", || {
            let stats = couple.vm_a.status().stats;
            (stats.epochs_sealed >= before.stats.epochs_sealed + 2).then_some(())
        });
        couple.way.cut();
        couple.way.heal();
        eventually("another session", || {
            (couple.vm_a.status().link.sessions > before.link.sessions).then_some(())
        });
        wait_for(&couple.vm_a, Role::Primary, State::Protected);
        wait_for_commits(&couple.vm_a, 3);
        let after = couple.vm_a.status();
        assert!(after.stats.epochs_aborted > before.stats.epochs_aborted);
        assert_eq!((after.term, after.stats.full_syncs), (before.term, 1), "same term, no synchronisation");
    }
    // SP-2: the gate is asked for all it holds once a session, and for what changed since otherwise.
    let whole = couple.a.gate_log().iter().filter(|line| line.ends_with("whole")).count() as u64;
    let stats = couple.vm_a.status();
    assert!((4..=stats.link.sessions).contains(&whole) && whole < stats.stats.epochs_sealed / 2, "{whole}");
    couple.fail_over();
}

/// FO-2: cut off from each other, both ask the arbiter; one wins, and the other one is silent.
#[test]
fn a_partition_has_one_winner() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let term = couple.vm_a.status().term;
    couple.way.mute(true, true);
    wait_for(&couple.vm_a, Role::Primary, State::Solo);
    eventually("the loser's word", || {
        couple.vm_b.status().trouble.filter(|trouble| trouble.text.contains("does not come here"))
    });
    let grant = couple.lab.grant();
    assert_eq!((grant.holder.as_str(), grant.solo, grant.term.get()), ("a", true, term + 1));
    assert_eq!(couple.b.gate_log().iter().filter(|line| line.starts_with("admit")).count(), 0);
    assert_eq!(couple.a.gate_log().last().map(String::as_str), Some("open"));

    // Healed, the guest is protected again: in a new term, and from where the image was (CK-2).
    couple.way.cut();
    couple.way.heal();
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 3);
    assert_eq!(couple.vm_a.status().stats.full_syncs, 1, "the image was kept");
    assert_eq!(couple.vm_a.status().term, term + 2);
    couple.fail_over();
}

/// FO-2, OC-1: with the peer and the arbiter gone nobody opens a gate; when the arbiter is back, one does.
#[test]
fn without_an_arbiter_output_is_held() {
    let Some(_turn) = can_run() else { return };
    let couple = Couple::protected();
    let (there, away) = (couple.lab.dir.path().join("arbiter"), couple.lab.dir.path().join("arbiter.away"));
    fs::rename(&there, &away).expect("renamed");
    couple.way.mute(true, true);
    let lost = |vm: &VmHandle| {
        let trouble = vm.status().trouble;
        trouble.filter(|trouble| trouble.fault == Fault::Arbiter)
    };
    eventually("the primary's alarm", || lost(&couple.vm_a));
    eventually("the backup's alarm", || lost(&couple.vm_b));
    assert_eq!(couple.vm_a.status().state, State::Holding);
    assert_ne!(couple.vm_b.status().role, Role::Primary);
    let opened = || {
        let opens =
            |site: &Site, what: &str| site.gate_log().iter().filter(|line| line.starts_with(what)).count();
        // A's first admission was at the start; its gate opens by "open", B's by "admit".
        (opens(&couple.a, "open"), opens(&couple.b, "admit"))
    };
    assert_eq!(opened(), (0, 0));
    fs::rename(&away, &there).expect("renamed");
    eventually("a winner", || (opened() != (0, 0)).then_some(()));
    let winner = couple.lab.grant().holder;
    assert_eq!(opened(), if winner == "a" { (1, 0) } else { (0, 1) }, "{winner} won");
}

/// The backup's Holdfast ends and returns: the guest runs on alone meanwhile, and its image is continued if
/// its checkpoint says all by itself. SP-2: one that needs what the gate kept in the memory of the process that
/// ended is not held any more; the memory is synchronised anew.
#[test]
fn a_backup_that_returns_is_continued_if_it_can_be() {
    let Some(_turn) = can_run() else { return };
    for (silent, syncs) in [(true, 1), (false, 2)] {
        let mut couple = Couple::start_silent(silent);
        wait_for(&couple.vm_a, Role::Primary, State::Protected);
        wait_for_commits(&couple.vm_a, 5);
        couple.vm_b.shutdown().expect("ended");
        wait_for(&couple.vm_a, Role::Primary, State::Solo);
        couple.vm_b = couple.b.supervise(couple.b.config(), &couple.listen_b, couple.listen_a.address());
        wait_for(&couple.vm_a, Role::Primary, State::Protected);
        wait_for_commits(&couple.vm_a, 3);
        assert_eq!(couple.vm_a.status().stats.full_syncs, syncs);
        couple.fail_over();
    }
}

/// SP-2: an epoch that the backup's gate cannot keep is not confirmed, and the primary is told why; when it can
/// again, another session goes on from the last commit, with all that the primary's gate holds.
#[test]
fn an_epoch_that_cannot_be_kept_is_not_confirmed() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let forgets = couple.lab.dir.path().join("forgets");
    fs::write(&forgets, "").expect("written");
    let trouble = eventually("the refusal", || {
        couple.vm_a.status().trouble.filter(|trouble| trouble.text.contains("laboratory forgets"))
    });
    assert!(trouble.text.contains("is not confirmed"), "{}", trouble.text);
    let (last, _) = *couple.b.commits().last().expect("commits");
    fs::remove_file(&forgets).expect("removed");
    eventually("more commits", || couple.b.commits().last().filter(|(epoch, _)| *epoch > last + 3).copied());
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    assert_eq!(couple.vm_a.status().stats.full_syncs, 1, "the image was kept");
    couple.fail_over();
}

/// FO-1: a QEMU that hangs is taken for dead; it is silenced and ended before the backup goes live.
#[test]
fn a_qemu_that_hangs_is_given_up() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::start_with(|config| config.qemu_timeout = Duration::from_millis(300), |_| {});
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 5);
    couple.qemu.signal(Signal::SIGSTOP);
    let report = wait_to_go_live(&couple.vm_b, None);
    assert_eq!(report.cause, "relinquished");
    assert_resumed_from_seal(&couple.b, report.resumed_from_epoch);
    eventually("the end of the hung QEMU", || couple.qemu.0.try_wait().expect("our child"));
}

/// A QEMU that hangs before any commit is the only one that there is: it is continued once it answers, and
/// protected then.
#[test]
fn a_qemu_that_hangs_unprotected_is_continued() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::start_with(|config| config.qemu_timeout = Duration::from_millis(300), |_| {});
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    couple.vm_a.unprotect().expect("the arbiter agrees");
    couple.qemu.signal(Signal::SIGSTOP);
    couple.vm_a.protect().expect("wanted again");
    eventually("the complaint", || {
        couple.vm_a.status().trouble.filter(|trouble| trouble.fault == Fault::Guest)
    });
    assert_eq!(couple.lab.grant().holder, "a");
    couple.qemu.signal(Signal::SIGCONT);
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 3);
    couple.fail_over();
}

/// Unprotected by command, the guest passes its output, and its loss moves nothing.
#[test]
fn an_unprotected_guest_does_not_move() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    couple.vm_a.unprotect().expect("the arbiter agrees");
    wait_for(&couple.vm_a, Role::Primary, State::Native);
    assert_eq!(couple.a.gate_log().last().map(String::as_str), Some("open"));
    assert!(couple.lab.grant().solo);
    couple.vm_a.protect().expect("wanted again");
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    couple.vm_a.unprotect().expect("the arbiter agrees");
    couple.qemu.kill();
    wait_for(&couple.vm_a, Role::Primary, State::Down);
    // The silence makes the backup ask; the arbiter knows that what it holds is history.
    let status = wait_for(&couple.vm_b, Role::Backup, State::Waiting);
    let trouble = status.trouble.expect("it is told why");
    assert!(trouble.text.contains("does not come here"), "{}", trouble.text);
    assert_eq!(couple.lab.grant().holder, "a");
}

/// CK-2: a link that stalls amid a heavy epoch does not keep the guest halted; the epoch is given up, and
/// its pages get across later.
#[test]
fn a_stalled_link_does_not_keep_the_guest_halted() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::start_with(|config| config.capture_limit = 4 << 20, |_| {});
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 5);
    fs::write(couple.lab.dir.path().join("heavy"), "").expect("written");
    wait_for_commits(&couple.vm_a, 3);
    couple.way.mute(true, true);
    wait_for(&couple.vm_a, Role::Primary, State::Solo);
    assert!(couple.vm_a.status().stats.epochs_aborted >= 1);
    couple.way.cut();
    couple.way.heal();
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    fs::remove_file(couple.lab.dir.path().join("heavy")).expect("removed");
    wait_for_commits(&couple.vm_a, 10);
    couple.fail_over();
}

/// CK-2: after a scan that failed nobody knows which pages it did not find: the memory is synchronised anew, and
/// the guest goes on from there.
#[test]
fn after_a_scan_that_failed_the_memory_is_synchronised_anew() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    assert_eq!(couple.vm_a.status().stats.full_syncs, 1);
    let blind = couple.lab.dir.path().join("blind");
    fs::write(&blind, "").expect("written");
    eventually("the failure", || (!blind.exists()).then_some(()));
    let trouble = eventually("the word of it", || {
        couple.vm_a.status().trouble.filter(|trouble| trouble.text.contains("the laboratory's cloth"))
    });
    assert_eq!(trouble.fault, Fault::Host);
    eventually("a synchronisation", || (couple.vm_a.status().stats.full_syncs == 2).then_some(()));
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 5);
    couple.fail_over();
}

/// A backup that falls silent amid the synchronisation is given up and dialled anew.
#[test]
fn a_backup_that_falls_silent_amid_the_synchronisation_is_dialled_anew() {
    let Some(_turn) = can_run() else { return };
    let lab = Lab::new();
    let (a, b) = (lab.site("a"), lab.site("b"));
    let _qemu = a.start_qemu();
    let (listen_a, listen_b) = (a.listen(), b.listen());
    let sessions = listen_b.route(VM);
    let mut config = a.config();
    config.lease = Duration::from_millis(300);
    let vm_a = a.supervise(config, &listen_a, listen_b.address());
    // A backup that welcomes sessions and then neither takes pages nor gives time.
    let mut kept = Vec::new();
    for _ in 0..2 {
        let Incoming { hello, link } = sessions.recv_timeout(Duration::from_secs(10)).expect("a session");
        link.send(&Message::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            host: "b".to_owned(),
            session: hello.session,
            held: None,
            window: 4096,
        }));
        kept.push(link);
    }
    assert!(a.gate_log().iter().all(|line| !line.starts_with("protect")), "nothing is held for it");
    vm_a.shutdown().expect("ended");
}

/// CK-1: a standby that died is replaced while its image holds a checkpoint; its start changes nothing of it.
#[test]
fn a_standby_that_died_is_replaced() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let first = eventually("the standby", || process_with(&couple.b.path("standby.qmp")));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), Signal::SIGKILL).expect("it is there");
    eventually("another standby", || {
        process_with(&couple.b.path("standby.qmp")).filter(|&found| found != first)
    });
    wait_for_commits(&couple.vm_a, 5);
    couple.fail_over();
}

/// The epoch's length is a setting that can be changed while it runs; nonsense is refused.
#[test]
fn the_length_of_an_epoch_is_changed_while_it_runs() {
    let Some(_turn) = can_run() else { return };
    let couple = Couple::protected();
    couple.vm_a.set_epoch(Duration::from_secs(20), None).expect("a length");
    assert!((couple.vm_a.status().epoch_ms - 20_000.0).abs() < 0.1);
    let fault = couple.vm_a.set_epoch(Duration::ZERO, None).expect_err("no length");
    assert_eq!(fault.fault, Fault::Operator);
    let never = EpochRule::FollowOutput { paused_share: 0.0 };
    couple.vm_a.set_epoch(Duration::from_secs(1), Some(never)).expect_err("a guest that never stands still");
    assert_eq!(couple.vm_a.status().epoch_rule, EpochRule::Fixed);
    let follow = EpochRule::FollowOutput { paused_share: 0.3 };
    couple.vm_a.set_epoch(Duration::from_secs(20), Some(follow)).expect("a rule");
    assert_eq!(couple.vm_a.status().epoch_rule, follow);
}

/// Epochs that follow the output end when there is some, long before their length is over; those of a fixed
/// length do not.
#[test]
fn output_ends_an_epoch_that_follows_it() {
    let Some(_turn) = can_run() else { return };
    let long = Duration::from_secs(60);
    let follow = EpochRule::FollowOutput { paused_share: 0.5 };
    let couple = Couple::start_with(|config| (config.epoch, config.epoch_rule) = (long, follow), |_| {});
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    let began = Instant::now();
    wait_for_commits(&couple.vm_a, 8);
    assert!(began.elapsed() < long / 2, "{:?}", began.elapsed());
    let stats = couple.vm_a.status().stats;
    assert!((1..=700_000).contains(&stats.guest_clock_lag_ppm), "{}", stats.guest_clock_lag_ppm);
}

/// The threads of QEMU that a pause waits for go first in it, and are as before when none follows.
#[test]
fn threads_of_a_pause_go_first_in_it_alone() {
    let Some(_turn) = can_run() else { return };
    let couple = Couple::protected();
    let pid = couple.qemu.pid();
    eventually("a pause in which QEMU goes first", || (!is_ordinary(pid)).then_some(()));
    couple.vm_a.unprotect().expect("the arbiter agrees");
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("QEMU runs");
    let threads = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok());
    let left: Vec<i32> = threads.filter(|&thread| !is_ordinary(thread)).collect();
    assert!(left.is_empty(), "threads {left:?} of QEMU were left as they were in the pause");
}

/// In bulk an epoch that follows the output goes on while there is traffic, and ends when that ends.
#[test]
fn bulk_is_not_cut_into_short_epochs() {
    let Some(_turn) = can_run() else { return };
    let follow = EpochRule::FollowOutput { paused_share: 0.9 };
    let couple = Couple::start_with(
        |config| (config.epoch, config.epoch_rule) = (Duration::from_secs(60), follow),
        |_| {},
    );
    let busy = couple.lab.dir.path().join("busy");
    fs::write(&busy, "").expect("a file");
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    let epochs = || couple.vm_a.status().stats.epochs_committed;
    let looks = || fs::metadata(&busy).expect("a file").len();
    // Those that are open and on their way when the bulk begins end as they would have; then one epoch goes on
    // however often the supervisor looks.
    let mut since = (epochs(), looks());
    eventually("an epoch of many looks", || {
        if epochs() != since.0 {
            since = (epochs(), looks());
        }
        (looks() >= since.1 + 100).then_some(())
    });
    fs::remove_file(&busy).expect("a file");
    wait_for_commits(&couple.vm_a, 3);
}

/// A backup without room says so, and the guest does not stand still for it.
#[test]
fn a_backup_without_room_refuses_with_the_reason() {
    let Some(_turn) = can_run() else { return };
    let couple =
        Couple::start_with(|_| {}, |config| config.backup.as_mut().expect("there").staging_limit = 64 << 10);
    let text = eventually("the refusal", || {
        couple.vm_a.status().trouble.filter(|trouble| trouble.text.contains("staging limit"))
    });
    assert_eq!(text.fault, Fault::Peer);
    wait_for(&couple.vm_a, Role::Primary, State::Solo);
    assert!(couple.lab.grant().term.get() < 40, "attempts become rare");
}

/// A machine that was protected is protected where it comes to, whatever that host's file began with.
#[test]
fn a_host_that_began_without_protection_protects_what_comes_to_it() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::start_with(|_| {}, |config| config.protect = false);
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 5);
    couple.fail_over();
    assert!(couple.vm_b.status().protect);
    wait_for(&couple.vm_b, Role::Primary, State::Protected);
}

/// SP-2: what the primary may hold and the backup would not keep is refused before anything is held, with the
/// setting's name, on both hosts; what only the way back could not keep is told while the session stands.
#[test]
fn limits_that_differ_are_told_before_the_first_epoch() {
    let Some(_turn) = can_run() else { return };
    let lab = Lab::new();
    let larger = ["a", "b"].map(|host| lab.dir.path().join(format!("larger.{host}")));
    fs::write(&larger[0], "").expect("written");
    let couple = Couple::start_in(lab, |_| {}, |_| {});
    for vm in [&couple.vm_a, &couple.vm_b] {
        let trouble = eventually("the refusal", || {
            vm.status().trouble.filter(|trouble| trouble.text.contains("`escrow_mib` in [vm.speculation]"))
        });
        assert_eq!(trouble.fault, Fault::Operator);
        assert!(trouble.text.contains("escrow_mib is 16 there and 8 on the backup"), "{}", trouble.text);
    }
    assert_eq!(couple.vm_a.status().state, State::Native);
    assert!(couple.a.gate_log().iter().all(|line| !line.starts_with("protect")), "nothing is held for it");
    fs::write(&larger[1], "").expect("written");
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    couple.vm_a.unprotect().expect("ended");
    fs::remove_file(&larger[0]).expect("removed");
    couple.vm_a.protect().expect("wanted");
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    eventually("the warning", || {
        couple.vm_b.status().trouble.filter(|trouble| trouble.text.contains("would refuse to back it up"))
    });
}

fn hello(term: u64, host: &str) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        vm: VM.to_owned(),
        host: host.to_owned(),
        term: Term::new(term),
        memory: MEMORY,
        page_size: 4096,
        session: 5,
        lease_ms: 100,
        devices: DeviceDigest::default(),
        ports: vec![PORT],
    }
}

fn refusal_of(dialer: &TcpTransport, hello: Hello) -> Refusal {
    let link = dialer.dial(Duration::from_secs(5)).expect("dialled");
    link.send(&Message::Hello(hello));
    match link.events().recv_timeout(Duration::from_secs(5)) {
        Ok(LinkEvent::Message { message: Message::Refuse(refusal), .. }) => refusal,
        other => panic!("a refusal was due, not {other:?}"),
    }
}

/// FO-1: a session of an older term, of a host that does not hold the term, or of another memory size is
/// refused with the reason, and the session that stands is not harmed.
#[test]
fn sessions_of_an_older_term_are_refused() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let term = couple.vm_a.status().term;
    let dialer = TcpTransport::new(couple.listen_b.address(), couple.a.security());
    // What this host knows by itself counts, whether the arbiter answers or not.
    let (there, away) = (couple.lab.dir.path().join("arbiter"), couple.lab.dir.path().join("arbiter.away"));
    fs::rename(&there, &away).expect("renamed");
    assert_eq!(refusal_of(&dialer, hello(term - 1, "a")).code, RefusalCode::StaleTerm);
    fs::rename(&away, &there).expect("renamed");
    for (hello, code, words) in [
        (hello(term - 1, "a"), RefusalCode::StaleTerm, "is over"),
        (hello(0, "a"), RefusalCode::StaleTerm, "is over"),
        (hello(term, "c"), RefusalCode::StaleTerm, "belongs to host a"),
        (Hello { memory: 4096, ..hello(term, "a") }, RefusalCode::MemorySize, "configured for"),
        (
            Hello { ports: vec![PORT; 2], ..hello(term, "a") },
            RefusalCode::Limits,
            "2 NICs on the primary and 1 on the backup",
        ),
        (
            Hello { ports: vec![PortLimits { flows: 65, ..PORT }], ..hello(term, "a") },
            RefusalCode::Limits,
            "make `flows` in [vm.speculation] the same on both",
        ),
        (
            Hello { ports: vec![PortLimits { queue_pairs: 2, ..PORT }], ..hello(term, "a") },
            RefusalCode::Limits,
            "queue_pairs is 2 on the primary and 1 on the backup",
        ),
    ] {
        let refusal = refusal_of(&dialer, hello);
        assert_eq!(refusal.code, code);
        assert!(refusal.text.contains(words), "{refusal}");
    }
    assert_eq!(couple.vm_a.status().link.sessions, 1, "the session stands");
    wait_for_commits(&couple.vm_a, 2);
    couple.fail_over();
}

/// The environment of [`host_a_in_a_process_of_its_own`]: folder and address of B.
const HOST_A: &str = "HOLDFAST_TEST_HOST_A";

/// Not a test by itself: host A as a process that can be killed and stopped.
#[test]
fn host_a_in_a_process_of_its_own() {
    let Ok(setting) = std::env::var(HOST_A) else { return };
    let (root, peer) = setting.split_once(' ').expect("two words");
    let site = Site { root: root.into(), name: "a" };
    let listener = site.listen();
    let _vm = site.supervise(site.config(), &listener, peer.parse().expect("an address"));
    let part = site.path("address.part");
    fs::write(&part, listener.address().to_string()).expect("written");
    fs::rename(part, site.path("address")).expect("renamed");
    // Until the test ends, or is killed itself.
    drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    std::process::exit(0);
}

/// Host A in a process, host B here.
struct Apart {
    vm_b: VmHandle,
    holdfast: Process,
    qemu: Process,
    a: Site,
    b: Site,
    listen_b: Listener,
    lab: Lab,
}

impl Apart {
    fn start_holdfast(a: &Site, peer: &Listener) -> Process {
        // A leftover of an earlier process would be taken for this one's.
        drop(fs::remove_file(a.path("address")));
        let test = concat!(module_path!(), "::host_a_in_a_process_of_its_own");
        let test = test.split_once("::").expect("the crate's name comes first").1;
        let child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture"])
            .env(HOST_A, format!("{} {}", a.root.display(), peer.address()))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("another process of the tests");
        Process(child)
    }

    fn address(a: &Site) -> std::net::SocketAddr {
        eventually("A's address", || fs::read_to_string(a.path("address")).ok()).parse().expect("an address")
    }

    fn protected() -> Self {
        Self::protected_in(Lab::new())
    }

    fn protected_in(lab: Lab) -> Self {
        let (a, b) = (lab.site("a"), lab.site("b"));
        let qemu = a.start_qemu();
        let listen_b = b.listen();
        let holdfast = Self::start_holdfast(&a, &listen_b);
        let vm_b = b.supervise(b.config(), &listen_b, Self::address(&a));
        eventually("commits", || (b.commits().len() >= 10).then_some(()));
        Self { vm_b, holdfast, qemu, a, b, listen_b, lab }
    }

    fn lost_to_b(&self, since: Instant) -> FailoverReport {
        let report = wait_to_go_live(&self.vm_b, None);
        assert_eq!(report.cause, "silence");
        let lease = LEASE.as_secs_f64() * 1e3;
        assert!(report.detect_ms >= lease, "the lease was waited for: {report:?}");
        assert!(since.elapsed() < LEASE * 4, "{report:?}");
        assert_resumed_from_seal(&self.b, report.resumed_from_epoch);
        let last = *self.b.commits().last().expect("commits");
        assert_eq!(last.0, report.resumed_from_epoch, "from the last commit");
        assert_eq!(self.lab.grant().holder, "b");
        report
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.vm_b.shutdown());
    }
}

/// OC-1, CK-1, FO-1, FO-2: Holdfast is killed on the primary; the backup goes live once the lease has run
/// out. Started again, the old primary ends its old guest and becomes the backup.
#[test]
fn a_guest_outlives_its_holdfast() {
    let Some(_turn) = can_run() else { return };
    let mut apart = Apart::protected();
    apart.holdfast.kill();
    apart.lost_to_b(Instant::now());
    assert_released_after_commit(&apart.a);
    assert!(apart.qemu.0.try_wait().expect("our child").is_none(), "the old guest runs on, cut off");

    // B dials the address that it knows; a returning A listens elsewhere in this laboratory, so that B is
    // started anew as well: its guest lives on.
    apart.vm_b.shutdown().expect("ended");
    apart.holdfast = Apart::start_holdfast(&apart.a, &apart.listen_b);
    eventually("the old guest's end", || apart.qemu.0.try_wait().expect("our child"));
    let address = Apart::address(&apart.a);
    apart.vm_b = apart.b.supervise(apart.b.config(), &apart.listen_b, address);
    wait_for(&apart.vm_b, Role::Primary, State::Protected);
    assert!(apart.a.gate_log().iter().filter(|line| *line == "fence").count() >= 1);
}

/// FO-1, FO-2: Holdfast ends on the primary and is there again within the lease. It held a term in which the
/// backup may ask for the machine: it transmits again only in a term of its own, and the backup goes on from there.
#[test]
fn a_primary_that_returns_within_its_lease_asks_first() {
    let Some(_turn) = can_run() else { return };
    let mut apart = Apart::protected_in(Lab::new_patient());
    let admissions = |site: &Site| -> Vec<u64> {
        let term = |line: String| line.strip_prefix("admit ").map(|term| term.parse().expect("a term"));
        site.gate_log().into_iter().filter_map(term).collect()
    };
    assert_eq!(admissions(&apart.a).len(), 1);
    apart.holdfast.kill();
    let protected = apart.lab.grant();
    assert_eq!((protected.holder.as_str(), protected.solo), ("a", false));
    apart.holdfast = Apart::start_holdfast(&apart.a, &apart.listen_b);
    let admitted = eventually("its return", || admissions(&apart.a).get(1).copied());
    assert!(admitted > protected.term.get(), "{admitted} in place of a term of its own: {protected:?}");
    let commits = apart.b.commits().len();
    eventually("commits", || (apart.b.commits().len() >= commits + 5).then_some(()));
    assert_eq!(apart.lab.grant().holder, "a");
    assert!(admissions(&apart.b).is_empty(), "the backup did not go live");
}

/// FO-1: a primary that stood still while the backup went live is fenced when it wakes; its guest ends.
#[test]
fn a_primary_that_wakes_too_late_is_silent() {
    let Some(_turn) = can_run() else { return };
    let mut apart = Apart::protected();
    apart.holdfast.signal(Signal::SIGSTOP);
    apart.lost_to_b(Instant::now());
    let before = apart.a.gate_log().len();
    apart.holdfast.signal(Signal::SIGCONT);
    eventually("the old guest's end", || apart.qemu.0.try_wait().expect("our child"));
    let after = apart.a.gate_log().split_off(before);
    assert!(after.iter().any(|line| line == "fence"), "{after:?}");
    assert!(!after.iter().any(|line| line == "open" || line.starts_with("admit")), "{after:?}");
    // It becomes the backup by itself.
    wait_for(&apart.vm_b, Role::Primary, State::Protected);
}

/// Both QEMU and Holdfast of the primary are killed at once: the loss of the host.
#[test]
fn a_guest_outlives_its_host() {
    let Some(_turn) = can_run() else { return };
    let mut apart = Apart::protected();
    apart.holdfast.kill();
    apart.qemu.kill();
    apart.lost_to_b(Instant::now());
    assert_released_after_commit(&apart.a);
}

/// SP-2: both Holdfasts end, and the backup's returns alone. It goes live from a checkpoint that says all by
/// itself; from one that needs what its process had kept it does not, and says why.
#[test]
fn a_backup_started_anew_goes_live_only_with_all_that_was_said() {
    let Some(_turn) = can_run() else { return };
    for silent in [true, false] {
        let mut apart = Apart::protected_in(Lab::new_silent(silent));
        // The backup first: alone, the primary would be granted to go on alone.
        apart.holdfast.signal(Signal::SIGSTOP);
        apart.vm_b.shutdown().expect("ended");
        apart.holdfast.kill();
        let (last, _) = *apart.b.commits().last().expect("commits");
        apart.vm_b = apart.b.supervise(apart.b.config(), &apart.listen_b, Apart::address(&apart.a));
        if silent {
            let report = wait_to_go_live(&apart.vm_b, None);
            assert_eq!(report.resumed_from_epoch, last);
            assert_resumed_from_seal(&apart.b, last);
            continue;
        }
        let trouble = eventually("the reason", || {
            apart.vm_b.status().trouble.filter(|trouble| trouble.text.contains("acknowledged to the guest"))
        });
        assert!(trouble.text.contains(&format!("epoch {last} ")), "{}", trouble.text);
        // Longer than any silence that it would wait for: it does nothing then, of which nobody can tell.
        std::thread::sleep(LEASE * 2);
        let status = apart.vm_b.status();
        assert_eq!((status.role, status.state), (Role::Backup, State::Waiting));
        let fault = apart.vm_b.failover().expect_err("nothing to go live from");
        assert!(fault.text.contains("no committed checkpoint"), "{fault}");
    }
}
