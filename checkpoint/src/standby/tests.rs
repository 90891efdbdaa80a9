//! Tests on a real QEMU: the guest of the QEMU tests moves to its standby.

use super::*;
use crate::gate::GateState;
use crate::host_needs;
use crate::image::{Image, ImageConfig, StagedEpoch, StagedPages};
use crate::pages::{PAGE_SIZE, PageIndex};
use crate::qemu::tests::{LIMIT, MEMORY, Primary, WRITTEN, command, has_qemu, place, wait_for_guest};
use holdfast_epoch::{Digest, EpochId, Term};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::BufRead;
use std::process::{Command, Stdio};

fn config(dir: &Path, memory: &Path) -> StandbyConfig {
    StandbyConfig { argv: command(dir, memory), qmp_socket: dir.join("standby.qmp"), start_limit: LIMIT }
}

/// A file of the guest's size, for standbys that wait only.
fn waiting(dir: &Path) -> StandbyConfig {
    config(dir, &dir.join("standby-memory"))
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Waits for the end of a process that may be anybody's child.
fn wait_for_end_of(pid: i32) {
    match process::open_process(pid.unsigned_abs()) {
        Ok(process) => assert!(process::has_ended(&process, LIMIT), "process {pid} goes on"),
        // It was reaped before.
        Err(fault) => assert_eq!(fault.raw_os_error(), Some(nix::libc::ESRCH), "{fault}"),
    }
}

/// For what nobody tells of: what a guest writes to its memory, and a socket that comes to be.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A page's bytes in a memory that was read whole.
fn page(memory: &[u8], page: u64) -> &[u8; PAGE_SIZE] {
    memory[page as usize * PAGE_SIZE..][..PAGE_SIZE].try_into().unwrap()
}

/// CK-1: the guest goes on from the committed checkpoint: its memory is the image, byte for byte, and it counts
/// on from there, though the primary ran on after the checkpoint.
#[test]
fn a_guest_goes_on_from_its_checkpoint() {
    if !has_qemu() {
        return;
    }
    let mut primary = Primary::start();
    wait_for_guest(&primary.memory);
    let dir = place();
    let image_config = ImageConfig {
        vm: "vm".to_owned(),
        memory: dir.path().join("image"),
        record: dir.path().join("record"),
        len: MEMORY,
    };
    let mut image = Image::create(image_config).unwrap();
    let mut standby = Standby::start(&config(dir.path(), image.memory_path())).unwrap();
    image.begin_sync(Term::new(1), EpochId::FIRST).unwrap();

    primary.qemu.prepare().unwrap();
    primary.qemu.stop().unwrap();
    let state = primary.qemu.save_devices().unwrap();
    let sealed = fs::read(&primary.memory).unwrap();
    primary.qemu.cont().unwrap();

    // The first byte of the image stays as the standby's start left it until the epoch is applied.
    let mut pages = StagedPages::new();
    (0..MEMORY / PAGE_SIZE as u64).for_each(|index| pages.push(PageIndex(index), page(&sealed, index)));
    let digest = Digest([0; 32]);
    let key = (Term::new(1), EpochId::FIRST);
    image
        .apply(
            StagedEpoch::verified(key, pages, state, GateState::whole(Vec::new()), &digest, &digest).unwrap(),
        )
        .unwrap();
    wait_until("a difference of the primary", || fs::read(&primary.memory).unwrap() != sealed);
    primary.kill();

    let start = Instant::now();
    standby.load(&image.last().unwrap().device_state).unwrap();
    let loaded = start.elapsed();
    assert!(fs::read(image.memory_path()).unwrap() == sealed, "loading changes no memory");
    image.mark_live(Term::new(2)).unwrap();
    let (mut qemu, mut process) = standby.resume().unwrap();
    println!("loaded in {loaded:?}, alive in {:?}", start.elapsed());
    assert_eq!(qemu.run_state().unwrap(), RunState::Running);
    // The guest writes the same number to all its pages, one after the other: where the sealed memory
    // ends one round, the next number comes next, and no other.
    let count = |memory: &[u8], index: u64| u16::from_le_bytes(page(memory, index)[..2].try_into().unwrap());
    let newest = count(&sealed, WRITTEN.start);
    assert!(WRITTEN.clone().all(|index| newest.wrapping_sub(count(&sealed, index)) <= 1));
    wait_until("the guest's next round", || fs::read(image.memory_path()).unwrap() != sealed);
    qemu.stop().unwrap();
    let now = fs::read(image.memory_path()).unwrap();
    let oldest = count(&now, WRITTEN.end - 1);
    assert!(WRITTEN.clone().all(|index| count(&now, index).wrapping_sub(oldest) <= 1));
    for index in (0..MEMORY / PAGE_SIZE as u64).filter(|index| !WRITTEN.contains(index)) {
        assert_eq!(page(&now, index), page(&sealed, index), "page {index}");
    }
    qemu.cont().unwrap();
    let pid = process.pid();
    process.kill();
    assert!(!is_there(pid));
}

#[test]
fn a_standby_is_ended_with_its_owner() {
    if !has_qemu() {
        return;
    }
    let dir = place();
    // A thread that ends does not take the standby with it.
    let config = waiting(dir.path());
    let standby = std::thread::spawn(move || Standby::start(&config).unwrap()).join().unwrap();
    let pid = standby.process().pid();
    // Its end would be told at once; that there is none takes a time to say.
    assert!(!standby.process().wait_for_end(Duration::from_millis(20)));
    drop(standby);
    assert!(!is_there(pid));
}

#[test]
fn a_standby_lives_in_the_network_of_the_thread_that_started_it() {
    if !has_qemu() || !host_needs::is_root() {
        return;
    }
    let dir = place();
    let config = waiting(dir.path());
    let network = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
    let own = network("self");
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let standby = Standby::start(&config).unwrap();
        let its = network(&standby.process().pid().to_string());
        assert_eq!(its, network("thread-self"));
        assert_ne!(its, own);
    })
    .join()
    .unwrap();
}

