/* SPDX-License-Identifier: MIT */
/* front_process.c - worker processes: begun, minded, buried. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "front_impl.h"
#include "progress.h"

#define BACKOFF_MOST 10 /* seconds */

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- starting ---- */

int mp_front_send(struct worker *w, enum mp_message_type type, uint64_t id,
                  json_t *text, struct mp_blob blob)
{
    struct mp_message m = {.type = type, .id = id, .text = text, .blob = blob};
    struct mp_error err = {0};
    int rc = w->pid ? mp_link_send(w->sock, &m, &err) : 0;

    json_decref(text);
    if (!rc || rc == MP_EINVAL || rc == MP_ENOMEM)
        return rc;
    mp_log(MP_LOG_WARNING, w->name, "%s", err.text);
    kill(w->pid, SIGKILL); /* the end of its socket tells the rest */
    return 0;
}

static int open_ledger(struct worker *w, struct mp_error *err)
{
    w->ledger_fd = memfd_create("mpipe-ledger", MFD_CLOEXEC);
    if (w->ledger_fd >= 0 && !ftruncate(w->ledger_fd, sizeof *w->ledger)) {
        w->ledger = mmap(NULL, sizeof *w->ledger, PROT_READ | PROT_WRITE,
                         MAP_SHARED, w->ledger_fd, 0);
        if (w->ledger != MAP_FAILED)
            return 0;
        w->ledger = NULL;
    }
    mp_fail(err, MP_ENOMEM, "shared memory: %s", strerror(errno));
    if (w->ledger_fd >= 0)
        close(w->ledger_fd);
    return MP_ENOMEM;
}

/* The same program anew: nothing of a process with threads is carried over. */
static int spawn(struct mp_front *f, struct worker *w, int sock,
                 struct mp_error *err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    pid_t pid;
    int code;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null",
                                     O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, sock, MP_LINK_FD);
    posix_spawn_file_actions_adddup2(&files, w->ledger_fd, MP_LEDGER_FD);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK |
                                        POSIX_SPAWN_SETSIGDEF |
                                        POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    code = posix_spawn(&pid, "/proc/self/exe", &files, &attr, f->args, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    if (code)
        return mp_fail(err, MP_EIO, "worker %s: %s", w->name, strerror(code));
    w->pid = pid;
    return 0;
}

/* Sockets above those numbers that the worker is to have. */
static int make_pair(int pair[2])
{
    int room = 2 * MP_TEXT_MAX;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -1;
    for (int i = 0; i < 2; i++) {
        int up = fcntl(pair[i], F_DUPFD_CLOEXEC, MP_LEDGER_FD + 1);

        close(pair[i]);
        pair[i] = up;
        setsockopt(up, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    if (pair[0] >= 0 && pair[1] >= 0)
        return 0;
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0)
            close(pair[i]);
    return -1;
}

static int start_worker(struct mp_front *f, struct worker *w,
                        struct mp_error *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    int pair[2], rc;

    w->restart = 0;
    if (make_pair(pair))
        return mp_fail(err, MP_EIO, "socket pair: %s", strerror(errno));
    memset(w->ledger, 0, sizeof *w->ledger);
    rc = spawn(f, w, pair[1], err);
    close(pair[1]);
    if (rc) {
        close(pair[0]);
        return rc;
    }
    w->sock = pair[0];
    /* one that does not read must not hold everybody up */
    setsockopt(w->sock, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_sec = 1},
               sizeof(struct timeval));
    event.data.u64 = EVENT(EVENT_WORKER, (uint64_t)w->sock);
    epoll_ctl(f->poll_fd, EPOLL_CTL_ADD, w->sock, &event);
    w->starts++;
    for (struct pipeline *p = f->pipelines; p; p = p->next)
        if (p->worker == w && p->is_wanted)
            mp_front_load(f, p);
    return 0;
}

struct worker *mp_front_worker(struct mp_front *f, const char *name,
                               struct mp_error *err)
{
    struct worker *w = f->workers, **end = &f->workers;

    for (; w; end = &w->next, w = w->next)
        if (!strcmp(w->name, name))
            return w;
    w = calloc(1, sizeof *w);
    if (!w || open_ledger(w, err)) {
        if (!w)
            no_memory(err);
        free(w);
        return NULL;
    }
    snprintf(w->name, sizeof w->name, "%s", name);
    w->sock = -1;
    *end = w;
    return w;
}

/* ---- a worker dies ---- */

