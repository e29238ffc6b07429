/* SPDX-License-Identifier: MIT */
/*
 * What the system refuses: memory at every place where it is asked for, whole
 * reads and writes, descriptors, address space; and a clock that jumps. mpipe
 * and mpiped must answer each with one clear error, or with the very results
 * that they have otherwise.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject.h"
#include "make_weights.h"
#include "served.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static const char *build_dir(void)
{
    const char *build = getenv("builddir");

    return build ? build : ".";
}

static int is_long(void)
{
    return getenv("MPIPE_LONG") != NULL;
}

/* ---- what is said to inject.so ---- */

static char dir[] = "/tmp/mpipe-faults-XXXXXX";
static struct inject *told;
static char preload[300], told_at[100];
static const char *env[] = {preload, told_at, NULL};

static void inject_begin(void)
{
    int fd;

    strcpy(dir + strlen(dir) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(preload, sizeof preload, "LD_PRELOAD=%s/tests/.libs/inject.so",
             build_dir());
    snprintf(told_at, sizeof told_at, "MPIPE_INJECT=%s/told", dir);
    fd = open(told_at + strlen("MPIPE_INJECT="), O_RDWR | O_CREAT | O_EXCL,
              0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, sizeof *told), 0);
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(told, MAP_FAILED);
    close(fd);
}

static void inject_end(void)
{
    char command[100];

    munmap(told, sizeof *told);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

/* Allocation k fails, and every `every`-th after it. */
static void arm(enum inject_role who, long k, long every)
{
    told->role[who].failed = 0;
    told->role[who].every = every;
    told->role[who].fail = k;
}

static long disarm(enum inject_role who)
{
    told->role[who].fail = 0;
    return told->role[who].failed;
}

/* ---- runs of mpipe ---- */

static void run_setup(void)
{
    char path[200], keys[300];
    const char *src = getenv("srcdir");
    struct mp_error err = {0};
    FILE *f;

    inject_begin();
    snprintf(path, sizeof path, "%s/w.safetensors", dir);
    snprintf(keys, sizeof keys, "%s/tests/golden/keys/tiny_depth.json",
             src ? src : ".");
    ck_assert_msg(!make_weights(keys, path, &err), "%s", err.text);
    snprintf(path, sizeof path, "%s/run.ini", dir);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f,
            "[pipeline]\nhead = trouble\n[model]\n"
            "checkpoint = %s/w.safetensors\nstrict = no\n"
            "[compute]\nbackend = ref\n",
            dir);
    fclose(f);
    snprintf(
        keys, sizeof keys,
        "mkdir %s/in && cp %s/tests/data/awkward/one_pixel.png %s/in/a.png",
        dir, src ? src : ".", dir);
    ck_assert_int_eq(system(keys), 0);
}

static void become_mpipe(void)
{
    char path[300], conf[100], in[100], out[100], log[100];
    int fd;

    snprintf(path, sizeof path, "%s/tests", build_dir());
    setenv("MPIPE_PLUGIN_PATH", path, 1);
    snprintf(path, sizeof path, "%s/.libs", build_dir());
    setenv("LD_LIBRARY_PATH", path, 1);
    putenv(preload);
    putenv(told_at);
    snprintf(conf, sizeof conf, "%s/run.ini", dir);
    snprintf(in, sizeof in, "%s/in", dir);
    snprintf(out, sizeof out, "%s/out", dir);
    snprintf(log, sizeof log, "%s/log", dir);
    fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(fd, STDERR_FILENO);
    close(fd);
    alarm(120); /* a hang is death by SIGALRM */
    snprintf(path, sizeof path, "%s/.libs/mpipe", build_dir());
    execl(path, "mpipe", "-q", "-c", conf, in, out, (char *)NULL);
    _exit(99);
}

