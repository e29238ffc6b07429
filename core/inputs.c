/* SPDX-License-Identifier: MIT */
/* inputs.c - folders, lists and parts of lists. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include "inputs.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

void mp_inputs_free(struct mp_inputs *in)
{
    for (size_t i = 0; i < in->n; i++) {
        free(in->at[i].path);
        free(in->at[i].stem);
    }
    free(in->at);
    *in = (struct mp_inputs){0};
}

/* ---- names ---- */

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static int is_picture(const char *name)
{
    static const char *const suffix[] = {".png", ".jpg", ".jpeg"};
    size_t n = strlen(name);

    for (size_t i = 0; i < sizeof suffix / sizeof *suffix; i++) {
        size_t k = strlen(suffix[i]);

        if (n > k && !strcasecmp(name + n - k, suffix[i]))
            return 1;
    }
    return 0;
}

static int goes_up(const char *path)
{
    for (const char *p = path; (p = strstr(p, "..")); p += 2)
        if ((p == path || p[-1] == '/') && (!p[2] || p[2] == '/'))
            return 1;
    return 0;
}

/* The part of a listed path that names its results: no "./", no "//". */
static void tidy(char *to, const char *path)
{
    char *start = to;

    while (*path) {
        size_t n = strcspn(path, "/");

        if (n && !(n == 1 && *path == '.')) {
            if (to > start)
                *to++ = '/';
            memcpy(to, path, n);
            to += n;
        }
        path += n + (path[n] == '/');
    }
    *to = '\0';
}

/* path: of the file, copied. below: the part of it that names the results. */
static int add(struct mp_inputs *in, const char *path, const char *below,
               struct mp_error *err)
{
    struct mp_input one = {strdup(path), malloc(strlen(below) + 1)};
    char *dot;
    int full = 0;

    if (in->n % 1024 == 0) {
        void *more = realloc(in->at, (in->n + 1024) * sizeof one);

        full = !more;
        in->at = more ? more : in->at;
    }
    if (full || !one.path || !one.stem) {
        free(one.path);
        free(one.stem);
        return no_memory(err);
    }
    tidy(one.stem, below);
    dot = strrchr(last_part(one.stem), '.');
    if (dot && dot > last_part(one.stem))
        *dot = '\0';
    in->at[in->n++] = one;
    return 0;
}

/* ---- folders ---- */

/* A folder being read, and those around it. */
struct folder {
    const struct folder *above;
    dev_t dev;
    ino_t ino;
};

struct walk {
    struct mp_inputs *in;
    size_t root; /* bytes of IN in front of what names the results */
    int recursive;
    struct stat out; /* st_nlink 0: not there yet */
    struct mp_error *err;
};

static int same(const struct stat *a, const struct stat *b)
{
    return b->st_nlink && a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int is_around(const struct folder *f, const struct stat *st)
{
    for (; f; f = f->above)
        if (f->dev == st->st_dev && f->ino == st->st_ino)
            return 1;
    return 0;
}

static int walk_folder(struct walk *w, const char *path,
                       const struct folder *above, const struct stat *st);

static int walk_entry(struct walk *w, const char *folder, const char *name,
                      const struct folder *here)
{
    struct stat st;
    char *path;
    int rc = 0;

    if (name[0] == '.')
        return 0;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return no_memory(w->err);
    if (stat(path, &st)) {
        w->in->others++; /* a link to nothing, or gone meanwhile */
    } else if (S_ISDIR(st.st_mode)) {
        if (w->recursive && !is_around(here, &st) && !same(&st, &w->out))
            rc = walk_folder(w, path, here, &st);
    } else if (S_ISREG(st.st_mode) && is_picture(name)) {
        rc = add(w->in, path, path + w->root, w->err);
    } else {
        w->in->others++;
    }
    free(path);
    return rc;
}

static int walk_folder(struct walk *w, const char *path,
                       const struct folder *above, const struct stat *st)
{
    struct folder here = {above, st->st_dev, st->st_ino};
    DIR *d = opendir(path);
    struct dirent *e;
    int rc = 0;

    if (!d)
        return mp_fail(w->err, MP_EIO, "%s: %s", path, strerror(errno));
    while (!rc && (errno = 0, e = readdir(d)))
        rc = walk_entry(w, path, e->d_name, &here);
    if (!rc && errno)
        rc = mp_fail(w->err, MP_EIO, "%s: %s", path, strerror(errno));
    closedir(d);
    return rc;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct mp_input *)a)->path,
                  ((const struct mp_input *)b)->path);
}

