/* SPDX-License-Identifier: MIT */
/* Checkpoints: real files against their known contents, hostile ones against
 * the rule that nothing but an error may come of them. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "golden.h"
#include "weights_impl.h"

/* ---- scratch folder and files ---- */

static char folder[256];

static void make_folder(void)
{
    const char *base = getenv("TMPDIR");

    snprintf(folder, sizeof folder, "%s/mpipe-weights-XXXXXX",
             base ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_tree(const char *path)
{
    char sub[PATH_MAX];
    struct dirent *e;
    DIR *d = opendir(path);

    while (d && (e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
        if (unlink(sub))
            remove_tree(sub);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

static void drop_folder(void)
{
    remove_tree(folder);
}

static int files_left(void)
{
    DIR *d = opendir(folder);
    int n = 0;

    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

/* Four buffers by turns: enough for one expression. */
static const char *in_folder(const char *name)
{
    static char path[4][PATH_MAX];
    static int turn;

    turn = (turn + 1) % 4;
    snprintf(path[turn], PATH_MAX, "%s/%s", folder, name);
    return path[turn];
}

static const char *data_file(const char *name)
{
    static char path[PATH_MAX];
    const char *src = getenv("srcdir");

    snprintf(path, sizeof path, "%s/tests/data/%s", src ? src : ".", name);
    return path;
}

struct buf {
    uint8_t *p;
    size_t n, cap;
};

static void put(struct buf *b, const void *s, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = realloc(b->p, b->cap);
        ck_assert_ptr_nonnull(b->p);
    }
    if (n)
        memcpy(b->p + b->n, s, n);
    b->n += n;
}

static void put_le(struct buf *b, uint64_t v, int n)
{
    for (; n-- > 0; v >>= 8) {
        uint8_t byte = (uint8_t)v;

        put(b, &byte, 1);
    }
}

static void put_zeros(struct buf *b, size_t n)
{
    while (n--)
        put(b, "", 1);
}

static void put_text(struct buf *b, const char *s)
{
    put(b, s, strlen(s));
}

static void drop(struct buf *b)
{
    free(b->p);
    memset(b, 0, sizeof *b);
}

static struct buf slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct buf b = {0};
    char part[4096];
    size_t n;

    ck_assert_msg(f != NULL, "%s", path);
    while ((n = fread(part, 1, sizeof part, f)))
        put(&b, part, n);
    fclose(f);
    return b;
}

static const char *spill(const char *name, const void *p, size_t n)
{
    const char *path = in_folder(name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, p, n), (ssize_t)n);
    close(fd);
    return path;
}

/* ---- opening ---- */

static struct mp_weights *opened(const char *path)
{
    struct mp_error err = {0};
    struct mp_weights *w;
    int rc = mp_weights_open(&w, path, &err);

    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_ptr_nonnull(w);
    return w;
}

/* It must be refused, with a text that names the file and has `part`. */
static void refused(const char *path, const char *part)
{
    struct mp_error err = {0};
    struct mp_weights *w = NULL;
    int rc = mp_weights_open(&w, path, &err);

    ck_assert_msg(rc < 0, "%s was accepted", path);
    ck_assert_ptr_null(w);
    ck_assert_int_eq(rc, err.code);
    ck_assert_msg(strstr(err.text, path) && strstr(err.text, part),
                  "\"%s\" lacks \"%s\"", err.text, part);
    ck_assert_int_eq(mp_weights_open(&w, path, NULL), rc);
}

static const struct mp_weight_info *need(const struct mp_weights *w,
                                         const char *name)
{
    const struct mp_weight_info *i = mp_weights_find(w, name);

    ck_assert_msg(i != NULL, "no tensor %s", name);
    ck_assert_str_eq(i->name, name);
    return i;
}

/* Read every element; every one must lie in the mapped file. */
static void read_all(const struct mp_weights *w)
{
    size_t k;

    for (k = 0; k < mp_weights_count(w); k++) {
        const struct mp_weight_info *i = mp_weights_at(w, k);
        size_t last = 1, size = mp_dtype_size(i->dtype);
        const uint8_t *p = i->data;
        float *f;
        int d;

        ck_assert(mp_weights_find(w, i->name) == i);
        ck_assert(size && p >= w->file && p <= w->file + w->size);
        for (d = 0; d < i->ndim; d++)
            last += (size_t)((i->dim[d] - 1) * i->stride[d]);
        if (!i->count)
            continue;
        ck_assert_uint_le(last, (size_t)(w->file + w->size - p) / size);
        if (i->count > 1 << 20) /* an expanded view */
            continue;
        f = malloc(i->count * sizeof *f);
        mp_weight_f32(i, f);
        free(f);
        mp_weight_forget(i);
    }
}

/* Whatever the file is: no crash, and an error has a text. */
static int survives(const char *path)
{
    struct mp_error err = {0};
    struct mp_weights *w;
    int rc = mp_weights_open(&w, path, &err);

    if (rc) {
        ck_assert(err.text[0] && err.code == rc);
        return rc;
    }
    read_all(w);
    mp_weights_close(w);
    return 0;
}

/* ---- files of PyTorch against their known contents ---- */

static const struct {
    const char *file, *json, *state, *format;
} known[] = {
    {"zip_state_dict.pth", NULL, NULL, "pytorch-zip"},
    {"legacy_state_dict.pth", NULL, NULL, "pytorch-legacy"},
    {"zip_protocol4.pth", NULL, NULL, "pytorch-zip"},
    {"zip_dtypes.pth", NULL, NULL, "pytorch-zip"},
    {"legacy_dtypes.pth", NULL, NULL, "pytorch-legacy"},
    {"zip_views.pth", NULL, NULL, "pytorch-zip"},
    {"legacy_views.pth", NULL, NULL, "pytorch-legacy"},
    {"zip_small_view_of_big_storage.pth", NULL, NULL, "pytorch-zip"},
    {"zip_mmcv_checkpoint.pth", NULL, "state_dict", "pytorch-zip"},
    {"legacy_mmcv_checkpoint.pth", NULL, "state_dict", "pytorch-legacy"},
    {"zip_train_state.ckpt", NULL, "model", "pytorch-zip"},
    {"legacy_train_state.ckpt", NULL, "model", "pytorch-legacy"},
    {"zip_parameters.pth", NULL, NULL, "pytorch-zip"},
    {"zip_alias.pth", NULL, NULL, "pytorch-zip"},
    {"zip_bare_tensor.pth", NULL, NULL, "pytorch-zip"},
    {"nyu_class_embeddings.pth", NULL, NULL, "pytorch-zip"},
    {"zip_many_keys.pth", "legacy_many_keys.pth", NULL, "pytorch-zip"},
    {"legacy_many_keys.pth", NULL, NULL, "pytorch-legacy"},
    {"zip_lightning_unknown_class.ckpt", NULL, "state_dict", "pytorch-zip"},
    {"legacy_lightning_unknown_class.ckpt", NULL, "state_dict",
     "pytorch-legacy"},
};

static float json_float(const json_t *v)
{
    if (json_is_string(v))
        return json_string_value(v)[0] == '-' ? -INFINITY : INFINITY;
    if (json_is_boolean(v))
        return json_is_true(v) ? 1.0f : 0.0f;
    return json_is_integer(v) ? (float)json_integer_value(v)
                              : (float)json_real_value(v);
}

static const char *dtype_text(const json_t *t)
{
    static const char *const names[][2] = {
        {"float32", "f32"}, {"float16", "f16"}, {"bfloat16", "bf16"},
        {"float64", "f64"}, {"int8", "i8"},     {"int16", "i16"},
        {"int32", "i32"},   {"int64", "i64"},   {"uint8", "u8"},
        {"bool", "bool"}};
    const char *s = json_string_value(json_object_get(t, "dtype"));
    size_t k;

    for (k = 0; k < sizeof names / sizeof *names; k++)
        if (!strcmp(names[k][0], s))
            return names[k][1];
    return "?";
}

static void same_values(const struct mp_weight_info *i, const json_t *t)
{
    json_t *values = json_object_get(t, "values");
    json_t *index = json_object_get(t, "sample_index");
    json_t *sum = json_object_get(t, "sum"), *v;
    float *f = malloc((i->count + 1) * sizeof *f);
    double total = 0;
    size_t k;

    if (index)
        values = json_object_get(t, "sample_values");
    else
        ck_assert_uint_eq(json_array_size(values), i->count);
    mp_weight_f32(i, f);
    json_array_foreach(values, k, v)
    {
        size_t at =
            index ? (size_t)json_integer_value(json_array_get(index, k)) : k;
        float want = json_float(v);

        ck_assert_uint_lt(at, i->count);
        ck_assert_msg(!memcmp(&want, &f[at], sizeof want),
                      "%s[%zu] is %.9g, not %.9g", i->name, at, f[at], want);
    }
    for (k = 0; k < i->count; k++)
        total += isfinite(f[k]) ? f[k] : 0;
    if (sum) /* the reference adds exact values, we add rounded ones */
        ck_assert_double_eq_tol(total, json_number_value(sum),
                                1e-6 * (1 + fabs(json_number_value(sum))));
    free(f);
}

static void same_tensor(const struct mp_weights *w, const char *name,
                        const json_t *t)
{
    const struct mp_weight_info *i = need(w, name);
    json_t *shape = json_object_get(t, "shape");
    json_t *stride = json_object_get(t, "stride");
    int k;

    ck_assert_str_eq(mp_dtype_name(i->dtype), dtype_text(t));
    ck_assert_int_eq(i->ndim, (int)json_array_size(shape));
    for (k = 0; k < i->ndim; k++) {
        ck_assert_int_eq(i->dim[k],
                         json_integer_value(json_array_get(shape, k)));
        ck_assert_int_eq(i->stride[k],
                         json_integer_value(json_array_get(stride, k)));
    }
    same_values(i, t);
}

static const char *without_module(const char *s)
{
    return strncmp(s, "module.", 7) ? s : s + 7;
}

/* Compare the tensors below `t`, whose name is `name`; returns how many. */
static size_t same_content(const struct mp_weights *w, const char *name,
                           const json_t *t)
{
    const char *kind = json_string_value(json_object_get(t, "kind"));
    json_t *items = json_object_get(t, "items"), *e;
    char sub[256];
    size_t k, n = 0;

    if (!strcmp(kind, "tensor")) {
        same_tensor(w, without_module(*name ? name : "tensor"), t);
        return 1;
    }
    json_array_foreach(items, k, e)
    {
        const char *dot = *name ? "." : "";

        if (json_is_array(e)) {
            snprintf(sub, sizeof sub, "%s%s%s", name, dot,
                     json_string_value(json_array_get(e, 0)));
            n += same_content(w, sub, json_array_get(e, 1));
        } else {
            snprintf(sub, sizeof sub, "%s%s%zu", name, dot, k);
            n += same_content(w, sub, e);
        }
    }
    return n;
}

static const json_t *child(const json_t *dict, const char *key)
{
    json_t *items = json_object_get(dict, "items"), *e;
    size_t k;

    json_array_foreach(items, k,
                       e) if (!strcmp(json_string_value(json_array_get(e, 0)),
                                      key)) return json_array_get(e, 1);
    ck_abort_msg("no %s in the expected content", key);
    return NULL;
}

START_TEST(known_file)
{
    const char *json = known[_i].json ? known[_i].json : known[_i].file;
    char name[128];
    struct mp_weights *w;
    json_t *root;

    snprintf(name, sizeof name, "pth/%s.json", json);
    root = json_load_file(data_file(name), 0, NULL);
    ck_assert_msg(root != NULL, "%s", data_file(name));
    snprintf(name, sizeof name, "pth/%s", known[_i].file);
    w = opened(data_file(name));
    ck_assert_str_eq(mp_weights_format(w), known[_i].format);
    ck_assert_str_eq(mp_weights_path(w), data_file(name));
    ck_assert_uint_eq(mp_weights_bytes(w), w->size);
    ck_assert_uint_eq(
        same_content(w, "",
                     known[_i].state ? child(root, known[_i].state) : root),
        mp_weights_count(w));
    read_all(w);
    mp_weights_close(w);
    json_decref(root);
}
END_TEST

START_TEST(aliases)
{
    struct mp_weights *w = opened(data_file("pth/zip_alias.pth"));
    const struct mp_weight_info *a = need(w, "cross2.weight");
    const struct mp_weight_info *b = need(w, "unet.out.weight");

    ck_assert_uint_eq(a->storage, b->storage);
    ck_assert_ptr_eq(a->data, b->data);
    ck_assert_str_eq(mp_weights_at(w, 0)->name, "cross2.weight");
    ck_assert_str_eq(mp_weights_at(w, 2)->name, "unet.out.weight");
    ck_assert_ptr_null(mp_weights_at(w, 3));
    ck_assert_ptr_null(mp_weights_find(w, "cross2"));
    mp_weights_close(w);
    w = opened(data_file("pth/legacy_views.pth"));
    a = need(w, "base");
    b = need(w, "transpose");
    ck_assert_uint_eq(a->storage, b->storage);
    ck_assert_int_ne(a->dense, 0);
    ck_assert_int_eq(b->dense, 0);
    ck_assert_uint_ne(a->storage, need(w, "channels_last")->storage);
    mp_weights_close(w);
}
END_TEST

static const char *meta_of(const struct mp_weights *w, const char *key)
{
    const char *k, *v;
    size_t i;

    for (i = 0; mp_weights_meta(w, i, &k, &v); i++)
        if (!strcmp(k, key))
            return v;
    return "";
}

START_TEST(metadata)
{
    struct mp_weights *w = opened(data_file("pth/zip_mmcv_checkpoint.pth"));

    ck_assert_str_eq(meta_of(w, "meta.iter"), "80000");
    ck_assert_str_eq(meta_of(w, "meta.CLASSES"), "4 items");
    ck_assert_str_eq(meta_of(w, "meta.flag"), "yes");
    ck_assert_str_eq(meta_of(w, "meta.neg"), "-1");
    ck_assert_str_eq(meta_of(w, "meta.big"), "1099511627776");
    ck_assert_str_eq(meta_of(w, "meta.pi"), "3.141592654");
    ck_assert_str_eq(meta_of(w, "meta.arr"),
                     "an object: numpy.core.multiarray._reconstruct");
    ck_assert_ptr_nonnull(strstr(meta_of(w, "meta.config"), "refine_step=3"));
    mp_weights_close(w);
    w = opened(data_file("pth/legacy_lightning_unknown_class.ckpt"));
    ck_assert_str_eq(meta_of(w, "global_step"), "1000");
    mp_weights_close(w);
}
END_TEST

/* ---- safetensors ---- */

static const char *safetensors(const char *name, const char *header,
                               size_t data)
{
    struct buf b = {0};
    const char *path;

    put_le(&b, strlen(header), 8);
    put_text(&b, header);
    put_zeros(&b, data);
    path = spill(name, b.p, b.n);
    drop(&b);
    return path;
}

#define T(DTYPE, SHAPE, OFFSETS)                                               \
    "{\"dtype\":\"" DTYPE "\",\"shape\":" SHAPE ",\"data_offsets\":" OFFSETS "}"

static const struct {
    const char *header;
    size_t data;
    const char *error; /* NULL: it is right */
} headers[] = {
    {"{}", 0, NULL},
    {"{\"a\":" T("F32", "[2]", "[0,8]") "}   ", 8, NULL},
    {"{\"a\":" T("F32", "[]", "[0,4]") "}", 4, NULL},
    {"{\"a\":" T("F32", "[0,4]", "[0,0]") "}", 0, NULL},
    {"{\"a\":" T("I8", "[3]", "[1,4]") ",\"b\":" T("BOOL", "[1]", "[0,1]") "}",
     4, NULL},
    {"{\"__metadata__\":{\"k\":\"v\"},\"a\":" T("U8", "[1]", "[0,1]") "}", 1,
     NULL},
    {"{\"a\":" T("F64", "[4]", "[0,16]") "}", 16, "the shape needs 32"},
    {"", 0, "does not start"},
    {"[1]", 0, "does not start"},
    {" {}", 0, "does not start"},
    {"{} x", 0, "header, byte"},
    {"{\"a\":1}", 0, "tensor a: not an object"},
    {"{\"a\":{}}", 0, "tensor a: dtype"},
    {"{\"a\":" T("F8_E4M3", "[1]", "[0,1]") "}", 1, "dtype F8_E4M3"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]", "[4,8]") "}",
     8, "duplicate"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[2,6]") "}",
     6, "overlaps"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[0,4]") "}",
     4, "overlaps"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[6,10]") "}",
     10, "has a hole"},
    {"{\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "has a hole"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") "}", 5, "1 bytes follow"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") "}", 3, "complete?"},
    {"{\"a\":" T("F32", "[1]", "[-4,0]") "}", 4, "outside"},
    {"{\"a\":" T("F32", "[1]", "[4,0]") "}", 4, "outside"},
    {"{\"a\":" T("F32", "[1]", "[0,4.0]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0,1e300]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0,4,4]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0,99999999999999999999]") "}", 4, "header"},
    {"{\"a\":" T("F32", "[4294967296,4294967296]", "[0,0]") "}", 0,
     "overflows"},
    {"{\"a\":" T("F32", "[4294967296,4294967296,0]", "[0,0]") "}", 0,
     "overflows"},
    {"{\"a\":" T("F64", "[2305843009213693952]", "[0,0]") "}", 0, "overflows"},
    {"{\"a\":" T("F32", "[-1]", "[0,0]") "}", 0, "something else than sizes"},
    {"{\"a\":" T("F32", "[1.0]", "[0,4]") "}", 4, "something else than sizes"},
    {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "9 dimensions"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "k is not a string"},
    {"{\"__metadata__\":[]}", 0, "not an object"},
    {"{\"a\\u0000b\":" T("U8", "[1]", "[0,1]") "}", 1, "header"},
    {"{\"\xff\":" T("U8", "[1]", "[0,1]") "}", 1, "byte 0xff"},
    {"{\"a\":" T("U8", "[1]", "[0,1]") ",\"module.a\":" T("U8", "[1]",
                                                          "[1,2]") "}",
     2, "two tensors are named a"},
};

