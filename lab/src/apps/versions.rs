//! Which versions of the applications a guest is given.

use super::{App, Unpacked, nginx, redis, rsync};
use crate::artifacts::Artifacts;
use crate::iperf;
use crate::process::run_tool;
use std::collections::BTreeMap;

/// nginx says it on its standard error.
const ASK: &str = "LD_LIBRARY_PATH=$1 exec \"$2\" \"$3\" 2>&1";

/// The versions of these applications' programs, by the programs' names. What does not say its version is
/// passed over, with a warning.
pub fn versions(artifacts: &Artifacts, apps: &[App]) -> BTreeMap<String, String> {
    let unpacked = artifacts.applications().ok().map(|root| Unpacked { root });
    let ask = |app: App| {
        let (name, program, word) = match app {
            App::Nginx | App::Shuffle => ("nginx", nginx::PROGRAM, "-v"),
            App::Redis => ("redis", redis::SERVER, "--version"),
            App::Rsync => ("rsync", rsync::PROGRAM, "--version"),
            App::Iperf3 => ("iperf3", iperf::PROGRAM, "--version"),
        };
        let (libraries, path) = match (app, &unpacked) {
            (App::Iperf3, _) => (String::new(), program.into()),
            (_, Some(unpacked)) => (unpacked.libraries().display().to_string(), unpacked.path(program)),
            (_, None) => return None,
        };
        let said = run_tool(None, "sh", &["-c", ASK, "sh", &libraries, &path.to_string_lossy(), word]);
        let version = said.as_deref().ok().and_then(read);
        if version.is_none() {
            tracing::warn!("{name} does not say its version: {said:?}");
        }
        Some((name.to_owned(), version?))
    };
    apps.iter().filter_map(|app| ask(*app)).collect()
}

/// The first number with a dot, as programs say their versions.
fn read(said: &str) -> Option<String> {
    let words = said.split([' ', '/', '=', '\n']).map(|word| word.trim_start_matches('v'));
    let version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    words.into_iter().find(version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_say_them() {
        for (said, version) in [
            ("nginx version: nginx/1.22.1\n", Some("1.22.1")),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64\n", Some("7.0.15")),
            ("rsync  version v3.2.7  protocol version 31\nCopyright (C) 1996-2022\n", Some("3.2.7")),
            ("iperf 3.12 (cJSON 1.7.15)\nLinux", Some("3.12")),
            ("command not found", None),
        ] {
            assert_eq!(read(said).as_deref(), version, "{said}");
        }
    }
}
