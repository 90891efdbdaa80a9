//! dpdk-testpmd: DPDK's own forwarder, as an independent frontend of vhost-user ports and as the backend that
//! Holdfast is compared with.
//!
//! It is spoken to at its prompt. Each command is followed by a comment of our own: when the comment is echoed,
//! the command has been carried out, and what stands before it in the log is the answer.

use crate::process::{Process, ProcessError, ProcessSpec};
use crate::scratch::Scratch;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;
use thiserror::Error;

/// Debian's package that has it.
pub const PACKAGE: &str = "dpdk-dev";

const PROGRAM: &str = "dpdk-testpmd";
const PROMPT: &str = "testpmd> ";
/// Memory is taken and rings are made.
const START: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(20);

/// Why testpmd did not do what it was told.
#[derive(Debug, Error)]
pub enum TestpmdError {
    /// The host lacks it.
    #[error("there is no {PROGRAM} on the path; mend: apt-get install {PACKAGE}")]
    Missing,
    /// It could not be started, or has ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It could not be spoken to.
    #[error("testpmd {name}: cannot be asked {command:?}: {source}")]
    Ask {
        /// Its name in the laboratory.
        name: String,
        /// What was asked.
        command: String,
        /// The system's word.
        source: io::Error,
    },
    /// What it says cannot be read.
    #[error("testpmd {name}: no figures in its answer to {command:?}: {answer}")]
    Answer {
        /// Its name in the laboratory.
        name: String,
        /// What was asked.
        command: String,
        /// What it said.
        answer: String,
    },
}

/// What is started. One core forwards.
#[derive(Clone, Debug)]
pub struct TestpmdSpec {
    /// Name in the laboratory.
    pub name: String,
    /// Processor of the thread that takes commands.
    pub control_core: usize,
    /// Processor of the thread that forwards.
    pub forwarding_core: usize,
    /// Virtual devices, as `--vdev` takes them.
    pub devices: Vec<String>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether that is in huge pages.
    pub huge_pages: bool,
    /// What is said behind `--`: forwarding mode, addresses of peers.
    pub arguments: Vec<String>,
}

/// Frames that were forwarded since the figures were last cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Received on all ports.
    pub received: u64,
    /// Sent on all ports.
    pub sent: u64,
    /// Lost on all ports, for want of buffers or of room in a ring.
    pub lost: u64,
}

/// A running testpmd. It is killed when this is dropped.
pub struct Testpmd {
    process: Process,
    input: ChildStdin,
    asked: u32,
}

/// Whether the program is installed.
///
/// # Errors
/// [`TestpmdError::Missing`], which says what mends it.
pub fn check_installed() -> Result<(), TestpmdError> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&folders).any(|folder| folder.join(PROGRAM).is_file());
    if there { Ok(()) } else { Err(TestpmdError::Missing) }
}

impl Testpmd {
    /// Starts it and waits for its prompt.
    ///
    /// # Errors
    /// [`TestpmdError`].
    pub fn start(spec: &TestpmdSpec, scratch: &Scratch) -> Result<Self, TestpmdError> {
        let log = scratch.file(&format!("{}.log", spec.name));
        // Its lines are to be in the log when its prompt is.
        let mut words = vec!["-oL".to_owned(), PROGRAM.to_owned()];
        let memory: &[&str] = if spec.huge_pages { &["--in-memory"] } else { &["--no-huge", "--no-shconf"] };
        words.extend(memory.iter().chain(&["--no-pci", "--no-telemetry"]).map(|word| (*word).to_owned()));
        words.push(format!("-m{}", spec.memory_mib));
        words.push(format!("--lcores=0@{},1@{}", spec.control_core, spec.forwarding_core));
        words.push(format!("--file-prefix={}", spec.name));
        words.extend(spec.devices.iter().map(|device| format!("--vdev={device}")));
        words.extend(["--", "-i", "--nb-cores=1"].map(str::to_owned));
        words.extend(spec.arguments.iter().cloned());
        let spawned = ProcessSpec::new(&spec.name, "stdbuf", log).args(&words).spoken_to().spawn();
        let mut process = spawned?;
        let input = process.input().expect("it is spoken to");
        process.wait_for_log(PROMPT, START)?;
        Ok(Self { process, input, asked: 0 })
    }

