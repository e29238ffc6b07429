/* SPDX-License-Identifier: MIT */
/*
 * mpipe/backend.h - what runs a program on a device.
 *
 * A backend is one constant struct mp_backend. The CPU's is part of libmpipe;
 * others are modules that export MP_BACKEND(NAME) = {...} and are found like
 * heads. abi and size are checked before any of
 * a module's code runs. Modules stay loaded for the life of the process.
 *
 * Direction: libmpipe folds, fuses and plans memory, and hands over a program:
 * steps in order, every value an offset into one arena, a constant, or memory
 * whose address is given to each run. The backend compiles it once and runs it
 * many times.
 *
 * Order: put, copy, run and get of a device may return before they have
 * happened, but each sees all that was called before it, and what they are
 * given of the host's memory is not read after they have returned.
 *
 * Threads: calls on one device come from one thread at a time.
 */
#ifndef MPIPE_BACKEND_H
#define MPIPE_BACKEND_H

#include "mpipe/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MP_BACKEND_ABI 10

/* The name under which libltdl finds it. */
#define MP_BACKEND(backend)                                                    \
    extern const struct mp_backend backend##_LTX_mp_backend;                   \
    const struct mp_backend backend##_LTX_mp_backend

/* All operations: name in dumps. Steps of a program hold no leaves and no
 * RESHAPE (values share memory). Any input of any op may be a constant: most
 * are so in programs that run once, for folding. */
#define MP_OPS(X)                                                              \
    X(INPUT, "input")                                                          \
    X(WEIGHT, "weight")                                                        \
    X(CONST, "const")                                                          \
    X(CONV2D, "conv2d")         /* x, w, bias?, residual? */                   \
    X(DECONV2D, "deconv2d")     /* x, w, bias? */                              \
    X(ATTENTION, "attention")   /* q, k, v */                                  \
    X(GROUP_NORM, "group_norm") /* x, weight, bias */                          \
    X(LAYER_NORM, "layer_norm") /* x, weight, bias */                          \
    X(BATCH_NORM, "batch_norm") /* x, weight, bias, mean, var */               \
    X(ACT, "act")                                                              \
    X(GEGLU, "geglu")                                                          \
    X(ADD, "add")                                                              \
    X(MUL, "mul")                                                              \
    X(CONCAT, "concat")                                                        \
    X(SLICE, "slice")                                                          \
    X(RESHAPE, "reshape")                                                      \
    X(RESIZE, "resize")                                                        \
    X(POOL, "pool")                                                            \
    X(PAD, "pad")                                                              \
    X(FLIP, "flip")                                                            \
    X(SOFTMAX, "softmax")                                                      \
    X(ARGMAX, "argmax")                                                        \
    X(HEATMAP_PEAKS, "heatmap_peaks") /* f32, whatever the policy */           \
    X(FLOAT, "float")

enum mp_op {
#define X(id, name) MP_OP_##id,
    MP_OPS(X)
#undef X
        MP_OP_COUNT
};

#define MP_MAX_IN 16 /* inputs of a step; concat needs most */

/* What an op needs beside its inputs. Fields that an op does not name are 0. */
struct mp_attr {
    struct mp_conv conv; /* CONV2D; DECONV2D: stride, top = pad, bottom = out
                            padding */
    int32_t act;     /* enum mp_act. ACT: which. CONV2D, DECONV2D, GROUP_NORM,
                        LAYER_NORM, BATCH_NORM, ADD: applied to the result,
                        after the residual */
    int32_t groups;  /* GROUP_NORM */
    int32_t heads;   /* ATTENTION */
    int32_t axis;    /* CONCAT, SLICE, FLIP: 0.. */
    int32_t nearest; /* RESIZE: nearest instead of bilinear */
    int64_t up_h, up_w; /* CONV2D: x is resized to this first, as by RESIZE; 0:
                           it is not. Backends that commute are asked this */
    int64_t start;      /* SLICE: first index. PAD: top */
    int64_t left;       /* PAD */
    float eps;          /* norms */
    float scale;        /* ATTENTION: of q k^T */
};

enum mp_place { MP_ARENA, MP_CONSTANT, MP_OUTSIDE };

struct mp_value {
    enum mp_place place;
    enum mp_dtype dtype; /* of the arena's bytes; constants are given as F32 */
    int ndim;
    int64_t dim[MP_RANK];
    size_t count;     /* elements */
    size_t offset;    /* ARENA: bytes from its start, a multiple of 64;
                         OUTSIDE: which of the addresses that run() is given,
                         aligned as its elements are */
    uint64_t key[2];  /* CONSTANT: equal keys, equal contents: packed forms
                         may be shared between programs of one device */
    const char *name; /* of an input, output or weight; for messages */
};

#define MP_NO_VALUE UINT32_MAX

struct mp_step {
    enum mp_op op;
    struct mp_attr attr;
    int nin;
    uint32_t in[MP_MAX_IN]; /* values; an optional input not given is
                               MP_NO_VALUE */
    uint32_t out;
    /* CONV2D with a residual: its value may lie in the same place as out (it
     * dies here), so that the sum needs no copy. Any ADD, ACT, MUL, norm may
     * likewise work in place. No other inputs overlap out. */
};

struct mp_mapping; /* of a checkpoint into memory */

/* A constant where a mapped file has it: rows of its first dimension. */
struct mp_held_weight {
    struct mp_mapping *mapping;
    const float *data;
    size_t row;         /* floats from one row to the next */
    const float *scale; /* of each row, which it is to be multiplied by; valid
                           during compile() only. NULL: none, and the rows
                           follow each other */
};

