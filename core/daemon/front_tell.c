/* SPDX-License-Identifier: MIT */
/* front_tell.c - what the front tells of itself: index, statistics, metrics. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "front_impl.h"
#include "progress.h"
#include "text.h"

int mp_front_is_ready(struct mp_front *f, const char *name)
{
    int ready;

    pthread_mutex_lock(&f->lock);
    ready = !f->draining;
    if (name) {
        const struct pipeline *p = mp_front_find(f, name);

        ready = ready && p && p->state == READY;
    } else {
        for (const struct pipeline *p = f->pipelines; p; p = p->next)
            ready = ready && (p->state == READY || p->is_gone ||
                              p->entry->load == MP_ON_DEMAND);
    }
    pthread_mutex_unlock(&f->lock);
    return ready;
}

int mp_front_has(struct mp_front *f, const char *name)
{
    int has;

    pthread_mutex_lock(&f->lock);
    has = mp_front_find(f, name) != NULL;
    pthread_mutex_unlock(&f->lock);
    return has;
}

json_t *mp_front_describe(struct mp_front *f, const char *name)
{
    const struct pipeline *p;
    json_t *about = NULL;

    pthread_mutex_lock(&f->lock);
    p = mp_front_find(f, name);
    if (p && p->state == READY)
        about = json_incref(p->about);
    pthread_mutex_unlock(&f->lock);
    return about;
}

static const char *state_name(const struct pipeline *p)
{
    static const char *const names[] = {[UNLOADED] = "UNAVAILABLE",
                                        [LOADING] = "LOADING",
                                        [READY] = "READY",
                                        [UNLOADING] = "UNLOADING",
                                        [FAILED] = "UNAVAILABLE"};

    return names[p->state];
}

static const char *reason_of(const struct pipeline *p)
{
    if (p->state == FAILED)
        return p->reason;
    return p->state == UNLOADED ? "not loaded" : "";
}

json_t *mp_front_index(struct mp_front *f, int ready_only)
{
    json_t *list = json_array();

    pthread_mutex_lock(&f->lock);
    for (const struct pipeline *p = f->pipelines; p; p = p->next)
        if (!p->is_gone && (!ready_only || p->state == READY))
            json_array_append_new(
                list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s*}", "name",
                                p->entry->name, "version", "1", "state",
                                state_name(p), "reason", reason_of(p), "load",
                                p->entry->load == MP_ON_DEMAND ? "on-demand"
                                                               : "at-start",
                                "head", p->entry->head));
    pthread_mutex_unlock(&f->lock);
    return list;
}

json_t *mp_front_errors(struct mp_front *f)
{
    json_t *list = json_array();
    char when[32];
    struct tm tm;

    pthread_mutex_lock(&f->lock);
    for (size_t i = 0; i < ERRORS_KEPT && i < f->nerror; i++) {
        size_t at = (f->nerror - 1 - i) % ERRORS_KEPT;

        gmtime_r(&f->errors[at].when, &tm);
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        json_array_append_new(list, json_pack("{s:s, s:s}", "time", when,
                                              "error", f->errors[at].text));
    }
    pthread_mutex_unlock(&f->lock);
    return list;
}

/* ---- statistics ---- */

/* Of a ledger, to which a worker gone wrong may have written anything. */
static void device_name(char out[40], const struct mp_ledger_device *d)
{
    size_t n = 0;

    for (; n < 39 && d->name[n]; n++)
        out[n] = isalnum((unsigned char)d->name[n]) || d->name[n] == ':'
                     ? d->name[n]
                     : '_';
    out[n] = '\0';
}

static json_t *duration_json(uint64_t count, double seconds)
{
    return json_pack("{s:I, s:I}", "count", (json_int_t)count, "ns",
                     (json_int_t)(seconds * 1e9));
}

static json_t *part_of_memory(const char *type, int id, uint64_t bytes)
{
    return json_pack("{s:s, s:i, s:I}", "type", type, "id", id, "byte_size",
                     (json_int_t)bytes);
}

