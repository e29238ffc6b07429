/* SPDX-License-Identifier: MIT */
/* inject.c - see inject.h. What stdio does inside the C library is out of its
 * reach, but for its memory. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include "inject.h"

static struct inject nothing, *told = &nothing;
static int role;

/* The C library hands them to constructors, too. */
__attribute__((constructor)) static void begin(int argc, char **argv)
{
    const char *path = getenv("MPIPE_INJECT");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *at = MAP_FAILED;

    if (fd >= 0)
        at =
            mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || at == MAP_FAILED)
        abort();
    close(fd);
    role =
        argc > 1 && !strcmp(argv[1], "--worker") ? INJECT_WORKER : INJECT_MAIN;
    told = at;
}

/* ---- memory ---- */

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

static int is_to_fail(void)
{
    long every;

    if (told->role[role].fail < 1 || --told->role[role].fail)
        return 0;
    every = told->role[role].every;
    if (every)
        told->role[role].fail = every;
    told->role[role].failed++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return is_to_fail() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return is_to_fail() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return is_to_fail() ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    return is_to_fail() ? NULL : __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    void *p = aligned_alloc(align, n);

    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

/* ---- reads and writes ---- */

/* The function of that name behind this one. */
#define REAL(name) ((__typeof__(name) *)real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* Of n bytes how many are to be moved; 0: the call is to be interrupted. As
 * the same call comes again and again, it gets on in the end. Descriptors that
 * do not wait have neither. */
static size_t part_of(int fd, size_t n)
{
    static _Atomic uint32_t seed = 1;
    uint32_t x;

    if (!told->trickle || !n || fcntl(fd, F_GETFL) & O_NONBLOCK)
        return n;
    x = seed = seed * 1664525 + 1013904223;
    told->trickled++;
    if (x >> 30 == 0) {
        errno = EINTR;
        return 0;
    }
    return 1 + (x >> 8) % n;
}

#define INTERRUPTED(k, n) (!(k) && (n))

ssize_t read(int fd, void *to, size_t n)
{
    size_t k = part_of(fd, n);

    return INTERRUPTED(k, n) ? -1 : REAL(read)(fd, to, k);
}

ssize_t write(int fd, const void *from, size_t n)
{
    size_t k = part_of(fd, n);

    return INTERRUPTED(k, n) ? -1 : REAL(write)(fd, from, k);
}

ssize_t recv(int fd, void *to, size_t n, int flags)
{
    size_t k = part_of(fd, n);

    return INTERRUPTED(k, n) ? -1 : REAL(recv)(fd, to, k, flags);
}

ssize_t send(int fd, const void *from, size_t n, int flags)
{
    size_t k = part_of(fd, n);

    return INTERRUPTED(k, n) ? -1 : REAL(send)(fd, from, k, flags);
}

/* Messages are whole or not at all. */
ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
    return part_of(fd, 1) ? REAL(recvmsg)(fd, m, flags) : -1;
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    return part_of(fd, 1) ? REAL(sendmsg)(fd, m, flags) : -1;
}

int epoll_wait(int fd, struct epoll_event *e, int n, int ms)
{
    return part_of(fd, 1) ? REAL(epoll_wait)(fd, e, n, ms) : -1;
}

/* ---- time ---- */

int clock_gettime(clockid_t id, struct timespec *t)
{
    int rc = REAL(clock_gettime)(id, t);

    if (!rc && id == CLOCK_REALTIME)
        t->tv_sec += told->clock;
    return rc;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
    int rc = REAL(gettimeofday)(t, zone);

    if (!rc)
        t->tv_sec += told->clock;
    return rc;
}

time_t time(time_t *out)
{
    struct timespec t = {0};

    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}
