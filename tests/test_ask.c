/* SPDX-License-Identifier: MIT */
/* Bodies of the Open Inference Protocol: what requests say, what answers are.
 * test_http.c has them on the wire. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/about.h"
#include "daemon/accept.h"
#include "daemon/answer.h"
#include "daemon/repository.h"
#include "daemon/route.h"
#include "daemon/tally.h"

static struct mp_ask ask;
static struct mp_error err;

static void setup(void)
{
    memset(&err, 0, sizeof err);
    ck_assert_int_eq(mp_ask_begin(&ask, &err), 0);
}

static void teardown(void)
{
    mp_ask_free(&ask);
}

/* JSON and n bytes behind it. */
static int parse(const char *json, const void *data, size_t n)
{
    const struct mp_ask_most most = {.json = 1 << 20, .pictures = 4};
    size_t head = strlen(json);
    char *body = malloc(head + n + 1);
    int rc;

    memcpy(body, json, head);
    if (n)
        memcpy(body + head, data, n);
    rc = mp_ask_parse(&ask, body, head + n, (int64_t)head, &most, &err);
    free(body);
    return rc;
}

static int64_t number(size_t picture, const char *key)
{
    const json_t *v =
        json_object_get(json_array_get(ask.pictures, picture), key);

    return v ? json_integer_value(v) : -1;
}

#define SIZE(n) "\"parameters\":{\"binary_data_size\":" n "}"
#define PIXELS(shape, more)                                                    \
    "{\"name\":\"image\",\"datatype\":\"UINT8\",\"shape\":" shape "," more "}"
#define FILES(shape, more)                                                     \
    "{\"name\":\"image_bytes\",\"datatype\":\"BYTES\",\"shape\":" shape        \
    "," more "}"
#define BOXES(type, shape, more)                                               \
    "{\"name\":\"boxes\",\"datatype\":\"" type "\",\"shape\":" shape "," more  \
    "}"
#define INPUTS(list) "{\"inputs\":[" list "]}"

/* ---- pictures ---- */

START_TEST(pixels)
{
    static const char json[] = INPUTS(PIXELS("[3,1,2,3]", SIZE("18")));

    ck_assert_msg(!parse(json, "abcdefghijklmnopqr", 18), "%s", err.text);
    ck_assert_uint_eq(json_array_size(ask.pictures), 3);
    for (size_t i = 0; i < 3; i++) {
        ck_assert_int_eq(number(i, "offset"),
                         (int64_t)(sizeof json - 1 + 6 * i));
        ck_assert_int_eq(number(i, "bytes"), 6);
        ck_assert_int_eq(number(i, "width"), 2);
        ck_assert_int_eq(number(i, "height"), 1);
    }
    ck_assert_int_lt(ask.blob.fd, 0);
}
END_TEST

START_TEST(pixels_in_json)
{
    ck_assert_msg(!parse(INPUTS(PIXELS("[2,1,1,3]",
                                       "\"data\":[[[[1,2,3]]],[[[4,5,255]]]]")),
                         "", 0),
                  "%s", err.text);
    ck_assert_uint_eq(json_array_size(ask.pictures), 2);
    ck_assert_int_eq(number(1, "offset"), 3);
    ck_assert_uint_eq(ask.blob.n, 6);
    ck_assert_mem_eq(ask.blob.at, "\1\2\3\4\5\377", 6);
}
END_TEST

/* [2] or [2, 1]: of 3 and of 0 bytes. */
START_TEST(files)
{
    static const char *const json[] = {INPUTS(FILES("[2]", SIZE("11"))),
                                       INPUTS(FILES("[2,1]", SIZE("11")))};
    size_t head = strlen(json[_i]);

    ck_assert_msg(!parse(json[_i], "\3\0\0\0abc\0\0\0\0", 11), "%s", err.text);
    ck_assert_uint_eq(json_array_size(ask.pictures), 2);
    ck_assert_int_eq(number(0, "offset"), (int64_t)head + 4);
    ck_assert_int_eq(number(0, "bytes"), 3);
    ck_assert_int_eq(number(0, "width"), -1);
    ck_assert_int_eq(number(1, "offset"), (int64_t)head + 11);
    ck_assert_int_eq(number(1, "bytes"), 0);
}
END_TEST

