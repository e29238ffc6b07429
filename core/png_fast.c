/* SPDX-License-Identifier: MIT */
/*
 * png_fast.c - gray PNGs of 16 bits. Format: W3C, Portable Network Graphics,
 * third edition; the filters are those of its section 9.2.
 */
#include "png_fast.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include <libdeflate.h>

#include "image.h"

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
           p[3];
}

const uint8_t *mp_png_chunk(const uint8_t *bytes, size_t n, size_t *at,
                            size_t *length)
{
    const uint8_t *p = bytes + *at;

    if (n - *at < 12)
        return NULL;
    *length = get32(p);
    if (*length > n - *at - 12)
        return NULL;
    *at += 12 + *length;
    return p + 4;
}

struct gray {
    size_t w, h;
    uint8_t *zip; /* all IDAT together */
    size_t nzip;
};

static int is_head(struct gray *g, const uint8_t *chunk, size_t length)
{
    static const uint8_t kind[5] = {16, 0, 0, 0, 0};

    if (memcmp(chunk, "IHDR", 4) || length != 13 ||
        memcmp(chunk + 12, kind, sizeof kind))
        return 0;
    g->w = get32(chunk + 4);
    g->h = get32(chunk + 8);
    return g->w > 0 && g->h > 0 && g->w <= INT32_MAX && g->h <= INT32_MAX &&
           (int64_t)g->w <= MP_IMAGE_MAX_PIXELS / (int64_t)g->h;
}

/* IHDR, then anything that may be skipped, with all IDAT in a row, then IEND.
 * 1 with the data together, or 0. */
static int gather(struct gray *g, const uint8_t *bytes, size_t n)
{
    size_t at = 8, length;
    const uint8_t *chunk, *before = NULL;
    int first = 1;

    while ((chunk = mp_png_chunk(bytes, n, &at, &length))) {
        int data = !memcmp(chunk, "IDAT", 4);

        if (libdeflate_crc32(0, chunk, length + 4) != get32(chunk + 4 + length))
            return 0;
        if (first ? !is_head(g, chunk, length)
                  : data && g->nzip && memcmp(before, "IDAT", 4))
            return 0;
        if (!memcmp(chunk, "IEND", 4))
            return g->nzip > 0;
        if (data) {
            memcpy(g->zip + g->nzip, chunk + 4, length);
            g->nzip += length;
        } else if (!first && !(chunk[0] & 0x20)) {
            return 0; /* a critical one */
        }
        first = 0;
        before = chunk;
    }
    return 0;
}

static uint8_t paeth(int a, int b, int c)
{
    int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);

    return (uint8_t)(pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
}

/* A row of n bytes, two to a value, in place; up: the row above, or zeros. The
 * first value has none to its left: zeros stand for it. */
static int unfilter(uint8_t *x, const uint8_t *up, size_t n, int filter)
{
    switch (filter) {
    case 0:
        break;
    case 1:
        for (size_t i = 2; i < n; i++)
            x[i] = (uint8_t)(x[i] + x[i - 2]);
        break;
    case 2:
        for (size_t i = 0; i < n; i++)
            x[i] = (uint8_t)(x[i] + up[i]);
        break;
    case 3:
        for (size_t i = 0; i < 2; i++)
            x[i] = (uint8_t)(x[i] + up[i] / 2);
        for (size_t i = 2; i < n; i++)
            x[i] = (uint8_t)(x[i] + (x[i - 2] + up[i]) / 2);
        break;
    case 4:
        for (size_t i = 0; i < 2; i++)
            x[i] = (uint8_t)(x[i] + up[i]);
        for (size_t i = 2; i < n; i++)
            x[i] = (uint8_t)(x[i] + paeth(x[i - 2], up[i], up[i - 2]));
        break;
    default:
        return 0;
    }
    return 1;
}

/* Rows of a filter byte and values, most significant byte first, in place. */
static int unpack(uint8_t *rows, size_t w, size_t h)
{
    uint8_t *zeros = calloc(w, 2), *up = zeros, *x = rows;
    int good = zeros != NULL;

    for (size_t y = 0; y < h && good; y++, x += 2 * w + 1) {
        good = unfilter(x + 1, up, 2 * w, x[0]);
        up = x + 1;
    }
    free(zeros);
    for (size_t y = 0; y < h && good; y++) {
        uint16_t *to = (uint16_t *)(void *)rows + y * w;

        memmove(to, rows + y * (2 * w + 1) + 1, 2 * w);
        for (size_t i = 0; i < w; i++)
            to[i] = be16toh(to[i]);
    }
    return good;
}

static int inflate(uint8_t *rows, size_t size, const struct gray *g)
{
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    size_t used, made;
    int good =
        d &&
        libdeflate_zlib_decompress_ex(d, g->zip, g->nzip, rows, size, &used,
                                      &made) == LIBDEFLATE_SUCCESS &&
        used == g->nzip && made == size;

    libdeflate_free_decompressor(d);
    return good;
}

int mp_png_gray16(uint16_t **out, int32_t *width, int32_t *height,
                  const uint8_t *bytes, size_t n)
{
    struct gray g = {.zip = n > 8 ? malloc(n) : NULL};
    uint8_t *rows = NULL;
    size_t size;
    int good = g.zip && gather(&g, bytes, n);

    size = (2 * g.w + 1) * g.h;
    /* no stream inflates to more than 1032 times its length */
    good = good && size / 1032 <= g.nzip;
    rows = good ? malloc(size) : NULL;
    good = rows && inflate(rows, size, &g) && unpack(rows, g.w, g.h);
    free(g.zip);
    if (!good) {
        free(rows);
        return 0;
    }
    *out = (uint16_t *)(void *)rows;
    *width = (int32_t)g.w;
    *height = (int32_t)g.h;
    return 1;
}
