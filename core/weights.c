/* SPDX-License-Identifier: MIT */
/*
 * weights.c - the table of tensors, whatever file they come from.
 *
 * A file is mapped whole and read-only. Which reader gets it is decided by its
 * first bytes. The readers add tensors in file order; then the table is sorted
 * by name, for look-up and to find names given twice.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "weights_impl.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are little endian and used where they are mapped"
#endif

#define MAX_NOTES 256

/* ---- what readers call ---- */

int64_t mp_weights_measure(struct mp_weight_info *i)
{
    int64_t n = 1, extent = 1, step;
    int empty = 0, k;

    i->dense = 1;
    for (k = i->ndim - 1; k >= 0; k--) {
        int64_t d = i->dim[k], s = i->stride[k];

        if (d < 0 || s < 0)
            return -1;
        if (d == 0) {
            empty = 1;
            continue;
        }
        if (d > 1 && s != n)
            i->dense = 0;
        if (__builtin_mul_overflow(n, d, &n) || n > INT64_MAX / 8 ||
            __builtin_mul_overflow(d - 1, s, &step) ||
            __builtin_add_overflow(extent, step, &extent))
            return -1;
    }
    if (empty) {
        i->count = 0;
        i->dense = 1;
        return 0;
    }
    i->count = (size_t)n;
    return extent;
}

int mp_weights_row_major(struct mp_weight_info *i)
{
    int64_t n = 1;
    int k;

    for (k = i->ndim - 1; k >= 0; k--) {
        i->stride[k] = n;
        if (i->dim[k] > 1 && __builtin_mul_overflow(n, i->dim[k], &n))
            return -1;
    }
    return n > INT64_MAX / 8 ? -1 : 0;
}

static char *copy(const void *s, size_t n)
{
    char *c = malloc(n + 1);

    if (c) {
        memcpy(c, s, n);
        c[n] = 0;
    }
    return c;
}

int mp_weights_add(struct mp_weights *w, const struct mp_weight_info *i,
                   const void *name, size_t n, struct mp_error *err)
{
    static const char module[] = "module.";
    const char *s = name;

    if (n > strlen(module) && !memcmp(s, module, strlen(module))) {
        s += strlen(module);
        n -= strlen(module);
    }
    if (memchr(s, 0, n))
        return mp_fail(err, MP_EFORMAT, "a tensor's name has a NUL byte");
    if (w->count == w->cap) {
        size_t cap = w->cap ? w->cap * 2 : 256;
        void *p = realloc(w->info, cap * sizeof *w->info);

        if (!p)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        w->info = p;
        w->cap = cap;
    }
    w->info[w->count] = *i;
    if (w->file) { /* a folder's are its files' */
        w->info[w->count].mapping = w->mapping;
        w->info[w->count].offset =
            (size_t)((uintptr_t)i->data - (uintptr_t)w->file);
    }
    w->info[w->count].name = copy(s, n);
    if (!w->info[w->count].name)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    w->count++;
    return 0;
}

