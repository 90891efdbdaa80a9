//! The thread of a supervisor: which role this host has, and what all roles share.

use crate::arbiter::{CasError, Grant};
use crate::gate::Traffic;
use crate::primary::{Capture, EpochPolicy, FixedLength, FollowOutput, SharedGate, Stats};
use crate::protocol::{Message, Refusal, RefusalCode};
use crate::transport::{Incoming, Transport};
use crate::vm::backup::run_backup;
use crate::vm::command::{Answer, Command, CommandError, VmHandle, What};
use crate::vm::config::{EpochRule, FirstRole, Parts, SettingError, VmConfig};
use crate::vm::hypervisor::{Fault, Guest, Hypervisor};
use crate::vm::primary::run_primary;
use crate::vm::status::{FailoverReport, LinkStatus, Role, State, Trouble, VmStatus};
use crossbeam_channel::{Receiver, bounded, never, select};
use holdfast_epoch::{EpochId, Term};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Why a supervisor could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// A setting does not fit; the operator is at fault.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// No thread can be had.
    #[error("a thread of the supervisor cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the supervisor of one virtual machine.
///
/// # Errors
/// When a setting does not fit or no thread can be had.
pub fn spawn(config: VmConfig, parts: Parts) -> Result<VmHandle, SpawnError> {
    config.check()?;
    let Parts { gate, memory, hypervisor, arbiter, transport, incoming } = parts;
    let capture = Capture::start(memory)?;
    let (commands, told) = bounded(16);
    let (ending, ended) = bounded(0);
    let status = Arc::new(Mutex::new(first_status(&config)));
    let stats = Arc::new(Mutex::new(Stats::new()));
    let traffic = gate.traffic().unwrap_or_else(|| Traffic { output: never(), bytes: Box::new(|| 0) });
    let core = Core {
        traffic,
        gate: SharedGate::new(gate),
        capture,
        hypervisor,
        arbiter,
        transport,
        incoming: incoming.unwrap_or_else(never),
        commands: told,
        board: Board { status: Arc::clone(&status) },
        stats: Arc::clone(&stats),
        term: Term::NONE,
        next_epoch: EpochId::FIRST,
        protect: config.protect,
        policy: policy(&config),
        config,
    };
    let thread = thread::Builder::new().name(format!("hf-vm-{}", core.config.name)).spawn(move || {
        core.run();
        drop(ending);
    })?;
    Ok(VmHandle { commands, status, stats, ended, thread: Arc::new(Mutex::new(Some(thread))) })
}

/// What the settings ask for.
fn policy(config: &VmConfig) -> Box<dyn EpochPolicy> {
    match config.epoch_rule {
        EpochRule::Fixed => Box::new(FixedLength::new(config.epoch)),
        EpochRule::FollowOutput { paused_share } => Box::new(FollowOutput::new(config.epoch, paused_share)),
    }
}

fn first_status(config: &VmConfig) -> VmStatus {
    VmStatus {
        vm: config.name.clone(),
        host: config.host.clone(),
        role: Role::Undecided,
        state: State::Starting,
        term: 0,
        committed_epoch: None,
        protect: config.protect,
        epoch_ms: config.epoch.as_secs_f64() * 1e3,
        epoch_rule: config.epoch_rule,
        link: LinkStatus::default(),
        staging_pages: None,
        stats: crate::primary::StatsSnapshot::default(),
        failover: None,
        trouble: None,
    }
}

/// Where the status is written.
pub(super) struct Board {
    status: Arc<Mutex<VmStatus>>,
}

impl Board {
    pub(super) fn edit(&self) -> MutexGuard<'_, VmStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows role and state; says so in the log when they are new.
    pub(super) fn state(&self, role: Role, state: State) {
        let mut status = self.edit();
        if (status.role, status.state) != (role, state) {
            tracing::info!(vm = %status.vm, ?role, ?state, term = status.term, "new state");
        }
        (status.role, status.state) = (role, state);
    }