static int read_folder(struct mp_inputs *in, const char *arg,
                       const struct stat *st, int recursive, const char *out,
                       struct mp_error *err)
{
    struct walk w = {.in = in, .recursive = recursive, .err = err};
    char *path = strdup(arg);
    size_t n = strlen(arg);
    int rc;

    if (!path)
        return no_memory(err);
    while (n > 0 && path[n - 1] == '/')
        path[--n] = '\0';
    w.root = n + 1;
    if (stat(out, &w.out))
        w.out.st_nlink = 0;
    if (same(st, &w.out))
        rc = mp_fail(err, MP_EINVAL,
                     "%s is both IN and OUT: the next run would take the "
                     "results for pictures",
                     arg);
    else
        rc = walk_folder(&w, n ? path : "/.", NULL, st);
    if (!rc && !in->n)
        rc = mp_fail(
            err, MP_EINVAL, "%s: no .png, .jpg or .jpeg in this folder%s", arg,
            recursive ? " or below it" : " (-r looks into its folders too)");
    if (in->n)
        qsort(in->at, in->n, sizeof *in->at, by_path);
    free(path);
    return rc;
}

/* ---- lists ---- */

static int add_listed(struct mp_inputs *in, const char *path,
                      struct mp_error *err)
{
    int whole = path[0] != '/' && !goes_up(path);

    return add(in, path, whole ? path : last_part(path), err);
}

static int read_list(struct mp_inputs *in, const char *name,
                     struct mp_error *err)
{
    int standard = !strcmp(name, "-");
    FILE *f = standard ? stdin : fopen(name, "r");
    const char *shown = standard ? "standard input" : name;
    char *line = NULL;
    size_t size = 0, number = 0;
    ssize_t n;
    int rc = 0;

    if (!f)
        return mp_fail(err, MP_EIO, "%s: %s", name, strerror(errno));
    while (!rc && (n = getline(&line, &size, f)) >= 0) {
        number++;
        if (strlen(line) != (size_t)n) {
            rc = mp_fail(err, MP_EFORMAT, "%s:%zu: not a list of names", shown,
                         number);
            break;
        }
        line[strcspn(line, "\n")] = '\0';
        n = (ssize_t)strlen(line);
        if (n && line[n - 1] == '\r') /* a list made on Windows */
            line[n - 1] = '\0';
        if (*line)
            rc = add_listed(in, line, err);
    }
    if (!rc && !feof(f)) /* or out of memory */
        rc = mp_fail(err, MP_EIO, "%s: %s", shown, strerror(errno));
    if (!rc && !in->n)
        rc = mp_fail(err, MP_EINVAL, "%s: no names in it", shown);
    free(line);
    if (!standard)
        fclose(f);
    return rc;
}

/* ---- all ---- */

static int by_stem(const void *a, const void *b)
{
    const struct mp_input *const *x = a, *const *y = b;
    int order = strcmp((*x)->stem, (*y)->stem);

    return order ? order : strcmp((*x)->path, (*y)->path);
}

static int check_stems(const struct mp_inputs *in, struct mp_error *err)
{
    const struct mp_input **sorted = malloc(in->n * sizeof *sorted);
    int rc = 0;

    if (!sorted)
        return no_memory(err);
    for (size_t i = 0; i < in->n; i++)
        sorted[i] = &in->at[i];
    qsort(sorted, in->n, sizeof *sorted, by_stem);
    for (size_t i = 1; i < in->n && !rc; i++) {
        const struct mp_input *a = sorted[i - 1], *b = sorted[i];

        if (strcmp(a->stem, b->stem))
            continue;
        if (!strcmp(a->path, b->path))
            rc = mp_fail(err, MP_EINVAL, "%s is named twice", a->path);
        else
            rc = mp_fail(err, MP_EINVAL,
                         "%s and %s: the results of both would be named "
                         "%s.*; rename one",
                         a->path, b->path, a->stem);
    }
    free(sorted);
    return rc;
}

