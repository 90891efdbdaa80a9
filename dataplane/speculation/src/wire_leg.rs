//! What the client sends, on its way to the guest; and what the guest sent past the engine, on its way
//! to the client.

use crate::boundary::FromWire;
use crate::client_leg::{ClientAck, Progress, Sender};
use crate::connection::{BEYOND_WINDOW, Connection, Due, GuestEnd, Keepalive, Phase, Said};
use crate::counters::Event;
use crate::emission::Pattern;
use crate::key::Side;
use crate::lent::{scale_for_guest, unscale_for_client};
use crate::lists::List;
use crate::rewrite::Rewriter;
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::shared::Shared;
use crate::time::Time;
use crate::window::Scaled;
use holdfast_packet::headers::flag;

/// How far a segment may lie behind what the guest has confirmed and still say something: the guest's
/// ACK of it may wait for its commit, and the client sends it again.
const PAST: u32 = 1 << 20;

impl Connection {
    /// A segment of the client.
    ///
    /// Bound: the segment's length. Allocations: none.
    pub(crate) fn handle_client(
        &mut self,
        now: Time,
        slot: u32,
        segment: &Segment,
        frame: &mut [u8],
        shared: &mut Shared,
    ) -> FromWire {
        let sound = segment.verifies(frame, Side::Client);
        if let Some(lent) = self.negotiated.lent.filter(|_| sound) {
            scale_for_guest(frame, segment, lent);
        }
        if sound && segment.has(flag::FIN) && self.is_in_window(segment) {
            self.client_fin = Some(segment.end() + 1);
        }
        if self.due == Due::Reset {
            // The guest is about to be reset, and its view is ahead of what the client says.
            shared.count(Event::WireAfterReset);
            return FromWire::Taken;
        }
        if !self.is_taken() {
            if sound {
                self.watch_client(now, slot, segment, frame, shared);
            }
            return FromWire::Pass;
        }
        if !sound {
            shared.count(Event::WireChecksum);
            return FromWire::Taken;
        }
        if segment.has(flag::RST) {
            return self.handle_client_reset(slot, segment, frame, shared);
        }
        // A SYN is for the guest to judge (RFC 5961 §4), and so is what has no ACK.
        if segment.has(flag::SYN) || !segment.has(flag::ACK) {
            if self.phase == Phase::Resetting && segment.has(flag::SYN) {
                // Nobody is there to judge it: a challenge ACK, one a poll at most (RFC 5961 §4, §7). OC-1:
                // before the first commit there is nothing that it could say.
                self.challenged = self.leg.is_some();
                shared.lists.push(List::ToClient, slot);
            }
            return self.unless_resetting(shared);
        }
        if !self.is_in_window(segment) {
            // The guest answers it (RFC 9293 §3.10.7.4); it tells us nothing.
            self.adapt_to_guest(slot, segment, false, frame, shared);
            return self.unless_resetting(shared);
        }
        match self.phase {
            Phase::Joining => self.handle_client_joining(now, slot, segment, frame, shared),
            _ => self.handle_client_ack(now, slot, segment, frame, shared),
        }
    }

    /// Whether a segment brings the guest something new. If not, it may be one that the guest answers
    /// and does not look at (RFC 9293 §3.10.7.4): what it says of ACKs and windows may go unheard.
    fn is_fresh(&self, segment: &Segment) -> bool {
        match segment.space() {
            0 => !segment.seq.before(self.client.next),
            space => (segment.seq + space).after(self.client.next),
        }
    }

