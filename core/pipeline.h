/* SPDX-License-Identifier: MIT */
/*
 * pipeline.h - a checkpoint, a head and a device, ready for pictures.
 *
 * Life cycle: mp_pipeline_open; network and merge any number of times;
 * mp_pipeline_close. Sessions are compiled when a shape is first met and kept
 * in a cache (least recently used ones go).
 *
 * Maps stay on the device, from the network that gives them to the merge that
 * takes them; a GPU is at work while the next call prepares more.
 *
 * Threads: all calls from one thread at a time (the device's), also those of
 * pipelines that share devices; mp_map_free from any.
 */
#ifndef CORE_PIPELINE_H
#define CORE_PIPELINE_H

#include <stdio.h>
#include "mpipe/backend.h"
#include "mpipe/plugin.h"

enum mp_precision {
    MP_PREC_AUTO,
    MP_PREC_FP32,
    MP_PREC_TF32,
    MP_PREC_BF16,
    MP_PREC_FP16
};

struct mp_pipeline_conf { /* borrowed until close */
    const struct mp_plugin *head;
    const void *head_conf;
    const char *checkpoint; /* path that exists */
    const char *backend;    /* "auto", "cpu", "cuda:0,2", ...: device.h */
    enum mp_precision precision;
    int threads;  /* 0: all that the process may use */
    int autotune; /* GPUs: measure which of a library's ways is the fastest */
    int batch;    /* views that are best seen at once; 0: the device decides */
    int strict;   /* nonzero: tensors that nothing uses are an error */
    const struct mp_classes *classes; /* of the settings; NULL: none */
    /* To share with other pipelines, see device.h; NULL: with none. */
    struct mp_devices *devices;
};

struct mp_pipeline;
struct mp_session;

/* Everything that can be wrong with device, checkpoint and head is found
 * here, before the first picture. */
int mp_pipeline_open(struct mp_pipeline **out, const struct mp_pipeline_conf *c,
                     struct mp_error *err);
void mp_pipeline_close(struct mp_pipeline *p);

/* One that runs elsewhere: it only tells of itself, with these texts. */
int mp_pipeline_elsewhere(struct mp_pipeline **out, const char *backend,
                          const char *device, const char *precision,
                          const char *network, struct mp_error *err);

/* From now on the head has this configuration, whose options that differ from
 * those of open are told by `text` ("" for none): equal texts, equal
 * configurations. Both are borrowed until the next call. Sessions are compiled
 * again only where their graph is another one. */
void mp_pipeline_use(struct mp_pipeline *p, const void *head_conf,
                     const char *text);

/* f32 values on a device, row-major. */
struct mp_map {
    struct mp_held *held; /* the memory; NULL: nothing here */
    size_t offset;        /* bytes */
    int ndim;
    int64_t dim[MP_RANK];
    float *host; /* the same on the host, or NULL */
    int copied;  /* host is malloc'd, not the device's own memory */
};
void mp_map_free(struct mp_map *m); /* and sets it to 0 */

/* How many views of h x w pixels are best seen at once: as configured, or one
 * on a CPU, or as many as fit into the free memory of a GPU, up to 16. 0 x 0:
 * the most for any size. */
size_t mp_pipeline_batch(struct mp_pipeline *p, size_t device, int32_t h,
                         int32_t w);

/* How many devices share the work, 1 or more. Each has its own sessions; what
 * is merged must have been seen by one. */
size_t mp_pipeline_devices(const struct mp_pipeline *p);

/* Run the network on n views of one size: view[i] is h x w x 3 u8, and map[i]
 * becomes 1 x H x W x C. If the device has not enough memory for n, they are
 * run in two parts, and so from then on; if that does not help either, it
 * fails. */
int mp_pipeline_network(struct mp_pipeline *p, size_t device,
                        const uint8_t *const *view, size_t n, int32_t h,
                        int32_t w, struct mp_map *map, struct mp_error *err);
/* Have it on the host, too: its device's *ticket says when. */
int mp_pipeline_fetch(struct mp_map *map, uint64_t *ticket,
                      struct mp_error *err);

/* A group of a picture's views and what the network gave for them. */
struct mp_group {
    size_t device; /* that has the maps */
    const struct mp_image *img;
    const struct mp_view *view;
    const struct mp_map *map; /* of view[i] */
    size_t nview;
    int32_t nth, count; /* which group, of how many */
    const struct mp_sink *want;
};

#define MP_MAX_RESULTS 16

/* What comes of a picture's groups, one after the other. Begins as zeros. */
struct mp_answer {
    struct mp_map sum; /* of the groups before the last */
    struct mp_tensor result[MP_MAX_RESULTS];
    size_t nresult; /* after the last group */
};
/* After the wait for their ticket, if there is one. */
void mp_answer_free(struct mp_answer *a);

/* Put a group's maps together. *ticket: when the results of the last group are
 * there. Only for heads that merge. */
int mp_pipeline_merge(struct mp_pipeline *p, const struct mp_group *group,
                      struct mp_answer *a, uint64_t *ticket,
                      struct mp_error *err);

/* Wait for what came with this ticket of a device, or an earlier one; 0 is
 * there already. UINT64_MAX: for all that was begun. When it fails, what is
 * waited for is void, and may be freed. */
int mp_pipeline_wait(struct mp_pipeline *p, size_t device, uint64_t ticket,
                     struct mp_error *err);

/* What runs: "cpu (AMD EPYC, 2 threads), bf16", and its parts for run.json. */
const char *mp_pipeline_backend(const struct mp_pipeline *p);
const char *mp_pipeline_device(const struct mp_pipeline *p);
const char *mp_pipeline_precision(const struct mp_pipeline *p); /* "bf16" */
/* Architecture in a line: "UNet 320,640,1280,1280; 3 steps; ...". */
const char *mp_pipeline_network_text(const struct mp_pipeline *p);

struct mp_pipeline_times { /* seconds since open */
    double load, compile;  /* reading the checkpoint; all sessions */
    double network, merge; /* running, network: and waiting */
    size_t views, runs;    /* pictures fed, calls of network */
};
void mp_pipeline_times(const struct mp_pipeline *p,
                       struct mp_pipeline_times *out);

/* Measure each step of the network's sessions from now on. */
void mp_pipeline_profile(struct mp_pipeline *p, int on);
/* The session of the network that was used last, NULL before the first. */
struct mp_session *mp_pipeline_session(const struct mp_pipeline *p);
/* The folded, fused programs of all sessions. */
void mp_pipeline_dump(const struct mp_pipeline *p, FILE *out);

#endif
