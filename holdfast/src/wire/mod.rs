//! What the dataplane's wires are in this program: DPDK ports, and interfaces of the kernel. The frames
//! of both lie in mbufs, so that the wires of one core may differ in kind.

mod dpdk;
mod kernel;

pub(crate) use dpdk::DpdkWire;
pub(crate) use kernel::KernelWire;

use holdfast_dataplane::frame::{Frame, Wire};
use holdfast_dpdk::Mbuf;

/// A wire of either kind.
pub(crate) type AnyWire = Box<dyn Wire<Frame = MbufFrame> + Send>;

/// A frame in an mbuf.
pub(crate) struct MbufFrame(Mbuf);

impl Frame for MbufFrame {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl AsMut<[u8]> for MbufFrame {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}
