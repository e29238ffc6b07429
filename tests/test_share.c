/* SPDX-License-Identifier: MIT */
/*
 * test_share.c - several pipelines on one device: equal weights are packed and
 * kept once, and nobody sees a difference.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "conf.h"
#include "device.h"
#include "golden.h"
#include "graph_impl.h"
#include "host.h"
#include "make_weights.h"
#include "module.h"

#define SIDE 64 /* of the view, pixels */

static char folder[] = "/tmp/mpipe-share-XXXXXX";
static enum mp_precision precision;

/* In place of core/host.c: a machine whose memory is as a test wants it. */
#define PLENTY ((uint64_t)1 << 40)
static uint64_t free_memory; /* bytes */

void mp_host_memory(struct mp_host_memory *out, const char *root)
{
    (void)root;
    *out = (struct mp_host_memory){.total = PLENTY, .free = free_memory};
}

int mp_host_cpus(int most, const char *root)
{
    (void)root;
    return most;
}

struct one {
    struct mp_conf *conf;
    void *head_conf;
    struct mp_pipeline *p;
};

static const char *path_of(const char *file)
{
    static char path[300];

    snprintf(path, sizeof path, "%s/%s", folder, file);
    return path;
}

static int write_weights(const char *keys, const char *file)
{
    struct mp_error err = {0};
    int rc =
        make_weights(golden_path("keys/%s.json", keys), path_of(file), &err);

    if (rc)
        fprintf(stderr, "%s\n", err.text);
    return rc;
}

static struct one open_one(struct mp_devices *devices, const char *head,
                           const char *file, int threads)
{
    struct mp_pipeline_conf c = {.checkpoint = path_of(file),
                                 .backend = "cpu",
                                 .precision = precision,
                                 .threads = threads,
                                 .devices = devices};
    struct mp_error err = {0};
    struct one o = {.conf = mp_conf_new()};
    int rc = mp_head_find(&c.head, head, &err);

    if (!rc) {
        o.head_conf = calloc(1, c.head->conf_size);
        c.head_conf = o.head_conf;
        rc = mp_conf_section(o.conf, head, c.head->options, o.head_conf, &err);
    }
    if (!rc)
        rc = mp_pipeline_open(&o.p, &c, &err);
    ck_assert_msg(!rc, "%s", err.text);
    return o;
}

static void close_one(struct one *o)
{
    mp_pipeline_close(o->p);
    mp_conf_free(o->conf);
    free(o->head_conf);
}

/* What the network gives for a view of h x SIDE pixels; of its own. */
static struct mp_tensor look(const struct one *o, int32_t h)
{
    size_t n = (size_t)h * SIDE * 3;
    uint8_t *px = malloc(n);
    const uint8_t *view = px;
    struct mp_map map;
    struct mp_tensor t = {.dtype = MP_F32};
    struct mp_error err = {0};
    uint64_t ticket;
    int rc;

    for (size_t i = 0; i < n; i++)
        px[i] = (uint8_t)(i * 2654435761u >> 24);
    rc = mp_pipeline_network(o->p, 0, &view, 1, h, SIDE, &map, &err);
    if (!rc)
        rc = mp_pipeline_fetch(&map, &ticket, &err);
    if (!rc)
        rc = mp_pipeline_wait(o->p, 0, ticket, &err);
    ck_assert_msg(!rc, "%s", err.text);
    free(px);
    t.ndim = map.ndim;
    memcpy(t.dim, map.dim, sizeof t.dim);
    n = (size_t)mp_shape_count(t.ndim, t.dim) * sizeof(float);
    t.data = memcpy(malloc(n), map.host, n);
    mp_map_free(&map);
    return t;
}

static void forget(struct mp_tensor *t)
{
    free((void *)t->data);
}

static void same(const struct mp_tensor *a, const struct mp_tensor *b)
{
    ck_assert_int_eq(a->ndim, b->ndim);
    ck_assert_mem_eq(a->dim, b->dim, sizeof a->dim);
    ck_assert_mem_eq(a->data, b->data,
                     (size_t)mp_shape_count(a->ndim, a->dim) *
                         mp_dtype_size(a->dtype));
}

static void sees(const struct one *o, const struct mp_tensor *want)
{
    struct mp_tensor got = look(o, SIDE);

    same(&got, want);
    forget(&got);
}

/* Of the one device. */
static size_t packed(const struct mp_devices *d)
{
    ck_assert_ptr_nonnull(d->first);
    ck_assert_ptr_null(d->first->next);
    return mp_cpu_packed(d->first->arena.device);
}

/* Its weights are packed before a second run, which gives the same. */
static void sees_twice(const struct one *o, const struct mp_tensor *want)
{
    sees(o, want);
    sees(o, want);
}

/* With a device of its own: what it sees, and the bytes that it keeps. */
static size_t alone(struct mp_tensor *map, const char *head, const char *file)
{
    struct mp_devices d = {NULL};
    struct one o = open_one(&d, head, file, 1);
    size_t n;

    *map = look(&o, SIDE);
    sees(&o, map);
    n = packed(&d);
    close_one(&o);
    ck_assert_ptr_null(d.first);
    return n;
}

