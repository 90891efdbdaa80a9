//! Whether the streams are right, and whether it all comes to its end.

use super::{Summary, World};
use crate::judge::{Key, Verdict, broken};
use crate::party::{Session, stream};
use crate::scenario::{Fault, Mode, Side};
use holdfast_speculation::{FlowState, Time};
use smoltcp::socket::tcp::State;
use std::fmt::Write;
use std::time::Duration;

/// How long a guest's window may be shut while nothing is held.
const SHUT_FOR_NO_REASON: Duration = Duration::from_millis(100);

impl World {
    /// When a run is given up.
    pub(super) fn limit(&self) -> Time {
        let gone = self.scenario.faults.iter().any(|(_, fault)| *fault == Fault::ClientGone);
        let seconds = match (self.scenario.must_end(), gone) {
            (true, _) => 900,
            (false, true) => 400,
            (false, false) => 10,
        };
        Time::ZERO + Duration::from_secs(seconds)
    }

    /// What the client read since the last time is what the guest wrote (SP-3).
    pub(super) fn check_client_streams(&mut self) -> Verdict {
        for (index, session) in self.client.sessions.iter().enumerate() {
            let checked = self.checked.entry((index, Side::Client)).or_default();
            let guest = &self.guest.party().sessions[index];
            check(session, guest, Side::Guest, *checked)?;
            *checked = session.received.len();
        }
        self.check_resets()
    }

    /// What the guest read since the last time is what the client wrote.
    pub(super) fn check_guest_streams(&mut self) -> Verdict {
        for (index, session) in self.guest.party().sessions.iter().enumerate() {
            let checked = self.checked.entry((index, Side::Guest)).or_default();
            check(
                session,
                &self.client.sessions[index],
                Side::Client,
                (*checked).min(session.received.len()),
            )?;
            *checked = session.received.len();
        }
        self.check_resets()
    }

    /// After a failover everything that the client read must be what this guest wrote.
    pub(super) fn check_streams_anew(&mut self) -> Verdict {
        self.checked.clear();
        self.check_client_streams()?;
        self.check_guest_streams()
    }

    /// Nobody sees a reset that nobody asked for (O2 of the fault matrix).
    fn check_resets(&self) -> Verdict {
        if !self.scenario.must_end() {
            return Ok(());
        }
        for (index, plan) in self.scenario.connections.iter().enumerate() {
            let (guest, client) = (&self.guest.party().sessions[index], &self.client.sessions[index]);
            for (session, other, who) in [(guest, client, "guest"), (client, guest, "client")] {
                if plan.reset.is_none() && session.cut_off() && !is_late(session, other) {
                    return broken("reset", format!("the {who} sees connection {index} reset"));
                }
            }
        }
        Ok(())
    }

    /// A window that was shut for want of room opens once there is some: keepalives must not be what
    /// moves the streams.
    pub(super) fn check_windows(&mut self) -> Verdict {
        let idle = self.host.as_ref().is_some_and(|host| {
            host.mode == Mode::Speculative && host.engine.held_bytes() == 0 && host.inbound.is_empty()
        });
        let mut shut: Vec<_> = if idle { self.judge.shut().collect() } else { Vec::new() };
        if let (Some(host), false) = (&self.host, shut.is_empty()) {
            // A flow that is passed through has the client's window, and its probes.
            let ahead = |key: &Key| {
                let mut flows = host.engine.flows().filter(|flow| flow.state == FlowState::Speculating);
                flows.any(|flow| (flow.guest.1, flow.client.1) == *key)
            };
            shut.retain(ahead);
        }
        self.shut.retain(|key, _| shut.contains(key));
        let now = self.now();
        for key in shut {
            let since = *self.shut.entry(key).or_insert(now);
            if now.since(since) > SHUT_FOR_NO_REASON {
                return broken(
                    "liveness",
                    format!("the window of {key:?} is shut since {since}; {}", self.state()),
                );
            }
        }
        Ok(())
    }

