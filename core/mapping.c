/* SPDX-License-Identifier: MIT */
/*
 * mapping.c - mapped files. A signal handler looks for the mapping that an
 * address belongs to, so these are listed in a table that never moves, of
 * numbers that are read and written as a whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "mapping.h"

#define MOST  256         /* mappings of a process */
#define AHEAD (128 << 10) /* bytes: Linux takes no more at a time */

/* from 0: none. */
struct place {
    atomic_uintptr_t from, to;
    atomic_int failed;
};

struct mp_mapping {
    void *at;
    size_t size;
    int fd;
    struct mp_file_id id;
    struct place *place;
    atomic_size_t users;
};

static struct place place[MOST];
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before; /* of SIGBUS */
static uintptr_t page;

/* ---- the signal ---- */

/* Zeros in place of what cannot be read. */
static int replace(uintptr_t at, uintptr_t to)
{
    at -= at % page;
    return mmap((void *)at, to - at, PROT_READ,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static void on_bus(int number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    int is_access = info->si_code > 0, saved = errno;

    (void)context;
    for (int i = 0; i < MOST && is_access; i++) {
        uintptr_t from = atomic_load(&place[i].from);
        uintptr_t to = atomic_load(&place[i].to);

        if (!from || at < from || at >= to)
            continue;
        atomic_store(&place[i].failed, 1);
        if (replace(at, to)) {
            errno = saved;
            return;
        }
    }
    sigaction(number, &before, NULL); /* the access is made again */
    if (!is_access)
        raise(number);
    errno = saved;
}

static void catch_bus(void)
{
    struct sigaction a = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};

    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&a.sa_mask);
    sigaction(SIGBUS, &a, &before);
}

/* NULL: there are too many. */
static struct place *enter(const void *at, size_t size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct place *p = NULL;

    pthread_once(&once, catch_bus);
    pthread_mutex_lock(&table);
    for (int i = 0; i < MOST && !p; i++)
        p = atomic_load(&place[i].from) ? NULL : &place[i];
    if (p) {
        atomic_store(&p->failed, 0);
        atomic_store(&p->to, (uintptr_t)at + size);
        atomic_store(&p->from, (uintptr_t)at);
    }
    pthread_mutex_unlock(&table);
    return p;
}

/* ---- opening ---- */

static struct mp_file_id id_of(const struct stat *st)
{
    return (struct mp_file_id){
        .device = st->st_dev,
        .inode = st->st_ino,
        .bytes = (uint64_t)st->st_size,
        .written = {st->st_mtim.tv_sec, st->st_mtim.tv_nsec},
        .changed = {st->st_ctim.tv_sec, st->st_ctim.tv_nsec},
    };
}

static int map(struct mp_mapping *m, struct mp_error *err)
{
    struct stat st;
    void *at;

    if (fstat(m->fd, &st))
        return mp_fail(err, MP_EIO, "cannot stat: %s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return mp_fail(err, MP_EFORMAT, "not a regular file");
    if (st.st_size == 0)
        return mp_fail(err, MP_EFORMAT, "the file is empty");
    if ((uint64_t)st.st_size > SIZE_MAX / 2)
        return mp_fail(err, MP_ENOTSUP, "the file is too large to map");
    m->size = (size_t)st.st_size;
    at = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, m->fd, 0);
    if (at == MAP_FAILED)
        return mp_fail(err, MP_EIO, "cannot map the file: %s", strerror(errno));
    m->at = at;
    m->id = id_of(&st);
    m->place = enter(at, m->size);
    if (!m->place)
        return mp_fail(err, MP_ENOTSUP, "more than %d files at once", MOST);
    return 0;
}

int mp_mapping_open(struct mp_mapping **out, const char *path,
                    struct mp_error *err)
{
    struct mp_mapping *m = calloc(1, sizeof *m);
    int rc;

    *out = NULL;
    if (!m)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    atomic_init(&m->users, 1);
    /* O_NONBLOCK: a FIFO is to be refused, not waited for */
    m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    rc = m->fd < 0 ? mp_fail(err, MP_EIO, "cannot open: %s", strerror(errno))
                   : map(m, err);
    if (rc) {
        mp_mapping_drop(m);
        return rc;
    }
    *out = m;
    return 0;
}

const uint8_t *mp_mapping_at(const struct mp_mapping *m, size_t *size)
{
    *size = m->size;
    return m->at;
}

const struct mp_file_id *mp_mapping_id(const struct mp_mapping *m)
{
    return &m->id;
}

/* ---- who has it ---- */

struct mp_mapping *mp_mapping_hold(struct mp_mapping *m)
{
    atomic_fetch_add(&m->users, 1);
    return m;
}

void mp_mapping_drop(struct mp_mapping *m)
{
    if (!m || atomic_fetch_sub(&m->users, 1) > 1)
        return;
    if (m->place)
        atomic_store(&m->place->from, 0);
    if (m->at)
        munmap(m->at, m->size);
    if (m->fd >= 0)
        close(m->fd);
    free(m);
}

size_t mp_mapping_users(const struct mp_mapping *m)
{
    return atomic_load(&m->users);
}

/* ---- what became of it ---- */

int mp_mapping_check(const struct mp_mapping *m, struct mp_error *err)
{
    struct mp_file_id now;
    struct stat st;

    if (fstat(m->fd, &st))
        return mp_fail(err, MP_EIO, "cannot stat: %s", strerror(errno));
    now = id_of(&st); /* a new name changes st_ctim, too */
    if (now.bytes != m->id.bytes ||
        memcmp(now.written, m->id.written, sizeof now.written))
        return mp_fail(err, MP_EIO,
                       "the file was changed while it was being read; to "
                       "replace it, rename another to its name");
    if (atomic_load(&m->place->failed))
        return mp_fail(err, MP_EIO, "a part of the file could not be read");
    return 0;
}

static void *fetch(void *user)
{
    struct mp_mapping *m = user;

    for (size_t i = 0; i < m->size && mp_mapping_users(m) > 1; i += AHEAD)
        posix_fadvise(m->fd, (off_t)i, AHEAD, POSIX_FADV_WILLNEED);
    mp_mapping_drop(m);
    return NULL;
}

void mp_mapping_fetch(struct mp_mapping *m)
{
    pthread_t thread;
    sigset_t all, old;
    int code;

    mp_mapping_hold(m);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for others */
    code = pthread_create(&thread, NULL, fetch, m);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code)
        mp_mapping_drop(m);
    else
        pthread_detach(thread);
}

void mp_mapping_forget(const void *data, size_t bytes)
{
    uintptr_t from = (uintptr_t)data, to = from + bytes;

    /* pages shared with neighbours come back unchanged, at a small cost */
    from -= from % page;
    madvise((void *)from, to - from, MADV_DONTNEED);
}
