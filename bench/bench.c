/* SPDX-License-Identifier: MIT */
/*
 * bench - where the time of one network goes, against what the processor can
 * do. Speed only: the picture is made up, and so may be the weights.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "conf.h"
#include "device.h"
#include "graph_impl.h"
#include "module.h"
#include "peak.h"
#include "pipeline.h"
#include "session.h"
#include "tests/make_weights.h"

static const char usage[] =
    "usage: bench [--task seg|depth] [--checkpoint FILE] [--size HxW]\n"
    "             [--backend NAME] [--precision fp32|tf32|bf16|fp16|auto]\n"
    "             [--batch N] [--runs N] [--threads N] [--peak GFLOP/S]\n"
    "             [--autotune] [--steps] [--worst N] [--json]\n"
    "--peak: what the device can do at most; measured if that is the CPU.\n"
    "Without a checkpoint: tiny weights, made from tests/golden/keys of the\n"
    "source folder ($srcdir).\n";

static const struct task {
    const char *name, *head, *keys;
    int32_t height, width;
} tasks[] = {
    {"seg", "upernet", "tiny_seg", 512, 512},
    {"depth", "depth", "tiny_depth", 480, 640},
};

struct options {
    const struct task *task;
    const char *checkpoint, *backend;
    int32_t height, width;
    enum mp_precision precision;
    int runs, threads, steps, worst, json, batch, autotune;
    double peak; /* FLOP/s; 0: measure it */
};

/* The parts of a network, in the order of work. */
enum { VAE, UNET, HEAD = UNET + 8, STAGES };

struct sum {
    const char *name;
    double flops, *seconds; /* seconds: one for each run */
    size_t steps;
};

struct bench {
    struct options o;
    struct mp_conf *conf;
    void *head_conf;
    struct mp_pipeline *pipeline;
    size_t nstep;
    struct mp_step_info *step; /* seconds: the median of the runs */
    int *stage;                /* of each step */
    double *seconds;           /* runs x steps */
    double *whole;             /* each run */
    double peak[2][2];         /* f32, bf16; one thread, all */
    double limit;              /* the peak that counts for this precision */
    double flops;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, ascending);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static void *need(void *p)
{
    if (!p) {
        fputs("bench: out of memory\n", stderr);
        exit(3);
    }
    return p;
}

static void check(int rc, const struct mp_error *err)
{
    if (rc) {
        fprintf(stderr, "bench: %s\n", err->text);
        exit(3);
    }
}

/* ---- options ---- */

static int count_of(const char *text)
{
    char *end;
    long n;

    errno = 0;
    n = strtol(text, &end, 10);
    return errno || *end || n < 1 || n > 100000 ? -1 : (int)n;
}

static int parse_precision(const char *text)
{
    return !strcmp(text, "fp32")   ? MP_PREC_FP32
           : !strcmp(text, "tf32") ? MP_PREC_TF32
           : !strcmp(text, "bf16") ? MP_PREC_BF16
           : !strcmp(text, "fp16") ? MP_PREC_FP16
           : !strcmp(text, "auto") ? MP_PREC_AUTO
                                   : -1;
}

/* One option; 0 if its value is none. */
static int take(struct options *o, int which, const char *value)
{
    int n;

    switch (which) {
    case 't':
        for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
            if (!strcmp(value, tasks[i].name))
                return o->task = &tasks[i], 1;
        return 0;
    case 'c':
        return o->checkpoint = value, 1;
    case 's':
        return sscanf(value, "%dx%d%n", &o->height, &o->width, &n) == 2 &&
               !value[n] && o->height >= 8 && o->width >= 8;
    case 'p':
        n = parse_precision(value);
        return o->precision = (enum mp_precision)n, n >= 0;
    case 'r':
        return (o->runs = count_of(value)) > 0;
    case 'b':
        return o->backend = value, 1;
    case 'N':
        return (o->batch = count_of(value)) > 0;
    case 'P':
        return sscanf(value, "%lf%n", &o->peak, &n) == 1 && !value[n] &&
               (o->peak *= 1e9) > 0;
    case 'n':
        return (o->threads = count_of(value)) > 0;
    case 'w':
        return (o->worst = count_of(value)) > 0;
    case 'a':
        return o->autotune = 1;
    case 'S':
        return o->steps = 1;
    case 'j':
        return o->json = 1;
    default:
        return 0;
    }
}

