/* SPDX-License-Identifier: MIT */
/* device.c - backend and precision by name, or the best that there is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "device.h"
#include "module.h"

/* "cuda:1" -> "cuda", 1 */
static int split(char name[32], int *index, const char *text,
                 struct mp_error *err)
{
    size_t n = strcspn(text, ":");
    char *end = NULL;
    long i = 0;

    errno = 0;
    if (text[n])
        i = strtol(text + n + 1, &end, 10);
    if (n == 0 || n > 31 || errno || i < 0 || i > 1023 ||
        (end && (*end || end == text + n + 1)))
        return mp_fail(err, MP_EINVAL,
                       "backend \"%s\" is not right: auto, cpu, cuda or "
                       "cuda:N",
                       text);
    memcpy(name, text, n);
    name[n] = '\0';
    *index = (int)i;
    return 0;
}

static int pick_type(struct mp_opened *o, enum mp_precision precision,
                     struct mp_error *err)
{
    static const enum mp_dtype type[] = {
        [MP_PREC_AUTO] = MP_NONE, [MP_PREC_FP32] = MP_F32,
        [MP_PREC_TF32] = MP_F32,  [MP_PREC_BF16] = MP_BF16,
        [MP_PREC_FP16] = MP_F16,
    };

    if (precision == MP_PREC_TF32 && strcmp(o->backend->name, "cuda"))
        return mp_fail(err, MP_ENOTSUP,
                       "precision tf32 is for NVIDIA GPUs; %s has fp32",
                       o->backend->name);
    o->dtype = type[precision];
    if (precision == MP_PREC_AUTO)
        o->dtype = o->backend->best(o->device);
    return o->backend->supports(o->device, o->dtype, err);
}

static int open_one(struct mp_opened *o, const char *name, int index,
                    enum mp_precision precision, int threads,
                    struct mp_error *err)
{
    struct mp_device_conf conf = {
        .index = index, .threads = threads, .tf32 = precision == MP_PREC_TF32};
    int n, rc = mp_backend_find(&o->backend, name, err);

    if (rc)
        return rc;
    n = o->backend->probe(err);
    if (n < 0)
        return n;
    if (index >= n)
        return mp_fail(err, MP_EINVAL, "%s:%d: this machine has %d device%s",
                       name, index, n, n == 1 ? "" : "s");
    rc = o->backend->info(index, &o->info, err);
    return rc ? rc : o->backend->open(&o->device, &conf, err);
}

int mp_device_open(struct mp_opened *o, const char *name,
                   enum mp_precision precision, int threads,
                   struct mp_error *err)
{
    struct mp_error why = {0};
    char base[32];
    int index = 0, rc;

    memset(o, 0, sizeof *o);
    if (strcmp(name, "auto")) {
        rc = split(base, &index, name, err);
        if (!rc)
            rc = open_one(o, base, index, precision, threads, err);
    } else {
        rc = open_one(o, "cuda", 0, precision, threads, &why);
        if (rc) {
            mp_log(MP_LOG_INFO, "device", "not on a GPU: %s", why.text);
            rc = open_one(o, "cpu", 0, precision, threads, err);
        }
    }
    if (!rc)
        rc = pick_type(o, precision, err);
    if (rc && o->device) {
        o->backend->close(o->device);
        o->device = NULL;
    }
    return rc;
}