START_TEST(safetensors_rules)
{
    const char *path =
        safetensors("x.safetensors", headers[_i].header, headers[_i].data);

    if (headers[_i].error)
        refused(path, headers[_i].error);
    else
        ck_assert_int_eq(survives(path), 0);
}
END_TEST

START_TEST(safetensors_header_size)
{
    static const uint64_t size[] = {
        0, 1, 7, 20, 100000001, 1ull << 31, 1ull << 63, UINT64_MAX};
    struct buf b = {0};
    size_t k;

    for (k = 0; k < sizeof size / sizeof *size; k++) {
        put_le(&b, size[k], 8);
        put_text(&b, "{\"aa\":1}");
        refused(spill("x.safetensors", b.p, b.n), "header");
        b.n = 0;
    }
    drop(&b);
}
END_TEST

START_TEST(safetensors_deep_json)
{
    struct buf b = {0};
    size_t k;

    put_text(&b, "{\"a\":");
    for (k = 0; k < 100000; k++)
        put_text(&b, "[");
    put(&b, "", 1);
    refused(safetensors("x.safetensors", (char *)b.p, 0), "header, byte");
    drop(&b);
}
END_TEST

static double seconds(void) /* of the processor: others may run too */
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

START_TEST(many_tensors)
{
    struct buf b = {0};
    struct mp_weights *w;
    char one[128], name[32];
    double from;
    int k, n = 5000;

    put_text(&b, "{");
    for (k = 0; k < n; k++) {
        snprintf(one, sizeof one,
                 "%s\"module.layer%d.weight\":" T("F32", "[1]", "[%d,%d]"),
                 k ? "," : "", (k * 7) % n, 4 * k, 4 * k + 4);
        put_text(&b, one);
    }
    put_text(&b, "}");
    put(&b, "", 1);
    safetensors("x.safetensors", (char *)b.p, (size_t)n * 4);
    from = seconds();
    w = opened(in_folder("x.safetensors"));
    for (k = 0; k < n; k++) { /* in file order, and every one is found */
        snprintf(name, sizeof name, "layer%d.weight", (k * 7) % n);
        ck_assert(need(w, name) == mp_weights_at(w, (size_t)k));
    }
    ck_assert_double_lt(seconds() - from, slowness());
    mp_weights_close(w);
    drop(&b);
}
END_TEST

