/* SPDX-License-Identifier: MIT */
/*
 * picture_job.h - one picture on its way through a run: read, scaled, looked
 * at by the network, merged, written. See job.h.
 *
 * Threads: one per picture at a time.
 */
#ifndef CORE_PICTURE_JOB_H
#define CORE_PICTURE_JOB_H

#include "image.h"
#include "inputs.h"
#include "pipeline.h"
#include "settings.h"
#include "sink.h"

struct mp_picture_job {
    const struct mp_input *input;
    const char *stage; /* where it is, or failed */
    struct mp_error err;
    struct mp_picture source;
    struct mp_picture *scaled; /* each size that views need, but its own */
    size_t nscaled;
    struct mp_box *box;
    size_t nbox;
    char *id;      /* JSON */
    size_t device; /* that sees it */
    struct mp_view *view;
    struct mp_map *map; /* of each view, from when the network has seen it
                           until its group is merged, or to the end */
    size_t nview, nmap; /* nmap: seen so far */
    size_t nmerged;     /* views whose group is merged */
    struct mp_answer answer;
    uint64_t ticket;      /* when all of it is on the host */
    double network;       /* seconds */
    struct mp_keep *keep; /* borrowed: results go here, not to files */
    struct mp_keep done;  /* results that came from elsewhere */
};

/* Read it, ask the head for views, scale. */
int mp_picture_job_load(struct mp_picture_job *p, const struct mp_input *input,
                        const struct mp_settings *s);
/* The same of a picture that is there already: source is set, and box and id
 * may be, in place of those of the settings and the name. */
int mp_picture_job_open(struct mp_picture_job *p, const struct mp_input *input,
                        const struct mp_settings *s);
/* The pixels of a view; *owned: free them. */
uint8_t *mp_picture_job_view(const struct mp_picture_job *p, size_t view,
                             int *owned);
/* Failures that are the picture's: too large for the memory, a shape that an
 * op refuses. All others are the device's. */
int mp_is_of_picture(int rc);
/* Have the network look at these views, all of one size, pictures of one
 * device. */
struct mp_look {
    struct mp_picture_job *p;
    size_t view;
};
int mp_picture_job_see(const struct mp_look *look, size_t n,
                       struct mp_pipeline *pipeline, struct mp_error *err);
/* For the head. */
struct mp_image mp_picture_job_image(const struct mp_picture_job *p,
                                     char name[256]);
/* Merge the groups of views that the network has seen, in their order; after
 * the last, nmerged is nview. What p is to write or keep is on the host when
 * mp_picture_job_settle has returned: to be called before any other thread has
 * p, and before p is freed, also if something failed. */
int mp_picture_job_merge(struct mp_picture_job *p, const struct mp_settings *s,
                         struct mp_pipeline *pipeline);
int mp_picture_job_settle(struct mp_picture_job *p,
                          struct mp_pipeline *pipeline);
/* Results to files below out, or to keep. */
int mp_picture_job_write(struct mp_picture_job *p, const struct mp_settings *s,
                         const char *out);
void mp_picture_job_free(struct mp_picture_job *p);

#endif
