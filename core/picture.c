/* SPDX-License-Identifier: MIT */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <png.h>

#include <jpeglib.h>
#include <jerror.h>

#include "png_fast.h"

#define MAX_FILE_BYTES ((off_t)1 << 30)
#define MAX_SCANS      100 /* of a progressive JPEG; encoders write about ten */

static int check_size(int64_t w, int64_t h, struct mp_error *err)
{
    if (w < 1 || h < 1)
        return mp_fail(err, MP_EFORMAT, "the picture is empty");
    if (w > MP_IMAGE_MAX_PIXELS / h)
        return mp_fail(err, MP_EFORMAT,
                       "%lld x %lld pixels are more than the limit of %lld",
                       (long long)w, (long long)h,
                       (long long)MP_IMAGE_MAX_PIXELS);
    return 0;
}

static void *alloc_pixels(int64_t w, int64_t h, size_t each,
                          struct mp_error *err)
{
    void *p = malloc((size_t)w * (size_t)h * each);

    if (!p)
        mp_fail(err, MP_ENOMEM, "out of memory for %lld x %lld pixels",
                (long long)w, (long long)h);
    return p;
}

void mp_picture_free(struct mp_picture *p)
{
    free(p->rgb);
    *p = (struct mp_picture){0};
}

/*
 * Orientation
 */

struct tiff {
    const uint8_t *p;
    size_t n;
    int big; /* most significant byte first */
};

static uint32_t tiff_get(const struct tiff *t, size_t at, int bytes)
{
    uint32_t v = 0;

    for (int i = 0; i < bytes; i++)
        v = v << 8 | t->p[at + (size_t)(t->big ? i : bytes - 1 - i)];
    return v;
}

/* Tag 0x0112 of the first directory of an EXIF block; 1 (upright) if there is
 * none or it makes no sense. Other directories are not followed. */
static int exif_orientation(const uint8_t *p, size_t n)
{
    struct tiff t = {p, n, n > 0 && p[0] == 'M'};
    size_t at, count;

    if (n < 8 || (memcmp(p, "II*", 4) != 0 && memcmp(p, "MM\0*", 4) != 0))
        return 1;
    at = tiff_get(&t, 4, 4);
    if (at > n - 2)
        return 1;
    count = tiff_get(&t, at, 2);
    for (at += 2; count > 0 && n - at >= 12; count--, at += 12)
        if (tiff_get(&t, at, 2) == 0x0112) {
            uint32_t v = tiff_get(&t, at + 8, 2);

            return v >= 1 && v <= 8 ? (int)v : 1;
        }
    return 1;
}

static int orient(struct mp_picture *p, int orientation, struct mp_error *err)
{
    int swap = orientation >= 5;
    int flip_x = strchr("\2\3\7\10", orientation) != NULL;
    int flip_y = strchr("\3\4\6\7", orientation) != NULL;
    int64_t w = p->width, h = p->height, i = 0;
    /* how far to go in the stored picture for a step right or down in ours */
    int64_t step_x = flip_x ? -1 : 1, step_y = flip_y ? -w : w;
    int64_t right = swap ? step_y : step_x, down = swap ? step_x : step_y;
    int64_t from = (flip_x ? w - 1 : 0) + (flip_y ? (h - 1) * w : 0);
    uint8_t *rgb;

    if (orientation == 1)
        return 0;
    rgb = alloc_pixels(w, h, 3, err);
    if (!rgb)
        return MP_ENOMEM;
    p->width = (int32_t)(swap ? h : w);
    p->height = (int32_t)(swap ? w : h);
    for (int64_t y = 0; y < p->height; y++)
        for (int64_t x = 0; x < p->width; x++, i++)
            memcpy(rgb + 3 * i, p->rgb + 3 * (from + x * right + y * down), 3);
    free(p->rgb);
    p->rgb = rgb;
    return 0;
}

/*
 * PNG
 */

struct png_job {
    png_structp png;
    png_infop info;
    jmp_buf jump;
    char text[160]; /* why it failed */
    const uint8_t *at;
    size_t left;
    int want_map; /* stored values rather than colours */

    png_uint_32 width, height;
    int bits, type;

    uint8_t *row; /* where row 0 goes */
    size_t row_bytes, stride;
};

