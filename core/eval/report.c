/* SPDX-License-Identifier: MIT */
/* report.c - an evaluation as a table, as JSON, and pair by pair. */
#include <math.h>
#include <string.h>

#include "eval/evaluate.h"

#define NAME_MAX_WIDTH 24 /* of class names in the table */

/* ---- tables ---- */

static void print_depth(const struct mp_evaluation *e, FILE *out)
{
    for (int i = 0; i < MP_DEPTH_METRICS; i++)
        fprintf(out, "%9s", mp_depth_metric_names[i]);
    fputc('\n', out);
    for (int i = 0; i < MP_DEPTH_METRICS; i++)
        fprintf(out, "%9.4f", e->depth_mean[i]);
    fputc('\n', out);
}

/* Per class, percent. */
static void class_scores(const struct mp_evaluation *e, size_t i, double *iou,
                         double *acc)
{
    const struct mp_seg_counts *c = &e->seg_counts;
    struct mp_seg_counts one = {.n = 1,
                                .both = &c->both[i],
                                .predicted = &c->predicted[i],
                                .labelled = &c->labelled[i]};

    mp_seg_scores(&one, iou, acc);
}

static void print_percent(FILE *out, double v)
{
    if (isnan(v))
        fprintf(out, "%8s", "-");
    else
        fprintf(out, "%8.2f", 100 * v);
}

static void print_seg(const struct mp_evaluation *e, FILE *out)
{
    const struct mp_classes *classes = e->settings->classes;
    int width = (int)strlen("class");

    for (size_t i = 0; i < classes->count; i++) {
        size_t n = strlen(classes->names[i]);

        n = n < NAME_MAX_WIDTH ? n : NAME_MAX_WIDTH;
        width = (int)n > width ? (int)n : width;
    }
    fprintf(out, "%-*s%8s%8s\n", width, "class", "IoU", "Acc");
    for (size_t i = 0; i < classes->count; i++) {
        double iou, acc;

        class_scores(e, i, &iou, &acc);
        fprintf(out, "%-*.*s", width, width, classes->names[i]);
        print_percent(out, iou);
        print_percent(out, acc);
        fputc('\n', out);
    }
    fprintf(out, "\n%8s%8s%8s\n", "aAcc", "mIoU", "mAcc");
    print_percent(out, e->seg_all.a_acc);
    print_percent(out, e->seg_all.m_iou);
    print_percent(out, e->seg_all.m_acc);
    fputc('\n', out);
}

static void print_pose(const struct mp_evaluation *e, FILE *out)
{
    for (int i = 0; i < MP_POSE_METRICS; i++)
        fprintf(out, "%8s", mp_pose_metric_names[i]);
    fputc('\n', out);
    for (int i = 0; i < MP_POSE_METRICS; i++)
        fprintf(out, "%8.4f", e->pose.value[i]);
    fputc('\n', out);
}

void mp_evaluation_print(const struct mp_evaluation *e, FILE *out)
{
    size_t processes = (size_t)e->settings->eval.double_count;
    size_t again = (processes - e->pairs->n % processes) % processes;

    switch (e->task) {
    case MP_TASK_DEPTH:
        print_depth(e, out);
        break;
    case MP_TASK_SEG:
        print_seg(e, out);
        break;
    case MP_TASK_POSE:
        print_pose(e, out);
        fprintf(out, "%zu pictures\n", e->truth->nimage);
        return;
    }
    fprintf(out, "%zu pictures", e->pairs->n);
    if (e->task == MP_TASK_DEPTH && again > 0)
        fprintf(out, ", the first %zu counted again, as by %zu processes",
                again, processes);
    if (e->depth_empty > 0)
        fprintf(out, ", %zu of them left out: no pixel counts", e->depth_empty);
    if (e->pairs->left_out > 0)
        fprintf(out, ", %zu of the list without ground truth",
                e->pairs->left_out);
    fputc('\n', out);
}

/* ---- JSON ---- */

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *numbers(const char *const *names, const double *v, size_t n)
{
    json_t *out = json_object();

    for (size_t i = 0; i < n; i++)
        json_object_set_new(out, names[i], number(v[i]));
    return out;
}