    /// Shows a trouble; says so in the log when it is new.
    pub(super) fn trouble(&self, fault: Fault, text: impl Into<String>) {
        let mut status = self.edit();
        let text = text.into();
        if status.trouble.as_ref().is_none_or(|known| known.text != text) {
            tracing::warn!(vm = %status.vm, ?fault, "{text}");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        status.trouble = Some(Trouble { fault, text, at_unix_ms });
    }

    pub(super) fn failover(&self, report: FailoverReport) {
        tracing::info!(?report, "the machine came here");
        self.edit().failover = Some(report);
    }
}

/// What became of a compare-and-set.
#[derive(Debug)]
pub(super) enum Cas {
    Won,
    /// Another host holds a newer term.
    Lost(String),
    /// The arbiter did not answer: nothing may be assumed (FO-2).
    Unknown(String),
}

/// Which role is next.
pub(super) enum Next {
    /// As the arbiter's record says.
    Decide,
    Primary(PrimaryStart),
    Backup,
    /// This host lost the machine: halt the guest for good.
    Fenced(Option<Box<dyn Guest>>),
    End,
}

/// How a primary begins.
pub(super) struct PrimaryStart {
    /// The guest that has just come to life here.
    pub(super) guest: Option<Box<dyn Guest>>,
    /// State while there is no session.
    pub(super) idle: State,
}

/// What all roles share.
pub(super) struct Core {
    pub(super) config: VmConfig,
    pub(super) gate: SharedGate,
    pub(super) capture: Capture,
    pub(super) hypervisor: Box<dyn Hypervisor>,
    pub(super) arbiter: Box<dyn crate::arbiter::Arbiter>,
    pub(super) transport: Option<Arc<dyn Transport>>,
    pub(super) incoming: Receiver<Incoming>,
    pub(super) commands: Receiver<Command>,
    pub(super) traffic: Traffic,
    pub(super) board: Board,
    pub(super) stats: Arc<Mutex<Stats>>,
    /// The newest term that is known here; terms only grow (FO-1).
    pub(super) term: Term,
    /// Number of the next epoch to be sealed; never used twice while this process lives.
    pub(super) next_epoch: EpochId,
    pub(super) protect: bool,
    pub(super) policy: Box<dyn EpochPolicy>,
}

impl Core {
    fn run(mut self) {
        let mut next = Next::Decide;
        loop {
            next = match next {
                Next::Decide => self.decide(),
                Next::Primary(start) => run_primary(&mut self, start),
                Next::Backup => run_backup(&mut self),
                Next::Fenced(guest) => self.fenced(guest),
                Next::End => break,
            };
        }
        self.gate.lock().fence();
        self.board.state(Role::Fenced, State::Ended);
    }

