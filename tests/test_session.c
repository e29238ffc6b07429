/* SPDX-License-Identifier: MIT */
/*
 * test_session.c - what sessions do with memory: operands on the host and on
 * the device, inputs that must not change, outputs that share a place, blocks
 * that stay between sessions. On the backend of MPIPE_TEST_BACKEND.
 */
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "device.h"
#include "graph_impl.h"
#include "module.h"
#include "session.h"

#define COUNT 60 /* elements of the tests' inputs: 1 x 3 x 5 x 4 */

static const int64_t shape[] = {1, 3, 5, 4};

static const char *backend(void)
{
    const char *name = getenv("MPIPE_TEST_BACKEND");

    return name && *name ? name : "cpu";
}

struct net {
    struct mp_opened o;
    struct mp_arena arena;
    struct mp_graph *g;
    struct mp_session *s;
};

static void open_device(struct net *n)
{
    struct mp_error err = {0};

    memset(n, 0, sizeof *n);
    ck_assert_msg(!mp_device_open(&n->o, backend(), MP_PREC_FP32, 1, &err),
                  "%s", err.text);
    n->arena.backend = n->o.backend;
    n->arena.device = n->o.device;
    n->g = mp_graph_new(NULL);
}

static struct mp_session *compile(struct net *n)
{
    struct mp_error err = {0};
    struct mp_session *s = NULL;

    ck_assert_msg(!mp_session_new(&s, &n->arena, n->g, MP_F32, &err), "%s",
                  err.text);
    mp_graph_free(n->g);
    n->g = NULL;
    return s;
}

static void close_device(struct net *n)
{
    mp_session_free(n->s);
    mp_graph_free(n->g);
    mp_arena_free(&n->arena);
    n->o.backend->close(n->o.device);
}

/* Bytes; 0: this backend does not count. */
static uint64_t ours(const struct net *n)
{
    struct mp_device_memory m;

    ck_assert(!n->o.backend->memory(n->o.device, &m, NULL));
    ck_assert_uint_le(m.free, m.total);
    return m.total ? m.ours : 0;
}

static void fill(float *x)
{
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i * 37 % 61) / 8 - 3;
}

static void put(struct net *n, const struct mp_held *h, const float *x)
{
    ck_assert(!n->o.backend->put(n->o.device, mp_held_at(h), x,
                                 COUNT * sizeof *x, NULL));
}

static void get(struct net *n, float *x, const struct mp_held *h)
{
    uint64_t ticket;

    ck_assert(!n->o.backend->get(n->o.device, x, mp_held_at(h),
                                 COUNT * sizeof *x, &ticket, NULL));
    ck_assert(!n->o.backend->wait(n->o.device, ticket, NULL));
}

static void run(struct net *n, const struct mp_operand *in,
                const struct mp_operand *out)
{
    struct mp_error err = {0};
    uint64_t ticket = 1;

    ck_assert_msg(!mp_session_start(n->s, in, out, &ticket, &err), "%s",
                  err.text);
    ck_assert(!n->o.backend->wait(n->o.device, ticket, &err));
}

/* relu(x + 1) where both could be done in x's place; x must stay, wherever the
 * operands are. */
START_TEST(operands)
{
    int in_held = _i & 1, out_held = _i >> 1;
    float x[COUNT], y[COUNT], want[COUNT], after[COUNT];
    struct mp_operand in = {.host = x}, out = {.host = y};
    struct mp_held *a = NULL, *b = NULL;
    struct net n;

    open_device(&n);
    mp_output(n.g, "y",
              mp_act(n.g,
                     mp_add(n.g, mp_input(n.g, "x", MP_F32, 4, shape),
                            mp_scalar(n.g, 1)),
                     MP_RELU));
    n.s = compile(&n);
    fill(x);
    for (int i = 0; i < COUNT; i++)
        want[i] = x[i] + 1 > 0 ? x[i] + 1 : 0;
    memset(y, 0xff, sizeof y);
    ck_assert(!mp_held_new(&a, &n.arena, sizeof x, NULL));
    ck_assert(!mp_held_new(&b, &n.arena, sizeof y, NULL));
    put(&n, a, x);
    if (in_held)
        in = (struct mp_operand){.at = mp_held_at(a)};
    if (out_held)
        out = (struct mp_operand){.at = mp_held_at(b)};
    for (int i = 0; i < 3; i++) /* a GPU records what it does the second time */
        run(&n, &in, &out);
    if (out_held)
        get(&n, y, b);
    get(&n, after, a);
    ck_assert_mem_eq(y, want, sizeof y);
    ck_assert_mem_eq(after, x, sizeof x);
    fill(want);
    ck_assert_mem_eq(x, want, sizeof x);
    mp_held_free(a);
    mp_held_free(b);
    close_device(&n);
}
END_TEST