    /// A segment of the client of a flow that is passed through: what it says is kept, as the flow may
    /// begin to speculate. An edge that the guest was shown once is shown again (SP-4).
    fn watch_client(
        &mut self,
        now: Time,
        slot: u32,
        segment: &Segment,
        frame: &mut [u8],
        shared: &mut Shared,
    ) {
        shared.lists.push(List::Changed, slot);
        if segment.has(flag::RST) {
            if self.is_exact_reset(segment) {
                self.was_reset = true;
                self.finish(slot, shared);
            }
            return;
        }
        let sensible = segment.flags & (flag::SYN | flag::ACK) == flag::ACK;
        // The guest may have sent more than was seen of it, in fragments, but not far beyond its window:
        // a client that confirms more is not believed (RB-1).
        let most = if self.barred { self.guest.edge + BEYOND_WINDOW } else { self.guest.next };
        if !sensible || segment.ack.after(most.later(self.guest.next)) {
            return;
        }
        if !self.is_in_window(segment) {
            return self.keep_edge(segment, frame, shared);
        }
        let fresh = self.is_fresh(segment);
        self.guest.next = self.guest.next.later(segment.ack);
        self.hear_client(segment);
        let ack = segment.ack;
        if ack.before(self.guest.acked) {
            return;
        }
        self.begin(now, slot, shared);
        if self.is_taken() {
            self.adapt_to_guest(slot, segment, fresh, frame, shared);
            return;
        }
        let real = ack + self.negotiated.client_scale.bytes(Scaled(segment.window));
        let (window, edge) = self.negotiated.scale_to_guest().offer(ack, self.guest.edge, real);
        self.guest.acked = ack;
        self.guest.edge = edge;
        if window.0 != segment.window || self.negotiated.lent.is_some() {
            Rewriter::new(frame, segment).window(window);
            shared.count(Event::WireRewritten);
        }
    }

    /// A segment beyond the guest's window as far as that was heard: the guest may have opened it in
    /// fragments, and accept it. Nothing is learnt of it, but an edge that it was shown does not move left
    /// (SP-4).
    fn keep_edge(&mut self, segment: &Segment, frame: &mut [u8], shared: &mut Shared) {
        let (ack, shown) = (segment.ack, self.guest.edge);
        let real = ack + self.negotiated.client_scale.bytes(Scaled(segment.window));
        if ack.before(self.guest.acked) || !real.before(shown) {
            return;
        }
        let (window, edge) = self.negotiated.scale_to_guest().offer(ack, shown, shown);
        self.guest.edge = edge;
        Rewriter::new(frame, segment).window(window);
        shared.count(Event::WireRewritten);
    }

    /// Keeps what a sensible segment says of the client.
    fn hear_client(&mut self, segment: &Segment) {
        self.hear_client_time(segment);
        self.client.gives(segment);
        self.client.real = self.client.real.later(segment.ack);
        self.client.window = self.negotiated.client_scale.bytes(Scaled(segment.window));
        self.client.edge = self.client.edge.later(segment.ack + self.client.window);
        self.client.pattern = Pattern::of(segment);
    }

    /// Whether a segment lies where the guest may accept it (RFC 9293 §3.10.7.4), or a little before.
    fn is_in_window(&self, segment: &Segment) -> bool {
        let oldest = self.guest.voice.ack - PAST;
        !segment.seq.after(self.guest.right.later(self.client.next)) && !segment.seq.before(oldest)
    }

    /// Whether a reset is exactly at the guest's RCV.NXT (RFC 5961 §3.2): at what it acknowledged last,
    /// or at the end of what it was given since, up to a gap.
    fn is_exact_reset(&self, segment: &Segment) -> bool {
        segment.seq == self.guest.voice.ack || segment.seq == self.client.whole
    }

    fn unless_resetting(&self, shared: &mut Shared) -> FromWire {
        match self.phase {
            Phase::Resetting => {
                shared.count(Event::WireAfterReset);
                FromWire::Taken
            }
            _ => FromWire::Pass,
        }
    }

    /// The guest gets every reset and judges it itself; an exact one ends what we hold.
    fn handle_client_reset(
        &mut self,
        slot: u32,
        segment: &Segment,
        frame: &mut [u8],
        shared: &mut Shared,
    ) -> FromWire {
        let was_resetting = self.phase == Phase::Resetting;
        if !was_resetting && segment.has(flag::ACK) {
            let ack = self.ackable(shared).later(segment.ack.earlier(self.guest.next));
            Rewriter::new(frame, segment).ack(ack);
        }
        if self.is_exact_reset(segment) {
            shared.count(Event::ClientResets);
            self.was_reset = true;
            self.finish(slot, shared);
        }
        match was_resetting {
            true => FromWire::Taken,
            false => FromWire::Pass,
        }
    }