/* Twice the same contents, in one file or in two. */
static void twice(const char *first, const char *second)
{
    struct mp_devices d = {NULL};
    struct one a, b;
    struct mp_tensor want;
    size_t n = alone(&want, "depth", first);

    ck_assert_uint_gt(n, 0);
    a = open_one(&d, "depth", first, 1);
    sees_twice(&a, &want);
    ck_assert_uint_eq(packed(&d), n);
    b = open_one(&d, "depth", second, 1);
    sees(&b, &want);
    ck_assert_uint_eq(packed(&d), n);
    close_one(&a);
    ck_assert_uint_eq(packed(&d), n);
    sees(&b, &want);
    a = open_one(&d, "depth", first, 1); /* back, where b has come to own all */
    sees(&a, &want);
    close_one(&b);
    sees(&a, &want);
    ck_assert_uint_eq(packed(&d), n);
    close_one(&a);
    ck_assert_ptr_null(d.first);
    forget(&want);
}

START_TEST(same_file)
{
    twice("depth.safetensors", "depth.safetensors");
}
END_TEST

START_TEST(copied_file)
{
    twice("depth.safetensors", "copy.safetensors");
}
END_TEST

/* Two tasks on one backbone. */
START_TEST(same_backbone)
{
    struct mp_devices d = {NULL};
    struct one depth, pose;
    struct mp_tensor want[2];
    size_t n[2] = {alone(&want[0], "depth", "depth.safetensors"),
                   alone(&want[1], "pose", "pose.safetensors")};
    size_t both;

    depth = open_one(&d, "depth", "depth.safetensors", 1);
    sees_twice(&depth, &want[0]);
    pose = open_one(&d, "pose", "pose.safetensors", 1);
    sees(&pose, &want[1]);
    both = packed(&d);
    printf("packed: %zu and %zu bytes alone, %zu together\n", n[0], n[1], both);
    /* the heads' own layers are less than a fourth of these networks */
    ck_assert_uint_lt(both, n[0] + n[1] / 4);
    sees(&depth, &want[0]);
    close_one(&depth);
    ck_assert_uint_eq(packed(&d), n[1]);
    sees(&pose, &want[1]);
    close_one(&pose);
    ck_assert_ptr_null(d.first);
    forget(&want[0]);
    forget(&want[1]);
}
END_TEST

static void cut(const char *path)
{
    ck_assert_int_eq(truncate(path, 4000), 0);
}

static void empty(const char *path)
{
    ck_assert_int_eq(truncate(path, 0), 0);
}

static void write_to(const char *path)
{
    FILE *f = fopen(path, "r+");

    ck_assert(f && !fseek(f, -4, SEEK_END) && fputc(1, f) == 1 && !fclose(f));
}

static void (*const changes[])(const char *path) = {cut, empty, write_to};

/* A checkpoint that is written to before all of it was read. */
START_TEST(changed_file)
{
    struct mp_devices d = {NULL};
    struct one o;
    struct mp_map map;
    struct mp_error err = {0};
    uint8_t *px = calloc(1, SIDE * SIDE * 3);
    const uint8_t *view = px;
    char path[300];

    ck_assert(!write_weights("tiny_depth", "new.safetensors"));
    snprintf(path, sizeof path, "%s", path_of("new.safetensors"));
    o = open_one(&d, "depth", "new.safetensors", 1);
    changes[_i](path);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(
            mp_pipeline_network(o.p, 0, &view, 1, SIDE, SIDE, &map, &err),
            MP_EIO);
        ck_assert_msg(strstr(err.text, path) && strstr(err.text, "was changed"),
                      "%s", err.text);
    }
    close_one(&o);
    ck_assert_ptr_null(d.first);
    unlink(path);
    free(px);
}
END_TEST

/* A pipeline packs little more for a second size of views. */
START_TEST(sizes)
{
    struct mp_devices d = {NULL};
    struct one o = open_one(&d, "depth", "depth.safetensors", 1);
    struct mp_tensor first = look(&o, SIDE), second;
    size_t n;

    sees(&o, &first);
    n = packed(&d);
    second = look(&o, 2 * SIDE);
    printf("packed: %zu bytes for one size, %zu for two\n", n, packed(&d));
    ck_assert_uint_lt(packed(&d), n + n / 2);
    sees(&o, &first);
    close_one(&o);
    forget(&first);
    forget(&second);
}
END_TEST

/* Where the file's weights would not stay in memory, they are packed before a
 * first run, which gives the same. */