/* Outputs that are an input, or another output of another shape, or the input
 * of a later step that could work in place. */
START_TEST(outputs_that_share)
{
    float x[COUNT], y[4][COUNT];
    struct mp_operand in = {.host = x}, out[4];
    struct net n;
    mp_node u, v;

    open_device(&n);
    u = mp_input(n.g, "x", MP_F32, 4, shape);
    v = mp_mul(n.g, u, mp_scalar(n.g, 2));
    mp_output(n.g, "input", mp_reshape(n.g, u, 2, (int64_t[]){15, 4}));
    mp_output(n.g, "twice", v);
    mp_output(n.g, "again", mp_reshape(n.g, v, 1, (int64_t[]){COUNT}));
    mp_output(n.g, "more", mp_add(n.g, v, mp_scalar(n.g, 1)));
    n.s = compile(&n);
    fill(x);
    memset(y, 0xff, sizeof y);
    for (int i = 0; i < 4; i++)
        out[i] = (struct mp_operand){.host = y[i]};
    run(&n, &in, out);
    for (int i = 0; i < COUNT; i++) {
        ck_assert_float_eq(y[0][i], x[i]);
        ck_assert_float_eq(y[1][i], 2 * x[i]);
        ck_assert_float_eq(y[2][i], 2 * x[i]);
        ck_assert_float_eq(y[3][i], 2 * x[i] + 1);
    }
    close_device(&n);
}
END_TEST

/* Results and inputs of a host's device are used where they are. */
START_TEST(no_copies_on_the_host)
{
    struct net n;

    open_device(&n);
    mp_output(
        n.g, "y",
        mp_mul(n.g, mp_input(n.g, "x", MP_F32, 4, shape), mp_scalar(n.g, 3)));
    n.s = compile(&n);
    if (n.o.backend->host)
        ck_assert_uint_eq(mp_session_arena(n.s), 0);
    else
        ck_assert_uint_ge(mp_session_arena(n.s), COUNT * sizeof(float));
    close_device(&n);
}
END_TEST

/* What one session gives, two others take, though blocks are given back at
 * once and serve again. */
START_TEST(chain)
{
    float x[COUNT], y[COUNT], z[COUNT], want[2][COUNT];
    struct mp_session *first, *second;
    struct net n;

    open_device(&n);
    mp_output(
        n.g, "map",
        mp_mul(n.g, mp_input(n.g, "x", MP_F32, 4, shape), mp_scalar(n.g, 3)));
    first = compile(&n);
    n.g = mp_graph_new(NULL);
    mp_output(n.g, "sum",
              mp_add(n.g, mp_input(n.g, "a", MP_F32, 4, shape),
                     mp_input(n.g, "b", MP_F32, 4, shape)));
    second = compile(&n);
    fill(x);
    for (int k = 0; k < 20; k++) {
        struct mp_held *map[3];

        for (int i = 0; i < COUNT; i++)
            x[i] += 1;
        for (int i = 0; i < 3; i++) {
            ck_assert(!mp_held_new(&map[i], &n.arena, sizeof x, NULL));
            n.s = first;
            run(&n, &(struct mp_operand){.host = x},
                &(struct mp_operand){.at = mp_held_at(map[i])});
            for (int j = 0; j < COUNT; j++)
                x[j] += 1;
        }
        for (int j = 0; j < COUNT; j++) {
            want[0][j] = 3 * (x[j] - 3) + 3 * (x[j] - 2);
            want[1][j] = want[0][j] + 3 * (x[j] - 1);
        }
        n.s = second;
        run(&n,
            (struct mp_operand[]){{.at = mp_held_at(map[0])},
                                  {.at = mp_held_at(map[1])}},
            &(struct mp_operand){.host = y});
        mp_held_free(map[1]);
        mp_held_free(map[0]);
        run(&n, (struct mp_operand[]){{.host = y}, {.at = mp_held_at(map[2])}},
            &(struct mp_operand){.host = z});
        mp_held_free(map[2]);
        ck_assert_mem_eq(y, want[0], sizeof y);
        ck_assert_mem_eq(z, want[1], sizeof z);
    }
    mp_session_free(first);
    n.s = second;
    close_device(&n);
}
END_TEST