/* Of the worker: its process, and the devices with a memory of their own. */
static json_t *memory_json(const struct pipeline *p)
{
    const struct worker *w = p->worker;
    json_t *list = json_array();

    json_array_append_new(
        list,
        part_of_memory(
            "CPU", 0, w->pid ? (uint64_t)mp_process_memory(w->pid) * 1024 : 0));
    for (size_t i = 0; i < MP_LEDGER_DEVICES; i++) {
        struct mp_ledger_device *d = &w->ledger->device[i];
        char name[sizeof d->name];
        int id = 0;

        if (!atomic_load(&d->memory[MP_MEMORY_ALL]) || !atomic_load(&d->apart))
            continue;
        device_name(name, d);
        sscanf(name, "%*[^:]:%d", &id);
        json_array_append_new(
            list,
            part_of_memory("GPU", id, atomic_load(&d->memory[MP_MEMORY_HELD])));
    }
    return list;
}

/* Of each number of views that runs have had. */
static json_t *batches_json(const struct tally *t)
{
    json_t *list = json_array();

    for (int i = 0; i < BATCH_MOST; i++) {
        const struct stages *s = &t->batch[i].stages;
        uint64_t runs = (uint64_t)(t->batch[i].runs + 0.5);

        if (runs)
            json_array_append_new(
                list,
                json_pack("{s:i, s:o, s:o, s:o}", "batch_size", i + 1,
                          "compute_input", duration_json(runs, s->input),
                          "compute_infer", duration_json(runs, s->infer),
                          "compute_output", duration_json(runs, s->output)));
    }
    return list;
}

static json_t *stats_json(const struct pipeline *p)
{
    const struct tally *t = &p->tally;
    uint64_t n = t->success.count;
    json_t *all =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "success",
                  duration_json(n, t->success.seconds), "fail",
                  duration_json(t->fail.count, t->fail.seconds), "queue",
                  duration_json(n, t->queue.seconds), "compute_input",
                  duration_json(n, t->stages.input), "compute_infer",
                  duration_json(n, t->stages.infer), "compute_output",
                  duration_json(n, t->stages.output), "cache_hit",
                  duration_json(0, 0), "cache_miss", duration_json(0, 0));

    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o}", "name", p->entry->name,
        "version", "1", "last_inference", (json_int_t)t->last,
        "inference_count", (json_int_t)t->pictures, "execution_count",
        (json_int_t)(t->runs + 0.5), "inference_stats", all, "batch_stats",
        batches_json(t), "memory_usage", memory_json(p));
}

json_t *mp_front_stats(struct mp_front *f, const char *name)
{
    json_t *list = json_array();

    pthread_mutex_lock(&f->lock);
    for (const struct pipeline *p = f->pipelines; p; p = p->next)
        if (!p->is_gone && (!name || !strcmp(name, p->entry->name)))
            json_array_append_new(list, stats_json(p));
    pthread_mutex_unlock(&f->lock);
    return json_pack("{s:o}", "model_stats", list);
}

/* ---- metrics ---- */

