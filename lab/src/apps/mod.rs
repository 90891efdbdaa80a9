//! Real applications of Debian in the guest, and their loads at the client.
//!
//! ```text
//!   nginx     static files in the mix of a web benchmark, on connections that stay open
//!   shuffle   the partitions of map outputs, fetched by all reducers at once, wave after wave (nginx)
//!   redis     SET and GET of many clients, by redis-benchmark
//!   rsync     a tree of small files, from the guest's daemon into a new folder
//!   iperf3    bulk, as a second meter
//! ```
//!
//! [`carry`] puts them into a guest, where they wait side by side and do next to nothing; [`measure`] loads one
//! of them for a time. All times are the client's: a guest that is paused has a slow clock. Where a driver is
//! our own it checks every byte: what the applications serve is cut from one seeded stream.
//! `scripts/guest-apps` fetches the programs.

mod figures;
mod http;
mod nginx;
mod redis;
mod rsync;
mod shuffle;
mod tree;
mod versions;

pub use figures::AppFigures;
pub use versions::versions;

use crate::artifacts::ArtifactsError;
use crate::client::{Client, ClientError};
use crate::guest::GuestSpec;
use crate::initramfs::Part;
use crate::iperf;
use crate::process::ProcessError;
use crate::scratch::ScratchError;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};
use thiserror::Error;

/// What a driver takes at most beyond its time: for an answer that needs many epochs, or a failover.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Users and groups of a guest that has but one.
const PASSWD: &[u8] = b"root:x:0:0:root:/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\n";

/// Why an application could not be carried or measured.
#[derive(Debug, Error)]
pub enum AppsError {
    /// The programs are missing, or the initramfs cannot be written.
    #[error(transparent)]
    Artifacts(#[from] ArtifactsError),
    /// The service does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A load generator does not run to its end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No place for files.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// Not one request was answered.
    #[error("{app}: nothing was answered: {fault}")]
    Nothing {
        /// Which.
        app: App,
        /// The first fault.
        fault: String,
    },
}

/// An application of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum App {
    /// A web server with static files.
    Nginx,
    /// A store of keys and values in memory.
    Redis,
    /// Map outputs on their way to reducers.
    Shuffle,
    /// A copy of a tree of files.
    Rsync,
    /// Bulk.
    Iperf3,
}

impl App {
    /// All of them, in the order in which they are named.
    pub const ALL: [Self; 5] = [Self::Nginx, Self::Redis, Self::Shuffle, Self::Rsync, Self::Iperf3];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Shuffle => "shuffle",
            Self::Rsync => "rsync",
            Self::Iperf3 => "iperf3",
        }
    }

    /// What one of its requests is; none where only bytes count.
    pub const fn unit(self) -> Option<&'static str> {
        match self {
            Self::Nginx | Self::Redis => Some("request"),
            Self::Shuffle => Some("partition"),
            Self::Rsync => Some("file"),
            Self::Iperf3 => None,
        }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no application has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name:?} is none of nginx, redis, shuffle, rsync, iperf3")]
pub struct UnknownApp {
    name: String,
}

impl FromStr for App {
    type Err = UnknownApp;

    fn from_str(name: &str) -> Result<Self, UnknownApp> {
        let found = Self::ALL.into_iter().find(|app| app.name() == name);
        found.ok_or_else(|| UnknownApp { name: name.into() })
    }
}

/// Gives a guest these applications, which its init starts. With all of them it wants 512 MiB of memory.
///
/// # Errors
/// When they are not fetched, or the initramfs cannot be written.
pub fn carry(spec: &mut GuestSpec, apps: &[App]) -> Result<(), AppsError> {
    let mut parts = vec![Part::file("/etc/passwd", PASSWD), Part::file("/etc/group", GROUP)];
    let serves = |app| apps.contains(&app);
    if serves(App::Iperf3) {
        iperf::serve(spec)?;
    }
    if apps.iter().all(|app| *app == App::Iperf3) {
        return Ok(());
    }
    let unpacked = Unpacked { root: spec.artifacts().applications()? };
    if serves(App::Nginx) || serves(App::Shuffle) {
        nginx::serve(spec, &unpacked, &mut parts);
    }
    if serves(App::Nginx) {
        parts.extend(tree::parts(&tree::pages()));
    }
    if serves(App::Shuffle) {
        parts.extend(tree::parts(&tree::map_outputs()));
    }
    if serves(App::Redis) {
        redis::serve(spec, &unpacked, &mut parts);
    }
    if serves(App::Rsync) {
        rsync::serve(spec, &unpacked, &mut parts);
        parts.extend(tree::parts(&tree::sources()));
    }
    Ok(spec.add(parts)?)
}

/// Loads an application of the guest for that time, and ends within [`PATIENCE`] of it. `seed` decides what is
/// asked for, where the load generator lets us.
///
/// # Errors
/// When the service does not answer, or the load generator does not run. Faults of single requests are in the
/// figures, unless there is nothing else.
pub fn measure(
    app: App,
    client: &Client,
    guest: IpAddr,
    seed: u64,
    time: Duration,
) -> Result<AppFigures, AppsError> {
    let until = Instant::now() + time + PATIENCE;
    match app {
        App::Nginx => nginx::measure(client, guest, seed, (time, until)),
        App::Redis => redis::measure(client, guest, (time, until)),
        App::Shuffle => shuffle::measure(client, guest, (time, until)),
        App::Rsync => rsync::measure(client, guest, (time, until)),
        App::Iperf3 => {
            let mbit_s = iperf::download(client.namespace(), guest, 1, time)?;
            Ok(AppFigures { requests: 1, mbit_s: Some(mbit_s), ..AppFigures::default() })
        }
    }
}

/// Where `scripts/guest-apps` has unpacked Debian's packages.
struct Unpacked {
    root: PathBuf,
}

impl Unpacked {
    fn libraries(&self) -> PathBuf {
        self.root.join("usr/lib/x86_64-linux-gnu")
    }

    /// One of its programs, at the same place in the guest.
    fn part(&self, program: &'static str) -> Part {
        Part::Program { path: self.path(program), inside: program.into(), libraries: Some(self.libraries()) }
    }

    fn path(&self, program: &str) -> PathBuf {
        self.root.join(program.trim_start_matches('/'))
    }

    /// The words that run one of its programs on the host, and end it at a moment.
    fn command(&self, program: &str, until: Instant) -> Vec<String> {
        let libraries = format!("LD_LIBRARY_PATH={}", self.libraries().display());
        let program = self.path(program).display().to_string();
        vec![
            "-k".into(),
            "5".into(),
            left(until).as_secs().max(1).to_string(),
            "env".into(),
            libraries,
            program,
        ]
    }
}

/// What is left of the time, and never nothing: whoever waits asks for some.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Runs such words in the client's namespace; what the program printed.
fn run(client: &Client, words: &[String]) -> Result<String, ProcessError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    crate::process::run_tool(Some(client.namespace()), "timeout", &words)
}

/// The applications beside the running program.
fn unpacked() -> Result<Unpacked, ArtifactsError> {
    Ok(Unpacked { root: crate::artifacts::Artifacts::locate()?.applications()? })
}

/// How an address stands in a URL.
fn in_url(guest: IpAddr) -> String {
    match guest {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_application_is_found_by_its_name_and_others_are_refused_with_a_list() {
        for app in App::ALL {
            assert_eq!(app.to_string().parse(), Ok(app));
        }
        let refused = "apache".parse::<App>().expect_err("unknown").to_string();
        assert!(App::ALL.iter().all(|app| refused.contains(app.name())), "{refused}");
    }
}
