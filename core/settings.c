/* SPDX-License-Identifier: MIT */
/* settings.c - sections, head, files and kinds of results of a run. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "boxes.h"
#include "classes.h"
#include "conf.h"
#include "json.h"
#include "module.h"
#include "option.h"
#include "pipeline.h"
#include "settings.h"
#include "text.h"

#define ROW(sec, id, kind, def, least, most, words, unit, help)                \
    {                                                                          \
#id, MP_OPT_##kind, offsetof(struct mp_settings, sec.id), def, least,  \
            most, words, unit, help                                            \
    }

/* clang-format off */
static const struct mp_option pipeline_rows[] = {
    ROW(pipeline, head, STRING, NULL, 0, 0, NULL, NULL,
        "The task: upernet, depth, pose, or another head that mpipe-inspect "
        "lists"),
    ROW(pipeline, classes, STRING, "none", 0, 0, NULL, NULL,
        "Class names and colours: ade20k, cityscapes, camvid, demo, or a "
        "FILE.json"),
    ROW(pipeline, boxes, STRING, "none", 0, 0, NULL, NULL,
        "Persons in the pictures, for heads that look at each: a FILE.json of "
        "COCO annotations or detections; none is the whole picture"),
    {0}
};
static const struct mp_option model_rows[] = {
    ROW(model, checkpoint, STRING, NULL, 0, 0, NULL, NULL,
        "File or folder with the weights, from the folder of this file or "
        "the model path"),
    ROW(model, strict, BOOL, "yes", 0, 0, NULL, NULL,
        "Refuse a checkpoint with tensors that nothing uses"),
    {0}
};
static const struct mp_option compute_rows[] = {
    ROW(compute, backend, STRING, "auto", 0, 0, NULL, NULL,
        "Where to compute: auto, cpu, cuda, cuda:N, several as cuda:N,N, or "
        "cuda:all"),
    ROW(compute, precision, CHOICE, "auto", 0, 0, "auto fp32 tf32 bf16 fp16",
        NULL, "Of the network; auto is the fastest that is accurate here"),
    ROW(compute, threads, INT, "auto", 1, 4096, "auto", NULL,
        "CPU threads for the network; auto is all that mpipe may use"),
    ROW(compute, batch, INT, "auto", 1, 1024, "auto", NULL,
        "Most views that the network sees at once; auto is 1 on a CPU, what "
        "fits on a GPU"),
    ROW(compute, autotune, BOOL, "no", 0, 0, NULL, NULL,
        "GPUs: measure which of a library's kernels is the fastest for each "
        "layer, and keep that in ~/.cache/mpipe"),
    {0}
};
static const struct mp_option output_rows[] = {
    ROW(output, formats, STRING, "default", 0, 0, NULL, NULL,
        "Kinds of results, separated by blanks; default is the head's choice"),
    {0}
};
static const struct mp_option daemon_rows[] = {
    ROW(daemon, socket, STRING, "none", 0, 0, NULL, NULL,
        "Socket of an mpiped to ask in place of a pipeline of one's own; none: "
        "no mpiped"),
    {0}
};
static const struct mp_option eval_rows[] = {
    ROW(eval, crop, CHOICE, "none", 0, 0, "none nyu garg eigen", NULL,
        "Depth: the part of a map that counts"),
    ROW(eval, kb_crop, BOOL, "no", 0, 0, NULL, NULL,
        "Depth: cut 1216 x 352 pixels from the bottom of the maps first"),
    ROW(eval, min_depth, FLOAT, "0.001", 0, 1000, NULL, "m",
        "Depth: ground truth that counts is above this"),
    ROW(eval, max_depth, FLOAT, "10", 0.001, 1000, NULL, "m",
        "Depth: ground truth that counts is below this"),
    ROW(eval, gt_scale, INT, "1000", 1, 65535, NULL, NULL,
        "Depth: units per metre in the ground truth's PNG"),
    ROW(eval, pred_scale, INT, "auto", 1, 65535, "auto", NULL,
        "Depth: units per metre in results' PNG; auto: as each file says"),
    ROW(eval, double_count, INT, "1", 1, 4096, NULL, NULL,
        "Depth: count first pictures again, as this many processes do"),
    ROW(eval, reduce_zero_label, BOOL, "no", 0, 0, NULL, NULL,
        "Segmentation: label maps hold 0 for none and class + 1"),
    ROW(eval, ignore_label, INT, "255", 0, 65535, NULL, NULL,
        "Segmentation: the value in ground truth that does not count"),
    ROW(eval, gt_labels, CHOICE, "auto", 0, 0, "index ids auto", NULL,
        "Segmentation: ground truth holds classes, or ids of the data set"),
    ROW(eval, pred_labels, CHOICE, "index", 0, 0, "index ids", NULL,
        "Segmentation: results hold classes, or ids of the data set"),
    ROW(eval, coco_tools, CHOICE, "xtcocotools", 0, 0,
        "xtcocotools pycocotools", NULL, "Pose: whose conventions to follow"),
    {0}
};
/* clang-format on */

