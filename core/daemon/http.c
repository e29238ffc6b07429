/* SPDX-License-Identifier: MIT */
/* http.c - addresses, limits and rights; see http.h. */
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "about.h"
#include "answer.h"
#include "http.h"
#include "page.h"
#include "progress.h"
#include "zip.h"

#define ZIP_LEAST 1024 /* bytes; less is not worth it */
#define SEND_TIME 5    /* seconds, at the end, for answers to be read */

/* What is known of a connection. */
struct peer {
    struct peer *next, *prev;
    int fd;
    double since; /* it has been asking */
    int busy;     /* its request is being served */
    uint64_t client;
};

struct mp_http {
    struct MHD_Daemon *daemon;
    struct mp_front *front;
    const struct mp_daemon_conf *conf;
    const char *token;
    int is_tcp;
    pthread_mutex_t lock; /* of peers */
    struct peer *peers;
};

enum route {
    NOWHERE,
    PAGE,
    METRICS,
    SERVER,
    LIVE,
    ALL_READY,
    ALL_STATS,
    MODEL,
    MODEL_READY,
    MODEL_CONFIG,
    MODEL_STATS,
    INFER,
    INDEX,
    LOAD,
    UNLOAD,
    ERRORS,
    NOT_HERE
};

struct exchange {
    struct mp_http *h;
    struct MHD_Connection *connection;
    struct peer *peer;
    enum route route;
    char model[64];
    int status; /* nonzero: refused, with this */
    char error[400];
    const char *allow; /* 405 */
    struct mp_blob body;
    size_t got; /* bytes, also of a body that is thrown away */
    int chunked, pieces;
    struct mp_ask ask;
    struct mp_request request;
    int asked, answered;
};

/* ---- refusing ---- */

__attribute__((format(printf, 3, 4))) static void
refuse(struct exchange *x, int status, const char *fmt, ...)
{
    va_list ap;

    if (x->status)
        return; /* the first reason */
    va_start(ap, fmt);
    vsnprintf(x->error, sizeof x->error, fmt, ap);
    va_end(ap);
    x->status = status;
}

/* ---- addresses ---- */

static const struct {
    const char *path;
    enum route route;
} fixed[] = {
    {"/", PAGE},
    {"/metrics", METRICS},
    {"/errors", ERRORS},
    {"/v2", SERVER},
    {"/v2/", SERVER},
    {"/v2/health/live", LIVE},
    {"/v2/health/ready", ALL_READY},
    {"/v2/models/stats", ALL_STATS},
    {"/v2/repository/index", INDEX},
};
static const struct {
    const char *path;
    enum route route;
} of_model[] = {
    {"", MODEL},
    {"/ready", MODEL_READY},
    {"/config", MODEL_CONFIG},
    {"/stats", MODEL_STATS},
    {"/infer", INFER},
};
static const char *const elsewhere[] = {"/v2/logging", "/v2/trace/",
                                        "/v2/systemsharedmemory",
                                        "/v2/cudasharedmemory"};

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* The part up to the next slash, if it can be a name. */
static const char *take_name(struct exchange *x, const char *path)
{
    size_t n = strcspn(path, "/");

    if (!mp_is_name(path, n) || n >= sizeof x->model)
        return NULL;
    snprintf(x->model, sizeof x->model, "%.*s", (int)n, path);
    return path + n;
}

static enum route model_route(struct exchange *x, const char *path)
{
    static const char version[] = "/versions/1";
    const char *rest = take_name(x, path);

    if (!rest)
        return NOWHERE;
    if (!strncmp(rest, version, strlen(version)))
        rest += strlen(version);
    for (size_t i = 0; i < COUNT(of_model); i++)
        if (!strcmp(rest, of_model[i].path))
            return of_model[i].route;
    return NOWHERE;
}

static enum route find_route(struct exchange *x, const char *url)
{
    static const char models[] = "/v2/models/";
    static const char repository[] = "/v2/repository/models/";
    const char *rest;

    for (size_t i = 0; i < COUNT(fixed); i++)
        if (!strcmp(url, fixed[i].path))
            return fixed[i].route;
    for (size_t i = 0; i < COUNT(elsewhere); i++)
        if (!strncmp(url, elsewhere[i], strlen(elsewhere[i])))
            return NOT_HERE;
    if (!strncmp(url, models, strlen(models)))
        return model_route(x, url + strlen(models));
    if (strncmp(url, repository, strlen(repository)) ||
        !(rest = take_name(x, url + strlen(repository))))
        return NOWHERE;
    return !strcmp(rest, "/load")     ? LOAD
           : !strcmp(rest, "/unload") ? UNLOAD
                                      : NOWHERE;
}

