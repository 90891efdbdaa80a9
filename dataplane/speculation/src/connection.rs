//! A flow whose handshake was seen in both directions.
//!
//! ```text
//!           data of the guest, mode on              all before it confirmed
//!  Plain ------------------------------> Joining ------------------------------> Active
//!    ^                                      |                                     |   |
//!    |   everything held is confirmed       |        RST of the guest, alarm      |   |
//!    '--------------------------------------+-------------------------------------'   |
//!                                           |                                         |
//!                     Resetting <-----------+-----------------------------------------'
//!                         | all confirmed, RST sent         '--> Finished: FIN confirmed, or reset
//! ```
//!
//! What each side of a flow does is in `guest_leg`, `wire_leg` and `send`; here is what they share.

use crate::boundary::FromGuest;
use crate::client_leg::{Sender, SenderConfig};
use crate::counters::Event;
use crate::emission::{Pattern, headers_len};
use crate::engine::Speculation;
use crate::key::FlowKey;
use crate::lists::List;
use crate::marks::{Mark, Marks, Voice};
use crate::opening::Handshake;
use crate::report::{FlowReport, FlowState};
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::shared::Shared;
use crate::store::{Queue, blocks};
use crate::time::Time;
use crate::window::{Scale, Scaled};
use holdfast_epoch::EpochId;

/// Largest segment that may be sent to a side that did not say (RFC 9293 §3.7.1).
const DEFAULT_MSS: [u16; 2] = [536, 1220];

/// Smallest segment that is made, whatever a peer says (RB-1).
const LEAST_MSS: u16 = 64;

/// How far beyond its window a guest that is passed through may be heard: a probe, a FIN, and what our
/// view of a window that opens may miss.
pub(crate) const BEYOND_WINDOW: u32 = 1 << 16;

/// What was agreed on in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) guest_iss: SeqNum,
    /// Of windows in the guest's own segments.
    pub(crate) guest_scale: Scale,
    /// Of windows in the client's own segments.
    pub(crate) client_scale: Scale,
    /// The guest alone scales: this one was lent to the client.
    pub(crate) lent: Option<Scale>,
    pub(crate) client_mss: u16,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
    pub(crate) ecn: bool,
}

impl Negotiated {
    /// What a handshake agreed on: only what both sides said counts (RFC 7323 §2.2, §3.2; RFC 2018 §2;
    /// RFC 3168 §6.1.1).
    pub(crate) fn of(handshake: &Handshake, v6: bool) -> Self {
        let Handshake { guest, client, .. } = handshake;
        let (guest_scale, client_scale, lent) = match (guest.scale, client.scale, handshake.lent) {
            // A client that was lent one is not told of the guest's, whatever it said in another SYN.
            (Some(guest), _, Some(lent)) => (guest, Scale::NONE, Some(lent)),
            (Some(guest), Some(client), None) => (guest, client, None),
            _ => (Scale::NONE, Scale::NONE, None),
        };
        Self {
            guest_iss: guest.iss,
            guest_scale,
            client_scale,
            lent,
            client_mss: client.mss.unwrap_or(DEFAULT_MSS[usize::from(v6)]).max(LEAST_MSS),
            timestamps: guest.tsval.is_some() && client.tsval.is_some(),
            sack: guest.sack && client.sack,
            ecn: guest.ecn && client.ecn,
        }
    }

    /// Scale of the windows that the guest is shown.
    pub(crate) fn scale_to_guest(&self) -> Scale {
        self.lent.unwrap_or(self.client_scale)
    }

    /// Scale of the windows that the client is told.
    pub(crate) fn scale_to_client(&self) -> Scale {
        if self.lent.is_some() { Scale::NONE } else { self.guest_scale }
    }

    /// A window of the guest's own segments as the client is told it.
    pub(crate) fn told(&self, window: u16) -> Scaled {
        match self.lent {
            Some(_) => self.guest_scale.unscaled(Scaled(window)),
            None => Scaled(window),
        }
    }

    /// Payload of the largest segment for the client over a path of this MTU.
    pub(crate) fn payload(&self, v6: bool, mtu: u16) -> u16 {
        let options = if self.timestamps { 12 } else { 0 };
        let path = mtu.saturating_sub(headers_len(v6) as u16);
        self.client_mss.min(path).saturating_sub(options).max(LEAST_MSS)
    }
}

/// Where a connection is in its life; see the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Passed through.
    Plain,
    /// New bytes are held, but bytes that went through before are not confirmed yet.
    Joining,
    /// All that the client has not confirmed is held.
    Active,
    /// The guest has reset it; the client gets the bytes before that, then the reset.
    Resetting,
    /// Passed through for good.
    Finished,
}

