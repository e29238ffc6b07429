/* SPDX-License-Identifier: MIT */
/* mpipe-eval: results against ground truth. See mpipe-eval(1). */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "device.h"
#include "eval/evaluate.h"
#include "image.h"
#include "job.h"
#include "json.h"
#include "module.h"

enum { EXIT_SOME_FAILED = 1, EXIT_WRONG_USE, EXIT_FAILED };

static const char usage[] =
    "usage: mpipe-eval -c FILE [options] PRED GT\n"
    "       mpipe-eval -c FILE [options] --images IN GT\n"
    "\n"
    "The published metrics of the results in PRED (a folder or a file), or of "
    "those\n"
    "that mpipe makes of the pictures IN. GT is a folder, a file or a list of "
    "pairs;\n"
    "for poses, annotations in COCO's JSON. The protocol is the section [eval] "
    "of the\n"
    "configuration.\n"
    "\n"
    "  -c, --config FILE         configuration; see mpipe.conf(5)\n"
    "  -o, --option S.KEY=VALUE  set KEY of section S; may be repeated\n"
    "      --images IN           run the network on these pictures first\n"
    "      --out DIR             and keep its results, with those already "
    "there\n"
    "      --gt-root DIR         where the ground truth of a list is\n"
    "      --csv FILE            metrics of every picture\n"
    "      --json FILE           all numbers; -: to standard output, no table\n"
    "      --double-count N      the same as -o eval.double_count=N\n"
    "      --coco-tools NAME     the same as -o eval.coco_tools=NAME\n"
    "  -P, --plugins DIR         look for heads in DIR first; may be repeated\n"
    "  -q, --quiet               errors only\n"
    "  -v, --verbose             say more\n"
    "      --help, --version\n"
    "\n"
    "exit status: 0 done, 1 some pictures failed, 2 usage, configuration or "
    "files,\n"
    "3 device, disk or internal failure; killed by the signal when "
    "interrupted\n";

enum {
    IMAGES = 256,
    OUT,
    GT_ROOT,
    CSV,
    JSON,
    DOUBLE_COUNT,
    COCO_TOOLS,
    HELP,
    OPT_VERSION
};

static const struct option long_options[] = {
    {"config", required_argument, NULL, 'c'},
    {"option", required_argument, NULL, 'o'},
    {"images", required_argument, NULL, IMAGES},
    {"out", required_argument, NULL, OUT},
    {"gt-root", required_argument, NULL, GT_ROOT},
    {"csv", required_argument, NULL, CSV},
    {"json", required_argument, NULL, JSON},
    {"double-count", required_argument, NULL, DOUBLE_COUNT},
    {"coco-tools", required_argument, NULL, COCO_TOOLS},
    {"plugins", required_argument, NULL, 'P'},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0}};

struct arguments {
    const char *file;
    char **assign; /* room for argc + 1 of them, all malloc'd */
    size_t nassign;
    const char *images, *out, *gt_root, *csv, *json;
    const char *pred, *gt;
    int level;
};

static int no_memory(struct mp_error *err)
{
    return mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- signals ---- */

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    stop = number;
}

/* The first asks the run to end, the second of its kind kills. */
static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};

    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- the command line ---- */

static int assign(struct arguments *a, const char *key, const char *value,
                  struct mp_error *err)
{
    if (asprintf(&a->assign[a->nassign], "%s%s", key, value) < 0)
        return no_memory(err);
    a->nassign++;
    return 0;
}

static int take_option(struct arguments *a, int c, struct mp_error *err)
{
    switch (c) {
    case 'c':
        a->file = optarg;
        return 0;
    case 'o':
        return assign(a, "", optarg, err);
    case DOUBLE_COUNT:
        return assign(a, "eval.double_count=", optarg, err);
    case COCO_TOOLS:
        return assign(a, "eval.coco_tools=", optarg, err);
    case 'P':
        return mp_module_path(optarg, err);
    case 'q':
        a->level = MP_LOG_ERROR;
        return 0;
    case 'v':
        a->level = a->level < MP_LOG_INFO ? MP_LOG_INFO : MP_LOG_DEBUG;
        return 0;
    case IMAGES:
        a->images = optarg;
        return 0;
    case OUT:
        a->out = optarg;
        return 0;
    case GT_ROOT:
        a->gt_root = optarg;
        return 0;
    case CSV:
        a->csv = optarg;
        return 0;
    case JSON:
        a->json = optarg;
        return 0;
    default:
        return MP_EINVAL; /* getopt has said why */
    }
}

