//! What the two hosts say to each other about one virtual machine.
//!
//! A session is one connection for one machine; the primary opens it.
//!
//! ```text
//! primary                                              backup
//!   Hello ------------------------------------------------>       (version, machine, term, memory)
//!   <------------------------------------ Welcome | Refuse
//!   Begin{full or not, term, first epoch} --------------->
//!   Base* (full only, while the guest runs) ------------->
//!   Pages* Stream* DeviceState* GateState* Seal{epoch} -->       again and again; DeviceChange+ for DeviceState*
//!   <--------------------------------------------- Committed{epoch}
//!   Heartbeat ------------------------------------------->       at any time, past everything else
//!   <--------------------------------------- HeartbeatAnswer
//!   Relinquish | Goodbye | Refuse ----------------------->
//!   <-- Over, Back, Taken: which way messages go -->             with a bypass (see `transport`)
//! ```
//!
//! All that an epoch carries comes before its seal and after the seal of the epoch before. Its Stream
//! messages come while the guest still runs in it; the first epoch of a session has none, as its gate state
//! is whole.
//!
//! Each message travels in a frame: length of the body (32 bits), kind (16), nothing (16), then the
//! body; all numbers are little-endian. A length is checked against its bound before anything is
//! allocated for it (RB-1). The head of a Hello - magic and version -, that of a Welcome - version -, and all
//! of a Refuse keep their place in all versions, so that hosts of different versions can tell each other why
//! they part.
//!
//! Pure: no I/O, no clock.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod codec;
mod message;
mod pages;
mod payload;

pub use codec::{
    DecodeError, FRAME_HEAD, FrameHead, HELLO_LIMIT, MESSAGE_LIMIT, STREAM_LIMIT, decode, encode,
};
pub(crate) use codec::{begin_pages, begin_stream, end_frame};
pub use message::{
    Begin, DeviceDigest, Hello, ImageHeld, MAGIC, Message, PROTOCOL_VERSION, Refusal, RefusalCode, Seal,
    StateKind, Taken, Welcome,
};
pub use pages::{BATCH_PAGES, PageBatch, PageBatchReader, PageBatchWriter, PagesError};
pub use payload::Payload;
