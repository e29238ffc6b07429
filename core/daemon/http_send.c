/* SPDX-License-Identifier: MIT */
/* http_send.c - answers, and those that need no worker. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "about.h"
#include "accept.h"
#include "http_impl.h"
#include "json.h"
#include "page.h"
#include "repository.h"
#include "zip.h"

#define ZIP_LEAST 1024 /* bytes; less is not worth it */

/* Compress it if that is asked for and of use. */
static const char *zip_body(const struct exchange *x, struct mp_body *b)
{
    const char *list = mp_http_header(x, "Accept-Encoding");
    const char *coding = mp_accept_coding(list, "gzip")      ? "gzip"
                         : mp_accept_coding(list, "deflate") ? "deflate"
                                                             : NULL;
    char *bytes;
    size_t n;

    if (!coding || b->n < ZIP_LEAST || !strcmp(b->type, "image/png") ||
        mp_zip(&bytes, &n, b->bytes, b->n, *coding == 'g'))
        return NULL;
    free(b->bytes);
    b->bytes = bytes;
    b->n = n;
    return coding;
}

enum MHD_Result mp_http_send(struct exchange *x, int status, struct mp_body *b)
{
    const char *coding = b->n ? zip_body(x, b) : NULL;
    struct MHD_Response *r =
        MHD_create_response_from_buffer(b->n, b->bytes, MHD_RESPMEM_MUST_FREE);
    char number[32];
    enum MHD_Result sent = MHD_YES;

    if (!r) {
        free(b->bytes);
        return MHD_NO;
    }
    if (b->n)
        MHD_add_response_header(r, "Content-Type", b->type);
    if (b->head >= 0) {
        snprintf(number, sizeof number, "%lld", (long long)b->head);
        sent = MHD_add_response_header(r, "Inference-Header-Content-Length",
                                       number);
    }
    if (coding && sent == MHD_YES)
        sent = MHD_add_response_header(r, "Content-Encoding", coding);
    if (status == 503)
        MHD_add_response_header(r, "Retry-After", "1");
    if (status == 405)
        MHD_add_response_header(r, "Allow", x->allow);
    if (status == 401)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (x->route == MP_ROUTE_PAGE)
        MHD_add_response_header(r, "Content-Security-Policy", MP_PAGE_POLICY);
    if (sent == MHD_YES) /* a body must not go without what tells of it */
        sent = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    x->answered = 1;
    return sent;
}

enum MHD_Result mp_http_send_error(struct exchange *x)
{
    struct mp_body b;
    json_t *o = json_pack("{s:s}", "error", x->error);

    if (o && *x->request.stage)
        json_object_set_new(o, "stage", json_string(x->request.stage));
    if (!o)
        o = json_pack("{s:s}", "error", "failed");
    if (mp_body_json(&b, o, NULL))
        return MHD_NO;
    return mp_http_send(x, x->status, &b);
}

/* before: the losses there were before json was made. */
static enum MHD_Result send_json(struct exchange *x, json_t *json,
                                 unsigned before)
{
    struct mp_body b;
    struct mp_error err = {0};

    if (mp_json_losses() != before) {
        json_decref(json);
        json = NULL;
    }
    if (!mp_body_json(&b, json, &err))
        return mp_http_send(x, 200, &b);
    mp_http_refuse(x, 503, "%s", err.text);
    return mp_http_send_error(x);
}

static enum MHD_Result send_text(struct exchange *x, char *text,
                                 const char *type)
{
    struct mp_body b = {text, text ? strlen(text) : 0, -1, type};

    if (text)
        return mp_http_send(x, 200, &b);
    mp_http_refuse(x, 503, "out of memory");
    return mp_http_send_error(x);
}

enum MHD_Result mp_http_send_state(struct exchange *x, int is_good)
{
    struct mp_body b = {.head = -1};

    return mp_http_send(x, is_good ? 200 : 400, &b);
}

/* ---- what is known at once ---- */

static json_t *server_json(void)
{
    return json_pack("{s:s, s:s, s:[s, s, s, s]}", "name", "mpipe", "version",
                     PACKAGE_VERSION, "extensions", "binary_tensor_data",
                     "model_repository", "model_configuration", "statistics");
}

static enum MHD_Result send_about(struct exchange *x)
{
    json_t *about = mp_front_describe(x->h->front, x->model), *out;
    unsigned before = mp_json_losses();

    if (!about) {
        mp_http_refuse(x, 400, "%s is not loaded", x->model);
        return mp_http_send_error(x);
    }
    out = x->route == MP_ROUTE_MODEL
              ? mp_metadata(x->model, about)
              : mp_model_config(x->model, about, x->h->conf->limits.pictures);
    json_decref(about);
    return send_json(x, out, before);
}

static enum MHD_Result send_index(struct exchange *x, unsigned before)
{
    struct mp_error err = {0};
    int ready, rc;

    rc = mp_repository_index(x->body.at, x->body.n, &ready, &err);
    if (!rc)
        return send_json(x, mp_front_index(x->h->front, ready), before);
    mp_http_refuse(x, rc == MP_ENOMEM ? 503 : 400, "%s", err.text);
    return mp_http_send_error(x);
}

enum MHD_Result mp_http_answer_now(struct exchange *x)
{
    struct mp_front *f = x->h->front;
    unsigned before = mp_json_losses();

    switch (x->route) {
    case MP_ROUTE_PAGE:
        return send_text(x, strdup(mp_page), "text/html; charset=utf-8");
    case MP_ROUTE_METRICS:
        return send_text(x, mp_front_metrics(f), "text/plain; version=0.0.4");
    case MP_ROUTE_ERRORS:
        return send_json(x, mp_front_errors(f), before);
    case MP_ROUTE_SERVER:
        return send_json(x, server_json(), before);
    case MP_ROUTE_LIVE:
        return mp_http_send_state(x, 1);
    case MP_ROUTE_ALL_READY:
        return mp_http_send_state(x, mp_front_is_ready(f, NULL));
    case MP_ROUTE_MODEL_READY:
        return mp_http_send_state(x, mp_front_is_ready(f, x->model));
    case MP_ROUTE_ALL_STATS:
        return send_json(x, mp_front_stats(f, NULL), before);
    case MP_ROUTE_MODEL_STATS:
        return send_json(x, mp_front_stats(f, x->model), before);
    case MP_ROUTE_INDEX:
        return send_index(x, before);
    default:
        return send_about(x);
    }
}
