/* SPDX-License-Identifier: MIT */
/*
 * pipeline.h - a checkpoint, a head and a device, ready for pictures.
 *
 * Life cycle: mp_pipeline_open; network and merge any number of times;
 * mp_pipeline_close. Sessions are compiled when a shape is first met and kept
 * in a cache (least recently used ones go).
 *
 * Threads: all calls from one thread at a time (the device's), also those of
 * pipelines that share devices.
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
    const char *backend;    /* "auto", "cpu", "cuda", "cuda:1", ... */
    enum mp_precision precision;
    int threads; /* 0: all that the process may use */
    int strict;  /* nonzero: tensors that nothing uses are an error */
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

/* Run the network on n views of one size: view[i] is h x w x 3 u8. *map is
 * n x H x W x C f32 (all of them in one malloc'd block, yours to free). */
int mp_pipeline_network(struct mp_pipeline *p, const uint8_t *const *view,
                        size_t n, int32_t h, int32_t w, struct mp_tensor *map,
                        struct mp_error *err);

/* A group of a picture's views and what the network gave for them. */
struct mp_group {
    const struct mp_image *img;
    const struct mp_view *view;
    const float *const *map; /* of view[i]: H x W x C */
    const int64_t (*dim)[3];
    size_t nview;
    int32_t nth, count;          /* which group, of how many */
    const struct mp_tensor *sum; /* of the groups before; NULL in the first */
    const struct mp_sink *want;
};

/* The answers of a group into results, at most cap of them; of a group that is
 * not the last, into the one sum for the next. Each result's data is malloc'd
 * and yours to free. Only for heads that merge. */
int mp_pipeline_merge(struct mp_pipeline *p, const struct mp_group *group,
                      struct mp_tensor *result, size_t cap, size_t *n,
                      struct mp_error *err);

/* What runs: "cpu (AMD EPYC, 2 threads), bf16", and its parts for run.json. */
const char *mp_pipeline_backend(const struct mp_pipeline *p);
const char *mp_pipeline_device(const struct mp_pipeline *p);
const char *mp_pipeline_precision(const struct mp_pipeline *p); /* "bf16" */
/* Architecture in a line: "UNet 320,640,1280,1280; 3 steps; ...". */
const char *mp_pipeline_network_text(const struct mp_pipeline *p);

struct mp_pipeline_times { /* seconds since open */
    double load, compile;  /* reading the checkpoint; all sessions */
    double network, merge; /* running */
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