/* The exit status, negative: a signal. */
static int run(void)
{
    char command[100];
    pid_t child;
    int status;

    snprintf(command, sizeof command, "rm -rf %s/out", dir);
    ck_assert_int_eq(system(command), 0);
    child = fork();
    ck_assert_int_ge(child, 0);
    if (!child)
        become_mpipe();
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* Up to size - 1 bytes; "" if there is no such file. */
static const char *text_of(const char *name, char *out, size_t size)
{
    char path[400];
    size_t n = 0;
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "r");
    if (f) {
        n = fread(out, 1, size - 1, f);
        fclose(f);
    }
    out[n] = '\0';
    return out;
}

/* run.json without its times; json_decref it. */
static json_t *record(void)
{
    char text[8192];
    json_t *o = json_loads(text_of("out/run.json", text, sizeof text), 0, NULL);

    json_object_del(o, "seconds");
    return o;
}

struct results {
    json_t *record;
    char latents[1000], id[100];
};

static void take_results(struct results *r)
{
    memset(r, 0, sizeof *r);
    r->record = record();
    text_of("out/a.latents.npy", r->latents, sizeof r->latents);
    text_of("out/a.id.json", r->id, sizeof r->id);
}

static int same_results(const struct results *a)
{
    struct results b;
    int same;

    take_results(&b);
    same = json_equal(a->record, b.record) &&
           !memcmp(a->latents, b.latents, sizeof b.latents) &&
           !strcmp(a->id, b.id);
    json_decref(b.record);
    return same;
}

/* Every line is mpipe's, and there is one at least. */
static int is_clear(const char *log)
{
    for (const char *at = log; *at; at = strchr(at, '\n') + 1)
        if (strncmp(at, "mpipe: ", 7) || !strchr(at, '\n'))
            return 0;
    return *log != '\0';
}

static int has_leftovers(void)
{
    char path[200];
    struct dirent *e;
    int found = 0;
    DIR *d;

    snprintf(path, sizeof path, "%s/out", dir);
    d = opendir(path);
    while (d && (e = readdir(d)))
        found |= strstr(e->d_name, ".tmp") != NULL;
    if (d)
        closedir(d);
    return found;
}

/* What mpipe made of it: the results of always, without a word; or a status
 * that says so, a clear line, and no half of anything. */
static void check_run(int status, const struct results *usual, long k)
{
    char log[4096];

    text_of("log", log, sizeof log);
    if (!status)
        ck_assert_msg(!*log && same_results(usual), "%ld: other results: %s", k,
                      log);
    else
        ck_assert_msg(status >= 1 && status <= 3 && is_clear(log),
                      "%ld: status %d: %s", k, status, log);
    ck_assert_msg(!has_leftovers(), "%ld: a temporary file is left", k);
}

/* The k-th allocation: all of the first 2,000 if there is time; later ones,
 * which are much alike, here and there. */
START_TEST(run_without_memory)
{
    struct results usual;
    long step = is_long() ? 1 : 13;

    ck_assert_int_eq(run(), 0);
    take_results(&usual);
    ck_assert_ptr_nonnull(usual.record);
    ck_assert_str_eq(usual.id, "\"a\"");
    for (long k = 1;; k += k < 2000 ? step : step * 41) {
        int status;

        arm(INJECT_MAIN, k, 0);
        status = run();
        if (!disarm(INJECT_MAIN)) /* it asked less often */
            break;
        check_run(status, &usual, k);
        ck_assert_int_lt(k, 1000000);
    }
    json_decref(usual.record);
}
END_TEST

/* Each k-th of them. */
START_TEST(run_with_little_memory)
{
    struct results usual;

    ck_assert_int_eq(run(), 0);
    take_results(&usual);
    for (long k = 1; k < 20000; k += is_long() ? k / 16 + 1 : k / 2 + 1) {
        int status;

        arm(INJECT_MAIN, k, k);
        status = run();
        disarm(INJECT_MAIN);
        check_run(status, &usual, k);
    }
    json_decref(usual.record);
}
END_TEST

