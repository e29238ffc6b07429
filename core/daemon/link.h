/* SPDX-License-Identifier: MIT */
/*
 * link.h - what the front and a worker say to each other: messages over a
 * socket pair, large data in sealed memory beside them.
 *
 * A message is a type, the number of a request or pipeline, a JSON text, and
 * at most one blob. Neither side trusts the other's lengths: a blob that could
 * shrink under its reader is refused.
 *
 * Threads: one at a time per socket and direction.
 */
#ifndef CORE_DAEMON_LINK_H
#define CORE_DAEMON_LINK_H

#include <jansson.h>
#include <stdatomic.h>
#include "mpipe/base.h"

/* Memory that can be sent. fd -1: none. */
struct mp_blob {
    int fd;
    uint8_t *at; /* mapped, NULL: not (yet), or no bytes */
    size_t n;
};
#define MP_NO_BLOB ((struct mp_blob){.fd = -1})

/* n bytes to be filled at b->at. */
int mp_blob_new(struct mp_blob *b, size_t n, struct mp_error *err);
/* One that grows from nothing by mp_blob_add; not mapped until mp_blob_end. */
int mp_blob_begin(struct mp_blob *b, struct mp_error *err);
int mp_blob_add(struct mp_blob *b, const void *bytes, size_t n,
                struct mp_error *err);
int mp_blob_end(struct mp_blob *b, struct mp_error *err);
void mp_blob_free(struct mp_blob *b); /* becomes MP_NO_BLOB */

enum mp_message_type {
    MP_LOAD = 1, /* to the worker: pipeline `id`, {"name", "config", "folder",
                    "assign", "batch_window"}, without "config": no file */
    MP_UNLOAD,   /* pipeline id */
    MP_INFER,    /* request id, see ask.h; blob: the picture */
    MP_CANCEL,   /* request id */
    MP_LOADED,   /* from the worker: pipeline id is ready, {what it is}; or has
                    failed, {"error"} */
    MP_UNLOADED, /* pipeline id */
    MP_DONE      /* request id: {"results", ...} and blob, or {"error",
                    "stage"} */
};

struct mp_message {
    enum mp_message_type type;
    int code; /* enum mp_status of what failed */
    uint64_t id;
    json_t *text; /* an object, or NULL */
    struct mp_blob blob;
};

/* What a worker answered of one picture. */
struct mp_part {
    json_t *answer; /* {"results", ...}, see worker.h; NULL: nothing yet */
    struct mp_blob data;
};

#define MP_TEXT_MAX 131072 /* bytes of a message's JSON */

/* MP_EIO: the other side is gone, or will not read. MP_EINVAL: the text is too
 * long, MP_ENOMEM: there is no memory for it; nothing was sent. */
int mp_link_send(int sock, const struct mp_message *m, struct mp_error *err);
/* 1: *m is one, to be freed; 0: the other side is gone; else an error: what
 * came is no message. What there was no memory for has no text and no blob, and
 * the code MP_ENOMEM. */
int mp_link_receive(int sock, struct mp_message *m, struct mp_error *err);
void mp_message_free(struct mp_message *m);

/* A device of a worker, once it has a name, which stays. */
enum { MP_MEMORY_ALL, MP_MEMORY_FREE, MP_MEMORY_HELD, MP_MEMORIES };
struct mp_ledger_device {
    char name[40];                        /* "cuda:0" */
    _Atomic uint64_t memory[MP_MEMORIES]; /* bytes; ALL 0: it is closed, or does
                                             not tell. HELD: by the worker */
    _Atomic uint32_t apart;               /* it is not the process's memory */
};

/* What a worker leaves for the front to find, whatever becomes of it. */
#define MP_RUN_BUCKETS    8 /* views of a run: up to 1, 2, 4, ... 64; more */
#define MP_LEDGER_DEVICES 32
struct mp_ledger {
    _Atomic uint64_t blame; /* pipeline whose code ended the process; 0: ? */
    _Atomic uint64_t runs[MP_RUN_BUCKETS], views; /* of the network */
    _Atomic uint64_t busy_ns; /* from giving views to a device to its results */
    struct mp_ledger_device device[MP_LEDGER_DEVICES];
};

/* The worker inherits its end of the socket and the ledger as these. */
enum { MP_LINK_FD = 3, MP_LEDGER_FD = 4 };

#endif
