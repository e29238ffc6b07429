/* SPDX-License-Identifier: MIT */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <png.h>

#define MAX_TEMPS                                                              \
    10000 /* left in one folder by dead processes of our number                \
           */

/*
 * Files
 */

/* As much of a file name as leaves room for the rest of the temporary one,
 * without cutting a UTF-8 character. */
static int name_length(const char *name)
{
    size_t n = strlen(name);

    if (n > NAME_MAX - 40)
        for (n = NAME_MAX - 40; n > 0 && (name[n] & 0xc0) == 0x80;)
            n--;
    return (int)n;
}

int mp_file_open(struct mp_file *o, const char *path, struct mp_error *err)
{
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash + 1 - path) : 0, fd = -1;
    const char *name = path + folder;

    *o = (struct mp_file){.path = path};
    if (*name == '\0')
        return mp_fail(err, MP_EINVAL, "a file name is wanted, not \"%s\"",
                       path);
    for (int i = 0; fd < 0 && i < MAX_TEMPS; i++) {
        free(o->temp);
        if (asprintf(&o->temp, "%.*s.%.*s.%ld.%d.tmp", folder, path,
                     name_length(name), name, (long)getpid(), i) < 0) {
            o->temp = NULL;
            return mp_fail(err, MP_ENOMEM, "out of memory");
        }
        fd = open(o->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    o->f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (o->f)
        return 0;
    mp_fail(err, MP_EIO, "%s: %s", path, strerror(errno));
    if (fd >= 0) {
        close(fd);
        unlink(o->temp);
    }
    free(o->temp);
    return MP_EIO;
}

int mp_file_close(struct mp_file *o, int rc, struct mp_error *err)
{
    int bad = ferror(o->f), code = errno;

    if (fclose(o->f) != 0 && !bad) {
        bad = 1;
        code = errno;
    }
    if (rc == 0 && !bad && rename(o->temp, o->path) != 0) {
        bad = 1;
        code = errno;
    }
    if (rc == 0 && bad)
        rc = mp_fail(err, MP_EIO, "%s: %s", o->path, strerror(code));
    if (rc < 0)
        unlink(o->temp);
    free(o->temp);
    return rc;
}

int mp_file_write(const char *path, const void *bytes, size_t n,
                  struct mp_error *err)
{
    struct mp_file o;
    int rc = mp_file_open(&o, path, err);

    if (rc < 0)
        return rc;
    fwrite(bytes, 1, n, o.f);
    return mp_file_close(&o, 0, err);
}

int mp_file_parents(const char *path, struct mp_error *err)
{
    char *part = strdup(path);
    int rc = 0;

    if (!part)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (char *p = part; rc == 0 && (p = strchr(p, '/')); *p++ = '/') {
        struct stat st;

        *p = '\0';
        if (p == part || mkdir(part, 0777) == 0)
            continue;
        /* on the way down, EROFS and EACCES also mean "is there already" */
        int code = errno;

        if (stat(part, &st) != 0)
            rc = mp_fail(err, MP_EIO, "%s: %s", part, strerror(code));
        else if (!S_ISDIR(st.st_mode))
            rc = mp_fail(err, MP_EIO, "%s: %s", part, strerror(ENOTDIR));
    }
    free(part);
    return rc;
}

/*
 * NumPy
 */

int mp_npy_encode(FILE *f, enum mp_dtype t, int ndim, const int64_t *dim,
                  const void *data, struct mp_error *err)
{
    static const char *const descr[] = {
        [MP_F32] = "f4", [MP_U8] = "u1", [MP_U16] = "u2", [MP_I32] = "i4"};
    int big = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__, n = 10;
    unsigned char head[512] = "\x93NUMPY\1"; /* 8 x 21 digits fit */
    char *text = (char *)head;
    size_t count = 1, size = sizeof(head);

    if ((size_t)t >= sizeof(descr) / sizeof(*descr) || !descr[t] || ndim < 0 ||
        ndim > 8)
        return mp_fail(err, MP_EINVAL, "no .npy of %d dimensions of %s", ndim,
                       mp_dtype_name(t));
    n += snprintf(text + n, size - (size_t)n,
                  "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                  t == MP_U8 ? '|'
                  : big      ? '>'
                             : '<',
                  descr[t]);
    for (int i = 0; i < ndim; i++) {
        if (dim[i] < 0 || __builtin_mul_overflow(count, dim[i], &count))
            return mp_fail(err, MP_EINVAL, "wrong size of a .npy: %lld",
                           (long long)dim[i]);
        n += snprintf(text + n, size - (size_t)n, i ? ", %lld" : "%lld",
                      (long long)dim[i]);
    }
    n += snprintf(text + n, size - (size_t)n, ndim == 1 ? ",), }" : "), }");
    for (; n % 64 != 63; n++)
        text[n] = ' ';
    text[n++] = '\n';
    head[8] = (unsigned char)((n - 10) & 255);
    head[9] = (unsigned char)((n - 10) >> 8);

    if (fwrite(head, 1, (size_t)n, f) == (size_t)n)
        fwrite(data, mp_dtype_size(t), count, f);
    return 0;
}

int mp_npy_write(const char *path, enum mp_dtype t, int ndim,
                 const int64_t *dim, const void *data, struct mp_error *err)
{
    struct mp_file o;
    int rc = mp_file_open(&o, path, err);

    if (rc < 0)
        return rc;
    rc = mp_npy_encode(o.f, t, ndim, dim, data, err);
    return mp_file_close(&o, rc, err);
}

/*
 * PNG
 */

struct png_job {
    png_structp png;
    png_infop info;
    const struct mp_png *p;
    FILE *f;
    jmp_buf jump;
    char text[160]; /* why it failed */
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

static void png_put(png_structp png, png_bytep bytes, png_size_t n)
{
    struct png_job *j = png_get_io_ptr(png);

    if (fwrite(bytes, 1, n, j->f) != n)
        png_error(png, strerror(errno));
}

static void png_flushed(png_structp png)
{
    (void)png; /* at the end, by fclose */
}

static void put_texts(struct png_job *j)
{
    for (size_t i = 0; i < j->p->ntext; i++) {
        png_text t = {.compression = PNG_TEXT_COMPRESSION_NONE,
                      .key = (char *)j->p->text[i].key,
                      .text = (char *)j->p->text[i].value};

        t.text_length = strlen(t.text);
        png_set_text(j->png, j->info, &t, 1);
    }
}

static void png_all(struct png_job *j)
{
    const struct mp_png *p = j->p;
    const uint8_t *row = p->px;
    size_t stride =
        (size_t)p->width * (size_t)p->channels * (size_t)(p->bits / 8);

    png_set_write_fn(j->png, j, png_put, png_flushed);
    png_set_user_limits(j->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_IHDR(j->png, j->info, (png_uint_32)p->width, (png_uint_32)p->height,
                 p->bits,
                 p->palette         ? PNG_COLOR_TYPE_PALETTE
                 : p->channels == 3 ? PNG_COLOR_TYPE_RGB
                                    : PNG_COLOR_TYPE_GRAY,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    if (p->palette) /* png_color is three bytes */
        png_set_PLTE(j->png, j->info, (png_const_colorp)p->palette, p->ncolor);
    put_texts(j);
    png_set_compression_level(j->png, 6);
    /* Labels repeat exactly; colours and depth vary smoothly. One filter takes
     * two thirds of the time of a choice among five, for a tenth more bytes. */
    png_set_filter(j->png, PNG_FILTER_TYPE_BASE,
                   p->channels == 1 && p->bits == 8 ? PNG_FILTER_NONE
                                                    : PNG_FILTER_UP);
    png_write_info(j->png, j->info);
    if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
        png_set_swap(j->png);
    for (int32_t y = 0; y < p->height; y++)
        png_write_row(j->png, row + (size_t)y * stride);
    png_write_end(j->png, NULL);
}

/* libpng reports errors by a jump; it ends here, in a function that has no
 * variables to lose. */
static int png_try(struct png_job *j, struct mp_error *err)
{
    if (setjmp(j->jump))
        return mp_fail(err, MP_EIO, "%s", j->text);
    png_all(j);
    return 0;
}

static int png_check(const struct mp_png *p, struct mp_error *err)
{
    const uint8_t *v = p->px;
    size_t n = (size_t)p->width * (size_t)p->height;

    if (p->width < 1 || p->height < 1 || p->width > MP_IMAGE_MAX_PIXELS ||
        (p->channels != 1 && p->channels != 3) ||
        (p->bits != 8 && p->bits != 16))
        return mp_fail(err, MP_EINVAL, "no PNG of %d x %d x %d at %d bits",
                       p->width, p->height, p->channels, p->bits);
    if (!p->palette)
        return 0;
    if (p->channels != 1 || p->bits != 8 || p->ncolor < 1 || p->ncolor > 256)
        return mp_fail(err, MP_EINVAL,
                       "a palette of %d colours with %d x %d "
                       "bits",
                       p->ncolor, p->channels, p->bits);
    for (size_t i = 0; i < n; i++)
        if (v[i] >= p->ncolor)
            return mp_fail(err, MP_EINVAL, "index %d in a palette of %d", v[i],
                           p->ncolor);
    return 0;
}

int mp_png_encode(FILE *f, const struct mp_png *p, struct mp_error *err)
{
    struct png_job j = {.p = p, .f = f};
    int rc = png_check(p, err);

    if (rc < 0)
        return rc;
    j.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &j, png_stop,
                                    png_ignore);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    rc = j.info ? png_try(&j, err)
                : mp_fail(err, MP_ENOMEM, "out of memory for libpng");
    png_destroy_write_struct(&j.png, &j.info);
    return rc;
}

int mp_png_write(const char *path, const struct mp_png *p, struct mp_error *err)
{
    struct mp_file o;
    int rc = png_check(p, err);

    if (rc == 0)
        rc = mp_file_open(&o, path, err);
    if (rc < 0)
        return rc;
    rc = mp_png_encode(o.f, p, err);
    if (rc < 0)
        mp_fail_in(err, "%s", path);
    return mp_file_close(&o, rc, err);
}