static void parse(struct options *o, int argc, char **argv)
{
    static const struct option names[] = {
        {"task", 1, NULL, 't'},     {"checkpoint", 1, NULL, 'c'},
        {"size", 1, NULL, 's'},     {"precision", 1, NULL, 'p'},
        {"runs", 1, NULL, 'r'},     {"threads", 1, NULL, 'n'},
        {"backend", 1, NULL, 'b'},  {"batch", 1, NULL, 'N'},
        {"peak", 1, NULL, 'P'},     {"steps", 0, NULL, 'S'},
        {"worst", 1, NULL, 'w'},    {"json", 0, NULL, 'j'},
        {"autotune", 0, NULL, 'a'}, {NULL, 0, NULL, 0},
    };
    int which, good = 1;

    *o = (struct options){
        .task = tasks, .backend = "cpu", .batch = 1, .runs = 5};
    while (good && (which = getopt_long(argc, argv, "", names, NULL)) != -1)
        good = take(o, which, optarg);
    if (!good || optind != argc) {
        fputs(usage, stderr);
        exit(2);
    }
    if (!o->height) {
        o->height = o->task->height;
        o->width = o->task->width;
    }
    if (!o->threads)
        o->threads = omp_get_max_threads();
}

/* ---- measuring ---- */

/* A checkpoint of made-up numbers; the file is gone once it is open. */
static void tiny_checkpoint(char path[64], const struct task *t)
{
    const char *src = getenv("srcdir");
    struct mp_error err = {0};
    char keys[4096];
    int fd;

    snprintf(path, 64, "/tmp/mpipe-bench-XXXXXX.safetensors");
    fd = mkstemps(path, (int)strlen(".safetensors"));
    if (fd < 0) {
        fprintf(stderr, "bench: %s: %s\n", path, strerror(errno));
        exit(3);
    }
    close(fd);
    snprintf(keys, sizeof keys, "%s/tests/golden/keys/%s.json", src ? src : ".",
             t->keys);
    check(make_weights(keys, path, &err), &err);
}

/* Noise over a gradient. */
static uint8_t *picture(int32_t height, int32_t width)
{
    size_t n = (size_t)height * (size_t)width * 3;
    uint8_t *px = need(malloc(n));
    uint32_t state = 1;

    for (size_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        px[i] = (uint8_t)(i * 192 / n + (state >> 26));
    }
    return px;
}

static void measure_peak(struct bench *b)
{
    static const enum mp_dtype type[2] = {MP_F32, MP_BF16};

    for (int i = 0; i < 2; i++) {
        b->peak[i][0] = peak_flops(type[i], 1);
        b->peak[i][1] = peak_flops(type[i], b->o.threads);
    }
}

static void open_pipeline(struct bench *b)
{
    struct mp_error err = {0};
    const struct mp_plugin *head;
    struct mp_pipeline_conf c = {.backend = b->o.backend,
                                 .precision = b->o.precision,
                                 .checkpoint = b->o.checkpoint,
                                 .threads = b->o.threads,
                                 .autotune = b->o.autotune,
                                 .batch = b->o.batch};
    char tiny[64];

    if (!c.checkpoint) {
        tiny_checkpoint(tiny, b->o.task);
        c.checkpoint = tiny;
    }
    check(mp_head_find(&head, b->o.task->head, &err), &err);
    c.head = head;
    b->conf = need(mp_conf_new());
    c.head_conf = b->head_conf = need(calloc(1, head->conf_size));
    check(
        mp_conf_section(b->conf, head->name, head->options, b->head_conf, &err),
        &err);
    check(mp_pipeline_open(&b->pipeline, &c, &err), &err);
    if (c.checkpoint == tiny)
        unlink(tiny);
}

/* Seconds. */
static double run_once(struct bench *b, const uint8_t **batch)
{
    struct mp_error err = {0};
    struct mp_map *map = need(calloc((size_t)b->o.batch, sizeof *map));
    double began = now(), seconds;

    check(mp_pipeline_network(b->pipeline, 0, batch, (size_t)b->o.batch,
                              b->o.height, b->o.width, map, &err),
          &err);
    check(mp_pipeline_wait(b->pipeline, 0, UINT64_MAX, &err), &err);
    seconds = now() - began;
    for (int i = 0; i < b->o.batch; i++)
        mp_map_free(&map[i]);
    free(map);
    return seconds;
}

/* Runs; the first, which compiles, and the second, which a GPU records, are
 * not counted. */
