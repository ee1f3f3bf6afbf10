/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Generates and counts the frames for crosspoint-bench's measurements of NIC ports, inside the kernel: no system call
 * and no packet buffer per frame on the generator's side.
 *
 * `generate` runs by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18): each run sends one
 * frame through the plan's interface, or nothing while no frame is due. `sink` and `reflect` are attached to an
 * interface's ingress (tc), `sink_xdp` to its driver.
 *
 * As in crosspoint_xdp.bpf.c, the few kernel definitions are written out: building needs only clang.
 */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name

/* From linux/bpf.h and linux/pkt_cls.h. */
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define XDP_DROP 1
#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

/* The beginning of the structure. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
};

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_skb_store_bytes)(void *skb, __u32 at, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 at, void *to, __u32 len) = (void *)26;
static long (*const bpf_xdp_adjust_tail)(struct xdp_md *ctx, int by) = (void *)65;

/* Ethernet, IPv4 without options, UDP; then the same fields as in the frames of crosspoint-guest's pumps. */
#define IP_LEN_AT 16
#define IP_SUM_AT 24
#define PORTS_AT 34
#define SEQUENCE_AT 42
#define STAMP_AT 44
#define FRAME_MIN 60
#define ETHERNET_LEN 14

/* Flows that differ only in the source port; further ones differ in the destination port too. */
#define PORTS 60000
#define PORT_FIRST 1024
/* One of this many frames carries a time stamp. */
#define STAMP_EVERY 8
/* Buckets of a histogram: 16 for each power of two. */
#define BUCKETS 1024

/* Written by the bench before a trial. */
struct plan {
	__u64 ifindex;
	/* CLOCK_MONOTONIC, ns. */
	__u64 start;
	__u64 end;
	/* Time between frames, in 1/65536 ns; 0: full speed. */
	__u64 step;
	__u64 flows;
	/* Length of each frame, without frame check sequence; 0: IMIX, that is 60, 566 and 1514, 7:4:1. */
	__u64 len;
	/* Sum of the IPv4 header's 16-bit words, without length and checksum. */
	__u64 ip_sum;
};

struct progress {
	__u64 sent;
	__u64 over;
};

struct arrivals {
	__u64 frames;
	__u64 bytes;
	/* The next sequence number; with bit 16: not known. */
	__u64 next;
};

struct histogram {
	__u64 bucket[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progress);
} sent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrivals);
} arrived SEC(".maps");

/* Nanoseconds since the generator's time stamp. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} latencies SEC(".maps");

/* Lengths of runs of lost frames. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} loss_runs SEC(".maps");

static __always_inline void record(void *map, __u64 value)
{
	__u32 zero = 0;
	struct histogram *histogram = bpf_map_lookup_elem(map, &zero);
	__u64 at = value;

	if (!histogram)
		return;
	if (value >= 16) {
		__u64 rest = value, power = 0;

#pragma unroll
		for (int half = 32; half; half /= 2) {
			if (rest >> half) {
				rest >>= half;
				power += half;
			}
		}
		at = (power - 3) * 16 + (value >> (power - 4) & 15);
	}
	if (at < BUCKETS)
		histogram->bucket[at] += 1;
}

static __always_inline __u64 imix(__u64 number)
{
	__u64 of = number % 12;

	return of < 7 ? 60 : of < 11 ? 566 : 1514;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct progress *progress = bpf_map_lookup_elem(&sent, &zero);
	__u8 *data;
	__u64 number, now = 0, len, flow, sum;

	if (!plan || !progress || progress->over)
		return XDP_DROP;
	number = progress->sent;
	if (plan->step || number % STAMP_EVERY == 0) {
		now = bpf_ktime_get_ns();
		if (now >= plan->end) {
			progress->over = 1;
			return XDP_DROP;
		}
		if (now < plan->start + (number * plan->step >> 16))
			return XDP_DROP;
	}
	len = plan->len ? plan->len : imix(number);
	if ((__u64)(ctx->data_end - ctx->data) != len &&
	    bpf_xdp_adjust_tail(ctx, (int)len - (int)(ctx->data_end - ctx->data)))
		return XDP_DROP;
	data = (__u8 *)(long)ctx->data;
	if (data + FRAME_MIN > (__u8 *)(long)ctx->data_end)
		return XDP_DROP;
	flow = number % (plan->flows ? plan->flows : 1);
	sum = plan->ip_sum + len - ETHERNET_LEN;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*(__u16 *)(data + IP_LEN_AT) = __builtin_bswap16(len - ETHERNET_LEN);
	*(__u16 *)(data + IP_SUM_AT) = __builtin_bswap16(~sum);
	*(__u16 *)(data + PORTS_AT) = __builtin_bswap16(PORT_FIRST + flow % PORTS);
	*(__u16 *)(data + PORTS_AT + 2) = __builtin_bswap16(PORT_FIRST + flow / PORTS);
	/* The length of the datagram. */
	*(__u16 *)(data + PORTS_AT + 4) = __builtin_bswap16(len - PORTS_AT);
	*(__u16 *)(data + SEQUENCE_AT) = __builtin_bswap16(number);
	*(__u64 *)(data + STAMP_AT) = number % STAMP_EVERY ? 0 : now;
	progress->sent = number + 1;
	return bpf_redirect(plan->ifindex, 0);
}

