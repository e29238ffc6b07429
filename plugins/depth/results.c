/* SPDX-License-Identifier: MIT */
/* results.c - metres as files: numbers, colours, and colours to look at. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "depth.h"

double depth_color_end(const struct depth_conf *c)
{
    return c->color_max > 0 ? c->color_max : c->max_depth;
}

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* x cut off, kept in 0..most; NaN is 0. */
static double trunc_to(float x, double most)
{
    return x > 0 ? fmin(trunc((double)x), most) : 0;
}

/* Units per metre. */
static int png_scale(const struct depth_conf *c)
{
    return c->png_scale > 0 ? c->png_scale : c->max_depth <= 65 ? 1000 : 256;
}

int depth_describe(const void *conf, char *json, size_t size)
{
    int scale = png_scale(conf);

    return snprintf(json, size,
                    "{\"png16\": {\"units_per_metre\": %d, "
                    "\"metres_per_unit\": %.9g}, \"npy\": {\"unit\": \"m\"}}",
                    scale, 1.0 / scale);
}

static int put_png16(const struct depth_conf *c, const struct mp_tensor *t,
                     struct mp_sink *sink, struct mp_error *err)
{
    int scale = png_scale(c);
    size_t n = (size_t)t->dim[0] * (size_t)t->dim[1];
    uint16_t *px = malloc(n * sizeof *px);
    const float *depth = t->data;
    char number[16], comment[80];
    struct mp_png_text text[] = {{"depth_scale", number}, {"Comment", comment}};
    struct mp_png png = {.width = (int32_t)t->dim[1],
                         .height = (int32_t)t->dim[0],
                         .channels = 1,
                         .bits = 16,
                         .px = px,
                         .text = text,
                         .ntext = 2};
    int rc;

    if (!px)
        return no_memory(err);
    snprintf(number, sizeof number, "%d", scale);
    snprintf(comment, sizeof comment, "depth in metres = value / %d", scale);
    for (size_t i = 0; i < n; i++)
        px[i] = (uint16_t)trunc_to(depth[i] * (float)scale, 65535);
    rc = mp_sink_png(sink, "png16", &png, err);
    free(px);
    return rc;
}

/* ---- colours ---- */

/* Every 15th colour of viridis (S. van der Walt, N. Smith: public domain, CC0);
 * straight lines between them stay within 5 of its 256 steps. */
static const uint8_t viridis[18][3] = {
    {68, 1, 84},    {72, 23, 105},  {71, 42, 122},  {67, 61, 132},
    {61, 78, 138},  {53, 94, 141},  {46, 109, 142}, {41, 123, 142},
    {35, 137, 142}, {31, 151, 139}, {33, 165, 133}, {46, 179, 124},
    {70, 192, 111}, {101, 203, 94}, {137, 213, 72}, {176, 221, 47},
    {216, 226, 25}, {253, 231, 37}};

/* Channel k of colour i of 255. */
static double color_at(int map, int i, int k)
{
    int from = i / 15 < 17 ? i / 15 : 16;
    double part = i / 15.0 - from;

    switch (map) {
    case MAP_VIRIDIS:
        return viridis[from][k] * (1 - part) + viridis[from + 1][k] * part;
    case MAP_JET: /* trapezoids: red, green, blue around 3/4, 1/2, 1/4 */
        return 255 * fmin(fmax(1.5 - fabs(4 * i / 255.0 - (3 - k)), 0), 1);
    case MAP_GRAY:
        return i;
    default:
        return mp_colormap_rainbow()[i][k];
    }
}

static void color_table(uint8_t table[256][3], const struct depth_conf *c)
{
    for (int i = 0; i < 256; i++)
        for (int k = 0; k < 3; k++)
            table[c->color_reverse ? 255 - i : i][k] =
                (uint8_t)(color_at(c->color_map, i, k) + 0.5);
}

/* H x W x 3, to be freed, or NULL. No depth (NaN) is black. */
static uint8_t *color_depth(const struct depth_conf *c,
                            const struct mp_tensor *t,
                            const uint8_t (*table)[3])
{
    float from = (float)c->color_min, span = (float)depth_color_end(c) - from;
    size_t n = (size_t)t->dim[0] * (size_t)t->dim[1];
    uint8_t *rgb = calloc(n, 3);
    const float *depth = t->data;

    for (size_t i = 0; rgb && i < n; i++)
        if (!isnan(depth[i]))
            memcpy(rgb + 3 * i,
                   table[(int)trunc_to((depth[i] - from) / span * 255, 255)],
                   3);
    return rgb;
}

static void map_name(char name[16], int map)
{
    const char *word = COLOR_MAPS;

    while (map--)
        word = strchr(word, ' ') + 1;
    snprintf(name, 16, "%.*s", (int)strcspn(word, " "), word);
}

/* An RGB picture with its legend. */
static int put_rgb(const struct depth_conf *c, const char *kind,
                   const uint8_t *rgb, int32_t w, int32_t h,
                   struct mp_sink *sink, struct mp_error *err)
{
    char map[16], first[32], last[32];
    struct mp_png_text text[] = {
        {"color_map", map},
        {"color_reverse", c->color_reverse ? "yes" : "no"},
        {"color_min", first},
        {"color_max", last}};
    struct mp_png png = {.width = w,
                         .height = h,
                         .channels = 3,
                         .bits = 8,
                         .px = rgb,
                         .text = text,
                         .ntext = sizeof text / sizeof *text};

    map_name(map, c->color_map);
    snprintf(first, sizeof first, "%g", c->color_min);
    snprintf(last, sizeof last, "%g", depth_color_end(c));
    return mp_sink_png(sink, kind, &png, err);
}

