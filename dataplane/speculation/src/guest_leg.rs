//! The guest leg: what the guest sends is taken and held, and acknowledged in the client's name.
//!
//! SP-1: an ACK covers a byte only when it is held in order, when its checksum was verified (or left
//! to the card by the guest), and when it was handed to the backup's stream. SP-4: ACKs never pass what
//! the guest sent, and window edges never move left.

use crate::boundary::{FromGuest, GuestFrame, Payload, Sink};
use crate::connection::{Connection, Due, Keepalive, Phase, newer};
use crate::counters::Event;
use crate::emission::{self, Fields};
use crate::engine::Speculation;
use crate::key::{FlowKey, Side};
use crate::lists::List;
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::shared::Shared;
use crate::store::{BLOCK, Reader, add_at, blocks};
use crate::time::Time;
use crate::window::Scaled;
use holdfast_packet::checksum::Sum;
use holdfast_packet::headers::flag;

/// Bytes of a retransmission that are compared at a time.
const COMPARED: usize = 1024;

/// What the bytes of a segment turned out to be.
struct Taken {
    /// New bytes that are held now.
    new: u32,
    /// Bytes of it that were held before are other ones now.
    differs: bool,
}

impl Connection {
    /// A segment of the guest that is no SYN.
    ///
    /// Bound: the segment's length. Allocations: none.
    pub(crate) fn handle_guest(
        &mut self,
        now: Time,
        slot: u32,
        segment: &Segment,
        frame: &GuestFrame<'_>,
        shared: &mut Shared,
    ) -> FromGuest {
        shared.lists.push(List::Changed, slot);
        if segment.has(flag::RST) {
            return self.handle_guest_reset(slot, shared);
        }
        if self.forsaken {
            return self.reset_again(slot, segment, shared);
        }
        let carries = segment.len > 0 || segment.has(flag::FIN);
        match self.phase {
            Phase::Plain if carries && !segment.seq.before(self.guest.next) => {
                if is_unusual(segment) || !self.begin(now, slot, shared) {
                    return self.pass_guest(segment);
                }
            }
            Phase::Plain | Phase::Finished => return self.pass_guest(segment),
            Phase::Resetting => return FromGuest::Taken,
            Phase::Joining | Phase::Active => {}
        }
        if !carries {
            return self.handle_guest_ack(slot, segment, shared);
        }
        if is_unusual(segment) {
            return self.refuse_unusual(slot, segment, shared);
        }
        self.take(slot, segment, frame, shared)
    }

    /// Plain output commit takes care of it; only what it says is kept.
    fn pass_guest(&mut self, segment: &Segment) -> FromGuest {
        if segment.has(flag::FIN) {
            // A flow whose end went through is not taken any more.
            self.phase = Phase::Finished;
        }
        self.hear_guest(segment);
        FromGuest::Pass
    }

    /// A pure ACK goes its way, so that duplicates and SACK blocks reach the client as they were sent.
    fn handle_guest_ack(&mut self, slot: u32, segment: &Segment, shared: &mut Shared) -> FromGuest {
        // RFC 9293 §3.8.4 has it one before SND.NXT; Linux has it one before SND.UNA.
        let behind = segment.seq + 1 == self.guest.next || segment.seq + 1 == self.guest.acked;
        // RFC 9293 §3.10.7.4: whatever it is, its ACK and its window count.
        self.hear_guest(segment);
        self.adopt_at_once(slot, shared);
        if behind && self.window_is_closed() {
            // RFC 9293 §3.8.6.1: a probe of a window that is ours, answered by us.
            return self.owe_ack(slot, shared);
        }
        if behind {
            self.keepalive = Keepalive::Held(segment.seq);
        }
        FromGuest::Pass
    }

    /// Whether the guest was shown a window of which nothing is left.
    fn window_is_closed(&self) -> bool {
        !self.guest.edge.after(self.guest.next) && !self.fin
    }

    /// A segment that its flow cannot carry as it is: URG (RFC 9293 §3.8.5), options that are not
    /// known, IP options. It is ignored, so that the guest sends it again, until all before it is
    /// delivered; then the flow is passed through, and it goes as it was sent.
    fn refuse_unusual(&mut self, slot: u32, segment: &Segment, shared: &mut Shared) -> FromGuest {
        self.barred = true;
        if self.finish_draining(slot, shared) {
            return self.pass_guest(segment);
        }
        shared.count(Event::GuestUnusual);
        FromGuest::Taken
    }

