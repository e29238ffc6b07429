/* SPDX-License-Identifier: MIT */
/*
 * repository.h - the bodies of requests to the model repository: none, or a
 * JSON object with "parameters". Untrusted. Threads: no state.
 */
#ifndef CORE_DAEMON_REPOSITORY_H
#define CORE_DAEMON_REPOSITORY_H

#include "mpipe/base.h"

/* *ready: only models that are. */
int mp_repository_index(const void *body, size_t n, int *ready,
                        struct mp_error *err);
/* To load or unload. MP_ENOTSUP: a configuration or files are sent along. */
int mp_repository_change(const void *body, size_t n, struct mp_error *err);

#endif
