//! The world of one run: virtual time, what happens next, and who is told.
//!
//! ```text
//!  client (smoltcp) <-- wire --> host: engine + escrow <--> guest (smoltcp, with a shadow)
//!                                  | stream, cut   ^ commit
//!                                  '---> backup: ledger, kept epoch
//! ```
//!
//! One event at a time; after each the host takes its turn in the order that the engine asks for, and
//! the judge sees every frame.

mod endings;
mod epochs;
mod faults;
mod traffic;

use crate::breakage::Breakage;
use crate::guest::{Guest, Mark};
use crate::host::Host;
use crate::judge::{Judge, Key, Verdict, broken};
use crate::party::Party;
use crate::random::{Random, spread};
use crate::scenario::{Mode, Moment, Scenario, Side};
use crate::surgery::{Link, Reassembly};
use crate::trace::Trace;
use crate::wire::Wire;
use holdfast_speculation::{Ledger, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

/// Something that happens at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ToClient(Vec<u8>),
    ToHost(Vec<u8>),
    Stray(Vec<u8>),
    GuestRuns,
    HostTurn,
    Seal(u64),
    Resume(u64),
    Arrive(u64, u64),
    Confirm(u64, u64),
    Takeover,
    Protect(u64),
    LinkBack,
    Strike(usize),
}

/// An epoch on its way to the backup.
struct Sealed {
    state: Vec<u8>,
    stream: Vec<u8>,
    mark: Mark,
}

/// What the backup would go live with.
struct Kept {
    ledger: Ledger,
    mark: Mark,
}

/// A session with the backup; it begins with a whole epoch.
struct Session {
    id: u64,
    /// The ledger that the first epoch will fill; the kept one serves from there on.
    fresh: Option<Ledger>,
    begun: bool,
    sealed: BTreeMap<u64, Sealed>,
    last_arrival: Time,
    last_confirmation: Time,
}

/// How often something happened, for the moments that count.
#[derive(Default)]
struct Counts {
    captured: u32,
    forged: u32,
    sealed: u32,
    kept: u32,
    committed: u32,
    releasing: u32,
}

/// One run.
pub(crate) struct World {
    scenario: Scenario,
    now: Time,
    pub(crate) trace: Trace,
    guest: Guest,
    client: Party,
    host: Option<Host>,
    judge: Judge,
    /// Of the guest's fragments.
    reassembly: Reassembly,
    guest_link: Link,
    broken: Option<Breakage>,
    random: Random,
    queue: BinaryHeap<Reverse<(Time, u64, Event)>>,
    order: u64,
    to_client: Wire,
    to_guest: Wire,
    session: Option<Session>,
    sessions: u64,
    kept: Option<Kept>,
    /// The newest epoch of this term that the backup holds.
    kept_epoch: u64,
    term: u64,
    pauses: u64,
    /// Until when commits are late, and by how much.
    late: (Time, Duration),
    never: bool,
    client_gone: bool,
    guest_called: bool,
    turn_called: bool,
    counts: Counts,
    /// The host vanishes before anything else happens.
    doomed: bool,
    /// Since when a guest's window is shut for no reason.
    shut: BTreeMap<Key, Time>,
    /// Bytes of each stream that were found right.
    checked: BTreeMap<(usize, Side), usize>,
    /// Frames that the client sent last.
    past: VecDeque<Vec<u8>>,
    /// Connections of this number and above do not speculate.
    barred: Option<u16>,
    frames: u64,
    failovers: u32,
}

/// What a run that went well has to tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Virtual time that passed.
    pub lasted: Duration,
    /// Frames handled.
    pub frames: u64,
    /// Failovers.
    pub failovers: u32,
    /// Frames that the engine made for the guest.
    pub forged: u32,
    /// SYNs that the guest was shown with a window scale that their client did not have.
    pub lent: u32,
    /// Epochs that the backup confirmed.
    pub commits: u32,
    /// Bytes that the client read.
    pub delivered: u64,
}

/// Events of a run at most; more is a loop.
const MAX_STEPS: u64 = 3_000_000;