    /// The first fragment of a segment: what is in it cannot be held. `window` are its flags and its window,
    /// if they are in it.
    pub(crate) fn handle_guest_fragment(
        &mut self,
        slot: u32,
        window: Option<(u8, u16)>,
        shared: &mut Shared,
    ) -> FromGuest {
        self.barred = true;
        shared.lists.push(List::Changed, slot);
        // A window that cannot be rewritten does not leave: the guest sends it again.
        let rewritable = window.is_some_and(|(flags, _)| flags & flag::SYN == 0);
        if self.negotiated.lent.is_some() && !rewritable {
            shared.count(Event::GuestUnusual);
            return FromGuest::Taken;
        }
        if !self.is_taken() || self.finish_draining(slot, shared) {
            return FromGuest::Pass;
        }
        shared.count(Event::GuestUnusual);
        FromGuest::Taken
    }

    fn handle_guest_reset(&mut self, slot: u32, shared: &mut Shared) -> FromGuest {
        match self.phase {
            Phase::Resetting => FromGuest::Taken,
            // While joining no held byte was acknowledged: a guest that resets gives them up itself.
            Phase::Plain | Phase::Joining | Phase::Finished => {
                self.was_reset = true;
                self.finish(slot, shared);
                FromGuest::Pass
            }
            Phase::Active => {
                shared.count(Event::GuestResets);
                // Behind bytes that the client has not confirmed, it waits for them.
                if self.queue.is_empty() && !self.fin {
                    self.was_reset = true;
                    self.finish(slot, shared);
                    return FromGuest::Pass;
                }
                self.begin_reset(slot, shared);
                FromGuest::Taken
            }
        }
    }

    /// The guest has not heard that its end was reset (RFC 9293 §3.10.7.1), or the reset was not exactly
    /// where it is (RFC 5961 §3.2): the number that it names is.
    fn reset_again(&mut self, slot: u32, segment: &Segment, shared: &mut Shared) -> FromGuest {
        if segment.has(flag::ACK) {
            self.hear_guest(segment);
            self.client.whole = segment.ack;
        }
        self.owe_reset(slot, shared);
        FromGuest::Taken
    }

    /// Takes a segment with data or a FIN.
    fn take(
        &mut self,
        slot: u32,
        segment: &Segment,
        frame: &GuestFrame<'_>,
        shared: &mut Shared,
    ) -> FromGuest {
        let (first, last) = (segment.seq, segment.end());
        let (base, end) = (self.queue.base(), self.queue.end());
        if first.after(end) {
            if !self.hear_unheld(slot, segment, frame, shared) {
                return FromGuest::Taken;
            }
            shared.count(Event::GuestGaps);
            return self.owe_ack(slot, shared);
        }
        // Sent once already and not confirmed: it goes the way that its first try went.
        let verdict =
            match self.phase == Phase::Joining && first.before(base) && self.client.real.before(base) {
                true => FromGuest::Pass,
                false => FromGuest::Taken,
            };
        let probe = segment.len <= 1 && last == end && self.guest.acked == end && !segment.has(flag::FIN);
        if probe
            && first.before(end)
            && verdict == FromGuest::Taken
            && !self.repeats_held_byte(segment, frame, shared)
        {
            if !self.hear_unheld(slot, segment, frame, shared) {
                return FromGuest::Taken;
            }
            return self.handle_probe(slot, segment, shared);
        }
        let Some(taken) = self.hold(segment, frame, shared) else {
            shared.count(Event::GuestChecksum);
            return FromGuest::Taken;
        };
        if taken.differs {
            self.handle_rewritten_history(slot, shared);
            return FromGuest::Taken;
        }
        shared.count(Event::GuestSegments);
        let whole = self.queue.end() == last || last.before(end);
        let ends = segment.has(flag::FIN) && self.queue.end() == last && whole;
        let news = taken.new > 0 || (ends && !self.fin);
        self.fin |= ends;
        if whole {
            self.hear_guest(segment);
        } else {
            self.hear_guest(&self.cut_back(segment));
        }
        if taken.new > 0 {
            shared.counters.add(Event::GuestBytes, u64::from(taken.new));
            shared.lists.push(List::Unstreamed, slot);
            self.grow_budget(shared);
        }
        if !news {
            shared.count(Event::GuestRetransmissions);
        }
        self.adopt_at_once(slot, shared);
        match verdict {
            FromGuest::Pass => {
                self.passed = self.passed.later(segment.seq + segment.space());
                FromGuest::Pass
            }
            // RFC 9293 §3.10.7.4: what was there already is acknowledged again.
            FromGuest::Taken if !news || !whole => self.owe_ack(slot, shared),
            FromGuest::Taken => FromGuest::Taken,
        }
    }

