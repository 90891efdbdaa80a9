//! Frames: from the guest, from the wire, and the host's turn.

use super::{Event, World};
use crate::breakage::Breakage;
use crate::content::History;
use crate::host::{Collector, Waiting};
use crate::judge::{Verdict, broken, connection};
use crate::random::is_one_in;
use crate::scenario::{Mode, Moment, Offload};
use crate::segment::{Segment, flag};
use crate::surgery;
use holdfast_speculation::{SeqNum, Time};
use std::time::Duration;

/// Frames of the client that may come back.
const PAST: usize = 16;

impl World {
    /// The guest runs, with what waits for it.
    pub(super) fn run_guest(&mut self) -> Verdict {
        let Some(host) = &mut self.host else { return Ok(()) };
        let frames: Vec<_> = host.inbound.drain(..).collect();
        for frame in &frames {
            self.judge.shown(frame);
        }
        let mut sent = Vec::new();
        self.guest.run(self.now, frames, &mut sent);
        self.check_guest_streams()?;
        self.capture(sent)
    }

    /// The guest's frames reach the dataplane.
    pub(super) fn capture(&mut self, frames: Vec<Vec<u8>>) -> Verdict {
        for mut frame in frames {
            self.frames += 1;
            self.counts.captured += 1;
            let spoiled = self.spoil(&mut frame);
            self.trace.frame(self.now, if spoiled { "guest spoiled" } else { "guest" }, &frame);
            self.judge.captured(&frame, !spoiled);
            if let Some(whole) = self.reassembly.take(frame.clone(), &self.guest_link) {
                self.judge.said(&whole);
            }
            let Some(host) = &mut self.host else { return Ok(()) };
            let passed = host.capture(self.now, frame);
            let (mode, epoch) = (host.mode, host.open);
            for frame in passed {
                let waiting = Waiting { epoch, frame, broken: spoiled };
                if mode == Mode::Native || self.broken == Some(Breakage::EarlyRelease) {
                    self.release(waiting)?;
                } else if let Some(host) = &mut self.host {
                    host.escrow.push_back(waiting);
                }
            }
            if self.is_moment(Moment::Captured(self.counts.captured)) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Breaks the checksum of a frame of data now and then.
    fn spoil(&self, frame: &mut [u8]) -> bool {
        let every = self.scenario.guest.broken_every;
        let due = is_one_in(u64::from(self.counts.captured), every);
        if !due || self.scenario.guest.offload != Offload::None {
            return false;
        }
        let Some(segment) = Segment::parse(frame).filter(|segment| segment.len() > 0) else { return false };
        frame[segment.payload.start] ^= 0x40;
        true
    }

    /// A passed frame leaves for the wire.
    pub(super) fn release(&mut self, mut waiting: Waiting) -> Verdict {
        let Some(host) = &mut self.host else { return Ok(()) };
        host.engine.release(self.now, &mut waiting.frame);
        self.transmit("passed", waiting.frame, waiting.broken)
    }

    /// A frame goes onto the wire to the client.
    fn transmit(&mut self, place: &str, frame: Vec<u8>, spoiled: bool) -> Verdict {
        self.trace.frame(self.now, place, &frame);
        if !spoiled {
            let nothing = History::default();
            let written = Segment::parse(&frame)
                .and_then(|segment| self.guest.party().sessions.get(connection(segment.ports)))
                .map_or(&nothing, |session| &session.history);
            self.judge.sent(&frame, written)?;
        }
        for (at, frame) in self.to_client.send(self.now, frame) {
            self.at(at, Event::ToClient(frame));
        }
        Ok(())
    }

    /// The client runs, with these frames.
    pub(super) fn run_client(&mut self, frames: Vec<Vec<u8>>) -> Verdict {
        let mut sent = Vec::new();
        self.client.run(self.now, frames, &mut sent);
        for frame in sent {
            self.frames += 1;
            self.trace.frame(self.now, "client", &frame);
            self.judge.client_sent(&frame);
            self.stray(&frame);
            for (at, frame) in self.to_guest.send(self.now, frame) {
                self.at(at, Event::ToHost(frame));
            }
        }
        self.check_client_streams()
    }

    /// Something strange is on its way, made after a frame of the client.
    fn stray(&mut self, frame: &[u8]) {
        let random = &mut self.random;
        if self.past.len() == PAST {
            self.past.pop_front();
        }
        self.past.push_back(frame.to_vec());
        if !random.chance(self.scenario.to_guest.stray) {
            return;
        }
        let late = random.span(Duration::from_micros(1), Duration::from_secs(2));
        let kind = random.below(5);
        if kind == 0 {
            // Some old frame that a path had kept.
            let old = random.below(self.past.len() as u64) as usize;
            let frame = self.past[old].clone();
            self.after(late, Event::ToHost(frame));
            return;
        }
        let mut frame = frame.to_vec();
        let far = SeqNum::new(random.between(1 << 28, (1 << 31) - 1) as u32).get();
        if let Some(segment) = Segment::parse(&frame) {
            if segment.has(flag::SYN) {
                // Who knows the numbers of a SYN can take the connection over.
                return;
            }
            match kind {
                1 => {
                    surgery::trim(&mut frame, &segment.place, 0);
                    frame[segment.place.tcp + 13] = flag::RST;
                    surgery::set_seq(&mut frame, &segment.place, segment.seq + far);
                }
                // What it says of ACKs is not looked at: it would be as good as the client's own.
                2 if segment.has(flag::RST) => return,
                2 => surgery::set_ack(&mut frame, &segment.place, segment.ack.unwrap_or_default() + far),
                3 => surgery::set_seq(&mut frame, &segment.place, segment.seq + far),
                _ => frame.truncate(random.below(frame.len() as u64) as usize),
            }
            surgery::complete(&mut frame);
        }
        self.after(late, Event::Stray(frame));
    }

    /// A stranger's frame reaches the dataplane: the client has not said what it says.
    pub(super) fn deliver_stray(&mut self, mut frame: Vec<u8>) -> Verdict {
        self.trace.frame(self.now, "stray", &frame);
        let Some(host) = &mut self.host else { return Ok(()) };
        let original = frame.clone();
        // It has its time from a frame of the client.
        self.judge.heard_time(&frame);
        let syn = Segment::parse(&frame).is_some_and(|segment| segment.has(flag::SYN));
        if !host.passes(self.now, &mut frame, self.scenario.inbound, &mut self.trace) {
            return Ok(());
        }
        if !syn && !self.judge.is_left_alone(&frame, &original) {
            self.judge.queued(&frame, Some(&original))?;
        }
        host.inbound.push_back(frame);
        Ok(())
    }

    /// A frame of the client reaches the dataplane.
    pub(super) fn deliver(&mut self, mut frame: Vec<u8>) -> Verdict {
        self.trace.frame(self.now, "from wire", &frame);
        let Some(host) = &mut self.host else { return Ok(()) };
        self.judge.delivered(&frame);
        let original = frame.clone();
        if !host.passes(self.now, &mut frame, self.scenario.inbound, &mut self.trace) {
            return Ok(());
        }
        self.trace.frame(self.now, "for guest", &frame);
        self.judge.queued(&frame, Some(&original))?;
        host.inbound.push_back(frame);
        Ok(())
    }

    /// The host's turn, in the order of the engine's doc.
    pub(super) fn turn(&mut self) -> Verdict {
        for again in [true, false] {
            let Some(host) = &mut self.host else { return Ok(()) };
            let all = !self.scenario.trickle;
            host.stream(self.scenario.chunk, all, self.broken, &mut self.random);
            self.poll_guest()?;
            if self.doomed {
                return Ok(());
            }
            self.poll_wire()?;
            let Some(host) = &mut self.host else { return Ok(()) };
            if !again || host.engine.next_deadline().is_none_or(|at| at > self.now) {
                break;
            }
            host.engine.handle_timeouts(self.now);
        }
        self.check_deadline()?;
        self.call_guest();
        Ok(())
    }

    fn check_deadline(&mut self) -> Verdict {
        let Some(host) = &mut self.host else { return Ok(()) };
        // What is still due at this moment may be so for want of room; it is asked again soon.
        if host.engine.next_deadline().is_some_and(|at| at <= self.now) {
            host.engine.handle_timeouts(self.now);
            if let Some(at) = host.engine.next_deadline().filter(|at| *at <= self.now) {
                if !self.turn_called {
                    return broken("liveness", format!("the engine is due at {at}, now and for ever"));
                }
            }
        }
        Ok(())
    }

    fn poll_guest(&mut self) -> Verdict {
        let Some(host) = &mut self.host else { return Ok(()) };
        let mut collector = Collector::new(self.scenario.inbound.saturating_sub(host.inbound.len()));
        host.engine.poll_guest(self.now, &mut collector);
        for (_, mut frame) in collector.frames {
            if let Some(breakage) = self.broken {
                breakage.to_guest(&mut self.random, &mut frame);
            }
            self.frames += 1;
            self.trace.frame(self.now, "forged", &frame);
            self.judge.queued(&frame, None)?;
            let Some(host) = &mut self.host else { return Ok(()) };
            let reset = Segment::parse(&frame).is_some_and(|segment| segment.has(flag::RST));
            host.inbound.push_back(frame);
            if !reset {
                self.counts.forged += 1;
                if self.is_moment(Moment::Forged(self.counts.forged)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn poll_wire(&mut self) -> Verdict {
        let burst = self.scenario.burst;
        let Some(host) = &mut self.host else { return Ok(()) };
        let mut collector = Collector::new(burst);
        let sent = host.engine.poll_wire(self.now, burst, &mut collector);
        if sent != collector.frames.len() {
            return broken("format", format!("poll_wire says {sent}, but sent {}", collector.frames.len()));
        }
        let more = collector.full || sent >= burst;
        for (epoch, mut frame) in collector.frames {
            if let Some(breakage) = self.broken {
                breakage.to_client(&mut self.random, &mut frame);
            }
            self.frames += 1;
            if let Some(epoch) = epoch.filter(|&epoch| epoch > self.kept_epoch && self.term == 1) {
                return broken(
                    "OC-1",
                    format!("a segment of epoch {epoch} leaves, {} is committed", self.kept_epoch),
                );
            }
            self.judge.left_leg(&frame)?;
            self.transmit("leg", frame, false)?;
        }
        if more && !self.turn_called {
            self.turn_called = true;
            self.after(Duration::from_micros(10), Event::HostTurn);
        }
        Ok(())
    }

    /// Lets the guest run soon, if something waits for it.
    pub(super) fn call_guest(&mut self) {
        let waits = self.host.as_ref().is_some_and(|host| !host.inbound.is_empty());
        if waits && !self.guest_called && !self.guest.is_paused() {
            self.guest_called = true;
            self.after(self.scenario.guest_lag, Event::GuestRuns);
        }
    }

    /// The present moment.
    pub(super) const fn now(&self) -> Time {
        self.now
    }
}