static int is_post(enum route r)
{
    return r == INFER || r == INDEX || r == LOAD || r == UNLOAD;
}

/* ---- who may ask ---- */

/* Takes as long for any guess of the same length. */
static int same_secret(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    unsigned char different = n != m;

    for (size_t i = 0; i < n; i++)
        different |= (unsigned char)(a[i] ^ b[m ? i % m : 0]);
    return !different;
}

static const char *header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* A page of another site must not ask in its reader's name: neither by its own
 * name for this address, nor openly. */
static void check_origin(struct exchange *x)
{
    const char *host = header(x, "Host"), *origin = header(x, "Origin");
    size_t n = host ? strcspn(host, ":") : 0;

    if (host && *host != '[' && strspn(host, "0123456789.") != n &&
        !(n == strlen("localhost") && !strncmp(host, "localhost", n)))
        refuse(x, 403, "Host must be an address or localhost");
    if (origin &&
        (strncmp(origin, "http://", 7) || !host || strcmp(origin + 7, host)))
        refuse(x, 403, "not from a page of another site");
}

static void check_rights(struct exchange *x)
{
    const char *text = header(x, "Authorization");

    if (!x->h->is_tcp)
        return;
    if (!x->h->token) {
        check_origin(x);
        return;
    }
    if (!text || strncmp(text, "Bearer ", 7) ||
        !same_secret(text + 7, x->h->token))
        refuse(x, 401, "a token is needed: Authorization: Bearer TOKEN");
}

/* ---- the head of a request ---- */

struct head {
    struct exchange *x;
    int lengths;
};

static enum MHD_Result look_at_header(void *user, enum MHD_ValueKind kind,
                                      const char *key, const char *value)
{
    struct head *h = user;

    (void)kind;
    if (!strcasecmp(key, "Content-Length")) {
        h->lengths++;
        if (!value || !*value || value[strspn(value, "0123456789")])
            refuse(h->x, 400, "Content-Length must be one whole number");
    } else if (!strcasecmp(key, "Transfer-Encoding")) {
        h->x->chunked = 1;
        if (!value || strcasecmp(value, "chunked"))
            refuse(h->x, 400, "Transfer-Encoding must be chunked");
    }
    return MHD_YES;
}

static size_t body_most(const struct exchange *x)
{
    return (size_t)x->h->conf->limits.body << 20;
}

static void too_large(struct exchange *x)
{
    refuse(x, 400, "the body is larger than %d MiB", x->h->conf->limits.body);
}

static void check_head(struct exchange *x)
{
    struct head h = {.x = x};
    const char *length;

    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, look_at_header,
                              &h);
    if (h.lengths + x->chunked > 1)
        refuse(x, 400, "one Content-Length or one Transfer-Encoding");
    length = header(x, "Content-Length");
    if (length &&
        (strlen(length) > 12 || strtoull(length, NULL, 10) > body_most(x)))
        too_large(x);
}

static void begin(struct exchange *x, const char *url, const char *method)
{
    int is_get = !strcmp(method, "GET") || !strcmp(method, "HEAD");

    check_rights(x);
    check_head(x);
    x->route = find_route(x, url);
    if (x->route == NOT_HERE)
        refuse(x, 501, "this extension is not supported");
    else if (x->route == NOWHERE)
        refuse(x, 404, "there is nothing at this address");
    else if (is_post(x->route) ? strcmp(method, "POST") != 0 : !is_get) {
        x->allow = is_post(x->route) ? "POST" : "GET, HEAD";
        refuse(x, 405, "only %s here", x->allow);
    } else if (*x->model && !mp_front_has(x->h->front, x->model))
        refuse(x, 404, "there is no model \"%s\"", x->model);
}

/* ---- answering ---- */

static int accepts(const struct exchange *x, const char *coding)
{
    const char *list = header(x, "Accept-Encoding"), *at;

    at = list ? strstr(list, coding) : NULL;
    if (!at)
        return 0;
    at += strlen(coding);
    at += strspn(at, " ");
    return strncmp(at, ";q=0", 4) != 0 || at[4] == '.';
}