static void add_depth(const struct mp_evaluation *e, json_t *out)
{
    json_object_set_new(
        out, "metrics",
        numbers(mp_depth_metric_names, e->depth_mean, MP_DEPTH_METRICS));
    json_object_set_new(out, "empty", json_integer((json_int_t)e->depth_empty));
}

static json_t *seg_scores(const struct mp_seg_scores *s)
{
    static const char *const names[] = {"aAcc", "mIoU", "mAcc"};

    return numbers(names, (double[]){s->a_acc, s->m_iou, s->m_acc}, 3);
}

static void add_seg(const struct mp_evaluation *e, json_t *out)
{
    const struct mp_classes *classes = e->settings->classes;
    const struct mp_seg_counts *c = &e->seg_counts;
    json_t *list = json_array();

    json_object_set_new(out, "metrics", seg_scores(&e->seg_all));
    for (size_t i = 0; i < classes->count; i++) {
        double iou, acc;

        class_scores(e, i, &iou, &acc);
        json_array_append_new(
            list, json_pack("{s:s, s:o, s:o, s:I, s:I, s:I}", "name",
                            classes->names[i], "IoU", number(iou), "Acc",
                            number(acc), "intersect", (json_int_t)c->both[i],
                            "predicted", (json_int_t)c->predicted[i],
                            "labelled", (json_int_t)c->labelled[i]));
    }
    json_object_set_new(out, "classes", list);
    json_object_set_new(out, "stray_predicted",
                        json_integer((json_int_t)c->stray_predicted));
    json_object_set_new(out, "stray_labelled",
                        json_integer((json_int_t)c->stray_labelled));
}

json_t *mp_evaluation_json(const struct mp_evaluation *e)
{
    json_t *settings = mp_settings_json(e->settings), *out = json_object();
    const struct mp_pairs none = {.n = e->truth ? e->truth->nimage : 0};
    const struct mp_pairs *p = e->task == MP_TASK_POSE ? &none : e->pairs;

    json_object_set_new(out, "head", json_string(e->settings->plugin->name));
    json_object_set_new(out, "pictures", json_integer((json_int_t)p->n));
    json_object_set_new(out, "left_out", json_integer((json_int_t)p->left_out));
    json_object_set_new(out, "unused", json_integer((json_int_t)p->unused));
    json_object_set(out, "eval", json_object_get(settings, "eval"));
    json_decref(settings);
    switch (e->task) {
    case MP_TASK_DEPTH:
        add_depth(e, out);
        break;
    case MP_TASK_SEG:
        add_seg(e, out);
        break;
    case MP_TASK_POSE:
        json_object_set_new(
            out, "metrics",
            numbers(mp_pose_metric_names, e->pose.value, MP_POSE_METRICS));
        break;
    }
    return out;
}

/* ---- pair by pair ---- */

static void print_name(const char *name, FILE *out)
{
    if (strpbrk(name, ",\"\r\n") == NULL) {
        fputs(name, out);
        return;
    }
    fputc('"', out);
    for (; *name != '\0'; name++) {
        if (*name == '"')
            fputc('"', out);
        fputc(*name, out);
    }
    fputc('"', out);
}

static void print_cell(FILE *out, double v)
{
    fprintf(out, isfinite(v) ? ",%.12g" : ",", v);
}

void mp_evaluation_csv(const struct mp_evaluation *e, FILE *out)
{
    fputs("picture", out);
    if (e->task == MP_TASK_SEG)
        fputs(",aAcc,mIoU,mAcc", out);
    for (int k = 0; k < MP_DEPTH_METRICS && e->task == MP_TASK_DEPTH; k++)
        fprintf(out, ",%s", mp_depth_metric_names[k]);
    fputs(e->task == MP_TASK_DEPTH ? ",pixels\n" : "\n", out);
    for (size_t i = 0; i < e->pairs->n; i++) {
        print_name(e->pairs->at[i].name, out);
        if (e->task == MP_TASK_DEPTH) {
            for (int k = 0; k < MP_DEPTH_METRICS; k++)
                print_cell(out, e->depth[i].value[k]);
            fprintf(out, ",%zu", e->depth[i].pixels);
        } else {
            print_cell(out, e->seg[i].a_acc);
            print_cell(out, e->seg[i].m_iou);
            print_cell(out, e->seg[i].m_acc);
        }
        fputc('\n', out);
    }
}
