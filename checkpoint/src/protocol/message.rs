//! The messages.

use crate::gate::PortLimits;
use crate::protocol::{PageBatch, Payload};
use holdfast_epoch::{Digest, EpochId, Term};
use std::fmt;

/// First bytes of every session.
pub const MAGIC: [u8; 8] = *b"HOLDFAST";

/// Version of this protocol. Hosts of different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 7;

/// Digest of how the guest's devices are configured; both hosts must agree when both know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceDigest(pub [u8; 32]);

/// The primary introduces itself and its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Name of the machine.
    pub vm: String,
    /// Name of the sending host.
    pub host: String,
    /// Term in which the sender holds the machine.
    pub term: Term,
    /// Bytes in the guest's memory file.
    pub memory: u64,
    /// Bytes in a page record: 4096.
    pub page_size: u32,
    /// Random number of this session.
    pub session: u64,
    /// How long after sending an answered heartbeat the primary will transmit, in milliseconds.
    pub lease_ms: u32,
    /// How the guest's devices are configured; zeroes when unknown.
    pub devices: DeviceDigest,
    /// What may be held of each port's flows, and its queues, in the order of the ports.
    pub ports: Vec<PortLimits>,
}

/// What the backup's image is at the beginning of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeld {
    /// Term of the last commit.
    pub term: Term,
    /// Epoch of the last commit.
    pub epoch: EpochId,
}

/// The backup takes the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Name of the sending host.
    pub host: String,
    /// Number of the session that is welcomed.
    pub session: u64,
    /// The committed checkpoint that is here, if any.
    pub held: Option<ImageHeld>,
    /// Bytes that the primary may send ahead of [`Message::Credit`].
    pub window: u64,
}

/// Why a session or an epoch is refused, for the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefusalCode {
    /// The versions differ.
    Version = 1,
    /// No such machine here.
    UnknownMachine = 2,
    /// The term is over (FO-1).
    StaleTerm = 3,
    /// The memory sizes differ.
    MemorySize = 4,
    /// This host is not a backup of the machine now.
    NotBackup = 5,
    /// The devices differ.
    Devices = 6,
    /// The message does not fit the state of the session.
    OutOfOrder = 7,
    /// The epoch's digest does not match its bytes.
    Digest = 8,
    /// No room for the epoch.
    NoRoom = 9,
    /// The image or the commit log cannot be written, or the gate does not answer.
    Storage = 10,
    /// The bytes make no sense.
    Malformed = 11,
    /// Anything else; the text says it.
    Other = 12,
    /// What came for the gate to keep is not whole (SP-2).
    Gate = 13,
    /// The hosts' settings allow the guest's flows different amounts, or different ports.
    Limits = 14,
}

impl RefusalCode {
    pub(super) const fn of(number: u16) -> Self {
        match number {
            1 => Self::Version,
            2 => Self::UnknownMachine,
            3 => Self::StaleTerm,
            4 => Self::MemorySize,
            5 => Self::NotBackup,
            6 => Self::Devices,
            7 => Self::OutOfOrder,
            8 => Self::Digest,
            9 => Self::NoRoom,
            10 => Self::Storage,
            11 => Self::Malformed,
            13 => Self::Gate,
            14 => Self::Limits,
            _ => Self::Other,
        }
    }
}

/// Why a session or an epoch is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the program.
    pub code: RefusalCode,
    /// For the operator: what is wrong and what mends it.
    pub text: String,
}

impl Refusal {
    /// A refusal of this code and text.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The memory comes whole; otherwise the image held is continued.
    pub full: bool,
    /// Term of the epochs that follow: at least that of the Hello.
    pub term: Term,
    /// Number of the first epoch that will be sealed.
    pub first: EpochId,
}

/// The two states that travel with an epoch beside its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Devices and vCPUs, as QEMU saved them.
    Devices,
    /// The gate's.
    Gate,
}

/// An epoch is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The epoch.
    pub epoch: EpochId,
    /// Term of the epoch.
    pub term: Term,
    /// Page records in it.
    pub pages: u64,
    /// Whether the gate's state says all by itself.
    pub self_contained: bool,
    /// Digest over all of it.
    pub digest: Digest,
}

/// Everything that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Refusal`].
    Refuse(Refusal),
    /// See [`Begin`].
    Begin(Begin),
    /// Pages of the running guest, part of the full synchronisation.
    Base(PageBatch),
    /// Pages of a sealed epoch.
    Pages(EpochId, PageBatch),
    /// A piece of a state that belongs to an epoch; pieces follow each other.
    StatePart(EpochId, StateKind, Payload),
    /// A piece of what changed in the state of the devices since the epoch before, instead of that state; pieces
    /// follow each other, and one comes at least.
    DeviceChange(EpochId, Payload),
    /// Bytes that the gate acknowledged to the guest in this epoch, ahead of its seal; pieces follow each
    /// other.
    Stream(EpochId, Payload),
    /// See [`Seal`].
    Seal(Seal),
    /// The backup holds all of an epoch.
    Committed {
        /// The epoch.
        epoch: EpochId,
        /// Its term.
        term: Term,
        /// Digest over what the backup holds.
        digest: Digest,
    },
    /// The primary may send so many bytes more.
    Credit {
        /// Bytes.
        bytes: u64,
    },
    /// The primary asks for time.
    Heartbeat {
        /// Counts up in a session.
        number: u64,
    },
    /// The backup gives it.
    HeartbeatAnswer {
        /// Number of the heartbeat.
        number: u64,
    },
    /// The primary has fenced itself: the backup may go live without waiting.
    Relinquish {
        /// Term that is given up.
        term: Term,
    },
    /// The backup's operator wants the machine.
    Summon {
        /// Term that the backup believes in.
        term: Term,
    },
    /// The session ends and nothing else changes.
    Goodbye {
        /// Why.
        reason: String,
    },
    /// What follows in this direction comes over the bypass: the last message here before it.
    Over {
        /// Number of the bypass's path.
        path: u64,
    },
    /// The sender has left a path of the bypass: what it did not take from there is to be sent here again.
    Back {
        /// Number of the path.
        path: u64,
        /// Messages that it took.
        taken: Taken,
    },
    /// Said on a path of the bypass: what was taken from it so far need not be kept.
    Taken(Taken),
}

/// Messages of each class that were taken from a path of the bypass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Urgent ones.
    pub urgent: u64,
    /// Bulk.
    pub bulk: u64,
}

impl Message {
    /// Name of the message, for errors.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refuse(_) => "Refuse",
            Self::Begin(_) => "Begin",
            Self::Base(_) => "Base",
            Self::Pages(..) => "Pages",
            Self::DeviceChange(..) => "DeviceChange",
            Self::StatePart(..) => "StatePart",
            Self::Stream(..) => "Stream",
            Self::Seal(_) => "Seal",
            Self::Committed { .. } => "Committed",
            Self::Credit { .. } => "Credit",
            Self::Heartbeat { .. } => "Heartbeat",
            Self::HeartbeatAnswer { .. } => "HeartbeatAnswer",
            Self::Relinquish { .. } => "Relinquish",
            Self::Summon { .. } => "Summon",
            Self::Goodbye { .. } => "Goodbye",
            Self::Over { .. } => "Over",
            Self::Back { .. } => "Back",
            Self::Taken(_) => "Taken",
        }
    }
}