static void measure(struct bench *b)
{
    uint8_t *px = picture(b->o.height, b->o.width);
    const uint8_t **batch = need(calloc((size_t)b->o.batch, sizeof *batch));
    struct mp_session *s = NULL;

    for (int i = 0; i < b->o.batch; i++)
        batch[i] = px;
    b->whole = need(calloc((size_t)b->o.runs, sizeof *b->whole));
    /* By itself: to measure each step may cost (a GPU waits between them). */
    for (int r = -2; r < b->o.runs; r++) {
        double took = run_once(b, batch);

        if (r >= 0)
            b->whole[r] = took;
    }
    s = mp_pipeline_session(b->pipeline);
    b->nstep = mp_session_steps(s);
    b->step = need(calloc(b->nstep, sizeof *b->step));
    b->seconds = need(calloc(b->nstep * (size_t)b->o.runs, sizeof *b->seconds));
    for (int r = 0; r < b->o.runs; r++) {
        mp_pipeline_profile(b->pipeline, 1);
        run_once(b, batch);
        for (size_t i = 0; i < b->nstep; i++) {
            mp_session_step(s, i, &b->step[i]);
            b->seconds[(size_t)r * b->nstep + i] = b->step[i].seconds;
        }
    }
    free(batch);
    free(px);
}

/* ---- sums ---- */

/* A part begins at its first weight. What has no weight of its own belongs to
 * the next that has one. */
static void find_stages(struct bench *b)
{
    int pass = -1, last = HEAD;

    b->stage = need(calloc(b->nstep, sizeof *b->stage));
    for (size_t i = 0; i < b->nstep; i++) {
        const char *name = b->step[i].with.name;

        if (!name)
            b->stage[i] = -1;
        else if (strstr(name, "encoder_vq.") ||
                 strstr(name, "first_stage_model."))
            b->stage[i] = VAE;
        else if (strstr(name, "diffusion_model.") ||
                 strstr(name, "cross_unet_conv"))
            b->stage[i] =
                UNET + (pass += pass < 7 && strstr(name, "input_blocks.0.0."));
        else
            b->stage[i] = HEAD;
    }
    for (size_t i = b->nstep; i-- > 0; last = b->stage[i])
        if (b->stage[i] < 0)
            b->stage[i] = last;
}

static void add(struct sum *s, const struct bench *b, size_t step)
{
    if (!s->seconds)
        s->seconds = need(calloc((size_t)b->o.runs, sizeof *s->seconds));
    for (int r = 0; r < b->o.runs; r++)
        s->seconds[r] += b->seconds[(size_t)r * b->nstep + step];
    s->flops += b->step[step].flops;
    s->steps++;
}

static void median_of_steps(struct bench *b)
{
    double *x = need(calloc((size_t)b->o.runs, sizeof *x));

    for (size_t i = 0; i < b->nstep; i++) {
        for (int r = 0; r < b->o.runs; r++)
            x[r] = b->seconds[(size_t)r * b->nstep + i];
        b->step[i].seconds = median(x, b->o.runs);
        b->flops += b->step[i].flops;
    }
    free(x);
}

/* ---- showing ---- */

static json_t *row(const struct bench *b, const char *name, size_t steps,
                   double seconds, double flops)
{
    return need(json_pack("{s:s, s:I, s:f, s:f, s:f, s:f}", "name", name,
                          "steps", (json_int_t)steps, "seconds", seconds,
                          "gflop", flops / 1e9, "gflops", flops / 1e9 / seconds,
                          "share",
                          b->limit > 0 ? flops / seconds / b->limit : 0));
}

static json_t *sums(const struct bench *b, struct sum *s, size_t n)
{
    json_t *list = need(json_array());

    for (size_t i = 0; i < n; i++) {
        if (!s[i].steps)
            continue;
        json_array_append_new(list,
                              row(b, s[i].name, s[i].steps,
                                  median(s[i].seconds, b->o.runs), s[i].flops));
        free(s[i].seconds);
    }
    return list;
}

static json_t *by_stage(const struct bench *b)
{
    static const char *const name[STAGES] = {
        "VAE encoder", "UNet pass 1", "UNet pass 2", "UNet pass 3",
        "UNet pass 4", "UNet pass 5", "UNet pass 6", "UNet pass 7",
        "UNet pass 8", "head"};
    struct sum s[STAGES] = {{0}};

    for (int i = 0; i < STAGES; i++)
        s[i].name = name[i];
    for (size_t i = 0; i < b->nstep; i++)
        add(&s[b->stage[i]], b, i);
    return sums(b, s, STAGES);
}

