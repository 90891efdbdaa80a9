// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * "holdfast": TCP congestion control of a guest whose ACKs Holdfast gives.
 *
 * The other end of such a flow is not the network but Holdfast's escrow, on the same host: a ring of memory that
 * loses nothing, and that keeps back what it has no room for. What there is room for is said by the window in
 * each ACK. Congestion of the network is the affair of Holdfast's own sender behind the escrow. So a flow that
 * is held this way (OPEN) does nothing but what the window says:
 *
 *   window       the congestion window is the offered window, in segments, and the initial ten on top, which
 *                windows that are not whole segments need. It is set with every ACK, which brings the window.
 *   slow start   none: the window is open from the connection's first segment on that follows one of the
 *                client's. (A server that speaks first sends ten segments, and opens with their first ACK.)
 *   idle         none: where the kernel cuts the window after a pause (RFC 2861), the first segment after the
 *                pause (CA_EVENT_TX_START) opens it again, before the second one is looked at.
 *   pacing       none of its own. The kernel's limit of what a socket may have in queues below TCP follows from
 *                window and round trip; with the whole window open it never keeps the escrow waiting.
 *   fairness     by the windows: Holdfast gives each flow its share of the escrow. A full local queue makes the
 *                kernel halve a flow (CWR), as with every congestion control; it opens when that is over.
 *   back off     when the window shrinks, by the same rule as it grows.
 *
 * Measured, with an emulated guest (tests/guests/idle.rs, bench bulk): the open window and no slow start hand 1 MiB
 * over 3 to 6 ms after a request from idle, where Cubic needs 4 to 7 ms; no cut after idle and no pacing are in that
 * time. Nothing was gained by less than the whole window: with 1 MiB at most, bulk was 0.86 to 0.98 of Cubic's, with the
 * whole one 0.92 to 1.02. Fairness is not better or worse than with Cubic in the whole: it is the escrow's.
 *
 * Not every flow is held. Some have options that Holdfast passes through, some are excepted by its operator,
 * some do not go by it at all (other interfaces, loopback). A window opened to the whole network would harm it,
 * so a flow is OPEN only while all of this is true, and otherwise PLAIN, which is the kernel's Reno:
 *
 *   port         its segments come in by an interface behind which Holdfast has said, within seconds, that it
 *                speculates (`ports`, kept by the agent as long as it lives);
 *   ACK in time  forged ACKs come at once, those of clients after the commit. In any two epochs and eight timed
 *                ACKs, more than one in eight comes within `fast_us`: three quarters of what output waits for its
 *                commit at the least, which Holdfast measures on this guest's clock and says, and 4 ms at most. No
 *                constant does: what is said last before a pause waits only from the pause's end to the commit,
 *                and how long that is, is the host's affair. (A Holdfast that does not say it: a quarter of an
 *                epoch, 2 ms at least.) Until so much was seen a flow is taken at its port's word. (In an emulated
 *                guest on 2 cores that others used as well, of 20,000 ACKs of flows that are not held 10 came in
 *                time, epochs fixed and adaptive. Of forged ones in bulk half did, as stalls of more than 5 ms made a
 *                tenth to a third late: held flows were left some twenty times in 48 MiB, and opened again.);
 *   no loss      no segment is lost on the way to the escrow, and no forged ACK speaks of congestion: whoever
 *                sees a loss or ECE sees the network.
 *
 * A flow that was OPEN goes on from ten segments, as a new one; one that has halved for a loss, from half of what
 * was on its way (RFC 5681 §3.1). A PLAIN flow is OPEN again when half of its ACKs of two epochs came in time, or
 * when the kernel finds that there was no loss after all.
 */
#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "Dual MIT/GPL";

#define INITIAL_WINDOW 10
#define MAX_PORTS 32
#define MAX_NAMED 64
#define MAX_DEPTH 64
#define LEAST_SEEN 8

