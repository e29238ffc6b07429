/* SPDX-License-Identifier: MIT */
/* cuda.h - inside the CUDA backend: the device, packed constants, plans, and
 * how a step becomes launches. */
#ifndef CUDA_CUDA_H
#define CUDA_CUDA_H

#include "cuda/gpu.h"

/* How a constant is laid out. */
enum form {
    PLAIN,
    TAPS,   /* K,C,R,S as K,R,S,C */
    TAPS_8, /* and zeros for C up to the next multiple of 8 */
    TAPS_K, /* K,C,R,S as R,S,K,C: for each tap a linear layer */
    ROWS_8, /* as they are, each row of K with zeros up to a multiple of 8 */
    PHASES  /* C,K,R,S of a transposed convolution: for each of stride x stride
               kinds of result pixels the taps that it sees, as K,R',S',C */
};

/* A constant on the device, in the form that some kernel wants. Kept while a
 * plan uses it; plans of one device share it. */
struct packed {
    uint64_t key[2];
    enum form form;
    enum mp_dtype type;
    int32_t stride, pad; /* PHASES */
    mp_addr at;
    size_t users;
    struct packed *next;
};

struct mp_device {
    struct gpu *gpu;
    int tf32;
    mp_addr upload; /* f32, on the way to be packed */
    size_t upload_bytes;
    struct packed *packed[1024]; /* by key */
};

/* A step made ready. */
struct cuda_step {
    const char *name;                         /* of the kernel */
    const struct packed *constant[MP_MAX_IN]; /* per input, or NULL */
    size_t scratch;                           /* bytes */
    struct lib_plan *lib;                     /* or NULL: a kernel of ours */
    struct lib_plan *lib2; /* attention: the second product */
    enum gpu_kernel kernel;
    enum mp_dtype type;      /* of the products */
    int convert_x;           /* to that type, first; */
    int widen;               /* and to 8 channels, or a multiple */
    size_t x_at, w_at, b_at; /* in scratch: x so converted, weights and bias
                                that are no constants */
    size_t work;             /* in scratch: the library's */
    int unfold;              /* x, at x_at, and then it is a linear layer */
    int64_t pictures; /* of an enlarged map, or unfolded: done at a time; */
    size_t taps_at;   /* in scratch: their products with each tap */
    int alike, calls; /* linear layers that this one does, and how often
                         the library is called for them */
    int done;         /* with a step before */
};

struct mp_plan {
    struct mp_device *device;
    size_t nvalue, nstep;
    struct mp_value *value;
    struct mp_step *step;
    struct cuda_step *cuda;
    struct packed **use; /* what this plan keeps */
    size_t nuse;
    size_t scratch_bytes;
    mp_addr scratch;
    int once;
    size_t runs;
    struct gpu_graph *graph; /* of all steps, for this arena: */
    mp_addr graph_arena;
    int no_graph; /* it could not be recorded */
};

/* One step while it is compiled or run. */
struct call {
    struct mp_plan *plan;
    const struct mp_step *s;
    struct cuda_step *c;
    mp_addr arena;
    struct mp_error *err;
};

/* Value of input i; whether it is given. */
const struct mp_value *cuda_in_value(const struct call *k, int i);
int cuda_has(const struct call *k, int i);
struct g_in cuda_in(const struct call *k, int i);
struct g_out cuda_out(const struct call *k);

/* One element, or eight, per thread; to all of n. */
int cuda_each(const struct call *k, enum gpu_kernel one, enum gpu_kernel eight,
              int by_eight, size_t n, const void *arg);
int cuda_launch(const struct call *k, enum gpu_kernel kernel, size_t x,
                size_t y, size_t z, uint32_t threads, size_t shared,
                const void *arg);
/* Convert n elements. */
int cuda_convert(const struct call *k, struct g_out y, struct g_in x, size_t n,
                 int act);

/* The constant of input i in this form: the device's, or packed now. */
int cuda_pack(const struct call *k, const struct mp_program *p, int i,
              enum form form, enum mp_dtype type);
/* In the place of input i's: n constants of its shape, one after the other. */
int cuda_pack_all(const struct call *k, const struct mp_program *p, int i,
                  const uint32_t *value, int n, enum form form,
                  enum mp_dtype type);