#[test]
fn a_standby_that_dies_is_noticed() {
    if !has_qemu() {
        return;
    }
    let dir = place();
    let mut standby = Standby::start(&waiting(dir.path())).unwrap();
    standby.check().unwrap();
    kill(Pid::from_raw(standby.process().pid()), Signal::SIGKILL).unwrap();
    assert!(standby.process().wait_for_end(LIMIT));
    let fault = standby.check().unwrap_err();
    assert!(matches!(&fault, StandbyError::Ended { status, .. } if status.contains("SIGKILL")), "{fault}");
    assert!(matches!(standby.load(b"state"), Err(StandbyError::Qemu { .. })));
}

/// RB-1: a state that QEMU does not accept is an error with QEMU's own words.
#[test]
fn a_state_that_is_none_is_refused_with_the_words_of_qemu() {
    if !has_qemu() {
        return;
    }
    for state in [&b"no state at all, but some bytes"[..], &[0; 100_000]] {
        let dir = place();
        let standby = Standby::start(&waiting(dir.path())).unwrap();
        let pid = standby.process().pid();
        let fault = standby.go_live(state).unwrap_err();
        assert!(matches!(&fault, StandbyError::Qemu { words, .. } if !words.is_empty()), "{fault}");
        assert!(!is_there(pid));
    }
    let dir = place();
    let mut standby = Standby::start(&waiting(dir.path())).unwrap();
    assert!(standby.load(b"").unwrap_err().to_string().contains("there is none"));
}

#[test]
fn a_standby_of_another_machine_is_refused() {
    if !has_qemu() {
        return;
    }
    let mut primary = Primary::start();
    primary.qemu.stop().unwrap();
    let state = primary.qemu.save_devices().unwrap();
    let dir = place();
    let mut config = waiting(dir.path());
    config.argv.extend(["-device", "virtio-rng-pci"].map(str::to_owned));
    // More devices than the state has are no fault for QEMU; fewer are.
    Standby::start(&config).unwrap().go_live(&state).unwrap().1.kill();
    primary.qemu.cont().unwrap();
    drop(primary);
    let dir = place();
    let mut argv = command(dir.path(), &dir.path().join("memory"));
    argv.extend(["-device", "virtio-rng-pci"].map(str::to_owned));
    let mut primary = Primary::start_with(dir, argv);
    primary.qemu.stop().unwrap();
    let state = primary.qemu.save_devices().unwrap();
    let dir = place();
    let fault = Standby::start(&waiting(dir.path())).unwrap().go_live(&state).unwrap_err();
    assert!(fault.to_string().contains("virtio-rng"), "{fault}");
}

