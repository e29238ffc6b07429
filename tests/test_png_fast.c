/* SPDX-License-Identifier: MIT */
/*
 * test_png_fast - the reader of PNGs of one channel against libpng: what it
 * takes has libpng's values, and what it leaves is left to libpng.
 */
#include <check.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include "png_fast.h"

#define ROOM 200000

struct file {
    uint8_t p[ROOM];
    size_t n, at;
};

static void put(png_structp png, png_bytep from, png_size_t n)
{
    struct file *f = png_get_io_ptr(png);

    ck_assert(f->n + n <= ROOM);
    memcpy(f->p + f->n, from, n);
    f->n += n;
}

static void flush(png_structp png)
{
    (void)png;
}

static void get(png_structp png, png_bytep to, png_size_t n)
{
    struct file *f = png_get_io_ptr(png);

    if (n > f->n - f->at)
        png_error(png, "truncated");
    memcpy(to, f->p + f->at, n);
    f->at += n;
}

static void quiet(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void stop(png_structp png, png_const_charp text)
{
    (void)text;
    longjmp(*(jmp_buf *)png_get_error_ptr(png), 1);
}

struct kind {
    int bits, color, interlace, filter;
    size_t idat; /* bytes of a chunk of data, about */
};

static void make(struct file *f, int32_t w, int32_t h, const struct kind *k)
{
    png_structp png =
        png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    uint8_t *px = malloc((size_t)(w * h) * 8);
    png_bytep row[512];

    for (int i = 0; i < w * h * 8; i++) /* a slope with noise */
        px[i] = (uint8_t)(i / 64 + rand() % 4);
    for (int32_t y = 0; y < h; y++)
        row[y] = px + y * w * 8;
    f->n = f->at = 0;
    png_set_write_fn(png, f, put, flush);
    png_set_IHDR(png, info, (png_uint_32)w, (png_uint_32)h, k->bits, k->color,
                 k->interlace, 0, 0);
    if (k->color == PNG_COLOR_TYPE_PALETTE) {
        static const png_color black[256];

        png_set_PLTE(png, info, black, 256);
    }
    png_set_filter(png, 0, k->filter);
    png_set_compression_buffer_size(png, k->idat);
    png_write_info(png, info);
    png_write_image(png, row);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    free(px);
}

/* By libpng, values in the host's order; 0 if it refuses. */
static int read_slowly(struct file *f, uint16_t *to, int32_t w, int32_t h,
                       int bits)
{
    jmp_buf jump;
    png_structp png =
        png_create_read_struct(PNG_LIBPNG_VER_STRING, &jump, stop, quiet);
    png_infop info = png_create_info_struct(png);
    static uint8_t row[2 * ROOM];
    volatile int good = 0;

    f->at = 8;
    if (!setjmp(jump)) {
        png_set_sig_bytes(png, 8);
        png_set_read_fn(png, f, get);
        png_read_info(png, info);
        ck_assert_uint_eq(png_get_image_width(png, info), w);
        ck_assert_uint_eq(png_get_image_height(png, info), h);
        ck_assert_uint_eq(png_get_bit_depth(png, info), bits);
        for (int32_t y = 0; y < h; y++) {
            png_read_row(png, row, NULL);
            for (int32_t x = 0; x < w; x++)
                *to++ =
                    (uint16_t)(bits == 8 ? row[x]
                                         : row[2 * x] << 8 | row[2 * x + 1]);
        }
        png_read_end(png, info);
        good = 1;
    }
    png_destroy_read_struct(&png, &info, NULL);
    return good;
}

/* What ours takes is what libpng reads. */
static int same(struct file *f, uint16_t *room)
{
    uint8_t *exact = malloc(f->n); /* so that a step too far is seen */
    uint16_t *map;
    int32_t w, h;
    int taken, bits;

    memcpy(exact, f->p, f->n);
    taken = mp_png_map(&map, &w, &h, &bits, exact, f->n);
    if (taken) {
        ck_assert(read_slowly(f, room, w, h, bits));
        ck_assert(!memcmp(map, room, (size_t)w * (size_t)h * 2));
        free(map);
    } else {
        ck_assert_ptr_null(map);
    }
    free(exact);
    return taken;
}

static struct file file;
static uint16_t room[ROOM];

/* What is taken: bits, colours. */
static const int ours[][2] = {{16, PNG_COLOR_TYPE_GRAY},
                              {8, PNG_COLOR_TYPE_GRAY},
                              {8, PNG_COLOR_TYPE_PALETTE}};

START_TEST(taken)
{
    static const int filter[] = {PNG_FILTER_NONE,  PNG_FILTER_SUB,
                                 PNG_FILTER_UP,    PNG_FILTER_AVG,
                                 PNG_FILTER_PAETH, PNG_ALL_FILTERS};
    static const int32_t size[][2] = {{1, 1},   {2, 1},   {1, 9},    {2, 4},
                                      {3, 5},   {4, 4},   {5, 8},    {6, 7},
                                      {7, 400}, {37, 21}, {240, 160}};
    const int *what = ours[_i / 6];

    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int chunk = 6; chunk < 10000; chunk *= 7) {
            struct kind k = {what[0], what[1], 0, filter[_i % 6],
                             (size_t)chunk};

            make(&file, size[i][0], size[i][1], &k);
            ck_assert_msg(same(&file, room), "%d bits, filter %d, %d x %d, %d",
                          what[0], _i % 6, size[i][0], size[i][1], chunk);
        }
}
END_TEST

