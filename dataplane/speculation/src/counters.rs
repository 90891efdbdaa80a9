//! What an engine counts. One writer, the polling core; plain numbers that it copies where others see
//! them.

macro_rules! events {
    ($($(#[doc = $doc:literal])* $name:ident => $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Event { $($(#[doc = $doc])* $name,)* }

        impl Event {
            /// All of them, in the order of their indices.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];

            /// Its name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

events! {
    /// Flows whose handshake was seen from both sides and that may speculate.
    FlowsEstablished => "flows_established",
    /// Flows that began to speculate.
    FlowsSpeculating => "flows_speculating",
    /// Flows that went back to plain output commit once nothing of them was held.
    FlowsDrained => "flows_drained",
    /// Flows that may not speculate: an option that is not known, a rule, a SYN that was not seen.
    FlowsIneligible => "flows_ineligible",
    /// Flows that stay plain as the table or the byte store has no room.
    FlowsUnplaced => "flows_unplaced",
    /// Flows that were forgotten to make room.
    FlowsEvicted => "flows_evicted",
    /// Clients without window scaling that were lent a scale towards the guest.
    ScalesLent => "scales_lent",
    /// Flows that ended because their ends were taken by a new connection.
    FlowsReplaced => "flows_replaced",
    /// Flows that a reset of the client ended.
    ClientResets => "client_resets",
    /// Flows that a reset of the guest ended.
    GuestResets => "guest_resets",
    /// Flows that were given up as the client was silent beyond R2.
    ClientsSilent => "clients_silent",
    /// Segments of the guest that were taken.
    GuestSegments => "guest_segments",
    /// Bytes of the guest that were taken and held, each once.
    GuestBytes => "guest_bytes",
    /// Segments of the guest that brought only bytes that were held or confirmed already.
    GuestRetransmissions => "guest_retransmissions",
    /// Segments of the guest that were ignored for their checksum.
    GuestChecksum => "guest_checksum",
    /// Segments of the guest that were ignored for a length that lies.
    GuestMalformed => "guest_malformed",
    /// Segments of the guest behind a gap, ignored.
    GuestGaps => "guest_gaps",
    /// Segments of the guest that were cut at the window's edge, or ignored beyond it.
    GuestBeyondWindow => "guest_beyond_window",
    /// Segments of the guest that the byte store had no room for, though the window said so.
    GuestNoRoom => "guest_no_room",
    /// Segments of the guest that its flow cannot carry (URG): ignored until the flow is drained.
    GuestUnusual => "guest_unusual",
    /// ALARM: the guest sent other bytes for a sequence number that was sent before.
    GuestRewroteHistory => "guest_rewrote_history",
    /// ACKs made for the guest.
    ForgedAcks => "forged_acks",
    /// Resets made for the guest.
    ForgedResets => "forged_resets",
    /// Segments of clients that were passed on, rewritten.
    WireRewritten => "wire_rewritten",
    /// Pure ACKs of clients that were consumed.
    WireAcksConsumed => "wire_acks_consumed",
    /// Segments of clients that were dropped for their checksum.
    WireChecksum => "wire_checksum",
    /// Segments of clients that were dropped for an acknowledgement of bytes that were never sent.
    WireUnacceptable => "wire_unacceptable",
    /// Segments of clients that were dropped as the guest has reset the flow.
    WireAfterReset => "wire_after_reset",
    /// ICMP "too big" that made segments smaller.
    TooBig => "too_big",
    /// ICMP "too big" that quotes nothing in flight, dropped.
    TooBigRefused => "too_big_refused",
    /// Segments of the client leg with new bytes.
    LegSegments => "leg_segments",
    /// Bytes of those.
    LegBytes => "leg_bytes",
    /// Segments of the client leg that were sent again, or as a probe.
    LegRepeats => "leg_repeats",
    /// Pure ACKs of the client leg.
    LegAcks => "leg_acks",
    /// Resets to clients.
    LegResets => "leg_resets",
    /// Bytes handed to the backup's stream, without headers.
    StreamedBytes => "streamed_bytes",
    /// Bytes confirmed by clients and freed.
    FreedBytes => "freed_bytes",
    /// Bytes dropped unconfirmed, with their flow.
    DroppedBytes => "dropped_bytes",
}

/// Number of [`Event`]s.
const EVENTS: usize = Event::ALL.len();

/// The counters of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineCounters {
    counts: [u64; EVENTS],
}

impl Default for EngineCounters {
    fn default() -> Self {
        Self { counts: [0; EVENTS] }
    }
}

impl EngineCounters {
    /// How often `event` was counted.
    #[must_use]
    pub const fn get(&self, event: Event) -> u64 {
        self.counts[event as usize]
    }

    /// All counters with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Event::ALL.iter().map(|&event| (event.name(), self.get(event)))
    }

    pub(crate) fn add(&mut self, event: Event, count: u64) {
        self.counts[event as usize] += count;
    }
}