    /// Gives a command, and the answer when it has been carried out.
    ///
    /// # Errors
    /// [`TestpmdError`].
    pub fn ask(&mut self, command: &str) -> Result<String, TestpmdError> {
        self.asked += 1;
        let end = format!("{PROMPT}#{}.", self.asked);
        let told = writeln!(self.input, "{command}\n#{}.", self.asked).and_then(|()| self.input.flush());
        told.map_err(|source| self.fault(command, source))?;
        self.process.wait_for_log(&end, ANSWER)?;
        let said = std::fs::read(self.process.log()).map_err(|source| self.fault(command, source))?;
        let said = String::from_utf8_lossy(&said);
        let begin = format!("{PROMPT}{command}");
        let answer = said.split(&end).next().and_then(|before| before.rsplit(&begin).next());
        Ok(answer.unwrap_or_default().to_owned())
    }

    /// What was forwarded since the last [`Testpmd::clear`].
    ///
    /// # Errors
    /// [`TestpmdError`].
    pub fn forwarded(&mut self) -> Result<Forwarded, TestpmdError> {
        let command = "show fwd stats all";
        let answer = self.ask(command)?;
        read_forwarded(&answer).ok_or_else(|| TestpmdError::Answer {
            name: self.process.name().to_owned(),
            command: command.to_owned(),
            answer,
        })
    }

    /// Begins its figures anew.
    ///
    /// # Errors
    /// [`TestpmdError`].
    pub fn clear(&mut self) -> Result<(), TestpmdError> {
        self.ask("clear fwd stats all").map(drop)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    fn fault(&self, command: &str, source: io::Error) -> TestpmdError {
        TestpmdError::Ask { name: self.process.name().to_owned(), command: command.to_owned(), source }
    }
}

/// A vhost-user port of DPDK's own with so many pairs of queues, which listens at `socket`.
#[must_use]
pub fn vhost_device(number: usize, socket: &Path, queue_pairs: u16) -> String {
    format!("net_vhost{number},iface={},queues={queue_pairs}", socket.display())
}

/// A driver of a vhost-user port, as a guest has one.
#[derive(Clone, Debug)]
pub struct VirtioUser {
    /// The port's socket.
    pub socket: PathBuf,
    /// Pairs of queues.
    pub queue_pairs: u16,
    /// Entries of each ring.
    pub ring_entries: u16,
    /// Whether the rings are packed.
    pub packed: bool,
    /// Its address.
    pub mac: [u8; 6],
}

impl VirtioUser {
    /// As `--vdev` takes it. Buffers in order are not asked for, as not every backend has them.
    #[must_use]
    pub fn device(&self, number: usize) -> String {
        // Several pairs are switched on by a queue of their own.
        let control = if self.queue_pairs > 1 { ",cq=1" } else { "" };
        format!(
            "net_virtio_user{number},path={},queues={}{control},queue_size={},packed_vq={},in_order=0,mac={}",
            self.socket.display(),
            self.queue_pairs,
            self.ring_entries,
            u8::from(self.packed),
            colons(self.mac)
        )
    }
}

/// An address as testpmd writes and reads it.
#[must_use]
pub fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The sums over all ports: the last line of each kind.
fn read_forwarded(answer: &str) -> Option<Forwarded> {
    let (_, sums) = answer.split_once("Accumulated forward statistics")?;
    let value = |name: &str| {
        let (_, rest) = sums.split_once(name)?;
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let lost = value("RX-dropped:")? + value("TX-dropped:")?;
    Some(Forwarded { received: value("RX-packets:")?, sent: value("TX-packets:")?, lost })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_read_and_a_text_without_them_is_not() {
        let answer = "
  ---------------------- Forward statistics for port 1  ----------------------
  RX-packets: 5              RX-dropped: 9             RX-total: 14
  TX-packets: 6              TX-dropped: 0             TX-total: 6

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 12571264       RX-dropped: 3             RX-total: 12571267
  TX-packets: 12571200       TX-dropped: 4             TX-total: 12571204
";
        let wanted = Forwarded { received: 12_571_264, sent: 12_571_200, lost: 7 };
        assert_eq!(read_forwarded(answer), Some(wanted));
        assert_eq!(read_forwarded("Command not found"), None);
    }

    #[test]
    fn a_driver_is_named_as_testpmd_takes_it() {
        let driver = VirtioUser {
            socket: "/tmp/a".into(),
            queue_pairs: 1,
            ring_entries: 256,
            packed: true,
            mac: [2, 0, 0, 0, 0, 0x1f],
        };
        assert_eq!(
            driver.device(3),
            "net_virtio_user3,path=/tmp/a,queues=1,queue_size=256,packed_vq=1,in_order=0,mac=02:00:00:00:00:1f"
        );
        let several = VirtioUser { queue_pairs: 2, ..driver };
        assert!(several.device(0).contains(",queues=2,cq=1,queue_size=256"), "{}", several.device(0));
    }
}
