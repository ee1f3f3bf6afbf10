#include "frontend.h"

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Requests (vhost-user protocol, "Front-end message types"). */
enum {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
    ADD_MEM_REG = 37,
};

#define PROTOCOL_MQ (UINT64_C(1) << 0)
#define PROTOCOL_LOG_SHMFD (UINT64_C(1) << 1)
#define PROTOCOL_REPLY_ACK (UINT64_C(1) << 3)
#define PROTOCOL_MEM_SLOTS (UINT64_C(1) << 15)

enum {
    TABLE_REGIONS_MAX = 8,
    FLAG_VERSION = 1,
    FLAG_NEED_REPLY = 8,
    LOG_PAGE_LEN = 4096,
    ANSWER_MS_MAX = 10000,
    CONNECT_TRIES = 200,
    CONNECT_PAUSE_US = 20000,
};

struct header {
    uint32_t request;
    uint32_t flags;
    uint32_t len;
};

struct table_region {
    uint64_t guest;
    uint64_t len;
    uint64_t user;
    uint64_t offset;
};

struct vring_state {
    uint32_t index;
    uint32_t value;
};

struct vring_address {
    uint32_t index;
    uint32_t flags;
    uint64_t descriptors;
    uint64_t used;
    uint64_t available;
    uint64_t log;
};

static void send_message(int socket, uint32_t request, uint32_t flags, const void *payload, size_t len,
                         const int *fds, size_t fd_count)
{
    struct header header = {request, FLAG_VERSION | flags, (uint32_t)len};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)payload, len}};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * TABLE_REGIONS_MAX)];
    } control = {0};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = len > 0 ? 2 : 1};

    if (fd_count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != (ssize_t)(sizeof header + len))
        err(1, "sending vhost-user request %u", request);
}

static void receive_exactly(int socket, uint32_t request, void *bytes, size_t len)
{
    size_t got = 0;

    while (got < len) {
        struct pollfd readable = {socket, POLLIN, 0};
        ssize_t n = 0;
        if (poll(&readable, 1, ANSWER_MS_MAX) == 1)
            n = recv(socket, (char *)bytes + got, len - got, 0);
        if (n <= 0)
            errx(1, "no answer to vhost-user request %u", request);
        got += (size_t)n;
    }
}

static uint64_t receive_word(int socket, uint32_t request)
{
    struct header header;
    uint64_t word = 0;

    receive_exactly(socket, request, &header, sizeof header);
    if (header.request != request || header.len > 64)
        errx(1, "request %u is answered by %u with %u bytes", request, header.request, header.len);
    char payload[64];
    receive_exactly(socket, request, payload, header.len);
    memcpy(&word, payload, header.len < sizeof word ? header.len : sizeof word);
    return word;
}

static uint64_t ask(int socket, uint32_t request)
{
    send_message(socket, request, 0, NULL, 0, NULL, 0);
    return receive_word(socket, request);
}

/* Sends a message, and waits for its acknowledgement if REPLY_ACK is negotiated. */
static void tell(struct frontend *frontend, uint32_t request, const void *payload, size_t len, const int *fds,
                 size_t fd_count)
{
    bool acknowledged = (frontend->protocol & PROTOCOL_REPLY_ACK) != 0;

    send_message(frontend->socket, request, acknowledged ? FLAG_NEED_REPLY : 0, payload, len, fds, fd_count);
    if (acknowledged && receive_word(frontend->socket, request) != 0)
        errx(1, "vhost-user request %u is refused", request);
}

static int open_socket(const char *path, bool listens)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        errx(1, "socket %s: its path is too long, or there are no descriptors", path);
    strcpy(address.sun_path, path);
    if (listens) {
        unlink(path);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 1) != 0)
            err(1, "listening on %s", path);
        int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0)
            err(1, "accepting on %s", path);
        close(fd);
        return connection;
    }
    for (int i = 0; i < CONNECT_TRIES; i++) {
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            return fd;
        usleep(CONNECT_PAUSE_US);
    }
    err(1, "connecting to %s", path);
}

