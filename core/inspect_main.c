/* SPDX-License-Identifier: MIT */
/* mpipe-inspect: what is installed and what a file is. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "backbone/backbone.h"
#include "conf.h"
#include "device.h"
#include "graph_impl.h"
#include "module.h"
#include "settings.h"
#include "weights.h"

enum { EXIT_WRONG_USE = 2, EXIT_FAILED };
enum { KEYS = 256, WRITE, HELP, OPT_VERSION };

static const char usage[] =
    "usage: mpipe-inspect [options] [HEAD | BACKEND | FILE]\n"
    "\n"
    "Nothing: the heads and backends that are there, and devices. HEAD: what "
    "it\n"
    "writes and its options. BACKEND: devices and precisions. FILE: what a\n"
    "checkpoint is, and which heads it fits (a folder: as diffusers lays it "
    "out).\n"
    "\n"
    "      --keys         all tensors of FILE\n"
    "      --write OUT    write the tensors of FILE to OUT, as safetensors\n"
    "  -P, --plugins DIR  look for heads in DIR first; may be repeated\n"
    "  -v, --verbose      name all tensors that keep FILE from fitting\n"
    "      --help, --version\n";

static const struct option long_options[] = {
    {"keys", no_argument, NULL, KEYS},
    {"write", required_argument, NULL, WRITE},
    {"plugins", required_argument, NULL, 'P'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0}};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- lists ---- */

static void print_head(void *user, const char *file, const struct mp_plugin *p,
                       const char *why)
{
    (void)user;
    if (p)
        printf("  %-12s %s\n               %s\n", p->name, p->summary, file);
    else
        printf("  refused: %s\n", why);
}

static void print_devices(const struct mp_backend *b, const char *indent)
{
    struct mp_error err = {0};
    int n = b->probe(&err);

    if (n < 0)
        printf("%snot here: %s\n", indent, err.text);
    for (int i = 0; i < n; i++) {
        struct mp_device_info d = {.memory = 0};

        if (b->info(i, &d, &err)) {
            printf("%s%d: %s\n", indent, i, err.text);
            continue;
        }
        printf("%s%d: %s", indent, i, d.name);
        if (d.memory)
            printf(", %.1f GiB", (double)d.memory / (1 << 30));
        printf("\n");
    }
}

static void print_backend(void *user, const char *file,
                          const struct mp_backend *b, const char *why)
{
    (void)user;
    if (!b) {
        printf("  refused: %s\n", why);
        return;
    }
    printf("  %-12s %s (%s)\n", b->name, b->summary, file);
    print_devices(b, "               ");
}

static int list_all(struct mp_error *err)
{
    int rc;

    printf("heads:\n");
    rc = mp_head_list(print_head, NULL, err);
    if (rc)
        return rc;
    printf("backends:\n");
    return mp_backend_list(print_backend, NULL, err);
}

/* ---- a head ---- */

static int show_head(const struct mp_plugin *p)
{
    size_t at = 0, n;
    const char *word;
    int standard;

    printf("%s: %s\n\nformats:", p->name, p->summary);
    while ((n = mp_format_next(p->formats, &at, &word, &standard)))
        printf(" %.*s%s", (int)n, word, standard ? " (default)" : "");
    printf(" " MP_KIND_RAW "\n");
    printf("[pipeline] classes: %s\n", p->uses_classes ? "needed" : "not used");
    printf("\n[%s]\n", p->name);
    for (const struct mp_option *o = p->options; o && o->name; o++)
        mp_option_print(o, stdout);
    return 0;
}

/* ---- a backend ---- */

static void print_precisions(const struct mp_opened *o)
{
    static const struct {
        const char *name;
        enum mp_dtype type;
    } all[] = {{"fp32", MP_F32}, {"bf16", MP_BF16}, {"fp16", MP_F16}};

    printf("  precisions:");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (o->backend->supports(o->device, all[i].type, NULL))
            continue;
        printf(" %s", all[i].name);
        if (o->backend->best(o->device) == all[i].type)
            printf(" (auto)");
    }
    printf("\n");
}

static int show_backend(const struct mp_backend *b, struct mp_error *err)
{
    struct mp_opened o;
    int rc;

    printf("%s: %s\n", b->name, b->summary);
    print_devices(b, "  ");
    rc = mp_device_open(&o, b->name, MP_PREC_AUTO, 0, err);
    if (rc)
        return rc;
    print_precisions(&o);
    b->close(o.device);
    return 0;
}

/* ---- a checkpoint ---- */

static void print_dims(const struct mp_weight_info *t)
{
    for (int i = 0; i < t->ndim; i++)
        printf("%s%" PRId64, i ? " x " : "", t->dim[i]);
    if (!t->ndim)
        printf("scalar");
}