START_TEST(run_by_bits)
{
    struct results usual;

    ck_assert_int_eq(run(), 0);
    take_results(&usual);
    told->trickle = 1;
    ck_assert_int_eq(run(), 0);
    ck_assert_int_gt(told->trickled, 0);
    told->trickle = 0;
    check_run(0, &usual, 0);
    json_decref(usual.record);
}
END_TEST

/* ---- requests to mpiped ---- */

static const char conf[] = "[limits]\nqueue = 2000\n"
                           "[worker]\ndeaths = 1000000\nbackoff = 0\n"
                           "[pipeline trouble]\nfile = trouble.ini\n";

static void served_setup(void)
{
    inject_begin();
    serve(conf, env, NULL);
}

static void served_teardown(void)
{
    serve_end();
    inject_end();
}

static int is_alive(void)
{
    char path[64], state = 'Z';
    FILE *f;

    snprintf(path, sizeof path, "/proc/%ld/stat", (long)server);
    f = fopen(path, "r");
    if (f) {
        ck_assert_int_eq(fscanf(f, "%*d %*s %c", &state), 1);
        fclose(f);
    }
    return state != 'Z';
}

/* Any status; 0: the connection ends. */
static struct reply ask_once(const char *bytes, size_t n)
{
    int fd = try_dial();
    struct reply r = {0};

    if (fd < 0)
        return r;
    put(fd, bytes, n);
    r = hear(fd);
    close(fd);
    return r;
}

/* The front alone may end a connection that it has no memory for. */
static void check_reply(const struct reply *r, const struct reply *usual,
                        enum inject_role who, long k)
{
    if (r->status == 200)
        ck_assert_msg(!usual->body || (r->n == usual->n &&
                                       !memcmp(r->body, usual->body, r->n)),
                      "%ld: another answer", k);
    else
        ck_assert_msg((r->status == 0 && who == INJECT_MAIN) ||
                          (r->status == 503 && strstr(r->body, "memory")),
                      "%ld: status %d: %s", k, r->status, r->body);
    ck_assert_msg(is_alive(), "%ld: mpiped is gone", k);
}

/* What is asked, and whether the answer is the same each time. */
static const struct {
    const char *text; /* NULL: a picture */
    enum inject_role who;
    int is_same, least; /* allocations */
} requests[] = {
    {NULL, INJECT_MAIN, 1, 100},
    {NULL, INJECT_WORKER, 1, 150},
    {GET("/v2/models/trouble"), INJECT_MAIN, 1, 50},
    {GET("/v2/models/trouble/config"), INJECT_MAIN, 1, 50},
    {GET("/v2/models/trouble/stats"), INJECT_MAIN, 0, 50},
    {GET("/metrics"), INJECT_MAIN, 0, 5},
    {"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n\r\n", INJECT_MAIN, 1,
     5},
    {GET("/errors"), INJECT_MAIN, 0, 5},
    {GET("/"), INJECT_MAIN, 1, 5},
};

static size_t compose_infer(char *out, size_t size, const char *more)
{
    char json[1000];

    snprintf(json, sizeof json,
             "{\"id\":\"q1\",\"inputs\":[{\"name\":\"image\",\"shape\":[1,2,2,"
             "3],\"datatype\":\"UINT8\",\"parameters\":{\"binary_data_size\":"
             "12}}],\"parameters\":{\"binary_data_output\":true%s}}",
             more);
    return compose(out, size, INFER, "", json, pixels, sizeof pixels);
}

static double deaths(void)
{
    return metric("mpipe_worker_deaths_total{worker=\"main\"} ");
}

