/* SPDX-License-Identifier: MIT */
/*
 * mpiped from the other end of a socket: byte strings in, and whatever comes
 * back. The head is trouble.c, so that a request costs next to nothing and can
 * bring its worker down.
 *
 * MPIPE_LONG=1 make check TESTS=tests/test_http: 100 kills, 1,000 times loaded
 * and unloaded, 80,000 times noise, 100,000 requests.
 */
#include <check.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include "served.h"

/* Seconds, pixels, requests. Under the thread sanitizer all takes longer. */
#ifdef __SANITIZE_THREAD__
#define COMPUTE_TIME 60
#define DEEP_SIDE    "64"
#define REQUESTS     100
#else
#define COMPUTE_TIME 5
#define DEEP_SIDE    "256"
#define REQUESTS     1000
#endif

static void setup(void)
{
    char conf[500];

    snprintf(conf, sizeof conf,
             "[limits]\nbody = 1\njson = 1\nrequest_time = 2\nqueue = 8\n"
             "pictures = 4\nidle_time = 5\ncompute_time = %d\n"
             "[worker]\ndeaths = 1000\nbackoff = 0\n"
             "[pipeline trouble]\nfile = trouble.ini\n"
             "[pipeline batch]\nfile = trouble.ini\nload = on-demand\n"
             "worker = other\nbatch_window = 10000\ncompute.batch = 4\n",
             COMPUTE_TIME);
    serve(conf, NULL, NULL);
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
    {POST("Inference-Header-Content-Length: 0\r\nContent-Length: 2\r\n", "{}"),
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

#define BYTES(n)                                                               \
    "{\"inputs\":[{\"name\":\"image_bytes\",\"datatype\":\"BYTES\",\"shape\":" \
    "[1],\"parameters\":{\"binary_data_size\":" n "}}]}"
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
    {IMAGE(
         "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]",
         SIZE("12")),
     "shape"},
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
    {"{\"inputs\":[{\"name\":\"image\",\"datatype\":\"UINT8\",\"shape\":[1,2,1,"
     "3]" SIZE("6") "},{\"name\":\"boxes\",\"datatype\":\"FP32\",\"shape\":[1,"
                    "4]" SIZE("7") "}]}",
     "does not lie in the body"},
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
    double until = now() + 300; /* or else it goes on for ever */
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

/* Seconds until this JSON is refused. */
static double refusal(const char *json)
{
    size_t size = strlen(json) + 1000;
    char *out = malloc(size);
    double began = now();
    struct reply r = ask_bytes(out, compose(out, size, INFER, "", json, "", 0));

    ck_assert_int_eq(r.status, 400);
    free(r.body);
    free(out);
    return now() - began;
}

/* Many outputs, inputs, levels: each refused, and about as soon as a text of
 * that length that is none of it. */
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
    char *json = malloc(2 << 20);
    double plain;

    strcpy(json, "{\"id\":\"");
    fill(json + strlen(json), "a", 1000000);
    strcat(json, "\"}");
    plain = refusal(json);
    strcpy(json, many[_i].before);
    fill(json + strlen(json), many[_i].piece, many[_i].times);
    strcat(json, many[_i].after);
    ck_assert_double_lt(refusal(json), 0.2 + 50 * plain);
    free(json);
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

static void raise_files(void)
{
    struct rlimit r;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &r), 0);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    ck_assert_uint_ge(r.rlim_cur, 1100);
}

/* Heads and bodies that never end; a byte now and then is no excuse. */
START_TEST(half_open)
{
    int fd[HALF_OPEN];
    char end;

    raise_files();
    for (int i = 0; i < HALF_OPEN; i++) {
        fd[i] = dial();
        put_text(fd[i], i % 2 ? "POST " INFER " HTTP/1.1\r\nHost: "
                              : POST("Content-Length: 100\r\n", "{"));
    }
    ck_assert_int_eq(good(), 200);
    for (int k = 0; k < 4; k++) {
        pause_for(0.5);
        for (int i = 0; i < HALF_OPEN; i++)
            put_text(fd[i], "x");
    }
    for (int i = 0; i < HALF_OPEN; i++) {
        struct pollfd p = {fd[i], POLLIN, 0};

        ck_assert_int_eq(poll(&p, 1, 60000), 1);
        while (recv(fd[i], &end, 1, 0) > 0)
            ;
        close(fd[i]);
    }
}
END_TEST

