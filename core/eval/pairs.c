/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eval/pairs.h"

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

void mp_pairs_free(struct mp_pairs *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->at[i].name);
        free(p->at[i].result);
        free(p->at[i].truth);
    }
    free(p->at);
    *p = (struct mp_pairs){0};
}

/* ---- names ---- */

/* What names end in: the first that fits counts, and of two files of one
 * picture the earlier. */
static const char *const results[][5] = {
    [MP_TASK_DEPTH] = {".npy.npy", ".npy", ".png16.png", ".png"},
    [MP_TASK_SEG] = {".labels.png", ".png"}};
/* of segmentation */
static const char *const results_ids[] = {".ids.png", ".png", NULL};
static const char *const truths[][6] = {
    [MP_TASK_DEPTH] = {".png", ".npy"},
    [MP_TASK_SEG] = {"_gtFine_labelTrainIds.png", "_gtCoarse_labelTrainIds.png",
                     "_gtFine_labelIds.png", "_gtCoarse_labelIds.png", ".png"}};

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash == NULL ? path : slash + 1;
}

static int ends_in(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);

    return n > k && strcmp(name + n - k, suffix) == 0;
}

/* Remove `what` at `at`. */
static void cut(char *at, size_t what)
{
    memmove(at, at + what, strlen(at + what) + 1);
}

/* Where the part of a path in front of `at` begins: at its slash. */
static char *part_before(char *path, char *at)
{
    while (at > path && *--at != '/')
        ;
    return at;
}

/* /any/DRIVE/image_02/data/N and /any/DRIVE/proj_depth/groundtruth/image_02/N
 * become /DRIVE/image_02/N. */
static void shorten_kitti(char *path)
{
    static const char depth[] = "/proj_depth/groundtruth/", data[] = "/data/";
    char *at = strstr(path, depth), *drive;

    if (at != NULL) {
        drive = part_before(path, at);
        cut(at, sizeof depth - 2);
        cut(path, (size_t)(drive - path));
        return;
    }
    for (at = path; (at = strstr(at, data)) != NULL; at++) {
        char *camera = part_before(path, at);

        if (strncmp(camera, "/image_0", 8) == 0) {
            cut(at, sizeof data - 2);
            cut(path, (size_t)(part_before(path, camera) - path));
            return;
        }
    }
}

/* What the files of one picture have in common. path: n bytes of it, from the
 * folder on, without suffix. */
static char *key_of(const char *path, size_t n)
{
    static const char depth[] = "/sync_depth_", left[] = "_leftImg8bit";
    char *key = malloc(n + 2), *end = key, *last;

    if (key == NULL)
        return NULL;
    for (size_t i = 0; i < n;) { /* no "//", no "./" */
        size_t k = strcspn(path + i, "/");

        k = k > n - i ? n - i : k;
        if (k > 0 && !(k == 1 && path[i] == '.')) {
            *end++ = '/';
            end = mempcpy(end, path + i, k);
        }
        i += k + 1;
    }
    *end = '\0';
    shorten_kitti(key);
    last = strrchr(key, '/');
    if (last != NULL && strncmp(last, depth, sizeof depth - 1) == 0) {
        memcpy(last, "/rgb_", 5);
        cut(last + 5, sizeof depth - 1 - 5);
    }
    if (ends_in(key, left))
        key[strlen(key) - (sizeof left - 1)] = '\0';
    if (*key == '/')
        cut(key, 1);
    return key;
}

/* Without the suffix, whatever it is. */
static char *key_of_picture(const char *path)
{
    const char *dot = strrchr(last_part(path), '.');

    return key_of(path, dot == NULL || dot == last_part(path)
                            ? strlen(path)
                            : (size_t)(dot - path));
}

/* ---- files ---- */

struct file {
    char *key, *path;
    char *picture; /* of a line of a list */
    size_t rank;
    int special; /* named as ground truth of a data set is */
    int used;
};

struct files {
    struct file *at;
    size_t n;
};

static void free_files(struct files *f)
{
    for (size_t i = 0; i < f->n; i++) {
        free(f->at[i].key);
        free(f->at[i].path);
        free(f->at[i].picture);
    }
    free(f->at);
}

/* Takes the file over, whose strings may be NULL for lack of memory. */
static int add_file(struct files *f, struct file one, struct mp_error *err)
{
    struct file *more = f->at;

    if (f->n % 1024 == 0)
        more = realloc(f->at, (f->n + 1024) * sizeof *more);
    f->at = more == NULL ? f->at : more;
    if (more == NULL || one.key == NULL || one.path == NULL) {
        free(one.key);
        free(one.path);
        free(one.picture);
        return no_memory(err);
    }
    f->at[f->n++] = one;
    return 0;
}