static void print_keys(const struct mp_weights *w)
{
    printf("\ntensors:\n");
    for (size_t i = 0; i < mp_weights_count(w); i++) {
        const struct mp_weight_info *t = mp_weights_at(w, i);

        printf("  %-5s %s  ", mp_dtype_name(t->dtype), t->name);
        print_dims(t);
        printf("\n");
    }
}

static int by_storage(const void *a, const void *b)
{
    const struct mp_weight_info *const *x = a, *const *y = b;

    return ((*x)->storage > (*y)->storage) - ((*x)->storage < (*y)->storage);
}

/* Tensors of one storage are one parameter under several names. */
static int print_counts(const struct mp_weights *w, struct mp_error *err)
{
    size_t n = mp_weights_count(w), of[MP_BOOL + 1] = {0}, shared = 0;
    const struct mp_weight_info **all = malloc((n + 1) * sizeof *all);
    uint64_t parameters = 0;

    if (!all)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        all[i] = mp_weights_at(w, i);
        of[all[i]->dtype]++;
    }
    qsort(all, n, sizeof *all, by_storage);
    for (size_t i = 0; i < n; i++) {
        if (i && all[i]->storage == all[i - 1]->storage)
            shared++;
        else
            parameters += all[i]->count;
    }
    free(all);
    printf("parameters: %" PRIu64 "\ntensors:    %zu", parameters, n);
    for (int t = 0; t <= MP_BOOL; t++)
        if (of[t])
            printf(", %zu %s", of[t], mp_dtype_name((enum mp_dtype)t));
    if (shared)
        printf(", %zu of them further names of others", shared);
    printf("\n");
    return 0;
}

/* A file's text on a terminal, one line of it: at most `most` bytes, and no
 * control characters. */
static void print_text(const char *text, size_t most)
{
    for (; *text && most; text++, most--)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            printf("\\x%02x", (unsigned)(unsigned char)*text);
        else
            putchar(*text);
}

static void print_meta(const struct mp_weights *w)
{
    const char *key, *value;

    for (size_t i = 0; mp_weights_meta(w, i, &key, &value); i++) {
        fputs(i ? "            " : "metadata:   ", stdout);
        print_text(key, 200);
        fputs(" = ", stdout);
        print_text(value, 200);
        putchar('\n');
    }
}

/* Whether there is a network in it at all. */
static int print_network(const struct mp_weights *w, struct mp_error *err)
{
    struct mp_graph *g = mp_graph_new(w);
    struct mp_error why = {0};
    struct mp_arch arch;
    char text[256];

    if (!g)
        return no_memory(err);
    if (mp_backbone_probe(&arch, g, &why)) {
        printf("network:    none that mpipe knows: %s\n", why.text);
        mp_graph_free(g);
        return 1;
    }
    mp_backbone_describe(&arch, text, sizeof text);
    printf("network:    %s\n", text);
    mp_graph_free(g);
    return 0;
}

struct fit {
    const char *path;
    struct mp_error err; /* of listing */
};

/* With a backend that costs nothing to open. */
static int try_head(const struct mp_plugin *p, const char *path,
                    struct mp_error *why)
{
    char assign[128];
    const char *list[] = {assign};
    struct mp_settings *s;
    struct mp_pipeline *pipeline = NULL;
    int rc;

    snprintf(assign, sizeof assign, "pipeline.head=%s", p->name);
    rc = mp_settings_open(&s, NULL, list, 1, why);
    if (!rc) {
        struct mp_pipeline_conf c = {.head = p,
                                     .head_conf = s->head_conf,
                                     .checkpoint = path,
                                     .backend = "ref",
                                     .strict = 1};

        rc = mp_pipeline_open(&pipeline, &c, why);
    }
    mp_pipeline_close(pipeline);
    mp_settings_free(s);
    return rc;
}

static void print_fit(void *user, const char *file, const struct mp_plugin *p,
                      const char *refused)
{
    const char *path = user, *text;
    struct mp_error why = {0};
    size_t n = strlen(path);

    (void)file;
    (void)refused;
    if (!p)
        return;
    fflush(stdout);
    if (!try_head(p, path, &why)) {
        printf("  %-10s fits\n", p->name);
        return;
    }
    /* the file has been named already */
    text = strncmp(why.text, path, n) || why.text[n] != ':' ? why.text
                                                            : why.text + n + 2;
    printf("  %-10s no: %s\n", p->name, text);
}

/* Row-major bytes of any strides. */
static void copy(void *buf, const struct mp_weight_info *t)
{
    size_t size = mp_dtype_size(t->dtype);
    int64_t at[MP_WEIGHT_RANK] = {0};
    const char *from = t->data;
    char *to = buf;

    if (t->dense) {
        memcpy(buf, t->data, t->count * size);
        mp_weight_forget(t);
        return;
    }
    for (size_t i = 0; i < t->count; i++, to += size) {
        int64_t offset = 0;

        for (int d = 0; d < t->ndim; d++)
            offset += at[d] * t->stride[d];
        memcpy(to, from + offset * (int64_t)size, size);
        for (int d = t->ndim - 1; d >= 0 && ++at[d] == t->dim[d]; d--)
            at[d] = 0;
    }
}

