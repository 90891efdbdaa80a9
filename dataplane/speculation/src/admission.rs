//! How flows come to be known: their handshakes, the places they get, and which flow gives its place up.

use crate::boundary::{FromGuest, FromWire};
use crate::connection::{Connection, Phase};
use crate::counters::Event;
use crate::engine::{Engine, Speculation};
use crate::key::{FlowKey, Side};
use crate::lent::{LENT_OPENING_SHARE, LENT_SHARE};
use crate::lists::List;
use crate::opening::{Hello, Opening};
use crate::rewrite::Rewriter;
use crate::segment::Segment;
use crate::table::Flow;
use crate::time::Time;
use crate::window::{Scale, Scaled};
use holdfast_packet::headers::flag;

/// Flows that are looked at for one to forget.
const CANDIDATES: usize = 16;

/// Handshakes under way take places of connections up to one of so many: SYNs of strangers cost no more.
const OPENING_SHARE: usize = 4;

impl Engine {
    /// A SYN of the guest begins a flow, answers one, or ends an old one with the same ends (RFC 9293
    /// §3.10.7.4, RFC 6191): bytes of two incarnations never mix.
    pub(crate) fn handle_guest_syn(&mut self, now: Time, segment: &Segment) -> FromGuest {
        if let Some(slot) = self.find(&segment.key) {
            if let Some((_, connection)) = self.table.connection_mut(slot) {
                if connection.negotiated.guest_iss == segment.seq {
                    // It has not seen that it was answered.
                    return match connection.phase {
                        Phase::Plain | Phase::Finished => FromGuest::Pass,
                        _ => connection.owe_ack(slot, &mut self.shared),
                    };
                }
                self.remove(slot);
                self.shared.count(Event::FlowsReplaced);
            }
        }
        self.observe_syn(now, Side::Guest, segment);
        FromGuest::Pass
    }

    /// A SYN of the client is for the guest to judge (RFC 5961 §4); a window in it may be cut to what is
    /// there for a new flow. One without a window scale may be lent one: it is shown to the guest anew.
    pub(crate) fn watch_client_syn(&mut self, now: Time, segment: &Segment, frame: &mut [u8]) -> FromWire {
        if !segment.verifies(frame, Side::Client) {
            return FromWire::Pass;
        }
        if let Some(slot) = self.find(&segment.key) {
            match self.table.connection(slot) {
                Some(connection) if connection.phase == Phase::Finished && !connection.needs_rescaling() => {
                    self.remove(slot);
                    self.shared.count(Event::FlowsReplaced);
                }
                Some(_) => return FromWire::Pass,
                None => {}
            }
        }
        let Some(slot) = self.observe_syn(now, Side::Client, segment) else { return FromWire::Pass };
        let least = self.shared.initial_window.min(u32::from(u16::MAX)) as u16;
        let key = &segment.key;
        let speculates = self.shared.mode == Speculation::On
            && self.shared.rules.permit(key.guest_port, key.client_address(), key.client_port);
        let window = if speculates { segment.window.min(least) } else { segment.window };
        if let Flow::Opening(opening) = &mut self.table.entry_mut(slot).flow {
            opening.shown = opening.shown.max(u32::from(window));
        }
        if self.lend(slot, segment, Scaled(window), speculates) {
            return FromWire::Taken;
        }
        if window != segment.window {
            Rewriter::new(frame, segment).window(Scaled(window));
        }
        FromWire::Pass
    }

    /// Lends the client of this SYN a window scale, if it has none and its guest can make use of one; whether
    /// the SYN is to be shown to the guest with it. What was lent once is lent again.
    fn lend(&mut self, slot: u32, segment: &Segment, window: Scaled, speculates: bool) -> bool {
        let places = self.table.capacity();
        let room =
            self.lent.0 < places.div_ceil(LENT_SHARE) && self.lent.1 < places.div_ceil(LENT_OPENING_SHARE);
        let wanted = Scale::for_bytes(self.shared.flow_bytes).filter(|_| speculates && room);
        let Flow::Opening(opening) = &mut self.table.entry_mut(slot).flow else { return false };
        let before = opening.loan.map(|loan| loan.scale).filter(|_| opening.is_of_client(segment));
        let Some(scale) = before.or(wanted.filter(|_| opening.may_lend(segment))) else { return false };
        let is_new = opening.loan.is_none();
        opening.lend(scale, window, segment);
        if is_new {
            self.shared.count(Event::ScalesLent);
            self.lent = (self.lent.0 + 1, self.lent.1 + 1);
        }
        for list in [List::ToGuest, List::Changed] {
            self.shared.lists.push(list, slot);
        }
        true
    }

