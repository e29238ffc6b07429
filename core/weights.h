/* SPDX-License-Identifier: MIT */
/*
 * weights.h - checkpoints: named tensors of a file, mapped, never executed.
 *
 * Formats, found by content: safetensors; PyTorch zip files (.ckpt .pth .pt
 * .bin) of any top level; PyTorch legacy files; a folder in the diffusers
 * layout of Stable Diffusion 1.5 (unet/, vae/), whose names are mapped to
 * those of the original checkpoint.
 *
 * Names are those of the file after: descending into the state dict ("state_
 * dict", "model", ... or a bare dict), and removing one "module." prefix.
 *
 * Life cycle: mp_weights_open .. mp_weights_close. Everything returned is
 * borrowed from the mp_weights, but for mappings that are held. Threads:
 * read-only after open, so any thread.
 *
 * Files are untrusted: every offset, length and product is checked; a pickle
 * is interpreted by a machine that builds tensors and plain data and nothing
 * else. A file that changes while it is opened is refused; who reads tensors
 * later asks mp_weights_check afterwards. Files are replaced by rename.
 */
#ifndef CORE_WEIGHTS_H
#define CORE_WEIGHTS_H

#include "mapping.h"

#define MP_WEIGHT_RANK 8

struct mp_weight_info {
    const char *name;
    enum mp_dtype dtype;
    int ndim;
    int64_t dim[MP_WEIGHT_RANK];
    int64_t stride[MP_WEIGHT_RANK]; /* in elements; row-major unless a view */
    const void *data; /* mapped: element (0,...,0); may be unaligned */
    struct mp_mapping *mapping; /* that it is in; to be held by who wants it */
    size_t offset;              /* of data in that file */
    size_t count;               /* elements: the product of dim */
    size_t storage;             /* same storage, same number */
    int dense;                  /* nonzero: row-major without holes */
};

struct mp_weights;

int mp_weights_open(struct mp_weights **out, const char *path,
                    struct mp_error *err);
void mp_weights_close(struct mp_weights *w);

size_t mp_weights_count(const struct mp_weights *w);
/* In file order. */
const struct mp_weight_info *mp_weights_at(const struct mp_weights *w,
                                           size_t i);
/* NULL if there is none of that name. Logarithmic time. */
const struct mp_weight_info *mp_weights_find(const struct mp_weights *w,
                                             const char *name);

/* "safetensors", "pytorch-zip", "pytorch-legacy", "diffusers". */
const char *mp_weights_format(const struct mp_weights *w);
const char *mp_weights_path(const struct mp_weights *w);
uint64_t mp_weights_bytes(const struct mp_weights *w); /* of all its files */

/* Copy to row-major float32, from any numeric dtype and any strides;
 * out has i->count elements. */
void mp_weight_f32(const struct mp_weight_info *i, float *out);

/* Tell the system that the mapped bytes of this tensor will not be needed
 * soon: they leave the resident set and come back from the page cache. */
void mp_weight_forget(const struct mp_weight_info *i);

/* Begins to read the files from their disk, in the background. */
void mp_weights_fetch(const struct mp_weights *w);

/* MP_EIO if a file has changed since it was opened, or could not be read;
 * whether somebody else holds one of them. */
int mp_weights_check(const struct mp_weights *w, struct mp_error *err);
int mp_weights_are_held(const struct mp_weights *w);

/* Small readable metadata for mpipe-inspect: safetensors __metadata__, or the
 * plain strings and numbers of a PyTorch file that are not tensors of the
 * state dict ("meta.CLASSES": "150 items", "epoch": "12", ...). i from 0;
 * returns 0 when there are no more. */
int mp_weights_meta(const struct mp_weights *w, size_t i, const char **key,
                    const char **value);

/* A safetensors writer: written to a temporary name, synced and renamed. fill
 * is called once per tensor, wider element types first, so that every tensor
 * is aligned in the file. */
struct mp_weight_out {
    const char *name;
    enum mp_dtype dtype;
    int ndim;
    int64_t dim[MP_WEIGHT_RANK];
    /* writes the tensor's bytes to buf (its whole size), or fails */
    int (*fill)(void *user, size_t i, void *buf, struct mp_error *err);
};
int mp_weights_write(const char *path, const struct mp_weight_out *t, size_t n,
                     void *user, struct mp_error *err);

#endif
