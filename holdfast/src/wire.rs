//! A DPDK port as a wire of the dataplane.

use holdfast_dataplane::frame::{Frame, Wire};
use holdfast_dpdk::{Mbuf, Pool, RxQueue, TxQueue};
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// A frame in an mbuf.
pub(crate) struct DpdkFrame(Mbuf);

impl Frame for DpdkFrame {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

/// One queue pair of a DPDK port, on one polling core.
pub(crate) struct DpdkWire {
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    pub(crate) pool: Pool,
    pub(crate) mtu: u16,
    pub(crate) mac: [u8; 6],
    /// The burst on its way to the port; room for a burst, so that it never grows.
    pub(crate) outgoing: VecDeque<Mbuf>,
}

impl Wire for DpdkWire {
    type Frame = DpdkFrame;

    fn alloc(&mut self, len: usize) -> Option<DpdkFrame> {
        self.pool.alloc(len).map(DpdkFrame)
    }

    fn rx_burst(&mut self, out: &mut Vec<DpdkFrame>, max: usize) -> usize {
        self.rx.burst_into(&mut Frames(out), max)
    }

    fn tx_burst(&mut self, frames: &mut VecDeque<DpdkFrame>, max: usize) -> usize {
        let burst = max.min(holdfast_dpdk::BURST).min(frames.len());
        self.outgoing.extend(frames.drain(..burst).map(|frame| frame.0));
        let sent = self.tx.burst(&mut self.outgoing, burst);
        // What the port had no room for goes back to the front, in order (OC-2).
        while let Some(frame) = self.outgoing.pop_back() {
            frames.push_front(DpdkFrame(frame));
        }
        sent
    }

    fn flush(&mut self) {
        // The drivers in use send a burst when it is handed to them.
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn readable_fd(&self) -> Option<RawFd> {
        self.rx.interrupt_fd()
    }

    fn free_frames(&self) -> usize {
        self.pool.free_frames()
    }
}

/// Takes mbufs as frames.
struct Frames<'a>(&'a mut Vec<DpdkFrame>);

impl Extend<Mbuf> for Frames<'_> {
    fn extend<T: IntoIterator<Item = Mbuf>>(&mut self, mbufs: T) {
        self.0.extend(mbufs.into_iter().map(DpdkFrame));
    }
}