static const struct {
    const char *name;
    const struct mp_option *rows;
} sections[] = {{"pipeline", pipeline_rows}, {"model", model_rows},
                {"compute", compute_rows},   {"output", output_rows},
                {"daemon", daemon_rows},     {"eval", eval_rows}};

#define NSECTION (sizeof sections / sizeof *sections)

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- kinds of results ---- */

size_t mp_format_next(const char *list, size_t *at, const char **word,
                      int *is_default)
{
    const char *colon = strchr(list, ':');
    size_t n;

    *at += strspn(list + *at, " :");
    *word = list + *at;
    *is_default = !colon || *word < colon;
    n = strcspn(*word, " :");
    *at += n;
    return n;
}

static void free_words(char **words)
{
    for (char **w = words; w && *w; w++)
        free(*w);
    free(words);
}

/* A NULL-ended copy of all kinds of the head, "raw" too. NULL: no memory. */
static char **all_kinds(const struct mp_plugin *head)
{
    size_t at = 0, count = 0, n;
    char **kinds = calloc(strlen(head->formats) + 2, sizeof *kinds);
    const char *word;
    int unused, bad = !kinds;

    while (!bad && (n = mp_format_next(head->formats, &at, &word, &unused)))
        bad = !(kinds[count++] = strndup(word, n));
    if (!bad)
        bad = !(kinds[count] = strdup(MP_KIND_RAW));
    if (!bad)
        return kinds;
    free_words(kinds);
    return NULL;
}

static int is_default(const struct mp_plugin *head, const char *kind)
{
    size_t at = 0, n;
    const char *word;
    int yes;

    while ((n = mp_format_next(head->formats, &at, &word, &yes)))
        if (n == strlen(kind) && !memcmp(word, kind, n))
            return yes;
    return 0;
}

/* Is the kind one of the words? Words that are no kind are an error. */
static int asked_for(const char *kind, const char *words)
{
    size_t n;

    for (; *(words += strspn(words, " \t")); words += n) {
        n = strcspn(words, " \t");
        if (n == strlen(kind) && !memcmp(words, kind, n))
            return 1;
    }
    return 0;
}

static int bad_format(const char *word, char *const *kinds,
                      const struct mp_plugin *head, struct mp_error *err)
{
    const char *near = mp_nearest(word, (const char *const *)kinds);
    char list[256] = "";

    for (size_t i = 0; kinds[i]; i++) {
        strncat(list, i ? " " : "", sizeof list - strlen(list) - 1);
        strncat(list, kinds[i], sizeof list - strlen(list) - 1);
    }
    return mp_fail(err, MP_EINVAL,
                   "[output] formats: head %s has no \"%s\"%s%s%s; it has: %s",
                   head->name, word, near ? "; did you mean " : "",
                   near ? near : "", near ? "?" : "", list);
}

static int check_words(const char *text, char *const *kinds,
                       const struct mp_plugin *head, struct mp_error *err)
{
    char *copy = strdup(text), *save = NULL;
    size_t i, n = 0;
    int rc = copy ? 0 : no_memory(err);

    for (char *word = rc ? NULL : strtok_r(copy, " \t", &save); word && !rc;
         word = strtok_r(NULL, " \t", &save), n++) {
        for (i = 0; kinds[i] && strcmp(kinds[i], word); i++)
            ;
        if (!kinds[i])
            rc = bad_format(word, kinds, head, err);
    }
    if (!rc && !n)
        rc = mp_fail(err, MP_EINVAL, "[output] formats is empty");
    free(copy);
    return rc;
}

/* The kinds asked for, into s->kinds. */
static int pick_kinds(struct mp_settings *s, struct mp_error *err)
{
    int standard = !strcmp(s->output.formats, "default");
    char **kinds = all_kinds(s->plugin);
    size_t kept = 0;
    int rc = kinds ? 0 : no_memory(err);

    s->kinds = kinds;
    if (!rc && !standard)
        rc = check_words(s->output.formats, kinds, s->plugin, err);
    for (size_t i = 0; !rc && kinds[i]; i++) {
        char *kind = kinds[i];

        kinds[i] = NULL;
        if (standard ? is_default(s->plugin, kind)
                     : asked_for(kind, s->output.formats))
            kinds[kept++] = kind;
        else
            free(kind);
    }
    return rc;
}

