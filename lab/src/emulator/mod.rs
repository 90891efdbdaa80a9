//! A wire between two interfaces: rate, delay, jitter, loss, duplication, reordering, corruption.
//!
//! The kernels at hand have no netem, so a program stands in for the cable. It takes the frames that
//! arrive at one interface and sends them by the other when their time has come, each direction by a
//! [`Profile`] of its own:
//!
//! ```text
//!              +-- Impairment: queue -> line (rate) -> loss, delay, ... -> due ---+
//!   left ->----'                                                                  '-->- right
//!   left -<----.                                                                  .--<- right
//!              +--- due <- loss, delay, ... <- line (rate) <- queue: Impairment --+
//! ```
//!
//! [`Impairment`] is a machine without I/O: frames and `now` go in, frames and a deadline come out.
//! What becomes of the n-th frame of a direction is a function of the seed and n alone, whatever the
//! time: the same seed has the same fate in store. [`Pump`] moves the frames, by two raw sockets, on
//! one thread; [`WireEmulator`] runs it as a process (`holdfast wire-emulator`) in a namespace.

mod fate;
mod impairment;
mod process;
mod profile;
mod pump;
mod socket;

pub use impairment::{Counters, Impairment};
pub use process::WireEmulator;
pub use profile::{Profile, ProfileError, Queue, WireSpec};
pub use pump::{DirectionReport, Pump, Report, serve};
