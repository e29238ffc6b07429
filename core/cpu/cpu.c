/* SPDX-License-Identifier: MIT */
/* cpu.c - the backend: the device, packed constants, plans. */
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

static void *get_memory(size_t bytes)
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

/* While a plan is compiled, or what it holds is packed, a block that is freed
 * is kept for the next that fits: most of the time of a short use of a large
 * one is the system's, which clears it. */
static void *take(struct mp_device *d, size_t bytes)
{
    void *p = d->spare;

    if (p && malloc_usable_size(p) >= bytes) {
        d->spare = NULL;
        return p;
    }
    p = get_memory(bytes);
    d->allocated += malloc_usable_size(p);
    return p;
}

static void give_back(struct mp_device *d, void *p)
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
    give_back(d, d->spare);
    d->spare = NULL;
}

static int cpu_alloc(struct mp_device *d, size_t bytes, mp_addr *out,
                     struct mp_error *err)
{
    void *p = take(d, bytes);

    *out = (mp_addr)(uintptr_t)p;
    return p ? 0
             : mp_fail(err, MP_ENOMEM, "out of memory: %zu MB for activations",
                       bytes >> 20);
}

static void cpu_free(struct mp_device *d, mp_addr a)
{
    give_back(d, (void *)(uintptr_t)a);
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

/* ---- packed constants ---- */

static struct packed **bucket(struct mp_device *d, const uint64_t key[2])
{
    return &d->packed[key[0] % (sizeof d->packed / sizeof *d->packed)];
}

static struct packed *look_up(struct mp_device *d, const struct mp_value *v,
                              enum form form, dn_desc want)
{
    for (struct packed *p = *bucket(d, v->key); p; p = p->next)
        if (!memcmp(p->key, v->key, sizeof p->key) && p->form == form &&
            p->has_desc == (want != NULL) &&
            (!want || dnnl_memory_desc_equal(dn_borrow(&p->desc), want)))
            return p;
    return NULL;
}

/* A,B,T as T,B,A, or if `swapped` as T,A,B. */
static float *turn(struct mp_device *d, const float *w, const int64_t *dim,
                   int swapped)
{
    int64_t a = dim[0], b = dim[1], taps = dim[2] * dim[3];
    int64_t rows = swapped ? a : b, n = swapped ? b : a;
    int64_t row = swapped ? b * taps : taps, step = swapped ? taps : b * taps;
    float *out = take(d, (size_t)(a * b * taps) * sizeof *out);

    if (!out)
        return NULL;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t t = 0; t < taps; t++)
            for (int64_t j = 0; j < n; j++)
                out[(t * rows + i) * n + j] = w[i * row + j * step + t];
    return out;
}

static float *repeat(struct mp_device *d, const float *b, size_t n)
{
    float *out = take(d, 4 * n * sizeof *out);

    for (size_t i = 0; out && i < 4 * n; i++)
        out[i] = b[i % n];
    return out;
}

/* Ours where it can: oneDNN's takes 1.6 times as long for bf16. */
static int reorder(struct mp_device *d, void *to, dn_desc want,
                   const void *from, dn_desc plain, struct mp_error *err)
{
    struct k_layout blocked, rows;
    enum mp_dtype type, f32;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t prim = NULL;
    dnnl_memory_t a = NULL, b = NULL;
    dnnl_status_t st;

    if (dn_layout(&blocked, &type, want) && dn_layout(&rows, &f32, plain) &&
        f32 == MP_F32 && k_can_reorder(&blocked, type, &rows)) {
        k_reorder((struct k_out){to, type}, &blocked, from, &rows);
        return 0;
    }
    st = dnnl_reorder_primitive_desc_create(&pd, plain, d->engine, want,
                                            d->engine, NULL);
    if (st == dnnl_success)
        st = dnnl_primitive_create(&prim, pd);
    if (st == dnnl_success)
        st = dnnl_memory_create(&a, plain, d->engine, (void *)from);
    if (st == dnnl_success)
        st = dnnl_memory_create(&b, want, d->engine, to);
    if (st == dnnl_success) {
        const dnnl_exec_arg_t arg[2] = {{DNNL_ARG_FROM, a}, {DNNL_ARG_TO, b}};

        st = dnnl_primitive_execute(prim, d->stream, 2, arg);
        dnnl_stream_wait(d->stream);
    }
    if (a)
        dnnl_memory_destroy(a);
    if (b)
        dnnl_memory_destroy(b);
    if (prim)
        dnnl_primitive_destroy(prim);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return cpu_status(st, "packing weights", err);
}

