//! Safe layer over DPDK: EAL, pools, owned mbufs, ports, queues.