    /// Until the client has confirmed what was passed, the guest needs its ACKs and SACK blocks.
    fn handle_client_joining(
        &mut self,
        now: Time,
        slot: u32,
        segment: &Segment,
        frame: &mut [u8],
        shared: &mut Shared,
    ) -> FromWire {
        if segment.ack.after(self.guest.next) {
            shared.count(Event::WireUnacceptable);
            return FromWire::Taken;
        }
        let fresh = self.is_fresh(segment);
        self.hear_client(segment);
        shared.lists.push(List::Changed, slot);
        if segment.ack.after(self.queue.base()) {
            // The client had them by frames that were passed.
            let confirmed = segment.ack.earlier(self.queue.end());
            self.free(confirmed, shared);
        }
        if self.fin_is_confirmed() {
            // It had the FIN so, too.
            self.finish(slot, shared);
            self.adapt_to_guest(slot, segment, fresh, frame, shared);
            return FromWire::Pass;
        }
        self.join(now, shared);
        shared.lists.push(List::ToGuest, slot);
        shared.lists.push(List::ToClient, slot);
        let ack = self.guest.acked.later(segment.ack.earlier(self.queue.end()));
        let (ack, window) = self.show_with(slot, ack, fresh, shared);
        let mut rewriter = Rewriter::new(frame, segment);
        rewriter.ack(ack);
        rewriter.window(window);
        shared.count(Event::WireRewritten);
        FromWire::Pass
    }

    /// The ACK is for the client leg, the rest for the guest.
    fn handle_client_ack(
        &mut self,
        now: Time,
        slot: u32,
        segment: &Segment,
        frame: &mut [u8],
        shared: &mut Shared,
    ) -> FromWire {
        let fin_was_confirmed = self.fin_is_confirmed();
        if !self.give_to_leg(now, slot, segment, shared) {
            shared.count(Event::WireUnacceptable);
            return FromWire::Taken;
        }
        let fin_confirmed = !fin_was_confirmed && self.fin_is_confirmed();
        if self.phase == Phase::Resetting {
            shared.count(Event::WireAfterReset);
            return FromWire::Taken;
        }
        self.hear_client_time(segment);
        // RFC 9293 §3.8.4: a keepalive of the client lies one before its next byte.
        let keepalive = segment.seq + 1 == self.client.next;
        let reply = self.keepalive == Keepalive::Sent;
        let wanted = fin_confirmed || keepalive || reply;
        if segment.is_pure_ack() && !wanted {
            shared.count(Event::WireAcksConsumed);
            self.finish_draining(slot, shared);
            return FromWire::Taken;
        }
        if reply {
            self.keepalive = Keepalive::None;
        }
        let fresh = self.is_fresh(segment);
        self.client.gives(segment);
        self.client.pattern = Pattern::of(segment);
        if fin_confirmed {
            self.finish(slot, shared);
        } else {
            self.finish_draining(slot, shared);
        }
        self.adapt_to_guest(slot, segment, fresh, frame, shared);
        FromWire::Pass
    }

    fn fin_is_confirmed(&self) -> bool {
        self.fin && self.client.real.after(self.queue.end())
    }