static void png_stop(png_structp png, png_const_charp text)
{
    struct png_job *j = png_get_error_ptr(png);

    snprintf(j->text, sizeof(j->text), "%s", text);
    longjmp(j->jump, 1);
}

static void png_ignore(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void png_take(png_structp png, png_bytep out, png_size_t n)
{
    struct png_job *j = png_get_io_ptr(png);

    if (n > j->left)
        png_error(png, "the file is truncated");
    memcpy(out, j->at, n);
    j->at += n;
    j->left -= n;
}

static void png_head(struct png_job *j)
{
    png_set_read_fn(j->png, j, png_take);
    png_set_user_limits(j->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    /* Everything but the picture and its orientation is skipped without being
     * inflated or kept. */
    png_set_keep_unknown_chunks(j->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(j->png, PNG_HANDLE_CHUNK_NEVER,
                                (png_const_bytep) "tRNS", 1);
    png_set_keep_unknown_chunks(j->png, PNG_HANDLE_CHUNK_AS_DEFAULT,
                                (png_const_bytep) "eXIf", 1);
    png_read_info(j->png, j->info);
    png_get_IHDR(j->png, j->info, &j->width, &j->height, &j->bits, &j->type,
                 NULL, NULL, NULL);
}

static void png_body(struct png_job *j)
{
    int passes = png_set_interlace_handling(j->png);

    png_set_packing(j->png);
    if (!j->want_map) {
        png_set_strip_16(j->png);
        png_set_strip_alpha(j->png);
        if (j->type == PNG_COLOR_TYPE_GRAY)
            png_set_expand_gray_1_2_4_to_8(j->png);
    } else if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) {
        png_set_swap(j->png);
    }
    png_read_update_info(j->png, j->info);
    if (png_get_rowbytes(j->png, j->info) != j->row_bytes)
        png_error(j->png, "rows of an unexpected size");
    for (; passes > 0; passes--)
        for (png_uint_32 y = 0; y < j->height; y++)
            png_read_row(j->png, j->row + y * j->stride, NULL);
    png_read_end(j->png, j->info);
}

/* libpng reports errors by a jump; it ends here, in a function that has no
 * variables to lose. */
static int png_try(struct png_job *j, void (*step)(struct png_job *),
                   struct mp_error *err)
{
    if (setjmp(j->jump))
        return mp_fail(err, MP_EFORMAT, "PNG: %s", j->text);
    step(j);
    return 0;
}

static int png_open(struct png_job *j, struct mp_error *err)
{
    int rc;

    j->png =
        png_create_read_struct(PNG_LIBPNG_VER_STRING, j, png_stop, png_ignore);
    j->info = j->png ? png_create_info_struct(j->png) : NULL;
    if (!j->info)
        return mp_fail(err, MP_ENOMEM, "out of memory for libpng");
    rc = png_try(j, png_head, err);
    return rc < 0 ? rc : check_size(j->width, j->height, err);
}

/* One byte per pixel at the end of each row becomes three from its start. */
static int look_up(struct mp_picture *p, const png_color *color, int ncolor,
                   struct mp_error *err)
{
    size_t w = (size_t)p->width;

    for (size_t y = 0; y < (size_t)p->height; y++) {
        uint8_t *rgb = p->rgb + y * 3 * w;
        const uint8_t *from = rgb + 2 * w;

        for (size_t x = 0; x < w; x++) {
            int v = from[x];

            if (v >= ncolor)
                return mp_fail(err, MP_EFORMAT,
                               "PNG: index %d in a palette of %d colours", v,
                               ncolor);
            rgb[3 * x] = color[v].red;
            rgb[3 * x + 1] = color[v].green;
            rgb[3 * x + 2] = color[v].blue;
        }
    }
    return 0;
}

static int png_colors(const struct png_job *j, struct mp_picture *p,
                      struct mp_error *err)
{
    png_color gray[256], *color = gray;
    int ncolor = 256;

    if (j->type & PNG_COLOR_MASK_COLOR && j->type != PNG_COLOR_TYPE_PALETTE)
        return 0;
    for (int i = 0; i < 256; i++)
        gray[i] = (png_color){(png_byte)i, (png_byte)i, (png_byte)i};
    if (j->type == PNG_COLOR_TYPE_PALETTE)
        png_get_PLTE(j->png, j->info, &color, &ncolor);
    return look_up(p, color, ncolor, err);
}

static int decode_png(struct mp_picture *out, const void *bytes, size_t n,
                      struct mp_error *err)
{
    struct png_job j = {.at = bytes, .left = n};
    struct mp_picture p = {0};
    png_bytep exif = NULL;
    png_uint_32 nexif = 0;
    int wide, rc = png_open(&j, err);

    if (rc < 0)
        goto out;
    p.width = (int32_t)j.width;
    p.height = (int32_t)j.height;
    p.rgb = alloc_pixels(p.width, p.height, 3, err);
    rc = p.rgb ? 0 : MP_ENOMEM;
    if (rc < 0)
        goto out;
    wide = j.type == PNG_COLOR_TYPE_RGB || j.type == PNG_COLOR_TYPE_RGB_ALPHA;
    j.stride = 3 * (size_t)j.width;
    j.row_bytes = wide ? j.stride : j.width;
    j.row = p.rgb + (wide ? 0 : 2 * (size_t)j.width);
    rc = png_try(&j, png_body, err);
    if (rc == 0)
        rc = png_colors(&j, &p, err);
    if (rc == 0 && png_get_eXIf_1(j.png, j.info, &nexif, &exif))
        rc = orient(&p, exif_orientation(exif, nexif), err);
    if (rc == 0) {
        *out = p;
        p.rgb = NULL;
    }
out:
    free(p.rgb);
    png_destroy_read_struct(&j.png, &j.info, NULL);
    return rc;
}

static int decode_map(uint16_t **out, struct png_job *j, struct mp_error *err)
{
    size_t w, h;
    uint16_t *map;
    int rc = png_open(j, err);

    if (rc < 0)
        return rc;
    if (j->type != PNG_COLOR_TYPE_GRAY && j->type != PNG_COLOR_TYPE_PALETTE)
        return mp_fail(err, MP_EFORMAT,
                       "PNG: one channel is wanted, not colour or alpha");
    w = j->width;
    h = j->height;
    map = alloc_pixels((int64_t)w, (int64_t)h, 2, err);
    if (!map)
        return MP_ENOMEM;
    j->stride = 2 * w;
    j->row_bytes = j->bits == 16 ? 2 * w : w;
    j->row = (uint8_t *)map + (j->bits == 16 ? 0 : w);
    rc = png_try(j, png_body, err);
    if (rc < 0) {
        free(map);
        return rc;
    }
    /* bytes at the end of each row are widened from its start */
    for (size_t y = 0; y < h && j->bits < 16; y++)
        for (size_t x = 0; x < w; x++)
            map[y * w + x] = j->row[y * j->stride + x];
    *out = map;
    return 0;
}

/*
 * JPEG
 */

struct jpeg_job {
    struct jpeg_decompress_struct c;
    struct jpeg_error_mgr mgr;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    const uint8_t *bytes;
    size_t n;
    uint8_t *rgb;
};

static void jpeg_stop(j_common_ptr c)
{
    struct jpeg_job *j = c->client_data;

    longjmp(j->jump, 1);
}

/* libjpeg goes on with gray or garbage where data is missing or makes no
 * sense, and calls it a warning (level -1). */
static void jpeg_message(j_common_ptr c, int level)
{
    switch (c->err->msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_ICC:
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_JFIF_MAJOR:
    case JWRN_NOT_SEQUENTIAL: /* some encoders leave zeroes there */
        return;
    default:
        if (level < 0)
            jpeg_stop(c);
    }
}

static void jpeg_progress(j_common_ptr c)
{
    if (((j_decompress_ptr)c)->input_scan_number > MAX_SCANS) {
        c->err->msg_code = 0;
        jpeg_stop(c);
    }
}

static void jpeg_head(struct jpeg_job *j)
{
    jpeg_create_decompress(&j->c);
    j->progress.progress_monitor = jpeg_progress;
    j->c.progress = &j->progress;
    jpeg_mem_src(&j->c, j->bytes, j->n);
    jpeg_save_markers(&j->c, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&j->c, TRUE);
}

static void jpeg_body(struct jpeg_job *j)
{
    j->c.out_color_space = JCS_RGB;
    j->c.dct_method = JDCT_ISLOW;
    j->c.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&j->c);
    while (j->c.output_scanline < j->c.output_height) {
        JSAMPROW row =
            j->rgb + 3 * (size_t)j->c.output_width * j->c.output_scanline;

        jpeg_read_scanlines(&j->c, &row, 1);
    }
    jpeg_finish_decompress(&j->c);
}

static int jpeg_fail(struct jpeg_job *j, struct mp_error *err)
{
    char text[JMSG_LENGTH_MAX];

    switch (j->mgr.msg_code) {
    case 0:
        return mp_fail(err, MP_EFORMAT, "JPEG: more than %d scans", MAX_SCANS);
    case JWRN_JPEG_EOF:
        return mp_fail(err, MP_EFORMAT, "JPEG: the file is truncated");
    case JERR_BAD_PRECISION:
        return mp_fail(err, MP_ENOTSUP, "JPEG: %d bits per sample",
                       j->c.data_precision);
    }
    j->mgr.format_message((j_common_ptr)&j->c, text);
    return mp_fail(
        err, j->mgr.msg_code == JERR_OUT_OF_MEMORY ? MP_ENOMEM : MP_EFORMAT,
        "JPEG: %s", text);
}

/* As png_try. */
static int jpeg_try(struct jpeg_job *j, void (*step)(struct jpeg_job *),
                    struct mp_error *err)
{
    if (setjmp(j->jump))
        return jpeg_fail(j, err);
    step(j);
    return 0;
}

static int jpeg_check(const struct jpeg_decompress_struct *c,
                      struct mp_error *err)
{
    if (c->data_precision != 8)
        return mp_fail(err, MP_ENOTSUP, "JPEG: %d bits per sample",
                       c->data_precision);
    switch (c->jpeg_color_space) {
    case JCS_GRAYSCALE:
    case JCS_YCbCr:
    case JCS_RGB:
        return check_size(c->image_width, c->image_height, err);
    case JCS_CMYK:
    case JCS_YCCK:
        return mp_fail(err, MP_ENOTSUP, "JPEG: CMYK is not supported");
    default:
        return mp_fail(err, MP_ENOTSUP, "JPEG: %d colour components",
                       c->num_components);
    }
}

static int jpeg_orientation(const struct jpeg_decompress_struct *c)
{
    for (jpeg_saved_marker_ptr m = c->marker_list; m; m = m->next)
        if (m->data_length > 6 && memcmp(m->data, "Exif\0", 6) == 0)
            return exif_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

static int decode_jpeg(struct mp_picture *out, const void *bytes, size_t n,
                       struct mp_error *err)
{
    struct jpeg_job j = {.bytes = bytes, .n = n};
    struct mp_picture p = {0};
    int rc, orientation;

    j.c.err = jpeg_std_error(&j.mgr);
    j.c.client_data = &j;
    j.mgr.error_exit = jpeg_stop;
    j.mgr.emit_message = jpeg_message;
    rc = jpeg_try(&j, jpeg_head, err);
    if (rc == 0)
        rc = jpeg_check(&j.c, err);
    if (rc < 0)
        goto out;
    orientation = jpeg_orientation(&j.c); /* gone when decoding is done */
    p.width = (int32_t)j.c.image_width;
    p.height = (int32_t)j.c.image_height;
    p.rgb = j.rgb = alloc_pixels(p.width, p.height, 3, err);
    rc = p.rgb ? jpeg_try(&j, jpeg_body, err) : MP_ENOMEM;
    if (rc == 0)
        rc = orient(&p, orientation, err);
    if (rc == 0) {
        *out = p;
        p.rgb = NULL;
    }
out:
    free(p.rgb);
    jpeg_destroy_decompress(&j.c);
    return rc;
}

/*
 * Files
 */

static int is_png(const void *bytes, size_t n)
{
    return n >= 8 && memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0;
}

static int unknown_format(const void *bytes, size_t n, struct mp_error *err)
{
    static const struct {
        size_t at;
        const char *magic, *name;
    } known[] = {
        {0, "GIF8", "GIF"}, {8, "WEBP", "WebP"},
        {0, "BM", "BMP"},   {0, "II*", "TIFF"},
        {0, "MM", "TIFF"},  {4, "ftyp", "HEIF or AVIF"},
        {0, "P5", "PGM"},   {0, "P6", "PPM"},
        {0, "%PDF", "PDF"}, {0, "\xff\n", "JPEG XL"},
    };

    if (n == 0)
        return mp_fail(err, MP_EFORMAT, "the file is empty");
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
        size_t len = strlen(known[i].magic);

        if (n >= known[i].at + len &&
            memcmp((const uint8_t *)bytes + known[i].at, known[i].magic, len) ==
                0)
            return mp_fail(err, MP_ENOTSUP,
                           "%s is not supported, only PNG "
                           "and JPEG are",
                           known[i].name);
    }
    return mp_fail(err, MP_EFORMAT, "neither PNG nor JPEG");
}

int mp_picture_decode(struct mp_picture *out, const void *bytes, size_t n,
                      struct mp_error *err)
{
    *out = (struct mp_picture){0};
    if (is_png(bytes, n))
        return decode_png(out, bytes, n, err);
    if (n >= 3 && memcmp(bytes, "\xff\xd8\xff", 3) == 0)
        return decode_jpeg(out, bytes, n, err);
    return unknown_format(bytes, n, err);
}

static int read_open(int fd, uint8_t **out, size_t *n, struct mp_error *err)
{
    struct stat st;
    uint8_t *p;
    size_t have = 0;
    ssize_t got = 0;

    if (fstat(fd, &st) < 0)
        return mp_fail(err, MP_EIO, "%s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return mp_fail(err, MP_EIO,
                       S_ISDIR(st.st_mode) ? "it is a folder"
                                           : "not a regular file");
    if (st.st_size > MAX_FILE_BYTES)
        return mp_fail(err, MP_EFORMAT, "the file is larger than 1 GiB");
    p = malloc((size_t)st.st_size + 1);
    if (!p)
        return mp_fail(err, MP_ENOMEM, "out of memory for the file");
    do {
        have += (size_t)got;
        got = read(fd, p + have, (size_t)st.st_size - have);
    } while (got > 0 || (got < 0 && errno == EINTR && (got = 0, 1)));
    if (got < 0) {
        free(p);
        return mp_fail(err, MP_EIO, "%s", strerror(errno));
    }
    *out = p;
    *n = have;
    return 0;
}

int mp_file_read(const char *path, uint8_t **out, size_t *n,
                 struct mp_error *err)
{
    /* not blocking: a FIFO without a writer must not hang a batch */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), rc;

    if (fd < 0)
        return mp_fail(err, MP_EIO, "%s", strerror(errno));
    rc = read_open(fd, out, n, err);
    close(fd);
    return rc;
}

