/* SPDX-License-Identifier: MIT */
/*
 * test_batch.c - how many views go together on a device with so much memory:
 * pipelines on simulated GPUs, which start kernels but do not run them here.
 * What comes out is no number, but memory is as on a real one. Exit status 77
 * without the simulation.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "conf.h"
#include "device.h"
#include "golden.h"
#include "make_weights.h"
#include "module.h"
#include "session.h"

#define SIDE 64 /* pixels of a view */

static char path[64];

struct one {
    struct mp_devices devices;
    struct mp_conf *conf;
    void *head_conf;
    struct mp_pipeline *p;
};

static void set_memory(size_t bytes)
{
    char text[32];

    snprintf(text, sizeof text, "%zu", bytes);
    setenv("MPIPE_SIM_MEMORY", text, 1);
}

static int try_open(struct one *o, const char *backend, int batch,
                    struct mp_error *err)
{
    const struct mp_plugin *head = NULL;
    struct mp_pipeline_conf c = {.checkpoint = path,
                                 .backend = backend,
                                 .precision = MP_PREC_AUTO,
                                 .batch = batch,
                                 .devices = &o->devices};

    memset(o, 0, sizeof *o);
    ck_assert_msg(!mp_head_find(&head, "depth", err), "%s", err->text);
    o->conf = mp_conf_new();
    o->head_conf = calloc(1, head->conf_size);
    ck_assert(
        !mp_conf_section(o->conf, "depth", head->options, o->head_conf, err));
    c.head = head;
    c.head_conf = o->head_conf;
    return mp_pipeline_open(&o->p, &c, err);
}

static void open_one(struct one *o, int batch)
{
    struct mp_error err = {0};

    ck_assert_msg(!try_open(o, "gpusim", batch, &err), "%s", err.text);
}

static void close_one(struct one *o)
{
    mp_pipeline_close(o->p);
    mp_conf_free(o->conf);
    free(o->head_conf);
    ck_assert_ptr_null(o->devices.first);
}

static uint64_t in_use(const struct one *o)
{
    const struct mp_arena *a = &o->devices.first->arena;
    struct mp_device_memory m;

    ck_assert(!a->backend->memory(a->device, &m, NULL));
    ck_assert_uint_eq(m.total - m.free, m.ours);
    return m.ours;
}

/* n views; runs: how many the network took for them. */
static int see(struct one *o, size_t n, size_t *runs, struct mp_error *err)
{
    static const uint8_t px[SIDE * SIDE * 3];
    const uint8_t *view[64];
    struct mp_map map[64] = {{NULL}};
    struct mp_pipeline_times before, after;
    int rc;

    for (size_t i = 0; i < n; i++)
        view[i] = px;
    mp_pipeline_times(o->p, &before);
    rc = mp_pipeline_network(o->p, 0, view, n, SIDE, SIDE, map, err);
    ck_assert(!mp_pipeline_wait(o->p, 0, UINT64_MAX, NULL));
    mp_pipeline_times(o->p, &after);
    for (size_t i = 0; i < n; i++) {
        ck_assert(!rc == (map[i].held != NULL));
        mp_map_free(&map[i]);
    }
    *runs = after.runs - before.runs;
    return rc;
}

/* What a pipeline that has seen n views at once holds. */
static size_t need(int n)
{
    struct mp_error err = {0};
    struct one o;
    size_t runs, bytes;

    set_memory((size_t)1 << 34);
    open_one(&o, n);
    ck_assert_msg(!see(&o, (size_t)n, &runs, &err), "%s", err.text);
    ck_assert_uint_eq(runs, 1);
    bytes = in_use(&o);
    close_one(&o);
    return bytes;
}