/* A sum that is added to again stays f32 where else all is bf16, up to a size
 * of one picture. */
START_TEST(large_sums)
{
    const struct mp_conv conv = {1, 1, 1, 1, 1};
    const int64_t taps[4] = {8, 8, 3, 3}, row = 1024 * 8 * sizeof(float);
    float *zeros = calloc(8 * 8 * 9, sizeof *zeros);
    struct mp_error err = {0};
    struct mp_step_info step;
    struct net n;
    mp_node none = {0}, w, x, a, b;
    int64_t rows;

    open_device(&n);
    if (n.o.backend->supports(n.o.device, MP_BF16, NULL) ||
        !n.o.backend->wide_sums) {
        puts("large_sums: SKIPPED, no bf16 or no sums in f32 here");
        goto done;
    }
    rows = (int64_t)n.o.backend->wide_sums / row + _i;
    w = mp_const(n.g, 4, taps, zeros);
    x = mp_input(n.g, "x", MP_F32, 4, (int64_t[]){2, rows, 1024, 8});
    a = mp_conv2d(n.g, x, w, none, conv);
    b = mp_add(n.g, mp_conv2d(n.g, a, w, none, conv), a);
    a = mp_add(n.g, mp_conv2d(n.g, b, w, none, conv), b);
    mp_output(n.g, "y", mp_conv2d(n.g, a, w, none, conv));
    ck_assert_msg(!mp_session_new(&n.s, &n.arena, n.g, MP_BF16, &err), "%s",
                  err.text);
    ck_assert_uint_eq(mp_session_steps(n.s), 4);
    mp_session_step(n.s, 1, &step);
    ck_assert_int_eq(step.out.dtype, _i ? MP_BF16 : MP_F32);
done:
    close_device(&n);
    free(zeros);
}
END_TEST

static void *let_go(void *user)
{
    struct mp_held **h = user;

    for (int i = 0; i < 32; i++)
        mp_held_free(h[i]);
    return NULL;
}

/* Given back by other threads, kept for the next, a few only, and gone at the
 * end. */
START_TEST(blocks)
{
    enum { BYTES = 4096 };
    struct mp_held *h[64], *again;
    uint64_t before, most;
    pthread_t thread[2];
    mp_addr at;
    struct net n;

    open_device(&n);
    before = ours(&n);
    for (int i = 0; i < 64; i++)
        ck_assert(!mp_held_new(&h[i], &n.arena, BYTES, NULL));
    most = ours(&n);
    if (most)
        ck_assert_uint_ge(most - before, 64 * BYTES);
    at = mp_held_at(h[0]);
    again = mp_held_share(h[0]);
    for (int i = 0; i < 2; i++)
        ck_assert(!pthread_create(&thread[i], NULL, let_go, h + 32 * i));
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    ck_assert_uint_ge(mp_arena_idle(&n.arena), BYTES);
    ck_assert_uint_lt(mp_arena_idle(&n.arena), 16 * BYTES);
    for (int i = 0; i < 8; i++) { /* h[0] is still held */
        ck_assert(!mp_held_new(&h[i], &n.arena, BYTES, NULL));
        ck_assert(mp_held_at(h[i]) != at);
    }
    if (most)
        ck_assert_uint_lt(ours(&n) - before, (most - before) / 2);
    for (int i = 0; i < 8; i++)
        mp_held_free(h[i]);
    mp_held_free(again);
    /* one that is much larger is not given away */
    ck_assert(!mp_held_new(&h[0], &n.arena, BYTES / 2, NULL));
    ck_assert_uint_ge(mp_arena_idle(&n.arena), 8 * BYTES);
    mp_held_free(h[0]);
    mp_arena_free(&n.arena);
    ck_assert_uint_eq(ours(&n), before);
    close_device(&n);
}
END_TEST

/* Copies to, in and from the device in any mixture, against what the same would
 * have done on the host. Results are waited for late. */
enum { ROOM = 300 << 10, PART = 40 << 10, ASKED = 40 };
static struct {
    uint8_t got[PART], want[PART];
    size_t n;
    uint64_t ticket;
} asked[ASKED];

static size_t any(uint64_t *seed, size_t below)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(*seed >> 33) % below;
}

static void answer(struct net *n, size_t k)
{
    ck_assert(!n->o.backend->wait(n->o.device, asked[k].ticket, NULL));
    ck_assert_mem_eq(asked[k].got, asked[k].want, asked[k].n);
}