int mp_picture_read(struct mp_picture *out, const char *path,
                    struct mp_error *err)
{
    uint8_t *bytes = NULL;
    size_t n;
    int rc;

    *out = (struct mp_picture){0};
    rc = mp_file_read(path, &bytes, &n, err);
    if (rc == 0)
        rc = mp_picture_decode(out, bytes, n, err);
    free(bytes);
    return rc;
}

int mp_map_read(uint16_t **out, int32_t *width, int32_t *height, int *bits,
                const char *path, struct mp_error *err)
{
    struct png_job j = {.want_map = 1};
    uint8_t *bytes = NULL;
    int rc;

    *out = NULL;
    rc = mp_file_read(path, &bytes, &j.left, err);
    if (rc < 0)
        return rc;
    j.at = bytes;
    if (!is_png(bytes, j.left)) {
        rc = mp_fail(err, MP_EFORMAT, "not a PNG");
    } else if (!mp_png_map(out, width, height, bits, bytes, j.left)) {
        rc = decode_map(out, &j, err);
        *width = (int32_t)j.width;
        *height = (int32_t)j.height;
        *bits = j.bits;
        png_destroy_read_struct(&j.png, &j.info, NULL);
    }
    free(bytes);
    return rc;
}

int mp_png_text(char *value, size_t size, const char *path, const char *key,
                struct mp_error *err)
{
    size_t n, at = 8, length, skip = strlen(key) + 1;
    uint8_t *bytes;
    const uint8_t *chunk;
    int found = 0, rc = mp_file_read(path, &bytes, &n, err);

    if (rc < 0)
        return rc;
    while (is_png(bytes, n) && !found &&
           (chunk = mp_png_chunk(bytes, n, &at, &length))) {
        found = memcmp(chunk, "tEXt", 4) == 0 && length >= skip &&
                length - skip < size && memcmp(chunk + 4, key, skip) == 0;
        if (found) {
            memcpy(value, chunk + 4 + skip, length - skip);
            value[length - skip] = '\0';
        }
    }
    free(bytes);
    return found;
}
