/* SPDX-License-Identifier: MIT */
/*
 * client.h - a running mpiped in place of a pipeline of one's own.
 *
 * mp_client_open looks for a pipeline there that gives the same results, and
 * has it loaded if it is on demand: the same head, classes and checkpoint, and
 * where they are set the same backend and precision; the head's options and the
 * boxes travel with each picture. Threads: those of a run ask for pictures at
 * once, each over a connection of its own.
 */
#ifndef CORE_CLIENT_H
#define CORE_CLIENT_H

#include "picture_job.h"

struct mp_client;

#define MP_CLIENT_MOST 64 /* pictures, and so connections, at once */

/* MP_EIO: nobody answers there. MP_ENOTSUP: no pipeline there is the same, the
 * text says how the nearest differs. s: borrowed until close. */
int mp_client_open(struct mp_client **out, const struct mp_settings *s,
                   struct mp_error *err);
void mp_client_close(struct mp_client *c); /* NULL is fine */

/* How many pictures to ask for at once, at most. */
int mp_client_many(const struct mp_client *c);

/* What it is over there: a pipeline that only tells of itself. */
struct mp_pipeline *mp_client_pipeline(const struct mp_client *c);

/* Have this picture seen: p->done holds the results, to be written. Else the
 * picture's error, or *gone: nobody answers any more. Any thread. */
int mp_client_picture(struct mp_client *c, struct mp_picture_job *p,
                      const struct mp_input *input, int *gone);

#endif