struct mp_program {
    size_t nvalue, nstep;
    const struct mp_value *value;
    const struct mp_step *step;
    size_t arena;    /* bytes */
    size_t noutside; /* addresses that run() takes */
    int once; /* runs once (constant folding): do not keep packed weights */
    /* Row-major f32 contents of a constant, valid until release(). compile()
     * only. Mapped files are read here: first use costs time. */
    int (*constant)(const struct mp_program *p, uint32_t value,
                    const float **data, struct mp_error *err);
    void (*release)(const struct mp_program *p, uint32_t value);
    /* Likewise, without a copy, where a mapped file has it: 1, and it is valid
     * until drop(), which may come later than the program's end and from any
     * thread. 0: no file has it, ask constant(). Or a negative status. */
    int (*hold)(const struct mp_program *p, uint32_t value,
                struct mp_held_weight *out, struct mp_error *err);
    void (*drop)(struct mp_mapping *held, const void *data, size_t bytes);
    void *user;
};

typedef uint64_t mp_addr; /* memory of a device; 0 is none */
struct mp_device;
struct mp_plan;

struct mp_device_info {
    char name[128];  /* "AMD EPYC 9B14, 2 threads, avx512_bf16" */
    uint64_t memory; /* bytes; 0: unknown */
};

struct mp_device_memory { /* bytes; total 0: not known */
    uint64_t total, free;
    uint64_t ours; /* what this device holds for us now */
};

/* A 3x3 convolution (stride 1, padding 1, known weights) to k channels of a map
 * h x w x c that is enlarged first, by whole factors. */
struct mp_enlarged {
    int64_t h, w, c, k, up_h, up_w;
};

struct mp_device_conf {
    int32_t index;    /* which device of the backend, from 0 */
    int32_t threads;  /* CPU: 0 is all the process may use */
    int32_t tf32;     /* GPU: products of f32 may be rounded to TF32 first */
    int32_t autotune; /* GPU: choose among a library's ways by measuring */
    /* Asked between the steps of run(), on its thread: nonzero ends it with
     * MP_EINTR, whatever it has computed. NULL: never. A device that is given
     * all steps at once does not ask. */
    int (*is_stopped)(void *user);
    void *user; /* its argument */
};

struct mp_backend {
    uint32_t abi;  /* MP_BACKEND_ABI */
    uint32_t size; /* sizeof(struct mp_backend) as compiled */
    const char *name, *summary;
    /* Sums of a convolution and a residual stay f32 where else values are kept
     * in 16 bits, if those of a picture take no more than so many bytes: where
     * that costs no time it is worth it. */
    size_t wide_sums;
    /* Nonzero: an mp_addr is a pointer of this process, and inputs and outputs
     * of a program are MP_OUTSIDE, so that they are used where they are. Zero:
     * they lie in the arena, and are copied. */
    int host;
    /* Whether this is to come as one step where values are kept as t: the
     * convolution may then be done before, on fewer pixels. Part of one of
     * maps that are joined then has the sum so far as its residual. It cannot
     * depend on the batch, which is not to change results. NULL: never. */
    int (*commutes)(const struct mp_enlarged *e, enum mp_dtype t);
    /* Number of devices (>= 1), or a negative status and why it cannot run
     * here. Creates no context. */
    int (*probe)(struct mp_error *err);
    int (*info)(int index, struct mp_device_info *out, struct mp_error *err);
    int (*open)(struct mp_device **out, const struct mp_device_conf *conf,
                struct mp_error *err);
    void (*close)(struct mp_device *d); /* NULL is fine */
    /* How "auto" keeps activations on this device: what is fastest and changes
     * the results little (labels of 1 % of the pixels at most); and whether it
     * can keep them as t at all (0 or MP_ENOTSUP with the reason). TF32 is
     * MP_F32 on a device opened with tf32. */
    enum mp_dtype (*best)(const struct mp_device *d);
    int (*supports)(const struct mp_device *d, enum mp_dtype t,
                    struct mp_error *err);
    int (*memory)(struct mp_device *d, struct mp_device_memory *out,
                  struct mp_error *err);
    int (*alloc)(struct mp_device *d, size_t bytes, mp_addr *out,
                 struct mp_error *err);
    void (*free)(struct mp_device *d, mp_addr a);
    int (*put)(struct mp_device *d, mp_addr dst, const void *src, size_t n,
               struct mp_error *err);
    /* Within the device; the two do not overlap. */
    int (*copy)(struct mp_device *d, mp_addr dst, mp_addr src, size_t n,
                struct mp_error *err);
    /* dst has it when wait() of this ticket, or of a later one, has returned,
     * and must be there until then, whether or not that fails. Ticket 0: it
     * has it already. */
    int (*get)(struct mp_device *d, void *dst, mp_addr src, size_t n,
               uint64_t *ticket, struct mp_error *err);
    /* UINT64_MAX: until all has happened. What has failed on the device since
     * the last wait shows here. */
    int (*wait)(struct mp_device *d, uint64_t ticket, struct mp_error *err);
    /* An op, shape or type it cannot do is refused here, by name, never in
     * run(). The program is borrowed during the call only. */
    int (*compile)(struct mp_device *d, const struct mp_program *p,
                   struct mp_plan **out, struct mp_error *err);
    /* outside: noutside addresses. seconds: NULL, or room for the time of each
     * step of the program. */
    int (*run)(struct mp_plan *plan, mp_addr arena, const mp_addr *outside,
               double *seconds, struct mp_error *err);
    /* Kernel chosen for a step, for dumps: "brgconv_fwd:avx512_core". */
    const char *(*kernel)(const struct mp_plan *plan, size_t step);
    void (*plan_free)(struct mp_plan *plan); /* NULL is fine */
};

#ifdef __cplusplus
}
#endif
#endif
