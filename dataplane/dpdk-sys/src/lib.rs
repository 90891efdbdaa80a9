//! Bindings to the distribution's DPDK with a burst-level C shim.
