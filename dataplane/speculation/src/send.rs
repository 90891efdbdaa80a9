//! What leaves for the client: segments of the client leg, ACKs of the guest that rode on data, resets.
//!
//! OC-1: bytes, and what the guest said of the client's data, are those of committed epochs.

use crate::boundary::Sink;
use crate::client_leg::{Kind, R2, TimeoutOutcome, Transmit};
use crate::connection::{Connection, Phase, newer};
use crate::counters::Event;
use crate::emission::{self, Fields};
use crate::key::{FlowKey, Side};
use crate::lists::List;
use crate::marks::Voice;
use crate::seq::SeqNum;
use crate::shared::Shared;
use crate::store::Reader;
use crate::time::Time;
use crate::wire_leg::scaled_for;
use holdfast_packet::headers::flag;

/// One frame for the client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outgoing {
    /// A segment of the client leg.
    Segment(Transmit),
    /// What the guest says, without data.
    Ack,
    /// The guest's reset.
    Reset,
}

impl Connection {
    /// The next frame for the client, if one may leave now.
    pub(crate) fn next_outgoing(&mut self, now: Time, shared: &mut Shared) -> Option<Outgoing> {
        self.cleared.voice?;
        if let Some(transmit) = self.leg.as_mut().and_then(|leg| leg.poll_transmit(now, &mut shared.log)) {
            return Some(Outgoing::Segment(transmit));
        }
        if self.reset_is_due() {
            return Some(Outgoing::Reset);
        }
        // OC-1: no number that was not committed. Where bytes were given up, that is where they end.
        let sayable = !self.next_to_client().after(self.cleared.behind());
        (sayable && (self.challenged || self.ack_is_due())).then_some(Outgoing::Ack)
    }

    /// RST leaves after its commit, and after the bytes before it are confirmed.
    fn reset_is_due(&self) -> bool {
        self.phase == Phase::Resetting && self.cleared.reset && self.queue.is_empty() && self.leg.is_some()
    }

    /// Whether commits let the client know more of the guest's ACKs and window than it was told.
    pub(crate) fn ack_is_due(&self) -> bool {
        let Some(voice) = self.cleared.voice.filter(|_| self.is_taken()) else { return false };
        let edge = voice.ack + self.negotiated.scale_to_client().bytes(voice.window);
        self.client.said.is_none_or(|said| voice.ack.after(said.ack) || edge.after(said.edge))
    }

    /// Emits a frame for the client; false when the sink has no room.
    ///
    /// Bound: one segment. Allocations: none.
    pub(crate) fn send(
        &mut self,
        outgoing: &Outgoing,
        key: &FlowKey,
        shared: &mut Shared,
        sink: &mut dyn Sink,
    ) -> bool {
        let Some(voice) = self.cleared.voice else { return true };
        let Some((fields, seq, len)) = self.fields(outgoing, &voice, shared) else { return true };
        let pattern = self.cleared.pattern;
        let frame_len = emission::frame_len(&pattern, key, &fields, len as usize);
        let Self { queue, cleared, .. } = self;
        // OC-1: nothing at or beyond what was committed leaves.
        assert!(!(seq + len).after(cleared.behind()), "bytes leave before their commit");
        let emitted = sink.emit(frame_len, cleared.epoch, &mut |out| {
            emission::write(out, &pattern, key, Side::Guest, &fields, |payload| {
                shared.store.copy_out(queue, Reader::Leg, seq, payload);
            });
        });
        if emitted {
            self.has_sent(outgoing, &fields, len, shared);
        }
        emitted
    }