/* What the agent says; src/control.rs has the same. */
struct settings {
	__u32 generation; /* counts the changes: each flow begins anew after one */
	__u32 port_count; /* none: all flows are PLAIN */
	__u32 fast_us; /* an ACK that comes within this was forged */
	__u32 proof_us; /* two epochs: a flow's ACKs are judged over so long at the least */
	__u64 valid_until_us; /* of the monotonic clock; an agent that lives extends it */
	__s32 ports[MAX_PORTS]; /* indices of interfaces */
	char from[TCP_CA_NAME_MAX]; /* sockets with this are given */
	char to[TCP_CA_NAME_MAX]; /* that, by the iterator, and by the hook as they are made */
	__u64 named_count; /* none: connections of every TCP port are meant */
	__u64 cgroup_id; /* only what is below that one is meant; 0: everything is */
	__u64 netns_cookie; /* for the hook, which sees those of all namespaces */
	__u16 named[MAX_NAMED]; /* TCP ports: the guest's end, or the other, is one of them */
};

/* What happened; src/control.rs has the same. */
struct counters {
	__u64 opened;
	__u64 left_late;
	__u64 left_loss;
	__u64 left_ecn;
	__u64 opened_again;
	__u64 moved;
	__u64 in_time; /* ACKs that were timed */
	__u64 late;
	__u64 chosen; /* connections that got it from the hook */
};

struct settings settings SEC(".data") = {};
struct counters counters SEC(".bss") = {};

/* What is known of a flow, in the kernel's room for it. */
struct flow {
	__u32 generation;
	__u8 open;
	__u8 lossy; /* it was left for a loss that may turn out to be none */
	__u32 in_time; /* ACKs since then */
	__u32 late;
	__u64 since_us;
};

_Static_assert(sizeof(struct flow) <= 13 * sizeof(__u64), "the kernel has room for a flow");

extern void tcp_reno_cong_avoid(struct sock *sk, __u32 ack, __u32 acked) __ksym;
extern __u32 tcp_reno_ssthresh(struct sock *sk) __ksym;
extern __u32 tcp_reno_undo_cwnd(struct sock *sk) __ksym;

#define COUNT(name) __sync_fetch_and_add(&counters.name, 1)

static __always_inline struct tcp_sock *tcp(struct sock *sk)
{
	return (struct tcp_sock *)sk;
}

static __always_inline struct flow *flow_of(struct sock *sk)
{
	return (struct flow *)((struct inet_connection_sock *)sk)->icsk_ca_priv;
}

static __always_inline int is_at_port(struct sock *sk)
{
	int ifindex = sk->sk_rx_dst_ifindex;

	if (tcp(sk)->tcp_mstamp > settings.valid_until_us)
		return 0;
	for (__u32 place = 0; place < MAX_PORTS; place++) {
		if (place >= settings.port_count)
			return 0;
		if (settings.ports[place] == ifindex)
			return 1;
	}
	return 0;
}

/* As wide as the offered window. */
static __always_inline void widen(struct sock *sk)
{
	struct tcp_sock *tp = tcp(sk);
	__u32 mss = tp->mss_cache;
	__u32 window = tp->snd_wnd;

	if (mss)
		tp->snd_cwnd = window / mss + INITIAL_WINDOW;
}

/* Its ACKs are counted anew. */
static __always_inline void count_anew(struct sock *sk, struct flow *flow)
{
	flow->in_time = 0;
	flow->late = 0;
	flow->since_us = tcp(sk)->tcp_mstamp;
}

static __always_inline void open(struct sock *sk, struct flow *flow)
{
	flow->open = 1;
	flow->lossy = 0;
	count_anew(sk, flow);
	tcp(sk)->snd_ssthresh = TCP_INFINITE_SSTHRESH;
	widen(sk);
}

static __always_inline void leave(struct sock *sk, struct flow *flow)
{
	struct tcp_sock *tp = tcp(sk);

	flow->open = 0;
	count_anew(sk, flow);
	if (tp->snd_cwnd > INITIAL_WINDOW)
		tp->snd_cwnd = INITIAL_WINDOW;
}

static __always_inline void begin(struct sock *sk, struct flow *flow)
{
	__u8 was_open = flow->open;

	/* A connection that was accepted has no interface before it hears its first segment: it is asked again. */
	flow->generation = settings.generation - !sk->sk_rx_dst_ifindex;
	flow->lossy = 0;
	count_anew(sk, flow);
	if (is_at_port(sk)) {
		open(sk, flow);
		COUNT(opened);
	} else if (was_open) {
		leave(sk, flow);
	}
}

