/* SPDX-License-Identifier: MIT */
/* record.c - run.json, errors.jsonl and labels.json. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "classes.h"
#include "image.h"
#include "json.h"
#include "record.h"
#include "sink.h"

struct mp_record {
    const struct mp_pipeline *pipeline;
    json_t *head; /* the members that do not change */
    const struct mp_settings *settings;
    const char *folder;
    char *run, *errors;
    char *joined;  /* NULL: nothing to join */
    int errors_fd; /* -1: no failure so far */
};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- what identifies a run ---- */

/* Add up the files of a checkpoint: itself, or, of a folder, all in it and
 * in the folders one level below, as diffusers lays them out. Nonzero: out of
 * memory. */
static int measure(const char *path, int levels, json_int_t *bytes,
                   json_int_t *newest)
{
    struct dirent *e;
    struct stat st;
    DIR *d;
    int bad;

    if (stat(path, &st))
        return 0;
    if (!S_ISDIR(st.st_mode)) {
        *bytes += st.st_size;
        if (*newest < st.st_mtime)
            *newest = st.st_mtime;
        return 0;
    }
    if (!levels)
        return 0;
    d = opendir(path);
    bad = !d && errno == ENOMEM;
    while (d && !bad && (e = readdir(d))) {
        char *below;

        if (e->d_name[0] == '.')
            continue;
        bad = asprintf(&below, "%s/%s", path, e->d_name) < 0;
        if (bad)
            break;
        bad = measure(below, levels - 1, bytes, newest);
        free(below);
    }
    if (d)
        closedir(d);
    return bad;
}

json_t *mp_record_checkpoint(const char *path)
{
    json_int_t bytes = 0, newest = 0;
    char *real = realpath(path, NULL);
    json_t *out = NULL;

    if ((real || errno != ENOMEM) && !measure(path, 2, &bytes, &newest))
        out = json_pack("{s:o, s:I, s:I}", "path",
                        mp_json_text(real ? real : path), "bytes", bytes,
                        "modified", newest);
    free(real);
    return out;
}

/* "cpu" of "cpu (..., 2 threads), bf16" */
static json_t *backend_name(const struct mp_pipeline *p)
{
    const char *text = mp_pipeline_backend(p);

    return json_stringn(text, strcspn(text, " "));
}

static json_t *list_kinds(const struct mp_settings *s)
{
    json_t *list = json_array();
    int bad = 0;

    for (char **k = s->kinds; *k && !bad; k++)
        bad = json_array_append_new(list, mp_json_text(*k));
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

/* What the head says of them, unless it is no JSON, or too long. */
static int add_results(json_t *o, const struct mp_settings *s)
{
    char text[4096];
    int n = s->plugin->describe(s->head_conf, text, sizeof text), rc;
    json_error_t why;
    json_t *results;

    if (n < 0 || (size_t)n >= sizeof text)
        return 0;
    rc = mp_json_parse(&results, text, (size_t)n, &why, NULL);
    if (rc)
        return rc == MP_ENOMEM ? rc : 0;
    return json_object_set_new(o, "results", results);
}

static int add_shard(json_t *o, const struct mp_shard *shard)
{
    return json_object_set_new(o, "shard",
                               json_sprintf("%d/%d", shard->i, shard->n));
}

static json_t *describe(const struct mp_settings *s,
                        const struct mp_pipeline *p,
                        const struct mp_shard *shard)
{
    json_t *out = json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "mpipe", PACKAGE_VERSION,
        "settings", mp_settings_json(s), "checkpoint",
        mp_record_checkpoint(s->checkpoint), "network",
        mp_json_text(mp_pipeline_network_text(p)), "backend", backend_name(p),
        "device", mp_json_text(mp_pipeline_device(p)), "precision",
        mp_json_text(mp_pipeline_precision(p)), "formats", list_kinds(s));

    if (out && (!s->plugin->describe || !add_results(out, s)) &&
        (shard->n == 1 || !add_shard(out, shard)))
        return out;
    json_decref(out);
    return NULL;
}

/* ---- runs that were here before ---- */

/* Others make no difference to the results, or are compared as what they led
 * to: backend, precision, checkpoint. */
static int is_compared(const char *section, const char *key)
{
    return strcmp(section, "compute") && strcmp(section, "eval") &&
           strcmp(section, "daemon") &&
           (strcmp(section, "model") || strcmp(key, "checkpoint"));
}

struct difference {
    char key[128], was[160], is[160];
};

static void print_value(char *out, size_t size, const json_t *v)
{
    if (json_is_integer(v))
        snprintf(out, size, "%lld", (long long)json_integer_value(v));
    else
        snprintf(out, size, "%s",
                 json_is_string(v) ? json_string_value(v) : "not set");
}

static int differs(struct difference *d, const char *where, const char *key,
                   const json_t *was, const json_t *is)
{
    if (was && is && json_equal(was, is))
        return 0;
    snprintf(d->key, sizeof d->key, *where ? "%s %s" : "%s%s", where, key);
    print_value(d->was, sizeof d->was, was);
    print_value(d->is, sizeof d->is, is);
    return 1;
}

