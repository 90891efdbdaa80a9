//! The applications of a guest, started from its initramfs alone, in a namespace instead of a guest.

use holdfast_lab::apps::{App, AppFigures, carry, measure};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::client::Client;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::netns::Namespace;
use holdfast_lab::process::{Process, ProcessSpec, run_tool};
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::scratch::Scratch;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// iperf3 wants devices, which are init's to mount.
const APPS: [App; 4] = [App::Nginx, App::Redis, App::Shuffle, App::Rsync];
const TIME: Duration = Duration::from_millis(300);

struct House {
    client: Client,
    root: PathBuf,
    _running: Vec<Process>,
    _scratch: Scratch,
}

/// Unpacks the initramfs, as the kernel does, and starts what init would.
fn move_in() -> House {
    let scratch = Scratch::new("house").expect("folders");
    let artifacts = Artifacts::locate().expect("a guest's parts");
    let qemu = Qemu::system().expect("the system's QEMU");
    let mut spec = GuestSpec::new("guest", &qemu, &artifacts, &scratch).expect("a guest");
    carry(&mut spec, &APPS).expect("carried");
    let root = scratch.file("root");
    for folder in ["tmp", "run"] {
        fs::create_dir_all(root.join(folder)).expect("made");
    }
    let unpack = format!("cd {} && busybox cpio -idu <{}", root.display(), spec.initramfs.display());
    run_tool(None, "sh", &["-c", &unpack]).expect("unpacked");
    let namespace = Namespace::create("house").expect("made");
    let start = |word: &String| {
        let words = word.strip_prefix("holdfast.exec=").expect("a program to start");
        let log = scratch.file(&words.replace('/', "_"));
        let program = ProcessSpec::new(words, "chroot", log).args([&root]).args(words.split(','));
        program.namespace(&namespace).spawn().expect("started")
    };
    let running = spec.kernel_words.iter().map(start).collect();
    House { client: Client::new(&namespace), root, _running: running, _scratch: scratch }
}

impl House {
    fn figures(&self, app: App) -> AppFigures {
        measure(app, &self.client, [127, 0, 0, 1].into(), 1, TIME)
            .unwrap_or_else(|fault| panic!("{app}: {fault}"))
    }
}

/// Changes the last byte of every file below.
fn spoil(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            spoil(&entry);
        } else {
            let mut content = fs::read(&entry).expect("a file");
            *content.last_mut().expect("a byte") ^= 1;
            fs::write(&entry, content).expect("written");
        }
    }
}

#[test]
fn all_answer_from_one_initramfs_and_a_wrong_byte_in_what_they_serve_is_seen() {
    if !can_run(&[Need::Root, Need::Guest, Need::Applications]) {
        return;
    }
    let house = move_in();
    for app in APPS {
        let figures = house.figures(app);
        println!("{app}: {figures}");
        let units = if app == App::Redis { 200 } else { 64 };
        assert!(figures.requests >= units && figures.errors == 0, "{app}: {figures}");
        assert!(figures.requests_s > Some(0.0) && figures.p50_ms <= figures.p99_ms, "{app}: {figures}");
        assert_eq!(figures.exact, (app != App::Redis).then_some(true), "{app}: {figures}");
        assert!(figures.latency.is_some_and(|latency| !latency.is_empty()), "{app}");
    }
    spoil(&house.root.join("srv"));
    for app in [App::Nginx, App::Shuffle, App::Rsync] {
        assert_eq!(house.figures(app).exact, Some(false), "{app}");
    }
}
