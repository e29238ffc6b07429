/* SPDX-License-Identifier: MIT */
/* trouble.c - a head that does what no head should, when it is told to. Its
 * network is small: it shows the latents of 16 x 16 pixels, unless it is told
 * to have more. */
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "mpipe/plugin.h"

struct conf {
    int32_t fault, place;
    double seconds;
    int32_t deep, side;
};

enum {
    NONE,
    SEGFAULT,
    ABORT,
    EXIT,
    FPE,
    SPIN,
    SLEEP,
    FAIL,
    OVERRUN,
    LEAK,
    LATE
};
enum { VIEWS, DECODE };

static const struct mp_option options[] = {
    {"fault", MP_OPT_CHOICE, offsetof(struct conf, fault), "none", 0, 0,
     "none segfault abort exit fpe spin sleep fail overrun leak late", NULL,
     "What to do"},
    {"place", MP_OPT_CHOICE, offsetof(struct conf, place), "views", 0, 0,
     "views decode", NULL, "Where"},
    {"seconds", MP_OPT_FLOAT, offsetof(struct conf, seconds), "0.2", 0, 60,
     NULL, "s", "How long to sleep, or to wait"},
    {"deep", MP_OPT_BOOL, offsetof(struct conf, deep), "no", 0, 0, NULL, NULL,
     "Run the whole network, not only what makes latents"},
    {"side", MP_OPT_INT, offsetof(struct conf, side), "16", 16, 1024, NULL,
     "pixels", "Of its view, a multiple of 64 where it is deep"},
    {0}};

/* A thread that a head has left behind, with nobody to call it any more. */
static void *come_late(void *user)
{
    const struct timespec *t = user;

    nanosleep(t, NULL);
    free(user);
    mp_log(MP_LOG_ERROR, "trouble", "called back");
    return NULL;
}

static int leave_thread(double seconds, struct mp_error *err)
{
    struct timespec *t = malloc(sizeof *t);
    pthread_t thread;

    if (!t)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    *t = (struct timespec){(time_t)seconds,
                           (long)((seconds - (int)seconds) * 1e9)};
    if (pthread_create(&thread, NULL, come_late, t))
        return mp_fail(err, MP_ENOMEM, "no thread");
    pthread_detach(thread);
    return 0;
}

/* A piece of a gigabyte at a time, as leaks go. */
static int leak(struct mp_error *err)
{
    for (int i = 0; i < 1024; i++) {
        char *piece = malloc(1 << 20);

        if (!piece)
            return mp_fail(err, MP_ENOMEM, "out of memory");
        *(volatile char *)piece = 1;
    }
    return 0;
}

/* Beyond the end of what was given, as far as there is memory. */
static void overrun(struct mp_view *view, size_t cap)
{
    for (volatile char *p = (char *)(view + cap); cap; p++)
        *p = 'x';
}

static int misbehave(const struct conf *c, int place, struct mp_error *err)
{
    volatile int zero = 0;

    if (c->place != place)
        return 0;
    switch (c->fault) {
    case SEGFAULT:
        raise(SIGSEGV);
        break;
    case ABORT:
        abort();
    case EXIT:
        exit(7);
    case FPE:
        raise(SIGFPE);
        break;
    case SPIN:
        while (!zero)
            ;
        break;
    case SLEEP:
        nanosleep(
            &(struct timespec){(time_t)c->seconds,
                               (long)((c->seconds - (int)c->seconds) * 1e9)},
            NULL);
        break;
    case FAIL:
        return mp_fail(err, MP_EINVAL,
                       "/a/folder/file.bin: as it was told, of (/etc/x)");
    case LEAK:
        return leak(err);
    case LATE:
        return leave_thread(c->seconds, err);
    default:
        break;
    }
    return 0;
}

static long views(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err)
{
    int rc = misbehave(conf, VIEWS, err);
    int32_t side = ((const struct conf *)conf)->side;

    (void)img;
    if (((const struct conf *)conf)->fault == OVERRUN)
        overrun(view, cap);
    if (cap)
        *view = (struct mp_view){
            .scaled_w = side, .scaled_h = side, .w = side, .h = side};
    return rc ? rc : 1;
}

static mp_node input(const void *conf, struct mp_graph *g, mp_node pixels)
{
    (void)conf;
    return mp_add(g, mp_mul(g, pixels, mp_scalar(g, 2.0f / 255)),
                  mp_scalar(g, -1));
}

static mp_node build(const void *conf, struct mp_graph *g,
                     const struct mp_features *f)
{
    (void)g;
    return ((const struct conf *)conf)->deep ? f->map[0] : f->latents;
}

static int decode(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *err)
{
    int rc = misbehave(conf, DECODE, err);

    (void)n;
    if (!rc)
        rc = mp_sink_npy(sink, "latents", result, err);
    return rc ? rc : mp_sink_json(sink, "id", img->id, err);
}

MP_PLUGIN(trouble) = {.abi = MP_PLUGIN_ABI,
                      .size = sizeof(struct mp_plugin),
                      .name = "trouble",
                      .summary = "misbehaves when it is told to",
                      .formats = "latents id",
                      .uses_boxes = 1,
                      .options = options,
                      .conf_size = sizeof(struct conf),
                      .views = views,
                      .input = input,
                      .build = build,
                      .decode = decode};
