/* SPDX-License-Identifier: MIT */
/* mpiped: pipelines for everybody on this machine. See mpiped(8). */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include "daemon/http.h"
#include "daemon/system.h"
#include "daemon/worker.h"
#include "device.h"
#include "module.h"

enum { EXIT_WRONG_USE = 2, EXIT_FAILED };

static const char usage[] =
    "usage: mpiped -c FILE [options]\n"
    "\n"
    "Serves the pipelines of FILE to clients of the Open Inference Protocol, "
    "over a\n"
    "Unix socket or TCP; see mpiped(8), mpiped.conf(5), mpipe_http(7).\n"
    "\n"
    "  -c, --config FILE         configuration [" MP_CONFDIR "/mpiped.ini]\n"
    "  -o, --option S.KEY=VALUE  set KEY of section S; may be repeated\n"
    "  -P, --plugins DIR         look for heads in DIR first; may be repeated\n"
    "  -t, --test                check the configuration, and end\n"
    "  -q, --quiet               errors only\n"
    "  -v, --verbose             say more; -vv: every connection\n"
    "      --dump-config         print the settings in force, and end\n"
    "      --help, --version\n"
    "\n"
    "SIGHUP reads FILE again, SIGTERM ends when what is under way is done.\n"
    "exit status: 0 ended as asked, 2 usage or configuration, 3 failure\n";

enum { WORKER = 256, DUMP, HELP, OPT_VERSION };

static const struct option long_options[] = {
    {"config", required_argument, NULL, 'c'},
    {"option", required_argument, NULL, 'o'},
    {"plugins", required_argument, NULL, 'P'},
    {"test", no_argument, NULL, 't'},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"worker", no_argument, NULL, WORKER},
    {"dump-config", no_argument, NULL, DUMP},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0}};

struct arguments {
    const char *file, **assign; /* room for argc of them */
    size_t nassign;
    char **worker; /* arguments of a worker process; likewise */
    size_t nworker;
    int is_worker, test, dump, level;
};

/* ---- the command line ---- */

static int print_and_end(const char *text)
{
    fputs(text, stdout);
    if (fflush(stdout) || ferror(stdout)) {
        mp_log(MP_LOG_ERROR, NULL, "standard output: %s", strerror(errno));
        return EXIT_FAILED;
    }
    return 0;
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
    case 'P':
        a->worker[a->nworker++] = (char *)"-P";
        a->worker[a->nworker++] = optarg;
        return mp_module_path(optarg, err);
    case 't':
        a->test = 1;
        return 0;
    case 'q':
        a->level = MP_LOG_ERROR;
        a->worker[a->nworker++] = (char *)"-q";
        return 0;
    case 'v':
        a->level = a->level < MP_LOG_INFO ? MP_LOG_INFO : MP_LOG_DEBUG;
        a->worker[a->nworker++] = (char *)"-v";
        return 0;
    case WORKER:
        a->is_worker = 1;
        return 0;
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

    argv[0] = (char *)"mpiped";
    a->worker[a->nworker++] = argv[0];
    a->worker[a->nworker++] = (char *)"--worker";
    while (!rc && *status < 0 &&
           (c = getopt_long(argc, argv, "c:o:P:tqv", long_options, NULL)) !=
               -1) {
        if (c == HELP)
            *status = print_and_end(usage);
        else if (c == OPT_VERSION)
            *status = print_and_end("mpiped " PACKAGE_VERSION "\n");
        else
            rc = take_option(a, c, err);
    }
    mp_log_set((enum mp_log_level)a->level);
    if (!rc && *status < 0 && optind < argc)
        rc = mp_fail(err, MP_EINVAL, "\"%s\": mpiped takes no such argument",
                     argv[optind]);
    return rc;
}

/* ---- serving ---- */

struct servers {
    struct mp_http *at[MP_LISTEN_MAX];
    size_t n;
};

static void sweep(void *user)
{
    struct servers *s = user;

    for (size_t i = 0; i < s->n; i++)
        mp_http_sweep(s->at[i]);
}

/* Signals are the main thread's, by signalfd. */
static void block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* How many descriptors there may be. */
static rlim_t raise_files(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r))
        return RLIM_INFINITY;
    if (r.rlim_cur != r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &r) || getrlimit(RLIMIT_NOFILE, &r))
            mp_log(MP_LOG_WARNING, "system", "open files: %s", strerror(errno));
    }
    return r.rlim_cur;
}

