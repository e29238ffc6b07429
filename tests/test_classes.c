/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "classes.h"
#include "golden.h"

static struct mp_classes *classes;
static struct mp_error e;
static char folder[256], file[300];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(folder, sizeof(folder), "%s/mp_classes.XXXXXX",
             tmp == NULL ? "/tmp" : tmp);
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/a.json", folder);
    memset(&e, 0, sizeof(e));
}

static void teardown(void)
{
    mp_classes_free(classes);
    classes = NULL;
    unlink(file);
    ck_assert_int_eq(rmdir(folder), 0); /* nothing temporary is left */
}

static const struct {
    const char *file, *name, *first, *last;
    size_t count;
    uint8_t first_color[3], last_color[3];
} shipped[] = {
    {"ade20k", "ADE20K", "wall", "flag", 150, {120, 120, 120}, {92, 0, 255}},
    {"cityscapes",
     "Cityscapes",
     "road",
     "bicycle",
     19,
     {128, 64, 128},
     {119, 11, 32}},
    {"camvid",
     "CamVid",
     "Sky",
     "Bicyclist",
     11,
     {128, 128, 128},
     {0, 128, 192}},
};

START_TEST(shipped_tables)
{
    const char *srcdir = getenv("srcdir");
    char path[4096];

    snprintf(path, sizeof(path), "%s/conf/classes/%s.json",
             srcdir == NULL ? "." : srcdir, shipped[_i].file);
    ck_assert_msg(mp_classes_open(&classes, path, &e) == 0, "%s", e.text);
    ck_assert_str_eq(classes->name, shipped[_i].name);
    ck_assert_uint_eq(classes->count, shipped[_i].count);
    ck_assert_str_eq(classes->names[0], shipped[_i].first);
    ck_assert_str_eq(classes->names[classes->count - 1], shipped[_i].last);
    ck_assert_mem_eq(classes->color[0], shipped[_i].first_color, 3);
    ck_assert_mem_eq(classes->color[classes->count - 1], shipped[_i].last_color,
                     3);
    for (size_t i = 0; i < classes->count; i++) {
        const char *n = classes->names[i];

        ck_assert(n[0] != ' ' && n[strlen(n) - 1] != ' ');
    }
}
END_TEST

static int load_bytes(const char *bytes, size_t n)
{
    FILE *f = fopen(file, "wb");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
    return mp_classes_open(&classes, file, &e);
}

#define ONE(rest) "{\"name\":\"t\",\"classes\":[" rest "]}"
#define OK        "{\"name\":\"a\",\"color\":[0,1,2]}"
#define ID(id)    "{\"name\":\"a\",\"color\":[0,1,2],\"label_id\":" id "}"
#define COLOR     ": classes[1]: color must be three whole numbers 0..255"