    /// Whether there is nothing left to do.
    pub(super) fn over(&self) -> bool {
        let Some(host) = &self.host else { return false };
        let all = (0..self.scenario.connections.len()).all(|index| self.ended(index));
        all && host.engine.held_bytes() == 0 && !self.guest.is_paused()
    }

    fn ended(&self, index: usize) -> bool {
        let (guest, client) = (&self.guest.party().sessions[index], &self.client.sessions[index]);
        if self.scenario.connections[index].reset.is_none() {
            let ended = |one: &Session, other: &Session| one.finished() || is_late(one, other);
            return ended(guest, client) && ended(client, guest);
        }
        let gone = |one: &Session, other: &Session| one.gone() || one.state == State::Listen && other.gone();
        gone(guest, client) && gone(client, guest)
    }

    /// Everything arrived, and nothing is left behind.
    pub(super) fn check_end(&self) -> Verdict {
        for (index, plan) in self.scenario.connections.iter().enumerate() {
            if plan.reset.is_some() {
                continue;
            }
            for session in [&self.guest.party().sessions[index], &self.client.sessions[index]] {
                let (read, expected) = (session.received.len() as u64, session.to_read());
                if read != expected {
                    return broken(
                        "SP-3",
                        format!("connection {index} ended after {read} of {expected} bytes"),
                    );
                }
            }
        }
        if let Some(flow) =
            self.host.as_ref().and_then(|host| host.engine.flows().find(|flow| flow.held_bytes != 0))
        {
            return broken("leak", format!("held after the end: {flow:?}"));
        }
        Ok(())
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            lasted: self.now().since(Time::ZERO),
            frames: self.frames,
            failovers: self.failovers,
            forged: self.counts.forged,
            lent: self.judge.lent,
            commits: self.counts.committed,
            delivered: self.client.sessions.iter().map(|session| session.received.len() as u64).sum(),
        }
    }

    /// For people: where everything is.
    pub(super) fn state(&self) -> String {
        let mut text = format!("at {}", self.now());
        let mut put = |line: String| {
            text.push_str("\n    ");
            text.push_str(&line);
        };
        for (who, party) in [("guest", self.guest.party()), ("client", &self.client)] {
            for session in &party.sessions {
                let mut line = String::new();
                let written = write!(
                    line,
                    "{who} {}: {} wrote {} of {}, read {} of {}",
                    session.connection,
                    session.state,
                    session.written,
                    session.to_write(),
                    session.received.len(),
                    session.to_read()
                );
                if written.is_ok() {
                    put(line);
                }
            }
        }
        if let Some(host) = &self.host {
            put(format!(
                "{:?}, {} in escrow, {} bytes held",
                host.mode,
                host.escrow.len(),
                host.engine.held_bytes()
            ));
            for flow in host.engine.flows() {
                put(format!("{flow:?}"));
            }
        }
        let protected = self.host.as_ref().is_some_and(|host| host.mode != Mode::Native);
        put(format!("session {:?}, protected {protected}", self.session.as_ref().map(|session| session.id)));
        text
    }
}

/// Whether a side has everything, and was too late with its FIN: the other's TIME-WAIT, which is ten
/// seconds in smoltcp, was over.
fn is_late(one: &Session, other: &Session) -> bool {
    let whole = one.received.len() as u64 == one.to_read() && other.received.len() as u64 == other.to_read();
    one.gone() && other.finished() && whole
}

fn check(reader: &Session, writer: &Session, from: Side, start: usize) -> Verdict {
    let read = reader.received.len();
    if read == start && start != 0 {
        return Ok(());
    }
    let who = if from == Side::Guest { "client" } else { "guest" };
    if read as u64 > writer.written {
        let text = format!(
            "the {who} has read {read} bytes of connection {}, only {} were written",
            reader.connection, writer.written
        );
        return broken("SP-3", text);
    }
    let stream = stream(reader.connection, from);
    match writer.history.check(stream, start as u64, &reader.received[start..]) {
        Ok(()) => Ok(()),
        Err(at) => {
            broken("SP-3", format!("the {who} read a wrong byte at {at} of connection {}", reader.connection))
        }
    }
}
