//! The agent in a guest: its congestion control is there in mode aware, and at no other time.

use crate::can;
use holdfast_lab::agent::{carry, serve, serve_shell, shell};
use holdfast_lab::bulk::TransferSpec;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::pair::{PairOptions, Victim};
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well, all_is_well_after_the_move};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{SOON, Scene, VM, options, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bytes that flow each way before and after something happens.
const SOME: u64 = 1 << 20;

/// The agent runs from the boot on; what the kernel compiled of BPF is seen by name.
pub(super) fn aware(spec: &mut GuestSpec) {
    spec.sysctls.push(("net/core/bpf_jit_kallsyms".into(), "1".into()));
    serve_shell(spec).expect("busybox");
    serve(spec).expect("the agent");
}

fn aware_on_newer_kernel(spec: &mut GuestSpec) {
    spec.newer_kernel().expect("Linux 6.12");
    aware(spec);
}

/// The agent is there and does not run.
pub(super) fn carrying(spec: &mut GuestSpec) {
    spec.sysctls.push(("net/core/bpf_jit_kallsyms".into(), "1".into()));
    serve_shell(spec).expect("busybox");
    carry(spec).expect("the agent");
}

fn carrying_on_newer_kernel(spec: &mut GuestSpec) {
    spec.newer_kernel().expect("Linux 6.12");
    carrying(spec);
}

pub(super) fn agent_options(mode: &str, shape: fn(&mut GuestSpec)) -> PairOptions {
    let mut options = options(mode);
    options.shape = shape;
    options
}

/// The guest's own shell.
pub(super) fn ask(scene: &Scene, commands: &str) -> String {
    shell(&scene.client(), guest_ip(1).into(), commands).expect("the guest's shell").trim().to_owned()
}

fn congestion_control(scene: &Scene) -> String {
    ask(scene, "cat /proc/sys/net/ipv4/tcp_congestion_control")
}

fn wait_congestion_control(scene: &Scene, wanted: &str) {
    wait_until(&format!("congestion control {wanted}"), SOON, || congestion_control(scene) == wanted);
}

pub(super) fn status(scene: &Scene) -> Value {
    let said = ask(scene, "/bin/holdfast-guest status --json 2>&1");
    serde_json::from_str(&said).unwrap_or_else(|fault| panic!("{fault}: {said}"))
}

pub(super) fn set_mode(scene: &Scene, mode: &str) {
    let request = json!({"command": "setmode", "vm": VM, "mode": mode});
    scene.pair.a.ask(&request).expect("another mode");
}

/// Neither the name of the congestion control nor a program is left in the guest's kernel.
fn wait_no_trace(scene: &Scene) {
    wait_until("no trace of the agent", SOON, || {
        let said = ask(
            scene,
            "cat /proc/sys/net/ipv4/tcp_available_congestion_control /proc/sys/net/ipv4/tcp_congestion_control; \
             grep -c _holdfast_ /proc/kallsyms; ls /run/holdfast-guest 2>&1",
        );
        said == "reno cubic\ncubic\n0\nls: /run/holdfast-guest: No such file or directory"
    });
}

fn wait_present(scene: &Scene) {
    wait_until("the agent is present", SOON, || {
        ask(scene, "/bin/holdfast-guest status --json").contains("\"state\":\"present\"")
    });
}

/// A connection to what echoes at that port of the guest, which has echoed once.
fn echoing(scene: &Scene, port: u16) -> TcpStream {
    let mut connection = scene.client().connect((guest_ip(1), port).into(), SOON).expect("connected");
    connection.set_read_timeout(Some(SOON)).expect("set");
    let mut said = [0; 4];
    connection.write_all(b"echo").and_then(|()| connection.read_exact(&mut said)).expect("an echo");
    connection
}

/// So many connections were given the congestion control when the agent attached, and so many as they were made.
fn counts(scene: &Scene, moved: u64, chosen: u64) {
    let count = || {
        let counters = &status(scene)["counters"];
        ["moved_sockets", "chosen_flows"].map(|name| counters[name].as_u64().expect("a number"))
    };
    // Written once a second: what is too much is seen as well.
    wait_until("connections are counted", SOON, || count().iter().sum::<u64>() >= moved + chosen);
    assert_eq!(count(), [moved, chosen]);
}

/// Connections that are chosen get the congestion control, those that are there and those to come; no other does,
/// such as those of the shell, of which there are many. No socket has it when the agent has ended: as long as one
/// does, the kernel keeps the programs.
fn chooses(options: PairOptions, seed: u64) {
    let mut scene = Scene::ready(options, seed);
    let heard = || scene.pair.a.vm(VM).expect("a status")["agent"]["state"].clone();
    assert_eq!(heard(), "never heard");
    let refused = ask(&scene, "/bin/holdfast-guest run --port 7001 2>&1; echo exit $?");
    assert!(refused.ends_with("exit 3") && refused.contains("mount -t cgroup2"), "{refused}");
    ask(&scene, "mount -t cgroup2 none /sys/fs/cgroup");
    let before = scene.streams(guest_ip(1), 0);
    before.flow(SOME);
    ask(&scene, "/bin/holdfast-guest run --port 1,7001 >/dev/console 2>&1 </dev/null &");
    wait_present(&scene);
    let after = scene.streams(guest_ip(1), 1);
    after.flow(SOME);
    drop(echoing(&scene, 7002));
    counts(&scene, 2, 2);
    assert_eq!((congestion_control(&scene).as_str(), heard()), ("cubic", json!("present")));
    let flowing = status(&scene);
    assert!(flowing["counters"]["opened_flows"].as_u64() >= Some(4), "{flowing}");
    ask(&scene, "killall holdfast-guest");
    wait_no_trace(&scene);
    before.flow(SOME);
    after.flow(SOME);

    ask(
        &scene,
        "mkdir /sys/fs/cgroup/web; \
         sh -c 'echo $$ >/sys/fs/cgroup/web/cgroup.procs; exec /bin/busybox nc -ll -p 7091 -e /bin/busybox cat' \
         >/dev/console 2>&1 </dev/null &",
    );
    wait_until("somebody listens", SOON, || ask(&scene, "netstat -ltn").contains(":7091 "));
    let served = echoing(&scene, 7091);
    ask(&scene, "/bin/holdfast-guest run --cgroup web >/dev/console 2>&1 </dev/null &");
    wait_present(&scene);
    counts(&scene, 1, 0);
    let more = [echoing(&scene, 7091), echoing(&scene, 7091)];
    drop(echoing(&scene, 7002));
    counts(&scene, 1, 2);
    ask(&scene, "killall holdfast-guest");
    wait_no_trace(&scene);
    drop((served, more));
    before.finish_exact();
    after.finish_exact();
    all_is_well(&mut scene);
}

/// Ports and a control group are chosen, on Linux 6.1.
#[test]
fn only_chosen_connections_get_the_congestion_control() {
    if !can() || !can_run(&[Need::Agent]) {
        return;
    }
    chooses(agent_options("aware", carrying), seed(405));
}

/// As above, on Linux 6.12.
#[test]
fn only_chosen_connections_get_the_congestion_control_on_linux_6_12() {
    if !can() || !can_run(&[Need::Agent, Need::NewerKernel]) {
        return;
    }
    chooses(agent_options("aware", carrying_on_newer_kernel), seed(406));
}

fn survives(options: PairOptions, seed: u64) {
    let mut scene = Scene::ready(options, seed);
    wait_congestion_control(&scene, "holdfast");
    let before = status(&scene);
    assert_eq!((&before["state"], &before["interfaces"]), (&json!("present"), &json!(["eth0"])), "{before}");
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    // The agent writes its status once a second, while the streams flow on.
    let count = |status: &Value, name: &str| status["counters"][name].as_u64().expect("a number");
    wait_until("flows are open and hear Holdfast's ACKs", SOON, || {
        count(&status(&scene), "in_time_acks") >= count(&before, "in_time_acks") + 100
    });
    // A busy machine makes ACKs late for a while: not for ever, of a hundred that follow each other most come in time.
    let mut since = before.clone();
    wait_until("most ACKs come in time", SOON, || {
        let now = status(&scene);
        let [in_time, late] =
            ["in_time_acks", "late_acks"].map(|name| count(&now, name) - count(&since, name));
        let is_enough = in_time + late >= 100;
        if is_enough {
            since = now;
        }
        is_enough && in_time > late
    });
    let flowing = status(&scene);
    println!("{}: {flowing}", ask(&scene, "uname -r"));
    // A flow may be left for late ACKs and opened again; losses there are none.
    for left in ["left_loss_flows", "left_ecn_flows"] {
        assert_eq!(count(&flowing, left), 0, "{flowing}");
    }
    assert!(count(&flowing, "opened_flows") >= 2, "{flowing}");

    scene.pair.kill(Victim::Host, 0).expect("killed");
    println!("{}", scene.taken_over(VM));
    streams.flow(SOME);
    // The mode came with the guest. The same agent is in it; alone, host B does not speculate, and the agent gives way.
    assert_eq!(scene.pair.b.vm(VM).expect("a status")["mode"], "aware");
    wait_congestion_control(&scene, "cubic");
    let after = status(&scene);
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &json!("absent")), "{after}");
    assert!(after["reason"].as_str().is_some_and(|reason| reason.contains("not protected")), "{after}");
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);

    all_is_well_after_the_move(&mut scene);
}