START_TEST(left)
{
    static const struct kind kind[] = {
        {8, PNG_COLOR_TYPE_GRAY_ALPHA, 0, PNG_ALL_FILTERS, 8192},
        {8, PNG_COLOR_TYPE_RGB, 0, PNG_ALL_FILTERS, 8192},
        {4, PNG_COLOR_TYPE_GRAY, 0, PNG_ALL_FILTERS, 8192},
        {16, PNG_COLOR_TYPE_GRAY_ALPHA, 0, PNG_ALL_FILTERS, 8192},
        {16, PNG_COLOR_TYPE_RGB, 0, PNG_ALL_FILTERS, 8192},
        {16, PNG_COLOR_TYPE_GRAY, 1, PNG_ALL_FILTERS, 8192},
        {8, PNG_COLOR_TYPE_PALETTE, 1, PNG_ALL_FILTERS, 8192},
    };

    make(&file, 20, 30, &kind[_i]);
    ck_assert(!same(&file, room));
}
END_TEST

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* A picture of as many values as its head says, all CRCs right. */
static void make_right(struct file *f)
{
    size_t at = 8, length;
    const uint8_t *chunk;

    while ((chunk = mp_png_chunk(f->p, f->n, &at, &length))) {
        size_t from = (size_t)(chunk - f->p);
        uint32_t crc = 0xffffffff;

        for (size_t i = 0; i < length + 4; i++) {
            crc ^= chunk[i];
            for (int k = 0; k < 8; k++)
                crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
        }
        put32(f->p + from + length + 4, ~crc);
    }
}

/* A palette that is missing, late, twice, empty, or of a gray picture. */
START_TEST(palettes)
{
    struct kind k = {8, PNG_COLOR_TYPE_PALETTE, 0, PNG_ALL_FILTERS, 8192};
    const size_t size = 12 + 3 * 256, at = 33;
    static uint8_t palette[12 + 3 * 256];

    make(&file, 20, 30, &k);
    ck_assert(same(&file, room));
    ck_assert(!memcmp(file.p + at + 4, "PLTE", 4));
    memcpy(palette, file.p + at, size);
    memmove(file.p + at, file.p + at + size, file.n - at - size);
    file.n -= size;
    ck_assert(!same(&file, room));
    /* before IEND, which is of 12 bytes */
    memmove(file.p + file.n - 12 + size, file.p + file.n - 12, 12);
    memcpy(file.p + file.n - 12, palette, size);
    file.n += size;
    ck_assert(!same(&file, room));
    make(&file, 20, 30, &k);
    memmove(file.p + at + size, file.p + at, file.n - at);
    file.n += size;
    ck_assert(!same(&file, room));
    make(&file, 20, 30, &k);
    file.p[at + 2] = 0; /* of the length, 3 x 256 */
    memmove(file.p + at + 12, file.p + at + size, file.n - at - size);
    file.n -= size - 12;
    make_right(&file);
    ck_assert(!same(&file, room));
    k.color = PNG_COLOR_TYPE_GRAY;
    make(&file, 20, 30, &k);
    memmove(file.p + at + size, file.p + at, file.n - at);
    memcpy(file.p + at, palette, size);
    file.n += size;
    ck_assert(!same(&file, room));
}
END_TEST

/* Any byte wrong: with wrong sums, then with right ones. */
START_TEST(damaged)
{
    const int *what = ours[_i / 2];
    struct kind k = {what[0], what[1], 0, PNG_ALL_FILTERS, 100};
    static struct file whole;
    int kept = 0, colors;

    make(&whole, 24, 16, &k);
    for (int i = 0; i < 20000; i++) {
        size_t at = 8 + (size_t)rand() % (whole.n - 8);

        memcpy(&file, &whole, sizeof file);
        file.p[at] ^= (uint8_t)(1 + rand() % 255);
        if (i % 8 == 0)
            file.n = at;
        if (_i % 2)
            make_right(&file);
        if (mp_png_chunk(file.p, file.n, &(size_t){8}, &(size_t){0}) &&
            memcmp(file.p + 16, whole.p + 16, 8))
            continue; /* another size: no room to compare in */
        kept += same(&file, room);
    }
    /* damage is seen, but for the sums that make_right() made right again, and
     * colours */
    colors = what[1] == PNG_COLOR_TYPE_PALETTE ? 3 * 256 : 0;
    ck_assert_int_le(kept,
                     _i % 2 ? 20000 / 4 + 20000 * colors / (int)whole.n : 0);
    printf("damaged: %d of 20000 taken, all as by libpng\n", kept);
}
END_TEST

START_TEST(cut)
{
    struct kind k = {16, 0, 0, PNG_ALL_FILTERS, 100};
    size_t n;

    make(&file, 24, 16, &k);
    n = file.n;
    for (file.n = 8; file.n < n; file.n++)
        ck_assert(!same(&file, room));
    ck_assert(same(&file, room));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("png_fast");
    TCase *c = tcase_create("all");
    SRunner *r = srunner_create(s);
    int bad;

    tcase_add_loop_test(c, taken, 0, 18);
    tcase_add_loop_test(c, left, 0, 7);
    tcase_add_test(c, palettes);
    tcase_add_loop_test(c, damaged, 0, 6);
    tcase_add_test(c, cut);
    tcase_set_timeout(c, 60);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_ENV);
    bad = srunner_ntests_failed(r);
    srunner_free(r);
    return bad != 0;
}