/* ---- writing ---- */

static int fill_count(void *user, size_t i, void *buf, struct mp_error *err)
{
    const struct mp_weight_out *t = user;
    size_t n = mp_dtype_size(t[i].dtype), k;
    uint8_t *p = buf;

    (void)err;
    for (k = 0; k < 6 * n; k++)
        p[k] = (uint8_t)(17 * i + k);
    return 0;
}

static int fill_fails(void *user, size_t i, void *buf, struct mp_error *err)
{
    (void)user;
    (void)buf;
    return i ? mp_fail(err, MP_EIO, "no more") : 0;
}

START_TEST(writer_round_trip)
{
    struct mp_weight_out t[12] = {0};
    char names[11][16];
    struct mp_error err = {0};
    const struct mp_weight_info *i;
    struct mp_weights *w;
    uint8_t want[48];
    size_t k;

    for (k = 0; k < 11; k++) {
        snprintf(names[k], sizeof names[k], "t%zu \"\xc3\xa9\"", k);
        t[k] = (struct mp_weight_out){
            names[k], MP_F32 + (int)k, 2, {2, 3}, fill_count};
    }
    t[11] = (struct mp_weight_out){"none", MP_F64, 3, {2, 0, 3}, fill_fails};
    ck_assert_msg(!mp_weights_write(in_folder("o"), t, 12, t, &err), "%s",
                  err.text);
    w = opened(in_folder("o"));
    ck_assert_str_eq(mp_weights_format(w), "safetensors");
    ck_assert_str_eq(meta_of(w, "format"), "pt");
    ck_assert_uint_eq(mp_weights_count(w), 12);
    for (k = 0; k < 11; k++) {
        size_t size = mp_dtype_size(t[k].dtype);

        i = mp_weights_at(w, k);
        ck_assert_str_eq(i->name, names[k]);
        ck_assert_int_eq(i->dtype, t[k].dtype);
        ck_assert(i->ndim == 2 && i->dim[0] == 2 && i->dim[1] == 3);
        ck_assert(i->dense && i->count == 6 && i->storage == k);
        ck_assert_uint_eq((uintptr_t)i->data % size, 0);
        fill_count(t, k, want, NULL);
        ck_assert_mem_eq(i->data, want, 6 * size);
    }
    ck_assert_uint_eq(mp_weights_at(w, 11)->count, 0);
    read_all(w);
    mp_weights_close(w);
    ck_assert_int_eq(files_left(), 1);
}
END_TEST

