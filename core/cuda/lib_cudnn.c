/* SPDX-License-Identifier: MIT */
/*
 * lib_cudnn.c - convolutions by cuDNN's graphs: convolution, then residual,
 * then bias, then relu as one kernel. That order, and a bias of the result's
 * type, because with them cuDNN 9 has kernels compiled beforehand; any other
 * order or an f32 bias it compiles at run time, 0.3 to 0.8 s for each shape.
 * And attention, as an operation that cuDNN has from 9.13 on; it is compiled
 * at run time.
 *
 * In f32, unless TF32 is allowed, only ways that round nothing but sums are
 * taken: no tensor cores, no Winograd or Fourier transforms.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda/vendor.h"

/* Tensors by number, and descriptors kept for the plan's life. */
enum uid {
    X = 1,
    W,
    RESIDUAL,
    BIAS,
    Y,
    SCALE,
    AFTER_CONV,
    AFTER_RESIDUAL,
    AFTER_BIAS
};

struct dnn_plan {
    struct lib_plan base;
    cudnnBackendDescriptor_t *keep;
    size_t nkeep;
    cudnnBackendDescriptor_t graph, plan;
    int bias, residual;
    float scale; /* of attention */
};

static int status(const struct gpu *g, cudnnStatus_t st, const char *what,
                  struct mp_error *err)
{
    char more[160] = "";

    if (st == CUDNN_STATUS_SUCCESS)
        return 0;
    g->vendor->dnn.cudnnGetLastErrorString(more, sizeof more);
    more[strcspn(more, "\n")] = '\0';
    return mp_fail(err, st >= CUDNN_STATUS_NOT_SUPPORTED ? MP_ENOTSUP : MP_EIO,
                   "cuDNN: %s: %s %s", what,
                   g->vendor->dnn.cudnnGetErrorString(st), more);
}

/* ---- descriptors ---- */

static int make(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                cudnnBackendDescriptorType_t type, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    cudnnBackendDescriptor_t *more = p->keep;
    int rc;

    if (p->nkeep % 32 == 0)
        more = realloc(p->keep, (p->nkeep + 32) * sizeof *more);
    if (!more)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    p->keep = more;
    rc = status(g, g->vendor->dnn.cudnnBackendCreateDescriptor(type, out),
                "creating", err);
    if (!rc)
        p->keep[p->nkeep++] = *out;
    return rc;
}

/* A row of what a descriptor is told. */
struct attribute {
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t n;
    const void *value;
};

static int set(struct dnn_plan *p, cudnnBackendDescriptor_t d,
               struct attribute a, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;

    return status(g,
                  g->vendor->dnn.cudnnBackendSetAttribute(d, a.name, a.type,
                                                          a.n, (void *)a.value),
                  "setting an attribute", err);
}

static int link_to(struct dnn_plan *p, cudnnBackendDescriptor_t d,
                   cudnnBackendAttributeName_t name,
                   cudnnBackendDescriptor_t other, struct mp_error *err)
{
    const struct attribute a = {name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other};

    return set(p, d, a, err);
}

static int finish(struct dnn_plan *p, cudnnBackendDescriptor_t d,
                  const char *what, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;

    return status(g, g->vendor->dnn.cudnnBackendFinalize(d), what, err);
}

/* Make, tell, finish. */
static int build(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                 cudnnBackendDescriptorType_t type, const struct attribute *a,
                 size_t n, const char *what, struct mp_error *err)
{
    int rc = make(out, p, type, err);

    for (size_t i = 0; i < n && !rc; i++)
        rc = set(p, *out, a[i], err);
    return rc ? rc : finish(p, *out, what, err);
}
#define COUNT(a) (sizeof(a) / sizeof *(a))

static cudnnDataType_t type_of(enum mp_dtype t)
{
    return t == MP_BF16  ? CUDNN_DATA_BFLOAT16
           : t == MP_F16 ? CUDNN_DATA_HALF
                         : CUDNN_DATA_FLOAT;
}

/* Values between operations are virtual: never in memory. The scale is in the
 * host's. */
