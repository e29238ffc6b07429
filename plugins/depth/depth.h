/* SPDX-License-Identifier: MIT */
/* depth.h - what the two halves of head depth share: its options. */
#ifndef PLUGINS_DEPTH_H
#define PLUGINS_DEPTH_H

#include "mpipe/plugin.h"

enum { SIZE_INPUT, SIZE_NETWORK };
enum { CROP_NONE, CROP_KB };
enum { MAP_RAINBOW, MAP_VIRIDIS, MAP_JET, MAP_GRAY };

/* The words of option color_map, in the order of the numbers above. */
#define COLOR_MAPS "rainbow viridis jet gray"

struct depth_conf {
    double max_depth;
    int32_t resize_scale;
    int32_t crop;
    int32_t windows, faithful;
    int32_t flip;
    int32_t size;
    int32_t png_scale; /* units per metre; -1: auto */
    int32_t color_map;
    int32_t color_reverse;
    double color_min, color_max; /* metres; color_max 0: max_depth */
};

/* Metres at the end of the colours. */
double depth_color_end(const struct depth_conf *c);

/* describe of struct mp_plugin: scale and unit. */
int depth_describe(const void *conf, char *json, size_t size);

/* decode of struct mp_plugin: metres, H x W, to all kinds of results. */
int depth_write(const void *conf, const struct mp_image *img,
                const struct mp_tensor *result, size_t n, struct mp_sink *sink,
                struct mp_error *err);

#endif