int mp_inputs_open(struct mp_inputs *in, const char *arg, int recursive,
                   const char *out, struct mp_error *err)
{
    struct stat st;
    int rc;

    *in = (struct mp_inputs){0};
    if (!strcmp(arg, "-") || *arg == '@')
        rc = read_list(in, *arg == '@' ? arg + 1 : arg, err);
    else if (stat(arg, &st))
        rc = mp_fail(err, MP_EIO, "%s: %s", arg, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        rc = read_folder(in, arg, &st, recursive, out, err);
    else
        rc = add(in, arg, last_part(arg), err);
    return rc ? rc : check_stems(in, err);
}

/* ---- shards ---- */

/* A decimal number from 0 to a billion, up to `end`. */
static int number(long *out, const char *text, char end)
{
    char *after;

    if (!text || *text < '0' || *text > '9')
        return 0;
    errno = 0;
    *out = strtol(text, &after, 10);
    return *after == end && !errno && *out <= 1000000000;
}

static int variable(long *out, const char *name)
{
    return number(out, getenv(name), '\0');
}

/* Multiply in a further split: part i of n of each part so far. n 0 of the
 * result: it makes no sense. */
static void split(struct mp_shard *s, long i, long n)
{
    int fits = i >= 0 && i < n && n <= INT_MAX / (s->n + 1);

    s->i = fits ? (int)((s->i - 1) * n + i + 1) : 0;
    s->n = fits ? (int)(s->n * n) : 0;
}

static int from_slurm(struct mp_shard *s)
{
    long id, first, count, step, found = 0;

    if (variable(&id, "SLURM_ARRAY_TASK_ID") &&
        variable(&first, "SLURM_ARRAY_TASK_MIN") &&
        variable(&count, "SLURM_ARRAY_TASK_COUNT") && count > 0) {
        if (!variable(&step, "SLURM_ARRAY_TASK_STEP") || step < 1)
            step = 1;
        split(s, (id - first) / step, count);
        found = 1;
    }
    if (variable(&id, "SLURM_PROCID") && variable(&count, "SLURM_NTASKS") &&
        count > 0) {
        split(s, id, count);
        found = 1;
    }
    return (int)found;
}

static int from_environment(struct mp_shard *s)
{
    static const char *const names[][2] = {
        {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
        {"PMI_RANK", "PMI_SIZE"}};
    long i, n;

    /* mpirun may run inside a Slurm job: what is nearest counts */
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (variable(&i, names[k][0]) && variable(&n, names[k][1]) && n > 0) {
            split(s, i, n);
            return 1;
        }
    return from_slurm(s);
}

int mp_shard_parse(struct mp_shard *s, const char *text, struct mp_error *err)
{
    const char *slash = strchr(text, '/');
    long i, n;

    *s = (struct mp_shard){1, 1};
    if (!strcmp(text, "auto")) {
        if (!from_environment(s))
            return mp_fail(err, MP_EINVAL,
                           "--shard auto: neither Slurm, Open MPI nor PMI has "
                           "set its variables here");
    } else if (slash && number(&i, text, '/') && number(&n, slash + 1, '\0')) {
        *s = (struct mp_shard){(int)i, (int)n};
    } else {
        s->n = 0;
    }
    if (s->n < 1 || s->i < 1 || s->i > s->n)
        return mp_fail(err, MP_EINVAL,
                       "--shard %s: must be I/N with I from 1 to N, or auto",
                       text);
    return 0;
}

void mp_inputs_keep(struct mp_inputs *in, const struct mp_shard *s)
{
    size_t kept = 0;

    for (size_t k = 0; k < in->n; k++) {
        if (k % (size_t)s->n == (size_t)(s->i - 1)) {
            in->at[kept++] = in->at[k];
        } else {
            free(in->at[k].path);
            free(in->at[k].stem);
        }
    }
    in->n = kept;
}
