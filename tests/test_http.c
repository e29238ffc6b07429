/* SPDX-License-Identifier: MIT */
/*
 * mpiped from the other end of a socket: byte strings in, and whatever comes
 * back. The head is trouble.c, so that a request costs next to nothing and can
 * bring its worker down.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "make_weights.h"
#include "mpipe/base.h"

static char folder[] = "/tmp/mpiped-test-XXXXXX";
static pid_t server;
static struct sockaddr_un where = {.sun_family = AF_UNIX};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pause_for(double seconds)
{
    nanosleep(&(struct timespec){(time_t)seconds,
                                 (long)((seconds - (int)seconds) * 1e9)},
              NULL);
}

/* ---- a small client ---- */

static int try_dial(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = 60};

    ck_assert_int_ge(fd, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (!connect(fd, (struct sockaddr *)&where, sizeof where))
        return fd;
    close(fd);
    return -1;
}

static int dial(void)
{
    int fd = try_dial();

    ck_assert_int_ge(fd, 0);
    return fd;
}

/* What the server does not take any more is nobody's loss. */
static int put(int fd, const void *bytes, size_t n)
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

static int put_text(int fd, const char *text)
{
    return put(fd, text, strlen(text));
}

struct reply {
    int status; /* 0: the connection ended before */
    char head[4096];
    char *body;
    size_t n;
};

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

static struct reply hear(int fd)
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

static struct reply ask_bytes(const void *bytes, size_t n)
{
    int fd = dial();
    struct reply r;

    put(fd, bytes, n);
    r = hear(fd);
    close(fd);
    return r;
}

static struct reply ask(const char *text)
{
    return ask_bytes(text, strlen(text));
}

static int status_of(const char *text)
{
    struct reply r = ask(text);

    free(r.body);
    return r.status;
}

/* A request with a JSON part and what follows it. */
static size_t compose(char *out, size_t size, const char *path,
                      const char *more_head, const char *json, const void *data,
                      size_t n)
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

#define INFER "/v2/models/trouble/infer"

static struct reply infer(const char *parameters, const char *data, size_t n)
{
    char json[2000], out[8000];

    snprintf(json, sizeof json,
             "{\"id\":\"q1\",\"inputs\":[{\"name\":\"image\",\"shape\":[1,2,2,"
             "3],\"datatype\":\"UINT8\",\"parameters\":{\"binary_data_size\":"
             "%zu}}],\"parameters\":{\"binary_data_output\":true%s}}",
             n, parameters);
    return ask_bytes(out, compose(out, sizeof out, INFER, "", json, data, n));
}

static const char pixels[12] = "abcdefghijkl";

static int good(void)
{
    struct reply r = infer("", pixels, sizeof pixels);

    free(r.body);
    return r.status;
}

static struct reply trouble(const char *fault, const char *place)
{
    char text[200];

    snprintf(text, sizeof text, ",\"fault\":\"%s\",\"place\":\"%s\"", fault,
             place);
    return infer(text, pixels, sizeof pixels);
}

/* The number behind a metric's name and labels. */
static double metric(const char *name)
{
    struct reply r = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    const char *at = r.body ? strstr(r.body, name) : NULL;
    double v = at ? strtod(at + strlen(name), NULL) : -1;

    free(r.body);
    return v;
}

static int is_ready(void)
{
    return status_of("GET /v2/models/trouble/ready HTTP/1.1\r\n"
                     "Host: x\r\n\r\n") == 200;
}

static void wait_ready(void)
{
    double until = now() + 60;

    while (!is_ready() && now() < until)
        pause_for(0.05);
    ck_assert(is_ready());
}

/* ---- the server ---- */

static void write_conf(const char *path, const char *weights)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    fprintf(f,
            "[http]\nsocket = %s/s\n"
            "[limits]\nbody = 1\njson = 1\nrequest_time = 2\nqueue = 8\n"
            "pictures = 4\n"
            "compute_time = 8\n"
            "[worker]\ndeaths = 1000\nbackoff = 0\n"
            "[pipeline trouble]\nfile = trouble.ini\n"
            "[pipeline batch]\nfile = trouble.ini\nload = on-demand\n"
            "worker = other\nbatch_window = 300\ncompute.batch = 4\n",
            folder);
    fclose(f);
    snprintf(where.sun_path, sizeof where.sun_path, "%s/trouble.ini", folder);
    f = fopen(where.sun_path, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f,
            "[pipeline]\nhead = trouble\n[model]\ncheckpoint = %s\n"
            "strict = no\n[compute]\nbackend = ref\n",
            weights);
    fclose(f);
}