/* ---- picture, depth and scale side by side ---- */

#define GAP    50 /* pixels between picture and depth */
#define BAR    16 /* width of the colour bar, pixels */
#define MARGIN 8
#define LABEL  10 /* characters of the longest number: 1000.00 m */

struct canvas {
    int32_t w, h;
    uint8_t *rgb;
};

static void paste(struct canvas *to, int32_t x, const uint8_t *rgb, int32_t w,
                  int32_t h)
{
    for (int32_t y = 0; y < h; y++)
        memcpy(to->rgb + 3 * ((size_t)y * (size_t)to->w + (size_t)x),
               rgb + 3 * (size_t)y * (size_t)w, 3 * (size_t)w);
}

/* A box inside the canvas. */
static void fill(struct canvas *to, int32_t x, int32_t y, int32_t w, int32_t h,
                 const uint8_t rgb[3])
{
    for (int32_t i = y; i < y + h; i++)
        for (int32_t j = x; j < x + w; j++)
            memcpy(to->rgb + 3 * ((size_t)i * (size_t)to->w + (size_t)j), rgb,
                   3);
}

/* 3 x 5 dots, a row to an octal digit, from the top. */
static unsigned glyph(char c)
{
    static const unsigned digit[10] = {075557, 026227, 071747, 071717, 055711,
                                       074717, 074757, 071111, 075757, 075717};

    if (c >= '0' && c <= '9')
        return digit[c - '0'];
    return c == '.' ? 2 : c == 'm' ? 07755 : 0;
}

static void write_text(struct canvas *to, int32_t x, int32_t y, int32_t dot,
                       const char *text)
{
    static const uint8_t black[3] = {0};

    for (; *text; text++, x += 4 * dot)
        for (int i = 0; i < 15; i++)
            if (glyph(*text) >> (14 - i) & 1)
                fill(to, x + i % 3 * dot, y + i / 3 * dot, dot, dot, black);
}

/* Pixels of a dot of the numbers beside a bar of this height. */
static int32_t dot_size(int32_t h)
{
    return h < 320 ? 1 : h < 1600 ? h / 160 : 10;
}

static int32_t scale_width(int32_t h)
{
    return MARGIN + BAR + MARGIN + 4 * LABEL * dot_size(h);
}

/* The colours with the largest depth on top, and numbers beside them. */
static void draw_scale(struct canvas *to, int32_t x, const struct depth_conf *c,
                       const uint8_t (*table)[3])
{
    int32_t dot = dot_size(to->h), last = to->h - 1;
    int marks = to->h < 50 * dot ? 2 : 5;

    x += MARGIN;
    for (int32_t y = 0; y <= last; y++)
        fill(to, x, y, BAR, 1, table[255 * (int64_t)(last - y) / last]);
    for (int i = 0; i < marks; i++) {
        double part = (double)i / (marks - 1);
        int32_t y = (int32_t)((1 - part) * (to->h - 5 * dot) + 0.5);
        char text[32];

        snprintf(text, sizeof text, "%.2f m",
                 c->color_min + part * (depth_color_end(c) - c->color_min));
        write_text(to, x + BAR + MARGIN, y, dot, text);
    }
}

static int put_vis(const struct depth_conf *c, const struct mp_image *img,
                   const struct mp_tensor *t, const uint8_t *colors,
                   const uint8_t (*table)[3], struct mp_sink *sink,
                   struct mp_error *err)
{
    int32_t w = (int32_t)t->dim[1], h = (int32_t)t->dim[0];
    struct canvas all = {.h = h < img->height ? img->height : h};
    int rc;

    if (all.h < 16) /* two numbers */
        all.h = 16;
    all.w = img->width + GAP + w + scale_width(all.h);
    all.rgb = malloc((size_t)all.w * (size_t)all.h * 3);
    if (!all.rgb)
        return no_memory(err);
    memset(all.rgb, 255, (size_t)all.w * (size_t)all.h * 3);
    paste(&all, 0, img->rgb, img->width, img->height);
    paste(&all, img->width + GAP, colors, w, h);
    draw_scale(&all, img->width + GAP + w, c, table);
    rc = put_rgb(c, "vis", all.rgb, all.w, all.h, sink, err);
    free(all.rgb);
    return rc;
}

static int put_colors(const struct depth_conf *c, const struct mp_image *img,
                      const struct mp_tensor *t, struct mp_sink *sink,
                      struct mp_error *err)
{
    uint8_t table[256][3], *rgb;
    int rc = 0;

    color_table(table, c);
    rgb = color_depth(c, t, (const uint8_t(*)[3])table);
    if (!rgb)
        return no_memory(err);
    if (mp_sink_wants(sink, "color"))
        rc = put_rgb(c, "color", rgb, (int32_t)t->dim[1], (int32_t)t->dim[0],
                     sink, err);
    if (!rc && mp_sink_wants(sink, "vis"))
        rc = put_vis(c, img, t, rgb, (const uint8_t(*)[3])table, sink, err);
    free(rgb);
    return rc;
}

int depth_write(const void *conf, const struct mp_image *img,
                const struct mp_tensor *result, size_t n, struct mp_sink *sink,
                struct mp_error *err)
{
    int rc = 0;

    (void)n;
    if (mp_sink_wants(sink, "png16"))
        rc = put_png16(conf, result, sink, err);
    if (!rc && (mp_sink_wants(sink, "color") || mp_sink_wants(sink, "vis")))
        rc = put_colors(conf, img, result, sink, err);
    if (!rc && mp_sink_wants(sink, "npy"))
        rc = mp_sink_npy(sink, "npy", result, err);
    return rc;
}