static int tensor_of(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                     int64_t uid, enum mp_dtype t, const int64_t dim[4],
                     const int64_t step[4], struct mp_error *err)
{
    const int64_t align = 16; /* of arena and constants alike */
    const cudnnDataType_t type = type_of(t);
    const bool is_virtual = uid > SCALE, is_value = uid == SCALE;
    const struct attribute a[] = {
        {CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type},
        {CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim},
        {CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, step},
        {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid},
        {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align},
        {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual},
        {CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &is_value},
    };

    return build(out, p, CUDNN_BACKEND_TENSOR_DESCRIPTOR, a, COUNT(a),
                 "a tensor", err);
}

/* cuDNN names dimensions N,C,H,W whatever the strides say; ours are those of
 * N,H,W,C. */
static int tensor(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                  int64_t uid, enum mp_dtype t, const int64_t dim[4],
                  struct mp_error *err)
{
    const int64_t step[4] = {dim[1] * dim[2] * dim[3], 1, dim[3] * dim[1],
                             dim[1]};

    return tensor_of(out, p, uid, t, dim, step, err);
}

/* ---- operations ---- */

static int convolution(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                       const struct lib_conv *c, cudnnBackendDescriptor_t x,
                       cudnnBackendDescriptor_t w, cudnnBackendDescriptor_t y,
                       struct mp_error *err)
{
    const int64_t stride[2] = {c->conv.stride, c->conv.stride};
    const int64_t before[2] = {c->conv.top, c->conv.left};
    const int64_t after[2] = {c->conv.bottom, c->conv.right};
    const int64_t dilation[2] = {1, 1}, axes = 2;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    const float one = 1, zero = 0;
    cudnnBackendDescriptor_t d = NULL;
    const struct attribute how[] = {
        {CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &axes},
        {CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32},
        {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1,
         &mode},
        {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before},
        {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after},
        {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride},
        {CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation},
    };
    const struct attribute what[] = {
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
         CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &d},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
         CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &x},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
         CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &w},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
         CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &y},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1,
         &one},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1,
         &zero},
    };
    int rc = build(&d, p, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, how, COUNT(how),
                   "a convolution", err);

    return rc ? rc
              : build(out, p,
                      CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                      what, COUNT(what), "a convolution", err);
}

/* y = x + b, or relu(x) where b is NULL. */
static int pointwise(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                     cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t b,
                     cudnnBackendDescriptor_t y, struct mp_error *err)
{
    const cudnnPointwiseMode_t mode =
        b ? CUDNN_POINTWISE_ADD : CUDNN_POINTWISE_RELU_FWD;
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t d = NULL;
    const struct attribute how[] = {
        {CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode},
        {CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &f32},
    };
    const struct attribute what[] = {
        {CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
         CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &d},
        {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &x},
        {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &y},
        {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &b}, /* only of a sum */
    };
    int rc = build(&d, p, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, how, COUNT(how),
                   "a sum", err);

    return rc ? rc
              : build(out, p, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
                      what, COUNT(what) - !b, "a sum", err);
}

/* The operations, each of which but the last gives a virtual tensor. */
static int operations(cudnnBackendDescriptor_t *op, int *nop,
                      struct dnn_plan *p, const struct lib_conv *c,
                      struct mp_error *err)
{
    const int64_t xd[4] = {c->n, c->c, c->h, c->w};
    const int64_t wd[4] = {c->k, c->c, c->r, c->s};
    const int64_t yd[4] = {c->n, c->k, c->oh, c->ow}, bd[4] = {1, c->k, 1, 1};
    int relu = c->act == MP_RELU, left = c->residual + c->bias + relu;
    cudnnBackendDescriptor_t x = NULL, w = NULL, y = NULL, b, next;
    int rc = tensor(&x, p, X, c->type, xd, err);