    /// Keeps what a segment says of the client's data (RFC 9293 §3.10.7.4), none of whose bytes are held;
    /// false when its checksum is wrong, and it says nothing then.
    fn hear_unheld(
        &mut self,
        slot: u32,
        segment: &Segment,
        frame: &GuestFrame<'_>,
        shared: &mut Shared,
    ) -> bool {
        if frame.checksum_done {
            let (mut sum, mut odd) = (Sum::ZERO, false);
            let end = segment.payload_at + segment.len as usize;
            read(frame.frame, segment.payload_at, end, |piece| sum = add_at(sum, piece, &mut odd));
            if !sum.word(segment.header_sum(frame.head, Side::Guest).fold()).verifies() {
                shared.count(Event::GuestChecksum);
                return false;
            }
        }
        // A window alone is told with the next bytes, unless the client waits for it.
        if segment.ack.after(self.guest.voice.ack) || self.guest.voice.window.0 == 0 {
            self.hear_guest(segment);
            self.adopt_at_once(slot, shared);
        }
        true
    }

    /// The part of a segment that was taken: what lies beyond is as if it had not been sent.
    fn cut_back(&self, segment: &Segment) -> Segment {
        let mut part = segment.clone();
        part.len = self.queue.end().bytes_since(segment.seq);
        part.flags &= !flag::FIN;
        part
    }

    /// Whether a segment's only byte is the one that is held in its place: then it is sent again, and no keepalive,
    /// which has a byte of anything (RFC 9293 §3.8.4).
    fn repeats_held_byte(&mut self, segment: &Segment, frame: &GuestFrame<'_>, shared: &mut Shared) -> bool {
        let first = segment.seq;
        if segment.len != 1 || first.before(self.queue.base()) || !first.before(self.queue.end()) {
            return false;
        }
        let mut byte = [0];
        frame.frame.copy_to(segment.payload_at, &mut byte);
        let mut same = false;
        shared.store.read(&mut self.queue, Reader::Stream, first, 1, |held| same = held == byte);
        same
    }

    /// A byte, or none, before the next one: a probe of a closed window or a keepalive. The byte may be
    /// anything (RFC 9293 §3.8.4).
    fn handle_probe(&mut self, slot: u32, segment: &Segment, shared: &mut Shared) -> FromGuest {
        if self.window_is_closed() {
            return self.owe_ack(slot, shared);
        }
        self.keepalive = Keepalive::Held(segment.seq);
        FromGuest::Pass
    }

    /// Holds the new bytes of a segment that begins at or before the end of those held, compares the
    /// old ones, and verifies the checksum over what was read; none when it is wrong, and nothing has
    /// changed then (SP-1).
    fn hold(&mut self, segment: &Segment, frame: &GuestFrame<'_>, shared: &mut Shared) -> Option<Taken> {
        let (first, last) = (segment.seq, segment.end());
        let (base, end) = (self.queue.base(), self.queue.end());
        let at = |seq: SeqNum| segment.payload_at + seq.minus(first) as usize;
        let mut sum = Sum::ZERO;
        let mut odd = false;
        let mut differs = false;
        // Confirmed by the client and freed: there is nothing to compare with.
        let old = base.later(first).earlier(last);
        if frame.checksum_done {
            read(frame.frame, at(first), at(old), |piece| sum = add_at(sum, piece, &mut odd));
        }
        let new = end.later(first).earlier(last);
        let mut place = old;
        read(frame.frame, at(old), at(new), |piece| {
            let mut rest = piece;
            shared.store.read(&mut self.queue, Reader::Stream, place, piece.len() as u32, |held| {
                differs |= held != &rest[..held.len()];
                rest = &rest[held.len()..];
            });
            place = place + piece.len() as u32;
            if frame.checksum_done {
                sum = add_at(sum, piece, &mut odd);
            }
        });
        let wanted = match self.fin {
            // RFC 9293 §3.10.4: nothing follows a FIN.
            true => 0,
            false => last.earlier(self.guest.edge).bytes_since(new),
        };
        if wanted < last.bytes_since(new) {
            shared.count(Event::GuestBeyondWindow);
        }
        let taken = shared.store.append(&mut self.queue, frame.frame, at(new), wanted);
        if taken < wanted {
            shared.count(Event::GuestNoRoom);
        }
        if frame.checksum_done {
            // Nothing new may lie before all that is held, where there is nothing to sum.
            if taken > 0 {
                let held = shared.store.sum(&mut self.queue, new, taken, odd);
                odd ^= taken % 2 == 1;
                sum = sum.word(held.fold());
            }
            read(frame.frame, at(new + taken), at(last), |piece| sum = add_at(sum, piece, &mut odd));
            let sum = sum.word(segment.header_sum(frame.head, Side::Guest).fold());
            if !sum.verifies() {
                shared.store.truncate(&mut self.queue, end);
                return None;
            }
        }
        if differs {
            shared.store.truncate(&mut self.queue, end);
        }
        Some(Taken { new: taken, differs })
    }