/// SP-3: the stream of a guest with the agent stays exact across a failover, which the agent survives with its
/// guest.
#[test]
fn an_aware_guest_survives_the_loss_of_its_host() {
    if !can() || !can_run(&[Need::Agent]) {
        return;
    }
    survives(agent_options("aware", aware), seed(401));
}

/// SP-3: as above, on Linux 6.12.
#[test]
fn an_aware_guest_of_linux_6_12_survives_the_loss_of_its_host() {
    if !can() || !can_run(&[Need::Agent, Need::NewerKernel]) {
        return;
    }
    survives(agent_options("aware", aware_on_newer_kernel), seed(402));
}

fn wait_reason(scene: &Scene, words: &str) {
    wait_until(&format!("a reason: {words}"), SOON, || status(scene)["reason"].to_string().contains(words));
}

/// The agent comes and goes with mode aware, by itself: the operator of the host chooses, not the guest.
#[test]
fn the_agent_attaches_only_in_mode_aware() {
    if !can() || !can_run(&[Need::Agent]) {
        return;
    }
    let mut scene = Scene::ready(agent_options("commit", aware), seed(403));
    wait_reason(&scene, "mode commit");
    let heard = scene.pair.a.vm(VM).expect("a status")["agent"].clone();
    assert_eq!(heard["state"], "present", "{heard}");
    assert_eq!(congestion_control(&scene), "cubic");
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    for _ in 0..2 {
        set_mode(&scene, "aware");
        wait_congestion_control(&scene, "holdfast");
        streams.flow(SOME);
        set_mode(&scene, "speculative");
        wait_congestion_control(&scene, "cubic");
        wait_reason(&scene, "has not asked for an agent");
        streams.flow(SOME);
        set_mode(&scene, "aware");
        wait_congestion_control(&scene, "holdfast");
        set_mode(&scene, "commit");
        wait_congestion_control(&scene, "cubic");
        streams.flow(SOME);
    }
    let counters = &status(&scene)["counters"];
    assert!(
        counters["moved_sockets"].as_u64() >= Some(16),
        "two streams, there and back, four times: {counters}"
    );
    streams.finish_exact();
    all_is_well(&mut scene);
}

