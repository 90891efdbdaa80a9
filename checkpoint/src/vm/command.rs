//! What a running supervisor can be told, and the handle that tells it.

use crate::primary::{EpochRecord, Stats};
use crate::vm::config::EpochRule;
use crate::vm::hypervisor::Fault;
use crate::vm::status::VmStatus;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct CommandError {
    /// Whose fault it is.
    pub fault: Fault,
    /// What is in the way, and what mends it.
    pub text: String,
}

impl CommandError {
    pub(super) fn new(fault: Fault, text: impl Into<String>) -> Self {
        Self { fault, text: text.into() }
    }
}

/// Answer to a command: a sentence for the operator.
pub(super) type Answer = Result<String, CommandError>;

/// What the supervisor's thread is told.
pub(super) struct Command {
    pub(super) what: What,
    pub(super) answer: Sender<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    Protect,
    Unprotect,
    Failover,
    SetEpoch(Duration, Option<EpochRule>),
    Shutdown,
}

impl Command {
    /// Whoever asked may have gone: the answer is then not missed.
    pub(super) fn answer(self, answer: Answer) {
        drop(self.answer.send(answer));
    }
}

/// How long a command may take before its sender gives up waiting; it is carried out all the same.
const PATIENCE: Duration = Duration::from_secs(30);

/// Handle to a supervisor; any number of threads may have one.
#[derive(Clone)]
pub struct VmHandle {
    pub(super) commands: Sender<Command>,
    pub(super) status: Arc<Mutex<VmStatus>>,
    pub(super) stats: Arc<Mutex<Stats>>,
    pub(super) ended: Receiver<()>,
    pub(super) thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl std::fmt::Debug for VmHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmHandle").finish_non_exhaustive()
    }
}

impl VmHandle {
    /// Protects the guest as soon as a backup answers, now and after each loss of it.
    ///
    /// # Errors
    /// When this host cannot.
    pub fn protect(&self) -> Result<String, CommandError> {
        self.tell(What::Protect)
    }

    /// Ends the protection; output passes from then on.
    ///
    /// # Errors
    /// When the arbiter does not grant it: the backup could otherwise go live beside us.
    pub fn unprotect(&self) -> Result<String, CommandError> {
        self.tell(What::Unprotect)
    }

    /// Moves the guest to the other host without losing anything: a last epoch, then the other goes live.
    ///
    /// # Errors
    /// When there is no backup that holds a checkpoint.
    pub fn failover(&self) -> Result<String, CommandError> {
        self.tell(What::Failover)
    }

    /// Changes the length of an epoch, and what ends one if that is given.
    ///
    /// # Errors
    /// When one of them is out of bounds; nothing is changed then.
    pub fn set_epoch(&self, length: Duration, rule: Option<EpochRule>) -> Result<String, CommandError> {
        self.tell(What::SetEpoch(length, rule))
    }

    /// Ends the supervisor. A protected guest moves to the backup first, as its network ends here.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn shutdown(&self) -> Result<String, CommandError> {
        let answer = self.tell(What::Shutdown);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic over there was reported when it happened.
            drop(thread.join());
        }
        answer
    }

    /// The supervisor's state at this moment.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).shown();
        status
    }

    /// The last epochs that were sealed here, oldest first: a few hundred.
    #[must_use]
    pub fn epochs(&self) -> Vec<EpochRecord> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).epochs()
    }

    /// A channel that closes when the supervisor has ended.
    #[must_use]
    pub fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }

    fn tell(&self, what: What) -> Answer {
        let (answer, answered) = bounded(1);
        let gone = || CommandError::new(Fault::Host, "the supervisor of this machine has ended");
        self.commands.send_timeout(Command { what, answer }, PATIENCE).map_err(|_| gone())?;
        match answered.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
            Err(RecvTimeoutError::Timeout) => Err(CommandError::new(
                Fault::Host,
                format!("still at it after {} s; see the status", PATIENCE.as_secs()),
            )),
        }
    }
}
