/* SPDX-License-Identifier: MIT */
/*
 * progress.h - how far a run is, on standard error: on a terminal one line
 * that is redrawn (at most five times a second), else a line for every tenth
 * or half minute. Nothing with -q.
 *
 * Threads: one at a time.
 */
#ifndef CORE_PROGRESS_H
#define CORE_PROGRESS_H

#include <stddef.h>

struct mp_progress {
    size_t total, tenths;
    double began, told;
    int terminal, quiet, drawn;
};

void mp_progress_start(struct mp_progress *p, size_t total);
/* done: pictures that are ready; failed: further ones that never will be. */
void mp_progress_step(struct mp_progress *p, size_t done, size_t failed);
/* Make room for another line, or for the end. */
void mp_progress_clear(struct mp_progress *p);

/* Seconds of a clock that only goes forward. */
double mp_now(void);

#endif