    /// ALARM: the guest sent other bytes for a sequence number, and we cannot know which ones the
    /// client will get. The guest is told at once, the client after the commit (OC-1).
    fn handle_rewritten_history(&mut self, slot: u32, shared: &mut Shared) {
        shared.count(Event::GuestRewroteHistory);
        self.owe_reset(slot, shared);
        match self.phase {
            // No held byte was acknowledged, and there is no client leg: the flow just ends. The client
            // hears it from the guest.
            Phase::Joining => self.finish(slot, shared),
            _ => self.begin_reset(slot, shared),
        }
    }

    /// Without a backup nothing waits for a commit.
    pub(crate) fn adopt_at_once(&mut self, slot: u32, shared: &mut Shared) {
        if shared.mode == Speculation::Off {
            self.clear_all(slot, shared);
        }
    }

    /// A flow that fills its window gets a larger one.
    fn grow_budget(&mut self, shared: &Shared) {
        self.peak = self.peak.max(self.queue.len());
        if self.queue.len() >= self.budget / 2 {
            self.budget = self.budget.saturating_mul(2).min(shared.flow_bytes);
        }
    }

    /// Up to where bytes may be acknowledged to the guest.
    pub(crate) fn ackable(&self, shared: &Shared) -> SeqNum {
        let forged = match self.phase {
            // SP-1, SP-2: held, and handed to the backup. The FIN lies beyond.
            Phase::Active if self.speculates(shared) => self.streamed.earlier(self.queue.end()),
            _ => self.client.real,
        };
        self.guest.acked.later(self.client.real).later(forged)
    }

    /// The furthest window edge that the guest may be shown now, from the room in the store, so that
    /// all windows shown can be filled; never left of the one shown.
    fn permitted_edge(&self, slot: u32, shared: &mut Shared) -> SeqNum {
        let shown = self.guest.edge;
        if self.phase == Phase::Plain {
            // Nothing of it is held: the client's own window counts.
            return shown.later(self.client.edge);
        }
        let open = matches!(self.phase, Phase::Joining | Phase::Active);
        if !open || self.fin || !self.speculates(shared) {
            return shown;
        }
        let base = self.queue.base();
        let budget = self.budget.min(shared.flow_bytes);
        let ahead = (budget / 2).min(shared.most_ahead()).max(shared.initial_window);
        let wanted = self.queue.end() + budget.saturating_sub(self.queue.len()).min(ahead);
        let most = base + shared.largest_window(slot);
        let edge = wanted.earlier(most).later(shown);
        let missing = blocks(base, edge).saturating_sub(self.queue.reserved());
        let fits = missing * BLOCK <= shared.room();
        if wanted.after(edge) || !fits {
            // Whoever waits for room is looked at again when there is some.
            shared.lists.push(List::Starved, slot);
        }
        match fits {
            true => edge,
            // Who has nothing gives nothing back: it takes what others that wait have left, rather than
            // stay shut.
            false if self.queue.reserved() == 0 => {
                let room = shared.room().saturating_sub(base.get() % BLOCK);
                edge.earlier(base + room).later(shown)
            }
            false => shown,
        }
    }

    /// The edge to be shown, of the one permitted: no small steps (RFC 9293 §3.8.6.2.2).
    fn worthwhile_edge(&self, permitted: SeqNum) -> SeqNum {
        let step = if self.is_taken() { u32::from(self.mss).min(self.budget / 2) } else { 1 };
        match permitted.bytes_since(self.guest.edge) >= step {
            true => permitted,
            false => self.guest.edge,
        }
    }

