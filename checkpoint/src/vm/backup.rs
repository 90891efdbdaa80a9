//! This host as the backup of a machine, until it goes live or ends.
//!
//! ```text
//! waiting --session, full synchronisation--> syncing --first commit--> ready
//! ready --relinquished, or silence beyond every promise--> ask the arbiter
//!          won  --> going live --> primary (solo)
//!          lost --> waiting
//! ```
//!
//! FO-1: the guest goes live here only after the lease that was promised last has run out, or the primary
//! fenced itself and said so. FO-2: and only after the arbiter's compare-and-set.

use crate::backup::{BackupSession, CommitLog, Outcome, refusal};
use crate::gate::PortLimits;
use crate::image::{Image, ImageConfig, ImageError, ImageState};
use crate::lease::LeaseGrants;
use crate::protocol::{
    DeviceDigest, Hello, ImageHeld, Message, PROTOCOL_VERSION, Refusal, RefusalCode, Welcome,
};
use crate::qemu::Machine;
use crate::transport::{Incoming, Link, LinkEvent, WINDOW};
use crate::vm::command::{Command, CommandError, What};
use crate::vm::config::BackupConfig;
use crate::vm::hypervisor::{Fault, Guest, Standby};
use crate::vm::status::{FailoverReport, LinkStatus, Role, State};
use crate::vm::supervisor::{Cas, Core, Next, PrimaryStart};
use crossbeam_channel::{Receiver, never, select};
use holdfast_epoch::Term;
use std::time::{Duration, Instant};

/// Longest pause between attempts to start a standby that does not start.
const STANDBY_PAUSE: Duration = Duration::from_secs(15);

/// Runs this host as backup.
pub(super) fn run_backup(core: &mut Core) -> Next {
    core.gate.lock().fence();
    core.capture.detach();
    core.board.state(Role::Backup, State::Waiting);
    let Some(config) = core.config.backup.clone() else {
        core.board.trouble(
            Fault::Operator,
            "this host is the backup of the machine but has no [vm.backup] settings: add them",
        );
        return if core.idle(core.config.retry) { Next::End } else { Next::Decide };
    };
    if core.term > Term::NONE {
        // A guest of an earlier term may still stand here; before the first term there is none.
        core.hypervisor.retire_old();
    }
    let (image, log) = match open(core, &config) {
        Ok(opened) => opened,
        Err(text) => {
            core.board.trouble(Fault::Host, text);
            return if core.idle(core.config.retry) { Next::End } else { Next::Backup };
        }
    };
    let mut backup = Backup {
        candidate: None,
        standby: None,
        unable: None,
        able: false,
        machine: None,
        standby_retry: Instant::now(),
        standby_pause: core.config.retry,
        session: None,
        grants: LeaseGrants::new(Instant::now()),
        span: core.config.lease + core.config.lease_margin,
        undecided: None,
        retry_at: Instant::now(),
        second_look: None,
        image,
        log,
        config,
        core,
    };
    backup.adopt_checkpoint();
    backup.run()
}

fn open(core: &Core, config: &BackupConfig) -> Result<(Image, CommitLog), String> {
    let mut record = config.image.clone().into_os_string();
    record.push(".record");
    let settings = ImageConfig {
        vm: core.config.name.clone(),
        memory: config.image.clone(),
        record: record.into(),
        len: config.memory,
    };
    let image = match Image::open(settings.clone()) {
        Ok(image) => Ok(image),
        Err(fault @ (ImageError::InUse { .. } | ImageError::Size { .. } | ImageError::OtherVm { .. })) => {
            Err(fault)
        }
        Err(fault) => {
            match fault {
                // Not held, and not to go live from: the operator may wonder why.
                ImageError::KeptLost { .. } => core.board.trouble(Fault::Host, fault.to_string()),
                _ => tracing::debug!(%fault, "no checkpoint is here"),
            }
            Image::create(settings)
        }
    };
    let image = image.map_err(|fault| fault.to_string())?;
    let log = CommitLog::open(&config.commit_log).map_err(|error| {
        format!(
            "the commit log {} cannot be opened: {error}; mend: a file in a folder that is there, as commit_log \
             in [vm.backup]",
            config.commit_log.display()
        )
    })?;
    Ok((image, log))
}