/// What the guest said, and what it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestEnd {
    /// Its SND.NXT as far as it is known.
    pub(crate) next: SeqNum,
    /// The latest ACK that it was shown.
    pub(crate) acked: SeqNum,
    /// The furthest window edge that it was shown.
    pub(crate) edge: SeqNum,
    /// The furthest edge of its own window.
    pub(crate) right: SeqNum,
    /// Its TSval that ACKs to it echo (RFC 7323 §4.3).
    pub(crate) ts_recent: u32,
    pub(crate) voice: Voice,
    pub(crate) pattern: Pattern,
}

/// What was last sent to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) ack: SeqNum,
    pub(crate) edge: SeqNum,
    pub(crate) tsval: u32,
}

/// What the client said, and what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientEnd {
    /// Where the gap begins in what the guest was given, or its end: the guest's RCV.NXT as far as we
    /// can know it.
    pub(crate) whole: SeqNum,
    /// Its SND.NXT as the guest has seen it.
    pub(crate) next: SeqNum,
    /// Its cumulative ACK.
    pub(crate) real: SeqNum,
    /// Its window, in bytes.
    pub(crate) window: u32,
    /// The furthest edge of its window.
    pub(crate) edge: SeqNum,
    /// The last TSval of it that the guest has seen, or could have.
    pub(crate) tsval: u32,
    pub(crate) pattern: Pattern,
    pub(crate) said: Option<Said>,
}

/// How far commits let the client leg go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cleared {
    pub(crate) end: SeqNum,
    pub(crate) fin: bool,
    pub(crate) reset: bool,
    pub(crate) voice: Option<Voice>,
    /// What the guest's frames looked like.
    pub(crate) pattern: Pattern,
    /// The newest epoch that had a part in this; none while nothing is held back.
    pub(crate) epoch: Option<EpochId>,
}

/// What is to be said to the guest, whether or not there is something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// So many ACKs: the guest sent something again, or behind a gap, or probed a window.
    Acks(u8),
    /// A reset.
    Reset,
}

/// The guest's keepalives (RFC 9293 §3.8.4), which the client answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keepalive {
    None,
    /// The guest sent one, with this sequence number; it is in the escrow.
    Held(SeqNum),
    /// It is on its way to the client: the next ACK of the client is the answer.
    Sent,
}

/// A flow whose handshake was seen in both directions.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) negotiated: Negotiated,
    pub(crate) phase: Phase,
    /// No rule forbids it to speculate.
    pub(crate) permitted: bool,
    /// Something was seen that the client leg cannot say: it is passed through for good.
    pub(crate) barred: bool,
    pub(crate) guest: GuestEnd,
    pub(crate) client: ClientEnd,
    /// The held bytes.
    pub(crate) queue: Queue,
    /// Bytes before this were handed to the backup's stream.
    pub(crate) streamed: SeqNum,
    /// Held bytes before this were passed as well, behind what the guest sent again.
    pub(crate) passed: SeqNum,
    /// The guest's FIN follows the held bytes.
    pub(crate) fin: bool,
    pub(crate) cleared: Cleared,
    pub(crate) marks: Marks,
    pub(crate) leg: Option<Sender>,
    pub(crate) due: Due,
    /// The guest's end was reset, or is to be. The reset may be lost, or undone by a failover: whatever
    /// the guest still sends is answered with another.
    pub(crate) forsaken: bool,
    /// While it is resetting: when the client has had its time for the bytes before the reset.
    pub(crate) patience: Option<Time>,
    /// The client is to be told where the connection is (RFC 5961 §4).
    pub(crate) challenged: bool,
    /// The number behind the client's FIN, once that came by.
    pub(crate) client_fin: Option<SeqNum>,
    /// One side has reset it, or it was given up.
    pub(crate) was_reset: bool,
    pub(crate) keepalive: Keepalive,
    /// Bytes that may be held of it now.
    pub(crate) budget: u32,
    /// Most bytes that were held of it since it last had none.
    pub(crate) peak: u32,
    /// Payload of the largest segment to the client.
    pub(crate) mss: u16,
}

impl Cleared {
    /// The number behind all that may leave: a FIN takes one (RFC 9293 §3.4).
    pub(crate) fn behind(&self) -> SeqNum {
        self.end + u32::from(self.fin)
    }
}

impl ClientEnd {
    /// The guest is given a segment.
    pub(crate) fn gives(&mut self, segment: &Segment) {
        let end = segment.seq + segment.space();
        self.next = self.next.later(end);
        if !segment.seq.after(self.whole) {
            self.whole = self.whole.later(end);
        }
    }
}

