//! What goes wrong, or changes.

use super::{Event, World};
use crate::host::{rules, speculation};
use crate::judge::Verdict;
use crate::scenario::{Fault, Mode, Moment};

impl World {
    /// Whether the host vanishes at this very moment.
    pub(super) fn is_moment(&mut self, moment: Moment) -> bool {
        let struck =
            self.scenario.faults.iter().any(|&(when, fault)| when == moment && fault == Fault::Crash);
        if struck && self.kept.is_some() && self.host.as_ref().is_some_and(|host| host.mode != Mode::Native) {
            self.trace.event(self.now, format_args!("the host vanishes: {moment:?}"));
            self.doomed = true;
        }
        self.doomed
    }

    /// A fault whose time has come.
    pub(super) fn strike(&mut self, fault: Fault) -> Verdict {
        self.trace.event(self.now, format_args!("{fault:?}"));
        match fault {
            Fault::Crash => {
                let protected = self.host.as_ref().is_some_and(|host| host.mode != Mode::Native);
                self.doomed = protected && self.kept.is_some();
            }
            Fault::LinkLost(lasts) => {
                if self.host.is_some() {
                    self.session = None;
                    self.after(lasts, Event::LinkBack);
                }
            }
            Fault::CommitsLate(extra, lasts) => self.late = (self.now + lasts, extra),
            Fault::CommitsNever => self.never = true,
            Fault::Mode(mode) => return self.set_mode(mode),
            Fault::Rule(number, speculates) => {
                self.barred = (!speculates).then_some(number);
                if let Some(host) = &mut self.host {
                    host.engine.set_rules(self.now, rules(self.barred));
                }
            }
            Fault::Outage(lasts) => {
                self.to_client.out_until = self.now + lasts;
                self.to_guest.out_until = self.now + lasts;
            }
            Fault::ClientGone => self.client_gone = true,
        }
        Ok(())
    }

    /// The host is gone with all that it held; what is on a wire or at the backup goes on.
    pub(super) fn crash(&mut self) {
        self.doomed = false;
        self.host = None;
        self.trace.event(self.now, format_args!("the host is gone"));
        self.after(self.scenario.epochs.takeover, Event::Takeover);
    }

    /// The mode of the port changes.
    pub(super) fn set_mode(&mut self, mode: Mode) -> Verdict {
        // The host that takes over has the same configuration.
        if mode != Mode::Native {
            self.scenario.mode = mode;
        }
        let Some(host) = &mut self.host else { return Ok(()) };
        let before = host.mode;
        host.mode = mode;
        if mode == Mode::Native && before != Mode::Native {
            self.judge.go_native();
            self.session = None;
            self.kept = None;
            let waiting: Vec<_> = host.escrow.drain(..).collect();
            for waiting in waiting {
                self.release(waiting)?;
            }
        } else if before == Mode::Native && mode != Mode::Native {
            self.judge.go_protected();
            self.begin_session();
        }
        self.trace.event(self.now, format_args!("mode {mode:?}"));
        if let Some(host) = &mut self.host {
            host.engine.set_mode(self.now, speculation(mode));
        }
        Ok(())
    }
}