/// Ended or killed, the agent leaves nothing behind in the guest, whose connections go on.
#[test]
fn the_agent_leaves_no_trace() {
    if !can() || !can_run(&[Need::Agent]) {
        return;
    }
    let mut scene = Scene::ready(agent_options("aware", aware), seed(404));
    wait_congestion_control(&scene, "holdfast");
    let probed = ask(&scene, "/bin/holdfast-guest probe; echo exit $?");
    assert!(probed.ends_with("exit 0") && probed.contains("Holdfast answers: mode aware"), "{probed}");
    let refused =
        ask(&scene, "mkdir -p /tmp/old/sys/kernel; /bin/holdfast-guest probe --root /tmp/old; echo exit $?");
    assert!(refused.ends_with("exit 3") && refused.contains("CONFIG_DEBUG_INFO_BTF=y"), "{refused}");
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    let programs: u32 = ask(&scene, "grep -c _holdfast_ /proc/kallsyms").parse().expect("a number");
    assert!(programs >= 8, "{programs} programs");
    ask(&scene, &format!("kill {}", status(&scene)["pid"]));
    wait_no_trace(&scene);
    streams.flow(SOME);

    let start = "/bin/holdfast-guest run >/dev/console 2>&1 </dev/null &";
    ask(&scene, start);
    wait_congestion_control(&scene, "holdfast");
    streams.flow(SOME);
    ask(&scene, &format!("kill -9 {}", status(&scene)["pid"]));
    assert_eq!(congestion_control(&scene), "holdfast", "nobody was there to undo it");
    streams.flow(SOME);
    assert_eq!(ask(&scene, "/bin/holdfast-guest undo"), "undone");
    wait_no_trace(&scene);
    streams.flow(SOME);
    is_refused_without_btf(&scene);
    streams.flow(SOME);
    streams.finish_exact();
    all_is_well(&mut scene);
}

