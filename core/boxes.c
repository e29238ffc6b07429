/* SPDX-License-Identifier: MIT */
/* boxes.c - persons by picture. */
#include <stdlib.h>
#include <string.h>
#include "boxes.h"
#include "eval/coco.h"

struct mp_boxes {
    struct mp_coco *coco;
    char *path;
};

void mp_boxes_free(struct mp_boxes *b)
{
    if (!b)
        return;
    mp_coco_free(b->coco);
    free(b->path);
    free(b);
}

static int check(const struct mp_coco *c, struct mp_error *err)
{
    for (size_t i = 0; i < c->nobject; i++)
        if (c->object[i].category_id == MP_COCO_PERSON &&
            !(c->object[i].has & MP_COCO_BOX))
            return mp_fail(err, MP_EFORMAT, "entry %zu: there is no bbox", i);
    return 0;
}

int mp_boxes_open(struct mp_boxes **out, const char *path, struct mp_error *err)
{
    struct mp_boxes *b = calloc(1, sizeof *b);
    int rc = b && (b->path = strdup(path))
                 ? mp_coco_open(&b->coco, path, err)
                 : mp_fail(err, MP_ENOMEM, "out of memory");

    if (!rc && (rc = check(b->coco, err)))
        mp_fail_in(err, "%s", path);
    if (rc) {
        mp_boxes_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

int64_t mp_name_number(const char *stem)
{
    const char *slash = strrchr(stem, '/'), *name = slash ? slash + 1 : stem;
    size_t digits = strspn(name, "0123456789");

    return digits && digits < 19 && !name[digits] ? strtoll(name, NULL, 10)
                                                  : -1;
}

static int find_image(const struct mp_boxes *b, const char *stem,
                      const struct mp_coco_image **img, int64_t *id,
                      struct mp_error *err)
{
    if (b->coco->is_truth) {
        *img = mp_coco_image_of(b->coco, stem);
        *id = *img ? (*img)->id : -1;
    } else {
        *img = NULL;
        *id = mp_name_number(stem);
    }
    if (*id >= 0 || *img)
        return 0;
    return mp_fail(err, MP_EINVAL,
                   b->coco->is_truth
                       ? "%s has no image of this name"
                       : "%s knows pictures by number, and this name is none",
                   b->path);
}

int mp_boxes_of(const struct mp_boxes *b, const char *stem, int64_t *id,
                struct mp_box **box, size_t *n, struct mp_error *err)
{
    const struct mp_coco_image *img;
    const size_t *at;
    size_t most;
    int rc = find_image(b, stem, &img, id, err);

    if (rc)
        return rc;
    *n = 0;
    at = mp_coco_of_image(b->coco, *id, &most);
    *box = calloc(most + 1, sizeof **box);
    if (!*box)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (size_t i = 0; i < most; i++) {
        const struct mp_coco_object *o = &b->coco->object[at[i]];
        double v[4];

        if (o->category_id != MP_COCO_PERSON)
            continue;
        memcpy(v, o->box, sizeof v);
        if (img && !mp_coco_truth_box(v, img, o))
            continue;
        (*box)[(*n)++] = (struct mp_box){v[0], v[1], v[2], v[3], o->score};
    }
    return 0;
}
