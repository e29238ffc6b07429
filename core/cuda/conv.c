/* SPDX-License-Identifier: MIT */
/*
 * conv.c - convolutions, linear layers and transposed convolutions: by
 * cuBLASLt or cuDNN where they have a way, else by kernels of ours, which take
 * any shape. Of a map that is enlarged first the products with each of the nine
 * taps are taken before, and enlarged and added up after; one of few channels
 * is unfolded for a linear layer. Linear layers of the same x, one after the
 * other, are done at once.
 */
#include <inttypes.h>
#include <string.h>
#include "cuda/cuda.h"

#define ALIGN 256

/* Shape of a step as a convolution over maps: sequences are one long row. */
struct shape {
    int64_t n, h, w, c, k, r, s, oh, ow;
    struct mp_conv conv;
};

static int is_enlarged(const struct call *k)
{
    return k->s->attr.up_h != 0;
}

static struct shape shape_of(const struct call *k)
{
    const struct mp_value *x = cuda_in_value(k, 0), *w = cuda_in_value(k, 1);
    const struct mp_value *y = &k->plan->value[k->s->out];
    int deconv = k->s->op == MP_OP_DECONV2D;
    struct shape s = {
        .c = w->dim[!deconv],
        .k = w->dim[deconv],
        .r = w->ndim == 4 ? w->dim[2] : 1,
        .s = w->ndim == 4 ? w->dim[3] : 1,
        .conv = k->s->attr.conv,
    };

    if (x->ndim == 4) {
        s.n = x->dim[0], s.h = x->dim[1], s.w = x->dim[2];
        s.oh = y->dim[1], s.ow = y->dim[2];
    } else {
        s.n = 1, s.h = s.oh = 1;
        s.w = s.ow = (int64_t)x->count / s.c;
    }
    return s;
}

/* The products that are taken at a time: those of so many pictures of an
 * enlarged map as of a linear layer to K channels for each tap. */
static struct shape products_of(const struct call *k)
{
    struct shape s = shape_of(k);

    if (!is_enlarged(k))
        return s;
    return (struct shape){
        .n = k->c->pictures,
        .h = s.h,
        .w = s.w,
        .c = s.c,
        .k = s.k * s.r * s.s,
        .r = 1,
        .s = 1,
        .oh = s.h,
        .ow = s.w,
        .conv = {.stride = 1},
    };
}

static int is_16_bits(int t)
{
    return t == MP_BF16 || t == MP_F16;
}

/* Products are taken in the network's precision: in f32 only where nothing
 * around is narrower. */
static enum mp_dtype product_type(const struct call *k)
{
    enum mp_dtype x = cuda_in_value(k, 0)->dtype;
    enum mp_dtype y = k->plan->value[k->s->out].dtype;

    return is_16_bits(x) ? x : is_16_bits(y) ? y : MP_F32;
}

static int is_constant(const struct call *k, int i)
{
    return cuda_in_value(k, i)->place == MP_CONSTANT;
}