/// Where the kernel's types are not to be seen the agent neither runs nor is installed, and nothing is changed.
fn is_refused_without_btf(scene: &Scene) {
    let installed = || ask(scene, "find /usr/local /etc/systemd -name 'holdfast*' 2>/dev/null | wc -l");
    ask(scene, "mkdir /tmp/none; mount --bind /tmp/none /sys/kernel/btf");
    for command in ["run", "install"] {
        let refused = ask(scene, &format!("/bin/holdfast-guest {command} 2>&1; echo exit $?"));
        let says = refused.contains("/sys/kernel/btf/vmlinux is missing") && refused.contains("mend: ");
        assert!(says && refused.ends_with("exit 3"), "{command}: {refused}");
        wait_no_trace(scene);
        assert_eq!(installed(), "0");
    }
    ask(scene, "umount /sys/kernel/btf");
    let done = ask(scene, "/bin/holdfast-guest install 2>&1; echo exit $?");
    assert!(done.ends_with("exit 0"), "{done}");
    assert_eq!(installed(), "3", "the program, its unit, and that it is wanted");
    ask(scene, "/bin/holdfast-guest uninstall");
    assert_eq!(installed(), "0");
}

/// A flow that Holdfast does not hold gives itself away by its ACKs, with epochs of fixed length and with adaptive
/// ones, whose commits come soon: it is left to Reno, and stays so. One that is held hears most of them in time.
#[test]
fn a_flow_that_is_not_held_is_left() {
    if !can() || !can_run(&[Need::Agent]) {
        return;
    }
    let mut options = agent_options("aware", aware);
    options.epoch_ms = 50;
    let mut scene = Scene::ready(options, seed(421));
    wait_present(&scene);
    let ask_host = |request: Value| scene.pair.a.ask(&request).expect("a change");
    let count = |name: &str| status(&scene)["counters"][name].as_u64().expect("a number");
    let acks = || (count("in_time_acks"), count("late_acks"));
    for policy in ["fixed", "adaptive"] {
        ask_host(json!({"command": "epoch", "vm": VM, "epoch_ms": 50, "epoch_policy": policy}));
        let before = acks();
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(16 * SOME);
        // Written once a second.
        wait_until("ACKs are counted", SOON, || acks().0 + acks().1 >= before.0 + before.1 + 200);
        let (in_time, late) = acks();
        let (in_time, late) = (in_time - before.0, late - before.1);
        println!("held, epochs {policy}: {in_time} ACKs in time, {late} late: {}", status(&scene));
        assert!(in_time * 2 > late, "{in_time} in time, {late} late");
        streams.finish_exact();
    }
    ask_host(json!({"command": "except", "vm": VM, "except": ["7001"]}));
    let left = || count("left_late_flows");
    for policy in ["fixed", "adaptive"] {
        ask_host(json!({"command": "epoch", "vm": VM, "epoch_ms": 50, "epoch_policy": policy}));
        let before = left();
        let spec = TransferSpec {
            guest: guest_ip(1).into(),
            seed: 1,
            bytes: 64 << 10,
            setup: false,
            most: 12,
            time: SOON,
            rest: Duration::ZERO,
            pause: Duration::from_millis(50),
        };
        // The agent asks, and writes, once a second: it has to hear how soon commits are now.
        wait_until(&format!("a flow is left, epochs {policy}"), SOON, || {
            assert!(scene.client().transfers(&spec).expect("transfers").exact);
            left() > before
        });
        println!("not held, epochs {policy}: {}", status(&scene));
    }
    all_is_well(&mut scene);
}
