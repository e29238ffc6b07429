/* SPDX-License-Identifier: MIT */
/* front_request.c - requests: queued, sent, answered, given up. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#include "front_impl.h"
#include "progress.h"

const double mp_time_buckets[TIME_BUCKETS] = {
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 120};

/* ---- the end of a request ---- */

static void wake(const struct mp_front *f)
{
    uint64_t one = 1;

    if (write(f->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        mp_log(MP_LOG_ERROR, "front", "eventfd: %s", strerror(errno));
}

static void count_end(struct mp_request *r, enum result how)
{
    struct stats *s = &r->target->stats;
    double took = mp_now() - r->arrived;
    struct duration *d = how == GOOD ? &s->success : &s->fail;
    size_t i = 0;

    s->results[how]++;
    d->count++;
    d->seconds += took;
    while (i < TIME_BUCKETS && took > mp_time_buckets[i])
        i++;
    s->took[i]++;
}

/* Locked. Out of what is live, into what is to be told. */
void mp_front_settle(struct mp_front *f, struct mp_request *r, enum result how,
                     int status)
{
    if (r->watch >= 0)
        epoll_ctl(f->poll_fd, EPOLL_CTL_DEL, r->watch, NULL);
    if (r->prev)
        r->prev->next = r->next;
    else
        f->live = r->next;
    if (r->next)
        r->next->prev = r->prev;
    if (r->kind == MP_WANT_INFER)
        count_end(r, how);
    r->status = status;
    r->next = f->finished;
    f->finished = r;
}

void mp_front_settle_with(struct mp_front *f, struct mp_request *r,
                          enum result how, int status, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->error, sizeof r->error, fmt, ap);
    va_end(ap);
    if (status == 500 || how == EXPIRED)
        mp_front_note(f, r->error);
    mp_front_settle(f, r, how, status);
}

void mp_front_tell(struct mp_front *f)
{
    struct mp_request *list, *r;

    pthread_mutex_lock(&f->lock);
    list = f->finished;
    f->finished = NULL;
    pthread_mutex_unlock(&f->lock);
    while ((r = list)) {
        list = r->next;
        r->done(r);
    }
}

void mp_request_free(struct mp_request *r)
{
    json_decref(r->text);
    json_decref(r->answer);
    r->text = r->answer = NULL;
    mp_blob_free(&r->picture);
    mp_blob_free(&r->results);
}

/* ---- sending to workers ---- */

void mp_front_fail_queue(struct mp_front *f, struct pipeline *p,
                         const char *why)
{
    struct mp_queued *e;

    while ((e = mp_queue_take(&p->queue))) {
        struct mp_request *r =
            (void *)((char *)e - offsetof(struct mp_request, queued));

        mp_front_settle_with(f, r, REJECTED, 503, "%s: %s", p->entry->name,
                             why);
    }
}

static size_t flight_limit(const struct mp_front *f, const struct pipeline *p)
{
    int32_t limit = mp_front_conf(f)->limits.in_flight;
    json_int_t batch = json_integer_value(json_object_get(p->about, "batch"));

    return limit > 0 ? (size_t)limit : 2 * (size_t)batch + 3;
}

static int send_infer(struct pipeline *p, struct mp_request *r)
{
    json_t *text = r->text;

    if (json_object_set_new(text, "pipeline", json_integer((json_int_t)p->id)))
        return MP_ENOMEM;
    r->text = NULL;
    return mp_front_send(p->worker, MP_INFER, r->id, text, r->picture);
}

static void send_one(struct mp_front *f, struct pipeline *p,
                     struct mp_request *r)
{
    struct flight *fl = malloc(sizeof *fl);
    int rc = fl ? send_infer(p, r) : MP_ENOMEM;

    mp_blob_free(&r->picture); /* the worker's now */
    if (rc) {
        free(fl);
        if (rc == MP_ENOMEM)
            mp_front_settle_with(f, r, REJECTED, 503, "out of memory");
        else
            mp_front_settle_with(f, r, BAD_REQUEST, 400,
                                 "parameters and boxes are too long together");
        return;
    }
    r->sent = mp_now();
    *fl = (struct flight){f->flights, r->id, p, r, r->sent};
    f->flights = fl;
    p->nflight++;
    p->used = r->sent;
}

void mp_front_dispatch(struct mp_front *f, struct pipeline *p)
{
    struct mp_queued *e;

    while (p->state == READY && p->worker->pid &&
           p->nflight < flight_limit(f, p) && (e = mp_queue_take(&p->queue)))
        send_one(f, p,
                 (void *)((char *)e - offsetof(struct mp_request, queued)));
    if (p->state == UNLOADING && !p->nflight && p->is_wanted) {
        p->is_wanted = 0;
        mp_front_send(p->worker, MP_UNLOAD, p->id, NULL, MP_NO_BLOB);
    }
}

/* ---- submitting ---- */

static void put_in_queue(struct mp_front *f, struct pipeline *p,
                         struct mp_request *r)
{
    double timeout =
        r->timeout > 0 ? r->timeout : mp_front_conf(f)->limits.timeout;

    if (p->state == FAILED) {
        mp_front_settle_with(f, r, REJECTED, 503, "%s is not available: %s",
                             p->entry->name, p->reason);
        return;
    }
    if (p->state == UNLOADING ||
        (p->state == UNLOADED && p->entry->load != MP_ON_DEMAND)) {
        mp_front_settle_with(f, r, REJECTED, 503, "%s is not loaded",
                             p->entry->name);
        return;
    }
    r->queued =
        (struct mp_queued){.priority = r->priority,
                           .client = r->client,
                           .deadline = timeout > 0 ? r->arrived + timeout : 0};
    p->queue.most = (size_t)mp_front_conf(f)->limits.queue;
    if (mp_queue_put(&p->queue, &r->queued)) {
        mp_front_settle_with(f, r, REJECTED, 503, "%s: the queue is full",
                             p->entry->name);
        return;
    }
    if (p->state == UNLOADED)
        mp_front_load(f, p);
    mp_front_dispatch(f, p); /* at once: a burst must not fill the queue of an
                       idle worker */
}

/* Locked. */
static void accept_request(struct mp_front *f, struct mp_request *r)
{
    struct pipeline *p = r->target;
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLHUP,
                                .data.u64 = EVENT(EVENT_CLIENT, r->id)};

    if (r->watch >= 0 && epoll_ctl(f->poll_fd, EPOLL_CTL_ADD, r->watch, &event))
        r->watch = -1; /* then it is served for nobody, at worst */
    if (f->draining) {
        mp_front_settle_with(f, r, REJECTED, 503, "mpiped is about to end");
    } else if (r->kind == MP_WANT_INFER) {
        put_in_queue(f, p, r);
    } else if (r->kind == MP_WANT_LOAD) {
        p->ndied = 0;
        if (p->state == UNLOADED || p->state == FAILED)
            mp_front_load(f, p);
        else if (p->state == READY)
            mp_front_settle(f, r, GOOD, 200);
        else if (p->state == UNLOADING)
            mp_front_settle_with(f, r, BAD_REQUEST, 400, "%s is being unloaded",
                                 p->entry->name);
    } else if (p->state == LOADING) {
        mp_front_settle_with(f, r, BAD_REQUEST, 400, "%s is being loaded",
                             p->entry->name);
    } else {
        mp_front_unload(f, p);
    }
}

