//! Several polling cores, each with wires and NICs of its own.

use holdfast_lab::netns::Namespace;
use holdfast_lab::process::{Process, ProcessSpec, run_tool};
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::scratch::Scratch;
use holdfast_tests::program::holdfast;
use holdfast_tests::scene::{SOON, wait_until};
use serde_json::Value;
use std::fs;
use std::path::Path;

const CONFIG: &str = r#"
[host]
name = "cores"
control_socket = "FOLDER/control"
[cores]
polling = [0, 1]
[dpdk]
file_prefix = "cores-PROCESS"
[[wire]]
name = "first"
kind = "kernel"
iface = "first"
[[wire]]
name = "second"
kind = "kernel"
iface = "second"
core = 1
[[vm]]
name = "one"
mode = "native"
[[vm.nic]]
socket = "FOLDER/one"
wire = "first"
[[vm]]
name = "two"
mode = "native"
[[vm.nic]]
socket = "FOLDER/two"
wire = "second"
"#;

/// Each core runs on its processor, and receives from its own wire alone.
#[test]
fn wires_are_polled_by_the_cores_that_they_name() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if !can_run(&[Need::Root]) || processors < 2 {
        println!("cannot run here: root and two processors are needed");
        return;
    }
    let scratch = Scratch::new("cores").expect("a folder");
    let namespace = Namespace::create("cores").expect("a namespace");
    for (wire, other) in [("first", "far1"), ("second", "far2")] {
        namespace.ip(&format!("link add {wire} type veth peer name {other}")).expect("a wire");
        namespace.ip(&format!("link set {wire} up")).expect("up");
    }
    let folder = scratch.files().display().to_string();
    let config = CONFIG.replace("FOLDER", &folder).replace("PROCESS", &std::process::id().to_string());
    fs::write(scratch.file("config"), config).expect("written");
    let mut process = ProcessSpec::new("cores", holdfast(), scratch.file("log"))
        .args(["run", "-c"])
        .args([scratch.file("config")])
        .env("HOLDFAST_LOG", "info")
        .namespace(&namespace)
        .spawn()
        .expect("the program starts");
    process.wait_for_log("VM(s), control socket", SOON).expect("it runs");
    for (number, processor) in [("0", "0"), ("1", "1")] {
        assert_eq!(processors_of(&process, &format!("polling-{number}")), processor);
    }
    // The kernel says something wherever it comes up.
    let received = || {
        let cores = cores(&scratch.file("control"));
        [0, 1].map(|core: usize| cores[core]["wire_received_frames"].as_u64().expect("a count"))
    };
    assert_eq!(received(), [0, 0]);
    namespace.ip("link set far2 up").expect("up");
    wait_until("frames from the second wire", SOON, || received()[1] > 0);
    assert_eq!(received()[0], 0, "the first wire is down");
    namespace.ip("link set far1 up").expect("up");
    wait_until("frames from the first wire", SOON, || received()[0] > 0);
    process.terminate(SOON).expect("ended");
}

fn cores(control: &Path) -> Value {
    let control = control.display().to_string();
    let said = run_tool(None, &holdfast().to_string_lossy(), &["status", "--json", "--socket", &control]);
    let document: Value = serde_json::from_str(&said.expect("a status")).expect("JSON");
    assert_eq!(document["cores"][1]["processor"], 1, "{document}");
    document["cores"].clone()
}

/// The processors on which the process's thread of that name may run, as the kernel lists them.
fn processors_of(process: &Process, thread: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("threads");
    for task in tasks {
        let task = task.expect("a thread").path();
        if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread) {
            let status = fs::read_to_string(task.join("status")).expect("its state");
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            return list.expect("its processors").trim().to_owned();
        }
    }
    panic!("there is no thread {thread}");
}
