//! Counters of cores and ports: one cache-aligned block each, one writer, any number of readers.
//!
//! The writer is the polling core that owns the block; it adds by a relaxed load and store, which
//! costs no locked instruction. Readers take a [`Snapshot`]: each number is exact, numbers of one
//! snapshot may be a few packets apart. Why a frame was dropped is a [`DropReason`], which is the
//! index of its counter; the reason says whose fault it was.

use std::sync::atomic::{AtomicU64, Ordering};

/// An enum whose variants index a block of counters.
pub trait Counted: Copy + Sized + 'static {
    /// All variants, in the order of their index.
    const ALL: &'static [Self];

    /// Place in the block.
    fn index(self) -> usize;

    /// Name in reports, unit last.
    fn name(self) -> &'static str;
}

macro_rules! counted {
    ($(#[$meta:meta])* $kind:ident { $($(#[$doc:meta])* $variant:ident => $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $kind {
            $($(#[$doc])* $variant,)*
        }

        impl Counted for $kind {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counted! {
    /// What is counted for a port.
    PortCounter {
        /// Frames taken from the guest, as it sent them.
        Captured => "captured_frames",
        /// Bytes of those.
        CapturedBytes => "captured_bytes",
        /// Wire frames made of them.
        Segments => "segment_frames",
        /// Bursts that ended because there was no room: the guest's frames stayed in its ring.
        Refusals => "refusals",
        /// Frames held until a commit, now.
        Held => "held_frames",
        /// Bytes of those.
        HeldBytes => "held_bytes",
        /// Epochs cut.
        Cuts => "cuts",
        /// Epochs released.
        Releases => "releases",
        /// Frames released.
        Released => "released_frames",
        /// Frames sent to the wire.
        Sent => "sent_frames",
        /// Bytes of those.
        SentBytes => "sent_bytes",
        /// Turns in which an expired lease kept frames back (FO-1).
        LeaseHolds => "lease_holds",
        /// Frames that came from the wire or another guest.
        Received => "received_frames",
        /// Frames given to the guest, after merging.
        Delivered => "delivered_frames",
        /// Bytes of those.
        DeliveredBytes => "delivered_bytes",
        /// Frames that were merged into another.
        Coalesced => "coalesced_frames",
        /// Frames of announcements.
        Announced => "announced_frames",
        /// Frames of the guest whose data was taken to be acknowledged in the client's name.
        Taken => "taken_frames",
        /// Bytes held for clients that have not confirmed them, now.
        Unconfirmed => "unconfirmed_bytes",
        /// ACKs forged for the guest.
        Forged => "forged_ack_frames",
        /// Frames sent to clients in the guest's name.
        Speculated => "speculated_frames",
        /// Frames of clients that ended here, as the guest has heard what they say already.
        Consumed => "consumed_frames",
        /// Questions of the agent in the guest.
        Asked => "agent_question_frames",
    }
}

counted! {
    /// Why a frame was dropped.
    DropReason {
        /// Guest: shorter than an Ethernet header.
        Runt => "runt_frames",
        /// Guest: longer than the wire carries.
        Oversize => "oversize_frames",
        /// Guest: the offload header contradicts the frame.
        Offload => "bad_offload_frames",
        /// Guest: more segments than one frame may become.
        Segments => "too_many_segments_frames",
        /// Guest: sent to Holdfast itself, and no question that it knows.
        Channel => "bad_agent_frames",
        /// Guest: its source address belongs to another port, or is no station's.
        Spoofed => "spoofed_frames",
        /// Host: no memory for frames, and none held that could come back.
        NoFrames => "no_memory_frames",
        /// Guest: it did not take what came in, until its queue was full.
        InboundFull => "inbound_full_frames",
        /// Guest: it had no buffers for the frame for a long time, or never has any that large.
        NoBuffers => "no_buffers_frames",
        /// Operator: the port is fenced (FO-1).
        Fenced => "fenced_frames",
        /// Guest: its driver went away with frames queued for it.
        Stale => "stale_frames",
        /// Peer: sent to an address that no port has, or that is on the side it came from.
        NotHere => "not_here_frames",
    }
}

counted! {
    /// What is counted for a core.
    CoreCounter {
        /// Turns of the loop.
        Turns => "turns",
        /// Turns that found something to do.
        BusyTurns => "busy_turns",
        /// Times that the core slept.
        Sleeps => "sleeps",
        /// Commands served.
        Commands => "commands",
        /// Frames that came from wires.
        WireReceived => "wire_received_frames",
        /// Frames from wires that belong to no port.
        WireUnknown => "wire_unknown_frames",
        /// Frames that wires could not take from outside or send, and dropped.
        WireLost => "wire_lost_frames",
        /// Frames carried for other cores, to guests and from them.
        Carried => "carried_frames",
        /// Frames for guests that were carried for another core and dropped: their pair had no buffers for a second, did
        /// not run for two, or its driver was replaced meanwhile.
        CarriedLost => "carried_lost_frames",
        /// Records that found no room in the audit log.
        AuditLost => "audit_lost_frames",
    }
}

/// Most counters that one enum may have.
const MAX_COUNTERS: usize = 24;

/// A block of counters of one kind. 128 bytes apart from its neighbours: two cache lines are
/// prefetched together.
#[derive(Debug)]
#[repr(align(128))]
pub struct Block<K> {
    values: [AtomicU64; MAX_COUNTERS],
    kind: std::marker::PhantomData<fn(K)>,
}

impl<K: Counted> Default for Block<K> {
    fn default() -> Self {
        const { assert!(K::ALL.len() <= MAX_COUNTERS) };
        Self { values: [const { AtomicU64::new(0) }; MAX_COUNTERS], kind: std::marker::PhantomData }
    }
}

impl<K: Counted> Block<K> {
    /// Adds to a counter; only the owner of the block calls it.
    pub fn add(&self, counter: K, by: u64) {
        let value = &self.values[counter.index()];
        value.store(value.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    /// Sets a counter that stands for a present amount; only the owner of the block calls it.
    pub fn set(&self, counter: K, to: u64) {
        self.values[counter.index()].store(to, Ordering::Relaxed);
    }

    /// Reads a counter.
    #[must_use]
    pub fn get(&self, counter: K) -> u64 {
        self.values[counter.index()].load(Ordering::Relaxed)
    }

    /// Reads all counters, with their names.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(K::ALL.iter().map(|&counter| (counter.name(), self.get(counter))).collect())
    }
}

/// Counters by name at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(pub Vec<(&'static str, u64)>);

impl Snapshot {
    /// The counter of this name; zero when there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(found, _)| *found == name).map_or(0, |(_, value)| *value)
    }
}

/// Counters of one port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// What happened.
    pub events: Block<PortCounter>,
    /// What was dropped, by reason.
    pub drops: Block<DropReason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_the_index_of_its_counter() {
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
        }
        let block = Block::<DropReason>::default();
        block.add(DropReason::Spoofed, 2);
        block.add(DropReason::Spoofed, 1);
        assert_eq!(block.get(DropReason::Spoofed), 3);
        assert_eq!(block.snapshot().get("spoofed_frames"), 3);
        assert_eq!(block.snapshot().0.iter().map(|(_, value)| value).sum::<u64>(), 3);
    }

    #[test]
    fn blocks_do_not_share_cache_lines() {
        assert_eq!(std::mem::align_of::<Block<PortCounter>>(), 128);
        assert_eq!(std::mem::size_of::<Block<PortCounter>>() % 128, 0);
    }
}
