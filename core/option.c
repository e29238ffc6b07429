/* SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "conf.h"
#include "option.h"

/* Words longer than this are not compared. */
#define WORD_MAX 64

static const char blanks[] = " \t";

/* ------------------------------------------------------------- nearness */

static size_t min_of(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Damerau-Levenshtein distance (each pair swapped once at most) of two words
 * of up to WORD_MAX bytes; case counts as nothing. */
static size_t distance(const char *a, size_t na, const char *b, size_t nb)
{
    size_t rows[3][WORD_MAX + 1];
    size_t *before = rows[0], *above = rows[1], *row = rows[2];

    for (size_t j = 0; j <= nb; j++)
        above[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t *spare = before;
        int ca = tolower((unsigned char)a[i - 1]);

        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            int cb = tolower((unsigned char)b[j - 1]);
            size_t d = above[j - 1] + (ca != cb);

            d = min_of(d, min_of(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) &&
                tolower((unsigned char)a[i - 2]) == cb)
                d = min_of(d, before[j - 2] + 1);
            row[j] = d;
        }
        before = above;
        above = row;
        row = spare;
    }
    return above[nb];
}

void mp_guess_try(struct mp_guess *g, const char *candidate, size_t len)
{
    size_t n = strlen(g->word), d, limit;

    if (n == 0 || n > WORD_MAX || len == 0 || len > WORD_MAX)
        return;
    d = distance(g->word, n, candidate, len);
    limit = n / 3 > 2 ? n / 3 : 2;
    /* of two short words, all letters may differ within the limit */
    if (d > limit || d >= (n > len ? n : len))
        return;
    if (g->best == NULL || d < g->distance) {
        g->best = candidate;
        g->best_len = len;
        g->distance = d;
    }
}

struct mp_hint mp_guess_hint(const struct mp_guess *g)
{
    struct mp_hint h = {""};

    if (g->best != NULL)
        snprintf(h.text, sizeof(h.text), "; did you mean %.*s?",
                 (int)g->best_len, g->best);
    return h;
}

const char *mp_nearest(const char *word, const char *const *words)
{
    struct mp_guess g = {.word = word};

    for (; *words != NULL; words++)
        mp_guess_try(&g, *words, strlen(*words));
    return g.best;
}

/* ---------------------------------------------------- words and numbers */

/* The first word at *p; *p moves behind it. NULL: there is none. */
static const char *next_word(const char **p, size_t *len)
{
    const char *start = *p + strspn(*p, blanks);

    *len = strcspn(start, blanks);
    *p = start + *len;
    return *len == 0 ? NULL : start;
}

/* Which of the choices is this word? -1: none. */
static int find_choice(const char *choices, const char *word, size_t len)
{
    const char *p = choices == NULL ? "" : choices, *w;
    size_t n;

    for (int i = 0; (w = next_word(&p, &n)) != NULL; i++)
        if (n == len && memcmp(w, word, n) == 0)
            return i;
    return -1;
}

/* Choice i, NULL if there are not as many. */
static const char *choice_at(const char *choices, int64_t i, size_t *len)
{
    const char *p = choices == NULL ? "" : choices, *w = NULL;

    if (i < 0)
        return NULL;
    do {
        w = next_word(&p, len);
    } while (w != NULL && i-- > 0);
    return w;
}

static int in_range(const struct mp_option *row, double v)
{
    return (row->min == 0 && row->max == 0) || (v >= row->min && v <= row->max);
}

/* A decimal integer at s within the row's range, ended by `stop`. */
static int read_int(const struct mp_option *row, const char *s, char stop,
                    const char **end, int32_t *out)
{
    long long v;
    char *behind;

    if (!isdigit((unsigned char)s[s[0] == '-']))
        return -1;
    errno = 0;
    v = strtoll(s, &behind, 10);
    if (errno != 0 || *behind != stop || v < INT32_MIN || v > INT32_MAX ||
        !in_range(row, (double)v))
        return -1;
    *out = (int32_t)v;
    *end = behind;
    return 0;
}

/* 0, MP_ENOMEM, or MP_EINVAL: not a decimal number within the range. */
static int read_float(const struct mp_option *row, const char *s, double *out)
{
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    char *end;
    int wrong;

    if (c == (locale_t)0)
        return MP_ENOMEM;
    errno = 0;
    *out = strtod_l(s, &end, c);
    /* no blanks, hexadecimals, infinities or "nan" */
    wrong = errno != 0 || end == s || *end != '\0' || !isfinite(*out) ||
            s[strspn(s, "0123456789+-.eE")] != '\0' || !in_range(row, *out);
    freelocale(c);
    return wrong ? MP_EINVAL : 0;
}

/* The shortest decimal text that reads as v. */
static int format_float(char out[32], double v)
{
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0), old;

    if (c == (locale_t)0)
        return MP_ENOMEM;
    old = uselocale(c);
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (strtod(out, NULL) == v)
            break;
    }
    uselocale(old);
    freelocale(c);
    return 0;
}

/* ---------------------------------------------------- what is right */

