//! Typed, checked configuration of DPDK: to EAL arguments, devices and a core map.
//!
//! ```text
//!   TOML --serde--> RawDpdk, RawCores, RawWire --check--> Dpdk, CoreMap, Wire
//!                   (unknown keys refused)     (all problems at once, each with its mend)
//!                                                 |
//!            huge pages that the host has free -- plan --> EAL arguments
//! ```
//!
//! Every text that ends up in an EAL or device argument is held to a short alphabet first, so that
//! no value can smuggle in a further argument.
//!
//! Pure: reads no file and asks no host.

mod cores;
mod dpdk;
mod memory;
mod problem;
mod wire;

pub use cores::{CoreMap, IdlePolicy, RawCores};
pub use dpdk::{Dpdk, LogLevel, RawDpdk};
pub use memory::{FreePages, HugePages, MemoryPlan, PageSize};
pub use problem::{Problem, Problems};
pub use wire::{MemifRole, RawWire, Wire, WireDevice, WireKind};

/// What of the configuration concerns DPDK, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// `[dpdk]`
    pub dpdk: Dpdk,
    /// `[cores]`
    pub cores: CoreMap,
    /// `[[wire]]`, in the order of the file.
    pub wires: Vec<Wire>,
}

/// Checks all three sections.
///
/// # Errors
/// Every problem found, not only the first. The operator is at fault.
pub fn check(dpdk: &RawDpdk, cores: &RawCores, wires: &[RawWire]) -> Result<Checked, Problems> {
    let mut problems = Problems::default();
    let wires = Wire::check_all(wires, &mut problems);
    let cores = CoreMap::check(cores, &mut problems);
    Wire::check_cores(&wires, &cores, &mut problems);
    let dpdk = Dpdk::check(dpdk, &wires, &mut problems);
    problems.or(Checked { dpdk, cores, wires })
}
