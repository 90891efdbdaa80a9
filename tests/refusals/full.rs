//! A backup whose memory or disk runs full.

use crate::daemon::SOON;
use crate::place::{MEMORY_MIB, Place, Plan};
use holdfast_lab::client::{Amount, Session};
use holdfast_lab::guest::Guest;
use holdfast_lab::process::run_tool;
use std::fs;

/// No room for the line of a commit, or for the record of an epoch: nothing is committed, both hosts say
/// why, and the guest runs on with an exact stream. When room is made, by nothing but that, it is protected;
/// when that is used up again, the guest that was protected runs on alone until there is room once more.
/// A machine beside it is protected all the while.
#[test]
fn a_backup_that_is_full_commits_nothing_until_there_is_room() {
    let Some(mut place) = Place::new("full") else { return };
    let sound = place.plan("sound");
    let (mut no_line, mut no_record) = (place.plan("no-line"), place.plan("no-record"));
    let (disk, memory) = (place.scratch.memory("disk"), place.scratch.memory("memory"));
    no_line.on_b.backup().commit_log = disk.join("commits");
    no_record.on_b.backup().move_image(memory.join("image"));
    let plans = [&sound, &no_line, &no_record];
    let (on_a, on_b) = place.files(&plans);

    // In a mount namespace of host B's Holdfast, so that they end with it.
    let (small, tight) = ("size=64k", format!("size={}k", (MEMORY_MIB << 10) + 64));
    let mut mounts =
        format!("mkdir {0} {1} && mount -t tmpfs -o {small} none {0}", disk.display(), memory.display());
    mounts += &format!(" && mount -t tmpfs -o {tight} none {}", memory.display());
    mounts += &format!(" && {{ head -c 1M /dev/zero > {}/full 2> /dev/null || true; }}", disk.display());
    let b = place.launch(&place.topology.b, &on_b, Some(&mounts)).ready();
    let a = place.start(&place.topology.a, &on_a);
    let mut guests: Vec<Guest> = plans.iter().map(|plan| place.boot(plan)).collect();
    for guest in &mut guests {
        guest.wait_ready(SOON).expect("a guest that is up");
    }
    a.wait_state("sound", "protected");
    let stream = |plan: &&Plan| place.stream(plan.nic, Amount::UntilStopped);
    let streams: Vec<Session> = plans.iter().map(stream).collect();

    let said: [(&str, &[&str]); 2] = [
        ("no-line", &["the commit log", "cannot be written", "No space left", "mend: free some"]),
        ("no-record", &["no room for an epoch's record", "No space left", "larger size"]),
    ];
    for (name, parts) in said {
        assert_eq!(b.wait_trouble(name, parts)["trouble"]["fault"], "host");
        a.wait_trouble(name, parts);
        assert!(!a.vm(name)["committed_epoch"].is_number(), "{name}");
    }
    for (plan, stream) in plans.iter().zip(&streams) {
        let before = stream.bytes();
        place.exchange(plan.nic);
        assert!(stream.bytes() > before && !stream.is_finished(), "{}", plan.spec.name);
    }
    let sessions = a.vm("sound")["link"]["sessions"].clone();
    assert_eq!(a.vm("sound")["state"], "protected");

    let inside = |command: &[&str]| {
        let pid = b.process.pid().to_string();
        let arguments = [&["--target", &pid, "--mount", "--"], command].concat();
        run_tool(None, "nsenter", &arguments).expect("done in host B's mounts");
    };
    inside(&["mount", "-o", "remount,size=1G", &memory.display().to_string()]);
    inside(&["rm", &disk.join("full").display().to_string()]);
    for plan in plans {
        a.wait_state(&plan.spec.name, "protected");
    }

    let fill = format!("head -c 1M /dev/zero > {}/full 2> /dev/null || true", disk.display());
    inside(&["sh", "-c", &fill]);
    let solo = a.wait("no-line", "alone", |status| status["state"] == "solo");
    assert!(solo["trouble"]["text"].as_str().is_some_and(|text| text.contains("commit log")), "{solo}");
    assert_eq!(a.vm("no-record")["state"], "protected", "only one of the two is full");
    place.exchange(no_line.nic);
    inside(&["rm", &disk.join("full").display().to_string()]);
    a.wait_state("no-line", "protected");
    assert_eq!(a.vm("sound")["link"]["sessions"], sessions, "the machine beside them was left alone");
    for stream in streams {
        stream.stop();
        let report = stream.finish();
        println!("longest gap {:?}", report.max_gap);
        assert!(report.exact() && report.bytes > 0, "{report:?}");
    }
    drop(a);
    b.stop();
    for folder in [&disk, &memory] {
        assert_eq!(fs::read_dir(folder).expect("a folder").count(), 0, "a mount was left behind");
    }
}
