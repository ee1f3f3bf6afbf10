#include "ring.h"

#include <err.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    F_NEXT = 1,
    F_WRITE = 2,
    F_INDIRECT = 4,
    F_AVAILABLE = 1 << 7,
    F_USED = 1 << 15,
    NO_INTERRUPT = 1,  /* split: in the available ring's flags */
    NO_NOTIFY = 1,     /* split: in the used ring's flags */
    EVENT_DISABLE = 1, /* packed: in an event suppression area's flags */
    /* Packed: number of chains, whatever their length; fewer would be taken in one burst. */
    BACKLOG_MIN = 128,
};

struct split_descriptor {
    uint64_t guest;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct split_index {
    uint16_t flags;
    uint16_t index;
};

struct packed_descriptor {
    uint64_t guest;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
};

struct packed_event {
    uint16_t offset;
    uint16_t flags;
};

void ring_make(struct ring *ring, struct memory *memory, unsigned index, unsigned size, bool packed, bool calls)
{
    *ring = (struct ring){.index = index, .size = size, .packed = packed, .next_wrap = true, .reap_wrap = true};
    ring->descriptors = memory_take(memory, 16 * (size_t)size, 4096, &ring->place.descriptors);
    if (packed) {
        ring->driver = memory_take(memory, sizeof(struct packed_event), 64, &ring->place.driver);
        ring->device = memory_take(memory, sizeof(struct packed_event), 64, &ring->place.device);
        ((struct packed_event *)ring->driver)->flags = calls ? 0 : EVENT_DISABLE;
    } else {
        ring->driver = memory_take(memory, 6 + 2 * (size_t)size, 64, &ring->place.driver);
        ring->device = memory_take(memory, 6 + 8 * (size_t)size, 4096, &ring->place.device);
        ((struct split_index *)ring->driver)->flags = calls ? 0 : NO_INTERRUPT;
    }
}

static uint16_t direction(const struct ring *ring)
{
    return ring->writable ? F_WRITE : 0;
}

/* Writes an indirect table. Split and packed tables differ only in their last fields (virtio 1.2, 2.7.5.3, 2.8.8). */
static void write_table(struct ring *ring, struct memory *memory, const struct chain *chain, unsigned number)
{
    struct split_descriptor *table =
        memory_take(memory, 16 * (size_t)chain->count, 64, &ring->tables[number]);
    ring->table_lens[number] = 16 * chain->count;
    for (unsigned i = 0; i < chain->count; i++) {
        bool last = i + 1 == chain->count;
        const struct piece *piece = &chain->pieces[i];
        if (ring->packed) {
            ((struct packed_descriptor *)table)[i] =
                (struct packed_descriptor){piece->guest, piece->len, 0, direction(ring)};
        } else {
            uint16_t flags = direction(ring) | (last ? 0 : F_NEXT);
            table[i] = (struct split_descriptor){piece->guest, piece->len, flags, (uint16_t)(i + 1)};
        }
    }
}

/* Writes chain `number` to the descriptors from `at` on. */
static void write_split(struct ring *ring, unsigned number, unsigned at)
{
    struct split_descriptor *descriptors = ring->descriptors;
    const struct chain *chain = &ring->chains[number];

    if (ring->indirect) {
        descriptors[at] =
            (struct split_descriptor){ring->tables[number], ring->table_lens[number], F_INDIRECT, 0};
        return;
    }
    for (unsigned i = 0; i < chain->count; i++) {
        uint16_t flags = direction(ring) | (i + 1 < chain->count ? F_NEXT : 0);
        descriptors[at + i] = (struct split_descriptor){chain->pieces[i].guest, chain->pieces[i].len, flags,
                                                        (uint16_t)(at + i + 1)};
    }
}

/* If there are fewer chains than entries, several entries offer the same chain. Entries never change, so this costs
 * the attacker nothing. */
static void fill_split(struct ring *ring)
{
    uint16_t *entries = (uint16_t *)((char *)ring->driver + sizeof(struct split_index));
    unsigned written = ring->chain_count;

    if (written * ring->slots > ring->size)
        written = ring->size / ring->slots;
    if (written == 0)
        errx(1, "a chain of %u descriptors does not fit a ring of %u", ring->slots, ring->size);
    for (unsigned number = 0; number < written; number++)
        write_split(ring, number, number * ring->slots);
    for (unsigned entry = 0; entry < ring->size; entry++)
        entries[entry] = (uint16_t)(entry % written * ring->slots);
}

void ring_fill(struct ring *ring, struct memory *memory, const struct chain *chains, unsigned count, bool indirect,
               bool writable)
{
    ring->chains = chains;
    ring->chain_count = count;
    ring->indirect = indirect;
    ring->writable = writable;
    ring->slots = indirect ? 1 : chains[0].count;
    if (indirect) {
        ring->tables = calloc(count, sizeof *ring->tables);
        ring->table_lens = calloc(count, sizeof *ring->table_lens);
        if (ring->tables == NULL || ring->table_lens == NULL)
            errx(1, "no memory for %u tables", count);
        for (unsigned i = 0; i < count; i++)
            write_table(ring, memory, &chains[i], i);
    }
    ring->in_flight_max = ring->packed ? ring->size / ring->slots : ring->size;
    if (ring->in_flight_max == 0)
        errx(1, "a chain of %u descriptors does not fit a ring of %u", ring->slots, ring->size);
    ring->backlog = ring->in_flight_max;
    if (!writable && ring->backlog > BACKLOG_MIN)
        ring->backlog = BACKLOG_MIN;
    if (!ring->packed)
        fill_split(ring);
}

static void signal_switch(const struct ring *ring)
{
    uint64_t one = 1;
    bool unwanted = ring->packed ? ((volatile struct packed_event *)ring->device)->flags == EVENT_DISABLE
                                 : (((volatile struct split_index *)ring->device)->flags & NO_NOTIFY) != 0;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!unwanted && write(ring->kick, &one, sizeof one) != sizeof one)
        warn("kick");
}