static void setup(void)
{
    const char *build = getenv("builddir"), *src = getenv("srcdir");
    char path[300], conf[300], weights[300], keys[300], log[300];
    struct mp_error err = {0};
    int fd;

    build = build ? build : ".";
    src = src ? src : ".";
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/mpiped", build);
    snprintf(conf, sizeof conf, "%s/mpiped.ini", folder);
    snprintf(weights, sizeof weights, "%s/w.safetensors", folder);
    snprintf(keys, sizeof keys, "%s/tests/golden/keys/tiny_depth.json", src);
    ck_assert_msg(!make_weights(keys, weights, &err), "%s", err.text);
    write_conf(conf, weights);
    snprintf(where.sun_path, sizeof where.sun_path, "%s/s", folder);
    snprintf(log, sizeof log, "%s/log", folder);
    server = fork();
    ck_assert_int_ge(server, 0);
    if (!server) {
        snprintf(keys, sizeof keys, "%s/tests", build);
        setenv("MPIPE_PLUGIN_PATH", keys, 1);
        fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(fd, STDERR_FILENO);
        execl(path, path, "-v", "-c", conf, (char *)NULL);
        _exit(99);
    }
    for (int i = 0; i < 1200 && (fd = try_dial()) < 0; i++)
        pause_for(0.05);
    ck_assert_int_ge(fd, 0);
    close(fd);
    wait_ready();
}