/* Each allocation of a request in turn, in the front or in the worker. */
START_TEST(request_without_memory)
{
    enum inject_role who = requests[_i].who;
    char out[2000];
    size_t n = compose_infer(out, sizeof out, "");
    double before = deaths();
    struct reply usual, r;
    long k, failed = 1, step = requests[_i].text && !is_long() ? 3 : 1;

    if (requests[_i].text)
        n = (size_t)snprintf(out, sizeof out, "%s", requests[_i].text);
    usual = ask_once(out, n);
    ck_assert_int_eq(usual.status, 200);
    if (!requests[_i].is_same) {
        free(usual.body);
        usual.body = NULL;
    }
    for (k = 1; failed; k += step) {
        arm(who, k, 0);
        r = ask_once(out, n);
        failed = disarm(who);
        check_reply(&r, &usual, who, k);
        free(r.body);
    }
    ck_assert_int_gt(k, requests[_i].least);
    free(usual.body);
    wait_ready();
    ck_assert_int_eq(good(), 200);
    ck_assert_double_eq(deaths(), before);
}
END_TEST

/* Every k-th: also of what is done about the first. */
START_TEST(request_with_little_memory)
{
    enum inject_role who = _i ? INJECT_WORKER : INJECT_MAIN;
    char out[2000];
    size_t n = compose_infer(out, sizeof out, "");
    struct reply usual = ask_once(out, n), r;

    for (long k = 1; k < 200; k += k / 8 + 1) {
        arm(who, k, k);
        r = ask_once(out, n);
        disarm(who);
        check_reply(&r, &usual, who, k);
        free(r.body);
        wait_ready();
        ck_assert_int_eq(good(), 200);
    }
    free(usual.body);
}
END_TEST

#define REPOSITORY(what)                                                       \
    "POST /v2/repository/models/trouble/" what " HTTP/1.1\r\nHost: x\r\n\r\n"

/* A pipeline that there is no memory to load for is unavailable, with the
 * reason, until it is loaded again. */
START_TEST(load_without_memory)
{
    int times = is_long() ? 400 : 30;
    struct reply r;

    for (int i = 0; i < times; i++) {
        ck_assert_int_eq(status_of(REPOSITORY("unload")), 200);
        arm(INJECT_WORKER, 1 + 57 * (long)i * (is_long() ? 1 : 13), 0);
        r = ask(REPOSITORY("load"));
        disarm(INJECT_WORKER);
        ck_assert_msg(r.status == 200 ||
                          (r.status == 400 && strstr(r.body, "memory")),
                      "%d: %d %s", i, r.status, r.body);
        free(r.body);
        ck_assert_int_eq(status_of(REPOSITORY("load")), 200);
        ck_assert_int_eq(good(), 200);
    }
}
END_TEST

/* Reads, writes and messages of front and worker in bits, or interrupted. */
START_TEST(requests_by_bits)
{
    char out[2000];
    size_t n = compose_infer(out, sizeof out, "");
    struct reply usual = ask_once(out, n), r;

    told->trickle = 1;
    for (int i = 0; i < 40; i++) {
        r = ask_once(out, n);
        ck_assert_int_eq(r.status, 200);
        ck_assert_uint_eq(r.n, usual.n);
        ck_assert_mem_eq(r.body, usual.body, r.n);
        free(r.body);
    }
    told->trickle = 0;
    ck_assert_int_gt(told->trickled, 100);
    free(usual.body);
}
END_TEST

/* A request that the worker is at; however slow this machine is. */
static int begin_sleep(void)
{
    char out[2000], more[200];
    struct pollfd p = {.events = POLLIN};

    for (int seconds = 1; seconds <= 32; seconds *= 2) {
        snprintf(more, sizeof more,
                 ",\"fault\":\"sleep\",\"seconds\":%d,"
                 "\"timeout\":300000000",
                 seconds);
        p.fd = dial();
        put(p.fd, out, compose_infer(out, sizeof out, more));
        while (!poll(&p, 1, 0))
            if (metric("mpipe_in_flight{model=\"trouble\"} ") >= 1)
                return p.fd;
        close(p.fd);
    }
    ck_abort_msg("no request is ever seen under way");
    return -1;
}

/* A day back, a year on, and the hour right again: nothing is over that was
 * not, and nothing waits. */
