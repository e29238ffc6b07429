/* SPDX-License-Identifier: MIT */
/*
 * config.h - what mpiped was told: mpiped.conf(5).
 *
 * Read by the front, which checks everything but what is in the pipelines' own
 * files: those are a worker's to read. Threads: read-only after open.
 */
#ifndef CORE_DAEMON_CONFIG_H
#define CORE_DAEMON_CONFIG_H

#include <stdio.h>
#include "mpipe/base.h"

enum mp_load { MP_AT_START, MP_ON_DEMAND };

struct mp_pipeline_entry {
    char *name;
    char *config;       /* path of its file; NULL: it has none */
    char *file;         /* as it was written; NULL */
    const char *folder; /* of the daemon's configuration */
    char *head;         /* that it has; NULL: not known */
    int32_t load;       /* enum mp_load */
    char *worker;
    double batch_window;    /* milliseconds */
    char **assign;          /* "section.key=value", NULL ends them */
    struct mp_option *rows; /* of those */
    char **value;
};

struct mp_daemon_conf {
    struct {
        char *socket, *mode, *group, *listen, *token_file;
        int32_t threads;
    } http;
    struct {
        int32_t body, json, header; /* MiB, MiB, KiB */
        int32_t pictures;           /* of a request */
        int32_t chunks, connections, connections_per_address;
        double request_time, idle_time; /* seconds */
        int32_t queue, in_flight;
        double timeout, compute_time, load_time, drain_time; /* seconds */
        int32_t memory;                                      /* MiB */
    } limits;
    struct {
        int32_t deaths;
        double within, backoff; /* seconds */
    } worker;
    struct mp_pipeline_entry *pipeline;
    size_t npipeline;
    struct mp_conf *conf;
};

int mp_daemon_conf_open(struct mp_daemon_conf **out, const char *file,
                        const char *const *assign, size_t n,
                        struct mp_error *err);
int mp_daemon_conf_dump(const struct mp_daemon_conf *c, FILE *out,
                        struct mp_error *err);
void mp_daemon_conf_free(struct mp_daemon_conf *c); /* NULL is fine */

/* A name of a pipeline or worker: 1..40 of A-Z a-z 0-9 . _ -, not beginning
 * with a dot. */
int mp_is_name(const char *s, size_t n);

#endif
