//! Configuration: a TOML file in its raw form, then a checked one.
//!
//! [`load`] reports every fault it finds at once, each with the key's path and the line that mends it.
//! Unknown keys are refused.

mod checked;
mod raw;

pub(crate) use checked::{Config, Mode, Nic, Replication, Role, Socket, Standby, Vm};

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
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not a Holdfast configuration: {message}")]
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
    let raw: raw::RawConfig = toml::from_str(text)
        .map_err(|fault| ConfigError::Parse { path: name.to_owned(), message: fault.to_string() })?;
    Config::check(raw).map_err(|faults| ConfigError::Faults { path: name.to_owned(), faults })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(fault.contains("rol") && fault.contains("unknown field"), "{fault}");
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
    fn a_protected_vm_needs_a_peer_and_an_arbiter() {
        let start = GOOD.find("[replication]").expect("there");
        let end = GOOD.find("[[vm]]").expect("there");
        let text = format!("{}{}", &GOOD[..start], &GOOD[end..]);
        let fault = parse("test", &text).expect_err("refused").to_string();
        assert!(fault.contains("replication") && fault.contains("arbiter"), "{fault}");
    }

    #[test]
    fn the_example_files_are_taken() {
        for name in ["host-a.toml", "host-b.toml", "one-machine.toml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
            load(&path).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
}
