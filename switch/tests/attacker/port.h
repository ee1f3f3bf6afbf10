/* An attached port of the switch. */
#ifndef ATTACKER_PORT_H
#define ATTACKER_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include "frontend.h"
#include "memory.h"
#include "ring.h"

enum { QUEUE_PAIRS_MAX = 16 };

/* The receive buffers of a port. */
enum sink_mode {
    SINK_PLAIN,   /* buffers of 2 KiB, mergeable, nothing large */
    SINK_LARGE,   /* the same, and accepts large frames of every kind */
    SINK_ONEBYTE, /* chains of 1024 descriptors of one byte */
    SINK_ZERO,    /* single descriptors of no bytes */
    SINK_TINY,    /* single descriptors of one byte */
    SINK_DIRTY,   /* SINK_ONEBYTE over all regions, with a dirty log */
};

struct port_options {
    const char *socket;
    bool listens;
    unsigned pairs;
    unsigned ring_size;
    unsigned regions;
    bool packed;
    bool indirect; /* receive chains of many descriptors are indirect tables */
    bool calls; /* asks for calls */
    int call;   /* the call descriptor; -1: an eventfd of its own */
    enum sink_mode receives;
    uint8_t mac[6];
};

struct port {
    struct frontend frontend;
    struct memory memory;
    struct port_options options;
    int kick;
    struct ring receive[QUEUE_PAIRS_MAX];
    struct ring transmit[QUEUE_PAIRS_MAX];
};

/* The mode of this name; exits if there is none. */
enum sink_mode sink_mode_named(const char *name);
/* Attaches to the port, with receive rings filled and transmit rings empty. Exits on failure. */
void port_open(struct port *port, const struct port_options *options);
/* Sends one broadcast frame from the port's own address, so that the switch learns it. */
void port_announce(struct port *port);
/* Offers receive buffers again. */
void port_receive(struct port *port);
/* Returns the number of filled entries that came back, of all receive rings. */
uint64_t port_received(const struct port *port);

#endif
