/* SPDX-License-Identifier: MIT */
/*
 * A run with a pipeline made here: its functions take the place of those in
 * libmpipe. What the network "sees" of a view is its first byte.
 */
#include <check.h>
#include <ftw.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf.h"
#include "image.h"
#include "job.h"

static char folder[] = "/tmp/mpipe-job-XXXXXX";
static struct mp_error err;

/* ---- the pipeline ---- */

static char calls[1024];     /* "2x8x8 1x8x16 ...": n, height, width */
static int fail_on, fail_rc; /* a view that begins with this byte fails */
static int merge_rc;         /* of the next merge */
static int wait_rc;          /* of waits for this ticket, or later ones: */
static uint64_t wait_from;
static int stop_on; /* a view that asks the run to stop */
static volatile sig_atomic_t stop;
static int small; /* views of so many pixels go one by one */
static struct mp_settings settings;
static double seconds;
static struct mp_pipeline *const pipeline = (void *)&seconds;

/* The device's memory, its contents late: what is on the host before the wait
 * for it is wrong. */
#define DEVICES 3
struct mp_held {
    size_t device;
    float value[256];
};
static size_t devices;
static struct {
    uint64_t last, waited;
    struct {
        void *to;
        float value[256];
        size_t n;
    } late[64];
    size_t views;
} device_at[DEVICES];

static uint64_t give_late(size_t device, void *to, const float *value, size_t n)
{
    uint64_t k = ++device_at[device].last;

    ck_assert_uint_le(k - device_at[device].waited, 64);
    device_at[device].late[k % 64].to = to;
    device_at[device].late[k % 64].n = n;
    memcpy(device_at[device].late[k % 64].value, value, n * sizeof *value);
    memset(to, 0xff, n * sizeof *value);
    return k;
}

int mp_pipeline_wait(struct mp_pipeline *p, size_t device, uint64_t ticket,
                     struct mp_error *e)
{
    uint64_t *waited = &device_at[device].waited, k;

    ck_assert_ptr_eq(p, pipeline);
    ck_assert_uint_lt(device, devices);
    while (*waited < device_at[device].last && *waited < ticket) {
        k = ++*waited % 64;
        memcpy(device_at[device].late[k].to, device_at[device].late[k].value,
               device_at[device].late[k].n * sizeof(float));
    }
    return wait_rc && ticket >= wait_from
               ? mp_fail(e, wait_rc, "the device fails")
               : 0;
}

size_t mp_pipeline_devices(const struct mp_pipeline *p)
{
    ck_assert_ptr_eq(p, pipeline);
    return devices;
}

void mp_map_free(struct mp_map *m)
{
    free(m->held);
    free(m->host);
    memset(m, 0, sizeof *m);
}

void mp_answer_free(struct mp_answer *a)
{
    mp_map_free(&a->sum);
    while (a->nresult)
        free((void *)a->result[--a->nresult].data);
}

size_t mp_pipeline_batch(struct mp_pipeline *p, size_t device, int32_t h,
                         int32_t w)
{
    ck_assert_ptr_eq(p, pipeline);
    ck_assert_uint_lt(device, devices);
    if (h && w && h * w == small)
        return 1;
    return settings.compute.batch > 0 ? (size_t)settings.compute.batch : 1;
}

static struct mp_map map_of(size_t device, const float *value, size_t n)
{
    struct mp_map m = {.held = malloc(sizeof *m.held),
                       .ndim = 4,
                       .dim = {1, 1, 1, (int64_t)n}};

    ck_assert_uint_le(n, 256);
    m.held->device = device;
    memcpy(m.held->value, value, n * sizeof *value);
    return m;
}