static double box_at(size_t picture, size_t row, size_t column)
{
    const json_t *list =
        json_object_get(json_array_get(ask.pictures, picture), "boxes");

    return json_number_value(json_array_get(json_array_get(list, row), column));
}

/* Before the pictures or after them; of two pictures, or of one alone; FP64
 * keeps all its digits. */
START_TEST(boxes)
{
    static const struct {
        const char *json;
        size_t pictures, rows;
    } table[] = {
        {INPUTS(BOXES("FP64", "[2,1,4]",
                      "\"data\":[0.1,2,3,4,5,6,7,8]") "," PIXELS("[2,1,1,3]",
                                                                 "\"data\":[1,"
                                                                 "2,3,4,5,6]")),
         2, 1},
        {INPUTS(PIXELS("[2,1,1,3]", "\"data\":[1,2,3,4,5,6]") "," BOXES(
             "FP32", "[2,1,5]", "\"data\":[0.1,2,3,4,0.5,5,6,7,8,0.5]")),
         2, 1},
        {INPUTS(PIXELS("[1,1,1,3]", "\"data\":[1,2,3]") "," BOXES(
             "FP32", "[2,4]", "\"data\":[0.1,2,3,4,5,6,7,8]")),
         1, 2},
        {INPUTS(PIXELS("[1,1,1,3]", "\"data\":[1,2,3]") "," BOXES(
             "FP32", "[1,0,4]", "\"data\":[]")),
         1, 0},
    };
    size_t rows = table[_i].rows;

    ck_assert_msg(!parse(table[_i].json, "", 0), "%s", err.text);
    ck_assert_uint_eq(json_array_size(ask.pictures), table[_i].pictures);
    for (size_t i = 0; i < table[_i].pictures; i++)
        ck_assert_uint_eq(json_array_size(json_object_get(
                              json_array_get(ask.pictures, i), "boxes")),
                          rows);
    if (!rows)
        return;
    ck_assert_double_eq(box_at(0, 0, 0), 0.1);
    ck_assert_double_eq(box_at(0, 0, 4), _i == 1 ? 0.5 : 1);
    ck_assert_double_eq(box_at(table[_i].pictures - 1, rows - 1, 3), 8);
}
END_TEST

START_TEST(binary_boxes)
{
    const double wide[4] = {0.1, -2, 3, 1e300};
    const float narrow[4] = {0.1f, -2, 3, 4};
    const char *json =
        _i ? INPUTS(PIXELS("[1,1,1,3]", "\"data\":[1,2,3]") "," BOXES(
                 "FP32", "[1,1,4]", SIZE("16")))
           : INPUTS(PIXELS("[1,1,1,3]", "\"data\":[1,2,3]") "," BOXES(
                 "FP64", "[1,4]", SIZE("32")));

    ck_assert_int_eq(
        parse(json, _i ? (const void *)narrow : wide, _i ? 16 : 32), 0);
    ck_assert_double_eq(box_at(0, 0, 0), _i ? (double)0.1f : 0.1);
    ck_assert_double_eq(box_at(0, 0, 3), _i ? 4 : 1e300);
}
END_TEST

START_TEST(plain)
{
    ck_assert_int_eq(mp_ask_option(&ask, "output", "labels", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "opacity", "0.5", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "priority", "2", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "timeout", "1500000", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "image_id", "17", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "name", "17", &err), 0);
    ck_assert_int_eq(mp_ask_plain(&ask, 99, &err), 0);
    ck_assert_int_eq(ask.priority, 2);
    ck_assert_double_eq(ask.timeout, 1.5);
    ck_assert_int_eq(number(0, "bytes"), 99);
    ck_assert(json_is_integer(json_object_get(ask.text, "image_id")));
    ck_assert_str_eq(json_string_value(json_object_get(ask.text, "name")),
                     "17");
    ck_assert_str_eq(json_string_value(json_object_get(ask.text, "formats")),
                     "labels");
    ck_assert_int_eq(mp_ask_check(&ask, &err), 0);
}
END_TEST