impl World {
    pub(crate) fn new(scenario: &Scenario, broken: Option<Breakage>, traced: bool) -> Self {
        let mut random = Random::new(spread(scenario.seed ^ 0x3017d));
        let wires = [random.bits(), random.bits()];
        let mut world = Self {
            now: Time::ZERO,
            trace: Trace::new(traced),
            guest: Guest::new(scenario),
            client: Party::new(Side::Client, scenario),
            host: Some(Host::new(scenario, 1, scenario.mode, Time::ZERO)),
            judge: Judge::default(),
            reassembly: Reassembly::default(),
            guest_link: Link::new(true, scenario.tags, scenario.v6),
            broken,
            queue: BinaryHeap::new(),
            order: 0,
            to_client: Wire::new(&scenario.to_client, wires[0]),
            to_guest: Wire::new(&scenario.to_guest, wires[1]),
            session: None,
            sessions: 0,
            kept: None,
            kept_epoch: 0,
            term: 1,
            pauses: 0,
            late: (Time::ZERO, Duration::ZERO),
            never: false,
            client_gone: false,
            guest_called: false,
            turn_called: false,
            counts: Counts::default(),
            doomed: false,
            shut: BTreeMap::new(),
            checked: BTreeMap::new(),
            past: VecDeque::new(),
            barred: None,
            frames: 0,
            failovers: 0,
            random,
            scenario: scenario.clone(),
        };
        world.judge.strict = scenario.guest.broken_every == 0 && scenario.guest.fragment_every == 0;
        world.judge.strict_client = scenario.client.fragment_every == 0;
        for (index, (moment, _)) in scenario.faults.iter().enumerate() {
            if let Moment::At(at) = moment {
                world.at(Time::ZERO + *at, Event::Strike(index));
            }
        }
        if scenario.mode == Mode::Native {
            world.judge.go_native();
        } else {
            world.begin_session();
        }
        world
    }

    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((time, self.order, event)));
    }

    fn after(&mut self, by: Duration, event: Event) {
        self.at(self.now + by, event);
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(&mut self) -> Result<Summary, crate::judge::Violation> {
        let limit = self.limit();
        for _ in 0..MAX_STEPS {
            if self.over() {
                self.check_end()?;
                return Ok(self.summary());
            }
            let Some((at, who)) = self.next() else {
                if !self.scenario.must_end() {
                    return Ok(self.summary());
                }
                return self.stuck("nothing will ever happen any more");
            };
            if at > limit {
                if self.scenario.must_end() {
                    return self.stuck("it does not come to an end");
                }
                return Ok(self.summary());
            }
            self.now = self.now.max(at);
            self.step(who)?;
            if self.doomed {
                self.crash();
            }
        }
        let who = self.next();
        self.stuck(&format!("too much happens, {who:?}"))
    }

    /// What happens next: the queue first, then guest, client and engine by themselves.
    fn next(&mut self) -> Option<(Time, Who)> {
        let event = self.queue.peek().map(|Reverse((at, ..))| (*at, Who::Queue));
        let guest = self.host.as_ref().and_then(|_| self.guest.deadline()).map(|at| (at, Who::Guest));
        let client = if self.client_gone { None } else { self.client.deadline() }.map(|at| (at, Who::Client));
        let engine =
            self.host.as_ref().and_then(|host| host.engine.next_deadline()).map(|at| (at, Who::Engine));
        [event, guest, client, engine].into_iter().flatten().min()
    }

    fn step(&mut self, who: Who) -> Verdict {
        match who {
            Who::Guest => self.run_guest()?,
            Who::Client => self.run_client(Vec::new())?,
            Who::Engine => {}
            Who::Queue => {
                let Some(Reverse((_, _, event))) = self.queue.pop() else { return Ok(()) };
                self.handle(event)?;
            }
        }
        if self.doomed { Ok(()) } else { self.turn() }
    }

    fn handle(&mut self, event: Event) -> Verdict {
        match event {
            Event::ToClient(frame) if self.client_gone => self.trace.frame(self.now, "lost", &frame),
            Event::ToClient(frame) => {
                self.trace.frame(self.now, "at client", &frame);
                self.run_client(vec![frame])?;
            }
            Event::ToHost(frame) => self.deliver(frame)?,
            Event::Stray(frame) => self.deliver_stray(frame)?,
            Event::GuestRuns => {
                self.guest_called = false;
                if !self.guest.is_paused() && self.host.is_some() {
                    self.run_guest()?;
                }
            }
            Event::HostTurn => self.turn_called = false,
            Event::Seal(session) => {
                self.seal(session);
                self.check_windows()?;
            }
            Event::Resume(pause) => self.resume(pause),
            Event::Arrive(session, epoch) => self.arrive(session, epoch)?,
            Event::Confirm(session, epoch) => self.confirm(session, epoch)?,
            Event::Takeover => self.take_over()?,
            Event::Protect(term) if term == self.term => self.protect_again()?,
            Event::Protect(_) => {}
            Event::LinkBack => {
                if self.session.is_none() && self.host.as_ref().is_some_and(|host| host.mode != Mode::Native)
                {
                    self.begin_session();
                }
            }
            Event::Strike(index) => self.strike(self.scenario.faults[index].1)?,
        }
        Ok(())
    }

    fn stuck<T>(&self, why: &str) -> Result<T, crate::judge::Violation> {
        broken("liveness", format!("{why}; {}", self.state()))
    }
}

/// Who acts next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Queue,
    Guest,
    Client,
    Engine,
}
