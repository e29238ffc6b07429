/* SPDX-License-Identifier: MIT */
/* npy.c - the reading of NumPy arrays. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define HEAD_MAX 4096 /* bytes; NumPy writes about 120 */

struct npy {
    char head[HEAD_MAX + 1]; /* its dictionary */
    const uint8_t *data;
    size_t size;
};

/* Versions 1.0 to 3.0 differ in the width of the length and in the encoding
 * of names of fields, of which a plain array has none. */
static int split(struct npy *a, const uint8_t *p, size_t n,
                 struct mp_error *err)
{
    size_t at, length;

    if (n < 12 || memcmp(p, "\x93NUMPY", 6) != 0 || p[6] < 1 || p[6] > 3)
        return mp_fail(err, MP_EFORMAT, "not a .npy file");
    at = p[6] == 1 ? 10 : 12;
    length = p[8] | (size_t)p[9] << 8;
    if (p[6] > 1)
        length |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    if (length > HEAD_MAX || length > n - at)
        return mp_fail(err, MP_EFORMAT, ".npy: the header is %s",
                       length > HEAD_MAX ? "too long" : "truncated");
    memcpy(a->head, p + at, length);
    a->head[length] = '\0';
    a->data = p + at + length;
    a->size = n - at - length;
    return 0;
}

/* What stands behind 'key': in the dictionary, "" if nothing does. */
static const char *entry(const struct npy *a, const char *key)
{
    const char *p = strstr(a->head, key);

    return p ? p + strlen(key) + strspn(p + strlen(key), " ") : "";
}

/* The byte order, '<' or '>', and the shape. */
static int understand(const struct npy *a, char *order, int64_t dim[2],
                      struct mp_error *err)
{
    const char *type = entry(a, "'descr':"), *c = entry(a, "'fortran_order':");
    const char *shape = entry(a, "'shape':");
    long long h = 0, w = 0;
    int end = -1;

    if (strncmp(type, "'<f4'", 5) != 0 && strncmp(type, "'>f4'", 5) != 0)
        return mp_fail(err, MP_EFORMAT,
                       ".npy: elements must be float32 ('<f4'), not %.*s",
                       (int)strcspn(type, ",}"), type);
    if (strncmp(c, "False", 5) != 0)
        return mp_fail(err, MP_EFORMAT, ".npy: must be in C order");
    sscanf(shape, "(%9lld ,%9lld )%n", &h, &w, &end);
    if (end < 0 || h < 1 || w < 1 || w > MP_IMAGE_MAX_PIXELS / h)
        return mp_fail(err, MP_EFORMAT,
                       ".npy: the shape must be (height, width), not %.*s",
                       (int)strcspn(shape, ")") + 1, shape);
    *order = type[1];
    dim[0] = h;
    dim[1] = w;
    return 0;
}

/* In place: the data of n elements moves to the front. */
static void settle(uint8_t *bytes, const uint8_t *data, size_t n, char order)
{
    int swap = (order == '>') != (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);

    memmove(bytes, data, 4 * n);
    for (size_t i = 0; swap && i < n; i++) {
        uint32_t v;

        memcpy(&v, bytes + 4 * i, sizeof v);
        v = __builtin_bswap32(v);
        memcpy(bytes + 4 * i, &v, sizeof v);
    }
}

static int decode(int64_t dim[2], uint8_t *bytes, size_t n,
                  struct mp_error *err)
{
    struct npy a;
    char order = '<';
    size_t count;
    int rc = split(&a, bytes, n, err);

    if (rc == 0)
        rc = understand(&a, &order, dim, err);
    if (rc != 0)
        return rc;
    count = (size_t)(dim[0] * dim[1]);
    if (a.size != 4 * count)
        return mp_fail(err, MP_EFORMAT,
                       ".npy: %zu bytes of data, not the %zu of %lld x %lld",
                       a.size, 4 * count, (long long)dim[0], (long long)dim[1]);
    settle(bytes, a.data, count, order);
    return 0;
}

int mp_npy_read(float **out, int32_t *width, int32_t *height, const char *path,
                struct mp_error *err)
{
    uint8_t *bytes = NULL;
    int64_t dim[2] = {0, 0};
    size_t n;
    int rc = mp_file_read(path, &bytes, &n, err);

    if (rc == 0)
        rc = decode(dim, bytes, n, err);
    *width = (int32_t)dim[1];
    *height = (int32_t)dim[0];
    *out = (float *)bytes;
    if (rc != 0) {
        free(bytes);
        *out = NULL;
    }
    return rc;
}