    /// Gives the ACK of a segment to the client leg and frees what it confirms; false when it speaks of
    /// bytes that were never sent (RFC 9293 §3.10.7.4).
    fn give_to_leg(&mut self, now: Time, slot: u32, segment: &Segment, shared: &mut Shared) -> bool {
        let Some(leg) = &mut self.leg else { return true };
        let ack = ClientAck {
            seq: segment.seq,
            ack: segment.ack,
            window: self.negotiated.client_scale.bytes(Scaled(segment.window)),
            carries_data: segment.len > 0 || segment.has(flag::FIN),
            sacks: &segment.options.sacks,
            ece: self.negotiated.ecn && segment.has(flag::ECE),
        };
        let Progress { freed_to, fin_confirmed, window_opened: _ } =
            leg.handle_ack(now, &ack, &mut shared.log);
        // SP-3: freed by the cumulative ACK alone (RFC 2018 §8: a SACK may be taken back).
        let freed_to = freed_to.earlier(self.queue.end());
        let confirmed = if fin_confirmed { self.queue.end() + 1 } else { freed_to };
        if segment.ack.after(confirmed) {
            return false;
        }
        if let Some(due) = leg.next_deadline() {
            shared.timers.wake(slot, due);
        }
        self.client.window = ack.window;
        self.client.edge = self.client.edge.later(segment.ack + ack.window);
        shared.lists.push(List::ToClient, slot);
        if confirmed.after(self.client.real) {
            self.client.real = confirmed;
            self.free(freed_to, shared);
            shared.lists.push(List::Changed, slot);
        }
        if self.client.real.after(self.guest.acked) || self.window_update_is_due(slot, shared) {
            shared.lists.push(List::ToGuest, slot);
        }
        true
    }

    /// Frees bytes that the client has confirmed.
    fn free(&mut self, to: SeqNum, shared: &mut Shared) {
        let freed = to.bytes_since(self.queue.base());
        shared.counters.add(Event::FreedBytes, u64::from(freed));
        shared.store.free_to(&mut self.queue, to);
        self.streamed = self.streamed.later(to);
        self.cleared.end = self.cleared.end.later(to);
        let edge = self.guest.edge;
        shared.reserve(&mut self.queue, edge);
        if self.queue.is_empty() {
            // A flow keeps the window that it makes use of, an idle one a small one.
            if std::mem::take(&mut self.peak) < self.budget / 4 {
                self.budget = (self.budget / 2).max(shared.initial_window);
            }
        }
    }

    /// The ACK and the window for a segment of the client. Of one that the guest may not look at, they are
    /// those that it was shown before; what is new is said by an ACK of its own.
    fn show_with(&mut self, slot: u32, ack: SeqNum, fresh: bool, shared: &mut Shared) -> (SeqNum, Scaled) {
        if fresh || !self.is_taken() {
            return self.show_window(slot, ack, shared);
        }
        shared.lists.push(List::ToGuest, slot);
        let GuestEnd { acked, edge, .. } = self.guest;
        let (window, edge) = self.negotiated.scale_to_guest().offer(acked, edge, edge);
        if edge != self.guest.edge {
            // The window of a SYN, which is not scaled, was rounded up.
            self.guest.edge = edge;
            shared.reserve(&mut self.queue, edge);
        }
        (acked, window)
    }

    /// Rewrites a segment for the guest, in place: its ACK covers what was forged (RFC 5961 §5.2 has
    /// the guest discard it otherwise), its window is ours, its SACK blocks speak of bytes that the
    /// guest has no more (RFC 2018), its echo is of the guest's time (RFC 7323 §4.3), and congestion
    /// that it tells of is the client leg's (RFC 3168 §6.1.2).
    fn adapt_to_guest(
        &mut self,
        slot: u32,
        segment: &Segment,
        fresh: bool,
        frame: &mut [u8],
        shared: &mut Shared,
    ) {
        if self.phase == Phase::Resetting {
            return;
        }
        let ack = self.ackable(shared);
        let (ack, window) = self.show_with(slot, ack, fresh, shared);
        let mut rewriter = Rewriter::new(frame, segment);
        rewriter.ack(ack);
        rewriter.window(window);
        if let Some(stamps) = segment.options.timestamps {
            rewriter.timestamp_echo(stamps.at, self.guest.ts_recent);
        }
        if let Some((at, len)) = segment.options.sack_at {
            rewriter.blank(at, len);
        }
        if self.negotiated.ecn && segment.has(flag::ECE) {
            rewriter.clear(flag::ECE);
        }
        shared.count(Event::WireRewritten);
        shared.lists.push(List::Changed, slot);
    }