void mp_front_submit(struct mp_front *f, struct mp_request *r)
{
    struct pipeline *p;

    r->arrived = mp_now();
    r->next = r->prev = NULL;
    pthread_mutex_lock(&f->lock);
    r->id = ++f->last_id;
    p = r->target = mp_front_find(f, r->pipeline);
    if (p) {
        r->next = f->live;
        if (f->live)
            f->live->prev = r;
        f->live = r;
        accept_request(f, r);
    }
    pthread_mutex_unlock(&f->lock);
    if (!p) {
        r->status = 404;
        snprintf(r->error, sizeof r->error, "there is no such model");
        r->done(r);
        return;
    }
    wake(f);
    mp_front_tell(f);
}

/* ---- answers ---- */

static void add_time(struct duration *d, double seconds)
{
    d->count++;
    d->seconds += seconds;
}

static void count_times(struct mp_request *r, const json_t *text)
{
    struct stats *s = &r->target->stats;
    double read = 0, wait = 0, network = 0, merge = 0, write = 0, runs = 0;
    struct timespec now;

    json_unpack((json_t *)text, "{s:{s:F, s:F, s:F, s:F, s:F}, s:F}", "seconds",
                "read", &read, "wait", &wait, "network", &network, "merge",
                &merge, "write", &write, "runs", &runs);
    clock_gettime(CLOCK_REALTIME, &now);
    s->last = (double)now.tv_sec * 1e3 + (double)(now.tv_nsec / 1000000);
    s->runs += runs;
    add_time(&s->queue, r->sent - r->arrived + (wait > 0 ? wait : 0));
    add_time(&s->input, read);
    add_time(&s->infer, network + merge);
    add_time(&s->output, write);
}

