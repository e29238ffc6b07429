/* SPDX-License-Identifier: MIT */
/* arena.c - a device's memory, given back by any thread, freed by its own. */
#include <stdlib.h>
#include "arena.h"

#define SPARE 8 /* blocks kept for the next who asks */

struct mp_held {
    struct mp_arena *arena;
    mp_addr at;
    size_t bytes;
    atomic_size_t users;
    struct mp_held *next;
};

static void destroy(struct mp_held *h)
{
    h->arena->backend->free(h->arena->device, h->at);
    free(h);
}

/* What was given back becomes spare; no more than `most` stay. */
static void collect(struct mp_arena *a, size_t most)
{
    struct mp_held *h = atomic_exchange(&a->back, NULL), **end = &a->spare;

    while (h) {
        struct mp_held *next = h->next;

        h->next = a->spare;
        a->spare = h;
        h = next;
    }
    while (*end && most--)
        end = &(*end)->next;
    while (*end) {
        h = *end;
        *end = h->next;
        destroy(h);
    }
}

/* A spare block of this size, or one that is not much larger. */
static struct mp_held *take_spare(struct mp_arena *a, size_t bytes)
{
    for (struct mp_held **at = &a->spare, *h; (h = *at); at = &h->next)
        if (h->bytes >= bytes && h->bytes - bytes <= bytes / 4) {
            *at = h->next;
            return h;
        }
    return NULL;
}

int mp_held_new(struct mp_held **out, struct mp_arena *a, size_t bytes,
                struct mp_error *err)
{
    struct mp_held *h;
    int rc;

    collect(a, SPARE);
    h = take_spare(a, bytes);
    if (!h) {
        h = calloc(1, sizeof *h);
        if (!h)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        h->arena = a;
        h->bytes = bytes;
        rc = a->backend->alloc(a->device, bytes, &h->at, NULL);
        if (rc == MP_ENOMEM && a->spare)
            collect(a, 0);
        if (rc)
            rc = a->backend->alloc(a->device, bytes, &h->at, err);
        if (rc) {
            free(h);
            return rc;
        }
    }
    atomic_store(&h->users, 1);
    *out = h;
    return 0;
}

mp_addr mp_held_at(const struct mp_held *h)
{
    return h->at;
}

struct mp_arena *mp_held_arena(const struct mp_held *h)
{
    return h->arena;
}

struct mp_held *mp_held_share(struct mp_held *h)
{
    atomic_fetch_add(&h->users, 1);
    return h;
}

void mp_held_free(struct mp_held *h)
{
    struct mp_arena *a;

    if (!h || atomic_fetch_sub(&h->users, 1) > 1)
        return;
    a = h->arena;
    h->next = atomic_load(&a->back);
    while (!atomic_compare_exchange_weak(&a->back, &h->next, h))
        ;
}

/* ---- the arena ---- */

int mp_arena_fit(struct mp_arena *a, size_t bytes, struct mp_error *err)
{
    int rc;

    if (a->bytes >= bytes)
        return 0;
    if (a->at)
        a->backend->free(a->device, a->at);
    a->at = 0;
    a->bytes = 0;
    rc = a->backend->alloc(a->device, bytes, &a->at, NULL);
    if (rc) {
        collect(a, 0);
        rc = a->backend->alloc(a->device, bytes, &a->at, err);
    }
    a->bytes = rc ? 0 : bytes;
    return rc;
}

size_t mp_arena_idle(struct mp_arena *a)
{
    size_t bytes = a->bytes;

    collect(a, SPARE);
    for (const struct mp_held *h = a->spare; h; h = h->next)
        bytes += h->bytes;
    return bytes;
}

void mp_arena_free(struct mp_arena *a)
{
    collect(a, 0);
    if (a->at)
        a->backend->free(a->device, a->at);
    a->at = 0;
    a->bytes = 0;
}