START_TEST(clock_jumps)
{
    static const long jumps[] = {-86400, 31536000, 0};
    double before = deaths();

    for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
        int fd = begin_sleep();
        struct reply r;

        told->clock = jumps[i];
        r = hear(fd);
        ck_assert_msg(r.status == 200, "%ld s: %d %s", jumps[i], r.status,
                      r.body);
        free(r.body);
        close(fd);
        ck_assert_int_eq(good(), 200);
    }
    ck_assert_double_eq(deaths(), before);
}
END_TEST

/* ---- limits that hold for all of it ---- */

static void limit_memory(void)
{
    struct rlimit r = {700 << 20, 700 << 20};

    setrlimit(RLIMIT_AS, &r);
}

static void small_setup(void)
{
    serve(conf, NULL, limit_memory);
}

/* A head that leaks gets as far as its process may: the request is told, the
 * worker is started again, and the front knows nothing of it. */
START_TEST(leak)
{
    size_t before = memory_of(server);

    for (int i = 0; i < 4; i++) {
        struct reply r = trouble("leak", i % 2 ? "views" : "decode");

        ck_assert_int_eq(r.status, 500);
        ck_assert_ptr_nonnull(strstr(r.body, "ended with status 3"));
        free(r.body);
        ck_assert_int_eq(good(), 200);
        ck_assert_double_eq(deaths(), i + 1);
    }
    ck_assert_uint_le(memory_of(server), before + before / 10 + 1024);
}
END_TEST

static void limit_files(void)
{
    struct rlimit r = {48, 48};

    setrlimit(RLIMIT_NOFILE, &r);
}

static void few_setup(void)
{
    serve(conf, NULL, limit_files);
}

static double cpu_of(pid_t pid)
{
    char path[64];
    unsigned long user, system;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fscanf(f,
                            "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u "
                            "%*u %lu %lu",
                            &user, &system),
                     2);
    fclose(f);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* More clients than there are descriptors for: all are served in the end, and
 * those that wait cost nothing. */
START_TEST(few_files)
{
    char out[2000];
    size_t n = compose_infer(out, sizeof out, "");
    int fd[60], idle[8];
    double cpu, began;

    for (int i = 0; i < 8; i++)
        idle[i] = dial(); /* as many as it takes, and more */
    cpu = cpu_of(server);
    began = now();
    pause_for(1);
    ck_assert_double_lt(cpu_of(server) - cpu, (now() - began) / 4);
    for (int i = 0; i < 8; i++)
        close(idle[i]);
    for (int i = 0; i < 60; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    for (int i = 0; i < 60; i++) {
        struct reply r = hear(fd[i]);

        ck_assert_int_eq(r.status, 200);
        free(r.body);
        close(fd[i]);
    }
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* ---- all ---- */

#define COUNT(table) (int)(sizeof(table) / sizeof *(table))

static TCase *add_case(Suite *s, const char *name, void (*setup)(void),
                       void (*teardown)(void))
{
    TCase *c = tcase_create(name);

    tcase_add_unchecked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 3600);
    suite_add_tcase(s, c);
    return c;
}

int main(void)
{
    Suite *s;
    SRunner *r;
    TCase *c;
    int failed;

    if (SANITIZED) { /* which have an allocator and a loader of their own */
        puts("SKIP: with sanitizers nothing can be preloaded");
        return 77;
    }
    s = suite_create("faults");
    r = srunner_create(s);
    c = add_case(s, "runs", run_setup, inject_end);
    tcase_add_test(c, run_without_memory);
    tcase_add_test(c, run_with_little_memory);
    tcase_add_test(c, run_by_bits);
    c = add_case(s, "requests", served_setup, served_teardown);
    tcase_add_loop_test(c, request_without_memory, 0, COUNT(requests));
    tcase_add_loop_test(c, request_with_little_memory, 0, 2);
    tcase_add_test(c, load_without_memory);
    tcase_add_test(c, requests_by_bits);
    tcase_add_test(c, clock_jumps);
    c = add_case(s, "memory", small_setup, serve_end);
    tcase_add_test(c, leak);
    c = add_case(s, "files", few_setup, serve_end);
    tcase_add_test(c, few_files);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
