//! DPDK for real: ports on TAP, packet sockets, AF_XDP and shared memory, processes that come and go.

mod ports;
mod process;
mod support;
