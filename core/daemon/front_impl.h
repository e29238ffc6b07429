/* SPDX-License-Identifier: MIT */
/*
 * front_impl.h - the inside of the front: front.c has the pipelines and the
 * loop, front_request.c the requests, front_process.c the workers,
 * front_usage.c what they use, and front_tell.c tells of all of them.
 * Everything is called with the lock held, but for mp_front_tell.
 */
#ifndef CORE_DAEMON_FRONT_IMPL_H
#define CORE_DAEMON_FRONT_IMPL_H

#include <pthread.h>
#include <sys/types.h>
#include "front.h"

enum pipeline_state { UNLOADED, LOADING, READY, UNLOADING, FAILED };

/* A picture that a worker has. */
struct flight {
    struct flight *next;
    uint64_t id;
    struct pipeline *p;
    struct mp_request *r; /* NULL: nobody waits any more */
    size_t part;
    double sent;
};

#define DEATHS_KEPT 100

struct pipeline {
    struct pipeline *next;
    uint64_t id;
    const struct mp_pipeline_entry *entry;
    struct worker *worker;
    enum pipeline_state state;
    int is_wanted; /* a worker that starts is to load it */
    int is_gone;   /* from the configuration: forgotten when unloaded */
    json_t *about; /* of the worker; NULL: none so far */
    char reason[256];
    struct mp_queue queue;
    size_t nflight;
    struct mp_request *waiting; /* for it to be loaded or unloaded */
    double used, loading_since, died[DEATHS_KEPT];
    size_t ndied;
    struct tally tally;
};

struct worker {
    struct worker *next;
    char name[48];
    pid_t pid; /* 0: not running */
    int sock;
    struct mp_ledger *ledger;
    int ledger_fd;
    double restart; /* when; 0: not planned */
    double died;    /* last */
    int streak;     /* deaths in a row */
    uint64_t starts, deaths;
    uint64_t runs[MP_RUN_BUCKETS], views, busy_ns; /* of those that died */
    double cpu;                                    /* seconds of those */
};

#define ERRORS_KEPT 10

struct mp_front {
    pthread_mutex_t lock;          /* of everything */
    struct mp_daemon_conf **confs; /* the last is in force */
    size_t nconf;
    const char *file;
    const char *const *assign;
    size_t nassign;
    char *const *args;
    struct pipeline *pipelines;
    struct worker *workers;
    struct flight *flights;
    struct mp_request *live;     /* unanswered */
    struct mp_request *finished; /* to be told */
    uint64_t last_id;
    int poll_fd, wake_fd, signal_fd;
    int draining, told_ready; /* told_ready: pipelines that are, and 1 */
    void (*every_second)(void *user);
    void *every_user;
    double began, drain_until, watchdog, beat;
    double second; /* when every_second is due */
    struct {
        char text[400];
        time_t when;
    } errors[ERRORS_KEPT];
    size_t nerror;
};

/* What an event is about: the low bits are a number. */
#define EVENT(what, number) ((uint64_t)(what) << 56 | (number))
enum { EVENT_WAKE = 1, EVENT_SIGNAL, EVENT_WORKER, EVENT_CLIENT };

static inline const struct mp_daemon_conf *
mp_front_conf(const struct mp_front *f)
{
    return f->confs[f->nconf - 1];
}

static inline void mp_earlier(double *next, double when)
{
    if (when < *next)
        *next = when;
}

/* ---- front.c ---- */

struct pipeline *mp_front_find(const struct mp_front *f, const char *name);
void mp_front_load(struct mp_front *f, struct pipeline *p);
void mp_front_unload(struct mp_front *f, struct pipeline *p);
/* It cannot be served: its requests are told why. */
void mp_front_give_up(struct mp_front *f, struct pipeline *p, const char *why);
/* Tell those that wait for p to be loaded or unloaded. */
void mp_front_end_waiting(struct mp_front *f, struct pipeline *p);
/* Pipelines that are gone and have no work left. */
void mp_front_forget(struct mp_front *f);
/* For the status page. */
void mp_front_note(struct mp_front *f, const char *text);
/* Names of files without their folders: clients are not told of those. */
void mp_without_folders(char *out, size_t size, const char *text);

/* ---- front_request.c ---- */

/* It is answered: what it has, or else this error. It must be nowhere else; see
 * mp_front_abandon. */
void mp_front_settle(struct mp_front *f, struct mp_request *r, enum result how,
                     int status);
void mp_front_settle_with(struct mp_front *f, struct mp_request *r,
                          enum result how, int status, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Tell who waited. Not locked. */
void mp_front_tell(struct mp_front *f);
/* Send the worker what it has room for. */
void mp_front_dispatch(struct mp_front *f, struct pipeline *p);
void mp_front_fail_queue(struct mp_front *f, struct pipeline *p,
                         const char *why);
/* What a worker answered. */
void mp_front_take(struct mp_front *f, struct worker *w, struct mp_message *m);
/* It ends with this error, wherever it is: in the queue, with a worker. */
void mp_front_abandon(struct mp_front *f, struct mp_request *r, enum result how,
                      int status, const char *why);
void mp_front_gone(struct mp_front *f, uint64_t id); /* its client */
/* Those whose time is over; *next: when one will be. */
void mp_front_expire(struct mp_front *f, double now, double *next);

/* ---- front_process.c ---- */

struct worker *mp_front_worker(struct mp_front *f, const char *name,
                               struct mp_error *err);
/* Takes the text. MP_EINVAL: it is too long, MP_ENOMEM: there is no memory for
 * it. Any other failure is the worker's, which is killed. */
int mp_front_send(struct worker *w, enum mp_message_type type, uint64_t id,
                  json_t *text, struct mp_blob blob);
/* It died, or is to; blame: the pipeline that was the reason; 0: see. */
void mp_front_bury(struct mp_front *f, struct worker *w, uint64_t blame);
/* Those that hang are killed, those that are due started; *next: when more is.
 */
void mp_front_mind(struct mp_front *f, double now, double *next);
void mp_front_end_worker(struct worker *w);

/* ---- front_usage.c ---- */

size_t mp_process_memory(pid_t pid); /* KiB; 0: unknown */
double mp_process_cpu(pid_t pid);    /* seconds so far; 0: unknown */
size_t mp_process_files(pid_t pid);  /* open; 0: unknown */
/* Over the limit: the idle pipeline on demand that was not used for longest
 * goes. */
void mp_front_save_memory(struct mp_front *f, struct worker *w);

#endif
