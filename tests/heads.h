/* SPDX-License-Identifier: MIT */
/*
 * heads.h - heads without a network: configure one, ask for its views, run
 * what it describes, and keep what it writes. Failures fail the test.
 */
#ifndef TESTS_HEADS_H
#define TESTS_HEADS_H

#include "conf.h"
#include "graph_impl.h"
#include "module.h"
#include "session.h"

/* A sink that keeps everything; it stands in for that of libmpipe. */
struct kept {
    const char *kind;
    struct mp_png png;
    char text[4][2][96];
    void *px; /* a copy; of a .npy too */
    struct mp_tensor npy;
};

struct mp_sink {
    const char *wants; /* words */
    struct mp_classes classes;
    struct kept kept[4];
    size_t n;
};

void sink_free(struct mp_sink *s);

struct head {
    const struct mp_plugin *p;
    struct mp_conf *c;
    void *conf;
};

/* settings: "key=value key=value". head_free also after an error. */
int configure(struct head *h, const char *name, const char *settings,
              struct mp_error *err);
struct head head_new(const char *name, const char *settings);
void head_free(struct head *h);

#define CAP 64 /* views that are stored */

long views(const struct head *h, int w, int hh, struct mp_view *v);
void decode(const struct head *h, const struct mp_image *img,
            const struct mp_tensor *t, struct mp_sink *sink);

#define ROOM 4 /* outputs of a graph */

struct result {
    struct mp_session *s;
    struct mp_tensor t[ROOM];
    void *data[ROOM];
    size_t n;
    struct mp_arena arena;
};

/* With plain C; result_free also after an error. */
int run(struct result *r, const struct mp_graph *g, const void *const *in,
        struct mp_error *err);
int run_on(struct result *r, const struct mp_backend *backend,
           const struct mp_graph *g, const void *const *in,
           struct mp_error *err);
void result_free(struct result *r);

struct golden;
void same_bytes(const struct golden *g, const char *name, const void *px);

#endif
