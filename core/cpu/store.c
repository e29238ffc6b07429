/* SPDX-License-Identifier: MIT */
/*
 * store.c - a hash table whose hash reads a few words only. Comparing costs
 * little: different weights differ at once, equal ones would otherwise be
 * written to memory a second time.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "cpu/store.h"

#define SAMPLES 16

struct stored {
    struct stored *next;
    void *data;
    size_t n, users;
};

static struct stored **bucket(struct store *s, const void *data, size_t n)
{
    uint64_t hash = n, word;
    size_t step = n / sizeof word / SAMPLES + 1;

    for (size_t i = 0; (i + 1) * sizeof word <= n; i += step) {
        memcpy(&word, (const char *)data + i * sizeof word, sizeof word);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return &s->bucket[hash % (sizeof s->bucket / sizeof *s->bucket)];
}

void *store_keep(struct store *s, void *data, size_t n)
{
    struct stored **at = bucket(s, data, n), *k;

    for (k = *at; k; k = k->next)
        if (k->n == n && !memcmp(k->data, data, n)) {
            k->users++;
            free(data);
            return k->data;
        }
    k = malloc(sizeof *k);
    if (!k) {
        free(data);
        return NULL;
    }
    *k = (struct stored){.next = *at, .data = data, .n = n, .users = 1};
    *at = k;
    s->bytes += n;
    return data;
}

void store_drop(struct store *s, const void *data, size_t n)
{
    struct stored **at = bucket(s, data, n), *k;

    while ((*at)->data != data)
        at = &(*at)->next;
    k = *at;
    if (--k->users)
        return;
    *at = k->next;
    s->bytes -= n;
    free(k->data);
    free(k);
}
