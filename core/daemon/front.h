/* SPDX-License-Identifier: MIT */
/*
 * front.h - pipelines, their queues, and the workers that serve them.
 *
 * The front has no device and runs no head's code: it starts worker processes,
 * sends them what is due, and survives them. A worker that dies fails what it
 * had with 500 and is started again; what waits goes on waiting. A pipeline
 * that its worker died of too often is given up with the reason.
 *
 * Life cycle: mp_front_new; any threads submit and ask; mp_front_run until it
 * is told to end; mp_front_free. Threads: run is the main thread's, which must
 * have blocked SIGTERM, SIGINT and SIGHUP before any other thread began; all
 * others may be called from any thread.
 */
#ifndef CORE_DAEMON_FRONT_H
#define CORE_DAEMON_FRONT_H

#include "config.h"
#include "link.h"
#include "queue.h"
#include "tally.h"

struct mp_front;
struct pipeline;

enum mp_request_kind { MP_WANT_INFER, MP_WANT_LOAD, MP_WANT_UNLOAD };

/* What somebody wants, and then the answer. It belongs to the front from
 * mp_front_submit until done is called (perhaps before that returns). */
struct mp_request {
    enum mp_request_kind kind;
    const char *pipeline; /* name */
    /* INFER: */
    json_t *text;        /* see worker.h: what holds of all pictures */
    json_t *pictures;    /* and of each: a list of objects, one at least */
    struct mp_blob blob; /* where they are */
    uint64_t client;     /* who takes turns with others */
    int priority;        /* 1 first ... 9 last */
    double timeout;      /* seconds; 0: that of the configuration */
    int watch;           /* socket that hangs up if nobody waits any more */
    void (*done)(struct mp_request *r);
    void *user;

    int status;           /* of HTTP; 200: the parts are there */
    char error[400];      /* else this */
    char stage[16];       /* of a picture that failed; else "" */
    struct mp_part *part; /* of each picture, in their order */
    size_t npart;

    struct mp_queued queued; /* from here on the front's */
    size_t nsent, ndone;     /* parts */
    struct stages stages;    /* of those */
    struct mp_request *next, *prev;
    struct pipeline *target;
    uint64_t id;
    double arrived;
};

/* args: of a worker process after its name, NULL-ended. The configuration
 * passes to the front. */
int mp_front_new(struct mp_front **out, struct mp_daemon_conf *conf,
                 const char *file, const char *const *assign, size_t nassign,
                 char *const *args, struct mp_error *err);
void mp_front_free(struct mp_front *f); /* NULL is fine; ends the workers */

/* Called about every second by run. Before it. */
void mp_front_every_second(struct mp_front *f, void (*call)(void *user),
                           void *user);

/* Until SIGTERM or SIGINT; then until what is under way is answered, or
 * drain_time is over. */
int mp_front_run(struct mp_front *f, struct mp_error *err);

void mp_front_submit(struct mp_front *f, struct mp_request *r);
void mp_request_free(struct mp_request *r); /* what it holds */

/* name NULL: all pipelines that are loaded at the start. */
int mp_front_is_ready(struct mp_front *f, const char *name);
int mp_front_has(struct mp_front *f, const char *name);
/* What a worker said of a pipeline, see worker.c; NULL: not loaded. */
json_t *mp_front_describe(struct mp_front *f, const char *name);
/* [{"name", "version", "state", "reason", "load", "head"}, ...] */
json_t *mp_front_index(struct mp_front *f, int ready_only);
/* {"model_stats": [...]}; name NULL: of all. */
json_t *mp_front_stats(struct mp_front *f, const char *name);
/* For Prometheus; free it. NULL: out of memory. */
char *mp_front_metrics(struct mp_front *f);
/* A failure for the status page: the last few are kept. */
json_t *mp_front_errors(struct mp_front *f);

#endif