static const struct {
    const char *text, *error;
} bad[] = {
    {"", ":1:0: "},
    {"{\"name\":\n\"t\"", ":2:"},
    {ONE(OK) "x", ":1:"},
    {"{\"name\":\"t\",\"name\":\"u\"}", ":1:"},
    {ONE("{\"name\":\"a\\u0000b\",\"color\":[0,1,2]}"), ":1:"},
    {ONE("{\"name\":\"\xff\",\"color\":[0,1,2]}"), ":1:"},
    {ONE("{\"name\":\"a\",\"color\":[0,1,99999999999999999999]}"), ":1:"},
    {"[]", ": name must be a text, not empty"},
    {"{\"name\":1}", ": name must be a text, not empty"},
    {"{\"name\":\"\"}", ": name must be a text, not empty"},
    {"{\"name\":\"t\"}", ": classes must be a list of 1..65535"},
    {"{\"name\":\"t\",\"classes\":{}}", ": classes must be a list of 1..65535"},
    {ONE(""), ": classes must be a list of 1..65535"},
    {ONE(OK ",7"), ": classes[1]: must be an object"},
    {ONE("{\"color\":[0,1,2]}"),
     ": classes[0]: name must be a text, not empty"},
    {ONE("{\"name\":\"\",\"color\":[0,1,2]}"),
     ": classes[0]: name must be a text, not empty"},
    {ONE(OK ",{\"name\":\"b\"}"), COLOR},
    {ONE(OK ",{\"name\":\"b\",\"color\":7}"), COLOR},
    {ONE(OK ",{\"name\":\"b\",\"color\":[0,1]}"), COLOR},
    {ONE(OK ",{\"name\":\"b\",\"color\":[0,1,2,3]}"), COLOR},
    {ONE(OK ",{\"name\":\"b\",\"color\":[0,1,256]}"), COLOR},
    {ONE(OK ",{\"name\":\"b\",\"color\":[0,-1,2]}"), COLOR},
    {ONE(OK ",{\"name\":\"b\",\"color\":[0,1.5,2]}"), COLOR},
    {ONE(OK ",{\"id\":2,\"name\":\"b\",\"color\":[0,1,2]}"),
     ": classes[1]: id must be the place of the entry"},
    {ONE(OK ",{\"id\":\"1\",\"name\":\"b\",\"color\":[0,1,2]}"),
     ": classes[1]: id must be the place of the entry"},
    {ONE(ID("-1")), ": classes[0]: label_id must be a whole number 0..65535"},
    {ONE(ID("65536")), ": classes[0]: label_id must be a whole number"},
    {ONE(ID("1.5")), ": classes[0]: label_id must be a whole number"},
    {ONE(ID("0") "," OK), ": 1 of 2 classes have a label_id: all or none must"},
    {ONE(ID("7") "," ID("7")), ": two classes have the label_id 7"},
};

#define N_BAD (sizeof(bad) / sizeof(bad[0]))

START_TEST(wrong_files)
{
    const char *want = bad[_i].error;
    int rc = load_bytes(bad[_i].text, strlen(bad[_i].text));

    ck_assert_int_eq(rc, MP_EFORMAT);
    ck_assert_ptr_null(classes);
    ck_assert_msg(strncmp(e.text, file, strlen(file)) == 0 &&
                      strncmp(e.text + strlen(file), want, strlen(want)) == 0,
                  "%s", e.text);
}
END_TEST

START_TEST(unreadable_files)
{
    ck_assert_int_eq(mp_classes_open(&classes, file, &e), MP_EIO);
    ck_assert_ptr_nonnull(strstr(e.text, ": No such file or directory"));
    ck_assert_int_eq(mp_classes_open(&classes, folder, &e), MP_EIO);
    ck_assert_ptr_nonnull(strstr(e.text, ": Is a directory"));
}
END_TEST

START_TEST(large_and_deep_files)
{
    size_t n = (size_t)9 << 20;
    char *text = malloc(n);

    ck_assert_ptr_nonnull(text);
    memset(text, ' ', n);
    ck_assert_int_eq(load_bytes(text, n), MP_EFORMAT);
    ck_assert_ptr_nonnull(strstr(e.text, ": File too large"));
    memset(text, '[', n);
    ck_assert_int_eq(load_bytes(text, n), MP_EFORMAT);
    free(text);
}
END_TEST

/* A table of n classes as a file's text. */
static char *table_of(size_t n)
{
    char *text = malloc(64 * n + 64), *p = text;

    ck_assert_ptr_nonnull(text);
    p += sprintf(p, "{\"name\":\"big\",\"classes\":[");
    for (size_t i = 0; i < n; i++)
        p += sprintf(p, "%s{\"name\":\"c%zu\",\"color\":[%zu,%zu,7]}",
                     i == 0 ? "" : ",", i, i % 256, i / 256 % 256);
    strcpy(p, "]}");
    return text;
}

