/* SPDX-License-Identifier: MIT */
/*
 * pose.h - the parts of the pose head that need no graph: where a person is cut
 * out, where its key points are in the picture, which persons stay, and what is
 * written of them. The key points are the 17 of COCO, in its order.
 *
 * Threads: any; nothing is kept.
 */
#ifndef PLUGINS_POSE_POSE_H
#define PLUGINS_POSE_POSE_H

#include "mpipe/plugin.h"

#define POINTS 17

struct person {
    float center[2];         /* of the box, pixels of the picture */
    float scale[2];          /* padded box / 200: that is COCO's unit */
    double score;            /* of the box; then of the person */
    double point[POINTS][3]; /* x, y in pixels of the picture; score */
};

/* The box brought to the shape aspect (width / height) by making it larger,
 * and `padding` times larger then. Sets all but the points. */
void person_place(struct person *out, const struct mp_box *box, double aspect,
                  double padding);
/* 2 x 3, from the picture to a view of w x h that shows the padded box turned
 * by so many degrees: outer pixel centres of the view lie on its border. */
void person_matrix(float out[6], const struct person *p, double degrees,
                   int32_t w, int32_t h);

/* The points of p from the peaks of its heat maps, h x w: x, y and height of
 * each, POINTS x 3. */
void person_decode(struct person *p, const float *peak, int64_t h, int64_t w);

/* score *= mean score of the points above this; 0 if there is none. */
void person_rescore(struct person *p, double above);
/* How far the two are the same: 0..1. */
float person_likeness(const struct person *a, const struct person *b);
/* The best by score, without all that are more like it than `most`; and so
 * on. Indices into p, best first, to keep[n]; returns how many. */
size_t persons_best(size_t *keep, const struct person *p, size_t n,
                    double most);

/* A list of COCO results of these persons, id being JSON text; NULL: no
 * memory. */
char *persons_json(const struct person *p, const size_t *keep, size_t n,
                   const char *id);

struct drawing {
    int32_t radius;     /* of a key point, pixels; 0: none */
    int32_t thickness;  /* of a limb, pixels; 0: none */
    double point_score; /* least score of what is drawn */
};
/* Over rgb, height x width x 3; the best person on top. */
void persons_draw(uint8_t *rgb, int32_t width, int32_t height,
                  const struct drawing *d, const struct person *p,
                  const size_t *keep, size_t n);

#endif
