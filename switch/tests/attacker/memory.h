/* The memory that a port shares with the switch: one large region for rings and frames. If an attack needs them, many
 * small regions follow it, each at the next guest address. */
#ifndef ATTACKER_MEMORY_H
#define ATTACKER_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum {
    /* Most regions that a back end accepts (vhost-user protocol, ADD_MEM_REG; what QEMU and the switch allow). */
    REGIONS_MAX = 509,
    /* Bytes of a small region: 508 of them hold the longest frame. */
    SMALL_REGION_LEN = 128,
};

struct region {
    uint64_t guest;  /* guest physical address */
    uint64_t len;    /* bytes */
    uint64_t offset; /* in the file, bytes */
};

struct memory {
    int file;      /* a memfd with all regions */
    uint8_t *host; /* its address in this process */
    size_t taken;  /* bytes of the large region that are in use */
    unsigned count;
    struct region regions[REGIONS_MAX];
};

/* Makes `count` regions, at least one. Exits on failure. */
void memory_make(struct memory *memory, unsigned count);
/* Returns `len` zeroed bytes of the large region, aligned to `align`; `guest` is their guest address. Exits if it is
 * full. */
void *memory_take(struct memory *memory, size_t len, size_t align, uint64_t *guest);
/* Guest address of the first small region. */
uint64_t memory_small(const struct memory *memory);
/* First guest address after all regions. */
uint64_t memory_end(const struct memory *memory);
/* The front end's address for a guest address, as in SET_VRING_ADDR. */
uint64_t memory_user(uint64_t guest);

#endif
