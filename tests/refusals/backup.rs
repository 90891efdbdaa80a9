//! What is wrong on the backup's side.

use crate::daemon::SOON;
use crate::place::{MEMORY_MIB, Place, Plan};
use crate::settings::HostFile;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::client::{Amount, Session};
use holdfast_lab::guest::{Guest, GuestSpec};
use std::fs;

/// A spoilt part of host B's file, and what host A and host B say of that VM.
struct Spoilt {
    plan: Plan,
    spoil: fn(&Place, &mut HostFile),
    on_a: &'static [&'static str],
    on_b: &'static [&'static str],
}

/// First the hosts have keys of different pairs; then one VM each has another fault in host B's file,
/// beside a sound one; then all is mended, by nothing but new starts of host B's Holdfast. Meanwhile every
/// guest runs on with exact streams, and the sound one is protected as soon as the keys are right.
#[test]
fn faults_on_the_backup_leave_the_guests_unprotected_until_they_are_mended_there() {
    let Some(mut place) = Place::new("backup") else { return };
    // A disk whose contents the operator answers for.
    let disk = place.scratch.file("disk");
    fs::write(&disk, vec![0; 1 << 20]).expect("written");
    let drive = format!("file={},format=raw,if=virtio", disk.display());
    let with_disk = |spec: &mut GuestSpec| spec.arguments.extend(["-drive".to_owned(), drive]);
    let mut sound = place.plan_with("sound", Qemu::system().expect("a QEMU"), with_disk);
    sound.on_a.lines = "accept_unreplicated_disks = true".into();
    let spoilt = [
        Spoilt {
            plan: place.plan("other-size"),
            spoil: |_, file| {
                let backup = file.vm("other-size").backup();
                // Of one mind with itself, and not with the guest.
                let (whole, half) = (format!("{MEMORY_MIB}M"), format!("{}M", MEMORY_MIB / 2));
                for word in &mut backup.command {
                    *word = word.replace(&format!("size={whole},"), &format!("size={half},"));
                    if *word == whole {
                        word.clone_from(&half);
                    }
                }
                backup.memory = half;
            },
            on_a: &["refuses", "134217728 bytes", "67108864", "`memory` in [vm.backup]"],
            on_b: &["67108864", "`memory` in [vm.backup]"],
        },
        Spoilt {
            plan: place.plan("no-program"),
            spoil: |_, file| file.vm("no-program").backup().command[0] = "/no/such/qemu".into(),
            on_a: &["refuses", "standby", "/no/such/qemu", "install QEMU or correct the standby's command"],
            on_b: &["no standby", "/no/such/qemu", "install QEMU or correct the standby's command"],
        },
        Spoilt {
            plan: place.plan("ends-at-once"),
            spoil: |_, file| file.vm("ends-at-once").backup().command.push("-no-such-option".into()),
            on_a: &["refuses", "standby", "-no-such-option"],
            on_b: &["no standby", "has ended", "-no-such-option"],
        },
        Spoilt {
            plan: place.plan("other-machine"),
            spoil: |_, file| {
                let command = &mut file.vm("other-machine").backup().command;
                command.extend(["-device".to_owned(), "virtio-rng-pci".to_owned()]);
            },
            on_a: &["refuses", "another machine than the guest", "1af4:1005", "; the guest is pc-i440fx"],
            on_b: &["another machine than the guest", "mend: give the standby's command", "1af4:1005"],
        },
        Spoilt {
            plan: place.plan("other-bounds"),
            spoil: |_, file| {
                let bounds = "[vm.speculation]\nescrow_mib = 8\nflow_mib = 8";
                file.vm("other-bounds").lines = bounds.into();
            },
            on_a: &[
                "refuses",
                "escrow_mib is 64 there and 8 on the backup",
                "in [vm.speculation] the same on both",
            ],
            on_b: &[
                "escrow_mib is 64 there and 8 on the backup",
                "make `escrow_mib` in [vm.speculation] the same",
            ],
        },
        Spoilt {
            plan: place.plan("other-queues"),
            spoil: |_, file| file.vm("other-queues").nic_lines = "queue_pairs = 2".into(),
            on_a: &["refuses", "queue_pairs is 1 on the primary and 2 on the backup", "[[vm.nic]] the same"],
            on_b: &[
                "queue_pairs is 1 on the primary and 2 on the backup",
                "make `queue_pairs` of its [[vm.nic]]",
            ],
        },
        Spoilt {
            plan: place.plan("no-room"),
            spoil: |place, file| {
                file.vm("no-room").backup().move_image(place.scratch.memory("small/image"));
            },
            on_a: &["refuses", "no room for 134217728 bytes", "remount,size"],
            on_b: &["no room for 134217728 bytes", "remount,size"],
        },
    ];
    place.make_keys("keys-other-a", "keys-other-b");
    let plans: Vec<&Plan> = std::iter::once(&sound).chain(spoilt.iter().map(|spoilt| &spoilt.plan)).collect();
    let (on_a, on_b) = place.files(&plans);

    let mut wrong_keys = on_b.clone();
    wrong_keys.keys = place.scratch.file("keys-other-b");
    let b = place.start(&place.topology.b, &wrong_keys);
    let a = place.start(&place.topology.a, &on_a);
    let mut guests: Vec<Guest> = plans.iter().map(|plan| place.boot(plan)).collect();
    for guest in &mut guests {
        guest.wait_ready(SOON).expect("a guest that is up");
    }
    let streams: Vec<Session> =
        plans.iter().take(2).map(|plan| place.stream(plan.nic, Amount::UntilStopped)).collect();
    for plan in &plans {
        let status = a.wait_trouble(&plan.spec.name, &["10.98.0.2:7400", "keys", "holdfast keys"]);
        assert_eq!(status["state"], "native");
    }
    let told = b.command(&["status"]);
    told.expect("the backup's status", 0, &["replication on 10.98.0.2:7400", "with other keys"]);
    b.stop();

    // An image of another size than the one that is there already.
    let mut on_b = on_b;
    on_b.vm("other-size").backup().move_image(place.scratch.memory("other-size.half"));
    let mut faulty = on_b.clone();
    spoilt.iter().for_each(|spoilt| (spoilt.spoil)(&place, &mut faulty));
    let tmpfs = place.scratch.memory("small");
    fs::create_dir_all(&tmpfs).expect("a folder");
    let mounts = format!("mount -t tmpfs -o size={}M none {}", MEMORY_MIB / 2, tmpfs.display());
    let b = place.launch(&place.topology.b, &faulty, Some(&mounts)).ready();
    a.wait_state("sound", "protected");
    for Spoilt { plan, on_a, on_b, .. } in &spoilt {
        let name = &plan.spec.name;
        b.wait_trouble(name, on_b);
        let status = a.wait_trouble(name, on_a);
        assert_eq!(status["state"], "native", "{name}");
        place.exchange(plan.nic);
    }
    assert_eq!(a.vm("sound")["state"], "protected");
    b.stop();

    // The image of the wrong size is the operator's to remove, as the error says.
    let b = place.start(&place.topology.b, &on_b);
    b.wait_trouble("other-size", &["has 67108864 bytes", "remove the file if the guest was resized"]);
    fs::remove_file(place.scratch.memory("other-size.half")).expect("removed");
    for plan in &plans {
        a.wait_state(&plan.spec.name, "protected");
        b.wait_state(&plan.spec.name, "ready");
    }
    for stream in streams {
        stream.stop();
        let report = stream.finish();
        assert!(report.exact() && report.bytes > 0, "{report:?}");
    }
    drop(a);
    b.stop();
}
