/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "eval/coco.h"
#include "json.h"

/* The annotations of COCO's training set are about half of this. Bytes. */
#define FILE_MAX ((size_t)512 << 20)

/* Orders of images and objects, to search in. */
struct mp_coco_index {
    size_t *by_name;  /* of image */
    size_t *by_image; /* of object */
};

void mp_coco_free(struct mp_coco *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->nimage; i++)
        free(c->image[i].file);
    if (c->index != NULL) {
        free(c->index->by_name);
        free(c->index->by_image);
    }
    free(c->index);
    free(c->image);
    free(c->object);
    free(c);
}

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- members ---- */

static int get_id(int64_t *out, const json_t *entry, const char *key,
                  struct mp_error *err)
{
    const json_t *v = json_object_get(entry, key);

    if (!json_is_integer(v))
        return mp_fail(err, MP_EFORMAT, "%s must be a whole number", key);
    *out = json_integer_value(v);
    return 0;
}

static int get_side(int32_t *out, const json_t *entry, const char *key,
                    struct mp_error *err)
{
    const json_t *v = json_object_get(entry, key);

    if (!json_is_integer(v) || json_integer_value(v) < 1 ||
        json_integer_value(v) > INT32_MAX)
        return mp_fail(err, MP_EFORMAT,
                       "%s must be a whole number above 0, pixels", key);
    *out = (int32_t)json_integer_value(v);
    return 0;
}

/* 1: it is there; 0: it is not. */
static int get_numbers(double *out, size_t n, const json_t *entry,
                       const char *key, struct mp_error *err)
{
    const json_t *list = json_object_get(entry, key);

    if (list == NULL)
        return 0;
    if (json_array_size(list) != n)
        return mp_fail(err, MP_EFORMAT, "%s must be a list of %zu numbers", key,
                       n);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);

        if (!json_is_number(v))
            return mp_fail(err, MP_EFORMAT, "%s[%zu] must be a number", key, i);
        out[i] = json_number_value(v);
    }
    return 1;
}

/* ---- entries ---- */

static int read_image(struct mp_coco *c, const json_t *entry,
                      struct mp_error *err)
{
    struct mp_coco_image *img = &c->image[c->nimage];
    const char *file = json_string_value(json_object_get(entry, "file_name"));
    int rc = get_id(&img->id, entry, "id", err);

    if (rc == 0)
        rc = get_side(&img->width, entry, "width", err);
    if (rc == 0)
        rc = get_side(&img->height, entry, "height", err);
    if (rc != 0)
        return rc;
    if (file == NULL || *file == '\0')
        return mp_fail(err, MP_EFORMAT, "file_name must be a text, not empty");
    img->file = strdup(file);
    if (img->file == NULL)
        return no_memory(err);
    c->nimage++;
    return 0;
}

static int read_person(struct mp_coco_object *o, const json_t *entry,
                       struct mp_error *err)
{
    int box = get_numbers(o->box, 4, entry, "bbox", err), joints;

    if (box < 0)
        return box;
    joints = get_numbers(&o->keypoint[0][0], 3 * MP_COCO_JOINTS, entry,
                         "keypoints", err);
    if (joints < 0)
        return joints;
    for (int i = 0; i < MP_COCO_JOINTS; i++)
        o->labelled += o->keypoint[i][2] > 0;
    o->num_keypoints = o->labelled;
    o->has |= (box ? MP_COCO_BOX : 0) | (joints ? MP_COCO_KEYPOINTS : 0);
    return 0;
}

static int read_labels(struct mp_coco_object *o, const json_t *entry,
                       struct mp_error *err)
{
    const json_t *crowd = json_object_get(entry, "iscrowd");
    const json_t *area = json_object_get(entry, "area");

    o->score = 1;
    o->crowd = json_is_true(crowd) || json_integer_value(crowd) != 0;
    if (crowd != NULL && !json_is_boolean(crowd) && !json_is_integer(crowd))
        return mp_fail(err, MP_EFORMAT, "iscrowd must be 0 or 1");
    o->area = json_number_value(area);
    if (area != NULL && (!json_is_number(area) || o->area < 0))
        return mp_fail(err, MP_EFORMAT,
                       "area must be a number of at least 0, pixels");
    o->has |= area != NULL ? MP_COCO_AREA : 0;
    return json_object_get(entry, "num_keypoints") == NULL
               ? 0
               : get_id(&o->num_keypoints, entry, "num_keypoints", err);
}

static int read_object(struct mp_coco *c, const json_t *entry,
                       struct mp_error *err)
{
    struct mp_coco_object *o = &c->object[c->nobject];
    const json_t *score = json_object_get(entry, "score");
    int rc = get_id(&o->image_id, entry, "image_id", err);