static void teardown(void)
{
    char command[300];
    int status;

    kill(server, SIGTERM);
    ck_assert_int_eq(waitpid(server, &status, 0), server);
    snprintf(command, sizeof command, "cat %s/log >&2", folder);
    if (status && system(command))
        fputs("no log\n", stderr);
    ck_assert_int_eq(status, 0);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

/* ---- what is right ---- */

START_TEST(as_clients_send_it)
{
    struct reply r = infer("", pixels, sizeof pixels);
    const char *length;
    json_t *o, *out;
    size_t n;

    ck_assert_int_eq(r.status, 200);
    length = strcasestr(r.head, "inference-header-content-length:");
    ck_assert_ptr_nonnull(length);
    n = strtoul(strchr(length, ':') + 1, NULL, 10);
    o = json_loadb(r.body, n, 0, NULL);
    ck_assert_str_eq(json_string_value(json_object_get(o, "id")), "q1");
    ck_assert_str_eq(json_string_value(json_object_get(o, "model_name")),
                     "trouble");
    out = json_array_get(json_object_get(o, "outputs"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(out, "datatype")),
                     "FP32");
    ck_assert_int_eq(
        json_integer_value(json_object_get(json_object_get(out, "parameters"),
                                           "binary_data_size")),
        2 * 2 * 4 * 4);
    /* behind it, the text with its length: "picture" */
    ck_assert_uint_eq(r.n, n + 64 + 4 + strlen("\"picture\""));
    ck_assert_mem_eq(r.body + n + 64, "\t\0\0\0\"picture\"", 13);
    json_decref(o);
    free(r.body);
}
END_TEST

/* Several on one connection; lower case; no Content-Length where there is no
 * body. */
START_TEST(keeps_the_connection)
{
    int fd = dial();
    struct reply r;

    for (int i = 0; i < 3; i++) {
        put_text(fd, "PUT /v2 HTTP/1.1\r\nhost: x\r\n\r\n");
        r = hear(fd);
        ck_assert_int_eq(r.status, 405);
        free(r.body);
        put_text(fd, "POST /v2/repository/index HTTP/1.1\r\nhost: x\r\n\r\n");
        r = hear(fd);
        ck_assert_int_eq(r.status, 200);
        ck_assert_int_eq(*r.body, '[');
        free(r.body);
    }
    close(fd);
}
END_TEST

START_TEST(the_same_in_json)
{
    const char *json =
        "{\"inputs\":[{\"name\":\"image\",\"shape\":[1,2,2,3],\"datatype\":"
        "\"UINT8\",\"data\":[[[[97,98,99],[100,101,102]],[[103,104,105],[106,"
        "107,108]]]]}],\"outputs\":[{\"name\":\"latents\",\"parameters\":{"
        "\"binary_data\":true}}]}";
    struct reply a = infer("", pixels, sizeof pixels), b;
    char out[2000];
    const char *one, *two;

    b = ask_bytes(out, compose(out, sizeof out, INFER, "", json, "", 0));
    ck_assert_int_eq(b.status, 200);
    one = a.body +
          strtoul(strchr(strcasestr(a.head, "inference-header"), ':') + 1, NULL,
                  10);
    two = b.body +
          strtoul(strchr(strcasestr(b.head, "inference-header"), ':') + 1, NULL,
                  10);
    ck_assert_mem_eq(one, two, 64);
    free(a.body);
    free(b.body);
}
END_TEST

START_TEST(squeezed)
{
    struct reply a = infer("", pixels, sizeof pixels), b;
    char json[400], zip[1000], out[3000];
    uLongf n = sizeof zip;
    int k, fd = dial();

    k = snprintf(json, sizeof json,
                 "{\"inputs\":[{\"name\":\"image\",\"shape\":[1,2,2,3],"
                 "\"datatype\":\"UINT8\",\"parameters\":{\"binary_data_size\":"
                 "12}}],\"parameters\":{\"binary_data_output\":true}}%.12s",
                 pixels);
    ck_assert_int_eq(compress((Bytef *)zip, &n, (Bytef *)json, (uLong)k), Z_OK);
    k = snprintf(out, sizeof out,
                 "POST " INFER " HTTP/1.1\r\nhost: x\r\ncontent-encoding: "
                 "deflate\r\ninference-header-content-length: %d\r\n"
                 "content-length: %lu\r\n\r\n",
                 k - 12, n);
    put(fd, out, (size_t)k);
    put(fd, zip, n);
    b = hear(fd);
    close(fd);
    ck_assert_int_eq(b.status, 200);
    ck_assert_mem_eq(a.body + a.n - 77, b.body + b.n - 77, 77);
    free(a.body);
    free(b.body);
}
END_TEST

/* ---- what is wrong ---- */

#define POST(head, body)                                                       \
    "POST " INFER " HTTP/1.1\r\nHost: x\r\n" head "\r\n" body
#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

static const struct {
    const char *text;
    int status;
} heads[] = {
    {GET("/v2/health/live"), 200},
    {GET("/v2/models/trouble/versions/1"), 200},
    {GET("/v2/models/trouble/versions/2"), 404},
    {GET("/v2/models/none"), 404},
    {GET("/v2/models/..%2ftrouble"), 404},
    {GET("/v2/models/trouble%00"), 404},
    {GET("/v2/models/tr\xc3\xa4uble"), 404},
    {GET("/v2/models/\xff"), 404},
    {GET("/v2/models/batch"), 400},
    {GET("/v2/logging"), 501},
    {GET("/v2/systemsharedmemory/status"), 501},
    {GET("/"), 200},
    {GET("/nowhere"), 404},
    {"DELETE /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 405},
    {GET("/v2/models/trouble/infer"), 405},
    {POST("Content-Length: 0\r\n", ""), 400},
    {POST("Content-Length: 2147483648\r\n", "x"), 400},
    {POST("Content-Length: 9223372036854775808\r\n", "x"), 400},
    {POST("Content-Length: -1\r\n", "x"), 400},
    {POST("Content-Length: 1\r\nContent-Length: 1\r\n", "x"), 400},
    {POST("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
          "1\r\nx\r\n0\r\n\r\n"),
     400},
    {POST("Transfer-Encoding: gzip\r\nContent-Length: 1\r\n", "x"), 400},
    {POST("Transfer-Encoding: chunked\r\n", "1\r\nx\r\n0\r\n\r\n"), 400},
    {POST("Inference-Header-Content-Length: 3\r\nContent-Length: 2\r\n", "{}"),
     400},
    {POST("Inference-Header-Content-Length: -1\r\nContent-Length: 2\r\n", "{}"),
     400},
    {POST("Inference-Header-Content-Length: 12abc\r\nContent-Length: 2\r\n",
          "{}"),
     400},
    {POST("Inference-Header-Content-Length: 18446744073709551617\r\n"
          "Content-Length: 2\r\n",
          "{}"),
     400},
    {POST("Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}"), 400},
    {POST("Content-Encoding: br\r\nContent-Length: 2\r\n", "{}"), 400},
    {POST("Content-Length: 2\r\n", "{}"), 400},
    {POST("Content-Length: 2\r\n", "[]"), 400},
};

START_TEST(wrong_head)
{
    struct reply r = ask(heads[_i].text);

    ck_assert_msg(r.status == heads[_i].status, "%d, not %d: %s -> %s",
                  r.status, heads[_i].status, heads[_i].text, r.body);
    free(r.body);
    ck_assert_int_eq(good(), 200);
}
END_TEST

#define IMAGE(shape, more)                                                     \
    "{\"inputs\":[{\"name\":\"image\",\"datatype\":\"UINT8\",\"shape\":" shape \
        more "}]}"
#define BYTES(n)                                                               \
    "{\"inputs\":[{\"name\":\"image_bytes\",\"datatype\":\"BYTES\",\"shape\":" \
    "[1],\"parameters\":{\"binary_data_size\":" n "}}]}"
#define SIZE(n)    ",\"parameters\":{\"binary_data_size\":" n "}"
#define WITH(more) IMAGE("[1,2,2,3]", SIZE("12") "}]," more ",\"x\":[{\"y\":1")

/* JSON, and 12 bytes behind it. */
static const struct {
    const char *json, *says;
} bodies[] = {
    {IMAGE("[1,2,2,3]", SIZE("13")), "binary_data_size"},
    {IMAGE("[1,2,2,3]", SIZE("11")), "11 bytes"},
    {IMAGE("[1,2,2,3]", SIZE("-1")), "binary_data_size"},
    {IMAGE("[1,2,2,3]", SIZE("1e3")), "binary_data_size"},
    {IMAGE("[1,2,2,3]", SIZE("9223372036854775807")), "binary_data_size"},
    {IMAGE("[1,2,2,3]", SIZE("9223372036854775808")), "no JSON"},
    {IMAGE("[1,2,2,3]", ",\"data\":[1]" SIZE("12")), "either"},
    {IMAGE("[1,2,2,3]", ""), "either"},
    {IMAGE("[1,2,2,3]", ",\"data\":[1,2]"), "data"},
    {IMAGE("[1,2,2,3]", ",\"data\":[1,2,3,4,5,6,7,8,9,10,11,256]"), "0..255"},
    {IMAGE("[1,2,2,3]", ",\"data\":[1,2,3,4,5,6,7,8,9,10,11,1.5]"), "0..255"},
    {IMAGE("[1,2,2,3]", ",\"data\":[1,2,3,4,5,6,7,8,9,10,11,12,13]"), "0..255"},
    {IMAGE("[1,4611686018427387904]", SIZE("12")), "must be UINT8"},
    {IMAGE("[1,4611686018427387904,4,3]", SIZE("12")), "63 bits"},
    {IMAGE("[-1]", SIZE("12")), "shape"},
    {IMAGE("\"-1\"", SIZE("12")), "shape"},
    {IMAGE("[1,2,2,3.0]", SIZE("12")), "shape"},
    {IMAGE("[1,1,1,1,1,1,1,1,1]", SIZE("12")), "shape"},
    {IMAGE("[1,0,4,3]", SIZE("0")), "must be UINT8"},
    {IMAGE("[0,2,2,3]", SIZE("0")), "0 pictures"},
    {IMAGE("[5,2,2,3]", SIZE("12")), "1 to 4"},
    {"{\"inputs\":[]}", "missing"},
    {"{\"inputs\":{}}", "list"},
    {"{\"inputs\":[1]}", "name"},
    {"{\"inputs\":[{},{},{},{},{},{},{},{},{}]}", "up to 8"},
    {"{\"inputs\":[{\"name\":\"a\\u0000b\"}]}", "no JSON"},
    {"{\"inputs\":[{\"name\":\"\xff\"}]}", "no JSON"},
    {"{\"inputs\":1,\"inputs\":1}", "no JSON"},
    {BYTES("12"), "length"},
    {BYTES("3"), "length"},
    {WITH("\"parameters\":[1]"), "parameters"},
    {WITH("\"parameters\":{\"fault\":\"nothing\"}"), "one of none"},
    {WITH("\"parameters\":{\"fualt\":\"none\"}"), "did you mean fault"},
    {WITH("\"parameters\":{\"fault\":[1]}"), "fault"},
    {WITH("\"parameters\":{\"timeout\":-1}"), "timeout"},
    {WITH("\"parameters\":{\"priority\":10}"), "priority"},
    {WITH("\"parameters\":{\"name\":\"../x\"}"), "slash"},
    {WITH("\"id\":7"), "id"},
    {WITH("\"outputs\":7"), "outputs"},
    {WITH("\"outputs\":[7]"), "outputs"},
    {WITH("\"outputs\":[{\"name\":\"nothing\"}]"), "has no"},
    {WITH("\"outputs\":[{\"name\":\"id\",\"parameters\":{\"binary_data\":1}}]"),
     "binary_data"},
};

START_TEST(wrong_body)
{
    char out[4000];
    struct reply r = ask_bytes(
        out, compose(out, sizeof out, INFER, "", bodies[_i].json, pixels, 12));

    ck_assert_msg(r.status == 400 && strstr(r.body, bodies[_i].says),
                  "%d %s: %s", r.status, r.body, bodies[_i].json);
    ck_assert_ptr_nonnull(strstr(r.body, "{\"error\":\""));
    free(r.body);
}
END_TEST

START_TEST(not_supported)
{
    struct reply r = infer(",\"sequence_id\":7", pixels, sizeof pixels);

    ck_assert_int_eq(r.status, 501);
    ck_assert_ptr_nonnull(strstr(r.body, "there are no sequences"));
    free(r.body);
}
END_TEST

/* ---- several pictures ---- */

/* Pictures of one request: the answer is that of each, one behind the other. */
START_TEST(several_pictures)
{
    char json[500], out[2000], data[36], *both;
    struct reply r[3], all;
    size_t head;

    for (int i = 0; i < 36; i++)
        data[i] = (char)(i * 7);
    for (int i = 0; i < 3; i++) {
        r[i] = infer("", data + 12 * i, 12);
        ck_assert_int_eq(r[i].status, 200);
    }
    snprintf(json, sizeof json,
             IMAGE("[3,2,2,3]",
                   SIZE("36") "}],\"parameters\":{\"binary_data_output\":true"
                              "},\"x\":[{\"y\":1"));
    all = ask_bytes(out, compose(out, sizeof out, INFER, "", json, data, 36));
    ck_assert_msg(all.status == 200, "%d %s", all.status, all.body);
    ck_assert_ptr_nonnull(strstr(all.body, "\"shape\":[3,2,2,4]"));
    ck_assert_ptr_nonnull(strstr(all.body, "\"shape\":[3],"));
    head = strtoul(strchr(strcasestr(all.head, "inference-header"), ':') + 1,
                   NULL, 10);
    ck_assert_uint_eq(all.n, head + 3 * (64 + 13));
    both = all.body + head;
    for (int i = 0; i < 3; i++) {
        ck_assert_mem_eq(both + 64 * i, r[i].body + r[i].n - 77, 64);
        ck_assert_mem_eq(both + 3 * 64 + 13 * i, r[i].body + r[i].n - 13, 13);
        free(r[i].body);
    }
    free(all.body);
}
END_TEST

static const char png[] = /* 1 x 1 */
    "\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00"
    "\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde\x00\x00\x00\x0cIDATx"
    "\x9c"
    "c\xf8\xdf\xe0\x00\x00\x04"
    "A\x01\xc0\x0c\xd1\xed\x91\x00"
    "\x00\x00\x00IEND\xae"
    "B`\x82";

/* The second of three is none: so nothing is answered but that. */
START_TEST(one_of_several_fails)
{
    char out[2000], data[400];
    size_t n = 0;
    struct reply r;
    char json[300];

    for (int i = 0; i < 3; i++) {
        size_t bytes = i == 1 ? 5 : sizeof png - 1;

        memcpy(data + n, (char[4]){(char)bytes}, 4);
        memcpy(data + n + 4, i == 1 ? "wrong" : png, bytes);
        n += 4 + bytes;
    }
    snprintf(json, sizeof json,
             "{\"inputs\":[{\"name\":\"image_bytes\",\"datatype\":\"BYTES\","
             "\"shape\":[3],\"parameters\":{\"binary_data_size\":%zu}}]}",
             n);
    r = ask_bytes(out, compose(out, sizeof out, INFER, "", json, data, n));
    ck_assert_int_eq(r.status, 400);
    ck_assert_str_eq(r.body, "{\"error\":\"picture 2: neither PNG nor JPEG\","
                             "\"stage\":\"read\"}");
    free(r.body);
    while (metric("mpipe_in_flight{model=\"trouble\"} ") > 0)
        pause_for(0.01);
    ck_assert_double_eq(metric("mpipe_queue_length{model=\"trouble\"} "), 0);
}
END_TEST

/* More pictures than the worker takes at once, and it dies of one: the request
 * ends, and nothing of it is left. */
START_TEST(dies_of_one_of_several)
{
    char json[500], out[2000], data[48] = "";
    struct reply r;

    snprintf(json, sizeof json,
             IMAGE("[4,2,2,3]", SIZE("48") "}],\"parameters\":{\"fault\":"
                                           "\"abort\"},\"x\":[{\"y\":1"));
    r = ask_bytes(out, compose(out, sizeof out, INFER, "", json, data, 48));
    ck_assert_int_eq(r.status, 500);
    ck_assert_ptr_nonnull(strstr(r.body, "signal 6"));
    free(r.body);
    wait_ready();
    ck_assert_int_eq(good(), 200);
    ck_assert_double_eq(metric("mpipe_queue_length{model=\"trouble\"} "), 0);
    ck_assert_double_eq(metric("mpipe_in_flight{model=\"trouble\"} "), 0);
}
END_TEST

/* ---- too much ---- */

static size_t memory_of(pid_t pid)
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

START_TEST(large_body)
{
    size_t n = (1 << 20) + 1, before = memory_of(server);
    char *bytes = calloc(1, n), line[40];
    int fd;
    struct reply r;

    ck_assert_int_eq(status_of(POST("Content-Length: 1048577\r\n", "x")), 400);
    for (int i = 0; i < 20; i++) {
        fd = dial();
        put_text(fd, POST("Transfer-Encoding: chunked\r\n", ""));
        snprintf(line, sizeof line, "%zx\r\n", n);
        put_text(fd, line);
        put(fd, bytes, n);
        put_text(fd, "\r\n0\r\n\r\n");
        r = hear(fd);
        ck_assert_int_eq(r.status, 400);
        ck_assert_ptr_nonnull(strstr(r.body, "larger than 1 MiB"));
        free(r.body);
        close(fd);
    }
    ck_assert_uint_le(memory_of(server), before + before / 10 + 1024);
    free(bytes);
}
END_TEST

START_TEST(endless_body)
{
    char bytes[4096] = "", line[40];
    double until = now() + 20;
    int fd = dial();

    snprintf(line, sizeof line, "%zx\r\n", sizeof bytes);
    put_text(fd, POST("Transfer-Encoding: chunked\r\n", ""));
    while (now() < until && !put_text(fd, line) &&
           !put(fd, bytes, sizeof bytes) && !put_text(fd, "\r\n"))
        ;
    ck_assert_double_lt(now(), until);
    close(fd);
}
END_TEST

START_TEST(many_pieces)
{
    int fd = dial();
    struct reply r;

    put_text(fd, POST("Transfer-Encoding: chunked\r\n", ""));
    for (int i = 0; i < 70000; i++)
        put_text(fd, "1\r\nx\r\n");
    put_text(fd, "0\r\n\r\n");
    r = hear(fd);
    ck_assert_int_eq(r.status, 400);
    ck_assert_ptr_nonnull(strstr(r.body, "pieces"));
    free(r.body);
    close(fd);
}
END_TEST

static void fill(char *out, const char *piece, size_t times)
{
    size_t n = strlen(piece);

    for (size_t i = 0; i < times; i++)
        memcpy(out + i * n, piece, n);
    out[times * n] = '\0';
}

/* Many outputs, inputs, levels: each refused, and soon. */
START_TEST(much_json)
{
    static const struct {
        const char *before, *piece, *after;
        size_t times;
    } many[] = {
        {"{\"outputs\":[", "{\"name\":\"id\"},", "{}],\"inputs\":[]}", 60000},
        {"{\"inputs\":[", "{},", "{}]}", 300000},
        {"", "[", "", 1000000},
        {"{\"inputs\":", "[", "", 1000000},
        {"{\"parameters\":{\"a\":", "{\"a\":", "", 10000},
    };
    size_t size = 2 << 20;
    char *json = malloc(size), *out = malloc(size);
    double began = now();
    struct reply r;

    strcpy(json, many[_i].before);
    fill(json + strlen(json), many[_i].piece, many[_i].times);
    strcat(json, many[_i].after);
    r = ask_bytes(out, compose(out, size, INFER, "", json, "", 0));
    ck_assert_int_eq(r.status, 400);
    ck_assert_double_lt(now() - began, 5);
    free(r.body);
    free(json);
    free(out);
}
END_TEST

/* A request that does not fit into a message to the worker is its own trouble
 * alone: a name too long; boxes with more digits than a message has room for.
 */
START_TEST(long_message)
{
    size_t size = 200000;
    char *json = calloc(1, size), *out = malloc(size);
    double before = metric("mpipe_worker_deaths_total{worker=\"main\"} ");
    struct reply r;

    strcpy(json, "{\"inputs\":[{\"name\":\"image\",\"shape\":[1,1,1,3],"
                 "\"datatype\":\"UINT8\",\"data\":[1,2,3]}");
    if (_i) {
        strcat(json, ",{\"name\":\"boxes\",\"shape\":[512,5],\"datatype\":"
                     "\"FP32\",\"data\":[0");
        fill(json + strlen(json), ",-1.2345678901234567e-100", 2559);
        strcat(json, "]}]}");
    } else {
        strcat(json, "],\"parameters\":{\"");
        fill(json + strlen(json), "a", 70000);
        strcat(json, "\":1}}");
    }
    r = ask_bytes(out, compose(out, size, INFER, "", json, "", 0));
    ck_assert_msg(r.status == (_i ? 200 : 400), "%d %s", r.status, r.body);
    ck_assert_double_eq(metric("mpipe_worker_deaths_total{worker=\"main\"} "),
                        before);
    free(r.body);
    free(json);
    free(out);
}
END_TEST

START_TEST(bomb)
{
    size_t n = (1 << 20) + 1;
    Bytef *plain = calloc(1, n), *zip = malloc(n);
    uLongf k = (uLongf)n;
    char head[300];
    struct reply r;
    int fd = dial();

    ck_assert_int_eq(compress(zip, &k, plain, (uLong)n), Z_OK);
    snprintf(head, sizeof head,
             POST("Content-Encoding: deflate\r\n"
                  "Content-Length: %lu\r\n",
                  ""),
             k);
    put_text(fd, head);
    put(fd, zip, k);
    r = hear(fd);
    ck_assert_int_eq(r.status, 400);
    ck_assert_ptr_nonnull(strstr(r.body, "when inflated"));
    free(r.body);
    free(plain);
    free(zip);
    close(fd);
}
END_TEST

START_TEST(long_head)
{
    char *out = malloc(70000), *x = malloc(65537);
    int status;

    fill(x, "a", 65536);
    snprintf(out, 70000, "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", x);
    status = status_of(out);
    ck_assert_msg(status == 414 || status == 431 || !status, "%d", status);
    snprintf(out, 70000, "GET /v2 HTTP/1.1\r\nHost: x\r\nx: %s\r\n\r\n", x);
    status = status_of(out);
    ck_assert_msg(status == 431 || !status, "%d", status);
    free(out);
    free(x);
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* ---- slow, gone, many ---- */

#define HALF_OPEN 512

START_TEST(half_open)
{
    struct rlimit r;
    int fd[HALF_OPEN];
    double began, took;
    char end;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &r), 0);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    for (int i = 0; i < HALF_OPEN; i++) {
        fd[i] = dial();
        put_text(fd[i], i % 2 ? "POST " INFER " HTTP/1.1\r\nHost: "
                              : POST("Content-Length: 100\r\n", "{"));
    }
    began = now();
    ck_assert_int_eq(good(), 200);
    took = now() - began;
    ck_assert_msg(took < 2, "%g s", took);
    /* a byte now and then is no excuse */
    for (int k = 0; k < 4; k++) {
        pause_for(0.5);
        for (int i = 0; i < HALF_OPEN; i++)
            put_text(fd[i], "x");
    }
    for (int i = 0; i < HALF_OPEN; i++) {
        struct pollfd p = {fd[i], POLLIN, 0};

        ck_assert_int_eq(poll(&p, 1, 10000), 1);
        while (recv(fd[i], &end, 1, 0) > 0)
            ;
        close(fd[i]);
    }
}
END_TEST

/* The client goes while its request waits, or is worked on. */
START_TEST(client_goes)
{
    char json[500], out[2000];
    double before = metric("mpipe_requests_total{model=\"trouble\",result="
                           "\"cancelled\"} "),
           until = now() + 40;
    int fd[10];
    size_t n;

    snprintf(json, sizeof json,
             IMAGE("[1,2,2,3]",
                   SIZE("12") "}],\"parameters\":{\"fault\":"
                              "\"sleep\",\"seconds\":2},\"x\":[{\"y\":1"));
    n = compose(out, sizeof out, INFER, "", json, pixels, 12);
    for (int i = 0; i < 10; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    while (metric("mpipe_queue_length{model=\"trouble\"} ") < 5 &&
           now() < until)
        pause_for(0.01);
    for (int i = 0; i < 10; i++)
        close(fd[i]);
    while (metric("mpipe_requests_total{model=\"trouble\",result="
                  "\"cancelled\"} ") < before + 10 &&
           now() < until)
        pause_for(0.01);
    ck_assert_double_eq(metric("mpipe_queue_length{model=\"trouble\"} "), 0);
    while (metric("mpipe_in_flight{model=\"trouble\"} ") > 0 && now() < until)
        pause_for(0.01);
    ck_assert_double_lt(now(), until);
}
END_TEST

/* 5 may be with the worker and 8 may wait. */
START_TEST(queue_is_full)
{
    char json[500], out[2000];
    int fd[16], counts[3] = {0};
    size_t n;

    snprintf(json, sizeof json,
             IMAGE("[1,2,2,3]",
                   SIZE("12") "}],\"parameters\":{\"fault\":"
                              "\"sleep\",\"seconds\":0.3},\"x\":[{\"y\":1"));
    n = compose(out, sizeof out, INFER, "", json, pixels, 12);
    for (int i = 0; i < 16; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
        pause_for(0.005);
    }
    for (int i = 0; i < 16; i++) {
        struct reply r = hear(fd[i]);

        counts[r.status == 200 ? 0 : r.status == 503 ? 1 : 2]++;
        if (r.status == 503)
            ck_assert_ptr_nonnull(strcasestr(r.head, "\r\nRetry-After: 1"));
        free(r.body);
        close(fd[i]);
    }
    ck_assert_int_eq(counts[2], 0);
    ck_assert_int_ge(counts[0], 13);
    ck_assert_int_ge(counts[1], 1);
}
END_TEST

START_TEST(time_is_over)
{
    double began = now();
    struct reply r = infer(",\"fault\":\"sleep\",\"seconds\":2,\"timeout\":"
                           "100000",
                           pixels, sizeof pixels);

    ck_assert_int_eq(r.status, 503);
    ck_assert_ptr_nonnull(strstr(r.body, "time was over"));
    ck_assert_double_lt(now() - began, 1.5);
    free(r.body);
    pause_for(2);
}
END_TEST

/* Pictures of four clients, seen at once. */
START_TEST(batched)
{
    char out[2000], json[300];
    struct reply r;
    int fd[4];
    size_t n;

    snprintf(json, sizeof json, IMAGE("[1,2,2,3]", SIZE("12")));
    n = compose(out, sizeof out, "/v2/models/batch/infer", "", json, pixels,
                12);
    r = ask_bytes(out, n); /* loads it */
    ck_assert_int_eq(r.status, 200);
    free(r.body);
    for (int i = 0; i < 4; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    for (int i = 0; i < 4; i++) {
        r = hear(fd[i]);
        ck_assert_int_eq(r.status, 200);
        free(r.body);
        close(fd[i]);
    }
    ck_assert_double_ge(
        metric("mpipe_batch_size_bucket{worker=\"other\",le=\"4\"} ") -
            metric("mpipe_batch_size_bucket{worker=\"other\",le=\"2\"} "),
        1);
}
END_TEST

/* ---- trouble ---- */

static const struct {
    const char *fault, *how;
} faults[] = {
    {"segfault", "signal 11"}, {"abort", "signal 6"}, {"exit", "status 7"},
    {"fpe", "signal 8"},       {"spin", "signal 9"},
};

START_TEST(worker_dies)
{
    double began = now();
    struct reply r = trouble(faults[_i].fault, _i % 2 ? "views" : "decode");

    ck_assert_int_eq(r.status, 500);
    ck_assert_msg(strstr(r.body, faults[_i].how) != NULL, "%s", r.body);
    ck_assert_double_lt(now() - began, 8 + 4); /* compute_time */
    free(r.body);
    wait_ready();
    ck_assert_int_eq(good(), 200);
}
END_TEST

START_TEST(head_fails)
{
    struct reply r = trouble("fail", _i ? "views" : "decode");

    ck_assert_int_eq(r.status, 400);
    ck_assert_ptr_nonnull(strstr(r.body, "file.bin: as it was told, of (x)"));
    free(r.body);
}
END_TEST

static pid_t worker_pid(void)
{
    char path[100], name[100];
    long pid = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", (long)server,
             (long)server);
    f = fopen(path, "r");
    if (!f)
        return 0;
    while (fscanf(f, "%99s", name) == 1)
        pid = strtol(name, NULL, 10); /* the youngest */
    fclose(f);
    return (pid_t)pid;
}

/* Every accepted request is answered, whatever happens to the worker. */
START_TEST(killed_under_load)
{
    int kills = getenv("MPIPE_LONG") ? 100 : 10, fd[4], answered = 0;
    char json[300], out[2000];
    size_t n;

    snprintf(json, sizeof json, IMAGE("[1,2,2,3]", SIZE("12")));
    n = compose(out, sizeof out, INFER, "", json, pixels, 12);
    for (int k = 0; k < kills; k++) {
        pid_t pid = worker_pid();

        for (int i = 0; i < 4; i++) {
            fd[i] = dial();
            put(fd[i], out, n);
        }
        if (pid)
            kill(pid, SIGKILL);
        for (int i = 0; i < 4; i++) {
            struct reply r = hear(fd[i]);

            ck_assert_msg(r.status == 200 || r.status == 500, "%d", r.status);
            answered++;
            free(r.body);
            close(fd[i]);
        }
    }
    ck_assert_int_eq(answered, 4 * kills);
    wait_ready();
    ck_assert_int_eq(good(), 200);
}
END_TEST

START_TEST(loaded_and_unloaded)
{
    static const char load[] = "POST /v2/repository/models/batch/load HTTP/1.1"
                               "\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    static const char unload[] =
        "POST /v2/repository/models/batch/unload HTTP/1.1\r\nHost: x\r\n"
        "Content-Length: 46\r\n\r\n"
        "{\"parameters\":{\"unload_dependents\":false}}    ";
    int rounds = getenv("MPIPE_LONG") ? 1000 : 10;
    size_t before;

    ck_assert_int_eq(status_of(load), 200);
    before = memory_of(server);
    for (int i = 0; i < rounds; i++) {
        ck_assert_int_eq(status_of(unload), 200);
        ck_assert_int_eq(good(), 200);
        ck_assert_int_eq(status_of(load), 200);
    }
    ck_assert_uint_le(memory_of(server), before + before / 20 + 512);
}
END_TEST

/* ---- noise ---- */

static uint32_t seed = 1;

static uint32_t random_to(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

/* Whatever comes: an answer or the end of the connection, and the server goes
 * on. */
START_TEST(noise)
{
    static const char *const urls[] = {"/",
                                       "/v2",
                                       "/metrics",
                                       "/v2/health/live",
                                       "/v2/models/trouble",
                                       "/v2/models/trouble/config",
                                       "/v2/models/trouble/infer",
                                       "/v2/models/trouble/stats",
                                       "/v2/repository/index",
                                       "/v2/models/trouble/infer?a=b&fault=x"};
    static const char *const methods[] = {"GET",  "POST",    "PUT",   "DELETE",
                                          "HEAD", "OPTIONS", "PATCH", "X"};
    int times = getenv("MPIPE_LONG") ? 40000 : 600;

    for (int k = 0; k < times; k++) {
        char out[2000], json[400];
        const char *method;
        size_t n, cut;
        int fd = dial();

        snprintf(json, sizeof json, IMAGE("[1,2,2,3]", SIZE("12")));
        n = compose(out, sizeof out, urls[random_to(10)], "", json, pixels, 12);
        method = methods[random_to(8)];
        cut = 1 + random_to(4);
        memcpy(out, method, cut < strlen(method) ? cut : strlen(method));
        for (uint32_t i = random_to(6); i > 0; i--)
            out[random_to((uint32_t)n)] = (char)random_to(256);
        put(fd, out, random_to(4) ? n : random_to((uint32_t)n));
        shutdown(fd, SHUT_WR);
        free(hear(fd).body);
        close(fd);
    }
    ck_assert_int_eq(good(), 200);
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof *(table))

int main(void)
{
    Suite *s = suite_create("http");
    TCase *c = tcase_create("http");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_unchecked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 600);
    tcase_add_test(c, as_clients_send_it);
    tcase_add_test(c, keeps_the_connection);
    tcase_add_test(c, the_same_in_json);
    tcase_add_test(c, squeezed);
    tcase_add_loop_test(c, wrong_head, 0, COUNT(heads));
    tcase_add_loop_test(c, wrong_body, 0, COUNT(bodies));
    tcase_add_test(c, not_supported);
    tcase_add_test(c, several_pictures);
    tcase_add_test(c, one_of_several_fails);
    tcase_add_test(c, dies_of_one_of_several);
    tcase_add_test(c, large_body);
    tcase_add_test(c, endless_body);
    tcase_add_test(c, many_pieces);
    tcase_add_loop_test(c, much_json, 0, 5);
    tcase_add_loop_test(c, long_message, 0, 2);
    tcase_add_test(c, bomb);
    tcase_add_test(c, long_head);
    tcase_add_test(c, half_open);
    tcase_add_test(c, client_goes);
    tcase_add_test(c, queue_is_full);
    tcase_add_test(c, time_is_over);
    tcase_add_test(c, batched);
    tcase_add_loop_test(c, worker_dies, 0, COUNT(faults));
    tcase_add_loop_test(c, head_fails, 0, 2);
    tcase_add_test(c, killed_under_load);
    tcase_add_test(c, loaded_and_unloaded);
    tcase_add_test(c, noise);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
