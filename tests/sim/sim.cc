/* SPDX-License-Identifier: MIT */
/*
 * sim.cc - fibers, and what lanes of a warp do together.
 *
 * A fiber is entered with setcontext once, and from then on left and resumed
 * with longjmp, which needs no system call: kernels switch millions of times.
 * It runs thread i of one block after the other.
 */
#undef _FORTIFY_SOURCE /* longjmp "up" the stack is what is meant here */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <deque>
#include <vector>
#include <ucontext.h>
#include "sim.h"

#define STACK ((size_t)128 << 10)

sim_index threadIdx, blockIdx, blockDim, gridDim;
unsigned char *sim_shared;

struct copy {
    void *to;
    const void *from;
    bool there;
};

enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct fiber {
    ucontext_t context;
    jmp_buf jump;
    bool entered;
    std::vector<char> stack;
    state is;
    const char *at; /* the warp call */
    unsigned calls; /* of its warp so far */
    std::vector<copy> open;
    std::deque<std::vector<copy>> groups;
};

/* What lanes give: two calls' worth, so that a lane which is ahead does not
 * overwrite what another has yet to read. */
struct warp {
    char given[2][32][64];
    bool multiplied[2]; /* the call's product has been taken, by one for all */
    float product[2][16][8];
};

static struct {
    std::vector<struct fiber> fiber;
    std::vector<struct warp> warp;
    unsigned threads, now;
    bool together;
    jmp_buf main_jump;
    void (*call)(const void *);
    const void *arg;
} sim;

static void fail(const char *what)
{
    fprintf(stderr, "sim: thread %u of block %u,%u,%u: %s\n", sim.now,
            blockIdx.x, blockIdx.y, blockIdx.z, what);
    abort();
}

/* ---- fibers ---- */

static fiber &me()
{
    return sim.fiber[sim.now];
}

static void to_main()
{
    if (!_setjmp(me().jump))
        _longjmp(sim.main_jump, 1);
}

static void body()
{
    for (;;) {
        sim.call(sim.arg);
        if (!me().open.empty() || !me().groups.empty())
            fail("ends before its copies do");
        me().is = DONE;
        to_main();
    }
}

static void resume(unsigned i)
{
    fiber &f = sim.fiber[i];

    sim.now = i;
    threadIdx = {i, 0, 0};
    if (_setjmp(sim.main_jump))
        return;
    if (f.entered)
        _longjmp(f.jump, 1);
    f.entered = true;
    setcontext(&f.context);
}

static fiber &waiter()
{
    if (!sim.together)
        fail("waits, but is of a kernel that does not");
    return me();
}

static void wait(state what)
{
    waiter().is = what;
    to_main();
}

void __syncthreads()
{
    wait(AT_BLOCK);
}

const char *sim_warp(const char *what, const void *mine, size_t n)
{
    unsigned turn = waiter().calls++ % 2;
    warp &w = sim.warp[sim.now / 32];

    memcpy(w.given[turn][sim.now % 32], mine, n);
    w.multiplied[turn] = false;
    me().at = what;
    wait(AT_WARP);
    return w.given[turn][0];
}

/* All lanes at the same call: on. Lanes that have ended do not take part, so
 * none may be missing: the masks of all calls are full. */
static bool release_warp(unsigned first)
{
    for (unsigned i = first; i < first + 32; i++)
        if (sim.fiber[i].is != AT_WARP)
            return false;
    for (unsigned i = first; i < first + 32; i++) {
        if (strcmp(sim.fiber[i].at, sim.fiber[first].at)) {
            sim.now = i;
            fail("lanes of a warp call different things");
        }
        sim.fiber[i].is = READY;
    }
    return true;
}

static bool release_block()
{
    for (unsigned i = 0; i < sim.threads; i++)
        if (sim.fiber[i].is != AT_BLOCK)
            return false;
    for (unsigned i = 0; i < sim.threads; i++)
        sim.fiber[i].is = READY;
    return true;
}