int mp_pipeline_network(struct mp_pipeline *p, size_t device,
                        const uint8_t *const *view, size_t n, int32_t h,
                        int32_t w, struct mp_map *map, struct mp_error *e)
{
    char text[96], number[24] = "";

    ck_assert_ptr_eq(p, pipeline);
    ck_assert_uint_lt(device, devices);
    if (devices > 1)
        snprintf(number, sizeof number, "%zu:", device);
    snprintf(text, sizeof text, "%s%s%zux%dx%d", *calls ? " " : "", number, n,
             (int)h, (int)w);
    if (strlen(calls) + strlen(text) < sizeof calls)
        strcat(calls, text);
    for (size_t i = 0; i < n; i++) {
        if (fail_on && view[i][0] == fail_on)
            return mp_fail(e, fail_rc, "the network fails");
        stop |= stop_on && view[i][0] == stop_on;
    }
    for (size_t i = 0; i < n; i++)
        map[i] = map_of(device, (float[]){view[i][0]}, 1);
    seconds += 1;
    return 0;
}

int mp_pipeline_fetch(struct mp_map *m, uint64_t *ticket, struct mp_error *e)
{
    (void)e;
    ck_assert_ptr_null(m->host);
    m->host = malloc(sizeof *m->host);
    *ticket = give_late(m->held->device, m->host, m->held->value, 1);
    return 0;
}

/* The first numbers of the maps of all groups so far, in their order. */
int mp_pipeline_merge(struct mp_pipeline *p, const struct mp_group *q,
                      struct mp_answer *a, uint64_t *ticket, struct mp_error *e)
{
    size_t n = a->sum.held ? (size_t)a->sum.dim[3] : 0;
    float all[256];

    (void)p;
    *ticket = 0;
    ck_assert(mp_sink_wants(q->want, "npy"));
    ck_assert(!q->nth == !a->sum.held);
    if (n)
        memcpy(all, a->sum.held->value, n * sizeof *all);
    for (size_t i = 0; i < q->nview; i++) {
        ck_assert_int_eq(q->map[i].dim[1] * q->map[i].dim[2], 1);
        ck_assert_int_eq(q->view[i].group, q->nth);
        ck_assert_uint_eq(q->map[i].held->device, q->device);
        all[n++] = q->map[i].held->value[0];
    }
    if (merge_rc)
        return mp_fail(e, merge_rc, "the merge fails");
    mp_map_free(&a->sum);
    if (q->nth + 1 < q->count) {
        a->sum = map_of(q->device, all, n);
        return 0;
    }
    a->result[a->nresult++] = (struct mp_tensor){.dtype = MP_F32,
                                                 .ndim = 1,
                                                 .dim = {(int64_t)n},
                                                 .data = malloc(sizeof all)};
    *ticket = give_late(q->device, (void *)a->result[0].data, all, n);
    return 0;
}

void mp_pipeline_times(const struct mp_pipeline *p,
                       struct mp_pipeline_times *out)
{
    (void)p;
    *out = (struct mp_pipeline_times){.network = seconds};
}

const char *mp_pipeline_backend(const struct mp_pipeline *p)
{
    (void)p;
    return "none (of any kind), fp32";
}

const char *mp_pipeline_device(const struct mp_pipeline *p)
{
    (void)p;
    return "device";
}

const char *mp_pipeline_precision(const struct mp_pipeline *p)
{
    (void)p;
    return "fp32";
}

const char *mp_pipeline_network_text(const struct mp_pipeline *p)
{
    (void)p;
    return "nothing";
}

/* ---- the head: one view, or as many windows of 8 x 8 as fit across ---- */

static int windows, outside, grouped;

static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *e)
{
    long n = windows ? img->width / 8 : 1;

    (void)conf;
    (void)e;
    for (long i = 0; i < n && (size_t)i < cap; i++)
        view[i] = (struct mp_view){.scaled_w = img->width,
                                   .scaled_h = img->height,
                                   .x = windows ? (int32_t)i * 8 : 0,
                                   .y = outside && img->rgb[0] == outside,
                                   .w = windows ? 8 : img->width,
                                   .h = img->height,
                                   .group = grouped ? (int32_t)i / 2 : 0};
    return n;
}

static struct mp_plugin head;

static int decode(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *e)
{
    float all[8];
    struct mp_tensor t = {
        .dtype = MP_F32, .ndim = 1, .dim = {(int64_t)n}, .data = all};

    (void)conf;
    if (head.merge)
        ck_assert_uint_eq(n, 1);
    if (mp_sink_wants(sink, "list")) {
        char text[32];
        int rc;

        snprintf(text, sizeof text, "[{\"n\": %d}]", img->rgb[0]);
        rc = mp_sink_json(sink, "list", text, e);
        if (rc)
            return rc;
    }
    if (head.merge || !n)
        return n ? mp_sink_npy(sink, "npy", result, e) : 0;
    ck_assert_uint_le(n, 8);
    for (size_t i = 0; i < n; i++)
        all[i] = *(const float *)result[i].data;
    return mp_sink_npy(sink, "npy", &t, e);
}

