/* SPDX-License-Identifier: MIT */
/* mpipe: pictures through one pipeline. See mpipe(1). */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device.h"
#include "job.h"
#include "module.h"

enum { EXIT_SOME_FAILED = 1, EXIT_WRONG_USE, EXIT_FAILED };

static const char usage[] =
    "usage: mpipe -c FILE [options] IN OUT\n"
    "\n"
    "IN is a folder of pictures, a picture, @LIST (a file with a name in every "
    "line)\n"
    "or - (names on standard input). Results go to "
    "OUT/<sub/folder/stem>.<kind>.*\n"
    "\n"
    "  -c, --config FILE         configuration; see mpipe.conf(5)\n"
    "  -o, --option S.KEY=VALUE  set KEY of section S; may be repeated\n"
    "  -r, --recursive           the folders below IN too\n"
    "  -P, --plugins DIR         look for heads in DIR first; may be repeated\n"
    "      --resume              skip pictures whose results are complete\n"
    "      --daemon WORD         use the mpiped of [daemon] socket: auto, if "
    "it "
    "can;\n"
    "                            never; require: or fail\n"
    "      --shard I/N           do part I of N; auto: from the environment "
    "of\n"
    "                            Slurm, Open MPI or PMI\n"
    "  -q, --quiet               errors only\n"
    "  -v, --verbose             say more; -vv: the compiled network too\n"
    "      --dump-config         print the settings in force, and end\n"
    "      --help, --version\n"
    "\n"
    "exit status: 0 all done, 1 some pictures failed, 2 usage or "
    "configuration,\n"
    "3 device, disk or internal failure; killed by the signal when "
    "interrupted\n";

enum { RESUME = 256, SHARD, DAEMON, DUMP, HELP, OPT_VERSION };
enum daemon { AUTO, NEVER, REQUIRE };

static const struct option long_options[] = {
    {"config", required_argument, NULL, 'c'},
    {"option", required_argument, NULL, 'o'},
    {"recursive", no_argument, NULL, 'r'},
    {"plugins", required_argument, NULL, 'P'},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"resume", no_argument, NULL, RESUME},
    {"shard", required_argument, NULL, SHARD},
    {"daemon", required_argument, NULL, DAEMON},
    {"dump-config", no_argument, NULL, DUMP},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0}};

struct arguments {
    const char *file, **assign; /* room for argc of them */
    size_t nassign;
    int recursive, resume, dump, level;
    enum daemon daemon;
    struct mp_shard shard;
    const char *in, *out;
};

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

/* End as the signal would have ended us, so that a shell sees it. */
static void die_of(int number)
{
    signal(number, SIG_DFL);
    raise(number);
}

/* ---- the command line ---- */

/* The exit status if mpipe is to end now, -1 to go on. */
static int print_and_end(const char *text)
{
    fputs(text, stdout);
    if (fflush(stdout) || ferror(stdout)) {
        mp_log(MP_LOG_ERROR, NULL, "standard output: %s", strerror(errno));
        return EXIT_FAILED;
    }
    return 0;
}

static int parse_daemon(enum daemon *out, const char *word,
                        struct mp_error *err)
{
    static const char *const words[] = {"auto", "never", "require"};

    for (int i = AUTO; i <= REQUIRE; i++)
        if (!strcmp(word, words[i])) {
            *out = (enum daemon)i;
            return 0;
        }
    return mp_fail(err, MP_EINVAL, "--daemon %s: auto, never or require", word);
}

static int take_option(struct arguments *a, int c, struct mp_error *err)
{
    switch (c) {
    case 'c':
        a->file = optarg;
        return 0;
    case 'o':
        a->assign[a->nassign++] = optarg;
        return 0;
    case 'r':
        a->recursive = 1;
        return 0;
    case 'P':
        return mp_module_path(optarg, err);
    case 'q':
        a->level = MP_LOG_ERROR;
        return 0;
    case 'v':
        a->level = a->level < MP_LOG_INFO ? MP_LOG_INFO : MP_LOG_DEBUG;
        return 0;
    case RESUME:
        a->resume = 1;
        return 0;
    case SHARD:
        return mp_shard_parse(&a->shard, optarg, err);
    case DAEMON:
        return parse_daemon(&a->daemon, optarg, err);
    case DUMP:
        a->dump = 1;
        return 0;
    default:
        return MP_EINVAL; /* getopt has said why */
    }
}

static int parse(struct arguments *a, int argc, char **argv, int *status,
                 struct mp_error *err)
{
    int c, rc = 0;

    argv[0] = "mpipe"; /* as getopt is to call it */
    while (!rc && *status < 0 &&
           (c = getopt_long(argc, argv, "c:o:rP:qv", long_options, NULL)) !=
               -1) {
        if (c == HELP)
            *status = print_and_end(usage);
        else if (c == OPT_VERSION)
            *status = print_and_end("mpipe " PACKAGE_VERSION "\n");
        else
            rc = take_option(a, c, err);
    }
    mp_log_set((enum mp_log_level)a->level);
    if (rc || *status >= 0 || a->dump)
        return rc;
    if (argc - optind != 2)
        return mp_fail(err, MP_EINVAL,
                       "IN and OUT are needed; see mpipe --help");
    a->in = argv[optind];
    a->out = argv[optind + 1];
    return 0;
}

/* ---- the run ---- */