/* The flow, as the settings of now have it. */
static __always_inline struct flow *current_flow(struct sock *sk)
{
	struct flow *flow = flow_of(sk);

	if (flow->generation != settings.generation)
		begin(sk, flow);
	else if (flow->open && tcp(sk)->tcp_mstamp > settings.valid_until_us)
		leave(sk, flow);
	return flow;
}

SEC("struct_ops/holdfast_init")
void BPF_PROG(holdfast_init, struct sock *sk)
{
	struct flow *flow = flow_of(sk);

	flow->open = 0;
	begin(sk, flow);
}

/* Called with each ACK, after its window was noted. */
SEC("struct_ops/holdfast_in_ack_event")
void BPF_PROG(holdfast_in_ack_event, struct sock *sk, __u32 flags)
{
	struct flow *flow = current_flow(sk);
	__u8 state = BPF_CORE_READ_BITFIELD((struct inet_connection_sock *)sk, icsk_ca_state);

	if (!flow->open)
		return;
	if (flags & CA_ACK_ECE) {
		COUNT(left_ecn);
		leave(sk, flow);
		return;
	}
	/* While the kernel reduces the window, it is the kernel's. */
	if (state <= TCP_CA_Disorder)
		widen(sk);
}

SEC("struct_ops/holdfast_pkts_acked")
void BPF_PROG(holdfast_pkts_acked, struct sock *sk, const struct ack_sample *sample)
{
	struct flow *flow = current_flow(sk);
	struct tcp_sock *tp = tcp(sk);
	__s32 rtt_us = sample->rtt_us;
	__u8 state = sk->__sk_common.skc_state;
	__u32 seen;

	/* SYN and FIN are the client's own to acknowledge, in every flow. */
	if (rtt_us < 0 || !settings.port_count || (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT))
		return;
	if ((__u32)rtt_us <= settings.fast_us) {
		COUNT(in_time);
		flow->in_time++;
	} else {
		COUNT(late);
		flow->late++;
	}
	seen = flow->in_time + flow->late;
	if (seen < LEAST_SEEN || tp->tcp_mstamp - flow->since_us < settings.proof_us)
		return;
	if (flow->open && flow->in_time * 8 <= seen) {
		COUNT(left_late);
		/* As a new connection on an unknown path, but to no more than half of what is on its way. */
		tp->snd_ssthresh = tp->packets_out / 2 > INITIAL_WINDOW ? tp->packets_out / 2 : INITIAL_WINDOW;
		leave(sk, flow);
	} else if (!flow->open && flow->in_time * 2 >= seen && is_at_port(sk)) {
		COUNT(opened_again);
		open(sk, flow);
	} else {
		count_anew(sk, flow);
	}
}

SEC("struct_ops/holdfast_cong_avoid")
void BPF_PROG(holdfast_cong_avoid, struct sock *sk, __u32 ack, __u32 acked)
{
	if (!current_flow(sk)->open)
		tcp_reno_cong_avoid(sk, ack, acked);
}

SEC("struct_ops/holdfast_cwnd_event")
void BPF_PROG(holdfast_cwnd_event, struct sock *sk, enum tcp_ca_event event)
{
	if (event == CA_EVENT_TX_START && current_flow(sk)->open)
		widen(sk);
}

SEC("struct_ops/holdfast_set_state")
void BPF_PROG(holdfast_set_state, struct sock *sk, __u8 state)
{
	struct flow *flow = current_flow(sk);

	if (state < TCP_CA_Recovery)
		return;
	if (flow->open) {
		COUNT(left_loss);
		flow->open = 0;
		flow->lossy = 1;
		count_anew(sk, flow);
	}
}

SEC("struct_ops/holdfast_ssthresh")
__u32 BPF_PROG(holdfast_ssthresh, struct sock *sk)
{
	__u32 on_the_way;

	if (!flow_of(sk)->open)
		return tcp_reno_ssthresh(sk);
	on_the_way = tcp(sk)->packets_out;
	return on_the_way / 2 > 2 ? on_the_way / 2 : 2;
}