/// The two settings that bound what is held of a port's flows: their names, and how much each allows.
fn bounds(limits: PortLimits) -> [(&'static str, u64); 2] {
    [("escrow_mib", limits.bytes >> 20), ("flows", limits.flows.into())]
}

/// SP-2: what the primary may hold for its clients must find room here, or an epoch would be refused when it
/// holds that much. A card's queues are part of the machine's state.
fn check_limits(primary: &[PortLimits], own: &[PortLimits]) -> Result<(), Refusal> {
    let refused = |text| Err(Refusal::new(RefusalCode::Limits, text));
    if primary.len() != own.len() {
        return refused(format!(
            "the machine has {} NICs on the primary and {} on the backup: give it the same [[vm.nic]] on both",
            primary.len(),
            own.len()
        ));
    }
    for (nic, (theirs, ours)) in primary.iter().zip(own).enumerate() {
        if theirs.queue_pairs != ours.queue_pairs {
            return refused(format!(
                "NIC {nic} has another number of queues on the backup, where their state would not fit: queue_pairs is \
                 {} on the primary and {} on the backup: make `queue_pairs` of its [[vm.nic]] the same on both",
                theirs.queue_pairs, ours.queue_pairs
            ));
        }
        for ((name, theirs), (_, ours)) in bounds(*theirs).into_iter().zip(bounds(*ours)) {
            if theirs > ours {
                return refused(format!(
                    "the primary may hold more for the clients of NIC {nic} than the backup would keep: {name} is \
                     {theirs} there and {ours} on the backup: make `{name}` in [vm.speculation] the same on both"
                ));
            }
        }
    }
    Ok(())
}

/// A session stands, but the way back will not: what the operator is told of limits that are larger here.
fn larger_here(primary: &[PortLimits], own: &[PortLimits]) -> Option<String> {
    primary.iter().zip(own).find_map(|(theirs, ours)| {
        let mut pairs = bounds(*theirs).into_iter().zip(bounds(*ours));
        let ((name, theirs), (_, ours)) = pairs.find(|((_, theirs), (_, ours))| theirs < ours)?;
        Some(format!(
            "`{name}` in [vm.speculation] is {ours} here and {theirs} on the primary: once the machine is here, that \
             host would refuse to back it up; mend: make it the same on both"
        ))
    })
}

/// Whose fault it is that this host refuses.
const fn whose(refusal: &Refusal) -> Fault {
    match refusal.code {
        RefusalCode::NoRoom | RefusalCode::Storage => Fault::Host,
        RefusalCode::MemorySize | RefusalCode::Devices | RefusalCode::Limits => Fault::Operator,
        _ => Fault::Peer,
    }
}

struct Active {
    link: Link,
    session: BackupSession,
}

/// Why the machine is wanted here.
#[derive(Clone, Copy, Debug)]
struct Claim {
    cause: &'static str,
    /// The primary's last sign of life.
    since: Instant,
}

struct Backup<'a> {
    core: &'a mut Core,
    config: BackupConfig,
    image: Image,
    log: CommitLog,
    /// The checkpoint that may go live: committed in the term that is current as far as is known.
    candidate: Option<ImageHeld>,
    standby: Option<(Box<dyn Standby>, Receiver<()>)>,
    /// Why no standby could ever be started: nobody could go live here.
    unable: Option<String>,
    able: bool,
    /// What the standby is made of.
    machine: Option<Machine>,
    standby_retry: Instant,
    standby_pause: Duration,
    session: Option<Active>,
    grants: LeaseGrants,
    /// How long the primary must have been silent.
    span: Duration,
    /// The arbiter has not answered our claim yet.
    undecided: Option<Claim>,
    retry_at: Instant,
    /// When to look again after this host stood still.
    second_look: Option<Instant>,
}