START_TEST(as_many_as_fit)
{
    size_t one = need(1), eight = need(8), runs, n;
    struct mp_error err = {0};
    struct one o;

    ck_assert_uint_gt(eight, one + one / 8);
    open_one(&o, 0);
    ck_assert_uint_eq(mp_pipeline_batch(o.p, 0, 0, 0), 16);
    ck_assert_uint_eq(mp_pipeline_batch(o.p, 0, SIDE, SIDE), 16);
    close_one(&o);
    /* Before any weights are there, and after. */
    for (int used = 0; used < 2; used++) {
        set_memory(one + (eight - one) / 7 * 9);
        open_one(&o, 0);
        if (used)
            ck_assert(!see(&o, 1, &runs, &err));
        n = mp_pipeline_batch(o.p, 0, SIDE, SIDE);
        ck_assert_uint_ge(n, 2);
        ck_assert_uint_le(n, 10);
        /* Twice: maps of the batch before are still held in a run. */
        for (int i = 0; i < 2; i++) {
            ck_assert_msg(!see(&o, n, &runs, &err), "%s", err.text);
            ck_assert_uint_eq(runs, 1);
        }
        ck_assert_uint_eq(mp_pipeline_batch(o.p, 0, SIDE, SIDE), n);
        close_one(&o);
    }
}
END_TEST

/* What is configured is tried, and halved once. */
START_TEST(half_as_many)
{
    size_t one = need(1), eight = need(8), runs;
    struct mp_error err = {0};
    struct one o;

    set_memory(one + (eight - one) / 7 * 11);
    open_one(&o, 16);
    ck_assert_uint_eq(mp_pipeline_batch(o.p, 0, SIDE, SIDE), 16);
    ck_assert_msg(!see(&o, 16, &runs, &err), "%s", err.text);
    ck_assert_uint_eq(runs, 2);
    ck_assert_uint_eq(mp_pipeline_batch(o.p, 0, SIDE, SIDE), 8);
    ck_assert(!see(&o, 11, &runs, &err));
    ck_assert_uint_eq(runs, 2);
    ck_assert(!see(&o, 8, &runs, &err));
    ck_assert_uint_eq(runs, 1);
    close_one(&o);
}
END_TEST

/* If half as many do not fit either: what was short of, and what to do. One
 * alone still does. */
START_TEST(not_even_half)
{
    size_t one = need(1), eight = need(8), runs;
    struct mp_error err = {0};
    struct one o;

    set_memory(one + (eight - one) / 7 * 3);
    open_one(&o, 64);
    ck_assert_int_eq(see(&o, 64, &runs, &err), MP_ENOMEM);
    ck_assert_uint_lt(in_use(&o), one); /* the weights */
    ck_assert_uint_eq(runs, 0);
    ck_assert_ptr_nonnull(strstr(err.text, " bytes for "));
    ck_assert_ptr_nonnull(strstr(err.text, "lower batch in [compute]"));
    ck_assert_uint_eq(mp_pipeline_batch(o.p, 0, SIDE, SIDE), 1);
    ck_assert(!see(&o, 1, &runs, &err));
    ck_assert(!see(&o, 3, &runs, &err));
    ck_assert_uint_eq(runs, 3);
    close_one(&o);
}
END_TEST

/* Memory does not grow with the number of runs, and goes when they end. */
START_TEST(nothing_leaks)
{
    struct mp_error err = {0};
    uint64_t idle, after = 0;
    size_t runs;
    struct one o;

    set_memory((size_t)1 << 34);
    open_one(&o, 4);
    idle = in_use(&o);
    for (int i = 0; i < 100; i++) {
        ck_assert(!see(&o, 1 + (size_t)(i * 7 % 4), &runs, &err));
        if (i == 8)
            after = in_use(&o);
    }
    ck_assert_uint_eq(in_use(&o), after);
    ck_assert_uint_gt(after, idle);
    close_one(&o);
}
END_TEST

