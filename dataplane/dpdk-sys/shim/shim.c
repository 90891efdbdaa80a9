/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <rte_log.h>
#include <rte_prefetch.h>

#define HF_BURST 32
_Static_assert(HF_XSTAT_NAME == RTE_ETH_XSTATS_NAME_SIZE, "names of counters are copied whole");

static hf_log_sink log_sink;

int hf_errno(void)
{
	return rte_errno;
}

uint32_t hf_lcore(void)
{
	return rte_lcore_id();
}

static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	int level = rte_log_cur_msg_loglevel();

	(void)cookie;
	log_sink(level < 0 ? (uint32_t)RTE_LOG_DEBUG : (uint32_t)level, text, len);
	return (ssize_t)len;
}

int hf_log_to(hf_log_sink sink)
{
	cookie_io_functions_t functions = { .write = log_write };
	FILE *stream;

	log_sink = sink;
	stream = fopencookie(NULL, "w", functions);
	if (stream == NULL)
		return -1;
	/* A line is handed over as it is written, with the level it was written at. */
	setvbuf(stream, NULL, _IOLBF, 1024);
	return rte_openlog_stream(stream);
}

/* The levels of libbpf and libxdp are the same: 0 warning, 1 information, 2 debugging. */
static int xdp_print(int level, const char *format, va_list arguments)
{
	char text[512];
	int len = vsnprintf(text, sizeof(text), format, arguments);

	if (len > 0 && log_sink != NULL)
		log_sink(level == 0 ? RTE_LOG_NOTICE : RTE_LOG_DEBUG, text,
			 (size_t)len < sizeof(text) ? (size_t)len : sizeof(text) - 1);
	return len;
}

static void redirect_print(const char *library, const char *setter)
{
	typedef int (*print)(int, const char *, va_list);
	void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
	print (*set)(print);

	if (handle == NULL)
		return;
	*(void **)&set = dlsym(handle, setter);
	if (set != NULL)
		set(xdp_print);
	dlclose(handle);
}

void hf_log_of_xdp(void)
{
	redirect_print("libbpf.so.1", "libbpf_set_print");
	redirect_print("libbpf.so.0", "libbpf_set_print");
	redirect_print("libxdp.so.1", "libxdp_set_print");
}

struct rte_mempool *hf_pool_create(const char *name, uint32_t count, uint32_t cache, uint16_t data_room,
				   int socket)
{
	return rte_pktmbuf_pool_create(name, count, cache, 0, data_room + RTE_PKTMBUF_HEADROOM, socket);
}

uint32_t hf_pool_available(const struct rte_mempool *pool)
{
	/* rte_mempool_avail_count() adds up the caches of all logical cores, a line of memory each, most of them in the
	 * same few sets of the processor's caches. What lies in another core's cannot be had by this one. */
	const struct rte_mempool_cache *own =
		rte_mempool_default_cache((struct rte_mempool *)(uintptr_t)pool, rte_lcore_id());
	unsigned int count = rte_mempool_get_ops(pool->ops_index)->get_count(pool) + (own == NULL ? 0 : own->len);

	/* Both may change in between. */
	return count < pool->size ? count : pool->size;
}

static inline void frame_of(struct hf_frame *frame, struct rte_mbuf *mbuf)
{
	frame->mbuf = mbuf;
	frame->data = rte_pktmbuf_mtod(mbuf, uint8_t *);
	frame->len = mbuf->data_len;
}

static inline void set_len(struct rte_mbuf *mbuf, uint16_t len)
{
	mbuf->data_len = len;
	mbuf->pkt_len = len;
}

int hf_alloc_bulk(struct rte_mempool *pool, struct hf_frame *out, uint32_t count, uint16_t len)
{
	struct rte_mbuf *mbufs[HF_BURST];
	uint32_t i;

	if (count > HF_BURST || rte_pktmbuf_alloc_bulk(pool, mbufs, count) != 0)
		return 0;
	for (i = 0; i < count; i++) {
		set_len(mbufs[i], len);
		frame_of(&out[i], mbufs[i]);
	}
	return 1;
}

int hf_alloc(struct rte_mempool *pool, struct hf_frame *out, uint16_t len)
{
	struct rte_mbuf *mbuf = rte_pktmbuf_alloc(pool);

	if (mbuf == NULL)
		return 0;
	set_len(mbuf, len);
	frame_of(out, mbuf);
	return 1;
}

uint8_t *hf_data(struct rte_mbuf *mbuf)
{
	return rte_pktmbuf_mtod(mbuf, uint8_t *);
}

uint32_t hf_room(const struct rte_mbuf *mbuf)
{
	return (uint32_t)mbuf->buf_len - mbuf->data_off;
}

void hf_set_len(struct rte_mbuf *mbuf, uint16_t len)
{
	set_len(mbuf, len);
}

void hf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

void hf_free_bulk(struct rte_mbuf **mbufs, uint32_t count)
{
	rte_pktmbuf_free_bulk(mbufs, count);
}

uint32_t hf_rx_burst(uint16_t port, uint16_t queue, struct hf_frame *out, uint16_t max, uint64_t *oversized)
{
	struct rte_mbuf *mbufs[HF_BURST];
	uint16_t got, i;
	uint32_t kept = 0;

	got = rte_eth_rx_burst(port, queue, mbufs, max < HF_BURST ? max : HF_BURST);
	for (i = 0; i < got; i++)
		rte_prefetch0(rte_pktmbuf_mtod(mbufs[i], void *));
	for (i = 0; i < got; i++) {
		if (unlikely(mbufs[i]->nb_segs > 1) && rte_pktmbuf_linearize(mbufs[i]) != 0) {
			rte_pktmbuf_free(mbufs[i]);
			(*oversized)++;
			continue;
		}
		frame_of(&out[kept++], mbufs[i]);
	}
	return kept;
}