    o->id = (int64_t)c->nobject + 1;
    if (rc == 0 && c->is_truth)
        rc = get_id(&o->id, entry, "id", err);
    if (rc == 0)
        rc = get_id(&o->category_id, entry, "category_id", err);
    if (rc == 0)
        rc = read_person(o, entry, err);
    if (rc == 0 && c->is_truth)
        rc = read_labels(o, entry, err);
    if (rc == 0 && !c->is_truth) {
        o->score = json_number_value(score);
        if (!json_is_number(score))
            rc = mp_fail(err, MP_EFORMAT, "score must be a number");
    }
    c->nobject += rc == 0;
    return rc;
}

static int read_list(struct mp_coco *c, const json_t *list, const char *key,
                     int (*read)(struct mp_coco *, const json_t *,
                                 struct mp_error *),
                     struct mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++) {
        const json_t *entry = json_array_get(list, i);

        rc = json_is_object(entry)
                 ? read(c, entry, err)
                 : mp_fail(err, MP_EFORMAT, "must be an object");
        if (rc != 0)
            mp_fail_in(err, "%s[%zu]", key, i);
    }
    return rc;
}

static int read_all(struct mp_coco *c, const json_t *root, struct mp_error *err)
{
    const json_t *images = json_object_get(root, "images");
    const json_t *objects =
        json_is_array(root) ? root : json_object_get(root, "annotations");
    int rc;

    c->is_truth = json_is_object(root);
    if (c->is_truth && (!json_is_array(images) || !json_is_array(objects)))
        return mp_fail(err, MP_EFORMAT,
                       "an annotation file must have the lists images and "
                       "annotations");
    if (!json_is_array(objects))
        return mp_fail(err, MP_EFORMAT,
                       "must be an object (annotations) or a list (results)");
    c->image = calloc(json_array_size(images) + 1, sizeof *c->image);
    c->object = calloc(json_array_size(objects) + 1, sizeof *c->object);
    if (c->image == NULL || c->object == NULL)
        return no_memory(err);
    rc = read_list(c, images, "images", read_image, err);
    return rc != 0 ? rc
                   : read_list(c, objects, c->is_truth ? "annotations" : "",
                               read_object, err);
}

/* ---- orders ---- */

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

static int images_by_id(const void *a, const void *b)
{
    return compare(((const struct mp_coco_image *)a)->id,
                   ((const struct mp_coco_image *)b)->id);
}

/* How much of a path is its stem. */
static size_t stem_length(const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');

    return dot == NULL || dot <= (slash == NULL ? path : slash + 1)
               ? strlen(path)
               : (size_t)(dot - path);
}

static int compare_stems(const char *a, size_t na, const char *b, size_t nb)
{
    int order = memcmp(a, b, na < nb ? na : nb);

    return order != 0 ? order : (na > nb) - (na < nb);
}

static int by_name(const void *a, const void *b, void *user)
{
    const struct mp_coco *c = user;
    size_t i = *(const size_t *)a, j = *(const size_t *)b;
    const char *x = c->image[i].file, *y = c->image[j].file;
    int order = compare_stems(x, stem_length(x), y, stem_length(y));

    return order != 0 ? order : (i > j) - (i < j);
}

static int by_image(const void *a, const void *b, void *user)
{
    const struct mp_coco *c = user;
    size_t i = *(const size_t *)a, j = *(const size_t *)b;
    int order = compare(c->object[i].image_id, c->object[j].image_id);

    return order != 0 ? order : (i > j) - (i < j);
}

static size_t *ordered(size_t n,
                       int (*order)(const void *, const void *, void *),
                       struct mp_coco *c)
{
    size_t *at = malloc((n + 1) * sizeof *at);

    for (size_t i = 0; at != NULL && i < n; i++)
        at[i] = i;
    if (at != NULL)
        qsort_r(at, n, sizeof *at, order, c);
    return at;
}

static int ids_by_id(const void *a, const void *b)
{
    return compare(*(const int64_t *)a, *(const int64_t *)b);
}

/* No annotation, and no image, may be there twice. */
static int check_ids(const struct mp_coco *c, struct mp_error *err)
{
    int64_t *id = malloc((c->nobject + 1) * sizeof *id);
    int rc = id == NULL ? no_memory(err) : 0;

    for (size_t i = 1; i < c->nimage && rc == 0; i++)
        if (c->image[i].id == c->image[i - 1].id)
            rc = mp_fail(err, MP_EFORMAT, "two images have the id %" PRId64,
                         c->image[i].id);
    for (size_t i = 0; i < c->nobject && rc == 0; i++)
        id[i] = c->object[i].id;
    if (rc == 0)
        qsort(id, c->nobject, sizeof *id, ids_by_id);
    for (size_t i = 1; i < c->nobject && rc == 0; i++)
        if (id[i] == id[i - 1])
            rc = mp_fail(err, MP_EFORMAT,
                         "two annotations have the id %" PRId64, id[i]);
    free(id);
    return rc;
}

