//! This host as the primary of a machine: finding the guest, finding the backup, and what follows when
//! either is lost. How pages and epochs get across is in [`protection`](super::protection).
//!
//! ```text
//! awaiting guest --> native --dial, welcome--> syncing --first seal--> protected
//!                      ^ ^                                                |
//!                      | '------------ unprotect (arbiter: solo) ---------|
//!                      |                                                  v link lost, lease runs out
//!                    solo <------------- arbiter: solo granted -------- holding
//!                                        arbiter: lost --------------> fenced
//! guest lost: protected or holding --> fence, relinquish, become backup; else down
//! ```
//!
//! OC-1: from the first seal on the gate holds; it opens again only after the arbiter granted a solo term.
//! FO-1: whatever goes wrong, the gate is fenced before the other host may go live.

use crate::gate::{MemoryError, MemoryFacts};
use crate::pages::PAGE_SIZE;
use crate::primary::Staging;
use crate::protocol::{DeviceDigest, Hello, Message, PROTOCOL_VERSION, RefusalCode, Welcome};
use crate::qemu::Machine;
use crate::transport::{Incoming, Link, LinkEvent, Transport};
use crate::vm::command::{Command, CommandError, What};
use crate::vm::hypervisor::{Fault, Guest, GuestError};
use crate::vm::protection::{Active, Lost};
use crate::vm::status::{Role, State};
use crate::vm::supervisor::{Cas, Core, Next, PrimaryStart, refuse_session};
use crossbeam_channel::{Receiver, bounded, never, select};
use holdfast_epoch::{Epoch, EpochId, Open, Term};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long dialling and the answer to a Hello may take.
const DIAL_TIME: Duration = Duration::from_secs(5);
/// Pause between looks for a guest that is not there yet.
const GUEST_LOOK: Duration = Duration::from_millis(200);
/// A guest whose memory is here and whose monitor is not is no guest that starts any more.
const MONITOR_PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may take from closing its monitor to its end.
const ENDING: Duration = Duration::from_millis(200);

/// A guest that was found.
pub(super) struct Found {
    pub(super) guest: Box<dyn Guest>,
    pub(super) memory: MemoryFacts,
    ended: Receiver<()>,
    /// What it is made of, as far as is known.
    machine: Option<Machine>,
    /// Whether the capture thread watches its memory without a gap.
    pub(super) tracked: bool,
    /// Threads of the one who watches.
    pub(super) watchers: Vec<i32>,
    /// Whether a scan takes every processor, so that QEMU waits for it.
    pub(super) crowded: bool,
}

/// A link whose Hello was answered with a Welcome.
pub(super) struct Greeted {
    link: Link,
    welcome: Welcome,
}

/// The way to the backup.
pub(super) enum Way {
    None,
    Dialling(Receiver<Result<Box<Greeted>, (Fault, String)>>),
    Open(Box<Active>),
}

/// The primary's role.
pub(super) struct Primary<'a> {
    pub(super) core: &'a mut Core,
    pub(super) found: Option<Found>,
    /// A guest that came to life here, whose memory is not connected yet.
    revived: Option<Box<dyn Guest>>,
    pub(super) way: Way,
    /// Where captured pages wait, from the first session on.
    pub(super) staging: Option<Staging>,
    /// Whether the arbiter's record says that this host runs alone.
    pub(super) solo: bool,
    /// Whether the gate holds output: from the first seal of a term on.
    pub(super) holding: bool,
    /// The epoch that runs.
    pub(super) open: Option<Epoch<Open>>,
    /// The last commit that was heard of, while the memory has been watched ever since.
    pub(super) confirmed: Option<(Term, EpochId)>,
    /// The gate may transmit until then.
    pub(super) lease_until: Instant,
    idle: State,
    /// Whether the guest's memory was here at the last look; since when its monitor has been missing.
    seen: bool,
    mute_since: Option<Instant>,
    /// When a guest that does not hand its memory over is asked what it is.
    object_at: Instant,
    look_at: Instant,
    pub(super) dial_at: Instant,
    /// Sessions that the backup refused since the last commit.
    pub(super) refusals: u32,
    ask_at: Instant,
    /// The backup ended the session in so many words: the lease need not run out first.
    pub(super) abandoned: bool,
    /// The guest did not answer, and nobody else has it.
    hung: bool,
    /// Why protection was ended, while the arbiter is yet to be asked whether output may pass.
    pub(super) unfit: Option<String>,
}