    /// FO-1: raises the known term; it never falls.
    pub(super) fn know_term(&mut self, term: Term) {
        self.term = self.term.max(term);
        self.board.edit().term = self.term.get();
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// FO-2: the one way by which this host comes to hold a term.
    pub(super) fn ask_for(&mut self, expected: Term, solo: bool) -> Cas {
        let new = Grant { term: expected.next(), holder: self.config.host.clone(), solo };
        let term = new.term;
        match self.arbiter.compare_and_set(&self.config.name, expected, new) {
            Ok(()) => {
                self.know_term(term);
                Cas::Won
            }
            Err(CasError::Lost { current }) => {
                let text = current.as_ref().map_or_else(
                    || "the arbiter has lost its record of the machine".to_owned(),
                    |grant| format!("term {} of the machine belongs to host {}", grant.term, grant.holder),
                );
                if let Some(grant) = current {
                    self.know_term(grant.term);
                }
                Cas::Lost(text)
            }
            Err(CasError::Arbiter(fault)) => Cas::Unknown(fault.to_string()),
        }
    }

    /// The role that the arbiter's record gives this host; without a record, the configured one.
    fn decide(&mut self) -> Next {
        self.gate.lock().fence();
        loop {
            let decided = match self.arbiter.read(&self.config.name) {
                Ok(record) => self.decide_by(record),
                Err(fault) => Err(fault.to_string()),
            };
            match decided {
                Ok(next) => return next,
                Err(text) => {
                    self.board.trouble(Fault::Arbiter, text);
                    if self.idle(self.config.retry) {
                        return Next::End;
                    }
                }
            }
        }
    }

    fn decide_by(&mut self, record: Option<Grant>) -> Result<Next, String> {
        let (expected, solo) = match record {
            None if self.config.first_role == FirstRole::Backup => return Ok(Next::Backup),
            None => (Term::NONE, false),
            Some(grant) => {
                self.know_term(grant.term);
                if grant.holder != self.config.host {
                    return Ok(Next::Backup);
                }
                (grant.term, grant.solo)
            }
        };
        // A term that was protected when this host last had it may be asked for by the backup at any
        // time: only a grant of its own lets this host transmit again. A solo term is this host's alone.
        if !solo {
            match self.ask_for(expected, true) {
                Cas::Won => {}
                Cas::Lost(_) => return Ok(Next::Decide),
                Cas::Unknown(text) => return Err(text),
            }
        }
        Ok(match self.gate.lock().admit(self.term) {
            Ok(()) => Next::Primary(PrimaryStart { guest: None, idle: State::Native }),
            Err(fault) => return Err(fault.to_string()),
        })
    }

    fn fenced(&mut self, guest: Option<Box<dyn Guest>>) -> Next {
        self.gate.lock().fence();
        self.board.state(Role::Fenced, State::Fenced);
        self.capture.detach();
        if let Some(guest) = guest {
            guest.retire();
        }
        if self.config.backup.is_some() {
            return Next::Backup;
        }
        while !self.idle(Duration::from_secs(60)) {}
        Next::End
    }

    /// Waits for a while in a state in which nothing but an end can be asked for; says whether it was.
    pub(super) fn idle(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            select! {
                recv(self.commands) -> command => match command {
                    Err(_) => return true,
                    Ok(command) if command.what == What::Shutdown => {
                        command.answer(Ok("ended".to_owned()));
                        return true;
                    }
                    Ok(command) => {
                        let answer = self.set(command.what).unwrap_or_else(|| {
                            Err(CommandError::new(Fault::Operator, "not in this state of the machine"))
                        });
                        command.answer(answer);
                    }
                },
                recv(self.incoming) -> incoming => match incoming {
                    Ok(incoming) => refuse_session(&incoming, &self.not_ready()),
                    Err(_) => self.incoming = never(),
                },
                default(left) => return false,
            }
        }
    }

    /// What a peer is told while this host has no role.
    fn not_ready(&self) -> String {
        let status = self.board.edit();
        let trouble = status.trouble.as_ref().map_or("it has just started", |trouble| &trouble.text);
        format!("this host is not ready: {trouble}")
    }

    /// Commands that only change a setting.
    pub(super) fn set(&mut self, what: What) -> Option<Answer> {
        match what {
            What::Protect => {
                self.protect = true;
                self.board.edit().protect = true;
                Some(Ok("the guest is protected as soon as a backup answers".to_owned()))
            }
            What::SetEpoch(length, rule) => {
                let mut changed = self.config.clone();
                changed.epoch = length;
                changed.epoch_rule = rule.unwrap_or(changed.epoch_rule);
                Some(match changed.check() {
                    Err(fault) => Err(CommandError::new(Fault::Operator, fault.to_string())),
                    Ok(()) => {
                        if changed.epoch_rule == self.config.epoch_rule {
                            // What it has learnt of the pauses is kept.
                            self.policy.set_length(length);
                        } else {
                            self.policy = policy(&changed);
                        }
                        self.config = changed;
                        let mut status = self.board.edit();
                        status.epoch_ms = length.as_secs_f64() * 1e3;
                        status.epoch_rule = self.config.epoch_rule;
                        Ok(format!("epochs of {} ms from now on", length.as_millis()))
                    }
                })
            }
            What::Unprotect | What::Failover | What::Shutdown => None,
        }
    }
}

/// Refuses a session that comes while this host is no backup.
pub(super) fn refuse_session(incoming: &Incoming, text: &str) {
    incoming.link.send(&Message::Refuse(Refusal::new(RefusalCode::NotBackup, text)));
    incoming.link.close();
}
