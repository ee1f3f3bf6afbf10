#include "attacks.h"

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHAIN_MAX = 1024,
    PIECES = 1000,
};

static const struct attack attacks[] = {
    {.name = "plain-60", .about = "frames of 60 bytes to a port of its own", .len = 60, .sinks = 1},
    {.name = "plain-1514", .about = "frames of 1514 bytes to a port of its own", .len = 1514, .sinks = 1},
    {.name = "tso-1448", .about = "64 KiB to be cut at 1448", .frame = FRAME_TSO, .len = LARGE_LEN, .mss = 1448,
     .sinks = 1},
    {.name = "broadcast-60", .about = "60 bytes to 30 ports", .len = 60, .target = TO_ALL, .sinks = 30},
    {.name = "broadcast-1514", .about = "1514 bytes to 30 ports", .len = 1514, .target = TO_ALL, .sinks = 30},
    {.name = "broadcast-65000", .about = "65000 bytes to 30 ports", .len = 65000, .target = TO_ALL, .sinks = 30},
    {.name = "chains-1024", .about = "1024 descriptors of one byte", .len = 1012, .layout = BYTES_1024, .sinks = 1},
    {.name = "chains-1024-indirect", .about = "the same in an indirect table", .len = 1012, .layout = BYTES_1024,
     .indirect = true, .sinks = 1},
    {.name = "chains-1024-packed", .about = "the same in a packed ring", .len = 1012, .layout = BYTES_1024,
     .packed = true, .sinks = 1},
    {.name = "chains-1024-indirect-packed", .about = "the same in indirect tables of a packed ring", .len = 1012,
     .layout = BYTES_1024, .indirect = true, .packed = true, .sinks = 1},
    {.name = "tso-32", .about = "64 KiB to be cut at 32", .frame = FRAME_TSO, .len = LARGE_LEN, .mss = 32,
     .sinks = 1},
    {.name = "sink-onebyte", .about = "into receive chains of 1024 descriptors of one byte", .len = 1514, .sinks = 1,
     .mode = SINK_ONEBYTE},
    {.name = "sink-onebyte-indirect", .about = "the same in indirect tables", .len = 1514, .indirect = true, .sinks = 1,
     .mode = SINK_ONEBYTE},
    {.name = "sink-onebyte-packed", .about = "the same in indirect tables of packed rings", .len = 1514, .packed = true, .sinks = 1,
     .mode = SINK_ONEBYTE},
    {.name = "sink-zero", .about = "into receive buffers of no bytes", .len = 1514, .sinks = 1, .mode = SINK_ZERO},
    {.name = "sink-tiny", .about = "into receive buffers of one byte", .len = 1514, .sinks = 1, .mode = SINK_TINY},
    {.name = "sink-tiny-packed", .about = "the same in packed rings", .len = 1514, .packed = true, .sinks = 1,
     .mode = SINK_TINY},
    {.name = "tso-32-1000", .about = "64 KiB of 1000 descriptors, to be cut at 32", .frame = FRAME_TSO,
     .len = LARGE_LEN, .mss = 32, .layout = PIECES_1000, .indirect = true, .sinks = 1},
    {.name = "tso-32-flood", .about = "64 KiB to be cut at 32, to 28 ports", .frame = FRAME_TSO, .len = LARGE_LEN,
     .mss = 32, .target = TO_ALL, .sinks = 28},
    {.name = "tso-32-1000-flood", .about = "64 KiB of 1000 descriptors, to be cut at 32, to 28 ports",
     .frame = FRAME_TSO, .len = LARGE_LEN, .mss = 32, .target = TO_ALL, .layout = PIECES_1000, .indirect = true,
     .sinks = 28},
    {.name = "regions-508", .about = "1024 descriptors, each in 508 memory regions", .len = 60, .layout = SPANS_1024,
     .indirect = true, .sinks = 1},
    {.name = "regions-508-frame", .about = "65000 bytes in 508 memory regions", .len = 65000, .layout = SPAN_508,
     .sinks = 1},
    {.name = "sink-dirty-509", .about = "into receive chains of 1024 descriptors over 509 regions, with a dirty log",
     .len = 1514, .sinks = 1, .mode = SINK_DIRTY},
    {.name = "call-epoll", .about = "a call eventfd that a million epoll entries watch", .len = 60, .sinks = 1,
     .call = CALL_EPOLL},
    {.name = "call-udp", .about = "a call socket that broadcasts to a thousand receivers", .len = 60, .sinks = 1,
     .call = CALL_UDP},
    {.name = "uso-32", .about = "64 KiB of UDP to be cut at 32", .frame = FRAME_USO, .len = LARGE_LEN, .mss = 32,
     .sinks = 1},
    {.name = "ufo-32", .about = "64 KiB of UDP to be cut into fragments of 32", .frame = FRAME_UFO,
     .len = LARGE_LEN, .mss = 32, .sinks = 1},
    {.name = "tso-1", .about = "64 KiB to be cut at 1", .frame = FRAME_TSO, .len = LARGE_LEN, .mss = 1, .sinks = 1},
    {.name = "multicast-60", .about = "60 bytes to a group, flooded to 30 ports", .len = 60, .target = TO_GROUP,
     .sinks = 30},
    {.name = "unknown-60", .about = "60 bytes to an unknown address, flooded to 30 ports", .len = 60,
     .target = TO_UNKNOWN, .sinks = 30},
    {.name = "runt-1000", .about = "runts of 1000 descriptors", .len = 13, .layout = PADDED_1000, .indirect = true,
     .sinks = 1},
    {.name = "oversize-1000", .about = "frames of 128000 bytes in 1000 descriptors", .len = 127988,
     .layout = PIECES_1000, .indirect = true, .sinks = 1},
    {.name = "zero-1024", .about = "indirect tables of 1024 descriptors of no bytes", .len = 60,
     .layout = ZEROES_1024, .indirect = true, .sinks = 1},
    {.name = "random-source", .about = "60 bytes from 16384 source addresses", .len = 60, .sinks = 1,
     .sources = true},
    {.name = "steal", .about = "60 bytes from the victim's source address", .len = 60, .sinks = 1, .steals = true},
    {.name = "pieces-1000-queues", .about = "64 KiB of 1000 descriptors to a port of 16 queue pairs", .len = 65000,
     .layout = PIECES_1000, .indirect = true, .sinks = 1, .sink_pairs = 16},
    {.name = "queues-16", .about = "60 bytes from 16 queues at once", .len = 60, .pairs = 16, .sinks = 1},
    {.name = "kick-storm", .about = "kicks without pause", .len = 60, .sinks = 1, .kicks = true},
    {.name = "dirty-lines", .about = "16 queues with hardly a frame, whose lines are written to all the time", .len = 60,
     .pairs = 16, .sinks = 1, .dirties = true},
    {.name = "lie-arp-tso", .about = "TCP segmentation of an ARP frame, once", .frame = FRAME_LIE_ARP_TSO,
     .len = 4000, .sinks = 1, .mode = SINK_LARGE, .once = true},
    {.name = "lie-mss", .about = "segments of 65535 of a frame of 60 bytes, once", .frame = FRAME_LIE_MSS, .len = 60,
     .sinks = 1, .mode = SINK_LARGE, .once = true},
    {.name = "lie-csum-ip", .about = "a checksum over the IPv4 address, once", .frame = FRAME_LIE_CSUM_IP, .len = 60,
     .sinks = 1, .mode = SINK_LARGE, .once = true},
};

