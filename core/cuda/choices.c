/* SPDX-License-Identifier: MIT */
/* choices.c - a file of choices: a line that says what it is, then
 * "KEY = CHOICE" lines. */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "cuda/choices.h"
#include "image.h"

#define FIRST   "mpipe choices 1\n"
#define BETWEEN " = "
#define MOST    4096 /* choices: of so many shapes nobody meets all again */

struct entry {
    char key[CHOICE_KEY_BYTES], choice[CHOICE_BYTES];
};

struct choices {
    char *path; /* NULL: not kept */
    struct entry *entry;
    size_t n;
    int told; /* what is wrong with the file */
};

/* ---- entries ---- */

static struct entry *look_up(const struct choices *c, const char *key)
{
    for (size_t i = 0; i < c->n; i++)
        if (!strcmp(c->entry[i].key, key))
            return &c->entry[i];
    return NULL;
}

const char *choices_find(const struct choices *c, const char *key)
{
    const struct entry *e = look_up(c, key);

    return e ? e->choice : NULL;
}

static int set(struct choices *c, const struct entry *e, struct mp_error *err)
{
    struct entry *at = look_up(c, e->key), *more;

    if (!at && c->n == MOST)
        return 0;
    if (!at) {
        more = realloc(c->entry, (c->n + 1) * sizeof *more);
        if (!more)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        c->entry = more;
        at = &more[c->n++];
    }
    *at = *e;
    return 0;
}

/* Printable, no more than fit, something at all; a choice has no blanks. */
static int is_word(const char *text, size_t n, size_t most, char least)
{
    for (size_t i = 0; i < n; i++)
        if (text[i] < least || text[i] > '~')
            return 0;
    return n > 0 && n < most;
}

/* Of a whole line: no 0 in it, and the end of a line at its end. */
static int parse(struct entry *e, const char *line)
{
    const char *at = strstr(line, BETWEEN), *end = strchr(line, '\n'), *choice;
    size_t key, rest;

    if (!at || !end || end < at + strlen(BETWEEN))
        return 0;
    choice = at + strlen(BETWEEN);
    key = (size_t)(at - line);
    rest = (size_t)(end - choice);
    if (!is_word(line, key, sizeof e->key, ' ') ||
        !is_word(choice, rest, sizeof e->choice, '!'))
        return 0;
    memset(e, 0, sizeof *e);
    memcpy(e->key, line, key);
    memcpy(e->choice, choice, rest);
    return 1;
}

/* ---- the file ---- */

static int read_lines(struct choices *c, FILE *f, struct mp_error *err)
{
    char line[CHOICE_KEY_BYTES + CHOICE_BYTES + sizeof BETWEEN];
    size_t bad = 0;
    int rc = 0, is_rest = 0;

    if (!fgets(line, sizeof line, f) || strcmp(line, FIRST)) {
        if (!c->told)
            mp_log(MP_LOG_WARNING, "autotune",
                   "%s is not used: it has no "
                   "choices",
                   c->path);
        return 0;
    }
    while (!rc && fgets(line, sizeof line, f)) {
        struct entry e;

        if (!is_rest && parse(&e, line))
            rc = set(c, &e, err);
        else
            bad += !is_rest;
        is_rest = !strchr(line, '\n'); /* of a long line, more to come */
    }
    if (bad && !c->told)
        mp_log(MP_LOG_WARNING, "autotune", "%s: %zu damaged line%s not used",
               c->path, bad, bad == 1 ? " is" : "s are");
    return rc;
}

/* Add what the file has. */
static int read_file(struct choices *c, struct mp_error *err)
{
    FILE *f = c->path ? fopen(c->path, "re") : NULL;
    int rc = 0;

    if (f) {
        rc = read_lines(c, f, err);
        fclose(f);
    } else if (c->path && errno != ENOENT && errno != ENOTDIR) {
        mp_log(MP_LOG_WARNING, "autotune", "%s: %s", c->path, strerror(errno));
    }
    return rc;
}

static int write_file(const struct choices *c, struct mp_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    int rc;

    if (!f)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    fputs(FIRST, f);
    for (size_t i = 0; i < c->n; i++)
        fprintf(f, "%s" BETWEEN "%s\n", c->entry[i].key, c->entry[i].choice);
    if (fclose(f)) {
        free(text);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    rc = mp_file_parents(c->path, err);
    if (!rc)
        rc = mp_file_write(c->path, text, bytes, err);
    free(text);
    return rc;
}

/* NULL: nowhere. */
static char *path_of(const char *name)
{
    const char *cache = secure_getenv("XDG_CACHE_HOME");
    const char *home = secure_getenv("HOME");
    char path[PATH_MAX];
    int n;

    if (cache && *cache == '/')
        n = snprintf(path, sizeof path, "%s/mpipe/%s", cache, name);
    else if (home && *home == '/')
        n = snprintf(path, sizeof path, "%s/.cache/mpipe/%s", home, name);
    else
        return NULL;
    if (n >= (int)sizeof path)
        return NULL;
    for (char *at = path + n - strlen(name); *at; at++)
        if (!isalnum((unsigned char)*at) && !strchr(".-", *at))
            *at = '_';
    return strdup(path);
}

int choices_open(struct choices **out, const char *name, struct mp_error *err)
{
    struct choices *c = calloc(1, sizeof *c);
    int rc;

    if (!c)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    c->path = path_of(name);
    if (!c->path)
        mp_log(MP_LOG_WARNING, "autotune",
               "what is measured is not kept: neither XDG_CACHE_HOME nor HOME "
               "is a folder's path");
    rc = read_file(c, err);
    if (rc) {
        choices_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

void choices_free(struct choices *c)
{
    if (!c)
        return;
    free(c->path);
    free(c->entry);
    free(c);
}

int choices_add(struct choices *c, const char *key, const char *choice,
                struct mp_error *err)
{
    struct choices all = {.path = c->path, .told = 1};
    struct mp_error why = {0};
    struct entry e = {.key = ""};
    int rc;

    snprintf(e.key, sizeof e.key, "%s", key);
    snprintf(e.choice, sizeof e.choice, "%s", choice);
    rc = set(c, &e, err);
    if (!rc)
        rc = read_file(&all, err);
    for (size_t i = 0; i < c->n && !rc; i++)
        rc = set(&all, &c->entry[i], err);
    if (rc) {
        free(all.entry);
        return rc;
    }
    free(c->entry);
    c->entry = all.entry;
    c->n = all.n;
    if (c->path && write_file(c, &why)) {
        mp_log(MP_LOG_WARNING, "autotune", "what is measured is not kept: %s",
               why.text);
        free(c->path);
        c->path = NULL;
    }
    return 0;
}
