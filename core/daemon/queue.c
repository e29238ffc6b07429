/* SPDX-License-Identifier: MIT */
/* queue.c - a ring in order of arrival; who is next is found by looking. */
#include "queue.h"

void mp_queue_init(struct mp_queue *q, size_t most)
{
    *q = (struct mp_queue){.most = most};
    q->all.next = q->all.prev = &q->all;
}

int mp_queue_put(struct mp_queue *q, struct mp_queued *e)
{
    if (q->n >= q->most)
        return -1;
    e->next = &q->all;
    e->prev = q->all.prev;
    e->prev->next = e->next->prev = e;
    q->n++;
    return 0;
}

void mp_queue_drop(struct mp_queue *q, struct mp_queued *e)
{
    e->prev->next = e->next;
    e->next->prev = e->prev;
    e->next = e->prev = NULL;
    q->n--;
}

/* The place of a client, or else that of who was served longest ago. */
static size_t place_of(const struct mp_queue *q, uint64_t client, int *found)
{
    size_t oldest = 0;

    *found = 0;
    for (size_t i = 0; i < MP_QUEUE_CLIENTS; i++) {
        if (q->served[i].turn && q->served[i].client == client) {
            *found = 1;
            return i;
        }
        if (q->served[i].turn < q->served[oldest].turn)
            oldest = i;
    }
    return oldest;
}

static uint64_t last_turn(const struct mp_queue *q, uint64_t client)
{
    int found;
    size_t i = place_of(q, client, &found);

    return found ? q->served[i].turn : 0;
}

struct mp_queued *mp_queue_next(struct mp_queue *q)
{
    struct mp_queued *best = NULL;
    uint64_t turn = 0;
    size_t i;
    int found;

    for (struct mp_queued *e = q->all.next; e != &q->all; e = e->next) {
        uint64_t last = last_turn(q, e->client);

        if (best && (e->priority > best->priority ||
                     (e->priority == best->priority && last >= turn)))
            continue;
        best = e;
        turn = last;
    }
    if (!best)
        return NULL;
    i = place_of(q, best->client, &found);
    q->served[i].client = best->client;
    q->served[i].turn = ++q->turn;
    return best;
}
