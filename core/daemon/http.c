/* SPDX-License-Identifier: MIT */
/* http.c - connections, bodies and limits; see http.h. */
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "accept.h"
#include "http_impl.h"
#include "progress.h"
#include "repository.h"
#include "zip.h"

#define SEND_TIME 5 /* seconds, at the end, for answers to be read */

/* ---- what workers do ---- */

/* Of an error in the request. */
static int status_of(int rc)
{
    return rc == MP_ENOMEM ? 503 : rc == MP_ENOTSUP ? 501 : 400;
}

static enum MHD_Result look_at_option(void *user, enum MHD_ValueKind kind,
                                      const char *key, const char *value)
{
    struct exchange *x = user;
    struct mp_error err = {0};
    char *text = strdup(value ? value : "");
    int rc = 0;

    (void)kind;
    if (!text)
        mp_http_refuse(x, 503, "out of memory");
    else
        MHD_http_unescape(text);
    if (!x->status)
        rc = mp_ask_option(&x->ask, key, text, &err);
    if (rc)
        mp_http_refuse(x, status_of(rc), "%s", err.text);
    free(text);
    return MHD_YES;
}

/* What a plain request accepts, which the worker is to make; where it names a
 * result, that. */
static int choose_type(struct exchange *x, struct mp_error *err)
{
    static const char *const suffixes[] = {[MP_ACCEPT_ANY] = "png",
                                           [MP_ACCEPT_PNG] = "png",
                                           [MP_ACCEPT_JSON] = "json",
                                           [MP_ACCEPT_NPY] = "npy"};
    enum mp_accept type = mp_accept_type(mp_http_header(x, "Accept"));

    if (x->ask.noutput)
        return 0;
    if (type == MP_ACCEPT_NONE) {
        mp_http_refuse(x, 406,
                       "results are image/png, application/json or "
                       "application/octet-stream");
        return 0;
    }
    x->ask.suffix = type == MP_ACCEPT_ANY ? NULL : suffixes[type];
    return json_object_set_new(x->ask.text, "accept",
                               json_string(suffixes[type]))
               ? mp_fail(err, MP_ENOMEM, "out of memory")
               : 0;
}

