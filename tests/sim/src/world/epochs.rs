//! Epochs: seal, transfer, commit, release.

use super::{Event, Kept, Sealed, Session, World};
use crate::breakage::Breakage;
use crate::host::{self, Host};
use crate::judge::{Key, Verdict, broken};
use crate::scenario::{Mode, Moment};
use holdfast_epoch::EpochId;
use holdfast_speculation::{Engine, Ledger, Speculation, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Epochs that are on their way at most.
const IN_FLIGHT: usize = 16;

impl World {
    /// A session with a backup that has nothing yet begins.
    pub(super) fn begin_session(&mut self) {
        self.sessions += 1;
        self.session = Some(Session {
            id: self.sessions,
            fresh: Some(Ledger::new(host::limits(&self.scenario))),
            begun: false,
            sealed: BTreeMap::new(),
            last_arrival: self.now,
            last_confirmation: self.now,
        });
        self.trace.event(self.now, format_args!("session {} begins", self.sessions));
        let first = self.scenario.epochs.length / self.random.between(1, 8) as u32;
        self.after(first, Event::Seal(self.sessions));
    }

    fn wander(&mut self) -> Duration {
        let most = self.scenario.epochs.jitter.as_nanos() as u64;
        Duration::from_nanos(self.random.below(most + 1))
    }

    /// The guest stands still, and the open epoch ends.
    pub(super) fn seal(&mut self, id: u64) {
        let wander = [self.wander(), self.wander()];
        let (Some(host), Some(session)) = (&mut self.host, &mut self.session) else { return };
        if session.id != id {
            return;
        }
        if self.guest.is_paused() || session.sealed.len() >= IN_FLIGHT {
            self.after(Duration::from_millis(1), Event::Seal(id));
            return;
        }
        if !self.scenario.trickle {
            host.stream(self.scenario.chunk, true, self.broken, &mut self.random);
        }
        let whole = !session.begun;
        session.begun = true;
        let (epoch, state) = host.cut(whole);
        let mut stream = std::mem::take(&mut host.streamed);
        if whole {
            // The first state has them.
            stream.clear();
        }
        if self.broken == Some(Breakage::EarlyCommit) {
            host.engine.commit(self.now, EpochId::new(epoch));
        }
        let mark = self.guest.pause(self.now);
        self.judge.cut(epoch);
        let (state_len, stream_len) = (state.len(), stream.len());
        session.sealed.insert(epoch, Sealed { state, stream, mark });
        self.trace.event(
            self.now,
            format_args!(
                "seal {epoch}{}: state {state_len}, stream {stream_len} bytes",
                if whole { ", whole" } else { "" }
            ),
        );
        self.schedule(id, epoch, wander);
        self.counts.sealed += 1;
        self.is_moment(Moment::Sealed(self.counts.sealed));
    }

    fn schedule(&mut self, id: u64, epoch: u64, wander: [Duration; 2]) {
        let epochs = &self.scenario.epochs;
        let resumes = self.now + epochs.pause;
        let late = if self.now < self.late.0 { self.late.1 } else { Duration::ZERO };
        let mut arrives = resumes + epochs.transfer + wander[0] + late;
        let next = resumes + epochs.length;
        if let Some(session) = &mut self.session {
            arrives = arrives.max(session.last_arrival);
            session.last_arrival = arrives;
        }
        self.pauses += 1;
        self.at(resumes, Event::Resume(self.pauses));
        if !self.never {
            self.at(arrives, Event::Arrive(id, epoch));
        }
        self.at(next, Event::Seal(id));
    }

    /// The guest goes on.
    pub(super) fn resume(&mut self, pause: u64) {
        if pause == self.pauses && self.host.is_some() {
            self.guest.resume(self.now);
            self.call_guest();
        }
    }

    /// All of an epoch has reached the backup; the primary may be gone by now.
    pub(super) fn arrive(&mut self, id: u64, epoch: u64) -> Verdict {
        let wander = self.wander();
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else { return Ok(()) };
        let Some(sealed) = session.sealed.remove(&epoch) else { return Ok(()) };
        if let Some(fresh) = session.fresh.take() {
            // What was kept of an older session is good until the first epoch of this one is whole.
            self.kept = Some(Kept { ledger: fresh, mark: sealed.mark });
        }
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if let Err(error) = kept.ledger.apply(&sealed.state, &sealed.stream) {
            if self.broken.is_none() {
                return broken("SP-2", format!("the backup refuses epoch {epoch}: {error}"));
            }
        }
        kept.mark = sealed.mark;
        self.guest.keep(sealed.mark);
        self.kept_epoch = epoch;
        self.trace.event(self.now, format_args!("backup keeps {epoch}: {} bytes", kept.ledger.held_bytes()));
        let held = held(&kept.ledger, &self.scenario, self.now);
        self.judge.kept(epoch, |key| held.get(&key).copied().unwrap_or(0))?;
        self.counts.kept += 1;
        let confirms = (self.now + self.scenario.epochs.confirmation + wander).max(session.last_confirmation);
        session.last_confirmation = confirms;
        self.at(confirms, Event::Confirm(id, epoch));
        self.is_moment(Moment::Kept(self.counts.kept));
        Ok(())
    }

    /// The primary learns that the backup has an epoch.
    pub(super) fn confirm(&mut self, id: u64, epoch: u64) -> Verdict {
        let known = self.session.as_ref().is_some_and(|session| session.id == id);
        if !known || self.host.is_none() {
            return Ok(());
        }
        if self.random.chance(self.scenario.silent_commits) {
            // A later one says the same.
            return Ok(());
        }
        self.counts.committed += 1;
        if self.is_moment(Moment::Committed(self.counts.committed)) {
            return Ok(());
        }
        let released = self.host.as_mut().map(|host| host.take_released(epoch)).unwrap_or_default();
        self.trace.event(self.now, format_args!("commit {epoch}: {} frames leave", released.len()));
        let half = released.len() / 2;
        for (index, waiting) in released.into_iter().enumerate() {
            if index == half {
                self.counts.releasing += 1;
                if self.is_moment(Moment::Releasing(self.counts.releasing)) {
                    return Ok(());
                }
            }
            self.release(waiting)?;
        }
        if let Some(host) = &mut self.host {
            host.engine.commit(self.now, EpochId::new(epoch));
        }
        Ok(())
    }

    /// The backup goes live with what it kept.
    pub(super) fn take_over(&mut self) -> Verdict {
        let Some(kept) = self.kept.take() else { return Ok(()) };
        self.session = None;
        self.term += 1;
        self.failovers += 1;
        let alone = self.random.chance(400);
        let mode = if alone { Mode::Native } else { self.scenario.mode };
        self.trace.event(self.now, format_args!("host {} takes over, {mode:?}", self.term));
        let mut host = Host::restored(&self.scenario, self.term, mode, self.now, kept.ledger);
        host.engine.set_rules(self.now, host::rules(self.barred));
        self.host = Some(host);
        self.judge.failed_over();
        if alone {
            self.judge.go_native();
            let until = self.random.span(Duration::from_millis(1), self.scenario.epochs.length * 10);
            self.after(until, Event::Protect(self.term));
        } else {
            self.begin_session();
        }
        let mut sent = Vec::new();
        self.guest.come_back(self.now, kept.mark, &mut sent);
        self.check_streams_anew()?;
        self.capture(sent)
    }

    /// A host that was alone has a backup again.
    pub(super) fn protect_again(&mut self) -> Verdict {
        match &self.host {
            Some(host) if host.mode == Mode::Native => self.set_mode(self.scenario.mode),
            _ => Ok(()),
        }
    }
}

/// Bytes that a ledger holds of each flow: what an engine made from it says.
fn held(ledger: &Ledger, scenario: &crate::scenario::Scenario, now: Time) -> BTreeMap<Key, u32> {
    if ledger.held_bytes() == 0 {
        return BTreeMap::new();
    }
    let mut engine = Engine::new(host::config(scenario, 0));
    engine.set_mode(now, Speculation::On);
    engine.restore(now, ledger.clone());
    engine.flows().map(|flow| ((flow.guest.1, flow.client.1), flow.held_bytes)).collect()
}