/* A daemon to ask, if there is one and it may be asked. 0 without one: run the
 * pipeline here. */
static int find_daemon(struct mp_client **c, const struct arguments *a,
                       const struct mp_settings *s, struct mp_error *err)
{
    int is_set = strcmp(s->daemon.socket, "none") != 0, rc;
    struct mp_error why = {0};

    *c = NULL;
    if (a->daemon == NEVER || (a->daemon == AUTO && !is_set))
        return 0;
    if (!is_set)
        return mp_fail(err, MP_EINVAL,
                       "--daemon require: [daemon] socket is not set");
    rc = mp_client_open(c, s, &why);
    if (!rc || a->daemon == AUTO) {
        if (rc)
            mp_log(MP_LOG_INFO, "daemon", "not used: %s", why.text);
        return 0;
    }
    return mp_fail(err, MP_EINVAL, "--daemon require: %s", why.text);
}

/* The pipeline, here or over there. */
static int open_pipeline(struct mp_pipeline **p, struct mp_client **c,
                         const struct arguments *a, const struct mp_settings *s,
                         struct mp_error *err)
{
    int rc = find_daemon(c, a, s, err);

    if (rc || !*c)
        return rc ? rc : mp_settings_pipeline(p, s, NULL, err);
    *p = mp_client_pipeline(*c);
    mp_log(MP_LOG_INFO, "daemon", "%s: %s", s->daemon.socket,
           mp_pipeline_backend(*p));
    return 0;
}

/* Everything that can be found wrong before the first picture. */
static int prepare(struct mp_pipeline **p, struct mp_client **c,
                   const struct arguments *a, struct mp_settings *s,
                   struct mp_inputs *in, struct mp_error *err)
{
    int rc = mp_inputs_open(in, a->in, a->recursive, a->out, err);

    if (rc)
        return rc;
    mp_inputs_keep(in, &a->shard);
    mp_log(MP_LOG_INFO, "inputs", "%zu pictures, %zu other files", in->n,
           in->others);
    rc = mp_settings_files(s, err);
    return rc ? rc : open_pipeline(p, c, a, s, err);
}

static void summarise(const struct mp_counts *c, const char *out)
{
    if (mp_log_get() < MP_LOG_WARNING)
        return;
    fprintf(stderr, "mpipe: %zu done", c->done);
    if (c->skipped)
        fprintf(stderr, ", %zu were complete", c->skipped);
    if (c->failed)
        fprintf(stderr, ", %zu failed", c->failed);
    fprintf(stderr, "; results in %s\n", out);
}

static int run(const struct arguments *a, struct mp_settings *s,
               struct mp_pipeline *p, struct mp_client *c,
               const struct mp_inputs *in, struct mp_counts *counts,
               struct mp_error *err)
{
    struct mp_job job = {.settings = s,
                         .pipeline = p,
                         .client = c,
                         .inputs = in,
                         .out = a->out,
                         .shard = a->shard,
                         .resume = a->resume,
                         .stop = &stop};
    int rc = mp_job_run(&job, counts, err);

    if (mp_log_get() >= MP_LOG_DEBUG)
        mp_pipeline_dump(p, stderr);
    if (!rc || rc == MP_EINTR)
        summarise(counts, a->out);
    return rc;
}

static int exit_status(int rc, const struct mp_counts *c)
{
    switch (rc) {
    case 0:
        return c->failed ? EXIT_SOME_FAILED : 0;
    case MP_EINVAL:
    case MP_EFORMAT:
    case MP_EABI:
        return EXIT_WRONG_USE;
    default:
        return EXIT_FAILED;
    }
}

static int all(struct arguments *a, struct mp_error *err)
{
    struct mp_settings *s;
    struct mp_inputs in = {0};
    struct mp_counts counts = {0};
    struct mp_pipeline *p = NULL;
    struct mp_client *c = NULL;
    int rc = mp_settings_open(&s, a->file, a->assign, a->nassign, err);

    if (!rc && a->dump)
        rc = mp_settings_dump(s, stdout, err);
    else if (!rc)
        rc = prepare(&p, &c, a, s, &in, err);
    /* so far, a file that cannot be read is one that was named wrongly */
    rc = rc == MP_EIO && !(s && a->dump) ? MP_EINVAL : rc;
    if (p)
        rc = run(a, s, p, c, &in, &counts, err);
    if (c)
        mp_client_close(c); /* and its pipeline */
    else
        mp_pipeline_close(p);
    mp_inputs_free(&in);
    mp_settings_free(s);
    return exit_status(rc, &counts);
}

int main(int argc, char **argv)
{
    struct arguments a = {.level = MP_LOG_WARNING, .shard = {1, 1}};
    struct mp_error err = {0};
    int status = -1;

    mp_wait_briefly(argv);
    a.assign = calloc((size_t)argc, sizeof *a.assign);
    if (!a.assign) {
        mp_log(MP_LOG_ERROR, NULL, "out of memory");
        return EXIT_FAILED;
    }
    catch_signals();
    if (parse(&a, argc, argv, &status, &err))
        status = EXIT_WRONG_USE;
    if (status < 0)
        status = all(&a, &err);
    if (err.code)
        mp_log(MP_LOG_ERROR, NULL, "%s", err.text);
    free(a.assign);
    if (err.code == MP_EINTR)
        die_of(stop);
    return status;
}