START_TEST(writer_fails_cleanly)
{
    struct mp_weight_out t[2] = {{"a", MP_F32, 1, {4}, fill_fails},
                                 {"b", MP_F32, 1, {4}, fill_fails}};
    struct mp_error err = {0};

    ck_assert_int_eq(mp_weights_write(in_folder("o"), t, 2, NULL, &err),
                     MP_EIO);
    ck_assert_ptr_nonnull(strstr(err.text, "no more"));
    ck_assert_int_eq(files_left(), 0);
    t[1].name = "a";
    ck_assert_int_eq(mp_weights_write(in_folder("o"), t, 2, NULL, &err),
                     MP_EINVAL);
    t[1].name = "\xff";
    ck_assert_int_eq(mp_weights_write(in_folder("o"), t, 2, NULL, &err),
                     MP_EINVAL);
    t[1].name = "b";
    t[1].dim[0] = -1;
    ck_assert_int_eq(mp_weights_write(in_folder("o"), t, 2, NULL, &err),
                     MP_EINVAL);
    ck_assert_int_eq(mp_weights_write(in_folder("no/o"), t, 1, NULL, &err),
                     MP_EIO);
    ck_assert_int_eq(files_left(), 0);
}
END_TEST

/* ---- conversion ---- */

static float half_by_definition(unsigned h)
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e == 31  ? m ? NAN : INFINITY
               : e == 0 ? ldexp(m, -24)
                        : ldexp(1024 + m, e - 25);

    return (float)(h & 0x8000 ? -v : v);
}

START_TEST(convert_halves)
{
    static uint16_t h[65536];
    static float f[65536];
    struct mp_weight_info i = {.dtype = MP_F16,
                               .ndim = 1,
                               .dim = {65536},
                               .stride = {1},
                               .data = h,
                               .count = 65536,
                               .dense = 1};
    unsigned k;
    uint32_t bits;

    for (k = 0; k < 65536; k++)
        h[k] = (uint16_t)k;
    mp_weight_f32(&i, f);
    for (k = 0; k < 65536; k++) {
        float want = half_by_definition(k);

        if (isnan(want))
            ck_assert(isnan(f[k]));
        else
            ck_assert_mem_eq(&want, &f[k], 4);
    }
    i.dtype = MP_BF16;
    mp_weight_f32(&i, f);
    for (k = 0; k < 65536; k++) {
        memcpy(&bits, &f[k], 4);
        ck_assert_uint_eq(bits, k << 16);
    }
}
END_TEST

/* Strides of all kinds, on unaligned data, against an index computed anew. */
START_TEST(convert_strides)
{
    static const int64_t stride[][3] = {{12, 4, 1}, {1, 2, 6}, {0, 0, 0},
                                        {24, 8, 2}, {0, 4, 1}, {12, 0, 5},
                                        {4, 1, 12}, {1, 1, 1}};
    uint8_t raw[4 * 128 + 1];
    float out[24], want;
    size_t s;
    int64_t a, b, c;
    struct mp_weight_info one = {.dtype = MP_F32, .ndim = 3};

    for (s = 0; s < 128; s++) {
        want = (float)s;
        memcpy(raw + 1 + 4 * s, &want, 4);
    }
    for (s = 0; s < sizeof stride / sizeof *stride; s++) {
        struct mp_weight_info i = {
            .dtype = MP_F32, .ndim = 3, .dim = {2, 3, 4}, .data = raw + 1};

        memcpy(i.stride, stride[s], sizeof stride[s]);
        ck_assert_int_gt(mp_weights_measure(&i), 0);
        ck_assert_int_eq(i.dense != 0, s == 0);
        ck_assert_uint_eq(i.count, 24);
        mp_weight_f32(&i, out);
        for (a = 0; a < 2; a++)
            for (b = 0; b < 3; b++)
                for (c = 0; c < 4; c++)
                    ck_assert_float_eq(out[(a * 3 + b) * 4 + c],
                                       (float)(a * stride[s][0] +
                                               b * stride[s][1] +
                                               c * stride[s][2]));
    }
    /* the stride of a dimension of 1 says nothing */
    one.dim[0] = one.dim[2] = 1;
    one.dim[1] = 4;
    one.stride[0] = INT64_MAX;
    one.stride[1] = 1;
    ck_assert_int_eq(mp_weights_measure(&one), 4);
    ck_assert_int_ne(one.dense, 0);
}
END_TEST

/* ---- made-up PyTorch files ---- */

static void put_str(struct buf *b, const char *s)
{
    put_text(b, "X");
    put_le(b, strlen(s), 4);
    put_text(b, s);
}

static void put_int(struct buf *b, int64_t v)
{
    put(b, "\x8a\x08", 2);
    put_le(b, (uint64_t)v, 8);
}

struct tensor {
    int64_t numel, offset;
    int ndim;
    int64_t dim[10], stride[10];
};

static void put_tensor(struct buf *b, const struct tensor *t)
{
    int k;

    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_str(b, "storage");
    put_text(b, "ctorch\nFloatStorage\n");
    put_str(b, "0");
    put_str(b, "cpu");
    put_int(b, t->numel);
    put_text(b, "tQ");
    put_int(b, t->offset);
    put_text(b, "(");
    for (k = 0; k < t->ndim; k++)
        put_int(b, t->dim[k]);
    put_text(b, "t(");
    for (k = 0; k < t->ndim; k++)
        put_int(b, t->stride[k]);
    put_text(b, "t\x89NtR");
}

/* {"w": tensor} */
static void put_state(struct buf *b, const struct tensor *t)
{
    put(b, "\x80\2}", 3);
    put_str(b, "w");
    put_tensor(b, t);
    put_text(b, "s.");
}

struct entry {
    const char *name;
    const void *data;
    size_t n;
    int method, flags;
    uint32_t crc;       /* 0: none, as torch may write */
    uint64_t size64;    /* not 0: in a zip64 field, instead of n */
    uint32_t local_off; /* added to the offset of the local header */
};