/* Connections on which nothing is said, from the start or after an answer. */
START_TEST(silent)
{
    int fd[2] = {dial(), dial()};
    char end;

    put_text(fd[1], GET("/v2/health/live"));
    free(hear(fd[1]).body);
    for (int i = 0; i < 2; i++) {
        struct pollfd p = {fd[i], POLLIN, 0};

        ck_assert_int_eq(poll(&p, 1, 25000), 1); /* 5 s would be enough */
        ck_assert_int_eq(recv(fd[i], &end, 1, 0), 0);
        close(fd[i]);
    }
}
END_TEST

static size_t compose_image(char *out, size_t size, const char *path)
{
    char json[300];

    snprintf(json, sizeof json, IMAGE("[1,2,2,3]", SIZE("12")));
    return compose(out, size, path, "", json, pixels, 12);
}

/* Until the number behind a metric is this. */
static void wait_metric(const char *name, double value)
{
    double until = now() + 60;

    while (metric(name) != value && now() < until)
        pause_for(0.01);
    ck_assert_msg(metric(name) == value, "%s%g, not %g", name, metric(name),
                  value);
}

#define QUEUED       "mpipe_queue_length{model=\"trouble\"} "
#define IN_FLIGHT    "mpipe_in_flight{model=\"trouble\"} "
#define DEATHS       "mpipe_worker_deaths_total{worker=\"main\"} "
#define OTHER_DEATHS "mpipe_worker_deaths_total{worker=\"other\"} "
#define CANCELLED                                                              \
    "mpipe_requests_total{model=\"trouble\",result=\"cancelled\"} "

/* The client goes while its request waits, or is worked on: by a worker that
 * gets no further. */
