/* SPDX-License-Identifier: MIT */
/* cuda.c - the backend: packed constants, plans, runs. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/cuda.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- the device ---- */

int cuda_open(struct mp_device **out, const struct mp_device_conf *conf,
              struct mp_error *err)
{
    struct mp_device *d = calloc(1, sizeof *d);
    int rc;

    if (!d)
        return no_memory(err);
    d->tf32 = conf->tf32;
    rc = gpu_open(&d->gpu, conf->index, err);
    if (!rc && conf->autotune)
        rc = lib_autotune(d->gpu, conf->index, err);
    if (rc) {
        gpu_close(d->gpu);
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

void cuda_close(struct mp_device *d)
{
    if (!d)
        return;
    gpu_free(d->gpu, d->upload);
    gpu_close(d->gpu);
    free(d);
}

/* All devices that gpu_count counts have it. */
enum mp_dtype cuda_best(const struct mp_device *d)
{
    (void)d;
    return MP_BF16;
}

int cuda_supports(const struct mp_device *d, enum mp_dtype t,
                  struct mp_error *err)
{
    (void)d;
    if (t == MP_F32 || t == MP_BF16 || t == MP_F16)
        return 0;
    return mp_fail(err, MP_ENOTSUP, "cuda: no arithmetic in %s",
                   mp_dtype_name(t));
}

int cuda_memory(struct mp_device *d, struct mp_device_memory *out,
                struct mp_error *err)
{
    return gpu_memory(d->gpu, out, err);
}

int cuda_alloc(struct mp_device *d, size_t bytes, mp_addr *out,
               struct mp_error *err)
{
    return gpu_alloc(d->gpu, bytes ? bytes : 1, "activations", out, err);
}

void cuda_free(struct mp_device *d, mp_addr a)
{
    gpu_free(d->gpu, a);
}

int cuda_put(struct mp_device *d, mp_addr dst, const void *src, size_t n,
             struct mp_error *err)
{
    return gpu_put(d->gpu, dst, src, n, err);
}

int cuda_copy(struct mp_device *d, mp_addr dst, mp_addr src, size_t n,
              struct mp_error *err)
{
    return gpu_copy(d->gpu, dst, src, n, err);
}

int cuda_get(struct mp_device *d, void *dst, mp_addr src, size_t n,
             uint64_t *ticket, struct mp_error *err)
{
    return gpu_get(d->gpu, dst, src, n, ticket, err);
}

int cuda_wait(struct mp_device *d, uint64_t ticket, struct mp_error *err)
{
    return gpu_wait(d->gpu, ticket, err);
}

/* ---- operands ---- */

const struct mp_value *cuda_in_value(const struct call *k, int i)
{
    return &k->plan->value[k->s->in[i]];
}

int cuda_has(const struct call *k, int i)
{
    return i < k->s->nin && k->s->in[i] != MP_NO_VALUE;
}

struct g_in cuda_in(const struct call *k, int i)
{
    const struct packed *c = k->c->constant[i];
    const struct mp_value *v = cuda_in_value(k, i);

    if (c)
        return (struct g_in){(void *)(uintptr_t)c->at, c->type};
    return (struct g_in){(void *)(uintptr_t)(k->arena + v->offset), v->dtype};
}

struct g_out cuda_out(const struct call *k)
{
    const struct mp_value *y = &k->plan->value[k->s->out];

    return (struct g_out){(void *)(uintptr_t)(k->arena + y->offset), y->dtype};
}

int cuda_each(const struct call *k, enum gpu_kernel one, enum gpu_kernel eight,
              int by_eight, size_t n, const void *arg)
{
    struct gpu_launch l = {
        .kernel = by_eight ? eight : one,
        .grid = {1, 1, 1},
        .threads = GPU_THREADS,
        .arg = arg,
    };

    n = by_eight ? n / 8 : n;
    l.grid[0] = (uint32_t)((n + GPU_THREADS - 1) / GPU_THREADS);
    return gpu_launch(k->plan->device->gpu, &l, k->err);
}

int cuda_launch(const struct call *k, enum gpu_kernel kernel, size_t x,
                size_t y, size_t z, uint32_t threads, size_t shared,
                const void *arg)
{
    const struct gpu_launch l = {
        .kernel = kernel,
        .grid = {(uint32_t)x, (uint32_t)y, (uint32_t)z},
        .threads = threads,
        .shared = shared,
        .arg = arg,
    };

    return gpu_launch(k->plan->device->gpu, &l, k->err);
}

int cuda_convert(const struct call *k, struct g_out y, struct g_in x, size_t n,
                 int act)
{
    const struct g_map a = {y, x, (uint32_t)n, act};

    return cuda_each(k, GPU_map, GPU_map_8, n % 8 == 0, n, &a);
}

/* ---- packed constants ---- */

struct phase cuda_phase(int64_t kernel, int64_t stride, int64_t pad,
                        int64_t phase)
{
    int64_t least = (phase + pad) % stride; /* tap of its kind */
    int64_t taps = least < kernel ? (kernel - least + stride - 1) / stride : 0;

    /* Result stride * i + phase meets input i + (phase + pad - tap) / stride:
     * the largest tap meets the first input. */
    return (struct phase){
        .taps = taps,
        .before = taps - 1 - (phase + pad - least) / stride,
        .first = least + (taps - 1) * stride,
    };
}

static int pack_one(const struct call *k, const struct g_pack *a)
{
    return cuda_each(k, GPU_pack, GPU_pack, 0,
                     (size_t)a->k * a->ty * a->tx * a->c, a);
}

int64_t cuda_up_to_8(int64_t n)
{
    return (n + 7) / 8 * 8;
}

/* Elements of a constant in this form. */
static size_t form_count(const struct mp_value *v, enum form form)
{
    size_t row = v->count / (size_t)v->dim[0];

    if (form == TAPS_8)
        return v->count / (size_t)v->dim[1] * (size_t)cuda_up_to_8(v->dim[1]);
    if (form == ROWS_8)
        return (size_t)v->dim[0] * (size_t)cuda_up_to_8((int64_t)row);
    return v->count;
}

int cuda_widen(const struct call *k, struct g_out y, struct g_in x, size_t rows,
               int64_t n)
{
    const struct g_copy a = {
        .y = y,
        .x = x,
        .rows = (uint32_t)rows,
        .n = (uint32_t)n,
        .y_row = (uint32_t)cuda_up_to_8(n),
        .x_row = (uint32_t)n,
    };

    return cuda_each(k, GPU_widen_8, GPU_widen_8, 1, rows * a.y_row, &a);
}

static int form_taps(const struct call *k, struct g_out y, struct g_in x,
                     const struct mp_value *w, int64_t c)
{
    int64_t r = w->ndim == 4 ? w->dim[2] : 1, s = w->ndim == 4 ? w->dim[3] : 1;
    const struct g_pack a = {
        .y = y,
        .x = x,
        .k = (uint32_t)w->dim[0],
        .ty = (uint32_t)r,
        .tx = (uint32_t)s,
        .c = (uint32_t)c,
        .have = (uint32_t)w->dim[1],
        .k_step = (int32_t)(w->dim[1] * r * s),
        .ty_step = (int32_t)s,
        .tx_step = 1,
        .c_step = (int32_t)(r * s),
    };

    return pack_one(k, &a);
}

static int form_taps_k(const struct call *k, struct g_out y, struct g_in x,
                       const struct mp_value *w)
{
    int64_t taps = w->dim[2] * w->dim[3];
    const struct g_pack a = {
        .y = y,
        .x = x,
        .k = (uint32_t)taps,
        .ty = 1,
        .tx = (uint32_t)w->dim[0],
        .c = (uint32_t)w->dim[1],
        .have = (uint32_t)w->dim[1],
        .k_step = 1,
        .tx_step = (int32_t)(w->dim[1] * taps),
        .c_step = (int32_t)taps,
    };

    return pack_one(k, &a);
}

static int form_phases(const struct call *k, struct g_out y, struct g_in x,
                       const struct mp_value *w, int32_t stride, int32_t pad)
{
    int64_t c = w->dim[0], n = w->dim[1], r = w->dim[2], s = w->dim[3];
    int rc = 0;

    for (int i = 0; i < stride * stride && !rc; i++) {
        struct phase py = cuda_phase(r, stride, pad, i / stride);
        struct phase px = cuda_phase(s, stride, pad, i % stride);
        const struct g_pack a = {
            .y = y,
            .x = x,
            .k = (uint32_t)n,
            .ty = (uint32_t)py.taps,
            .tx = (uint32_t)px.taps,
            .c = (uint32_t)c,
            .have = (uint32_t)c,
            .first = (int32_t)(py.first * s + px.first),
            .k_step = (int32_t)(r * s),
            .ty_step = (int32_t)(-stride * s),
            .tx_step = -stride,
            .c_step = (int32_t)(n * r * s),
        };
        size_t count = (size_t)(n * c * py.taps * px.taps);

        if (count)
            rc = pack_one(k, &a);
        y.p = (char *)y.p + count * mp_dtype_size(y.type);
    }
    return rc;
}

int cuda_form(const struct call *k, struct g_out y, struct g_in x,
              const struct mp_value *w, enum form form, int32_t stride,
              int32_t pad)
{
    if (form == PHASES)
        return form_phases(k, y, x, w, stride, pad);
    if (form == TAPS_K)
        return form_taps_k(k, y, x, w);
    if (form == PLAIN)
        return cuda_convert(k, y, x, w->count, MP_ACT_NONE);
    if (form == ROWS_8)
        return cuda_widen(k, y, x, (size_t)w->dim[0],
                          (int64_t)w->count / w->dim[0]);
    return form_taps(k, y, x, w,
                     form == TAPS_8 ? cuda_up_to_8(w->dim[1]) : w->dim[1]);
}

static struct packed **bucket(struct mp_device *d, const uint64_t key[2])
{
    return &d->packed[key[0] % (sizeof d->packed / sizeof *d->packed)];
}

static struct packed *look_up(struct mp_device *d, const struct packed *want)
{
    struct packed *p = *bucket(d, want->key);

    while (p && (memcmp(p->key, want->key, sizeof p->key) ||
                 p->form != want->form || p->type != want->type ||
                 p->stride != want->stride || p->pad != want->pad))
        p = p->next;
    return p;
}

/* f32 data of the host as *to wants it, to `at`. What needs no change goes
 * straight there; the rest by way of the upload buffer, and is packed there. */
static int upload(const struct call *k, const struct packed *to, mp_addr at,
                  const struct mp_value *v, const float *data)
{
    struct mp_device *d = k->plan->device;
    size_t bytes = v->count * sizeof *data;
    int plain = to->form == PLAIN && to->type == MP_F32;
    int rc = 0;

    if (!plain && d->upload_bytes < bytes) {
        gpu_free(d->gpu, d->upload);
        d->upload_bytes = 0;
        rc = gpu_alloc(d->gpu, bytes, "weights on their way", &d->upload,
                       k->err);
        d->upload_bytes = rc ? 0 : bytes;
    }
    if (!rc)
        rc = gpu_put(d->gpu, plain ? at : d->upload, data, bytes, k->err);
    if (rc || plain)
        return rc;
    return cuda_form(k, (struct g_out){(void *)(uintptr_t)at, to->type},
                     (struct g_in){(void *)(uintptr_t)d->upload, MP_F32}, v,
                     to->form, to->stride, to->pad);
}

static int upload_all(const struct call *k, const struct mp_program *p,
                      struct packed *to, const uint32_t *value, int n)
{
    const struct mp_value *v = &k->plan->value[value[0]];
    size_t bytes = form_count(v, to->form) * mp_dtype_size(to->type);
    int rc = gpu_alloc(k->plan->device->gpu, (size_t)n * bytes, "weights",
                       &to->at, k->err);

    for (int i = 0; i < n && !rc; i++) {
        const float *data;

        rc = p->constant(p, value[i], &data, k->err);
        if (rc)
            break;
        rc = upload(k, to, to->at + (size_t)i * bytes, v, data);
        p->release(p, value[i]);
    }
    return rc;
}

static int use(const struct call *k, int i, struct packed *p)
{
    struct mp_plan *plan = k->plan;
    struct packed **more = realloc(plan->use, (plan->nuse + 1) * sizeof *more);

    if (!more)
        return no_memory(k->err);
    plan->use = more;
    more[plan->nuse++] = p;
    p->users++;
    k->c->constant[i] = p;
    return 0;
}

int cuda_pack_all(const struct call *k, const struct mp_program *p, int i,
                  const uint32_t *value, int n, enum form form,
                  enum mp_dtype type)
{
    struct mp_device *d = k->plan->device;
    struct packed want = {.form = form, .type = type}, *made;
    int rc;

    for (int j = 0; j < n; j++) /* one's is its own */
        for (int h = 0; h < 2; h++)
            want.key[h] = want.key[h] * 0x9e3779b97f4a7c15 +
                          k->plan->value[value[j]].key[h];
    if (form == PHASES) {
        want.stride = k->s->attr.conv.stride;
        want.pad = k->s->attr.conv.top;
    }
    made = look_up(d, &want);
    if (made)
        return use(k, i, made);
    made = malloc(sizeof *made);
    if (!made)
        return no_memory(k->err);
    *made = want;
    rc = upload_all(k, p, made, value, n);
    if (!rc)
        rc = use(k, i, made);
    if (rc) {
        gpu_free(d->gpu, made->at);
        free(made);
        return rc;
    }
    made->next = *bucket(d, made->key);
    *bucket(d, made->key) = made;
    return 0;
}

int cuda_pack(const struct call *k, const struct mp_program *p, int i,
              enum form form, enum mp_dtype type)
{
    return cuda_pack_all(k, p, i, &k->s->in[i], 1, form, type);
}

static void drop(struct mp_device *d, struct packed *p)
{
    struct packed **at = bucket(d, p->key);

    if (--p->users)
        return;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    gpu_free(d->gpu, p->at);
    free(p);
}

/* ---- plans ---- */

void cuda_plan_free(struct mp_plan *plan)
{
    if (!plan)
        return;
    gpu_wait(plan->device->gpu, UINT64_MAX, NULL);
    gpu_graph_free(plan->graph);
    for (size_t i = 0; plan->cuda && i < plan->nstep; i++) {
        lib_plan_free(plan->cuda[i].lib);
        lib_plan_free(plan->cuda[i].lib2);
    }
    for (size_t i = 0; i < plan->nuse; i++)
        drop(plan->device, plan->use[i]);
    gpu_free(plan->device->gpu, plan->scratch);
    free(plan->use);
    free(plan->cuda);
    free(plan->value);
    free(plan->step);
    free(plan);
}

static int compile_step(const struct call *k, const struct mp_program *p)
{
    switch (k->s->op) {
    case MP_OP_CONV2D:
    case MP_OP_DECONV2D:
        return cuda_conv_compile(k, p);
    case MP_OP_ATTENTION:
        return cuda_attention_compile(k, p);
    default:
        return cuda_own_compile(k, p);
    }
}

static int run_step(const struct call *k)
{
    switch (k->s->op) {
    case MP_OP_CONV2D:
    case MP_OP_DECONV2D:
        return cuda_conv_run(k);
    case MP_OP_ATTENTION:
        return cuda_attention_run(k);
    default:
        return cuda_own_run(k);
    }
}

/* Kernels find elements with 32 bits. */
static int check_sizes(const struct mp_program *p, struct mp_error *err)
{
    for (size_t i = 0; i < p->nvalue; i++)
        if (p->value[i].count > INT32_MAX)
            return mp_fail(err, MP_ENOTSUP,
                           "cuda: a value of %zu elements is over the limit "
                           "of %" PRId32 ": lower batch or the input size",
                           p->value[i].count, INT32_MAX);
    return 0;
}

static struct mp_plan *plan_new(struct mp_device *d, const struct mp_program *p)
{
    struct mp_plan *plan = calloc(1, sizeof *plan);

    if (!plan)
        return NULL;
    plan->device = d;
    plan->once = p->once;
    plan->nvalue = p->nvalue;
    plan->nstep = p->nstep;
    plan->value = malloc((p->nvalue + 1) * sizeof *plan->value);
    plan->step = malloc((p->nstep + 1) * sizeof *plan->step);
    plan->cuda = calloc(p->nstep + 1, sizeof *plan->cuda);
    if (!plan->value || !plan->step || !plan->cuda) {
        plan->nstep = plan->cuda ? plan->nstep : 0;
        cuda_plan_free(plan);
        return NULL;
    }
    memcpy(plan->value, p->value, p->nvalue * sizeof *plan->value);
    memcpy(plan->step, p->step, p->nstep * sizeof *plan->step);
    return plan;
}

int cuda_compile(struct mp_device *d, const struct mp_program *p,
                 struct mp_plan **out, struct mp_error *err)
{
    struct mp_plan *plan;
    int rc = check_sizes(p, err);

    if (rc)
        return rc;
    plan = plan_new(d, p);
    if (!plan)
        return no_memory(err);
    for (size_t i = 0; i < p->nstep && !rc; i++) {
        struct call k = {plan, &plan->step[i], &plan->cuda[i], 0, err};

        rc = compile_step(&k, p);
        if (plan->cuda[i].scratch > plan->scratch_bytes)
            plan->scratch_bytes = plan->cuda[i].scratch;
    }
    if (!rc)
        rc = gpu_alloc(d->gpu, plan->scratch_bytes, "work space",
                       &plan->scratch, err);
    if (!rc)
        rc =
            gpu_wait(d->gpu, UINT64_MAX, err); /* errors of packing show here */
    gpu_free(d->gpu, d->upload);
    d->upload = 0;
    d->upload_bytes = 0;
    if (rc) {
        cuda_plan_free(plan);
        return rc;
    }
    *out = plan;
    return 0;
}

/* ---- runs ---- */

static int run_steps(struct mp_plan *plan, mp_addr arena, int marks,
                     struct mp_error *err)
{
    int rc = marks ? gpu_mark(plan->device->gpu, 0, err) : 0;

    for (size_t i = 0; i < plan->nstep && !rc; i++) {
        struct call k = {plan, &plan->step[i], &plan->cuda[i], arena, err};

        rc = run_step(&k);
        if (!rc && marks)
            rc = gpu_mark(plan->device->gpu, i + 1, err);
    }
    return rc;
}

static int run_measured(struct mp_plan *plan, mp_addr arena, double *seconds,
                        struct mp_error *err)
{
    int rc = run_steps(plan, arena, 1, err);

    for (size_t i = 0; i < plan->nstep && !rc; i++)
        rc = gpu_between(plan->device->gpu, i, i + 1, &seconds[i], err);
    return rc;
}

/* Hundreds of small launches cost more than what they start: all of a run are
 * recorded once, and started together from then on. */
static int record(struct mp_plan *plan, mp_addr arena, struct mp_error *err)
{
    struct gpu *g = plan->device->gpu;
    int rc, rc2;

    gpu_graph_free(plan->graph);
    plan->graph = NULL;
    rc = gpu_record(g, err);
    if (rc)
        return rc;
    rc = run_steps(plan, arena, 0, err);
    /* Recording must end whatever happened. */
    rc2 = gpu_recorded(g, &plan->graph, rc ? NULL : err);
    if (!rc && !rc2) {
        plan->graph_arena = arena;
        return 0;
    }
    gpu_graph_free(plan->graph);
    plan->graph = NULL;
    return rc ? rc : rc2;
}

int cuda_run(struct mp_plan *plan, mp_addr arena, const mp_addr *outside,
             double *seconds, struct mp_error *err)
{
    struct mp_error why = {0};

    (void)outside; /* there are none */
    if (seconds)
        return run_measured(plan, arena, seconds, err);
    /* The first time a library loads its kernels, which must not happen while
     * recording. */
    if (plan->runs++ == 0 || plan->once || plan->no_graph)
        return run_steps(plan, arena, 0, err);
    if ((!plan->graph || plan->graph_arena != arena) &&
        record(plan, arena, &why)) {
        mp_log(MP_LOG_WARNING, "cuda",
               "kernels are started one by one, which is slower: %s", why.text);
        plan->no_graph = 1;
        return run_steps(plan, arena, 0, err);
    }
    return gpu_replay(plan->device->gpu, plan->graph, err);
}

const char *cuda_kernel_name(const struct mp_plan *plan, size_t step)
{
    return plan->cuda[step].name;
}
