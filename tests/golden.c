/* SPDX-License-Identifier: MIT */
#include "golden.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct golden {
    unsigned char *file;
    json_t *head;
    struct golden_tensor *tensor;
    size_t ntensor;
};

static const struct {
    const char *name;
    enum mp_dtype type;
    size_t size;
} dtypes[] = {
    {"F32", MP_F32, 4}, {"F64", MP_F64, 8},   {"U8", MP_U8, 1},
    {"U16", MP_U16, 2}, {"I64", MP_I64, 8},   {"I32", MP_I32, 4},
    {"F16", MP_F16, 2}, {"BF16", MP_BF16, 2}, {"BOOL", MP_BOOL, 1},
};

static int fill(struct golden_tensor *t, const char *name, json_t *entry,
                unsigned char *data, size_t ndata)
{
    json_t *shape = json_object_get(entry, "shape");
    json_t *at = json_object_get(entry, "data_offsets");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    size_t begin = (size_t)json_integer_value(json_array_get(at, 0));
    size_t end = (size_t)json_integer_value(json_array_get(at, 1));
    size_t size = 0;

    for (size_t i = 0; dtype && i < sizeof(dtypes) / sizeof(*dtypes); i++)
        if (strcmp(dtype, dtypes[i].name) == 0) {
            t->dtype = dtypes[i].type;
            size = dtypes[i].size;
        }
    if (size == 0 || json_array_size(shape) > GOLDEN_RANK)
        return -1;
    t->name = name;
    t->ndim = (int)json_array_size(shape);
    t->count = 1;
    for (int d = 0; d < t->ndim; d++) {
        t->dim[d] = json_integer_value(json_array_get(shape, (size_t)d));
        t->count *= (size_t)t->dim[d];
    }
    t->data = data + begin;
    return begin <= end && end <= ndata && end - begin == t->count * size ? 0
                                                                          : -1;
}

static unsigned char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    unsigned char *p = NULL;
    long end = -1;

    if (f && fseek(f, 0, SEEK_END) == 0 && (end = ftell(f)) >= 0)
        p = malloc((size_t)end + 1);
    if (p && (rewind(f), fread(p, 1, (size_t)end, f)) != (size_t)end) {
        free(p);
        p = NULL;
    }
    if (p)
        *n = (size_t)end;
    if (f)
        fclose(f);
    return p;
}

static int parse(struct golden *g, size_t n)
{
    uint64_t nhead = 0;
    const char *name;
    json_t *entry;

    if (n < 8)
        return -1;
    for (int i = 7; i >= 0; i--)
        nhead = nhead << 8 | g->file[i];
    if (nhead > n - 8)
        return -1;
    g->head = json_loadb((char *)g->file + 8, (size_t)nhead, 0, NULL);
    g->tensor = calloc(json_object_size(g->head) + 1, sizeof(*g->tensor));
    if (!g->head || !g->tensor)
        return -1;
    json_object_foreach(g->head, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        if (fill(&g->tensor[g->ntensor++], name, entry, g->file + 8 + nhead,
                 n - 8 - (size_t)nhead) < 0)
            return -1;
    }
    return 0;
}

struct golden *golden_open(const char *path)
{
    struct golden *g = calloc(1, sizeof(*g));
    size_t n = 0;

    if (g && path)
        g->file = slurp(path, &n);
    if (!g || !g->file || parse(g, n) < 0) {
        fprintf(stderr, "cannot read %s\n", path ? path : "(no path)");
        golden_free(g);
        return NULL;
    }
    return g;
}

void golden_free(struct golden *g)
{
    if (!g)
        return;
    json_decref(g->head);
    free(g->tensor);
    free(g->file);
    free(g);
}

const struct golden_tensor *golden_get(const struct golden *g, const char *name)
{
    for (size_t i = 0; i < g->ntensor; i++)
        if (strcmp(g->tensor[i].name, name) == 0)
            return &g->tensor[i];
    return NULL;
}

