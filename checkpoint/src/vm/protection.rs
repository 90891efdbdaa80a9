//! The primary's session with a backup: synchronising, sealing epochs, and their end.

use crate::gate::CutReport;
use crate::primary::{
    CHUNK_BYTES, CaptureError, Captured, Contents, Ending, EpochFacts, LEAST_OF_EPOCH, OnOutput, Report,
    Round, RoundEnd, SealTimes, Session, SessionSettings, Staging, Work, begin,
};
use crate::protocol::{Begin, ImageHeld, Message, RefusalCode, Welcome};
use crate::transport::Link;
use crate::urgent::{Urgent, own_thread};
use crate::vm::command::CommandError;
use crate::vm::hypervisor::{Fault, GuestError};
use crate::vm::primary::{Primary, Way};
use crate::vm::supervisor::Cas;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use holdfast_epoch::{Epoch, EpochId};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// What the primary can lose on the way.
#[derive(Debug, Error)]
pub(super) enum Lost {
    #[error("the guest's QEMU is lost: {0}")]
    Guest(String),
    #[error("this host lost the machine: {0}")]
    Term(String),
    #[error("the arbiter does not answer: {0}")]
    Arbiter(String),
    #[error("{0}")]
    Gate(String),
    #[error("{0}")]
    Unfit(String),
    #[error("the machine was handed over")]
    HandedOver,
    #[error("the supervisor is shut down")]
    ShutDown,
}

/// An open session.
pub(super) struct Active {
    pub(super) session: Session,
    full: bool,
    /// The epoch that is sealed first: the gate's state of it must say all by itself (SP-2).
    first: EpochId,
    /// A round of pages of the running guest, under way.
    pub(super) round: Option<Receiver<RoundEnd>>,
    rounds: u32,
    /// Pages of the rounds so far.
    sent: u64,
    started: Instant,
    /// When the guest is to be sealed next; none while pages are synchronised.
    next_seal: Option<Instant>,
    /// When the guest began to run in the open epoch, and its traffic until then.
    resumed: Instant,
    traffic_then: u64,
    /// In an epoch that ends when the guest falls silent: when to look, and what has to be the same then.
    look: Option<Look>,
    /// Whether the next pause has one scan only, after the save: see [`scans_once`].
    scans_once: bool,
    /// Epochs sealed and not yet confirmed.
    outstanding: usize,
    /// Whether the backup has confirmed an epoch of this session, or continues a confirmed one.
    pub(super) committed: bool,
}

/// The next look at the traffic of a guest that may have fallen silent.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    /// As it was at the look before.
    traffic: u64,
    quiet: Duration,
    least: Duration,
}

impl Active {
    /// When a backup that gives no time any more is given up, although nothing is held for it.
    pub(super) fn patience(&self, lease: Duration) -> Instant {
        self.session.lease_until() + 2 * lease
    }

    /// When the session needs the supervisor.
    pub(super) fn due(&self, in_flight: usize) -> Instant {
        match self.next_seal {
            Some(next) if self.outstanding < in_flight => self.look.map_or(next, |look| next.min(look.at)),
            _ => Instant::now() + Duration::from_secs(60),
        }
    }
}

