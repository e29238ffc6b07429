/* SPDX-License-Identifier: MIT */
/* config.c - the option rows of mpiped. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "conf.h"
#include "config.h"

#define NAME_MOST 40

#define ROW(sec, id, kind, def, least, most, words, unit, help)                \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct mp_daemon_conf, sec.id), def,      \
            least, most, words, unit, help                                     \
    }
#define PIPE(id, kind, def, least, most, words, unit, help)                    \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct mp_pipeline_entry, id), def,       \
            least, most, words, unit, help                                     \
    }

/* clang-format off */
static const struct mp_option http_rows[] = {
    ROW(http, socket, STRING, "/run/mpipe/mpiped.sock", 0, 0, NULL, NULL,
        "Path of the Unix socket; none: no such socket"),
    ROW(http, mode, STRING, "0660", 0, 0, NULL, NULL,
        "Permissions of the socket, octal"),
    ROW(http, group, STRING, "none", 0, 0, NULL, NULL,
        "Group that owns the socket; none: that of mpiped"),
    ROW(http, listen, STRING, "none", 0, 0, NULL, NULL,
        "ADDRESS:PORT for TCP, as 127.0.0.1:8000 or [::1]:8000; none: no TCP"),
    ROW(http, token_file, STRING, "none", 0, 0, NULL, NULL,
        "File with the token that TCP clients must send; needed for addresses "
        "beyond loopback"),
    ROW(http, threads, INT, "2", 1, 64, NULL, NULL,
        "Threads that read requests and write answers, of each socket"),
    {0}
};
static const struct mp_option limits_rows[] = {
    ROW(limits, body, INT, "64", 1, 2047, NULL, "MiB",
        "Largest body of a request, as sent and inflated"),
    ROW(limits, json, INT, "8", 1, 256, NULL, "MiB",
        "Largest JSON part of a request"),
    ROW(limits, header, INT, "32", 4, 1024, NULL, "KiB",
        "Largest head of a request: its first line and header lines"),
    ROW(limits, pictures, INT, "64", 1, 4096, NULL, NULL,
        "Most pictures of a request"),
    ROW(limits, chunks, INT, "65536", 1, 0x7fffffff, NULL, NULL,
        "Most pieces of a chunked body"),
    ROW(limits, connections, INT, "1024", 1, 1000000, NULL, NULL,
        "Most connections at once, of each socket"),
    ROW(limits, connections_per_address, INT, "256", 1, 1000000, NULL, NULL,
        "Most TCP connections at once from one address"),
    ROW(limits, request_time, FLOAT, "30", 0.1, 86400, NULL, "s",
        "A request that is not all there after this time is cut"),
    ROW(limits, idle_time, FLOAT, "30", 1, 86400, NULL, "s",
        "A connection on which nothing moves for this time is closed"),
    ROW(limits, queue, INT, "128", 1, 100000, NULL, NULL,
        "Most requests that wait for a pipeline"),
    ROW(limits, in_flight, INT, "auto", 1, 4096, "auto", NULL,
        "Most requests of a pipeline that its worker has; auto is twice the "
        "batch and 3"),
    ROW(limits, timeout, FLOAT, "0", 0, 86400, NULL, "s",
        "Time for a request that sets no timeout; 0: no limit"),
    ROW(limits, compute_time, FLOAT, "600", 0.1, 86400, NULL, "s",
        "A worker that has had a request for this time is killed"),
    ROW(limits, load_time, FLOAT, "600", 0.1, 86400, NULL, "s",
        "A worker that has loaded a pipeline for this time is killed"),
    ROW(limits, drain_time, FLOAT, "30", 0, 86400, NULL, "s",
        "Time for requests that are under way when mpiped is to end"),
    ROW(limits, memory, INT, "none", 1, 0x7fffffff, "none", "MiB",
        "Memory of a worker beyond which on-demand pipelines that were not "
        "used for longest are unloaded"),
    {0}
};
static const struct mp_option worker_rows[] = {
    ROW(worker, deaths, INT, "5", 1, 1000000, NULL, NULL,
        "A pipeline that its worker died of so often becomes unavailable"),
    ROW(worker, within, FLOAT, "60", 1, 86400, NULL, "s",
        "Deaths longer ago do not count"),
    ROW(worker, backoff, FLOAT, "0.1", 0, 60, NULL, "s",
        "Wait before a worker that died twice is started again; doubled with "
        "each further death, up to 10 s"),
    {0}
};
static const struct mp_option pipeline_rows[] = {
    PIPE(file, STRING, NULL, 0, 0, NULL, NULL,
        "Its configuration, see mpipe.conf(5), from the folder of this file; "
        "without: what is set here"),
    PIPE(load, CHOICE, "at-start", 0, 0, "at-start on-demand", NULL,
        "When to load it: before mpiped is ready, or for its first request"),
    PIPE(worker, STRING, "main", 0, 0, NULL, NULL,
        "Pipelines with the same word here share a process and its memory"),
    PIPE(batch_window, FLOAT, "2", 0, 10000, NULL, "ms",
        "How long a picture may wait for others of its size; 0: not at all"),
    {0}
};
/* clang-format on */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