/* A connection is a descriptor, and its request has two at most: a picture as
 * it came and inflated, or results. libmicrohttpd is not to run out of them: it
 * would try again without a pause. */
static int fit_files(struct mp_daemon_conf *c, size_t nlisten,
                     struct mp_error *err)
{
    rlim_t all = raise_files(), each = 3 * (rlim_t)nlisten;
    rlim_t threads = (rlim_t)c->http.threads * nlisten;
    rlim_t other = 16 + 2 * threads + 6 * (rlim_t)c->npipeline;

    if (all == RLIM_INFINITY)
        return 0;
    if (all < other + each * (rlim_t)c->http.threads)
        return mp_fail(err, MP_ENOTSUP,
                       "%lu open files (ulimit -n) are too few: %lu are needed "
                       "at least",
                       (unsigned long)all,
                       (unsigned long)(other + each * (rlim_t)c->http.threads));
    if ((all - other) / each >= (rlim_t)c->limits.connections)
        return 0;
    mp_log(MP_LOG_WARNING, "system",
           "%lu open files (ulimit -n) are enough for %lu connections, not for "
           "[limits] connections = %d",
           (unsigned long)all, (unsigned long)((all - other) / each),
           (int)c->limits.connections);
    c->limits.connections = (int32_t)((all - other) / each);
    return 0;
}

static int serve_all(struct mp_front *f, const struct mp_daemon_conf *conf,
                     struct mp_listen *l, struct mp_error *err)
{
    struct servers all = {.n = 0};
    int rc = 0;

    for (size_t i = 0; i < l->n && !rc; i++) {
        rc = mp_http_start(&all.at[all.n], f, conf, l->fd[i], l->token, err);
        l->fd[i] = -1;
        all.n += !rc;
    }
    mp_front_every_second(f, sweep, &all);
    if (!rc)
        rc = mp_front_run(f, err);
    for (size_t i = 0; i < all.n; i++)
        mp_http_stop(all.at[i]);
    return rc;
}

static int run(const struct arguments *a, struct mp_daemon_conf *conf,
               struct mp_error *err)
{
    struct mp_listen l;
    struct mp_front *f = NULL;
    int rc;

    block_signals();
    rc = mp_listen_open(&l, conf, err);
    if (!rc)
        rc = fit_files(conf, l.n, err);
    if (rc) {
        mp_daemon_conf_free(conf);
        mp_listen_close(&l);
        return rc;
    }
    rc = mp_front_new(&f, conf, a->file, a->assign, a->nassign, a->worker, err);
    if (!rc)
        rc = serve_all(f, conf, &l, err);
    mp_listen_close(&l);
    mp_front_free(f);
    return rc;
}

static int all(const struct arguments *a, struct mp_error *err)
{
    struct mp_daemon_conf *conf;
    int rc = mp_daemon_conf_open(&conf, a->file, a->assign, a->nassign, err);

    if (rc)
        return EXIT_WRONG_USE;
    if (a->dump || a->test) {
        int wrong = a->test && mp_listen_check(conf, err);

        rc = a->dump && !wrong ? mp_daemon_conf_dump(conf, stdout, err) : 0;
        mp_daemon_conf_free(conf);
        return wrong ? EXIT_WRONG_USE : rc ? EXIT_FAILED : 0;
    }
    rc = run(a, conf, err);
    return !rc ? 0 : rc == MP_EINVAL ? EXIT_WRONG_USE : EXIT_FAILED;
}

int main(int argc, char **argv)
{
    struct arguments a = {.level = MP_LOG_WARNING,
                          .file = MP_CONFDIR "/mpiped.ini"};
    struct mp_error err = {0};
    int status = -1;

    mp_wait_briefly(argv);
    a.assign = calloc((size_t)argc, sizeof *a.assign);
    a.worker = calloc(2 * (size_t)argc + 3, sizeof *a.worker);
    if (!a.assign || !a.worker) {
        mp_log(MP_LOG_ERROR, NULL, "out of memory");
        return EXIT_FAILED;
    }
    if (parse(&a, argc, argv, &status, &err))
        status = EXIT_WRONG_USE;
    if (a.is_worker)
        mp_module_strict(); /* its heads are everybody's */
    if (status < 0 && a.is_worker)
        status = mp_worker_run(&err) ? EXIT_FAILED : 0;
    else if (status < 0)
        status = all(&a, &err);
    if (err.code)
        mp_log(MP_LOG_ERROR, NULL, "%s", err.text);
    free(a.assign);
    free(a.worker);
    return status;
}
