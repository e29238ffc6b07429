/* SPDX-License-Identifier: MIT */
/*
 * tally.h - what became of a pipeline's requests, for statistics and metrics.
 *
 * A request has pictures; the network looks at views of them, several in a run.
 * Begins as zeros. Threads: one at a time.
 */
#ifndef CORE_DAEMON_TALLY_H
#define CORE_DAEMON_TALLY_H

#include <jansson.h>
#include <stdint.h>

enum result { GOOD, BAD_REQUEST, BROKEN, REJECTED, EXPIRED, CANCELLED };
#define RESULTS 6

struct duration {
    uint64_t count;
    double seconds;
};

#define TIME_BUCKETS 12
extern const double mp_time_buckets[TIME_BUCKETS]; /* seconds; then infinity */

/* Where the time of a request or run went. */
struct stages {
    double input, infer, output; /* seconds */
};

#define BATCH_MOST 1024 /* views of a run */

struct tally {
    uint64_t results[RESULTS];
    uint64_t took[TIME_BUCKETS + 1]; /* of requests, by time */
    struct duration success, fail;   /* of requests, whole */
    struct duration queue;           /* of the good ones: what remains */
    struct stages stages;            /* of the good ones: added up */
    uint64_t pictures;               /* that were seen */
    double runs;                     /* of the network */
    double last;                     /* ms since 1970 */
    struct {
        double runs;
        struct stages stages;
    } batch[BATCH_MOST]; /* [n - 1]: runs of n views, and what was theirs */
};

/* A picture that was seen; answer: of the worker, see worker.h. Its times are
 * added to `of`, those of its request. */
void mp_tally_picture(struct tally *t, const json_t *answer, struct stages *of);
/* The end of a request after so many seconds; of: its pictures' stages. */
void mp_tally_request(struct tally *t, enum result how, double took,
                      const struct stages *of);

#endif