START_TEST(traffic)
{
    static uint8_t model[ROOM], part[PART];
    uint64_t seed = (uint64_t)_i;
    struct mp_held *h = NULL;
    size_t nasked = 0;
    struct net n;

    open_device(&n);
    ck_assert(!mp_held_new(&h, &n.arena, ROOM, NULL));
    ck_assert(!n.o.backend->put(n.o.device, mp_held_at(h), model, ROOM, NULL));
    for (int i = 0; i < 2000; i++) {
        size_t size = any(&seed, 4) ? any(&seed, 2000) : any(&seed, PART);
        size_t at = any(&seed, ROOM / 2 - PART), k = nasked % ASKED;
        size_t from = ROOM / 2 + any(&seed, ROOM / 2 - PART);

        if (any(&seed, 2)) {
            size_t other = at;

            at = from;
            from = other;
        }
        switch (any(&seed, 3)) {
        case 0:
            for (size_t j = 0; j < size; j++)
                part[j] = (uint8_t)any(&seed, 256);
            memcpy(model + at, part, size);
            ck_assert(!n.o.backend->put(n.o.device, mp_held_at(h) + at, part,
                                        size, NULL));
            memset(part, 0xee, size);
            break;
        case 1:
            memcpy(model + at, model + from, size);
            ck_assert(!n.o.backend->copy(n.o.device, mp_held_at(h) + at,
                                         mp_held_at(h) + from, size, NULL));
            break;
        default:
            if (nasked >= ASKED)
                answer(&n, k);
            memcpy(asked[k].want, model + at, size);
            memset(asked[k].got, 0xdd, size);
            asked[k].n = size;
            ck_assert(!n.o.backend->get(n.o.device, asked[k].got,
                                        mp_held_at(h) + at, size,
                                        &asked[k].ticket, NULL));
            nasked++;
        }
    }
    ck_assert_uint_gt(nasked, ASKED);
    ck_assert(!n.o.backend->wait(n.o.device, UINT64_MAX, NULL));
    for (size_t k = 0; k < ASKED; k++)
        answer(&n, k);
    mp_held_free(h);
    close_device(&n);
}
END_TEST

/* ---- weights in a file ---- */

/* A checkpoint under a name that mkstemp() completes. */
#define TEMPLATE "/tmp/mpipe-session-XXXXXX"

struct file {
    char path[sizeof TEMPLATE];
    int fd;
    struct mp_weights *weights;
};

static void open_file(struct file *f, const struct mp_weight_out *w, size_t n)
{
    memcpy(f->path, TEMPLATE, sizeof f->path);
    f->fd = mkstemp(f->path);
    ck_assert_int_ge(f->fd, 0);
    ck_assert(!mp_weights_write(f->path, w, n, NULL, NULL));
    ck_assert(!mp_weights_open(&f->weights, f->path, NULL));
}

static void close_file(struct file *f)
{
    mp_weights_close(f->weights);
    close(f->fd);
    unlink(f->path);
}

#define SIDE 16
#define WIDE 320 /* enough for the CPU to compute it in Winograd's way */

static int fill_weights(void *user, size_t i, void *buf, struct mp_error *err)
{
    float *w = buf;

    (void)user;
    (void)i;
    (void)err;
    for (int64_t k = 0; k < (int64_t)WIDE * WIDE * 9; k++)
        w[k] = (float)(k * 37 % 61 - 30) / 64;
    return 0;
}

static double conv_at(const float *x, const float *w, int y, int v, int k)
{
    double sum = 0;

    for (int r = 0; r < 9; r++) {
        int at_y = y + r / 3 - 1, at_x = v + r % 3 - 1;

        if (at_y < 0 || at_y >= SIDE || at_x < 0 || at_x >= SIDE)
            continue;
        for (int c = 0; c < WIDE; c++)
            sum += (double)x[(at_y * SIDE + at_x) * WIDE + c] *
                   (double)w[(k * WIDE + c) * 9 + r];
    }
    return sum;
}

/* The first run may read them there. Later ones do not, nor is the file wanted
 * then; all give the same. */