static int is_of_client(int code)
{
    return code == MP_EINVAL || code == MP_EFORMAT || code == MP_ENOTSUP ||
           code == MP_EABI;
}

static void take_answer(struct mp_front *f, struct mp_request *r,
                        struct mp_message *m)
{
    const char *text = json_string_value(json_object_get(m->text, "error"));
    const char *stage = json_string_value(json_object_get(m->text, "stage"));
    char clean[sizeof r->error];

    if (!m->code) {
        count_times(r, m->text);
        r->answer = m->text;
        r->results = m->blob;
        m->text = NULL;
        m->blob = MP_NO_BLOB;
        mp_front_settle(f, r, GOOD, 200);
        return;
    }
    if (!text)
        text = m->code == MP_ENOMEM ? "out of memory" : "failed";
    mp_without_folders(clean, sizeof clean, text);
    snprintf(r->stage, sizeof r->stage, "%s", stage ? stage : "");
    if (is_of_client(m->code))
        mp_front_settle_with(f, r, BAD_REQUEST, 400, "%s", clean);
    else if (m->code == MP_ENOMEM)
        mp_front_settle_with(f, r, REJECTED, 503, "%s", clean);
    else
        mp_front_settle_with(f, r, BROKEN, 500, "%s", clean);
}

void mp_front_take(struct mp_front *f, const struct worker *w,
                   struct mp_message *m)
{
    for (struct flight **at = &f->flights, *fl; (fl = *at); at = &fl->next)
        if (fl->id == m->id && fl->p->worker == w) {
            *at = fl->next;
            fl->p->nflight--;
            if (fl->r)
                take_answer(f, fl->r, m);
            mp_front_dispatch(f, fl->p);
            free(fl);
            return;
        }
}

/* ---- clients that go, and time that passes ---- */

void mp_front_abandon(struct mp_front *f, struct mp_request *r, enum result how,
                      int status, const char *why)
{
    if (r->queued.next)
        mp_queue_drop(&r->target->queue, &r->queued);
    for (struct flight *fl = f->flights; fl; fl = fl->next)
        if (fl->r == r) {
            fl->r = NULL;
            mp_front_send(fl->p->worker, MP_CANCEL, fl->id, NULL, MP_NO_BLOB);
        }
    mp_front_settle_with(f, r, how, status, "%s", why);
}

void mp_front_gone(struct mp_front *f, uint64_t id)
{
    struct mp_request *r = f->live;

    while (r && r->id != id)
        r = r->next;
    if (r)
        mp_front_abandon(f, r, CANCELLED, 499, "the client is gone");
}

void mp_front_expire(struct mp_front *f, double now, double *next)
{
    for (struct mp_request *r = f->live, *after; r; r = after) {
        after = r->next;
        if (r->kind != MP_WANT_INFER || r->queued.deadline <= 0)
            continue;
        if (r->queued.deadline <= now)
            mp_front_abandon(f, r, EXPIRED, 503, "the request's time was over");
        else
            mp_earlier(next, r->queued.deadline);
    }
}
