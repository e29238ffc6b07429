/* SPDX-License-Identifier: MIT */
/*
 * http.h - the protocol over HTTP/1.1, one server for each socket: who may ask,
 * what is too large or too slow, which address means what. See mpipe_http(7).
 *
 * Life cycle: mp_http_start; mp_http_sweep about every second; mp_http_stop
 * when the front has answered everything. Threads: libmicrohttpd's; sweep and
 * stop from any one.
 */
#ifndef CORE_DAEMON_HTTP_H
#define CORE_DAEMON_HTTP_H

#include "config.h"
#include "front.h"

struct mp_http;

/* fd: a listening socket, taken. token: what TCP clients must send, or NULL;
 * borrowed like the others until stop. */
int mp_http_start(struct mp_http **out, struct mp_front *front,
                  const struct mp_daemon_conf *conf, int fd, const char *token,
                  struct mp_error *err);
/* Close connections that take too long to ask. */
void mp_http_sweep(struct mp_http *h);
void mp_http_stop(struct mp_http *h); /* NULL is fine */

#endif