/* Compress it if that is asked for and of use. */
static const char *zip_body(const struct exchange *x, struct mp_body *b)
{
    const char *coding = accepts(x, "gzip")      ? "gzip"
                         : accepts(x, "deflate") ? "deflate"
                                                 : NULL;
    char *bytes;
    size_t n;

    if (!coding || b->n < ZIP_LEAST || !strcmp(b->type, "image/png") ||
        mp_zip(&bytes, &n, b->bytes, b->n, *coding == 'g'))
        return NULL;
    free(b->bytes);
    b->bytes = bytes;
    b->n = n;
    return coding;
}

/* Takes the bytes. */
static enum MHD_Result send_body(struct exchange *x, int status,
                                 struct mp_body *b)
{
    const char *coding = b->n ? zip_body(x, b) : NULL;
    struct MHD_Response *r =
        MHD_create_response_from_buffer(b->n, b->bytes, MHD_RESPMEM_MUST_FREE);
    char number[32];
    enum MHD_Result sent;

    if (!r) {
        free(b->bytes);
        return MHD_NO;
    }
    if (b->n)
        MHD_add_response_header(r, "Content-Type", b->type);
    if (b->head >= 0) {
        snprintf(number, sizeof number, "%lld", (long long)b->head);
        MHD_add_response_header(r, "Inference-Header-Content-Length", number);
    }
    if (coding)
        MHD_add_response_header(r, "Content-Encoding", coding);
    if (status == 503)
        MHD_add_response_header(r, "Retry-After", "1");
    if (status == 405)
        MHD_add_response_header(r, "Allow", x->allow);
    if (status == 401)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (x->route == PAGE)
        MHD_add_response_header(r, "Content-Security-Policy", MP_PAGE_POLICY);
    sent = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    x->answered = 1;
    return sent;
}

static enum MHD_Result send_error(struct exchange *x)
{
    struct mp_body b;
    json_t *o = json_pack("{s:s}", "error", x->error);

    if (o && *x->request.stage)
        json_object_set_new(o, "stage", json_string(x->request.stage));
    if (!o)
        o = json_pack("{s:s}", "error", "failed");
    if (mp_body_json(&b, o, NULL))
        return MHD_NO;
    return send_body(x, x->status, &b);
}

static enum MHD_Result send_json(struct exchange *x, json_t *json)
{
    struct mp_body b;
    struct mp_error err = {0};

    if (!mp_body_json(&b, json, &err))
        return send_body(x, 200, &b);
    refuse(x, 500, "%s", err.text);
    return send_error(x);
}

static enum MHD_Result send_text(struct exchange *x, char *text,
                                 const char *type)
{
    struct mp_body b = {text, text ? strlen(text) : 0, -1, type};

    if (text)
        return send_body(x, 200, &b);
    refuse(x, 500, "out of memory");
    return send_error(x);
}

/* 200 or 400 without a body. */
static enum MHD_Result send_state(struct exchange *x, int is_good)
{
    struct mp_body b = {.head = -1};

    return send_body(x, is_good ? 200 : 400, &b);
}

static json_t *server_json(void)
{
    return json_pack("{s:s, s:s, s:[s, s, s, s]}", "name", "mpipe", "version",
                     PACKAGE_VERSION, "extensions", "binary_tensor_data",
                     "model_repository", "model_configuration", "statistics");
}

static enum MHD_Result send_about(struct exchange *x)
{
    json_t *about = mp_front_describe(x->h->front, x->model), *out;

    if (!about) {
        refuse(x, 400, "%s is not loaded", x->model);
        return send_error(x);
    }
    out = x->route == MODEL ? mp_metadata(x->model, about)
                            : mp_model_config(x->model, about);
    json_decref(about);
    return send_json(x, out);
}

static int wants_ready_only(const struct exchange *x)
{
    json_t *o = x->body.n
                    ? json_loadb((const char *)x->body.at, x->body.n, 0, NULL)
                    : NULL;
    int yes = json_is_true(json_object_get(o, "ready"));

    json_decref(o);
    return yes;
}

/* What can be answered at once. */
static enum MHD_Result answer_now(struct exchange *x)
{
    struct mp_front *f = x->h->front;

