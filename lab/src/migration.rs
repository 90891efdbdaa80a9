//! QEMU's own migration of a running guest, so that Holdfast can be measured beside it.

use crate::guest::Guest;
use crate::monitor::{Monitor, MonitorError};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// QEMU tells the end of a migration to who asks.
const LOOK: Duration = Duration::from_millis(10);
/// More bytes a second than any link has: by itself QEMU keeps to a gigabit.
const UNBOUNDED: u64 = 1 << 40;

/// A guest could not be migrated.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// A monitor does not answer, or refuses.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// QEMU gave up.
    #[error("QEMU's migration of {guest} to {address} ended as {status}: {reason}")]
    Failed {
        /// Whose.
        guest: String,
        /// Where to.
        address: SocketAddr,
        /// QEMU's word.
        status: String,
        /// Its reason, as far as it has one.
        reason: String,
    },
    /// It takes too long.
    #[error("QEMU's migration of {guest} to {address} is not done after {seconds} s; it is {status}")]
    Slow {
        /// Whose.
        guest: String,
        /// Where to.
        address: SocketAddr,
        /// How long it was awaited.
        seconds: u64,
        /// What both said at last.
        status: String,
    },
    /// QEMU tells its figures in another way.
    #[error("QEMU's figures of a migration lack {name}: its version differs from those that are known")]
    Figures {
        /// What was looked for.
        name: &'static str,
    },
}

/// What QEMU says of a migration that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// From the command to the end, as the source counts it: the target may have something to do yet.
    pub took: Duration,
    /// Pages that were sent, and such of zeros that were only named; a page that was written again counts again.
    pub pages: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes that were sent.
    pub wire_bytes: u64,
}

impl Migrated {
    fn read(told: &Value) -> Result<Self, MigrationError> {
        let figure = |value: &Value, name| value.as_u64().ok_or(MigrationError::Figures { name });
        let ram = &told["ram"];
        Ok(Self {
            took: Duration::from_millis(figure(&told["total-time"], "total-time")?),
            pages: figure(&ram["normal"], "normal")? + figure(&ram["duplicate"], "duplicate")?,
            page_bytes: figure(&ram["page-size"], "page-size")?,
            wire_bytes: figure(&ram["transferred"], "transferred")?,
        })
    }
}

/// Moves a running guest to a QEMU that waits for one, at that address of its host, as fast as the link lets it;
/// returns when it runs there.
///
/// # Errors
/// When one of the two refuses or gives up, or it takes longer than `patience`.
pub fn migrate(
    source: &Guest,
    target: &Guest,
    address: SocketAddr,
    patience: Duration,
) -> Result<Migrated, MigrationError> {
    let uri = json!({"uri": format!("tcp:{address}")});
    let (mut from, mut to) = (source.monitor()?, target.monitor()?);
    to.execute("migrate-incoming", uri.clone())?;
    from.execute("migrate-set-parameters", json!({"max-bandwidth": UNBOUNDED}))?;
    from.execute("migrate", uri)?;
    let (guest, until) = (source.spec.name.clone(), Instant::now() + patience);
    let mut sent = None;
    loop {
        let status = match sent {
            None => {
                let told = from.execute("query-migrate", Value::Null)?;
                let status = word(&told);
                match &*status {
                    "completed" => sent = Some(Migrated::read(&told)?),
                    "failed" | "cancelled" => {
                        let reason = told["error-desc"].as_str().unwrap_or("it gives no reason").to_owned();
                        return Err(MigrationError::Failed { guest, address, status, reason });
                    }
                    _ => {}
                }
                status
            }
            Some(done) if is_running(&mut to)? => return Ok(done),
            Some(_) => "not running at its target yet".to_owned(),
        };
        if Instant::now() > until {
            return Err(MigrationError::Slow { guest, address, seconds: patience.as_secs(), status });
        }
        thread::sleep(LOOK);
    }
}

fn word(told: &Value) -> String {
    told["status"].as_str().unwrap_or("unknown").to_owned()
}

fn is_running(monitor: &mut Monitor) -> Result<bool, MonitorError> {
    Ok(word(&monitor.execute("query-status", Value::Null)?) == "running")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_qemu_tells_them_and_what_is_missing_is_named() {
        let mut told = json!({"status": "completed", "total-time": 1234, "downtime": 20, "setup-time": 3,
            "ram": {"total": 537_206_784, "transferred": 270_000_000, "normal": 65_000, "duplicate": 66_000,
                    "normal-bytes": 266_240_000, "page-size": 4096, "mbps": 1750.0}});
        let expected = Migrated {
            took: Duration::from_millis(1234),
            pages: 131_000,
            page_bytes: 4096,
            wire_bytes: 270_000_000,
        };
        assert_eq!(Migrated::read(&told).expect("all is there"), expected);
        told["ram"] = json!({"normal": 1});
        assert!(Migrated::read(&told).expect_err("too little").to_string().contains("duplicate"));
    }
}
