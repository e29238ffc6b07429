/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "conf.h"
#include "option.h"

/* inih cuts longer section names without a word. Bytes. */
#define SECTION_MAX 49

/* A value that was read, or a [section] line (key NULL). */
struct entry {
    struct entry *next;
    int line; /* 0: from -o */
    const char *path, *section, *key, *value;
    char text[]; /* what those point to */
};

struct section {
    struct section *next;
    const struct mp_option *rows;
    void *conf;
    char name[];
};

struct mp_conf {
    struct entry *entries, **entries_end; /* in the order they were read */
    struct section *sections, **sections_end;
    char *folder; /* NULL: "." */
};

struct mp_conf *mp_conf_new(void)
{
    struct mp_conf *c = calloc(1, sizeof(*c));

    if (c != NULL) {
        c->entries_end = &c->entries;
        c->sections_end = &c->sections;
    }
    return c;
}

void mp_conf_free(struct mp_conf *c)
{
    if (c == NULL)
        return;
    for (struct entry *e = c->entries, *next; e != NULL; e = next) {
        next = e->next;
        free(e);
    }
    for (struct section *s = c->sections, *next; s != NULL; s = next) {
        next = s->next;
        free(s);
    }
    free(c->folder);
    free(c);
}

/* -------------------------------------------------------------- entries */

static const char *put(char **at, const char *s)
{
    char *start = *at;

    if (s == NULL)
        return NULL;
    *at = stpcpy(start, s) + 1;
    return start;
}

static size_t room(const char *s)
{
    return s == NULL ? 0 : strlen(s) + 1;
}

/* A copy of `from` (its strings too) at the end of the list; NULL: no memory */
static struct entry *add_entry(struct mp_conf *c, const struct entry *from)
{
    size_t n = room(from->path) + room(from->section) + room(from->key) +
               room(from->value);
    struct entry *e = calloc(1, sizeof(*e) + n);
    char *at;

    if (e == NULL)
        return NULL;
    at = e->text;
    e->line = from->line;
    e->path = put(&at, from->path);
    e->section = put(&at, from->section);
    e->key = put(&at, from->key);
    e->value = put(&at, from->value);
    *c->entries_end = e;
    c->entries_end = &e->next;
    return e;
}

/* The value in force: -o wins over files, a later -o over an earlier one. */
static const struct entry *find(const struct mp_conf *c, const char *section,
                                const char *key)
{
    const struct entry *found = NULL;

    for (const struct entry *e = c->entries; e != NULL; e = e->next)
        if (e->key != NULL && strcmp(e->key, key) == 0 &&
            strcmp(e->section, section) == 0 &&
            (found == NULL || e->line == 0 || found->line != 0))
            found = e;
    return found;
}

/* Put in front of the text of err where e was given. */
static int fail_in_entry(const struct entry *e, struct mp_error *err)
{
    const char *more = "";

    if (e->line == 0) {
        if (strlen(e->value) > MP_QUOTE)
            more = "...";
        return mp_fail_in(err, "-o %s.%s=%.*s%s", e->section, e->key, MP_QUOTE,
                          e->value, more);
    }
    if (e->key == NULL)
        return mp_fail_in(err, "%s:%d: [%s]", e->path, e->line, e->section);
    return mp_fail_in(err, "%s:%d: [%s] %s", e->path, e->line, e->section,
                      e->key);
}

/* --------------------------------------------------------------- values */

static int apply_to(const struct section *s, const struct entry *e,
                    struct mp_error *err)
{
    if (e->key == NULL || strcmp(e->section, s->name) != 0)
        return 0;
    for (const struct mp_option *row = s->rows; row->name != NULL; row++)
        if (strcmp(row->name, e->key) == 0 &&
            mp_option_parse(row, s->conf, e->value, err) != 0)
            return fail_in_entry(e, err);
    return 0;
}

