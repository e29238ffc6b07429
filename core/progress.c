/* SPDX-License-Identifier: MIT */
/* progress.c - pictures, rate and the time that is left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "mpipe/base.h"
#include "progress.h"

double mp_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void mp_progress_start(struct mp_progress *p, size_t total)
{
    const char *term = getenv("TERM");

    *p = (struct mp_progress){.total = total, .began = mp_now()};
    p->told = p->began;
    p->quiet = mp_log_get() < MP_LOG_WARNING;
    p->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb");
}

/* "6:58", "1:02:03" */
static void print_time(char *out, size_t size, double seconds)
{
    long s = (long)(seconds + 0.5);

    if (s < 3600)
        snprintf(out, size, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(out, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
}

/* Whether a line is due now. */
static int is_due(struct mp_progress *p, size_t ready, double now)
{
    size_t tenths = ready * 10 / p->total;
    double wait = now - p->told;

    if (p->terminal)
        return wait >= 0.2;
    if (ready == p->total || (wait < 30 && (tenths == p->tenths || wait < 2)))
        return 0;
    p->tenths = tenths;
    return 1;
}

void mp_progress_step(struct mp_progress *p, size_t done, size_t failed)
{
    size_t ready = done + failed;
    double now = mp_now(), rate;
    char left[32], bad[40] = "";

    if (p->quiet || !ready || !is_due(p, ready, now))
        return;
    rate = (double)ready / (now - p->began);
    print_time(left, sizeof left, (double)(p->total - ready) / rate);
    if (failed)
        snprintf(bad, sizeof bad, "  %zu failed", failed);
    dprintf(STDERR_FILENO, "%s%zu/%zu  %.*f pictures/s  ETA %s%s%s",
            p->terminal ? "\r\033[K" : "mpipe: ", ready, p->total,
            rate < 1 ? 3 : 1, rate, left, bad, p->terminal ? "" : "\n");
    p->drawn = p->terminal;
    p->told = now;
}

void mp_progress_clear(struct mp_progress *p)
{
    if (p->drawn)
        dprintf(STDERR_FILENO, "\r\033[K");
    p->drawn = 0;
}