/* The query goes with any body. */
START_TEST(query)
{
    ck_assert_int_eq(mp_ask_option(&ask, "output", "labels", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "encoded", "true", &err), 0);
    ck_assert_int_eq(
        parse(INPUTS(PIXELS("[1,1,1,3]", "\"data\":[1,2,3]")), "", 0), 0);
    ck_assert(json_is_false(json_object_get(ask.text, "plain")));
    ck_assert_str_eq(json_string_value(json_object_get(ask.text, "formats")),
                     "labels");
}
END_TEST

/* With 12 bytes behind it. */
static const struct {
    const char *json;
    int code;
    const char *says;
} wrong[] = {
    {INPUTS(PIXELS("[5,1,1,3]", "\"data\":[]")), MP_EINVAL, "1 to 4"},
    {INPUTS(PIXELS("[0,1,1,3]", "\"data\":[]")), MP_EINVAL, "1 to 4"},
    {INPUTS(PIXELS("[1,1,3]", "\"data\":[]")), MP_EINVAL, "UINT8 of shape [N"},
    {INPUTS(PIXELS("[1,1,2,3]", SIZE("6"))), MP_EINVAL, "6 bytes behind"},
    {INPUTS(PIXELS("[4,1,2,3]", SIZE("12"))), MP_EINVAL, "12 bytes"},
    {INPUTS(PIXELS("[4,1000,1000,3]", "\"data\":[1]")), MP_EINVAL,
     "does not fit"},
    {INPUTS(FILES("[5]", SIZE("12"))), MP_EINVAL, "1 to 4"},
    {INPUTS(FILES("[]", SIZE("12"))), MP_EINVAL, "BYTES of shape"},
    {INPUTS(FILES("[1,2]", SIZE("12"))), MP_EINVAL, "BYTES of shape"},
    {INPUTS(FILES("[2]", SIZE("12"))), MP_EINVAL, "4 bytes of length"},
    {INPUTS(FILES("[4]", SIZE("12"))), MP_EINVAL, "4 bytes of length"},
    {INPUTS(PIXELS("[2,1,2,3]", SIZE("12")) "," BOXES(
         "FP32", "[2,4]", "\"data\":[1,2,3,4,5,6,7,8]")),
     MP_EINVAL, "[2, M, 4]"},
    {INPUTS(PIXELS("[2,1,2,3]", SIZE("12")) "," BOXES("FP32", "[1,1,4]",
                                                      "\"data\":[1,2,3,4]")),
     MP_EINVAL, "[2, M, 4]"},
    {INPUTS(PIXELS("[1,2,2,3]", SIZE("12")) "," BOXES("FP16", "[1,4]",
                                                      "\"data\":[1,2,3,4]")),
     MP_EINVAL, "FP32 or FP64"},
    {INPUTS(PIXELS("[1,2,2,3]", SIZE("12")) "," BOXES("FP32", "[4]",
                                                      "\"data\":[1,2,3,4]")),
     MP_EINVAL, "[1, M, 4]"},
    {INPUTS(PIXELS("[1,2,2,3]", SIZE("12")) "," BOXES("FP32", "[1001,4]",
                                                      "\"data\":[]")),
     MP_EINVAL, "up to 1000"},
    {INPUTS(PIXELS("[1,2,2,3]", SIZE("12")) "," BOXES(
         "FP32", "[1,4]", "\"data\":[1,2,3,1e999]")),
     MP_EINVAL, "no JSON"},
    {INPUTS(PIXELS("[1,2,2,3]", SIZE("12")) "," BOXES("FP32", "[1,4]",
                                                      "\"data\":[1,2,3]")),
     MP_EINVAL, "4 finite"},
    {INPUTS(PIXELS("[1,2,2,3]", SIZE("12")) "," FILES("[1]", SIZE("0"))),
     MP_EINVAL, "one of image"},
    {INPUTS(PIXELS("[1,2,2,3]",
                   "\"parameters\":{\"shared_memory_region\":\"a\","
                   "\"shared_memory_byte_size\":12}")),
     MP_ENOTSUP, "shared memory"},
    {"{\"outputs\":[{\"name\":\"a\",\"parameters\":{\"binary_data\":false,"
     "\"shared_memory_region\":\"a\",\"shared_memory_byte_size\":12}}]}",
     MP_ENOTSUP, "shared memory"},
    {"{\"outputs\":[{\"name\":\"a\",\"parameters\":{\"classification\":3}}]}",
     MP_ENOTSUP, "classification"},
    {"{\"outputs\":[{\"name\":\"a\"},{\"name\":\"a\"}]}", MP_EINVAL, "twice"},
    {"{\"parameters\":{\"sequence_id\":1}}", MP_ENOTSUP, "sequences"},
    {"{\"parameters\":{\"image_id\":1.5}}", MP_EINVAL, "image_id"},
    {"{\"parameters\":{\"encoded\":\"yes\"}}", MP_EINVAL, "true or false"},
};

