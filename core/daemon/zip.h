/* SPDX-License-Identifier: MIT */
/* zip.h - gzip and deflate of bodies, by zlib. Threads: no state. */
#ifndef CORE_DAEMON_ZIP_H
#define CORE_DAEMON_ZIP_H

#include "link.h"

/* Fast rather than small; *out is malloc'd. */
int mp_zip(char **out, size_t *n, const char *bytes, size_t size, int gzip);
/* Either of them, whole, of at most `most` bytes. */
int mp_unzip(struct mp_blob *out, const struct mp_blob *in, size_t most,
             struct mp_error *err);

#endif