    if (!rc)
        rc = tensor(&w, p, W, c->type, wd, err);
    if (!rc)
        rc = tensor(&y, p, left ? AFTER_CONV : Y, left ? MP_F32 : c->y_type, yd,
                    err);
    if (!rc)
        rc = convolution(&op[(*nop)++], p, c, x, w, y, err);
    for (int kind = 0; kind < 3 && !rc; kind++) {
        static const int64_t from[3] = {RESIDUAL, BIAS, 0};
        static const int64_t to[3] = {AFTER_RESIDUAL, AFTER_BIAS, Y};
        const int there[3] = {c->residual, c->bias, relu};

        if (!there[kind])
            continue;
        left--;
        b = NULL;
        if (from[kind])
            rc = tensor(&b, p, from[kind], c->y_type, kind ? bd : yd, err);
        if (!rc)
            rc = tensor(&next, p, left ? to[kind] : Y,
                        left ? MP_F32 : c->y_type, yd, err);
        if (!rc)
            rc = pointwise(&op[(*nop)++], p, y, b, next, err);
        y = next;
    }
    return rc;
}

/* n,count,c as cuDNN sees them: n, heads, count, c / heads. */
static int rows(cudnnBackendDescriptor_t *out, struct dnn_plan *p, int64_t uid,
                const struct lib_conv *c, int64_t count, struct mp_error *err)
{
    const int64_t dim[4] = {c->n, c->heads, count, c->c / c->heads};
    const int64_t step[4] = {count * c->c, dim[3], c->c, 1};

    return tensor_of(out, p, uid, c->type, dim, step, err);
}

static int attention(cudnnBackendDescriptor_t *op, int *nop, struct dnn_plan *p,
                     const struct lib_conv *c, struct mp_error *err)
{
    const int64_t one[4] = {1, 1, 1, 1};
    cudnnBackendDescriptor_t q = NULL, k = NULL, v = NULL, y = NULL, s = NULL;
    const struct attribute what[] = {
        {CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &q},
        {CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &k},
        {CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &v},
        {CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
         &y},
        {CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
         1, &s},
    };
    int rc = rows(&q, p, X, c, c->h, err);

    if (!rc)
        rc = rows(&k, p, W, c, c->w, err);
    if (!rc)
        rc = rows(&v, p, RESIDUAL, c, c->w, err);
    if (!rc)
        rc = rows(&y, p, Y, c, c->h, err);
    if (!rc)
        rc = tensor_of(&s, p, SCALE, MP_F32, one, one, err);
    return rc ? rc
              : build(&op[(*nop)++], p,
                      CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR, what,
                      COUNT(what), "attention", err);
}

/* ---- engines ---- */

/* Say which device this is for, if it is none that the handle knows. */
static int describe(struct dnn_plan *p, cudnnBackendDescriptor_t d,
                    cudnnBackendAttributeName_t name, struct mp_error *err)
{
    cudnnBackendDescriptor_t device = p->base.gpu->vendor->described;

    return device ? link_to(p, d, name, device, err) : 0;
}

/* Does the engine of this configuration have the note, by its number? */
static int has_note(const struct gpu *g, cudnnBackendDescriptor_t engine,
                    cudnnBackendAttributeName_t name,
                    cudnnBackendAttributeType_t type, int note)
{
    int notes[16];
    int64_t n = 0;

    if (g->vendor->dnn.cudnnBackendGetAttribute(engine, name, type, 16, &n,
                                                notes) != CUDNN_STATUS_SUCCESS)
        return 1; /* not known: not taken */
    for (int64_t i = 0; i < n && i < 16; i++)
        if (notes[i] == note)
            return 1;
    return 0;
}

static int numerical(const struct gpu *g, cudnnBackendDescriptor_t engine,
                     cudnnBackendNumericalNote_t note)
{
    return has_note(g, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                    CUDNN_TYPE_NUMERICAL_NOTE, (int)note);
}