START_TEST(refused)
{
    int rc = parse(wrong[_i].json, "\1\0\0\0a\0\0\0\0xyz", 12);

    ck_assert_msg(rc == wrong[_i].code && strstr(err.text, wrong[_i].says),
                  "%d %s: %s", rc, err.text, wrong[_i].json);
}
END_TEST

START_TEST(refused_query)
{
    ck_assert_int_eq(mp_ask_option(&ask, "opacity", "1", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "opacity", "1", &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "twice"));
    ck_assert_int_eq(mp_ask_option(&ask, "priority", "high", &err), MP_EINVAL);
    ck_assert_int_eq(mp_ask_option(&ask, "output", "", &err), MP_EINVAL);
    ck_assert_int_eq(mp_ask_option(&ask, "output", "a", &err), 0);
    ck_assert_int_eq(mp_ask_option(&ask, "output", "b", &err), MP_EINVAL);
    ck_assert_int_eq(parse("{\"outputs\":[{\"name\":\"a\"}]}", "", 0),
                     MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "query"));
}
END_TEST

START_TEST(raw_pixels_are_no_file)
{
    ck_assert_int_eq(mp_ask_option(&ask, "encoded", "false", &err), 0);
    ck_assert_int_eq(mp_ask_plain(&ask, 9, &err), MP_EINVAL);
}
END_TEST

/* ---- answers ---- */

#define PARTS 3
static struct mp_part part[PARTS];

/* A result at `offset` of the data. */
static void give(size_t i, const char *results, const char *data, size_t n)
{
    part[i].answer = json_loads(results, 0, NULL);
    ck_assert_ptr_nonnull(part[i].answer);
    ck_assert_int_eq(mp_blob_new(&part[i].data, n, &err), 0);
    if (n)
        memcpy(part[i].data.at, data, n);
}

static void drop_parts(void)
{
    for (size_t i = 0; i < PARTS; i++) {
        json_decref(part[i].answer);
        part[i].answer = NULL;
        mp_blob_free(&part[i].data);
    }
}

static void begin_parts(void)
{
    setup();
    for (size_t i = 0; i < PARTS; i++)
        part[i] = (struct mp_part){.data = MP_NO_BLOB};
}

static void end_parts(void)
{
    drop_parts();
    teardown();
}

#define LABELS(dim, bytes)                                                     \
    "{\"kind\":\"labels\",\"suffix\":\"png\",\"dtype\":\"u8\",\"dim\":" dim    \
    ",\"offset\":0,\"bytes\":" bytes "}"
#define TEXT(offset, bytes)                                                    \
    "{\"kind\":\"json\",\"suffix\":\"json\",\"dtype\":\"none\",\"dim\":[],"    \
    "\"offset\":" offset ",\"bytes\":" bytes "}"

static struct mp_body answer(size_t n, int *rc)
{
    struct mp_body b;

