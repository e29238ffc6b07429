/* SPDX-License-Identifier: MIT */
/*
 * png_fast.h - the PNGs that evaluation reads by the thousand, depth in 16 bits
 * of gray and labels in 8 bits of gray or of a palette, inflated in one piece
 * by libdeflate: a third of libpng's time. It says only "here it is" or "ask
 * libpng", never what is wrong.
 */
#ifndef CORE_PNG_FAST_H
#define CORE_PNG_FAST_H

#include <stddef.h>
#include <stdint.h>

/* The next chunk of a PNG: its length and its type with the data behind, and
 * the four bytes of its CRC; *at moves past it. NULL: there is no more. */
const uint8_t *mp_png_chunk(const uint8_t *bytes, size_t n, size_t *at,
                            size_t *length);

/* Is this a flawless PNG of one channel, of 8 or 16 bits, not interlaced, and
 * of at most MP_IMAGE_MAX_PIXELS? Then 1 and its values H x W (of a palette the
 * index), malloc'd; else 0. */
int mp_png_map(uint16_t **out, int32_t *width, int32_t *height, int *bits,
               const uint8_t *bytes, size_t n);

/* Undo the filters of h rows of a filter byte and w values of 1 or 2 bytes, in
 * place; 0: a filter that there is not, or no memory. */
int mp_png_unfilter(uint8_t *rows, size_t w, size_t h, size_t value_bytes);

#endif