static void describe_death(char *out, size_t size, int status)
{
    if (WIFSIGNALED(status))
        snprintf(out, size, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(out, size, "ended with status %d", WEXITSTATUS(status));
}

static int count_deaths(const struct mp_front *f, struct pipeline *p)
{
    double now = mp_now();
    int n = 0;

    p->died[p->ndied++ % DEATHS_KEPT] = now;
    for (size_t i = 0; i < p->ndied && i < DEATHS_KEPT; i++)
        n += now - p->died[i] < mp_front_conf(f)->worker.within;
    return n;
}

/* Was this pipeline the reason, as far as one can tell? */
static int is_to_blame(const struct mp_front *f, const struct pipeline *p,
                       uint64_t blame)
{
    if (blame)
        return p->id == blame;
    for (const struct pipeline *q = f->pipelines; q; q = q->next)
        if (q->worker == p->worker && q->state == LOADING)
            return p->state == LOADING;
    return p->nflight > 0;
}

/* Of a worker that is no more. */
static void fail_flights(struct mp_front *f, const struct worker *w,
                         const char *how)
{
    char why[200];

    snprintf(why, sizeof why, "the worker that had the request %s", how);
    for (struct flight **at = &f->flights, *fl; (fl = *at);) {
        if (fl->p->worker != w) {
            at = &fl->next;
            continue;
        }
        *at = fl->next;
        if (fl->r)
            mp_front_abandon(f, fl->r, BROKEN, 500, why);
        fl->p->nflight--;
        free(fl);
    }
}

static void keep_counts(struct worker *w)
{
    for (int i = 0; i < MP_RUN_BUCKETS; i++)
        w->runs[i] += atomic_load(&w->ledger->runs[i]);
    w->views += atomic_load(&w->ledger->views);
    w->busy_ns += atomic_load(&w->ledger->busy_ns);
}

static void plan_restart(const struct mp_front *f, struct worker *w)
{
    double now = mp_now(), wait = mp_front_conf(f)->worker.backoff;

    w->streak =
        now - w->died < mp_front_conf(f)->worker.within ? w->streak + 1 : 1;
    w->died = now;
    for (int i = 2; i < w->streak && wait < BACKOFF_MOST; i++)
        wait *= 2;
    w->restart = now + (w->streak < 2         ? 0
                        : wait < BACKOFF_MOST ? wait
                                              : BACKOFF_MOST);
}

static double seconds_of(const struct timeval *t)
{
    return (double)t->tv_sec + (double)t->tv_usec / 1e6;
}

void mp_front_bury(struct mp_front *f, struct worker *w, uint64_t blame)
{
    char how[120], why[200];
    struct rusage usage;
    int status = 0, wanted = 0;

    kill(w->pid, SIGKILL); /* it may only have closed its socket */
    if (wait4(w->pid, &status, 0, &usage) > 0)
        w->cpu += seconds_of(&usage.ru_utime) + seconds_of(&usage.ru_stime);
    describe_death(how, sizeof how, status);
    mp_log(MP_LOG_ERROR, w->name, "the worker (process %ld) %s", (long)w->pid,
           how);
    close(w->sock);
    w->sock = -1;
    w->pid = 0;
    w->deaths++;
    keep_counts(w);
    blame = blame ? blame : atomic_load(&w->ledger->blame);
    memset(w->ledger, 0, sizeof *w->ledger);
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        int n;

        if (p->worker != w || !is_to_blame(f, p, blame))
            continue;
        n = count_deaths(f, p);
        if (n < mp_front_conf(f)->worker.deaths)
            continue;
        snprintf(why, sizeof why, "its worker died %d times in %g s; it %s", n,
                 mp_front_conf(f)->worker.within, how);
        mp_front_give_up(f, p, why);
    }
    fail_flights(f, w, how);
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->worker != w || p->state == FAILED)
            continue;
        if (p->state == UNLOADING || !p->is_wanted) {
            p->is_wanted = p->queue.n > 0;
            p->state = UNLOADED;
            mp_front_end_waiting(f, p);
        }
        if (p->is_wanted) {
            p->state = LOADING;
            wanted = 1;
        }
    }
    if (wanted && !f->draining)
        plan_restart(f, w);
    mp_front_forget(f);
}

void mp_front_end_worker(struct worker *w)
{
    if (w->pid) {
        close(w->sock); /* it ends by itself, or else: */
        for (int i = 0; i < 100 && !waitpid(w->pid, NULL, WNOHANG); i++) {
            if (i == 50)
                kill(w->pid, SIGKILL);
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        }
    }
    munmap(w->ledger, sizeof *w->ledger);
    close(w->ledger_fd);
    free(w);
}

/* ---- one that lives ---- */

/* A worker that hangs, in a request or in loading. */
static void check_hangs(struct mp_front *f, struct worker *w, double now,
                        double *next)
{
    const struct mp_daemon_conf *c = mp_front_conf(f);

    for (struct flight *fl = f->flights; fl; fl = fl->next) {
        if (fl->p->worker != w)
            continue;
        if (fl->sent + c->limits.compute_time <= now) {
            mp_log(MP_LOG_ERROR, fl->p->entry->name,
                   "the worker has had a request for %g s: it is killed",
                   c->limits.compute_time);
            mp_front_bury(f, w, fl->p->id);
            return;
        }
        mp_earlier(next, fl->sent + c->limits.compute_time);
    }
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->worker != w || p->state != LOADING)
            continue;
        if (p->loading_since + c->limits.load_time <= now) {
            mp_log(MP_LOG_ERROR, p->entry->name,
                   "the worker has been loading for %g s: it is killed",
                   c->limits.load_time);
            mp_front_bury(f, w, p->id);
            return;
        }
        mp_earlier(next, p->loading_since + c->limits.load_time);
    }
}

void mp_front_mind(struct mp_front *f, double now, double *next)
{
    struct mp_error err = {0};

    for (struct worker *w = f->workers; w; w = w->next) {
        if (w->pid) {
            check_hangs(f, w, now, next);
        } else if (w->restart && w->restart <= now) {
            if (start_worker(f, w, &err)) {
                mp_log(MP_LOG_ERROR, w->name, "%s", err.text);
                plan_restart(f, w);
            }
        }
        if (!w->pid && w->restart)
            mp_earlier(next, w->restart);
    }
}
