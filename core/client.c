/* SPDX-License-Identifier: MIT */
/* client.c - a small client of mpiped's protocol, over its Unix socket. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "boxes.h"
#include "client.h"
#include "json.h"
#include "record.h"
#include "text.h"

#define HEAD_MAX   16384
#define BODY_MAX   ((size_t)1 << 32)
#define MANY_LEAST 8   /* pictures at once */
#define PATIENCE   600 /* tries, 0.1 s apart, while its queue is full */

struct mp_client {
    const struct mp_settings *settings;
    struct sockaddr_un at;
    char *model;
    char *request; /* JSON up to the size and name of a picture */
    struct mp_pipeline *pipeline;
    int many;
    pthread_mutex_t lock;
    int idle[MP_CLIENT_MOST]; /* open connections that nobody uses */
    int nidle;
};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- HTTP ---- */

struct answer {
    int status;
    long head; /* JSON before binary data; -1: none */
    char *body;
    size_t n;
    int last; /* the connection ends */
};

static int dial(const struct mp_client *c)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (const struct sockaddr *)&c->at, sizeof c->at)) {
        int code = errno;

        close(fd);
        errno = code;
        return -1;
    }
    return fd;
}

static int send_all(int fd, const char *at, size_t n)
{
    while (n) {
        ssize_t k = send(fd, at, n, MSG_NOSIGNAL);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return -1;
        at += k;
        n -= (size_t)k;
    }
    return 0;
}

static int receive(int fd, char *to, size_t n)
{
    while (n) {
        ssize_t k = recv(fd, to, n, 0);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return -1;
        to += k;
        n -= (size_t)k;
    }
    return 0;
}

/* The number behind a header line, -1: it is not there. */
static long header_number(const char *head, const char *name)
{
    const char *at = strcasestr(head, name);

    return at ? strtol(at + strlen(name), NULL, 10) : -1;
}

/* Reads the head byte by byte up to its end, and then the body. */
static int hear(int fd, struct answer *a)
{
    char head[HEAD_MAX] = "";
    size_t n = 0;
    long length;

    while (n < 4 || memcmp(head + n - 4, "\r\n\r\n", 4)) {
        if (n + 1 >= sizeof head || receive(fd, head + n, 1))
            return -1;
        head[++n] = '\0';
    }
    length = header_number(head, "\r\nContent-Length:");
    if (sscanf(head, "HTTP/1.%*d %d", &a->status) != 1 || length < 0 ||
        (size_t)length > BODY_MAX)
        return -1;
    a->head = header_number(head, "\r\nInference-Header-Content-Length:");
    a->last = strcasestr(head, "\r\nConnection: close") != NULL;
    a->n = (size_t)length;
    a->body = malloc(a->n + 1);
    if (!a->body || receive(fd, a->body, a->n)) {
        free(a->body);
        a->body = NULL;
        return -1;
    }
    a->body[a->n] = '\0';
    return a->head > length ? -1 : 0;
}

static int take_connection(struct mp_client *c)
{
    int fd = -1;

    pthread_mutex_lock(&c->lock);
    if (c->nidle)
        fd = c->idle[--c->nidle];
    pthread_mutex_unlock(&c->lock);
    return fd;
}

static void give_connection(struct mp_client *c, int fd)
{
    pthread_mutex_lock(&c->lock);
    if (c->nidle < MP_CLIENT_MOST) {
        c->idle[c->nidle++] = fd;
        fd = -1;
    }
    pthread_mutex_unlock(&c->lock);
    if (fd >= 0)
        close(fd);
}

/* Ask once. An idle connection may have been closed over there: then again, on
 * one that is new. */
static int ask(struct mp_client *c, struct answer *a, const char *method,
               const char *path, const char *json, const void *data, size_t n,
               struct mp_error *err)
{
    size_t size = strlen(json);
    char head[512];
    int k = snprintf(head, sizeof head,
                     "%s %s HTTP/1.1\r\nHost: localhost\r\n"
                     "Inference-Header-Content-Length: %zu\r\n"
                     "Content-Length: %zu\r\n\r\n",
                     method, path, size, size + n);

