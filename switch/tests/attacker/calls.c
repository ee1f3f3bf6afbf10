#include "calls.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    UDP_PORT = 7777,
    /* Descriptors left for all other purposes. */
    SPARE_DESCRIPTORS = 1024,
    COPIES_MAX = 1000,
    RECEIVE_BUFFER_LEN = 1 << 20,
};

/* Raises the limit of descriptors to the maximum, and returns it. */
static unsigned long raise_descriptors(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        err(1, "RLIMIT_NOFILE");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        err(1, "RLIMIT_NOFILE");
    return limit.rlim_cur;
}

int call_watched_by_epoll(unsigned long entries, unsigned long *made)
{
    unsigned long room = raise_descriptors();
    int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int copies[COPIES_MAX];
    unsigned count = 0;

    if (event < 0 || room < 2 * SPARE_DESCRIPTORS)
        errx(1, "%lu descriptors are too few: raise RLIMIT_NOFILE", room);
    while (count < COPIES_MAX && count < (room - SPARE_DESCRIPTORS) / 2 && count < entries) {
        copies[count] = fcntl(event, F_DUPFD_CLOEXEC, 0);
        if (copies[count] < 0)
            break;
        count++;
    }
    for (*made = 0; *made < entries;) {
        int set = epoll_create1(EPOLL_CLOEXEC);
        if (set < 0)
            break; /* out of descriptors */
        for (unsigned i = 0; i < count && *made < entries; i++) {
            struct epoll_event wanted = {.events = EPOLLIN};
            if (epoll_ctl(set, EPOLL_CTL_ADD, copies[i], &wanted) != 0)
                return event; /* out of watches: fs.epoll.max_user_watches */
            ++*made;
        }
    }
    return event;
}

static void bring_loopback_up(void)
{
    struct ifreq request = {0};
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    strcpy(request.ifr_name, "lo");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (control < 0 || ioctl(control, SIOCSIFFLAGS, &request) != 0)
        err(1, "loopback up");
    close(control);
}

int call_broadcast_by_udp(unsigned receivers)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(UDP_PORT)};
    int yes = 1;

    raise_descriptors();
    if (unshare(CLONE_NEWNET) != 0)
        err(1, "a network namespace needs root");
    bring_loopback_up();
    for (unsigned i = 0; i < receivers; i++) {
        int len = RECEIVE_BUFFER_LEN;
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
            err(1, "receiver %u", i);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &len, sizeof len);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0)
            err(1, "receiver %u", i);
    }
    int sender = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = inet_addr("127.255.255.255");
    if (sender < 0 || setsockopt(sender, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes) != 0 ||
        connect(sender, (struct sockaddr *)&address, sizeof address) != 0)
        err(1, "a UDP socket to the broadcast address");
    return sender;
}
