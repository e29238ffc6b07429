/* SPDX-License-Identifier: MIT */
/* picture_job.c - what the threads of a run do with one picture. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "boxes.h"
#include "json.h"
#include "picture_job.h"

#define VIEWS_MAX (1 << 20)

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

static const char *base_name(const char *stem)
{
    const char *slash = strrchr(stem, '/');

    return slash ? slash + 1 : stem;
}

struct mp_image mp_picture_job_image(const struct mp_picture_job *p,
                                     char name[256])
{
    snprintf(name, 256, "%s", base_name(p->input->stem));
    return (struct mp_image){.name = name,
                             .width = p->source.width,
                             .height = p->source.height,
                             .rgb = p->source.rgb,
                             .id = p->id,
                             .box = p->box,
                             .nbox = p->nbox};
}

static int find_boxes(struct mp_picture_job *p, const struct mp_settings *s,
                      int64_t *number)
{
    if (p->box)
        return 0; /* given */
    if (s->boxes)
        return mp_boxes_of(s->boxes, p->input->stem, number, &p->box, &p->nbox,
                           &p->err);
    p->box = calloc(1, sizeof *p->box);
    if (!p->box)
        return no_memory(&p->err);
    p->box[p->nbox++] = (struct mp_box){
        .w = p->source.width, .h = p->source.height, .score = 1};
    return 0;
}

/* Who is in it, and what the data set calls it. */
static int identify(struct mp_picture_job *p, const struct mp_settings *s)
{
    const char *stem = p->input->stem;
    int64_t number = mp_name_number(stem);
    int is_listed = s->boxes && !p->box, rc = find_boxes(p, s, &number);
    json_t *id;

    if (rc || p->id)
        return rc; /* it is known */
    id = number < 0 && !is_listed ? mp_json_text(base_name(stem))
                                  : json_integer(number);
    p->id = id ? mp_json_dump(id, JSON_ENCODE_ANY) : NULL;
    json_decref(id);
    return p->id ? 0 : no_memory(&p->err);
}

/* ---- views ---- */