static int section_differs(struct difference *d, const char *section,
                           const json_t *was, json_t *is)
{
    char where[72];
    const char *key;
    json_t *value;

    snprintf(where, sizeof where, "[%s]", section);
    json_object_foreach(is, key, value) if (is_compared(section, key) &&
                                            differs(d, where, key,
                                                    json_object_get(was, key),
                                                    value)) return 1;
    return 0;
}

static int run_differs(struct difference *d, const json_t *was,
                       const json_t *is)
{
    static const char *const whole[] = {"mpipe", "backend", "precision"};
    json_t *settings = json_object_get(is, "settings"), *value;
    const json_t *before = json_object_get(was, "settings");
    const char *key;

    json_object_foreach(settings, key,
                        value) if (section_differs(d, key,
                                                   json_object_get(before, key),
                                                   value)) return 1;
    before = json_object_get(was, "checkpoint");
    json_object_foreach(json_object_get(is, "checkpoint"), key,
                        value) if (differs(d, "checkpoint's", key,
                                           json_object_get(before, key),
                                           value)) return 1;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (differs(d, "", whole[i], json_object_get(was, whole[i]),
                    json_object_get(is, whole[i])))
            return 1;
    return 0;
}

static int check_run(const struct mp_record *r, const char *path,
                     struct mp_error *err)
{
    struct difference d;
    json_t *was;
    int rc = mp_json_read(&was, path, SIZE_MAX, err);

    if (!rc && !json_is_object(was))
        rc = mp_fail(err, MP_EFORMAT, "%s: no object", path);
    if (rc == MP_EFORMAT)
        mp_fail(err, rc,
                "%s; this is not what mpipe writes: remove it, or choose "
                "another folder",
                err->text);
    else if (!rc && run_differs(&d, was, r->head))
        rc = mp_fail(err, MP_EINVAL,
                     "%s: the results there were made with other settings: %s "
                     "was %s, is %s; choose another folder, go back to those "
                     "settings, or remove this file",
                     path, d.key, d.was, d.is);
    json_decref(was);
    return rc;
}

/* "run.json", "run.2-of-4.json"; "run.labels.json" may be a result. */
static int is_run(const char *name)
{
    unsigned i, n;
    int end = -1;

    if (!strcmp(name, "run.json"))
        return 1;
    return sscanf(name, "run.%u-of-%u.json%n", &i, &n, &end) == 2 && end > 0 &&
           !name[end];
}

static int check_runs(const struct mp_record *r, const char *out, int *before,
                      struct mp_error *err)
{
    DIR *d = opendir(out);
    struct dirent *e;
    int rc = 0;

    if (!d)
        return mp_fail(err, MP_EIO, "%s: %s", out, strerror(errno));
    while (!rc && (errno = 0, e = readdir(d))) {
        char *path;

        if (!is_run(e->d_name))
            continue;
        *before = 1;
        if (asprintf(&path, "%s/%s", out, e->d_name) < 0) {
            rc = no_memory(err);
            break;
        }
        rc = check_run(r, path, err);
        free(path);
    }
    if (!rc && !e && errno)
        rc = mp_fail(err, MP_EIO, "%s: %s", out, strerror(errno));
    closedir(d);
    return rc;
}

/* ---- opening ---- */

static char *name_in(const char *out, const char *stem, const char *suffix,
                     const struct mp_shard *shard)
{
    char *path;
    int n = shard->n > 1 ? asprintf(&path, "%s/%s.%d-of-%d.%s", out, stem,
                                    shard->i, shard->n, suffix)
                         : asprintf(&path, "%s/%s.%s", out, stem, suffix);

    return n < 0 ? NULL : path;
}

static int write_labels(const struct mp_settings *s, const char *out,
                        struct mp_error *err)
{
    char *path;
    int rc;

    if (!s->classes)
        return 0;
    if (asprintf(&path, "%s/labels.json", out) < 0)
        return no_memory(err);
    rc = mp_classes_write(s->classes, path, err);
    free(path);
    return rc;
}

static int wants_joined(const struct mp_settings *s)
{
    struct mp_sink sink = {.kinds = s->kinds};

    return s->plugin->joined && mp_sink_wants(&sink, s->plugin->joined);
}

int mp_record_open(struct mp_record **out, int *before,
                   const struct mp_settings *settings,
                   const struct mp_pipeline *pipeline, const char *folder,
                   const struct mp_shard *shard, struct mp_error *err)
{
    struct mp_record *r = calloc(1, sizeof *r);
    int rc;

    *out = NULL;
    *before = 0;
    if (!r)
        return no_memory(err);
    r->errors_fd = -1;
    r->pipeline = pipeline;
    r->settings = settings;
    r->folder = folder;
    r->head = describe(settings, pipeline, shard);
    r->run = name_in(folder, "run", "json", shard);
    r->errors = name_in(folder, "errors", "jsonl", shard);
    rc = r->head && r->run && r->errors ? 0 : no_memory(err);
    if (!rc && wants_joined(settings) &&
        !(r->joined =
              name_in(folder, settings->plugin->joined_as, "json", shard)))
        rc = no_memory(err);
    if (!rc)
        rc = mp_file_parents(r->run, err);
    if (!rc)
        rc = check_runs(r, folder, before, err);
    if (!rc)
        rc = write_labels(settings, folder, err);
    if (!rc && unlink(r->errors) && errno != ENOENT)
        rc = mp_fail(err, MP_EIO, "%s: %s", r->errors, strerror(errno));
    if (rc) {
        mp_record_free(r);
        return rc;
    }
    *out = r;
    return 0;
}