SEC("struct_ops/holdfast_undo_cwnd")
__u32 BPF_PROG(holdfast_undo_cwnd, struct sock *sk)
{
	struct flow *flow = current_flow(sk);

	if (flow->lossy && is_at_port(sk)) {
		COUNT(opened_again);
		open(sk, flow);
	}
	return tcp_reno_undo_cwnd(sk);
}

SEC(".struct_ops")
struct tcp_congestion_ops holdfast = {
	.init = (void *)holdfast_init,
	.in_ack_event = (void *)holdfast_in_ack_event,
	.pkts_acked = (void *)holdfast_pkts_acked,
	.cong_avoid = (void *)holdfast_cong_avoid,
	.cwnd_event = (void *)holdfast_cwnd_event,
	.set_state = (void *)holdfast_set_state,
	.ssthresh = (void *)holdfast_ssthresh,
	.undo_cwnd = (void *)holdfast_undo_cwnd,
	.flags = TCP_CONG_NON_RESTRICTED,
	.name = "holdfast",
};

static __always_inline int same_name(const char *a, const char *b)
{
	for (int place = 0; place < TCP_CA_NAME_MAX; place++) {
		if (a[place] != b[place])
			return 0;
		if (!a[place])
			return 1;
	}
	return 1;
}

static __always_inline int is_named(__u16 local, __u16 remote)
{
	for (__u32 place = 0; place < MAX_NAMED; place++) {
		if (place >= settings.named_count)
			break;
		if (settings.named[place] == local || settings.named[place] == remote)
			return 1;
	}
	return !settings.named_count;
}

/* Whether a socket was made in the control group that is meant, or below it. */
static __always_inline int is_in_cgroup(struct sock *sk)
{
	struct cgroup *cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);

	if (!settings.cgroup_id)
		return 1;
	for (int depth = 0; depth < MAX_DEPTH && cgroup; depth++) {
		if (BPF_CORE_READ(cgroup, kn, id) == settings.cgroup_id)
			return 1;
		cgroup = BPF_CORE_READ(cgroup, self.parent, cgroup);
	}
	return 0;
}

/* Gives the sockets that are there, and are meant, another congestion control: `from` to `to`. */
SEC("iter/tcp")
int holdfast_move(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	char name[TCP_CA_NAME_MAX] = {};
	struct tcp_sock *tp;

	if (!skc)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp || bpf_getsockopt(tp, SOL_TCP, TCP_CONGESTION, name, sizeof(name)))
		return 0;
	/* Where connections are chosen, those of a listener get it from the hook, or do not. */
	if (skc->skc_state == TCP_LISTEN && (settings.named_count || settings.cgroup_id))
		return 0;
	if (!same_name(name, settings.from) || !is_named(skc->skc_num, bpf_ntohs(skc->skc_dport)) ||
	    !is_in_cgroup((struct sock *)tp))
		return 0;
	if (!bpf_setsockopt(tp, SOL_TCP, TCP_CONGESTION, settings.to, sizeof(settings.to)))
		COUNT(moved);
	return 0;
}

/*
 * Gives a connection that is meant the congestion control as it is established, where that is not the default's
 * affair. The kernel calls it before the connection's congestion control begins, and only for sockets of the
 * control group that the hook is attached to.
 */
SEC("sockops")
int holdfast_choose(struct bpf_sock_ops *ops)
{
	char name[TCP_CA_NAME_MAX] = {};

	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (!is_named(ops->local_port, bpf_ntohl(ops->remote_port)) ||
	    bpf_get_netns_cookie(ops) != settings.netns_cookie ||
	    bpf_getsockopt(ops, SOL_TCP, TCP_CONGESTION, name, sizeof(name)))
		return 1;
	if (same_name(name, settings.from) &&
	    !bpf_setsockopt(ops, SOL_TCP, TCP_CONGESTION, settings.to, sizeof(settings.to)))
		COUNT(chosen);
	return 1;
}
