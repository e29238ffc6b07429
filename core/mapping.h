/* SPDX-License-Identifier: MIT */
/*
 * mapping.h - a file in memory, for reading, while somebody else may write to
 * it. What was read of a file that has changed, or could not be read, may be
 * anything: mp_mapping_check tells, so that nobody goes on with it.
 *
 * Where a mapped file has become shorter, or its disk fails, the system sends
 * SIGBUS. The first mapping of a process takes that signal: the rest of the
 * file is then read as zeros, and the check fails. A SIGBUS that has nothing to
 * do with mappings goes to whoever had the signal before.
 *
 * Threads: any function from any thread, while it holds the mapping. Threads
 * that read a mapping must not block SIGBUS.
 */
#ifndef CORE_MAPPING_H
#define CORE_MAPPING_H

#include "mpipe/base.h"

struct mp_mapping;

/* Which file, and which state of it, however and by whom it is opened. */
struct mp_file_id {
    uint64_t device, inode, bytes;
    int64_t written[2], changed[2]; /* seconds, nanoseconds */
};

/* A regular file that is not empty. Errors do not name it. */
int mp_mapping_open(struct mp_mapping **out, const char *path,
                    struct mp_error *err);

const uint8_t *mp_mapping_at(const struct mp_mapping *m, size_t *size);
const struct mp_file_id *mp_mapping_id(const struct mp_mapping *m);

/* One more who will drop it; the last one unmaps it. NULL may be dropped. */
struct mp_mapping *mp_mapping_hold(struct mp_mapping *m);
void mp_mapping_drop(struct mp_mapping *m);
size_t mp_mapping_users(const struct mp_mapping *m);

/* MP_EIO if the file has changed since it was opened, or could not be read. */
int mp_mapping_check(const struct mp_mapping *m, struct mp_error *err);

/* Begins to read the file in order, which disks are fastest at: a thread asks
 * the system for what is not in its page cache, and holds the mapping until
 * then, but not longer than others do. It takes 30 ms of a processor for a GB
 * that is there. Without memory for a thread, nothing is done. */
void mp_mapping_fetch(struct mp_mapping *m);

/* These bytes of a mapping will not be needed soon: they leave the resident
 * set, and come back from the page cache. */
void mp_mapping_forget(const void *data, size_t bytes);

#endif
