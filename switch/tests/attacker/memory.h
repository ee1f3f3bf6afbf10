/* The memory that a port shares with the switch: one large region for rings and frames, and, where an attack wants
 * them, many small ones behind it, each a region of its own at the next guest address. */
#ifndef ATTACKER_MEMORY_H
#define ATTACKER_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum {
    /* Most regions that a back end takes (vhost-user protocol, ADD_MEM_REG; what QEMU and the switch allow). */
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
    uint8_t *host; /* where this process has it */
    size_t taken;  /* bytes of the large region that are in use */
    unsigned count;
    struct region regions[REGIONS_MAX];
};

/* Makes `count` regions, at least one. Exits on failure. */
void memory_make(struct memory *memory, unsigned count);
/* `len` zeroed bytes of the large region, at a multiple of `align`; its guest address in `guest`. Exits when it is
 * full. */
void *memory_take(struct memory *memory, size_t len, size_t align, uint64_t *guest);
/* Guest address of the first small region. */
uint64_t memory_small(const struct memory *memory);
/* First guest address behind all regions. */
uint64_t memory_end(const struct memory *memory);
/* The front end's address that SET_VRING_ADDR has for a guest address. */
uint64_t memory_user(uint64_t guest);

#endif
