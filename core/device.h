/* SPDX-License-Identifier: MIT */
/* device.h - choose a backend and a precision, and open the device. */
#ifndef CORE_DEVICE_H
#define CORE_DEVICE_H

#include "pipeline.h"

struct mp_opened {
    const struct mp_backend *backend;
    struct mp_device *device;
    enum mp_dtype dtype; /* how activations are kept */
    struct mp_device_info info;
};

/* name: "auto" (the best that works here, saying at -v why others do not),
 * "cpu", "cuda", "cuda:N". Close with o->backend->close(o->device). */
int mp_device_open(struct mp_opened *o, const char *name,
                   enum mp_precision precision, int threads,
                   struct mp_error *err);

#endif