static int fill(void *user, size_t index, void *buf, struct mp_error *err)
{
    const struct mp_weights *w = user;
    int rc;

    copy(buf, mp_weights_at(w, index));
    rc = mp_weights_check(w, err);
    return rc ? mp_fail_in(err, "%s", mp_weights_path(w)) : 0;
}

static int convert(struct mp_weights *w, const char *path, struct mp_error *err)
{
    size_t n = mp_weights_count(w);
    struct mp_weight_out *out = calloc(n + 1, sizeof *out);
    int rc;

    if (!out)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const struct mp_weight_info *t = mp_weights_at(w, i);

        out[i] = (struct mp_weight_out){
            .name = t->name, .dtype = t->dtype, .ndim = t->ndim, .fill = fill};
        memcpy(out[i].dim, t->dim, sizeof out[i].dim);
    }
    rc = mp_weights_write(path, out, n, w, err);
    free(out);
    return rc;
}

static int show_file(const char *path, int keys, const char *write_to,
                     struct mp_error *err)
{
    struct mp_weights *w;
    int rc = mp_weights_open(&w, path, err), none;

    if (rc)
        return rc;
    printf("%s\nformat:     %s\nbytes:      %" PRIu64 "\n", path,
           mp_weights_format(w), mp_weights_bytes(w));
    rc = print_counts(w, err);
    if (!rc) {
        print_meta(w);
        none = print_network(w, err);
        rc = none < 0 ? none : 0;
        if (!none) {
            printf("heads:\n");
            rc = mp_head_list(print_fit, (void *)path, err);
        }
    }
    if (!rc && keys)
        print_keys(w);
    if (!rc && write_to)
        rc = convert(w, write_to, err);
    mp_weights_close(w);
    return rc;
}

/* ---- the command line ---- */

/* A name of a head or backend; a file of that name is called ./NAME. */
static int show(const char *what, int keys, const char *write_to,
                struct mp_error *err)
{
    const struct mp_plugin *p = NULL;
    const struct mp_backend *b = NULL;
    struct mp_error none = {0};
    struct stat st;

    if (strpbrk(what, "/.") || keys || write_to)
        return show_file(what, keys, write_to, err);
    if (!mp_head_find(&p, what, err))
        return show_head(p);
    if (!mp_backend_find(&b, what, &none))
        return show_backend(b, err);
    if (err->code != MP_EABI && none.code == MP_EABI)
        *err = none;
    if (err->code == MP_EABI || stat(what, &st))
        return err->code;
    err->code = 0;
    return show_file(what, keys, write_to, err);
}

static int exit_status(int rc)
{
    return !rc                                   ? 0
           : rc == MP_ENOMEM || rc == MP_ENOTSUP ? EXIT_FAILED
                                                 : EXIT_WRONG_USE;
}

int main(int argc, char **argv)
{
    struct mp_error err = {0};
    const char *write_to = NULL;
    int c, rc = 0, keys = 0;

    mp_log_set(MP_LOG_ERROR);
    argv[0] = "mpipe-inspect"; /* as getopt is to call it */
    while (!rc &&
           (c = getopt_long(argc, argv, "P:v", long_options, NULL)) != -1) {
        if (c == KEYS)
            keys = 1;
        else if (c == WRITE)
            write_to = optarg;
        else if (c == 'P')
            rc = mp_module_path(optarg, &err);
        else if (c == 'v')
            mp_log_set(MP_LOG_INFO);
        else if (c == HELP || c == OPT_VERSION)
            return fputs(c == HELP ? usage
                                   : "mpipe-inspect " PACKAGE_VERSION "\n",
                         stdout) < 0 ||
                           fflush(stdout)
                       ? EXIT_FAILED
                       : 0;
        else
            return EXIT_WRONG_USE; /* getopt has said why */
    }
    if (!rc && (argc - optind > 1 || (optind == argc && (keys || write_to))))
        rc = mp_fail(&err, MP_EINVAL,
                     "one head, backend or file; see mpipe-inspect --help");
    if (!rc)
        rc = optind < argc ? show(argv[optind], keys, write_to, &err)
                           : list_all(&err);
    if (fflush(stdout) || ferror(stdout))
        rc = rc ? rc
                : mp_fail(&err, MP_ENOMEM, "standard output: %s",
                          strerror(errno));
    if (rc)
        mp_log(MP_LOG_ERROR, NULL, "%s", err.text);
    return exit_status(rc);
}