/* What is held is no more. */
static void let_go(struct mp_device *d, struct packed *k)
{
    k->drop(k->held, k->data, k->bytes);
    k->held = NULL;
    free(k->scale);
    k->scale = NULL;
    d->late -= k->late;
    k->late = 0;
}

static void packed_free(struct mp_device *d, struct packed *p)
{
    dn_desc_free(&p->desc);
    dn_desc_free(&p->plain);
    if (p->held)
        let_go(d, p);
    else if (p->data)
        store_drop(&d->store, p->data, p->bytes);
    free(p);
}

size_t mp_cpu_packed(const struct mp_device *d)
{
    return d->store.bytes;
}

int cpu_is_ours(enum form form, enum k_way *way)
{
    *way = form == WINOGRAD_BF16 ? K_WINOGRAD_BF16 : K_DIRECT;
    return form == WINOGRAD_BF16 || form == BLOCK_WEIGHTS;
}

static size_t bytes_of(const struct packed *k, const struct mp_value *v,
                       dn_desc want)
{
    enum k_way way;

    if (cpu_is_ours(k->form, &way))
        return k_conv_weights(v->dim[0], v->dim[1], v->dim[2] * v->dim[3], way);
    if (want)
        return dnnl_memory_desc_get_size(want);
    return v->count * (k->form == SPREAD_BIAS ? 4 : 1) * mp_dtype_size(k->type);
}

/* Rearranged first, for a layout that is still to come; NULL: out of memory. */
static float *rearrange(const struct packed *k, struct mp_device *d,
                        const struct mp_value *v, const float *from)
{
    return k->form == SPREAD_BIAS
               ? repeat(d, from, v->count)
               : turn(d, from, v->dim, k->form == TAP_WEIGHTS);
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b ? common_divisor(b, a % b) : a;
}

/* TAP_WEIGHTS as they come, if parts of the blocks of `want` are of one tap. */
static int pack_taps(void *to, dn_desc want, const int64_t *dim,
                     const float *from)
{
    int64_t taps = dim[2] * dim[3];
    const struct k_layout plain = {.dim = {dim[0], dim[1], dim[2], dim[3]},
                                   .stride = {dim[1] * taps, taps, dim[3], 1}};
    struct k_layout l;
    enum mp_dtype type;

    if (!dn_layout(&l, &type, want) || !l.blocks || l.axis[0])
        return 0;
    l.of = l.block[0];
    l.block[0] = common_divisor(dim[0], l.of);
    memcpy(l.dim, plain.dim, sizeof l.dim);
    if (l.block[0] % 16 || dim[0] * taps % l.of ||
        !k_can_reorder(&l, type, &plain))
        return 0;
    k_reorder((struct k_out){to, type}, &l, from, &plain);
    return 1;
}

/* Into `to`, of bytes_of(k, v, want). */
static int pack_into(void *to, const struct packed *k, struct mp_device *d,
                     const struct mp_value *v, const float *from, dn_desc want,
                     dn_desc plain, struct mp_error *err)
{
    float *formed = NULL;
    enum k_way way;
    int64_t n;
    int rc = 0;

    if (k->form == TAP_WEIGHTS && pack_taps(to, want, v->dim, from))
        return 0;
    if (k->form == SPREAD_BIAS || k->form == SPREAD_WEIGHTS ||
        k->form == TAP_WEIGHTS) {
        formed = rearrange(k, d, v, from);
        if (!formed)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        from = formed;
    }
    n = (int64_t)(bytes_of(k, v, want) / mp_dtype_size(k->type));
    if (cpu_is_ours(k->form, &way))
        k_conv_pack(to, from, v->dim[0], v->dim[1], v->dim[2], v->dim[3], way);
    else if (want)
        rc = reorder(d, to, want, from, plain, err);
    else
        k_copy((struct k_out){to, k->type}, n, (struct k_in){from, MP_F32}, n,
               1, n);
    give_back(d, formed);
    return rc;
}

