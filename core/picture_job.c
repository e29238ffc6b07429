/* SPDX-License-Identifier: MIT */
/* picture_job.c - what the threads of a run do with one picture. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "picture_job.h"
#include "sink.h"

#define VIEWS_MAX (1 << 20)

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

struct mp_image mp_picture_job_image(const struct mp_picture_job *p,
                                     char name[256])
{
    const char *slash = strrchr(p->input->stem, '/');

    snprintf(name, 256, "%s", slash ? slash + 1 : p->input->stem);
    return (struct mp_image){.name = name,
                             .width = p->source.width,
                             .height = p->source.height,
                             .rgb = p->source.rgb};
}

/* ---- views ---- */

/* A head may be anybody's. */
static int check_view(const struct mp_view *v, const struct mp_plugin *head,
                      struct mp_error *err)
{
    if (v->scaled_w < 1 || v->scaled_h < 1 ||
        (int64_t)v->scaled_w * v->scaled_h > MP_IMAGE_MAX_PIXELS)
        return mp_fail(err, MP_EINVAL, "head %s: a picture of %d x %d pixels",
                       head->name, (int)v->scaled_w, (int)v->scaled_h);
    if (v->w < 1 || v->h < 1 || v->x < 0 || v->y < 0 ||
        v->x > v->scaled_w - v->w || v->y > v->scaled_h - v->h)
        return mp_fail(err, MP_EINVAL,
                       "head %s: a view of %d x %d at %d, %d does not lie in "
                       "%d x %d pixels",
                       head->name, (int)v->w, (int)v->h, (int)v->x, (int)v->y,
                       (int)v->scaled_w, (int)v->scaled_h);
    return 0;
}

static int ask_views(struct mp_picture_job *p, const struct mp_settings *s)
{
    const struct mp_plugin *head = s->plugin;
    char name[256];
    struct mp_image img = mp_picture_job_image(p, name);
    long n = head->views(s->head_conf, &img, NULL, 0, &p->err);
    int rc = 0;

    if (n < 0)
        return (int)n;
    if (n == 0 || n > VIEWS_MAX)
        return mp_fail(&p->err, MP_EINVAL, "head %s: %ld views", head->name, n);
    p->nview = (size_t)n;
    p->view = calloc(p->nview, sizeof *p->view);
    p->map = calloc(p->nview, sizeof *p->map);
    p->dim = calloc(p->nview, sizeof *p->dim);
    if (!p->view || !p->map || !p->dim)
        return no_memory(&p->err);
    if (head->views(s->head_conf, &img, p->view, p->nview, &p->err) != n)
        return mp_fail(&p->err, MP_EINVAL, "head %s: unsure about its views",
                       head->name);
    for (size_t i = 0; i < p->nview && !rc; i++)
        rc = check_view(&p->view[i], head, &p->err);
    return rc;
}

/* The picture at this size, NULL if it has not been made. */
static const struct mp_picture *at_size(const struct mp_picture_job *p,
                                        int32_t w, int32_t h)
{
    if (p->source.width == w && p->source.height == h)
        return &p->source;
    for (size_t i = 0; i < p->nscaled; i++)
        if (p->scaled[i].width == w && p->scaled[i].height == h)
            return &p->scaled[i];
    return NULL;
}

static int scale_to(struct mp_picture_job *p, int32_t w, int32_t h)
{
    struct mp_picture *more =
        realloc(p->scaled, (p->nscaled + 1) * sizeof *more);
    struct mp_picture one = {w, h, malloc((size_t)w * (size_t)h * 3)};

    if (more)
        p->scaled = more;
    if (!more || !one.rgb) {
        free(one.rgb);
        return no_memory(&p->err);
    }
    p->scaled[p->nscaled++] = one;
    return mp_resize_u8(one.rgb, w, h, p->source.rgb, p->source.width,
                        p->source.height, 3, &p->err);
}

