/* SPDX-License-Identifier: MIT */
/*
 * choices.h - what measuring found to be the fastest, kept from start to start.
 *
 * A choice is a word, for a key that is a line of text. Those of one kind of
 * device, with libraries of one version, are a file in the user's cache:
 * $XDG_CACHE_HOME/mpipe, or ~/.cache/mpipe. It is read once, and written anew
 * under a temporary name with every choice that is added, along with those
 * that other processes have added meanwhile. Nobody but mpipe writes it, but
 * what it says is not trusted: lines that are no choices are left out.
 */
#ifndef CUDA_CHOICES_H
#define CUDA_CHOICES_H

#include "mpipe/base.h"

#define CHOICE_BYTES     256 /* of a choice, with the 0 at its end */
#define CHOICE_KEY_BYTES 384

struct choices;

/* name: of the device and the libraries; characters that are no good in the
 * name of a file are replaced. No such file yet, or no folder for it, is no
 * failure. */
int choices_open(struct choices **out, const char *name, struct mp_error *err);
void choices_free(struct choices *c); /* NULL is fine */

/* Valid until the next choices_add; NULL: there is none. */
const char *choices_find(const struct choices *c, const char *key);
/* Instead of the one that there may be. That it could not be written is told
 * to the user, once. */
int choices_add(struct choices *c, const char *key, const char *choice,
                struct mp_error *err);

#endif
