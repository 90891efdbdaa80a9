//! iperf3 as a second meter beside the byte-exact stream: its server in the guest, its client in the
//! client's namespace.
//!
//! The client receives, so the rate is by the client's clock. iperf3 checks no bytes.

use crate::artifacts::ArtifactsError;
use crate::guest::GuestSpec;
use crate::netns::Namespace;
use crate::process::{ProcessError, run_tool};
use serde_json::Value;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

pub(crate) const PROGRAM: &str = "/usr/bin/iperf3";
const INSIDE: &str = "/bin/iperf3";
/// More streams than that it does not run.
pub const MOST_CONNECTIONS: usize = 128;
/// For its set-up and its end, which wait for commits.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives a guest the server: in an initramfs of its own, started by its init.
///
/// # Errors
/// When iperf3 is not installed, or the initramfs cannot be written.
pub fn serve(spec: &mut GuestSpec) -> Result<(), ArtifactsError> {
    spec.start_program(Path::new(PROGRAM), INSIDE, &["-s"])
}

/// What the guest sends to the client on so many connections, in 10^6 bits a second; the first second does
/// not count.
///
/// # Errors
/// When it does not run to its end.
pub fn download(
    client: &Namespace,
    guest: IpAddr,
    connections: usize,
    time: Duration,
) -> Result<f64, ProcessError> {
    let seconds = time.as_secs().max(1);
    let words = [
        (seconds + 1 + PATIENCE.as_secs()).to_string(),
        guest.to_string(),
        seconds.to_string(),
        connections.to_string(),
    ];
    let [limit, guest, seconds, connections] = words.each_ref().map(String::as_str);
    let said = run_tool(
        Some(client),
        "timeout",
        &[limit, PROGRAM, "-c", guest, "-R", "-J", "-O", "1", "-t", seconds, "-P", connections],
    )?;
    let bits = serde_json::from_str::<Value>(&said)
        .ok()
        .and_then(|report| report["end"]["sum_received"]["bits_per_second"].as_f64());
    bits.map(|bits| bits / 1e6).ok_or_else(|| ProcessError::System {
        name: "iperf3".into(),
        step: "read its report",
        source: io::Error::other(said.chars().take(500).collect::<String>()),
    })
}