impl Backup<'_> {
    /// A checkpoint that an earlier process left may go live if its term is still the current one.
    fn adopt_checkpoint(&mut self) {
        let ImageState::Valid { term, epoch } = self.image.state() else { return };
        self.core.know_term(term);
        let current = self.core.arbiter.read(&self.core.config.name);
        if matches!(&current, Ok(Some(grant)) if grant.term == term && !grant.solo) {
            self.hold(ImageHeld { term, epoch });
        }
    }

    fn hold(&mut self, held: ImageHeld) {
        self.candidate = Some(held);
        let mut status = self.core.board.edit();
        status.committed_epoch = Some(held.epoch.get());
        if let Some(active) = &self.session {
            status.link.show_way(&active.link);
        }
        drop(status);
        self.core.board.state(Role::Backup, State::Ready);
    }

    fn run(&mut self) -> Next {
        loop {
            self.keep_standby();
            let none = never();
            let events = self.session.as_ref().map_or(&none, |active| active.link.events()).clone();
            let no_end = never();
            let standby_ended = self.standby.as_ref().map_or(&no_end, |(_, ended)| ended).clone();
            let timeout = self.deadline().saturating_duration_since(Instant::now());
            let mut next = None;
            select! {
                recv(self.core.commands) -> command => match command {
                    Err(_) => next = Some(Next::End),
                    Ok(command) => next = self.command(command),
                },
                recv(self.core.incoming) -> incoming => match incoming {
                    Err(_) => self.core.incoming = never(),
                    Ok(incoming) => self.greet(incoming),
                },
                recv(events) -> event => match event {
                    Err(_) => self.link_ended(),
                    Ok(LinkEvent::Lease { .. }) => {}
                    Ok(LinkEvent::Message { message, charge }) => next = self.message(message, charge),
                },
                recv(standby_ended) -> _ => self.standby_lost(),
                default(timeout) => {}
            }
            if let Some(next) = next.or_else(|| self.on_time(Instant::now())) {
                return next;
            }
        }
    }

    fn deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(60);
        let due = self.second_look.unwrap_or_else(|| self.grants.last() + self.span);
        let silence = self.candidate.map_or(far, |_| due);
        let claim = if self.undecided.is_some() { self.retry_at } else { silence };
        let standby = if self.standby.is_some() { far } else { self.standby_retry };
        claim.min(standby).min(far)
    }

    fn on_time(&mut self, now: Instant) -> Option<Next> {
        if let Some(claim) = self.undecided {
            return if now >= self.retry_at { self.claim(claim) } else { None };
        }
        self.candidate?;
        let since = self.grants.last();
        if self.overslept(since + self.span, now) {
            return None;
        }
        match self.grants.close_after(self.span, now) {
            Err(_left) => None,
            Ok(()) => self.claim(Claim { cause: "silence", since }),
        }
    }

    /// A host that stood still itself must not take its own absence for the primary's: what the primary
    /// sent meanwhile is looked at first. Says whether to wait for that.
    fn overslept(&mut self, due: Instant, now: Instant) -> bool {
        if now < due {
            self.second_look = None;
            return false;
        }
        let pause = self.core.config.heartbeat;
        match self.second_look {
            Some(at) => now < at,
            None if now > due + pause => {
                self.second_look = Some(now + 2 * pause);
                true
            }
            None => false,
        }
    }

    fn keep_standby(&mut self) {
        if self.standby.is_some() || Instant::now() < self.standby_retry {
            return;
        }
        let standby = self.core.hypervisor.standby();
        match standby.and_then(|mut standby| Ok((standby.machine()?, standby))) {
            Ok((machine, standby)) => {
                let ended = standby.ended();
                self.machine = Some(machine);
                self.standby = Some((standby, ended));
                (self.unable, self.able) = (None, true);
                self.standby_pause = self.core.config.retry;
            }
            Err(fault) => {
                let text = format!("no standby: {fault}");
                self.unable = (!self.able).then(|| text.clone());
                self.core.board.trouble(Fault::Operator, text);
                self.standby_retry = Instant::now() + self.standby_pause;
                self.standby_pause = (self.standby_pause * 2).min(STANDBY_PAUSE.max(self.core.config.retry));
            }
        }
    }

    fn standby_lost(&mut self) {
        self.standby = None;
        self.standby_retry = Instant::now() + self.core.config.retry;
        self.core.board.trouble(Fault::Host, "the standby QEMU has ended; it is started anew");
    }

    fn command(&mut self, command: Command) -> Option<Next> {
        match command.what {
            What::Shutdown => {
                if let Some(active) = self.session.take() {
                    active.link.send(&Message::Goodbye { reason: "the backup is shut down".to_owned() });
                }
                command.answer(Ok("ended".to_owned()));
                return Some(Next::End);
            }
            What::Failover => {
                let answer = match (&self.session, self.candidate) {
                    (Some(active), Some(_)) => {
                        active.link.send(&Message::Summon { term: active.session.term() });
                        Ok("the primary was asked to hand the machine over".to_owned())
                    }
                    (None, Some(_)) => Err(CommandError::new(
                        Fault::Peer,
                        "the primary is not connected: the machine comes here by itself once its silence \
                         has lasted and the arbiter agrees",
                    )),
                    (_, None) => Err(CommandError::new(
                        Fault::Operator,
                        "no committed checkpoint of the machine's current term is here: protect it first",
                    )),
                };
                command.answer(answer);
            }
            What::Unprotect => command.answer(Err(CommandError::new(
                Fault::Operator,
                "this host is the backup: give the command on the primary",
            ))),
            setting => {
                let answer = self.core.set(setting).unwrap_or_else(|| Ok(String::new()));
                command.answer(answer);
            }
        }
        None
    }

    /// Welcomes or refuses a session; a new one takes the place of the old one, whose connection the
    /// primary must have lost.
    fn greet(&mut self, incoming: Incoming) {
        let Incoming { hello, link } = incoming;
        if let Err(refusal) = self.check_hello(&hello) {
            self.core.board.trouble(whose(&refusal), format!("a session was refused: {refusal}"));
            link.send(&Message::Refuse(refusal));
            link.close();
            return;
        }
        if let Some(text) = &self.unable {
            // A guest that is protected by nobody shall not wait for commits; the operator knows it already.
            link.send(&Message::Refuse(Refusal::new(RefusalCode::NotBackup, text)));
            link.close();
            return;
        }
        if let Some(text) = larger_here(&hello.ports, &self.core.gate.lock().limits()) {
            self.core.board.trouble(Fault::Operator, text);
        }
        self.core.know_term(hello.term);
        if self.candidate.is_some_and(|held| held.term < hello.term) {
            // The primary went on alone since: what is held here is history.
            self.candidate = None;
            self.core.board.state(Role::Backup, State::Waiting);
        }
        self.undecided = None;
        self.grants.reopen(Instant::now());
        let promised = Duration::from_millis(hello.lease_ms.into());
        self.span = self.core.config.lease.max(promised) + self.core.config.lease_margin;
        let held = match self.image.state() {
            ImageState::Valid { term, epoch } => Some(ImageHeld { term, epoch }),
            _ => None,
        };
        link.allow(WINDOW);
        link.answer_heartbeats(self.grants.clone());
        link.send(&Message::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            host: self.core.config.host.clone(),
            session: hello.session,
            held,
            window: WINDOW,
        }));
        let mut status = self.core.board.edit();
        status.link = LinkStatus {
            connected: true,
            peer_host: Some(hello.host),
            peer_address: Some(link.peer().to_owned()),
            round_trip_us: None,
            sessions: status.link.sessions + 1,
            ..LinkStatus::default()
        };
        drop(status);
        let session = BackupSession::new(hello.term, self.config.staging_limit);
        self.session = Some(Active { link, session });
    }

    fn check_hello(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.memory != self.config.memory {
            return Err(Refusal::new(
                RefusalCode::MemorySize,
                format!(
                    "the guest has {} bytes of memory and the backup is configured for {}: \
                     make `memory` in [vm.backup] the same",
                    hello.memory, self.config.memory
                ),
            ));
        }
        if hello.page_size as usize != crate::pages::PAGE_SIZE {
            return Err(Refusal::new(RefusalCode::MemorySize, "pages of another size than 4096 bytes"));
        }
        if let Some(own) = &self.machine {
            if hello.devices != DeviceDigest::default() && hello.devices != own.digest {
                return Err(Refusal::new(
                    RefusalCode::Devices,
                    format!(
                        "the standby is another machine than the guest, whose state would not fit it; mend: give \
                         the standby's command the guest's -machine, -cpu, -smp, -m and devices, in the same \
                         order; the standby is {}",
                        own.text
                    ),
                ));
            }
        }
        check_limits(&hello.ports, &self.core.gate.lock().limits())?;
        let stale = |term: Term| {
            Refusal::new(
                RefusalCode::StaleTerm,
                format!("term {} is over: term {term} is known here", hello.term),
            )
        };
        // FO-1: terms only grow.
        if hello.term < self.core.term {
            return Err(stale(self.core.term));
        }
        match self.core.arbiter.read(&self.core.config.name) {
            Ok(Some(grant)) if grant.term > hello.term => Err(stale(grant.term)),
            Ok(Some(grant)) if grant.term == hello.term && grant.holder != hello.host => Err(Refusal::new(
                RefusalCode::StaleTerm,
                format!("term {} belongs to host {}", grant.term, grant.holder),
            )),
            Ok(_) if self.undecided.is_none() => Ok(()),
            Ok(Some(grant)) if grant.term == hello.term => Ok(()),
            Ok(_) => Err(Refusal::new(RefusalCode::NotBackup, "the arbiter has not decided yet")),
            // Our own claim may have been granted without our hearing of it.
            Err(fault) if self.undecided.is_some() => {
                Err(Refusal::new(RefusalCode::NotBackup, format!("the arbiter does not answer: {fault}")))
            }
            Err(_) => Ok(()),
        }
    }

    fn link_ended(&mut self) {
        let Some(active) = self.session.take() else { return };
        let end = active.link.end();
        self.core.board.trouble(end.fault, format!("the session with the primary ended: {}", end.text));
        self.session_over();
    }

    fn session_over(&mut self) {
        self.core.board.edit().link.connected = false;
        if self.candidate.is_none() {
            self.core.board.state(Role::Backup, State::Waiting);
        }
    }

    fn message(&mut self, message: Message, charge: u64) -> Option<Next> {
        let heard = Instant::now();
        let active = self.session.as_mut()?;
        match active.session.handle(message, &mut self.image, &mut self.log, &self.core.gate) {
            Ok(outcome) => {
                active.link.grant(charge);
                active.session.spent().for_each(|buffer| active.link.give_back(buffer));
                match outcome {
                    Outcome::Taken => {}
                    Outcome::Begun { full } => {
                        let term = active.session.term();
                        self.core.know_term(term);
                        if full || self.candidate.is_some_and(|held| held.term < term) {
                            self.candidate = None;
                            self.core.board.state(Role::Backup, State::Syncing);
                        }
                    }
                    Outcome::Committed(answer, held) => {
                        active.link.send(&answer);
                        self.hold(held);
                    }
                    Outcome::Relinquished => {
                        return self.relinquished(heard);
                    }
                    Outcome::Goodbye(reason) => {
                        tracing::info!(%reason, "the primary ended the session");
                        self.session = None;
                        self.session_over();
                    }
                }
            }
            Err(refusal) => {
                self.core.board.trouble(whose(&refusal), format!("the session is refused: {refusal}"));
                active.link.send(&Message::Refuse(refusal));
                active.link.close();
                self.session = None;
                // A synchronisation that was cut off left no checkpoint.
                if !matches!(self.image.state(), ImageState::Valid { .. }) {
                    self.candidate = None;
                }
                self.session_over();
            }
        }
        None
    }

    fn relinquished(&mut self, heard: Instant) -> Option<Next> {
        self.session = None;
        self.session_over();
        if self.candidate.is_none() {
            self.core.board.trouble(
                Fault::Peer,
                "the primary gave the machine up, but no committed checkpoint is here: the machine is down",
            );
            return None;
        }
        self.grants.close();
        self.claim(Claim { cause: "relinquished", since: heard })
    }

    /// FO-2: asks the arbiter for the machine.
    fn claim(&mut self, claim: Claim) -> Option<Next> {
        let held = self.candidate?;
        // Whatever the answer is: what the old primary says from now on is of an old term, or comes in a
        // new session.
        self.session = None;
        self.session_over();
        self.undecided = Some(claim);
        match self.core.ask_for(held.term, true) {
            Cas::Won => Some(self.go_live(held, claim)),
            Cas::Lost(text) => {
                self.core.board.trouble(Fault::Peer, format!("the machine does not come here: {text}"));
                self.candidate = None;
                self.undecided = None;
                self.grants.reopen(Instant::now());
                self.core.board.state(Role::Backup, State::Waiting);
                None
            }
            Cas::Unknown(text) => {
                self.core.board.trouble(
                    Fault::Arbiter,
                    format!("the primary is lost and the arbiter does not answer: {text}"),
                );
                self.retry_at = Instant::now() + self.core.config.retry;
                None
            }
        }
    }

    fn go_live(&mut self, held: ImageHeld, claim: Claim) -> Next {
        let decided = Instant::now();
        self.core.board.state(Role::Backup, State::GoingLive);
        match self.resume() {
            Ok(guest) => {
                self.core.board.failover(FailoverReport {
                    cause: claim.cause.to_owned(),
                    term: self.core.term.get(),
                    resumed_from_epoch: held.epoch.get(),
                    detect_ms: decided.saturating_duration_since(claim.since).as_secs_f64() * 1e3,
                    resume_ms: decided.elapsed().as_secs_f64() * 1e3,
                });
                self.core.next_epoch = self.core.next_epoch.max(held.epoch.next());
                // Only a protected machine comes here, and it stays one, whatever this host began with.
                self.core.protect = true;
                self.core.board.edit().protect = true;
                Next::Primary(PrimaryStart { guest: Some(guest), idle: State::Solo })
            }
            Err((fault, text)) => {
                self.core.board.trouble(fault, format!("the machine could not be resumed: {text}"));
                // The term is this host's: a guest that the operator starts here may speak. If the gate
                // was lifted already, this is refused, which is as good.
                if let Err(fault) = self.core.gate.lock().admit(self.core.term) {
                    tracing::debug!(%fault, "the gate was lifted before");
                }
                Next::Primary(PrimaryStart { guest: None, idle: State::Down })
            }
        }
    }

    /// Brings the guest up from the last commit. The gate is lifted first: the guest speaks as soon as it
    /// runs, and the term is this host's already.
    fn resume(&mut self) -> Result<Box<dyn Guest>, (Fault, String)> {
        let host = |fault: &dyn std::fmt::Display| (Fault::Host, fault.to_string());
        let checkpoint = self.image.last().cloned().ok_or((Fault::Host, "no checkpoint".to_owned()))?;
        let (standby, _) = match self.standby.take() {
            Some(standby) => standby,
            None => {
                let standby = self.core.hypervisor.standby().map_err(|fault| host(&fault))?;
                let ended = standby.ended();
                (standby, ended)
            }
        };
        self.image.mark_live(self.core.term).map_err(|fault| host(&refusal(&fault)))?;
        let mut gate = self.core.gate.lock();
        if checkpoint.gate_state.self_contained {
            // Whatever the gate kept, if anything: an earlier process may have taken this checkpoint.
            gate.keep(&checkpoint.gate_state.bytes, &[]).map_err(|fault| host(&fault))?;
        }
        gate.restore().map_err(|fault| host(&fault))?;
        gate.admit(self.core.term).map_err(|fault| host(&fault))?;
        drop(gate);
        let guest =
            standby.go_live(&checkpoint.device_state).map_err(|fault| (Fault::Guest, fault.to_string()))?;
        self.core.gate.lock().announce();
        Ok(guest)
    }
}
