/* The front end's side of the vhost-user protocol, as far as the attacks need it. */
#ifndef ATTACKER_FRONTEND_H
#define ATTACKER_FRONTEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory.h"

/* Feature bits (virtio 1.2, 5.1.3 and 6; vhost-user). */
#define F_CSUM (UINT64_C(1) << 0)
#define F_GUEST_CSUM (UINT64_C(1) << 1)
#define F_GUEST_TSO4 (UINT64_C(1) << 7)
#define F_GUEST_TSO6 (UINT64_C(1) << 8)
#define F_GUEST_ECN (UINT64_C(1) << 9)
#define F_GUEST_UFO (UINT64_C(1) << 10)
#define F_HOST_TSO4 (UINT64_C(1) << 11)
#define F_HOST_TSO6 (UINT64_C(1) << 12)
#define F_HOST_UFO (UINT64_C(1) << 14)
#define F_MRG_RXBUF (UINT64_C(1) << 15)
#define F_MQ (UINT64_C(1) << 22)
#define F_LOG_ALL (UINT64_C(1) << 26)
#define F_INDIRECT_DESC (UINT64_C(1) << 28)
#define F_PROTOCOL_FEATURES (UINT64_C(1) << 30)
#define F_VERSION_1 (UINT64_C(1) << 32)
#define F_RING_PACKED (UINT64_C(1) << 34)
#define F_GUEST_USO4 (UINT64_C(1) << 54)
#define F_GUEST_USO6 (UINT64_C(1) << 55)
#define F_HOST_USO (UINT64_C(1) << 56)

struct frontend {
    int socket;
    uint64_t features; /* negotiated */
    uint64_t protocol; /* negotiated */
};

/* A ring's place, in guest addresses. Packed: descriptors, driver area, device area. */
struct ring_place {
    uint64_t descriptors;
    uint64_t driver;
    uint64_t device;
};

/* Connects to `path`, or listens there and waits for the switch; negotiates those of the `wanted` features that are
 * offered. All of these functions exit on failure. */
void frontend_open(struct frontend *frontend, const char *path, bool listens, uint64_t wanted);
/* Shares all regions: eight in a table, or more one by one. */
void frontend_share(struct frontend *frontend, const struct memory *memory);
/* SET_LOG_BASE, with a log that covers `memory`. */
void frontend_log(struct frontend *frontend, const struct memory *memory);
/* Sets a ring up, and enables it. `kick` and `call` may be any descriptors. */
void frontend_start(struct frontend *frontend, unsigned index, unsigned size, const struct ring_place *place,
                    bool packed, int kick, int call);
/* Whether the switch has closed the connection. */
bool frontend_is_closed(const struct frontend *frontend);

#endif
