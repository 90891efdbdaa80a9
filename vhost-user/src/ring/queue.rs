//! A virtqueue of either layout, owned by one polling core.
//!
//! ```text
//!   look: a burst of chains --> seen --> (sink | source) --> complete: pending
//!   publish: marks, pending --> ring, one notification
//! ```
//!
//! Chains complete in the order in which they were taken, so that one position says where to go on: after a
//! park nothing is between what was taken and what was returned. Whatever the guest writes into the ring, the
//! worst outcome is a [`RingFault`] (RB-1).
//!
//! What is written into buffers is marked in the own dirty bitmap (CK-2) once a burst, behind one fence,
//! before the burst is shown to the guest; a ring that is left has published. QEMU's log is marked at once.
//!
//! Hot path: no lock, no allocation, no log line; one system call a published burst, and only when
//! the guest asked to be notified.

use super::chain::{Chain, Direction, LOOK, MAX_CHAIN, Seen};
use super::fault::RingFault;
use super::packed::PackedQueue;
use super::split::SplitQueue;
use crate::atomic::{Ordering, fence};
use crate::features::{Features, bits};
use crate::memory::{DirtyLog, FrontendAddress, Gpa, GuestMemory, MemoryFile, Segment};
use crate::notifier::Notifier;
use std::sync::Arc;
use thiserror::Error;

/// Entries in a ring, at most. QEMU allows 1024.
pub const MAX_RING_SIZE: u16 = 4096;

/// What the frontend said of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries; a power of two, unless the ring is packed.
    pub size: u16,
    /// Descriptor table, or the packed ring, in the frontend's address space.
    pub descriptors: u64,
    /// Available ring; of a packed ring the driver's wish to be notified.
    pub available: u64,
    /// Used ring; of a packed ring the device's wish to be notified.
    pub used: u64,
    /// Guest physical address under which writes to the used ring are logged, when they are. A packed ring
    /// is logged where it lies.
    pub used_log: Option<u64>,
}

/// Why a ring cannot be started.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The number of entries is not possible.
    #[error(
        "peer: a ring of {0} entries; a power of two up to {MAX_RING_SIZE} is possible, for packed rings any number"
    )]
    Size(u16),
    /// The place to go on does not exist.
    #[error("peer: a packed ring of {size} entries cannot go on at {base}")]
    Base {
        /// Place that the frontend named.
        base: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A part of the ring lies outside guest memory or is not aligned.
    #[error("peer: the {part} of a ring at {address:#x} does not lie in guest memory")]
    Place {
        /// Which part.
        part: &'static str,
        /// Its address in the frontend's address space.
        address: u64,
    },
}

/// A part of a ring in guest memory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) file: Arc<MemoryFile>,
    pub(super) offset: u64,
    pub(super) gpa: Gpa,
}

impl Place {
    /// Finds `len` bytes at the frontend's `address`.
    pub(super) fn find(
        memory: &GuestMemory,
        part: &'static str,
        address: u64,
        len: u64,
        align: u64,
    ) -> Result<Self, LayoutError> {
        let fault = LayoutError::Place { part, address };
        let Some((file, offset, gpa)) = memory.locate(FrontendAddress(address), len) else {
            return Err(fault);
        };
        // The mapping begins on a page, so that offsets and addresses are aligned alike.
        if offset % align == 0 { Ok(Self { file, offset, gpa }) } else { Err(fault) }
    }
}

/// What a layout of rings does.
pub(super) trait Virtqueue {
    /// Looks at up to `max` chains behind those looked at before, and adds them to `seen`; those before a
    /// broken one as well.
    fn look(
        &mut self,
        memory: &GuestMemory,
        max: usize,
        direction: Direction,
        seen: &mut Seen,
    ) -> Result<(), RingFault>;

    /// What was looked at and not completed is looked at again the next time.
    fn look_again(&mut self);

    /// Takes the next chain, and returns it to the guest with `written` bytes at the next publish. Nothing is
    /// pending beyond the ring's entries, as each chain takes one at least.
    fn complete(&mut self, chain: &Chain, written: u32);

    /// Chains that are to be published.
    fn pending(&self) -> usize;

    /// Shows the guest what was completed and not shown yet, but for the last `kept`, of which there are more;
    /// whether it asked to be notified of that.
    fn publish(&mut self, kept: usize, log: Option<&DirtyLog>) -> Result<bool, RingFault>;

    /// Asks the guest to notify of what it makes available from now on, or not to; whether there is something
    /// already that was not looked at.
    fn want_kick(&mut self, wanted: bool, log: Option<&DirtyLog>) -> Result<bool, RingFault>;

    /// Where the ring goes on.
    fn base(&self) -> u16;

    /// Where writes to the used ring are logged.
    fn set_used_log(&mut self, used_log: Option<Gpa>);
}

#[derive(Debug)]
enum Kind {
    Split(SplitQueue),
    Packed(PackedQueue),
}

macro_rules! each {
    ($kind:expr, $queue:ident => $then:expr) => {
        match $kind {
            Kind::Split($queue) => $then,
            Kind::Packed($queue) => $then,
        }
    };
}

/// A virtqueue, split or packed as was agreed.
#[derive(Debug)]
pub struct Queue {
    kind: Kind,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    seen: Seen,
    /// What was written into buffers since the last publish.
    written: Vec<Segment>,
    notify_always: bool,
    pub(crate) call: Option<Notifier>,
    pub(crate) kick: Option<Notifier>,
    pub(crate) error: Option<Notifier>,
}

/// How far behind the buffer that is written to another is fetched once more.
const SOON: usize = 6;

/// Writes that are kept until they are marked, at most, beside those of the frame at hand.
const MAX_WRITTEN: usize = 512;