/* 1: there is nothing more to do. */
static int parse(struct arguments *a, int argc, char **argv,
                 struct mp_error *err)
{
    int c, rc = 0;

    argv[0] = "mpipe-eval"; /* as getopt is to call it */
    while (!rc && (c = getopt_long(argc, argv, "c:o:P:qv", long_options,
                                   NULL)) != -1) {
        if (c == HELP || c == OPT_VERSION) {
            fputs(c == HELP ? usage : "mpipe-eval " PACKAGE_VERSION "\n",
                  stdout);
            return 1;
        }
        rc = take_option(a, c, err);
    }
    mp_log_set((enum mp_log_level)a->level);
    if (rc)
        return rc;
    if (argc - optind != (a->images ? 1 : 2))
        return mp_fail(err, MP_EINVAL,
                       a->images ? "GT is needed; see mpipe-eval --help"
                                 : "PRED and GT are needed; see mpipe-eval "
                                   "--help");
    if (a->out && !a->images)
        return mp_fail(err, MP_EINVAL, "--out is of use with --images only");
    a->pred = a->images ? NULL : argv[optind];
    a->gt = argv[argc - 1];
    return 0;
}

static int open_settings(struct mp_settings **s, enum mp_task *task,
                         struct arguments *a, struct mp_error *err)
{
    int rc;

    *s = NULL;
    rc = mp_settings_open(s, a->file, (const char *const *)a->assign,
                          a->nassign, err);
    if (!rc && !(*s)->plugin)
        rc = mp_fail(err, MP_EINVAL,
                     "[pipeline] head is not set: name a configuration with "
                     "-c FILE");
    if (!rc)
        rc = mp_task_of(task, (*s)->plugin->name, err);
    if (!rc && *task == MP_TASK_POSE && a->csv)
        rc = mp_fail(err, MP_EINVAL,
                     "--csv: poses have no metrics of a single picture");
    if (!rc && *task == MP_TASK_POSE && a->gt_root)
        rc = mp_fail(err, MP_EINVAL,
                     "--gt-root: the ground truth of poses is no list");
    return rc;
}

/* The settings again, with the one kind of results that is read. */
static int reopen_settings(struct mp_settings **s, enum mp_task task,
                           struct arguments *a, struct mp_error *err)
{
    int rc = assign(a, "output.formats=", mp_task_format(task), err);

    mp_settings_free(*s);
    *s = NULL;
    return rc ? rc : open_settings(s, &task, a, err);
}

/* ---- results ---- */

struct work {
    struct arguments *a;
    enum mp_task task;
    struct mp_settings *s;
    struct mp_coco *truth; /* of poses */
    struct mp_inputs in;
    struct mp_pairs pairs;
    char *folder;  /* where the network's results go; NULL: no network */
    int temporary; /* and are removed from */
    char *poses;   /* file with the results */
    struct mp_counts counts;
};

