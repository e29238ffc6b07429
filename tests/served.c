/* SPDX-License-Identifier: MIT */
/* served.c - see served.h. */
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "make_weights.h"
#include "served.h"

char serve_dir[64];
pid_t server;
static struct sockaddr_un where = {.sun_family = AF_UNIX};

double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void pause_for(double seconds)
{
    nanosleep(&(struct timespec){(time_t)seconds,
                                 (long)((seconds - (int)seconds) * 1e9)},
              NULL);
}

/* ---- a small client ---- */

int try_dial(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = 120};

    ck_assert_int_ge(fd, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (!connect(fd, (struct sockaddr *)&where, sizeof where))
        return fd;
    close(fd);
    return -1;
}

int dial(void)
{
    int fd = try_dial();

    ck_assert_int_ge(fd, 0);
    return fd;
}

/* What the server does not take any more is nobody's loss. */
int put(int fd, const void *bytes, size_t n)
{
    const char *at = bytes;

    while (n) {
        ssize_t k = send(fd, at, n, MSG_NOSIGNAL);

        if (k <= 0)
            return -1;
        at += k;
        n -= (size_t)k;
    }
    return 0;
}

int put_text(int fd, const char *text)
{
    return put(fd, text, strlen(text));
}

static int take(int fd, char *to, size_t n)
{
    while (n) {
        ssize_t k = recv(fd, to, n, 0);

        if (k <= 0)
            return -1;
        to += k;
        n -= (size_t)k;
    }
    return 0;
}

/* No error tells of files, memory or addresses. */
static void check_secrets(const struct reply *r)
{
    static const char *const never[] = {"/tmp",  "/proc", "/etc",     "0x7f",
                                        "memfd", ".sock", "/a/folder"};

    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        ck_assert_msg(r->status < 400 || !strstr(r->body, never[i]),
                      "tells too much: %s", r->body);
}

struct reply hear(int fd)
{
    struct reply r = {0};
    size_t n = 0;
    const char *length;

    while (n + 1 < sizeof r.head && !strstr(r.head, "\r\n\r\n")) {
        if (take(fd, r.head + n, 1))
            break;
        n++;
    }
    if (!strstr(r.head, "\r\n\r\n"))
        return r;
    ck_assert_int_eq(sscanf(r.head, "HTTP/1.%*d %d", &r.status), 1);
    length = strcasestr(r.head, "\r\nContent-Length:");
    r.n =
        length ? strtoul(length + strlen("\r\nContent-Length:"), NULL, 10) : 0;
    r.body = calloc(1, r.n + 1);
    if (take(fd, r.body, r.n))
        r.status = 0;
    check_secrets(&r);
    return r;
}

struct reply ask_bytes(const void *bytes, size_t n)
{
    int fd = dial();
    struct reply r;

    put(fd, bytes, n);
    r = hear(fd);
    close(fd);
    return r;
}

struct reply ask(const char *text)
{
    return ask_bytes(text, strlen(text));
}

int status_of(const char *text)
{
    struct reply r = ask(text);

    free(r.body);
    return r.status;
}

/* A request with a JSON part and what follows it. */
size_t compose(char *out, size_t size, const char *path, const char *more_head,
               const char *json, const void *data, size_t n)
{
    int k = snprintf(out, size,
                     "POST %s HTTP/1.1\r\nhost: x\r\n"
                     "inference-header-content-length: %zu\r\n%s"
                     "content-length: %zu\r\n\r\n%s",
                     path, strlen(json), more_head, strlen(json) + n, json);

    ck_assert_int_gt(k, 0);
    ck_assert_uint_lt((size_t)k + n, size);
    memcpy(out + k, data, n);
    return (size_t)k + n;
}

struct reply infer(const char *parameters, const char *data, size_t n)
{
    char json[2000], out[8000];

    snprintf(json, sizeof json,
             "{\"id\":\"q1\",\"inputs\":[{\"name\":\"image\",\"shape\":[1,2,2,"
             "3],\"datatype\":\"UINT8\",\"parameters\":{\"binary_data_size\":"
             "%zu}}],\"parameters\":{\"binary_data_output\":true%s}}",
             n, parameters);
    return ask_bytes(out, compose(out, sizeof out, INFER, "", json, data, n));
}

const char pixels[12] = "abcdefghijkl";

int good(void)
{
    struct reply r = infer("", pixels, sizeof pixels);

    free(r.body);
    return r.status;
}

struct reply trouble(const char *fault, const char *place)
{
    char text[200];

    snprintf(text, sizeof text, ",\"fault\":\"%s\",\"place\":\"%s\"", fault,
             place);
    return infer(text, pixels, sizeof pixels);
}

/* The number behind a metric's name and labels. */
double metric(const char *name)
{
    struct reply r = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    const char *at = r.body ? strstr(r.body, name) : NULL;
    double v = at ? strtod(at + strlen(name), NULL) : -1;

    free(r.body);
    return v;
}

int is_ready(void)
{
    return status_of("GET /v2/models/trouble/ready HTTP/1.1\r\n"
                     "Host: x\r\n\r\n") == 200;
}