    switch (x->route) {
    case PAGE:
        return send_text(x, strdup(mp_page), "text/html; charset=utf-8");
    case METRICS:
        return send_text(x, mp_front_metrics(f), "text/plain; version=0.0.4");
    case ERRORS:
        return send_json(x, mp_front_errors(f));
    case SERVER:
        return send_json(x, server_json());
    case LIVE:
        return send_state(x, 1);
    case ALL_READY:
        return send_state(x, mp_front_is_ready(f, NULL));
    case MODEL_READY:
        return send_state(x, mp_front_is_ready(f, x->model));
    case ALL_STATS:
        return send_json(x, mp_front_stats(f, NULL));
    case MODEL_STATS:
        return send_json(x, mp_front_stats(f, x->model));
    case INDEX:
        return send_json(x, mp_front_index(f, wants_ready_only(x)));
    default:
        return send_about(x);
    }
}

/* ---- what workers do ---- */

static enum MHD_Result look_at_option(void *user, enum MHD_ValueKind kind,
                                      const char *key, const char *value)
{
    struct exchange *x = user;
    struct mp_error err = {0};
    char *text = strdup(value ? value : "");

    (void)kind;
    if (!text)
        refuse(x, 503, "out of memory");
    else
        MHD_http_unescape(text);
    if (!x->status && mp_ask_option(&x->ask, key, text, &err))
        refuse(x, 400, "%s", err.text);
    free(text);
    return MHD_YES;
}

/* What a plain request accepts. */
static void choose_type(struct exchange *x)
{
    const char *accept = header(x, "Accept");

    if (x->ask.noutput)
        return; /* named */
    if (accept && strstr(accept, "application/json"))
        x->ask.suffix = "json";
    else if (accept && strstr(accept, "octet-stream"))
        x->ask.suffix = "npy";
    else
        x->ask.suffix = "png";
    json_object_set_new(x->ask.text, "accept", json_string(x->ask.suffix));
}

/* -1: not given; -2: wrong. */
static int64_t json_length(const struct exchange *x)
{
    const char *text = header(x, "Inference-Header-Content-Length");

    if (!text)
        return -1;
    if (!*text || strlen(text) > 12 || text[strspn(text, "0123456789")])
        return -2;
    return strtoll(text, NULL, 10);
}

static int is_json(const struct exchange *x)
{
    size_t i = 0;

    while (i < x->body.n && strchr(" \t\r\n", x->body.at[i]) && x->body.at[i])
        i++;
    return i < x->body.n && x->body.at[i] == '{';
}

static void parse_infer(struct exchange *x)
{
    struct mp_error err = {0};
    int64_t head = json_length(x);
    int rc;

    if (!x->body.n) {
        refuse(x, 400, "the body is empty");
        return;
    }
    if (head == -2) {
        refuse(x, 400,
               "Inference-Header-Content-Length must be one whole number");
        return;
    }
    if (head < 0 && !is_json(x)) {
        rc = mp_ask_plain(&x->ask, x->body.n, &err);
        MHD_get_connection_values(x->connection, MHD_GET_ARGUMENT_KIND,
                                  look_at_option, x);
        choose_type(x);
    } else {
        rc = mp_ask_parse(&x->ask, x->body.at, x->body.n, head,
                          (size_t)x->h->conf->limits.json << 20, &err);
    }
    if (rc)
        refuse(x, rc == MP_ENOMEM ? 503 : 400, "%s", err.text);
}

/* A thread of the front's. */
static void on_done(struct mp_request *r)
{
    struct exchange *x = r->user;

    MHD_resume_connection(x->connection);
}

static void ask(struct exchange *x)
{
    struct mp_request *r = &x->request;

    r->kind = x->route == INFER  ? MP_WANT_INFER
              : x->route == LOAD ? MP_WANT_LOAD
                                 : MP_WANT_UNLOAD;
    r->pipeline = x->model;
    r->client = x->peer->client;
    r->priority = x->ask.priority;
    r->timeout = x->ask.timeout;
    r->watch = x->peer->fd;
    r->done = on_done;
    r->user = x;
    r->text = x->ask.text;
    x->ask.text = NULL;
    if (x->ask.blob.fd >= 0) {
        r->picture = x->ask.blob;
        x->ask.blob = MP_NO_BLOB;
        mp_blob_free(&x->body);
    } else {
        r->picture = x->body;
        x->body = MP_NO_BLOB;
    }
    x->asked = 1;
    MHD_suspend_connection(x->connection);
    mp_front_submit(x->h->front, r);
}

static enum MHD_Result answer_asked(struct exchange *x)
{
    struct mp_request *r = &x->request;
    struct mp_error err = {0};
    struct mp_body b;
    int rc;