/* Which devices a name means, how they are told, and that each works. */
START_TEST(several_devices)
{
    static const struct {
        const char *backend, *fake;
        size_t n;
        const char *text; /* of the pipeline, or of the failure */
    } row[] = {
        {"gpusim", "", 1, "gpusim (Fake 1000, sm_95, CUDA 13.0), bf16"},
        {"gpusim:2", "", 1, "gpusim (Fake 1000, sm_95, CUDA 13.0), bf16"},
        {"gpusim:0,2", "", 2, "gpusim (2 x Fake 1000, sm_95, CUDA 13.0), bf16"},
        {"gpusim:all", "", 3, "gpusim (3 x Fake 1000, sm_95, CUDA 13.0), bf16"},
        {"gpusim:all", "first old", 2, "gpusim (2 x Fake 1000"},
        {"gpusim:all", "old device", 0, "has compute capability 7.5"},
        {"gpusim:0,1", "first old", 0, "cuda:0: Fake 1000 has compute"},
        {"gpusim:1,0,1", "", 0, "gpusim:1 is named twice"},
        {"gpusim:0,3", "", 0, "gpusim:3: this machine has 3 devices"},
        {"gpusim:0,", "", 0, "backend \"gpusim:0,\" is not right: auto, cpu"},
        {"gpusim:,1", "", 0, "is not right"},
        {"gpusim:0;1", "", 0, "is not right"},
        {"gpusim:0,1x", "", 0, "is not right"},
        {"gpusim:all,1", "", 0, "is not right"},
        {"cpu:0,1", "", 0, "cpu:1: this machine has 1 device"},
    };
    static const uint8_t px[SIDE * SIDE * 3];
    const uint8_t *view = px;
    struct mp_error err = {0};
    struct mp_map map;
    struct one o;
    int rc;

    setenv("MPIPE_SIM_DEVICES", "3", 1);
    setenv("FAKE_CUDA", row[_i].fake, 1);
    set_memory((size_t)1 << 34);
    rc = try_open(&o, row[_i].backend, 1, &err);
    ck_assert_msg(!rc == (row[_i].n > 0), "%s: %s", row[_i].backend, err.text);
    if (rc)
        ck_assert_msg(strstr(err.text, row[_i].text) != NULL, "%s", err.text);
    for (size_t i = 0; i < row[_i].n; i++) {
        ck_assert(
            !mp_pipeline_network(o.p, i, &view, 1, SIDE, SIDE, &map, &err));
        ck_assert(!mp_pipeline_wait(o.p, i, UINT64_MAX, &err));
        mp_map_free(&map);
    }
    if (rc) {
        mp_conf_free(o.conf);
        free(o.head_conf);
        return;
    }
    ck_assert_uint_eq(mp_pipeline_devices(o.p), row[_i].n);
    ck_assert_msg(
        !strncmp(mp_pipeline_backend(o.p), row[_i].text, strlen(row[_i].text)),
        "%s", mp_pipeline_backend(o.p));
    close_one(&o);
}
END_TEST

int main(void)
{
    const char *backends = getenv("MPIPE_TEST_SIM");
    struct mp_error err = {0};
    char module[4096];
    SRunner *r;
    Suite *s;
    TCase *t;
    int failed;

    snprintf(module, sizeof module, "%s/gpusim.la", backends ? backends : "");
    if (!backends || access(module, R_OK)) {
        puts("SKIPPED: no simulated GPU");
        return 77;
    }
    setenv("MPIPE_BACKEND_PATH", backends, 1);
    setenv("MPIPE_SIM_KERNELS", "no", 1);
    mp_log_set(MP_LOG_ERROR);
    snprintf(path, sizeof path, "/tmp/mpipe-batch.%d.safetensors",
             (int)getpid());
    if (make_weights(golden_path("keys/%s.json", "tiny_depth"), path, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 99;
    }
    s = suite_create("batch");
    t = tcase_create("memory");
    suite_add_tcase(s, t);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, as_many_as_fit);
    tcase_add_test(t, half_as_many);
    tcase_add_test(t, not_even_half);
    tcase_add_test(t, nothing_leaks);
    tcase_add_loop_test(t, several_devices, 0, 15);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    unlink(path);
    return failed != 0;
}