    /// A segment of the guest that was passed leaves the escrow. Of a flow that is taken only pure ACKs
    /// are changed: their sequence number becomes the client leg's SND.NXT, as one ahead of the
    /// client's window would not be acceptable (RFC 9293 §3.10.7.4), and what they say never goes back.
    pub(crate) fn release(&mut self, segment: &Segment, frame: &mut [u8]) {
        if self.negotiated.lent.is_some() {
            unscale_for_client(frame, segment, self.negotiated.guest_scale);
        }
        let mut ack = segment.ack;
        let mut window = self.negotiated.told(segment.window);
        let mut tsval = segment.options.timestamps.map(|stamps| stamps.value);
        if !segment.has(flag::ACK) || segment.has(flag::SYN) {
            return;
        }
        if !self.is_taken() && !segment.has(flag::RST) {
            // Of a flow that was drained, or given up: the guest was shown more than the client has.
            let keepalive = segment.len == 1
                && segment.end().after(self.client.real)
                && !segment.end().after(self.guest.acked);
            if keepalive {
                Rewriter::new(frame, segment).seq(self.client.real - 1);
            } else if segment.is_pure_ack() && segment.seq.after(self.client.edge) {
                Rewriter::new(frame, segment).seq(self.client.real);
            }
        }
        if self.is_taken() && !segment.has(flag::RST) {
            // Once the leg sends the data, a byte that is passed is a keepalive's: there may be several.
            let behind = segment.len <= 1
                && (self.keepalive == Keepalive::Held(segment.seq) || segment.len == 1 && self.leg.is_some());
            if behind {
                self.keepalive = Keepalive::Sent;
            }
            let mut rewriter = Rewriter::new(frame, segment);
            if behind || segment.is_pure_ack() {
                // A keepalive may carry a byte of no meaning: it lies where the client has confirmed
                // everything, so that the client drops it, whatever it is (SP-3).
                let next = self.next_to_client();
                if behind {
                    rewriter.seq(self.client.real - 1);
                } else if self.leg.is_some() || segment.seq.after(next) {
                    // Without a leg what is held was not sent, and what lies before it may not be either.
                    rewriter.seq(next);
                }
            }
            if let Some(said) = self.client.said {
                if ack.before(said.ack) {
                    ack = said.ack;
                    window = scaled_for(said, self.negotiated.scale_to_client().shift());
                    rewriter.ack(ack);
                    rewriter.window(window);
                }
                if let Some(stamps) = segment.options.timestamps {
                    let latest = crate::connection::newer(stamps.value, said.tsval);
                    if latest != stamps.value {
                        rewriter.timestamp_value(stamps.at, latest);
                        tsval = Some(latest);
                    }
                }
            }
        }
        self.has_said(ack, window, tsval.unwrap_or(0));
    }

    /// SND.NXT as the client knows it: of the client leg, or where it will begin.
    pub(crate) fn next_to_client(&self) -> SeqNum {
        self.leg.as_ref().map_or(self.queue.base(), Sender::next)
    }

    /// Notes what the client was told.
    pub(crate) fn has_said(&mut self, ack: SeqNum, window: Scaled, tsval: u32) {
        let edge = ack + self.negotiated.scale_to_client().bytes(window);
        self.client.said = Some(match self.client.said {
            None => Said { ack, edge, tsval },
            Some(said) => Said {
                ack: said.ack.later(ack),
                edge: said.edge.later(edge),
                tsval: crate::connection::newer(said.tsval, tsval),
            },
        });
    }
}

/// The window that an edge told before makes with the ACK told before.
pub(crate) fn scaled_for(said: Said, shift: u8) -> Scaled {
    Scaled((said.edge.bytes_since(said.ack) >> shift).min(u32::from(u16::MAX)) as u16)
}
