//! A DPDK port as a wire of the dataplane.

use super::MbufFrame;
use arrayvec::ArrayVec;
use holdfast_dataplane::frame::Wire;
use holdfast_dpdk::{BURST, Mbuf, Pool, RxQueue, TxQueue};
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// One queue pair of a DPDK port, on one polling core.
pub(crate) struct DpdkWire {
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    pub(crate) pool: Pool,
    pub(crate) mtu: u16,
    pub(crate) mac: [u8; 6],
    /// Taken from the pool in bursts, for frames to come.
    pub(crate) spare: ArrayVec<Mbuf, BURST>,
    /// The burst on its way to the port; room for a burst, so that it never grows.
    pub(crate) outgoing: VecDeque<Mbuf>,
}

impl Wire for DpdkWire {
    type Frame = MbufFrame;

    fn alloc(&mut self, len: usize) -> Option<MbufFrame> {
        if self.spare.is_empty() {
            // The next ones are mostly as long.
            if !self.pool.alloc_burst(BURST, len, &mut self.spare) {
                // Fewer than a burst are left.
                return self.pool.alloc(len).map(MbufFrame::from);
            }
            self.spare.iter().for_each(Mbuf::prefetch_to_write);
        }
        let next = self.spare.last_mut()?;
        let fits = next.len() == len || next.set_len(len);
        if fits { self.spare.pop().map(MbufFrame::from) } else { None }
    }

    fn rx_burst(&mut self, out: &mut Vec<MbufFrame>, max: usize) -> usize {
        self.rx.burst_into(&mut Frames(out), max)
    }

    fn tx_burst(&mut self, frames: &mut VecDeque<MbufFrame>, max: usize) -> usize {
        let burst = max.min(BURST).min(frames.len());
        self.outgoing.extend(frames.drain(..burst).map(|frame| frame.mbuf));
        let sent = self.tx.burst(&mut self.outgoing, burst);
        // What the port had no room for goes back to the front, in order (OC-2).
        while let Some(frame) = self.outgoing.pop_back() {
            frames.push_front(frame.into());
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
        self.pool.free_frames() + self.spare.len()
    }

    fn lost(&self) -> u64 {
        self.rx.oversized() + self.tx.refused()
    }
}

/// Takes mbufs as frames.
struct Frames<'a>(&'a mut Vec<MbufFrame>);

impl Extend<Mbuf> for Frames<'_> {
    fn extend<T: IntoIterator<Item = Mbuf>>(&mut self, mbufs: T) {
        self.0.extend(mbufs.into_iter().map(MbufFrame::from));
    }
}