/* -1: not given; -2: wrong. */
static int64_t json_length(const struct exchange *x)
{
    const char *text = mp_http_header(x, "Inference-Header-Content-Length");

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

static int is_form(const struct exchange *x)
{
    const char *type = mp_http_header(x, "Content-Type");

    return type && !strncasecmp(type, "multipart/", 10);
}

/* The query, then the body. */
static int parse_ask(struct exchange *x, struct mp_error *err)
{
    const struct mp_daemon_conf *c = x->h->conf;
    struct mp_ask_most most = {(size_t)c->limits.json << 20,
                               c->limits.pictures};
    int64_t head = json_length(x);
    int rc = mp_ask_begin(&x->ask, err);

    if (rc)
        return rc;
    if (head == -2)
        return mp_fail(
            err, MP_EINVAL,
            "Inference-Header-Content-Length must be one whole number");
    MHD_get_connection_values(x->connection, MHD_GET_ARGUMENT_KIND,
                              look_at_option, x);
    if (x->status)
        return 0; /* refused */
    if (is_form(x))
        return mp_fail(err, MP_EINVAL,
                       "a form is no picture: send the file itself, as curl "
                       "--data-binary does");
    if (head >= 0 || is_json(x))
        return mp_ask_parse(&x->ask, x->body.at, x->body.n, head, &most, err);
    rc = mp_ask_plain(&x->ask, x->body.n, err);
    return rc ? rc : choose_type(x, err);
}

static void parse_infer(struct exchange *x)
{
    struct mp_error err = {0};
    int rc;

    if (!x->body.n) {
        mp_http_refuse(x, 400, "the body is empty");
        return;
    }
    rc = parse_ask(x, &err);
    if (!rc)
        rc = mp_ask_check(&x->ask, &err);
    if (rc)
        mp_http_refuse(x, status_of(rc), "%s", err.text);
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

    r->kind = x->route == MP_ROUTE_INFER  ? MP_WANT_INFER
              : x->route == MP_ROUTE_LOAD ? MP_WANT_LOAD
                                          : MP_WANT_UNLOAD;
    r->pipeline = x->model;
    r->client = x->peer->client;
    r->priority = x->ask.priority;
    r->timeout = x->ask.timeout;
    r->watch = x->peer->fd;
    r->done = on_done;
    r->user = x;
    r->text = x->ask.text;
    r->pictures = x->ask.pictures;
    x->ask.text = x->ask.pictures = NULL;
    if (x->ask.blob.fd >= 0) {
        r->blob = x->ask.blob;
        x->ask.blob = MP_NO_BLOB;
        mp_blob_free(&x->body);
    } else {
        r->blob = x->body;
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
        mp_http_refuse(x, r->status, "%s", r->error);
        return mp_http_send_error(x);
    }
    if (x->route != MP_ROUTE_INFER)
        return mp_http_send_state(x, 1);
    rc = mp_body_answer(&b, &x->ask, x->model, r->part, r->npart, &err);
    mp_request_free(r);
    if (!rc)
        return mp_http_send(x, 200, &b);
    free(b.bytes);
    mp_http_refuse(x,
                   rc == MP_ENOTSUP  ? 406
                   : rc == MP_EINVAL ? 400
                   : rc == MP_ENOMEM ? 503
                                     : 500,
                   "%s", err.text);
    return mp_http_send_error(x);
}

/* ---- the body of a request ---- */

static void take_bytes(struct exchange *x, const char *bytes, size_t n)
{
    struct mp_error err = {0};

    x->got += n;
    if (x->got > mp_http_body_most(x))
        mp_http_too_large(x);
    if (x->chunked && ++x->pieces > x->h->conf->limits.chunks)
        mp_http_refuse(x, 400, "more than %d pieces",
                       x->h->conf->limits.chunks);
    if (x->status) {
        mp_blob_free(&x->body);
        return;
    }
    if ((x->body.fd < 0 && mp_blob_begin(&x->body, &err)) ||
        mp_blob_add(&x->body, bytes, n, &err))
        mp_http_refuse(x, 503, "%s", err.text);
}

static void end_body(struct exchange *x)
{
    const char *coding = mp_http_header(x, "Content-Encoding");
    struct mp_error err = {0};
    struct mp_blob all;
    int rc = 0;

    if (x->status || x->body.fd < 0)
        return;
    rc = mp_blob_end(&x->body, &err);
    if (!rc && coding && strcasecmp(coding, "identity")) {
        rc = strcasecmp(coding, "gzip") && strcasecmp(coding, "deflate")
                 ? mp_fail(&err, MP_EINVAL, "Content-Encoding: gzip or deflate")
                 : mp_unzip(&all, &x->body, mp_http_body_most(x), &err);
        if (!rc) {
            mp_blob_free(&x->body);
            x->body = all;
        }
    }
    if (rc)
        mp_http_refuse(x, rc == MP_ENOMEM ? 503 : 400, "%s", err.text);
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
    x->body = x->ask.blob = x->request.blob = MP_NO_BLOB;
    x->ask.priority = 5;
    *state = x;
    mp_http_begin(x, url, method);
    /* a body that is too large, or of nobody, is not even read */
    if (x->status == 401 || x->status == 403 ||
        (x->status == 400 && mp_http_header(x, "Content-Length")))
        return mp_http_send_error(x);
    return MHD_YES;
}

static void set_busy(struct exchange *x, int busy)
{
    pthread_mutex_lock(&x->h->lock);
    x->peer->busy = busy;
    x->peer->since = mp_now();
    pthread_mutex_unlock(&x->h->lock);
}

static void parse_change(struct exchange *x)
{
    struct mp_error err = {0};
    int rc = mp_repository_change(x->body.at, x->body.n, &err);

    if (rc)
        mp_http_refuse(x, status_of(rc), "%s", err.text);
}

static enum MHD_Result all_there(struct exchange *x)
{
    set_busy(x, 1);
    end_body(x);
    if (!x->status && x->route == MP_ROUTE_INFER)
        parse_infer(x);
    if (!x->status &&
        (x->route == MP_ROUTE_LOAD || x->route == MP_ROUTE_UNLOAD))
        parse_change(x);
    if (x->status)
        return mp_http_send_error(x);
    if (x->route != MP_ROUTE_INFER && x->route != MP_ROUTE_LOAD &&
        x->route != MP_ROUTE_UNLOAD)
        return mp_http_answer_now(x);
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
        return x->got > 2 * mp_http_body_most(x) ? MHD_NO : MHD_YES;
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

/* Has the client gone within its request? libmicrohttpd does not hear of an end
 * that came together with the last bytes. Seen a second time, those have been
 * read, and the request was not complete with them. */
static int is_abandoned(struct peer *p)
{
    struct pollfd f = {.fd = p->fd, .events = POLLRDHUP};
    int before = p->hung_up;

    p->hung_up = poll(&f, 1, 0) == 1;
    return p->hung_up && before;
}

void mp_http_sweep(struct mp_http *h)
{
    double before = mp_now() - h->conf->limits.request_time;

    pthread_mutex_lock(&h->lock);
    for (struct peer *p = h->peers; p; p = p->next)
        if (!p->busy && (p->since < before || is_abandoned(p)))
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
