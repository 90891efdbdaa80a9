//! Tables of wires, good and bad.

use super::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    wire: Vec<RawWire>,
}

fn checked(text: &str) -> (Vec<Wire>, Vec<String>) {
    let file: File = toml::from_str(text).expect("well-formed");
    let mut problems = Problems::default();
    let wires = Wire::check_all(&file.wire, &mut problems);
    for problem in &problems.0 {
        assert!(!problem.mend.is_empty(), "{problem} has no mend");
    }
    (wires, problems.0.into_iter().map(|problem| problem.key).collect())
}

fn one(body: &str) -> (Vec<Wire>, Vec<String>) {
    checked(&format!("[[wire]]\nname = 'w'\n{body}"))
}

#[test]
fn each_kind_becomes_its_device() {
    let table = [
        ("kind = 'tap'\niface = 'hf0'", "net_tap0", "iface=hf0"),
        (
            "kind = 'tap'\niface = 'hf0'\nmac = '02:00:00:0a:00:01'",
            "net_tap0",
            "iface=hf0,mac=02:00:00:0a:00:01",
        ),
        (
            "kind = 'af_packet'\niface = 'veth-a.1'",
            "net_af_packet0",
            "iface=veth-a.1,blocksz=4096,framesz=2048,framecnt=4096",
        ),
        (
            "kind = 'af_packet'\niface = 'veth'\nmtu = 9000",
            "net_af_packet0",
            "iface=veth,blocksz=12288,framesz=12288,framecnt=682",
        ),
        ("kind = 'af_xdp'\niface = 'veth'", "net_af_xdp0", "iface=veth,start_queue=0,queue_count=1"),
        (
            "kind = 'af_xdp'\niface = 'veth'\nqueue = 3",
            "net_af_xdp0",
            "iface=veth,start_queue=3,queue_count=1",
        ),
        (
            "kind = 'memif'\nrole = 'client'\nsocket = '/run/hf/m.sock'\nid = 7",
            "net_memif0",
            "role=client,id=7,socket=/run/hf/m.sock,socket-abstract=no,bsize=2048,rsize=10",
        ),
        (
            "kind = 'memif'\nrole = 'server'\nsocket = '/m'\nmtu = 16384",
            "net_memif0",
            "role=server,id=0,socket=/m,socket-abstract=no,bsize=16448,rsize=7",
        ),
    ];
    for (body, name, arguments) in table {
        let (wires, problems) = one(body);
        assert_eq!(problems, Vec::<String>::new(), "{body}");
        let expected = WireDevice::Virtual { name: name.to_owned(), arguments: arguments.to_owned() };
        assert_eq!(wires[0].device(), expected, "{body}");
    }
}

#[test]
fn an_address_of_a_card_is_completed() {
    for (text, full) in
        [("0000:03:00.0", "0000:03:00.0"), ("3B:1f.7", "0000:3b:1f.7"), ("10000:e1:00.0", "10000:e1:00.0")]
    {
        let (wires, problems) = one(&format!("kind = 'pci'\naddress = '{text}'"));
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        assert_eq!(wires[0].device(), WireDevice::Pci { address: full.to_owned() });
    }
}

#[test]
fn each_fault_is_named_by_its_key() {
    let long_socket = format!("kind = 'memif'\nrole = 'server'\nsocket = '/{}'", "s".repeat(107));
    let table = [
        ("", vec!["wire[0].kind"]),
        ("kind = 'tap'", vec!["wire[0].iface"]),
        ("kind = 'tap'\niface = 'sixteen-letters-'", vec!["wire[0].iface"]),
        ("kind = 'af_packet'", vec!["wire[0].iface"]),
        ("kind = 'kernel'", vec!["wire[0].iface"]),
        ("kind = 'kernel'\niface = 'a'\nqueue = 1", vec!["wire[0].queue"]),
        (
            "kind = 'tap'\niface = 'a'\nsocket = '/x/y'\nrole = 'server'",
            vec!["wire[0].role", "wire[0].socket"],
        ),
        ("kind = 'memif'", vec!["wire[0].role", "wire[0].socket"]),
        ("kind = 'memif'\nrole = 'boss'\nsocket = 'relative'", vec!["wire[0].role", "wire[0].socket"]),
        (long_socket.as_str(), vec!["wire[0].socket"]),
        ("kind = 'pci'", vec!["wire[0].address"]),
        ("kind = 'pci'\naddress = '0000:03:20.0'", vec!["wire[0].address"]),
        ("kind = 'pci'\naddress = '0000:03:00.8'", vec!["wire[0].address"]),
        ("kind = 'tap'\niface = 'a'\nmac = '01:00:00:00:00:01'", vec!["wire[0].mac"]),
        ("kind = 'tap'\niface = 'a'\nmac = '02:00:00:00:01'", vec!["wire[0].mac"]),
        ("kind = 'tap'\niface = 'a'\nmac = '02:00:00:00:+1:01'", vec!["wire[0].mac"]),
        ("kind = 'af_xdp'\niface = 'a'\nframes = 4096", vec!["wire[0].frames"]),
        ("kind = 'af_xdp'\niface = 'a'\nmtu = 9000", vec!["wire[0].mtu"]),
        ("kind = 'memif'\nrole = 'client'\nsocket = '/m'\nmtu = 16385", vec!["wire[0].mtu"]),
        ("kind = 'tap'\niface = 'a'\nmtu = 100\nframes = 3", vec!["wire[0].mtu", "wire[0].frames"]),
    ];
    for (body, keys) in table {
        let (wires, problems) = one(body);
        assert_eq!(problems, keys, "{body}");
        assert!(wires.is_empty(), "{body}");
    }
}

