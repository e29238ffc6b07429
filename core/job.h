/* SPDX-License-Identifier: MIT */
/*
 * job.h - a batch run: pictures in, results out.
 *
 * Threads read and scale pictures; the calling thread feeds their views to the
 * network, views of one size together, and merges the answers; threads decode,
 * encode and write the results. A fixed number of pictures is under way at any
 * time, so memory does not grow with their number. What is computed together
 * depends on the order of the pictures only, never on timing.
 *
 * A picture that fails is logged and recorded, and the run goes on. A failure
 * to write, or of the device, ends it.
 */
#ifndef CORE_JOB_H
#define CORE_JOB_H

#include <signal.h>
#include "client.h"
#include "record.h"

struct mp_job { /* borrowed until the run ends */
    const struct mp_settings *settings;
    struct mp_pipeline *pipeline;
    struct mp_client *client; /* NULL: the pipeline runs here */
    const struct mp_inputs *inputs;
    const char *out; /* folder; made if it is not there */
    struct mp_shard shard;
    int resume; /* skip pictures whose results are complete */
    /* Nonzero: finish the pictures whose views the network has begun with. */
    const volatile sig_atomic_t *stop;
};

/* The thread of the pipeline. 0: all pictures are done, or counted as failed;
 * MP_EINTR: stopped; MP_EINVAL: the settings do not fit the checkpoint or what
 * is in the folder; else: device, disk or memory. counts: always filled. */
int mp_job_run(const struct mp_job *job, struct mp_counts *counts,
               struct mp_error *err);

#endif