    /// Keeps what a SYN says; the place of its handshake.
    fn observe_syn(&mut self, now: Time, sender: Side, segment: &Segment) -> Option<u32> {
        let known = self.table.find(&segment.key);
        let hello = Hello::of(segment);
        if hello.is_none() {
            // Something in it is not known: the flow stays plain.
            self.shared.count(Event::FlowsIneligible);
        }
        match known {
            Some(slot) => {
                let Flow::Opening(opening) = &mut self.table.entry_mut(slot).flow else {
                    self.remove(slot);
                    return None;
                };
                let was_lent = opening.loan.is_some();
                let understood = opening.syn(sender, segment, hello.unwrap_or(Hello::read(segment)));
                if was_lent && opening.loan.is_none() {
                    self.lent = (self.lent.0 - 1, self.lent.1 - 1);
                }
                let is_lent = opening.loan.is_some();
                if understood && hello.is_some() {
                    if was_lent || is_lent {
                        self.shared.lists.push(List::Changed, slot);
                    }
                    return Some(slot);
                }
                if is_lent {
                    // It stays known for the sake of its windows.
                    opening.strange = true;
                    self.shared.lists.push(List::Changed, slot);
                    return None;
                }
                if hello.is_some() {
                    self.shared.count(Event::FlowsIneligible);
                }
                self.remove(slot);
                None
            }
            None if hello.is_none() => None,
            None if segment.has(flag::ACK) => {
                // An answer to a SYN that was not seen: an asymmetric path, or a flow of before.
                self.shared.count(Event::FlowsIneligible);
                None
            }
            None => {
                let opening = Opening::new(sender, hello.unwrap_or(Hello::read(segment)), now);
                let slot = self.place(now, segment.key, Flow::Opening(opening));
                if slot.is_none() {
                    self.shared.count(Event::FlowsUnplaced);
                }
                slot
            }
        }
    }

    /// Puts a new flow into the table, in the place of a dispensable one if it is full.
    fn place(&mut self, now: Time, key: FlowKey, flow: Flow) -> Option<u32> {
        let is_opening = matches!(flow, Flow::Opening(_));
        if self.table.len() == self.table.capacity() {
            self.evict(now);
        }
        let slot = self.table.insert(key, flow)?;
        self.shared.lists.push(List::Age, slot);
        if is_opening {
            self.shared.lists.push(List::Opening, slot);
            self.openings += 1;
        }
        Some(slot)
    }

    /// Forgets the oldest handshake under way, if they have their share, or else one of the flows that
    /// were longest without a segment, if the world loses nothing by it; those that must stay are looked
    /// at last the next time.
    fn evict(&mut self, now: Time) {
        let share = self.table.capacity().div_ceil(OPENING_SHARE);
        let found = match self.openings >= share {
            true => None,
            false => self.dispensable(now),
        };
        if let Some(slot) = found.or_else(|| self.oldest_opening(now)) {
            self.remove(slot);
            self.shared.count(Event::FlowsEvicted);
        }
    }

    /// The oldest handshake under way that may be forgotten. Of those with a lent scale there are fewer than
    /// of the others.
    fn oldest_opening(&self, now: Time) -> Option<u32> {
        let first = self.shared.lists.first(List::Opening);
        let mut slots = std::iter::successors(first, |&slot| self.shared.lists.after(List::Opening, slot));
        slots.find(|&slot| match &self.table.entry(slot).flow {
            Flow::Opening(opening) => opening.is_abandoned(now),
            Flow::Connection(_) | Flow::Vacant => false,
        })
    }

    fn dispensable(&mut self, now: Time) -> Option<u32> {
        for _ in 0..CANDIDATES {
            let slot = self.shared.lists.first(List::Age)?;
            let dispensable = match &self.table.entry(slot).flow {
                Flow::Connection(connection) => connection.is_dispensable(),
                Flow::Opening(opening) => opening.is_abandoned(now),
                Flow::Vacant => true,
            };
            if dispensable {
                return Some(slot);
            }
            self.shared.lists.remove(List::Age, slot);
            self.shared.lists.push(List::Age, slot);
        }
        None
    }

    /// A handshake is not under way any more.
    pub(crate) fn is_opened(&mut self, slot: u32) {
        self.shared.lists.remove(List::Opening, slot);
        self.openings -= 1;
    }

    /// Makes a connection of a handshake that this segment completes; forgets one that it ends.
    pub(crate) fn complete_opening(&mut self, slot: u32, sender: Side, segment: &Segment) {
        let entry = self.table.entry_mut(slot);
        let Flow::Opening(opening) = &entry.flow else { return };
        let is_lent = opening.loan.is_some();
        if segment.has(flag::RST) {
            if !is_lent || opening.is_ended_by(sender, segment) {
                self.remove(slot);
            }
            return;
        }
        let unseen = opening.is_answered_unseen(sender, segment);
        if unseen {
            self.shared.count(Event::FlowsIneligible);
            if !is_lent {
                self.remove(slot);
                return;
            }
        }
        let handshake = if unseen { opening.broken_off() } else { opening.completed(sender, segment) };
        let Some(handshake) = handshake else { return };
        let connection = Connection::new(&handshake, &entry.key, &self.shared);
        if is_lent {
            // A guest without a scale of its own makes no use of another.
            let kept = connection.negotiated.lent.is_some();
            self.lent = (self.lent.0 - usize::from(!kept), self.lent.1 - 1);
        }
        if !connection.barred {
            self.shared.count(Event::FlowsEstablished);
        }
        if !connection.permitted {
            self.shared.count(Event::FlowsIneligible);
        }
        self.table.entry_mut(slot).flow = Flow::Connection(connection);
        self.is_opened(slot);
        self.shared.lists.push(List::Changed, slot);
    }
}
