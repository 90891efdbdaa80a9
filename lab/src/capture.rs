//! Captures what passes an interface, with tcpdump.
//!
//! Capture at the client's end of a host's wire: what arrives there, the host has sent, and the time
//! is that of the arrival, a moment after the sending.

use crate::netns::Namespace;
use crate::pcap::{Pcap, PcapError};
use crate::process::{Process, ProcessError, ProcessSpec, tail};
use nix::sys::signal::Signal;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes kept of each frame: as many as the frame audit hashes.
pub const SNAPSHOT_BYTES: usize = 256;
/// Ethernet, IPv4 and TCP with all its options.
const HEADER_BYTES: usize = 96;
const BUFFER_KIB: u32 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);
/// The kernel hands over frames in blocks that are full or a second old; a signal would lose the last one.
const BLOCK_TIME: Duration = Duration::from_millis(1200);

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
    /// Where it ends by itself.
    most_frames: Option<u64>,
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
    /// Whether it ended before what it was to see, as it had its greatest number of frames.
    pub cut: bool,
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
        // Each frame is written at once: who captured may be killed.
        let words = ["-U", "-Q", flow, "-s", &SNAPSHOT_BYTES.to_string()];
        Self::spawn(namespace, interface, &words, path, None)
    }

    /// Starts one of the headers alone of IPv4's TCP connections that have that port at one end, both ways. It
    /// costs little, and ends by itself with so many frames: of the course of a connection its beginning counts.
    pub fn of_headers(
        namespace: &Namespace,
        interface: &str,
        port: u16,
        most_frames: u64,
        path: &Path,
    ) -> Result<Self, ProcessError> {
        let [snapshot, most, port] = [HEADER_BYTES.to_string(), most_frames.to_string(), port.to_string()];
        let words = ["-s", &snapshot, "-c", &most, "tcp", "port", &port];
        Self::spawn(namespace, interface, &words, path, Some(most_frames))
    }

    fn spawn(
        namespace: &Namespace,
        interface: &str,
        words: &[&str],
        path: &Path,
        most_frames: Option<u64>,
    ) -> Result<Self, ProcessError> {
        let log = path.with_extension("log");
        // The words of an earlier capture of that name would be taken for this one's.
        match fs::remove_file(&log) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ProcessError::System {
                    name: "tcpdump".into(),
                    step: "remove an old log",
                    source,
                });
            }
            _ => {}
        }
        let mut process = ProcessSpec::new(format!("tcpdump {interface}"), "tcpdump", &log)
            .args(["-i", interface, "-n", "--nano", "-p", "-B", &BUFFER_KIB.to_string()])
            // Debian's tcpdump would give up its rights and then not be able to write.
            .args(["-Z", "root", "-w"])
            .args([path])
            .args(words)
            .namespace(namespace)
            .spawn()?;
        process.wait_for_log("listening on", PATIENCE)?;
        Ok(Self { process, path: path.into(), most_frames })
    }

    /// Ends it and counts.
    pub fn stop(mut self) -> Result<Captured, ProcessError> {
        if self.most_frames.is_some() {
            // One that has all the frames that it may have ends by itself.
            self.process.wait(BLOCK_TIME)?;
        }
        self.process.signal(Signal::SIGINT)?;
        if self.process.wait(PATIENCE)?.is_none() {
            self.process.kill()?;
        }
        let words = tail(self.process.log(), 10);
        let frames = count_before(&words, " packets captured")
            .or(count_before(&words, " packet captured"))
            .unwrap_or(0);
        Ok(Captured {
            frames,
            cut: self.most_frames.is_some_and(|most| frames >= most),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::requirements::{Need, can_run};
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    const BYTES: usize = 1 << 20;

    /// The capture of a connection that carries a megabyte, and the bytes of its longest frame.
    fn of_a_connection(most_frames: u64) -> (Captured, usize) {
        let namespace = Namespace::create("capture").expect("made");
        let scratch = crate::scratch::Scratch::new("capture").expect("folders");
        let listener =
            namespace.run(|| TcpListener::bind(("127.0.0.1", 0))).expect("entered").expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let path = scratch.file("lo.pcap");
        // Of an earlier capture of that name.
        fs::write(path.with_extension("log"), "listening on\n9 packets captured\n").expect("written");
        let capture = Capture::of_headers(&namespace, "lo", port, most_frames, &path).expect("captures");
        let sender = thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("accepted");
            peer.write_all(&vec![7; BYTES]).expect("sent");
        });
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let mut peer = Client::new(&namespace).connect(target, Duration::from_secs(5)).expect("connected");
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).expect("received");
        sender.join().expect("sent");
        let captured = capture.stop().expect("ended");
        let mut pcap = captured.open().expect("a capture");
        let mut longest = 0;
        while let Some(frame) = pcap.next_frame().expect("read") {
            longest = longest.max(frame.bytes.len());
        }
        (captured, longest)
    }

    #[test]
    fn a_capture_of_headers_is_bounded_and_says_when_it_was_cut() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let (whole, longest) = of_a_connection(100_000);
        assert!(whole.frames > 9 && !whole.cut && longest <= HEADER_BYTES, "{whole:?}, {longest}");
        let (cut, _) = of_a_connection(5);
        assert!(cut.frames == 5 && cut.cut, "{cut:?}");
    }
}