START_TEST(weights_leave_their_file)
{
    struct mp_weight_out w = {"w", MP_F32, 4, {WIDE, WIDE, 3, 3}, fill_weights};
    size_t count = SIDE * SIDE * WIDE, bytes = count * sizeof(float);
    float *x = malloc(bytes), *y = malloc(bytes), *want = malloc(bytes);
    float *taps = malloc(sizeof *taps * WIDE * WIDE * 9);
    struct mp_operand in = {.host = x}, out = {.host = y};
    struct file file;
    struct net n;
    int cpu;

    ck_assert(x && y && want && taps);
    open_file(&file, &w, 1);
    open_device(&n);
    mp_graph_free(n.g);
    n.g = mp_graph_new(file.weights);
    mp_output(n.g, "y",
              mp_conv2d(n.g,
                        mp_input(n.g, "x", MP_F32, 4,
                                 (int64_t[]){1, SIDE, SIDE, WIDE}),
                        mp_weight(n.g, "w", 4, (int64_t[]){WIDE, WIDE, 3, 3}),
                        (mp_node){0}, (struct mp_conv){1, 1, 1, 1, 1}));
    n.s = compile(&n);
    mp_weights_close(file.weights);
    file.weights = NULL;
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(i * 29 % 53) / 32 - .8f;
    cpu = n.o.backend == &mp_backend_cpu;
    ck_assert(!cpu || mp_cpu_packed(n.o.device) == 0);
    run(&n, &in, &out);
    ck_assert(!cpu || mp_cpu_packed(n.o.device) == 0);
    memcpy(want, y, bytes);
    run(&n, &in, &out);
    ck_assert_mem_eq(y, want, bytes);
    ck_assert(!cpu || mp_cpu_packed(n.o.device) >= sizeof *taps * WIDE);
    ck_assert_int_eq(ftruncate(file.fd, 0), 0);
    ck_assert_int_eq(truncate(file.path, 0), 0);
    run(&n, &in, &out);
    ck_assert_mem_eq(y, want, bytes);
    fill_weights(NULL, 0, taps, NULL);
    for (int i = 0; i < 40; i++) {
        int at = i * 2049 % (int)count;
        double sum =
            conv_at(x, taps, at / WIDE / SIDE, at / WIDE % SIDE, at % WIDE);

        ck_assert_double_eq_tol((double)y[at], sum, 2e-3);
    }
    close_device(&n);
    close_file(&file);
    free(x);
    free(y);
    free(want);
    free(taps);
}
END_TEST

/* Layers whose weights are scaled by a batch norm, and large enough to be left
 * in the file: 3x3, of joined maps one of which is enlarged first; 1x1; and a
 * transposed one, which is not left there, as it is no row that is scaled. */
#define JOINED 384
#define MANY   2800
#define FEW    24

static int fill_layer(void *user, size_t i, void *buf, struct mp_error *err);

#define NORM(name, k)                                                          \
    {name ".weight", MP_F32, 1, {k}, fill_layer},                              \
        {name ".bias", MP_F32, 1, {k}, fill_layer},                            \
        {name ".mean", MP_F32, 1, {k}, fill_layer},                            \
    {                                                                          \
        name ".var", MP_F32, 1, {k}, fill_layer                                \
    }

static const struct mp_weight_out layers[] = {
    {"joined", MP_F32, 4, {JOINED, 2 * WIDE, 3, 3}, fill_layer},
    NORM("joined_norm", JOINED),
    {"many", MP_F32, 4, {MANY, JOINED, 1, 1}, fill_layer},
    NORM("many_norm", MANY),
    {"few", MP_F32, 4, {MANY, FEW, 4, 4}, fill_layer},
    NORM("few_norm", FEW),
};
#define NLAYERS (sizeof layers / sizeof *layers)

static int64_t count_of(const struct mp_weight_out *w)
{
    return mp_shape_count(w->ndim, w->dim);
}

static int fill_layer(void *user, size_t i, void *buf, struct mp_error *err)
{
    int var = i % 5 == 4;
    float *x = buf;

    (void)user;
    (void)err;
    for (int64_t k = 0; k < count_of(&layers[i]); k++)
        x[k] = var ? (float)(k * 13 % 17 + 1) / 8
                   : (float)((k * 37 + (int64_t)i * 11) % 61 - 30) / 64;
    return 0;
}

/* From the file, or as constants of the graph (NULL). */
static mp_node layer(struct mp_graph *g, const struct mp_weights *file,
                     size_t i)
{
    const struct mp_weight_out *w = &layers[i];
    float *x;
    mp_node n;

    if (file)
        return mp_weight(g, w->name, w->ndim, w->dim);
    x = malloc((size_t)count_of(w) * sizeof *x);
    fill_layer(NULL, i, x, NULL);
    n = mp_const(g, w->ndim, w->dim, x);
    free(x);
    return n;
}