    for (int fresh = 0;; fresh = 1) {
        int fd = fresh ? -1 : take_connection(c), sent;

        *a = (struct answer){.head = -1};
        fresh |= fd < 0;
        if (fd < 0 && (fd = dial(c)) < 0)
            return mp_fail(err, MP_EIO, "%s: %s", c->at.sun_path,
                           strerror(errno));
        sent = !send_all(fd, head, (size_t)k) && !send_all(fd, json, size) &&
               !send_all(fd, data, n);
        if (!hear(fd, a)) { /* what is too large is refused before its end */
            if (a->last || !sent)
                close(fd);
            else
                give_connection(c, fd);
            return 0;
        }
        close(fd);
        if (fresh)
            return mp_fail(err, MP_EIO, "%s: mpiped gave no answer",
                           c->at.sun_path);
    }
}

/* A JSON answer, new; *status. NULL: none. */
static json_t *ask_json(struct mp_client *c, int *status, const char *method,
                        const char *path, struct mp_error *err)
{
    struct answer a;
    json_error_t why;
    json_t *o = NULL;
    int rc;

    *status = 0;
    if (ask(c, &a, method, path, "", "", 0, err))
        return NULL;
    *status = a.status;
    rc = mp_json_parse(&o, a.body, a.n, &why, err);
    free(a.body);
    if (rc == MP_EFORMAT)
        mp_fail(err, MP_EIO, "%s: the answer is no JSON", c->at.sun_path);
    return o;
}

/* ---- the same pipeline ---- */

static int differ(struct mp_error *err, const char *model, const char *what,
                  const char *here, const char *there)
{
    return mp_fail(err, MP_ENOTSUP, "%s has %s %s, not %s", model, what,
                   there ? there : "unset", here ? here : "unset");
}

/* Texts of a section of both settings. */
static int check_key(const json_t *here, const json_t *there,
                     const char *section, const char *key, const char *model,
                     struct mp_error *err)
{
    const json_t *a = json_object_get(json_object_get(here, section), key);
    const json_t *b = json_object_get(json_object_get(there, section), key);

    if (a && b && json_equal(a, b))
        return 0;
    return differ(err, model, key, json_string_value(a), json_string_value(b));
}

static int check_settings(const struct mp_settings *s, const json_t *about,
                          const char *model, struct mp_error *err)
{
    static const char *const keys[][2] = {
        {"pipeline", "head"}, {"pipeline", "classes"}, {"model", "strict"}};
    json_t *here = mp_settings_json(s);
    json_t *there = json_object_get(about, "settings");
    int rc = here ? 0 : no_memory(err);

    for (size_t i = 0; i < sizeof keys / sizeof *keys && !rc; i++)
        rc = check_key(here, there, keys[i][0], keys[i][1], model, err);
    if (!rc && !s->boxes) /* else they go with the pictures */
        rc = check_key(here, there, "pipeline", "boxes", model, err);
    json_decref(here);
    return rc;
}

static int check_file(const struct mp_settings *s, const json_t *about,
                      const char *model, struct mp_error *err)
{
    json_t *here = mp_record_checkpoint(s->checkpoint);
    int same = json_equal(here, json_object_get(about, "checkpoint"));

    json_decref(here);
    return same ? 0
                : mp_fail(err, MP_ENOTSUP, "%s has another checkpoint", model);
}

