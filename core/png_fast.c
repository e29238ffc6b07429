/* SPDX-License-Identifier: MIT */
/*
 * png_fast.c - PNGs of one channel. Format: W3C, Portable Network Graphics,
 * third edition.
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

struct map {
    size_t w, h, value_bytes;
    int wants_palette; /* still */
    uint8_t *zip;      /* all IDAT together */
    size_t nzip;
};

static int is_head(struct map *m, const uint8_t *chunk, size_t length)
{
    /* bits; gray or palette; not interlaced */
    static const uint8_t kind[3][5] = {{8, 0}, {16, 0}, {8, 3}};

    if (memcmp(chunk, "IHDR", 4) || length != 13)
        return 0;
    for (size_t i = 0; i < 3; i++)
        if (!memcmp(chunk + 12, kind[i], sizeof kind[i]))
            m->value_bytes = kind[i][0] / 8;
    m->wants_palette = chunk[13] == 3;
    m->w = get32(chunk + 4);
    m->h = get32(chunk + 8);
    return m->value_bytes > 0 && m->w > 0 && m->h > 0 && m->w <= INT32_MAX &&
           m->h <= INT32_MAX &&
           (int64_t)m->w <= MP_IMAGE_MAX_PIXELS / (int64_t)m->h;
}

static int is_palette(struct map *m, const uint8_t *chunk, size_t length)
{
    if (!m->wants_palette || memcmp(chunk, "PLTE", 4) || length == 0 ||
        length > 3 * 256 || length % 3)
        return 0;
    m->wants_palette = 0;
    return 1;
}

/* IHDR, then anything that may be skipped, a palette if there must be one, all
 * IDAT in a row, and IEND. 1 with the data together, or 0. */
static int gather(struct map *m, const uint8_t *bytes, size_t n)
{
    size_t at = 8, length;
    const uint8_t *chunk, *before = NULL;
    int first = 1;

    while ((chunk = mp_png_chunk(bytes, n, &at, &length))) {
        int data = !memcmp(chunk, "IDAT", 4);

        if (libdeflate_crc32(0, chunk, length + 4) != get32(chunk + 4 + length))
            return 0;
        if (first ? !is_head(m, chunk, length)
                  : data && (m->wants_palette ||
                             (m->nzip && memcmp(before, "IDAT", 4))))
            return 0;
        if (!memcmp(chunk, "IEND", 4))
            return m->nzip > 0;
        if (data) {
            memcpy(m->zip + m->nzip, chunk + 4, length);
            m->nzip += length;
        } else if (!first && !(chunk[0] & 0x20) &&
                   !is_palette(m, chunk, length)) {
            return 0; /* a critical one */
        }
        first = 0;
        before = chunk;
    }
    return 0;
}

static int inflate(uint8_t *rows, size_t size, const struct map *m)
{
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    size_t used, made;
    int good =
        d &&
        libdeflate_zlib_decompress_ex(d, m->zip, m->nzip, rows, size, &used,
                                      &made) == LIBDEFLATE_SUCCESS &&
        used == m->nzip && made == size;

    libdeflate_free_decompressor(d);
    return good;
}

static void widen(uint16_t *restrict out, const uint8_t *restrict x, size_t n)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        out[i] = x[i];
}

static void swap(uint16_t *x, size_t n)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        x[i] = be16toh(x[i]);
}

/* Without filter bytes, and from most significant byte first. */
static void unpack(uint16_t *out, const uint8_t *rows, const struct map *m)
{
    size_t row = m->value_bytes * m->w;

    for (size_t y = 0; y < m->h; y++, out += m->w, rows += row + 1)
        if (m->value_bytes == 1) {
            widen(out, rows + 1, m->w);
        } else {
            memcpy(out, rows + 1, row);
            swap(out, m->w);
        }
}

static uint16_t *read_map(const struct map *m)
{
    size_t size = (m->value_bytes * m->w + 1) * m->h;
    /* no stream inflates to more than 1032 times its length */
    int possible = size / 1032 <= m->nzip;
    uint8_t *rows = possible ? malloc(size) : NULL;
    uint16_t *out = possible ? malloc(2 * m->w * m->h) : NULL;
    int good = rows && out && inflate(rows, size, m) &&
               mp_png_unfilter(rows, m->w, m->h, m->value_bytes);

    if (good) {
        unpack(out, rows, m);
    } else {
        free(out);
        out = NULL;
    }
    free(rows);
    return out;
}

int mp_png_map(uint16_t **out, int32_t *width, int32_t *height, int *bits,
               const uint8_t *bytes, size_t n)
{
    struct map m = {.zip = n > 8 ? malloc(n) : NULL};

    *out = m.zip && gather(&m, bytes, n) ? read_map(&m) : NULL;
    free(m.zip);
    *width = (int32_t)m.w;
    *height = (int32_t)m.h;
    *bits = 8 * (int)m.value_bytes;
    return *out != NULL;
}
