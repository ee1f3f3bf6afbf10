#include "memory.h"

#include <err.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUEST_BASE UINT64_C(0x10000)
#define USER_BASE (UINT64_C(1) << 40)
/* Sparse: only pages that rings and frames touch exist. Enough for 32 rings of 32768 entries. */
#define LARGE_LEN ((size_t)96 << 20)

void memory_make(struct memory *memory, unsigned count)
{
    size_t small = count - 1;
    size_t len = LARGE_LEN + small * SMALL_REGION_LEN;

    memory->file = memfd_create("attacker", MFD_CLOEXEC);
    if (memory->file < 0 || ftruncate(memory->file, (off_t)len) != 0)
        err(1, "memfd of %zu bytes", len);
    memory->host = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memory->file, 0);
    if (memory->host == MAP_FAILED)
        err(1, "mmap of %zu bytes", len);
    memory->taken = 0;
    memory->count = count;
    memory->regions[0] = (struct region){GUEST_BASE, LARGE_LEN, 0};
    for (size_t i = 0; i < small; i++) {
        /* From the file's end backwards: neighbours in guest memory are not neighbours in the file, so no back end
         * can join them. */
        memory->regions[1 + i] = (struct region){
            .guest = GUEST_BASE + LARGE_LEN + i * SMALL_REGION_LEN,
            .len = SMALL_REGION_LEN,
            .offset = LARGE_LEN + (small - 1 - i) * SMALL_REGION_LEN,
        };
    }
}

void *memory_take(struct memory *memory, size_t len, size_t align, uint64_t *guest)
{
    size_t at = (memory->taken + align - 1) / align * align;

    if (at + len > LARGE_LEN)
        errx(1, "the attack needs more than %zu bytes of memory: use fewer or smaller rings", LARGE_LEN);
    memory->taken = at + len;
    *guest = GUEST_BASE + at;
    return memory->host + at;
}

uint64_t memory_small(const struct memory *memory)
{
    return memory->regions[0].guest + memory->regions[0].len;
}

uint64_t memory_end(const struct memory *memory)
{
    const struct region *last = &memory->regions[memory->count - 1];

    return last->guest + last->len;
}

uint64_t memory_user(uint64_t guest)
{
    return USER_BASE + guest;
}