/* What is left to mpipe may be anything over there. */
static int check_compute(const struct mp_settings *s, const json_t *about,
                         const char *model, struct mp_error *err)
{
    static const char *const words[] = {"auto", "fp32", "tf32", "bf16", "fp16"};
    const char *precision =
        json_string_value(json_object_get(about, "precision"));
    const char *backend = json_string_value(json_object_get(about, "backend"));
    const char *want = words[s->compute.precision];

    if (s->compute.precision && (!precision || strcmp(want, precision)))
        return differ(err, model, "precision", want, precision);
    if (strcmp(s->compute.backend, "auto") &&
        (!backend || strncmp(s->compute.backend, backend, strlen(backend))))
        return differ(err, model, "backend", s->compute.backend, backend);
    return 0;
}

static const char *text_of(const json_t *about, const char *key)
{
    const char *text = json_string_value(json_object_get(about, key));

    return text ? text : "?";
}

/* about: of the pipeline of this name; NULL: it is not. *near: yet it is one of
 * the same head. */
static json_t *try_model(struct mp_client *c, const char *name, int *near,
                         struct mp_error *err)
{
    char path[128];
    json_t *config, *about;
    int status, rc;

    snprintf(path, sizeof path, "/v2/models/%.60s/config", name);
    config = ask_json(c, &status, "GET", path, err);
    if (!config)
        return NULL;
    about = json_incref(json_object_get(config, "mpipe"));
    json_decref(config);
    if (status != 200 || !about) {
        mp_fail(err, MP_ENOTSUP, "%s is not loaded", name);
        json_decref(about);
        return NULL;
    }
    *near = !strcmp(text_of(about, "head"), c->settings->plugin->name);
    rc = check_settings(c->settings, about, name, err);
    if (!rc)
        rc = check_file(c->settings, about, name, err);
    if (!rc)
        rc = check_compute(c->settings, about, name, err);
    if (!rc && !(c->model = strdup(name)))
        rc = no_memory(err);
    if (!rc)
        return about;
    json_decref(about);
    return NULL;
}

/* Not loaded, but may be for who asks, and of the same head. */
static int is_on_demand(const struct mp_client *c, const json_t *one)
{
    const char *load = json_string_value(json_object_get(one, "load"));
    const char *head = json_string_value(json_object_get(one, "head"));
    const char *state = json_string_value(json_object_get(one, "state"));

    return load && !strcmp(load, "on-demand") && state &&
           strcmp(state, "READY") && head &&
           !strcmp(head, c->settings->plugin->name);
}

static int load_model(struct mp_client *c, const char *name,
                      struct mp_error *err)
{
    struct answer a;
    char path[128];
    json_t *o;
    int rc;

    snprintf(path, sizeof path, "/v2/repository/models/%.60s/load", name);
    rc = ask(c, &a, "POST", path, "", "", 0, err);
    if (rc || a.status == 200) {
        free(a.body);
        return rc;
    }
    o = json_loadb(a.body, a.n, 0, NULL);
    rc = mp_fail(err, MP_ENOTSUP, "%s", text_of(o, "error"));
    json_decref(o);
    free(a.body);
    return rc;
}

/* Of those that are loaded, or of those that may be. err: how the nearest
 * differs. */
static json_t *find_among(struct mp_client *c, const json_t *list, int load,
                          int *told, struct mp_error *err)
{
    struct mp_error why = {0};
    json_t *one, *about = NULL;
    size_t i;

    json_array_foreach(list, i, one)
    {
        const char *name = json_string_value(json_object_get(one, "name"));
        int near = 0;

        if (!name || is_on_demand(c, one) != load)
            continue;
        if (!load || !load_model(c, name, &why))
            about = try_model(c, name, &near, &why);
        if (about)
            return about;
        if (why.code && !*told)
            *err = why;
        *told |= near;
    }
    return NULL;
}

static json_t *find_model(struct mp_client *c, struct mp_error *err)
{
    int status, told = 0;
    json_t *list = ask_json(c, &status, "POST", "/v2/repository/index", err);
    json_t *about;

    if (!list)
        return NULL;
    mp_fail(err, MP_ENOTSUP, "no pipeline is there");
    about = find_among(c, list, 0, &told, err);
    if (!about)
        about = find_among(c, list, 1, &told, err);
    json_decref(list);
    return about;
}