static mp_node merge(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m)
{
    (void)conf;
    (void)g;
    (void)m;
    ck_abort_msg("the pipeline above does not ask the head");
    return (mp_node){0};
}

static struct mp_plugin head = {.name = "fake",
                                .formats = "npy : other list",
                                .views = views,
                                .merge = merge,
                                .decode = decode};

/* ---- a run ---- */

static char *kinds[] = {"npy", NULL};
static struct mp_inputs in;
static struct mp_counts counts;

static int remove_one(const char *path, const struct stat *st, int kind,
                      struct FTW *f)
{
    (void)st;
    (void)kind;
    (void)f;
    return remove(path);
}

static void enter(void)
{
    mp_log_set(MP_LOG_ERROR);
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
    mkdir("in", 0777);
    settings = (struct mp_settings){.plugin = &head,
                                    .kinds = kinds,
                                    .checkpoint = "in",
                                    .compute = {.batch = -1},
                                    .conf = mp_conf_new()};
    devices = 1;
}

static void leave(void)
{
    mp_inputs_free(&in);
    mp_conf_free(settings.conf);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A picture of one colour per 8 columns: value, value + 1, ... */
static void picture(int value, int width)
{
    uint8_t px[8 * 64];
    struct mp_png png = {
        .width = width, .height = 8, .channels = 1, .bits = 8, .px = px};
    char name[32];

    for (int i = 0; i < 8 * width; i++)
        px[i] = (uint8_t)(value + i % width / 8);
    snprintf(name, sizeof name, "in/%03d.png", value);
    ck_assert_msg(!mp_png_write(name, &png, &err), "%s", err.text);
}

static int run(int resume)
{
    struct mp_job job = {.settings = &settings,
                         .pipeline = pipeline,
                         .inputs = &in,
                         .out = "out",
                         .shard = {1, 1},
                         .resume = resume,
                         .stop = &stop};

    calls[0] = '\0';
    mp_inputs_free(&in);
    ck_assert_msg(!mp_inputs_open(&in, "in", 0, "out", &err), "%s", err.text);
    return mp_job_run(&job, &counts, &err);
}

/* The numbers of a result; false: there is none. */
static int result_is(int picture, const float *want, size_t n)
{
    char name[40], bytes[128 + 64];
    size_t got;
    FILE *f;

    snprintf(name, sizeof name, "out/%03d.npy.npy", picture);
    f = fopen(name, "rb");
    if (!f)
        return 0;
    got = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    return got == 128 + n * sizeof *want &&
           !memcmp(bytes + got - n * sizeof *want, want, n * sizeof *want);
}

static int has_result(int picture)
{
    return result_is(picture, (float[]){(float)picture}, 1);
}

static const char *state(void)
{
    static char text[32];
    json_t *o = json_load_file("out/run.json", 0, NULL);

    snprintf(text, sizeof text, "%s",
             json_string_value(json_object_get(o, "state")));
    json_decref(o);
    return text;
}

static char *read_text(const char *name)
{
    char *text = calloc(1, 4096);
    FILE *f = fopen(name, "r");

    ck_assert_msg(f != NULL, "%s", name);
    (void)fread(text, 1, 4095, f);
    fclose(f);
    return text;
}

static const char *errors(void)
{
    static char text[1024];
    FILE *f = fopen("out/errors.jsonl", "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;

    if (f)
        fclose(f);
    text[n] = '\0';
    return text;
}

START_TEST(every_picture_by_itself)
{
    for (int i = 1; i <= 40; i++)
        picture(i, 8);
    ck_assert_int_eq(run(0), 0);
    ck_assert_uint_eq(counts.total, 40);
    ck_assert_uint_eq(counts.done, 40);
    for (int i = 1; i <= 40; i++)
        ck_assert(has_result(i));
    ck_assert_str_eq(state(), "done");
    ck_assert_str_eq(errors(), "");
}
END_TEST

/* Full batches as they come; what waits for too long goes alone. */
START_TEST(views_of_one_size_go_together)
{
    for (int i = 1; i <= 14; i++)
        picture(i, i == 2 || i == 13 ? 16 : 8);
    settings.compute.batch = 3;
    for (int again = 0; again < 5; again++) {
        ck_assert_int_eq(run(0), 0);
        ck_assert_str_eq(calls, "3x8x8 3x8x8 1x8x16 3x8x8 3x8x8 1x8x16");
        for (int i = 1; i <= 14; i++)
            ck_assert(has_result(i));
    }
}
END_TEST

START_TEST(windows_of_one_picture)
{
    windows = 1;
    picture(10, 40);
    picture(50, 8);
    settings.compute.batch = 4;
    ck_assert_int_eq(run(0), 0);
    ck_assert_str_eq(calls, "4x8x8 2x8x8");
    ck_assert(result_is(10, (float[]){10, 11, 12, 13, 14}, 5));
    ck_assert(has_result(50));
}
END_TEST

/* A size of which not as many fit has batches of its own. */
START_TEST(batches_by_size)
{
    for (int i = 1; i <= 8; i++)
        picture(i, i % 2 ? 16 : 8);
    settings.compute.batch = 2;
    small = 8 * 16;
    ck_assert_int_eq(run(0), 0);
    ck_assert_str_eq(calls, "1x8x16 1x8x16 2x8x8 1x8x16 1x8x16 2x8x8");
    for (int i = 1; i <= 8; i++)
        ck_assert(has_result(i));
}
END_TEST

/* Merged two by two, whatever the network saw together. */
START_TEST(groups_of_one_picture)
{
    windows = grouped = 1;
    picture(10, 40);
    picture(50, 16);
    settings.compute.batch = _i;
    ck_assert_int_eq(run(0), 0);
    ck_assert(result_is(10, (float[]){10, 11, 12, 13, 14}, 5));
    ck_assert(result_is(50, (float[]){50, 51}, 2));
}
END_TEST

/* A head that does not merge gets the maps, of which there may be none. */
START_TEST(maps_are_results)
{
    head.merge = NULL;
    windows = 1;
    picture(10, 24);
    picture(50, 7);
    ck_assert_int_eq(run(0), 0);
    ck_assert_str_eq(calls, "1x8x8 1x8x8 1x8x8");
    ck_assert_uint_eq(counts.done, 2);
    ck_assert(result_is(10, (float[]){10, 11, 12}, 3));
    ck_assert(!has_result(50));
}
END_TEST

/* What each picture has, in their order; also after a run that was resumed. */
START_TEST(lists_are_joined)
{
    static char *both[] = {"npy", "list", NULL};
    char *text;

    head.joined = "list";
    head.joined_as = "all";
    settings.kinds = both;
    for (int i = 1; i <= 4; i++)
        picture(i * 10, 8);
    fail_on = 20;
    fail_rc = MP_ENOMEM;
    ck_assert_int_eq(run(0), 0);
    text = read_text("out/all.json");
    ck_assert_str_eq(text, "[\n {\"n\":10},\n {\"n\":30},\n {\"n\":40}\n]\n");
    free(text);
    fail_on = 0;
    ck_assert_int_eq(run(1), 0);
    ck_assert_uint_eq(counts.skipped, 3);
    text = read_text("out/all.json");
    ck_assert_str_eq(text, "[\n {\"n\":10},\n {\"n\":20},\n {\"n\":30},\n "
                           "{\"n\":40}\n]\n");
    free(text);
}
END_TEST

START_TEST(raw_is_what_the_network_gave)
{
    static char *both[] = {"npy", "raw", NULL};

    windows = 1;
    grouped = _i;
    settings.kinds = both;
    picture(10, 24);
    ck_assert_int_eq(run(0), 0);
    ck_assert_int_eq(rename("out/010.raw.npy", "out/010.npy.npy"), 0);
    ck_assert(result_is(10, (float[]){10, 11, 12}, 3));
}
END_TEST

/* In a batch, the others do not suffer. */
START_TEST(a_view_that_the_network_refuses)
{
    for (int i = 1; i <= 6; i++)
        picture(i * 10, 8);
    settings.compute.batch = _i;
    fail_on = 30;
    fail_rc = MP_ENOMEM;
    ck_assert_int_eq(run(0), 0);
    ck_assert_uint_eq(counts.done, 5);
    ck_assert_uint_eq(counts.failed, 1);
    ck_assert(has_result(20) && !has_result(30) && has_result(40));
    ck_assert_str_eq(errors(),
                     "{\"input\":\"in/030.png\",\"stage\":\"network\","
                     "\"error\":\"the network fails\"}\n");
}
END_TEST

START_TEST(one_window_fails_its_picture)
{
    windows = 1;
    picture(10, 24);
    picture(50, 24);
    settings.compute.batch = _i;
    fail_on = 11;
    fail_rc = MP_ENOMEM;
    ck_assert_int_eq(run(0), 0);
    ck_assert_uint_eq(counts.failed, 1);
    ck_assert(result_is(50, (float[]){50, 51, 52}, 3));
}
END_TEST

START_TEST(failures_in_order)
{
    for (int i = 1; i <= 30; i++)
        picture(i, 8);
    ck_assert_int_eq(mp_file_write("in/002.png", "no", 2, &err), 0);
    outside = 5;
    fail_on = 3;
    fail_rc = MP_EINVAL;
    ck_assert_int_eq(run(0), 0);
    ck_assert_uint_eq(counts.failed, 3);
    ck_assert_uint_eq(counts.done, 27);
    ck_assert_ptr_nonnull(strstr(errors(), "002.png\",\"stage\":\"read\""));
    ck_assert_ptr_nonnull(strstr(errors(), "003.png\",\"stage\":\"network\""));
    ck_assert_ptr_nonnull(strstr(errors(), "005.png\",\"stage\":\"views\""));
    ck_assert(strstr(errors(), "002") < strstr(errors(), "003"));
    ck_assert(strstr(errors(), "003") < strstr(errors(), "005"));
}
END_TEST

START_TEST(a_device_that_fails_ends_the_run)
{
    for (int i = 1; i <= 30; i++)
        picture(i, 8);
    settings.compute.batch = _i;
    fail_on = 7;
    fail_rc = MP_EIO;
    ck_assert_int_eq(run(0), MP_EIO);
    ck_assert_str_eq(state(), "stopped");
    ck_assert(!has_result(20));
    fail_on = 0;
    ck_assert_int_eq(run(1), 0);
    ck_assert_uint_eq(counts.done + counts.skipped, 30);
    ck_assert(has_result(20));
}
END_TEST

/* Found when its results are waited for, while others are under way. */
START_TEST(a_device_that_fails_later)
{
    for (int i = 1; i <= 30; i++)
        picture(i, 8);
    settings.compute.batch = _i;
    wait_rc = MP_EIO;
    wait_from = 9;
    ck_assert_int_eq(run(0), MP_EIO);
    ck_assert_str_eq(err.text, "the device fails");
    ck_assert_str_eq(state(), "stopped");
    ck_assert(!has_result(9));
    wait_rc = 0;
    ck_assert_int_eq(run(1), 0);
    ck_assert_uint_eq(counts.done + counts.skipped, 30);
}
END_TEST

/* Every picture belongs to one, which sees all of its views; they get equal
 * shares, whatever the sizes, and the order of the calls is always the same. */
START_TEST(several_devices)
{
    devices = DEVICES;
    for (int i = 1; i <= 12; i++)
        picture(i * 10, i == 2 ? 64 : 8);
    windows = 1;
    settings.compute.batch = 2;
    for (int again = 0; again < 5; again++) {
        ck_assert_int_eq(run(0), 0);
        ck_assert_str_eq(calls,
                         "1:2x8x8 1:2x8x8 1:2x8x8 1:2x8x8 0:2x8x8 2:2x8x8 "
                         "0:2x8x8 2:2x8x8 0:2x8x8 2:1x8x8");
        for (int i = 1; i <= 12; i++)
            ck_assert(i == 2 || has_result(i * 10));
        ck_assert(result_is(20, (float[]){20, 21, 22, 23, 24, 25, 26, 27}, 8));
    }
    devices = 1;
    settings.compute.batch = 1;
    ck_assert_int_eq(run(0), 0);
    for (int i = 1; i <= 12; i++)
        ck_assert(i == 2 || has_result(i * 10));
}
END_TEST

START_TEST(settings_that_do_not_fit_end_the_run)
{
    picture(1, 8);
    picture(2, 8);
    merge_rc = MP_EINVAL;
    ck_assert_int_eq(run(0), MP_EINVAL);
    ck_assert_str_eq(err.text, "the merge fails");
}
END_TEST

START_TEST(stop_finishes_what_has_begun)
{
    windows = 1;
    for (int i = 1; i <= 9; i++)
        picture(i * 10, 24);
    stop_on = 41;
    ck_assert_int_eq(run(0), MP_EINTR);
    ck_assert_str_eq(state(), "interrupted");
    ck_assert_uint_eq(counts.done, 4);
    ck_assert(result_is(40, (float[]){40, 41, 42}, 3));
    stop = stop_on = 0;
    ck_assert_int_eq(run(1), 0);
    ck_assert_uint_eq(counts.skipped, 4);
    ck_assert_uint_eq(counts.done, 5);
    ck_assert(result_is(90, (float[]){90, 91, 92}, 3));
}
END_TEST

START_TEST(nothing_left_to_do)
{
    picture(1, 8);
    ck_assert_int_eq(run(0), 0);
    ck_assert_int_eq(run(1), 0);
    ck_assert_uint_eq(counts.skipped, 1);
    ck_assert_str_eq(calls, "");
    ck_assert_str_eq(state(), "done");
}
END_TEST

START_TEST(other_settings_are_refused)
{
    static const struct mp_option rows[] = {
        {"key", MP_OPT_INT, 0, "1", 0, 0, NULL, NULL, "A number"}, {0}};
    int32_t value;

    picture(1, 8);
    ck_assert_int_eq(mp_conf_section(settings.conf, "part", rows, &value, &err),
                     0);
    ck_assert_int_eq(run(0), 0);
    value = 2;
    ck_assert_int_eq(run(0), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "[part] key was 1, is 2"));
    value = 1;
    settings.checkpoint = "out/run.json";
    ck_assert_int_eq(run(1), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "checkpoint's path"));
}
END_TEST

