/* A virtqueue, split or packed, whose entries are written once and then only offered again. */
#ifndef ATTACKER_RING_H
#define ATTACKER_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "frontend.h"
#include "memory.h"

/* A run of bytes of one buffer. */
struct piece {
    uint64_t guest;
    uint32_t len;
};

/* A buffer: a frame to send, or room for one. */
struct chain {
    const struct piece *pieces;
    unsigned count;
};

struct ring {
    unsigned index;
    unsigned size;
    bool packed;
    bool writable; /* receive buffers */
    bool indirect;
    int kick;
    struct ring_place place;
    void *descriptors;
    void *driver;
    void *device;

    const struct chain *chains; /* entry i is chain i % chain_count; all of the same length */
    unsigned chain_count;
    uint64_t *tables;     /* indirect: guest address of each chain's table */
    uint32_t *table_lens; /* bytes */
    unsigned slots;       /* ring entries that one chain takes */
    unsigned in_flight_max;
    unsigned backlog; /* number of entries kept offered; follows the switch's pace */

    /* Split: free-running. Packed: positions with their wrap counters. */
    uint16_t available;
    uint16_t used;
    unsigned next;
    unsigned reap;
    bool next_wrap;
    bool reap_wrap;

    uint64_t offered; /* entries since the beginning */
    uint64_t taken;   /* of these, those that came back */
    uint64_t looks;
    uint64_t dry; /* checks that found nothing left to take */
};

/* Lays out a ring of `size` entries in `memory`. `calls`: the switch is to call when it has used entries. */
void ring_make(struct ring *ring, struct memory *memory, unsigned index, unsigned size, bool packed, bool calls);
/* Sets the ring's entries and writes them once. The arrays must live as long as the ring. */
void ring_fill(struct ring *ring, struct memory *memory, const struct chain *chains, unsigned count, bool indirect,
               bool writable);
/* Takes back used entries, and offers as many again, at most `limit` entries in total. */
void ring_turn(struct ring *ring, uint64_t limit);
/* Writes an unchanged value to the cache line that says what is available: the other core must fetch it again. */
void ring_dirty(struct ring *ring);
/* Takes back used entries. Returns the number still offered. */
unsigned ring_settle(struct ring *ring);

#endif
