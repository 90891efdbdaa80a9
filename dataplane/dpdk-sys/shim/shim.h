/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What of DPDK cannot be bound directly: static inline functions, macros, and structures whose
 * layout in C differs between the supported versions (22.11 and 24.11).
 *
 * Packets cross this border by the burst, not one by one.
 */
#ifndef HOLDFAST_DPDK_SHIM_H
#define HOLDFAST_DPDK_SHIM_H

#include <stdint.h>
#include <rte_config.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* A frame that lies in one piece: the buffer, its first byte, its length. */
struct hf_frame {
	struct rte_mbuf *mbuf;
	uint8_t *data;
	uint32_t len;
};

/* One line (or part of one) of DPDK's log; level is one of RTE_LOG_*. Called on any thread. */
typedef void (*hf_log_sink)(uint32_t level, const char *text, size_t len);

struct hf_link {
	uint32_t speed_mbit_s;
	uint32_t up;
	uint32_t full_duplex;
};

/* Limits that macros hold. */
static const uint32_t HF_MBUF_HEADROOM = RTE_PKTMBUF_HEADROOM;
static const uint32_t HF_MBUF_DEFAULT_CACHE_MAX = RTE_MEMPOOL_CACHE_MAX_SIZE;
static const uint32_t HF_MAX_ETHPORTS = RTE_MAX_ETHPORTS;
static const uint64_t HF_TX_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t HF_TX_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t HF_TX_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t HF_TX_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t HF_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t HF_RX_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t HF_RX_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t HF_RX_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t HF_RX_TCP_LRO = RTE_ETH_RX_OFFLOAD_TCP_LRO;
static const uint64_t HF_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;

/* rte_errno of the calling thread. */
int hf_errno(void);

/* The logical core of the calling thread, or UINT32_MAX. */
uint32_t hf_lcore(void);

/* Sends the log to `sink` from now on; 0, or -1 when there is no memory for it. */
int hf_log_to(hf_log_sink sink);

/*
 * Sends what the libraries of AF_XDP print (libbpf, libxdp) to the same sink instead of standard error,
 * when their driver has loaded them.
 */
void hf_log_of_xdp(void);

/* A pool of `count` single buffers of `data_room` bytes behind the headroom; NULL with rte_errno. */
struct rte_mempool *hf_pool_create(const char *name, uint32_t count, uint32_t cache, uint16_t data_room,
				   int socket);
uint32_t hf_pool_available(const struct rte_mempool *pool);

/* Fills `out` with frames of `len` bytes of undefined content: all `count` of them (1), or none (0). */
int hf_alloc_bulk(struct rte_mempool *pool, struct hf_frame *out, uint32_t count, uint16_t len);
/* Allocates one; 1 or 0. */
int hf_alloc(struct rte_mempool *pool, struct hf_frame *out, uint16_t len);
/* Where the bytes of a frame begin. */
uint8_t *hf_data(struct rte_mbuf *mbuf);
/* Bytes that a frame may grow to in place. */
uint32_t hf_room(const struct rte_mbuf *mbuf);
/* Sets the length of a frame in one piece; the caller has checked it against hf_room. */
void hf_set_len(struct rte_mbuf *mbuf, uint16_t len);
void hf_free(struct rte_mbuf *mbuf);
void hf_free_bulk(struct rte_mbuf **mbufs, uint32_t count);

/*
 * Receives at most `max` (and 32) frames, each made one piece and its first line prefetched. Frames
 * that came in more pieces than fit the first buffer are freed and added to `*oversized`.
 */
uint32_t hf_rx_burst(uint16_t port, uint16_t queue, struct hf_frame *out, uint16_t max, uint64_t *oversized);
/* Hands over the first frames of `mbufs`; returns how many the port took. */
uint32_t hf_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);

/* What a port can do, of the much larger struct rte_eth_dev_info. */
struct hf_port_info {
	uint64_t rx_capabilities;
	uint64_t tx_capabilities;
	uint32_t max_rx_frame;
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t min_mtu;
	uint16_t max_mtu;
	/* Name of the driver; it lives as long as the process. */
	const char *driver;
};

/* What is asked of a port. The ring sizes are adjusted to what the port takes. */
struct hf_port_setup {
	struct rte_mempool *pool;
	uint16_t rx_queues;
	uint16_t tx_queues;
	uint16_t rx_ring;
	uint16_t tx_ring;
	/* 0: leave it to the driver. */
	uint16_t mtu;
	/* Not 0: ask for an event descriptor a receive queue. */
	uint16_t rx_interrupt;
};

/* Which step of hf_port_configure failed. */
static const uint32_t HF_STEP_INFO = 1;
static const uint32_t HF_STEP_CONFIGURE = 2;
static const uint32_t HF_STEP_RINGS = 3;
static const uint32_t HF_STEP_RX_QUEUE = 4;
static const uint32_t HF_STEP_TX_QUEUE = 5;

struct hf_stats {
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t rx_bytes;
	uint64_t tx_bytes;
	uint64_t rx_missed;
	uint64_t rx_errors;
	uint64_t rx_no_buffer;
	uint64_t tx_errors;
};

#define HF_XSTAT_NAME 64
struct hf_xstat {
	char name[HF_XSTAT_NAME];
	uint64_t value;
};

/* These four answer 0 or a negative errno. */
int hf_link(uint16_t port, struct hf_link *out);
int hf_port_info(uint16_t port, struct hf_port_info *out);
int hf_port_configure(uint16_t port, struct hf_port_setup *setup, uint32_t *step);
int hf_stats(uint16_t port, struct hf_stats *out);
int hf_mac(uint16_t port, uint8_t out[6]);
/* Fills at most `max` of the driver's own counters; how many, or a negative errno. */
int hf_xstats(uint16_t port, struct hf_xstat *out, uint32_t max);

#endif
