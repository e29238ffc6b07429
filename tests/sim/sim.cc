/* SPDX-License-Identifier: MIT */
/*
 * sim.cc - fibers, and what lanes of a warp do together.
 *
 * A fiber is entered with swapcontext, which is portable, and from then on
 * left and resumed with longjmp, which needs no system call: kernels switch
 * millions of times. The address sanitizer wants to know of each switch, and
 * its longjmp checks more than it should: it gets swapcontext always.
 */
#undef _FORTIFY_SOURCE /* longjmp "up" the stack is what is meant here */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <deque>
#include <vector>
#include <ucontext.h>
#include "sim.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void **, const void *, size_t)
{
}

static void __sanitizer_finish_switch_fiber(void *, const void **, size_t *)
{
}
#endif

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
    void *fake; /* what the address sanitizer keeps for it */
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
};

static struct {
    std::vector<struct fiber> fiber;
    std::vector<struct warp> warp;
    unsigned threads, now;
    ucontext_t main;
    jmp_buf main_jump;
    void *main_fake;
    const void *main_stack;
    size_t main_size;
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

#ifdef __SANITIZE_ADDRESS__
static void switch_to_main(fiber &f)
{
    swapcontext(&f.context, &sim.main);
}

static void switch_to(fiber &f)
{
    swapcontext(&sim.main, &f.context);
}
#else
static void switch_to_main(fiber &f)
{
    if (!_setjmp(f.jump))
        _longjmp(sim.main_jump, 1);
}

static void switch_to(fiber &f)
{
    if (_setjmp(sim.main_jump))
        return;
    if (f.entered)
        _longjmp(f.jump, 1);
    f.entered = true;
    setcontext(&f.context);
}
#endif

static void to_main(bool last)
{
    fiber &f = me();

    __sanitizer_start_switch_fiber(last ? NULL : &f.fake, sim.main_stack,
                                   sim.main_size);
    switch_to_main(f);
    __sanitizer_finish_switch_fiber(me().fake, &sim.main_stack, &sim.main_size);
}

static void body()
{
    __sanitizer_finish_switch_fiber(NULL, &sim.main_stack, &sim.main_size);
    sim.call(sim.arg);
    if (!me().open.empty() || !me().groups.empty())
        fail("ends before its copies do");
    me().is = DONE;
    to_main(true);
}

static void resume(unsigned i)
{
    fiber &f = sim.fiber[i];

    sim.now = i;
    threadIdx = {i, 0, 0};
    __sanitizer_start_switch_fiber(&sim.main_fake, f.stack.data(), STACK);
    switch_to(f);
    __sanitizer_finish_switch_fiber(sim.main_fake, NULL, NULL);
}

static void wait(state what)
{
    me().is = what;
    to_main(false);
}

void __syncthreads()
{
    wait(AT_BLOCK);
}

const char *sim_warp(const char *what, const void *mine, size_t n)
{
    unsigned turn = me().calls++ % 2;
    warp &w = sim.warp[sim.now / 32];

    memcpy(w.given[turn][sim.now % 32], mine, n);
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

static void start_block()
{
    for (unsigned i = 0; i < sim.threads; i++) {
        fiber &f = sim.fiber[i];

        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = NULL;
        makecontext(&f.context, body, 0);
        f.entered = false;
        f.is = READY;
        f.calls = 0;
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

void sim_run(sim_grid grid, unsigned threads, size_t shared,
             void (*call)(const void *arg), const void *arg)
{
    std::vector<float4> memory(shared / sizeof(float4) + 1);
    bool backwards = false;

    sim.threads = threads;
    sim.call = call;
    sim.arg = arg;
    sim.fiber.resize(threads > sim.fiber.size() ? threads : sim.fiber.size());
    sim.warp.resize(threads / 32);
    for (fiber &f : sim.fiber)
        f.stack.resize(STACK);
    sim_shared = (unsigned char *)memory.data();
    gridDim = {grid.x, grid.y, grid.z};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                memset((void *)memory.data(), 0xff, shared);
                run_block(backwards);
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

static void mma(float *d, const uint32_t *a, const uint32_t *b,
                const char *what, float (*number)(uint16_t))
{
    fragments mine;
    unsigned row = threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    const char *all;

    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    all = sim_warp(what, &mine, sizeof mine);
    for (unsigned i = 0; i < 4; i++) {
        unsigned y = row + i / 2 * 8, x = col + i % 2;
        float sum = 0;

        for (unsigned k = 0; k < 16; k++) {
            unsigned lane_a = y % 8 * 4 + k % 8 / 2, lane_b = x * 4 + k % 8 / 2;
            uint32_t u = sim_lane<fragments>(all, lane_a).a[y / 8 + k / 8 * 2];
            uint32_t v = sim_lane<fragments>(all, lane_b).b[k / 8];

            sum += number((uint16_t)(u >> k % 2 * 16)) *
                   number((uint16_t)(v >> k % 2 * 16));
        }
        d[i] += sum;
    }
}

void mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    mma(d, a, b, "mma bf16", bf16_float);
}

void mma_f16(float *d, const uint32_t *a, const uint32_t *b)
{
    mma(d, a, b, "mma f16", f16_float);
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