/* Counts a frame, given its bytes from the EtherType on. Returns whether it is a frame of the bench. */
static __always_inline int take(const __u8 *bytes, __u64 len)
{
	__u32 zero = 0;
	struct arrivals *arrivals = bpf_map_lookup_elem(&arrived, &zero);
	__u64 sequence, stamp, now;

	/* IPv4, UDP. */
	if (!arrivals || bytes[0] != 8 || bytes[1] != 0 || bytes[11] != 17)
		return 0;
	arrivals->frames += 1;
	arrivals->bytes += len;
	sequence = bytes[SEQUENCE_AT - 12] << 8 | bytes[SEQUENCE_AT - 11];
	if (arrivals->next <= 0xffff && sequence != arrivals->next) {
		__u64 gap = (sequence - arrivals->next) & 0xffff;

		/* A late frame is not a loss. */
		if (gap < 0x8000)
			record(&loss_runs, gap);
	}
	arrivals->next = (sequence + 1) & 0xffff;
	__builtin_memcpy(&stamp, bytes + STAMP_AT - 12, sizeof(stamp));
	if (stamp) {
		now = bpf_ktime_get_ns();
		if (now > stamp)
			record(&latencies, now - stamp);
	}
	return 1;
}

SEC("classifier")
int sink(struct __sk_buff *skb)
{
	__u8 bytes[40] __attribute__((aligned(8)));

	if (bpf_skb_load_bytes(skb, 12, bytes, sizeof(bytes)))
		return TC_ACT_OK;
	return take(bytes, skb->len) ? TC_ACT_SHOT : TC_ACT_OK;
}

/* Sends a frame back to its sender. */
SEC("classifier")
int reflect(struct __sk_buff *skb)
{
	__u8 bytes[40] __attribute__((aligned(8)));
	__u8 swapped[12];

	if (bpf_skb_load_bytes(skb, 12, bytes, sizeof(bytes)) || bytes[0] != 8 || bytes[1] != 0)
		return TC_ACT_OK;
	if (bpf_skb_load_bytes(skb, 0, swapped + 6, 6) || bpf_skb_load_bytes(skb, 6, swapped, 6))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

SEC("xdp")
int sink_xdp(struct xdp_md *ctx)
{
	__u8 *data = (__u8 *)(long)ctx->data;

	if (data + FRAME_MIN <= (__u8 *)(long)ctx->data_end)
		take(data + 12, ctx->data_end - ctx->data);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
