//! Nothing outlives a laboratory, however it ends.

use holdfast_lab::netns::Namespace;
use holdfast_lab::process::ProcessSpec;
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::scratch::{Scratch, mark};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set for the process that is the laboratory which the test below starts and ends.
const INNER: &str = "HOLDFAST_LAB_WAITS";

/// The laboratory that waits for its end.
fn wait_for_the_end() {
    let scratch = Scratch::new("ended").expect("folders");
    std::fs::write(scratch.memory("ram"), "bytes").expect("written");
    let namespace = Namespace::create("ended").expect("made");
    // The inner one has no tie to the laboratory but its mark, as a standby that an appliance started.
    let mut child = ProcessSpec::new("parent", "sh", scratch.file("log"))
        .args(["-c", "setsid sleep 1000 & echo orphan $!; wait"])
        .namespace(&namespace)
        .spawn()
        .expect("started");
    child.wait_for_log("orphan ", Duration::from_secs(10)).expect("says so");
    let orphan = child.log_tail(1);
    println!("laboratory {} {} {}", mark(), child.pid(), orphan.trim().replace("orphan ", ""));
    child.wait(Duration::from_secs(60)).expect("waited");
}

fn gone_within(path: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while path.exists() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn a_laboratory_that_is_interrupted_or_killed_leaves_no_process_and_no_file() {
    if std::env::var_os(INNER).is_some() {
        return wait_for_the_end();
    }
    if !can_run(&[Need::Root]) {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut laboratory = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "a_laboratory_that_is_interrupted_or_killed_leaves_no_process_and_no_file"])
            .arg("--nocapture")
            .env(INNER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let output = BufReader::new(laboratory.stdout.take().expect("piped"));
        let words: Vec<String> = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("laboratory ").map(|(_, rest)| rest.to_owned()))
            .expect("it says what it has")
            .split(' ')
            .map(String::from)
            .collect();
        let [mark, pids @ ..] = &words[..] else { panic!("{words:?}") };
        let folders =
            [std::env::temp_dir(), PathBuf::from("/dev/shm")].map(|dir| dir.join(format!("hf-{mark}")));
        let processes: Vec<PathBuf> = pids.iter().map(|pid| Path::new("/proc").join(pid)).collect();
        assert_eq!(processes.len(), 2);
        for path in folders.iter().chain(&processes) {
            assert!(path.exists(), "{}", path.display());
        }

        kill(Pid::from_raw(laboratory.id() as i32), signal).expect("signalled");
        laboratory.wait().expect("ended");
        for path in folders.iter().chain(&processes) {
            assert!(gone_within(path, Duration::from_secs(20)), "{} after {signal}", path.display());
        }
    }
}

#[test]
fn a_panic_takes_processes_and_files_along() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let scratch = Scratch::new("panics").expect("folders");
        let namespace = Namespace::create("panics").expect("made");
        let child = ProcessSpec::new("child", "sleep", scratch.file("log"))
            .args(["1000"])
            .namespace(&namespace)
            .spawn()
            .expect("started");
        let process = PathBuf::from(format!("/proc/{}", child.pid()));
        sender.send([scratch.files().to_path_buf(), process]).expect("sent");
        panic!("on purpose");
    });
    let paths = receiver.recv().expect("sent");
    panicked.join().expect_err("panics");
    for path in paths {
        assert!(!path.exists(), "{}", path.display());
    }
}
