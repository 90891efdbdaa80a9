//! Whole devices over real sockets: the frontend of the `vhost` crate plays QEMU, a driver simulator
//! plays the guest, a thread plays the polling core and echoes every frame.

#[expect(dead_code, reason = "shared with the unit tests of the rings, which use all of it")]
#[path = "../driver/mod.rs"]
mod driver;

mod core;
mod faults;
mod machine;
mod messages;
mod migration;
mod qemu;
mod reconnect;
mod sequence;