impl Queue {
    /// Prepares a ring that goes on at `base`.
    ///
    /// # Errors
    /// When the ring does not lie in guest memory, or cannot be as it is said to be.
    pub fn new(
        memory: Arc<GuestMemory>,
        log: Option<Arc<DirtyLog>>,
        layout: RingLayout,
        base: u16,
        features: Features,
    ) -> Result<Self, LayoutError> {
        let kind = if features.has(bits::RING_PACKED) {
            Kind::Packed(PackedQueue::new(&memory, layout, base, features)?)
        } else {
            Kind::Split(SplitQueue::new(&memory, layout, base, features)?)
        };
        Ok(Self {
            kind,
            memory,
            log,
            seen: Seen::new(),
            written: Vec::with_capacity(MAX_WRITTEN + 2 * MAX_CHAIN + LOOK),
            notify_always: false,
            call: None,
            kick: None,
            error: None,
        })
    }

    /// Where the ring goes on: what GET_VRING_BASE answers.
    #[must_use]
    pub fn base(&self) -> u16 {
        each!(&self.kind, queue => queue.base())
    }

    /// Switches the log of a live migration on, over or off, while the ring runs.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log: Option<u64>) {
        self.log = log;
        each!(&mut self.kind, queue => queue.set_used_log(used_log.map(Gpa)));
    }

    /// Notifies the guest whatever it asked for, now or with what is pending. Needed where
    /// notifications may have been lost: at the start, and when the guest's descriptor was exchanged.
    pub fn notify_once(&mut self) {
        if each!(&self.kind, queue => queue.pending()) > 0 {
            self.notify_always = true;
        } else {
            self.notify();
        }
    }

    /// Memory that the ring's buffers lie in.
    #[inline]
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Chains that were looked at and not taken.
    #[inline]
    pub(super) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Looks at more chains, up to `max` and a burst; their memory is fetched meanwhile.
    ///
    /// Bound: [`LOOK`] chains. Allocations: none. Its cost, and that of what follows until [`Queue::publish`], is in the figures of
    /// [`TxRing::poll`](super::TxRing::poll) and [`RxRing::push`](super::RxRing::push), with the copy of the frame.
    #[inline]
    pub(super) fn look(&mut self, max: usize, direction: Direction) -> Result<(), RingFault> {
        let before = self.seen.len();
        let Self { kind, memory, seen, .. } = self;
        let looked = each!(kind, queue => queue.look(memory, max.min(LOOK), direction, seen));
        let found = self.seen.len() - before;
        for segment in self.seen.heads(found) {
            self.memory.prefetch(segment, direction == Direction::ToGuest);
        }
        looked
    }

    /// What was looked at and not taken is looked at again the next time.
    pub(super) fn look_again(&mut self) {
        self.seen.clear();
        each!(&mut self.kind, queue => queue.look_again());
    }

    /// Takes the oldest chain that was seen, and returns it to the guest with `written` bytes.
    #[inline]
    pub(super) fn complete(&mut self, written: u32) {
        let Some(chain) = self.seen.get(0) else { return };
        each!(&mut self.kind, queue => queue.complete(&chain, written));
        self.seen.take(1);
    }

    /// Writes `parts` one after the other into the buffers of the oldest `chains` that were seen; returns how
    /// many bytes found room.
    #[inline]
    pub(super) fn write<'p>(&mut self, chains: usize, parts: impl Iterator<Item = &'p [u8]>) -> usize {
        if self.written.len() > MAX_WRITTEN {
            self.mark();
        }
        let Self { memory, seen, log, written, .. } = self;
        memory.scatter(seen.segments(chains), parts, log.as_deref(), written)
    }

    /// Writes two parts into the oldest chain that was seen, if that is one piece and they fit; whether they did.
    #[inline]
    pub(super) fn put(&mut self, parts: [&[u8]; 2]) -> bool {
        if self.written.len() > MAX_WRITTEN {
            self.mark();
        }
        let Self { memory, seen, log, written, .. } = self;
        // Fetched when it was looked at; by now another core may have had it again.
        if let [soon, ..] = seen.segments_at(SOON) {
            memory.prefetch(soon, true);
        }
        match seen.segments(1) {
            [segment] => memory.put(segment, parts, log.as_deref(), written),
            _ => false,
        }
    }

    /// CK-2: marks what was written into buffers.
    #[inline]
    fn mark(&mut self) {
        if self.written.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        self.memory.mark_fenced(&self.written);
        self.written.clear();
    }

    /// Shows the guest everything completed since the last time, and notifies it once if it asked.
    ///
    /// Bound: what is pending, the ring's entries at most; one system call where the guest asked. Allocations: none.
    pub(crate) fn publish(&mut self) -> Result<(), RingFault> {
        self.publish_but(0)
    }

    /// As [`Self::publish`], but for the last `kept` chains.
    pub(crate) fn publish_but(&mut self, kept: usize) -> Result<(), RingFault> {
        self.mark();
        let asked = each!(&mut self.kind, queue => match queue.pending() > kept {
            true => queue.publish(kept, self.log.as_deref())?,
            false => return Ok(()),
        });
        if std::mem::take(&mut self.notify_always) || asked {
            self.notify();
        }
        Ok(())
    }

    fn notify(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Asks the guest to notify (`true`, before the core sleeps) or not to (`false`, while it polls).
    /// Returns whether chains are available now: if so, the core must not sleep.
    ///
    /// # Errors
    /// When the guest's index is not possible.
    pub fn want_kick(&mut self, wanted: bool) -> Result<bool, RingFault> {
        let more = each!(&mut self.kind, queue => queue.want_kick(wanted, self.log.as_deref()))?;
        Ok(more || self.seen.len() > 0)
    }
}
