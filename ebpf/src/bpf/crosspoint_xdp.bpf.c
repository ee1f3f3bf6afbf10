/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Redirects every frame of a receive queue to the AF_XDP socket bound to that queue.
 *
 * A queue without a socket belongs to the kernel: its frames pass as if there were no program. The program reads no
 * packet byte, so it needs only CAP_BPF and CAP_NET_ADMIN.
 *
 * The few kernel definitions it uses are written out here, because they are fixed by the kernel's ABI: building needs
 * only clang, and the object depends on this file and on no header.
 */

typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))

/* How libbpf writes a map definition: numbers are array lengths, types are pointers (see libbpf's bpf_helpers.h). */
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name

/* Number of queues in the map; crosspoint_ebpf::MAX_QUEUES is the same number, and a test compares them. */
#define MAX_QUEUES 256

/* From linux/bpf.h. */
#define BPF_MAP_TYPE_XSKMAP 17
#define XDP_PASS 2

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

static long (*const bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;

/* The socket of each receive queue, by queue index. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

static __always_inline int to_socket(struct xdp_md *ctx)
{
	/* The helper returns the flags for a key without a socket, also beyond the end of the map. */
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
}

SEC("xdp")
int crosspoint(struct xdp_md *ctx)
{
	return to_socket(ctx);
}

/* The same, for an MTU whose frames take more than one buffer (with XDP_USE_SG sockets). */
SEC("xdp.frags")
int crosspoint_frags(struct xdp_md *ctx)
{
	return to_socket(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
