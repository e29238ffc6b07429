/* SPDX-License-Identifier: MIT */
/*
 * coco.h - files of people in the formats of COCO.
 *
 * An annotation file is an object with "images" and "annotations"; a list of
 * results or of detected boxes is an array. mp_coco_open takes either and
 * checks every entry that it keeps; members that are not named here are
 * ignored. Coordinates are pixels of the picture, as in the file.
 *
 * Files are untrusted. Errors name the file, the entry and what would be
 * right. Threads: read-only after open, so any thread.
 */
#ifndef CORE_EVAL_COCO_H
#define CORE_EVAL_COCO_H

#include "mpipe/base.h"

#define MP_COCO_JOINTS 17
#define MP_COCO_PERSON 1 /* its category */

struct mp_coco_image {
    int64_t id;
    char *file; /* as written, perhaps with folders */
    int32_t width, height;
};

/* What an entry has. */
enum { MP_COCO_BOX = 1, MP_COCO_AREA = 2, MP_COCO_KEYPOINTS = 4 };

/* An annotation, or a result. */
struct mp_coco_object {
    int64_t id; /* of a result: its place in the file, from 1 */
    int64_t image_id, category_id;
    unsigned has;
    int crowd;
    double box[4]; /* x, y, width, height */
    double area;
    double score; /* of an annotation: 1 */
    /* x, y, and how visible (0: not labelled, 1: hidden, 2: seen), for a
     * result the score */
    double keypoint[MP_COCO_JOINTS][3];
    int32_t labelled;      /* keypoints whose third number is above 0 */
    int64_t num_keypoints; /* as written, or else `labelled` */
};

struct mp_coco {
    int is_truth;                /* an annotation file */
    struct mp_coco_image *image; /* by ascending id; none for results */
    size_t nimage;
    struct mp_coco_object *object; /* as in the file */
    size_t nobject;
    struct mp_coco_index *index;
};

int mp_coco_open(struct mp_coco **out, const char *path, struct mp_error *err);
void mp_coco_free(struct mp_coco *c); /* NULL is fine */

/* NULL: there is none. */
const struct mp_coco_image *mp_coco_image(const struct mp_coco *c, int64_t id);

/* The image of a picture by its path without suffix. Folders at the front of
 * the path may be missing in the file; the longest rest that fits counts, of
 * images of one name the first. NULL: there is none. */
const struct mp_coco_image *mp_coco_image_of(const struct mp_coco *c,
                                             const char *stem);

/* Places in `object` of this image's, ascending; *n of them, maybe none. */
const size_t *mp_coco_of_image(const struct mp_coco *c, int64_t image_id,
                               size_t *n);

/* The box of an annotated person as the published code hands it to the
 * network: clipped to the picture, and so a pixel less wide and high. 0: the
 * person is left out (a crowd, nothing left of the box, nothing labelled). */
int mp_coco_truth_box(double box[4], const struct mp_coco_image *img,
                      const struct mp_coco_object *o);

#endif
