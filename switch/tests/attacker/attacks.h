/* The attacks, and the parts of each. */
#ifndef ATTACKER_ATTACKS_H
#define ATTACKER_ATTACKS_H

#include <stdbool.h>
#include <stdint.h>

#include "frames.h"
#include "port.h"

/* The destination of frames. */
enum target {
    TO_SINK,
    TO_ALL,
    TO_GROUP,
    TO_UNKNOWN,
};

/* The buffers that hold a frame. */
enum layout {
    WHOLE,       /* one */
    BYTES_1024,  /* 1024 of one byte: the frame is cut off there */
    PIECES_1000, /* the frame in 1000 buffers */
    ZEROES_1024, /* 1024 of no bytes */
    PADDED_1000, /* the frame in single bytes, 1000 descriptors in all: the others have no bytes */
    SPAN_508,    /* one, in 508 regions */
    SPANS_1024,  /* 1024, each in 508 regions: far too long a frame */
};

enum call_kind {
    CALL_NONE,
    CALL_EPOLL,
    CALL_UDP,
};

struct attack {
    const char *name;
    const char *about;
    enum frame_kind frame;
    unsigned len; /* bytes of the frame */
    unsigned mss;
    enum target target;
    enum layout layout;
    bool indirect;
    bool packed;
    unsigned pairs; /* queue pairs that attack; 0: one */
    unsigned sinks; /* ports that receive, besides the one that sends */
    unsigned sink_pairs; /* queue pairs of each; 0: one */
    enum sink_mode mode;
    bool sources; /* a source address for each entry of the ring */
    bool steals;  /* the victim's source address */
    bool once;    /* one frame */
    bool kicks;   /* kicks without pause */
    bool dirties; /* writes to its rings' cache lines without pause, and offers a frame from time to time */
    enum call_kind call;
};

/* The attack of this name; exits if there is none. */
const struct attack *attack_named(const char *name);
/* Prints a line for each attack: name, queue pairs, sinks, queue pairs of a sink, kind, description. Kinds: "once"
 * for a single frame, "beside" if the victim must be in the same VLAN, else "apart". */
void attack_list(void);
/* Fills the transmit rings of `port`. `to`: the first sink's address; `from`: the attacker's, or the victim's. */
void attack_fill(const struct attack *attack, struct port *port, const uint8_t to[6], const uint8_t from[6]);

#endif
