/* SPDX-License-Identifier: MIT */
/*
 * http_impl.h - the inside of the server: http.c has connections, bodies and
 * what workers do, http_head.c who may ask what, http_send.c the answers.
 */
#ifndef CORE_DAEMON_HTTP_IMPL_H
#define CORE_DAEMON_HTTP_IMPL_H

#include <microhttpd.h>
#include <pthread.h>
#include "answer.h"
#include "http.h"
#include "route.h"

/* What is known of a connection. */
struct peer {
    struct peer *next, *prev;
    int fd;
    double since; /* it has been asking */
    int busy;     /* its request is being served */
    int hung_up;  /* so it was when last looked at */
    uint64_t client;
};

struct mp_http {
    struct MHD_Daemon *daemon;
    struct mp_front *front;
    const struct mp_daemon_conf *conf;
    const char *token;
    int is_tcp;
    pthread_mutex_t lock; /* of peers */
    struct peer *peers;
};

struct exchange {
    struct mp_http *h;
    struct MHD_Connection *connection;
    struct peer *peer;
    enum mp_route route;
    char model[MP_ROUTE_NAME];
    int status; /* nonzero: refused, with this */
    char error[400];
    const char *allow; /* 405 */
    struct mp_blob body;
    size_t got; /* bytes, also of a body that is thrown away */
    int chunked, pieces;
    struct mp_ask ask;
    struct mp_request request;
    int asked, answered;
};

/* ---- http_head.c ---- */

/* The first reason counts. */
void mp_http_refuse(struct exchange *x, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const char *mp_http_header(const struct exchange *x, const char *name);
size_t mp_http_body_most(const struct exchange *x);
void mp_http_too_large(struct exchange *x);
/* Find out what is asked, or refuse. */
void mp_http_begin(struct exchange *x, const char *url, const char *method);

/* ---- http_send.c ---- */

/* Takes the bytes. */
enum MHD_Result mp_http_send(struct exchange *x, int status, struct mp_body *b);
/* What it was refused with. */
enum MHD_Result mp_http_send_error(struct exchange *x);
/* 200 or 400 without a body. */
enum MHD_Result mp_http_send_state(struct exchange *x, int is_good);
/* What can be answered at once. */
enum MHD_Result mp_http_answer_now(struct exchange *x);

#endif
