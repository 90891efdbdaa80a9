//! What a user is told at the command line: what is lacking, and the line that mends it.

use crate::daemon::run;
use crate::place::Place;
use holdfast_tests::program::holdfast;
use std::fs;
use std::process::Command;

const NOBODY: u32 = 65534;

/// Exit code 3 for what the host does not have or does not let this user do; 1 for a command that a running
/// Holdfast refuses.
#[test]
fn a_user_is_told_what_is_lacking() {
    let Some(mut place) = Place::new("privileges") else { return };
    let plan = place.plan("web");
    let (mut file, _) = place.files(&[&plan]);
    // A user who may not make anything here either.
    file.control = place.scratch.file("control");
    let path = place.scratch.file("host.toml");
    fs::write(&path, file.to_string()).expect("written");
    let name = path.display().to_string();
    let namespace = Some(&place.topology.a.namespace);
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["run", "-c", &name],
            3,
            &["CAP_NET_RAW", "CAP_SYS_PTRACE", "mend: run as root", "AmbientCapabilities="],
        ),
        (&["check-host"], 3, &["userfaultfd", "mend: run as root or with CAP_SYS_PTRACE"]),
        (&["demo"], 3, &["takes root", "mend: sudo holdfast"]),
        (&["soak"], 3, &["takes root", "mend: sudo holdfast"]),
        (&["bench", "quick"], 3, &["takes root", "mend: sudo holdfast"]),
        (&["bench", "bulk"], 3, &["takes root", "mend: sudo holdfast"]),
        (&["wire-emulator", "--left", "x", "--right", "y"], 3, &["interface x", "mend: "]),
        (&["wire-emulator", "--left", "x", "--right", "y", "--wire", "loss=2"], 2, &["loss=2", "0.5%"]),
        (&["keys", "/root/a", "/root/b"], 2, &["/root/a", "Permission denied", "be root"]),
        (&["run", "-c", &name, "--check-config"], 0, &["is sound"]),
    ];
    for (arguments, code, parts) in cases {
        run(namespace, Some(NOBODY), arguments).expect(&arguments.join(" "), *code, parts);
    }
    let lacks = run(None, None, &["demo", "--qemu", "/no/such/qemu"]);
    lacks.expect("no QEMU", 3, &["/no/such/qemu", "mend: scripts/packages"]);
    let mut bench = Command::new(holdfast());
    let output = bench.args(["bench", "pps"]).env("PATH", "/nowhere").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no dpdk-testpmd") && said.contains("mend: apt-get install dpdk-dev"), "{said}");
    // The socket of a Holdfast that runs.
    let daemon = place.start(&place.topology.a, &file);
    let control = file.control.display().to_string();
    let asked = run(None, Some(NOBODY), &["status", "--socket", &control]);
    asked.expect("status", 1, &["may not be opened", "mend: ask as root"]);
    for command in ["protect", "unprotect", "failover", "status"] {
        let told = daemon.command(&[command, "mail"]);
        told.expect(command, 1, &["there is no VM 'mail' on host host-a", "mend: one of web"]);
    }
    let told = daemon.command(&["mode", "mail", "commit"]);
    told.expect("mode", 1, &["there is no VM 'mail' on host host-a", "mend: one of web"]);
    daemon.command(&["mode", "web", "fast"]).expect("mode", 2, &["fast", "native, commit, speculative"]);
    daemon.command(&["failover", "web"]).expect(
        "failover",
        1,
        &["no backup holds a checkpoint", "protect it"],
    );
    daemon.command(&["epoch", "web", "0"]).expect("epoch", 1, &["epoch", "between 1 ms and 60 s"]);
    daemon.stop();
    let asked = run(None, None, &["status", "--socket", &control]);
    asked.expect("status of nobody", 1, &["no Holdfast answers", "mend: start `holdfast run"]);
}
