//! The handle to a link, held by whoever runs the session.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::lease::LeaseGrants;
use crate::protocol::{Hello, Message, encode};
use crate::transport::waker::Waker;
use crate::transport::ways::Shown;
use crate::vm::Fault;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Something that the link's owner thread reports.
#[derive(Debug)]
pub enum LinkEvent {
    /// The peer said something; `charge` bytes of credit are to be given back once it is dealt with.
    Message {
        /// What it said.
        message: Message,
        /// What it cost.
        charge: u64,
    },
    /// The peer answered a heartbeat: the primary may transmit until then.
    Lease {
        /// End of the lease.
        until: Instant,
        /// From heartbeat to answer.
        round_trip: Duration,
    },
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEnd {
    /// Whose fault it is.
    pub fault: Fault,
    /// What happened.
    pub text: String,
}

/// What the owner thread is told.
#[derive(Debug)]
pub(super) enum Control {
    /// Send this frame, past all bulk.
    Urgent(Vec<u8>),
    /// The peer lets us send so many bulk bytes.
    Window(u64),
    /// We let the peer send so many bulk bytes, without a word: the Welcome says it.
    Allow(u64),
    /// Give so many bytes of credit back to the peer.
    Grant(u64),
    /// Ask for time at this interval; an answered heartbeat is worth `lease`.
    Heartbeats { interval: Duration, lease: Duration },
    /// Answer heartbeats as these grants allow.
    Answer(LeaseGrants),
    /// Send what is urgent and end.
    Close,
}

/// One session's connection. Dropping it sends what is queued as urgent and ends the connection.
#[derive(Debug)]
pub struct Link {
    pub(super) control: Option<Sender<Control>>,
    pub(super) bulk: Sender<Vec<u8>>,
    pub(super) spare: Receiver<Vec<u8>>,
    pub(super) spent: Sender<Vec<u8>>,
    pub(super) events: Receiver<LinkEvent>,
    pub(super) waker: Arc<Waker>,
    pub(super) end: Arc<OnceLock<LinkEnd>>,
    pub(super) peer: String,
    pub(super) shown: Arc<Shown>,
}

impl Link {
    /// Messages and leases as they come; disconnected once the link has ended.
    #[must_use]
    pub const fn events(&self) -> &Receiver<LinkEvent> {
        &self.events
    }

    /// Why the link ended, once it has.
    #[must_use]
    pub fn end(&self) -> LinkEnd {
        self.end.get().cloned().unwrap_or_else(|| LinkEnd {
            fault: Fault::Peer,
            text: "the connection ended without a word".to_owned(),
        })
    }

    /// Address of the peer.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Whether messages go over the bypass now.
    #[must_use]
    pub fn uses_bypass(&self) -> bool {
        self.shown.bypass.load(Ordering::Relaxed)
    }

    /// How often messages had to come back from the bypass.
    #[must_use]
    pub fn bypass_returns(&self) -> u64 {
        self.shown.returns.load(Ordering::Relaxed)
    }

    /// Sends a message past all bulk. A link that has ended swallows it: its end is seen in the events.
    pub fn send(&self, message: &Message) {
        self.tell(Control::Urgent(encode(message)));
    }

    /// The peer lets us send so many bulk bytes, as its Welcome says.
    pub fn set_window(&self, bytes: u64) {
        self.tell(Control::Window(bytes));
    }

    /// We let the peer send so many bulk bytes; to be called before the Welcome says so.
    pub fn allow(&self, bytes: u64) {
        self.tell(Control::Allow(bytes));
    }

    /// Gives credit back to the peer, for bulk that has been dealt with.
    pub fn grant(&self, bytes: u64) {
        self.tell(Control::Grant(bytes));
    }

    /// Asks the peer for time at this interval; an answered heartbeat is worth `lease`, counted from
    /// when it was sent.
    pub fn start_heartbeats(&self, interval: Duration, lease: Duration) {
        self.tell(Control::Heartbeats { interval, lease });
    }

    /// Answers the peer's heartbeats as `grants` allows.
    pub fn answer_heartbeats(&self, grants: LeaseGrants) {
        self.tell(Control::Answer(grants));
    }

    /// Queues a whole bulk frame; gives it back when the queue is full.
    ///
    /// On the way over TLS a page costs 2.5 us of a core, both ends, the kernel and the copy into its frame together
    /// (`cargo bench -p holdfast-checkpoint -- link`).
    ///
    /// # Errors
    /// [`TrySendError`]: full, or the link has ended.
    pub fn try_send_bulk(&self, frame: Vec<u8>) -> Result<(), TrySendError<Vec<u8>>> {
        self.bulk.try_send(frame)?;
        self.waker.ring();
        Ok(())
    }

    /// Where bulk frames are queued, for a select with events; ring afterwards.
    pub(crate) const fn bulk(&self) -> &Sender<Vec<u8>> {
        &self.bulk
    }

    /// Tells the owner thread that a bulk frame was queued.
    pub(crate) fn ring(&self) {
        self.waker.ring();
    }

    /// A buffer that carried a bulk frame, or a new one.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.spare.try_recv().map_or_else(
            |_| Vec::new(),
            |mut used| {
                used.clear();
                used
            },
        )
    }

    /// Gives back a buffer that a message came in.
    pub fn give_back(&self, buffer: Vec<u8>) {
        // One that finds no room is dropped.
        drop(self.spent.try_send(buffer));
    }

    /// Sends what is queued as urgent, and ends the connection.
    pub fn close(&self) {
        self.tell(Control::Close);
    }

    fn tell(&self, what: Control) {
        let control = self.control.as_ref().expect("there until dropped");
        // The owner thread always drains this queue; when it has ended, so has the link.
        if control.send(what).is_ok() {
            self.waker.ring();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.control = None;
        self.waker.ring();
    }
}

/// A session that the other host opened, and its first message.
#[derive(Debug)]
pub struct Incoming {
    /// What the primary said of itself and its machine.
    pub hello: Hello,
    /// The connection; to be answered with a Welcome or a Refuse.
    pub link: Link,
}