START_TEST(client_goes)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, INFER);
    double before = metric(CANCELLED);
    int fd[10];

    signal_workers(SIGSTOP);
    for (int i = 0; i < 10; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    wait_metric(QUEUED, 5);
    ck_assert_double_eq(metric(IN_FLIGHT), 5);
    for (int i = 0; i < 10; i++)
        close(fd[i]);
    wait_metric(CANCELLED, before + 10);
    ck_assert_double_eq(metric(QUEUED), 0);
    signal_workers(SIGCONT);
    wait_metric(IN_FLIGHT, 0);
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* It goes in the middle of its body: its connection does not stay behind. Half
 * of the times it only says that there is no more to come. */
START_TEST(client_goes_early)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, INFER), before = files_of(server);
    double until = now() + 60;
    int fd[20];

    for (int i = 0; i < 20; i++) {
        fd[i] = dial();
        put(fd[i], out, n - 4);
        if (i % 2)
            close(fd[i]);
        else
            shutdown(fd[i], SHUT_WR);
    }
    while (files_of(server) > before && now() < until)
        pause_for(0.01);
    ck_assert_uint_le(files_of(server), before);
    for (int i = 0; i < 20; i += 2)
        close(fd[i]);
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* 5 are with the worker, which gets no further, and 8 may wait. */
START_TEST(queue_is_full)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, INFER);
    int fd[16], counts[3] = {0};

    signal_workers(SIGSTOP);
    for (int i = 0; i < 13; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    wait_metric(QUEUED, 8);
    for (int i = 13; i < 16; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    for (int i = 15; i >= 0; i--) {
        struct reply r = hear(fd[i]);

        if (i == 13)
            signal_workers(SIGCONT);
        counts[r.status == 200 ? 0 : r.status == 503 ? 1 : 2]++;
        if (r.status == 503)
            ck_assert_ptr_nonnull(strcasestr(r.head, "\r\nRetry-After: 1"));
        free(r.body);
        close(fd[i]);
    }
    ck_assert_int_eq(counts[0], 13);
    ck_assert_int_eq(counts[1], 3);
}
END_TEST

/* Whatever the worker does, or does not. */
START_TEST(time_is_over)
{
    struct reply r;

    signal_workers(SIGSTOP);
    r = infer(",\"timeout\":100000", pixels, sizeof pixels);
    ck_assert_int_eq(r.status, 503);
    ck_assert_ptr_nonnull(strstr(r.body, "time was over"));
    free(r.body);
    signal_workers(SIGCONT);
    wait_metric(IN_FLIGHT, 0);
}
END_TEST

/* Nearly as the system says, at some time: a thread that ends between the two
 * takes its memory with it, with a sanitizer some megabytes. */
static void memory_is_told(void)
{
    double until = now() + 10, told, is;

    do {
        told = metric("\nprocess_resident_memory_bytes ") / 1024;
        is = (double)memory_of(server);
    } while ((told > 1.1 * is || told < 0.9 * is) && now() < until);
    ck_assert_double_le(told, 1.1 * is);
    ck_assert_double_ge(told, 0.9 * is);
}

/* What runs take: a counter that grows with each, and never by more than the
 * time that passed. A device that tells no memory has none of those series. */
START_TEST(usage)
{
    static const char busy[] =
        "mpipe_device_busy_seconds_total{worker=\"main\"} ";
    double began = now(), first = metric(busy), last = first, v;

    ck_assert_double_ge(first, 0);
    for (int i = 0; i < 5; i++) {
        double until = now() + 60;

        ck_assert_int_eq(good(), 200);
        while ((v = metric(busy)) <= last && now() < until)
            pause_for(0.001); /* answered a moment before it counts */
        ck_assert_double_gt(v, last);
        last = v;
    }
    ck_assert_double_lt(last - first, now() - began);
    ck_assert_double_eq(metric("mpipe_device_memory_bytes{"), -1);
    ck_assert_double_gt(
        metric("mpipe_worker_cpu_seconds_total{worker=\"main\"} "), 0);
    memory_is_told();
    ck_assert_double_gt(metric("\nprocess_cpu_seconds_total "), 0);
    /* with that of the connection that asks */
    v = metric("\nprocess_open_fds ");
    ck_assert_double_ge(v, (double)files_of(server));
    ck_assert_double_le(v, (double)files_of(server) + 3);
}
END_TEST

/* Pictures of four clients, seen at once. */
START_TEST(batched)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, "/v2/models/batch/infer");
    int fd[4];

    for (int i = 0; i < 4; i++) { /* the first loads it */
        fd[i] = dial();
        put(fd[i], out, n);
    }
    for (int i = 0; i < 4; i++) {
        struct reply r = hear(fd[i]);

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

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The median of a few good requests, seconds. */
static double usual_time(void)
{
    double took[9];

    for (int i = 0; i < 9; i++) {
        double began = now();

        ck_assert_int_eq(good(), 200);
        took[i] = now() - began;
    }
    qsort(took, 9, sizeof *took, by_value);
    return took[4];
}

/* ---- trouble ---- */

static const struct {
    const char *fault, *how;
} faults[] = {
    {"segfault", "signal 11"}, {"abort", "signal 6"},
    {"exit", "status 7"},      {"fpe", "signal 8"},
    {"spin", "signal 9"},      {"overrun", "the worker that had the request"},
};

/* Beyond what a good request takes: seconds from a death, or from the end of
 * compute_time where a head spins, until it is told. */
#define TOLD 2

/* Pipelines of another worker do not notice. */
START_TEST(worker_dies)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, "/v2/models/batch/infer");
    int fd[4], is_spin = !strcmp(faults[_i].fault, "spin");
    double began, took, usual = usual_time();
    struct reply r;

    for (int i = 0; i < 3 + is_spin; i++) { /* three wait for a fourth */
        fd[i] = dial();
        put(fd[i], out, n);
    }
    began = now();
    r = trouble(faults[_i].fault, _i % 2 ? "views" : "decode");
    took = now() - began;
    ck_assert_int_eq(r.status, 500);
    ck_assert_msg(strstr(r.body, faults[_i].how) != NULL, "%s", r.body);
    if (is_spin) {
        ck_assert_double_ge(took, COMPUTE_TIME);
        took -= COMPUTE_TIME;
    }
    ck_assert_msg(took < TOLD + 10 * usual, "%g s, usual are %g s", took,
                  usual);
    free(r.body);
    if (!is_spin) {
        fd[3] = dial();
        put(fd[3], out, n);
    }
    for (int i = 0; i < 4; i++) {
        r = hear(fd[i]);
        ck_assert_int_eq(r.status, 200);
        free(r.body);
        close(fd[i]);
    }
    wait_ready();
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* Code of a head that is called after its pipeline was unloaded is still there.
 */