    *rc = mp_body_answer(&b, &ask, "m", part, n, &err);
    return b;
}

START_TEST(two_pictures)
{
    static const char head[] =
        "{\"model_name\":\"m\",\"model_version\":\"1\",\"outputs\":["
        "{\"name\":\"labels\",\"datatype\":\"UINT8\",\"shape\":[2,1,2],";
    struct mp_body b;
    char *want;
    int rc;

    give(0, "{\"results\":[" LABELS("[1,2]", "2") "," TEXT("2", "3") "]}",
         "\1\2\"a\"", 5);
    give(1, "{\"results\":[" LABELS("[1,2]", "2") "," TEXT("2", "4") "]}",
         "\3\4\"bc\"", 6);
    b = answer(2, &rc);
    ck_assert_msg(!rc, "%s", err.text);
    ck_assert_int_eq(b.head, -1);
    want = malloc(400);
    snprintf(want, 400,
             "%s\"data\":[1,2,3,4]},{\"name\":\"json\",\"datatype\":\"BYTES\","
             "\"shape\":[2],\"data\":[\"\\\"a\\\"\",\"\\\"bc\\\"\"]}]}",
             head);
    ck_assert_str_eq(b.bytes, want);
    free(b.bytes);

    ask.binary = 1;
    b = answer(2, &rc);
    snprintf(want, 400,
             "%s\"parameters\":{\"binary_data_size\":4}},{\"name\":\"json\","
             "\"datatype\":\"BYTES\",\"shape\":[2],\"parameters\":{"
             "\"binary_data_size\":15}}]}",
             head);
    ck_assert_int_eq(b.head, (int64_t)strlen(want));
    ck_assert_mem_eq(b.bytes, want, strlen(want));
    ck_assert_uint_eq(b.n, strlen(want) + 19);
    ck_assert_mem_eq(b.bytes + strlen(want),
                     "\1\2\3\4\3\0\0\0\"a\"\4\0\0\0\"bc\"", 19);
    free(want);
    free(b.bytes);
}
END_TEST

START_TEST(no_persons)
{
    static const char none[] =
        "{\"results\":[{\"kind\":\"keypoints\",\"suffix\":\"npy\",\"dtype\":"
        "\"f32\",\"dim\":[0,17,3],\"offset\":0,\"bytes\":0}]}";
    struct mp_body b;
    int rc;

    give(0, none, "", 0);
    give(1, none, "", 0);
    b = answer(2, &rc);
    ck_assert_msg(!rc, "%s", err.text);
    ck_assert_ptr_nonnull(strstr(
        b.bytes, "\"datatype\":\"FP32\",\"shape\":[2,0,17,3],\"data\":[]"));
    free(b.bytes);
}
END_TEST

START_TEST(not_finite)
{
    const float x[3] = {NAN, INFINITY, 0.1f};
    struct mp_body b;
    int rc;

    give(0,
         "{\"results\":[{\"kind\":\"npy\",\"suffix\":\"npy\",\"dtype\":"
         "\"f32\",\"dim\":[1,3],\"offset\":0,\"bytes\":12}]}",
         (const char *)x, 12);
    b = answer(1, &rc);
    ck_assert_int_eq(rc, 0);
    ck_assert_ptr_nonnull(strstr(b.bytes, "[null,null,0.100000001]"));
    free(b.bytes);
}
END_TEST

START_TEST(other_shape)
{
    struct mp_body b;
    int rc;

    give(0, "{\"results\":[" LABELS("[1,2]", "2") "]}", "ab", 2);
    give(1, "{\"results\":[" LABELS("[1,2]", "2") "]}", "ab", 2);
    give(2, "{\"results\":[" LABELS("[2,1]", "2") "]}", "ab", 2);
    b = answer(3, &rc);
    ck_assert_int_eq(rc, MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "output labels: that of picture 3"));
    free(b.bytes);
}
END_TEST

