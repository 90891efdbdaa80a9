//! Guests that cannot be protected as they are.

use crate::daemon::{Daemon, SOON};
use crate::place::{MEMORY_MIB, Place, Plan};
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::client::Amount;
use holdfast_lab::guest::{Backend, Guest, GuestSpec, Nic};
use holdfast_tests::scene::wait_until;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// What is wrong with a guest, and what is said of it.
struct Unfit {
    plan: Plan,
    said: &'static [&'static str],
    /// Whether QEMU gives such a guest a network at all.
    network: bool,
}

/// Arguments of a disk; `more` may make it read-only.
fn disk(file: &Path, more: &str) -> Vec<String> {
    fs::write(file, vec![0; 1 << 20]).expect("written");
    let drive = format!("file={},format=raw,if=none,id=drive{more}", file.display());
    ["-drive", &drive, "-device", "virtio-blk-pci,id=disk,drive=drive"].map(String::from).to_vec()
}

/// One VM each in one Holdfast, each with another fault, beside a sound one: each is refused with its
/// reason and mend, runs on with its network as good as QEMU gives it, and is protected once the fault
/// is mended, where that can be done while it runs. The sound one is protected all the while.
#[test]
fn guests_that_cannot_be_protected_run_on_beside_one_that_is() {
    let Some(mut place) = Place::new("guests") else { return };
    // A disk that cannot be written is no obstacle.
    let file = place.scratch.file("read-only.disk");
    let read_only = |spec: &mut GuestSpec| spec.arguments.extend(disk(&file, ",readonly=on"));
    let sound = place.plan_with("sound", Qemu::system().expect("a QEMU"), read_only);
    let mut unfit = Vec::new();
    let mut add = |plan, network, said| unfit.push(Unfit { plan, said, network });

    let mut plan = place.plan("writable-disk");
    plan.arguments.extend(disk(&place.scratch.file("writable.disk"), ""));
    add(plan, true, &["can write to disk", "mend: make it read-only", "accept_unreplicated_disks = true"]);

    // Served by the Holdfast of host B, which is nothing of host A's.
    let spare = place.plan("spare");
    let mut plan = place.plan("foreign-card");
    let mut both = plan.spec.clone();
    let mut nic = Nic::numbered(90, Backend::VhostUser { socket: spare.on_b.sockets[0].clone() });
    nic.addresses.clear();
    both.nics.push(nic);
    plan.arguments = both.arguments();
    add(plan, true, &["not one of Holdfast's for this VM", "b.nic", "mend: name the socket in a [[vm.nic]]"]);

    let mut plan = place.plan_with("memfd", place.newer_qemu(), |_| {});
    plan.set_memory(Some(format!("memory-backend-memfd,id=ram0,size={MEMORY_MIB}M,share=on")));
    add(
        plan,
        true,
        &["memory-backend-memfd", "not a file that others can map", "mend: start QEMU with -object"],
    );

    let mut plan = place.plan("private-memory");
    let file = plan.spec.memory_file.display().to_string();
    plan.set_memory(Some(format!(
        "memory-backend-file,id=ram0,size={MEMORY_MIB}M,share=off,mem-path={file}"
    )));
    add(plan, false, &["is not shared", "mend: start QEMU with -object"]);

    let mut plan = place.plan("plain-memory");
    plan.set_memory(None);
    add(plan, false, &["memory", "mend: start QEMU with -object"]);

    let mut plan = place.plan("other-monitor");
    plan.on_a.qmp = place.scratch.file("other-monitor.link");
    symlink(sound.spec.lab_qmp(), &plan.on_a.qmp).expect("linked");
    add(
        plan,
        true,
        &[
            "other-monitor.link",
            "is another one than the guest's",
            "mend: name the monitor of this machine's own QEMU",
        ],
    );

    let mut plan = place.plan("no-monitor");
    plan.on_a.qmp = place.scratch.file("no-monitor.link");
    add(plan, true, &["cannot connect to QEMU's monitor", "no-monitor.link", "-qmp unix:"]);

    // QEMU waits at its start for a socket that nobody serves.
    let mut lost = place.plan("lost-socket");
    let wrong = place.scratch.file("lost-socket.link");
    lost.set_socket(&wrong);

    // QEMU is to listen, and somebody else does.
    let mut babble = place.plan("babbling-socket");
    babble.on_a.nic_lines = "listens = \"qemu\"".into();
    let socket = babble.on_a.sockets[0].clone();
    babble.spec.nics[0].backend = Backend::VhostUserServer { socket: socket.clone() };
    babble.arguments = babble.spec.arguments();
    let babbler = Babbler::start(&socket);

    let plans: Vec<&Plan> = std::iter::once(&sound).chain(unfit.iter().map(|unfit| &unfit.plan)).collect();
    let all: Vec<&Plan> = plans.iter().copied().chain([&lost, &babble]).collect();
    let (on_a, mut on_b) = place.files(&all);
    let mut foreign = spare.on_b.clone();
    (foreign.role, foreign.mode, foreign.backup) = ("primary", "native", None);
    on_b.vms.push(foreign);
    let b = place.start(&place.topology.b, &on_b);
    let a = place.start(&place.topology.a, &on_a);
    let mut waiting = place.boot(&lost);
    let mut guests: Vec<Guest> = plans.iter().map(|plan| place.boot(plan)).collect();
    for guest in &mut guests {
        guest.wait_ready(SOON).expect("a guest that is up");
    }
    a.wait_state("sound", "protected");
    let stream = place.stream(sound.nic, Amount::UntilStopped);

    for Unfit { plan, said, network } in &unfit {
        let name = &plan.spec.name;
        let status = a.wait_trouble(name, said);
        assert_eq!(status["role"], "primary", "{name}");
        let state = if name == "plain-memory" { "awaiting-guest" } else { "native" };
        assert_eq!(status["state"], state, "{name}");
        if *network {
            place.exchange(plan.nic);
        }
    }
    // All but the sound one, which is paused at each epoch.
    for guest in &guests[1..] {
        assert_eq!(run_state(guest), "running", "{}", guest.spec.name);
    }

    a.wait_trouble("lost-socket", &["lost-socket.qmp", "QEMU waits for a vhost-user socket"]);
    let status = a.wait("babbling-socket", "talked to", |status| status["nics"][0]["frontend_faults"] != 0);
    let said = status["nics"][0]["last_frontend_fault"].as_str().unwrap_or_default();
    println!("babbling-socket: {said}");
    assert!(said.contains("only QEMU's vhost-user netdev may use this socket"), "{said}");
    let faults = babbler.stop();
    assert!(faults < 300, "it was asked {faults} times without a pause");
    let mut late = place.boot(&babble);
    symlink(&lost.on_a.sockets[0], &wrong).expect("linked");
    for (guest, plan) in [(&mut waiting, &lost), (&mut late, &babble)] {
        guest.wait_ready(SOON).expect("a guest that is up");
        a.wait_state(&plan.spec.name, "protected");
        place.exchange(plan.nic);
    }

    let guest = |name: &str| guests.iter().find(|guest| guest.spec.name == name).expect("a guest");
    unplug(guest("writable-disk"), "disk");
    unplug(guest("foreign-card"), "nic1");
    // Its backend counts as part of the machine as well.
    let mut monitor = guest("foreign-card").monitor().expect("a monitor");
    let is_there = json!({ "path": "/machine/peripheral/nic1" });
    wait_until("the card is gone", SOON, || monitor.execute("qom-list", is_there.clone()).is_err());
    monitor.execute("netdev_del", json!({ "id": "net1" })).expect("QEMU takes it");
    drop(monitor);
    for name in ["other-monitor", "no-monitor"] {
        let link = place.scratch.file(&format!("{name}.link"));
        if link.is_symlink() {
            fs::remove_file(&link).expect("removed");
        }
        symlink(guest(name).spec.qmp(), &link).expect("linked");
    }
    for name in ["writable-disk", "foreign-card", "other-monitor", "no-monitor"] {
        a.wait_state(name, "protected");
        place.exchange(guest(name).spec.nics[0].mac[5]);
    }

    stream.stop();
    let report = stream.finish();
    assert!(report.exact() && report.bytes > 0, "{report:?}");
    let status = a.vm("sound");
    assert_eq!((&status["state"], &status["link"]["sessions"]), (&json!("protected"), &json!(1)), "{status}");
    end(a, b);
}