/* Everything read so far, files before -o, into one section or (NULL) all. */
static int apply(const struct mp_conf *c, const struct section *only,
                 struct mp_error *err)
{
    for (int from_set = 0; from_set < 2; from_set++)
        for (const struct entry *e = c->entries; e != NULL; e = e->next)
            for (const struct section *s = c->sections; s != NULL;
                 s = s->next) {
                int rc = 0;

                if ((e->line == 0) == from_set && (only == NULL || s == only))
                    rc = apply_to(s, e, err);
                if (rc != 0)
                    return rc;
            }
    return 0;
}

static int set_defaults(const struct section *s, struct mp_error *err)
{
    const char *none = NULL;

    for (const struct mp_option *row = s->rows; row->name != NULL; row++) {
        if (row->def == NULL && row->type == MP_OPT_STRING)
            memcpy((char *)s->conf + row->offset, &none, sizeof(none));
        else if (mp_option_parse(row, s->conf, row->def == NULL ? "" : row->def,
                                 err) != 0)
            return mp_fail_in(err, "default of [%s] %s", s->name, row->name);
    }
    return 0;
}

int mp_conf_section(struct mp_conf *c, const char *name,
                    const struct mp_option *rows, void *conf,
                    struct mp_error *err)
{
    struct section *s = calloc(1, sizeof(*s) + strlen(name) + 1);
    int rc;

