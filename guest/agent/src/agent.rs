//! The running agent: asks, listens, and lets the congestion control follow.

use crate::channel::Channel;
use crate::choice::Choice;
use crate::clock::Clock;
use crate::congestion::{self, Congestion};
use crate::control::{Counters, Settings};
use crate::interfaces::{self, Interface, Interfaces};
use crate::presence::{ASK_EVERY, PATIENCE, Presence, State};
use crate::probe;
use crate::status::{FOLDER, Status};
use crate::{Failure, RunOptions};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// So long after the agent's last word the programs let no flow be open: a few of its rounds.
const VALID: Duration = Duration::from_secs(5);
/// The least time in which a flow proves what it is; so long also while no epoch is known.
const LEAST_PROOF_US: u32 = 50_000;

/// What runs.
struct Agent {
    channel: Channel,
    interfaces: Interfaces,
    presence: Presence,
    congestion: Option<Congestion>,
    told: Told,
    choice: Choice,
    netns_cookie: u64,
    clock: Clock,
    /// That the clock cannot be slewed was said.
    clock_failed: bool,
    /// The guest's own.
    previous: String,
    /// Of attachments that are over.
    counted: Counters,
    /// Cards that could not be asked by, to be told once each.
    deaf: Vec<String>,
}

/// What the programs were told.
#[derive(Debug, Default)]
struct Told {
    ports: Vec<i32>,
    epoch_us: u32,
    fast_us: u32,
}

/// Runs until it is told to end.
pub(crate) fn run(options: RunOptions) -> Result<(), Failure> {
    let RunOptions { choice, clock } = options;
    let folder = Path::new(FOLDER);
    let left = Status::read(folder).ok().flatten();
    if let Some(other) =
        left.as_ref().filter(|other| other.is_of_running() && other.pid != std::process::id())
    {
        return Err(Failure::Failed(format!("an agent runs already, as process {}", other.pid)));
    }
    if undo(left.as_ref())? {
        println!("holdfast-guest: undid what an agent left that was killed");
    }
    // Said now, not when Holdfast appears.
    probe::refuse(Path::new("/"), &choice)?;
    congestion::try_load().map_err(Failure::lacks)?;
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(Failure::failed)?;
    let ends = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(Failure::failed)?;
    let channel = Channel::open().map_err(|fault| {
        Failure::Lacks(format!(
            "a packet socket cannot be opened: {fault}\n  mend: run as root, or with CAP_NET_RAW; the kernel needs \
             CONFIG_PACKET"
        ))
    })?;
    let mut agent = Agent {
        netns_cookie: channel.namespace().map_err(Failure::failed)?,
        channel,
        interfaces: Interfaces::new(Path::new("/")),
        presence: Presence::default(),
        congestion: None,
        told: Told::default(),
        choice,
        clock: Clock::open(clock)?,
        clock_failed: false,
        previous: congestion::default_name().map_err(Failure::failed)?,
        counted: Counters::default(),
        deaf: Vec::new(),
    };
    let served = agent.serve(&ends, folder);
    let undone = agent.detach().and(agent.clock.let_go().map_err(Failure::failed));
    drop(Status::remove(folder));
    println!("holdfast-guest: ends; the guest's congestion control is {} again", agent.previous);
    served.and(undone)
}

/// Undoes what an agent left of which that is the status; whether there was something.
pub(crate) fn undo(left: Option<&Status>) -> Result<bool, Failure> {
    let previous = left.map(|left| left.own_congestion_control.as_str());
    let control = congestion::undo(previous).map_err(Failure::failed)?;
    let own_clock = left.and_then(|left| left.clock.own);
    let clock = own_clock.map_or(Ok(false), |own| own.give_back(None)).map_err(Failure::failed)?;
    Ok(control || clock)
}

impl Agent {
    fn serve(&mut self, ends: &SignalFd, folder: &Path) -> Result<(), Failure> {
        let (mut next_ask, mut next_round) = (Duration::ZERO, Duration::ZERO);
        let mut all = Vec::new();
        loop {
            let now = monotonic();
            let asks = now >= next_ask;
            if asks {
                next_ask = now + ASK_EVERY;
                all = self.interfaces.all();
            }
            if asks || now >= next_round {
                next_round = self.clock.period().map_or(next_ask, |period| next_ask.min(now + period));
                if asks || self.clock.wants_answers() {
                    self.ask(&all, asks);
                }
                self.keep_clock();
            }
            if asks {
                self.follow(now, &all)?;
                self.tell(&all, folder)?;
            }
            let wait = next_round.saturating_sub(monotonic()).as_millis() as u16;
            let mut watched = [
                PollFd::new(ends.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::from(wait.saturating_add(1))) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(fault) => return Err(Failure::failed(fault)),
            }
            if watched[0].any().unwrap_or(false) {
                return Ok(());
            }
            if watched[1].any().unwrap_or(false) && self.listen()? {
                self.follow(monotonic(), &all)?;
                self.tell(&all, folder)?;
            }
        }
    }