static int pack_now(struct packed *k, struct mp_device *d,
                    const struct mp_value *v, const float *from, dn_desc want,
                    dn_desc plain, struct mp_error *err)
{
    void *data;
    int rc;

    k->type = k->form == AS_BF16 ? MP_BF16 : MP_F32;
    k->bytes = bytes_of(k, v, want);
    data = get_memory(k->bytes);
    if (data)
        rc = pack_into(data, k, d, v, from, want, plain, err);
    else
        rc = mp_fail(err, MP_ENOMEM, "out of memory: %zu MB for weights",
                     k->bytes >> 20);
    if (!rc && !(k->data = store_keep(&d->store, data, k->bytes)))
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    else if (rc)
        free(data);
    return rc;
}

static int use(const struct packed **out, struct mp_plan *plan,
               struct packed *k, struct mp_error *err)
{
    struct packed **more = realloc(plan->use, (plan->nuse + 1) * sizeof *more);

    if (!more)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    plan->use = more;
    more[plan->nuse++] = k;
    k->users++;
    *out = k;
    return 0;
}

static dn_desc layout(const struct packed *k, const dn_own_desc *d)
{
    return k->has_desc ? dn_borrow(d) : NULL;
}

/* 1: it stays where it is; 0: it cannot. */
static int hold(struct packed *k, struct mp_device *d,
                const struct mp_program *p, uint32_t value,
                struct mp_error *err)
{
    const struct mp_value *v = &p->value[value];
    size_t rows = v->ndim ? (size_t)v->dim[0] : 1;
    struct mp_held_weight w;
    int rc = p->hold(p, value, &w, err);

    if (rc <= 0)
        return rc;
    k->held = w.mapping;
    k->drop = p->drop;
    k->data = w.data;
    k->row = w.row;
    k->type = MP_F32;
    k->value = *v;
    k->bytes = ((rows - 1) * w.row + v->count / rows) * sizeof *w.data;
    if (w.scale) {
        k->scale = malloc(rows * sizeof *k->scale);
        if (!k->scale)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        memcpy(k->scale, w.scale, rows * sizeof *k->scale);
    }
    if (k->has_desc || k->form != AS_GIVEN)
        k->late = bytes_of(k, v, layout(k, &k->desc));
    d->late += k->late;
    return 1;
}

/* What is held, plain; in room, if it lies otherwise. */
static const float *plain_of(const struct packed *k, float *room)
{
    int64_t n = (int64_t)k->value.count / k->value.dim[0];

    if (!k->scale)
        return k->data;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < k->value.dim[0]; i++) {
        const float *from = (const float *)k->data + i * (int64_t)k->row;

        for (int64_t j = 0; j < n; j++)
            room[i * n + j] = from[j] * k->scale[i];
    }
    return room;
}

static size_t plain_room(const struct packed *k)
{
    return k->scale ? (k->value.count * sizeof(float) + 63) / 64 * 64 : 0;
}

/* Packs what is held. Without memory for it, it stays where it is. */
static int settle(struct mp_device *d, struct packed *k, struct mp_error *err)
{
    struct packed now = {.form = k->form};
    float *room = k->scale ? take(d, plain_room(k)) : NULL;
    int rc;

    if (k->scale && !room)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = pack_now(&now, d, &k->value, plain_of(k, room), layout(k, &k->desc),
                  layout(k, &k->plain), err);
    give_back(d, room);
    if (rc)
        return rc;
    let_go(d, k);
    k->data = now.data;
    k->type = now.type;
    k->bytes = now.bytes;
    return 0;
}