/// Whatever the operator writes, no value becomes a second argument of a device.
#[test]
fn no_value_can_smuggle_in_an_argument() {
    for evil in ["a,remote=b", "a b", "a=b", "a\"b", "a/b", "..", "a\nb", "a;b", "ä", ""] {
        let text = toml::Value::String(evil.to_owned());
        for body in [
            format!("kind = 'tap'\niface = {text}"),
            format!("kind = 'af_xdp'\niface = {text}"),
            format!("kind = 'pci'\naddress = {text}"),
            format!("kind = 'tap'\niface = 'a'\nmac = {text}"),
        ] {
            let (wires, problems) = one(&body);
            assert!(wires.is_empty() && problems.len() == 1, "{body}: {problems:?}");
        }
    }
    for evil in ["/a,bsize=1", "/a b", "/a=b", "a", "/ä", "/"] {
        let (wires, problems) = one(&format!("kind = 'memif'\nrole = 'server'\nsocket = '{evil}'"));
        assert!(wires.is_empty() && problems == ["wire[0].socket"], "{evil}: {problems:?}");
    }
}

#[test]
fn two_wires_share_neither_name_nor_interface() {
    let (_, problems) = checked(
        "[[wire]]\nname = 'w'\nkind = 'tap'\niface = 'a'\n\
         [[wire]]\nname = 'w'\nkind = 'tap'\niface = 'b'\n\
         [[wire]]\nname = 'x'\nkind = 'af_packet'\niface = 'a'",
    );
    assert_eq!(problems, ["wire[1].name", "wire[2]"]);
}

#[test]
fn devices_of_one_kind_have_names_of_their_own_and_short_ones() {
    let mut text = String::new();
    for index in 0..WIRES_MAX {
        text += &format!("[[wire]]\nname = 'w{index}'\nkind = 'af_packet'\niface = 'i{index}'\n");
    }
    let (wires, problems) = checked(&text);
    assert_eq!(problems, Vec::<String>::new());
    let names: HashSet<String> = wires
        .iter()
        .map(|wire| match wire.device() {
            WireDevice::Virtual { name, .. } => name,
            WireDevice::Pci { address } => address,
            WireDevice::Kernel { interface } => interface,
        })
        .collect();
    assert_eq!(names.len(), WIRES_MAX);
    assert!(names.iter().all(|name| name.len() <= 32));
    text += "[[wire]]\nname = 'more'\nkind = 'tap'\niface = 'more'\n";
    assert_eq!(checked(&text).1, ["wire"]);
}

#[test]
fn an_interface_of_the_kernel_is_no_device_of_dpdk() {
    let (wires, problems) = checked("[[wire]]\nname = 'w'\nkind = 'kernel'\niface = 'eth1'");
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(wires[0].device(), WireDevice::Kernel { interface: "eth1".to_owned() });
}

#[test]
fn a_frame_of_the_pool_holds_the_mtu_with_header_and_tag() {
    for mtu in [576, 1500, 2030, 2031, 4000, 9000, 9216] {
        let (wires, _) = one(&format!("kind = 'tap'\niface = 'a'\nmtu = {mtu}\nframes = 1024"));
        assert!(wires[0].frame_bytes() >= mtu + 18 && wires[0].frame_bytes() >= 2048, "{mtu}");
        assert!(wires[0].memory_mib() * (1 << 20) >= 1024 * u64::from(wires[0].frame_bytes()), "{mtu}");
    }
}
