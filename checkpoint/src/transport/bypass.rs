//! The bypass: a port of this host's own to the other one, and the thread that runs it.
//!
//! All sessions of a host share one [`Bypass`]. Each link has a *lane* in it, which belongs to the link's
//! owner thread; the bypass's thread moves frames between lanes and port.
//!
//! ```text
//!   link's owner --- lane: urgent, bulk, orders ---> bypass's thread <--- frames ---> Nic
//!                <-- lane: records, news ----------- holdfast_bypass::Port
//! ```
//!
//! Between the threads are queues, each bounded by itself or by its sender, and eventfds; nobody waits for a lock.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod driver;
mod lane;
mod stall;

#[cfg(test)]
pub(super) use lane::pair;
pub(super) use lane::{Arrived, Lane, News};

use crate::keys::Identity;
use crate::protocol::MESSAGE_LIMIT;
use crate::transport::waker::Waker;
use crossbeam_channel::{Sender, bounded};
use driver::{Driver, LaneEnd};
use holdfast_bypass::{Counters, Port, Settings, SettingsError, Token};
use std::any::Any;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use thiserror::Error;

/// Lanes that may wait to be taken up.
const NEW_LANES: usize = 64;

/// The port, as the bypass's thread uses it; it belongs to that thread alone.
pub trait Nic: Send + 'static {
    /// Called once on the thread, before anything else; what it gives is dropped at the thread's end.
    fn begin(&mut self) -> Option<Box<dyn Any>> {
        None
    }

    /// The port's own station.
    fn mac(&self) -> [u8; 6];

    /// Shows each frame of a burst that came; how many. Never waits.
    fn receive(&mut self, take: &mut dyn FnMut(&[u8])) -> usize;

    /// Lets a frame of exactly `len` bytes be written, and sends it with the next flush; false when there is
    /// no room for it now.
    fn send(&mut self, len: usize, write: &mut dyn FnMut(&mut [u8])) -> bool;

    /// Hands over what was written; whether all of it went.
    fn flush(&mut self) -> bool;

    /// A descriptor that is readable once frames have come after [`Nic::arm`], if there is one.
    fn readable_fd(&self) -> Option<RawFd>;

    /// Called before the thread sleeps; it looks for frames once more after it.
    fn arm(&mut self) {}

    /// Called after it slept.
    fn disarm(&mut self) {}
}

/// Where the bypass goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BypassSettings {
    /// Address of the port.
    pub address: IpAddr,
    /// Address of the other host's port, on the same network.
    pub peer: IpAddr,
    /// Station of the other host's port, where it shall not be asked for.
    pub peer_mac: Option<[u8; 6]>,
    /// UDP port of both.
    pub udp_port: u16,
    /// Bytes of a packet.
    pub mtu: u16,
    /// Whether the thread keeps its processor also while nothing happens.
    pub poll: bool,
}

/// Why there is no bypass.
#[derive(Debug, Error)]
pub enum BypassError {
    /// The settings cannot be.
    #[error("{0}")]
    Settings(#[from] SettingsError),
    /// The host gives no thread or descriptor.
    #[error("{0}")]
    Host(#[from] io::Error),
}

struct Shared {
    lanes: Sender<LaneEnd>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    counters: Arc<Mutex<Counters>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A running bypass; its thread ends with the last handle.
#[derive(Clone)]
pub struct Bypass(Arc<Shared>);

impl fmt::Debug for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bypass")
    }
}

impl Bypass {
    /// Begins to run `nic`.
    ///
    /// # Errors
    /// When the settings cannot be, or the host gives no thread.
    pub fn start(nic: impl Nic, settings: &BypassSettings, identity: &Identity) -> Result<Self, BypassError> {
        let (dialling, accepting) = identity.configs();
        let port = Port::new(
            Settings {
                mac: nic.mac(),
                address: settings.address,
                peer: settings.peer,
                peer_mac: settings.peer_mac,
                udp_port: settings.udp_port,
                mtu: settings.mtu,
                record_limit: MESSAGE_LIMIT,
            },
            dialling,
            accepting,
            Instant::now(),
        )?;
        let waker = Arc::new(Waker::new()?);
        let (lanes, taken_up) = bounded(NEW_LANES);
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(Mutex::new(port.counters()));
        let driver = Driver::new(
            Box::new(nic),
            port,
            taken_up,
            Arc::clone(&waker),
            Arc::clone(&stop),
            Arc::clone(&counters),
            settings.poll,
        );
        let thread =
            thread::Builder::new().name("hf-bypass".to_owned()).spawn(move || driver.run()).map(Some)?;
        Ok(Self(Arc::new(Shared { lanes, waker, stop, counters, thread: Mutex::new(thread) })))
    }

    /// A lane for a session; `owner` is rung when there is news or a record.
    pub(super) fn lane(&self, token: Token, owner: Arc<Waker>) -> Option<Lane> {
        let (lane, end) = lane::pair(token, owner, Arc::clone(&self.0.waker));
        // The thread takes lanes up at every turn; when it is gone, so is the bypass.
        self.0.lanes.send(end).ok()?;
        self.0.waker.ring();
        Some(lane)
    }

    /// What happened at the port so far, as of a moment ago.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "of whoever looks; the port's thread does not wait for it")]
    pub fn counters(&self) -> Counters {
        *self.0.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.ring();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A panic over there was reported when it happened.
        drop(thread.map(JoinHandle::join));
    }
}