int mp_is_name(const char *s, size_t n)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyz"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

    return n > 0 && n <= NAME_MOST && *s != '.' && strspn(s, good) >= n;
}

/* ---- pipelines ---- */

/* A row and a value for each key "section.key" of an entry's section. */
static int list_inline(struct mp_pipeline_entry *e, const struct mp_conf *c,
                       const char *section)
{
    const char *s, *key;
    size_t at = 0, n = 0, most = 0;

    while (mp_conf_next(c, &at, &s, &key))
        most += key && !strcmp(s, section);
    e->rows = calloc(most + 1, sizeof *e->rows);
    e->value = calloc(most + 1, sizeof *e->value);
    if (!e->rows || !e->value)
        return MP_ENOMEM;
    for (at = 0; mp_conf_next(c, &at, &s, &key);)
        if (key && !strcmp(s, section) && strchr(key, '.')) {
            e->rows[n] = (struct mp_option){.name = key,
                                            .type = MP_OPT_STRING,
                                            .offset = n * sizeof *e->value,
                                            .help = "set in the pipeline"};
            n++;
        }
    return 0;
}

/* Them as "section.key=value". */
static int take_inline(struct mp_pipeline_entry *e, struct mp_conf *c,
                       const char *section, struct mp_error *err)
{
    size_t n = 0;
    int rc;

    if (list_inline(e, c, section))
        return no_memory(err);
    rc = mp_conf_section(c, section, e->rows, e->value, err);
    if (rc)
        return rc;
    while (e->rows[n].name)
        n++;
    e->assign = calloc(n + 1, sizeof *e->assign);
    if (!e->assign)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        if (asprintf(&e->assign[i], "%s=%s", e->rows[i].name, e->value[i]) <
            0) {
            e->assign[i] = NULL;
            return no_memory(err);
        }
    return 0;
}

/* Which head it has, as far as that can be told without heads: what is wrong
 * with the file is a worker's to find. */
static int find_head(struct mp_pipeline_entry *e, struct mp_error *err)
{
    struct mp_conf *c = mp_conf_new();
    struct mp_error unused;
    const char *head;

    if (!c)
        return no_memory(err);
    if (e->config)
        mp_conf_file(c, e->config, &unused);
    for (char **a = e->assign; *a; a++)
        mp_conf_set(c, *a, &unused);
    head = mp_conf_get(c, "pipeline", "head");
    e->head = head ? strdup(head) : NULL;
    mp_conf_free(c);
    return head && !e->head ? no_memory(err) : 0;
}

static int check_file(struct mp_pipeline_entry *e, struct mp_error *err)
{
    if (!e->file || !*e->file)
        return 0;
    if ((*e->file == '/'
             ? asprintf(&e->config, "%s", e->file)
             : asprintf(&e->config, "%s/%s", e->folder, e->file)) < 0) {
        e->config = NULL;
        return no_memory(err);
    }
    if (access(e->config, R_OK))
        return mp_fail(err, MP_EINVAL, "file = %s: %s cannot be read", e->file,
                       e->config);
    return 0;
}

static int check_entry(struct mp_pipeline_entry *e, const char *folder,
                       struct mp_error *err)
{
    int rc;

    e->folder = folder;
    if (!mp_is_name(e->worker, strlen(e->worker)))
        return mp_fail(err, MP_EINVAL,
                       "worker = %s: up to %d letters, digits and . _ -",
                       e->worker, NAME_MOST);
    rc = check_file(e, err);
    if (!rc)
        rc = find_head(e, err);
    if (!rc && !e->config && !e->head)
        rc = mp_fail(err, MP_EINVAL,
                     "file is not set, which names the pipeline's "
                     "configuration; without it, pipeline.head is needed here");
    return rc;
}