static int remove_one(const char *path, const struct stat *st, int flag,
                      struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static int make_folder(struct work *w, struct mp_error *err)
{
    const char *tmp = getenv("TMPDIR");

    if (w->a->out) {
        w->folder = strdup(w->a->out);
        return w->folder ? 0 : no_memory(err);
    }
    if (asprintf(&w->folder, "%s/mpipe-eval.XXXXXX",
                 tmp && *tmp ? tmp : "/tmp") < 0) {
        w->folder = NULL;
        return no_memory(err);
    }
    w->temporary = mkdtemp(w->folder) != NULL;
    return w->temporary
               ? 0
               : mp_fail(err, MP_EIO, "%s: %s", w->folder, strerror(errno));
}

static int run(struct work *w, struct mp_pipeline *p, struct mp_error *err)
{
    struct mp_job job = {.settings = w->s,
                         .pipeline = p,
                         .inputs = &w->in,
                         .out = w->folder,
                         .shard = {1, 1},
                         .resume = !w->temporary,
                         .stop = &stop};
    int rc = mp_job_run(&job, &w->counts, err);

    if (!rc && w->counts.failed)
        rc = mp_fail(err, MP_EFORMAT,
                     "%zu of %zu pictures failed, so nothing is evaluated",
                     w->counts.failed, w->counts.total);
    return rc;
}

/* The file with all poses: in a folder of results, or by itself. */
static int name_poses(struct work *w, const char *results, struct mp_error *err)
{
    const char *name = w->s->plugin->joined_as;
    struct stat st;
    int n;

    if (stat(results, &st) || !S_ISDIR(st.st_mode))
        n = asprintf(&w->poses, "%s", results);
    else if (name)
        n = asprintf(&w->poses, "%s/%s.json", results, name);
    else
        return mp_fail(err, MP_ENOTSUP,
                       "head %s writes no file with all results",
                       w->s->plugin->name);
    if (n < 0)
        w->poses = NULL;
    return n < 0 ? no_memory(err) : 0;
}

/* What can be found wrong before the network runs. */
static int prepare(struct work *w, struct mp_pipeline **p, struct mp_error *err)
{
    int ids = w->task == MP_TASK_SEG && w->s->eval.pred_labels == MP_LABELS_IDS;
    const struct mp_truth t = {w->task, w->a->gt, w->a->gt_root, w->truth, ids};
    int rc = w->a->images ? mp_settings_files(w->s, err)
                          : mp_settings_classes(w->s, err);

    if (!rc)
        rc = mp_evaluate_check(w->task, w->s, err);
    if (!rc && ids && w->a->images)
        rc = mp_fail(err, MP_EINVAL,
                     "[eval] pred_labels = ids: the results of --images are "
                     "classes, so it must be index");
    if (rc)
        return rc;
    if (!w->a->images)
        return w->task == MP_TASK_POSE
                   ? name_poses(w, w->a->pred, err)
                   : mp_pairs_open(&w->pairs, &t, w->a->pred, err);
    rc = make_folder(w, err);
    if (!rc)
        rc = mp_pairs_inputs(&w->pairs, &w->in, &t, w->a->images, w->folder,
                             err);
    return rc ? rc : mp_settings_pipeline(p, w->s, NULL, err);
}

static int find_results(struct work *w, struct mp_error *err)
{
    static const char *const suffix[] = {
        [MP_TASK_DEPTH] = "npy.npy", [MP_TASK_SEG] = "labels.png"};

    return w->task == MP_TASK_POSE
               ? name_poses(w, w->folder, err)
               : mp_pairs_results(&w->pairs, &w->in, w->folder, suffix[w->task],
                                  err);
}

/* ---- telling ---- */

static int write_json(const struct mp_evaluation *e, const char *path,
                      struct mp_error *err)
{
    json_t *o = mp_evaluation_json(e);
    char *text = o ? mp_json_dump(o, JSON_INDENT(1)) : NULL, *line = NULL;
    int n = text ? asprintf(&line, "%s\n", text) : -1, rc;

    json_decref(o);
    free(text);
    if (n < 0)
        return no_memory(err);
    if (strcmp(path, "-")) {
        rc = mp_file_write(path, line, (size_t)n, err);
    } else {
        fputs(line, stdout);
        rc = 0;
    }
    free(line);
    return rc;
}

static int write_csv(const struct mp_evaluation *e, const char *path,
                     struct mp_error *err)
{
    struct mp_file f;
    int rc = mp_file_open(&f, path, err);

    if (rc)
        return rc;
    mp_evaluation_csv(e, f.f);
    return mp_file_close(&f, 0, err);
}

/* What may have gone wrong unnoticed. */
static void warn(const struct mp_evaluation *e)
{
    const struct mp_seg_counts *c = &e->seg_counts;

    if (e->pairs->unused)
        mp_log(MP_LOG_INFO, NULL, "%zu files have no counterpart",
               e->pairs->unused);
    if (c->stray_labelled)
        mp_log(MP_LOG_WARNING, NULL,
               "%lld pixels of the ground truth are no class: see "
               "[eval] gt_labels and reduce_zero_label",
               (long long)c->stray_labelled);
    if (c->stray_predicted)
        mp_log(MP_LOG_WARNING, NULL,
               "%lld pixels of the results are no class: see "
               "[eval] pred_labels",
               (long long)c->stray_predicted);
}

static int tell(const struct mp_evaluation *e, const struct arguments *a,
                struct mp_error *err)
{
    int rc = 0;

    warn(e);
    if (!a->json || strcmp(a->json, "-"))
        mp_evaluation_print(e, stdout);
    if (a->json)
        rc = write_json(e, a->json, err);
    if (!rc && a->csv)
        rc = write_csv(e, a->csv, err);
    if (!rc && (fflush(stdout) || ferror(stdout)))
        rc = mp_fail(err, MP_EIO, "standard output: %s", strerror(errno));
    return rc;
}

/* ---- all ---- */

/* Maps of one size come and go: their memory is kept, rather than given back
 * to the system and cleared by it for each. */
static void keep_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
}

