//! The core loop over real vhost-user devices: the frontend of the `vhost` crate plays QEMU, a driver
//! simulator plays the guest, the wire is in memory.

#[expect(dead_code, reason = "shared with the tests of the rings, which use all of it")]
#[path = "../../../vhost-user/tests/driver/mod.rs"]
mod driver;

mod carried;
mod escrow;
mod host;
mod machine;
mod offloads;
mod queues;
mod robustness;