const struct golden_tensor *golden_at(const struct golden *g, size_t i)
{
    return i < g->ntensor ? &g->tensor[i] : NULL;
}

const char *golden_meta(const struct golden *g, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(g->head, "__metadata__"), key));
}

json_t *golden_json(const char *path)
{
    json_error_t e;
    json_t *j = path ? json_load_file(path, 0, &e) : NULL;

    if (!j)
        fprintf(stderr, "cannot read %s: %s\n", path ? path : "(no path)",
                path ? e.text : "");
    return j;
}

static const char *join(const char *folder, const char *fmt, va_list ap)
{
    static char ring[8][4096];
    static unsigned turn;
    char *text = ring[turn++ % 8];
    int n = snprintf(text, sizeof(ring[0]), "%s/", folder);

    if (n > 0 && (size_t)n < sizeof(ring[0]))
        vsnprintf(text + n, sizeof(ring[0]) - (size_t)n, fmt, ap);
    return text;
}

const char *golden_path(const char *fmt, ...)
{
    const char *src = getenv("srcdir");
    char folder[2048];
    va_list ap;

    snprintf(folder, sizeof(folder), "%s/tests/golden", src ? src : ".");
    va_start(ap, fmt);
    const char *path = join(folder, fmt, ap);
    va_end(ap);
    return path;
}

const char *shared_path(const char *fmt, ...)
{
    const char *folder = getenv("MPIPE_SHARED");
    va_list ap;

    if (!folder || !*folder)
        return NULL;
    va_start(ap, fmt);
    const char *path = join(folder, fmt, ap);
    va_end(ap);
    return path;
}

double golden_value(const void *data, enum mp_dtype type, size_t i)
{
    switch (type) {
    case MP_F32:
        return ((const float *)data)[i];
    case MP_F64:
        return ((const double *)data)[i];
    case MP_U8:
    case MP_BOOL:
        return ((const uint8_t *)data)[i];
    case MP_U16:
        return ((const uint16_t *)data)[i];
    case MP_I32:
        return ((const int32_t *)data)[i];
    case MP_I64:
        return (double)((const int64_t *)data)[i];
    default:
        return NAN;
    }
}

static double gap(double got, double want)
{
    if (got == want || (isnan(got) && isnan(want)))
        return 0;
    return fabs(got - want);
}

double rel_l2(const float *got, const void *want, enum mp_dtype type, size_t n)
{
    double err = 0, norm = 0;

    for (size_t i = 0; i < n; i++) {
        double w = golden_value(want, type, i), d = gap(got[i], w);

        err += d * d;
        if (isfinite(w))
            norm += w * w;
    }
    return sqrt(err) / (norm > 0 ? sqrt(norm) : 1);
}

double max_abs(const float *got, const void *want, enum mp_dtype type, size_t n)
{
    double most = 0;

    for (size_t i = 0; i < n; i++) {
        double d = gap(got[i], golden_value(want, type, i));

        if (!(d <= most)) /* also NaN, which then stays */
            most = isnan(most) ? most : d;
    }
    return most;
}

int near_enough(const float *got, const void *want, enum mp_dtype type,
                size_t n, double abs, double rel)
{
    for (size_t i = 0; i < n; i++) {
        double w = golden_value(want, type, i);

        if (!(gap(got[i], w) <= abs + (isfinite(w) ? rel * fabs(w) : 0))) {
            fprintf(stderr, "[%zu] is %.9g, should be %.9g\n", i, got[i], w);
            return 0;
        }
    }
    return 1;
}

/* ---- time ---- */

#define USUAL 0.1 /* seconds that this takes, built with -O2 */

double slowness(void)
{
    static volatile uint32_t table[4096];
    struct timespec from, to;
    uint32_t x = 1;
    double took;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (int i = 0; i < 40000000; i++) {
        x = x * 1664525 + 1013904223;
        table[x >> 20] += x;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    took = (double)(to.tv_sec - from.tv_sec) +
           1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    return took > USUAL ? took / USUAL : 1;
}