/* The next multiple of 8. */
int64_t cuda_up_to_8(int64_t n);
/* Rows of n elements with zeros up to a multiple of 8. */
int cuda_widen(const struct call *k, struct g_out y, struct g_in x, size_t rows,
               int64_t n);
/* Lay weights w out in this form: what cuda_pack does to constants. */
int cuda_form(const struct call *k, struct g_out y, struct g_in x,
              const struct mp_value *w, enum form form, int32_t stride,
              int32_t pad);

/* The taps that a transposed convolution's result pixels see along one axis:
 * result stride * i + phase is a plain convolution of `taps` taps, the first
 * of which looks at i - before; tap t is the kernel's first - t * stride. */
struct phase {
    int64_t taps, before, first;
};
struct phase cuda_phase(int64_t kernel, int64_t stride, int64_t pad,
                        int64_t phase);

/* CONV2D and DECONV2D. */
int cuda_conv_compile(const struct call *k, const struct mp_program *p);
int cuda_conv_run(const struct call *k);
int cuda_commutes(const struct mp_enlarged *e, enum mp_dtype t);

int cuda_attention_compile(const struct call *k, const struct mp_program *p);
int cuda_attention_run(const struct call *k);

/* All other steps. */
int cuda_own_compile(const struct call *k, const struct mp_program *p);
int cuda_own_run(const struct call *k);

/* The backend's functions, for the module's table and that of the tests. */
int cuda_open(struct mp_device **out, const struct mp_device_conf *conf,
              struct mp_error *err);
void cuda_close(struct mp_device *d);
enum mp_dtype cuda_best(const struct mp_device *d);
int cuda_supports(const struct mp_device *d, enum mp_dtype t,
                  struct mp_error *err);
int cuda_memory(struct mp_device *d, struct mp_device_memory *out,
                struct mp_error *err);
int cuda_alloc(struct mp_device *d, size_t bytes, mp_addr *out,
               struct mp_error *err);
void cuda_free(struct mp_device *d, mp_addr a);
int cuda_put(struct mp_device *d, mp_addr dst, const void *src, size_t n,
             struct mp_error *err);
int cuda_copy(struct mp_device *d, mp_addr dst, mp_addr src, size_t n,
              struct mp_error *err);
int cuda_get(struct mp_device *d, void *dst, mp_addr src, size_t n,
             uint64_t *ticket, struct mp_error *err);
int cuda_wait(struct mp_device *d, uint64_t ticket, struct mp_error *err);
int cuda_compile(struct mp_device *d, const struct mp_program *p,
                 struct mp_plan **out, struct mp_error *err);
int cuda_run(struct mp_plan *plan, mp_addr arena, const mp_addr *outside,
             double *seconds, struct mp_error *err);
const char *cuda_kernel_name(const struct mp_plan *plan, size_t step);
void cuda_plan_free(struct mp_plan *plan);

/* takes: which convolutions of enlarged maps come as one step. */
#define CUDA_BACKEND(module, text, takes)                                      \
    MP_BACKEND(module) = {                                                     \
        .abi = MP_BACKEND_ABI,                                                 \
        .size = sizeof(struct mp_backend),                                     \
        .name = #module,                                                       \
        .summary = text,                                                       \
        .commutes = takes,                                                     \
        .probe = gpu_count,                                                    \
        .info = gpu_info,                                                      \
        .open = cuda_open,                                                     \
        .close = cuda_close,                                                   \
        .best = cuda_best,                                                     \
        .supports = cuda_supports,                                             \
        .memory = cuda_memory,                                                 \
        .alloc = cuda_alloc,                                                   \
        .free = cuda_free,                                                     \
        .put = cuda_put,                                                       \
        .copy = cuda_copy,                                                     \
        .get = cuda_get,                                                       \
        .wait = cuda_wait,                                                     \
        .compile = cuda_compile,                                               \
        .run = cuda_run,                                                       \
        .kernel = cuda_kernel_name,                                            \
        .plan_free = cuda_plan_free,                                           \
    }

#endif
