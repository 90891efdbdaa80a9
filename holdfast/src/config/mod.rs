//! Configuration: a TOML file in its raw form, then a checked one.
//!
//! [`load`] reports every fault it finds at once, each with the key's path and the line that mends it.
//! Unknown keys are refused.

mod bypass;
mod checked;
mod cores;
mod epoch_policy;
mod exception;
mod mode;
mod raw;
mod reader;

pub(crate) use bypass::Bypass;
pub(crate) use checked::{Config, Nic, Replication, Role, Socket, Vm};
pub(crate) use epoch_policy::EpochPolicy;
pub(crate) use exception::Exception;
pub(crate) use mode::Mode;

use std::fmt;
use std::path::Path;
use thiserror::Error;

/// One fault of a configuration: where it is, what is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) key: String,
    pub(crate) problem: String,
    pub(crate) mend: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; mend: {}", self.key, self.problem, self.mend)
    }
}

/// Why a configuration was not taken. The operator is at fault.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}: {source}; mend: name a file that is there and may be read, with -c")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is no TOML: {message}")]
    Parse { path: String, message: String },
    #[error("{path} has {} fault(s):\n  {}", faults.len(), list(faults))]
    Faults { path: String, faults: Vec<Fault> },
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// Reads and checks the file at `path`.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: name.clone(), source })?;
    parse(&name, &text)
}