static json_t *by_op(const struct bench *b)
{
    struct sum s[MP_OP_COUNT] = {{0}};

    for (size_t i = 0; i < b->nstep; i++) {
        int k = 0;

        while (s[k].name && strcmp(s[k].name, b->step[i].op))
            k++;
        s[k].name = b->step[i].op;
        add(&s[k], b, i);
    }
    return sums(b, s, MP_OP_COUNT);
}

static const char *label(char text[512], const struct mp_step_info *s)
{
    char out[64], with[64];

    snprintf(text, 512, "%s %s%s%s %s [%s]", s->op,
             mp_shape_text(out, s->out.ndim, s->out.dim),
             s->with.ndim ? " by " : "",
             s->with.ndim ? mp_shape_text(with, s->with.ndim, s->with.dim) : "",
             mp_dtype_name(s->out.dtype), s->kernel);
    return text;
}

static json_t *all_steps(const struct bench *b)
{
    json_t *list = need(json_array());
    char text[512];

    for (size_t i = 0; i < b->nstep; i++) {
        const struct mp_step_info *s = &b->step[i];
        json_t *r = row(b, label(text, s), 1, s->seconds, s->flops);

        if (s->with.name)
            json_object_set_new(r, "weights", json_string(s->with.name));
        json_array_append_new(list, r);
    }
    return list;
}

struct kind { /* equal steps */
    char label[512];
    double seconds, flops, lost;
    size_t steps;
};

static int most_lost(const void *a, const void *b)
{
    const struct kind *x = a, *y = b;

    return (y->lost > x->lost) - (y->lost < x->lost);
}

/* Equal steps together, by the time that the peak would have saved. */
static json_t *worst(const struct bench *b)
{
    struct kind *kind = need(calloc(b->nstep, sizeof *kind));
    json_t *list = need(json_array());
    size_t n = 0;

    for (size_t i = 0; i < b->nstep; i++) {
        size_t k = 0;

        label(kind[n].label, &b->step[i]);
        while (strcmp(kind[k].label, kind[n].label))
            k++;
        n += k == n;
        kind[k].steps++;
        kind[k].seconds += b->step[i].seconds;
        kind[k].flops += b->step[i].flops;
    }
    for (size_t k = 0; k < n; k++)
        kind[k].lost =
            kind[k].seconds - (b->limit > 0 ? kind[k].flops / b->limit : 0);
    qsort(kind, n, sizeof *kind, most_lost);
    for (size_t k = 0; k < n && k < (size_t)b->o.worst; k++)
        json_array_append_new(list, row(b, kind[k].label, kind[k].steps,
                                        kind[k].seconds, kind[k].flops));
    free(kind);
    return list;
}

static json_t *report(struct bench *b)
{
    struct mp_pipeline_times times;
    struct rusage use;
    double whole = median(b->whole, b->o.runs), load[1] = {0};
    double bound = b->limit > 0 ? b->flops / b->limit : 0;
    json_t *j;

    mp_pipeline_times(b->pipeline, &times);
    getrusage(RUSAGE_SELF, &use);
    if (getloadavg(load, 1) != 1)
        load[0] = 0;
    j = need(json_pack(
        "{s:s, s:[i,i], s:s, s:s, s:s, s:i, s:i, s:f, s:[f,f], s:[f,f],"
        " s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I}",
        "task", b->o.task->name, "size", (int)b->o.height, (int)b->o.width,
        "network", mp_pipeline_network_text(b->pipeline), "device",
        mp_pipeline_device(b->pipeline), "precision",
        mp_pipeline_precision(b->pipeline), "threads", b->o.threads, "runs",
        b->o.runs, "load_average", load[0], "peak_fp32_gflops",
        b->peak[0][0] / 1e9, b->peak[0][1] / 1e9, "peak_bf16_gflops",
        b->peak[1][0] / 1e9, b->peak[1][1] / 1e9, "load_seconds", times.load,
        "compile_seconds", times.compile, "seconds", whole, "seconds_best",
        b->whole[0], "gflop", b->flops / 1e9, "bound_seconds", bound, "ratio",
        bound > 0 ? whole / bound : 0, "arena_bytes",
        (json_int_t)mp_session_arena(mp_pipeline_session(b->pipeline)),
        "peak_bytes", (json_int_t)use.ru_maxrss * 1024));
    json_object_set_new(j, "stages", by_stage(b));
    json_object_set_new(j, "ops", by_op(b));
    if (b->o.steps)
        json_object_set_new(j, "steps", all_steps(b));
    if (b->o.worst)
        json_object_set_new(j, "worst", worst(b));
    return j;
}