enum { ATTACKS = sizeof attacks / sizeof attacks[0], SOURCES = 16384 };

const struct attack *attack_named(const char *name)
{
    for (unsigned i = 0; i < ATTACKS; i++)
        if (strcmp(name, attacks[i].name) == 0)
            return &attacks[i];
    errx(2, "no attack %s: see --list", name);
}

static unsigned at_least_one(unsigned count)
{
    return count == 0 ? 1 : count;
}

void attack_list(void)
{
    for (unsigned i = 0; i < ATTACKS; i++) {
        const struct attack *attack = &attacks[i];
        const char *kind = attack->once ? "once" : attack->steals ? "beside" : "apart";
        printf("%s %u %u %u %s %s\n", attack->name, at_least_one(attack->pairs), attack->sinks,
               at_least_one(attack->sink_pairs), kind, attack->about);
    }
}

static const uint8_t *destination(const struct attack *attack, const uint8_t to[6])
{
    static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    static const uint8_t group[6] = {0x01, 0x00, 0x5e, 0x40, 0x00, 0x01};
    static const uint8_t unknown[6] = {0x02, 0xaa, 0xff, 0xff, 0xff, 0x01};

    switch (attack->target) {
    case TO_ALL:
        return all;
    case TO_GROUP:
        return group;
    case TO_UNKNOWN:
        return unknown;
    default:
        return to;
    }
}