START_TEST(head_calls_back)
{
    static const char unload[] =
        "POST /v2/repository/models/batch/unload HTTP/1.1\r\nHost: x\r\n"
        "Content-Length: 0\r\n\r\n";
    static const char json[] =
        IMAGE("[4,2,2,3]",
              SIZE("48") "}],\"parameters\":{\"fault\":\"late\","
                         "\"place\":\"decode\",\"seconds\":3},\"x\":[{\"y\":1");
    char data[48] = "", out[2000], command[200];
    double before = metric(OTHER_DEATHS), until = now() + 60;
    struct reply r;

    r = ask_bytes(out, compose(out, sizeof out, "/v2/models/batch/infer", "",
                               json, data, sizeof data));
    ck_assert_msg(r.status == 200, "%d %s", r.status, r.body);
    free(r.body);
    ck_assert_int_eq(status_of(unload), 200);
    snprintf(command, sizeof command,
             "[ $(grep -c 'trouble: called back' %s/log) = 4 ]", serve_dir);
    while (system(command) && now() < until)
        pause_for(0.05);
    ck_assert_int_eq(system(command), 0);
    ck_assert_double_eq(metric(OTHER_DEATHS), before);
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

/* Every accepted request is answered, whatever happens to the worker: dead with
 * all it can have, and others waiting; or anywhere on the way. */
START_TEST(killed_under_load)
{
    int kills = getenv("MPIPE_LONG") ? 100 : 10, fd[8], counts[2] = {0};
    char out[2000];
    size_t n = compose_image(out, sizeof out, INFER);
    double before = metric(DEATHS);

    for (int k = 0; k < kills; k++) {
        wait_ready();
        if (k % 2)
            signal_workers(SIGSTOP);
        for (int i = 0; i < 8; i++) {
            fd[i] = dial();
            put(fd[i], out, n);
        }
        if (k % 2)
            wait_metric(IN_FLIGHT, 5);
        else
            pause_for(0.001 * (k % 7));
        ck_assert_int_gt(worker_pid(), 0);
        kill(worker_pid(), SIGKILL);
        signal_workers(SIGCONT);
        for (int i = 0; i < 8; i++) {
            struct reply r = hear(fd[i]);

            ck_assert_msg(r.status == 200 || r.status == 500, "%d", r.status);
            counts[r.status == 500]++;
            free(r.body);
            close(fd[i]);
        }
    }
    ck_assert_int_eq(counts[0] + counts[1], 8 * kills);
    ck_assert_int_ge(counts[1], 5 * kills / 2);
    ck_assert_double_eq(metric(DEATHS), before + kills);
    printf("%d kills: %d requests answered, %d of them with 500\n", kills,
           8 * kills, counts[1]);
    wait_ready();
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* Asks for ever; a byte for each answer, 1 if it was right. */
static pid_t ask_on(int to)
{
    pid_t child = fork();

    ck_assert_int_ge(child, 0);
    while (!child) {
        char is_good = good() == 200;

        if (write(to, &is_good, 1) != 1)
            _exit(0);
    }
    return child;
}

/* While another pipeline serves. */
START_TEST(loaded_and_unloaded)
{
    static const char load[] = "POST /v2/repository/models/batch/load HTTP/1.1"
                               "\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    static const char unload[] =
        "POST /v2/repository/models/batch/unload HTTP/1.1\r\nHost: x\r\n"
        "Content-Length: 46\r\n\r\n"
        "{\"parameters\":{\"unload_dependents\":false}}    ";
    int rounds = getenv("MPIPE_LONG") ? 1000 : 10, pair[2], answers = 0;
    size_t before;
    pid_t child;
    char is_good;

    ck_assert_int_eq(pipe(pair), 0);
    child = ask_on(pair[1]);
    close(pair[1]);
    ck_assert_int_eq(status_of(load), 200);
    ck_assert_int_eq(status_of(unload), 200);
    ck_assert_int_eq(status_of(load), 200);
    before = memory_of_all();
    for (int i = 0; i < rounds; i++) {
        ck_assert_int_eq(status_of(unload), 200);
        ck_assert_int_eq(status_of(load), 200);
    }
    hold_memory(memory_of_all(), before + before / 20 + 1024);
    kill(child, SIGKILL);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    for (; read(pair[0], &is_good, 1) == 1; answers++)
        ck_assert_int_eq(is_good, 1);
    ck_assert_int_ge(answers, 1);
    close(pair[0]);
}
END_TEST

/* ---- noise ---- */

static uint32_t seed = 1;

static uint32_t random_to(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static const char *const urls[] = {"/",
                                   "/v2",
                                   "/v2/",
                                   "/metrics",
                                   "/errors",
                                   "/v2/health/live",
                                   "/v2/health/ready",
                                   "/v2/models/stats",
                                   "/v2/models/trouble",
                                   "/v2/models/trouble/versions/1",
                                   "/v2/models/trouble/ready",
                                   "/v2/models/trouble/config",
                                   "/v2/models/trouble/stats",
                                   "/v2/models/trouble/infer",
                                   "/v2/models/trouble/versions/1/infer",
                                   "/v2/models/trouble/infer?a=b&fault=x",
                                   "/v2/repository/index",
                                   "/v2/repository/models/batch/load",
                                   "/v2/logging",
                                   "/v2/systemsharedmemory/status"};
static const char *const methods[] = {"GET",  "POST",    "PUT",   "DELETE",
                                      "HEAD", "OPTIONS", "PATCH", "X"};

/* A connection with something on it that was a request once. */
static int make_noise(void)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, urls[random_to(20)]), cut;
    const char *method = methods[random_to(8)];
    int fd = dial();

    cut = 1 + random_to(4);
    memcpy(out, method, cut < strlen(method) ? cut : strlen(method));
    for (uint32_t i = random_to(6); i > 0; i--)
        out[random_to((uint32_t)n)] = (char)random_to(256);
    put(fd, out, random_to(4) ? n : random_to((uint32_t)n));
    shutdown(fd, SHUT_WR);
    return fd;
}

/* Whatever comes: an answer or the end of the connection, and the server goes
 * on. */
START_TEST(noise)
{
    int times = getenv("MPIPE_LONG") ? 20 * 8 * 500 : 800, fd[400];
    double before = metric(DEATHS);

    raise_files();
    for (int k = 0; k < times; k += 400) {
        for (int i = 0; i < 400; i++)
            fd[i] = make_noise();
        for (int i = 0; i < 400; i++) {
            free(hear(fd[i]).body);
            close(fd[i]);
        }
    }
    ck_assert_int_eq(good(), 200);
    ck_assert_double_eq(metric(DEATHS), before);
}
END_TEST

/* ---- one that dies again and again ---- */

#define BACKOFF 0.3 /* seconds */

static void mortal_setup(void)
{
    char conf[300];

    snprintf(conf, sizeof conf,
             "[worker]\ndeaths = 5\nwithin = 3600\nbackoff = %g\n"
             "[pipeline trouble]\nfile = trouble.ini\n"
             "[pipeline batch]\nfile = trouble.ini\nworker = other\n",
             BACKOFF);
    serve(conf, NULL, NULL);
}

/* It is started again at once, then after a time that doubles; the fifth death
 * is the last, until somebody loads it again. */
START_TEST(backs_off)
{
    static const char load[] = "POST /v2/repository/models/trouble/load "
                               "HTTP/1.1\r\nHost: x\r\n\r\n";
    double wait = BACKOFF;
    struct reply r;

    for (int i = 0; i < 5; i++) {
        double began;

        wait_ready();
        began = now();
        r = trouble("abort", "views");
        ck_assert_int_eq(r.status, 500);
        free(r.body);
        if (i == 0 || i == 4)
            continue;
        wait_ready();
        ck_assert_double_ge(now() - began, wait);
        wait *= 2;
    }
    r = infer("", pixels, sizeof pixels);
    ck_assert_int_eq(r.status, 503);
    ck_assert_msg(strstr(r.body, "died 5 times in 3600 s; it was killed by "
                                 "signal 6") != NULL,
                  "%s", r.body);
    free(r.body);
    ck_assert_int_eq(status_of(GET("/v2/models/batch/ready")), 200);
    ck_assert_double_eq(metric(OTHER_DEATHS), 0);
    ck_assert_int_eq(status_of(load), 200);
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* ---- the same with the limits that are standard ---- */

static void big_setup(void)
{
    serve("[limits]\nqueue = 2000\nrequest_time = 600\nidle_time = 600\n"
          "[pipeline trouble]\nfile = trouble.ini\n"
          "[pipeline deep]\nfile = trouble.ini\nload = on-demand\n"
          "worker = deep\nbatch_window = 0\ncompute.backend = cpu\n"
          "compute.threads = 1\ntrouble.deep = yes\ntrouble.side = " DEEP_SIDE
          "\n"
          "[pipeline vae]\nfile = trouble.ini\nload = on-demand\n"
          "worker = deep\nbatch_window = 0\ncompute.backend = cpu\n"
          "compute.threads = 1\ntrouble.side = " DEEP_SIDE "\n",
          NULL, NULL);
}

#define BODY ((size_t)64 << 20)

/* One byte more than a body may have: in one piece, and said beforehand. */
START_TEST(body_of_64_mib)
{
    size_t before = memory_of(server);
    char *bytes = calloc(1, BODY + 1), line[40];
    int fd = dial();
    struct reply r;

    put_text(fd, POST("Transfer-Encoding: chunked\r\n", ""));
    snprintf(line, sizeof line, "%zx\r\n", BODY + 1);
    put_text(fd, line);
    put(fd, bytes, BODY + 1);
    put_text(fd, "\r\n0\r\n\r\n");
    r = hear(fd);
    ck_assert_int_eq(r.status, 400);
    ck_assert_ptr_nonnull(strstr(r.body, "larger than 64 MiB"));
    free(r.body);
    close(fd);
    free(bytes);
    ck_assert_int_eq(status_of(POST("Content-Length: 67108865\r\n", "x")), 400);
    ck_assert_uint_le(memory_of(server), before + before / 10 + 1024);
}
END_TEST

/* 64 KiB that are 64 MiB and a byte. */
START_TEST(bomb_of_64_mib)
{
    size_t before = memory_of(server);
    Bytef *zip = malloc(1 << 20), *plain = calloc(1, 1 << 20);
    z_stream z = {.next_out = zip, .avail_out = 1 << 20};
    char head[300];
    struct reply r;
    int fd = dial();

    ck_assert_int_eq(deflateInit2(&z, 9, Z_DEFLATED, 31, 9, Z_DEFAULT_STRATEGY),
                     Z_OK);
    for (int i = 0; i <= 64; i++) {
        z.next_in = plain;
        z.avail_in = i < 64 ? 1 << 20 : 1;
        ck_assert_int_eq(deflate(&z, i < 64 ? Z_NO_FLUSH : Z_FINISH),
                         i < 64 ? Z_OK : Z_STREAM_END);
    }
    ck_assert_uint_le(z.total_out, 66000);
    snprintf(head, sizeof head,
             POST("Content-Encoding: gzip\r\nContent-Length: %lu\r\n", ""),
             z.total_out);
    put_text(fd, head);
    put(fd, zip, z.total_out);
    r = hear(fd);
    ck_assert_int_eq(r.status, 400);
    ck_assert_ptr_nonnull(strstr(r.body, "larger than 64 MiB when inflated"));
    free(r.body);
    deflateEnd(&z);
    free(zip);
    free(plain);
    close(fd);
    ck_assert_uint_le(memory_of(server), before + before / 10 + 1024);
}
END_TEST

/* 100,000 outputs, a million inputs, 64 MiB of brackets. */
START_TEST(json_in_earnest)
{
    static const struct {
        const char *before, *piece, *after;
        size_t times;
    } many[] = {
        {"{\"outputs\":[", "{\"name\":\"id\"},", "{}],\"inputs\":[]}", 100000},
        {"{\"inputs\":[", "{},", "{}]}", 1000000},
        {"", "[", "", BODY},
    };
    size_t room = many[_i].times * strlen(many[_i].piece) + 100;
    char *json = malloc(room);

    strcpy(json, many[_i].before);
    fill(json + strlen(json), many[_i].piece, many[_i].times);
    strcat(json, many[_i].after);
    refusal(json);
    free(json);
    ck_assert_int_eq(good(), 200);
}
END_TEST

/* Others are served as ever beside connections that get no further. */
START_TEST(beside_half_open)
{
    int fd[HALF_OPEN];
    double alone = usual_time(), beside;

    raise_files();
    for (int i = 0; i < HALF_OPEN; i++) {
        fd[i] = dial();
        put_text(fd[i], i % 2 ? "POST " INFER " HTTP/1.1\r\nHost: "
                              : POST("Content-Length: 100\r\n", "{"));
    }
    beside = usual_time();
    ck_assert_msg(beside < 10 * alone, "%g s, not %g s", beside, alone);
    for (int i = 0; i < HALF_OPEN; i++) {
        struct pollfd p = {fd[i], POLLIN, 0};

        ck_assert_int_eq(poll(&p, 1, 0), 0); /* still there */
        close(fd[i]);
    }
}
END_TEST

/* Seconds of a request to that model; the least of three. */
static double time_of(const char *path)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, path);
    double least = 0;

    for (int i = 0; i < 4; i++) { /* the first loads it */
        double began = now();
        struct reply r = ask_bytes(out, n);

        ck_assert_msg(r.status == 200, "%d %s", r.status, r.body);
        free(r.body);
        began = now() - began;
        least = i < 2 || began < least ? began : least;
    }
    return least;
}