static double number(const json_t *j, const char *key, int i)
{
    const json_t *v = json_object_get(j, key);

    return json_number_value(json_is_array(v) ? json_array_get(v, (size_t)i)
                                              : v);
}

static void print_rows(const json_t *j, const char *key, const char *title)
{
    size_t i;
    json_t *r;

    if (!json_object_get(j, key))
        return;
    printf("\n%9s %7s %9s %9s %7s  %s\n", "ms", "steps", "GFLOP", "GFLOP/s",
           "share", title);
    json_array_foreach(json_object_get(j, key), i, r)
    {
        const char *weights = json_string_value(json_object_get(r, "weights"));

        printf("%9.2f %7.0f %9.2f %9.1f %6.1f%%  %s%s%s\n",
               1e3 * number(r, "seconds", 0), number(r, "steps", 0),
               number(r, "gflop", 0), number(r, "gflops", 0),
               100 * number(r, "share", 0),
               json_string_value(json_object_get(r, "name")),
               weights ? "  " : "", weights ? weights : "");
    }
}

static void print_report(const json_t *j)
{
    printf("%s, %.0fx%.0f, %s\n%s\n%s; load average %.1f\n",
           json_string_value(json_object_get(j, "task")), number(j, "size", 0),
           number(j, "size", 1),
           json_string_value(json_object_get(j, "precision")),
           json_string_value(json_object_get(j, "network")),
           json_string_value(json_object_get(j, "device")),
           number(j, "load_average", 0));
    if (number(j, "peak_fp32_gflops", 0) > 0)
        printf("peak of 1 and %.0f threads: fp32 %.0f, %.0f; bf16 %.0f, %.0f "
               "GFLOP/s\n",
               number(j, "threads", 0), number(j, "peak_fp32_gflops", 0),
               number(j, "peak_fp32_gflops", 1),
               number(j, "peak_bf16_gflops", 0),
               number(j, "peak_bf16_gflops", 1));
    printf("load %.3f s, compile %.3f s\n", number(j, "load_seconds", 0),
           number(j, "compile_seconds", 0));
    print_rows(j, "stages", "part");
    print_rows(j, "ops", "operation");
    print_rows(j, "steps", "step");
    print_rows(j, "worst", "equal steps, most time above the peak's first");
    printf("\ntotal %.3f s (median of %.0f; best %.3f), %.1f GFLOP, %.1f "
           "GFLOP/s\n",
           number(j, "seconds", 0), number(j, "runs", 0),
           number(j, "seconds_best", 0), number(j, "gflop", 0),
           number(j, "gflop", 0) / number(j, "seconds", 0));
    if (number(j, "ratio", 0) > 0)
        printf("bound %.3f s at the peak: %.3f times the bound\n",
               number(j, "bound_seconds", 0), number(j, "ratio", 0));
    printf("peak memory %.1f MB, of it %.1f MB for activations\n",
           number(j, "peak_bytes", 0) / 1e6, number(j, "arena_bytes", 0) / 1e6);
}

static void close_bench(struct bench *b)
{
    mp_pipeline_close(b->pipeline);
    mp_conf_free(b->conf);
    free(b->head_conf);
    free(b->step);
    free(b->stage);
    free(b->seconds);
    free(b->whole);
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    int is_bf16;
    json_t *j;

    mp_wait_briefly(argv); /* as mpipe does */
    parse(&b.o, argc, argv);
    if (b.o.peak <= 0 && !strcmp(b.o.backend, "cpu"))
        measure_peak(&b);
    open_pipeline(&b);
    measure(&b);
    is_bf16 = !strcmp(mp_pipeline_precision(b.pipeline), "bf16");
    b.limit = b.o.peak > 0 ? b.o.peak : b.peak[is_bf16][1];
    find_stages(&b);
    median_of_steps(&b);
    j = report(&b);
    if (b.o.json) {
        json_dumpf(j, stdout,
                   JSON_INDENT(1) | JSON_PRESERVE_ORDER |
                       JSON_REAL_PRECISION(6));
        puts("");
    } else {
        print_report(j);
    }
    json_decref(j);
    close_bench(&b);
    return 0;
}