/* Colours and instances of Cityscapes lie beside its labels. */
static int is_other(const char *name, const char *suffix)
{
    return strcmp(suffix, ".png") == 0 &&
           (strstr(name, "_gtFine_") || strstr(name, "_gtCoarse_"));
}

static int is_sync_depth(const char *name)
{
    return strncmp(name, "sync_depth_", strlen("sync_depth_")) == 0;
}

static int by_name(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static int visit(struct files *f, const FTSENT *e, size_t root,
                 const char *const *suffixes, struct mp_error *err)
{
    for (size_t i = 0; suffixes[i] != NULL; i++) {
        const char *below = e->fts_path + root;
        size_t n = strlen(below) - strlen(suffixes[i]);

        if (!ends_in(e->fts_name, suffixes[i]))
            continue;
        if (is_other(e->fts_name, suffixes[i]))
            return 0;
        return add_file(f,
                        (struct file){.key = key_of(below, n),
                                      .path = strdup(e->fts_path),
                                      .rank = i,
                                      .special = suffixes[i][0] == '_' ||
                                                 is_sync_depth(e->fts_name)},
                        err);
    }
    return 0;
}

static int read_folder(struct files *f, const char *folder,
                       const char *const *suffixes, struct mp_error *err)
{
    char *roots[] = {(char *)folder, NULL};
    FTS *t = fts_open(roots, FTS_LOGICAL | FTS_NOCHDIR, by_name);
    FTSENT *e;
    int rc = 0;

    if (t == NULL)
        return mp_fail(err, MP_EIO, "%s: %s", folder, strerror(errno));
    while (rc == 0 && (errno = 0, e = fts_read(t)) != NULL) {
        if (e->fts_level > 0 && e->fts_name[0] == '.')
            fts_set(t, e, FTS_SKIP);
        else if (e->fts_info == FTS_F)
            rc = visit(f, e, strlen(folder), suffixes, err);
        else if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR)
            rc = mp_fail(err, MP_EIO, "%s: %s", e->fts_path,
                         strerror(e->fts_errno));
    }
    if (rc == 0 && errno != 0)
        rc = mp_fail(err, MP_EIO, "%s: %s", folder, strerror(errno));
    fts_close(t);
    return rc;
}

static int by_key(const void *a, const void *b)
{
    const struct file *x = a, *y = b;
    int order = strcmp(x->key, y->key);

    return order != 0 ? order : (x->rank > y->rank) - (x->rank < y->rank);
}

/* In the order of keys, of each the first. Two of equal right are an error. */
static int settle(struct files *f, struct mp_error *err)
{
    size_t kept = 0;

    if (f->n > 0)
        qsort(f->at, f->n, sizeof *f->at, by_key);
    for (size_t i = 1; i < f->n; i++)
        if (by_key(&f->at[i - 1], &f->at[i]) == 0)
            return mp_fail(err, MP_EINVAL, "%s and %s are of one picture",
                           f->at[i - 1].path, f->at[i].path);
    for (size_t i = 0; i < f->n; i++) {
        if (kept > 0 && strcmp(f->at[kept - 1].key, f->at[i].key) == 0) {
            free(f->at[i].key);
            free(f->at[i].path);
        } else {
            f->at[kept++] = f->at[i];
        }
    }
    f->n = kept;
    return 0;
}

/* Where some files are named as ground truth is, others are something else:
 * pictures, say. */
static void drop_others(struct files *f)
{
    size_t kept = 0;
    int any = 0;

    for (size_t i = 0; i < f->n; i++)
        any |= f->at[i].special;
    for (size_t i = 0; i < f->n && any; i++) {
        if (f->at[i].special) {
            f->at[kept++] = f->at[i];
        } else {
            free(f->at[i].key);
            free(f->at[i].path);
        }
    }
    f->n = any ? kept : f->n;
}

static struct file *find(struct files *f, const char *key)
{
    size_t low = 0, high = f->n;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(f->at[middle].key, key);

