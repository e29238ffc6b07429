/* SPDX-License-Identifier: MIT */
/*
 * load - requests to mpiped's Unix socket, and how long they take.
 *
 * Each connection is a thread that asks, waits for the answer, and asks again
 * on the same connection. With a rate, requests have their times in advance,
 * evenly, and a connection that is late with one counts that, too: an answer
 * that makes others wait is not forgotten. What is late when the seconds are
 * over is not asked any more.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 256
#define HEAD_MAX        8192

static const char usage[] =
    "usage: load [options] SOCKET PATH\n"
    "\n"
    "  -c N     connections [1]\n"
    "  -s X     seconds to go on for [5]\n"
    "  -n N     or requests\n"
    "  -r X     requests per second [as many as are answered]\n"
    "  -b FILE  POST this [GET]\n"
    "  -H TEXT  a header line, may be repeated\n";

struct plan {
    struct sockaddr_un at;
    int connections;
    double seconds, rate, began;
    long most;
    char *request;
    size_t bytes;
    _Atomic long next; /* request */
};

struct connection {
    struct plan *plan;
    pthread_t thread;
    double *took;
    size_t n, cap, failed; /* failed: no 200 */
};

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void wait_until(double when)
{
    struct timespec t = {(time_t)when,
                         (long)((when - (double)(time_t)when) * 1e9)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* ---- one request ---- */

static int dial(const struct plan *p)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (const struct sockaddr *)&p->at, sizeof p->at))
        die(p->at.sun_path);
    return fd;
}

static int put(int fd, const char *at, size_t n)
{
    while (n) {
        ssize_t k = send(fd, at, n, MSG_NOSIGNAL);

        if (k <= 0)
            return -1;
        at += k;
        n -= (size_t)k;
    }
    return 0;
}

/* The status, and all of the body; 0: the connection ended. */
static int hear(int fd)
{
    char buf[HEAD_MAX + 1];
    const char *end = NULL, *length;
    size_t n = 0, body;
    int status = 0;

    while (!end && n < HEAD_MAX) {
        ssize_t k = recv(fd, buf + n, HEAD_MAX - n, 0);

        if (k <= 0)
            return 0;
        n += (size_t)k;
        buf[n] = '\0';
        end = strstr(buf, "\r\n\r\n");
    }
    length = end ? strcasestr(buf, "\r\nContent-Length:") : NULL;
    if (!length || sscanf(buf, "HTTP/1.%*d %d", &status) != 1)
        return 0;
    body = strtoul(length + strlen("\r\nContent-Length:"), NULL, 10);
    n -= (size_t)(end + 4 - buf);
    while (n < body) {
        size_t want = body - n < HEAD_MAX ? body - n : HEAD_MAX;
        ssize_t k = recv(fd, buf, want, 0);

        if (k <= 0)
            return 0;
        n += (size_t)k;
    }
    return status;
}

/* ---- many ---- */

static void note(struct connection *c, double took)
{
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 1024;
        c->took = realloc(c->took, c->cap * sizeof *c->took);
        if (!c->took)
            die("memory");
    }
    c->took[c->n++] = took;
}

static void *ask_on(void *user)
{
    struct connection *c = user;
    struct plan *p = c->plan;
    double end = p->began + p->seconds;
    int fd = dial(p);

    for (;;) {
        long i = p->next++;
        double due = p->rate > 0 ? p->began + (double)i / p->rate : now();
        int status;

        if (p->most ? i >= p->most : due >= end || now() >= end)
            break;
        if (p->rate > 0)
            wait_until(due);
        status = put(fd, p->request, p->bytes) ? 0 : hear(fd);
        note(c, now() - due);
        c->failed += status != 200;
        if (!status) {
            close(fd);
            fd = dial(p);
        }
    }
    close(fd);
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void tell(struct connection *c, int n, double seconds)
{
    size_t all = 0, failed = 0, at = 0;
    double *took;

    for (int i = 0; i < n; i++) {
        all += c[i].n;
        failed += c[i].failed;
    }
    took = malloc((all + 1) * sizeof *took);
    if (!took)
        die("memory");
    for (int i = 0; i < n; at += c[i++].n)
        memcpy(took + at, c[i].took, c[i].n * sizeof *took);
    qsort(took, all, sizeof *took, by_value);
    if (all)
        printf("%zu requests in %.3f s, %zu failed: %.1f/s; median %.3f ms, "
               "p90 %.3f, p99 %.3f, most %.3f\n",
               all, seconds, failed, (double)all / seconds, 1e3 * took[all / 2],
               1e3 * took[all * 9 / 10], 1e3 * took[all * 99 / 100],
               1e3 * took[all - 1]);
    free(took);
    if (failed || !all)
        exit(1);
}

static void run(struct plan *p)
{
    static struct connection c[CONNECTIONS_MAX];

    p->began = now();
    for (int i = 0; i < p->connections; i++) {
        c[i].plan = p;
        if (pthread_create(&c[i].thread, NULL, ask_on, &c[i]))
            die("thread");
    }
    for (int i = 0; i < p->connections; i++)
        pthread_join(c[i].thread, NULL);
    tell(c, p->connections, now() - p->began);
    for (int i = 0; i < p->connections; i++)
        free(c[i].took);
}

/* ---- the request ---- */

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    long size = -1;

    if (f && !fseek(f, 0, SEEK_END) && (size = ftell(f)) >= 0) {
        rewind(f);
        bytes = malloc((size_t)size + 1);
    }
    if (!bytes || fread(bytes, 1, (size_t)size, f) != (size_t)size)
        die(path);
    fclose(f);
    *n = (size_t)size;
    return bytes;
}

static void compose(struct plan *p, const char *path, const char *headers,
                    const char *body)
{
    size_t n = 0;
    char *bytes = body ? read_file(body, &n) : NULL;
    FILE *f = open_memstream(&p->request, &p->bytes);

    if (!f)
        die("memory");
    fprintf(f, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", body ? "POST" : "GET",
            path, headers);
    if (body)
        fprintf(f, "Content-Length: %zu\r\n", n);
    fputs("\r\n", f);
    if (body)
        fwrite(bytes, 1, n, f);
    if (fclose(f))
        die("memory");
    free(bytes);
}

int main(int argc, char **argv)
{
    struct plan p = {
        .connections = 1, .seconds = 5, .at = {.sun_family = AF_UNIX}};
    const char *body = NULL;
    char headers[2048] = "";
    int c;

    while ((c = getopt(argc, argv, "c:s:n:r:b:H:")) != -1)
        switch (c) {
        case 'c':
            p.connections = atoi(optarg);
            break;
        case 's':
            p.seconds = atof(optarg);
            break;
        case 'n':
            p.most = atol(optarg);
            break;
        case 'r':
            p.rate = atof(optarg);
            break;
        case 'b':
            body = optarg;
            break;
        case 'H':
            snprintf(headers + strlen(headers),
                     sizeof headers - strlen(headers), "%s\r\n", optarg);
            break;
        default:
            fputs(usage, stderr);
            return 2;
        }
    if (argc - optind != 2 || p.connections < 1 ||
        p.connections > CONNECTIONS_MAX ||
        strlen(argv[optind]) >= sizeof p.at.sun_path) {
        fputs(usage, stderr);
        return 2;
    }
    strcpy(p.at.sun_path, argv[optind]);
    compose(&p, argv[optind + 1], headers, body);
    run(&p);
    free(p.request);
    return 0;
}