START_TEST(json_of_any_bytes)
{
    json_t *t = mp_json_text(_i ? "\xff\xc3\xa4\xe2\x82\xacx\xc3" : "");

    ck_assert_str_eq(json_string_value(t),
                     _i ? "\xef\xbf\xbd\xc3\xa4\xe2\x82\xacx\xef\xbf\xbd" : "");
    json_decref(t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("job");
    TCase *t = tcase_create("job");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, enter, leave);
    tcase_add_test(t, every_picture_by_itself);
    tcase_add_test(t, views_of_one_size_go_together);
    tcase_add_test(t, windows_of_one_picture);
    tcase_add_test(t, batches_by_size);
    tcase_add_loop_test(t, groups_of_one_picture, 1, 5);
    tcase_add_test(t, maps_are_results);
    tcase_add_test(t, lists_are_joined);
    tcase_add_loop_test(t, raw_is_what_the_network_gave, 0, 2);
    tcase_add_loop_test(t, a_view_that_the_network_refuses, 1, 5);
    tcase_add_loop_test(t, one_window_fails_its_picture, 1, 8);
    tcase_add_test(t, failures_in_order);
    tcase_add_loop_test(t, a_device_that_fails_ends_the_run, 1, 4);
    tcase_add_loop_test(t, a_device_that_fails_later, 1, 4);
    tcase_add_test(t, several_devices);
    tcase_add_test(t, settings_that_do_not_fit_end_the_run);
    tcase_add_test(t, stop_finishes_what_has_begun);
    tcase_add_test(t, nothing_left_to_do);
    tcase_add_test(t, other_settings_are_refused);
    tcase_add_loop_test(t, json_of_any_bytes, 0, 2);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