    /// Whether an edge that was rounded up may be shown: there is room for it.
    fn may_creep(&self, edge: SeqNum, permitted: SeqNum, shared: &Shared) -> bool {
        if !self.is_taken() {
            return true;
        }
        // A flow that drains gets no more by this, or it would never be done.
        let flow_bytes = if self.speculates(shared) { shared.flow_bytes } else { 0 };
        let limit = self.queue.base() + flow_bytes;
        let missing = blocks(self.queue.base(), edge).saturating_sub(self.queue.reserved());
        !edge.after(permitted) || (!edge.after(limit) && missing * BLOCK <= shared.room() / 2)
    }

    /// The ACK, `ack` or somewhat less, the window to be shown to the guest with it, and its edge.
    ///
    /// Where the scale would round an edge up beyond what a flow may hold, as much less is acknowledged:
    /// the edge stays, and a guest that sends single bytes cannot push it on.
    fn view(&self, slot: u32, ack: SeqNum, shared: &mut Shared) -> (SeqNum, Scaled, SeqNum) {
        let permitted = self.permitted_edge(slot, shared);
        let target = self.worthwhile_edge(permitted);
        let shown = self.guest.edge;
        let (window, edge) = self.negotiated.scale_to_guest().offer(ack, shown, target);
        let less = ack - edge.bytes_since(shown);
        // Nothing follows a FIN: its ACK is not held back, and lets nobody push an edge on.
        let of_fin = self.fin && ack.after(self.queue.end());
        match of_fin || self.may_creep(edge, permitted, shared) || less.before(self.guest.acked) {
            true => (ack, window, edge),
            false => (less, window, shown),
        }
    }

    /// The ACK and the window to be shown to the guest, as [`Connection::view`] has them; they count as
    /// shown.
    pub(crate) fn show_window(&mut self, slot: u32, ack: SeqNum, shared: &mut Shared) -> (SeqNum, Scaled) {
        let (ack, window, edge) = self.view(slot, ack, shared);
        // SP-4: neither the ACK nor the edge moves back, and no ACK is beyond what the guest sent.
        assert!(
            !edge.before(self.guest.edge) && !ack.before(self.guest.acked),
            "the guest's view moves back"
        );
        assert!(!ack.after(self.guest.next), "the guest has not sent what is acknowledged");
        if edge != self.guest.edge {
            self.guest.edge = edge;
            // What is passed through takes no room, however far its window goes.
            if self.is_taken() {
                shared.reserve(&mut self.queue, edge);
            }
        }
        self.guest.acked = ack;
        (ack, window)
    }

    /// Whether there is something to tell the guest that it does not know: an ACK, or a window that has
    /// grown by enough (RFC 9293 §3.8.6.2.2).
    fn has_news(&self, slot: u32, shared: &mut Shared) -> bool {
        let (ack, _, edge) = self.view(slot, self.ackable(shared), shared);
        ack.after(self.guest.acked) || self.is_worth_an_update(edge)
    }

    /// RFC 9293 §3.8.6.2.2: a window that has grown by a segment, or by half of what there is for it.
    fn is_worth_an_update(&self, edge: SeqNum) -> bool {
        let left = self.guest.edge.bytes_since(self.guest.next);
        // The scale may cut off so much of it.
        let cut = self.negotiated.scale_to_guest().unit() - 1;
        let step = u32::from(self.mss).min((self.budget / 2).saturating_sub(cut));
        edge.after(self.guest.edge) && edge.bytes_since(self.guest.edge) >= left.max(step)
    }

    /// Whether the guest should be told of a window that has grown (RFC 9293 §3.8.6.2.2).
    pub(crate) fn window_update_is_due(&self, slot: u32, shared: &mut Shared) -> bool {
        let (_, _, edge) = self.view(slot, self.guest.acked, shared);
        self.is_worth_an_update(edge)
    }

    /// The guest did not hear what it was told last: it is told again.
    pub(crate) fn repeat_to_guest(&mut self, slot: u32, shared: &mut Shared) {
        if self.is_taken() && self.due == Due::Nothing {
            self.due = Due::Acks(1);
            shared.lists.push(List::ToGuest, slot);
        }
    }

    /// Says to the guest what there is to say; none when the sink has no room, else how many frames.
    ///
    /// Bound: three frames. Allocations: none.
    pub(crate) fn speak_to_guest(
        &mut self,
        slot: u32,
        key: &FlowKey,
        shared: &mut Shared,
        sink: &mut dyn Sink,
    ) -> Option<usize> {
        if self.due == Due::Reset {
            return self.reset_guest(key, shared, sink).then_some(1);
        }
        let wanted = match self.due {
            Due::Acks(count) => usize::from(count),
            Due::Nothing | Due::Reset => usize::from(self.has_news(slot, shared)),
        };
        for said in 0..wanted {
            let ack = self.ackable(shared);
            if !self.acknowledge(slot, key, ack, shared, sink) {
                self.due = Due::Acks((wanted - said) as u8);
                return None;
            }
        }
        self.due = Due::Nothing;
        Some(wanted)
    }

