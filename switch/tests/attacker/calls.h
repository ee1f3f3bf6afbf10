/* Call descriptors that are expensive to write to. */
#ifndef ATTACKER_CALLS_H
#define ATTACKER_CALLS_H

/* An eventfd that is watched by up to `entries` entries of epoll sets, as many as the limits allow; how many in
 * `made`. Each write to it walks all of them. */
int call_watched_by_epoll(unsigned long entries, unsigned long *made);
/* A UDP socket whose datagrams go to `receivers` sockets of a network namespace that is this process's own. */
int call_broadcast_by_udp(unsigned receivers);

#endif