impl Connection {
    /// The connection that a handshake made.
    pub(crate) fn new(handshake: &Handshake, key: &FlowKey, shared: &Shared) -> Self {
        let negotiated = Negotiated::of(handshake, key.v6);
        let Handshake { guest, client, shown, answered, strange, lent: _ } = *handshake;
        let (first, client_first) = (guest.iss + 1, client.iss + 1);
        let voice = Voice {
            ack: client_first,
            // RFC 7323 §2.2: the window of a SYN is not scaled; those that follow are.
            window: Scaled(guest.window.0 >> negotiated.scale_to_client().shift()),
            tsval: guest.tsval.unwrap_or(0),
            tsecr: client.tsval.unwrap_or(0),
            ece: false,
        };
        let window = u32::from(client.window.0);
        Self {
            negotiated,
            phase: Phase::Plain,
            permitted: shared.rules.permit(key.guest_port, key.client_address(), key.client_port),
            barred: strange,
            guest: GuestEnd {
                next: first,
                acked: first,
                edge: first + shown,
                // RFC 7323 §2.2: the window of a SYN is not scaled.
                right: client_first + u32::from(guest.window.0),
                ts_recent: voice.tsval,
                voice,
                pattern: guest.pattern,
            },
            client: ClientEnd {
                whole: client_first,
                next: client_first,
                real: first,
                window,
                edge: first + window,
                tsval: client.tsval.unwrap_or(0),
                pattern: client.pattern,
                // An answer that was answered has reached the client.
                said: answered.then_some(Said {
                    ack: client_first,
                    edge: client_first + u32::from(guest.window.0),
                    tsval: voice.tsval,
                }),
            },
            queue: Queue::new(first),
            streamed: first,
            passed: first,
            fin: false,
            cleared: Cleared {
                end: first,
                fin: false,
                reset: false,
                voice: None,
                pattern: guest.pattern,
                epoch: None,
            },
            marks: Marks::new(),
            leg: None,
            due: Due::Nothing,
            forsaken: false,
            patience: None,
            challenged: false,
            client_fin: None,
            was_reset: false,
            keepalive: Keepalive::None,
            budget: shared.initial_window,
            peak: 0,
            mss: negotiated.payload(key.v6, shared.mtu),
        }
    }

    /// Whether the guest may run ahead on it.
    pub(crate) fn speculates(&self, shared: &Shared) -> bool {
        shared.mode == Speculation::On && self.permitted && !self.barred
    }

    /// Whether the engine stands between guest and client.
    pub(crate) const fn is_taken(&self) -> bool {
        matches!(self.phase, Phase::Joining | Phase::Active | Phase::Resetting)
    }

    /// Begins to hold the guest's bytes from its SND.NXT on, if the store has room for the window that
    /// the guest was shown. What it sent before was passed, and must be confirmed by the client before
    /// an ACK is forged: nothing is acknowledged that is not held (SP-1).
    pub(crate) fn begin(&mut self, now: Time, slot: u32, shared: &mut Shared) -> bool {
        if self.phase != Phase::Plain || self.fin || !self.speculates(shared) {
            return false;
        }
        let base = self.guest.next;
        let promised = self.guest.edge.bytes_since(base);
        let least = promised.max(shared.initial_window);
        // In whole blocks, as it will be promised: a window that begins within a block takes one more.
        if promised > shared.flow_bytes || blocks(base, base + least) > shared.store.unreserved() {
            return false;
        }
        self.queue = Queue::new(base);
        shared.reserve(&mut self.queue, self.guest.edge);
        self.streamed = base;
        self.passed = base;
        self.budget = promised.max(shared.initial_window);
        let voice = self.cleared.voice;
        self.cleared = Cleared { end: base, fin: false, reset: false, voice, ..self.cleared };
        self.marks.clear();
        self.keepalive = Keepalive::None;
        self.due = Due::Nothing;
        self.phase = Phase::Joining;
        shared.count(Event::FlowsSpeculating);
        shared.lists.push(List::Changed, slot);
        self.join(now, shared);
        true
    }

    /// Lets the client leg begin if the client has confirmed all that went through before.
    pub(crate) fn join(&mut self, now: Time, shared: &Shared) {
        let base = self.queue.base();
        if self.phase != Phase::Joining || self.client.real.before(base) {
            return;
        }
        let mut leg = Sender::new(self.sender_config(shared), base, self.client.window, now);
        if self.cleared.end.after(base) {
            leg.extend(self.cleared.end);
        }
        if self.cleared.fin {
            leg.close();
        }
        leg.may_have(self.passed);
        self.leg = Some(leg);
        self.phase = Phase::Active;
    }

