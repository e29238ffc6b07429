/* SPDX-License-Identifier: MIT */
/*
 * module.c - libltdl, tamed: a loader of our own that binds at once and keeps
 * the true reason of a failure, in place of the one that binds lazily and
 * says "file not found" to everything.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <ltdl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "module.h"

#define PATIENCE 30 /* seconds to load a module, where that is but tried */

enum kind { HEAD, BACKEND };

static const struct {
    const char *what, *symbol, *variable, *folder;
    uint32_t abi, size;
} kinds[] = {
    [HEAD] = {"head", "mp_plugin", "MPIPE_PLUGIN_PATH", MP_PLUGINDIR,
              MP_PLUGIN_ABI, sizeof(struct mp_plugin)},
    [BACKEND] = {"backend", "mp_backend", "MPIPE_BACKEND_PATH", MP_BACKENDDIR,
                 MP_BACKEND_ABI, sizeof(struct mp_backend)},
};

/* libltdl itself is one per process, and so is this. */
static struct {
    int up, strict;
    char reason[400]; /* of the last dlopen that failed */
    char *first;      /* folders of mp_module_path, colon-separated */
} state;

/* What both structs begin with. */
struct header {
    uint32_t abi, size;
    const char *name;
};

/* ---- whose code it is ---- */

/* In a sticky folder, files are their owners' only. */
static int is_folder_open(const char *file)
{
    const char *slash = strrchr(file, '/');
    char folder[PATH_MAX];
    struct stat st;

    snprintf(folder, sizeof folder, "%.*s/.", slash ? (int)(slash - file) : 1,
             slash ? file : ".");
    return !stat(folder, &st) && st.st_mode & S_IWOTH &&
           !(st.st_mode & S_ISVTX);
}

/* Nonzero, and the reason: anybody could have made it what it is. */
static int is_anybodys(const char *file)
{
    struct stat st;
    int file_open = !stat(file, &st) && st.st_mode & S_IWOTH;

    if (!state.strict || (!file_open && !is_folder_open(file)))
        return 0;
    snprintf(state.reason, sizeof state.reason,
             "everybody may write %s%s: chmod o-w",
             file_open ? "" : "the folder of ", file);
    return 1;
}

void mp_module_strict(void)
{
    state.strict = 1;
}

/* ---- the loader ---- */

static lt_module now_open(lt_user_data data, const char *file,
                          lt_dladvise advise)
{
    void *m;

    (void)data;
    (void)advise;
    if (is_anybodys(file))
        return NULL;
    m = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!m && !access(file, F_OK))
        snprintf(state.reason, sizeof state.reason, "%s", dlerror());
    return m;
}

static int now_close(lt_user_data data, lt_module m)
{
    (void)data;
    return dlclose(m);
}

static void *now_symbol(lt_user_data data, lt_module m, const char *name)
{
    (void)data;
    return dlsym(m, name);
}

static const lt_dlvtable now_loader = {
    .name = "mp_now",
    .module_open = now_open,
    .module_close = now_close,
    .find_sym = now_symbol,
    .priority = LT_DLLOADER_PREPEND,
};

static int start(struct mp_error *err)
{
    lt_dlvtable *lazy;

    if (state.up)
        return 0;
    if (lt_dlinit() || lt_dlloader_add(&now_loader) ||
        !(lazy = lt_dlloader_remove("lt_dlopen")))
        return mp_fail(err, MP_ENOTSUP, "libltdl: %s", lt_dlerror());
    free(lazy);
    state.up = 1;
    return 0;
}

int mp_module_path(const char *folder, struct mp_error *err)
{
    char *path = realpath(folder, NULL), *both;
    int rc = 0;

    if (!path)
        return mp_fail(err, MP_EIO, "-P %s: no such folder", folder);
    if (!state.first) {
        state.first = path;
        return 0;
    }
    if (asprintf(&both, "%s:%s", state.first, path) < 0)
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    free(path);
    if (!rc) {
        free(state.first);
        state.first = both;
    }
    return rc;
}

/* ---- one module ---- */

/* "depth" of "/usr/lib/mpipe/plugins/depth.so" */
static int base_name(char *out, size_t n, const char *file)
{
    const char *slash = strrchr(file, '/');

    snprintf(out, n, "%s", slash ? slash + 1 : file);
    out[strcspn(out, ".")] = '\0';
    return *out != '\0';
}