START_TEST(most_classes)
{
    char *text = table_of(MP_CLASSES_MAX);

    ck_assert_msg(load_bytes(text, strlen(text)) == 0, "%s", e.text);
    ck_assert_uint_eq(classes->count, MP_CLASSES_MAX);
    ck_assert_str_eq(classes->names[65534], "c65534");
    ck_assert_uint_eq(classes->color[65534][0], 254);
    ck_assert_uint_eq(classes->color[65534][1], 255);
    free(text);
    mp_classes_free(classes);
    text = table_of(MP_CLASSES_MAX + 1);
    ck_assert_int_eq(load_bytes(text, strlen(text)), MP_EFORMAT);
    free(text);
}
END_TEST

START_TEST(written_table)
{
    static const char *const names[] = {"a \"b\" \\ \n", "\xc3\xa9"};
    static const uint8_t color[][3] = {{0, 1, 2}, {253, 254, 255}};
    static const struct mp_classes c = {
        .name = "t", .count = 2, .names = names, .color = color};
    static const char want[] =
        "{\"name\": \"t\",\n \"classes\": [\n"
        "  {\"id\": 0, \"name\": \"a \\\"b\\\" \\\\ \\n\", "
        "\"color\": [0, 1, 2]},\n"
        "  {\"id\": 1, \"name\": \"\xc3\xa9\", "
        "\"color\": [253, 254, 255]}\n]}\n";
    char got[sizeof(want) + 8] = "";
    FILE *f;

    ck_assert_msg(mp_classes_write(&c, file, &e) == 0, "%s", e.text);
    f = fopen(file, "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fread(got, 1, sizeof(got), f), strlen(want));
    fclose(f);
    ck_assert_str_eq(got, want);

    ck_assert_msg(mp_classes_open(&classes, file, &e) == 0, "%s", e.text);
    ck_assert_str_eq(classes->name, "t");
    ck_assert_uint_eq(classes->count, 2);
    ck_assert_str_eq(classes->names[0], names[0]);
    ck_assert_mem_eq(classes->color, color, sizeof(color));
}
END_TEST

START_TEST(unwritable_folder)
{
    static const char *const names[] = {"a"};
    static const uint8_t color[][3] = {{0, 1, 2}};
    static const struct mp_classes c = {
        .name = "t", .count = 1, .names = names, .color = color};
    char path[400];

    snprintf(path, sizeof(path), "%s/none/labels.json", folder);
    ck_assert_int_eq(mp_classes_write(&c, path, &e), MP_EIO);
    ck_assert_ptr_nonnull(strstr(e.text, path));
}
END_TEST

START_TEST(label_ids)
{
    char path[4096];
    struct golden *g = golden_open(golden_path("outputs_labels.safetensors"));
    const uint8_t *from = golden_get(g, "cityscapes_pred_trainid")->data;
    const struct golden_tensor *to = golden_get(g, "cityscapes_label_id");

    ck_assert_int_eq(load_bytes(ONE(OK), strlen(ONE(OK))), 0);
    ck_assert_ptr_null(classes->label_id);
    mp_classes_free(classes);
    snprintf(path, sizeof(path), "%s/conf/classes/cityscapes.json",
             getenv("srcdir") == NULL ? "." : getenv("srcdir"));
    ck_assert_msg(mp_classes_open(&classes, path, &e) == 0, "%s", e.text);
    for (size_t i = 0; i < to->count; i++)
        ck_assert_int_eq(classes->label_id[from[i]],
                         ((const uint8_t *)to->data)[i]);
    golden_free(g);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("classes");
    TCase *t = tcase_create("classes");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_set_timeout(t, 30);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, shipped_tables, 0, 3);
    tcase_add_test(t, label_ids);
    tcase_add_loop_test(t, wrong_files, 0, (int)N_BAD);
    tcase_add_test(t, unreadable_files);
    tcase_add_test(t, large_and_deep_files);
    tcase_add_test(t, most_classes);
    tcase_add_test(t, written_table);
    tcase_add_test(t, unwritable_folder);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
