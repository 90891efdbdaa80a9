//! The laboratory's own talk with a guest's QEMU, over a second monitor: to stop it, reset it or ask
//! for its state in tests, beside what Holdfast does on the first.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_LINE: u64 = 1 << 20;

/// QEMU did not do it.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// The connection failed.
    #[error("monitor {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// QEMU answered with an error.
    #[error("QEMU refuses {command}: {answer}")]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        answer: String,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Monitor {
    path: PathBuf,
    reader: BufReader<UnixStream>,
    events: Vec<String>,
}

/// Events kept until they are asked for, at most.
const MOST_EVENTS: usize = 10_000;

impl Monitor {
    /// Connects and negotiates.
    pub fn connect(path: &Path) -> Result<Self, MonitorError> {
        let failed = |source| MonitorError::Io { path: path.into(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut monitor = Self { path: path.into(), reader: BufReader::new(stream), events: Vec::new() };
        monitor.line()?;
        monitor.execute("qmp_capabilities", Value::Null)?;
        Ok(monitor)
    }

    /// Executes a command and gives what it returns; see [`Monitor::events`] for what comes in between.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        let mut message = json!({ "execute": command });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        self.reader
            .get_mut()
            .write_all(format!("{message}\n").as_bytes())
            .map_err(|source| MonitorError::Io { path: self.path.clone(), source })?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(MonitorError::Refused { command: command.into(), answer: error.to_string() });
            }
            if let Some(name) = answer["event"].as_str().filter(|_| self.events.len() < MOST_EVENTS) {
                self.events.push(name.to_owned());
            }
        }
    }

    /// Names of the events that QEMU has reported since they were asked for last.
    pub fn events(&mut self) -> Result<Vec<String>, MonitorError> {
        // What was reported before is read before the answer.
        self.execute("query-status", Value::Null)?;
        Ok(std::mem::take(&mut self.events))
    }

    fn line(&mut self) -> Result<Value, MonitorError> {
        let failed = |source| MonitorError::Io { path: self.path.clone(), source };
        let mut line = String::new();
        self.reader.by_ref().take(LONGEST_LINE).read_line(&mut line).map_err(failed)?;
        if line.is_empty() {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(|error| failed(io::Error::other(error)))
    }
}