#define DEEP      "/v2/models/deep/infer"
#define DEEP_HAS  "mpipe_in_flight{model=\"deep\"} "
#define STEPS     3 /* of refinement, in the checkpoint */
#define DEEP_GONE "mpipe_requests_total{model=\"deep\",result=\"cancelled\"} "

/* A client goes while the network looks, early or late: the worker is free for
 * another before one step of refinement would be over. */
START_TEST(free_at_once)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, DEEP);
    double whole = time_of(DEEP), vae = time_of("/v2/models/vae/infer");
    double step = (whole - vae) / STEPS, took[5], gone = metric(DEEP_GONE);

    ck_assert_double_gt(step, 0);
    for (int i = 0; i < 5; i++) {
        int fd = dial();
        double began;

        put(fd, out, n);
        wait_metric(DEEP_HAS, 1);
        pause_for(whole * (i + 1) / 10);
        ck_assert_double_eq(metric(DEEP_HAS), 1);
        began = now();
        close(fd);
        wait_metric(DEEP_HAS, 0);
        took[i] = now() - began;
    }
    ck_assert_double_eq(metric(DEEP_GONE), gone + 5);
    qsort(took, 5, sizeof *took, by_value);
    printf(
        "%.3f s of network, %.3f s a step: free after %.4f s, %.4f at most\n",
        whole, step, took[2], took[4]);
    ck_assert_double_lt(took[2], step);
    time_of(DEEP); /* as ever */
}
END_TEST