#[test]
fn a_command_that_cannot_be_a_standby_says_why() {
    if !has_qemu() {
        return;
    }
    let dir = place();
    let good = waiting(dir.path());
    let with = |argv: &[&str]| StandbyConfig {
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        ..good.clone()
    };
    for argv in [&[][..], &["/no/such/program"]] {
        let fault = Standby::start(&with(argv)).unwrap_err();
        assert!(matches!(fault, StandbyError::Spawn { .. }), "{fault}");
    }
    let fault = Standby::start(&with(&["sh", "-c", "echo out of luck >&2; exit 3"])).unwrap_err();
    assert!(
        matches!(&fault, StandbyError::Ended { status, words } if status.contains('3') && words == "out of luck"),
        "{fault}"
    );
    let mut unknown = good.clone();
    unknown.argv.extend(["-machine".to_owned(), "typo".to_owned()]);
    let fault = Standby::start(&unknown).unwrap_err();
    assert!(fault.to_string().contains("unsupported machine type"), "{fault}");
    let slow =
        StandbyConfig { start_limit: Duration::from_millis(50), ..with(&["sh", "-c", "exec sleep 100"]) };
    let fault = Standby::start(&slow).unwrap_err();
    assert!(matches!(fault, StandbyError::NoMonitor { .. }), "{fault}");
    let quote = |argv: &[String]| argv.iter().map(|argument| format!("'{argument}' ")).collect::<String>();
    let quoted = quote(&complete(&good));
    let listening = format!("-qmp unix:{},server=on,wait=off", good.qmp_socket.display());
    let quoted_plain = format!("{}{listening}", quote(&good.argv));
    let socket = good.qmp_socket.display();
    let forking = format!("{quoted} & echo started >&2; : {socket} incoming; wait");
    let fault = Standby::start(&with(&["sh", "-c", &forking, "-incoming"])).unwrap_err();
    assert!(matches!(fault, StandbyError::NotExec { .. }), "{fault}");
    let StandbyError::NotExec { serving, .. } = fault else { unreachable!() };
    kill(Pid::from_raw(serving), Signal::SIGKILL).unwrap();
    wait_for_end_of(serving);
    // Here `-incoming` is the shell's name only.
    let running = with(&["sh", "-c", &format!("exec {quoted_plain}"), "-incoming"]);
    let fault = Standby::start(&running).unwrap_err();
    assert!(matches!(fault, StandbyError::NotWaiting { state: RunState::Running }), "{fault}");
}

#[test]
fn a_standby_left_behind_is_replaced_and_a_running_guest_is_not() {
    if !has_qemu() {
        return;
    }
    let dir = place();
    let config = waiting(dir.path());
    let mut left = Command::new(&config.argv[0]).args(&complete(&config)[1..]).spawn().unwrap();
    wait_until("the monitor", || config.qmp_socket.exists());
    let standby = Standby::start(&config).unwrap();
    assert_ne!(standby.process().pid(), i32::try_from(left.id()).unwrap());
    left.wait().unwrap();
    drop(standby);
    // A socket that nobody serves is no obstacle.
    assert!(config.qmp_socket.exists());
    drop(Standby::start(&config).unwrap());
    let mut primary = Primary::start();
    let occupied = StandbyConfig { qmp_socket: primary.dir.path().join("qmp"), ..config };
    // The test holds the monitor, so that nobody else is greeted; then it lets go.
    let fault = Standby::start(&occupied).unwrap_err();
    assert!(matches!(fault, StandbyError::Qemu { .. }), "{fault}");
    primary.let_go();
    let fault = Standby::start(&occupied).unwrap_err();
    assert!(matches!(fault, StandbyError::Occupied { state: RunState::Running, .. }), "{fault}");
}

const OWNER_DIR: &str = "HOLDFAST_TEST_STANDBY_DIR";
const OWNER_LIVE: &str = "HOLDFAST_TEST_STANDBY_LIVE";

/// The child of the test below: owns a standby until it is killed.
#[test]
fn owning_process() {
    let Some(dir) = std::env::var_os(OWNER_DIR) else { return };
    let dir = PathBuf::from(dir);
    let standby = Standby::start(&waiting(&dir)).unwrap();
    let pid = standby.process().pid();
    let (mut waiting, mut live) = (Some(standby), None);
    if let Some(state) = std::env::var_os(OWNER_LIVE) {
        live = waiting.take().map(|standby| standby.go_live(&fs::read(state).unwrap()).unwrap());
    }
    println!("\nowns {pid}");
    // Until it is killed, or the test is.
    drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    drop((waiting, live));
}

fn owner(dir: &Path, state: Option<&Path>) -> i32 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "standby::tests::owning_process", "--nocapture"])
        .env(OWNER_DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if let Some(state) = state {
        command.env(OWNER_LIVE, state);
    }
    let mut owner = command.spawn().unwrap();
    let lines = std::io::BufReader::new(owner.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("owns ")?.parse().ok()).unwrap();
    assert!(is_there(pid));
    owner.kill().unwrap();
    owner.wait().unwrap();
    pid
}

#[test]
fn a_standby_dies_with_holdfast_and_a_living_guest_does_not() {
    if !has_qemu() || !host_needs::is_root() {
        return;
    }
    let dir = place();
    let pid = owner(dir.path(), None);
    wait_for_end_of(pid);
    let mut primary = Primary::start();
    primary.qemu.stop().unwrap();
    let state = dir.path().join("state");
    fs::write(&state, primary.qemu.save_devices().unwrap()).unwrap();
    let pid = owner(dir.path(), Some(&state));
    // Its owner was reaped, so that a signal at the owner's death would have come before the answer.
    let mut qemu = Qemu::connect(&dir.path().join("standby.qmp"), LIMIT).unwrap();
    assert_eq!((qemu.pid(), qemu.run_state().unwrap()), (pid, RunState::Running));
    qemu.quit().unwrap();
    wait_for_end_of(pid);
}