static mp_node norm(struct mp_graph *g, const struct mp_weights *file, size_t i,
                    mp_node x)
{
    return mp_batch_norm(g, x, layer(g, file, i), layer(g, file, i + 1),
                         layer(g, file, i + 2), layer(g, file, i + 3), 1e-5f);
}

static struct mp_session *scaled(struct net *n, const struct mp_weights *file,
                                 enum mp_dtype t)
{
    struct mp_graph *g = mp_graph_new(file);
    struct mp_error err = {0};
    struct mp_session *s = NULL;
    mp_node none = {0}, x[2];

    x[0] =
        mp_input(g, "x", MP_F32, 4, (int64_t[]){1, SIDE / 2, SIDE / 2, WIDE});
    x[1] = mp_input(g, "z", MP_F32, 4, (int64_t[]){1, SIDE, SIDE, WIDE});
    x[0] = mp_resize_bilinear(g, x[0], SIDE, SIDE);
    x[0] = mp_concat(g, x, 2, 3);
    x[0] = mp_conv2d(g, x[0], layer(g, file, 0), none,
                     (struct mp_conv){1, 1, 1, 1, 1});
    x[0] = mp_act(g, norm(g, file, 1, x[0]), MP_RELU);
    x[0] = mp_conv2d(g, x[0], layer(g, file, 5), none,
                     (struct mp_conv){.stride = 1});
    x[0] = mp_act(g, norm(g, file, 6, x[0]), MP_RELU);
    x[0] = mp_deconv2d(g, x[0], layer(g, file, 10), none, 2, 1, 0);
    mp_output(g, "y", norm(g, file, 11, x[0]));
    ck_assert_msg(!mp_session_new(&s, &n->arena, g, t, &err), "%s", err.text);
    mp_graph_free(g);
    return s;
}

/* All runs give what weights give that are folded before the first. */
START_TEST(scaled_weights_leave_their_file)
{
    size_t count = 4 * SIDE * SIDE * FEW, bytes = count * sizeof(float);
    float *x = malloc((size_t)SIDE * SIDE * WIDE * sizeof *x);
    float *y = malloc(bytes), *want = malloc(bytes);
    struct mp_operand in[2] = {{.host = x}, {.host = x}}, out = {.host = y};
    enum mp_dtype t = _i ? MP_BF16 : MP_F32;
    struct file file;
    struct net n;
    int cpu;

    ck_assert(x && y && want);
    open_file(&file, layers, NLAYERS);
    for (int i = 0; i < SIDE * SIDE * WIDE; i++)
        x[i] = (float)(i * 29 % 53) / 32 - .8f;
    open_device(&n);
    cpu = n.o.backend == &mp_backend_cpu;
    if (n.o.backend->supports(n.o.device, t, NULL)) {
        puts("scaled_weights_leave_their_file: SKIPPED, no bf16 here");
        goto done;
    }
    n.s = scaled(&n, NULL, t);
    run(&n, in, &(struct mp_operand){.host = want});
    mp_session_free(n.s);
    n.s = scaled(&n, file.weights, t);
    for (int i = 0; i < 3; i++) {
        size_t before = cpu ? mp_cpu_packed(n.o.device) : 0;

        run(&n, in, &out);
        ck_assert_mem_eq(y, want, bytes);
        if (cpu && i == 1)
            ck_assert_uint_ge(
                mp_cpu_packed(n.o.device) - before,
                (size_t)(count_of(&layers[0]) + count_of(&layers[5])) *
                    mp_dtype_size(t));
        else if (cpu)
            ck_assert_uint_eq(mp_cpu_packed(n.o.device), before);
        memset(y, 0, bytes);
    }
done:
    close_device(&n);
    close_file(&file);
    free(x);
    free(y);
    free(want);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("session");
    TCase *t = tcase_create("memory"), *w = tcase_create("weights");
    SRunner *sr = srunner_create(suite);
    int failed;

    suite_add_tcase(suite, t);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, operands, 0, 4);
    tcase_add_test(t, outputs_that_share);
    tcase_add_test(t, no_copies_on_the_host);
    tcase_add_test(t, chain);
    tcase_add_loop_test(t, large_sums, 0, 2);
    tcase_add_test(t, blocks);
    tcase_add_loop_test(t, traffic, 0, 3);
    suite_add_tcase(suite, w);
    tcase_set_timeout(w, 60);
    tcase_add_test(w, weights_leave_their_file);
    tcase_add_loop_test(w, scaled_weights_leave_their_file, 0, 2);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
