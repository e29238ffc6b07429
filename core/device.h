/* SPDX-License-Identifier: MIT */
/*
 * device.h - choose a backend and a precision, and open the device.
 *
 * Pipelines of one thread share devices: weights packed on one for a pipeline
 * serve the next, and all run in the same memory. Their mp_devices begins as
 * zeros but for what is to stop them, and has no device again when the last of
 * them is closed.
 */
#ifndef CORE_DEVICE_H
#define CORE_DEVICE_H

#include "pipeline.h"
#include "session.h"

/* A device that is open. */
struct mp_shared_device {
    struct mp_shared_device *next;
    struct mp_device_conf conf;
    struct mp_arena arena; /* with the backend and the device */
    size_t users;
};

struct mp_devices {
    struct mp_shared_device *first;
    int (*is_stopped)(void *user); /* see struct mp_device_conf; NULL: never */
    void *user;
};

struct mp_opened {
    const struct mp_backend *backend;
    struct mp_device *device;
    enum mp_dtype dtype; /* how activations are kept */
    struct mp_device_info info;
    struct mp_shared_device *shared; /* NULL: o->device is one's own */
};

#define MP_DEVICES_MAX 16 /* of a pipeline */
#define MP_DEVICE_NAME 40 /* bytes */

/* For main, before all else, of a program that computes. OpenMP's threads wait
 * for each other in a loop, for some ms, and so keep the processor from those
 * they wait for where others want it, too: two programs at once took many times
 * as long as one. To sleep at once costs 60 us at every step. So they turn some
 * tens of us, which most waiting is over in, and sleep then. OpenMP reads how
 * to wait when it is loaded: this runs the program anew with
 * OMP_WAIT_POLICY=passive and GOMP_SPINCOUNT=1000, unless one of them is set;
 * where that cannot be done it goes on as it is. */
void mp_wait_briefly(char **argv);

/* The n devices that a configuration means: "cuda:0,2" is "cuda:0" and
 * "cuda:2", "cuda:all" all that will do; anything else is one device. */
int mp_device_names(char name[MP_DEVICES_MAX][MP_DEVICE_NAME], size_t *n,
                    const char *text, struct mp_error *err);

/* name: "auto" (the best that works here, saying at -v why others do not),
 * "cpu", "cuda", "cuda:N". Close with o->backend->close(o->device). */
int mp_device_open(struct mp_opened *o, const char *name,
                   enum mp_precision precision, int threads,
                   struct mp_error *err);

/* Likewise, but a device that is open in `all` already, with as many threads
 * and as exact, and tuned or not, is taken as it is. Its arena is
 * o->shared->arena. */
int mp_devices_open(struct mp_devices *all, struct mp_opened *o,
                    const char *name, enum mp_precision precision, int threads,
                    int autotune, struct mp_error *err);
/* After o's sessions. What was never opened is fine. */
void mp_devices_close(struct mp_devices *all, struct mp_opened *o);

#endif