/* Until the network runs, and when results are read, a file that cannot be
 * read is one that was named wrongly. */
static int status_of(int rc, int named)
{
    switch (rc) {
    case 0:
        return 0;
    case MP_EIO:
        return named ? EXIT_WRONG_USE : EXIT_FAILED;
    case MP_EINVAL:
    case MP_EFORMAT:
    case MP_EABI:
        return EXIT_WRONG_USE;
    default:
        return EXIT_FAILED;
    }
}

static int evaluate(struct work *w, int *named, struct mp_error *err)
{
    struct mp_evaluation e = {.task = w->task,
                              .settings = w->s,
                              .pairs = &w->pairs,
                              .truth = w->truth,
                              .results = w->poses};
    int rc = mp_evaluate(&e, err);

    if (!rc) {
        *named = 0;
        rc = tell(&e, w->a, err);
    }
    mp_evaluation_free(&e);
    return rc;
}

static int work(struct work *w, int *named, struct mp_error *err)
{
    struct mp_pipeline *p = NULL;
    int rc = open_settings(&w->s, &w->task, w->a, err);

    *named = 1;
    if (!rc && w->a->images)
        rc = reopen_settings(&w->s, w->task, w->a, err);
    if (!rc && w->task == MP_TASK_POSE)
        rc = mp_coco_open(&w->truth, w->a->gt, err);
    if (!rc)
        rc = prepare(w, &p, err);
    if (p) {
        *named = 0;
        rc = rc ? rc : run(w, p, err);
        mp_pipeline_close(p);
    }
    if (!rc && w->a->images)
        rc = find_results(w, err);
    return rc ? rc : evaluate(w, named, err);
}

static int all(struct arguments *a, struct mp_error *err)
{
    struct work w = {.a = a};
    int named, rc = work(&w, &named, err);

    if (w.temporary)
        nftw(w.folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    mp_pairs_free(&w.pairs);
    mp_inputs_free(&w.in);
    mp_coco_free(w.truth);
    mp_settings_free(w.s);
    free(w.folder);
    free(w.poses);
    return w.counts.failed ? EXIT_SOME_FAILED : status_of(rc, named);
}

int main(int argc, char **argv)
{
    struct arguments a = {.level = MP_LOG_WARNING};
    struct mp_error err = {0};
    int rc, status = 0;

    mp_wait_briefly(argv);
    a.assign = calloc((size_t)argc + 1, sizeof *a.assign);
    if (!a.assign) {
        mp_log(MP_LOG_ERROR, NULL, "out of memory");
        return EXIT_FAILED;
    }
    catch_signals();
    keep_memory();
    rc = parse(&a, argc, argv, &err);
    if (rc < 0)
        status = EXIT_WRONG_USE;
    else if (rc == 0)
        status = all(&a, &err);
    else if (fflush(stdout))
        status = EXIT_FAILED;
    if (err.code)
        mp_log(MP_LOG_ERROR, NULL, "%s", err.text);
    for (size_t i = 0; i < a.nassign; i++)
        free(a.assign[i]);
    free(a.assign);
    if (err.code == MP_EINTR) { /* so that a shell sees it */
        signal(stop, SIG_DFL);
        raise(stop);
    }
    return status;
}