/* The buffers of a frame of `len` bytes, header included, at `guest`. Returns their number. */
static unsigned lay_out(enum layout layout, const struct memory *memory, uint64_t guest, uint32_t len,
                        struct piece pieces[CHAIN_MAX])
{
    unsigned count = layout == PIECES_1000 || layout == PADDED_1000 ? PIECES : CHAIN_MAX;
    uint32_t part = (len + PIECES - 1) / PIECES;
    uint32_t span = (memory->count - 1) * SMALL_REGION_LEN;

    for (unsigned i = 0; i < count; i++) {
        uint32_t at = layout == PIECES_1000 ? i * part : i;
        uint32_t left = at < len ? len - at : 0;
        pieces[i] = (struct piece){guest + (left > 0 ? at : 0), 1};
        switch (layout) {
        case WHOLE:
            pieces[i].len = len;
            return 1;
        case SPAN_508:
            pieces[i] = (struct piece){memory_small(memory), len < span ? len : span};
            return 1;
        case SPANS_1024:
            pieces[i] = (struct piece){memory_small(memory), span};
            break;
        case ZEROES_1024:
            pieces[i].len = 0;
            break;
        case PIECES_1000:
            pieces[i].len = left < part ? left : part;
            break;
        default:
            pieces[i].len = left > 0 ? 1 : 0;
            break;
        }
    }
    return count;
}

/* Writes a frame to the small regions, whose order in the file is reversed. */
static void copy_to_small(struct memory *memory, const uint8_t *bytes, size_t len)
{
    for (unsigned i = 1; i < memory->count; i++) {
        size_t at = (size_t)(i - 1) * SMALL_REGION_LEN;
        if (at >= len)
            return;
        size_t part = len - at < SMALL_REGION_LEN ? len - at : SMALL_REGION_LEN;
        memcpy(memory->host + memory->regions[i].offset, bytes + at, part);
    }
}

void attack_fill(const struct attack *attack, struct port *port, const uint8_t to[6], const uint8_t from[6])
{
    struct memory *memory = &port->memory;
    unsigned count = attack->sources ? SOURCES : 1;
    struct chain *chains = calloc(count, sizeof *chains);

    if (count > port->options.ring_size)
        count = port->options.ring_size;
    for (unsigned i = 0; i < count && chains != NULL; i++) {
        uint8_t source[6];
        struct piece pieces[CHAIN_MAX];
        uint64_t guest;
        memcpy(source, from, 6);
        if (attack->sources) {
            source[4] = (uint8_t)(i >> 8);
            source[5] = (uint8_t)i;
            source[3] = 0x77;
        }
        uint8_t *bytes = memory_take(memory, HEADER_LEN + attack->len, 64, &guest);
        uint32_t len = (uint32_t)frame_write(bytes, attack->frame, destination(attack, to), source, attack->len,
                                             (uint16_t)attack->mss);
        unsigned pieces_count = lay_out(attack->layout, memory, guest, len, pieces);
        if (attack->layout == SPAN_508)
            copy_to_small(memory, bytes, len);
        struct piece *kept = calloc(pieces_count, sizeof *kept);
        if (kept == NULL)
            errx(1, "no memory");
        memcpy(kept, pieces, pieces_count * sizeof *kept);
        chains[i] = (struct chain){kept, pieces_count};
    }
    if (chains == NULL)
        errx(1, "no memory");
    for (unsigned pair = 0; pair < port->options.pairs; pair++)
        ring_fill(&port->transmit[pair], memory, chains, count, attack->indirect, false);
}
