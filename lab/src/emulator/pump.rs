//! Moves frames between two interfaces, each direction through its [`Impairment`], on one thread.
//!
//! A wake-up for each frame would take a processor at a few hundred Mbit/s. So after a round that moved
//! something the pump rests for [`ROUND`] and takes what has come in the meantime at once: a frame may be
//! late by that, which the report tells (`latest_us`); on an idle wire it is woken at once.

use super::impairment::{Counters, Impairment};
use super::profile::WireSpec;
use super::socket::{BATCH, PacketSocket};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What is printed when frames are moved.
pub(super) const READY_LINE: &str = "wire emulator: ready";
/// At least from one busy round to the next.
const ROUND: Duration = Duration::from_micros(100);
/// Batches taken from one side before the other has its turn.
const BATCHES: usize = 8;

/// What a direction came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// See there.
    #[serde(flatten)]
    pub counters: Counters,
    /// Frames that were neither delivered nor lost when the wire ended.
    pub under_way_frames: u64,
    /// Frames too long for the emulator: an interface leaves segmentation to the next one.
    pub oversized_frames: u64,
    /// Frames that the kernel dropped, as the emulator was too slow to fetch them. Not of the wire.
    pub unfetched_frames: u64,
    /// Frames that the interface did not take.
    pub unsent_frames: u64,
    /// By how much a frame was late at most, in microseconds: what the processor did not give.
    pub latest_us: u64,
}

/// What the wire came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The seed of both directions.
    pub seed: u64,
    /// Towards the client: left to right.
    pub down: DirectionReport,
    /// From the client: right to left.
    pub up: DirectionReport,
}

impl Report {
    /// Frames that the wire lost or dropped, both ways.
    pub fn missing_frames(&self) -> u64 {
        [self.down, self.up].iter().map(|way| way.counters.lost_frames + way.counters.dropped_frames).sum()
    }
}

/// Frames on their way to one side.
struct Lane {
    impairment: Impairment,
    outgoing: Vec<Vec<u8>>,
    unsent_frames: u64,
    latest: Duration,
}

/// The emulator: two sockets, two lanes.
pub struct Pump {
    seed: u64,
    left: PacketSocket,
    right: PacketSocket,
    down: Lane,
    up: Lane,
}

impl Pump {
    /// Between the two interfaces, which are in this thread's network namespace, up, and leave neither
    /// segmentation nor checksums to others.
    ///
    /// # Errors
    /// When one of them is not there, or without the right to open raw sockets.
    pub fn open(left: &str, right: &str, wire: &WireSpec, seed: u64) -> io::Result<Self> {
        let named = |name: &str| {
            let name = name.to_owned();
            move |error: io::Error| io::Error::new(error.kind(), format!("interface {name}: {error}"))
        };
        Ok(Self {
            seed,
            left: PacketSocket::open(left).map_err(named(left))?,
            right: PacketSocket::open(right).map_err(named(right))?,
            down: Lane::new(Impairment::new(wire.down, seed.wrapping_mul(2))),
            up: Lane::new(Impairment::new(wire.up, seed.wrapping_mul(2).wrapping_add(1))),
        })
    }

    /// Moves frames until `stop` can be read.
    ///
    /// # Errors
    /// When an interface is gone.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> io::Result<Report> {
        let began = Instant::now();
        loop {
            let round = began.elapsed();
            let moved = self.down.turn(began, &mut self.left, &self.right)?
                + self.up.turn(began, &mut self.right, &self.left)?;
            let mut watched = vec![PollFd::new(stop, PollFlags::POLLIN)];
            let rest = if moved > 0 {
                Some((round + ROUND).saturating_sub(began.elapsed()))
            } else {
                for side in [&self.left, &self.right] {
                    watched.push(PollFd::new(side.as_fd(), PollFlags::POLLIN));
                }
                let due = [&self.down, &self.up].into_iter().filter_map(Lane::next_deadline).min();
                due.map(|due| due.saturating_sub(began.elapsed()))
            };
            match ppoll(&mut watched, rest.map(TimeSpec::from), None) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if watched[0].any().unwrap_or(true) {
                return Ok(self.report());
            }
        }
    }

    fn report(&mut self) -> Report {
        Report {
            seed: self.seed,
            down: self.down.report(&mut self.left),
            up: self.up.report(&mut self.right),
        }
    }
}

impl Lane {
    fn new(impairment: Impairment) -> Self {
        Self { impairment, outgoing: Vec::with_capacity(BATCH), unsent_frames: 0, latest: Duration::ZERO }
    }

    /// Takes what has come at one side and sends what is due by the other; says how many frames that were.
    fn turn(&mut self, began: Instant, from: &mut PacketSocket, to: &PacketSocket) -> io::Result<usize> {
        let mut moved = 0;
        for _ in 0..BATCHES {
            let now = began.elapsed();
            let got = from.receive(|frame| self.impairment.handle_frame(now, frame))?;
            moved += got;
            moved += self.send_due(began.elapsed(), to)?;
            if got < BATCH {
                break;
            }
        }
        Ok(moved)
    }

    fn send_due(&mut self, now: Duration, to: &PacketSocket) -> io::Result<usize> {
        let mut sent = 0;
        loop {
            while self.outgoing.len() < BATCH {
                let due = self.impairment.next_deadline();
                let Some(frame) = self.impairment.poll_frame(now) else { break };
                self.latest = self.latest.max(now.saturating_sub(due.unwrap_or(now)));
                self.outgoing.push(frame);
            }
            if self.outgoing.is_empty() {
                return Ok(sent);
            }
            let went = match to.send(&self.outgoing) {
                // No room: again in the next round.
                Ok(0) => return Ok(sent + 1),
                Ok(went) => went,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::EMSGSIZE)) => {
                    self.unsent_frames += 1;
                    1
                }
                Err(error) => return Err(error),
            };
            sent += went;
            for frame in self.outgoing.drain(..went) {
                self.impairment.recycle(frame);
            }
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        if self.outgoing.is_empty() { self.impairment.next_deadline() } else { Some(Duration::ZERO) }
    }

    fn report(&self, from: &mut PacketSocket) -> DirectionReport {
        DirectionReport {
            counters: *self.impairment.counters(),
            under_way_frames: self.impairment.under_way() as u64,
            oversized_frames: from.oversized_frames,
            unfetched_frames: from.dropped_frames(),
            unsent_frames: self.unsent_frames,
            latest_us: self.latest.as_micros() as u64,
        }
    }
}

/// Until SIGTERM or SIGINT, then prints the report as one line of JSON: the body of
/// `holdfast wire-emulator`. The calling thread must be the process's only one.
///
/// # Errors
/// As [`Pump::open`] and [`Pump::run`].
pub fn serve(left: &str, right: &str, wire: &WireSpec, seed: u64) -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let stop = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // Deadlines are met to a few microseconds, not to the 50 that a process may be late by default.
    nix::sys::prctl::set_timerslack(1_000)?;
    let mut pump = Pump::open(left, right, wire, seed)?;
    println!("{READY_LINE}: {left} to {right}, {wire}, seed {seed}");
    let report = pump.run(stop.as_fd())?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