static int is_fine(const struct gpu *g, cudnnBackendDescriptor_t engine,
                   const struct lib_conv *c, int compiled)
{
    if (numerical(g, engine, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) ||
        has_note(g, engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
                 CUDNN_TYPE_BEHAVIOR_NOTE,
                 CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) != compiled)
        return 0;
    if (c->type != MP_F32 || c->tf32)
        return 1;
    return !numerical(g, engine, CUDNN_NUMERICAL_NOTE_TENSOR_CORE) &&
           !numerical(g, engine, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS) &&
           !numerical(g, engine, CUDNN_NUMERICAL_NOTE_WINOGRAD) &&
           !numerical(g, engine, CUDNN_NUMERICAL_NOTE_FFT);
}

/* The engine of a configuration. */
static int engine_of(cudnnBackendDescriptor_t *engine, struct dnn_plan *p,
                     cudnnBackendDescriptor_t config, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    int64_t n = 0;
    int rc = make(engine, p, CUDNN_BACKEND_ENGINE_DESCRIPTOR, err);

    return rc ? rc
              : status(g,
                       g->vendor->dnn.cudnnBackendGetAttribute(
                           config, CUDNN_ATTR_ENGINECFG_ENGINE,
                           CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, engine),
                       "an engine", err);
}

/* Make the plan of this configuration; 0 if it will do. compiled: only those
 * that are compiled now, or only the others. */
static int try_engine(struct dnn_plan *p, const struct lib_conv *c,
                      cudnnBackendDescriptor_t config, int compiled,
                      struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    cudnnBackendDescriptor_t engine = NULL, plan = NULL;
    int64_t n = 0, work = 0;
    int rc = engine_of(&engine, p, config, err);

    if (!rc && !is_fine(g, engine, c, compiled))
        rc = mp_fail(err, MP_ENOTSUP, "cuDNN: an engine that will not do");
    if (!rc)
        rc = make(&plan, p, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, err);
    if (!rc)
        rc = link_to(p, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config,
                     err);
    if (!rc)
        rc = describe(p, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, err);
    if (!rc)
        rc = finish(p, plan, "a plan", err);
    if (!rc)
        rc = status(g,
                    g->vendor->dnn.cudnnBackendGetAttribute(
                        plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                        CUDNN_TYPE_INT64, 1, &n, &work),
                    "a plan", err);
    if (!rc && (work < 0 || (uint64_t)work > LIB_WORK))
        rc = mp_fail(err, MP_ENOTSUP, "cuDNN: an engine needs %lld bytes",
                     (long long)work);
    if (!rc) {
        p->plan = plan;
        p->base.work = (size_t)work;
    }
    return rc;
}

/* To compile one is worth while for TF32 (some GPUs have no others) and for
 * attention: convolutions of 16 bits have enough, and exact f32 is for checks,
 * not for speed. */
static int may_compile(const struct lib_conv *c)
{
    return c->heads || (c->type == MP_F32 && c->tf32);
}

/* Configurations, in the order that cuDNN expects to be the fastest. */
#define PROPOSED 16
static int propose(cudnnBackendDescriptor_t config[PROPOSED], int64_t *n,
                   struct dnn_plan *p, cudnnBackendHeurMode_t mode,
                   struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    cudnnBackendDescriptor_t heur = NULL;
    int rc = make(&heur, p, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, err);

    *n = 0;
    if (!rc)
        rc = link_to(p, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, p->graph,
                     err);
    if (!rc)
        rc = set(p, heur,
                 (struct attribute){CUDNN_ATTR_ENGINEHEUR_MODE,
                                    CUDNN_TYPE_HEUR_MODE, 1, &mode},
                 err);
    if (!rc)
        rc = describe(p, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, err);
    if (!rc)
        rc = finish(p, heur, "choosing an engine", err);
    for (int i = 0; i < PROPOSED && !rc; i++)
        rc = make(&config[i], p, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, err);
    if (!rc)
        rc = status(g,
                    g->vendor->dnn.cudnnBackendGetAttribute(
                        heur, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                        CUDNN_TYPE_BACKEND_DESCRIPTOR, PROPOSED, n, config),
                    "choosing an engine", err);
    if (*n > PROPOSED)
        *n = PROPOSED;
    return rc;
}

