/* Call descriptors that are slow to write to. */
#ifndef ATTACKER_CALLS_H
#define ATTACKER_CALLS_H

/* Returns an eventfd that is watched by up to `entries` entries of epoll sets, within the limits; `made` is their
 * number. Each write to it walks all of them. */
int call_watched_by_epoll(unsigned long entries, unsigned long *made);
/* Returns a UDP socket whose datagrams go to `receivers` sockets of a private network namespace. */
int call_broadcast_by_udp(unsigned receivers);

#endif