START_TEST(file_in_json)
{
    struct mp_body b;
    int rc;

    give(0,
         "{\"results\":[{\"kind\":\"labels\",\"suffix\":\"png\",\"dtype\":"
         "\"none\",\"dim\":[],\"offset\":0,\"bytes\":4}]}",
         "\x89PNG", 4);
    b = answer(1, &rc);
    ck_assert_int_eq(rc, MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "binary_data"));
    free(b.bytes);
    ask.binary = 1;
    b = answer(1, &rc);
    ck_assert_int_eq(rc, 0);
    free(b.bytes);
}
END_TEST

/* A worker that says what cannot be. */
START_TEST(nonsense)
{
    static const char *const answers[] = {
        "{\"results\":[" LABELS("[1,2]", "3") "]}",
        "{\"results\":[{\"kind\":\"labels\"}]}",
        "{\"results\":[7]}",
    };
    struct mp_body b;
    int rc;

    give(0, answers[_i], "ab", 2);
    b = answer(1, &rc);
    ck_assert_int_eq(rc, MP_EIO);
    free(b.bytes);
}
END_TEST

/* ---- the repository ---- */

/* As the index, and to load or unload. */
static const struct {
    const char *body;
    int index, ready, change;
} repository[] = {
    {"", 0, 0, 0},
    {"{}", 0, 0, 0},
    {"{\"ready\":true}", 0, 1, 0},
    {"{\"ready\":false}", 0, 0, 0},
    {"{\"ready\":1}", MP_EINVAL, 0, 0},
    {"garbage", MP_EINVAL, 0, MP_EINVAL},
    {"[]", MP_EINVAL, 0, MP_EINVAL},
    {"{\"parameters\":{\"unload_dependents\":false}}", 0, 0, 0},
    {"{\"parameters\":{\"unload_dependents\":\"no\"}}", 0, 0, MP_EINVAL},
    {"{\"parameters\":[]}", 0, 0, MP_EINVAL},
    {"{\"parameters\":{\"config\":\"{}\"}}", 0, 0, MP_ENOTSUP},
    {"{\"parameters\":{\"file:1/model.onnx\":\"AA==\"}}", 0, 0, MP_ENOTSUP},
    {"{\"parameters\":{\"other\":1}}", 0, 0, MP_EINVAL},
};

START_TEST(of_repository)
{
    const char *body = repository[_i].body;
    int ready = 0;

    ck_assert_int_eq(mp_repository_index(body, strlen(body), &ready, &err),
                     repository[_i].index);
    ck_assert_int_eq(ready, repository[_i].ready);
    ck_assert_int_eq(mp_repository_change(body, strlen(body), &err),
                     repository[_i].change);
}
END_TEST

/* ---- addresses, and what is accepted ---- */

static const struct {
    const char *url, *model;
    enum mp_route route;
} routes[] = {
    {"/", "", MP_ROUTE_PAGE},
    {"/v2", "", MP_ROUTE_SERVER},
    {"/v2/", "", MP_ROUTE_SERVER},
    {"/v2/models/stats", "", MP_ROUTE_ALL_STATS},
    {"/v2/models/a", "a", MP_ROUTE_MODEL},
    {"/v2/models/a/versions/1", "a", MP_ROUTE_MODEL},
    {"/v2/models/a/versions/1/infer", "a", MP_ROUTE_INFER},
    {"/v2/models/a/versions/12/infer", "a", MP_ROUTE_NOWHERE},
    {"/v2/models/a/versions//infer", "a", MP_ROUTE_NOWHERE},
    {"/v2/models/a/infer/", "a", MP_ROUTE_NOWHERE},
    {"/v2/models/a.b-c_1/config", "a.b-c_1", MP_ROUTE_MODEL_CONFIG},
    {"/v2/models/..", "", MP_ROUTE_NOWHERE},
    {"/v2/models//infer", "", MP_ROUTE_NOWHERE},
    {"/v2/models/a/trace/setting", "a", MP_ROUTE_NOT_HERE},
    {"/v2/models/a/generate", "a", MP_ROUTE_NOT_HERE},
    {"/v2/trace/setting", "", MP_ROUTE_NOT_HERE},
    {"/v2/logging", "", MP_ROUTE_NOT_HERE},
    {"/v2/systemsharedmemory/region/a/register", "", MP_ROUTE_NOT_HERE},
    {"/v2/cudasharedmemory/status", "", MP_ROUTE_NOT_HERE},
    {"/v2/repository/index", "", MP_ROUTE_INDEX},
    {"/v2/repository/models/a/load", "a", MP_ROUTE_LOAD},
    {"/v2/repository/models/a/unload", "a", MP_ROUTE_UNLOAD},
    {"/v2/repository/models/a", "a", MP_ROUTE_NOWHERE},
};

