/* SPDX-License-Identifier: MIT */
/*
 * attention.c - attention: by a kernel of ours that keeps the products of
 * queries and keys to itself, or, much of it, by the library's; of one wide
 * head by products of the library, with those of some queries in memory.
 */
#include "cuda/cuda.h"

static const struct {
    uint32_t width, slice, keys; /* as in attention.cu, or more */
    int wide;
    enum gpu_kernel bf16, f16;
    enum gpu_kernel bf16_2, f16_2; /* for twice the queries, or 0 */
} flash[] = {
    {40, 40, 64, 0, GPU_flash_bf16_40, GPU_flash_f16_40, GPU_flash_bf16_40_2,
     GPU_flash_f16_40_2},
    {80, 80, 64, 0, GPU_flash_bf16_80, GPU_flash_f16_80, GPU_flash_bf16_80_2,
     GPU_flash_f16_80_2},
    {160, 160, 64, 0, GPU_flash_bf16_160, GPU_flash_f16_160, 0, 0},
    {512, 128, 16, 1, GPU_flash_bf16_512, GPU_flash_f16_512, 0, 0},
};
#define MANY_KEYS 512
#define NFLASH    (int)(sizeof flash / sizeof *flash)

static uint32_t width(const struct mp_value *v)
{
    return (uint32_t)v->dim[v->ndim - 1];
}

static uint32_t head_width(const struct call *k)
{
    return width(cuda_in_value(k, 0)) / (uint32_t)k->s->attr.heads;
}

/* Row of the table, or -1: only the exact kernel will do. */
static int flash_for(const struct call *k)
{
    uint32_t d = head_width(k);
    int t = cuda_in_value(k, 0)->dtype, i = 0;

    if ((t != MP_BF16 && t != MP_F16) || d % 8)
        return -1;
    for (int j = 1; j < 3; j++)
        if (cuda_in(k, j).type != t)
            return -1;
    while (i < NFLASH && flash[i].width < d)
        i++;
    return i < NFLASH ? i : -1;
}

static int run_kernel(const struct call *k)
{
    const struct mp_value *q = cuda_in_value(k, 0), *kv = cuda_in_value(k, 1);
    const struct g_attention a = {
        .y = cuda_out(k),
        .q = cuda_in(k, 0),
        .k = cuda_in(k, 1),
        .v = cuda_in(k, 2),
        .n = (uint32_t)q->dim[0],
        .t = (uint32_t)q->dim[1],
        .s = (uint32_t)kv->dim[1],
        .heads = (uint32_t)k->s->attr.heads,
        .d = head_width(k),
        .kv_batch = kv->dim[0] == 1 ? 0 : (uint32_t)(kv->dim[1] * kv->dim[2]),
        .scale = k->s->attr.scale,
    };
    int i = flash_for(k), bf16 = a.q.type == MP_BF16;
    uint32_t queries = GPU_FLASH_QUERIES;
    enum gpu_kernel kernel;
    size_t shared, row;

    if (i < 0)
        return cuda_launch(k, GPU_attention, (a.t + GPU_ROWS - 1) / GPU_ROWS,
                           a.heads, a.n, 32 * GPU_ROWS,
                           GPU_ROWS * a.d * sizeof(float), &a);
    row = FLASH_ROW(flash[i].width);
    kernel = bf16 ? flash[i].bf16 : flash[i].f16;
    /* to begin with more queries pays only where there are many keys */
    if (flash[i].bf16_2 && a.s >= MANY_KEYS &&
        (uint64_t)a.t * a.heads * a.n / (2 * queries) >=
            gpu_processors(k->plan->device->gpu)) {
        queries *= 2;
        kernel = bf16 ? flash[i].bf16_2 : flash[i].f16_2;
    }
    /* two stages of keys and values; of the widest one, and the queries */
    shared = flash[i].keys * (row + FLASH_ROW(flash[i].slice));
    shared = flash[i].wide ? shared + queries * row : 2 * shared;
    return cuda_launch(k, kernel, (a.t + queries - 1) / queries,
                       a.heads * ((a.d + flash[i].slice - 1) / flash[i].slice),
                       a.n, 128, shared * sizeof(uint16_t), &a);
}

