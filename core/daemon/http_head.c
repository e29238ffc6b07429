/* SPDX-License-Identifier: MIT */
/* http_head.c - who may ask, and what the head of a request says. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "http_impl.h"

void mp_http_refuse(struct exchange *x, int status, const char *fmt, ...)
{
    va_list ap;

    if (x->status)
        return; /* the first reason */
    va_start(ap, fmt);
    vsnprintf(x->error, sizeof x->error, fmt, ap);
    va_end(ap);
    x->status = status;
}

/* ---- who may ask ---- */

/* Takes as long for any guess of the same length. */
static int same_secret(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    unsigned char different = n != m;

    for (size_t i = 0; i < n; i++)
        different |= (unsigned char)(a[i] ^ b[m ? i % m : 0]);
    return !different;
}

const char *mp_http_header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* A page of another site must not ask in its reader's name: neither by its own
 * name for this address, nor openly. */
static void check_origin(struct exchange *x)
{
    const char *host = mp_http_header(x, "Host"),
               *origin = mp_http_header(x, "Origin");
    size_t n = host ? strcspn(host, ":") : 0;

    if (host && *host != '[' && strspn(host, "0123456789.") != n &&
        !(n == strlen("localhost") && !strncmp(host, "localhost", n)))
        mp_http_refuse(x, 403, "Host must be an address or localhost");
    if (origin &&
        (strncmp(origin, "http://", 7) || !host || strcmp(origin + 7, host)))
        mp_http_refuse(x, 403, "not from a page of another site");
}

static void check_rights(struct exchange *x)
{
    const char *text = mp_http_header(x, "Authorization");

    if (!x->h->is_tcp)
        return;
    if (!x->h->token) {
        check_origin(x);
        return;
    }
    if (x->route == MP_ROUTE_PAGE)
        return; /* it tells nothing, and asks for the token */
    if (!text || strncasecmp(text, "Bearer ", 7) ||
        !same_secret(text + 7, x->h->token))
        mp_http_refuse(x, 401,
                       "a token is needed: Authorization: Bearer TOKEN");
}

/* ---- the head of a request ---- */

struct head {
    struct exchange *x;
    int lengths;
};

static enum MHD_Result look_at_header(void *user, enum MHD_ValueKind kind,
                                      const char *key, const char *value)
{
    struct head *h = user;

    (void)kind;
    if (!strcasecmp(key, "Content-Length")) {
        h->lengths++;
        if (!value || !*value || value[strspn(value, "0123456789")])
            mp_http_refuse(h->x, 400,
                           "Content-Length must be one whole number");
    } else if (!strcasecmp(key, "Transfer-Encoding")) {
        h->x->chunked = 1;
        if (!value || strcasecmp(value, "chunked"))
            mp_http_refuse(h->x, 400, "Transfer-Encoding must be chunked");
    }
    return MHD_YES;
}

size_t mp_http_body_most(const struct exchange *x)
{
    return (size_t)x->h->conf->limits.body << 20;
}

void mp_http_too_large(struct exchange *x)
{
    mp_http_refuse(x, 400, "the body is larger than %d MiB",
                   x->h->conf->limits.body);
}

static void check_head(struct exchange *x)
{
    struct head h = {.x = x};
    const char *length;

    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, look_at_header,
                              &h);
    if (h.lengths + x->chunked > 1)
        mp_http_refuse(x, 400, "one Content-Length or one Transfer-Encoding");
    length = mp_http_header(x, "Content-Length");
    if (length && (strlen(length) > 12 ||
                   strtoull(length, NULL, 10) > mp_http_body_most(x)))
        mp_http_too_large(x);
}

void mp_http_begin(struct exchange *x, const char *url, const char *method)
{
    int is_get = !strcmp(method, "GET") || !strcmp(method, "HEAD");

    x->route = mp_route_find(x->model, url);
    check_rights(x);
    check_head(x);
    if (x->route == MP_ROUTE_NOT_HERE)
        mp_http_refuse(x, 501, "this extension is not supported");
    else if (x->route == MP_ROUTE_NOWHERE)
        mp_http_refuse(x, 404, "there is nothing at this address");
    else if (mp_route_is_post(x->route) ? strcmp(method, "POST") != 0
                                        : !is_get) {
        x->allow = mp_route_is_post(x->route) ? "POST" : "GET, HEAD";
        mp_http_refuse(x, 405, "only %s here", x->allow);
    } else if (*x->model && !mp_front_has(x->h->front, x->model))
        mp_http_refuse(x, 404, "there is no model \"%s\"", x->model);
}