START_TEST(short_memory)
{
    struct mp_devices d = {NULL};
    struct mp_tensor want;
    size_t all = alone(&want, "depth", "depth.safetensors");
    struct one o;

    for (int i = 0; i < 2; i++) {
        free_memory = i ? 0 : PLENTY;
        o = open_one(&d, "depth", "depth.safetensors", 1);
        sees(&o, &want);
        printf("packed for a first run: %zu of %zu bytes\n", packed(&d), all);
        if (i)
            ck_assert_uint_eq(packed(&d), all);
        else
            ck_assert_uint_lt(packed(&d), all / 2);
        sees(&o, &want);
        ck_assert_uint_eq(packed(&d), all);
        close_one(&o);
    }
    forget(&want);
}
END_TEST

/* Another network under the old name is another network, though an equal part
 * of the old one is still there. */
START_TEST(replaced_file)
{
    struct mp_devices d = {NULL};
    struct one stays, goes;
    struct mp_tensor depth, pose;

    alone(&depth, "depth", "depth.safetensors");
    alone(&pose, "pose", "pose.safetensors");
    ck_assert(!write_weights("tiny_depth", "new.safetensors"));
    stays = open_one(&d, "depth", "depth.safetensors", 1);
    sees(&stays, &depth);
    goes = open_one(&d, "depth", "new.safetensors", 1);
    sees(&goes, &depth);
    close_one(&goes);
    ck_assert(!write_weights("tiny_pose", "new.safetensors"));
    goes = open_one(&d, "pose", "new.safetensors", 1);
    sees(&goes, &pose);
    sees(&stays, &depth);
    close_one(&goes);
    close_one(&stays);
    unlink(path_of("new.safetensors"));
    forget(&depth);
    forget(&pose);
}
END_TEST

/* A device is what it was opened as. */
START_TEST(other_threads)
{
    struct mp_devices d = {NULL};
    struct one a = open_one(&d, "depth", "depth.safetensors", 1);
    struct one b = open_one(&d, "depth", "depth.safetensors", 2);

    ck_assert_ptr_nonnull(d.first->next);
    close_one(&a);
    ck_assert_ptr_null(d.first->next);
    ck_assert_int_eq(d.first->conf.threads, 2);
    close_one(&b);
    ck_assert_ptr_null(d.first);
}
END_TEST

/* What cannot be opened leaves nothing behind. */
START_TEST(failure)
{
    struct mp_devices d = {NULL};
    struct one a = open_one(&d, "depth", "depth.safetensors", 1);
    struct mp_pipeline_conf c = {.checkpoint = path_of("none.safetensors"),
                                 .backend = "cpu",
                                 .precision = MP_PREC_TF32,
                                 .devices = &d};
    struct mp_pipeline *p = NULL;
    struct mp_error err = {0};

    ck_assert(!mp_head_find(&c.head, "depth", &err));
    c.head_conf = a.head_conf;
    ck_assert_int_eq(mp_pipeline_open(&p, &c, &err), MP_ENOTSUP);
    c.precision = MP_PREC_FP32;
    ck_assert_int_eq(mp_pipeline_open(&p, &c, &err), MP_EIO);
    mp_pipeline_close(a.p);
    a.p = NULL;
    ck_assert_int_eq(mp_pipeline_open(&p, &c, &err), MP_EIO);
    ck_assert_ptr_null(d.first);
    close_one(&a);
}
END_TEST

static void begin(void)
{
    precision = MP_PREC_FP32;
    free_memory = PLENTY;
}

static void begin_bf16(void)
{
    begin();
    precision = MP_PREC_BF16;
}

static int has_bf16(void)
{
    struct mp_opened o;

    if (mp_device_open(&o, "cpu", MP_PREC_BF16, 1, NULL))
        return 0;
    o.backend->close(o.device);
    return 1;
}

static void add_tests(Suite *s, const char *name, void (*fixture)(void))
{
    TCase *t = tcase_create(name);

    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, fixture, NULL);
    tcase_add_test(t, same_file);
    tcase_add_test(t, copied_file);
    tcase_add_test(t, same_backbone);
    tcase_add_test(t, sizes);
    tcase_add_test(t, short_memory);
    tcase_add_test(t, replaced_file);
    tcase_add_loop_test(t, changed_file, 0, sizeof changes / sizeof *changes);
    suite_add_tcase(s, t);
}

int main(void)
{
    static const char *const file[] = {"depth.safetensors", "copy.safetensors",
                                       "pose.safetensors"};
    static const char *const keys[] = {"tiny_depth", "tiny_depth", "tiny_pose"};
    Suite *s = suite_create("share");
    TCase *t = tcase_create("devices");
    SRunner *r;
    int failed;

    if (!mkdtemp(folder))
        return 99;
    for (int i = 0; i < 3; i++)
        if (write_weights(keys[i], file[i]))
            return 99;
    add_tests(s, "fp32", begin);
    if (has_bf16())
        add_tests(s, "bf16", begin_bf16);
    else
        puts("bf16: SKIPPED, this CPU has no arithmetic in it");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, begin, NULL);
    tcase_add_test(t, other_threads);
    tcase_add_test(t, failure);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    for (int i = 0; i < 3; i++)
        unlink(path_of(file[i]));
    rmdir(folder);
    return failed != 0;
}