static void make_fibers(unsigned n)
{
    sim.fiber.reserve(1024); /* they must not move */
    while (sim.fiber.size() < n) {
        sim.fiber.emplace_back();
        fiber &f = sim.fiber.back();

        f.stack.resize(STACK);
        f.entered = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = NULL;
        makecontext(&f.context, body, 0);
    }
}

static void start_block()
{
    for (unsigned i = 0; i < sim.threads; i++) {
        sim.fiber[i].is = READY;
        sim.fiber[i].calls = 0;
    }
}

static void run_block(bool backwards)
{
    unsigned done = 0;

    start_block();
    while (done < sim.threads) {
        bool moved = false;

        for (unsigned k = 0; k < sim.threads; k++) {
            unsigned i = backwards ? sim.threads - 1 - k : k;

            if (sim.fiber[i].is != READY)
                continue;
            resume(i);
            moved = true;
            done += sim.fiber[i].is == DONE;
        }
        for (unsigned i = 0; i < sim.threads; i += 32)
            moved |= release_warp(i);
        if (!moved && done < sim.threads && !release_block())
            fail("waits for threads that never come");
    }
}

static void run_alone(bool backwards)
{
    for (unsigned k = 0; k < sim.threads; k++) {
        sim.now = backwards ? sim.threads - 1 - k : k;
        threadIdx = {sim.now, 0, 0};
        sim.call(sim.arg);
    }
}

void sim_run(sim_grid grid, unsigned threads, size_t shared, bool together,
             void (*call)(const void *arg), const void *arg)
{
    std::vector<float4> memory(shared / sizeof(float4) + 1);
    bool backwards = false;

    sim.threads = threads;
    sim.together = together;
    sim.call = call;
    sim.arg = arg;
    make_fibers(threads);
    sim.warp.resize(32);
    sim_shared = (unsigned char *)memory.data();
    gridDim = {grid.x, grid.y, grid.z};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                memset((void *)memory.data(), 0xff, shared);
                if (together)
                    run_block(backwards);
                else
                    run_alone(backwards);
                backwards = !backwards;
            }
}

/* ---- copies ---- */

void copy_async(void *to, const void *from, bool there)
{
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16)
        fail("copy_async of what is not aligned");
    me().open.push_back({to, from, there});
}

void copy_commit()
{
    me().groups.push_back(std::move(me().open));
    me().open.clear();
}

void sim_copy_wait(unsigned left)
{
    while (me().groups.size() > left) {
        for (const copy &c : me().groups.front())
            if (c.there)
                memcpy(c.to, c.from, 16);
            else
                memset(c.to, 0, 16);
        me().groups.pop_front();
    }
}

/* ---- numbers of 16 bits ---- */