struct text {
    char s[400];
    size_t n;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t,
                                                      const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(t->s + t->n, sizeof(t->s) - t->n, fmt, ap);
    va_end(ap);
    if (n > 0)
        t->n = min_of(t->n + (size_t)n, sizeof(t->s) - 1);
}

/* " 16..8192 px" */
static void add_range(struct text *t, const struct mp_option *row)
{
    char min[32], max[32];
    int low = row->min > -HUGE_VAL, high = row->max < HUGE_VAL;

    if (format_float(min, row->min) != 0 || format_float(max, row->max) != 0)
        return;
    if ((row->min != 0 || row->max != 0) && (low || high)) {
        if (low && high)
            add(t, " %s..%s", min, max);
        else
            add(t, low ? " at least %s" : " at most %s", low ? min : max);
    }
    if (row->unit != NULL)
        add(t, " %s", row->unit);
}

static void add_words(struct text *t, const char *first, const char *choices)
{
    const char *p = choices == NULL ? "" : choices, *w;
    const char *sep = first;
    size_t n;

    for (; (w = next_word(&p, &n)) != NULL; sep = ", ")
        add(t, "%s%.*s", sep, (int)n, w);
}

/* "AxB, each 16..8192 px, or none" */
static struct text right_text(const struct mp_option *row)
{
    struct text t = {"", 0};
    int number = row->unit != NULL || row->min != 0 || row->max != 0;

    switch (row->type) {
    case MP_OPT_BOOL:
        add(&t, "yes or no");
        break;
    case MP_OPT_INT:
    case MP_OPT_FLOAT:
        add(&t, row->type == MP_OPT_INT ? "whole number" : "number");
        add_range(&t, row);
        break;
    case MP_OPT_SIZE:
        add(&t, number ? "AxB, each" : "AxB");
        add_range(&t, row);
        break;
    case MP_OPT_STRING:
        add(&t, "text without control characters");
        break;
    case MP_OPT_CHOICE:
        add_words(&t, "one of ", row->choices);
        break;
    case MP_OPT_FLAGS:
        add_words(&t, "one or more, separated by blanks, of ", row->choices);
        break;
    }
    if (row->type == MP_OPT_INT || row->type == MP_OPT_SIZE)
        add_words(&t, ", or ", row->choices);
    return t;
}

void mp_option_print(const struct mp_option *row, FILE *out)
{
    struct text right = right_text(row);

    fprintf(out, "  %s = %s\n", row->name, row->def == NULL ? "" : row->def);
    fprintf(out, "      %s\n      (%s)\n", row->help, right.s);
}

/* -------------------------------------------------------------- parsing */

static int parse_flags(const struct mp_option *row, const char *text,
                       uint32_t *out)
{
    const char *w;
    size_t n;
    int i;

    *out = 0;
    while ((w = next_word(&text, &n)) != NULL) {
        i = find_choice(row->choices, w, n);
        if (i < 0 || i >= 32)
            return MP_EINVAL;
        *out |= UINT32_C(1) << i;
    }
    return *out == 0 ? MP_EINVAL : 0;
}

/* INT, SIZE and CHOICE: n numbers; the words of numbers are negative. */
static int parse_ints(const struct mp_option *row, const char *text, int32_t *v,
                      int n)
{
    int word = find_choice(row->choices, text, strlen(text));
    const char *p = text;

    if (word >= 0) {
        for (int i = 0; i < n; i++)
            v[i] = row->type == MP_OPT_CHOICE ? word : -1 - word;
        return 0;
    }
    if (row->type == MP_OPT_CHOICE)
        return MP_EINVAL;
    for (int i = 0; i < n; i++, p++)
        if (read_int(row, p, i + 1 < n ? 'x' : '\0', &p, &v[i]) != 0)
            return MP_EINVAL;
    return 0;
}

static int parse_bool(const char *text, int32_t *out)
{
    *out = strcmp(text, "yes") == 0;
    return *out || strcmp(text, "no") == 0 ? 0 : MP_EINVAL;
}

static int parse_string(const char *text, const char **out)
{
    *out = text;
    for (const char *p = text; *p != '\0'; p++)
        if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f)
            return MP_EINVAL;
    return 0;
}

/* One value of any type, of its size. */
union value {
    int32_t i[2];
    uint32_t flags;
    double f;
    const char *s;
};

static int parse(const struct mp_option *row, const char *text, union value *v,
                 size_t *size)
{
    switch (row->type) {
    case MP_OPT_BOOL:
        *size = sizeof(int32_t);
        return parse_bool(text, v->i);
    case MP_OPT_INT:
    case MP_OPT_CHOICE:
        *size = sizeof(int32_t);
        return parse_ints(row, text, v->i, 1);
    case MP_OPT_SIZE:
        *size = sizeof(v->i);
        return parse_ints(row, text, v->i, 2);
    case MP_OPT_FLOAT:
        *size = sizeof(v->f);
        return read_float(row, text, &v->f);
    case MP_OPT_FLAGS:
        *size = sizeof(v->flags);
        return parse_flags(row, text, &v->flags);
    case MP_OPT_STRING:
        *size = sizeof(v->s);
        return parse_string(text, &v->s);
    }
    return MP_EINVAL;
}

