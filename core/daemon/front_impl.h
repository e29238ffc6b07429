/* SPDX-License-Identifier: MIT */
/* front_impl.h - the inside of the front, for front.c and what tells of it. */
#ifndef CORE_DAEMON_FRONT_IMPL_H
#define CORE_DAEMON_FRONT_IMPL_H

#include <pthread.h>
#include <sys/types.h>
#include "front.h"

enum pipeline_state { UNLOADED, LOADING, READY, UNLOADING, FAILED };

enum result { GOOD, BAD_REQUEST, BROKEN, REJECTED, EXPIRED, CANCELLED };
#define RESULTS 6

struct duration {
    uint64_t count;
    double seconds;
};

#define TIME_BUCKETS 12
extern const double mp_time_buckets[TIME_BUCKETS]; /* seconds; then infinity */

struct stats {
    uint64_t results[RESULTS];
    struct duration success, fail, queue, input, infer, output;
    uint64_t took[TIME_BUCKETS + 1]; /* of requests, by time */
    double runs;
    double last; /* ms since 1970 */
};

/* One that a worker has. */
struct flight {
    struct flight *next;
    uint64_t id;
    struct pipeline *p;
    struct mp_request *r; /* NULL: nobody waits any more */
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
    struct stats stats;
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
};

#define ERRORS_KEPT 10

size_t mp_process_memory(pid_t pid); /* KiB; 0: unknown */

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
    struct {
        char text[400];
        time_t when;
    } errors[ERRORS_KEPT];
    size_t nerror;
};

#endif