    /// What the client leg is told when it begins.
    pub(crate) fn sender_config(&self, shared: &Shared) -> SenderConfig {
        SenderConfig {
            mss: self.mss,
            sack: self.negotiated.sack,
            ecn: self.negotiated.ecn,
            congestion: shared.congestion,
        }
    }

    /// How the flow stands, for a cut.
    pub(crate) fn mark(&self, epoch: EpochId) -> Mark {
        let whole = self.streamed == self.queue.end();
        Mark {
            epoch,
            end: self.streamed,
            fin: self.fin && whole,
            reset: self.phase == Phase::Resetting && whole,
            voice: self.guest.voice,
            pattern: self.guest.pattern,
        }
    }

    /// What a mark says may leave (OC-1).
    pub(crate) fn clear(&mut self, slot: u32, mark: &Mark, epoch: Option<EpochId>, shared: &mut Shared) {
        self.cleared.end = self.cleared.end.later(mark.end);
        self.cleared.fin |= mark.fin;
        self.cleared.reset |= mark.reset;
        self.cleared.voice = Some(mark.voice);
        self.cleared.pattern = mark.pattern;
        self.cleared.epoch = epoch;
        if let Some(leg) = &mut self.leg {
            if self.cleared.end.after(leg.end()) {
                leg.extend(self.cleared.end);
            }
            if mark.fin {
                leg.close();
            }
            leg.may_have(self.passed);
        }
        shared.lists.push(List::ToClient, slot);
    }

    /// Without a backup everything held counts as committed.
    pub(crate) fn clear_all(&mut self, slot: u32, shared: &mut Shared) {
        self.marks.clear();
        shared.lists.remove(List::Marked, slot);
        let mark = Mark {
            epoch: EpochId::FIRST,
            end: self.queue.end(),
            fin: self.fin,
            reset: self.phase == Phase::Resetting,
            voice: self.guest.voice,
            pattern: self.guest.pattern,
        };
        self.clear(slot, &mark, None, shared);
    }

    /// Passes the flow through again once nothing of it is held or waits to be said.
    pub(crate) fn finish_draining(&mut self, slot: u32, shared: &mut Shared) -> bool {
        let settled = match self.phase {
            Phase::Joining => true,
            Phase::Active => self.client.real == self.queue.end() && !self.ack_is_due(),
            Phase::Plain | Phase::Resetting | Phase::Finished => false,
        };
        let idle = settled && self.queue.is_empty() && self.marks.is_empty();
        if !idle || self.fin || self.speculates(shared) {
            return false;
        }
        self.phase = Phase::Plain;
        self.let_go(slot, shared);
        shared.count(Event::FlowsDrained);
        // Its window is the client's own again.
        shared.lists.push(List::ToGuest, slot);
        true
    }

    /// Both directions are passed through from now on, for good; what is held is dropped.
    pub(crate) fn finish(&mut self, slot: u32, shared: &mut Shared) {
        self.phase = Phase::Finished;
        self.marks.clear();
        self.let_go(slot, shared);
    }

    /// Gives back what the flow has of the engine's means.
    pub(crate) fn let_go(&mut self, slot: u32, shared: &mut Shared) {
        if let Some(mut leg) = self.leg.take() {
            leg.clear(&mut shared.log);
        }
        shared.counters.add(Event::DroppedBytes, u64::from(self.queue.len()));
        let freed = self.queue.reserved() > 0;
        shared.store.clear(&mut self.queue);
        shared.room_came |= freed;
        self.streamed = self.queue.end();
        for list in [List::Unstreamed, List::Marked, List::Starved, List::ToClient] {
            shared.lists.remove(list, slot);
        }
        shared.timers.cancel(slot);
        shared.lists.push(List::Changed, slot);
    }

    /// The guest has reset the flow, or has to be told so; the client gets what came before.
    pub(crate) fn begin_reset(&mut self, slot: u32, shared: &mut Shared) {
        self.phase = Phase::Resetting;
        self.was_reset = true;
        shared.lists.push(List::Changed, slot);
        if shared.mode == Speculation::Off {
            self.clear_all(slot, shared);
        }
    }

