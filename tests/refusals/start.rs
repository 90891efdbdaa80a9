//! What `holdfast run` refuses before it starts anything.

use crate::daemon::run;
use crate::place::Place;
use crate::settings::HostFile;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

/// A case: its name, how a sound file or its host is spoilt, and what must be said.
type Case = (&'static str, fn(&Place, &mut HostFile), &'static [&'static str]);

/// The folder that a case spoils.
fn own_folder(place: &Place) -> std::path::PathBuf {
    let folder = place.scratch.file("spoilt");
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Host A's keys, copied to be spoilt.
fn own_keys(place: &Place) -> std::path::PathBuf {
    let (from, to) = (place.scratch.file("keys-a"), own_folder(place));
    for name in ["own.key", "own.crt", "peer.crt"] {
        fs::copy(from.join(name), to.join(name)).expect("copied with its mode");
    }
    to
}

/// Each of these ends the program at once with exit code 2 and says which key, what is wrong, and the mend.
#[test]
fn a_configuration_that_cannot_be_run_is_refused_with_its_key_and_mend() {
    let Some(mut place) = Place::new("start") else { return };
    let plan = place.plan("web");
    let cases: &[Case] = &[
        (
            "the vhost-user socket's path is a file",
            |place, file| {
                let path = own_folder(place).join("file");
                fs::write(&path, "precious").expect("written");
                file.vm("web").sockets[0] = path;
            },
            &["vm[0].nic[0].socket", "is not a socket", "mend: remove it, or name another path"],
        ),
        (
            "the vhost-user socket's folder is missing",
            |place, file| file.vm("web").sockets[0] = place.scratch.file("no/such/folder/nic"),
            &["vm[0].nic[0].socket", "is not there", "mend: mkdir -p"],
        ),
        (
            "the group of the vhost-user socket does not exist",
            |_, file| file.vm("web").nic_lines = "socket_group = \"nobodys\"\n".into(),
            &["vm[0].nic[0].socket_group", "no group 'nobodys'", "mend: ", "getent group"],
        ),
        (
            "the wire's interface does not exist",
            |_, file| file.iface = "nowhere0".into(),
            &["wire[0].iface", "no interface nowhere0", "mend: ", "ip link"],
        ),
        (
            "the arbiter's directory is missing",
            |place, file| file.arbiter = place.scratch.file("not-mounted"),
            &["arbiter.directory", "not-mounted", "mend: mount the filesystem"],
        ),
        (
            "the arbiter's directory is a file",
            |place, file| {
                file.arbiter = own_folder(place).join("file");
                fs::write(&file.arbiter, "precious").expect("written");
            },
            &["arbiter.directory", "it is no folder"],
        ),
        (
            "the address to listen on is not of this host",
            |_, file| file.listen = "10.97.0.1:7400".into(),
            &["replication.listen", "10.97.0.1:7400", "mend: an address of this host"],
        ),
        (
            "the control socket's path is a file",
            |place, file| {
                file.control = own_folder(place).join("file");
                fs::write(&file.control, "precious").expect("written");
            },
            &["host.control_socket", "is not a socket", "mend: "],
        ),
        (
            "the keys are missing",
            |place, file| file.keys = place.scratch.file("no-keys"),
            &["replication.keys", "no-keys/own.key", "holdfast keys"],
        ),
        (
            "one of the keys is missing",
            |place, file| {
                file.keys = own_keys(place);
                fs::remove_file(file.keys.join("peer.crt")).expect("removed");
            },
            &["replication.keys", "peer.crt", "holdfast keys"],
        ),
        (
            "the private key can be read by others",
            |place, file| {
                file.keys = own_keys(place);
                let open = fs::Permissions::from_mode(0o644);
                fs::set_permissions(file.keys.join("own.key"), open).expect("set");
            },
            &["replication.keys", "can be read by others (mode 644)", "chmod 600"],
        ),
        (
            "the own certificate stands in the place of the peer's",
            |place, file| {
                file.keys = own_keys(place);
                fs::copy(file.keys.join("own.crt"), file.keys.join("peer.crt")).expect("copied");
            },
            &["replication.keys", "this host's own certificate", "copy the other host's own.crt"],
        ),
        (
            "the private key is not that of the certificate",
            |place, file| {
                file.keys = own_keys(place);
                let other = place.scratch.file("keys-b").join("own.key");
                fs::copy(other, file.keys.join("own.key")).expect("copied");
            },
            &["replication.keys", "cannot be used", "copy the whole folder"],
        ),
        (
            "a processor that is not there is named",
            |_, file| file.head = "[cores]\npolling = [1000]\n".into(),
            &["cores.polling[0]", "processor 1000", "mend: name one of"],
        ),
        (
            "several things at once",
            |place, file| {
                file.iface = "nowhere0".into();
                file.arbiter = place.scratch.file("not-mounted");
                file.keys = place.scratch.file("no-keys");
                file.vm("web").sockets[0] = place.scratch.file("no/such/folder/nic");
            },
            &["4 faults", "wire[0].iface", "arbiter.directory", "replication.keys", "vm[0].nic[0].socket"],
        ),
    ];
    for (case, spoil, parts) in cases {
        let (mut file, _) = place.files(&[&plan]);
        spoil(&place, &mut file);
        place.launch(&place.topology.a, &file, None).ended().expect(case, 2, parts);
        let precious = place.scratch.file("spoilt").join("file");
        if precious.exists() {
            assert_eq!(fs::read_to_string(&precious).expect("text"), "precious", "{case}");
        }
        assert!(!place.scratch.file("a.control").exists(), "{case} leaves its control socket behind");
    }
}

/// What another process holds is left to it, and named.
#[test]
fn what_another_process_has_is_left_to_it() {
    let Some(mut place) = Place::new("taken") else { return };
    let (first, second) = (place.plan("first"), place.plan("second"));
    let (mine, _) = place.files(&[&first]);
    let running = place.start(&place.topology.a, &mine);
    running.wait_state("first", "awaiting-guest");
    // A Holdfast beside the first, on the same host; the cases let it get in the way.
    let (mut sound, _) = place.files(&[&second]);
    sound.file_prefix.push('x');
    sound.control.set_extension("second");
    sound.listen = sound.listen.replace("7400", "7401");
    let listener = UnixListener::bind(place.scratch.file("somebody")).expect("bound");
    let cases: &[Case] = &[
        (
            "another Holdfast has the control socket",
            |place, file| file.control = place.scratch.file("a.control"),
            &["host.control_socket", "another Holdfast answers on", "mend: "],
        ),
        (
            "another Holdfast has the vhost-user socket",
            |place, file| file.vm("second").sockets[0] = place.scratch.file("a.nic1"),
            &["vm[0].nic[0].socket", "served by another process", "mend: end that process"],
        ),
        (
            "something else listens on the vhost-user socket",
            |place, file| file.vm("second").sockets[0] = place.scratch.file("somebody"),
            &["vm[0].nic[0].socket", "served by another process", "mend: end that process"],
        ),
        (
            "the replication port is in use",
            |_, file| file.listen = file.listen.replace("7401", "7400"),
            &[
                "replication.listen",
                "in use",
                "mend: an address of this host, on a port that nothing else uses",
            ],
        ),
    ];
    for (case, spoil, parts) in cases {
        let mut file = sound.clone();
        spoil(&place, &mut file);
        place.launch(&place.topology.a, &file, None).ended().expect(case, 2, parts);
        let state = &running.vm("first")["state"];
        assert_eq!(state, "awaiting-guest", "{case}: the first goes on");
    }
    drop(listener);
    // All that is mended: both run side by side. The socket that nobody serves any more is taken over.
    let somebody = place.scratch.file("somebody");
    sound.vm("second").sockets[0] = somebody.clone();
    sound.vm("second").nic_lines = "socket_mode = \"0660\"\nsocket_group = \"65534\"\n".into();
    let beside = place.start(&place.topology.a, &sound);
    beside.wait_state("second", "awaiting-guest");
    let meta = fs::metadata(&somebody).expect("a socket");
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o660, 65_534), "a QEMU of that group may connect");
    beside.stop();
    running.stop();
    assert!(!somebody.exists() && !place.scratch.file("a.nic1").exists(), "sockets are left behind");
    let port = place.topology.a.namespace.run(|| TcpListener::bind(&*sound.listen)).expect("entered");
    port.expect("the port is free again");
}

/// Each kind of fault in the file, alone and all of them together, each with its key's path and mend.
#[test]
fn a_faulty_file_is_refused_with_all_its_faults_at_once() {
    let Some(mut place) = Place::new("file") else { return };
    let plan = place.plan("web");
    let cases: &[Case] = &[
        (
            "an unknown section",
            |_, file| file.tail = "[replicaton]\npeer = \"10.0.0.1:7400\"\n".into(),
            &["1 fault", "replicaton: there is no such key", "`replication`"],
        ),
        (
            "unknown keys, in several sections",
            |_, file| {
                file.vm("web").lines = "epoch = 5\nprotect = true".into();
                file.vm("web").nic_lines = "mtu = 1500".into();
            },
            &[
                "3 fault",
                "vm[0].epoch: there is no such key",
                "vm[0].protect: there is no such key",
                "vm[0].nic[0].mtu: there is no such key; mend: remove it, or use",
            ],
        ),
        (
            "values of the wrong kind",
            |_, file| {
                file.vm("web").mode = "comit";
                file.vm("web").lines = "epoch_ms = \"25\"".into();
                file.peer = "host-b".into();
            },
            &[
                "3 fault",
                "vm[0].mode: unknown variant `comit`; mend: give it one of `native`, `commit`, `speculative`",
                "vm[0].epoch_ms",
                "replication.peer",
            ],
        ),
        (
            "values out of range",
            |_, file| {
                file.vm("web").lines = "epoch_ms = 0\nepochs_in_flight = 1000".into();
                file.vm("web").nic_lines = "queue_pairs = 0\nescrow_mib = 0".into();
            },
            &[
                "4 fault",
                "vm[0].epoch_ms: 0 is not between 5 and 10000; mend: epoch_ms = 5",
                "vm[0].nic[0].queue_pairs",
                "vm[0].nic[0].escrow_mib",
                "vm[0].epochs_in_flight",
            ],
        ),
        (
            "one path for two purposes",
            |_, file| {
                let mut other = file.vm("web").clone();
                other.name = "mail".into();
                file.vms.push(other);
            },
            &["vm[1].nic[0].socket", "is vm[0].nic[0].socket already", "vm[1].qmp", "is vm[0].qmp already"],
        ),
        ("no TOML", |_, file| file.tail = "[host\n".into(), &["is no TOML", "line "]),
        (
            "everything at once",
            |_, file| {
                file.name = "host a".into();
                file.head = "[cores]\nidle = \"nap\"\n".into();
                file.tail = "[arbitre]\n".into();
                file.vm("web").lines = "epoch_ms = 1\ncolour = \"red\"".into();
                file.vm("web").nic_lines = "offloads = 1".into();
            },
            &[
                "6 fault",
                "host.name",
                "cores.idle",
                "arbitre",
                "vm[0].epoch_ms",
                "vm[0].colour",
                "vm[0].nic[0].offloads",
            ],
        ),
    ];
    let path = place.scratch.file("faulty.toml");
    let name = path.display().to_string();
    for (case, spoil, parts) in cases {
        let (mut file, _) = place.files(&[&plan]);
        spoil(&place, &mut file);
        fs::write(&path, file.to_string()).expect("written");
        for arguments in [&["run", "-c", &name][..], &["run", "--check-config", "-c", &name]] {
            run(Some(&place.topology.a.namespace), None, arguments).expect(case, 2, parts);
        }
    }
    run(None, None, &["run", "-c", "/no/such/file"]).expect("no file", 2, &["/no/such/file", "mend: "]);
    let (file, _) = place.files(&[&plan]);
    fs::write(&path, file.to_string()).expect("written");
    run(None, None, &["run", "--check-config", "-c", &name]).expect("a sound file", 0, &["is sound"]);
}
