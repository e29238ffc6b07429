/* SPDX-License-Identifier: MIT */
/*
 * pack.c - constants in the form that kernels want: packed when a program is
 * compiled, or held where a file has them and packed when a second run would
 * use them.
 */
#include <stdlib.h>
#include <string.h>
#include "cpu/cpu.h"
#include "module.h"

/* ---- what there is ---- */

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

size_t mp_cpu_packed(const struct mp_device *d)
{
    return d->store.bytes;
}

/* ---- packing ---- */

/* A,B,T as T,B,A, or if `swapped` as T,A,B. */
static float *turn(struct mp_device *d, const float *w, const int64_t *dim,
                   int swapped)
{
    int64_t a = dim[0], b = dim[1], taps = dim[2] * dim[3];
    int64_t rows = swapped ? a : b, n = swapped ? b : a;
    int64_t row = swapped ? b * taps : taps, step = swapped ? taps : b * taps;
    float *out = cpu_take(d, (size_t)(a * b * taps) * sizeof *out);

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
    float *out = cpu_take(d, 4 * n * sizeof *out);

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
    cpu_give_back(d, formed);
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
    data = cpu_get_memory(k->bytes);
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

/* ---- what is held ---- */

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
    int64_t n;

    if (!k->scale)
        return k->data;
    n = (int64_t)k->value.count / k->value.dim[0];
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

/* Packs what is held. Without memory for it, it stays where it is. */
static int settle(struct mp_device *d, struct packed *k, struct mp_error *err)
{
    struct packed now = {.form = k->form};
    float *room = k->scale ? cpu_take(d, plain_room(k)) : NULL;
    int rc;

    if (k->scale && !room)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    rc = pack_now(&now, d, &k->value, plain_of(k, room), layout(k, &k->desc),
                  layout(k, &k->plain), err);
    cpu_give_back(d, room);
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

/* ---- of a plan ---- */

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

void cpu_settle(struct mp_plan *plan)
{
    struct mp_device *d = plan->device;
    int held = 0;

    for (size_t i = 0; i < plan->nuse; i++) {
        struct packed *k = plan->use[i];

        if (k->late) {
            held = 1;
            if (d->used_held)
                settle(d, k, NULL);
        }
    }
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

void cpu_drop_all(struct mp_plan *plan)
{
    for (size_t i = 0; i < plan->nuse; i++)
        drop(plan->device, plan->use[i]);
    free(plan->use);
}
