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
#include "json.h"
#include "progress.h"

/* ---- the end of a request ---- */

static void wake(const struct mp_front *f)
{
    uint64_t one = 1;

    if (write(f->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        mp_log(MP_LOG_ERROR, "front", "eventfd: %s", strerror(errno));
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
        mp_tally_request(&r->target->tally, how, mp_now() - r->arrived,
                         &r->stages);
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
    json_decref(r->pictures);
    mp_blob_free(&r->blob);
    for (size_t i = 0; i < r->npart; i++) {
        json_decref(r->part[i].answer);
        mp_blob_free(&r->part[i].data);
    }
    free(r->part);
    r->text = r->pictures = NULL;
    r->part = NULL;
    r->npart = 0;
}

/* ---- sending to workers ---- */

/* The request of an entry. */
static struct mp_request *request_of(struct mp_queued *e)
{
    return (void *)((char *)e - offsetof(struct mp_request, queued));
}

void mp_front_fail_queue(struct mp_front *f, struct pipeline *p,
                         const char *why)
{
    struct mp_queued *e;
    char text[300];

    snprintf(text, sizeof text, "%s: %s", p->entry->name, why);
    while ((e = mp_queue_next(&p->queue)))
        mp_front_abandon(f, request_of(e), REJECTED, 503, text);
}

static size_t flight_limit(const struct mp_front *f, const struct pipeline *p)
{
    int32_t limit = mp_front_conf(f)->limits.in_flight;
    json_int_t batch = json_integer_value(json_object_get(p->about, "batch"));

    return limit > 0 ? (size_t)limit : 2 * (size_t)batch + 3;
}

/* What the worker is to know of a request's next picture. NULL: no memory. */
static json_t *next_text(const struct mp_request *r, const struct pipeline *p)
{
    unsigned before = mp_json_losses();
    json_t *o = json_copy(r->text);

    if (o && !json_object_update(o, json_array_get(r->pictures, r->nsent)) &&
        !json_object_set_new(o, "pipeline", json_integer((json_int_t)p->id)) &&
        mp_json_losses() == before)
        return o;
    json_decref(o);
    return NULL;
}

/* The next picture of r; after the last, r has left the queue. */
static void send_next(struct mp_front *f, struct pipeline *p,
                      struct mp_request *r)
{
    struct flight *fl = malloc(sizeof *fl);
    json_t *text = fl ? next_text(r, p) : NULL;
    uint64_t id = ++f->last_id;
    int rc = text ? mp_front_send(p->worker, MP_INFER, id, text, r->blob)
                  : MP_ENOMEM;

    if (rc) {
        free(fl);
        if (rc == MP_ENOMEM)
            mp_front_abandon(f, r, REJECTED, 503, "out of memory");
        else
            mp_front_abandon(f, r, BAD_REQUEST, 400,
                             "parameters and boxes are too long together");
        return;
    }
    *fl = (struct flight){f->flights, id, p, r, r->nsent, mp_now()};
    f->flights = fl;
    p->nflight++;
    p->used = fl->sent;
    if (++r->nsent < r->npart)
        return;
    mp_queue_drop(&p->queue, &r->queued);
    mp_blob_free(&r->blob); /* the worker's now */
}

void mp_front_dispatch(struct mp_front *f, struct pipeline *p)
{
    struct mp_queued *e;

    while (p->state == READY && p->worker->pid &&
           p->nflight < flight_limit(f, p) && (e = mp_queue_next(&p->queue)))
        send_next(f, p, request_of(e));
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
    /* what is on demand is loaded again when it is unloaded */
    if ((p->state == UNLOADING || p->state == UNLOADED) &&
        p->entry->load != MP_ON_DEMAND) {
        mp_front_settle_with(f, r, REJECTED, 503, "%s is not loaded",
                             p->entry->name);
        return;
    }
    r->npart = json_array_size(r->pictures);
    r->part = calloc(r->npart, sizeof *r->part);
    if (!r->part) {
        r->npart = 0;
        mp_front_settle_with(f, r, REJECTED, 503, "out of memory");
        return;
    }
    for (size_t i = 0; i < r->npart; i++)
        r->part[i].data = MP_NO_BLOB;
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
    /* at once: a burst must not fill the queue of an idle worker */
    mp_front_dispatch(f, p);
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

static int is_of_client(int code)
{
    return code == MP_EINVAL || code == MP_EFORMAT || code == MP_ENOTSUP ||
           code == MP_EABI;
}

/* One picture failed: so does its request. */
static void take_failure(struct mp_front *f, struct mp_request *r, size_t part,
                         const struct mp_message *m)
{
    const char *text = json_string_value(json_object_get(m->text, "error"));
    const char *stage = json_string_value(json_object_get(m->text, "stage"));
    char clean[sizeof r->error], where[40] = "", all[sizeof r->error];

    if (!text)
        text = m->code == MP_ENOMEM ? "out of memory" : "failed";
    mp_without_folders(clean, sizeof clean, text);
    if (r->npart > 1)
        snprintf(where, sizeof where, "picture %zu: ", part + 1);
    snprintf(all, sizeof all, "%s%.340s", where, clean);
    snprintf(r->stage, sizeof r->stage, "%s", stage ? stage : "");
    if (is_of_client(m->code))
        mp_front_abandon(f, r, BAD_REQUEST, 400, all);
    else if (m->code == MP_ENOMEM)
        mp_front_abandon(f, r, REJECTED, 503, all);
    else
        mp_front_abandon(f, r, BROKEN, 500, all);
}

static void take_answer(struct mp_front *f, struct mp_request *r, size_t part,
                        struct mp_message *m)
{
    if (m->code) {
        take_failure(f, r, part, m);
        return;
    }
    mp_tally_picture(&r->target->tally, m->text, &r->stages);
    r->part[part] = (struct mp_part){m->text, m->blob};
    m->text = NULL;
    m->blob = MP_NO_BLOB;
    if (++r->ndone == r->npart)
        mp_front_settle(f, r, GOOD, 200);
}

void mp_front_take(struct mp_front *f, struct worker *w, struct mp_message *m)
{
    for (struct flight **at = &f->flights, *fl; (fl = *at); at = &fl->next)
        if (fl->id == m->id && fl->p->worker == w) {
            *at = fl->next;
            fl->p->nflight--;
            if (fl->r)
                take_answer(f, fl->r, fl->part, m);
            mp_front_dispatch(f, fl->p);
            if (!fl->p->nflight)
                mp_front_save_memory(f, w);
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