    if (r->status != 200) {
        refuse(x, r->status, "%s", r->error);
        return send_error(x);
    }
    if (x->route != INFER)
        return send_state(x, 1);
    rc = mp_body_answer(&b, &x->ask, x->model, r->answer, &r->results, &err);
    mp_request_free(r);
    if (!rc)
        return send_body(x, 200, &b);
    free(b.bytes);
    refuse(x, rc == MP_ENOTSUP ? 406 : 500, "%s", err.text);
    return send_error(x);
}

/* ---- the body of a request ---- */

static void take_bytes(struct exchange *x, const char *bytes, size_t n)
{
    struct mp_error err = {0};

    x->got += n;
    if (x->got > body_most(x))
        too_large(x);
    if (x->chunked && ++x->pieces > x->h->conf->limits.chunks)
        refuse(x, 400, "more than %d pieces", x->h->conf->limits.chunks);
    if (x->status) {
        mp_blob_free(&x->body);
        return;
    }
    if ((x->body.fd < 0 && mp_blob_begin(&x->body, &err)) ||
        mp_blob_add(&x->body, bytes, n, &err))
        refuse(x, 503, "%s", err.text);
}

static void end_body(struct exchange *x)
{
    const char *coding = header(x, "Content-Encoding");
    struct mp_error err = {0};
    struct mp_blob all;
    int rc = 0;

    if (x->status || x->body.fd < 0)
        return;
    rc = mp_blob_end(&x->body, &err);
    if (!rc && coding && strcasecmp(coding, "identity")) {
        rc = strcasecmp(coding, "gzip") && strcasecmp(coding, "deflate")
                 ? mp_fail(&err, MP_EINVAL, "Content-Encoding: gzip or deflate")
                 : mp_unzip(&all, &x->body, body_most(x), &err);
        if (!rc) {
            mp_blob_free(&x->body);
            x->body = all;
        }
    }
    if (rc)
        refuse(x, rc == MP_ENOMEM ? 503 : 400, "%s", err.text);
}

/* ---- libmicrohttpd ---- */

static enum MHD_Result first_call(struct mp_http *h, void **state,
                                  struct MHD_Connection *c, const char *url,
                                  const char *method)
{
    struct exchange *x = calloc(1, sizeof *x);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    if (!x || !info || !info->socket_context) {
        free(x);
        return MHD_NO;
    }
    x->h = h;
    x->connection = c;
    x->peer = info->socket_context;
    x->body = x->ask.blob = x->request.picture = x->request.results =
        MP_NO_BLOB;
    x->ask.priority = 5;
    *state = x;
    begin(x, url, method);
    /* a body that is too large, or of nobody, is not even read */
    if (x->status == 401 || x->status == 403 ||
        (x->status == 400 && header(x, "Content-Length")))
        return send_error(x);
    return MHD_YES;
}

static void set_busy(struct exchange *x, int busy)
{
    pthread_mutex_lock(&x->h->lock);
    x->peer->busy = busy;
    x->peer->since = mp_now();
    pthread_mutex_unlock(&x->h->lock);
}

static enum MHD_Result all_there(struct exchange *x)
{
    set_busy(x, 1);
    end_body(x);
    if (!x->status && x->route == INFER)
        parse_infer(x);
    if (x->status)
        return send_error(x);
    if (x->route != INFER && x->route != LOAD && x->route != UNLOAD)
        return answer_now(x);
    ask(x);
    return MHD_YES;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *c,
                                  const char *url, const char *method,
                                  const char *version, const char *data,
                                  size_t *n, void **state)
{
    struct exchange *x = *state;

    (void)version;
    if (!x)
        return first_call(user, state, c, url, method);
    if (*n) {
        take_bytes(x, data, *n);
        *n = 0;
        /* nobody needs to listen to all of it */
        return x->got > 2 * body_most(x) ? MHD_NO : MHD_YES;
    }
    if (x->answered)
        return MHD_YES;
    return x->asked ? answer_asked(x) : all_there(x);
}

static void on_completed(void *user, struct MHD_Connection *c, void **state,
                         enum MHD_RequestTerminationCode how)
{
    struct exchange *x = *state;

    (void)user;
    (void)c;
    (void)how;
    if (!x)
        return;
    set_busy(x, 0);
    mp_ask_free(&x->ask);
    mp_request_free(&x->request);
    mp_blob_free(&x->body);
    free(x);
    *state = NULL;
}