/* A head may be anybody's. */
static int check_view(const struct mp_view *v, const struct mp_view *before,
                      const struct mp_plugin *head, struct mp_error *err)
{
    if (before ? v->group != before->group && v->group != before->group + 1
               : v->group != 0)
        return mp_fail(err, MP_EINVAL, "head %s: groups of views out of order",
                       head->name);
    if (v->warp && v->w > 0 && v->h > 0 &&
        (int64_t)v->w * v->h <= MP_IMAGE_MAX_PIXELS)
        return 0;
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
    if (n > VIEWS_MAX)
        return mp_fail(&p->err, MP_EINVAL, "head %s: %ld views", head->name, n);
    p->nview = (size_t)n;
    p->view = calloc(p->nview + 1, sizeof *p->view);
    p->map = calloc(p->nview + 1, sizeof *p->map);
    if (!p->view || !p->map)
        return no_memory(&p->err);
    if (head->views(s->head_conf, &img, p->view, p->nview, &p->err) != n)
        return mp_fail(&p->err, MP_EINVAL, "head %s: unsure about its views",
                       head->name);
    for (size_t i = 0; i < p->nview && !rc; i++)
        rc = check_view(&p->view[i], i ? &p->view[i - 1] : NULL, head, &p->err);
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

static void mirror(uint8_t *px, int32_t w, int32_t h)
{
    for (int32_t y = 0; y < h; y++, px += (size_t)w * 3)
        for (int32_t a = 0, b = w - 1; a < b; a++, b--)
            for (int c = 0; c < 3; c++) {
                uint8_t x = px[3 * a + c];

                px[3 * a + c] = px[3 * b + c];
                px[3 * b + c] = x;
            }
}

static void cut_out(uint8_t *px, const struct mp_picture *from,
                    const struct mp_view *v)
{
    size_t row = (size_t)v->w * 3;

    for (int32_t y = 0; y < v->h; y++)
        memcpy(px + row * (size_t)y,
               from->rgb +
                   ((size_t)(v->y + y) * (size_t)from->width + (size_t)v->x) *
                       3,
               row);
}

uint8_t *mp_picture_job_view(const struct mp_picture_job *p, size_t view,
                             int *owned)
{
    const struct mp_view *v = &p->view[view];
    const struct mp_picture *from =
        v->warp ? &p->source : at_size(p, v->scaled_w, v->scaled_h);
    uint8_t *px;

    *owned =
        v->warp || v->mirror || v->w != from->width || v->h != from->height;
    if (!*owned)
        return from->rgb;
    px = malloc((size_t)v->w * (size_t)v->h * 3);
    if (!px)
        return NULL;
    if (v->warp)
        mp_warp_u8(px, v->w, v->h, from->rgb, from->width, from->height,
                   v->matrix);
    else
        cut_out(px, from, v);
    if (v->mirror)
        mirror(px, v->w, v->h);
    return px;
}

/* ---- first ---- */

int mp_picture_job_load(struct mp_picture_job *p, const struct mp_input *input,
                        const struct mp_settings *s)
{
    struct mp_sink names = {.stem = input->stem, .kinds = s->kinds};
    int rc;

    p->stage = "read";
    rc = mp_sink_check(&names, &p->err);
    if (!rc)
        rc = mp_picture_read(&p->source, input->path, &p->err);
    p->input = input;
    return rc ? rc : mp_picture_job_open(p, input, s);
}

int mp_picture_job_open(struct mp_picture_job *p, const struct mp_input *input,
                        const struct mp_settings *s)
{
    int rc;

    p->input = input;
    p->stage = "views";
    rc = identify(p, s);
    if (!rc)
        rc = ask_views(p, s);
    for (size_t i = 0; i < p->nview && !rc; i++)
        if (!p->view[i].warp &&
            !at_size(p, p->view[i].scaled_w, p->view[i].scaled_h))
            rc = scale_to(p, p->view[i].scaled_w, p->view[i].scaled_h);
    return rc;
}

/* ---- the network ---- */

int mp_is_of_picture(int rc)
{
    return rc == MP_ENOMEM || rc == MP_EINVAL || rc == MP_ENOTSUP ||
           rc == MP_EFORMAT;
}

static double network_seconds(const struct mp_pipeline *pipeline)
{
    struct mp_pipeline_times t;

    mp_pipeline_times(pipeline, &t);
    return t.network;
}

int mp_picture_job_see(const struct mp_look *look, size_t n,
                       struct mp_pipeline *pipeline, struct mp_error *err)
{
    const struct mp_view *v = &look->p->view[look->view];
    uint8_t **px = calloc(n, sizeof *px);
    int *owned = calloc(n, sizeof *owned);
    struct mp_map *map = calloc(n, sizeof *map);
    double began = network_seconds(pipeline);
    int rc = px && owned && map ? 0 : no_memory(err);

    for (size_t i = 0; i < n && !rc; i++) {
        px[i] = mp_picture_job_view(look[i].p, look[i].view, &owned[i]);
        rc = px[i] ? 0 : no_memory(err);
    }
    if (!rc)
        rc = mp_pipeline_network(pipeline, look->p->device,
                                 (const uint8_t *const *)px, n, v->h, v->w, map,
                                 err);
    for (size_t i = 0; i < n && !rc; i++) {
        look[i].p->network += (network_seconds(pipeline) - began) / (double)n;
        look[i].p->map[look[i].view] = map[i];
        look[i].p->nmap++;
    }
    for (size_t i = 0; px && owned && i < n; i++)
        if (owned[i])
            free(px[i]);
    free(px);
    free(owned);
    free(map);
    return rc;
}

/* ---- merging ---- */

static int wants(const struct mp_settings *s, const char *kind)
{
    struct mp_sink sink = {.kinds = s->kinds};

    return mp_sink_wants(&sink, kind);
}

/* Views of the group that begins at `first`; 0: one has not been seen. */
static size_t count_group(const struct mp_picture_job *p, size_t first)
{
    size_t end = first;

    while (end < p->nview && p->view[end].group == p->view[first].group)
        if (!p->map[end++].held)
            return 0;
    return end - first;
}

static int merge_group(struct mp_picture_job *p, const struct mp_settings *s,
                       struct mp_pipeline *pipeline, size_t n)
{
    struct mp_sink want = {
        .kinds = s->kinds, .head = s->plugin, .classes = s->classes};
    char name[256];
    struct mp_image img = mp_picture_job_image(p, name);
    size_t first = p->nmerged;
    struct mp_group q = {.device = p->device,
                         .img = &img,
                         .view = p->view + first,
                         .map = p->map + first,
                         .nview = n,
                         .nth = p->view[first].group,
                         .count = p->view[p->nview - 1].group + 1,
                         .want = &want};
    uint64_t ticket;
    int rc = mp_pipeline_merge(pipeline, &q, &p->answer, &ticket, &p->err);

    p->ticket = ticket > p->ticket ? ticket : p->ticket;
    return rc;
}

/* A map that is to be written, or is the result. */
static int keep_map(struct mp_picture_job *p, size_t view)
{
    uint64_t ticket;
    int rc = mp_pipeline_fetch(&p->map[view], &ticket, &p->err);

    p->ticket = ticket > p->ticket ? ticket : p->ticket;
    return rc;
}

int mp_picture_job_merge(struct mp_picture_job *p, const struct mp_settings *s,
                         struct mp_pipeline *pipeline)
{
    int keep = !s->plugin->merge || wants(s, MP_KIND_RAW);
    int rc = 0;
    size_t n;

    p->stage = "merge";
    while (!rc && p->nmerged < p->nview && (n = count_group(p, p->nmerged))) {
        if (s->plugin->merge)
            rc = merge_group(p, s, pipeline, n);
        for (; n && !rc; n--, p->nmerged++)
            if (keep)
                rc = keep_map(p, p->nmerged);
            else
                mp_map_free(&p->map[p->nmerged]);
    }
    return rc;
}

int mp_picture_job_settle(struct mp_picture_job *p,
                          struct mp_pipeline *pipeline)
{
    double began = network_seconds(pipeline);
    int rc = p->ticket
                 ? mp_pipeline_wait(pipeline, p->device, p->ticket, &p->err)
                 : 0;

    p->ticket = 0;
    p->network += network_seconds(pipeline) - began;
    return rc;
}

/* ---- last ---- */

/* What the network gave: N x H x W x C, N views. */
static int write_raw(struct mp_picture_job *p, struct mp_sink *sink)
{
    const int64_t *d = p->map[0].dim;
    size_t one = (size_t)(d[1] * d[2] * d[3]);
    struct mp_tensor t = {.name = MP_KIND_RAW,
                          .dtype = MP_F32,
                          .ndim = 4,
                          .dim = {(int64_t)p->nview, d[1], d[2], d[3]}};
    float *all;
    int rc;

    if (!p->nview)
        return mp_fail(&p->err, MP_ENOTSUP, "formats: raw of no view at all");
    for (size_t i = 1; i < p->nview; i++)
        if (memcmp(p->map[i].dim, d, sizeof p->map[i].dim))
            return mp_fail(&p->err, MP_ENOTSUP,
                           "formats: raw needs views of one size");
    t.data = all = malloc(p->nview * one * sizeof *all);
    if (!all)
        return no_memory(&p->err);
    for (size_t i = 0; i < p->nview; i++)
        memcpy(all + i * one, p->map[i].host, one * sizeof *all);
    rc = mp_sink_npy(sink, MP_KIND_RAW, &t, &p->err);
    free(all);
    return rc;
}

/* For heads that do not merge. */
static struct mp_tensor *maps_as_results(const struct mp_picture_job *p)
{
    struct mp_tensor *t = calloc(p->nview + 1, sizeof *t);

    for (size_t i = 0; t && i < p->nview; i++) {
        t[i] = (struct mp_tensor){
            .name = "map", .dtype = MP_F32, .ndim = 3, .data = p->map[i].host};
        memcpy(t[i].dim, p->map[i].dim + 1, 3 * sizeof *t[i].dim);
    }
    return t;
}

int mp_picture_job_write(struct mp_picture_job *p, const struct mp_settings *s,
                         const char *out)
{
    struct mp_sink sink = {.out = out,
                           .stem = p->input->stem,
                           .kinds = s->kinds,
                           .head = s->plugin,
                           .classes = s->classes,
                           .keep = p->keep};
    char name[256];
    struct mp_image img = mp_picture_job_image(p, name);
    struct mp_tensor *maps = NULL;
    int rc = 0;

    p->stage = "write";
    if (p->done.n)
        return mp_sink_kept(&sink, &p->done, &p->err);
    if (!s->plugin->merge && !(maps = maps_as_results(p)))
        rc = no_memory(&p->err);
    if (!rc)
        rc = s->plugin->decode(
            s->head_conf, &img, maps ? maps : p->answer.result,
            maps ? p->nview : p->answer.nresult, &sink, &p->err);
    if (!rc && mp_sink_wants(&sink, MP_KIND_RAW))
        rc = write_raw(p, &sink);
    free(maps);
    return rc;
}

void mp_picture_job_free(struct mp_picture_job *p)
{
    for (size_t i = 0; i < p->nscaled; i++)
        mp_picture_free(&p->scaled[i]);
    for (size_t i = 0; p->map && i < p->nview; i++)
        mp_map_free(&p->map[i]);
    mp_answer_free(&p->answer);
    mp_picture_free(&p->source);
    mp_keep_free(&p->done);
    free(p->box);
    free(p->id);
    free(p->scaled);
    free(p->view);
    free(p->map);
    memset(p, 0, sizeof *p);
}
