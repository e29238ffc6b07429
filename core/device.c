/* SPDX-License-Identifier: MIT */
/* device.c - backend and precision by name, or the best that there is. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "device.h"
#include "module.h"

void mp_wait_briefly(char **argv)
{
    char self[PATH_MAX]; /* by name, as it is to be called by it */
    ssize_t n;

    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT"))
        return;
    n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0 || setenv("OMP_WAIT_POLICY", "passive", 1) ||
        setenv("GOMP_SPINCOUNT", "1000", 1))
        return;
    self[n] = '\0';
    execv(self, argv);
}

static int is_wrong(const char *text, struct mp_error *err)
{
    return mp_fail(err, MP_EINVAL,
                   "backend \"%s\" is not right: auto, cpu, cuda, cuda:N, "
                   "cuda:N,N,... or cuda:all",
                   text);
}

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
        return is_wrong(text, err);
    memcpy(name, text, n);
    name[n] = '\0';
    *index = (int)i;
    return 0;
}

/* ---- several ---- */

/* Number i of backend, unless it is there. */
static int add_name(char name[][MP_DEVICE_NAME], size_t *n, const char *backend,
                    int i, struct mp_error *err)
{
    if (*n == MP_DEVICES_MAX)
        return mp_fail(err, MP_EINVAL, "backend %s: more than %d devices",
                       backend, MP_DEVICES_MAX);
    snprintf(name[*n], MP_DEVICE_NAME, "%s:%d", backend, i);
    for (size_t k = 0; k < *n; k++)
        if (!strcmp(name[k], name[*n]))
            return mp_fail(err, MP_EINVAL, "backend: %s is named twice",
                           name[k]);
    ++*n;
    return 0;
}

static int add_all(char name[][MP_DEVICE_NAME], size_t *n, const char *backend,
                   struct mp_error *err)
{
    const struct mp_backend *b;
    struct mp_device_info info;
    struct mp_error why = {0};
    int rc = mp_backend_find(&b, backend, err), count;

    if (rc)
        return rc;
    count = b->probe(err);
    if (count < 0)
        return count;
    for (int i = 0; i < count && !rc; i++)
        if (b->info(i, &info, &why))
            mp_log(MP_LOG_INFO, "device", "left out: %s", why.text);
        else
            rc = add_name(name, n, backend, i, err);
    return rc || *n ? rc : mp_fail(err, why.code, "%s", why.text);
}

int mp_device_names(char name[MP_DEVICES_MAX][MP_DEVICE_NAME], size_t *n,
                    const char *text, struct mp_error *err)
{
    size_t length = strcspn(text, ":");
    const char *at = text + length;
    char backend[32], one[MP_DEVICE_NAME];
    int rc = 0, index;

    *n = 0;
    if (length < sizeof backend && !strcmp(at, ":all")) {
        snprintf(backend, sizeof backend, "%.*s", (int)length, text);
        return add_all(name, n, backend, err);
    }
    if (!strchr(at, ',')) {
        if (strlen(text) >= MP_DEVICE_NAME)
            return is_wrong(text, err);
        strcpy(name[(*n)++], text);
        return 0;
    }
    while (*at && !rc) { /* at ':' or ',' */
        size_t digits = strcspn(at + 1, ",");

        if (length + 1 + digits >= sizeof one)
            return is_wrong(text, err);
        snprintf(one, sizeof one, "%.*s:%.*s", (int)length, text, (int)digits,
                 at + 1);
        if (split(backend, &index, one, NULL))
            return is_wrong(text, err);
        rc = add_name(name, n, backend, index, err);
        at += 1 + digits;
    }
    return rc;
}

/* ---- one ---- */

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

static int is_open(const struct mp_shared_device *d,
                   const struct mp_backend *backend,
                   const struct mp_device_conf *conf)
{
    return d->arena.backend == backend && d->conf.index == conf->index &&
           d->conf.threads == conf->threads && d->conf.tf32 == conf->tf32 &&
           d->conf.autotune == conf->autotune;
}

