//! Saving and loading the state of devices and vCPUs.

use super::{Qemu, QemuError, STEP_LIMIT, StateError};
use crate::image::STATE_LIMIT;
use crate::qmp::{Event, Pending, Qmp, QmpError};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::{pipe2, write};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// Name under which QEMU knows our end of the pipe; short, for QEMU reads its monitor byte by byte.
const FD_NAME: &str = "hf";

/// What the pipe should hold, so that QEMU seldom waits for us: the most that the kernel gives anybody.
const PIPE_BYTES: i32 = 1 << 20;

/// Room for the first device state, before its size is known.
const FIRST_SIZE: usize = 1 << 20;

/// Our end of a pipe of which QEMU has the other.
#[derive(Debug)]
pub(super) struct Receiver(File);

/// Where a migration stands.
enum Progress {
    Running,
    Completed,
    Failed,
}

impl Qemu {
    /// Does what a checkpoint needs and what may be done while the guest runs. Not needed before
    /// [`Qemu::save_devices`], but the pause is shorter with it.
    ///
    /// # Errors
    /// When the monitor does not answer or there are no descriptors left.
    pub fn prepare(&mut self) -> Result<(), QemuError> {
        self.set_up()?;
        if self.receiver.is_none() {
            let (ours, theirs) = channel()?;
            set_nonblocking(&ours)?;
            self.hand_over(theirs)?;
            self.receiver = Some(Receiver(ours.into()));
        }
        Ok(())
    }

    /// Saves the state of devices and vCPUs of a guest that was stopped.
    ///
    /// # Errors
    /// When QEMU fails to, takes too long, or writes more than a guest without its memory can have.
    pub fn save_devices(&mut self) -> Result<Vec<u8>, QemuError> {
        self.prepare()?;
        let Some(Receiver(pipe)) = self.receiver.take() else {
            unreachable!("prepared just now");
        };
        self.forget_migrations();
        let start = self.qmp.begin("migrate", json!({ "uri": format!("fd:{FD_NAME}") }), None)?;
        let saved = self.receive(&start, &pipe);
        match &saved {
            Ok(state) => self.last_size = state.len(),
            Err(_) => self.cancel(),
        }
        saved
    }

    /// Loads the state into a standby that waits for it (`-incoming defer`); the guest then stands still
    /// where it was sealed.
    ///
    /// # Errors
    /// When QEMU does not accept the state: it usually ends then.
    pub fn load_devices(&mut self, state: &[u8]) -> Result<(), QemuError> {
        if state.is_empty() {
            // QEMU would wait for more without end.
            return Err(StateError::Failed { what: "load", desc: "there is none".to_owned() }.into());
        }
        self.set_up()?;
        let (theirs, ours) = channel()?;
        set_nonblocking(&ours)?;
        self.hand_over(theirs)?;
        self.forget_migrations();
        let uri = json!({ "uri": format!("fd:{FD_NAME}") });
        let start = self.qmp.begin("migrate-incoming", uri, None)?;
        self.feed(&start, ours, state)
    }

    /// Sets, once a connection, what checkpoints need; remembers what was set before.
    pub(crate) fn set_up(&mut self) -> Result<(), QemuError> {
        if self.own_settings.is_some() {
            return Ok(());
        }
        let before = own_settings(&mut self.qmp)?;
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.qmp.execute("migrate-set-capabilities", capabilities)?;
        let unlimited = json!({ "max-bandwidth": 100_000_000_000_u64, "downtime-limit": 2000 });
        self.qmp.execute("migrate-set-parameters", unlimited)?;
        self.own_settings = Some(before);
        Ok(())
    }

    fn hand_over(&mut self, fd: OwnedFd) -> Result<(), QemuError> {
        self.qmp.execute_fd("getfd", json!({ "fdname": FD_NAME }), fd.as_fd())?;
        Ok(())
    }

    /// Reads until QEMU closed its end and said that it is done.
    fn receive(&mut self, start: &Pending, pipe: &File) -> Result<Vec<u8>, QemuError> {
        let deadline = Instant::now() + self.step_limit;
        let mut state = Vec::with_capacity(self.last_size.max(FIRST_SIZE) + (64 << 10));
        let (mut open, mut completed) = (true, false);
        while open || !completed {
            let also = open.then(|| (pipe.as_fd(), PollFlags::POLLIN));
            if !self.qmp.pump(deadline, also)? {
                return Err(StateError::Timeout { what: "save", limit: self.step_limit }.into());
            }
            if open {
                open = read_some(pipe, &mut state)?;
            }
            match self.progress(start)? {
                Progress::Running => {}
                Progress::Completed => completed = true,
                Progress::Failed => return Err(self.failure("save").into()),
            }
        }
        Ok(state)
    }

