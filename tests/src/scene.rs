//! A pair of hosts set up for a test, with a capture on each host's wire, and streams that flow.

use crate::oracles::Wire;
use crate::program::holdfast;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::capture::{Capture, Flow};
use holdfast_lab::client::{Amount, Client, Direction, Session, SessionReport, SessionSpec};
use holdfast_lab::pair::{Appliance, Pair, PairError, PairOptions};
use holdfast_lab::topology::REPLICATION;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The name of the only VM of most tests.
pub const VM: &str = "guest";
/// Boot under translation on a busy machine, and the first full synchronisation.
pub const READY: Duration = Duration::from_secs(120);
/// A state that should come within a second or two is waited for that long: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(60);
/// Longer than most leases: a busy machine must not lose one by itself.
const LEASE_MS: u64 = 1500;

/// A pair as most tests want it: the system's QEMU, one VM with one NIC.
pub fn options(mode: &str) -> PairOptions {
    let qemu = Qemu::system().expect("the system's QEMU");
    let mut options = PairOptions::new(&holdfast(), qemu, mode);
    options.lease_ms = LEASE_MS;
    options
}

/// Two hosts, a client, and the guests.
pub struct Scene {
    /// The hosts.
    pub pair: Pair,
    /// Seed of the streams.
    pub seed: u64,
    wires: Option<(Capture, Capture)>,
}

impl Scene {
    /// Starts all; the guests boot.
    pub fn begin(options: PairOptions, seed: u64) -> Self {
        let pair = Pair::start(options).expect("a pair of hosts");
        Self { pair, seed, wires: None }
    }

    /// Starts all, waits until the guests are up and protected (or pass, in native mode), and captures
    /// on both wires.
    pub fn ready(options: PairOptions, seed: u64) -> Self {
        let mut scene = Self::begin(options, seed);
        scene.pair.wait_ready(READY).expect("guests that are up");
        scene.capture();
        scene
    }

    /// Captures on both wires from now on.
    pub fn capture(&mut self) {
        let capture = |port: &str| {
            let file = self.pair.scratch.file(&format!("{port}.pcap"));
            Capture::start(&self.pair.topology.switch, port, Flow::Arriving, &file).expect("a capture")
        };
        let ports = (self.pair.topology.a.client_port, self.pair.topology.b.client_port);
        self.wires = Some((capture(ports.0), capture(ports.1)));
    }

    /// Ends the captures: what host A and what host B sent.
    pub fn wires(&mut self) -> (Wire, Wire) {
        let (a, b) = self.wires.take().expect("the captures run");
        let ended = |capture: Capture| Wire::new(capture.stop().expect("a capture's end"));
        (ended(a), ended(b))
    }

    /// The client.
    pub fn client(&self) -> Client {
        Client::new(&self.pair.topology.client)
    }

    /// Starts a stream each way with the guest at `address`; `salt` tells streams apart.
    pub fn streams(&self, address: impl Into<IpAddr>, salt: u64) -> Streams {
        let address = address.into();
        let start = |direction, salt| {
            let spec = SessionSpec::new(direction, address, self.seed ^ salt, Amount::UntilStopped);
            self.client().start(spec).expect("a session with the guest")
        };
        Streams {
            download: start(Direction::Download, salt << 1),
            upload: start(Direction::Upload, salt << 1 | 1),
        }
    }

    /// Asks a Holdfast for something about a VM.
    pub fn ask(host: &Appliance, command: &str, vm: &str) -> Result<Value, PairError> {
        host.ask(&json!({"command": command, "vm": vm}))
    }

    /// Makes what a host sends on the replication link slow, as `rate` in tc's words says.
    pub fn throttle(&self, host: &Appliance, rate: &str) {
        let words = format!("qdisc replace dev {REPLICATION} root tbf rate {rate} burst 32kb latency 500ms");
        let words: Vec<&str> = words.split(' ').collect();
        host.host.namespace.tool("tc", &words).expect("a slow link");
    }

    /// Waits until host B has taken the VM over; gives its word on that.
    pub fn taken_over(&self, vm: &str) -> Value {
        wait_status(&self.pair.b, vm, "taken over", |status| status["failover"].is_object())["failover"]
            .clone()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in [&self.pair.a, &self.pair.b] {
                println!("the log of {} ends:\n{}", host.name, host.log_tail(25));
            }
            println!("logs and captures are kept in {}", self.pair.scratch.keep().display());
        }
    }
}

/// Waits until a VM's status at a host fulfils `done`.
pub fn wait_status(host: &Appliance, vm: &str, wanted: &str, done: impl Fn(&Value) -> bool) -> Value {
    host.wait_for(vm, wanted, SOON, done).unwrap_or_else(|fault| panic!("{fault}"))
}

/// Waits until a VM is in that state at a host.
pub fn wait_state(host: &Appliance, vm: &str, state: &str) -> Value {
    wait_status(host, vm, state, |status| status["state"] == state)
}

/// Waits until `count` more epochs of the VM are committed.
pub fn wait_epochs(host: &Appliance, vm: &str, count: u64) -> Value {
    let now = host.vm(vm).expect("a status")["committed_epoch"].as_u64().unwrap_or(0);
    wait_status(host, vm, "committing epochs", |status| {
        status["committed_epoch"].as_u64().is_some_and(|epoch| epoch >= now + count)
    })
}

/// Waits until `done`, looking again and again; panics with `what` if that does not come.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < until, "{what}: not within {} s", patience.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A stream each way.
pub struct Streams {
    download: Session,
    upload: Session,
}

impl Streams {
    /// Waits until each stream has carried `bytes` more.
    pub fn flow(&self, bytes: u64) {
        let wanted = (self.download.bytes() + bytes, self.upload.bytes() + bytes);
        wait_until(&format!("{bytes} more bytes each way"), SOON, || {
            let done = self.download.bytes() >= wanted.0 && self.upload.bytes() >= wanted.1;
            let ended = self.download.is_finished() || self.upload.is_finished();
            assert!(done || !ended, "a stream ended by itself after {:?} bytes", self.bytes());
            done
        });
    }

    /// Whether both still run.
    pub fn alive(&self) -> bool {
        !self.download.is_finished() && !self.upload.is_finished()
    }

    /// Bytes to and from the client so far.
    pub fn bytes(&self) -> (u64, u64) {
        (self.download.bytes(), self.upload.bytes())
    }

    /// Ends both. O1: every byte was right; O2: no reset, no timeout. Gives the longest gap of both.
    pub fn finish_exact(self) -> Duration {
        self.download.stop();
        self.upload.stop();
        let reports = [self.download.finish(), self.upload.finish()];
        for report in &reports {
            assert!(report.exact() && report.bytes > 0, "{:?} ended {:?}", report.direction, report.end);
        }
        let [download, upload] = reports.map(|report: SessionReport| report.max_gap);
        println!("longest gaps: {download:?} to the client, {upload:?} from it");
        download.max(upload)
    }

    /// Lets both go without a look at how they end.
    pub fn abandon(self) {
        self.download.stop();
        self.upload.stop();
    }
}