    /// Asks by each card; where an answer is still to come, only `again`: the last question alone is answered.
    fn ask(&mut self, all: &[Interface], again: bool) {
        for card in interfaces::cards(all) {
            if !again && self.channel.is_waiting(card.index) {
                continue;
            }
            match self.channel.ask(card.index) {
                Ok(()) => self.deaf.retain(|name| *name != card.name),
                Err(fault) if !self.deaf.contains(&card.name) => {
                    println!("holdfast-guest: cannot ask by {}: {fault}", card.name);
                    self.deaf.push(card.name.clone());
                }
                Err(_) => {}
            }
        }
    }

    /// Takes the answers that have come; whether there was something new.
    fn listen(&mut self) -> Result<bool, Failure> {
        let mut is_news = false;
        while let Some((ifindex, answer, exchange)) = self.channel.answer().map_err(Failure::failed)? {
            is_news |= self.presence.handle_answer(monotonic(), ifindex, answer);
            self.clock.handle_exchange(exchange);
        }
        Ok(is_news)
    }

    /// A clock that cannot be kept is no reason to end.
    fn keep_clock(&mut self) {
        match self.clock.round() {
            Ok(()) => self.clock_failed = false,
            Err(fault) if !self.clock_failed => {
                println!("holdfast-guest: the clock cannot be kept: {fault}; mend: run with CAP_SYS_TIME");
                self.clock_failed = true;
            }
            Err(_) => {}
        }
    }

    /// Lets the congestion control be what the presence of Holdfast asks for.
    fn follow(&mut self, now: Duration, all: &[Interface]) -> Result<(), Failure> {
        let (state, changed) = self.presence.poll(now);
        if changed {
            let (name, reason) = Status::explain(state, self.presence.newest());
            println!("holdfast-guest: {name}: {reason}");
        }
        if state == State::Absent {
            return self.detach();
        }
        let ports = interfaces::with_those_above(all, &self.presence.ports());
        let ports = if state == State::Present { ports } else { Vec::new() };
        let (epoch_us, fast_us) = (self.presence.epoch_us(), self.presence.fast_us());
        let proof_us = epoch_us.saturating_mul(2).max(LEAST_PROOF_US);
        let valid_until_us = (now + VALID).as_micros() as u64;
        self.told = Told { ports: ports.clone(), epoch_us, fast_us };
        match &mut self.congestion {
            Some(congestion) => {
                congestion.follow_group().map_err(Failure::failed)?;
                congestion.set(ports, fast_us, proof_us, valid_until_us).map_err(Failure::failed)
            }
            None => {
                self.previous = congestion::default_name().map_err(Failure::failed)?;
                let netns_cookie = self.netns_cookie;
                let settings = Settings {
                    ports,
                    fast_us,
                    proof_us,
                    valid_until_us,
                    netns_cookie,
                    ..Settings::default()
                };
                let congestion = Congestion::attach(&self.previous, settings, &self.choice);
                self.congestion = Some(congestion.map_err(Failure::failed)?);
                println!("holdfast-guest: attached, for {}; before: {}", self.choice, self.previous);
                Ok(())
            }
        }
    }

    fn detach(&mut self) -> Result<(), Failure> {
        let Some(congestion) = self.congestion.take() else { return Ok(()) };
        self.counted = self.counted.plus(&congestion.counters());
        self.told = Told::default();
        congestion.detach().map_err(Failure::failed)?;
        println!("holdfast-guest: detached; {} again", self.previous);
        Ok(())
    }

    fn tell(&self, all: &[Interface], folder: &Path) -> Result<(), Failure> {
        let state = match &self.congestion {
            None => State::Absent,
            Some(_) if self.told.ports.is_empty() => State::Paused,
            Some(_) => State::Present,
        };
        let (state, reason) = Status::explain(state, self.presence.newest());
        let counters = self.congestion.as_ref().map(Congestion::counters).unwrap_or_default();
        let ports = all.iter().filter(|interface| self.told.ports.contains(&interface.index));
        let status = Status {
            pid: std::process::id(),
            state: state.into(),
            reason: reason.into(),
            interfaces: ports.map(|interface| interface.name.clone()).collect(),
            epoch_us: self.told.epoch_us,
            fast_us: self.told.fast_us,
            chosen: self.choice.to_string(),
            own_congestion_control: self.previous.clone(),
            clock: self.clock.status(),
            counters: self.counted.plus(&counters),
        };
        status.write(folder).map_err(|fault| Failure::Failed(format!("{}: {fault}", folder.display())))
    }
}

/// The clock that the programs see: it stands still while the guest does.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

const _: () = assert!(VALID.as_secs() > PATIENCE.as_secs());
