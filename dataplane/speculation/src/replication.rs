//! The engine and its backup: the stream of held bytes, cuts, commits, and the way back.
//!
//! SP-2: what an ACK was forged for is in the stream before the cut of its epoch, or in the whole
//! state, as forging waits for [`Engine::stream`].

use crate::client_leg::Sender;
use crate::connection::{Cleared, Connection, Due, Keepalive, Phase};
use crate::counters::Event;
use crate::delta::{PIECE_HEADER, Record, Writer};
use crate::engine::Engine;
use crate::key::FlowKey;
use crate::ledger::{Kept, Ledger, Row};
use crate::lists::List;
use crate::marks::Marks;
use crate::opening::Opening;
use crate::shared::Shared;
use crate::store::{Queue, Reader};
use crate::table::Flow;
use crate::time::Time;
use holdfast_epoch::EpochId;

/// Bytes of one flow in a row, so that others get their turn.
const PIECE: usize = 32 << 10;

impl Engine {
    /// Appends held bytes that were not streamed yet to `out`, at most `max` bytes with their headers;
    /// returns how many were appended. What is appended must reach the backup before, or with, the
    /// seal of the open epoch (SP-2); only then may it be acknowledged, so this counts as done.
    ///
    /// Bound: `max`. Allocations: none while `out` has room for `max` bytes. Cost: about 20 ns a segment of 1448 bytes,
    /// 1 us for 64 KiB (bench `engine`).
    pub fn stream(&mut self, max: usize, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        while let Some(slot) = self.shared.lists.first(List::Unstreamed) {
            let room = (max - (out.len() - start)).saturating_sub(PIECE_HEADER).min(PIECE);
            if room == 0 {
                break;
            }
            self.shared.lists.remove(List::Unstreamed, slot);
            let generation = self.table.entry(slot).generation;
            let Some((_, connection)) = self.table.connection_mut(slot) else { continue };
            if connection.stream(slot, generation, room, &mut self.shared, out) {
                self.shared.lists.push(List::Unstreamed, slot);
            }
        }
        out.len() - start
    }

    /// Ends `epoch`: what was streamed so far belongs to it. Appends the flow table's changes since
    /// the last cut to `out`; with `whole` the whole table and all held bytes, for a backup that has
    /// nothing yet.
    ///
    /// Bound: the flows that changed. Allocations: by `out`. Cost: about 40 ns a flow that changed, 60 ns where they are
    /// 64 Ki (bench `engine`).
    pub fn cut(&mut self, epoch: EpochId, whole: bool, out: &mut Vec<u8>) {
        if whole {
            for slot in 0..self.table.capacity() as u32 {
                self.table.entry_mut(slot).replicated = false;
                if self.table.entry(slot).is_kept() {
                    self.shared.lists.push(List::Changed, slot);
                } else {
                    self.shared.lists.remove(List::Changed, slot);
                }
            }
        }
        let mut writer = Writer(out);
        let count_at = writer.head(whole);
        let mut count = 0;
        while let Some(slot) = self.shared.lists.pop(List::Changed) {
            let entry = self.table.entry_mut(slot);
            let is_kept = entry.is_kept();
            let was_there = std::mem::replace(&mut entry.replicated, is_kept);
            if let Flow::Opening(opening) = entry.flow {
                if is_kept {
                    writer.u32(slot);
                    writer.u8(2);
                    writer.u32(entry.generation);
                    writer.opening(&entry.key, &opening);
                    count += 1;
                    continue;
                }
            }
            let Flow::Connection(connection) = &mut entry.flow else {
                // The backup forgets what is not here any more.
                if was_there {
                    writer.u32(slot);
                    writer.u8(0);
                    count += 1;
                }
                continue;
            };
            if whole {
                // The state has all of its bytes with it.
                connection.streamed = connection.queue.end();
                self.shared.lists.remove(List::Unstreamed, slot);
                self.shared.lists.push(List::ToGuest, slot);
                // Of epochs of an older session no commit will come; this one covers them.
                connection.marks.clear();
            }
            writer.u32(slot);
            writer.u8(1);
            writer.u32(entry.generation);
            let record = connection.record(&entry.key);
            // SP-2: at a cut all that the guest was shown an ACK of is held and streamed.
            assert!(record.is_covered(), "bytes were acknowledged that the backup does not get");
            writer.record(&record);
            if whole {
                let base = connection.queue.base();
                let len = connection.queue.len();
                self.shared.store.read(&mut connection.queue, Reader::Stream, base, len, |piece| {
                    writer.0.extend_from_slice(piece);
                });
            }
            count += 1;
            if connection.is_taken() && self.shared.mode != crate::engine::Speculation::Off {
                let mark = connection.mark(epoch);
                connection.marks.push(mark);
                self.shared.lists.push(List::Marked, slot);
            }
        }
        writer.set_count(count_at, count);
    }

    /// `epoch` is committed, and all before it: their bytes may go to the clients (OC-1).
    ///
    /// Bound: the flows with output that is held. Allocations: none.
    pub fn commit(&mut self, _now: Time, epoch: EpochId) {
        let mut at = self.shared.lists.first(List::Marked);
        while let Some(slot) = at {
            at = self.shared.lists.after(List::Marked, slot);
            let Some((_, connection)) = self.table.connection_mut(slot) else { continue };
            if let Some(mark) = connection.marks.take(epoch) {
                connection.clear(slot, &mark, Some(epoch), &mut self.shared);
            }
            if connection.marks.is_empty() {
                self.shared.lists.remove(List::Marked, slot);
                connection.finish_draining(slot, &mut self.shared);
            }
        }
    }