uint8_t *mp_picture_job_view(const struct mp_picture_job *p, size_t view,
                             int *owned)
{
    const struct mp_view *v = &p->view[view];
    const struct mp_picture *from = at_size(p, v->scaled_w, v->scaled_h);
    size_t row = (size_t)v->w * 3;
    uint8_t *px;

    *owned = v->w != v->scaled_w || v->h != v->scaled_h;
    if (!*owned)
        return from->rgb;
    px = malloc(row * (size_t)v->h);
    for (int32_t y = 0; px && y < v->h; y++)
        memcpy(px + row * (size_t)y,
               from->rgb +
                   ((size_t)(v->y + y) * (size_t)from->width + (size_t)v->x) *
                       3,
               row);
    return px;
}

/* ---- first ---- */

int mp_picture_job_load(struct mp_picture_job *p, const struct mp_input *input,
                        const struct mp_settings *s)
{
    struct mp_sink names = {.stem = input->stem, .kinds = s->kinds};
    int rc;

    p->input = input;
    p->stage = "read";
    rc = mp_sink_check(&names, &p->err);
    if (!rc)
        rc = mp_picture_read(&p->source, input->path, &p->err);
    if (rc)
        return rc;
    p->stage = "views";
    rc = ask_views(p, s);
    for (size_t i = 0; i < p->nview && !rc; i++)
        if (!at_size(p, p->view[i].scaled_w, p->view[i].scaled_h))
            rc = scale_to(p, p->view[i].scaled_w, p->view[i].scaled_h);
    return rc;
}

/* ---- last ---- */

/* What the network gave: N x H x W x C, N views. */
static int write_raw(struct mp_picture_job *p, struct mp_sink *sink)
{
    const int64_t *d = p->dim[0];
    size_t one = (size_t)(d[0] * d[1] * d[2]);
    struct mp_tensor t = {.name = MP_KIND_RAW,
                          .dtype = MP_F32,
                          .ndim = 4,
                          .dim = {(int64_t)p->nview, d[0], d[1], d[2]}};
    float *all;
    int rc;

    for (size_t i = 1; i < p->nview; i++)
        if (memcmp(p->dim[i], d, sizeof *p->dim))
            return mp_fail(&p->err, MP_ENOTSUP,
                           "formats: raw needs views of one size");
    t.data = all = malloc(p->nview * one * sizeof *all);
    if (!all)
        return no_memory(&p->err);
    for (size_t i = 0; i < p->nview; i++)
        memcpy(all + i * one, p->map[i], one * sizeof *all);
    rc = mp_sink_npy(sink, MP_KIND_RAW, &t, &p->err);
    free(all);
    return rc;
}

int mp_picture_job_write(struct mp_picture_job *p, const struct mp_settings *s,
                         const char *out)
{
    struct mp_sink sink = {.out = out,
                           .stem = p->input->stem,
                           .kinds = s->kinds,
                           .head = s->plugin,
                           .classes = s->classes};
    char name[256];
    struct mp_image img = mp_picture_job_image(p, name);
    int rc;

    p->stage = "write";
    rc = s->plugin->decode(s->head_conf, &img, p->result, p->nresult, &sink,
                           &p->err);
    if (!rc && mp_sink_wants(&sink, MP_KIND_RAW))
        rc = write_raw(p, &sink);
    return rc;
}

void mp_picture_job_free(struct mp_picture_job *p)
{
    for (size_t i = 0; i < p->nscaled; i++)
        mp_picture_free(&p->scaled[i]);
    for (size_t i = 0; p->map && i < p->nview; i++)
        free(p->map[i]);
    for (size_t i = 0; i < p->nresult; i++)
        free((void *)p->result[i].data);
    mp_picture_free(&p->source);
    free(p->scaled);
    free(p->view);
    free(p->map);
    free(p->dim);
    memset(p, 0, sizeof *p);
}
