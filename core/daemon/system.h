/* SPDX-License-Identifier: MIT */
/*
 * system.h - the service manager and sockets to listen on. Threads: main.
 */
#ifndef CORE_DAEMON_SYSTEM_H
#define CORE_DAEMON_SYSTEM_H

#include "config.h"

/* A message to the service manager, if there is one: sd_notify(3). */
void mp_notify(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Seconds within which it wants to hear WATCHDOG=1; 0: it does not. */
double mp_watchdog(void);

#define MP_LISTEN_MAX 8

struct mp_listen {
    int fd[MP_LISTEN_MAX];
    size_t n;
    char *token; /* NULL: none */
    char *path;  /* of the Unix socket that was made, to be removed */
};

/* Whether [http] is as it must be, which opens nothing. */
int mp_listen_check(const struct mp_daemon_conf *c, struct mp_error *err);
/* The sockets that the service manager gives, or else those of the
 * configuration. Refused: another mpiped on the Unix socket; an address beyond
 * loopback without a token file. */
int mp_listen_open(struct mp_listen *l, const struct mp_daemon_conf *c,
                   struct mp_error *err);
/* Removes the path; descriptors that were taken are set to -1 before. */
void mp_listen_close(struct mp_listen *l);

#endif
