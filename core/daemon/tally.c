/* SPDX-License-Identifier: MIT */
/* tally.c - see tally.h. */
#include <time.h>
#include "tally.h"

const double mp_time_buckets[TIME_BUCKETS] = {
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 120};

static void add_time(struct duration *d, double seconds)
{
    d->count++;
    d->seconds += seconds;
}

static void add_stages(struct stages *to, const struct stages *s)
{
    to->input += s->input;
    to->infer += s->infer;
    to->output += s->output;
}

/* [views, share of the run, seconds of it]; the rest of the picture's times go
 * with its runs. */
static void add_run(struct tally *t, const json_t *run,
                    const struct stages *picture, double runs)
{
    json_int_t n = json_integer_value(json_array_get(run, 0));
    double share = json_real_value(json_array_get(run, 1));
    struct stages s = {picture->input * share / runs,
                       json_real_value(json_array_get(run, 2)),
                       picture->output * share / runs};

    if (n < 1 || n > BATCH_MOST)
        return; /* no worker of ours says so */
    t->batch[n - 1].runs += share;
    add_stages(&t->batch[n - 1].stages, &s);
}

void mp_tally_picture(struct tally *t, const json_t *answer, struct stages *of)
{
    const json_t *list = json_object_get(answer, "runs"), *run;
    double read = 0, network = 0, merge = 0, write = 0, runs = 0;
    struct stages s;
    size_t i;

    json_unpack((json_t *)answer, "{s:{s:F, s:F, s:F, s:F}}", "seconds", "read",
                &read, "network", &network, "merge", &merge, "write", &write);
    s = (struct stages){read, network + merge, write};
    json_array_foreach(list, i, run) runs +=
        json_real_value(json_array_get(run, 1));
    json_array_foreach(list, i, run) if (runs > 0) add_run(t, run, &s, runs);
    t->runs += runs;
    t->pictures++;
    add_stages(of, &s);
}

void mp_tally_request(struct tally *t, enum result how, double took,
                      const struct stages *of)
{
    double waited = took - of->input - of->infer - of->output;
    struct timespec now;
    size_t i = 0;

    t->results[how]++;
    add_time(how == GOOD ? &t->success : &t->fail, took);
    while (i < TIME_BUCKETS && took > mp_time_buckets[i])
        i++;
    t->took[i]++;
    if (how != GOOD)
        return;
    /* pictures of a request may be read and written at once */
    add_time(&t->queue, waited > 0 ? waited : 0);
    add_stages(&t->stages, of);
    clock_gettime(CLOCK_REALTIME, &now);
    t->last = (double)now.tv_sec * 1e3 + (double)(now.tv_nsec / 1000000);
}