/* n requests on one connection. */
static void ask_many(int n)
{
    char out[2000];
    size_t bytes = compose_image(out, sizeof out, INFER);
    int fd = dial();

    for (int i = 0; i < n; i++) {
        struct reply r;

        put(fd, out, bytes);
        r = hear(fd);
        ck_assert_int_eq(r.status, 200);
        free(r.body);
    }
    close(fd);
}

/* Memory stays what it is, and so do descriptors: less than 10 MiB of 100,000
 * requests, or 1 MiB of a few. */
START_TEST(flat)
{
    int is_long = getenv("MPIPE_LONG") != NULL;
    size_t memory, files;

    ask_many(REQUESTS / 5);
    memory = memory_of_all();
    files = files_of(server);
    ask_many(is_long ? 100000 : REQUESTS);
    hold_memory(memory_of_all(), memory + (is_long ? 10239 : 1023));
    /* the last connection is closed in its own time */
    for (int i = 0; i < 100 && files_of(server) > files; i++)
        pause_for(0.1);
    ck_assert_uint_le(files_of(server), files);
}
END_TEST

#define MANY 1000

/* A thousand that wait, and then do not. */
START_TEST(thousand_cancelled)
{
    char out[2000];
    size_t n = compose_image(out, sizeof out, INFER), before;
    double cancelled = metric(CANCELLED);
    int fd[MANY];

    raise_files();
    ck_assert_int_eq(good(), 200);
    before = memory_of(server);
    signal_workers(SIGSTOP);
    for (int i = 0; i < MANY; i++) {
        fd[i] = dial();
        put(fd[i], out, n);
    }
    wait_metric(QUEUED, MANY - 5);
    for (int i = 0; i < MANY; i++)
        close(fd[i]);
    wait_metric(CANCELLED, cancelled + MANY);
    ck_assert_double_eq(metric(QUEUED), 0);
    signal_workers(SIGCONT);
    wait_metric(IN_FLIGHT, 0);
    ck_assert_int_eq(good(), 200);
    hold_memory(memory_of(server), before + before / 10 + 4096);
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof *(table))