/* ---- opening ---- */

static char *join_kinds(const struct mp_settings *s)
{
    json_t *list = json_array();
    char *text;

    for (char **k = s->kinds; *k; k++)
        json_array_append_new(list, json_pack("{s:s}", "name", *k));
    text = mp_json_dump(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

/* The options of the head as parameters. */
static char *option_texts(const struct mp_settings *s)
{
    json_t *all = mp_settings_json(s);
    json_t *own = json_object_get(all, s->plugin->name), *p;
    char *text;

    p = own ? json_copy(own) : json_object();
    json_decref(all);
    if (p) {
        json_object_set_new(p, "encoded", json_true());
        json_object_set_new(p, "binary_data_output", json_true());
    }
    text = p ? mp_json_dump(p, JSON_COMPACT) : NULL;
    json_decref(p);
    return text;
}

static int compose(struct mp_client *c, struct mp_error *err)
{
    char *kinds = join_kinds(c->settings);
    char *options = option_texts(c->settings);
    int n = -1;

    if (kinds && options) /* to be followed by the name, and so on */
        n = asprintf(&c->request, "{\"outputs\":%s,\"parameters\":%.*s", kinds,
                     (int)strlen(options) - 1, options);
    if (n < 0)
        c->request = NULL;
    free(kinds);
    free(options);
    return n < 0 ? no_memory(err) : 0;
}

/* As many as over there are worked on, and wait to be. */
static int how_many(const json_t *about)
{
    json_int_t n = 2 * json_integer_value(json_object_get(about, "batch")) + 3;

    return n < MANY_LEAST       ? MANY_LEAST
           : n > MP_CLIENT_MOST ? MP_CLIENT_MOST
                                : (int)n;
}

int mp_client_open(struct mp_client **out, const struct mp_settings *s,
                   struct mp_error *err)
{
    struct mp_client *c = calloc(1, sizeof *c);
    json_t *about = NULL;
    int rc = c ? 0 : no_memory(err);

    *out = NULL;
    if (rc)
        return rc;
    c->settings = s;
    c->at.sun_family = AF_UNIX;
    pthread_mutex_init(&c->lock, NULL);
    if (strlen(s->daemon.socket) >= sizeof c->at.sun_path)
        rc = mp_fail(err, MP_EINVAL, "[daemon] socket is longer than %zu bytes",
                     sizeof c->at.sun_path - 1);
    else
        strcpy(c->at.sun_path, s->daemon.socket);
    if (!rc && !(about = find_model(c, err)))
        rc = err->code;
    if (!rc)
        rc = compose(c, err);
    if (!rc)
        rc = mp_pipeline_elsewhere(
            &c->pipeline, text_of(about, "backend"), text_of(about, "device"),
            text_of(about, "precision"), text_of(about, "network"), err);
    c->many = how_many(about);
    json_decref(about);
    if (rc) {
        mp_client_close(c);
        return rc;
    }
    err->code = 0; /* of pipelines that were others */
    err->text[0] = '\0';
    *out = c;
    return 0;
}

struct mp_pipeline *mp_client_pipeline(const struct mp_client *c)
{
    return c->pipeline;
}

int mp_client_many(const struct mp_client *c)
{
    return c->many;
}

void mp_client_close(struct mp_client *c)
{
    if (!c)
        return;
    while (c->nidle)
        close(c->idle[--c->nidle]);
    mp_pipeline_close(c->pipeline);
    pthread_mutex_destroy(&c->lock);
    free(c->model);
    free(c->request);
    free(c);
}

/* ---- a picture ---- */

/* One result, out of the binary part. */
static int take_result(struct mp_keep *k, const json_t *o, const char **at,
                       size_t *left, struct mp_error *err)
{
    const char *name = json_string_value(json_object_get(o, "name"));
    json_int_t n = json_integer_value(
        json_object_get(json_object_get(o, "parameters"), "binary_data_size"));
    const char *bytes = *at + 4; /* behind the length of the only element */
    const char *suffix;

    if (!name || n < 4 || (size_t)n > *left)
        return mp_fail(err, MP_EIO, "mpiped's answer makes no sense");
    *at += n;
    *left -= (size_t)n;
    n -= 4;
    suffix = n > 4 && !memcmp(bytes, "\x89PNG", 4)     ? "png"
             : n > 6 && !memcmp(bytes, "\x93NUMPY", 6) ? "npy"
                                                       : "json";
    return mp_keep_add(k, name, suffix, bytes, (size_t)n, err);
}

static int take_results(struct mp_keep *k, const struct answer *a,
                        struct mp_error *err)
{
    size_t head = a->head < 0 ? a->n : (size_t)a->head, left = a->n - head;
    const char *at = a->body + head;
    json_error_t why;
    json_t *o, *one;
    int rc = mp_json_parse(&o, a->body, head, &why, err);
    size_t i;

    if (rc == MP_EFORMAT)
        rc = mp_fail(err, MP_EIO, "mpiped's answer is no JSON");

    json_array_foreach(json_object_get(o, "outputs"), i, one) if (!rc) rc =
        take_result(k, one, &at, &left, err);
    json_decref(o);
    return rc;
}

static const char *stage_of(const char *text)
{
    static const char *const stages[] = {"read", "views", "network", "merge",
                                         "write"};

    for (size_t i = 0; text && i < sizeof stages / sizeof *stages; i++)
        if (!strcmp(stages[i], text))
            return stages[i];
    return "network";
}

/* Why it failed, in the words of over there. */
static int take_error(struct mp_picture_job *p, const struct answer *a)
{
    json_t *o = json_loadb(a->body, a->n, 0, NULL);
    const char *text = json_string_value(json_object_get(o, "error"));

    p->stage = stage_of(json_string_value(json_object_get(o, "stage")));
    mp_fail(&p->err, a->status == 400 ? MP_EINVAL : MP_EFORMAT, "%s",
            text ? text : "mpiped failed");
    json_decref(o);
    return p->err.code;
}

/* What is sent of a picture. */
struct parcel {
    char *json;
    uint8_t *data; /* the file as an element of BYTES, and its boxes */
    size_t n, file;
    struct mp_box *box; /* with is_listed */
    size_t nbox;
    int is_listed; /* in a file of boxes, by this number: */
    int64_t number;
};

static void parcel_free(struct parcel *q)
{
    free(q->json);
    free(q->data);
    free(q->box);
}

/* Who is in it, as mp_picture_job_open finds it. That comes after reading the
 * picture, so a failure to do so is told first. */
static int find_boxes(struct parcel *q, const struct mp_settings *s,
                      struct mp_picture_job *p, const struct mp_input *input)
{
    struct mp_picture picture = {.rgb = NULL};
    struct mp_error err = {0};
    int rc;

    if (!s->boxes)
        return 0;
    q->is_listed = 1;
    q->number = mp_name_number(input->stem);
    rc =
        mp_boxes_of(s->boxes, input->stem, &q->number, &q->box, &q->nbox, &err);
    if (!rc)
        return 0;
    rc = mp_picture_read(&picture, input->path, &p->err);
    mp_picture_free(&picture);
    if (rc)
        return rc;
    p->stage = "views";
    p->err = err;
    return err.code;
}

/* The file behind its length, and the boxes. */
static int load_data(struct parcel *q, const char *path, struct mp_error *err)
{
    size_t boxes = q->nbox * 5 * sizeof(double);
    uint8_t *bytes = NULL, *at;
    int rc = mp_file_read(path, &bytes, &q->file, err);

    if (rc)
        return rc;
    q->n = 4 + q->file + boxes;
    q->data = at = malloc(q->n);
    for (int i = 0; at && i < 4; i++)
        *at++ = (uint8_t)(q->file >> 8 * i);
    if (at) {
        memcpy(at, bytes, q->file);
        at += q->file;
    }
    for (size_t i = 0; at && i < q->nbox; i++, at += 5 * sizeof(double))
        memcpy(at,
               (double[]){q->box[i].x, q->box[i].y, q->box[i].w, q->box[i].h,
                          q->box[i].score},
               5 * sizeof(double));
    free(bytes);
    return at ? 0 : no_memory(err);
}

/* What comes after the outputs and options: its names, its inputs. */
static int write_json(struct parcel *q, const struct mp_client *c,
                      const char *stem, struct mp_error *err)
{
    const char *slash = strrchr(stem, '/');
    json_t *name = mp_json_text(slash ? slash + 1 : stem);
    char *quoted = name ? mp_json_dump(name, JSON_ENCODE_ANY) : NULL;
    struct mp_text text = {0};
    int rc = quoted ? mp_text_open(&text) : -1;

    if (!rc) {
        fprintf(text.f, "%s,\"name\":%s", c->request, quoted);
        if (q->is_listed)
            fprintf(text.f, ",\"image_id\":%lld", (long long)q->number);
        fprintf(text.f,
                "},\"inputs\":[{\"name\":\"image_bytes\",\"datatype\":"
                "\"BYTES\",\"shape\":[1],\"parameters\":{"
                "\"binary_data_size\":%zu}}",
                4 + q->file);
        if (q->is_listed)
            fprintf(text.f,
                    ",{\"name\":\"boxes\",\"datatype\":\"FP64\",\"shape\":[1,"
                    "%zu,5],\"parameters\":{\"binary_data_size\":%zu}}",
                    q->nbox, q->n - 4 - q->file);
        fputs("]}", text.f);
        rc = mp_text_close(&text);
        q->json = text.bytes;
    }
    json_decref(name);
    free(quoted);
    return rc ? no_memory(err) : 0;
}

/* Again, as long as the queue over there is full. */
static int ask_patiently(struct mp_client *c, struct answer *a,
                         const char *json, const void *data, size_t n,
                         struct mp_error *err)
{
    char path[128];
    int rc;

    snprintf(path, sizeof path, "/v2/models/%.60s/infer", c->model);
    for (int i = 0; i < PATIENCE; i++) {
        rc = ask(c, a, "POST", path, json, data, n, err);
        if (rc || a->status != 503 || !strstr(a->body, "queue is full"))
            return rc;
        free(a->body);
        a->body = NULL;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return mp_fail(err, MP_EIO, "%s: the queue stays full", c->at.sun_path);
}

/* All that is to be sent. */
static int pack(struct parcel *q, const struct mp_client *c,
                struct mp_picture_job *p, const struct mp_input *input)
{
    struct mp_sink names = {.stem = input->stem, .kinds = c->settings->kinds};
    int rc = mp_sink_check(&names, &p->err);

    if (!rc)
        rc = find_boxes(q, c->settings, p, input);
    if (!rc)
        rc = load_data(q, input->path, &p->err);
    return rc ? rc : write_json(q, c, input->stem, &p->err);
}

int mp_client_picture(struct mp_client *c, struct mp_picture_job *p,
                      const struct mp_input *input, int *gone)
{
    struct parcel q = {.data = NULL};
    struct answer a = {.body = NULL};
    int rc;

    p->input = input;
    p->stage = "read";
    *gone = 0;
    rc = pack(&q, c, p, input);
    if (!rc) {
        p->stage = "network";
        rc = ask_patiently(c, &a, q.json, q.data, q.n, &p->err);
        *gone = rc != 0;
    }
    if (!rc)
        rc = a.status == 200 ? take_results(&p->done, &a, &p->err)
                             : take_error(p, &a);
    free(a.body);
    parcel_free(&q);
    return rc;
}