static int refuse(lt_dlhandle h, struct mp_error *err)
{
    if (h)
        lt_dlclose(h);
    return err->code;
}

/* libltdl opens what the text file says that libtool left beside the module. */
static lt_dlhandle open_module(const char *file)
{
    char text[PATH_MAX];

    snprintf(text, sizeof text, "%s.la", file);
    return is_anybodys(text) ? NULL : lt_dlopenext(file);
}

/* A module without its suffix: libltdl tries .la (build trees) and .so. */
static int load(const void **out, enum kind kind, const char *file,
                struct mp_error *err)
{
    char stem[256];
    const struct header *p;
    lt_dlhandle h;

    if (start(err))
        return err->code;
    base_name(stem, sizeof stem, file);
    state.reason[0] = '\0';
    errno = 0;
    h = open_module(file);
    if (!h && errno == ENOMEM)
        return mp_fail(err, MP_ENOMEM, "%s: out of memory", file);
    if (!h)
        return mp_fail(err, MP_EABI, "%s cannot be loaded: %s", file,
                       *state.reason ? state.reason : lt_dlerror());
    p = lt_dlsym(h, kinds[kind].symbol);
    if (!p) {
        mp_fail(err, MP_EABI, "%s is no mpipe %s: it has no %s_LTX_%s", file,
                kinds[kind].what, stem, kinds[kind].symbol);
    } else if (p->abi != kinds[kind].abi) {
        mp_fail(err, MP_EABI,
                "%s was built for %s interface %u, this mpipe has %u: build "
                "it again",
                file, kinds[kind].what, p->abi, kinds[kind].abi);
    } else if (p->size != kinds[kind].size) {
        mp_fail(err, MP_EABI,
                "%s was built with a struct of %u bytes, this mpipe has %u: "
                "build it again",
                file, p->size, kinds[kind].size);
    } else if (!p->name || strcmp(p->name, stem)) {
        mp_fail(err, MP_EABI, "%s calls itself %s, not %s", file,
                p->name ? p->name : "nothing", stem);
    } else {
        lt_dlmakeresident(h);
        *out = p;
        return 0;
    }
    return refuse(h, err);
}

/* ---- folders ---- */

/* All folders to search, colon-separated; free it. */
static char *folders(enum kind kind)
{
    const char *env = secure_getenv(kinds[kind].variable);
    const char *first = kind == HEAD && state.first ? state.first : "";
    char *all;

    if (asprintf(&all, "%s:%s:%s", first, env ? env : "", kinds[kind].folder) <
        0)
        return NULL;
    return all;
}

struct visit {
    enum kind kind;
    int (*each)(struct visit *v, const char *file); /* nonzero: stop */
    void *user;
    char seen[64][64]; /* names met so far: the first of a name counts */
    size_t nseen;
};

static int visit_file(const char *file, void *data)
{
    struct visit *v = data;
    char name[64];

    if (!base_name(name, sizeof name, file))
        return 0;
    for (size_t i = 0; i < v->nseen; i++)
        if (!strcmp(v->seen[i], name))
            return 0;
    if (v->nseen < sizeof v->seen / sizeof *v->seen)
        strcpy(v->seen[v->nseen++], name);
    return v->each(v, file);
}

static int visit_all(struct visit *v, struct mp_error *err)
{
    char *all, *save = NULL;
    int rc = start(err), stop = 0;

    if (rc)
        return rc;
    all = folders(v->kind);
    if (!all)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (char *dir = strtok_r(all, ":", &save); dir && !stop && !rc;
         dir = strtok_r(NULL, ":", &save)) {
        if (*dir != '/')
            continue;
        errno = 0; /* out of memory, libltdl passes files over */
        stop = lt_dlforeachfile(dir, visit_file, v);
        if (!stop && errno == ENOMEM)
            rc = mp_fail(err, MP_ENOMEM, "%s: out of memory", dir);
    }
    free(all);
    return rc;
}

/* ---- finding one ---- */

struct search {
    const char *name;
    const void *found;
    struct mp_error *err;
};