fn end(a: Daemon, b: Daemon) {
    // Kills come first: at an orderly end a primary would hand its guests over.
    drop(a);
    b.stop();
}

fn run_state(guest: &Guest) -> String {
    let status = guest.monitor().and_then(|mut monitor| monitor.execute("query-status", json!(null)));
    status.expect("QEMU answers")["status"].as_str().unwrap_or_default().to_owned()
}

/// Takes a device out of the running guest.
fn unplug(guest: &Guest, device: &str) {
    let mut monitor = guest.monitor().expect("a monitor");
    monitor.execute("device_del", json!({ "id": device })).expect("QEMU takes it");
}

/// Somebody who greets whoever connects, as no vhost-user frontend does.
struct Babbler {
    end: Arc<AtomicBool>,
    socket: PathBuf,
    thread: JoinHandle<usize>,
}

impl Babbler {
    fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("bound");
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut asked = 0;
            while let Ok((mut stream, _)) = listener.accept() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                asked += 1;
                // Whoever asked may be gone again.
                drop(stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"));
            }
            asked
        });
        Self { end, socket: socket.to_owned(), thread }
    }

    /// Ends it, with its socket; says how often it was asked.
    fn stop(self) -> usize {
        self.end.store(true, Ordering::Relaxed);
        let last = UnixStream::connect(&self.socket);
        fs::remove_file(&self.socket).expect("removed");
        drop(last.expect("it listens"));
        self.thread.join().expect("no panic")
    }
}