static void head(FILE *o, const char *name, const char *type, const char *help)
{
    fprintf(o, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

#define EACH_PIPELINE(p)                                                       \
    for (const struct pipeline *p = f->pipelines; p; p = p->next)              \
        if (!p->is_gone)
#define EACH_WORKER(w) for (const struct worker *w = f->workers; w; w = w->next)

static void requests(FILE *o, const struct mp_front *f)
{
    static const char *const names[RESULTS] = {
        [GOOD] = "ok",           [BAD_REQUEST] = "bad_request",
        [BROKEN] = "error",      [REJECTED] = "rejected",
        [EXPIRED] = "timed_out", [CANCELLED] = "cancelled"};

    head(o, "mpipe_requests_total", "counter",
         "Inference requests, by how they ended.");
    EACH_PIPELINE(p)
    for (int i = 0; i < RESULTS; i++)
        fprintf(o, "mpipe_requests_total{model=\"%s\",result=\"%s\"} %llu\n",
                p->entry->name, names[i],
                (unsigned long long)p->tally.results[i]);
    head(o, "mpipe_pictures_total", "counter",
         "Pictures that the network has seen.");
    EACH_PIPELINE(p)
    fprintf(o, "mpipe_pictures_total{model=\"%s\"} %llu\n", p->entry->name,
            (unsigned long long)p->tally.pictures);
    head(o, "mpipe_request_duration_seconds", "histogram",
         "From arrival to answer.");
    EACH_PIPELINE(p)
    {
        const char *m = p->entry->name;
        unsigned long long n = 0;

        for (int i = 0; i < TIME_BUCKETS; i++)
            fprintf(o,
                    "mpipe_request_duration_seconds_bucket{model=\"%s\",le="
                    "\"%g\"} %llu\n",
                    m, mp_time_buckets[i],
                    n += (unsigned long long)p->tally.took[i]);
        n += p->tally.took[TIME_BUCKETS];
        fprintf(o,
                "mpipe_request_duration_seconds_bucket{model=\"%s\",le="
                "\"+Inf\"} %llu\n"
                "mpipe_request_duration_seconds_sum{model=\"%s\"} %.9g\n"
                "mpipe_request_duration_seconds_count{model=\"%s\"} %llu\n",
                m, n, m, p->tally.success.seconds + p->tally.fail.seconds, m,
                n);
    }
}

static void stages(FILE *o, const struct mp_front *f)
{
    head(o, "mpipe_stage_seconds_total", "counter",
         "Time of answered requests, by stage.");
    EACH_PIPELINE(p)
    {
        const struct {
            const char *name;
            double seconds;
        } stage[] = {{"queue", p->tally.queue.seconds},
                     {"input", p->tally.stages.input},
                     {"infer", p->tally.stages.infer},
                     {"output", p->tally.stages.output}};

        for (int i = 0; i < 4; i++)
            fprintf(
                o,
                "mpipe_stage_seconds_total{model=\"%s\",stage=\"%s\"} %.9g\n",
                p->entry->name, stage[i].name, stage[i].seconds);
    }
    head(o, "mpipe_queue_length", "gauge", "Requests that wait.");
    EACH_PIPELINE(p)
    fprintf(o, "mpipe_queue_length{model=\"%s\"} %zu\n", p->entry->name,
            p->queue.n);
    head(o, "mpipe_in_flight", "gauge", "Requests that the worker has.");
    EACH_PIPELINE(p)
    fprintf(o, "mpipe_in_flight{model=\"%s\"} %zu\n", p->entry->name,
            p->nflight);
    head(o, "mpipe_model_ready", "gauge", "1: loaded and serving.");
    EACH_PIPELINE(p)
    fprintf(o, "mpipe_model_ready{model=\"%s\"} %d\n", p->entry->name,
            p->state == READY);
}

static uint64_t runs_of(const struct worker *w, int i)
{
    return w->runs[i] + atomic_load(&w->ledger->runs[i]);
}

static void workers(FILE *o, const struct mp_front *f)
{
    head(o, "mpipe_batch_size", "histogram",
         "Views that the network saw at once.");
    EACH_WORKER(w)
    {
        unsigned long long n = 0;

        for (int i = 0; i + 1 < MP_RUN_BUCKETS; i++)
            fprintf(o,
                    "mpipe_batch_size_bucket{worker=\"%s\",le=\"%d\"} %llu\n",
                    w->name, 1 << i, n += (unsigned long long)runs_of(w, i));
        n += (unsigned long long)runs_of(w, MP_RUN_BUCKETS - 1);
        fprintf(o,
                "mpipe_batch_size_bucket{worker=\"%s\",le=\"+Inf\"} %llu\n"
                "mpipe_batch_size_sum{worker=\"%s\"} %llu\n"
                "mpipe_batch_size_count{worker=\"%s\"} %llu\n",
                w->name, n, w->name,
                (unsigned long long)(w->views + atomic_load(&w->ledger->views)),
                w->name, n);
    }
    head(o, "mpipe_device_busy_seconds_total", "counter",
         "Time that the network ran; its rate is the utilisation.");
    EACH_WORKER(w)
    fprintf(o, "mpipe_device_busy_seconds_total{worker=\"%s\"} %.9g\n", w->name,
            (double)(w->busy_ns + atomic_load(&w->ledger->busy_ns)) / 1e9);
    head(o, "mpipe_worker_starts_total", "counter", "Processes started.");
    EACH_WORKER(w)
    fprintf(o, "mpipe_worker_starts_total{worker=\"%s\"} %llu\n", w->name,
            (unsigned long long)w->starts);
    head(o, "mpipe_worker_deaths_total", "counter", "Processes that died.");
    EACH_WORKER(w)
    fprintf(o, "mpipe_worker_deaths_total{worker=\"%s\"} %llu\n", w->name,
            (unsigned long long)w->deaths);
    head(o, "mpipe_worker_cpu_seconds_total", "counter",
         "Time on processors; its rate is how many it uses.");
    EACH_WORKER(w)
    fprintf(o, "mpipe_worker_cpu_seconds_total{worker=\"%s\"} %.9g\n", w->name,
            w->cpu + (w->pid ? mp_process_cpu(w->pid) : 0));
    head(o, "mpipe_worker_resident_bytes", "gauge", "Memory of the process.");
    EACH_WORKER(w)
    if (w->pid)
        fprintf(o, "mpipe_worker_resident_bytes{worker=\"%s\"} %llu\n", w->name,
                (unsigned long long)mp_process_memory(w->pid) * 1024);
}

/* Of each device that tells how much it has. */
static void memory(FILE *o, const struct mp_front *f, const char *metric,
                   int which, const char *help)
{
    head(o, metric, "gauge", help);
    EACH_WORKER(w)
    for (size_t i = 0; i < MP_LEDGER_DEVICES; i++) {
        struct mp_ledger_device *d = &w->ledger->device[i];
        char name[sizeof d->name];

        if (!atomic_load(&d->memory[MP_MEMORY_ALL]))
            continue;
        device_name(name, d);
        fprintf(o, "%s{worker=\"%s\",device=\"%s\"} %llu\n", metric, w->name,
                name, (unsigned long long)atomic_load(&d->memory[which]));
    }
}

static void devices(FILE *o, const struct mp_front *f)
{
    memory(o, f, "mpipe_device_memory_bytes", MP_MEMORY_ALL,
           "Memory that the device has.");
    memory(o, f, "mpipe_device_memory_free_bytes", MP_MEMORY_FREE,
           "Memory that nobody held after the worker's last run.");
    memory(o, f, "mpipe_device_memory_held_bytes", MP_MEMORY_HELD,
           "Memory that the worker held then.");
}

/* Of this one, under the names that are usual. */
static void process(FILE *o)
{
    head(o, "process_resident_memory_bytes", "gauge",
         "Memory of the front's process.");
    fprintf(o, "process_resident_memory_bytes %llu\n",
            (unsigned long long)mp_process_memory(getpid()) * 1024);
    head(o, "process_cpu_seconds_total", "counter",
         "Time of the front on processors.");
    fprintf(o, "process_cpu_seconds_total %.9g\n", mp_process_cpu(getpid()));
    head(o, "process_open_fds", "gauge", "Descriptors that the front has.");
    fprintf(o, "process_open_fds %zu\n", mp_process_files(getpid()));
}

char *mp_front_metrics(struct mp_front *f)
{
    struct mp_text text;
    FILE *o;

    if (mp_text_open(&text))
        return NULL;
    o = text.f;
    pthread_mutex_lock(&f->lock);
    head(o, "mpipe_uptime_seconds", "gauge", "Since mpiped began.");
    fprintf(o, "mpipe_uptime_seconds %.3f\n", mp_now() - f->began);
    requests(o, f);
    stages(o, f);
    workers(o, f);
    devices(o, f);
    pthread_mutex_unlock(&f->lock);
    process(o);
    mp_text_close(&text);
    return text.bytes;
}