/* The flags of a descriptor that is available under this wrap counter. */
static uint16_t marks(bool wrap)
{
    return wrap ? F_AVAILABLE : F_USED;
}

static void advance(const struct ring *ring, unsigned *position, bool *wrap, unsigned by)
{
    *position += by;
    if (*position >= ring->size) {
        *position -= ring->size;
        *wrap = !*wrap;
    }
}

static void offer_packed(struct ring *ring)
{
    struct packed_descriptor *descriptors = ring->descriptors;
    unsigned number = (unsigned)(ring->offered % ring->chain_count);
    const struct chain *chain = &ring->chains[number];
    unsigned at = ring->next;
    bool wrap = ring->next_wrap;
    uint16_t head_flags = 0;

    for (unsigned i = 0; i < ring->slots; i++) {
        struct packed_descriptor *descriptor = &descriptors[at];
        uint16_t flags = marks(wrap) | (ring->indirect ? F_INDIRECT : direction(ring));
        if (ring->indirect) {
            descriptor->guest = ring->tables[number];
            descriptor->len = ring->table_lens[number];
        } else {
            descriptor->guest = chain->pieces[i].guest;
            descriptor->len = chain->pieces[i].len;
            flags |= i + 1 < ring->slots ? F_NEXT : 0;
        }
        descriptor->id = 0;
        if (i == 0)
            head_flags = flags;
        else
            descriptor->flags = flags;
        advance(ring, &at, &wrap, 1);
    }
    __atomic_store_n(&descriptors[ring->next].flags, head_flags, __ATOMIC_RELEASE);
    ring->next = at;
    ring->next_wrap = wrap;
    ring->offered++;
}

static bool is_used(const struct ring *ring)
{
    const struct packed_descriptor *descriptors = ring->descriptors;
    uint16_t flags = __atomic_load_n(&descriptors[ring->reap].flags, __ATOMIC_ACQUIRE);
    bool used = (flags & F_USED) != 0;

    return used == ring->reap_wrap && ((flags & F_AVAILABLE) != 0) == used;
}

unsigned ring_settle(struct ring *ring)
{
    if (ring->packed) {
        while (ring->taken < ring->offered && is_used(ring)) {
            advance(ring, &ring->reap, &ring->reap_wrap, ring->slots);
            ring->taken++;
        }
    } else {
        uint16_t used = __atomic_load_n(&((struct split_index *)ring->device)->index, __ATOMIC_ACQUIRE);
        ring->taken += (uint16_t)(used - ring->used);
        ring->used = used;
    }
    return (unsigned)(ring->offered - ring->taken);
}

/* Keeps enough entries offered that the switch does not run dry between two checks, but not so many that it has work
 * for long after the last one. */
static void follow_pace(struct ring *ring, unsigned left)
{
    ring->looks++;
    if (left == 0 && ring->looks > 1) {
        ring->dry++;
        ring->backlog *= 2;
    } else if (left > ring->backlog / 4 * 3 && ring->backlog > BACKLOG_MIN && ring->looks % 16 == 0) {
        ring->backlog = ring->backlog / 4 * 3;
    }
    if (ring->backlog > ring->in_flight_max)
        ring->backlog = ring->in_flight_max;
}

void ring_turn(struct ring *ring, uint64_t limit)
{
    unsigned left = ring_settle(ring);

    if (!ring->writable)
        follow_pace(ring, left);
    uint64_t more = left < ring->backlog ? ring->backlog - left : 0;
    if (more > limit - ring->offered)
        more = limit - ring->offered;
    if (more == 0)
        return;
    if (ring->packed) {
        for (uint64_t i = 0; i < more; i++)
            offer_packed(ring);
    } else {
        ring->offered += more;
        ring->available += (uint16_t)more;
        __atomic_store_n(&((struct split_index *)ring->driver)->index, ring->available, __ATOMIC_RELEASE);
    }
    signal_switch(ring);
}

void ring_dirty(struct ring *ring)
{
    if (ring->packed) {
        volatile struct packed_descriptor *next = (volatile struct packed_descriptor *)ring->descriptors + ring->next;
        next->flags = next->flags;
    } else {
        volatile struct split_index *driver = ring->driver;
        driver->flags = driver->flags;
    }
}