    /// What a frame says, with its first byte and its length; none when the client has confirmed it
    /// while it waited for room.
    fn fields(
        &self,
        outgoing: &Outgoing,
        voice: &Voice,
        shared: &mut Shared,
    ) -> Option<(Fields, SeqNum, u32)> {
        let next = self.next_to_client();
        let said = self.client.said;
        // An ACK that was told before goes with the window that was told with it.
        let window = match said {
            Some(said) if voice.ack.before(said.ack) => {
                scaled_for(said, self.negotiated.scale_to_client().shift())
            }
            _ => voice.window,
        };
        let mut fields = Fields {
            seq: next,
            ack: Some(said.map_or(voice.ack, |said| said.ack.later(voice.ack))),
            flags: if voice.ece && self.negotiated.ecn { flag::ECE } else { 0 },
            window,
            timestamps: self.negotiated.timestamps.then_some((
                // Never ahead of the newest committed TSval, never behind one that was sent.
                said.map_or(voice.tsval, |said| newer(said.tsval, voice.tsval)),
                voice.tsecr,
            )),
            ect: false,
            identification: shared.next_identification(),
        };
        match outgoing {
            Outgoing::Segment(transmit) => {
                let base = self.queue.base();
                let end = (transmit.seq + transmit.len).earlier(self.queue.end());
                let seq = transmit.seq.later(base);
                if end.before(base) || (transmit.len > 0 && end == base && !transmit.fin) {
                    return None;
                }
                fields.seq = seq;
                for (wanted, bit) in
                    [(transmit.fin, flag::FIN), (transmit.push, flag::PSH), (transmit.cwr, flag::CWR)]
                {
                    if wanted {
                        fields.flags |= bit;
                    }
                }
                fields.ect = transmit.ect;
                Some((fields, seq, end.bytes_since(seq)))
            }
            Outgoing::Ack => Some((fields, next, 0)),
            Outgoing::Reset => {
                // RFC 5961 §3.2: exactly the client's RCV.NXT, which is what it confirmed.
                fields.seq = self.leg.as_ref().map_or(next, crate::client_leg::Sender::unacked);
                fields.flags |= flag::RST;
                Some((fields, fields.seq, 0))
            }
        }
    }

    fn has_sent(&mut self, outgoing: &Outgoing, fields: &Fields, len: u32, shared: &mut Shared) {
        match outgoing {
            Outgoing::Segment(transmit) if transmit.kind == Kind::New => {
                shared.count(Event::LegSegments);
                shared.counters.add(Event::LegBytes, u64::from(len));
            }
            Outgoing::Segment(_) => shared.count(Event::LegRepeats),
            Outgoing::Ack => {
                self.challenged = false;
                shared.count(Event::LegAcks);
            }
            Outgoing::Reset => shared.count(Event::LegResets),
        }
        if let Some(ack) = fields.ack {
            self.has_said(ack, fields.window, fields.timestamps.map_or(0, |(value, _)| value));
        }
    }

    /// A deadline of the client leg has come; true when the client was silent for too long.
    pub(crate) fn handle_timeout(&mut self, now: Time, slot: u32, shared: &mut Shared) -> bool {
        let Some(leg) = &mut self.leg else { return false };
        if self.phase == Phase::Resetting && !leg.is_silent() {
            // RB-1: nobody waits for these bytes but the client, which may pin them with a closed window
            // for ever (RFC 9293 §3.8.6.1 asks for patience with a guest behind it).
            let end = *self.patience.get_or_insert(now + R2);
            if end <= now {
                leg.clear(&mut shared.log);
                return true;
            }
            shared.timers.wake(slot, end);
        }
        let outcome = match leg.next_deadline() {
            Some(due) if due <= now => leg.handle_timeout(now, &mut shared.log),
            _ => TimeoutOutcome::Nothing,
        };
        match leg.next_deadline() {
            Some(due) if due > now && outcome == TimeoutOutcome::Nothing => shared.timers.wake(slot, due),
            // The next poll of the leg sets its timer.
            _ => shared.lists.push(List::ToClient, slot),
        }
        outcome == TimeoutOutcome::Silent
    }

    /// The client was silent beyond R2 (RFC 9293 §3.8.3): the guest, which was told that its bytes had
    /// arrived, learns that the connection is gone.
    pub(crate) fn give_up(&mut self, slot: u32, shared: &mut Shared) {
        shared.count(Event::ClientsSilent);
        if self.phase == Phase::Resetting {
            // The guest is gone already: the reset leaves without the bytes before it.
            shared.counters.add(Event::DroppedBytes, u64::from(self.queue.len()));
            shared.store.clear(&mut self.queue);
            // Nobody waits for them any more; the backup's view begins behind them too.
            self.client.real = self.client.real.later(self.queue.end());
            self.streamed = self.queue.end();
            shared.lists.remove(List::Unstreamed, slot);
            shared.lists.push(List::ToClient, slot);
            shared.lists.push(List::Changed, slot);
            return;
        }
        self.was_reset = true;
        self.finish(slot, shared);
        self.owe_reset(slot, shared);
    }
}