    /// Replaces all flows by those of a backup's ledger: everything held counts as committed. The mode
    /// stays what it is. Flows that find no place, as this engine is smaller than the ledger, are
    /// forgotten and counted; guests whose bytes find no room are reset.
    pub fn restore(&mut self, now: Time, ledger: Ledger) {
        self.discard();
        for (slot, kept) in ledger.into_flows() {
            let Kept { generation, row, bytes } = kept;
            let record = match row {
                Row::Connection(record) => record,
                Row::Opening(key, opening) => {
                    if self.restore_opening(slot, generation, key, Opening { since: now, ..opening }) {
                        self.shared.lists.push(List::Age, slot);
                        self.shared.lists.push(List::Changed, slot);
                    } else {
                        self.shared.count(Event::FlowsUnplaced);
                    }
                    continue;
                }
            };
            let key = record.key;
            let connection = Connection::restored(&record, &mut self.shared);
            if !self.table.insert_at(slot, generation, key, Flow::Connection(connection)) {
                self.shared.count(Event::FlowsUnplaced);
                continue;
            }
            self.count_restored(slot);
            let Some((_, connection)) = self.table.connection_mut(slot) else { continue };
            let mut missing = bytes.len() as u32;
            let (front, back) = bytes.as_slices();
            for part in [front, back] {
                missing -= self.shared.store.append(&mut connection.queue, part, 0, part.len() as u32);
            }
            if missing == 0 {
                connection.resume(now, &record, &mut self.shared);
            } else {
                // Bytes that were acknowledged to the guest would be lost: it learns of it.
                self.shared.count(Event::GuestNoRoom);
                connection.finish(slot, &mut self.shared);
                connection.owe_reset(slot, &mut self.shared);
            }
            self.shared.lists.push(List::Age, slot);
            for list in [List::Changed, List::ToGuest, List::ToClient] {
                self.shared.lists.push(list, slot);
            }
        }
    }
}

impl Connection {
    /// Appends up to `room` bytes to `out`; whether there are more.
    fn stream(
        &mut self,
        slot: u32,
        generation: u32,
        room: usize,
        shared: &mut Shared,
        out: &mut Vec<u8>,
    ) -> bool {
        let end = self.queue.end();
        let len = end.bytes_since(self.streamed).min(room as u32);
        if len == 0 {
            return false;
        }
        let mut writer = Writer(out);
        writer.piece(slot, generation, self.streamed, len);
        shared.store.read(&mut self.queue, Reader::Stream, self.streamed, len, |piece| {
            writer.0.extend_from_slice(piece);
        });
        self.streamed = self.streamed + len;
        shared.counters.add(Event::StreamedBytes, u64::from(len));
        shared.lists.push(List::ToGuest, slot);
        shared.lists.push(List::Changed, slot);
        self.streamed != end
    }

    /// What the backup is told of it.
    pub(crate) fn record(&self, key: &FlowKey) -> Record {
        let mut client = self.client;
        client.said = None;
        let (base, end) = match self.is_taken() {
            true => (self.queue.base(), self.streamed),
            false => (self.guest.next, self.guest.next),
        };
        Record {
            key: *key,
            negotiated: self.negotiated,
            phase: self.phase,
            permitted: self.permitted,
            barred: self.barred,
            guest: self.guest,
            client,
            base,
            end,
            // Of a flow that is passed through, the FIN is behind `end` already.
            fin: self.fin && self.is_taken() && self.streamed == self.queue.end(),
            mss: self.mss,
            forsaken: self.forsaken,
            over: self.is_over(),
        }
    }

    /// The connection of a record, without its bytes and its client leg.
    fn restored(record: &Record, shared: &mut Shared) -> Self {
        Self {
            negotiated: record.negotiated,
            phase: record.phase,
            permitted: record.permitted,
            barred: record.barred,
            guest: record.guest,
            client: record.client,
            queue: Queue::new(record.base),
            streamed: record.base,
            passed: record.base,
            fin: record.fin,
            cleared: Cleared {
                end: record.end,
                fin: record.fin,
                reset: false,
                voice: None,
                pattern: record.guest.pattern,
                epoch: None,
            },
            marks: Marks::new(),
            leg: None,
            // The guest is the one of the cut: it may not have heard it.
            due: if record.forsaken { Due::Reset } else { Due::Nothing },
            forsaken: record.forsaken,
            patience: None,
            challenged: false,
            client_fin: None,
            was_reset: record.over || record.phase == Phase::Resetting,
            keepalive: Keepalive::None,
            budget: record.held().max(shared.initial_window),
            peak: record.held(),
            mss: record.mss,
        }
    }

    /// Goes on where the other host may have been: what the client has, its answers will tell.
    fn resume(&mut self, now: Time, record: &Record, shared: &mut Shared) {
        let end = self.queue.end();
        self.streamed = end;
        // The guest is the one of the cut: it will send again what was not streamed by then.
        self.guest.next = if record.fin { end + 1 } else { end.later(self.guest.acked) };
        if !self.is_taken() {
            self.guest.next = record.guest.next;
            return;
        }
        // What the guest was last told may have waited for it at the cut, and is lost.
        self.due = Due::Acks(1);
        let edge = self.guest.edge;
        shared.reserve(&mut self.queue, edge);
        self.cleared.end = end;
        self.cleared.voice = Some(self.guest.voice);
        self.cleared.reset = self.phase == Phase::Resetting;
        if self.phase == Phase::Joining && self.client.real.before(self.queue.base()) {
            return;
        }
        if self.phase == Phase::Joining {
            self.phase = Phase::Active;
        }
        let config = self.sender_config(shared);
        let base = self.queue.base();
        self.leg = Some(Sender::resumed(config, base, end, self.fin, self.client.window, now));
    }
}
