#include "port.h"

#include <err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "frames.h"

enum {
    BUFFER_LEN = 2048,
    PIECES = 1024, /* the longest chain that the switch follows */
    ANNOUNCEMENT_LEN = 60,
};

static const struct {
    const char *name;
    enum sink_mode mode;
} modes[] = {
    {"plain", SINK_PLAIN}, {"large", SINK_LARGE}, {"onebyte", SINK_ONEBYTE},
    {"zero", SINK_ZERO},   {"tiny", SINK_TINY},   {"dirty", SINK_DIRTY},
};

enum sink_mode sink_mode_named(const char *name)
{
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
        if (strcmp(name, modes[i].name) == 0)
            return modes[i].mode;
    errx(2, "no sink mode %s: plain, large, onebyte, zero, tiny, dirty", name);
}

static uint64_t features_of(const struct port_options *options)
{
    uint64_t features = F_VERSION_1 | F_MRG_RXBUF | F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_UFO | F_HOST_USO |
                        F_INDIRECT_DESC;

    if (options->packed)
        features |= F_RING_PACKED;
    if (options->pairs > 1)
        features |= F_MQ;
    if (options->receives == SINK_LARGE)
        features |= F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO | F_GUEST_USO4 |
                    F_GUEST_USO6;
    if (options->receives == SINK_DIRTY)
        features |= F_LOG_ALL;
    return features;
}

/* The address of a byte for piece `i`, in another region than its neighbours if there are several. */
static uint64_t spread(const struct memory *memory, unsigned i)
{
    unsigned small = memory->count - 1;

    return memory_small(memory) + (uint64_t)(i % small) * SMALL_REGION_LEN + i / small;
}

static void fill_receive(struct port *port)
{
    struct memory *memory = &port->memory;
    enum sink_mode mode = port->options.receives;
    bool is_chain = mode == SINK_ONEBYTE || mode == SINK_DIRTY;
    unsigned count = is_chain ? PIECES : 1;
    struct piece *pieces = calloc(count, sizeof *pieces);
    struct chain *chain = calloc(1, sizeof *chain);
    uint64_t buffer;

    if (pieces == NULL || chain == NULL)
        errx(1, "no memory");
    memory_take(memory, BUFFER_LEN, 64, &buffer);
    for (unsigned i = 0; i < count; i++)
        pieces[i] = (struct piece){mode == SINK_DIRTY ? spread(memory, i) : buffer + i, 1};
    if (mode == SINK_ZERO)
        pieces[0].len = 0;
    if (mode == SINK_PLAIN || mode == SINK_LARGE)
        pieces[0].len = BUFFER_LEN;
    *chain = (struct chain){pieces, count};
    for (unsigned pair = 0; pair < port->options.pairs; pair++)
        ring_fill(&port->receive[pair], memory, chain, 1, is_chain && port->options.indirect, true);
}

static void start(struct port *port)
{
    const struct port_options *options = &port->options;

    for (unsigned pair = 0; pair < options->pairs; pair++) {
        struct ring *rings[2] = {&port->receive[pair], &port->transmit[pair]};
        for (unsigned i = 0; i < 2; i++) {
            rings[i]->kick = port->kick;
            frontend_start(&port->frontend, 2 * pair + i, options->ring_size, &rings[i]->place, options->packed,
                           port->kick, options->call);
        }
    }
}

void port_open(struct port *port, const struct port_options *options)
{
    *port = (struct port){.options = *options};
    if (port->options.receives == SINK_DIRTY)
        port->options.regions = REGIONS_MAX;
    if (port->options.call < 0)
        port->options.call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    port->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (port->kick < 0 || port->options.call < 0)
        err(1, "eventfd");
    memory_make(&port->memory, port->options.regions);
    for (unsigned pair = 0; pair < options->pairs; pair++) {
        ring_make(&port->receive[pair], &port->memory, 2 * pair, options->ring_size, options->packed, options->calls);
        ring_make(&port->transmit[pair], &port->memory, 2 * pair + 1, options->ring_size, options->packed,
                  options->calls);
    }
    fill_receive(port);
    frontend_open(&port->frontend, options->socket, options->listens, features_of(options));
    if (options->packed && !(port->frontend.features & F_RING_PACKED))
        errx(1, "%s: packed rings are not offered", options->socket);
    frontend_share(&port->frontend, &port->memory);
    if (port->options.receives == SINK_DIRTY)
        frontend_log(&port->frontend, &port->memory);
    start(port);
    port_receive(port);
}

void port_announce(struct port *port)
{
    static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct piece *piece = calloc(1, sizeof *piece);
    struct chain *chain = calloc(1, sizeof *chain);
    size_t len = HEADER_LEN + ANNOUNCEMENT_LEN;

    if (piece == NULL || chain == NULL)
        errx(1, "no memory");
    uint8_t *bytes = memory_take(&port->memory, len, 64, &piece->guest);
    piece->len = (uint32_t)frame_write(bytes, FRAME_PLAIN, all, port->options.mac, ANNOUNCEMENT_LEN, 0);
    *chain = (struct chain){piece, 1};
    ring_fill(&port->transmit[0], &port->memory, chain, 1, false, false);
    ring_turn(&port->transmit[0], 1);
}

void port_receive(struct port *port)
{
    for (unsigned pair = 0; pair < port->options.pairs; pair++)
        ring_turn(&port->receive[pair], UINT64_MAX);
}

uint64_t port_received(const struct port *port)
{
    uint64_t taken = 0;

    for (unsigned pair = 0; pair < port->options.pairs; pair++)
        taken += port->receive[pair].taken;
    return taken;
}