        if (order == 0) {
            f->at[middle].used = 1;
            return &f->at[middle];
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static size_t count_unused(const struct files *f)
{
    size_t n = 0;

    for (size_t i = 0; i < f->n; i++)
        n += !f->at[i].used;
    return n;
}

/* ---- lists ---- */

static char *join(const char *folder, const char *path)
{
    char *out;

    return asprintf(&out, "%s/%s", folder, path + strspn(path, "/")) < 0 ? NULL
                                                                         : out;
}

static int read_line(struct files *f, size_t *left_out, char *line,
                     const char *root, struct mp_error *err)
{
    char *save = NULL, *picture = strtok_r(line, " \t\r\n", &save);
    char *truth = strtok_r(NULL, " \t\r\n", &save), *copy;

    if (picture == NULL)
        return 0;
    if (truth == NULL)
        return mp_fail(err, MP_EFORMAT, "must be PICTURE GROUND-TRUTH [FOCAL]");
    if (strncmp(picture, "../", 3) == 0 || strstr(picture, "/../") != NULL)
        return mp_fail(err, MP_EFORMAT, "PICTURE must not go up by ..");
    if (strcmp(truth, "None") == 0) {
        ++*left_out;
        return 0;
    }
    copy = strdup(picture);
    return add_file(f,
                    (struct file){.key = copy ? key_of_picture(copy) : NULL,
                                  .path = join(root, truth),
                                  .picture = copy},
                    err);
}

static int read_lines(struct files *f, size_t *left_out, FILE *in,
                      const struct mp_truth *t, const char *root,
                      struct mp_error *err)
{
    char *line = NULL;
    size_t size = 0, number = 0;
    ssize_t n;
    int rc = 0;

    while (rc == 0 && (n = getline(&line, &size, in)) >= 0) {
        number++;
        rc = strlen(line) == (size_t)n
                 ? read_line(f, left_out, line, root, err)
                 : mp_fail(err, MP_EFORMAT, "not a list of names");
        if (rc == MP_EFORMAT)
            mp_fail_in(err, "%s:%zu", t->path, number);
    }
    if (rc == 0 && ferror(in))
        rc = mp_fail(err, MP_EIO, "%s: %s", t->path, strerror(errno));
    if (rc == 0 && f->n == 0)
        rc = mp_fail(err, MP_EFORMAT, "%s: no pairs in it", t->path);
    free(line);
    return rc;
}

static int read_list(struct files *f, size_t *left_out,
                     const struct mp_truth *t, struct mp_error *err)
{
    size_t n = (size_t)(last_part(t->path) - t->path);
    char *root = t->root != NULL ? strdup(t->root)
                 : n > 0         ? strndup(t->path, n)
                                 : strdup(".");
    FILE *in = fopen(t->path, "r");
    int rc = root == NULL ? no_memory(err)
             : in == NULL
                 ? mp_fail(err, MP_EIO, "%s: %s", t->path, strerror(errno))
                 : read_lines(f, left_out, in, t, root, err);

    if (in != NULL)
        fclose(in);
    free(root);
    return rc;
}

/* ---- pairs ---- */

/* Log what is missing, and count it. */
static void miss(size_t *missing, const char *file, const char *why)
{
    mp_log(MP_LOG_ERROR, NULL, "%s: %s", file, why);
    ++*missing;
}

static int end_search(size_t missing, const char *what, size_t of,
                      struct mp_error *err)
{
    return missing == 0
               ? 0
               : mp_fail(err, MP_EINVAL, "%zu of %zu %s", missing, of, what);
}

/* Copies; name: the key or the picture's. */
static int add_pair(struct mp_pairs *p, const char *name, const char *result,
                    const char *truth, struct mp_error *err)
{
    struct mp_pair *one = &p->at[p->n++];

    *one = (struct mp_pair){
        .name = strdup(name),
        .result = result == NULL ? NULL : strdup(result),
        .truth = truth == NULL ? NULL : strdup(truth),
    };
    return one->name == NULL || (result != NULL && one->result == NULL) ||
                   (truth != NULL && one->truth == NULL)
               ? no_memory(err)
               : 0;
}

static int make_room(struct mp_pairs *p, size_t n, struct mp_error *err)
{
    p->at = calloc(n + 1, sizeof *p->at);
    return p->at == NULL ? no_memory(err) : 0;
}

static int is_folder(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int is_map(const char *path)
{
    return ends_in(path, ".png") || ends_in(path, ".npy");
}

static int is_list(const struct mp_truth *t)
{
    return !is_folder(t->path) && !is_map(t->path);
}

/* Only of a list does a root mean anything. */
static int check_root(const struct mp_truth *t, struct mp_error *err)
{
    if (t->root == NULL || is_list(t))
        return 0;
    return mp_fail(err, MP_EINVAL, "--gt-root: %s is no list", t->path);
}

static int read_truths(struct files *f, size_t *left_out,
                       const struct mp_truth *t, struct mp_error *err)
{
    int rc;

    if (is_list(t))
        return read_list(f, left_out, t, err);
    if (!is_folder(t->path))
        return mp_fail(err, MP_EINVAL,
                       "%s is one file: the results must be one too", t->path);
    rc = read_folder(f, t->path, truths[t->task], err);
    drop_others(f);
    if (rc == 0)
        rc = settle(f, err);
    return rc == 0 && f->n == 0
               ? mp_fail(err, MP_EINVAL, "%s: no ground truth in it", t->path)
               : rc;
}

static int pair_up(struct mp_pairs *p, const struct files *truth,
                   struct files *have, const char *folder, struct mp_error *err)
{
    size_t missing = 0;
    int rc = make_room(p, truth->n, err);

    for (size_t i = 0; i < truth->n && rc == 0; i++) {
        const struct file *t = &truth->at[i], *r = find(have, t->key);

        if (access(t->path, R_OK) != 0)
            miss(&missing, t->path, strerror(errno));
        else if (r == NULL)
            miss(&missing, t->path, "no result for this ground truth");
        else
            rc = add_pair(p, t->key, r->path, t->path, err);
    }
    p->unused = count_unused(have);
    if (rc == 0 && end_search(missing, "pairs are not complete", truth->n, err))
        rc = mp_fail_in(err, "%s", folder);
    return rc;
}

int mp_pairs_open(struct mp_pairs *p, const struct mp_truth *t,
                  const char *folder, struct mp_error *err)
{
    struct files truth = {0}, have = {0};
    int rc;

    *p = (struct mp_pairs){0};
    if (access(folder, R_OK) != 0)
        return mp_fail(err, MP_EIO, "%s: %s", folder, strerror(errno));
    if (access(t->path, R_OK) != 0)
        return mp_fail(err, MP_EIO, "%s: %s", t->path, strerror(errno));
    rc = check_root(t, err);
    if (rc != 0)
        return rc;
    if (!is_folder(folder)) {
        if (is_folder(t->path) || is_list(t))
            return mp_fail(err, MP_EINVAL,
                           "%s is one file: the ground truth must be one too",
                           folder);
        rc = make_room(p, 1, err);
        return rc != 0 ? rc : add_pair(p, folder, folder, t->path, err);
    }
    rc = read_folder(&have, folder, t->ids ? results_ids : results[t->task],
                     err);
    if (rc == 0)
        rc = settle(&have, err);
    if (rc == 0)
        rc = read_truths(&truth, &p->left_out, t, err);
    if (rc == 0)
        rc = pair_up(p, &truth, &have, folder, err);
    free_files(&truth);
    free_files(&have);
    return rc;
}

/* ---- pictures ---- */

/* A picture of a list, whose results are named after it. */
static int add_input(struct mp_inputs *in, const char *images,
                     const struct file *line, struct mp_error *err)
{
    struct mp_input *one = &in->at[in->n];
    const char *stem = line->picture + strspn(line->picture, "./");
    const char *dot = strrchr(last_part(stem), '.');

    *one = (struct mp_input){join(images, line->picture),
                             dot == NULL ? strdup(stem)
                                         : strndup(stem, (size_t)(dot - stem))};
    in->n++;
    return one->path == NULL || one->stem == NULL ? no_memory(err) : 0;
}

static int by_stem(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* No two pictures may have results of one name. */
static int check_stems(const struct mp_inputs *in, const char *list,
                       struct mp_error *err)
{
    char **stem = malloc((in->n + 1) * sizeof *stem);
    int rc = stem == NULL ? no_memory(err) : 0;

    for (size_t i = 0; i < in->n && rc == 0; i++)
        stem[i] = in->at[i].stem;
    if (rc == 0)
        qsort(stem, in->n, sizeof *stem, by_stem);
    for (size_t i = 1; i < in->n && rc == 0; i++)
        if (strcmp(stem[i - 1], stem[i]) == 0)
            rc =
                mp_fail(err, MP_EINVAL, "%s: %s is named twice", list, stem[i]);
    free(stem);
    return rc;
}

static int list_inputs(struct mp_pairs *p, struct mp_inputs *in,
                       const struct mp_truth *t, const char *images,
                       const struct files *list, struct mp_error *err)
{
    size_t missing = 0;
    int rc = make_room(p, list->n, err);

    in->at = calloc(list->n + 1, sizeof *in->at);
    if (rc == 0 && in->at == NULL)
        rc = no_memory(err);
    for (size_t i = 0; i < list->n && rc == 0; i++) {
        const struct file *line = &list->at[i];

        rc = add_input(in, images, line, err);
        if (rc == 0)
            rc = add_pair(p, in->at[i].stem, NULL, line->path, err);
        if (rc == 0 && access(in->at[i].path, R_OK) != 0)
            miss(&missing, in->at[i].path, strerror(errno));
        if (rc == 0 && access(line->path, R_OK) != 0)
            miss(&missing, line->path, strerror(errno));
    }
    if (rc == 0)
        rc = check_stems(in, t->path, err);
    if (rc == 0 && end_search(missing, "files are not there", 2 * list->n, err))
        rc = mp_fail_in(err, "%s", t->path);
    return rc;
}

/* Ground truth that lies among the pictures is none of them. */
static void drop_truths(struct mp_inputs *in)
{
    size_t kept = 0;

    for (size_t i = 0; i < in->n; i++) {
        struct mp_input one = in->at[i];

        if (is_sync_depth(last_part(one.path))) {
            free(one.path);
            free(one.stem);
        } else {
            in->at[kept++] = one;
        }
    }
    in->n = kept;
}

static int folder_inputs(struct mp_pairs *p, struct mp_inputs *in,
                         struct files *truth, struct mp_error *err)
{
    size_t missing = 0;
    int rc = make_room(p, in->n, err);

    for (size_t i = 0; i < in->n && rc == 0; i++) {
        char *key = key_of(in->at[i].stem, strlen(in->at[i].stem));
        const struct file *t = key == NULL ? NULL : find(truth, key);

        if (key == NULL)
            rc = no_memory(err);
        else if (t == NULL)
            miss(&missing, in->at[i].path, "no ground truth for this picture");
        else
            rc = add_pair(p, in->at[i].stem, NULL, t->path, err);
        free(key);
    }
    p->unused = count_unused(truth);
    return rc != 0 ? rc
                   : end_search(missing, "pictures have no ground truth", in->n,
                                err);
}

/* Of the pictures those that are annotated, all of which must be there. */
static int pose_inputs(struct mp_pairs *p, struct mp_inputs *in,
                       const struct mp_coco *coco, struct mp_error *err)
{
    size_t missing = 0;
    char *seen = calloc(coco->nimage + 1, 1);
    int rc = make_room(p, in->n, err);
    size_t kept = 0;

    if (rc == 0 && seen == NULL)
        rc = no_memory(err);
    for (size_t i = 0; i < in->n; i++) {
        const struct mp_coco_image *img =
            mp_coco_image_of(coco, in->at[i].stem);
        struct mp_input one = in->at[i];

        if (rc != 0 || img == NULL || seen[img - coco->image]) {
            free(one.path);
            free(one.stem);
            p->unused++;
            continue;
        }
        seen[img - coco->image] = 1;
        in->at[kept++] = one;
        rc = add_pair(p, one.stem, NULL, NULL, err);
    }
    in->n = kept;
    for (size_t i = 0; i < coco->nimage && rc == 0; i++)
        if (!seen[i])
            miss(&missing, coco->image[i].file, "this picture is not there");
    free(seen);
    return rc != 0 ? rc
                   : end_search(missing, "annotated pictures are not there",
                                coco->nimage, err);
}

int mp_pairs_inputs(struct mp_pairs *p, struct mp_inputs *in,
                    const struct mp_truth *t, const char *images,
                    const char *out, struct mp_error *err)
{
    struct files truth = {0};
    int listed = t->coco == NULL && is_list(t), rc = check_root(t, err);

    *p = (struct mp_pairs){0};
    *in = (struct mp_inputs){0};
    if (rc == 0 && !listed)
        rc = mp_inputs_open(in, images, 1, out, err);
    if (rc == 0 && t->coco != NULL)
        return pose_inputs(p, in, t->coco, err);
    if (rc == 0 && is_map(t->path) && !is_folder(t->path) && in->n == 1) {
        rc = make_room(p, 1, err);
        return rc != 0 ? rc : add_pair(p, in->at[0].stem, NULL, t->path, err);
    }
    if (rc == 0)
        rc = read_truths(&truth, &p->left_out, t, err);
    if (rc == 0 && listed)
        rc = list_inputs(p, in, t, images, &truth, err);
    if (rc == 0 && !listed) {
        drop_truths(in);
        rc = folder_inputs(p, in, &truth, err);
    }
    free_files(&truth);
    return rc;
}

int mp_pairs_results(struct mp_pairs *p, const struct mp_inputs *in,
                     const char *out, const char *suffix, struct mp_error *err)
{
    for (size_t i = 0; i < p->n; i++)
        if (asprintf(&p->at[i].result, "%s/%s.%s", out, in->at[i].stem,
                     suffix) < 0) {
            p->at[i].result = NULL;
            return no_memory(err);
        }
    return 0;
}
