//! The agent in a guest of the laboratory, and a shell there to look after it.
//!
//! The shell is busybox's, behind a port that takes whoever comes: it is for guests of the laboratory, whose
//! network is a namespace, and for no other.

use crate::artifacts::ArtifactsError;
use crate::client::{Client, ClientError};
use crate::guest::GuestSpec;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

const AGENT: &str = "/bin/holdfast-guest";
const BUSYBOX: &str = "/bin/busybox";
const SHELL_PORT: u16 = 7090;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// Gives a guest the shell.
///
/// # Errors
/// When busybox is not installed, or the initramfs cannot be written.
pub fn serve_shell(spec: &mut GuestSpec) -> Result<(), ArtifactsError> {
    let port = SHELL_PORT.to_string();
    spec.start_program(Path::new(BUSYBOX), BUSYBOX, &["nc", "-ll", "-p", &port, "-e", BUSYBOX, "sh"])
}

/// Gives a guest the agent, which runs from the boot on.
///
/// # Errors
/// When it is not built, or the initramfs cannot be written.
pub fn serve(spec: &mut GuestSpec) -> Result<(), ArtifactsError> {
    let agent = crate::artifacts::Artifacts::locate()?.agent();
    spec.start_program(&agent, AGENT, &["run"])
}

/// Gives a guest the agent, which nothing starts.
///
/// # Errors
/// When it is not built, or the initramfs cannot be written.
pub fn carry(spec: &mut GuestSpec) -> Result<(), ArtifactsError> {
    let agent = crate::artifacts::Artifacts::locate()?.agent();
    spec.add_program(&agent, AGENT)
}

/// Waits until the agent of a guest that has the shell has attached, or has given way.
///
/// # Errors
/// When the guest does not answer, or that does not come in time.
pub fn wait_attached(
    client: &Client,
    guest: IpAddr,
    attached: bool,
    patience: Duration,
) -> Result<(), ClientError> {
    let until = Instant::now() + patience;
    loop {
        let name = shell(client, guest, "cat /proc/sys/net/ipv4/tcp_congestion_control")?;
        if (name.trim() == "holdfast") == attached {
            return Ok(());
        }
        if Instant::now() > until {
            let target = SocketAddr::new(guest, SHELL_PORT);
            let source = io::Error::other(format!("the guest's congestion control stays {}", name.trim()));
            return Err(ClientError::Exchange { what: "the agent's coming or going", target, source });
        }
        std::thread::sleep(LOOK);
    }
}

/// Has the guest's shell run these commands; what they printed. Names of busybox's tools are known there.
///
/// # Errors
/// When the guest does not answer.
pub fn shell(client: &Client, guest: IpAddr, commands: &str) -> Result<String, ClientError> {
    let target = SocketAddr::new(guest, SHELL_PORT);
    let failed = |source| ClientError::Exchange { what: "shell", target, source };
    let mut connection = client.connect_listening(target, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    connection.write_all(format!("{commands}\n").as_bytes()).map_err(failed)?;
    connection.shutdown(Shutdown::Write).map_err(failed)?;
    let mut said = String::new();
    connection.read_to_string(&mut said).map_err(failed)?;
    Ok(said)
}
