/* Frames with their virtio-net header. */
#ifndef ATTACKER_FRAMES_H
#define ATTACKER_FRAMES_H

#include <stddef.h>
#include <stdint.h>

enum {
    /* Length with a modern driver, or with mergeable buffers (virtio 1.2, 5.1.6). */
    HEADER_LEN = 12,
    /* Longest frame with segmentation: an IPv4 packet of 65535 bytes after an Ethernet header. */
    LARGE_LEN = 65549,
};

enum frame_kind {
    FRAME_PLAIN,          /* UDP over IPv4, no offload */
    FRAME_TSO,            /* TCP over IPv4, to be segmented */
    FRAME_USO,            /* UDP over IPv4, to be segmented into datagrams */
    FRAME_UFO,            /* UDP over IPv4, to be fragmented */
    FRAME_LIE_ARP_TSO,    /* TCP segmentation of an ARP frame */
    FRAME_LIE_MSS,        /* segments longer than the frame */
    FRAME_LIE_CSUM_IP,    /* a checksum over the IPv4 source address */
};

/* Writes the header and a frame of `len` bytes (without the header) to `bytes`, which has room for HEADER_LEN + len.
 * `mss`: payload of a segment. Returns the number of bytes written. */
size_t frame_write(uint8_t *bytes, enum frame_kind kind, const uint8_t to[6], const uint8_t from[6], size_t len,
                   uint16_t mss);

#endif