/* The first that will do. */
static int choose(struct dnn_plan *p, const struct lib_conv *c,
                  struct mp_error *err)
{
    cudnnBackendDescriptor_t config[PROPOSED];
    int64_t n;
    int rc = propose(config, &n, p, CUDNN_HEUR_MODE_A, err);

    if (rc)
        return rc;
    for (int compiled = 0; compiled <= may_compile(c); compiled++)
        for (int64_t i = 0; i < n; i++)
            if (!try_engine(p, c, config[i], compiled, NULL))
                return 0;
    return mp_fail(err, MP_ENOTSUP, "cuDNN: none of %d engines will do",
                   (int)n);
}

/* ---- choices: "4,2=128,13=32", the engine's number and its knobs ---- */

#define KNOBS 24

static int get_int(const struct gpu *g, cudnnBackendDescriptor_t d,
                   cudnnBackendAttributeName_t name, int64_t *out,
                   struct mp_error *err)
{
    int64_t n = 0;

    return status(g,
                  g->vendor->dnn.cudnnBackendGetAttribute(
                      d, name, CUDNN_TYPE_INT64, 1, &n, out),
                  "asking", err);
}

/* Add " KNOB=VALUE" for each. */
static int write_knobs(char choice[CHOICE_BYTES], struct dnn_plan *p,
                       cudnnBackendDescriptor_t config, struct mp_error *err)
{
    const struct gpu *g = p->base.gpu;
    const struct dnn_calls *dnn = &g->vendor->dnn;
    cudnnBackendDescriptor_t knob[KNOBS];
    size_t at = strlen(choice);
    int64_t n = 0, one = 0, value = 0;
    int rc = 0;

    for (int i = 0; i < KNOBS && !rc; i++)
        rc = make(&knob[i], p, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, err);
    if (!rc)
        rc = status(g,
                    dnn->cudnnBackendGetAttribute(
                        config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                        CUDNN_TYPE_BACKEND_DESCRIPTOR, KNOBS, &n, knob),
                    "knobs", err);
    for (int64_t i = 0; i < n && !rc; i++) {
        cudnnBackendKnobType_t type = CUDNN_KNOB_TYPE_COUNTS;

        if (i == KNOBS)
            return mp_fail(err, MP_ENOTSUP, "cuDNN: an engine of %lld knobs",
                           (long long)n);
        rc = status(g,
                    dnn->cudnnBackendGetAttribute(
                        knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE,
                        CUDNN_TYPE_KNOB_TYPE, 1, &one, &type),
                    "a knob", err);
        if (!rc)
            rc = get_int(g, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, &value,
                         err);
        if (!rc)
            at += (size_t)snprintf(choice + at, CHOICE_BYTES - at, ",%d=%lld",
                                   (int)type, (long long)value);
        if (!rc && at >= CHOICE_BYTES)
            rc = mp_fail(err, MP_ENOTSUP, "cuDNN: an engine of many knobs");
    }
    return rc;
}

static int write_choice(char choice[CHOICE_BYTES], struct dnn_plan *p,
                        cudnnBackendDescriptor_t config, struct mp_error *err)
{
    cudnnBackendDescriptor_t engine;
    int64_t number;
    int rc = engine_of(&engine, p, config, err);

    if (!rc)
        rc = get_int(p->base.gpu, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX,
                     &number, err);
    if (rc)
        return rc;
    snprintf(choice, CHOICE_BYTES, "%lld", (long long)number);
    return write_knobs(choice, p, config, err);
}

static int make_engine(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                       int64_t number, struct mp_error *err)
{
    int rc = make(out, p, CUDNN_BACKEND_ENGINE_DESCRIPTOR, err);

    if (!rc)
        rc = link_to(p, *out, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, p->graph, err);
    if (!rc)
        rc = set(p, *out,
                 (struct attribute){CUDNN_ATTR_ENGINE_GLOBAL_INDEX,
                                    CUDNN_TYPE_INT64, 1, &number},
                 err);
    if (!rc)
        rc = describe(p, *out, CUDNN_ATTR_ENGINE_DEVICEPROP, err);
    return rc ? rc : finish(p, *out, "an engine", err);
}