void mp_record_free(struct mp_record *r)
{
    if (!r)
        return;
    if (r->errors_fd >= 0)
        close(r->errors_fd);
    json_decref(r->head);
    free(r->run);
    free(r->errors);
    free(r->joined);
    free(r);
}

/* ---- writing ---- */

static int append(int fd, const char *at, size_t n)
{
    while (n) {
        ssize_t k = write(fd, at, n);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return -1;
        at += k;
        n -= (size_t)k;
    }
    return 0;
}

int mp_record_failure(struct mp_record *r, const char *input, const char *stage,
                      const char *text, struct mp_error *err)
{
    json_t *o = json_pack("{s:o, s:s, s:o}", "input", mp_json_text(input),
                          "stage", stage, "error", mp_json_text(text));
    char *dump = mp_json_dump(o, JSON_COMPACT), *line = NULL;
    int n = dump ? asprintf(&line, "%s\n", dump) : -1, rc = 0;

    json_decref(o);
    free(dump);
    if (n < 0)
        return no_memory(err);
    if (r->errors_fd < 0)
        r->errors_fd =
            open(r->errors, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (r->errors_fd < 0 || append(r->errors_fd, line, (size_t)n))
        rc = mp_fail(err, MP_EIO, "%s: %s", r->errors, strerror(errno));
    free(line);
    return rc;
}

static json_t *describe_seconds(const struct mp_record *r,
                                const struct mp_counts *c,
                                const struct mp_seconds *s)
{
    struct mp_pipeline_times t;
    double pictures = c->done ? (double)c->done : 1;

    mp_pipeline_times(r->pipeline, &t);
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "load",
                     t.load, "compile", t.compile, "read", s->read, "network",
                     t.network, "merge", t.merge, "write", s->write, "total",
                     s->total, "network_per_picture", t.network / pictures,
                     "network_median", s->network_median);
}

int mp_record_write(struct mp_record *r, const char *state,
                    const struct mp_counts *c, const struct mp_seconds *s,
                    struct mp_error *err)
{
    json_t *o = json_pack("{s:s, s:{s:I, s:I, s:I, s:I}, s:o}", "state", state,
                          "counts", "total", (json_int_t)c->total, "done",
                          (json_int_t)c->done, "failed", (json_int_t)c->failed,
                          "skipped", (json_int_t)c->skipped, "seconds",
                          describe_seconds(r, c, s));
    char *text = NULL, *line = NULL;
    const char *key;
    json_t *value;
    int n = -1, rc, bad = !o;

    json_object_foreach(r->head, key, value) if (!bad) bad =
        json_object_set(o, key, value);
    if (!bad)
        text = mp_json_dump(o, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    if (text)
        n = asprintf(&line, "%s\n", text);
    rc = n < 0 ? no_memory(err) : mp_file_write(r->run, line, (size_t)n, err);
    free(n < 0 ? NULL : line);
    free(text);
    json_decref(o);
    return rc;
}

/* The elements of one picture's array, a line each; a picture that failed has
 * none. */
static int join_one(FILE *f, size_t *count, const char *path,
                    struct mp_error *err)
{
    json_t *list, *one;
    size_t i;
    int rc;

    if (access(path, F_OK))
        return 0;
    rc = mp_json_read(&list, path, SIZE_MAX, err);
    if (!rc && !json_is_array(list))
        rc = mp_fail(err, MP_EFORMAT, "%s: not a list", path);
    json_array_foreach(list, i, one)
    {
        fputs((*count)++ ? ",\n " : "\n ", f);
        if (json_dumpf(one, f, JSON_COMPACT | JSON_REAL_PRECISION(15)))
            rc = no_memory(err);
    }
    json_decref(list);
    return rc;
}

int mp_record_join(const struct mp_record *r, const struct mp_inputs *in,
                   struct mp_error *err)
{
    struct mp_file out;
    size_t count = 0;
    int rc;

    if (!r->joined)
        return 0;
    rc = mp_file_open(&out, r->joined, err);
    if (rc)
        return rc;
    fputc('[', out.f);
    for (size_t i = 0; i < in->n && !rc; i++) {
        char *path;

        if (asprintf(&path, "%s/%s.%s.json", r->folder, in->at[i].stem,
                     r->settings->plugin->joined) < 0) {
            rc = no_memory(err);
            break;
        }
        rc = join_one(out.f, &count, path, err);
        free(path);
    }
    fputs(count ? "\n]\n" : "]\n", out.f);
    return mp_file_close(&out, rc, err);
}