static void put_zip(struct buf *b, const struct entry *e, size_t n)
{
    size_t at[16], k, directory, end;

    for (k = 0; k < n; k++) {
        at[k] = b->n;
        put(b, "PK\3\4\0\0\0\0", 8);
        put_le(b, (uint64_t)e[k].method, 2);
        put_zeros(b, 4);
        put_le(b, e[k].crc, 4);
        put_le(b, e[k].n, 4);
        put_le(b, e[k].n, 4);
        put_le(b, strlen(e[k].name), 2);
        put_zeros(b, 2);
        put_text(b, e[k].name);
        put(b, e[k].data, e[k].n);
    }
    directory = b->n;
    for (k = 0; k < n; k++) {
        uint64_t size = e[k].size64 ? UINT32_MAX : e[k].n;

        put(b, "PK\1\2\0\0\0\0", 8);
        put_le(b, (uint64_t)e[k].flags, 2);
        put_le(b, (uint64_t)e[k].method, 2);
        put_zeros(b, 4);
        put_le(b, e[k].crc, 4);
        put_le(b, size, 4);
        put_le(b, size, 4);
        put_le(b, strlen(e[k].name), 2);
        put_le(b, e[k].size64 ? 20 : 0, 2);
        put_zeros(b, 10);
        put_le(b, at[k] + e[k].local_off, 4);
        put_text(b, e[k].name);
        if (e[k].size64) {
            put_le(b, 1 | 16 << 16, 4);
            put_le(b, e[k].size64, 8);
            put_le(b, e[k].size64, 8);
        }
    }
    end = b->n;
    put(b, "PK\5\6\0\0\0\0", 8);
    put_le(b, n, 2);
    put_le(b, n, 2);
    put_le(b, end - directory, 4);
    put_le(b, directory, 4);
    put_zeros(b, 2);
}

static const char zeros[64];

/* A zip file of this pickle and one storage of 16 floats. */
static const char *torch_zip(const char *name, const struct buf *pickle)
{
    struct entry e[2] = {{.name = "a/data.pkl"}, {.name = "a/data/0"}};
    struct buf b = {0};
    const char *path;

    e[0].data = pickle->p;
    e[0].n = pickle->n;
    e[1].data = zeros;
    e[1].n = sizeof zeros;
    put_zip(&b, e, 2);
    path = spill(name, b.p, b.n);
    drop(&b);
    return path;
}

static const struct {
    struct tensor t;
    const char *error;
} views[] = {
    {{16, 0, 2, {4, 4}, {4, 1}}, NULL},
    {{16, 0, 0, {0}, {0}}, NULL},
    {{16, 15, 0, {0}, {0}}, NULL},
    {{16, 16, 2, {0, 4}, {4, 1}}, NULL},
    {{16, 0, 2, {1000, 1000}, {0, 0}}, NULL},
    {{16, 0, 2, {1, 4}, {INT64_MAX, 1}}, NULL},
    {{16, 0, 8, {1, 1, 1, 1, 1, 1, 1, 2}, {1, 1, 1, 1, 1, 1, 1, 1}}, NULL},
    {{16, 16, 0, {0}, {0}}, "beyond its storage"},
    {{16, 1, 2, {4, 4}, {4, 1}}, "beyond its storage"},
    {{16, -1, 2, {2, 2}, {2, 1}}, "beyond its storage"},
    {{16, INT64_MAX, 2, {2, 2}, {2, 1}}, "beyond its storage"},
    {{16, 0, 2, {4, 4}, {5, 1}}, "beyond its storage"},
    {{12, 0, 2, {4, 4}, {4, 1}}, "beyond its storage"},
    {{17, 0, 2, {4, 4}, {4, 1}}, "fewer bytes"},
    {{-1, 0, 2, {4, 4}, {4, 1}}, "fewer bytes"},
    {{INT64_MAX, 0, 2, {4, 4}, {4, 1}}, "fewer bytes"},
    {{16, 0, 2, {-1, 4}, {4, 1}}, "overflows"},
    {{16, 0, 2, {4, 4}, {-4, 1}}, "overflows"},
    {{16, 0, 2, {1ll << 32, 1ll << 32}, {0, 0}}, "overflows"},
    {{16, 0, 2, {2, 2}, {INT64_MAX, INT64_MAX}}, "overflows"},
    {{16, 0, 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}},
     "wrong shape"},
};

START_TEST(view_checks)
{
    struct buf p = {0};
    const char *path;

    put_state(&p, &views[_i].t);
    path = torch_zip("x.pth", &p);
    if (views[_i].error) {
        refused(path, views[_i].error);
        refused(path, "tensor w");
    } else {
        ck_assert_int_eq(survives(path), 0);
    }
    drop(&p);
}
END_TEST

static const struct tensor plain = {16, 0, 2, {4, 4}, {4, 1}};

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t c = UINT32_MAX;
    int k;

    while (n--)
        for (c ^= *p++, k = 0; k < 8; k++)
            c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
    return ~c;
}

/* What is different from a right file: in which of its entries (data.pkl, a
 * storage, byteorder) which fields. */
static const struct {
    int which;
    struct entry with;
    const char *error;
} variants[] = {
    {1, {.size64 = 64}, NULL},
    {2, {.name = "../../etc/passwd"}, NULL},
    {1, {.method = 8}, "compressed"},
    {0, {.crc = 1}, "checksum"},
    {2, {.data = "big", .n = 3}, "big-endian"},
    {2, {.name = "any name/data/0"}, "two entries"},
    {2, {.name = "other/data.pkl"}, "2 data.pkl"},
    {0, {.name = "data.pkl"}, "without FOLDER"},
    {0, {.name = "x/y/data.pkl"}, "without FOLDER"},
    {0, {.name = "a.npy"}, ".npz"},
    {1, {.name = "any name/data/1"}, "not in the file"},
    {1, {.size64 = 1u << 20}, "not inside"},
    {1, {.size64 = UINT64_MAX}, "not inside"},
    {1, {.local_off = 1}, "header is missing"},
    {1, {.local_off = UINT32_MAX - 1000}, "outside"},
    {1, {.flags = 1}, "encrypted"},
};

static void apply(struct entry *e, const struct entry *with)
{
    if (with->name)
        e->name = with->name;
    if (with->data) {
        e->data = with->data;
        e->n = with->n;
    }
    e->crc += with->crc;
    e->method = with->method;
    e->flags = with->flags;
    e->size64 = with->size64;
    e->local_off = with->local_off;
}

START_TEST(zip_container)
{
    struct entry e[3] = {{.name = "any name/data.pkl"},
                         {.name = "any name/data/0"},
                         {.name = "any name/byteorder"}};
    struct buf p = {0}, b = {0};
    const char *path;

    put_state(&p, &plain);
    e[0].data = p.p;
    e[0].n = p.n;
    e[0].crc = crc32_of(p.p, p.n);
    e[1].data = zeros;
    e[1].n = sizeof zeros;
    e[2].data = "little";
    e[2].n = 6;
    apply(&e[variants[_i].which], &variants[_i].with);
    put_zip(&b, e, 3);
    path = spill("x.pth", b.p, b.n);
    if (variants[_i].error)
        refused(path, variants[_i].error);
    else
        ck_assert_int_eq(survives(path), 0);
    drop(&b);
    drop(&p);
}
END_TEST

