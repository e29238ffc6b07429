/* SPDX-License-Identifier: MIT */
/*
 * image.h - pictures: read PNG and JPEG by content, write PNG and NPY, resize
 * exactly as the published code does.
 *
 * Pictures are untrusted: size is checked before anything is allocated, no
 * ancillary chunk is inflated, a truncated or corrupt file is an error.
 * Functions are thread safe (no state). Files are written under a temporary
 * name in the same folder and renamed, so no half-written file ever has its
 * final name; errors of writing name the file.
 */
#ifndef CORE_IMAGE_H
#define CORE_IMAGE_H

#include <stdio.h>
#include "mpipe/plugin.h"

#define MP_IMAGE_MAX_PIXELS ((int64_t)1 << 28)

/* u8 H x W x 3, RGB, row-major without padding. */
struct mp_picture {
    int32_t width, height;
    uint8_t *rgb; /* malloc'd; mp_picture_free */
};
void mp_picture_free(struct mp_picture *p);

/* Decode a colour picture (read: of a regular file of at most 1 GiB): EXIF
 * orientation applied, gray replicated, palette looked up, alpha and tRNS
 * dropped without blending, 16 bits reduced by v >> 8, gAMA/iCCP/sRGB ignored.
 * CMYK and YCCK JPEG, 12-bit and unknown formats: MP_ENOTSUP or MP_EFORMAT with
 * the reason. The text does not hold the file name: callers prefix it. */
int mp_picture_read(struct mp_picture *out, const char *path,
                    struct mp_error *err);
int mp_picture_decode(struct mp_picture *out, const void *bytes, size_t n,
                      struct mp_error *err);

/* A single-channel map: label PNG (palette: the index, never the colour;
 * never rotated) or 16-bit depth PNG. u16 H x W as stored, not scaled to 8
 * bits; malloc'd. bits: 1, 2, 4, 8 or 16. Colour or alpha: MP_EFORMAT. */
int mp_map_read(uint16_t **out, int32_t *width, int32_t *height, int *bits,
                const char *path, struct mp_error *err);

/* The Latin-1 text of the tEXt chunk `key` of a PNG, into value, of size bytes.
 * 1: it is there; 0: it is not, or is longer than fits. */
int mp_png_text(char *value, size_t size, const char *path, const char *key,
                struct mp_error *err);

/* u8 bilinear resize, bit-exact to OpenCV's INTER_LINEAR; channels 1..4.
 * dst: dh x dw x channels. */
int mp_resize_u8(uint8_t *dst, int32_t dw, int32_t dh, const uint8_t *src,
                 int32_t sw, int32_t sh, int channels, struct mp_error *err);
/* Nearest, for label maps: source = min(floor(d * scale), n - 1). */
void mp_resize_nearest_u8(uint8_t *dst, int32_t dw, int32_t dh,
                          const uint8_t *src, int32_t sw, int32_t sh);
/* f32 bilinear, align_corners = false, no antialiasing: H x W x channels. */
int mp_resize_f32(float *dst, int32_t dw, int32_t dh, const float *src,
                  int32_t sw, int32_t sh, int channels, struct mp_error *err);
/* Draw src through the 2 x 3 matrix m (source to destination pixels), bit-exact
 * to OpenCV's warpAffine with INTER_LINEAR and a border of zeros: H x W x 3. */
void mp_warp_u8(uint8_t *dst, int32_t dw, int32_t dh, const uint8_t *src,
                int32_t sw, int32_t sh, const float m[6]);
/* Keep-ratio size: (w,h) scaled to fit (a,b) in either order; at least 1. */
void mp_rescale_size(int32_t *nw, int32_t *nh, int32_t w, int32_t h, int32_t a,
                     int32_t b);

/* struct mp_png is that of heads: channels 1 (gray) or 3; bits 8 or 16 (then px
 * is uint16_t, host order). palette: ncolor RGB triples for an 8-bit palette
 * PNG (channels 1), or NULL; an index without a colour is MP_EINVAL. text:
 * ntext tEXt chunks, Latin-1. Equal arguments give equal bytes. */
int mp_png_write(const char *path, const struct mp_png *p,
                 struct mp_error *err);
/* The same bytes to f. Only what is wrong with the picture is an error: ask
 * ferror about the rest. */
int mp_png_encode(FILE *f, const struct mp_png *p, struct mp_error *err);

/* NumPy .npy 1.0, C order, in the host's byte order (the header says which).
 * dtype F32, U8, U16, I32; at most 8 dimensions, none negative. */
int mp_npy_write(const char *path, enum mp_dtype t, int ndim,
                 const int64_t *dim, const void *data, struct mp_error *err);
int mp_npy_encode(FILE *f, enum mp_dtype t, int ndim, const int64_t *dim,
                  const void *data, struct mp_error *err);

/* A .npy of two dimensions, float32 of either byte order, C order: h x w,
 * malloc'd. Anything else is refused. */
int mp_npy_read(float **out, int32_t *width, int32_t *height, const char *path,
                struct mp_error *err);

/* A regular file of at most 1 GiB, whole; malloc'd. */
int mp_file_read(const char *path, uint8_t **out, size_t *n,
                 struct mp_error *err);
/* A file that gets its name when it is complete: write to f, then close, which
 * finds errors of writing, too. rc < 0: the writer has failed and has said why;
 * nothing stays behind. */
struct mp_file {
    FILE *f;
    const char *path; /* borrowed */
    char *temp;
};
int mp_file_open(struct mp_file *o, const char *path, struct mp_error *err);
int mp_file_close(struct mp_file *o, int rc, struct mp_error *err);
/* Bytes to a file in this way. */
int mp_file_write(const char *path, const void *bytes, size_t n,
                  struct mp_error *err);
/* mkdir -p of the folder part of path. */
int mp_file_parents(const char *path, struct mp_error *err);

/* Rainbow colour map of depth pictures: 256 RGB triples. */
extern const uint8_t mp_rainbow[256][3];

#endif