    /// Forges one ACK; false when the sink has no room, and nothing has changed then.
    fn acknowledge(
        &mut self,
        slot: u32,
        key: &FlowKey,
        ack: SeqNum,
        shared: &mut Shared,
        sink: &mut dyn Sink,
    ) -> bool {
        // SP-1: covers what is held and streamed, or what the client has confirmed itself.
        let held = self.streamed.earlier(self.queue.end());
        assert!(!ack.after(held.later(self.client.real)), "what is not held is not acknowledged");
        let before = (self.guest.acked, self.guest.edge, self.queue.reserved());
        let (ack, window) = self.show_window(slot, ack, shared);
        let fields = Fields {
            // The client's SND.NXT as the guest has seen it, but within the guest's window: at its edge and
            // beyond an ACK is not acceptable, unless the window is closed (RFC 9293 §3.10.7.4).
            seq: self.client.next.earlier(self.last_acceptable()),
            ack: Some(ack),
            // RFC 3168 §6.1.3: no ECE; the client's is for the client leg.
            flags: 0,
            window,
            timestamps: self.negotiated.timestamps.then_some((self.client.tsval, self.guest.ts_recent)),
            ect: false,
            identification: shared.next_identification(),
        };
        let pattern = self.client.pattern;
        let len = emission::frame_len(&pattern, key, &fields, 0);
        let emitted = sink.emit(len, None, &mut |out| {
            emission::write(out, &pattern, key, Side::Client, &fields, |_| {});
        });
        if emitted {
            shared.count(Event::ForgedAcks);
            shared.lists.push(List::Changed, slot);
        } else {
            (self.guest.acked, self.guest.edge) = (before.0, before.1);
            if self.queue.reserved() != before.2 {
                shared.reserve(&mut self.queue, before.1);
            }
        }
        emitted
    }

    /// The last sequence number that the guest's window takes; RCV.NXT of a closed one.
    fn last_acceptable(&self) -> SeqNum {
        let (next, right) = (self.client.whole, self.guest.right);
        if right.after(next) { right + u32::MAX } else { right }
    }

    /// Resets the guest's end (RFC 9293 §3.5.2).
    fn reset_guest(&mut self, key: &FlowKey, shared: &mut Shared, sink: &mut dyn Sink) -> bool {
        let fields = Fields {
            // RFC 5961 §3.2: exactly RCV.NXT, which the guest's last ACK tells; what came in since may
            // have moved it.
            seq: self.client.whole.earlier(self.guest.right),
            ack: Some(self.guest.acked),
            flags: flag::RST,
            window: Scaled(0),
            timestamps: self.negotiated.timestamps.then_some((self.client.tsval, self.guest.ts_recent)),
            ect: false,
            identification: shared.next_identification(),
        };
        let pattern = self.client.pattern;
        let len = emission::frame_len(&pattern, key, &fields, 0);
        let emitted = sink.emit(len, None, &mut |out| {
            emission::write(out, &pattern, key, Side::Client, &fields, |_| {});
        });
        if emitted {
            shared.count(Event::ForgedResets);
            self.due = Due::Nothing;
        }
        emitted
    }

    /// Keeps a TSval of the client that the guest sees, or could have seen: one of a segment that does
    /// not run ahead of what it has seen (PAWS, RFC 7323 §5.3: a later segment with an older value must
    /// not be refused for ours).
    pub(crate) fn hear_client_time(&mut self, segment: &Segment) {
        if let Some(stamps) = segment.options.timestamps {
            if !segment.seq.after(self.client.next) {
                self.client.tsval = newer(stamps.value, self.client.tsval);
            }
        }
    }
}

/// Whether a segment has something that the client leg cannot say.
fn is_unusual(segment: &Segment) -> bool {
    segment.has(flag::URG) || segment.options.unknown || segment.ip_options
}

/// Reads the bytes `from..to` of a frame once, piece by piece.
fn read(frame: &dyn Payload, from: usize, to: usize, mut show: impl FnMut(&[u8])) {
    let mut buffer = [0; COMPARED];
    let mut at = from;
    while at < to {
        let part = &mut buffer[..COMPARED.min(to - at)];
        frame.copy_to(at, part);
        show(part);
        at += part.len();
    }
}