/* ---- by products ---- */

#define PART  1024 /* queries, at most: their products stay in the cache */
#define ALIGN 256

/* Parts of equal size, of at most PART rows; 0: it does not divide. */
static uint32_t part_rows(uint32_t t)
{
    uint32_t parts = (t + PART - 1) / PART;

    while (t % parts)
        parts++;
    return t / parts < PART / 4 ? 0 : t / parts;
}

/* Scratch: f32 products, then what softmax makes of them, then the
 * library's. */
struct places {
    size_t soft, work, end;
};

static struct places places_of(const struct call *k)
{
    const struct mp_value *q = cuda_in_value(k, 0), *kv = cuda_in_value(k, 1);
    size_t n = (size_t)part_rows((uint32_t)q->dim[1]) * (size_t)kv->dim[1];
    size_t first = lib_plan_work(k->c->lib), second = lib_plan_work(k->c->lib2);
    struct places p;

    p.soft = (n * sizeof(float) + ALIGN - 1) / ALIGN * ALIGN;
    p.work = p.soft + (n * sizeof(uint16_t) + ALIGN - 1) / ALIGN * ALIGN;
    p.end = p.work + (first > second ? first : second);
    return p;
}

/* Plans for one head that is too wide for its kernel to be good, or none. */
static int choose_products(const struct call *k)
{
    const struct mp_value *q = cuda_in_value(k, 0), *kv = cuda_in_value(k, 1);
    const struct mp_value *y = &k->plan->value[k->s->out];
    int64_t rows = part_rows((uint32_t)q->dim[1]), s = kv->dim[1];
    struct gpu *g = k->plan->device->gpu;
    int i = flash_for(k), rc;
    struct lib_conv scores = {
        .type = q->dtype,
        .y_type = MP_F32,
        .n = 1,
        .h = 1,
        .w = rows,
        .c = q->dim[2],
        .k = s,
        .r = 1,
        .s = 1,
        .oh = 1,
        .ow = rows,
        .conv = {.stride = 1},
    };
    struct lib_conv result = scores;
    struct mp_error why = {0};

    if (i < 0 || !flash[i].wide || k->s->attr.heads != 1 || !rows || s % 32 ||
        s > GPU_SOFTEN || q->dim[2] % 32 || k->plan->once)
        return 0;
    result.y_type = y->dtype;
    result.c = s;
    result.k = q->dim[2];
    result.w_ck = 1;
    rc = lib_plan_new(&k->c->lib, g, &scores, &why);
    if (!rc)
        rc = lib_plan_new(&k->c->lib2, g, &result, &why);
    if (!rc)
        return 1;
    lib_plan_free(k->c->lib);
    k->c->lib = NULL;
    mp_log(MP_LOG_DEBUG, "cuda", "attention by our kernel: %s", why.text);
    return 0;
}

static mp_addr place(struct g_in x, size_t element)
{
    return (mp_addr)(uintptr_t)x.p +
           element * mp_dtype_size((enum mp_dtype)x.type);
}

static int run_products(const struct call *k)
{
    const struct mp_value *q = cuda_in_value(k, 0), *kv = cuda_in_value(k, 1);
    size_t t = (size_t)q->dim[1], s = (size_t)kv->dim[1], d = (size_t)q->dim[2];
    size_t rows = part_rows((uint32_t)t), next = kv->dim[0] == 1 ? 0 : s * d;
    struct places at = places_of(k);
    mp_addr scratch = k->plan->scratch;
    struct g_out out = cuda_out(k);
    struct g_in y = {out.p, out.type};
    const struct g_soften soften = {
        .y = {(void *)(uintptr_t)(scratch + at.soft), q->dtype},
        .x = (const float *)(uintptr_t)scratch,
        .rows = (uint32_t)rows,
        .c = (uint32_t)s,
        .scale = k->s->attr.scale,
    };
    int rc = 0;

    for (size_t row = 0; row < (size_t)q->dim[0] * t && !rc; row += rows) {
        size_t other = row / t * next;
        const struct lib_data first = {
            .x = place(cuda_in(k, 0), row * d),
            .w = place(cuda_in(k, 1), other),
            .y = scratch,
            .work = scratch + at.work,
        };
        const struct lib_data second = {
            .x = scratch + at.soft,
            .w = place(cuda_in(k, 2), other),
            .y = place(y, row * d),
            .work = scratch + at.work,
        };

        rc = lib_plan_run(k->c->lib, &first, k->err);
        if (!rc)
            rc = cuda_launch(k, GPU_soften_8, rows, 1, 1, GPU_THREADS, 0,
                             &soften);
        if (!rc)
            rc = lib_plan_run(k->c->lib2, &second, k->err);
    }
    return rc;
}