START_TEST(addresses)
{
    char model[MP_ROUTE_NAME] = "";

    ck_assert_int_eq(mp_route_find(model, routes[_i].url), routes[_i].route);
    ck_assert_str_eq(model, routes[_i].model);
}
END_TEST

static const struct {
    const char *list;
    enum mp_accept type;
} accepts[] = {
    {NULL, MP_ACCEPT_ANY},
    {"", MP_ACCEPT_ANY},
    {"*/*", MP_ACCEPT_ANY},
    {"image/png", MP_ACCEPT_PNG},
    {"IMAGE/PNG", MP_ACCEPT_PNG},
    {"image/*", MP_ACCEPT_PNG},
    {"application/json", MP_ACCEPT_JSON},
    {"application/octet-stream", MP_ACCEPT_NPY},
    {"image/png;q=0.9, application/json;q=0.5", MP_ACCEPT_PNG},
    {"image/png;q=0.5,application/json;charset=utf-8;q=0.9", MP_ACCEPT_JSON},
    {"image/png, application/json", MP_ACCEPT_PNG},
    {"text/html,application/xhtml+xml,image/webp,*/*;q=0.8", MP_ACCEPT_ANY},
    {"image/png;q=0, application/json;q=0.1", MP_ACCEPT_JSON},
    {"image/jpeg", MP_ACCEPT_NONE},
    {"image/pngx", MP_ACCEPT_NONE},
    {", ,", MP_ACCEPT_NONE},
    {"application/json-seq, ;q=1", MP_ACCEPT_NONE},
};

START_TEST(accepted)
{
    ck_assert_int_eq(mp_accept_type(accepts[_i].list), accepts[_i].type);
}
END_TEST

START_TEST(codings)
{
    ck_assert(!mp_accept_coding(NULL, "gzip"));
    ck_assert(mp_accept_coding("gzip", "gzip"));
    ck_assert(mp_accept_coding("deflate, gzip;q=0.5", "gzip"));
    ck_assert(!mp_accept_coding("deflate, gzip;q=0", "gzip"));
    ck_assert(!mp_accept_coding("deflate, gzip;q=0.000", "gzip"));
    ck_assert(!mp_accept_coding("x-gzip", "gzip"));
}
END_TEST

/* ---- what a model is ---- */

static void check_shapes(json_t *model, const char *list, const char *key,
                         const char *want)
{
    json_t *shapes = json_array(), *one;
    char *text;
    size_t i;

    json_array_foreach(json_object_get(model, list), i, one)
        json_array_append(shapes, json_object_get(one, key));
    text = json_dumps(shapes, JSON_COMPACT);
    ck_assert_str_eq(text, want);
    free(text);
    json_decref(shapes);
}

/* max_batch_size above 0: dims are without the pictures' dimension. */
START_TEST(model)
{
    json_t *about =
        json_loads("{\"uses_boxes\":true,\"outputs\":[{\"kind\":\"keypoints\","
                   "\"dtype\":\"f32\",\"shape\":[-1,17,3]},{\"kind\":\"json\","
                   "\"dtype\":\"none\",\"shape\":[]}]}",
                   0, NULL);
    json_t *metadata = mp_metadata("m", about);
    json_t *config = mp_model_config("m", about, 64);

    check_shapes(metadata, "inputs", "shape", "[[-1,-1,-1,3],[-1],[-1,-1,4]]");
    check_shapes(metadata, "outputs", "shape", "[[-1,-1,17,3],[-1]]");
    check_shapes(config, "input", "dims", "[[-1,-1,3],[],[-1,4]]");
    check_shapes(config, "input", "data_type",
                 "[\"TYPE_UINT8\",\"TYPE_STRING\",\"TYPE_FP32\"]");
    check_shapes(config, "output", "dims", "[[-1,17,3],[]]");
    ck_assert_int_eq(
        json_integer_value(json_object_get(config, "max_batch_size")), 64);
    json_decref(metadata);
    json_decref(config);
    json_decref(about);
}
END_TEST

