/* SPDX-License-Identifier: MIT */
/*
 * store.h - bytes that never change, equal ones kept once.
 *
 * A struct store begins as zeros; what is kept in it is given back with
 * store_drop, once for each store_keep. Threads: one at a time.
 */
#ifndef CPU_STORE_H
#define CPU_STORE_H

#include <stddef.h>

struct store {
    struct stored *bucket[1024]; /* by a few of the bytes */
    size_t bytes;                /* of all that is kept */
};

/* Take n bytes at data, from malloc or its like. Returns where they are
 * to be found: there, or, if the same are kept already, where those are, and
 * data is freed. NULL: out of memory, and data is freed too. */
void *store_keep(struct store *s, void *data, size_t n);
void store_drop(struct store *s, const void *data, size_t n);

#endif
