/* SPDX-License-Identifier: MIT */
/* worker_usage.c - what a worker's devices hold, for the front to tell. */
#include <stdio.h>
#include <string.h>
#include "progress.h"
#include "worker_impl.h"

#define EVERY 1 /* second: drivers take their time to tell */

/* Its place in the ledger; MP_LEDGER_DEVICES: there is none left. */
static size_t place_of(struct mp_ledger *l, const struct mp_shared_device *d)
{
    char name[sizeof l->device->name];
    size_t i = 0;

    snprintf(name, sizeof name, "%s:%d", d->arena.backend->name,
             (int)d->conf.index);
    while (i < MP_LEDGER_DEVICES && *l->device[i].name &&
           strcmp(l->device[i].name, name))
        i++;
    if (i < MP_LEDGER_DEVICES)
        memcpy(l->device[i].name, name, sizeof name);
    return i;
}

void mp_worker_tell_memory(struct worker *w)
{
    struct mp_device_memory all[MP_LEDGER_DEVICES] = {{0}}, m;

    /* a device may be open twice, as exact as needed and not */
    for (const struct mp_shared_device *d = w->devices.first; d; d = d->next) {
        size_t i = place_of(w->ledger, d);

        if (i == MP_LEDGER_DEVICES ||
            d->arena.backend->memory(d->arena.device, &m, NULL))
            continue; /* it does not tell */
        all[i].total = m.total;
        all[i].free = m.free;
        all[i].ours += m.ours;
        atomic_store(&w->ledger->device[i].apart, !d->arena.backend->host);
    }
    for (size_t i = 0; i < MP_LEDGER_DEVICES; i++) {
        struct mp_ledger_device *to = &w->ledger->device[i];

        atomic_store(&to->memory[MP_MEMORY_FREE], all[i].free);
        atomic_store(&to->memory[MP_MEMORY_HELD], all[i].ours);
        /* last: with it the others hold */
        atomic_store(&to->memory[MP_MEMORY_ALL], all[i].total);
    }
    w->told_memory = mp_now();
}

void mp_worker_tell_usage(struct worker *w, double busy)
{
    atomic_fetch_add(&w->ledger->busy_ns, (uint64_t)(busy * 1e9));
    if (mp_now() - w->told_memory >= EVERY)
        mp_worker_tell_memory(w);
}
