/* SPDX-License-Identifier: MIT */
/*
 * bench_conv.c - speed of the CPU backend's convolutions against the peak of
 * the processor, layer by layer, and of packing their weights. For developers.
 *
 * One thread is timed in its own CPU time (other load does not count), more in
 * wall time; the best run counts.
 *
 * usage: bench_conv [-t THREADS] [part of a name]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "bench/peak.h"
#include "module.h"

#define SECONDS 0.5 /* for each layer */

struct layer {
    const char *name;
    enum mp_op op;
    int32_t h, w, c, k, r, stride, pad;
};

static const struct layer layers[] = {
#define CONV(name, h, w, c, k, r, stride)                                      \
    {                                                                          \
        name, MP_OP_CONV2D, h, w, c, k, r, stride, r / 2                       \
    }
#define DECONV(name, h, w, c, k, r, pad)                                       \
    {                                                                          \
        name, MP_OP_DECONV2D, h, w, c, k, r, 2, pad                            \
    }
    CONV("unet 320@64", 64, 64, 320, 320, 3, 1),
    CONV("unet 640@32", 32, 32, 640, 640, 3, 1),
    CONV("unet 1280@16", 16, 16, 1280, 1280, 3, 1),
    CONV("unet 1280@8", 8, 8, 1280, 1280, 3, 1),
    CONV("unet 2560-1280@16", 16, 16, 2560, 1280, 3, 1),
    CONV("unet 4-320@64", 64, 64, 4, 320, 3, 1),
    CONV("unet 320@64 /2", 64, 64, 320, 320, 3, 2),
    CONV("vae 3-128@512", 512, 512, 3, 128, 3, 1),
    CONV("vae 128@512", 512, 512, 128, 128, 3, 1),
    CONV("vae 256@256", 256, 256, 256, 256, 3, 1),
    CONV("vae 512@128", 128, 128, 512, 512, 3, 1),
    CONV("vae 512@64", 64, 64, 512, 512, 3, 1),
    CONV("vae 512-4@64", 64, 64, 512, 4, 3, 1),
    CONV("head 192@480x640", 480, 640, 192, 192, 3, 1),
    CONV("head 192-1@480x640", 480, 640, 192, 1, 3, 1),
    CONV("head 512-150@128", 128, 128, 512, 150, 1, 1),
    CONV("linear 4096x320-2560", 1, 4096, 320, 2560, 1, 1),
    CONV("linear 4096x320-320", 1, 4096, 320, 320, 1, 1),
    CONV("linear 4096x1280-320", 1, 4096, 1280, 320, 1, 1),
    CONV("linear 256x1280-10240", 1, 256, 1280, 10240, 1, 1),
    CONV("linear 64x1280-1280", 1, 64, 1280, 1280, 1, 1),
    CONV("linear 1x1280-1280", 1, 1, 1280, 1280, 1, 1),
    DECONV("deconv4 640-32@32", 32, 32, 640, 32, 4, 1),
    DECONV("deconv4 1280-32@16", 16, 16, 1280, 32, 4, 1),
    DECONV("deconv3 640-32@32", 32, 32, 640, 32, 3, 1),
    DECONV("deconv2 50-32@60x80", 60, 80, 50, 32, 2, 0),
    DECONV("deconv2 512@32", 32, 32, 512, 512, 2, 0),
#undef CONV
#undef DECONV
};

