/* SPDX-License-Identifier: MIT */
/*
 * module.h - shared objects found at run time: heads and backends.
 *
 * Search order for heads: folders added by mp_module_path (-P), those of
 * MPIPE_PLUGIN_PATH, the installed folder; backends: MPIPE_BACKEND_PATH, the
 * installed folder. A file's name without suffix is the module's name. Only
 * absolute paths are ever opened. Nothing of a module runs before its abi and
 * size are known to fit, but what its maker has the loader run; modules that
 * fit stay loaded for ever.
 *
 * Threads: the main thread only (libltdl).
 */
#ifndef CORE_MODULE_H
#define CORE_MODULE_H

#include "mpipe/backend.h"
#include "mpipe/plugin.h"

/* Built in. ref runs the plain C references: for tests. */
extern const struct mp_backend mp_backend_cpu, mp_backend_ref;
/* Bytes of the packed constants of a device of mp_backend_cpu; for tests. */
size_t mp_cpu_packed(const struct mp_device *d);

/* Search this folder before all others. */
int mp_module_path(const char *folder, struct mp_error *err);
/* From now on refuse modules that others than their owner and group may write,
 * or put in place of what is there. */
void mp_module_strict(void);

/* The head of this name; the text lists the folders searched, or the true
 * reason for which a file was refused. */
int mp_head_find(const struct mp_plugin **out, const char *name,
                 struct mp_error *err);
/* The backend module of this name ("cpu" and "ref" are built in). */
int mp_backend_find(const struct mp_backend **out, const char *name,
                    struct mp_error *err);

/* The name of every head's file, once; none is loaded. */
typedef void mp_name_seen(void *user, const char *name);
int mp_head_names(mp_name_seen *seen, void *user, struct mp_error *err);

/* Every module once, first found first. Exactly one of p/b and why is set. Each
 * is loaded in a child process first: one that dies of it is refused, too. */
typedef void mp_head_seen(void *user, const char *file,
                          const struct mp_plugin *p, const char *why);
typedef void mp_backend_seen(void *user, const char *file,
                             const struct mp_backend *b, const char *why);
int mp_head_list(mp_head_seen *seen, void *user, struct mp_error *err);
int mp_backend_list(mp_backend_seen *seen, void *user, struct mp_error *err);

#endif