/* A zip64 end record, right or lying about where the directory is. */
START_TEST(zip64_end)
{
    static const uint64_t lie[] = {0, 1, 1ull << 40, UINT64_MAX};
    struct entry e[2] = {{.name = "a/data.pkl"}, {.name = "a/data/0"}};
    struct buf p = {0}, b = {0};
    uint64_t at, size;
    size_t where;

    put_state(&p, &plain);
    e[0].data = p.p;
    e[0].n = p.n;
    e[1].data = zeros;
    e[1].n = sizeof zeros;
    put_zip(&b, e, 2);
    size = mp_le(b.p + b.n - 10, 4);
    at = mp_le(b.p + b.n - 6, 4);
    b.n -= 22;
    where = b.n;
    put(&b, "PK\6\6", 4);
    put_le(&b, 44, 8);
    put_zeros(&b, 12);
    put_le(&b, 2, 8);
    put_le(&b, 2, 8);
    put_le(&b, size, 8);
    put_le(&b, at + lie[_i], 8);
    put(&b, "PK\6\7\0\0\0\0", 8);
    put_le(&b, where, 8);
    put_le(&b, 1, 4);
    put(&b, "PK\5\6\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        20);
    put_zeros(&b, 2);
    if (_i)
        refused(spill("x.pth", b.p, b.n), "directory");
    else
        ck_assert_int_eq(survives(spill("x.pth", b.p, b.n)), 0);
    drop(&b);
    drop(&p);
}
END_TEST

/* ---- hostile pickles ---- */

static size_t peak(void) /* resident set, bytes */
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (size_t)u.ru_maxrss * 1024;
}

/* Open within a second and 64 MiB (the sanitizer's own memory aside). */
static void cheap(const struct buf *pickle, const char *error)
{
    const char *path = torch_zip("bomb.pth", pickle);
    struct mp_error err = {0};
    struct mp_weights *w;
    double from = seconds();
    size_t before = peak();
    int rc = mp_weights_open(&w, path, &err);

    ck_assert_double_lt(seconds() - from, slowness());
#ifndef __SANITIZE_ADDRESS__
    ck_assert_uint_lt(peak() - before, ((size_t)64 << 20) + pickle->n);
#else
    (void)before;
#endif
    if (!rc)
        mp_weights_close(w);
    ck_assert_msg(!error == !rc && (!error || strstr(err.text, error)),
                  "\"%s\" instead of \"%s\"", err.text, error ? error : "");
}

/* Calls of what is not in the table: data, or refused; never run. */
START_TEST(nothing_runs)
{
    char order[PATH_MAX + 16];
    struct buf p = {0};

    snprintf(order, sizeof order, "touch %s", in_folder("ran"));
    put(&p, "\x80\4}", 3);
    put_str(&p, "w");
    put_tensor(&p, &plain);
    put_text(&p, "s");
    put_str(&p, "x");
    if (_i == 0) { /* REDUCE */
        put_text(&p, "cposix\nsystem\n");
        put_str(&p, order);
        put_text(&p, "\x85R");
    } else if (_i == 1) { /* STACK_GLOBAL */
        put_str(&p, "posix");
        put_str(&p, "system");
        put_text(&p, "\x93");
        put_str(&p, order);
        put_text(&p, "\x85R");
    } else if (_i == 2) { /* NEWOBJ, BUILD */
        put_text(&p, "csubprocess\nPopen\n");
        put_str(&p, order);
        put_text(&p, "\x85\x81}b");
    } else { /* INST */
        put_text(&p, "(");
        put_str(&p, order);
        put_text(&p, "iposix\nsystem\n");
    }
    put_text(&p, "s.");
    cheap(&p, _i == 3 ? "instruction 0x69" : NULL);
    ck_assert_int_eq(access(in_folder("ran"), F_OK), -1);
    drop(&p);
}
END_TEST

static void repeat(struct buf *b, const char *s, size_t n)
{
    while (n--)
        put_text(b, s);
}