/* ---- opening ---- */

static int declare(struct mp_settings *s, struct mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < NSECTION && !rc; i++)
        rc = mp_conf_section(s->conf, sections[i].name, sections[i].rows, s,
                             err);
    return rc;
}

static int open_head(struct mp_settings *s, struct mp_error *err)
{
    int rc;

    if (!s->pipeline.head || !*s->pipeline.head)
        return 0;
    rc = mp_head_find(&s->plugin, s->pipeline.head, err);
    if (rc)
        return mp_fail_in(err, "[pipeline] head");
    s->head_conf = calloc(1, s->plugin->conf_size + !s->plugin->conf_size);
    if (!s->head_conf)
        return no_memory(err);
    return s->plugin->options
               ? mp_conf_section(s->conf, s->plugin->name, s->plugin->options,
                                 s->head_conf, err)
               : 0;
}

/* Names of all heads that are there: a file may hold sections for several. */
struct names {
    char **name;
    size_t n;
    int failed;
};

static void add_name(void *user, const char *name)
{
    struct names *all = user;
    char **more = realloc(all->name, (all->n + 2) * sizeof *more);
    char *copy = strdup(name);

    if (more)
        all->name = more;
    if (!more || !copy) {
        all->failed = 1;
        free(copy);
        return;
    }
    all->name[all->n++] = copy;
    all->name[all->n] = NULL;
}

static int finish(struct mp_settings *s, struct mp_error *err)
{
    struct names heads = {0};
    int rc = mp_head_names(add_name, &heads, err);

    if (!rc && heads.failed)
        rc = no_memory(err);
    if (!rc)
        rc = mp_conf_finish(s->conf, (const char *const *)heads.name, err);
    free_words(heads.name);
    return rc;
}

