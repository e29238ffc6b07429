/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mpipe/base.h"

/* A log line is one write(2), which pipes keep whole up to PIPE_BUF. */
#define LOG_LINE 2048

static const char ellipsis[] = "...";

/* Where to cut s (n bytes) so that no UTF-8 sequence is left half. */
static size_t utf8_floor(const char *s, size_t n)
{
    while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
        n--;
    return n;
}

/* `want` is the length that a formatter wished for; buf holds what fitted. */
static void make_line(char *buf, size_t size, int want)
{
    if (want < 0)
        buf[0] = '\0';
    else if ((size_t)want >= size)
        strcpy(buf + utf8_floor(buf, size - sizeof(ellipsis)), ellipsis);
    for (char *p = buf; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
}

int mp_fail(struct mp_error *err, int code, const char *fmt, ...)
{
    /* Not straight into err->text: it may be one of the arguments. */
    char text[sizeof(err->text)];
    va_list ap;
    int want;

    if (err == NULL)
        return code;
    va_start(ap, fmt);
    want = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    make_line(text, sizeof(text), want);
    err->code = code;
    strcpy(err->text, text);
    return code;
}

int mp_fail_in(struct mp_error *err, const char *fmt, ...)
{
    char place[sizeof(err->text)];
    va_list ap;
    int want;

    if (err == NULL)
        return MP_EINVAL;
    va_start(ap, fmt);
    want = vsnprintf(place, sizeof(place), fmt, ap);
    va_end(ap);
    make_line(place, sizeof(place), want);
    return mp_fail(err, err->code, "%s: %s", place, err->text);
}

static _Atomic int log_most = MP_LOG_WARNING;

void mp_log_set(enum mp_log_level most)
{
    atomic_store_explicit(&log_most, most, memory_order_relaxed);
}

enum mp_log_level mp_log_get(void)
{
    return atomic_load_explicit(&log_most, memory_order_relaxed);
}

/* A log that cannot be written has nobody to tell: errors end the attempt. */
static void write_all(int fd, const char *s, size_t n)
{
    while (n > 0) {
        ssize_t k = write(fd, s, n);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return;
        s += k;
        n -= (size_t)k;
    }
}

void mp_log(enum mp_log_level level, const char *area, const char *fmt, ...)
{
    int saved = errno;
    char text[LOG_LINE - 64], line[LOG_LINE];
    va_list ap;
    int want;

    if (level > mp_log_get())
        return;
    va_start(ap, fmt);
    want = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    make_line(text, sizeof(text), want);

    want = snprintf(line, sizeof(line) - 1, "mpipe: %s%s%s%s",
                    level == MP_LOG_WARNING ? "warning: " : "",
                    area == NULL ? "" : area, area == NULL ? "" : ": ", text);
    make_line(line, sizeof(line) - 1, want);
    strcat(line, "\n");
    write_all(STDERR_FILENO, line, strlen(line));
    errno = saved;
}

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [MP_NONE] = {"none", 0}, [MP_F32] = {"f32", 4}, [MP_F16] = {"f16", 2},
    [MP_BF16] = {"bf16", 2}, [MP_F64] = {"f64", 8}, [MP_I8] = {"i8", 1},
    [MP_I16] = {"i16", 2},   [MP_I32] = {"i32", 4}, [MP_I64] = {"i64", 8},
    [MP_U8] = {"u8", 1},     [MP_U16] = {"u16", 2}, [MP_BOOL] = {"bool", 1},
};

static size_t dtype_index(enum mp_dtype t)
{
    size_t i = (size_t)t;

    return i < sizeof(dtypes) / sizeof(dtypes[0]) ? i : MP_NONE;
}

size_t mp_dtype_size(enum mp_dtype t)
{
    return dtypes[dtype_index(t)].size;
}

const char *mp_dtype_name(enum mp_dtype t)
{
    return dtypes[dtype_index(t)].name;
}
