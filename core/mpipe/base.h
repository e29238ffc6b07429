/* SPDX-License-Identifier: MIT */
/*
 * mpipe/base.h - what every other mpipe header uses: errors, logging, option
 * rows, element types.
 *
 * Errors: a fallible function returns 0 or a negative enum mp_status and fills
 * the caller's struct mp_error. Who detects an error writes its text; who
 * passes it on is silent or prefixes where it happened (mp_fail_in); who
 * handles it logs it, once. An error that is not there is never written to.
 *
 * Threads: everything here may be called from any thread.
 */
#ifndef MPIPE_BASE_H
#define MPIPE_BASE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Functions of libmpipe that programs, heads and backends may call. */
#define MP_API __attribute__((visibility("default")))

enum mp_status {
    MP_OK = 0,
    MP_EINVAL = -1,  /* a wrong argument, option, or combination of them */
    MP_ENOMEM = -2,  /* out of memory, of the host or of the device */
    MP_EIO = -3,     /* the operating system refused: see the text */
    MP_EFORMAT = -4, /* a file is not what it should be */
    MP_EABI = -5,    /* a module was built for another mpipe */
    MP_ENOTSUP = -6, /* understood, and not available here */
    MP_EINTR = -7    /* stopped by the user */
};

struct mp_error {
    int code;       /* enum mp_status of the last mp_fail */
    char text[508]; /* one line without full stop or newline; "" at first */
};

/* Set code and text, return code. err may be NULL: only the code is returned.
 * A text too long for the buffer is cut and ends in "...". Control characters
 * (say, of a file name) are replaced by '?'. */
MP_API int mp_fail(struct mp_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "fmt: " in front of the text that err has already; return its code. err
 * may be NULL: MP_EINVAL is returned. */
MP_API int mp_fail_in(struct mp_error *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

enum mp_log_level {
    MP_LOG_ERROR,   /* always */
    MP_LOG_WARNING, /* unless -q */
    MP_LOG_INFO,    /* -v */
    MP_LOG_DEBUG    /* -vv */
};

/* One line to stderr: "mpipe: area: text" ("mpipe: warning: area: text").
 * area is a short lower-case word and may be NULL. */
MP_API void mp_log(enum mp_log_level level, const char *area, const char *fmt,
                   ...) __attribute__((format(printf, 3, 4)));
MP_API void mp_log_set(enum mp_log_level most);
MP_API enum mp_log_level mp_log_get(void);

/* Element types of tensors, of checkpoints and of the network. */
enum mp_dtype {
    MP_NONE,
    MP_F32,
    MP_F16,
    MP_BF16,
    MP_F64,
    MP_I8,
    MP_I16,
    MP_I32,
    MP_I64,
    MP_U8,
    MP_U16,
    MP_BOOL
};
MP_API size_t mp_dtype_size(enum mp_dtype t);      /* bytes; 0 for MP_NONE */
MP_API const char *mp_dtype_name(enum mp_dtype t); /* "f32", "u8", ... */

/*
 * Option rows: one table describes the keys of an INI section. The parser,
 * --dump-config, mpipe-inspect and the tests all read the same rows. A table
 * ends with a row whose name is NULL.
 *
 * type    field at offset   text in a configuration file
 * BOOL    int32_t           yes | no
 * INT     int32_t           decimal number in min..max, or a word of choices:
 *                           the words stand for -1, -2, ... in their order
 * FLOAT   double            decimal number in min..max, unit is for people
 * STRING  char *            anything; owned by who owns the configuration
 * CHOICE  int32_t           one word of choices: its index, from 0
 * FLAGS   uint32_t          words of choices, separated by blanks: bit i is
 *                           word i; at least one
 * SIZE    int32_t[2]        AxB, each in min..max, in the written order; or a
 *                           word of choices: both -1, -2, ... as for INT
 */
enum mp_option_type {
    MP_OPT_BOOL,
    MP_OPT_INT,
    MP_OPT_FLOAT,
    MP_OPT_STRING,
    MP_OPT_CHOICE,
    MP_OPT_FLAGS,
    MP_OPT_SIZE
};

struct mp_option {
    const char *name; /* [a-z][a-z0-9_]* */
    enum mp_option_type type;
    size_t offset;       /* of the field in the configuration struct */
    const char *def;     /* the default, as written in a file */
    double min, max;     /* INT, FLOAT, SIZE; both 0: any */
    const char *choices; /* words separated by blanks, or NULL */
    const char *unit;    /* "m", "px", ... or NULL */
    const char *help;    /* one line, no full stop */
};

#ifdef __cplusplus
}
#endif
#endif