    /// Keeps what the guest says of the client's data.
    pub(crate) fn hear_guest(&mut self, segment: &Segment) {
        let told = self.negotiated.told(segment.window);
        let voice = &mut self.guest.voice;
        if segment.has(holdfast_packet::headers::flag::ACK) && !segment.ack.before(voice.ack) {
            voice.ack = segment.ack;
            voice.window = told;
            voice.ece = segment.has(holdfast_packet::headers::flag::ECE);
            if let Some(stamps) = segment.options.timestamps {
                voice.tsecr = stamps.echo;
            }
            let edge = segment.ack + self.negotiated.guest_scale.bytes(Scaled(segment.window));
            self.guest.right = self.guest.right.later(edge);
            self.client.next = self.client.next.later(segment.ack);
            self.client.whole = self.client.whole.later(segment.ack);
        }
        if let Some(stamps) = segment.options.timestamps {
            voice.tsval = newer(stamps.value, voice.tsval);
            // RFC 7323 §4.3 (2): what is acknowledged next echoes the first segment that it covers.
            if !segment.seq.after(self.guest.acked) {
                self.guest.ts_recent = newer(stamps.value, self.guest.ts_recent);
            }
        }
        self.guest.pattern = Pattern::of(segment);
        let next = match self.is_taken() {
            true => self.queue.end() + u32::from(self.fin),
            false => segment.seq + segment.space(),
        };
        // A guest does not send far beyond its window; a number that says so is not believed (RB-1).
        if !next.after(self.guest.edge + BEYOND_WINDOW) {
            self.guest.next = self.guest.next.later(next);
        }
    }

    /// Asks for a reset of the guest's end.
    pub(crate) fn owe_reset(&mut self, slot: u32, shared: &mut Shared) {
        self.forsaken = true;
        self.due = Due::Reset;
        shared.lists.push(List::ToGuest, slot);
        shared.lists.push(List::Changed, slot);
    }

    /// Asks for an ACK to the guest.
    pub(crate) fn owe_ack(&mut self, slot: u32, shared: &mut Shared) -> FromGuest {
        self.due = match self.due {
            Due::Nothing => Due::Acks(1),
            // RFC 5681 §3.2: three duplicates tell the guest of a gap; more tell it no more.
            Due::Acks(count) => Due::Acks((count + 1).min(3)),
            Due::Reset => Due::Reset,
        };
        shared.lists.push(List::ToGuest, slot);
        FromGuest::Taken
    }

    /// Whether another flow may take its place: nothing held, nothing shown to the guest that the
    /// client did not say, nothing left to say.
    pub(crate) fn is_dispensable(&self) -> bool {
        let settled = self.queue.is_empty()
            && self.marks.is_empty()
            && !self.guest.acked.after(self.client.real)
            && !self.guest.edge.after(self.client.edge)
            && self.phase != Phase::Resetting
            // A FIN that was taken and not confirmed, and what the guest said along with data, are
            // the client leg's to say.
            && !(self.is_taken() && (self.fin || self.ack_is_due()));
        (settled || self.phase == Phase::Finished) && self.due != Due::Reset && !self.needs_rescaling()
    }

    /// Its state in the words of reports.
    pub(crate) fn state(&self, shared: &Shared) -> FlowState {
        match self.phase {
            Phase::Plain => FlowState::Plain,
            Phase::Joining => FlowState::Joining,
            Phase::Active if self.speculates(shared) => FlowState::Speculating,
            Phase::Active => FlowState::Draining,
            Phase::Resetting => FlowState::Resetting,
            Phase::Finished => FlowState::Finished,
        }
    }

    /// A view of it.
    pub(crate) fn report(&self, key: &FlowKey, shared: &Shared) -> FlowReport {
        let leg = self.leg.as_ref().map(Sender::report);
        FlowReport {
            state: self.state(shared),
            ahead_bytes: self.guest.acked.bytes_since(self.client.real),
            held_bytes: self.queue.len(),
            window_bytes: self.guest.edge.bytes_since(self.guest.next),
            srtt: leg.and_then(|leg| leg.srtt),
            cwnd_bytes: leg.map_or(0, |leg| leg.cwnd_bytes),
            retransmissions: leg.map_or(0, |leg| leg.retransmissions),
            ..FlowReport::opening(key)
        }
    }
}

impl FlowReport {
    /// The view of a flow whose handshake is under way.
    pub(crate) fn opening(key: &FlowKey) -> Self {
        Self {
            vlans: key.tags.map(|tag| tag as u16),
            guest: (key.guest_address(), key.guest_port),
            client: (key.client_address(), key.client_port),
            state: FlowState::Opening,
            ahead_bytes: 0,
            held_bytes: 0,
            window_bytes: 0,
            srtt: None,
            cwnd_bytes: 0,
            retransmissions: 0,
        }
    }
}

/// The newer of two timestamps (RFC 7323 §5.2: they wrap, and are compared like sequence numbers).
pub(crate) fn newer(one: u32, other: u32) -> u32 {
    SeqNum::new(one).later(SeqNum::new(other)).get()
}
