/* SPDX-License-Identifier: MIT */
/*
 * metrics.h - the numbers that papers quote: of one depth map, of label maps,
 * of poses.
 *
 * Nothing here reads pictures or files. Threads: no state; one set of counts
 * is one thread's.
 */
#ifndef CORE_EVAL_METRICS_H
#define CORE_EVAL_METRICS_H

#include "eval/coco.h"
#include "mpipe/base.h"

/* ---- depth ---- */

#define MP_DEPTH_METRICS 9
/* d1 d2 d3 abs_rel sq_rel rmse rmse_log log10 silog */
extern const char *const mp_depth_metric_names[MP_DEPTH_METRICS];

enum mp_crop { MP_CROP_NONE, MP_CROP_NYU, MP_CROP_GARG, MP_CROP_EIGEN };

struct mp_rect { /* pixels; x1 and y1 are the first outside */
    int32_t x0, y0, x1, y1;
};
/* The part of a w x h map in which pixels count. */
struct mp_rect mp_depth_crop(enum mp_crop crop, int32_t w, int32_t h);
/* The 1216 x 352 pixels at the bottom, in the middle, of a picture of KITTI;
 * partly outside of a smaller map. */
struct mp_rect mp_depth_kb_crop(int32_t w, int32_t h);

/* Of the pixels in the crop with min < gt < max, metres, both strictly.
 * Infinite predictions count as max, NaN as min; nothing else is clamped, so
 * predictions of 0 or less give infinite or NaN metrics. pred, gt: f32 h x w.
 * The number of such pixels; 0: out is NaN. */
size_t mp_depth_metrics(double out[MP_DEPTH_METRICS], const float *pred,
                        const float *gt, int32_t w, int32_t h,
                        enum mp_crop crop, double min, double max);

/* ---- segmentation ---- */

/* What a stored value means: a class, 0 and up, or one of these. */
enum {
    MP_LABEL_STRAY = -1,  /* no class, and a mistake if it is there */
    MP_LABEL_IGNORED = -2 /* of ground truth: the pixel does not count */
};
#define MP_LABEL_VALUES 65536 /* of a PNG of 16 bits */

/* Sums over pixels that count. */
struct mp_seg_counts {
    size_t n; /* classes */
    /* per class: predicted where it is; predicted; there */
    int64_t *both, *predicted, *labelled;
    /* pixels predicted, or labelled, to be no class: they are wrong, and the
     * latter are in no class's `labelled` */
    int64_t stray_predicted, stray_labelled;
};
int mp_seg_counts_new(struct mp_seg_counts *c, size_t classes,
                      struct mp_error *err);
void mp_seg_counts_free(struct mp_seg_counts *c);
void mp_seg_counts_clear(struct mp_seg_counts *c);

/* Count n pixels. means: MP_LABEL_VALUES classes for stored values. */
void mp_seg_count(struct mp_seg_counts *c, const uint16_t *pred,
                  const int32_t *pred_means, const uint16_t *label,
                  const int32_t *label_means, size_t n);
void mp_seg_counts_add(struct mp_seg_counts *to,
                       const struct mp_seg_counts *from);

struct mp_seg_scores { /* 0 to 1, NaN where nothing was counted */
    double a_acc, m_iou, m_acc;
};
/* iou, acc: per class, or NULL. */
struct mp_seg_scores mp_seg_scores(const struct mp_seg_counts *c, double *iou,
                                   double *acc);

/* ---- pose ---- */

#define MP_POSE_METRICS    10
#define MP_POSE_THRESHOLDS 10 /* of OKS: 0.5, 0.55 .. 0.95 */
/* AP, AP.5, AP.75, AP(M), AP(L), then the same of AR */
extern const char *const mp_pose_metric_names[MP_POSE_METRICS];

/* The evaluators differ in three ways. pycocotools trusts num_keypoints, keeps
 * results whose scores are all 0, and takes a match with the annotation of id
 * 0 for none. */
enum mp_coco_tools { MP_XTCOCOTOOLS, MP_PYCOCOTOOLS };

enum { MP_AREA_ALL, MP_AREA_MEDIUM, MP_AREA_LARGE, MP_AREAS };

struct mp_pose_scores { /* -1 where there is no ground truth */
    double value[MP_POSE_METRICS];
    double ap[MP_AREAS][MP_POSE_THRESHOLDS], ar[MP_AREAS][MP_POSE_THRESHOLDS];
};
/* Only objects of category MP_COCO_PERSON count. Errors name the entry. */
int mp_pose_metrics(struct mp_pose_scores *out, const struct mp_coco *truth,
                    const struct mp_coco *results, enum mp_coco_tools tools,
                    struct mp_error *err);

#endif
