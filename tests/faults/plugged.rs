//! Devices are plugged into a protected guest, and taken out again.

use crate::{SOME, can, in_both_modes};
use holdfast_lab::monitor::{Monitor, MonitorError};
use holdfast_lab::pair::Victim;
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{READY, SOON, Scene, Streams, VM, options, wait_state, wait_status, wait_until};
use serde_json::{Value, json};
use std::fs;

/// Plugs a device in under load: protection ends with a reason, and the streams go on.
fn plug_in(scene: &Scene, monitor: &mut Monitor, streams: &Streams, device: &Value, found: &str) {
    // QEMU lets nobody do so while a checkpoint is made.
    wait_until("a moment between checkpoints", SOON, || {
        match monitor.execute("device_add", device.clone()) {
            Ok(_) => true,
            Err(MonitorError::Refused { answer, .. }) if answer.contains("while migrating") => false,
            Err(fault) => panic!("{fault}"),
        }
    });
    let status = wait_status(&scene.pair.a, VM, "native, with the reason", |status| {
        status["state"] == "native" && status["trouble"]["text"].as_str().is_some_and(|it| it.contains(found))
    });
    println!("{}", status["trouble"]["text"]);
    assert_eq!(
        (&status["protect"], &status["trouble"]["fault"]),
        (&json!(false), &json!("operator")),
        "{status}"
    );
    let text = status["trouble"]["text"].as_str().expect("a text");
    assert!(text.contains("mend: ") && text.ends_with("then `holdfast protect guest`"), "{text}");
    streams.flow(SOME / 4);
}

/// Takes it out, and what it was made of; the guest can be protected from then on.
fn take_out(scene: &Scene, monitor: &mut Monitor, streams: &Streams, rest: Option<(&str, Value)>) {
    monitor.events().expect("events");
    monitor.execute("device_del", json!({ "id": "new" })).expect("asked for");
    wait_until("the device's end", READY, || {
        monitor.events().expect("events").iter().any(|event| event == "DEVICE_DELETED")
    });
    if let Some((command, arguments)) = rest {
        monitor.execute(command, arguments).expect("removed");
    }
    Scene::ask(&scene.pair.a, "protect", VM).expect("wanted again");
    wait_state(&scene.pair.a, VM, "protected");
    streams.flow(SOME / 4);
}

/// CK-1, OC-1, SP-3: a device that the standby has not ends protection before a checkpoint with it is committed,
/// and no stream is harmed; without it the guest is protected anew, and outlives its host.
#[test]
fn a_device_plugged_in_under_load_ends_protection_and_harms_no_stream() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(217));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME);
        let mut monitor = scene.pair.guests[0].monitor().expect("a monitor");
        let device = json!({ "driver": "virtio-rng-pci", "id": "new" });
        plug_in(&scene, &mut monitor, &streams, &device, "virtio-rng-pci (new) was plugged in");
        take_out(&scene, &mut monitor, &streams, None);
        scene.pair.kill(Victim::Host, 0).expect("killed");
        scene.taken_over(VM);
        streams.flow(SOME);
        assert!(streams.finish_exact() < GAP_BUDGET);
        all_is_well_after_the_move(&mut scene);
    });
}

/// As above, of what could not be protected at all: memory, a disk, a network card that bypasses Holdfast. As long
/// as it is there the guest is not protected, whoever asks.
#[test]
fn what_cannot_be_protected_and_is_plugged_in_ends_protection() {
    if !can() {
        return;
    }
    let mut options = options("speculative");
    options.shape = |spec| {
        spec.arguments.extend(["-m", "slots=2,maxmem=1G", "-usb"].map(str::to_owned));
    };
    let mut scene = Scene::ready(options, seed(218));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    let mut monitor = scene.pair.guests[0].monitor().expect("a monitor");
    let disk = scene.pair.scratch.file("new.disk");
    fs::write(&disk, vec![0; 1 << 20]).expect("a disk's file");
    let memory = scene.pair.scratch.memory("new.ram");
    let memory = json!({
        "qom-type": "memory-backend-file", "id": "memory", "size": 128 << 20, "share": true, "mem-path": memory,
    });
    let disk = json!({ "driver": "file", "node-name": "disk", "filename": disk });
    let network = json!({ "type": "user", "id": "network" });
    let devices = [
        ("usb-tablet", json!({}), "usb-tablet (new) was plugged in", None),
        ("virtio-blk-pci", json!({ "drive": "disk" }), "can write to disk", Some(("blockdev-add", disk))),
        (
            "virtio-net-pci",
            json!({ "netdev": "network" }),
            "does not pass through",
            Some(("netdev_add", network)),
        ),
        ("pc-dimm", json!({ "memdev": "memory" }), "a second piece of memory", Some(("object-add", memory))),
    ];
    for (driver, mut device, found, before) in devices {
        if let Some((command, arguments)) = before {
            monitor.execute(command, arguments).expect("made");
        }
        device["driver"] = json!(driver);
        device["id"] = json!("new");
        plug_in(&scene, &mut monitor, &streams, &device, found);
        if driver != "usb-tablet" {
            Scene::ask(&scene.pair.a, "protect", VM).expect("wanted");
            wait_status(&scene.pair.a, VM, "refused", |status| {
                let text = status["trouble"]["text"].as_str().unwrap_or_default();
                text.starts_with("this guest cannot be protected") && text.contains(found)
            });
        }
        let away = match driver {
            "virtio-blk-pci" => Some(("blockdev-del", json!({ "node-name": "disk" }))),
            "virtio-net-pci" => Some(("netdev_del", json!({ "id": "network" }))),
            "pc-dimm" => Some(("object-del", json!({ "id": "memory" }))),
            _ => None,
        };
        take_out(&scene, &mut monitor, &streams, away);
    }
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);
    all_is_well_after_the_move(&mut scene);
}