    /// Writes until QEMU has taken everything and said that it is done.
    fn feed(&mut self, start: &Pending, pipe: OwnedFd, state: &[u8]) -> Result<(), QemuError> {
        let deadline = Instant::now() + STEP_LIMIT;
        let (mut pipe, mut left) = (Some(pipe), state);
        loop {
            let also = pipe.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLOUT));
            let pumped = self.qmp.pump(deadline, also);
            let ended = StateError::Ended { taken: state.len() - left.len(), bytes: state.len() };
            match pumped {
                Ok(true) => {}
                Ok(false) => return Err(StateError::Timeout { what: "load", limit: STEP_LIMIT }.into()),
                Err(QmpError::Closed) => return Err(ended.into()),
                Err(fault) => return Err(fault.into()),
            }
            match self.progress(start)? {
                Progress::Running => {}
                Progress::Completed => return Ok(()),
                Progress::Failed => return Err(self.failure("load").into()),
            }
            if let Some(open) = pipe.take() {
                // A pipe whose reader is gone: the monitor will say why, or close.
                let alive = write_some(&open, &mut left)?;
                pipe = (alive && !left.is_empty()).then_some(open);
            }
        }
    }

    fn progress(&mut self, start: &Pending) -> Result<Progress, QemuError> {
        if let Some(reply) = self.qmp.take_reply(start) {
            reply?;
        }
        let mut progress = Progress::Running;
        while let Some(event) = self.qmp.take_event(|event| event.name == "MIGRATION") {
            match event.data["status"].as_str() {
                Some("completed") => progress = Progress::Completed,
                Some("failed" | "cancelled") => return Ok(Progress::Failed),
                _ => {}
            }
        }
        Ok(progress)
    }

    /// Why QEMU gave a migration up, as far as it says.
    fn failure(&mut self, what: &'static str) -> StateError {
        let desc = match self.qmp.execute("query-migrate", Value::Null) {
            Ok(answer) => answer["error-desc"].as_str().unwrap_or("it does not say why").to_owned(),
            Err(QmpError::Closed) => "it ended".to_owned(),
            Err(fault) => fault.to_string(),
        };
        StateError::Failed { what, desc }
    }

    /// Ends a migration that goes nowhere, so that the guest may continue.
    fn cancel(&mut self) {
        if let Err(error) = self.qmp.execute("migrate_cancel", Value::Null) {
            tracing::warn!(%error, "a migration that failed could not be cancelled");
        }
    }

    fn forget_migrations(&mut self) {
        let old = |event: &Event| matches!(event.name.as_str(), "MIGRATION" | "MIGRATION_PASS");
        while self.qmp.take_event(old).is_some() {}
    }
}

/// The settings that checkpoints change, as they are.
fn own_settings(qmp: &mut Qmp) -> Result<Value, QemuError> {
    let capabilities = qmp.execute("query-migrate-capabilities", Value::Null)?;
    let capabilities: Vec<_> = capabilities
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| matches!(one["capability"].as_str(), Some("x-ignore-shared" | "events")))
        .cloned()
        .collect();
    let all = qmp.execute("query-migrate-parameters", Value::Null)?;
    let parameters: Map<_, _> = ["max-bandwidth", "downtime-limit"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), all.get(name)?.clone())))
        .collect();
    Ok(json!({ "capabilities": capabilities, "parameters": parameters }))
}

/// A pipe: the end to read from, the end to write to.
fn channel() -> Result<(OwnedFd, OwnedFd), StateError> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    if let Err(error) = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)) {
        // Slower by a few wake-ups: the user's pipes already take what /proc/sys/fs/pipe-user-pages-soft allows.
        tracing::debug!(%error, "the pipe for device state stays small");
    }
    Ok((reader, writer))
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), StateError> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
    Ok(())
}

/// Reads what is there; false at the end.
fn read_some(pipe: &File, state: &mut Vec<u8>) -> Result<bool, StateError> {
    let room = STATE_LIMIT as u64 + 1 - state.len() as u64;
    let result = pipe.take(room).read_to_end(state);
    if state.len() > STATE_LIMIT {
        return Err(StateError::TooLarge { limit: STATE_LIMIT });
    }
    match result {
        Ok(_) => Ok(false),
        // What was there before is in the vector.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Writes what fits; false when nobody reads any more.
fn write_some(pipe: &OwnedFd, left: &mut &[u8]) -> Result<bool, StateError> {
    while !left.is_empty() {
        match write(pipe, left) {
            Ok(written) => *left = &left[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(Errno::EPIPE) => return Ok(false),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    Ok(true)
}