int mp_weights_note(struct mp_weights *w, const char *key, const void *value,
                    size_t n, struct mp_error *err)
{
    char *k, *v;

    if (w->notes == MAX_NOTES)
        return 0;
    if (!w->note && !(w->note = calloc(MAX_NOTES, sizeof *w->note)))
        return mp_fail(err, MP_ENOMEM, "out of memory");
    k = copy(key, strlen(key));
    v = copy(value, n);
    if (!k || !v) {
        free(k);
        free(v);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    w->note[w->notes].key = k;
    w->note[w->notes++].value = v;
    return 0;
}

/* ---- opening ---- */

static int starts(const struct mp_weights *w, size_t at, const char *magic,
                  size_t n)
{
    return w->size >= at + n && !memcmp(w->file + at, magic, n);
}

/* What people take for a checkpoint. */
static const char *wrong_file(const struct mp_weights *w)
{
    static const struct {
        size_t at;
        const char *magic;
        const char *what;
    } known[] = {
        {0, "version https://git-lfs",
         "a git-lfs pointer: run `git lfs pull` to get the file itself"},
        {0, "<!DOCTYPE", "an HTML page, not a download"},
        {0, "<!doctype", "an HTML page, not a download"},
        {0, "<html", "an HTML page, not a download"},
        {0, "<?xml", "an XML file, not a download"},
        {257, "ustar", "a tar archive: unpack it, or convert the checkpoint"},
        {0, "GGUF", "a GGUF file: use the .safetensors or .ckpt instead"},
        {0, "\x89HDF", "an HDF5 file (Keras, TensorFlow)"},
        {0, "\x93NUMPY", "a NumPy array"},
        {0, "\x89PNG", "a PNG picture"},
        {0, "\xff\xd8\xff", "a JPEG picture"},
        {0, "\x1f\x8b", "compressed by gzip: unpack it"},
        {0, "\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"},
        {0,
         "\xfd"
         "7zXZ",
         "compressed by xz: unpack it"},
        {0, "BZh", "compressed by bzip2: unpack it"},
        {0, "7z\xbc\xaf", "a 7z archive: unpack it"},
        {0, "Rar!", "a RAR archive: unpack it"},
        {0,
         "\x7f"
         "ELF",
         "a program"},
        {4, "TFL3", "a TensorFlow Lite model"},
        {0, "\x80", "a Python pickle that PyTorch did not write"},
        {0, "{", "a JSON file (an index or a configuration)"},
    };
    size_t k;

    for (k = 0; k < sizeof known / sizeof *known; k++)
        if (starts(w, known[k].at, known[k].magic, strlen(known[k].magic)))
            return known[k].what;
    /* ONNX: protobuf field 1 (ir_version), then field 2, the producer */
    if (starts(w, 0, "\x08", 1) && starts(w, 2, "\x12", 1))
        return "an ONNX model: use the checkpoint it was made from";
    return NULL;
}

static int read_any(struct mp_weights *w, struct mp_error *err)
{
    const char *suffix = strrchr(w->path, '.'), *what;

    if (starts(w, 0, "PK\3\4", 4) || starts(w, 0, "PK\5\6", 4)) {
        w->format = "pytorch-zip";
        return mp_weights_read_zip(w, err);
    }
    if (mp_weights_is_legacy(w->file, w->size)) {
        w->format = "pytorch-legacy";
        return mp_weights_read_legacy(w, err);
    }
    /* before the hints: the first byte of a header's length may be any */
    if (starts(w, 8, "{", 1) && mp_le(w->file, 8) <= w->size) {
        w->format = "safetensors";
        return mp_weights_read_safetensors(w, err);
    }
    what = wrong_file(w);
    if (what)
        return mp_fail(err, MP_EFORMAT, "this is %s", what);
    if (starts(w, 8, "{", 1) || (suffix && !strcmp(suffix, ".safetensors"))) {
        w->format = "safetensors";
        return mp_weights_read_safetensors(w, err);
    }
    return mp_fail(err, MP_EFORMAT,
                   "neither a safetensors nor a PyTorch file (%zu bytes)",
                   w->size);
}

static int by_name(const void *a, const void *b)
{
    const struct mp_weight_info *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static int sort_names(struct mp_weights *w, struct mp_error *err)
{
    size_t i;

    w->sorted = malloc((w->count + 1) * sizeof *w->sorted);
    if (!w->sorted)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (i = 0; i < w->count; i++)
        w->sorted[i] = &w->info[i];
    qsort(w->sorted, w->count, sizeof *w->sorted, by_name);
    for (i = 1; i < w->count; i++)
        if (!strcmp(w->sorted[i - 1]->name, w->sorted[i]->name))
            return mp_fail(err, MP_EFORMAT, "two tensors are named %s",
                           w->sorted[i]->name);
    return 0;
}

static int open_file(struct mp_weights *w, struct mp_error *err)
{
    struct mp_error why = {0};
    int rc = mp_mapping_open(&w->mapping, w->path, err), changed;

    if (rc)
        return rc;
    w->file = mp_mapping_at(w->mapping, &w->size);
    rc = read_any(w, &why);
    changed = mp_mapping_check(w->mapping, err);
    if (rc && !changed)
        mp_fail(err, rc, "%s", why.text);
    return changed ? changed : rc;
}

static int is_folder(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

static int open_with(struct mp_weights **out, const char *path,
                     int (*read)(struct mp_weights *, struct mp_error *),
                     struct mp_error *err)
{
    struct mp_weights *w = calloc(1, sizeof *w);
    int rc;

    *out = NULL;
    if (!w || !(w->path = copy(path, strlen(path)))) {
        mp_weights_close(w);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    rc = read(w, err);
    if (!rc)
        rc = sort_names(w, err);
    if (rc) {
        mp_weights_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

int mp_weights_open_file(struct mp_weights **out, const char *path,
                         struct mp_error *err)
{
    int rc = open_with(out, path, open_file, err);

    return rc ? mp_fail_in(err, "%s", path), rc : 0;
}

int mp_weights_open(struct mp_weights **out, const char *path,
                    struct mp_error *err)
{
    if (is_folder(path))
        return open_with(out, path, mp_weights_read_diffusers, err);
    return mp_weights_open_file(out, path, err);
}

void mp_weights_close(struct mp_weights *w)
{
    size_t i;

    if (!w)
        return;
    mp_weights_close(w->part[0]);
    mp_weights_close(w->part[1]);
    mp_mapping_drop(w->mapping);
    for (i = 0; i < w->count; i++)
        free((char *)w->info[i].name);
    for (i = 0; i < w->notes; i++) {
        free(w->note[i].key);
        free(w->note[i].value);
    }
    free(w->note);
    free(w->info);
    free(w->sorted);
    free(w->path);
    free(w);
}

/* ---- asking ---- */

size_t mp_weights_count(const struct mp_weights *w)
{
    return w->count;
}

const struct mp_weight_info *mp_weights_at(const struct mp_weights *w, size_t i)
{
    return i < w->count ? &w->info[i] : NULL;
}

const struct mp_weight_info *mp_weights_find(const struct mp_weights *w,
                                             const char *name)
{
    const struct mp_weight_info key = {.name = name}, *k = &key;
    const struct mp_weight_info **hit;

    hit = bsearch(&k, w->sorted, w->count, sizeof *w->sorted, by_name);
    return hit ? *hit : NULL;
}

const char *mp_weights_format(const struct mp_weights *w)
{
    return w->format;
}

const char *mp_weights_path(const struct mp_weights *w)
{
    return w->path;
}

uint64_t mp_weights_bytes(const struct mp_weights *w)
{
    if (w->file)
        return w->size;
    return (uint64_t)w->part[0]->size + w->part[1]->size;
}

int mp_weights_meta(const struct mp_weights *w, size_t i, const char **key,
                    const char **value)
{
    if (i >= w->notes)
        return 0;
    *key = w->note[i].key;
    *value = w->note[i].value;
    return 1;
}

void mp_weight_forget(const struct mp_weight_info *i)
{
    size_t n = 1;
    int k;

    if (!i->count)
        return;
    for (k = 0; k < i->ndim; k++)
        n += (size_t)((i->dim[k] - 1) * i->stride[k]);
    mp_mapping_forget(i->data, n * mp_dtype_size(i->dtype));
}

void mp_weights_fetch(const struct mp_weights *w)
{
    if (w->mapping)
        mp_mapping_fetch(w->mapping);
    for (int i = 0; i < 2 && w->part[i]; i++)
        mp_weights_fetch(w->part[i]);
}

int mp_weights_check(const struct mp_weights *w, struct mp_error *err)
{
    int rc = w->mapping ? mp_mapping_check(w->mapping, err) : 0;

    for (int i = 0; i < 2 && !rc && w->part[i]; i++)
        rc = mp_weights_check(w->part[i], err);
    return rc;
}

int mp_weights_are_held(const struct mp_weights *w)
{
    return (w->mapping && mp_mapping_users(w->mapping) > 1) ||
           (w->part[0] && mp_weights_are_held(w->part[0])) ||
           (w->part[1] && mp_weights_are_held(w->part[1]));
}

/* ---- conversion ---- */

/* Exact, subnormals included; without branches, so that it vectorises. */
static float from_f16(uint16_t h)
{
    uint32_t magnitude = h & 0x7fffu, bits = magnitude << 13;
    float f;

    memcpy(&f, &bits, sizeof f);
    f *= 0x1p112f; /* the difference of the exponents' biases */
    memcpy(&bits, &f, sizeof f);
    bits |= magnitude >= 0x7c00 ? 0x7f800000u : 0;
    bits |= (uint32_t)(h & 0x8000u) << 16;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

/* n elements, step bytes apart and perhaps unaligned. The usual step is a loop
 * of its own, for the compiler to vectorise. */
#define ROW(NAME, TYPE, VALUE)                                                 \
    static void NAME(float *restrict out, const uint8_t *p, size_t step,       \
                     size_t n)                                                 \
    {                                                                          \
        size_t i;                                                              \
        TYPE x;                                                                \
                                                                               \
        if (step == sizeof x)                                                  \
            for (i = 0; i < n; i++) {                                          \
                memcpy(&x, p + i * sizeof x, sizeof x);                        \
                out[i] = VALUE;                                                \
            }                                                                  \
        else                                                                   \
            for (i = 0; i < n; i++) {                                          \
                memcpy(&x, p + i * step, sizeof x);                            \
                out[i] = VALUE;                                                \
            }                                                                  \
    }
ROW(row_f32, float, x)
ROW(row_f16, uint16_t, from_f16(x))
ROW(row_bf16, uint16_t, from_bf16(x))
ROW(row_i8, int8_t, (float)x)
ROW(row_i16, int16_t, (float)x)
ROW(row_i32, int32_t, (float)x)
ROW(row_i64, int64_t, (float)x)
ROW(row_u8, uint8_t, (float)x)
ROW(row_u16, uint16_t, (float)x)
ROW(row_bool, uint8_t, x ? 1.0f : 0.0f)
ROW(row_f64, double, (float)x)

typedef void row_fn(float *restrict, const uint8_t *, size_t, size_t);

static row_fn *row_of(enum mp_dtype t)
{
    static row_fn *const row[] = {
        [MP_F32] = row_f32, [MP_F16] = row_f16,  [MP_BF16] = row_bf16,
        [MP_F64] = row_f64, [MP_I8] = row_i8,    [MP_I16] = row_i16,
        [MP_I32] = row_i32, [MP_I64] = row_i64,  [MP_U8] = row_u8,
        [MP_U16] = row_u16, [MP_BOOL] = row_bool};

    return row[t];
}

void mp_weight_f32(const struct mp_weight_info *i, float *out)
{
    row_fn *row = row_of(i->dtype);
    size_t size = mp_dtype_size(i->dtype), from = 0, n, done;
    int64_t at[MP_WEIGHT_RANK] = {0};
    int last = i->ndim - 1, k;

    if (i->dense) {
        row(out, i->data, size, i->count);
        return;
    }
    n = (size_t)i->dim[last]; /* not dense: not empty and not a scalar */
    for (done = 0; done < i->count; done += n) {
        row(out + done, (const uint8_t *)i->data + from * size,
            (size_t)i->stride[last] * size, n);
        for (k = last - 1; k >= 0; k--) { /* the next row, as an odometer */
            from += (size_t)i->stride[k];
            if (++at[k] < i->dim[k])
                break;
            from -= (size_t)i->dim[k] * (size_t)i->stride[k];
            at[k] = 0;
        }
    }
}
