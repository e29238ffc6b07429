/* SPDX-License-Identifier: MIT */
/*
 * cpu.h - inside the CPU backend: the device, packed constants, and how a
 * step becomes something to run.
 */
#ifndef CPU_CPU_H
#define CPU_CPU_H

#include "cpu/dnnl_compat.h"
#include "cpu/kernels.h"
#include "cpu/store.h"

/* How a constant is laid out before it is packed. */
enum form {
    AS_GIVEN,
    SPREAD_WEIGHTS, /* C,K,2,2 as 2,2,K,C: one product for four results */
    SPREAD_BIAS,    /* K repeated four times */
    TAP_WEIGHTS,    /* K,C,R,S as R,S,K,C: a product for each tap */
    BLOCK_WEIGHTS,  /* K,C,R,S as k_conv_pack does */
    WINOGRAD_BF16,  /* K,C,3,3 as k_conv_pack does */
    AS_BF16         /* plain, in that type */
};

/* A constant in the form that some kernel wants. Kept by the device while a
 * plan uses it; plans of one device share it, and its bytes with constants of
 * other keys that turn out equal. */
struct packed {
    uint64_t key[2];
    enum form form;
    /* oneDNN's layout and that of the checkpoint, if has_desc; else plain. */
    dn_own_desc desc, plain;
    int has_desc;
    enum mp_dtype type; /* of plain ones */
    const void *data;   /* in the store, unless they are held */
    size_t bytes, users;
    /* Not packed (yet): f32 in a mapped file, rows of that many numbers, which
     * are to be multiplied by scale (NULL: plain). */
    struct mp_mapping *held; /* else NULL */
    void (*drop)(struct mp_mapping *held, const void *data, size_t bytes);
    struct mp_value value;
    size_t row;
    float *scale;
    size_t late; /* bytes, if it is to be packed later */
    struct packed *next;
};

struct mp_device {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int threads;
    struct mp_device_conf conf;
    size_t allocated;            /* bytes, but for constants */
    int sparing;                 /* by so many, one within another: */
    void *spare;                 /* the largest block that was freed */
    struct packed *packed[1024]; /* by key */
    int used_held;               /* a plan has run with held weights */
    size_t late;                 /* bytes that these will take */
    struct store store;
};

struct cpu_way; /* of computing a convolution: conv.c */

/* A step made ready. */
struct cpu_step {
    const char *name;                         /* of the kernel */
    const struct packed *constant[MP_MAX_IN]; /* per input, or NULL */
    size_t scratch;                           /* bytes */
    size_t scratch_at;                        /* in the arena, or MP_NO_ROOM:
                                                 in the plan's own */
    /* convolutions */
    const struct cpu_way *way; /* NULL: a step of own.c */
    dnnl_primitive_t prim;     /* unless the way is a kernel of ours */
    dnnl_memory_t src, weights, bias, dst, pad;
    int copy_residual;       /* to dst first: the sum is taken there */
    dnnl_primitive_t unpack; /* weights that are no constant */
    dnnl_memory_t plain;
    size_t weights_at; /* in scratch: those weights, or late ones packed */
    int narrow;        /* f32 pixels into a bf16 network: copied first */
    size_t narrow_at;  /* in scratch: the copy */
    int add_after;     /* the residual and the activation come later */
    size_t result_at;  /* in scratch: what is to be finished or added to */
    size_t finish_at;  /* in scratch: what the way's finish works in */
};

struct mp_plan {
    struct mp_device *device;
    int once;  /* runs once, for the constants of another */
    int holds; /* weights where they lie */
    size_t nvalue, nstep;
    struct mp_value *value;
    struct mp_step *step;
    struct cpu_step *cpu;
    void **at; /* per value: where it lies in this run; not of constants */
    struct packed **use; /* what this plan keeps */
    size_t nuse;
    char *arena; /* of this run */
    size_t scratch_bytes;
    void *scratch; /* for steps that find no room in the arena */
};

/* ---- cpu.c ---- */

/* Memory, for large values in large pages; NULL: there is none. */
void *cpu_get_memory(size_t bytes);
/* While a plan is compiled, or what it holds is packed, a block that is given
 * back is kept for the next that fits: most of the time of a short use of a
 * large one is the system's, which clears it. */
void *cpu_take(struct mp_device *d, size_t bytes);
void cpu_give_back(struct mp_device *d, void *p); /* NULL is fine */

/* Of a step while it runs. */
char *cpu_scratch(const struct mp_plan *plan, size_t i);

/* ---- conv.c: CONV2D and DECONV2D ---- */

/* Fill s for step i of the program. */
int cpu_conv_compile(struct mp_plan *plan, const struct mp_program *p, size_t i,
                     struct mp_error *err);
int cpu_conv_run(const struct mp_plan *plan, size_t i, struct mp_error *err);
void cpu_conv_free(struct cpu_step *s);

/* Status of a oneDNN call as an error of ours. */
int cpu_status(dnnl_status_t s, const char *what, struct mp_error *err);

/* ---- own.c: all other steps ---- */

int cpu_own_compile(struct mp_plan *plan, const struct mp_program *p, size_t i,
                    struct mp_error *err);
void cpu_own_run(const struct mp_plan *plan, size_t i);

/* ---- pack.c: constants ---- */

/* Weights of a convolution of ours: of which way? */
int cpu_is_ours(enum form form, enum k_way *way);

/* The constant of this value, from the device or packed now: in layout want,
 * whose plain form is `plain`; or as plain f32 (both NULL). */
int cpu_pack(const struct packed **out, struct mp_plan *plan,
             const struct mp_program *p, uint32_t value, enum form form,
             dn_desc want, dn_desc plain, struct mp_error *err);
/* All that the plan has, when it ends. */
void cpu_drop_all(struct mp_plan *plan);

/* What is in it, in its form, or plain f32: if it is late, that is made in
 * `room`, which has so many bytes. */
size_t cpu_room(const struct packed *k, int plain);
int cpu_data(const void **out, const struct mp_plan *plan,
             const struct packed *k, int plain, void *room,
             struct mp_error *err);

/* Before a run: of a second one that would use what is held, no more is. Until
 * then its weights are packed for each step, into scratch. Packing all takes
 * longer than what that saves in one run, as most of the time goes into memory
 * that the process did not have before: so a first picture's result comes
 * sooner, and that of a second one later. Nor is it longer than one run that a
 * file must not change. */
void cpu_settle(struct mp_plan *plan);

#endif