/// Checks the text of a configuration; `name` is what errors call it.
pub(crate) fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    let document = text.parse().map_err(|fault: toml::de::Error| ConfigError::Parse {
        path: name.to_owned(),
        message: fault.to_string(),
    })?;
    let reader::Read { raw, mut faults } = reader::read(document);
    match raw.map(Config::check) {
        Some(Ok(config)) if faults.is_empty() => return Ok(config),
        Some(Err(more)) => {
            // What follows from a key that was not understood is no news.
            let known: Vec<String> = faults.iter().map(|fault| fault.key.clone()).collect();
            faults.extend(more.into_iter().filter(|fault| !known.contains(&fault.key)));
        }
        _ => {}
    }
    Err(ConfigError::Faults { path: name.to_owned(), faults })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_checkpoint::reduction::{Reduction, Way};

    const GOOD: &str = r#"
        [host]
        name = "a"
        [[wire]]
        name = "wire0"
        kind = "af_packet"
        iface = "eth1"
        [replication]
        listen = "10.0.1.1:7400"
        peer = "10.0.1.2:7400"
        keys = "/etc/holdfast/keys"
        [arbiter]
        directory = "/srv/arbiter"
        [[vm]]
        name = "web"
        role = "primary"
        qmp = "/run/web.qmp"
        [[vm.nic]]
        socket = "/run/holdfast/web-0.sock"
        wire = "wire0"
    "#;

    #[test]
    fn a_good_file_is_taken() {
        let config = parse("test", GOOD).expect("taken");
        assert_eq!(config.vms.len(), 1);
        assert_eq!(config.vms[0].epoch.as_millis(), 25);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let text = GOOD.replace("role = \"primary\"", "rol = \"primary\"");
        let fault = parse("test", &text).expect_err("refused").to_string();
        assert!(fault.contains("vm[0].rol: there is no such key") && fault.contains("`role`"), "{fault}");
    }

    /// Keys that are unknown, missing or of the wrong kind, wherever they are, and what is out of range
    /// beside them: all in one answer.
    #[test]
    fn faults_of_the_keys_are_reported_together_and_with_the_others() {
        let text = GOOD
            .replace("name = \"a\"", "name = \"a\"\n        colour = \"red\"")
            .replace("iface = \"eth1\"", "iface = \"eth1\"\n        ifcae = \"eth2\"")
            .replace(
                "role = \"primary\"",
                "role = \"primry\"\n        epoch_ms = \"soon\"\n        lease_ms = 1",
            )
            .replace("10.0.1.1:7400", "here")
            + "[extra]\n        key = 1\n";
        let ConfigError::Faults { faults, .. } = parse("test", &text).expect_err("refused") else {
            panic!("faults were due")
        };
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        for key in [
            "host.colour",
            "wire[0].ifcae",
            "vm[0].role",
            "vm[0].epoch_ms",
            "vm[0].lease_ms",
            "replication.listen",
            "extra",
        ] {
            assert_eq!(keys.iter().filter(|found| **found == key).count(), 1, "{key} in {keys:?}");
        }
        assert_eq!(keys.len(), 7, "{faults:?}");
        assert!(faults.iter().all(|fault| !fault.mend.is_empty()));
    }

    #[test]
    fn missing_keys_are_reported_together() {
        let text = GOOD
            .replace("name = \"a\"", "")
            .replace("directory = \"/srv/arbiter\"", "")
            .replace("socket = \"/run/holdfast/web-0.sock\"", "sokcet = \"/run/holdfast/web-0.sock\"");
        let ConfigError::Faults { faults, .. } = parse("test", &text).expect_err("refused") else {
            panic!("faults were due")
        };
        let mut keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["arbiter.directory", "host.name", "vm[0].nic[0].socket", "vm[0].nic[0].sokcet"]);
        let empty = parse("test", "").expect_err("refused").to_string();
        assert!(empty.contains("host") && empty.contains("missing"), "{empty}");
    }

    #[test]
    fn a_bypass_is_read_and_each_fault_of_it_told() {
        let good = GOOD
            .replace("peer = \"10.0.1.2:7400\"", "peer = \"10.0.1.2:7400\"\n transport = \"bypass\"")
            .replace("[arbiter]", "[replication.bypass]\n wire = \"repl\"\n address = \"10.0.2.1\"\n peer = \"10.0.2.2\"\n[arbiter]")
            + "[[wire]]\n name = \"repl\"\n kind = \"af_packet\"\n iface = \"eth2\"\n mtu = 9000\n";
        let config = parse("test", &good).expect("taken");
        let bypass = config.replication.and_then(|replication| replication.bypass).expect("there");
        assert_eq!((bypass.wire.as_str(), bypass.port, bypass.peer_mac), ("repl", 7401, None));
        for (from, to, told) in [
            ("wire = \"repl\"", "wire = \"wan\"", "replication.bypass.wire: there is no wire 'wan'"),
            ("wire = \"repl\"", "wire = \"wire0\"", "replication.bypass.wire: a NIC of vm[0] uses"),
            ("mtu = 9000", "mtu = 1000", "replication.bypass.wire: packets of 1000 bytes"),
            ("peer = \"10.0.2.2\"", "peer = \"10.0.2.1\"", "replication.bypass.peer: 10.0.2.1"),
            ("peer = \"10.0.2.2\"", "peer = \"fd00::2\"", "replication.bypass.peer: fd00::2"),
            (
                "peer = \"10.0.2.2\"",
                "peer = \"10.0.2.2\"\n peer_mac = \"1:2\"",
                "replication.bypass.peer_mac",
            ),
            ("transport = \"bypass\"", "transport = \"tcp\"", "replication.bypass: it says nothing"),
            ("transport = \"bypass\"", "transport = \"rdma\"", "replication.transport"),
            (
                "keys = \"/etc/holdfast/keys\"",
                "laboratory_plaintext = true",
                "replication.transport: the bypass is sealed",
            ),
        ] {
            assert!(good.contains(from), "{from}");
            let fault = parse("test", &good.replace(from, to)).expect_err("refused").to_string();
            assert!(fault.contains(told), "{told} in {fault}");
        }
        let start = good.find("[replication.bypass]").expect("there");
        let without = format!("{}{}", &good[..start], &good[good.find("[arbiter]").expect("there")..]);
        let fault = parse("test", &without).expect_err("refused").to_string();
        assert!(fault.contains("replication.bypass: it is missing"), "{fault}");
    }

    #[test]
    fn a_bypass_through_shared_memory_has_longer_packets_than_a_guest_may_have() {
        let memif = "\n[[wire]]\n name = \"repl\"\n kind = \"memif\"\n role = \"client\"\n \
                     socket = \"/run/holdfast/m\"\n mtu = 16384\n frames = 1024\n";
        let good = format!("{GOOD}{memif}");
        assert_eq!(parse("test", &good).expect("taken").wires[1].mtu, 16_384);
        let guests = good.replacen("wire = \"wire0\"", "wire = \"repl\"", 1);
        assert_ne!(guests, good);
        let fault = parse("test", &guests).expect_err("refused").to_string();
        assert!(fault.contains("vm[0].nic: packets of 16384 bytes on 'repl'"), "{fault}");
    }

    #[test]
    fn speculation_has_defaults_and_is_read_and_checked() {
        let config =
            parse("test", &GOOD.replace("role =", "mode = \"speculative\"\n role =")).expect("taken");
        let vm = &config.vms[0];
        assert_eq!(vm.mode, Mode::Speculative);
        assert_eq!((vm.speculation.escrow_bytes, vm.speculation.flow_bytes), (64 << 20, 32 << 20));
        assert!(vm.speculation.except.is_empty());
        assert_eq!(vm.speculation.flows, 4096);
        let table = "[vm.speculation]\n escrow_mib = 8\n flow_mib = 2\n except = [\"22\", \"10.0.0.0/8\"]\n";
        let config = parse("test", &format!("{GOOD}{table}")).expect("taken");
        assert_eq!(config.vms[0].speculation.flow_bytes, 2 << 20);
        assert_eq!(config.vms[0].speculation.except.len(), 2);
        let table = table.replace("flow_mib = 2", "flow_mib = 9\n colour = 1").replace("\"22\"", "\"ssh\"");
        let fault = parse("test", &format!("{GOOD}{table}")).expect_err("refused").to_string();
        for part in
            ["speculation.colour", "speculation.flow_mib: 9 is not between 1 and 8", "except[0]: 'ssh'"]
        {
            assert!(fault.contains(part), "{part} in {fault}");
        }
    }

    #[test]
    fn ways_of_reduction_are_read_and_what_is_none_is_told_with_those_there_are() {
        let config = parse("test", GOOD).expect("taken");
        assert_eq!(config.vms[0].reduction, Reduction::default());
        let table = "[vm.reduction]\n ways = [\"zero\", \"delta\"]\n cache_mib = 16\n adaptive = false\n";
        let config = parse("test", &format!("{GOOD}{table}")).expect("taken");
        let (ways, cache) = (vec![Way::Zero, Way::Delta], Some(16 << 20));
        assert_eq!(config.vms[0].reduction, Reduction { ways, cache, adaptive: false });
        let table = table.replace("delta", "dleta").replace("= 16", "= 1048577");
        let fault = parse("test", &format!("{GOOD}{table}")).expect_err("refused").to_string();
        for part in
            ["vm[0].reduction.ways[1]", "dleta", "`delta`", "`compress`", "reduction.cache_mib: 1048577"]
        {
            assert!(fault.contains(part), "{part} in {fault}");
        }
    }

    #[test]
    fn a_path_serves_one_purpose() {
        let second = GOOD[GOOD.find("[[vm]]").expect("there")..].replace("\"web\"", "\"mail\"");
        let third = second.replace("mail", "news").replace("/run/", "/run/3/")
            + "[[vm.nic]]\n socket = \"/run/3/holdfast/web-0.sock\"\n wire = \"wire0\"\n";
        let fault = parse("test", &format!("{GOOD}{second}{third}")).expect_err("refused");
        let ConfigError::Faults { faults, .. } = fault else { panic!("{fault}") };
        let told: Vec<_> = faults.iter().map(|fault| format!("{}: {}", fault.key, fault.problem)).collect();
        assert_eq!(
            told,
            [
                "vm[1].qmp: /run/web.qmp is vm[0].qmp already",
                "vm[1].nic[0].socket: /run/holdfast/web-0.sock is vm[0].nic[0].socket already",
                "vm[2].nic[1].socket: /run/3/holdfast/web-0.sock is vm[2].nic[0].socket already",
            ]
        );
    }

    #[test]
    fn wires_are_spread_over_polling_cores_and_what_cannot_be_is_told() {
        let good = GOOD.replace("[[wire]]", "[cores]\n polling = [1, 2]\n [[wire]]").replace(
            "iface = \"eth1\"",
            "iface = \"eth1\"\n core = 2\n [[wire]]\n name = \"wire1\"\n kind = \"kernel\"\n iface = \"eth2\"",
        ) + "[[vm.nic]]\n socket = \"/run/holdfast/web-1.sock\"\n wire = \"wire0\"\n";
        let config = parse("test", &good).expect("taken");
        assert_eq!([0, 1].map(|wire: usize| config.cores.place(&config.wires[wire])), [1, 0]);
        for (from, to, told) in [
            ("core = 2", "core = 3", "wire[0].core: processor 3 has no polling thread"),
            ("core = 2", "core = 1", "cores.polling[1]: processor 2 would poll no wire and no pair"),
            (
                "web-1.sock\"\n wire = \"wire0\"",
                "web-1.sock\"\n wire = \"wire1\"",
                "vm[0].nic[1].wire: wire 'wire1' is another polling core's",
            ),
            ("name = \"a\"", "name = \"a\"\n frame_audit = \"/tmp/audit\"", "host.frame_audit: it records"),
        ] {
            assert!(good.contains(from), "{from}");
            let fault = parse("test", &good.replacen(from, to, 1)).expect_err("refused").to_string();
            assert!(fault.contains(told) && fault.contains("1 fault"), "{told} in {fault}");
        }
    }

    #[test]
    fn pairs_of_a_nic_are_spread_over_polling_cores_and_what_cannot_be_is_told() {
        let pairs = "wire = \"wire0\"\n queue_pairs = 3\n pair_cores = [1, 2, 2]";
        let good = GOOD
            .replace("[[wire]]", "[cores]\n polling = [1, 2]\n [[wire]]")
            .replace("wire = \"wire0\"", pairs)
            .replace("name = \"a\"", "name = \"a\"\n frame_audit = \"/tmp/audit\"");
        let config = parse("test", &good).expect("taken");
        assert_eq!(config.vms[0].nics[0].pair_cores.as_deref(), Some(&[1, 2, 2][..]));
        for (from, to, told) in [
            ("[1, 2, 2]", "[1, 2]", "vm[0].nic[0].pair_cores: it names 2 processors for 3 pairs"),
            ("[1, 2, 2]", "[1, 2, 3]", "vm[0].nic[0].pair_cores: processor 3 has no polling thread"),
            ("[1, 2, 2]", "[1, 1, 1]", "cores.polling[1]: processor 2 would poll no wire and no pair"),
        ] {
            assert!(good.contains(from), "{from}");
            let fault = parse("test", &good.replacen(from, to, 1)).expect_err("refused").to_string();
            assert!(fault.contains(told) && fault.contains("1 fault"), "{told} in {fault}");
        }
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        let fault = parse("test", "[host]\nname = \"a\nx").expect_err("refused").to_string();
        assert!(fault.contains("no TOML") && fault.contains("line 2"), "{fault}");
    }

    #[test]
    fn all_faults_are_reported_at_once_with_path_and_mend() {
        let text = GOOD
            .replace("wire = \"wire0\"", "wire = \"nowhere\"\n        queue_pairs = 0")
            .replace("qmp =", "epoch_ms = 0\n        lease_ms = 1\n        qmp =")
            .replace("keys = \"/etc/holdfast/keys\"", "");
        let fault = parse("test", &text).expect_err("refused");
        let ConfigError::Faults { faults, .. } = fault else { panic!("{fault}") };
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        for key in [
            "vm[0].nic[0].wire",
            "vm[0].nic[0].queue_pairs",
            "vm[0].epoch_ms",
            "vm[0].lease_ms",
            "replication.keys",
        ] {
            assert!(keys.contains(&key), "{key} is missing from {keys:?}");
        }
        assert!(faults.iter().all(|fault| !fault.mend.is_empty()));
    }

    #[test]
    fn the_access_to_a_socket_is_read_and_checked() {
        let with = |lines: &str| {
            parse("test", &GOOD.replace("wire = \"wire0\"", &format!("wire = \"wire0\"\n{lines}")))
        };
        let nic =
            with("socket_mode = \"0660\"\nsocket_group = \"kvm\"").expect("taken").vms[0].nics[0].clone();
        assert_eq!((nic.socket_mode, nic.socket_group.as_deref()), (Some(0o660), Some("kvm")));
        for mode in ["660x", "0", "0060", "1777", "-1", "rw"] {
            let fault = with(&format!("socket_mode = \"{mode}\"")).expect_err("refused").to_string();
            assert!(fault.contains("vm[0].nic[0].socket_mode") && fault.contains("0660"), "{fault}");
        }
        let fault = with("listens = \"qemu\"\nsocket_mode = \"0660\"\nsocket_group = \"kvm\"");
        let fault = fault.expect_err("refused").to_string();
        assert!(fault.contains("socket_mode: QEMU makes") && fault.contains("socket_group: QEMU"), "{fault}");
    }

    #[test]
    fn a_standby_that_does_not_fit_its_vm_is_refused() {
        let example = include_str!("../../../docs/examples/host-b.toml");
        let faults_of = |from: &str, to: &str| {
            assert!(example.contains(from), "{from}");
            parse("test", &example.replacen(from, to, 1)).expect_err("refused").to_string()
        };
        for (from, to, parts) in [
            (
                "path=/run/holdfast/web-0.sock",
                "path=/run/holdfast/web-0.socket",
                [
                    "vm[0].backup.command: the command does not use /run/holdfast/web-0.sock",
                    "socket of a NIC",
                ],
            ),
            (
                "mem-path=/dev/shm/holdfast-web",
                "mem-path=/dev/shm/holdfast-web2",
                ["vm[0].backup.command: the command does not use /dev/shm/holdfast-web", "mem-path"],
            ),
            (
                "memory = \"1G\"",
                "memory = \"2G\"",
                ["vm[0].backup.memory: '2G' is not the size=1G", "mend: memory = \"1G\""],
            ),
            (
                "vhost-user,id=net0,chardev=nic0",
                "vhost-user,id=net0,chardev=nic0,queues=2",
                [
                    "asks for 2 queues, more than the NIC has pairs (1)",
                    "mend: queue_pairs = 2 in its [[vm.nic]]",
                ],
            ),
            (
                "peer = \"10.0.1.1:7400\"",
                "peer = \"10.0.1.2:7400\"",
                ["replication.peer: 10.0.1.2:7400 is this host's own address", "the other host"],
            ),
        ] {
            let told = faults_of(from, to);
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
            assert!(told.contains("1 fault"), "{told}");
        }
        let same = example.replacen("memory = \"1G\"", "memory = \"1024M\"", 1);
        parse("test", &same).expect("the same size in other words");
    }

    #[test]
    fn a_protected_vm_needs_a_peer_and_an_arbiter() {
        let start = GOOD.find("[replication]").expect("there");
        let end = GOOD.find("[[vm]]").expect("there");
        let text = format!("{}{}", &GOOD[..start], &GOOD[end..]);
        let fault = parse("test", &text).expect_err("refused").to_string();
        assert!(fault.contains("replication") && fault.contains("arbiter"), "{fault}");
    }

    #[test]
    fn the_example_files_are_taken() {
        for name in ["host-a.toml", "host-b.toml", "one-machine.toml", "bypass.toml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
            load(&path).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
}