/* Every annotation's image must be there. */
static int check_images(const struct mp_coco *c, struct mp_error *err)
{
    for (size_t i = 0; i < c->nobject; i++)
        if (mp_coco_image(c, c->object[i].image_id) == NULL)
            return mp_fail(err, MP_EFORMAT,
                           "annotations[%zu]: no image has the id %" PRId64, i,
                           c->object[i].image_id);
    return 0;
}

static int sort(struct mp_coco *c, struct mp_error *err)
{
    int rc;

    if (c->nimage > 0)
        qsort(c->image, c->nimage, sizeof *c->image, images_by_id);
    c->index = calloc(1, sizeof *c->index);
    if (c->index == NULL)
        return no_memory(err);
    c->index->by_name = ordered(c->nimage, by_name, c);
    c->index->by_image = ordered(c->nobject, by_image, c);
    if (c->index->by_name == NULL || c->index->by_image == NULL)
        return no_memory(err);
    rc = check_ids(c, err);
    return rc == 0 && c->is_truth ? check_images(c, err) : rc;
}

int mp_coco_open(struct mp_coco **out, const char *path, struct mp_error *err)
{
    struct mp_coco *c = calloc(1, sizeof *c);
    json_t *root = NULL;
    int rc = c == NULL ? no_memory(err) : 0;

    *out = NULL;
    if (rc == 0)
        rc = mp_json_read(&root, path, FILE_MAX, err);
    if (rc == 0) {
        rc = read_all(c, root, err);
        json_decref(root);
        if (rc == 0)
            rc = sort(c, err);
        if (rc != 0)
            mp_fail_in(err, "%s", path);
    }
    if (rc == 0)
        *out = c;
    else
        mp_coco_free(c);
    return rc;
}

/* ---- searching ---- */

const struct mp_coco_image *mp_coco_image(const struct mp_coco *c, int64_t id)
{
    struct mp_coco_image key = {.id = id};

    return c->nimage == 0 ? NULL
                          : bsearch(&key, c->image, c->nimage, sizeof *c->image,
                                    images_by_id);
}

/* The first of exactly this stem. */
static const struct mp_coco_image *image_named(const struct mp_coco *c,
                                               const char *stem)
{
    size_t low = 0, high = c->nimage, n = strlen(stem);

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *file = c->image[c->index->by_name[middle]].file;

        if (compare_stems(file, stem_length(file), stem, n) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < c->nimage) {
        const struct mp_coco_image *img = &c->image[c->index->by_name[low]];

        if (compare_stems(img->file, stem_length(img->file), stem, n) == 0)
            return img;
    }
    return NULL;
}

const struct mp_coco_image *mp_coco_image_of(const struct mp_coco *c,
                                             const char *stem)
{
    const struct mp_coco_image *img = image_named(c, stem);

    while (img == NULL && (stem = strchr(stem, '/')) != NULL)
        img = image_named(c, ++stem);
    return img;
}

const size_t *mp_coco_of_image(const struct mp_coco *c, int64_t image_id,
                               size_t *n)
{
    const size_t *at = c->index->by_image;
    size_t low = 0, high = c->nobject;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (c->object[at[middle]].image_id < image_id)
            low = middle + 1;
        else
            high = middle;
    }
    for (*n = 0;
         low + *n < c->nobject && c->object[at[low + *n]].image_id == image_id;)
        ++*n;
    return at + low;
}

/* ---- boxes ---- */

static double least(double a, double b)
{
    return a < b ? a : b;
}

static double most(double a, double b)
{
    return a > b ? a : b;
}

int mp_coco_truth_box(double box[4], const struct mp_coco_image *img,
                      const struct mp_coco_object *o)
{
    double x1 = most(0, o->box[0]), y1 = most(0, o->box[1]);
    double x2 = least(img->width - 1, x1 + most(0, o->box[2] - 1));
    double y2 = least(img->height - 1, y1 + most(0, o->box[3] - 1));

    if (!(o->has & MP_COCO_BOX) || !(o->has & MP_COCO_KEYPOINTS) || o->crowd ||
        o->labelled == 0 || o->num_keypoints == 0)
        return 0;
    if (((o->has & MP_COCO_AREA) && o->area <= 0) || x2 <= x1 || y2 <= y1)
        return 0;
    box[0] = x1;
    box[1] = y1;
    box[2] = x2 - x1;
    box[3] = y2 - y1;
    return 1;
}