void frontend_open(struct frontend *frontend, const char *path, bool listens, uint64_t wanted)
{
    int socket = open_socket(path, listens);

    *frontend = (struct frontend){.socket = socket};
    frontend->features = ask(socket, GET_FEATURES) & (wanted | F_PROTOCOL_FEATURES);
    if (frontend->features & F_PROTOCOL_FEATURES) {
        uint64_t known = PROTOCOL_MQ | PROTOCOL_LOG_SHMFD | PROTOCOL_REPLY_ACK | PROTOCOL_MEM_SLOTS;
        uint64_t protocol = ask(socket, GET_PROTOCOL_FEATURES) & known;
        send_message(socket, SET_PROTOCOL_FEATURES, 0, &protocol, sizeof protocol, NULL, 0);
        frontend->protocol = protocol;
    }
    tell(frontend, SET_OWNER, NULL, 0, NULL, 0);
    tell(frontend, SET_FEATURES, &frontend->features, sizeof frontend->features, NULL, 0);
}

static struct table_region described(const struct region *region)
{
    return (struct table_region){region->guest, region->len, memory_user(region->guest), region->offset};
}

static void share_table(struct frontend *frontend, const struct memory *memory)
{
    struct {
        uint32_t count;
        uint32_t padding;
        struct table_region regions[TABLE_REGIONS_MAX];
    } table = {.count = memory->count};
    int files[TABLE_REGIONS_MAX];

    for (unsigned i = 0; i < memory->count; i++) {
        table.regions[i] = described(&memory->regions[i]);
        files[i] = memory->file;
    }
    size_t len = 8 + memory->count * sizeof table.regions[0];
    tell(frontend, SET_MEM_TABLE, &table, len, files, memory->count);
}

void frontend_share(struct frontend *frontend, const struct memory *memory)
{
    if (memory->count <= TABLE_REGIONS_MAX) {
        share_table(frontend, memory);
        return;
    }
    if (!(frontend->protocol & PROTOCOL_MEM_SLOTS))
        errx(1, "%u regions need CONFIGURE_MEM_SLOTS, which is not offered", memory->count);
    for (unsigned i = 0; i < memory->count; i++) {
        struct {
            uint64_t padding;
            struct table_region region;
        } single = {0, described(&memory->regions[i])};
        tell(frontend, ADD_MEM_REG, &single, sizeof single, &memory->file, 1);
    }
}

void frontend_log(struct frontend *frontend, const struct memory *memory)
{
    uint64_t pages = (memory_end(memory) + LOG_PAGE_LEN - 1) / LOG_PAGE_LEN;
    uint64_t log[2] = {(pages / 8 / LOG_PAGE_LEN + 1) * LOG_PAGE_LEN, 0};
    int file = memfd_create("attacker-log", MFD_CLOEXEC);

    if (!(frontend->protocol & PROTOCOL_LOG_SHMFD))
        errx(1, "a dirty log needs LOG_SHMFD, which is not offered");
    if (file < 0 || ftruncate(file, (off_t)log[0]) != 0)
        err(1, "memfd for the dirty log");
    send_message(frontend->socket, SET_LOG_BASE, 0, log, sizeof log, &file, 1);
    receive_word(frontend->socket, SET_LOG_BASE);
    close(file);
}

void frontend_start(struct frontend *frontend, unsigned index, unsigned size, const struct ring_place *place,
                    bool packed, int kick, int call)
{
    struct vring_state num = {index, size};
    /* Packed: both indices at 0, both wrap counters 1. */
    struct vring_state base = {index, packed ? 0x80008000 : 0};
    struct vring_state enabled = {index, 1};
    struct vring_address address = {
        .index = index,
        .descriptors = memory_user(place->descriptors),
        .used = memory_user(place->device),
        .available = memory_user(place->driver),
    };
    uint64_t which = index;

    tell(frontend, SET_VRING_NUM, &num, sizeof num, NULL, 0);
    tell(frontend, SET_VRING_BASE, &base, sizeof base, NULL, 0);
    tell(frontend, SET_VRING_ADDR, &address, sizeof address, NULL, 0);
    tell(frontend, SET_VRING_CALL, &which, sizeof which, &call, 1);
    tell(frontend, SET_VRING_KICK, &which, sizeof which, &kick, 1);
    if (frontend->features & F_PROTOCOL_FEATURES)
        tell(frontend, SET_VRING_ENABLE, &enabled, sizeof enabled, NULL, 0);
}

bool frontend_is_closed(const struct frontend *frontend)
{
    struct pollfd state = {frontend->socket, POLLRDHUP, 0};

    return poll(&state, 1, 0) == 1 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}