    if (s == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    s->rows = rows;
    s->conf = conf;
    strcpy(s->name, name);
    *c->sections_end = s;
    c->sections_end = &s->next;
    rc = set_defaults(s, err);
    return rc != 0 ? rc : apply(c, s, err);
}

const char *mp_conf_get(const struct mp_conf *c, const char *section,
                        const char *key)
{
    const struct entry *e = find(c, section, key);

    return e == NULL ? NULL : e->value;
}

int mp_conf_given(const struct mp_conf *c, const char *section, const char *key)
{
    return find(c, section, key) != NULL;
}

int mp_conf_next(const struct mp_conf *c, size_t *at, const char **section,
                 const char **key)
{
    const struct entry *e = c->entries;

    for (size_t i = *at; i > 0 && e != NULL; i--)
        e = e->next;
    if (e == NULL)
        return 0;
    *section = e->section;
    *key = e->key;
    ++*at;
    return 1;
}

/* -------------------------------------------------------------- reading */

/*
 * The distribution's inih tells no line numbers, splits long lines, ignores
 * what follows "]", and takes an indented key for a continuation of the value
 * above. So the reader hands it one checked line at a time, without
 * indentation and without comment lines.
 */
struct reader {
    struct mp_conf *conf;
    FILE *file;
    const char *path;
    int line;
    int code; /* nonzero: failed, *err is set */
    struct mp_error *err;
};

__attribute__((format(printf, 3, 4))) static void
fail_line(struct reader *r, int code, const char *fmt, ...)
{
    char text[sizeof(r->err->text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    r->code = mp_fail(r->err, code, "%s:%d: %s", r->path, r->line, text);
}

/* One line without its end; buf keeps the first size - 1 bytes of it. Returns
 * its length, -1 at the end of the file or after an error. */
static long read_raw(struct reader *r, char *buf, size_t size)
{
    size_t n = 0;
    int ch;

    r->line++;
    while ((ch = getc(r->file)) != EOF && ch != '\n') {
        if (ch == '\r') {
            int next = getc(r->file);

            ungetc(next, r->file);
            if (next == '\n' || next == EOF)
                continue;
        }
        if ((ch < 0x20 && ch != '\t') || ch == 0x7f) {
            fail_line(r, MP_EFORMAT, "not a text file: byte 0x%02x", ch);
            return -1;
        }
        if (n < size - 1)
            buf[n] = (char)ch;
        n++;
    }
    buf[n < size ? n : size - 1] = '\0';
    if (ferror(r->file)) {
        r->code = mp_fail(r->err, MP_EIO, "%s: %s", r->path, strerror(errno));
        return -1;
    }
    return ch == EOF && n == 0 ? -1 : (long)n;
}

/* A [section] line: inih would accept a cut name and lose what follows. */
static void check_section(struct reader *r, const char *line)
{
    char name[SECTION_MAX + 1];
    const char *end = strchr(line, ']'), *rest;
    struct entry e = {.line = r->line, .path = r->path, .section = name};
    size_t n;

    if (end == NULL)
        return; /* inih says so */
    rest = end + 1 + strspn(end + 1, " \t");
    n = (size_t)(end - line - 1);
    if (n == 0)
        fail_line(r, MP_EFORMAT, "a section has no name");
    else if (n > SECTION_MAX)
        fail_line(r, MP_EFORMAT, "section name longer than %d bytes",
                  SECTION_MAX);
    else if (*rest != '\0' && *rest != ';')
        fail_line(r, MP_EFORMAT, "\"%s\" behind [section] on the same line",
                  rest);
    if (r->code != 0)
        return;
    memcpy(name, line + 1, n);
    name[n] = '\0';
    if (add_entry(r->conf, &e) == NULL)
        r->code = mp_fail(r->err, MP_ENOMEM, "out of memory");
}

/* The ini_reader: size includes the newline and the NUL. */
static char *read_line(char *buf, int size, void *stream)
{
    static const char bom[] = "\xef\xbb\xbf";
    struct reader *r = stream;
    long n = r->code != 0 ? -1 : read_raw(r, buf, (size_t)size - 1);
    const char *start = buf;

    if (n < 0)
        return NULL;
    if (r->line == 1 && strncmp(start, bom, strlen(bom)) == 0)
        start += strlen(bom);
    start += strspn(start, " \t");
    if (*start == ';' || *start == '#')
        start += strlen(start);
    else if (n > size - 2)
        fail_line(r, MP_EFORMAT, "line of %ld bytes, longer than %d", n,
                  size - 2);
    else if (*start == '[')
        check_section(r, start);
    if (r->code != 0)
        return NULL;
    memmove(buf, start, strlen(start) + 1);
    strcat(buf, "\n");
    return buf;
}

/* The ini_handler: nonzero is success. */
static int take_value(void *user, const char *section, const char *key,
                      const char *value)
{
    struct reader *r = user;
    struct entry e = {.line = r->line,
                      .path = r->path,
                      .section = section,
                      .key = key,
                      .value = value};
    const struct entry *first;

    if (r->code != 0)
        return 0;
    if (key == NULL || value == NULL)
        return key == NULL; /* a build of inih that announces sections */
    first = find(r->conf, section, key);
    if (key[0] == '\0')
        fail_line(r, MP_EFORMAT, "no key before \"=\"");
    else if (section[0] == '\0')
        fail_line(r, MP_EFORMAT, "\"%s\" stands before any [section]", key);
    else if (first != NULL && first->line != 0)
        fail_line(r, MP_EINVAL, "[%s] %s is given twice, first at %s:%d",
                  section, key, first->path, first->line);
    else if (add_entry(r->conf, &e) == NULL)
        r->code = mp_fail(r->err, MP_ENOMEM, "out of memory");
    return r->code == 0;
}

static int parse_file(struct reader *r)
{
    int bad = ini_parse_stream(read_line, r, take_value, r);

    if (bad < 0)
        return mp_fail(r->err, MP_ENOMEM, "out of memory");
    /* inih goes on after a line that it cannot read: that was first */
    if (bad > 0 && (r->code == 0 || bad < r->line)) {
        r->line = bad;
        fail_line(r, MP_EFORMAT, "neither [section] nor key = value");
    }
    return r->code;
}

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

int mp_conf_file(struct mp_conf *c, const char *path, struct mp_error *err)
{
    int standard = strcmp(path, "-") == 0, rc;
    struct reader r = {.conf = c,
                       .file = standard ? stdin : fopen(path, "r"),
                       .path = standard ? "standard input" : path,
                       .err = err};
    char *folder;

    if (r.file == NULL)
        return mp_fail(err, MP_EIO, "%s: %s", path, strerror(errno));
    rc = parse_file(&r);
    if (!standard)
        fclose(r.file);
    if (rc != 0)
        return rc;
    folder = folder_of(path);
    if (folder == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    free(c->folder);
    c->folder = folder;
    return apply(c, NULL, err);
}

int mp_conf_in(struct mp_conf *c, const char *folder, struct mp_error *err)
{
    char *copy = strdup(folder);

    if (copy == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    free(c->folder);
    c->folder = copy;
    return 0;
}

const char *mp_conf_folder(const struct mp_conf *c)
{
    return c->folder == NULL ? "." : c->folder;
}

/* ------------------------------------------------------------------- -o */

/* Cut the blanks at both ends of s, in place. */
static char *trim(char *s)
{
    size_t n;

    s += strspn(s, " \t");
    for (n = strlen(s); n > 0 && strchr(" \t", s[n - 1]) != NULL; n--)
        s[n - 1] = '\0';
    return s;
}

/* Split "section.key=value" in place. */
static int split(char *s, struct entry *e)
{
    char *equals = strchr(s, '='), *dot;

    if (equals == NULL)
        return -1;
    *equals = '\0';
    dot = strrchr(s, '.'); /* section names may hold dots, keys never do */
    if (dot == NULL)
        return -1;
    *dot = '\0';
    e->section = trim(s);
    e->key = trim(dot + 1);
    e->value = trim(equals + 1);
    return e->section[0] == '\0' || e->key[0] == '\0' ? -1 : 0;
}

int mp_conf_set(struct mp_conf *c, const char *assignment, struct mp_error *err)
{
    struct entry parts = {.line = 0}, *e = NULL;
    char *copy = strdup(assignment);
    int rc = 0;

    if (copy == NULL)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    if (split(copy, &parts) != 0)
        rc = mp_fail(err, MP_EINVAL, "-o %s: must be section.key=value",
                     assignment);
    else if ((e = add_entry(c, &parts)) == NULL)
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    for (const struct section *s = c->sections; s != NULL && rc == 0;
         s = s->next)
        rc = apply_to(s, e, err);
    free(copy);
    return rc;
}

/* -------------------------------------------------------------- finish */

static int check_section_known(const struct mp_conf *c, const struct entry *e,
                               const char *const *known, struct mp_error *err)
{
    struct mp_guess g = {.word = e->section};

    for (const struct section *s = c->sections; s != NULL; s = s->next) {
        if (strcmp(s->name, e->section) == 0)
            return 0;
        mp_guess_try(&g, s->name, strlen(s->name));
    }
    for (; known != NULL && *known != NULL; known++) {
        if (strcmp(*known, e->section) == 0)
            return 0;
        mp_guess_try(&g, *known, strlen(*known));
    }
    mp_fail(err, MP_EINVAL, "no such section%s", mp_guess_hint(&g).text);
    return fail_in_entry(e, err);
}

/* Keys of sections that are only known by name are not looked at. */
static int check_key_known(const struct mp_conf *c, const struct entry *e,
                           struct mp_error *err)
{
    struct mp_guess g = {.word = e->key};
    int declared = 0;

    for (const struct section *s = c->sections; s != NULL; s = s->next) {
        if (strcmp(s->name, e->section) != 0)
            continue;
        declared = 1;
        for (const struct mp_option *row = s->rows; row->name != NULL; row++) {
            if (strcmp(row->name, e->key) == 0)
                return 0;
            mp_guess_try(&g, row->name, strlen(row->name));
        }
    }
    if (!declared)
        return 0;
    mp_fail(err, MP_EINVAL, "no such key%s", mp_guess_hint(&g).text);
    return fail_in_entry(e, err);
}

int mp_conf_finish(struct mp_conf *c, const char *const *known,
                   struct mp_error *err)
{
    for (const struct entry *e = c->entries; e != NULL; e = e->next) {
        int rc = check_section_known(c, e, known, err);

        if (rc == 0 && e->key != NULL)
            rc = check_key_known(c, e, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int mp_conf_dump(const struct mp_conf *c, FILE *out)
{
    int rc = 0;

    for (const struct section *s = c->sections; s != NULL; s = s->next) {
        fprintf(out, "%s[%s]\n", s == c->sections ? "" : "\n", s->name);
        for (const struct mp_option *row = s->rows; row->name != NULL; row++) {
            int bad = mp_option_write(row, s->conf, out);

            rc = rc == 0 ? bad : rc;
        }
    }
    return fflush(out) != 0 || ferror(out) ? MP_EIO : rc;
}