/* ---- statistics ---- */

/* Two pictures, one seen with another of somebody else, one in two looks. */
START_TEST(tallied)
{
    static const char *const answers[] = {
        "{\"seconds\":{\"read\":1.0,\"network\":4.0,\"merge\":1.0,\"write\":"
        "2.0},\"runs\":[[2,0.5,4.0]]}",
        "{\"seconds\":{\"read\":1.0,\"network\":6.0,\"merge\":0.0,\"write\":"
        "2.0},\"runs\":[[1,1.0,2.0],[2,0.5,4.0]]}"};
    struct tally *t = calloc(1, sizeof *t);
    struct stages of = {0};

    for (int i = 0; i < 2; i++) {
        json_t *o = json_loads(answers[i], 0, NULL);

        mp_tally_picture(t, o, &of);
        json_decref(o);
    }
    mp_tally_request(t, GOOD, 20, &of);
    mp_tally_request(t, BROKEN, 3, &(struct stages){0});
    ck_assert_uint_eq(t->pictures, 2);
    ck_assert_double_eq(t->runs, 2);
    ck_assert_double_eq(t->stages.input, 2);
    ck_assert_double_eq(t->stages.infer, 11);
    ck_assert_double_eq(t->stages.output, 4);
    ck_assert_uint_eq(t->success.count, 1);
    ck_assert_double_eq(t->success.seconds, 20);
    ck_assert_double_eq(t->fail.seconds, 3);
    ck_assert_double_eq(t->queue.seconds, 3);
    ck_assert_double_eq(t->batch[0].runs, 1);
    ck_assert_double_eq(t->batch[0].stages.infer, 2);
    ck_assert_double_eq(t->batch[1].runs, 1);
    ck_assert_double_eq(t->batch[1].stages.infer, 8);
    ck_assert_double_eq_tol(t->batch[0].stages.input + t->batch[1].stages.input,
                            2, 1e-12);
    ck_assert_double_eq_tol(t->batch[1].stages.output, 2 + 2 / 3.0, 1e-12);
    free(t);
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof *(table))

int main(void)
{
    Suite *s = suite_create("ask");
    TCase *c = tcase_create("ask"), *a = tcase_create("answer");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, pixels);
    tcase_add_test(c, pixels_in_json);
    tcase_add_loop_test(c, files, 0, 2);
    tcase_add_loop_test(c, boxes, 0, 4);
    tcase_add_loop_test(c, binary_boxes, 0, 2);
    tcase_add_test(c, plain);
    tcase_add_test(c, query);
    tcase_add_loop_test(c, refused, 0, COUNT(wrong));
    tcase_add_test(c, refused_query);
    tcase_add_test(c, raw_pixels_are_no_file);
    suite_add_tcase(s, c);
    tcase_add_checked_fixture(a, begin_parts, end_parts);
    tcase_add_test(a, two_pictures);
    tcase_add_test(a, no_persons);
    tcase_add_test(a, not_finite);
    tcase_add_test(a, other_shape);
    tcase_add_test(a, file_in_json);
    tcase_add_loop_test(a, nonsense, 0, 3);
    tcase_add_loop_test(a, of_repository, 0, COUNT(repository));
    tcase_add_loop_test(a, addresses, 0, COUNT(routes));
    tcase_add_loop_test(a, accepted, 0, COUNT(accepts));
    tcase_add_test(a, codings);
    tcase_add_test(a, model);
    tcase_add_test(a, tallied);
    suite_add_tcase(s, a);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