static int add_pipeline(struct mp_daemon_conf *c, const char *section,
                        struct mp_error *err)
{
    const char *name = section + strlen("pipeline ");
    struct mp_pipeline_entry *more =
        realloc(c->pipeline, (c->npipeline + 1) * sizeof *more);

    if (!more)
        return no_memory(err);
    c->pipeline = more;
    more += c->npipeline;
    memset(more, 0, sizeof *more);
    if (!mp_is_name(name, strlen(name)))
        return mp_fail(err, MP_EINVAL,
                       "[%s]: a pipeline's name is up to %d letters, digits "
                       "and . _ -",
                       section, NAME_MOST);
    for (size_t i = 0; i < c->npipeline; i++)
        if (!strcmp(c->pipeline[i].name, name))
            return 0; /* reopened */
    if (!(more->name = strdup(name)))
        return no_memory(err);
    c->npipeline++;
    return 0;
}

static int find_pipelines(struct mp_daemon_conf *c, struct mp_error *err)
{
    const char *section, *key;
    size_t at = 0;
    int rc = 0;

    while (!rc && mp_conf_next(c->conf, &at, &section, &key))
        if (!strncmp(section, "pipeline ", strlen("pipeline ")))
            rc = add_pipeline(c, section, err);
    if (!rc && !c->npipeline)
        rc = mp_fail(err, MP_EINVAL, "there is no [pipeline NAME] in it");
    return rc;
}

static int declare_pipelines(struct mp_daemon_conf *c, struct mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < c->npipeline && !rc; i++) {
        struct mp_pipeline_entry *e = &c->pipeline[i];
        char section[sizeof "pipeline " + NAME_MOST];

        snprintf(section, sizeof section, "pipeline %s", e->name);
        rc = mp_conf_section(c->conf, section, pipeline_rows, e, err);
        if (!rc)
            rc = take_inline(e, c->conf, section, err);
        if (!rc)
            rc = check_entry(e, mp_conf_folder(c->conf), err);
        if (rc)
            mp_fail_in(err, "[%s]", section);
    }
    return rc;
}

/* ---- all ---- */

static int declare(struct mp_daemon_conf *c, struct mp_error *err)
{
    int rc = mp_conf_section(c->conf, "http", http_rows, c, err);

    if (!rc)
        rc = mp_conf_section(c->conf, "limits", limits_rows, c, err);
    if (!rc)
        rc = mp_conf_section(c->conf, "worker", worker_rows, c, err);
    return rc;
}

int mp_daemon_conf_open(struct mp_daemon_conf **out, const char *file,
                        const char *const *assign, size_t n,
                        struct mp_error *err)
{
    struct mp_daemon_conf *c = calloc(1, sizeof *c);
    int rc;

    *out = NULL;
    if (!c || !(c->conf = mp_conf_new())) {
        free(c);
        return no_memory(err);
    }
    rc = declare(c, err);
    if (!rc)
        rc = mp_conf_file(c->conf, file, err);
    for (size_t i = 0; i < n && !rc; i++)
        rc = mp_conf_set(c->conf, assign[i], err);
    if (!rc)
        rc = find_pipelines(c, err);
    if (!rc)
        rc = declare_pipelines(c, err);
    if (!rc)
        rc = mp_conf_finish(c->conf, NULL, err);
    if (rc) {
        mp_daemon_conf_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

int mp_daemon_conf_dump(const struct mp_daemon_conf *c, FILE *out,
                        struct mp_error *err)
{
    if (mp_conf_dump(c->conf, out) == MP_EIO)
        return mp_fail(err, MP_EIO, "the configuration could not be written");
    return 0;
}

void mp_daemon_conf_free(struct mp_daemon_conf *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->npipeline; i++) {
        for (char **a = c->pipeline[i].assign; a && *a; a++)
            free(*a);
        free(c->pipeline[i].assign);
        free(c->pipeline[i].rows);
        free(c->pipeline[i].value);
        free(c->pipeline[i].name);
        free(c->pipeline[i].config);
        free(c->pipeline[i].head);
    }
    free(c->pipeline);
    mp_conf_free(c->conf);
    free(c);
}