static int is_it(struct visit *v, const char *file)
{
    struct search *s = v->user;
    char name[256];

    base_name(name, sizeof name, file);
    if (strcmp(name, s->name))
        return 0;
    load(&s->found, v->kind, file, s->err);
    return 1;
}

static int find(const void **out, enum kind kind, const char *name,
                struct mp_error *err)
{
    struct mp_error why = {0};
    struct search s = {.name = name, .err = &why};
    struct visit v = {.kind = kind, .each = is_it, .user = &s};
    char *all;
    int rc = visit_all(&v, err);

    if (rc)
        return rc;
    *out = s.found;
    if (s.found)
        return 0;
    if (why.code)
        return mp_fail(err, why.code, "%s", why.text);
    all = folders(kind);
    rc = mp_fail(err, MP_EINVAL, "no %s called \"%s\" in %s", kinds[kind].what,
                 name, all ? all + strspn(all, ":") : "");
    free(all);
    return rc;
}

int mp_head_find(const struct mp_plugin **out, const char *name,
                 struct mp_error *err)
{
    const void *p = NULL;
    int rc = find(&p, HEAD, name, err);

    *out = p;
    return rc;
}

int mp_backend_find(const struct mp_backend **out, const char *name,
                    struct mp_error *err)
{
    const void *p = NULL;
    int rc = 0;

    if (!strcmp(name, "cpu"))
        p = &mp_backend_cpu;
    else if (!strcmp(name, "ref"))
        p = &mp_backend_ref;
    else
        rc = find(&p, BACKEND, name, err);
    *out = p;
    return rc;
}

/* ---- listing ---- */

struct listing {
    mp_head_seen *head;
    mp_backend_seen *backend;
    void *user;
};

/* Whether this process is still there when it has loaded that. */
static int try_load(enum kind kind, const char *file, struct mp_error *err)
{
    enum { LOADED = 97 };
    struct mp_error why;
    const void *p;
    pid_t child = fork();
    int status, got;

    if (child < 0)
        return mp_fail(err, MP_EIO, "fork: %s", strerror(errno));
    if (!child) {
        alarm(PATIENCE);
        load(&p, kind, file, &why);
        _exit(LOADED);
    }
    do
        got = waitpid(child, &status, 0);
    while (got < 0 && errno == EINTR);
    if (got > 0 && WIFSIGNALED(status))
        return mp_fail(err, MP_EABI,
                       "%s cannot be loaded: the process is killed by signal "
                       "%d (%s)",
                       file, WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (got > 0 && WEXITSTATUS(status) != LOADED)
        return mp_fail(err, MP_EABI,
                       "%s cannot be loaded: the process ends with status %d",
                       file, WEXITSTATUS(status));
    return 0;
}

static int list_one(struct visit *v, const char *file)
{
    struct listing *l = v->user;
    struct mp_error why = {0};
    const void *p = NULL;
    int rc = try_load(v->kind, file, &why);

    if (!rc)
        rc = load(&p, v->kind, file, &why);

    if (v->kind == HEAD)
        l->head(l->user, file, p, rc ? why.text : NULL);
    else
        l->backend(l->user, file, p, rc ? why.text : NULL);
    return 0;
}

struct naming {
    mp_name_seen *seen;
    void *user;
};

static int name_one(struct visit *v, const char *file)
{
    struct naming *n = v->user;
    char name[64];

    base_name(name, sizeof name, file);
    n->seen(n->user, name);
    return 0;
}

int mp_head_names(mp_name_seen *seen, void *user, struct mp_error *err)
{
    struct naming n = {seen, user};
    struct visit v = {.kind = HEAD, .each = name_one, .user = &n};

    return visit_all(&v, err);
}

int mp_head_list(mp_head_seen *seen, void *user, struct mp_error *err)
{
    struct listing l = {.head = seen, .user = user};
    struct visit v = {.kind = HEAD, .each = list_one, .user = &l};

    return visit_all(&v, err);
}

int mp_backend_list(mp_backend_seen *seen, void *user, struct mp_error *err)
{
    struct listing l = {.backend = seen, .user = user};
    struct visit v = {.kind = BACKEND, .each = list_one, .user = &l};

    seen(user, "built in", &mp_backend_cpu, NULL);
    return visit_all(&v, err);
}