/// Runs this host as primary; it holds the current term and its gate is open.
pub(super) fn run_primary(core: &mut Core, start: PrimaryStart) -> Next {
    let now = Instant::now();
    let mut primary = Primary {
        core,
        found: None,
        revived: start.guest,
        way: Way::None,
        staging: None,
        solo: true,
        holding: false,
        open: None,
        confirmed: None,
        lease_until: now,
        idle: start.idle,
        seen: false,
        mute_since: None,
        object_at: now,
        look_at: now,
        dial_at: now,
        refusals: 0,
        ask_at: now,
        abandoned: false,
        hung: false,
        unfit: None,
    };
    let next = primary.run();
    primary.core.capture.call_off();
    primary.core.capture.detach();
    next
}

impl Primary<'_> {
    fn run(&mut self) -> Next {
        loop {
            self.show();
            if let Some(next) = self.on_time(Instant::now()) {
                return next;
            }
            // What that changed is not left to the end of the wait, which may be a minute away.
            self.show();
            let (no_end, no_dial) = (never(), never());
            let (no_report, no_round) = (never(), never());
            let ended = self.found.as_ref().map_or(&no_end, |found| &found.ended).clone();
            let (dialled, reports, round) = match &self.way {
                Way::None => (no_dial, no_report, no_round),
                Way::Dialling(dialled) => (dialled.clone(), no_report, no_round),
                Way::Open(active) => {
                    (no_dial, active.session.reports.clone(), active.round.clone().unwrap_or(no_round))
                }
            };
            let timeout = self.deadline().saturating_duration_since(Instant::now());
            let outcome = select! {
                recv(self.core.commands) -> command => match command {
                    Err(_) => return Next::End,
                    Ok(command) => self.command(command),
                },
                recv(self.core.incoming) -> incoming => match incoming {
                    Err(_) => { self.core.incoming = never(); Ok(()) }
                    Ok(incoming) => self.rival(&incoming),
                },
                recv(ended) -> _ => Err(Lost::Guest("its process has ended".to_owned())),
                recv(dialled) -> greeted => self.dialled(greeted.ok()),
                recv(reports) -> report => self.report(report.ok()),
                recv(round) -> end => self.round_ended(end.ok()),
                recv(self.core.traffic.output) -> told => {
                    match told {
                        Ok(()) => self.output_waits(),
                        Err(_) => self.core.traffic.output = never(),
                    }
                    Ok(())
                }
                default(timeout) => Ok(()),
            };
            if let Err(lost) = outcome {
                if let Some(next) = self.lost(lost) {
                    return next;
                }
            }
        }
    }

    /// What is due by the clock.
    fn on_time(&mut self, now: Instant) -> Option<Next> {
        if self.hung && now >= self.look_at {
            self.look_after_hung_guest(now);
        }
        if self.found.is_none() && now >= self.look_at {
            self.look_for_guest(now);
        }
        if matches!(self.way, Way::None) && self.wants_backup() && now >= self.dial_at {
            self.dial();
        }
        self.give_up_silent_backup(now);
        self.look_at_traffic(now);
        let outcome =
            if self.holding && now >= self.ask_time() { self.backup_lost() } else { self.seal_if_due(now) };
        match outcome {
            Ok(()) => None,
            Err(lost) => self.lost(lost),
        }
    }

    /// While the gate is open a silent backup costs nothing but time: it is not waited for without end.
    fn give_up_silent_backup(&mut self, now: Instant) {
        if let Way::Open(active) = &self.way {
            if !self.holding && now >= active.patience(self.core.config.lease) {
                self.core.board.trouble(Fault::Peer, "the backup does not answer any more");
                self.end_session("the backup does not answer");
                self.redial_later();
            }
        }
    }

    fn deadline(&self) -> Instant {
        let mut due = Instant::now() + Duration::from_secs(60);
        if self.found.is_none() || self.hung {
            due = due.min(self.look_at);
        }
        if matches!(self.way, Way::None) && self.wants_backup() {
            due = due.min(self.dial_at);
        }
        if self.holding {
            due = due.min(self.ask_time());
        }
        // Without a lease nothing is sealed; the report of one wakes us.
        if let Way::Open(active) = &self.way {
            if self.holding || Instant::now() < self.lease_until {
                due = due.min(active.due(self.core.config.in_flight));
            }
            if !self.holding {
                due = due.min(active.patience(self.core.config.lease));
            }
        }
        due
    }

    /// When the arbiter is to be asked for a solo term, while the gate holds.
    fn ask_time(&self) -> Instant {
        if self.abandoned { self.ask_at } else { self.lease_until.max(self.ask_at) }
    }

    fn wants_backup(&self) -> bool {
        self.found.is_some() && !self.hung && self.core.protect && self.core.transport.is_some()
    }

    fn show(&self) {
        let state = match &self.way {
            _ if self.holding && self.protected() => State::Protected,
            _ if self.holding => State::Holding,
            _ if self.found.is_none() && self.idle == State::Down => State::Down,
            _ if self.found.is_none() && !self.seen => State::AwaitingGuest,
            Way::Open(_) => State::Syncing,
            _ => self.idle,
        };
        self.core.board.state(Role::Primary, state);
    }

    /// Whether epochs are being committed.
    pub(super) fn protected(&self) -> bool {
        matches!(&self.way, Way::Open(active) if active.committed)
    }

    fn look_for_guest(&mut self, now: Instant) {
        self.look_at = now + GUEST_LOOK.min(self.core.config.retry);
        let memory = match self.core.capture.facts() {
            Ok(memory) => memory,
            Err(MemoryError::NotYet) => {
                (self.seen, self.mute_since) = (false, None);
                return self.ask_for_objections(now);
            }
            Err(fault) => {
                self.core.board.trouble(Fault::Operator, fault.to_string());
                self.look_at = now + self.core.config.retry;
                return;
            }
        };
        self.seen = true;
        let guest = match self.revived.take() {
            Some(guest) => Ok(guest),
            None => self.core.hypervisor.guest(&memory),
        };
        match guest {
            Ok(guest) => {
                let ended = guest.ended();
                self.mute_since = None;
                self.found = Some(Found {
                    guest,
                    memory,
                    ended,
                    machine: None,
                    tracked: false,
                    watchers: Vec::new(),
                    crowded: false,
                });
                if self.idle == State::Down {
                    self.idle = State::Native;
                }
            }
            Err(GuestError::NotYet(text)) => {
                let since = *self.mute_since.get_or_insert(now);
                if self.core.protect && now >= since + MONITOR_PATIENCE {
                    self.core.board.trouble(Fault::Operator, text);
                    self.look_at = now + self.core.config.retry;
                }
            }
            Err(fault) => {
                self.core.board.trouble(Fault::Operator, fault.to_string());
                self.look_at = now + self.core.config.retry;
            }
        }
    }

    /// A guest whose memory is of the wrong kind never hands it over: its monitor tells.
    fn ask_for_objections(&mut self, now: Instant) {
        if !self.core.protect || now < self.object_at {
            return;
        }
        self.object_at = now + self.core.config.retry;
        if let Some(text) = self.core.hypervisor.objections() {
            self.core.board.trouble(Fault::Operator, text);
        }
    }

    /// Dials on a thread of its own: the guest and the operator are not kept waiting.
    fn dial(&mut self) {
        let (Some(transport), Some(found)) = (self.core.transport.clone(), &mut self.found) else { return };
        if !self.holding {
            // What is found now is what every state that is saved from now on is held against.
            match found.guest.machine() {
                Ok(machine) => found.machine = Some(machine),
                Err(fault) => {
                    self.core.board.trouble(Fault::Guest, fault.to_string());
                    return self.redial_later();
                }
            }
            if let Some(text) = found.guest.objection() {
                self.core.board.trouble(Fault::Operator, text);
                return self.redial_later();
            }
        }
        let machine = found.machine.clone();
        let config = &self.core.config;
        let hello = Hello {
            version: PROTOCOL_VERSION,
            vm: config.name.clone(),
            host: config.host.clone(),
            term: self.core.term,
            memory: found.memory.len,
            page_size: PAGE_SIZE as u32,
            session: RandomState::new().hash_one(self.core.term.get()),
            lease_ms: u32::try_from(config.lease.as_millis()).unwrap_or(u32::MAX),
            devices: machine.as_ref().map_or_else(DeviceDigest::default, |machine| machine.digest),
            ports: self.core.gate.lock().limits(),
        };
        let (answer, answered) = bounded(1);
        let spawned = thread::Builder::new().name("hf-dial".to_owned()).spawn(move || {
            // A supervisor that ended meanwhile does not miss it.
            drop(answer.send(greet(&*transport, hello, machine.as_ref())));
        });
        match spawned {
            Ok(_) => self.way = Way::Dialling(answered),
            Err(error) => {
                self.core.board.trouble(Fault::Host, format!("no thread to dial with: {error}"));
                self.dial_at = Instant::now() + self.core.config.retry;
            }
        }
    }

    fn dialled(&mut self, greeted: Option<Result<Box<Greeted>, (Fault, String)>>) -> Result<(), Lost> {
        self.way = Way::None;
        match greeted {
            Some(Ok(greeted)) if self.wants_backup() => {
                let Greeted { link, welcome } = *greeted;
                self.welcomed(Arc::new(link), &welcome)
            }
            Some(Ok(greeted)) => {
                greeted.link.send(&Message::Goodbye { reason: "not wanted any more".to_owned() });
                Ok(())
            }
            failed => {
                if let Some(Err((fault, text))) = failed {
                    self.core.board.trouble(fault, text);
                }
                self.redial_later();
                Ok(())
            }
        }
    }

    /// While the gate holds and the lease still runs, every moment counts; later it does not.
    pub(super) fn redial_later(&mut self) {
        let now = Instant::now();
        let in_a_hurry = self.holding && now < self.lease_until;
        let pause = if in_a_hurry { self.core.config.heartbeat } else { self.core.config.retry };
        self.dial_at = now + pause.min(self.core.config.retry);
    }

    /// A session for this machine comes although this host is its primary: is it still?
    fn rival(&mut self, incoming: &Incoming) -> Result<(), Lost> {
        refuse_session(incoming, "this host is the machine's primary");
        if incoming.hello.term <= self.core.term {
            return Ok(());
        }
        match self.core.arbiter.read(&self.core.config.name) {
            Ok(Some(grant)) if grant.term > self.core.term => {
                let text = format!("term {} belongs to host {}", grant.term, grant.holder);
                self.core.know_term(grant.term);
                Err(Lost::Term(text))
            }
            _ => Ok(()),
        }
    }

    /// The lease has run out: output stands still. Alone or not is the arbiter's word (FO-2).
    fn backup_lost(&mut self) -> Result<(), Lost> {
        self.end_session("the backup does not answer");
        self.go_solo().map_or_else(
            |lost| match lost {
                Lost::Arbiter(text) => {
                    self.core.board.trouble(
                        Fault::Arbiter,
                        format!("the backup is lost and the arbiter does not answer; output is held: {text}"),
                    );
                    self.ask_at = Instant::now() + self.core.config.retry;
                    self.dial_at = self.dial_at.min(self.ask_at);
                    Ok(())
                }
                lost => Err(lost),
            },
            |()| {
                self.idle = if self.core.protect { State::Solo } else { State::Native };
                if let Some(text) = self.unfit.take() {
                    self.core.board.trouble(Fault::Operator, text);
                }
                Ok(())
            },
        )
    }

    /// Asks for a solo term and opens the gate.
    pub(super) fn go_solo(&mut self) -> Result<(), Lost> {
        match self.core.ask_for(self.core.term, true) {
            Cas::Won => {
                self.solo = true;
                self.holding = false;
                let opened = self.core.gate.lock().open();
                opened.map_err(|fault| Lost::Gate(fault.to_string()))
            }
            Cas::Lost(text) => Err(Lost::Term(text)),
            Cas::Unknown(text) => Err(Lost::Arbiter(text)),
        }
    }

    fn command(&mut self, command: Command) -> Result<(), Lost> {
        match command.what {
            What::Unprotect => {
                let outcome = self.unprotect();
                let (answer, outcome) = match outcome {
                    Ok(()) => (Ok("output passes; the guest is not protected any more".to_owned()), Ok(())),
                    Err(Lost::Arbiter(text)) => (
                        Err(CommandError::new(
                            Fault::Arbiter,
                            format!("the arbiter must agree first and does not answer: {text}"),
                        )),
                        Ok(()),
                    ),
                    Err(lost) => (Err(CommandError::new(Fault::Peer, lost.to_string())), Err(lost)),
                };
                command.answer(answer);
                outcome
            }
            What::Failover => match self.hand_over() {
                Ok(()) => {
                    command.answer(Ok("the machine was handed over".to_owned()));
                    Err(Lost::HandedOver)
                }
                Err(fault) => {
                    command.answer(Err(fault));
                    Ok(())
                }
            },
            What::Shutdown => {
                let handed_over = self.protected() && self.hand_over().is_ok();
                self.end_session("the primary is shut down");
                self.core.gate.lock().fence();
                if handed_over {
                    self.retire_guest();
                } else {
                    self.forget_tracking();
                    self.leave_guest();
                }
                let text = if handed_over { "the machine was handed over" } else { "ended" };
                command.answer(Ok(text.to_owned()));
                Err(Lost::ShutDown)
            }
            setting => {
                let answer = self.core.set(setting).unwrap_or_else(|| Ok(String::new()));
                if setting == What::Protect {
                    self.unfit = None;
                    (self.dial_at, self.refusals) = (Instant::now(), 0);
                }
                if setting == What::Protect && self.core.transport.is_none() {
                    command.answer(Err(CommandError::new(
                        Fault::Operator,
                        "no peer is configured: add [replication] and a [vm.backup] to the configuration",
                    )));
                } else {
                    command.answer(answer);
                }
                Ok(())
            }
        }
    }

    fn unprotect(&mut self) -> Result<(), Lost> {
        if self.holding {
            self.go_solo()?;
        }
        self.core.protect = false;
        self.core.board.edit().protect = false;
        self.idle = State::Native;
        self.end_session("unprotected by command");
        self.forget_tracking();
        self.leave_guest();
        Ok(())
    }

    /// The machine is not the standby's any more: nothing that was saved of it is sent. Output passes once the
    /// arbiter agreed (FO-2), and is held until then; what the backup has goes live meanwhile if this host dies.
    pub(super) fn end_protection(&mut self, why: &str) -> Result<(), Lost> {
        let text = format!(
            "protection has ended, for the guest's machine has changed: {why}; then `holdfast protect {}`",
            self.core.config.name
        );
        self.core.protect = false;
        self.core.board.edit().protect = false;
        self.core.board.trouble(Fault::Operator, text.clone());
        let alone = if self.holding { self.go_solo() } else { Ok(()) };
        self.end_session("the guest's machine has changed");
        self.forget_tracking();
        self.leave_guest();
        self.idle = State::Native;
        match alone {
            Err(Lost::Arbiter(fault)) => {
                tracing::warn!(vm = %self.core.config.name, "output is held, the arbiter does not answer: {fault}");
                (self.abandoned, self.ask_at, self.unfit) = (true, Instant::now(), Some(text));
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// The memory is not watched any more: only a full synchronisation helps.
    pub(super) fn forget_tracking(&mut self) {
        self.core.capture.detach();
        self.confirmed = None;
        if let Some(found) = &mut self.found {
            found.tracked = false;
        }
    }

    fn leave_guest(&mut self) {
        if let Some(found) = &mut self.found {
            found.guest.leave();
        }
    }

    fn retire_guest(&mut self) {
        if let Some(found) = self.found.take() {
            found.guest.retire();
        }
    }

    /// Deals with a loss; says which role is next, if another is.
    fn lost(&mut self, lost: Lost) -> Option<Next> {
        match lost {
            Lost::Guest(text) => self.guest_lost(&text),
            Lost::Term(text) => {
                self.core.gate.lock().fence();
                self.core.board.trouble(Fault::Peer, format!("this host lost the machine: {text}"));
                self.end_session("this host lost the machine");
                Some(Next::Fenced(self.found.take().map(|found| found.guest)))
            }
            Lost::Gate(text) => {
                self.core.board.trouble(Fault::Host, text);
                self.end_session("the primary's dataplane failed");
                self.redial_later();
                None
            }
            Lost::Arbiter(text) => {
                self.core.board.trouble(Fault::Arbiter, text);
                self.end_session("the arbiter does not answer");
                self.redial_later();
                None
            }
            Lost::Unfit(text) => match self.end_protection(&text) {
                Ok(()) => None,
                Err(lost) => self.lost(lost),
            },
            Lost::HandedOver => {
                self.end_session("handed over");
                self.retire_guest();
                Some(Next::Backup)
            }
            Lost::ShutDown => Some(Next::End),
        }
    }

    /// FO-1: silent first, then say so; the backup need not wait for the lease.
    fn guest_lost(&mut self, text: &str) -> Option<Next> {
        let backed = self.confirmed.is_some_and(|(term, _)| term == self.core.term);
        if !backed && !self.has_ended() {
            return self.guest_hangs(text);
        }
        let holding = self.holding;
        if holding {
            self.core.gate.lock().fence();
            if let Way::Open(active) = &self.way {
                active.session.link.send(&Message::Relinquish { term: self.core.term });
            }
        }
        self.core.board.trouble(Fault::Guest, format!("the guest's QEMU is lost: {text}"));
        self.end_session("the guest is lost");
        self.forget_tracking();
        self.retire_guest();
        if holding {
            return Some(Next::Backup);
        }
        self.idle = State::Down;
        self.look_at = Instant::now() + self.core.config.retry;
        None
    }

    /// Whether the guest's process has ended: one that closed its monitor is given a moment to.
    fn has_ended(&self) -> bool {
        self.found.as_ref().is_none_or(|found| {
            found.ended.recv_timeout(ENDING) == Err(crossbeam_channel::RecvTimeoutError::Disconnected)
        })
    }

    /// A QEMU that hangs while no backup holds a commit of this term is the only one that there is: it is not
    /// given up, but continued as soon as it answers.
    fn guest_hangs(&mut self, text: &str) -> Option<Next> {
        self.core.board.trouble(Fault::Guest, format!("the guest stands still: {text}"));
        self.core.capture.give_up();
        self.end_session("the guest stands still");
        self.hung = true;
        self.abandoned = true;
        self.look_at = Instant::now() + self.core.config.retry;
        None
    }

    fn look_after_hung_guest(&mut self, now: Instant) {
        let Some(found) = &mut self.found else {
            self.hung = false;
            return;
        };
        self.look_at = now + self.core.config.retry;
        match found.guest.cont() {
            Ok(()) => self.hung = false,
            Err(fault) => tracing::debug!(%fault, "the guest stands still yet"),
        }
    }
}

/// Dials and introduces the machine.
fn greet(
    transport: &dyn Transport,
    hello: Hello,
    machine: Option<&Machine>,
) -> Result<Box<Greeted>, (Fault, String)> {
    let deadline = Instant::now() + DIAL_TIME;
    let link = transport.dial(DIAL_TIME).map_err(|fault| (Fault::Peer, fault.to_string()))?;
    let session = hello.session;
    link.send(&Message::Hello(hello));
    loop {
        match link.events().recv_deadline(deadline) {
            Ok(LinkEvent::Lease { .. }) => {}
            Ok(LinkEvent::Message { message: Message::Welcome(welcome), .. })
                if welcome.version == PROTOCOL_VERSION && welcome.session == session =>
            {
                return Ok(Box::new(Greeted { link, welcome }));
            }
            Ok(LinkEvent::Message { message: Message::Welcome(welcome), .. })
                if welcome.version != PROTOCOL_VERSION =>
            {
                let theirs = format!("it speaks version {}", welcome.version);
                return Err((Fault::Operator, of_another_release(&transport.peer(), &theirs)));
            }
            Ok(LinkEvent::Message { message: Message::Refuse(refusal), .. })
                if refusal.code == RefusalCode::Version =>
            {
                // Its words are of another release: what is to be done is said by this one.
                let theirs = format!("it says: {refusal}");
                return Err((Fault::Operator, of_another_release(&transport.peer(), &theirs)));
            }
            Ok(LinkEvent::Message { message: Message::Refuse(refusal), .. }) => {
                let mut text = format!("{} refuses: {refusal}", transport.peer());
                if let (RefusalCode::Devices, Some(machine)) = (refusal.code, machine) {
                    text += &format!("; the guest is {}", machine.text);
                }
                return Err((whose(refusal.code), text));
            }
            Ok(LinkEvent::Message { message, .. }) => {
                let name = message.name();
                return Err((Fault::Peer, format!("{} answered with {name}", transport.peer())));
            }
            Err(error) if error.is_timeout() => {
                return Err((Fault::Peer, format!("{} does not answer", transport.peer())));
            }
            Err(_) => {
                let end = link.end();
                return Err((end.fault, format!("{}: {}", transport.peer(), end.text)));
            }
        }
    }
}

/// Whose fault it is that a backup refuses: the operator's where the hosts' settings do not fit each other.
const fn whose(code: RefusalCode) -> Fault {
    match code {
        RefusalCode::UnknownMachine
        | RefusalCode::MemorySize
        | RefusalCode::Devices
        | RefusalCode::Limits => Fault::Operator,
        _ => Fault::Peer,
    }
}

/// What the operator is told when the other host speaks another version.
fn of_another_release(peer: &str, theirs: &str) -> String {
    format!(
        "{peer} runs another release of Holdfast: this host speaks version {PROTOCOL_VERSION} of the replication \
         protocol, and {theirs}; mend: install the same release on both hosts"
    )
}