uint32_t hf_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

int hf_link(uint16_t port, struct hf_link *out)
{
	struct rte_eth_link link;
	int fault;

	memset(&link, 0, sizeof(link));
	fault = rte_eth_link_get_nowait(port, &link);
	if (fault != 0)
		return fault;
	out->speed_mbit_s = link.link_speed;
	out->up = link.link_status == RTE_ETH_LINK_UP;
	out->full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return 0;
}

int hf_port_info(uint16_t port, struct hf_port_info *out)
{
	struct rte_eth_dev_info info;
	int fault;

	memset(&info, 0, sizeof(info));
	fault = rte_eth_dev_info_get(port, &info);
	if (fault != 0)
		return fault;
	out->rx_capabilities = info.rx_offload_capa;
	out->tx_capabilities = info.tx_offload_capa;
	out->max_rx_frame = info.max_rx_pktlen;
	out->max_rx_queues = info.max_rx_queues;
	out->max_tx_queues = info.max_tx_queues;
	out->min_mtu = info.min_mtu;
	out->max_mtu = info.max_mtu;
	out->driver = info.driver_name;
	return 0;
}

int hf_port_configure(uint16_t port, struct hf_port_setup *setup, uint32_t *step)
{
	struct rte_eth_dev_info info;
	struct rte_eth_conf conf;
	struct rte_eth_rxconf rx;
	struct rte_eth_txconf tx;
	int socket = rte_eth_dev_socket_id(port);
	uint16_t queue;
	int fault;

	memset(&info, 0, sizeof(info));
	memset(&conf, 0, sizeof(conf));

	*step = HF_STEP_INFO;
	fault = rte_eth_dev_info_get(port, &info);
	if (fault != 0)
		return fault;

	*step = HF_STEP_CONFIGURE;
	conf.intr_conf.rxq = setup->rx_interrupt != 0;
	if (setup->mtu != 0)
		conf.rxmode.mtu = setup->mtu;
	fault = rte_eth_dev_configure(port, setup->rx_queues, setup->tx_queues, &conf);
	if (fault != 0)
		return fault;

	*step = HF_STEP_RINGS;
	fault = rte_eth_dev_adjust_nb_rx_tx_desc(port, &setup->rx_ring, &setup->tx_ring);
	if (fault != 0)
		return fault;

	*step = HF_STEP_RX_QUEUE;
	rx = info.default_rxconf;
	rx.offloads = conf.rxmode.offloads;
	for (queue = 0; queue < setup->rx_queues; queue++) {
		fault = rte_eth_rx_queue_setup(port, queue, setup->rx_ring, socket, &rx, setup->pool);
		if (fault != 0)
			return fault;
	}

	*step = HF_STEP_TX_QUEUE;
	tx = info.default_txconf;
	tx.offloads = conf.txmode.offloads;
	for (queue = 0; queue < setup->tx_queues; queue++) {
		fault = rte_eth_tx_queue_setup(port, queue, setup->tx_ring, socket, &tx);
		if (fault != 0)
			return fault;
	}
	return 0;
}

int hf_stats(uint16_t port, struct hf_stats *out)
{
	struct rte_eth_stats stats;
	int fault;

	memset(&stats, 0, sizeof(stats));
	fault = rte_eth_stats_get(port, &stats);
	if (fault != 0)
		return fault;
	out->rx_frames = stats.ipackets;
	out->tx_frames = stats.opackets;
	out->rx_bytes = stats.ibytes;
	out->tx_bytes = stats.obytes;
	out->rx_missed = stats.imissed;
	out->rx_errors = stats.ierrors;
	out->rx_no_buffer = stats.rx_nombuf;
	out->tx_errors = stats.oerrors;
	return 0;
}

int hf_mac(uint16_t port, uint8_t out[6])
{
	struct rte_ether_addr address;
	int fault = rte_eth_macaddr_get(port, &address);

	if (fault == 0)
		memcpy(out, address.addr_bytes, 6);
	return fault;
}

int hf_xstats(uint16_t port, struct hf_xstat *out, uint32_t max)
{
	struct rte_eth_xstat *values = NULL;
	struct rte_eth_xstat_name *names = NULL;
	int count, named, valued, i, filled = -ENOMEM;

	count = rte_eth_xstats_get_names(port, NULL, 0);
	if (count <= 0)
		return count;
	values = calloc((size_t)count, sizeof(*values));
	names = calloc((size_t)count, sizeof(*names));
	if (values == NULL || names == NULL)
		goto done;
	named = rte_eth_xstats_get_names(port, names, (unsigned int)count);
	valued = rte_eth_xstats_get(port, values, (unsigned int)count);
	filled = named < 0 ? named : valued < 0 ? valued : 0;
	if (filled < 0 || named > count || valued > count)
		goto done;
	for (i = 0; i < valued && (uint32_t)filled < max; i++) {
		if (values[i].id >= (uint64_t)named)
			continue;
		memcpy(out[filled].name, names[values[i].id].name, HF_XSTAT_NAME);
		out[filled].name[HF_XSTAT_NAME - 1] = 0;
		out[filled].value = values[i].value;
		filled++;
	}
done:
	free(values);
	free(names);
	return filled;
}