static double clock_of(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double now(int threads)
{
    return clock_of(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

static int constant(const struct mp_program *p, uint32_t value,
                    const float **data, struct mp_error *err)
{
    (void)value;
    (void)err;
    *data = p->user;
    return 0;
}

static void release(const struct mp_program *p, uint32_t value)
{
    (void)p;
    (void)value;
}

static void value(struct mp_value *v, enum mp_place place, enum mp_dtype t,
                  size_t *offset, int ndim, const int64_t *dim)
{
    memset(v, 0, sizeof *v);
    v->place = place;
    v->dtype = t;
    v->ndim = ndim;
    v->count = 1;
    for (int i = 0; i < ndim; i++)
        v->count *= (size_t)(v->dim[i] = dim[i]);
    if (place == MP_ARENA) {
        v->offset = *offset;
        *offset += (v->count * mp_dtype_size(t) + 63) / 64 * 64;
    } else {
        v->key[0] = v->count;
    }
}

struct one {
    struct mp_value value[4];
    struct mp_step step;
    struct mp_program program;
    double flop;
};

/* A program of this layer alone, with a bias. */
static void make(struct one *o, const struct layer *l, enum mp_dtype t,
                 float *numbers)
{
    int up = l->op == MP_OP_DECONV2D;
    int64_t oh = up ? (l->h - 1) * l->stride - 2 * l->pad + l->r + (l->r == 3)
                    : (l->h + 2 * l->pad - l->r) / l->stride + 1;
    int64_t ow = up ? (l->w - 1) * l->stride - 2 * l->pad + l->r + (l->r == 3)
                    : (l->w + 2 * l->pad - l->r) / l->stride + 1;
    size_t at = 0;

    memset(o, 0, sizeof *o);
    value(&o->value[0], MP_ARENA, t, &at, 4, (int64_t[]){1, l->h, l->w, l->c});
    value(&o->value[1], MP_CONSTANT, MP_F32, NULL, 4,
          up ? (int64_t[]){l->c, l->k, l->r, l->r}
             : (int64_t[]){l->k, l->c, l->r, l->r});
    value(&o->value[2], MP_CONSTANT, MP_F32, NULL, 1, (int64_t[]){l->k});
    value(&o->value[3], MP_ARENA, t, &at, 4, (int64_t[]){1, oh, ow, l->k});
    o->step = (struct mp_step){.op = l->op,
                               .attr.conv = {l->stride, l->pad, up ? 0 : l->pad,
                                             up ? l->r == 3 : l->pad,
                                             up ? 0 : l->pad},
                               .nin = 3,
                               .in = {0, 1, 2},
                               .out = 3};
    o->program = (struct mp_program){.nvalue = 4,
                                     .nstep = 1,
                                     .value = o->value,
                                     .step = &o->step,
                                     .arena = at,
                                     .constant = constant,
                                     .release = release,
                                     .user = numbers};
    o->flop =
        2.0 * (double)(up ? l->h * l->w : oh * ow) * l->k * l->c * l->r * l->r;
}

/* Best time of a run after the first. */
static double time_plan(struct mp_plan *plan, mp_addr arena, int threads)
{
    double best = 1e9, until;

    mp_backend_cpu.run(plan, arena, NULL, NULL);
    until = clock_of(CLOCK_MONOTONIC) + SECONDS;
    do {
        double t = now(threads);

        mp_backend_cpu.run(plan, arena, NULL, NULL);
        t = now(threads) - t;
        best = t < best ? t : best;
    } while (clock_of(CLOCK_MONOTONIC) < until);
    return best;
}

static int measure(struct mp_device *d, const struct layer *l, enum mp_dtype t,
                   float *numbers, double peak, int threads)
{
    struct mp_plan *plan = NULL;
    struct mp_error err = {0};
    struct one o;
    mp_addr arena = 0;
    double pack = clock_of(CLOCK_MONOTONIC), s;

    make(&o, l, t, numbers);
    if (mp_backend_cpu.compile(d, &o.program, &plan, &err) ||
        mp_backend_cpu.alloc(d, o.program.arena, &arena, &err)) {
        fprintf(stderr, "bench_conv: %s: %s\n", l->name, err.text);
        mp_backend_cpu.plan_free(plan);
        return 1;
    }
    pack = clock_of(CLOCK_MONOTONIC) - pack;
    memset((void *)(uintptr_t)arena, 0, o.program.arena); /* 0 is no denormal */
    s = time_plan(plan, arena, threads);
    printf("%-22s %-4s %9.3f ms %7.1f GFLOP/s %5.1f%%  compile %6.1f ms  %s\n",
           l->name, mp_dtype_name(t), s * 1e3, o.flop / s * 1e-9,
           100 * o.flop / s / peak, pack * 1e3, mp_backend_cpu.kernel(plan, 0));
    fflush(stdout);
    mp_backend_cpu.free(d, arena);
    mp_backend_cpu.plan_free(plan);
    return 0;
}

#define MOST ((size_t)2560 * 1280 * 9) /* weights of one layer */

static int bench(struct mp_device *d, const char *part, int threads)
{
    float *numbers = malloc(MOST * sizeof *numbers);
    int bad = !numbers;

    for (size_t i = 0; numbers && i < MOST; i++)
        numbers[i] = (float)(i * 2654435761u % 1024) / 1024 - 0.5f;
    for (int t = 0; t < 2 && !bad; t++) {
        enum mp_dtype type = t ? MP_BF16 : MP_F32;
        double peak = peak_flops(type, threads);

        if (mp_backend_cpu.supports(d, type, NULL))
            continue;
        printf("peak %s, %d threads: %.0f GFLOP/s\n", mp_dtype_name(type),
               threads, peak * 1e-9);
        for (size_t i = 0; i < sizeof layers / sizeof *layers && !bad; i++)
            if (strstr(layers[i].name, part))
                bad = measure(d, &layers[i], type, numbers, peak, threads);
    }
    free(numbers);
    return bad;
}

int main(int argc, char **argv)
{
    struct mp_device_conf conf = {.threads = 1};
    struct mp_device *d;
    struct mp_error err = {0};
    int bad, c;

    while ((c = getopt(argc, argv, "t:")) != -1) {
        if (c != 't') {
            fprintf(stderr, "usage: bench_conv [-t THREADS] [part]\n");
            return 2;
        }
        conf.threads = atoi(optarg);
    }
    if (mp_backend_cpu.open(&d, &conf, &err)) {
        fprintf(stderr, "bench_conv: %s\n", err.text);
        return 1;
    }
    bad = bench(d, optind < argc ? argv[optind] : "", conf.threads);
    mp_backend_cpu.close(d);
    return bad;
}