void wait_ready(void)
{
    double until = now() + 60;

    while (!is_ready() && now() < until)
        pause_for(0.05);
    ck_assert(is_ready());
}

/* ---- the server ---- */

size_t memory_of(pid_t pid)
{
    char path[64];
    unsigned long all, resident = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%ld/statm", (long)pid);
    f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fscanf(f, "%lu %lu", &all, &resident), 2);
    fclose(f);
    return resident * 4;
}

size_t files_of(pid_t pid)
{
    char path[64];
    size_t n = 0;
    DIR *d;

    snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
    d = opendir(path);
    ck_assert_ptr_nonnull(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2; /* . and .. */
}

/* Processes that the front has begun, up to most. */
static size_t workers(pid_t *pid, size_t most)
{
    char path[100];
    size_t n = 0;
    long one;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", (long)server,
             (long)server);
    f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    while (n < most && fscanf(f, "%ld", &one) == 1)
        pid[n++] = (pid_t)one;
    fclose(f);
    return n;
}

#define WORKERS 8

size_t memory_of_all(void)
{
    pid_t pid[WORKERS];
    size_t n = workers(pid, WORKERS), all = memory_of(server);

    for (size_t i = 0; i < n; i++)
        all += memory_of(pid[i]);
    return all;
}

void hold_memory(size_t kib, size_t most)
{
    printf("memory: %zu of %zu KiB\n", kib, most);
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    puts("not asserted: the sanitizer keeps memory");
#else
    ck_assert_uint_le(kib, most);
#endif
}

pid_t worker_pid(void)
{
    pid_t pid;

    return workers(&pid, 1) ? pid : 0;
}

void signal_workers(int number)
{
    pid_t pid[WORKERS];
    size_t n = workers(pid, WORKERS);

    for (size_t i = 0; i < n; i++)
        kill(pid[i], number);
}

static FILE *create(char path[300], const char *name)
{
    FILE *f;

    snprintf(path, 300, "%s/%s", serve_dir, name);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    return f;
}

static void write_conf(const char *conf, const char *weights)
{
    char path[300];
    FILE *f = create(path, "trouble.ini");

    fprintf(f,
            "[pipeline]\nhead = trouble\n[model]\ncheckpoint = %s\n"
            "strict = no\n[compute]\nbackend = ref\n",
            weights);
    fclose(f);
    f = create(path, "mpiped.ini");
    fprintf(f, "[http]\nsocket = %s/s\n%s", serve_dir, conf);
    fclose(f);
}

/* The program itself, without libtool's script around it. */
static void become_mpiped(const char *build)
{
    char path[300], conf[300];

    snprintf(conf, sizeof conf, "%s/mpiped.ini", serve_dir);
    snprintf(path, sizeof path, "%s/tests", build);
    setenv("MPIPE_PLUGIN_PATH", path, 1);
    snprintf(path, sizeof path, "%s/.libs", build);
    setenv("LD_LIBRARY_PATH", path, 1);
    /* the address sanitizer would keep 256 MiB of what is free */
    setenv("ASAN_OPTIONS", "quarantine_size_mb=1", 0);
    snprintf(path, sizeof path, "%s/.libs/mpiped", build);
    execl(path, "mpiped", "-v", "-c", conf, (char *)NULL);
    snprintf(path, sizeof path, "%s/mpiped", build);
    execl(path, "mpiped", "-v", "-c", conf, (char *)NULL);
    _exit(99);
}

void serve(const char *conf, const char *const *env, void (*before)(void))
{
    const char *build = getenv("builddir"), *src = getenv("srcdir");
    char weights[300], keys[300], log[300];
    struct mp_error err = {0};
    int fd;

    build = build ? build : ".";
    src = src ? src : ".";
    strcpy(serve_dir, "/tmp/mpiped-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(serve_dir));
    snprintf(weights, sizeof weights, "%s/w.safetensors", serve_dir);
    snprintf(keys, sizeof keys, "%s/tests/golden/keys/tiny_depth.json", src);
    ck_assert_msg(!make_weights(keys, weights, &err), "%s", err.text);
    write_conf(conf, weights);
    snprintf(where.sun_path, sizeof where.sun_path, "%s/s", serve_dir);
    snprintf(log, sizeof log, "%s/log", serve_dir);
    server = fork();
    ck_assert_int_ge(server, 0);
    if (!server) {
        fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(fd, STDERR_FILENO);
        close(fd);
        for (; env && *env; env++)
            putenv((char *)*env);
        if (before)
            before();
        become_mpiped(build);
    }
    for (int i = 0; i < 1200 && (fd = try_dial()) < 0; i++)
        pause_for(0.05);
    ck_assert_int_ge(fd, 0);
    close(fd);
    wait_ready();
}

void serve_end(void)
{
    char command[300];
    int status;

    kill(server, SIGTERM);
    ck_assert_int_eq(waitpid(server, &status, 0), server);
    snprintf(command, sizeof command, "cat %s/log >&2", serve_dir);
    if (status && system(command))
        fputs("no log\n", stderr);
    ck_assert_int_eq(status, 0);
    snprintf(command, sizeof command, "rm -rf %s", serve_dir);
    ck_assert_int_eq(system(command), 0);
}