impl Primary<'_> {
    /// The backup took the session: watch the memory, agree on where to begin, and send the first round.
    pub(super) fn welcomed(&mut self, link: Arc<Link>, welcome: &Welcome) -> Result<(), Lost> {
        self.abandoned = false;
        let goes_on = self.goes_on_from(welcome.held);
        if self.holding && !goes_on {
            // The backup has lost what it held: nobody could take over, and the guest shall not wait for
            // a whole synchronisation.
            self.go_solo()?;
        }
        if !goes_on && !self.watch()? {
            self.redial_later();
            return Ok(());
        }
        if self.solo {
            // From here on the record says that a backup may ask.
            match self.core.ask_for(self.core.term, false) {
                Cas::Won => self.solo = false,
                Cas::Lost(text) => return Err(Lost::Term(text)),
                Cas::Unknown(text) => return Err(Lost::Arbiter(text)),
            }
        }
        let first = self.core.next_epoch;
        self.open = Some(Epoch::open(self.core.term, first));
        self.begin_session(link, welcome, goes_on, first)
    }

    /// Whether the backup's image is one that the memory was watched from without a gap.
    fn goes_on_from(&self, held: Option<ImageHeld>) -> bool {
        let tracked = self.found.as_ref().is_some_and(|found| found.tracked);
        match (held, self.confirmed) {
            (Some(held), Some((term, epoch))) => {
                tracked && held.term == term && held.epoch >= epoch && held.epoch < self.core.next_epoch
            }
            _ => false,
        }
    }

    /// Begins to watch the guest's memory; says whether it could.
    fn watch(&mut self) -> Result<bool, Lost> {
        self.confirmed = None;
        let Some(found) = &mut self.found else { return Ok(false) };
        if found.tracked {
            return Ok(true);
        }
        match found.guest.track(&found.memory) {
            Ok(tracker) => {
                found.watchers = tracker.thread_ids();
                let processors = thread::available_parallelism().map_or(1, usize::from);
                found.crowded = found.watchers.len() + 1 >= processors;
                self.core.capture.attach(found.memory, tracker);
                found.tracked = true;
                Ok(true)
            }
            Err(GuestError::Lost(text)) => Err(Lost::Guest(text)),
            Err(fault) => {
                self.core.board.trouble(Fault::Operator, fault.to_string());
                Ok(false)
            }
        }
    }

    fn begin_session(
        &mut self,
        link: Arc<Link>,
        welcome: &Welcome,
        goes_on: bool,
        first: EpochId,
    ) -> Result<(), Lost> {
        let staging = match self.staging() {
            Ok(staging) => staging,
            Err(error) => {
                self.core.board.trouble(Fault::Host, format!("no memory to capture pages in: {error}"));
                self.redial_later();
                return Ok(());
            }
        };
        let config = &self.core.config;
        let full = !goes_on;
        link.set_window(welcome.window);
        link.start_heartbeats(config.heartbeat, config.lease);
        link.send(&Message::Begin(Begin { full, term: self.core.term, first }));
        let cache_bytes = self
            .found
            .as_ref()
            .map_or(0, |found| config.reduction.cache_bytes(found.memory.len, found.memory.page_size));
        let keeps_all = self.found.as_ref().is_some_and(|found| cache_bytes >= found.memory.len);
        let (in_flight, reduction) = (config.in_flight, config.reduction.clone());
        let chunks = staging.chunks();
        let settings = SessionSettings { in_flight, chunks, full, first, reduction, cache_bytes, keeps_all };
        let (gate, stats) = (self.core.gate.clone(), Arc::clone(&self.core.stats));
        let session = match begin(Arc::clone(&link), gate, stats, &settings) {
            Ok(session) => session,
            Err(error) => {
                self.core.board.trouble(Fault::Host, format!("no thread to replicate with: {error}"));
                self.redial_later();
                return Ok(());
            }
        };
        self.core.capture.open(session.work.clone(), session.free.clone(), staging);
        let mut status = self.core.board.edit();
        status.link.connected = true;
        status.link.peer_host = Some(welcome.host.clone());
        status.link.peer_address = Some(link.peer().to_owned());
        status.link.sessions += 1;
        drop(status);
        let ahead_of = goes_on.then_some(first);
        let round = self.core.capture.round(Round { whole: full, ahead_of });
        self.way = Way::Open(Box::new(Active {
            session,
            full,
            first,
            round: Some(round),
            rounds: 1,
            sent: 0,
            started: Instant::now(),
            next_seal: None,
            resumed: Instant::now(),
            traffic_then: (self.core.traffic.bytes)(),
            look: None,
            scans_once: false,
            outstanding: 0,
            committed: goes_on,
        }));
        Ok(())
    }

    /// Memory for captured pages: mapped before the first session, for all of them.
    fn staging(&mut self) -> std::io::Result<Staging> {
        if let Some(staging) = &self.staging {
            return Ok(staging.clone());
        }
        let limit = usize::try_from(self.core.config.capture_limit).unwrap_or(usize::MAX);
        let staging = Staging::map((limit / CHUNK_BYTES).max(4))?;
        let (vm, pages) = (&self.core.config.name, staging.pages());
        tracing::info!(%vm, ?pages, mib = (staging.chunks() * CHUNK_BYTES) >> 20, "memory for captured pages");
        self.core.board.edit().staging_pages = Some(pages);
        Ok(self.staging.insert(staging).clone())
    }

    /// A round of pages of the running guest is done: another one, or the first seal.
    pub(super) fn round_ended(&mut self, end: Option<RoundEnd>) -> Result<(), Lost> {
        let Way::Open(active) = &mut self.way else { return Ok(()) };
        active.round = None;
        let Some(RoundEnd { pages, outcome }) = end else { return Ok(()) };
        if let Err(fault) = outcome {
            self.capture_failed(&fault);
            return Ok(());
        }
        active.sent += pages;
        let (left, rounds) = (self.core.config.sync_pages_left, self.core.config.sync_rounds);
        if pages <= left || active.rounds >= rounds {
            active.next_seal = Some(Instant::now());
            return Ok(());
        }
        active.rounds += 1;
        let ahead_of = (!active.full).then_some(self.core.next_epoch);
        active.round = Some(self.core.capture.round(Round { whole: false, ahead_of }));
        Ok(())
    }

    fn capture_failed(&mut self, fault: &CaptureError) {
        self.core.capture.give_up();
        match fault {
            // The report of the session's end says why.
            CaptureError::SessionEnded => {}
            fault => {
                let text = fault.to_string();
                self.core.board.trouble(Fault::Host, format!("pages could not be captured: {text}"));
                self.end_session("the primary cannot capture pages");
                self.forget_tracking();
                self.redial_later();
            }
        }
    }

    /// What the replication thread reports.
    pub(super) fn report(&mut self, report: Option<Report>) -> Result<(), Lost> {
        let Way::Open(active) = &mut self.way else { return Ok(()) };
        match report {
            None => {}
            Some(Report::Lease { until, round_trip }) => {
                self.lease_until = self.lease_until.max(until);
                let mut status = self.core.board.edit();
                status.link.round_trip_us = Some(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
                status.link.show_way(&active.session.link);
            }
            Some(Report::Committed { epoch, set }) => {
                active.outstanding -= 1;
                if active.full && !active.committed {
                    self.core.stats().synchronised(active.started.elapsed(), active.sent);
                }
                active.committed = true;
                self.refusals = 0;
                self.confirmed = Some((self.core.term, epoch));
                self.core.capture.recycle(set);
                self.core.board.edit().committed_epoch = Some(epoch.get());
            }
            Some(Report::Summoned { term }) if term == self.core.term => match self.hand_over() {
                Ok(()) => return Err(Lost::HandedOver),
                Err(fault) => self.core.board.trouble(fault.fault, fault.text),
            },
            Some(Report::Summoned { term }) => tracing::debug!(%term, "summoned in an old term"),
            Some(Report::Ended(ending)) => self.session_ended(*ending),
        }
        Ok(())
    }

    /// The session is over: every page that was not confirmed is pending again (CK-2).
    fn session_ended(&mut self, ending: Ending) {
        self.core.board.trouble(ending.fault, format!("the session with the backup ended: {}", ending.text));
        let refused = ending.refusal.as_ref().map(|refusal| refusal.code);
        // A backup that says so will not answer: there is nothing to wait for.
        self.abandoned = ending.parted;
        self.take_back(ending);
        if matches!(refused, Some(RefusalCode::NoRoom | RefusalCode::OutOfOrder)) {
            // Going on would only be refused again: begin anew.
            self.confirmed = None;
        }
        self.redial_later();
        if refused.is_some() {
            // A backup that refuses will do so again until somebody mends it. Each attempt costs terms and
            // a synchronisation, so that they become rare.
            let pause = self.core.config.retry * (1 << self.refusals.min(5));
            self.dial_at = Instant::now() + pause;
            self.refusals += 1;
        }
    }

    fn take_back(&mut self, ending: Ending) {
        self.way = Way::None;
        self.core.board.edit().link.connected = false;
        self.core.capture.call_off();
        self.core.capture.give_up();
        let mut aborted = 0;
        for set in ending.into_sets() {
            aborted += 1;
            self.core.capture.take_back(set);
        }
        self.core.stats().aborted(aborted);
    }

    /// Ends the session from this side, and waits until its thread has handed everything back.
    pub(super) fn end_session(&mut self, reason: &str) {
        let Way::Open(active) = std::mem::replace(&mut self.way, Way::None) else { return };
        self.core.capture.call_off();
        let Session { link, work, free, reports, .. } = active.session;
        link.send(&Message::Goodbye { reason: reason.to_owned() });
        link.close();
        drop((work, free));
        for report in reports {
            if let Report::Ended(ending) = report {
                self.take_back(*ending);
            }
        }
    }

    /// The guest has said something for the first time in the open epoch.
    pub(super) fn output_waits(&mut self) {
        let Way::Open(active) = &mut self.way else { return };
        let Some(next) = active.next_seal else { return };
        match self.core.policy.on_output() {
            OnOutput::Nothing => {}
            OnOutput::End(run) => active.next_seal = Some(next.min(active.resumed + run)),
            OnOutput::EndWhenQuiet { quiet, least } => {
                let traffic = (self.core.traffic.bytes)();
                active.look = Some(Look { at: Instant::now() + quiet, traffic, quiet, least });
            }
        }
    }

    /// Looks whether a guest whose epoch ends with its silence has fallen silent.
    pub(super) fn look_at_traffic(&mut self, now: Instant) {
        let Way::Open(active) = &mut self.way else { return };
        let Some(look) = active.look.filter(|look| now >= look.at) else { return };
        let traffic = (self.core.traffic.bytes)();
        if traffic == look.traffic {
            active.look = None;
            active.next_seal = active.next_seal.map(|next| next.min(active.resumed + look.least));
        } else {
            active.look = Some(Look { at: now + look.quiet, traffic, ..look });
        }
    }

    /// Seals the open epoch if it is time and there is room in flight.
    pub(super) fn seal_if_due(&mut self, now: Instant) -> Result<(), Lost> {
        let Way::Open(active) = &self.way else { return Ok(()) };
        let in_time = self.holding || now < self.lease_until;
        match active.next_seal {
            Some(next) if now >= next && active.outstanding < self.core.config.in_flight && in_time => {
                self.seal(true)
            }
            _ => Ok(()),
        }
    }

    /// One pause of the guest. After an error nothing is lost: the pages are pending, the guest runs, and
    /// the number of the epoch is not used again.
    fn seal(&mut self, go_on: bool) -> Result<(), Lost> {
        let Some(epoch) = self.open.take() else { return Ok(()) };
        let id = epoch.id();
        let mut times = SealTimes::default();
        let started = Instant::now();
        let urgent = Urgent::begin(self.threads_of_pause());
        let mut outcome = self.capture_halted(id, started, &mut times);
        if let Err(SealFault::Guest(text)) = outcome {
            return Err(Lost::Guest(text));
        }
        if !go_on {
            outcome = self.still_fits(outcome);
        }
        if go_on || outcome.is_err() {
            let at = Instant::now();
            if let Err(lost) = self.guest(|guest| guest.cont()) {
                self.keep_dirty(outcome);
                return Err(lost);
            }
            times.cont = at.elapsed();
        }
        times.pause = started.elapsed();
        drop(urgent);
        if go_on {
            outcome = self.still_fits(outcome);
        }
        if let Way::Open(active) = &self.way {
            times.ran = started.saturating_duration_since(active.resumed);
        }
        self.core.next_epoch = id.next();
        self.open = Some(Epoch::open(self.core.term, id.next()));
        let (captured, devices, cut) = match outcome {
            Ok(captured) => captured,
            Err(SealFault::Guest(text)) => return Err(Lost::Guest(text)),
            Err(SealFault::Unfit(text)) => {
                self.core.capture.give_up();
                self.core.stats().aborted(1);
                return Err(Lost::Unfit(text));
            }
            Err(SealFault::Capture(fault)) => {
                self.capture_failed(&fault);
                self.abandon_numbering();
                return Ok(());
            }
            Err(SealFault::Other(fault, text)) => {
                self.core.capture.give_up();
                self.core.board.trouble(fault, format!("epoch {id} was given up: {text}"));
                self.abandon_numbering();
                return Ok(());
            }
        };
        (times.scan, times.copy) = (captured.scan, captured.copy);
        (times.pages, times.ahead_pages) = (captured.set.len(), captured.ahead);
        times.pause_pages = captured.copies;
        self.core.stats().sealed(id, started, &times);
        let contents = Contents { set: captured.set, devices, gate: cut.state, sealed_at: started };
        let (sealed, next) = epoch.seal(contents);
        self.open = Some(next);
        if let Way::Open(active) = &mut self.way {
            active.outstanding += 1;
            let crowded = self.found.as_ref().is_some_and(|found| found.crowded);
            active.scans_once = scans_once(captured.scan / captured.scans.max(1), times.save, crowded);
            let traffic = (self.core.traffic.bytes)();
            let traffic_bytes = traffic.saturating_sub(std::mem::replace(&mut active.traffic_then, traffic));
            active.look = None;
            let facts = EpochFacts { ran: times.ran, pause: times.pause, traffic_bytes };
            let run = self.core.policy.run_for(&facts);
            active.resumed = Instant::now();
            active.next_seal = Some(active.resumed + run);
            // If the session has ended its report gives this set back as well.
            match active.session.work.send(Work::Seal(Box::new(sealed))) {
                // Pages of the next epoch follow the seal of this one.
                Ok(()) if go_on && times.pages >= LEAST_OF_EPOCH => {
                    self.core.capture.ahead(id.next(), active.resumed + run);
                }
                Ok(()) => {}
                Err(unsent) => {
                    if let Work::Seal(sealed) = unsent.into_inner() {
                        self.core.capture.take_back(sealed.abort().set);
                    }
                }
            }
        } else {
            self.core.capture.take_back(sealed.abort().set);
        }
        if go_on { self.guest(|guest| guest.prepare()) } else { Ok(()) }
    }

    /// Whether the machine that was captured is the one that the standby is: if not, the epoch is none that the
    /// backup may have, and a capture that failed has its reason.
    fn still_fits(&mut self, outcome: Result<Caught, SealFault>) -> Result<Caught, SealFault> {
        let state = outcome.as_ref().ok().map(|(_, devices, _)| devices.as_slice());
        match self.with_guest(|guest| guest.changed(state)) {
            Ok(None) => outcome,
            Ok(Some(text)) => {
                self.keep_dirty(outcome);
                Err(SealFault::Unfit(text))
            }
            Err(fault) => {
                self.keep_dirty(outcome);
                Err(fault)
            }
        }
    }

    /// An epoch that will not be: its pages stay dirty (CK-2).
    fn keep_dirty(&mut self, outcome: Result<Caught, SealFault>) {
        if let Ok((captured, ..)) = outcome {
            self.core.capture.take_back(captured.set);
        }
    }

    /// Threads of this process and of QEMU on the way from the stop to the continuation.
    fn threads_of_pause(&mut self) -> Vec<i32> {
        let mut threads = self.found.as_mut().map_or_else(Vec::new, |found| found.guest.threads_of_pause());
        threads.extend([own_thread(), self.core.capture.thread_id()]);
        threads.extend(self.found.iter().filter(|found| found.tracked).flat_map(|found| &found.watchers));
        threads
    }

    /// The halted guest: gate cut, devices saved and pages copied side by side.
    fn capture_halted(
        &mut self,
        id: EpochId,
        started: Instant,
        times: &mut SealTimes,
    ) -> Result<Caught, SealFault> {
        // A scan ahead that began now would be one more scan in the pause.
        self.core.capture.halt();
        self.with_guest(|guest| guest.stop())?;
        times.stop = started.elapsed();
        let at = Instant::now();
        let gate_fault = |fault: crate::gate::GateError| SealFault::Other(Fault::Host, fault.to_string());
        // Without a session nobody is sent what a delta would count on.
        let whole = !matches!(&self.way, Way::Open(active) if active.first < id);
        let mut gate = self.core.gate.lock();
        if !self.holding {
            gate.protect(id).map_err(gate_fault)?;
            gate.extend_lease(self.lease_until);
            self.holding = true;
        }
        let cut = gate.cut(id, whole).map_err(gate_fault)?;
        drop(gate);
        // What was said before the cut is in the epoch that ends.
        while self.core.traffic.output.try_recv().is_ok() {}
        times.cut = at.elapsed();
        let scans_once = matches!(&self.way, Way::Open(active) if active.scans_once);
        let copying = (!scans_once).then(|| self.core.capture.first(id));
        let at = Instant::now();
        let devices = self.with_guest(|guest| guest.save_devices());
        times.save = at.elapsed();
        let copied = copying.map_or(Ok(()), |copying| self.await_capture(&copying));
        let devices = devices?;
        copied.map_err(SealFault::Capture)?;
        let last = self.core.capture.last(id);
        let captured = self.await_capture(&last).map_err(SealFault::Capture)?;
        Ok((captured, devices, cut))
    }

    /// Waits for the capture thread, which may wait for the link: the guest stands still meanwhile, but not
    /// longer than the backup gives time.
    fn await_capture<T>(&self, answered: &Receiver<Result<T, CaptureError>>) -> Result<T, CaptureError> {
        let ended = || Err(CaptureError::SessionEnded);
        loop {
            match answered.recv_timeout(self.core.config.heartbeat) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return ended(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Way::Open(active) = &self.way {
                if Instant::now() >= active.session.lease_until().max(self.lease_until) {
                    // The replication thread ends with the link, and with it whoever waits for its chunks.
                    active.session.link.close();
                    return answered.recv().unwrap_or_else(|_| ended());
                }
            }
        }
    }

    /// A number was used up without a seal: the backup would take the next one for a gap. A new session
    /// says where it goes on.
    fn abandon_numbering(&mut self) {
        self.core.stats().aborted(1);
        self.end_session("an epoch was given up");
        self.redial_later();
    }

    fn with_guest<T>(
        &mut self,
        step: impl FnOnce(&mut dyn crate::vm::hypervisor::Guest) -> Result<T, GuestError>,
    ) -> Result<T, SealFault> {
        let Some(found) = &mut self.found else {
            return Err(SealFault::Guest("it is gone".to_owned()));
        };
        step(&mut *found.guest).map_err(|fault| match fault {
            GuestError::Lost(text) => SealFault::Guest(text),
            other => SealFault::Other(Fault::Guest, other.to_string()),
        })
    }

    /// A step that must not fail while QEMU lives.
    fn guest(
        &mut self,
        step: impl FnOnce(&mut dyn crate::vm::hypervisor::Guest) -> Result<(), GuestError>,
    ) -> Result<(), Lost> {
        self.with_guest(step).map_err(|fault| match fault {
            SealFault::Guest(text) | SealFault::Other(_, text) => Lost::Guest(text),
            SealFault::Unfit(text) => Lost::Unfit(text),
            SealFault::Capture(fault) => Lost::Guest(fault.to_string()),
        })
    }

    /// A last epoch, its commit, and the machine is given away: nothing is lost.
    pub(super) fn hand_over(&mut self) -> Result<(), CommandError> {
        if !self.protected() {
            return Err(CommandError::new(
                Fault::Operator,
                "no backup holds a checkpoint of the guest yet: protect it, and wait until it is",
            ));
        }
        let deadline = Instant::now() + self.core.config.qemu_timeout.max(self.core.config.lease * 2);
        let failed = |fault, text: String| Err(CommandError::new(fault, text));
        self.await_commits(self.core.config.in_flight - 1, deadline)?;
        match self.seal(false) {
            Ok(()) => {}
            Err(Lost::Unfit(text)) => {
                return match self.end_protection(&text) {
                    Ok(()) => failed(Fault::Operator, text),
                    Err(lost) => failed(Fault::Arbiter, lost.to_string()),
                };
            }
            Err(lost) => return failed(Fault::Guest, lost.to_string()),
        }
        let committed = self.await_commits(0, deadline);
        if let (Ok(()), Way::Open(active)) = (&committed, &self.way) {
            self.core.gate.lock().fence();
            active.session.link.send(&Message::Relinquish { term: self.core.term });
            return Ok(());
        }
        if let Err(lost) = self.guest(|guest| guest.cont()) {
            return failed(Fault::Guest, lost.to_string());
        }
        committed.and_then(|()| failed(Fault::Peer, "the session ended meanwhile".to_owned()))
    }

    /// Waits until at most `most` epochs are in flight.
    fn await_commits(&mut self, most: usize, deadline: Instant) -> Result<(), CommandError> {
        loop {
            let Way::Open(active) = &self.way else {
                return Err(CommandError::new(Fault::Peer, "the backup was lost meanwhile"));
            };
            if active.outstanding <= most {
                return Ok(());
            }
            let reports = active.session.reports.clone();
            match reports.recv_deadline(deadline) {
                // A second summons while one is obeyed changes nothing.
                Ok(Report::Summoned { .. }) => {}
                Ok(report) => {
                    if let Err(lost) = self.report(Some(report)) {
                        return Err(CommandError::new(Fault::Peer, lost.to_string()));
                    }
                }
                Err(_) => {
                    return Err(CommandError::new(Fault::Peer, "the backup does not confirm in time"));
                }
            }
        }
    }
}

/// Whether a pause is shorter with one scan, after the save, than with one beside the save and another that finds what
/// QEMU wrote meanwhile. Each scan looks through all memory, so the one beside it pays only while it costs no time: while
/// it is shorter than the save, and leaves QEMU a processor. Where it is `crowded` the save takes longer by about a scan,
/// and both ways come to the same where a scan is half of an undisturbed save, a third of a disturbed one: a scan between
/// the two stays where it is, beside the save or not.
///
/// Two processors, 8 GiB, 200 pages: 6.5 ms with two scans (2.1 ms each, save 3.3 ms), 5.1 ms with one (save 1.7 ms, as at 1 GiB);
/// 4 GiB 4.4 and 4.2 ms (`holdfast bench pause`).
fn scans_once(scan: Duration, save: Duration, crowded: bool) -> bool {
    scan * if crowded { 3 } else { 1 } > save
}

/// What a pause took: pages, state of the devices, state of the gate.
type Caught = (Captured, Vec<u8>, CutReport);

/// Why a pause gave no epoch.
enum SealFault {
    Guest(String),
    /// The machine is not the standby's any more.
    Unfit(String),
    Capture(CaptureError),
    Other(Fault, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_that_would_hold_up_the_save_is_not_made_beside_it() {
        let crowded = true;
        for (what, scan_us, save_us, crowded, once) in [
            ("8 GiB on two processors, after two scans", 2080, 3350, crowded, true),
            ("8 GiB on two processors, after one scan", 1930, 1610, crowded, true),
            ("4 GiB on two processors, after two scans", 1000, 2260, crowded, true),
            ("2 GiB on two processors", 500, 1700, crowded, false),
            ("1 GiB on two processors", 600, 1650, !crowded, false),
            ("8 GiB on 16 processors", 550, 1650, !crowded, false),
            ("64 GiB on 16 processors", 4400, 1650, !crowded, true),
        ] {
            let us = Duration::from_micros;
            assert_eq!(scans_once(us(scan_us), us(save_us), crowded), once, "{what}");
        }
    }
}