static float float_of(uint32_t bits)
{
    float v;

    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint32_t bits_of(float v)
{
    uint32_t bits;

    memcpy(&bits, &v, sizeof v);
    return bits;
}

float bf16_float(uint16_t v)
{
    return float_of((uint32_t)v << 16);
}

uint16_t float_bf16(float v)
{
    uint32_t bits = bits_of(v);

    if (v != v)
        return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float f16_float(uint16_t v)
{
    int exponent = v >> 10 & 31;
    float m = (float)(v & 1023);

    if (exponent == 31)
        m = m > 0 ? NAN : INFINITY;
    else if (exponent)
        m = ldexpf(m + 1024, exponent - 25);
    else
        m = ldexpf(m, -24);
    return v >> 15 ? -m : m;
}

uint16_t float_f16(float v)
{
    uint16_t sign = (uint16_t)(bits_of(v) >> 31 << 15);
    float a = fabsf(v);
    int e;

    if (v != v)
        return 0x7fff;
    if (a >= 65520)
        return sign | 0x7c00;
    frexpf(a, &e);
    e = e < -13 ? -13 : e; /* below 2^-14 steps no longer shrink */
    a = rintf(ldexpf(a, 11 - e));
    if (a < 1024)
        return sign | (uint16_t)a;
    return (uint16_t)(sign + (uint16_t)((e + 13) << 10) + (uint16_t)a);
}

/* ---- products ---- */

struct fragments {
    uint32_t a[4], b[2];
};

/* d = a b from what all lanes gave. */
static void multiply(float d[16][8], const char *all, float (*number)(uint16_t))
{
    float a[16][16], b[16][8];

    for (unsigned lane = 0; lane < 32; lane++) {
        fragments f = sim_lane<fragments>(all, lane);
        unsigned row = lane / 4, col = lane % 4 * 2;

        for (unsigned i = 0; i < 8; i++) /* a[i / 2], half i % 2 */
            a[row + i / 2 % 2 * 8][col + i / 4 * 8 + i % 2] =
                number((uint16_t)(f.a[i / 2] >> i % 2 * 16));
        for (unsigned i = 0; i < 4; i++)
            b[col + i / 2 * 8 + i % 2][row] =
                number((uint16_t)(f.b[i / 2] >> i % 2 * 16));
    }
    for (unsigned y = 0; y < 16; y++)
        for (unsigned x = 0; x < 8; x++)
            d[y][x] = 0;
    for (unsigned k = 0; k < 16; k++)
        for (unsigned y = 0; y < 16; y++)
            for (unsigned x = 0; x < 8; x++)
                d[y][x] += a[y][k] * b[k][x];
}

static void mma(float *d, const uint32_t *a, const uint32_t *b,
                const char *what, float (*number)(uint16_t))
{
    unsigned turn = waiter().calls % 2, lane = threadIdx.x % 32;
    warp &w = sim.warp[sim.now / 32];
    fragments mine;
    const char *all;

    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    all = sim_warp(what, &mine, sizeof mine);
    if (!w.multiplied[turn])
        multiply(w.product[turn], all, number);
    w.multiplied[turn] = true;
    for (unsigned i = 0; i < 4; i++)
        d[i] += w.product[turn][lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

void mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    mma(d, a, b, "mma bf16", bf16_float);
}

void mma_f16(float *d, const uint32_t *a, const uint32_t *b)
{
    mma(d, a, b, "mma f16", f16_float);
}

/* Half of one: the rest is zeros. */
static void mma8(float *d, const uint32_t *a, uint32_t b, const char *what,
                 float (*number)(uint16_t))
{
    const uint32_t wide_a[4] = {a[0], a[1]}, wide_b[2] = {b};

    mma(d, wide_a, wide_b, what, number);
}

void mma8_bf16(float *d, const uint32_t *a, uint32_t b)
{
    mma8(d, a, b, "mma8 bf16", bf16_float);
}

void mma8_f16(float *d, const uint32_t *a, uint32_t b)
{
    mma8(d, a, b, "mma8 f16", f16_float);
}

void ldmatrix(uint32_t *r, const uint16_t *row)
{
    const char *all = sim_warp("ldmatrix", &row, sizeof row);
    unsigned lane = threadIdx.x % 32;

    if ((uintptr_t)row % 16)
        fail("ldmatrix of what is not aligned");
    for (unsigned i = 0; i < 4; i++) {
        const uint16_t *p = sim_lane<const uint16_t *>(all, i * 8 + lane / 4);

        memcpy(&r[i], p + lane % 4 * 2, 4);
    }
}

void ldmatrix_turned(uint32_t *r, const uint16_t *row)
{
    const char *all = sim_warp("ldmatrix turned", &row, sizeof row);
    unsigned lane = threadIdx.x % 32;

    for (unsigned i = 0; i < 4; i++) {
        const uint16_t *p =
            sim_lane<const uint16_t *>(all, i * 8 + lane % 4 * 2);
        const uint16_t *q =
            sim_lane<const uint16_t *>(all, i * 8 + lane % 4 * 2 + 1);

        r[i] = (uint32_t)q[lane / 4] << 16 | p[lane / 4];
    }
}