static int make_knob(cudnnBackendDescriptor_t *out, struct dnn_plan *p,
                     int type, int64_t value, struct mp_error *err)
{
    const cudnnBackendKnobType_t t = (cudnnBackendKnobType_t)type;
    const struct attribute a[] = {
        {CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &t},
        {CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &value},
    };

    return build(out, p, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, a, COUNT(a),
                 "a knob", err);
}

/* The configuration that it was written of. */
static int read_choice(cudnnBackendDescriptor_t *config, struct dnn_plan *p,
                       const char *choice, struct mp_error *err)
{
    cudnnBackendDescriptor_t engine = NULL, knob[KNOBS];
    const char *at = choice;
    long long number, value;
    int used = 0, type, n = 0, rc;

    if (sscanf(at, "%lld%n", &number, &used) != 1)
        return mp_fail(err, MP_EFORMAT, "cuDNN: %s is no engine", choice);
    rc = make_engine(&engine, p, number, err);
    for (at += used; *at && !rc; at += used) {
        used = 0;
        if (n == KNOBS || sscanf(at, ",%d=%lld%n", &type, &value, &used) != 2)
            return mp_fail(err, MP_EFORMAT, "cuDNN: %s is no engine", choice);
        rc = make_knob(&knob[n++], p, type, value, err);
    }
    if (!rc)
        rc = make(config, p, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, err);
    if (!rc)
        rc = link_to(p, *config, CUDNN_ATTR_ENGINECFG_ENGINE, engine, err);
    if (!rc && n)
        rc = set(p, *config,
                 (struct attribute){CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, n, knob},
                 err);
    return rc ? rc : finish(p, *config, "a configuration", err);
}

static int take(struct dnn_plan *p, const struct lib_conv *c,
                const char *choice, struct mp_error *err)
{
    cudnnBackendDescriptor_t config;
    struct mp_error why = {0};
    int rc = read_choice(&config, p, choice, err);

    if (!rc && may_compile(c) && !try_engine(p, c, config, 1, &why))
        return 0;
    return rc ? rc : try_engine(p, c, config, 0, err);
}

/* Is it there already? */
static int is_known(char choice[][CHOICE_BYTES], size_t n, const char *one)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(choice[i], one))
            return 1;
    return 0;
}

/* ---- plans ---- */

static void plan_free(struct lib_plan *base)
{
    struct dnn_plan *p = (struct dnn_plan *)base;

    while (p->nkeep)
        base->gpu->vendor->dnn.cudnnBackendDestroyDescriptor(
            p->keep[--p->nkeep]);
    free(p->keep);
    free(p);
}

static int run(struct lib_plan *base, const struct lib_data *d,
               struct mp_error *err)
{
    struct dnn_plan *p = (struct dnn_plan *)base;
    const struct gpu *g = base->gpu;
    int64_t uid[6] = {X, W, Y};
    void *at[6] = {(void *)(uintptr_t)d->x, (void *)(uintptr_t)d->w,
                   (void *)(uintptr_t)d->y};
    void *work = (void *)(uintptr_t)d->work;
    cudnnBackendDescriptor_t pack = NULL;
    int64_t n = 3;
    int rc;

    if (p->residual) {
        uid[n] = RESIDUAL;
        at[n++] = (void *)(uintptr_t)d->residual;
    }
    if (p->bias) {
        uid[n] = BIAS;
        at[n++] = (void *)(uintptr_t)d->bias;
    }
    if (p->scale != 0) {
        uid[n] = SCALE;
        at[n++] = &p->scale;
    }
    rc = status(g,
                g->vendor->dnn.cudnnBackendCreateDescriptor(
                    CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack),
                "addresses", err);
    if (rc)
        return rc;
    for (int i = 0; i < 3 && !rc; i++) {
        const struct attribute a[3] = {
            {CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uid},
            {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, at},
            {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &work},
        };

        rc = set(p, pack, a[i], err);
    }
    if (!rc)
        rc = finish(p, pack, "addresses", err);
    if (!rc)
        rc = status(g,
                    g->vendor->dnn.cudnnBackendExecute(g->vendor->dnn_handle,
                                                       p->plan, pack),
                    "running", err);
    g->vendor->dnn.cudnnBackendDestroyDescriptor(pack);
    return rc;
}

