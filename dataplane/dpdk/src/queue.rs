//! Receive and transmit queues: bursts of at most 32 frames, by `&mut self`, on one core at a time.
//!
//! The queues of a port share nothing with each other; a queue may be sent to its core once and is
//! then used there alone, which the missing `Sync` and the `&mut self` of a burst make sure of.
#![expect(unsafe_code, reason = "calls into DPDK")]

use crate::port::OpenPort;
use crate::{Errno, Mbuf, PortConfig};
use arrayvec::ArrayVec;
use holdfast_dpdk_sys as sys;
use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::os::fd::RawFd;
use std::sync::Arc;
use thiserror::Error;

/// Frames in a burst, at most.
pub const BURST: usize = 32;

/// An Ethernet header: less than that is no frame, and some drivers read beyond it.
const FRAME_MIN: usize = 14;

/// One receive queue of a port.
#[derive(Debug)]
pub struct RxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    interrupt: Option<RawFd>,
    oversized: u64,
    not_sync: PhantomData<Cell<()>>,
}

/// One transmit queue of a port.
#[derive(Debug)]
pub struct TxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    refused: u64,
    not_sync: PhantomData<Cell<()>>,
}

/// The driver could not switch the interrupt of a receive queue.
#[derive(Debug, Error)]
#[error("port {port}: the interrupt of receive queue {queue} cannot be switched: {errno}")]
pub struct InterruptError {
    /// Name of the port's device.
    pub port: String,
    /// Number of the queue.
    pub queue: u16,
    /// The error that the driver gave.
    pub errno: Errno,
}

impl RxQueue {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16, config: &PortConfig) -> Self {
        let interrupt = config.rx_interrupt.then(|| descriptor_of(&port, queue)).flatten();
        Self { port, queue, interrupt, oversized: 0, not_sync: PhantomData }
    }

    /// Name of the port's device.
    #[must_use]
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// Receives frames into what room `out` has left; how many. At most a burst; never waits; no
    /// allocation. About 36 ns a frame together with sending it (`tests/cost`, `net_null`, full bursts).
    #[inline]
    pub fn burst(&mut self, out: &mut ArrayVec<Mbuf, BURST>) -> usize {
        let max = out.remaining_capacity();
        self.receive(max, |frame| out.push(frame))
    }

    /// Like [`RxQueue::burst`], at most `max` (and 32) frames into any collection.
    #[inline]
    pub fn burst_into(&mut self, out: &mut impl Extend<Mbuf>, max: usize) -> usize {
        self.receive(max.min(BURST), |frame| out.extend(std::iter::once(frame)))
    }

    #[inline]
    fn receive(&mut self, max: usize, mut take: impl FnMut(Mbuf)) -> usize {
        if max == 0 {
            return 0;
        }
        let mut frames = [const { MaybeUninit::<sys::hf_frame>::uninit() }; BURST];
        let wanted = u16::try_from(max.min(BURST)).expect("at most a burst");
        // SAFETY: the port is started for as long as this queue lives; `&mut self` keeps every other
        // thread off the queue; `frames` has room for a burst.
        let got = unsafe {
            sys::hf_rx_burst(
                self.port.number(),
                self.queue,
                frames.as_mut_ptr().cast(),
                wanted,
                &raw mut self.oversized,
            )
        };
        let got = got as usize;
        for frame in &frames[..got] {
            // SAFETY: the first `got` frames are written, each names an mbuf in one piece that is ours,
            // and is taken once.
            take(unsafe { Mbuf::from_raw(frame.assume_init_read()) });
        }
        got
    }

    /// Frames dropped so far because they came in more pieces than fit one mbuf.
    #[must_use]
    pub const fn oversized(&self) -> u64 {
        self.oversized
    }

    /// A descriptor that is readable while frames wait, where the driver has one (`net_tap`, physical
    /// cards). It belongs to the port: poll it, never read or close it. Level or edge depends on the
    /// driver, so receive once more after [`RxQueue::arm`] before waiting.
    #[must_use]
    pub const fn interrupt_fd(&self) -> Option<RawFd> {
        self.interrupt
    }

    /// Asks the driver to make [`RxQueue::interrupt_fd`] readable when a frame arrives. Drivers whose
    /// descriptor always tells (`net_tap`) have nothing to switch.
    ///
    /// # Errors
    /// When the driver cannot.
    pub fn arm(&mut self) -> Result<(), InterruptError> {
        // SAFETY: the port is started, and the queue is used by this thread alone.
        self.switched(unsafe { sys::rte_eth_dev_rx_intr_enable(self.port.number(), self.queue) })
    }

    /// Ends what [`RxQueue::arm`] began, before polling goes on.
    ///
    /// # Errors
    /// When the driver cannot.
    pub fn disarm(&mut self) -> Result<(), InterruptError> {
        // SAFETY: as in `arm`.
        self.switched(unsafe { sys::rte_eth_dev_rx_intr_disable(self.port.number(), self.queue) })
    }

    fn switched(&self, returned: i32) -> Result<(), InterruptError> {
        match Errno::check(returned) {
            Ok(_) | Err(Errno(libc::ENOTSUP)) => Ok(()),
            Err(errno) => Err(InterruptError { port: self.port.name().to_owned(), queue: self.queue, errno }),
        }
    }
}

fn descriptor_of(port: &OpenPort, queue: u16) -> Option<RawFd> {
    // SAFETY: the port is started; a driver without interrupts answers -1.
    let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port.number(), queue) };
    (fd >= 0).then_some(fd)
}

impl TxQueue {
    pub(crate) const fn new(port: Arc<OpenPort>, queue: u16) -> Self {
        Self { port, queue, refused: 0, not_sync: PhantomData }
    }

    /// Name of the port's device.
    #[must_use]
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// Longest frame that the port takes.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        usize::from(self.port.frame_max)
    }

    /// Hands frames to the port from the front of `frames`, at most `max` (and 32); how many left the
    /// queue. Fewer means that the port is full for now. A frame that no port may be given, shorter
    /// than an Ethernet header or longer than [`TxQueue::frame_max`], leaves the queue too, is dropped
    /// and counted: it would block those behind it for good (RB-1).
    ///
    /// At most a burst; never waits; no allocation. Its cost is measured together with receiving.
    pub fn burst(&mut self, frames: &mut VecDeque<Mbuf>, max: usize) -> usize {
        let mut gone = 0;
        let frame_max = self.frame_max();
        let max = max.min(BURST);
        while gone < max {
            let mut raw: ArrayVec<*mut sys::rte_mbuf, BURST> = ArrayVec::new();
            let fits = |frame: &&Mbuf| (FRAME_MIN..=frame_max).contains(&frame.len());
            raw.extend(frames.iter().take(max - gone).take_while(fits).map(Mbuf::as_raw));
            if raw.is_empty() {
                // Nothing is left, or the first frame is one that does not fit.
                if frames.pop_front().is_none() {
                    break;
                }
                self.refused += 1;
                gone += 1;
                continue;
            }
            let offered = u16::try_from(raw.len()).expect("at most a burst");
            // SAFETY: the port is started for as long as this queue lives; `&mut self` keeps every
            // other thread off the queue; `raw` names `offered` mbufs that `frames` owns.
            let taken = unsafe { sys::hf_tx_burst(self.port.number(), self.queue, raw.as_mut_ptr(), offered) }
                as usize;
            // The port owns the first `taken` mbufs now.
            frames.drain(..taken).for_each(mem::forget);
            gone += taken;
            if taken < raw.len() {
                break;
            }
        }
        gone
    }

    /// Frames dropped so far because the port could not have sent them.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}
