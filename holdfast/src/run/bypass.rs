//! The bypass of the replication link, on a wire of its own.

use super::dataplane::Dataplane;
use crate::cli::Failure;
use crate::config::{Bypass as Settings, Config};
use crate::wire::{AnyWire, MbufFrame};
use holdfast_checkpoint::keys::Identity;
use holdfast_checkpoint::transport::{Bypass, BypassSettings, Nic};
use holdfast_dataplane::frame::{Frame, Wire};
use holdfast_dpdk::{BURST, Eal, RegisteredThread};
use holdfast_dpdk_config::IdlePolicy;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// Frames that wait for the wire, at most.
const GOING: usize = 2 * BURST;

/// Starts the bypass that the configuration asks for, if it does.
pub(super) fn start(
    config: &Config,
    dataplane: &mut Dataplane,
    identity: Option<&Identity>,
) -> Result<Option<Bypass>, Failure> {
    let settings = config.replication.as_ref().and_then(|replication| replication.bypass.as_ref());
    let (Some(settings), Some(identity), Some(wire)) = (settings, identity, dataplane.take_bypass()) else {
        return Ok(None);
    };
    let Settings { address, peer, peer_mac, port, core, .. } = *settings;
    let link = BypassSettings {
        address,
        peer,
        peer_mac,
        udp_port: port,
        mtu: wire.mtu(),
        // A thread without a processor of its own would keep others from theirs.
        poll: core.is_some() && config.cores.idle == IdlePolicy::Poll,
    };
    let nic = BypassNic {
        eal: dataplane.eal,
        core,
        wire,
        came: Vec::with_capacity(BURST),
        going: VecDeque::with_capacity(GOING),
    };
    Bypass::start(nic, &link, identity)
        .map(Some)
        .map_err(|fault| Failure::Failed(format!("replication.bypass: {fault}")))
}

/// A wire as the bypass's thread uses it.
struct BypassNic {
    eal: Eal,
    core: Option<u32>,
    wire: AnyWire,
    came: Vec<MbufFrame>,
    going: VecDeque<MbufFrame>,
}

impl Nic for BypassNic {
    fn begin(&mut self) -> Option<Box<dyn Any>> {
        if let Some(core) = self.core {
            let mut set = CpuSet::new();
            let pinned = set.set(core as usize).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
            if let Err(fault) = pinned {
                tracing::error!("the bypass cannot run on processor {core}: {fault}");
            }
        }
        let registered = RegisteredThread::new(self.eal);
        if let Err(fault) = &registered {
            tracing::warn!("the bypass has no cache of its own: {fault}");
        }
        Some(Box::new(registered))
    }

    fn mac(&self) -> [u8; 6] {
        self.wire.mac()
    }

    fn receive(&mut self, take: &mut dyn FnMut(&[u8])) -> usize {
        let came = self.wire.rx_burst(&mut self.came, BURST);
        self.came.drain(..).for_each(|frame| take(frame.bytes()));
        came
    }

    fn send(&mut self, len: usize, write: &mut dyn FnMut(&mut [u8])) -> bool {
        if self.going.len() >= GOING {
            self.flush();
        }
        if self.going.len() >= GOING {
            return false;
        }
        let Some(mut frame) = self.wire.alloc(len) else { return false };
        write(frame.bytes_mut());
        self.going.push_back(frame);
        true
    }

    fn flush(&mut self) -> bool {
        while !self.going.is_empty() && self.wire.tx_burst(&mut self.going, BURST) > 0 {}
        self.wire.flush();
        self.going.is_empty()
    }

    fn readable_fd(&self) -> Option<RawFd> {
        self.wire.readable_fd()
    }

    fn arm(&mut self) {
        self.wire.arm();
    }

    fn disarm(&mut self) {
        self.wire.disarm();
    }
}

#[cfg(test)]
mod tests;