static const struct {
    const char *code;
    size_t n;
    const char *error;
} codes[] = {
#define CODE(TEXT, ERROR)                                                      \
    {                                                                          \
        TEXT, sizeof TEXT - 1, ERROR                                           \
    }
    CODE("X\xff\xff\xff\xff", "cut short"),
    CODE("\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "cut short"),
    CODE("cposix", "cut short"),
    CODE("0", "stack is empty"),
    CODE("NNs", "stack is empty"),
    CODE("N(R", "stack is empty"),
    CODE("e", "no mark"),
    CODE("NNa", "holds none"),
    CODE("}(Nu", "key without"),
    CODE("(Nd", "key without"),
    CODE("h\7", "memo has no"),
    CODE("Nr\xff\xff\xff\xff", "memo index"),
    CODE("NNR", "without arguments"),
    CODE("NN\x93", "not text"),
    CODE("ctorch._utils\n_rebuild_parameter\n)R", "of nothing"),
    CODE("ctorch._utils\n_rebuild_tensor_v2\n)R", "0 arguments"),
    /* a bare object, as torch.save(model) writes */
    CODE("ctorch.nn\nModule\n)\x81}b", "an object: torch.nn.Module"),
    CODE("\x80\6N", "protocol 6"),
    CODE("I1\n", "instruction 0x49"),
};

START_TEST(pickle_errors)
{
    struct buf p = {0};

    put(&p, "\x80\2", 2);
    put(&p, codes[_i].code, codes[_i].n);
    put_text(&p, ".");
    refused(torch_zip("x.pth", &p), codes[_i].error);
    drop(&p);
}
END_TEST

START_TEST(pickle_bombs)
{
    struct buf p = {0};
    const char *error = "no tensors";
    size_t k;

    put(&p, "\x80\2", 2);
    switch (_i) {
    case 0: /* a million memo entries */
        put_text(&p, "N");
        for (k = 0; k < 1000000; k++) {
            put_text(&p, "r");
            put_le(&p, k, 4);
        }
        break;
    case 1: /* lists in lists */
        repeat(&p, "]", 10000);
        repeat(&p, "a", 9999);
        error = "nested";
        break;
    case 2: /* marks */
        repeat(&p, "(", 20000000);
        error = "MiB";
        break;
    case 3: /* values */
        repeat(&p, "N", 20000000);
        error = "MiB";
        break;
    case 4: /* a list that doubles: 2^40 in the end, if walked */
        put(&p, "]\x94", 2);
        for (k = 0; k < 40; k++) {
            put(&p, "]\x94(h\0h\0e", 8);
            p.p[p.n - 4] = p.p[p.n - 2] = (uint8_t)k;
        }
        break;
    case 5: /* a list that contains itself */
        put(&p, "]\x94(h\0h\0e", 8);
        break;
    case 6: /* a big list copied over and over */
        put(&p, "]\x94(", 3);
        repeat(&p, ")NN\x86", 4000);
        put_text(&p, "e");
        for (k = 0; k < 100000; k++)
            put(&p, "ccollections\nOrderedDict\nh\0\x85R", 29);
        error = "pairs";
        break;
    case 7: /* the same with pairs */
        put(&p, "(", 1);
        repeat(&p, "NN\x86", 4000);
        put(&p, "l\x94", 2);
        for (k = 0; k < 100000; k++)
            put(&p, "ccollections\nOrderedDict\nh\0\x85R0", 30);
        error = "MiB";
        break;
    }
    put_text(&p, ".");
    cheap(&p, error);
    drop(&p);
}
END_TEST

/* A dict of dicts of dicts ..., each the same one: linear all the same. */
START_TEST(shared_notes)
{
    struct buf p = {0};
    int k;

    put(&p, "\x80\2}\x94}\x94", 6); /* 0: top, 1: inner */
    put_text(&p, "(");
    for (k = 0; k < 30000; k++) {
        put_int(&p, k);
        put(&p, "N", 1);
    }
    put_text(&p, "u0(");
    for (k = 0; k < 30000; k++) {
        put_int(&p, k);
        put(&p, "h\1", 2);
    }
    put_str(&p, "state_dict");
    put_text(&p, "}");
    put_str(&p, "w");
    put_tensor(&p, &plain);
    put_text(&p, "su.");
    cheap(&p, NULL);
    drop(&p);
}
END_TEST

/* ---- damage ---- */

/* Three small files: zip (checksums off, so that damage gets past them),
 * legacy, safetensors. */
static struct buf victim(int which)
{
    struct mp_weight_out t[3] = {{"a", MP_F32, 2, {2, 3}, fill_count},
                                 {"b.weight", MP_F16, 2, {3, 2}, fill_count},
                                 {"c", MP_U8, 3, {1, 2, 3}, fill_count}};
    struct mp_error err = {0};
    struct buf b;
    size_t k;

    if (which == 0) {
        b = slurp(data_file("pth/zip_views.pth"));
        for (k = 0; k + 46 < b.n; k++)
            if (!memcmp(b.p + k, "PK\1\2", 4))
                memset(b.p + k + 16, 0, 4);
        return b;
    }
    if (which == 1)
        return slurp(data_file("pth/legacy_views.pth"));
    ck_assert_int_eq(mp_weights_write(in_folder("v"), t, 3, t, &err), 0);
    b = slurp(in_folder("v"));
    unlink(in_folder("v"));
    return b;
}

START_TEST(truncated)
{
    struct buf b = victim(_i);
    size_t n;

    ck_assert_int_eq(survives(spill("t", b.p, b.n)), 0);
    for (n = b.n; n-- > 0;) {
        ck_assert_int_eq(truncate(in_folder("t"), (off_t)n), 0);
        ck_assert_msg(survives(in_folder("t")) < 0, "%zu bytes of %zu", n, b.n);
    }
    drop(&b);
}
END_TEST

/* A file that changes after it was opened can be read, and is found out. */
START_TEST(changes)
{
    struct buf b = victim(0);
    struct mp_weights *w = opened(spill("t", b.p, b.n));
    struct mp_error err = {0};

    ck_assert_int_eq(mp_weights_check(w, &err), 0);
    ck_assert_int_eq(rename(spill("u", "new", 3), in_folder("t")), 0);
    ck_assert_int_eq(mp_weights_check(w, &err), 0);
    read_all(w);
    mp_weights_close(w);

    w = opened(spill("t", b.p, b.n));
    spill("t", b.p, b.n - 1);
    read_all(w);
    ck_assert_int_eq(mp_weights_check(w, &err), MP_EIO);
    ck_assert(strstr(err.text, "was changed") != NULL);
    ck_assert_int_eq(truncate(in_folder("t"), 0), 0);
    read_all(w);
    spill("t", b.p, b.n);
    ck_assert_int_eq(mp_weights_check(w, NULL), MP_EIO);
    mp_weights_close(w);
    drop(&b);
}
END_TEST

/* Nor does a tensor that is held go with its file's mp_weights. */
START_TEST(held)
{
    struct buf b = victim(0);
    struct mp_weights *w = opened(spill("t", b.p, b.n));
    struct mp_mapping *m = mp_mapping_hold(mp_weights_at(w, 0)->mapping);
    size_t size;

    ck_assert(mp_weights_are_held(w));
    mp_weights_close(w);
    ck_assert_mem_eq(mp_mapping_at(m, &size), b.p, b.n);
    ck_assert_uint_eq(size, b.n);
    mp_mapping_drop(m);
    w = opened(in_folder("t"));
    ck_assert(!mp_weights_are_held(w));
    mp_weights_close(w);
    drop(&b);
}
END_TEST

/* What cannot be read of other mappings is none of our business. */
START_TEST(other_mapping)
{
    struct buf b = victim(0);
    int fd = open(spill("u", b.p, b.n), O_RDWR);
    volatile const uint8_t *p = mmap(NULL, b.n, PROT_READ, MAP_SHARED, fd, 0);

    signal(SIGBUS, SIG_DFL); /* sanitizers have it */
    opened(spill("t", b.p, b.n));
    ck_assert(p != MAP_FAILED && ftruncate(fd, 0) == 0);
    drop(&b);
    drop_folder(); /* nobody will */
    (void)p[0];    /* SIGBUS */
}
END_TEST

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

START_TEST(corrupted)
{
    struct buf b = victim(_i);
    uint64_t seed = 20240731 + (uint64_t)_i;
    uint8_t *bad = malloc(b.n);
    int k, flips, good = 0, fd;

    fd = open(spill("c", b.p, b.n), O_WRONLY);
    for (k = 0; k < 10000; k++) {
        memcpy(bad, b.p, b.n);
        for (flips = 1 + (int)(next_random(&seed) % 8); flips; flips--)
            bad[next_random(&seed) % b.n] ^=
                (uint8_t)(1 + next_random(&seed) % 255);
        ck_assert_int_eq(pwrite(fd, bad, b.n, 0), (ssize_t)b.n);
        good += survives(in_folder("c")) == 0;
    }
    close(fd);
    /* flips of values leave a good file; those of structure do not */
    ck_assert(good > 0 && good < 10000);
    free(bad);
    drop(&b);
}
END_TEST

/* ---- other files ---- */

START_TEST(wrong_files)
{
    static const struct {
        const char *text, *hint;
    } wrong[] = {
        {"<!DOCTYPE html><html>", "HTML page"},
        {"version https://git-lfs.github.com/spec/v1\n", "git-lfs"},
        {"GGUF\3", "GGUF"},
        {"\x08\x07\x12\x07pytorch", "ONNX"},
        {"\x89HDF\r\n", "HDF5"},
        {"\x1f\x8b\x08", "gzip"},
        {"{\"weight_map\":", "JSON"},
        {"\x80\2}.", "pickle"},
        {"hello", "neither"},
        {"P", "neither"},
    };
    struct buf tar = {0};
    size_t k;

    for (k = 0; k < sizeof wrong / sizeof *wrong; k++)
        refused(spill("x", wrong[k].text, strlen(wrong[k].text)),
                wrong[k].hint);
    put_zeros(&tar, 512);
    memcpy(tar.p + 257, "ustar", 5);
    refused(spill("x", tar.p, tar.n), "tar archive");
    drop(&tar);
    refused(spill("x", "", 0), "empty");
    refused(in_folder("nothing"), "No such file");
    ck_assert_int_eq(mkfifo(in_folder("fifo"), 0600), 0);
    refused(in_folder("fifo"), "not a regular file");
    refused("/dev/zero", "not a regular file");
    refused(folder, "not in the diffusers layout");
}
END_TEST

/* ---- the diffusers layout ---- */

struct module {
    char original[128], diffusers[128], params[4];
    int rank, rank_diffusers;
};

struct part {
    struct module *module;
    size_t modules;
    struct mp_weight_out *tensor;
    size_t tensors;
};

static void add_param(struct part *p, struct module *m, char kind)
{
    struct mp_weight_out *t = &p->tensor[p->tensors++];
    char name[192];
    int k;

    snprintf(name, sizeof name, "%s.%s", m->diffusers,
             kind == 'w' ? "weight" : "bias");
    t->name = strdup(name);
    t->dtype = MP_F32;
    t->ndim = kind == 'w' ? m->rank_diffusers : 1;
    for (k = 0; k < t->ndim; k++)
        t->dim[k] = k < 2 ? 2 : 1;
}

/* Every element of a tensor is its number in the list. */
static int fill_index(void *user, size_t i, void *buf, struct mp_error *err)
{
    const struct mp_weight_out *t = user;
    float *f = buf;
    int k, n = t[i].ndim > 1 ? 4 : 2;

    (void)err;
    for (k = 0; k < n; k++)
        f[k] = (float)i;
    return 0;
}

/* Names of early diffusers for the attention of the VAE. */
static void age(char *s)
{
    static const char *const old[][2] = {{".to_q", ".query"},
                                         {".to_k", ".key"},
                                         {".to_v", ".value"},
                                         {".to_out.0", ".proj_attn"}};
    size_t k, n = strlen(s);

    for (k = 0; k < 4; k++) {
        size_t m = strlen(old[k][0]);

        if (n > m && !strcmp(s + n - m, old[k][0]) &&
            strstr(s, "mid_block.attentions")) {
            strcpy(s + n - m, old[k][1]);
            return;
        }
    }
}

static void read_names(struct part p[2], int old)
{
    FILE *f = fopen(data_file("sd15_names.txt"), "r");
    char line[320];
    int which = 0;

    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof line, f)) {
        struct module *m = &p[which].module[p[which].modules];

        if (line[0] == '[')
            which = !strncmp(line, "[vae]", 5);
        if (line[0] == '[' || line[0] == '#')
            continue;
        ck_assert_int_eq(sscanf(line, "%127s %127s %3s %d %d", m->original,
                                m->diffusers, m->params, &m->rank_diffusers,
                                &m->rank),
                         5);
        if (old && which)
            age(m->diffusers);
        p[which].modules++;
        add_param(&p[which], m, 'w');
        if (m->params[1])
            add_param(&p[which], m, 'b');
    }
    fclose(f);
}