/* file or folder: NULL. */
static int open_settings(struct mp_settings **out, const char *file,
                         const char *folder, const char *const *assign,
                         size_t n, struct mp_error *err)
{
    struct mp_settings *s = calloc(1, sizeof *s);
    int rc;

    *out = NULL;
    if (!s || !(s->conf = mp_conf_new())) {
        free(s);
        return no_memory(err);
    }
    rc = declare(s, err);
    if (!rc && folder)
        rc = mp_conf_in(s->conf, folder, err);
    if (!rc && file)
        rc = mp_conf_file(s->conf, file, err);
    for (size_t i = 0; i < n && !rc; i++)
        rc = mp_conf_set(s->conf, assign[i], err);
    if (!rc)
        rc = open_head(s, err);
    if (!rc)
        rc = finish(s, err);
    if (!rc && s->plugin && s->plugin->check)
        rc = s->plugin->check(s->head_conf, err);
    if (!rc && s->plugin)
        rc = pick_kinds(s, err);
    if (rc) {
        mp_settings_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int mp_settings_open(struct mp_settings **out, const char *file,
                     const char *const *assign, size_t n, struct mp_error *err)
{
    return open_settings(out, file, NULL, assign, n, err);
}

int mp_settings_inline(struct mp_settings **out, const char *folder,
                       const char *const *assign, size_t n,
                       struct mp_error *err)
{
    return open_settings(out, NULL, folder, assign, n, err);
}

void mp_settings_free(struct mp_settings *s)
{
    if (!s)
        return;
    if (!s->of) {
        mp_boxes_free(s->boxes);
        mp_classes_free(s->classes);
        free(s->checkpoint);
        mp_conf_free(s->conf);
    }
    free_words(s->texts);
    free_words(s->kinds);
    free(s->head_conf);
    free(s);
}

/* ---- variations ---- */

static int set_option(struct mp_settings *s, const char *key, const char *value,
                      struct mp_error *err)
{
    struct mp_guess near = {.word = key};
    const struct mp_option *row = s->plugin->options;

    for (; row && row->name && strcmp(row->name, key); row++)
        mp_guess_try(&near, row->name, strlen(row->name));
    if (!row || !row->name)
        return mp_fail(err, MP_EINVAL, "head %s has no option \"%.*s\"%s",
                       s->plugin->name, MP_QUOTE, key,
                       mp_guess_hint(&near).text);
    return mp_option_parse(row, s->head_conf, value, err)
               ? mp_fail_in(err, "%s", key)
               : 0;
}

int mp_settings_vary(struct mp_settings **out, const struct mp_settings *s,
                     const char *const *key, const char *const *value, size_t n,
                     const char *formats, struct mp_error *err)
{
    struct mp_settings *v = malloc(sizeof *v);
    size_t bytes = s->plugin->conf_size;
    int rc = 0;

    *out = NULL;
    if (!v)
        return no_memory(err);
    *v = *s;
    v->of = s;
    v->kinds = NULL;
    v->head_conf = calloc(1, bytes + !bytes);
    v->texts = calloc(n + 2, sizeof *v->texts);
    if (!v->head_conf || !v->texts)
        rc = no_memory(err);
    else
        memcpy(v->head_conf, s->head_conf, bytes);
    for (size_t i = 0; i < n && !rc; i++)
        rc = (v->texts[i] = strdup(value[i]))
                 ? set_option(v, key[i], v->texts[i], err)
                 : no_memory(err);
    if (!rc && v->plugin->check)
        rc = v->plugin->check(v->head_conf, err);
    if (!rc && formats && !(v->texts[n] = strdup(formats)))
        rc = no_memory(err);
    if (!rc && formats)
        v->output.formats = v->texts[n];
    if (!rc)
        rc = pick_kinds(v, err);
    if (rc) {
        mp_settings_free(v);
        return rc;
    }
    *out = v;
    return 0;
}

/* ---- files ---- */

/* folder/name if that exists (any kind of file); free it. */
static char *try_in(const char *folder, size_t n, const char *name, int *failed)
{
    char *path;

    if (asprintf(&path, "%.*s/%s", (int)n, folder, name) < 0) {
        *failed = 1;
        return NULL;
    }
    if (!access(path, F_OK))
        return path;
    free(path);
    return NULL;
}

/* The first folder of a colon-separated list that has this file. */
static char *search(const char *folders, const char *name, int *failed)
{
    char *found = NULL;
    size_t n;

    while (!found && !*failed && *folders) {
        n = strcspn(folders, ":");
        if (n)
            found = try_in(folders, n, name, failed);
        folders += n + (folders[n] == ':');
    }
    return found;
}

/* first (may be ""), then those of the variable, then the installed one. */
static int look_for(char **out, const char *name, const char *first,
                    const char *variable, const char *installed,
                    struct mp_error *err)
{
    const char *env = secure_getenv(variable);
    int failed = 0;
    char *path = NULL;

    if (*name == '/')
        path = try_in("", 0, name + 1, &failed);
    else if (*first)
        path = try_in(first, strlen(first), name, &failed);
    if (!path && *name != '/' && env)
        path = search(env, name, &failed);
    if (!path && *name != '/')
        path = search(installed, name, &failed);
    *out = path;
    if (failed)
        return no_memory(err);
    if (path)
        return 0;
    if (*name == '/')
        return mp_fail(err, MP_EIO, "%s: no such file", name);
    return mp_fail(err, MP_EIO, "%s is not in %s%s%s%s%s", name, first,
                   *first ? ", " : "", env ? env : "", env ? ", " : "",
                   installed);
}

int mp_settings_classes(struct mp_settings *s, struct mp_error *err)
{
    const char *name = s->pipeline.classes;
    int is_file = strchr(name, '/') || strchr(name, '.');
    char *path = NULL, *file = NULL;
    int rc;

    if (!s->plugin->uses_classes)
        return 0;
    if (!strcmp(name, "none") || !*name)
        return mp_fail(err, MP_EINVAL,
                       "[pipeline] classes is not set: head %s needs names and "
                       "colours, such as ade20k",
                       s->plugin->name);
    if (asprintf(&file, is_file ? "%s" : "classes/%s.json", name) < 0)
        return no_memory(err);
    rc = look_for(&path, file, is_file ? mp_conf_folder(s->conf) : "",
                  "MPIPE_DATA_PATH", MP_DATADIR "/conf", err);
    if (!rc)
        rc = mp_classes_open(&s->classes, path, err);
    free(file);
    free(path);
    return rc ? mp_fail_in(err, "[pipeline] classes = %s", name) : 0;
}

static int open_boxes(struct mp_settings *s, struct mp_error *err)
{
    const char *name = s->pipeline.boxes;
    char *path = NULL;
    int rc;

    if (!strcmp(name, "none") || !*name)
        return 0;
    rc = look_for(&path, name, mp_conf_folder(s->conf), "", ".", err);
    if (!rc)
        rc = mp_boxes_open(&s->boxes, path, err);
    free(path);
    return rc ? mp_fail_in(err, "[pipeline] boxes = %s", name) : 0;
}

int mp_settings_files(struct mp_settings *s, struct mp_error *err)
{
    int rc;

    if (!s->plugin)
        return mp_fail(err, MP_EINVAL,
                       "[pipeline] head is not set: name a configuration with "
                       "-c FILE");
    if (!s->model.checkpoint || !*s->model.checkpoint)
        return mp_fail(err, MP_EINVAL, "[model] checkpoint is not set");
    rc = look_for(&s->checkpoint, s->model.checkpoint, mp_conf_folder(s->conf),
                  "MPIPE_MODEL_PATH", MP_DATADIR "/models", err);
    if (rc)
        return mp_fail_in(err, "[model] checkpoint");
    rc = mp_settings_classes(s, err);
    if (!rc && s->plugin->uses_boxes)
        rc = open_boxes(s, err);
    return rc;
}

int mp_settings_pipeline(struct mp_pipeline **p, const struct mp_settings *s,
                         struct mp_devices *devices, struct mp_error *err)
{
    struct mp_pipeline_conf c = {
        .head = s->plugin,
        .head_conf = s->head_conf,
        .checkpoint = s->checkpoint,
        .backend = s->compute.backend,
        .precision = (enum mp_precision)s->compute.precision,
        .threads = s->compute.threads > 0 ? s->compute.threads : 0,
        .batch = s->compute.batch > 0 ? s->compute.batch : 0,
        .autotune = s->compute.autotune,
        .strict = s->model.strict,
        .classes = s->classes,
        .devices = devices,
    };
    int rc = mp_pipeline_open(p, &c, err);

    if (rc)
        return rc;
    mp_log(MP_LOG_INFO, "backend", "%s", mp_pipeline_backend(*p));
    mp_log(MP_LOG_INFO, "network", "%s", mp_pipeline_network_text(*p));
    return 0;
}

/* ---- telling ---- */

int mp_settings_dump(const struct mp_settings *s, FILE *out,
                     struct mp_error *err)
{
    /* MP_EINVAL: a value that is not set, or that no file can hold, is there
     * as a comment */
    if (mp_conf_dump(s->conf, out) == MP_EIO)
        return mp_fail(err, MP_EIO, "the configuration could not be written");
    return 0;
}

json_t *mp_json_text(const char *bytes)
{
    size_t n = strlen(bytes), used = 0;
    char *text = malloc(3 * n + 1);
    json_t *out;

    if (!text)
        return NULL;
    for (size_t i = 0; i < n;) {
        unsigned before = mp_json_losses();
        size_t len = 1;
        json_t *one;

        /* the shortest run of bytes that is a character, if any is */
        while (len < 4 && i + len < n && (bytes[i] & 0x80) &&
               (bytes[i + len] & 0xc0) == 0x80)
            len++;
        one = json_stringn(bytes + i, len);
        if (!one && mp_json_losses() != before) {
            free(text);
            return NULL;
        }
        memcpy(text + used, one ? bytes + i : "\xef\xbf\xbd", one ? len : 3);
        used += one ? len : 3;
        i += one ? len : 1;
        json_decref(one);
    }
    out = json_stringn(text, used);
    free(text);
    return out;
}

/* One "key = value" or "[section]" line of a dump, without its end. */
static int add_line(json_t *root, json_t **section, char *line)
{
    char *equals = strstr(line, " =");

    if (*line == '[') {
        line[strcspn(line, "]")] = '\0';
        *section = json_object();
        return json_object_set_new(root, line + 1, *section);
    }
    if (!equals || *line == ';' || *line == '#')
        return 0;
    *equals = '\0';
    equals += 2 + strspn(equals + 2, " ");
    return json_object_set_new(*section, line, mp_json_text(equals));
}

json_t *mp_settings_json(const struct mp_settings *s)
{
    json_t *root = json_object(), *section = NULL;
    struct mp_text text;
    char *line, *save = NULL;
    int bad = mp_text_open(&text);

    if (!bad) {
        mp_conf_dump(s->conf, text.f);
        bad = mp_text_close(&text);
    }
    for (line = bad ? NULL : strtok_r(text.bytes, "\n", &save); line && !bad;
         line = strtok_r(NULL, "\n", &save))
        bad = add_line(root, &section, line);
    free(text.bytes);
    if (!bad)
        return root;
    json_decref(root);
    return NULL;
}