int main(void)
{
    Suite *s = suite_create("http");
    TCase *c = tcase_create("http");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_unchecked_fixture(c, setup, serve_end);
    tcase_set_timeout(c, 3600);
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
    tcase_add_test(c, silent);
    tcase_add_test(c, client_goes);
    tcase_add_test(c, queue_is_full);
    tcase_add_test(c, time_is_over);
    tcase_add_test(c, usage);
    tcase_add_test(c, killed_under_load); /* there is one worker so far */
    tcase_add_test(c, batched);
    tcase_add_loop_test(c, worker_dies, 0, COUNT(faults));
    tcase_add_loop_test(c, head_fails, 0, 2);
    tcase_add_test(c, head_calls_back);
    tcase_add_test(c, loaded_and_unloaded);
    tcase_add_test(c, noise);
    suite_add_tcase(s, c);
    c = tcase_create("deaths");
    tcase_add_unchecked_fixture(c, mortal_setup, serve_end);
    tcase_set_timeout(c, 3600);
    tcase_add_test(c, backs_off);
    suite_add_tcase(s, c);
    c = tcase_create("in earnest");
    tcase_add_unchecked_fixture(c, big_setup, serve_end);
    tcase_set_timeout(c, 3600);
    tcase_add_test(c, body_of_64_mib);
    tcase_add_test(c, bomb_of_64_mib);
    tcase_add_loop_test(c, json_in_earnest, 0, 3);
    tcase_add_test(c, client_goes_early);
    tcase_add_test(c, beside_half_open);
    tcase_add_test(c, free_at_once);
    tcase_add_test(c, thousand_cancelled);
    tcase_add_test(c, flat);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