size_t cpu_room(const struct packed *k, int plain)
{
    return k->late ? plain_room(k) + (plain ? 0 : k->late) : 0;
}

int cpu_data(const void **out, const struct mp_plan *plan,
             const struct packed *k, int plain, void *room,
             struct mp_error *err)
{
    const float *from;

    *out = k->data;
    if (!k->late)
        return 0;
    *out = from = plain_of(k, room);
    if (plain)
        return 0;
    *out = room = (char *)room + plain_room(k);
    return pack_into(room, k, plan->device, &k->value, from,
                     layout(k, &k->desc), layout(k, &k->plain), err);
}

static int set_layout(struct packed *k, dn_desc want, dn_desc plain,
                      struct mp_error *err)
{
    dnnl_status_t st = dnnl_success;

    if (!want)
        return 0;
    st = dn_desc_copy(&k->desc, want);
    if (st == dnnl_success)
        st = dn_desc_copy(&k->plain, plain);
    k->has_desc = 1;
    return cpu_status(st, "weights", err);
}

int cpu_pack(const struct packed **out, struct mp_plan *plan,
             const struct mp_program *p, uint32_t value, enum form form,
             dn_desc want, dn_desc plain, struct mp_error *err)
{
    const struct mp_value *v = &p->value[value];
    struct mp_device *d = plan->device;
    enum k_way way;
    int stays = plan->holds && (want || cpu_is_ours(form, &way) ||
                                (form == AS_GIVEN && p->once));
    struct packed *k = look_up(d, v, form, want);
    const float *data;
    int rc = 0, held = 0;

    if (k && k->held && !stays)
        rc = settle(d, k, err);
    if (k)
        return rc ? rc : use(out, plan, k, err);
    k = calloc(1, sizeof *k);
    if (!k)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    memcpy(k->key, v->key, sizeof k->key);
    k->form = form;
    rc = set_layout(k, want, plain, err);
    if (!rc && stays)
        held = hold(k, d, p, value, err);
    if (!rc && !held) {
        rc = p->constant(p, value, &data, err);
        if (!rc)
            rc = pack_now(k, d, v, data, want, plain, err);
        p->release(p, value);
    }
    rc = held < 0 ? held : rc;
    if (!rc)
        rc = use(out, plan, k, err);
    if (rc) {
        packed_free(d, k);
        return rc;
    }
    k->next = *bucket(d, k->key);
    *bucket(d, k->key) = k;
    return 0;
}

/* Before a run: of a second one that would use what is held, no more is. Until
 * then its weights are packed for each step, into scratch. Packing all takes
 * longer than what that saves in one run, as most of the time goes into memory
 * that the process did not have before: so a first picture's result comes
 * sooner, and that of a second one later. Nor is it longer than one run that a
 * file must not change. */
static void settle_all(struct mp_plan *plan)
{
    struct mp_device *d = plan->device;
    int held = 0;

    d->sparing++;
    for (size_t i = 0; i < plan->nuse; i++) {
        struct packed *k = plan->use[i];

        if (k->late) {
            held = 1;
            if (d->used_held)
                settle(d, k, NULL);
        }
    }
    keep_no_spare(d);
    d->used_held |= held;
}

static void drop(struct mp_device *d, struct packed *k)
{
    struct packed **at = bucket(d, k->key);

    if (--k->users)
        return;
    while (*at != k)
        at = &(*at)->next;
    *at = k->next;
    packed_free(d, k);
}

/* ---- plans ---- */

static void cpu_plan_free(struct mp_plan *plan)
{
    if (!plan)
        return;
    for (size_t i = 0; plan->cpu && i < plan->nstep; i++)
        cpu_conv_free(&plan->cpu[i]);
    for (size_t i = 0; i < plan->nuse; i++)
        drop(plan->device, plan->use[i]);
    cpu_free(plan->device, (mp_addr)(uintptr_t)plan->scratch);
    free(plan->use);
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
        plan->scratch = take(d, plan->scratch_bytes);
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
    if (!plan->once)
        settle_all(plan);
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
