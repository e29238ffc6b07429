/* SPDX-License-Identifier: MIT */
/*
 * png_fast.h - the one kind of PNG that evaluation reads by the thousand, depth
 * in 16 bits of gray, inflated in one piece by libdeflate: half the time of
 * libpng. It says only "here it is" or "ask libpng", never what is wrong.
 */
#ifndef CORE_PNG_FAST_H
#define CORE_PNG_FAST_H

#include <stddef.h>
#include <stdint.h>

/* The next chunk of a PNG: its length and its type with the data behind, and
 * the four bytes of its CRC; *at moves past it. NULL: there is no more. */
const uint8_t *mp_png_chunk(const uint8_t *bytes, size_t n, size_t *at,
                            size_t *length);

/* Is this a flawless PNG of 16 bits of gray, not interlaced, and of at most
 * MP_IMAGE_MAX_PIXELS? Then 1 and its values H x W, malloc'd; else 0. */
int mp_png_gray16(uint16_t **out, int32_t *width, int32_t *height,
                  const uint8_t *bytes, size_t n);

#endif