static void check_part(const struct mp_weights *w, const struct part *p,
                       const char *prefix)
{
    size_t k, n = 0;

    for (k = 0; k < p->modules; k++) {
        const struct module *m = &p->module[k];
        const char *param;

        for (param = m->params; *param; param++, n++) {
            const struct mp_weight_info *i;
            char name[192];
            float f[4];

            snprintf(name, sizeof name, "%s.%s.%s", prefix, m->original,
                     *param == 'w' ? "weight" : "bias");
            i = need(w, name);
            ck_assert_int_eq(i->ndim, *param == 'w' ? m->rank : 1);
            ck_assert_uint_eq(i->count, i->ndim > 1 ? 4 : 2);
            ck_assert(i->dense);
            mp_weight_f32(i, f);
            ck_assert_float_eq(f[1], (float)n);
        }
    }
    ck_assert_uint_eq(n, p->tensors);
}

START_TEST(diffusers)
{
    static const char *const file[] = {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors"};
    struct part p[2] = {{0}};
    struct mp_error err = {0};
    struct mp_weights *w;
    size_t k;
    int i;

    ck_assert_int_eq(mkdir(in_folder("unet"), 0700), 0);
    ck_assert_int_eq(mkdir(in_folder("vae"), 0700), 0);
    for (i = 0; i < 2; i++) {
        p[i].module = calloc(400, sizeof *p[i].module);
        p[i].tensor = calloc(800, sizeof *p[i].tensor);
    }
    read_names(p, _i);
    ck_assert_uint_eq(p[0].tensors, 686);
    ck_assert_uint_eq(p[1].tensors, 248);
    for (i = 0; i < 2; i++) {
        for (k = 0; k < p[i].tensors; k++)
            p[i].tensor[k].fill = fill_index;
        ck_assert_int_eq(mp_weights_write(in_folder(file[i]), p[i].tensor,
                                          p[i].tensors, p[i].tensor, &err),
                         0);
    }
    w = opened(folder);
    ck_assert_str_eq(mp_weights_format(w), "diffusers");
    ck_assert_uint_eq(mp_weights_count(w), 686 + 248);
    ck_assert_uint_gt(mp_weights_bytes(w), 4 * 934);
    check_part(w, &p[0], "model.diffusion_model");
    check_part(w, &p[1], "first_stage_model");
    ck_assert_uint_ne(mp_weights_at(w, 0)->storage,
                      mp_weights_at(w, 686)->storage);
    mp_weights_close(w);
    unlink(in_folder(file[1]));
    refused(folder, "vae/");
    for (i = 0; i < 2; i++) {
        for (k = 0; k < p[i].tensors; k++)
            free((char *)p[i].tensor[k].name);
        free(p[i].tensor);
        free(p[i].module);
    }
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static void add_good(Suite *s)
{
    TCase *c = tcase_create("contents");

    tcase_add_checked_fixture(c, make_folder, drop_folder);
    tcase_set_timeout(c, 30);
    tcase_add_loop_test(c, known_file, 0, COUNT(known));
    tcase_add_test(c, aliases);
    tcase_add_test(c, metadata);
    tcase_add_test(c, many_tensors);
    tcase_add_test(c, writer_round_trip);
    tcase_add_test(c, writer_fails_cleanly);
    tcase_add_test(c, convert_halves);
    tcase_add_test(c, convert_strides);
    tcase_add_loop_test(c, diffusers, 0, 2);
    suite_add_tcase(s, c);
}

static void add_bad(Suite *s)
{
    TCase *c = tcase_create("hostile files");

    tcase_add_checked_fixture(c, make_folder, drop_folder);
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, safetensors_rules, 0, COUNT(headers));
    tcase_add_test(c, safetensors_header_size);
    tcase_add_test(c, safetensors_deep_json);
    tcase_add_loop_test(c, view_checks, 0, COUNT(views));
    tcase_add_loop_test(c, zip_container, 0, COUNT(variants));
    tcase_add_loop_test(c, zip64_end, 0, 4);
    tcase_add_loop_test(c, nothing_runs, 0, 4);
    tcase_add_loop_test(c, pickle_errors, 0, COUNT(codes));
    tcase_add_loop_test(c, pickle_bombs, 0, 8);
    tcase_add_test(c, shared_notes);
    tcase_add_loop_test(c, truncated, 0, 3);
    tcase_add_test(c, changes);
    tcase_add_test(c, held);
    tcase_add_test_raise_signal(c, other_mapping, SIGBUS);
    tcase_add_loop_test(c, corrupted, 0, 3);
    tcase_add_test(c, wrong_files);
    suite_add_tcase(s, c);
}

int main(void)
{
    Suite *s = suite_create("weights");
    SRunner *r;
    int failed;

    add_good(s);
    add_bad(s);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