/* The next place in scratch. */
static size_t reserve(const struct call *k, size_t bytes)
{
    size_t at = k->c->scratch;

    k->c->scratch += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

/* ---- enlarged maps ---- */

/* What a GPU multiplies and adds in the time that it moves a byte: an H200 800
 * T/s and 4.2 TB/s. Another kernel costs as much as to move that many bytes. */
#define PRODUCTS_PER_BYTE 200
#define BYTES_PER_LAUNCH  8e6

/* If what is saved takes longer than to write the taps' products and read them,
 * and the sum so far. In f32 speed does not matter. */
int cuda_commutes(const struct mp_enlarged *e, enum mp_dtype t)
{
    double k = (double)e->k, small = (double)e->h * (double)e->w;
    double large = (double)e->up_h * (double)e->up_w;
    double saved = 2 * 9 * (double)e->c * k * (large - small);
    double moved = 2 * 2 * k * (9 * small + large) + 2 * BYTES_PER_LAUNCH;

    return is_16_bits(t) && 9 * k * small <= INT32_MAX &&
           saved > PRODUCTS_PER_BYTE * moved;
}

/* What several pictures have in scratch at a time: as much as a large cache
 * nearly holds. */
#ifndef MP_CUDA_TAPS                    /* tests have one that is soon full */
#define MP_CUDA_TAPS ((size_t)96 << 20) /* bytes */
#endif

/* As many pictures as divide n and find room in scratch, with so many elements
 * each. */
static int64_t fitting(const struct call *k, int64_t n, int64_t each)
{
    int64_t m = n;

    while (m > 1 &&
           (n % m || (uint64_t)m * (uint64_t)each * mp_dtype_size(k->c->type) >
                         MP_CUDA_TAPS))
        m--;
    return m;
}

static int choose_pictures(const struct call *k)
{
    const struct shape s = shape_of(k);
    int64_t one = s.h * s.w * s.r * s.s * s.k;

    if (one > INT32_MAX)
        return mp_fail(k->err, MP_ENOTSUP,
                       "cuda: %" PRId64
                       " products with the taps of an enlarged "
                       "map are over the limit of %" PRId32,
                       one, INT32_MAX);
    k->c->pictures = fitting(k, s.n, one);
    return 0;
}

/* ---- linear layers of the same x ---- */

static int is_alone(const struct mp_value *value, const struct mp_step *s)
{
    return s->op != MP_OP_CONV2D || s->attr.act != MP_ACT_NONE ||
           (s->nin > 2 && s->in[2] != MP_NO_VALUE) ||
           (s->nin > 3 && s->in[3] != MP_NO_VALUE) ||
           value[s->in[1]].place != MP_CONSTANT || value[s->in[1]].ndim != 2;
}

/* May this step be done with k's? Between the two nothing is read or written
 * but by layers of this kind, so no memory is of any other value. */
static int is_alike(const struct call *k, const struct mp_step *s)
{
    const struct mp_value *v = k->plan->value;
    const struct mp_value *w = &v[s->in[1]], *mine = cuda_in_value(k, 1);

    return !is_alone(v, s) && s->in[0] == k->s->in[0] &&
           w->dim[0] == mine->dim[0] && w->dim[1] == mine->dim[1] &&
           v[s->out].dtype == v[k->s->out].dtype;
}

#define MOST_ALIKE 3

/* k's and those that follow. */
static int count_alike(const struct call *k)
{
    const struct mp_step *end = k->plan->step + k->plan->nstep;
    int n = 1;

    if (is_alone(k->plan->value, k->s) || k->plan->once ||
        !is_16_bits(cuda_in_value(k, 0)->dtype))
        return 1;
    while (n < MOST_ALIKE && k->s + n < end && is_alike(k, k->s + n))
        n++;
    return n;
}

/* Elements from each one's result to the next one's, or 0: they do not lie so.
 */
static int64_t distance(const struct call *k, int n)
{
    const struct mp_value *v = k->plan->value;
    size_t at[MOST_ALIKE];

    for (int i = 0; i < n; i++)
        at[i] = v[k->s[i].out].offset;
    for (int i = 1; i < n; i++)
        if (at[i] <= at[i - 1] || at[i] - at[i - 1] != at[1] - at[0])
            return 0;
    return n > 1
               ? (int64_t)((at[1] - at[0]) / mp_dtype_size(v[k->s->out].dtype))
               : 0;
}

/* ---- choosing ---- */

/* A plan of cuBLASLt or cuDNN, or none. Not for what runs once: setting one up
 * costs more than it saves there. */
static void choose_lib(const struct call *k, const struct shape *s,
                       int64_t times, int64_t y_next)
{
    const struct mp_value *y = &k->plan->value[k->s->out];
    int alone = !is_enlarged(k); /* else more comes after */
    struct mp_error why = {0};
    const struct lib_conv want = {
        .type = k->c->type,
        .y_type = alone ? y->dtype : k->c->type,
        .n = s->n,
        .h = s->h,
        .w = s->w,
        .c = s->c,
        .k = s->k,
        .r = s->r,
        .s = s->s,
        .oh = s->oh,
        .ow = s->ow,
        .conv = s->conv,
        .bias = alone && cuda_has(k, 2),
        .residual = alone && cuda_has(k, 3),
        .act = alone ? k->s->attr.act : MP_ACT_NONE,
        .tf32 = k->plan->device->tf32,
        .times = times,
        .y_next = y_next,
    };

    if (k->plan->once || k->s->op == MP_OP_DECONV2D || !is_constant(k, 1) ||
        (want.bias && !is_constant(k, 2)) ||
        (want.residual &&
         (is_constant(k, 3) || cuda_in_value(k, 3)->dtype != y->dtype)))
        return;
    if (lib_plan_new(&k->c->lib, k->plan->device->gpu, &want, &why))
        mp_log(MP_LOG_DEBUG, "cuda",
               "conv2d %lldx%lldx%lldx%lld to %lld, %lldx%lld by our kernel: "
               "%s",
               (long long)s->n, (long long)s->h, (long long)s->w,
               (long long)s->c, (long long)s->k, (long long)s->r,
               (long long)s->s, why.text);
}

static uint64_t tiles(const struct shape *s, uint64_t side)
{
    uint64_t m = (uint64_t)(s->n * s->oh * s->ow);

    return (m + side - 1) / side * (((uint64_t)s->k + side - 1) / side);
}

/* Large tiles do more with what they read, small ones keep more of the device
 * busy. Both add up in the same order: the choice changes no result. */
static void choose_own(const struct call *k, const struct shape *s)
{
    int by_8 = s->c % 8 == 0, bf16 = k->c->type == MP_BF16;
    uint64_t busy = gpu_processors(k->plan->device->gpu);

    if (s->k <= GPU_THIN) {
        k->c->kernel = by_8 ? GPU_conv_thin_8 : GPU_conv_thin;
        k->c->name = "thin";
    } else if (!is_16_bits(k->c->type)) {
        k->c->kernel = GPU_conv_f32;
        k->c->name = "gemm:f32";
    } else if (!by_8) {
        k->c->kernel = bf16 ? GPU_conv_bf16_64 : GPU_conv_f16_64;
        k->c->name = "gemm:mma64,gather";
    } else if (tiles(s, 128) < busy) {
        k->c->kernel = bf16 ? GPU_conv_bf16_64_8 : GPU_conv_f16_64_8;
        k->c->name = "gemm:mma64";
    } else {
        k->c->kernel = bf16 ? GPU_conv_bf16_128_8 : GPU_conv_f16_128_8;
        k->c->name = "gemm:mma128";
    }
}

/* Kernels that copy x as it is want it in their type. */
static int takes_any_x(enum gpu_kernel kernel)
{
    return kernel == GPU_conv_thin || kernel == GPU_conv_thin_8 ||
           kernel == GPU_conv_f32 || kernel == GPU_conv_bf16_64 ||
           kernel == GPU_conv_f16_64;
}

/* Of the weights. */
static enum form form_of(const struct call *k)
{
    return k->s->op == MP_OP_DECONV2D ? PHASES
           : is_enlarged(k)           ? TAPS_K
           : k->c->widen              ? TAPS_8
                                      : TAPS;
}

/* Bias and weights that are no constants are laid out at every run. */
static int prepare_inputs(const struct call *k, const struct mp_program *p)
{
    enum mp_dtype bias =
        k->c->lib && !is_enlarged(k) ? k->plan->value[k->s->out].dtype : MP_F32;
    int rc = 0;

    for (int i = 0; i < k->s->nin && !rc; i++) {
        enum form f = i == 1 ? form_of(k) : PLAIN;
        enum mp_dtype t = i == 1 ? k->c->type : i == 2 ? bias : MP_F32;
        size_t bytes;

        if (!cuda_has(k, i))
            continue;
        bytes = cuda_in_value(k, i)->count * mp_dtype_size(t);
        if (is_constant(k, i))
            rc = cuda_pack(k, p, i, f, t);
        else if (i == 1)
            k->c->w_at = reserve(k, bytes);
        else if (i == 2)
            k->c->b_at = reserve(k, bytes);
    }
    return rc;
}

/* Libraries want whole accesses, and pictures that begin where values do. */
static int is_aligned(const struct call *k, const struct shape *s)
{
    size_t picture = (size_t)(s->h * s->w * s->c) * mp_dtype_size(k->c->type);

    return s->c % 8 == 0 && picture % 64 == 0;
}

static void choose(const struct call *k, const struct shape *s)
{
    struct shape wide = *s;

    if (is_16_bits(k->c->type) && !is_enlarged(k)) /* whole accesses */
        wide.c = cuda_up_to_8(s->c);
    if (s->k > GPU_THIN && (!is_enlarged(k) || is_aligned(k, s)))
        choose_lib(k, &wide, 1, 0);
    k->c->widen = k->c->lib && wide.c != s->c;
    if (k->c->lib) {
        k->c->name = lib_plan_name(k->c->lib);
        k->c->work = reserve(k, lib_plan_work(k->c->lib));
    } else {
        choose_own(k, s);
    }
}

/* By one plan, if there is one, at once or one after the other, by how their
 * results lie. Their weights lie the same way in all programs, or the device
 * would have them twice. */
static int compile_alike(const struct call *k, const struct mp_program *p)
{
    const struct shape s = shape_of(k);
    int n = count_alike(k);
    int64_t y_next = distance(k, n);
    uint32_t w[MOST_ALIKE];

    if (n == 1 || s.c % 8)
        return 0;
    choose_lib(k, &s, y_next ? n : 1, y_next);
    if (!k->c->lib)
        return 0;
    k->c->name = lib_plan_name(k->c->lib);
    k->c->work = reserve(k, lib_plan_work(k->c->lib));
    k->c->alike = n;
    k->c->calls = y_next ? 1 : n;
    for (int i = 0; i < n; i++) {
        w[i] = k->s[i].in[1];
        k->c[i].done = i > 0;
        if (i)
            k->c[i].name = "at once";
    }
    return cuda_pack_all(k, p, 1, w, n, TAPS, k->c->type);
}

static int run_alike(const struct call *k)
{
    const struct mp_value *w = cuda_in_value(k, 1);
    int rc = 0;

    for (int i = 0; i < k->c->calls && !rc; i++) {
        const struct lib_data d = {
            .x = (mp_addr)(uintptr_t)cuda_in(k, 0).p,
            .w = k->c->constant[1]->at +
                 (size_t)i * w->count * mp_dtype_size(k->c->type),
            .y = k->arena + k->plan->value[k->s[i].out].offset,
            .work = k->plan->scratch + k->c->work,
        };

        rc = lib_plan_run(k->c->lib, &d, k->err);
    }
    return rc;
}

/* Of so few channels that a tap is less than a whole access: by a linear layer
 * over what each result needs, if there is a plan for that. */
static int compile_unfolded(const struct call *k, const struct mp_program *p)
{
    struct shape s = shape_of(k), rows;
    int rc;

    if (k->s->op != MP_OP_CONV2D || is_enlarged(k) || s.c % 8 == 0 ||
        s.c * 9 > 64 || s.oh * s.ow * 64 > INT32_MAX || s.r != 3 || s.s != 3 ||
        s.k <= GPU_THIN || cuda_has(k, 3) || !is_16_bits(k->c->type) ||
        k->plan->value[k->s->out].dtype != k->c->type)
        return 0;
    rows = (struct shape){
        .n = fitting(k, s.n, s.oh * s.ow * cuda_up_to_8(9 * s.c)),
        .h = s.oh,
        .w = s.ow,
        .c = cuda_up_to_8(9 * s.c),
        .k = s.k,
        .r = 1,
        .s = 1,
        .oh = s.oh,
        .ow = s.ow,
        .conv = {.stride = 1},
    };
    choose_lib(k, &rows, 1, 0);
    if (!k->c->lib)
        return 0;
    k->c->name = lib_plan_name(k->c->lib);
    k->c->work = reserve(k, lib_plan_work(k->c->lib));
    k->c->unfold = 1;
    k->c->pictures = rows.n;
    k->c->x_at = reserve(k, (size_t)(rows.n * rows.h * rows.w * rows.c) *
                                mp_dtype_size(k->c->type));
    rc = cuda_pack(k, p, 1, ROWS_8, k->c->type);
    if (!rc && cuda_has(k, 2))
        rc = cuda_pack(k, p, 2, PLAIN, k->c->type);
    return rc;
}

int cuda_conv_compile(const struct call *k, const struct mp_program *p)
{
    const struct mp_value *x = cuda_in_value(k, 0);
    struct shape s;
    int rc;

    if (k->c->done)
        return 0;
    k->c->type = product_type(k);
    rc = compile_alike(k, p);
    if (!rc && !k->c->alike)
        rc = compile_unfolded(k, p);
    if (rc || k->c->alike || k->c->unfold)
        return rc;
    rc = is_enlarged(k) ? choose_pictures(k) : 0;
    if (rc)
        return rc;
    s = products_of(k);
    choose(k, &s);
    if (is_enlarged(k))
        k->c->taps_at = reserve(k, (size_t)(s.n * s.oh * s.ow * s.k) *
                                       mp_dtype_size(k->c->type));
    rc = prepare_inputs(k, p);
    if (!rc && (k->c->widen || (cuda_in(k, 0).type != (int)k->c->type &&
                                (k->c->lib || !takes_any_x(k->c->kernel))))) {
        size_t pixels = x->count / (size_t)s.c;
        int64_t c = k->c->widen ? cuda_up_to_8(s.c) : s.c;

        k->c->convert_x = 1;
        k->c->x_at = reserve(k, pixels * (size_t)c * mp_dtype_size(k->c->type));
    }
    return rc;
}

/* ---- running ---- */

static mp_addr scratch(const struct call *k, size_t at)
{
    return k->plan->scratch + at;
}

static void *pointer(mp_addr a)
{
    return (void *)(uintptr_t)a;
}

static int run_lib(const struct call *k, struct g_in x)
{
    const struct mp_value *y = &k->plan->value[k->s->out];
    struct g_out out = cuda_out(k);
    struct g_in again = {out.p, out.type};
    const struct lib_data d = {
        .x = (mp_addr)(uintptr_t)x.p,
        .w = k->c->constant[1]->at,
        .bias = cuda_has(k, 2) ? k->c->constant[2]->at : 0,
        .residual = cuda_has(k, 3) ? (mp_addr)(uintptr_t)cuda_in(k, 3).p : 0,
        .y = (mp_addr)(uintptr_t)out.p,
        .work = scratch(k, k->c->work),
    };
    int act = lib_plan_act(k->c->lib);
    int rc = lib_plan_run(k->c->lib, &d, k->err);

    return rc || act == MP_ACT_NONE
               ? rc
               : cuda_convert(k, out, again, y->count, act);
}

static int launch(const struct call *k, const struct g_conv *a)
{
    struct gpu_launch l = {.kernel = k->c->kernel, .grid = {1, 1, 1}, .arg = a};
    uint32_t m = a->n * a->oh * a->ow, side = 64;

    switch (l.kernel) {
    case GPU_conv_thin:
    case GPU_conv_thin_8:
        l.threads = 32 * GPU_ROWS;
        l.grid[0] = (m + GPU_ROWS - 1) / GPU_ROWS;
        return gpu_launch(k->plan->device->gpu, &l, k->err);
    case GPU_conv_f32:
        l.threads = 256;
        break;
    case GPU_conv_bf16_128_8:
    case GPU_conv_f16_128_8:
        side = 128;
        l.threads = 256;
        l.shared = 128 * (128 + 8) * sizeof(float);
        break;
    default:
        l.threads = 128;
        l.shared = 4 * (64 + 64) * 32 * sizeof(uint16_t);
        break;
    }
    l.grid[0] = (m + side - 1) / side;
    l.grid[1] = (a->k + side - 1) / side;
    return gpu_launch(k->plan->device->gpu, &l, k->err);
}

/* A transposed convolution: for each kind of result pixels a plain one. Kinds
 * that no tap reaches get the bias alone, from a kernel without taps. */
static int run_phases(const struct call *k, struct g_conv *a,
                      const struct shape *s)
{
    int32_t stride = k->s->attr.conv.stride, pad = k->s->attr.conv.top;
    int rc = 0;

    a->stride = 1;
    a->step = (uint32_t)stride;
    for (int i = 0; i < stride * stride && !rc; i++) {
        struct phase py = cuda_phase(s->r, stride, pad, i / stride);
        struct phase px = cuda_phase(s->s, stride, pad, i % stride);

        a->y0 = (uint32_t)(i / stride);
        a->x0 = (uint32_t)(i % stride);
        a->oh = ((uint32_t)s->oh + a->step - 1 - a->y0) / a->step;
        a->ow = ((uint32_t)s->ow + a->step - 1 - a->x0) / a->step;
        a->r = px.taps ? (uint32_t)py.taps : 0;
        a->s = px.taps ? (uint32_t)px.taps : 1;
        a->top = (int32_t)py.before;
        a->left = (int32_t)px.before;
        if (a->oh && a->ow)
            rc = launch(k, a);
        a->w.p =
            (const char *)a->w.p + (size_t)(py.taps * px.taps * s->k * s->c) *
                                       mp_dtype_size((enum mp_dtype)a->w.type);
    }
    return rc;
}

/* v: channels of a thread. */
static uint32_t enlarge_blocks(const struct g_enlarge *e, uint32_t v)
{
    uint32_t side = GPU_ENLARGE_SIDE;
    uint32_t line = (e->k + side * v - 1) / (side * v) * e->yw * side;

    return (line + GPU_THREADS - 1) / GPU_THREADS *
           ((e->yh + e->rows - 1) / e->rows) * e->n;
}

/* Many rows by a thread read less, few keep more of the device busy: the choice
 * changes no result. */
static int enlarge(const struct call *k, struct g_enlarge *e)
{
    int by_8 = e->k % 8 == 0 && is_16_bits(e->z.type);
    int bf16 = e->z.type == MP_BF16;
    enum gpu_kernel kernel =
        !by_8 ? GPU_enlarge
        : e->nearest
            ? (bf16 ? GPU_enlarge_nearest_bf16 : GPU_enlarge_nearest_f16)
            : (bf16 ? GPU_enlarge_bilinear_bf16 : GPU_enlarge_bilinear_f16);
    uint32_t v = by_8 ? 8 : 1;

    for (e->rows = 32; e->rows > 4; e->rows /= 2)
        if (enlarge_blocks(e, v) >= 3 * gpu_processors(k->plan->device->gpu))
            break;
    return cuda_launch(k, kernel, enlarge_blocks(e, v), 1, 1, GPU_THREADS, 0,
                       e);
}

static int products(const struct call *k, const struct g_conv *a)
{
    const struct lib_data d = {
        .x = (mp_addr)(uintptr_t)a->x.p,
        .w = (mp_addr)(uintptr_t)a->w.p,
        .y = (mp_addr)(uintptr_t)a->y.p,
        .work = scratch(k, k->c->work),
    };

    return k->c->lib ? lib_plan_run(k->c->lib, &d, k->err) : launch(k, a);
}

/* For some pictures at a time: what a asks for in the end, without its bias,
 * residual and activation first. */
static int run_enlarged(const struct call *k, struct g_conv *a)
{
    const struct shape s = shape_of(k);
    size_t x = a->n * a->h * a->wd * a->c * mp_dtype_size(a->x.type);
    size_t y = (size_t)(a->n * s.oh * s.ow * s.k);
    struct g_out taps = {pointer(scratch(k, k->c->taps_at)), k->c->type};
    struct g_enlarge e = {
        .y = a->y,
        .z = {taps.p, taps.type},
        .residual = a->residual,
        .bias = a->bias,
        .n = a->n,
        .h = a->h,
        .w = a->wd,
        .k = (uint32_t)s.k,
        .yh = (uint32_t)s.oh,
        .yw = (uint32_t)s.ow,
        .y_scale = (float)s.h / (float)s.oh,
        .x_scale = (float)s.w / (float)s.ow,
        .nearest = k->s->attr.nearest,
        .act = a->act,
    };
    int rc = 0;

    a->y = taps;
    a->residual.p = a->bias = NULL;
    a->act = MP_ACT_NONE;
    for (int64_t i = 0; i < s.n && !rc; i += k->c->pictures) {
        rc = products(k, a);
        if (!rc)
            rc = enlarge(k, &e);
        a->x.p = (const char *)a->x.p + x;
        e.y.p = (char *)e.y.p + y * mp_dtype_size(e.y.type);
        if (e.residual.p)
            e.residual.p =
                (const char *)e.residual.p + y * mp_dtype_size(e.residual.type);
    }
    return rc;
}

/* Some pictures at a time. */
static int run_unfolded(const struct call *k)
{
    const struct shape s = shape_of(k);
    const struct g_in x = cuda_in(k, 0);
    size_t pixels = (size_t)(s.oh * s.ow * k->c->pictures);
    struct g_unfold u = {
        .y = {pointer(scratch(k, k->c->x_at)), k->c->type},
        .x = x,
        .n = (uint32_t)k->c->pictures,
        .h = (uint32_t)s.h,
        .w = (uint32_t)s.w,
        .c = (uint32_t)s.c,
        .oh = (uint32_t)s.oh,
        .ow = (uint32_t)s.ow,
        .row = (uint32_t)cuda_up_to_8(9 * s.c),
        .stride = (uint32_t)s.conv.stride,
        .top = s.conv.top,
        .left = s.conv.left,
    };
    struct g_out y = cuda_out(k);
    int act = lib_plan_act(k->c->lib), rc = 0;

    for (int64_t i = 0; i < s.n && !rc; i += k->c->pictures) {
        const struct lib_data d = {
            .x = scratch(k, k->c->x_at),
            .w = k->c->constant[1]->at,
            .bias = cuda_has(k, 2) ? k->c->constant[2]->at : 0,
            .y = (mp_addr)(uintptr_t)y.p +
                 (size_t)(i * s.oh * s.ow * s.k) * mp_dtype_size(k->c->type),
            .work = scratch(k, k->c->work),
        };

        u.x.p = (const char *)x.p + (size_t)(i * s.h * s.w * s.c) *
                                        mp_dtype_size((enum mp_dtype)x.type);
        rc = cuda_each(k, GPU_unfold_8, GPU_unfold_8, 1, pixels * u.row, &u);
        if (!rc)
            rc = lib_plan_run(k->c->lib, &d, k->err);
    }
    if (rc || act == MP_ACT_NONE)
        return rc;
    return cuda_convert(k, y, (struct g_in){y.p, y.type},
                        k->plan->value[k->s->out].count, act);
}

int cuda_conv_run(const struct call *k)
{
    struct shape s = products_of(k);
    const struct mp_conv *p = &s.conv;
    struct g_conv a = {
        .y = cuda_out(k),
        .x = cuda_in(k, 0),
        .n = (uint32_t)s.n,
        .h = (uint32_t)s.h,
        .wd = (uint32_t)s.w,
        .c = (uint32_t)s.c,
        .r = (uint32_t)s.r,
        .s = (uint32_t)s.s,
        .k = (uint32_t)s.k,
        .oh = (uint32_t)s.oh,
        .ow = (uint32_t)s.ow,
        .stride = (uint32_t)p->stride,
        .top = p->top,
        .left = p->left,
        .yh = (uint32_t)s.oh,
        .yw = (uint32_t)s.ow,
        .step = 1,
        .act = k->s->attr.act,
    };
    int rc = 0;

    if (k->c->done)
        return 0;
    if (k->c->alike)
        return run_alike(k);
    if (k->c->unfold)
        return run_unfolded(k);
    if (k->c->convert_x) {
        struct g_out to = {pointer(scratch(k, k->c->x_at)), k->c->type};

        rc = k->c->widen
                 ? cuda_widen(k, to, a.x,
                              cuda_in_value(k, 0)->count / (size_t)s.c, s.c)
                 : cuda_convert(k, to, a.x, cuda_in_value(k, 0)->count,
                                MP_ACT_NONE);
        a.x = (struct g_in){to.p, to.type};
    }
    if (!rc && k->c->lib && !is_enlarged(k))
        return run_lib(k, a.x);
    if (!rc && !k->c->constant[1]) {
        struct g_out to = {pointer(scratch(k, k->c->w_at)), k->c->type};

        rc = cuda_form(k, to, cuda_in(k, 1), cuda_in_value(k, 1), form_of(k),
                       p->stride, p->top);
        a.w = (struct g_in){to.p, to.type};
    } else if (!rc) {
        a.w = cuda_in(k, 1);
    }
    if (!rc && cuda_has(k, 2)) {
        struct g_out to = {pointer(scratch(k, k->c->b_at)), MP_F32};

        if (k->c->constant[2])
            a.bias = cuda_in(k, 2).p;
        else
            rc = cuda_convert(k, to, cuda_in(k, 2), cuda_in_value(k, 2)->count,
                              MP_ACT_NONE);
        a.bias = k->c->constant[2] ? a.bias : to.p;
    }
    if (cuda_has(k, 3))
        a.residual = cuda_in(k, 3);
    if (rc)
        return rc;
    return k->s->op == MP_OP_DECONV2D ? run_phases(k, &a, &s)
           : is_enlarged(k)           ? run_enlarged(k, &a)
                                      : launch(k, &a);
}