/* The device of o->backend; all: NULL, or where to look for it first. */
static int open_device(struct mp_opened *o, struct mp_devices *all,
                       const struct mp_device_conf *conf, struct mp_error *err)
{
    struct mp_shared_device *d = all ? all->first : NULL;
    int rc;

    if (!all)
        return o->backend->open(&o->device, conf, err);
    while (d && !is_open(d, o->backend, conf))
        d = d->next;
    if (!d) {
        d = calloc(1, sizeof *d);
        if (!d)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        d->conf = *conf;
        d->arena.backend = o->backend;
        rc = o->backend->open(&d->arena.device, conf, err);
        if (rc) {
            free(d);
            return rc;
        }
        d->next = all->first;
        all->first = d;
    }
    d->users++;
    o->shared = d;
    o->device = d->arena.device;
    return 0;
}

static int open_one(struct mp_opened *o, struct mp_devices *all,
                    const char *name, const struct mp_device_conf *conf,
                    struct mp_error *err)
{
    int n, rc = mp_backend_find(&o->backend, name, err);

    if (rc)
        return rc;
    n = o->backend->probe(err);
    if (n < 0)
        return n;
    if (conf->index >= n)
        return mp_fail(err, MP_EINVAL, "%s:%d: this machine has %d device%s",
                       name, conf->index, n, n == 1 ? "" : "s");
    rc = o->backend->info(conf->index, &o->info, err);
    return rc ? rc : open_device(o, all, conf, err);
}

/* The first GPU that works, else the CPU. */
static int open_best(struct mp_opened *o, struct mp_devices *all,
                     struct mp_device_conf *conf, struct mp_error *err)
{
    const struct mp_backend *cuda;
    struct mp_error why = {0};
    int n = mp_backend_find(&cuda, "cuda", &why) ? 0 : cuda->probe(&why);

    for (conf->index = 0; conf->index < n; conf->index++)
        if (!open_one(o, all, "cuda", conf, &why))
            return 0;
    mp_log(MP_LOG_INFO, "device", "not on a GPU: %s", why.text);
    conf->index = 0;
    return open_one(o, all, "cpu", conf, err);
}

void mp_devices_close(struct mp_devices *all, struct mp_opened *o)
{
    struct mp_shared_device *d = o->shared, **at;

    if (!o->device)
        return;
    if (!d) {
        o->backend->close(o->device);
    } else {
        mp_arena_free(&d->arena); /* those who stay may need less */
        if (!--d->users) {
            for (at = &all->first; *at != d;)
                at = &(*at)->next;
            *at = d->next;
            d->arena.backend->close(d->arena.device);
            free(d);
        }
    }
    o->shared = NULL;
    o->device = NULL;
}

int mp_devices_open(struct mp_devices *all, struct mp_opened *o,
                    const char *name, enum mp_precision precision, int threads,
                    int autotune, struct mp_error *err)
{
    struct mp_device_conf conf = {.threads = threads,
                                  .tf32 = precision == MP_PREC_TF32,
                                  .autotune = autotune};
    char base[32];
    int rc;

    if (all) {
        conf.is_stopped = all->is_stopped;
        conf.user = all->user;
    }
    memset(o, 0, sizeof *o);
    if (!strcmp(name, "auto")) {
        rc = open_best(o, all, &conf, err);
    } else {
        rc = split(base, &conf.index, name, err);
        if (!rc)
            rc = open_one(o, all, base, &conf, err);
    }
    if (!rc)
        rc = pick_type(o, precision, err);
    if (rc)
        mp_devices_close(all, o);
    return rc;
}

int mp_device_open(struct mp_opened *o, const char *name,
                   enum mp_precision precision, int threads,
                   struct mp_error *err)
{
    return mp_devices_open(NULL, o, name, precision, threads, 0, err);
}
