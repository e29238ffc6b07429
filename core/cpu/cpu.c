/* SPDX-License-Identifier: MIT */
/* cpu.c - the backend: the device, its memory, plans. */
#include <malloc.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "cpu/cpu.h"
#include "host.h"
#include "module.h"
#include "places.h"

#define HUGE ((size_t)2 << 20) /* from here on, ask for large pages */
/* No cache holds larger ones, so that twice the bytes take twice the time, and
 * they decide how much memory an encoder needs. */
#define WIDE_SUMS ((size_t)64 << 20)

/* ---- what there is ---- */

static void model_name(char *out, size_t n)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];

    snprintf(out, n, "CPU");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');

        if (strncmp(line, "model name", 10) || !colon)
            continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(out, n, "%s", colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

static int cpu_probe(struct mp_error *err)
{
    (void)err;
    return 1;
}

static int cpu_info(int index, struct mp_device_info *out, struct mp_error *err)
{
    struct mp_host_memory host;
    char model[80];

    if (index != 0)
        return mp_fail(err, MP_EINVAL, "cpu:%d: there is only cpu", index);
    model_name(model, sizeof model);
    snprintf(out->name, sizeof out->name, "%s, %d cores, %s", model,
             mp_host_cpus(omp_get_num_procs(), ""), k_isa());
    mp_host_memory(&host, "");
    out->memory = host.total;
    return 0;
}

static int cpu_open(struct mp_device **out, const struct mp_device_conf *conf,
                    struct mp_error *err)
{
    struct mp_device *d = calloc(1, sizeof *d);
    dnnl_status_t st;

    if (!d)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    d->conf = *conf;
    d->threads = conf->threads > 0 ? conf->threads
                                   : mp_host_cpus(omp_get_num_procs(), "");
    st = dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    if (st == dnnl_success)
        st = dnnl_stream_create(&d->stream, d->engine,
                                dnnl_stream_default_flags);
    if (st != dnnl_success) {
        mp_backend_cpu.close(d);
        return cpu_status(st, "cpu", err);
    }
    *out = d;
    return 0;
}

static void cpu_close(struct mp_device *d)
{
    if (!d)
        return;
    if (d->stream)
        dnnl_stream_destroy(d->stream);
    if (d->engine)
        dnnl_engine_destroy(d->engine);
    free(d);
}

/* bf16 takes half as long and changes 6 % of the labels of the untrained full
 * network (1 % is what "auto" may cost): for users to choose, knowingly. */
static enum mp_dtype cpu_best(const struct mp_device *d)
{
    (void)d;
    return MP_F32;
}

static int cpu_supports(const struct mp_device *d, enum mp_dtype t,
                        struct mp_error *err)
{
    (void)d;
    if (t == MP_F32 || (t == MP_BF16 && k_has_bf16()))
        return 0;
    return mp_fail(err, MP_ENOTSUP, "cpu: no arithmetic in %s here%s",
                   mp_dtype_name(t),
                   t == MP_BF16 ? ": it needs AVX512-BF16" : "");
}

/* ---- memory ---- */

void *cpu_get_memory(size_t bytes)
{
    size_t align = bytes >= HUGE ? HUGE : 64;
    void *p = NULL;

    if (posix_memalign(&p, align, bytes ? bytes : 64))
        return NULL;
    if (bytes >= HUGE)
        madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static int cpu_memory(struct mp_device *d, struct mp_device_memory *out,
                      struct mp_error *err)
{
    struct mp_host_memory host;

    (void)err;
    mp_host_memory(&host, "");
    out->total = host.total;
    out->free = host.free;
    out->free -= d->late < out->free ? d->late : out->free;
    out->ours = d->allocated + d->store.bytes;
    return 0;
}

void *cpu_take(struct mp_device *d, size_t bytes)
{
    void *p = d->spare;

    if (p && malloc_usable_size(p) >= bytes) {
        d->spare = NULL;
        return p;
    }
    p = cpu_get_memory(bytes);
    d->allocated += malloc_usable_size(p);
    return p;
}

void cpu_give_back(struct mp_device *d, void *p)
{
    void *less = p;

    if (d->sparing && malloc_usable_size(p) > malloc_usable_size(d->spare)) {
        less = d->spare;
        d->spare = p;
    }
    d->allocated -= malloc_usable_size(less);
    free(less);
}

static void keep_no_spare(struct mp_device *d)
{
    if (--d->sparing)
        return;
    cpu_give_back(d, d->spare);
    d->spare = NULL;
}

static int cpu_alloc(struct mp_device *d, size_t bytes, mp_addr *out,
                     struct mp_error *err)
{
    void *p = cpu_take(d, bytes);

    *out = (mp_addr)(uintptr_t)p;
    return p ? 0
             : mp_fail(err, MP_ENOMEM, "out of memory: %zu MB for activations",
                       bytes >> 20);
}

static void cpu_free(struct mp_device *d, mp_addr a)
{
    cpu_give_back(d, (void *)(uintptr_t)a);
}

static int cpu_put(struct mp_device *d, mp_addr dst, const void *src, size_t n,
                   struct mp_error *err)
{
    (void)d;
    (void)err;
    memcpy((void *)(uintptr_t)dst, src, n);
    return 0;
}

static int cpu_copy(struct mp_device *d, mp_addr dst, mp_addr src, size_t n,
                    struct mp_error *err)
{
    return cpu_put(d, dst, (const void *)(uintptr_t)src, n, err);
}

static int cpu_get(struct mp_device *d, void *dst, mp_addr src, size_t n,
                   uint64_t *ticket, struct mp_error *err)
{
    *ticket = 0;
    return cpu_copy(d, (mp_addr)(uintptr_t)dst, src, n, err);
}

static int cpu_wait(struct mp_device *d, uint64_t ticket, struct mp_error *err)
{
    (void)d;
    (void)ticket;
    (void)err;
    return 0;
}

/* ---- plans ---- */

static void cpu_plan_free(struct mp_plan *plan)
{
    if (!plan)
        return;
    for (size_t i = 0; plan->cpu && i < plan->nstep; i++)
        cpu_conv_free(&plan->cpu[i]);
    cpu_drop_all(plan);
    cpu_free(plan->device, (mp_addr)(uintptr_t)plan->scratch);
    free(plan->cpu);
    free(plan->at);
    free(plan->value);
    free(plan->step);
    free(plan);
}

/* Whether weights are held at first: where they would not stay in the page
 * cache, every step of a run would read them from the disk again. */
static int has_room(const struct mp_program *p)
{
    struct mp_host_memory host;
    uint64_t bytes = 0;

    if (p->once)
        return 1;
    mp_host_memory(&host, "");
    for (size_t i = 0; i < p->nvalue; i++)
        if (p->value[i].place == MP_CONSTANT)
            bytes += p->value[i].count * sizeof(float);
    return bytes + bytes / 2 < host.free;
}

/* ---- scratch ---- */

/* In the arena, if it has room: memory that was used before costs no time. Of a
 * program that runs once, results are in the arena, too. */
static int place_scratch(struct mp_plan *plan, const struct mp_program *p,
                         struct mp_error *err)
{
    size_t *at = malloc((p->nstep + 1) * sizeof *at);
    int rc;

    if (!at)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = 0; i < p->nstep; i++)
        at[i] = plan->cpu[i].scratch;
    rc = plan->once ? 0 : mp_places_scratch(at, p, err);
    for (size_t i = 0; i < p->nstep; i++) {
        struct cpu_step *c = &plan->cpu[i];

        c->scratch_at = plan->once ? MP_NO_ROOM : at[i];
        if (c->scratch_at == MP_NO_ROOM && c->scratch > plan->scratch_bytes)
            plan->scratch_bytes = c->scratch;
    }
    free(at);
    return rc;
}

char *cpu_scratch(const struct mp_plan *plan, size_t i)
{
    size_t at = plan->cpu[i].scratch_at;

    return at == MP_NO_ROOM ? plan->scratch : plan->arena + at;
}

static int cpu_compile(struct mp_device *d, const struct mp_program *p,
                       struct mp_plan **out, struct mp_error *err)
{
    struct mp_plan *plan = calloc(1, sizeof *plan);
    int rc = 0, before = omp_get_max_threads();

    if (!plan)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    plan->device = d;
    plan->once = p->once;
    plan->holds = has_room(p);
    plan->nvalue = p->nvalue;
    plan->nstep = p->nstep;
    plan->value = malloc((p->nvalue + 1) * sizeof *plan->value);
    plan->step = malloc((p->nstep + 1) * sizeof *plan->step);
    plan->cpu = calloc(p->nstep + 1, sizeof *plan->cpu);
    plan->at = calloc(p->nvalue + 1, sizeof *plan->at);
    if (!plan->value || !plan->step || !plan->cpu || !plan->at) {
        cpu_plan_free(plan);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    memcpy(plan->value, p->value, p->nvalue * sizeof *plan->value);
    memcpy(plan->step, p->step, p->nstep * sizeof *plan->step);
    d->sparing++;
    omp_set_num_threads(d->threads);
    for (size_t i = 0; i < p->nstep && !rc; i++)
        rc = p->step[i].op == MP_OP_CONV2D || p->step[i].op == MP_OP_DECONV2D
                 ? cpu_conv_compile(plan, p, i, err)
                 : cpu_own_compile(plan, p, i, err);
    omp_set_num_threads(before);
    keep_no_spare(d);
    if (!rc)
        rc = place_scratch(plan, p, err);
    if (!rc && plan->scratch_bytes) {
        plan->scratch = cpu_take(d, plan->scratch_bytes);
        if (!plan->scratch)
            rc = mp_fail(err, MP_ENOMEM, "out of memory: %zu MB of scratch",
                         plan->scratch_bytes >> 20);
    }
    if (rc) {
        cpu_plan_free(plan);
        return rc;
    }
    *out = plan;
    return 0;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void find_values(struct mp_plan *plan, mp_addr arena,
                        const mp_addr *outside)
{
    plan->arena = (char *)(uintptr_t)arena;
    for (size_t i = 0; i < plan->nvalue; i++) {
        const struct mp_value *v = &plan->value[i];

        if (v->place == MP_ARENA)
            plan->at[i] = plan->arena + v->offset;
        else if (v->place == MP_OUTSIDE)
            plan->at[i] = (void *)(uintptr_t)outside[v->offset];
    }
}

static int is_stopped(const struct mp_device_conf *c)
{
    return c->is_stopped && c->is_stopped(c->user);
}

static int cpu_run(struct mp_plan *plan, mp_addr arena, const mp_addr *outside,
                   double *seconds, struct mp_error *err)
{
    int before = omp_get_max_threads(), rc = 0;
    double last;

    find_values(plan, arena, outside);
    omp_set_num_threads(plan->device->threads);
    if (!plan->once) {
        plan->device->sparing++;
        cpu_settle(plan);
        keep_no_spare(plan->device);
    }
    last = seconds ? now() : 0;
    for (size_t i = 0; i < plan->nstep && !rc; i++) {
        if (is_stopped(&plan->device->conf))
            rc = mp_fail(err, MP_EINTR, "stopped");
        else if (plan->cpu[i].way)
            rc = cpu_conv_run(plan, i, err);
        else
            cpu_own_run(plan, i);
        if (seconds) {
            double t = now();

            seconds[i] = t - last;
            last = t;
        }
    }
    omp_set_num_threads(before);
    return rc;
}

static const char *cpu_kernel_name(const struct mp_plan *plan, size_t step)
{
    return plan->cpu[step].name;
}

/* In bf16 with AMX it has not been measured yet. */
static int cpu_commutes(const struct mp_enlarged *e, enum mp_dtype t)
{
    (void)e;
    return t == MP_F32 || !k_has_amx();
}

const struct mp_backend mp_backend_cpu = {
    .abi = MP_BACKEND_ABI,
    .size = sizeof(struct mp_backend),
    .name = "cpu",
    .summary = "oneDNN and OpenMP on the processor",
    .wide_sums = WIDE_SUMS,
    .host = 1,
    .commutes = cpu_commutes,
    .probe = cpu_probe,
    .info = cpu_info,
    .open = cpu_open,
    .close = cpu_close,
    .best = cpu_best,
    .supports = cpu_supports,
    .memory = cpu_memory,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .put = cpu_put,
    .copy = cpu_copy,
    .get = cpu_get,
    .wait = cpu_wait,
    .compile = cpu_compile,
    .run = cpu_run,
    .kernel = cpu_kernel_name,
    .plan_free = cpu_plan_free,
};
