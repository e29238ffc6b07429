/* SPDX-License-Identifier: MIT */
/*
 * arena.h - the memory of a device: the arena that its sessions run in, one at
 * a time, and blocks that outlive a run, so that what one session gives stays
 * on the device until another takes it.
 *
 * A block has holders; who lets go of it last gives it back, and it serves
 * again: the device does things in order, so that nothing has to be waited for.
 *
 * Threads: the device's, but for mp_held_share and mp_held_free.
 */
#ifndef CORE_ARENA_H
#define CORE_ARENA_H

#include <stdatomic.h>
#include "mpipe/backend.h"

struct mp_held;

/* Set backend and device, the rest to 0; empty it with mp_arena_free after the
 * last session and when no block is held. */
struct mp_arena {
    const struct mp_backend *backend;
    struct mp_device *device;
    mp_addr at; /* as large as the largest session needs */
    size_t bytes;
    struct mp_held *spare;          /* blocks that nobody holds */
    _Atomic(struct mp_held *) back; /* those given back since */
};
int mp_arena_fit(struct mp_arena *a, size_t bytes, struct mp_error *err);
/* Bytes that are there but not in use: what mp_arena_free would free. */
size_t mp_arena_idle(struct mp_arena *a);
void mp_arena_free(struct mp_arena *a);

int mp_held_new(struct mp_held **out, struct mp_arena *a, size_t bytes,
                struct mp_error *err);
mp_addr mp_held_at(const struct mp_held *h);
struct mp_arena *mp_held_arena(const struct mp_held *h);
/* One holder more, one less (NULL is fine). Any thread. */
struct mp_held *mp_held_share(struct mp_held *h);
void mp_held_free(struct mp_held *h);

#endif
