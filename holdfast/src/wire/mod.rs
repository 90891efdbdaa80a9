//! What the dataplane's wires are in this program: DPDK ports, and interfaces of the kernel. The frames
//! of both lie in mbufs, so that the wires of one core may differ in kind.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod dpdk;
mod kernel;

pub(crate) use dpdk::DpdkWire;
pub(crate) use kernel::KernelWire;

use holdfast_dataplane::frame::{Frame, Wire};
use holdfast_dpdk::Mbuf;

/// A wire of either kind.
pub(crate) type AnyWire = Box<dyn Wire<Frame = MbufFrame> + Send>;

/// A frame in an mbuf, which is marked when its checksums are known to be right.
pub(crate) struct MbufFrame {
    mbuf: Mbuf,
}

impl From<Mbuf> for MbufFrame {
    fn from(mbuf: Mbuf) -> Self {
        Self { mbuf }
    }
}

impl Frame for MbufFrame {
    fn bytes(&self) -> &[u8] {
        self.mbuf.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.mbuf.bytes_mut()
    }

    fn is_sound(&self) -> bool {
        self.mbuf.is_marked()
    }

    fn set_sound(&mut self) {
        self.mbuf.mark();
    }

    fn prefetch(&self) {
        self.mbuf.prefetch();
    }
}

impl AsMut<[u8]> for MbufFrame {
    fn as_mut(&mut self) -> &mut [u8] {
        self.mbuf.bytes_mut()
    }
}

/// DPDK as the tests of this program share it: it starts once in a process.
#[cfg(test)]
pub(crate) fn eal_of_tests() -> holdfast_dpdk::Eal {
    static EAL: std::sync::OnceLock<holdfast_dpdk::Eal> = std::sync::OnceLock::new();
    *EAL.get_or_init(|| {
        let arguments = ["--no-huge", "--no-shconf", "-m160", "--no-pci", "--no-telemetry"];
        holdfast_dpdk::Eal::init(&arguments.map(str::to_owned)).unwrap_or_else(|fault| panic!("{fault}"))
    })
}
