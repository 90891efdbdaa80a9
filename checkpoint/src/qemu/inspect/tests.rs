use super::*;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

#[test]
fn only_connected_backends_count_as_network() {
    let shown = "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n \
                 \\ n0: index=0,type=vhost-user,vhost-user0 to chr0\r\n\
                 e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57\r\n \
                 \\ u: index=0,type=user,net=10.0.2.0,restrict=off\r\n\
                 idle: index=0,type=tap,ifname=tap0\r\n\
                 hub 0\r\n \\ hub0port1: t1: index=0,type=tap,ifname=tap1\r\n";
    let found: Vec<_> = backends_in(shown).collect();
    assert_eq!(
        found,
        [
            Backend { name: "n0", kind: "vhost-user", chardev: "chr0" },
            Backend { name: "u", kind: "user", chardev: "" },
            Backend { name: "t1", kind: "tap", chardev: "" },
        ]
    );
}

/// Serves one client with QEMU's answers, by command and its first argument; the rest is `{}`.
fn monitor(answers: &'static [(&'static str, &'static str, &'static str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let greeting =
            r#"{"QMP": {"version": {"qemu": {"micro": 8, "minor": 0, "major": 10}}, "capabilities": []}}"#;
        writeln!(stream, "{greeting}\r").unwrap();
        let reader = stream.try_clone().unwrap();
        let commands = serde_json::Deserializer::from_reader(reader).into_iter::<Value>();
        for command in commands.map_while(Result::ok) {
            let argument =
                ["path", "command-line"].map(|name| text(&command["arguments"][name]).to_owned()).concat();
            let known = answers
                .iter()
                .find(|(name, of, _)| command["execute"] == *name && *of == argument)
                .map_or(json!({}), |(.., answer)| serde_json::from_str(answer).unwrap());
            let reply = json!({ "return": known, "id": command["id"] });
            // A client that has seen enough closes the connection.
            if writeln!(stream, "{reply}\r").is_err() {
                return;
            }
        }
    });
    (dir, path)
}

/// A card of the host's in the guest, in the words in which QEMU describes it: no VFIO is needed to try this.
#[test]
fn a_guest_with_a_card_of_the_hosts_is_refused() {
    let (_dir, path) = monitor(&[
        ("query-status", "", r#"{"running": true, "status": "running"}"#),
        (
            "query-migrate",
            "",
            r#"{"blocked-reasons": ["0000:3b:00.1: VFIO migration is not supported in kernel"]}"#,
        ),
        (
            "qom-list",
            "/machine/peripheral",
            r#"[{"name": "type", "type": "string"}, {"name": "nic0", "type": "child<virtio-net-pci>"},
                {"name": "card", "type": "child<vfio-pci>"}]"#,
        ),
        (
            "qom-list",
            "/machine/peripheral-anon",
            r#"[{"name": "type", "type": "string"}, {"name": "device[0]", "type": "child<vfio-pci-nohotplug>"}]"#,
        ),
    ]);
    let mut qemu = Qemu::connect(&path, Duration::from_secs(20)).unwrap();
    let Err(InspectError::Refused(refusals)) = qemu.inspect(&InspectSettings::default()) else {
        panic!("a refusal was due")
    };
    let of = |kind| refusals.iter().filter(move |refusal| refusal.kind == kind).collect::<Vec<_>>();
    let devices = of(RefusalKind::HostDevice);
    assert_eq!(devices.len(), 2, "{refusals:?}");
    assert!(devices[0].found.contains("vfio-pci (card) is a device of this host"), "{devices:?}");
    assert!(devices[1].found.contains("device[0]") && devices[1].mend.contains("virtio"), "{devices:?}");
    assert!(of(RefusalKind::MigrationBlocked)[0].found.contains("0000:3b:00.1"), "{refusals:?}");
}

/// What the two hosts compare tells a card of several queues from one of one.
#[test]
fn a_network_of_several_queues_is_told_from_one_of_one() {
    let (_dir, path) = monitor(&[(
        "human-monitor-command",
        "info network",
        r#""nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n \\ net0: index=0,type=vhost-user,vhost-user0 to c0\r\n \\ net0: index=1,type=vhost-user,vhost-user1 to c0\r\nnic1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\r\n \\ net1: index=0,type=vhost-user,vhost-user2 to c1\r\n""#,
    )]);
    let mut qemu = Qemu::connect(&path, Duration::from_secs(20)).unwrap();
    assert_eq!(qemu.network_kinds().unwrap(), ["vhost-user of 2 queues", "vhost-user"]);
}