/* ---- by the library's kernel ---- */

/* Measured on an H200 with 16 pictures: 4096 tokens in heads of 40 take it 1.28
 * ms (us: 1.47), 1024 in heads of 80 0.13 (0.18); fewer keys or pictures as
 * long as us, or longer. But it compiles its kernel at every start, for a
 * second: for those alone who want the fastest at any cost. */
#define MANY_QUERIES (1 << 18) /* of all heads */

static int choose_library(const struct call *k)
{
    const struct mp_value *q = cuda_in_value(k, 0), *kv = cuda_in_value(k, 1);
    struct lib_conv c = {
        .type = q->dtype,
        .y_type = k->plan->value[k->s->out].dtype,
        .n = q->dim[0],
        .h = q->dim[1],
        .w = kv->dim[1],
        .c = q->dim[2],
        .residual = 1,
        .heads = k->s->attr.heads,
        .scale = k->s->attr.scale,
    };
    struct mp_error why = {0};

    if (!lib_is_autotuned(k->plan->device->gpu) || flash_for(k) < 0 ||
        c.y_type != c.type || kv->dim[0] != c.n || c.w < MANY_KEYS ||
        c.n * c.h * c.heads < MANY_QUERIES || head_width(k) > 128 ||
        k->plan->once)
        return 0;
    if (!lib_plan_new(&k->c->lib, k->plan->device->gpu, &c, &why))
        return 1;
    mp_log(MP_LOG_DEBUG, "cuda", "attention by our kernel: %s", why.text);
    return 0;
}

static int run_library(const struct call *k)
{
    const struct lib_data d = {
        .x = (mp_addr)(uintptr_t)cuda_in(k, 0).p,
        .w = (mp_addr)(uintptr_t)cuda_in(k, 1).p,
        .residual = (mp_addr)(uintptr_t)cuda_in(k, 2).p,
        .y = (mp_addr)(uintptr_t)cuda_out(k).p,
        .work = k->plan->scratch,
    };

    return lib_plan_run(k->c->lib, &d, k->err);
}

/* ---- steps ---- */

static int check(const struct call *k)
{
    if (GPU_ROWS * head_width(k) * sizeof(float) >
        gpu_shared(k->plan->device->gpu))
        return mp_fail(k->err, MP_ENOTSUP,
                       "cuda: attention: heads of %u channels are too wide",
                       head_width(k));
    return 0;
}

/* Keys and values go into products with queries of 16 bits. */
static enum mp_dtype type_of(const struct call *k, int i)
{
    enum mp_dtype q = cuda_in_value(k, 0)->dtype;

    return i > 0 && cuda_in_value(k, 0)->place != MP_CONSTANT ? q : MP_F32;
}

int cuda_attention_compile(const struct call *k, const struct mp_program *p)
{
    int rc = 0;

    for (int i = 0; i < k->s->nin && !rc; i++)
        if (cuda_in_value(k, i)->place == MP_CONSTANT)
            rc = cuda_pack(k, p, i, PLAIN, type_of(k, i));
    if (!rc)
        rc = check(k);
    if (rc)
        return rc;
    if (choose_products(k)) {
        k->c->scratch = places_of(k).end;
        k->c->name = lib_plan_name(k->c->lib);
    } else if (choose_library(k)) {
        k->c->scratch = lib_plan_work(k->c->lib);
        k->c->name = lib_plan_name(k->c->lib);
    } else {
        k->c->name = flash_for(k) < 0 ? "attention" : "flash";
    }
    return 0;
}

int cuda_attention_run(const struct call *k)
{
    if (k->c->lib2)
        return run_products(k);
    return k->c->lib ? run_library(k) : run_kernel(k);
}
