/* SPDX-License-Identifier: MIT */
/*
 * queue.h - requests that wait, and whose turn it is.
 *
 * Bounded. First those of the highest priority; among them clients take turns;
 * of one client, the oldest. Times are seconds of mp_now.
 *
 * An entry is a member of what waits: it is in one queue at most, and nothing
 * is allocated for it. Threads: one at a time per queue.
 */
#ifndef CORE_DAEMON_QUEUE_H
#define CORE_DAEMON_QUEUE_H

#include <stddef.h>
#include <stdint.h>

struct mp_queued {
    struct mp_queued *next, *prev; /* the queue's; next NULL: in none */
    int priority;                  /* 1 first ... 9 last */
    uint64_t client;
    double deadline; /* 0: none */
};

/* Clients that were served lately; those not among them have waited longest.
 */
#define MP_QUEUE_CLIENTS 64

struct mp_queue {
    struct mp_queued all; /* the ends of a ring, in order of arrival */
    size_t n, most;
    uint64_t turn; /* counts what was taken */
    struct {
        uint64_t client, turn; /* turn: of its last; 0: no such client */
    } served[MP_QUEUE_CLIENTS];
};

void mp_queue_init(struct mp_queue *q, size_t most);
/* -1: full. */
int mp_queue_put(struct mp_queue *q, struct mp_queued *e);
/* Whose turn it is; NULL: it is empty. It stays, for a further turn, until it
 * is dropped. */
struct mp_queued *mp_queue_next(struct mp_queue *q);
void mp_queue_drop(struct mp_queue *q, struct mp_queued *e);

#endif