/* The word that is meant by the first wrong one of text. */
static struct mp_hint hint_for(const struct mp_option *row, const char *text)
{
    char word[WORD_MAX + 1] = "";
    struct mp_guess g = {.word = word};
    const char *p = text, *w;
    size_t n;

    while ((w = next_word(&p, &n)) != NULL && n <= WORD_MAX) {
        if (find_choice(row->choices, w, n) < 0) {
            memcpy(word, w, n);
            break;
        }
    }
    p = row->choices == NULL ? "" : row->choices;
    while ((w = next_word(&p, &n)) != NULL)
        mp_guess_try(&g, w, n);
    return mp_guess_hint(&g);
}

int mp_option_parse(const struct mp_option *row, void *conf, const char *text,
                    struct mp_error *err)
{
    union value v;
    size_t size = 0;
    int rc = parse(row, text, &v, &size);

    if (rc == MP_ENOMEM)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    if (rc != 0)
        return mp_fail(err, rc, "\"%.*s%s\" is not right: %s%s", MP_QUOTE, text,
                       strlen(text) > MP_QUOTE ? "..." : "", right_text(row).s,
                       hint_for(row, text).text);
    memcpy((char *)conf + row->offset, &v, size);
    return 0;
}

/* -------------------------------------------------------------- writing */

/* Would inih read this value of this row as it stands? */
static int storable(const struct mp_option *row, const char *s)
{
    const char *unused;
    size_t n = s == NULL ? 0 : strlen(s);

    if (s == NULL || strlen(row->name) + strlen(" = ") + n > MP_LINE_MAX ||
        parse_string(s, &unused) != 0)
        return 0;
    if (n == 0)
        return 1;
    /* blanks at the ends are dropped; a semicolon may begin a comment */
    return strchr(blanks, s[0]) == NULL && strchr(blanks, s[n - 1]) == NULL &&
           s[0] != ';' && strstr(s, " ;") == NULL && strstr(s, "\t;") == NULL;
}

static void write_string(FILE *out, const struct mp_option *row, const char *s)
{
    if (storable(row, s)) {
        fprintf(out, "%s = %s\n", row->name, s);
        return;
    }
    fprintf(out, "; %s = ", row->name);
    for (; s != NULL && *s != '\0'; s++)
        fputc((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s, out);
    fputc('\n', out);
}

static void write_ints(FILE *out, const struct mp_option *row, const int32_t *v)
{
    int64_t word = row->type == MP_OPT_CHOICE ? v[0] : -1 - (int64_t)v[0];
    size_t n;
    const char *w = choice_at(row->choices, word, &n);

    if (w != NULL)
        fprintf(out, "%s = %.*s\n", row->name, (int)n, w);
    else if (row->type == MP_OPT_SIZE)
        fprintf(out, "%s = %dx%d\n", row->name, (int)v[0], (int)v[1]);
    else
        fprintf(out, "%s = %d\n", row->name, (int)v[0]);
}

static void write_flags(FILE *out, const struct mp_option *row, uint32_t flags)
{
    const char *w;
    size_t n;

    fprintf(out, "%s =", row->name);
    for (int i = 0; i < 32; i++)
        if ((flags >> i & 1) != 0 &&
            (w = choice_at(row->choices, i, &n)) != NULL)
            fprintf(out, " %.*s", (int)n, w);
    fputc('\n', out);
}

static int write_value(const struct mp_option *row, const void *field,
                       FILE *out)
{
    union value v;
    char number[32];

    switch (row->type) {
    case MP_OPT_BOOL:
        memcpy(v.i, field, sizeof(v.i[0]));
        fprintf(out, "%s = %s\n", row->name, v.i[0] ? "yes" : "no");
        return 0;
    case MP_OPT_INT:
    case MP_OPT_CHOICE:
        memcpy(v.i, field, sizeof(v.i[0]));
        write_ints(out, row, v.i);
        return 0;
    case MP_OPT_SIZE:
        memcpy(v.i, field, sizeof(v.i));
        write_ints(out, row, v.i);
        return 0;
    case MP_OPT_FLAGS:
        memcpy(&v.flags, field, sizeof(v.flags));
        write_flags(out, row, v.flags);
        return 0;
    case MP_OPT_FLOAT:
        memcpy(&v.f, field, sizeof(v.f));
        if (format_float(number, v.f) != 0)
            return MP_ENOMEM;
        fprintf(out, "%s = %s\n", row->name, number);
        return 0;
    case MP_OPT_STRING:
        memcpy(&v.s, field, sizeof(v.s));
        write_string(out, row, v.s);
        return storable(row, v.s) ? 0 : MP_EINVAL;
    }
    return MP_EINVAL;
}

int mp_option_write(const struct mp_option *row, const void *conf, FILE *out)
{
    fprintf(out, "; %s", row->help);
    if (row->type != MP_OPT_STRING)
        fprintf(out, " (%s)", right_text(row).s);
    fputc('\n', out);
    return write_value(row, (const char *)conf + row->offset, out);
}