/* Who takes turns: a process on this machine, an address elsewhere. */
static uint64_t identify(const struct mp_http *h, int fd)
{
    struct ucred who;
    struct sockaddr_in6 from = {0};
    socklen_t n = sizeof who, m = sizeof from;
    uint64_t hash = UINT64_C(14695981039346656037);

    if (!h->is_tcp) {
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n))
            return 0;
        mp_log(MP_LOG_DEBUG, "http", "process %ld of user %ld connects",
               (long)who.pid, (long)who.uid);
        return (uint64_t)who.pid;
    }
    if (getpeername(fd, (struct sockaddr *)&from, &m))
        return 0;
    if (from.sin6_family == AF_INET)
        memcpy(&from.sin6_addr, &((struct sockaddr_in *)&from)->sin_addr, 4);
    for (size_t i = 0; i < (from.sin6_family == AF_INET ? 4 : 16); i++)
        hash = (hash ^ from.sin6_addr.s6_addr[i]) * UINT64_C(1099511628211);
    return hash;
}

static void on_connection(void *user, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct mp_http *h = user;
    struct peer *p = *context;
    const union MHD_ConnectionInfo *info;

    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
        p = info ? calloc(1, sizeof *p) : NULL;
        *context = p;
        if (!p)
            return;
        *p = (struct peer){.fd = info->connect_fd, .since = mp_now()};
        p->client = identify(h, p->fd);
        pthread_mutex_lock(&h->lock);
        p->next = h->peers;
        if (p->next)
            p->next->prev = p;
        h->peers = p;
        pthread_mutex_unlock(&h->lock);
    } else if (p) {
        pthread_mutex_lock(&h->lock);
        if (p->prev)
            p->prev->next = p->next;
        else
            h->peers = p->next;
        if (p->next)
            p->next->prev = p->prev;
        pthread_mutex_unlock(&h->lock);
        free(p);
        *context = NULL;
    }
}

void mp_http_sweep(struct mp_http *h)
{
    double before = mp_now() - h->conf->limits.request_time;

    pthread_mutex_lock(&h->lock);
    for (struct peer *p = h->peers; p; p = p->next)
        if (!p->busy && p->since < before)
            shutdown(p->fd, SHUT_RDWR); /* libmicrohttpd sees its end */
    pthread_mutex_unlock(&h->lock);
}

/* Names need no escapes, so an address with one is nowhere. */
static size_t leave_as_it_is(void *user, struct MHD_Connection *c, char *text)
{
    (void)user;
    (void)c;
    return strlen(text);
}

static void on_log(void *user, const char *fmt, va_list ap)
{
    char text[300];

    (void)user;
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    mp_log(MP_LOG_DEBUG, "http", "%s", text);
}

int mp_http_start(struct mp_http **out, struct mp_front *front,
                  const struct mp_daemon_conf *conf, int fd, const char *token,
                  struct mp_error *err)
{
    struct mp_http *h = calloc(1, sizeof *h);
    struct sockaddr_storage at;
    socklen_t n = sizeof at;

    *out = NULL;
    if (!h) {
        close(fd);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    *h = (struct mp_http){.front = front, .conf = conf, .token = token};
    h->is_tcp =
        !getsockname(fd, (struct sockaddr *)&at, &n) && at.ss_family != AF_UNIX;
    pthread_mutex_init(&h->lock, NULL);
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME |
            MHD_USE_ERROR_LOG,
        0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE,
        (unsigned)(conf->http.threads > 1 ? conf->http.threads : 0),
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)conf->limits.connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        (unsigned)(h->is_tcp ? conf->limits.connections_per_address : 0),
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(conf->limits.idle_time + 0.5),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)conf->limits.header << 10,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_UNESCAPE_CALLBACK,
        leave_as_it_is, NULL, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_END);
    if (!h->daemon) {
        close(fd);
        pthread_mutex_destroy(&h->lock);
        free(h);
        return mp_fail(err, MP_EIO, "the HTTP server does not start");
    }
    *out = h;
    return 0;
}

/* Is an answer on its way? */
static int is_busy(struct mp_http *h)
{
    int busy = 0;

    pthread_mutex_lock(&h->lock);
    for (const struct peer *p = h->peers; p; p = p->next)
        busy |= p->busy;
    pthread_mutex_unlock(&h->lock);
    return busy;
}

void mp_http_stop(struct mp_http *h)
{
    int fd;

    if (!h)
        return;
    fd = MHD_quiesce_daemon(h->daemon);
    for (int i = 0; i < SEND_TIME * 100 && is_busy(h); i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    MHD_stop_daemon(h->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
