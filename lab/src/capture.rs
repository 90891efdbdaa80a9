//! Captures what passes an interface, with tcpdump.
//!
//! Capture at the client's end of a host's wire: what arrives there, the host has sent, and the time
//! is that of the arrival, a moment after the sending.

use crate::netns::Namespace;
use crate::pcap::{Pcap, PcapError};
use crate::process::{Process, ProcessError, ProcessSpec, tail};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes kept of each frame: as many as the frame audit hashes.
pub const SNAPSHOT_BYTES: usize = 256;
const BUFFER_KIB: u32 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

/// Which frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Those that arrive at the interface.
    Arriving,
    /// Those that leave by it.
    Leaving,
    /// All.
    Both,
}

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    path: PathBuf,
}

/// An ended capture.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The file.
    pub path: PathBuf,
    /// Frames in it.
    pub frames: u64,
    /// Frames that the kernel had to drop, as the capture was too slow.
    pub dropped: u64,
}

impl Capture {
    /// Starts one into the file `path`; it captures when this returns.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        flow: Flow,
        path: &Path,
    ) -> Result<Self, ProcessError> {
        let flow = match flow {
            Flow::Arriving => "in",
            Flow::Leaving => "out",
            Flow::Both => "inout",
        };
        let log = path.with_extension("log");
        let mut process = ProcessSpec::new(format!("tcpdump {interface}"), "tcpdump", &log)
            .args(["-i", interface, "-Q", flow, "-n", "--nano", "-U", "-p"])
            .args(["-s", &SNAPSHOT_BYTES.to_string(), "-B", &BUFFER_KIB.to_string()])
            // Debian's tcpdump would give up its rights and then not be able to write.
            .args(["-Z", "root", "-w"])
            .args([path])
            .namespace(namespace)
            .spawn()?;
        process.wait_for_log("listening on", PATIENCE)?;
        Ok(Self { process, path: path.into() })
    }

    /// Ends it and counts.
    pub fn stop(mut self) -> Result<Captured, ProcessError> {
        self.process.signal(Signal::SIGINT)?;
        if self.process.wait(PATIENCE)?.is_none() {
            self.process.kill()?;
        }
        let words = tail(self.process.log(), 10);
        Ok(Captured {
            frames: count_before(&words, " packets captured")
                .or(count_before(&words, " packet captured"))
                .unwrap_or(0),
            dropped: count_before(&words, " packets dropped by kernel")
                .or(count_before(&words, " packet dropped by kernel"))
                .unwrap_or(0),
            path: self.path.clone(),
        })
    }
}

impl Captured {
    /// Opens it for reading.
    pub fn open(&self) -> Result<Pcap, PcapError> {
        Pcap::open(&self.path)
    }
}

fn count_before(words: &str, label: &str) -> Option<u64> {
    words.lines().find_map(|line| line.trim().strip_suffix(label)?.parse().ok())
}
