/* SPDX-License-Identifier: MIT */
/*
 * worker_impl.h - the inside of a worker: worker.c has its threads and the
 * network, worker_task.c reads and answers requests, worker_load.c loads
 * pipelines, worker_usage.c tells what devices hold.
 */
#ifndef CORE_DAEMON_WORKER_IMPL_H
#define CORE_DAEMON_WORKER_IMPL_H

#include <pthread.h>
#include "device.h"
#include "link.h"
#include "picture_job.h"
#include "worker.h"

#define THREADS_MAX 8

/* A pipeline. */
struct hosted {
    struct hosted *next;
    uint64_t id;
    struct mp_settings *settings;
    struct mp_pipeline *pipeline;
    size_t batch;
    double window;   /* seconds that a view waits for others */
    size_t ntask;    /* unanswered */
    size_t turn;     /* of devices */
    json_t *outputs; /* see worker_load.c */
};

enum state { RECEIVED, BUSY, OPEN, SEEN, GONE };

/* Its share of runs of so many views. */
struct seen {
    size_t views;
    double runs, seconds;
};

struct task {
    struct task *next;
    uint64_t id;
    enum state state; /* BUSY: a thread's, or the network's */
    int rc;
    _Atomic int cancelled; /* set by the receiving thread, at any time */
    struct hosted *host;
    json_t *text;
    struct mp_blob blob;
    struct mp_settings *varied; /* NULL: none but the pipeline's */
    char *variant;              /* its options as a text */
    struct mp_picture_job p;
    struct mp_input input;
    struct mp_keep keep;
    double opened, read, merge, write;
    struct seen *seen; /* runs that had views of it */
    size_t nseen, last_seen;
};

/* What the main thread is to do beside seeing. */
struct order {
    struct order *next;
    struct mp_message m;
};

struct look {
    struct task *task;
    size_t view;
};

struct worker {
    int sock;
    struct mp_ledger *ledger;
    pthread_mutex_t lock; /* of what follows up to the main thread's */
    pthread_cond_t changed;
    pthread_mutex_t sending;
    struct task *tasks, **tasks_end; /* in order of arrival */
    struct order *orders, **orders_end;
    struct hosted *hosts;
    int quit;
    struct mp_error end; /* why, unless the front is gone */
    pthread_t thread[THREADS_MAX + 1];
    int nthread;

    /* the main thread's */
    struct mp_devices devices;
    struct look *look;
    size_t nlook, look_cap;
    const struct look *running; /* what a device is at: nrunning of them */
    size_t nrunning;
    double told_memory; /* when */
};

/* ---- worker.c ---- */

/* Takes the message. Any thread, not locked. */
void mp_worker_send(struct worker *w, struct mp_message *m);

/* ---- worker_task.c: any thread, one at a time per task ---- */

const struct mp_settings *mp_task_settings(const struct task *t);
/* What is asked for, and the picture: to be seen. */
int mp_task_open(struct task *t);
/* Its results, or rc and t->p.err. */
void mp_task_answer(struct worker *w, struct task *t, int rc);
void mp_task_free(struct task *t);

/* ---- worker_load.c: the main thread, not locked ---- */

void mp_worker_load(struct worker *w, const struct mp_message *m);
/* The front sends it when all requests of the pipeline are answered. */
void mp_worker_unload(struct worker *w, const struct mp_message *m);
void mp_host_close(struct hosted *h);

/* ---- worker_usage.c: the main thread ---- */

void mp_worker_tell_memory(struct worker *w);
/* A device was busy for so many seconds more. */
void mp_worker_tell_usage(struct worker *w, double busy);

#endif