/* All but its way. */
static int begin(struct dnn_plan **out, struct gpu *g, const struct lib_conv *c,
                 struct mp_error *err)
{
    cudnnBackendDescriptor_t op[4];
    struct dnn_plan *p;
    int nop = 0, rc;

    if (!g->vendor->dnn_handle && !g->vendor->described)
        return mp_fail(err, MP_ENOTSUP, "%s", g->vendor->why_no_dnn.text);
    p = calloc(1, sizeof *p);
    if (!p)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    p->base = (struct lib_plan){.gpu = g,
                                .name = "cuDNN",
                                .act = c->act == MP_RELU ? MP_ACT_NONE : c->act,
                                .run = run,
                                .free = plan_free};
    p->bias = c->bias;
    p->residual = c->residual;
    p->scale = c->scale;
    rc = c->heads ? attention(op, &nop, p, c, err)
                  : operations(op, &nop, p, c, err);
    if (!rc)
        rc = make(&p->graph, p, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, err);
    if (!rc)
        rc = set(p, p->graph,
                 (struct attribute){CUDNN_ATTR_OPERATIONGRAPH_OPS,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, nop, op},
                 err);
    if (!rc && g->vendor->dnn_handle)
        rc = set(p, p->graph,
                 (struct attribute){CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
                                    CUDNN_TYPE_HANDLE, 1,
                                    &g->vendor->dnn_handle},
                 err);
    if (!rc)
        rc = finish(p, p->graph, "a graph", err);
    if (rc)
        plan_free(&p->base);
    else
        *out = p;
    return rc;
}

static int plan_new(struct lib_plan **out, struct gpu *g,
                    const struct lib_conv *c, const char *choice,
                    struct mp_error *err)
{
    struct dnn_plan *p;
    int rc = begin(&p, g, c, err);

    if (rc)
        return rc;
    rc = choice ? take(p, c, choice, err) : choose(p, c, err);
    if (rc) {
        plan_free(&p->base);
        return rc;
    }
    *out = &p->base;
    return 0;
}

/* Those of this mode that will do. */
static int add_choices(char choice[][CHOICE_BYTES], size_t *n, struct gpu *g,
                       const struct lib_conv *c, cudnnBackendHeurMode_t mode,
                       struct mp_error *err)
{
    cudnnBackendDescriptor_t config[PROPOSED];
    struct dnn_plan *p;
    int64_t proposed = 0;
    int rc = begin(&p, g, c, err);

    if (rc)
        return rc;
    rc = propose(config, &proposed, p, mode, err);
    for (int compiled = 0; compiled <= may_compile(c) && !rc; compiled++)
        for (int64_t i = 0; i < proposed && *n < LIB_CHOICES; i++)
            if (!try_engine(p, c, config[i], compiled, NULL) &&
                !write_choice(choice[*n], p, config[i], NULL) &&
                !is_known(choice, *n, choice[*n]))
                ++*n;
    plan_free(&p->base);
    return rc;
}

static int choices(char choice[][CHOICE_BYTES], size_t *n, struct gpu *g,
                   const struct lib_conv *c, struct mp_error *err)
{
    int rc = add_choices(choice, n, g, c, CUDNN_HEUR_MODE_A, err);

    /* they need not be there */
    if (!rc && *n < LIB_CHOICES)
        add_choices(choice, n, g, c, CUDNN_HEUR_MODE_B, NULL);
    if (!rc && *n < LIB_CHOICES)
        add_choices(choice, n, g, c, CUDNN_HEUR_MODE_FALLBACK, NULL);
    if (!rc && !*n)
        rc = mp_fail(err, MP_ENOTSUP, "cuDNN: no engine will do");
    return rc;
}

const struct lib_kind lib_dnn = {plan_new, choices};
