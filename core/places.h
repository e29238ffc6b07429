/* SPDX-License-Identifier: MIT */
/*
 * places.h - where the values of a program lie: in an arena, whose bytes serve
 * again as soon as nobody reads what is in them, or outside of it.
 *
 * A result takes the place of an input of the same size that it is added to,
 * multiplied by or computed from one by one, if nobody reads that later. What
 * is left is placed by size, the largest first, each as low as it fits. Places
 * begin at multiples of 64 bytes.
 *
 * Threads: no state.
 */
#ifndef CORE_PLACES_H
#define CORE_PLACES_H

#include "mpipe/backend.h"

struct mp_places {
    /* Those with place MP_ARENA get their place and offset. Of what is never
     * read or written the offset stays. */
    struct mp_value *value;
    size_t nvalue;
    const struct mp_step *step; /* in the order that they run in */
    size_t nstep;
    const uint32_t *root;   /* per value: whose bytes it has (a reshape), or its
                               own number; a root is its own */
    const uint8_t *input;   /* per value, nonzero: each run is given it */
    const uint32_t *output; /* values that must be there at the end */
    size_t noutput;
    int outside; /* nonzero: inputs and outputs lie where run() is told */
    /* Found: */
    size_t arena;    /* bytes */
    size_t noutside; /* addresses: the inputs' by number, then the outputs'. An
                        output that is an input, or another output, is there
                        instead, and its own address is of no use. */
};

/* MP_ENOMEM. */
int mp_places_find(struct mp_places *p, struct mp_error *err);

/* Room that steps work in, of the arena: scratch[i] is the bytes that step i
 * wants and becomes the offset of as many that no value has while it runs, or
 * MP_NO_ROOM. Of a program whose outputs lie outside. MP_ENOMEM. */
#define MP_NO_ROOM SIZE_MAX
int mp_places_scratch(size_t *scratch, const struct mp_program *p,
                      struct mp_error *err);

size_t mp_value_bytes(const struct mp_value *v);

#endif
