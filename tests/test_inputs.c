/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "inputs.h"

static char folder[] = "/tmp/mpipe-inputs-XXXXXX";
static struct mp_inputs in;
static struct mp_error err;

static void make(const char *path)
{
    ck_assert_int_eq(mp_file_parents(path, &err), 0);
    ck_assert_int_eq(mp_file_write(path, "x", 1, &err), 0);
}

static void enter(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
    memset(&err, 0, sizeof err);
}

static int remove_one(const char *path, const struct stat *st, int kind,
                      struct FTW *f)
{
    (void)st;
    (void)kind;
    (void)f;
    return remove(path);
}

static void leave(void)
{
    mp_inputs_free(&in);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The stems in order, separated by blanks. */
static const char *stems(void)
{
    static char text[1024];

    text[0] = '\0';
    for (size_t i = 0; i < in.n; i++) {
        strcat(text, i ? " " : "");
        strcat(text, in.at[i].stem);
    }
    return text;
}

static void open_all(const char *arg, int recursive)
{
    mp_inputs_free(&in);
    ck_assert_msg(!mp_inputs_open(&in, arg, recursive, "out", &err), "%s",
                  err.text);
}

static void refuse(const char *arg, int recursive, const char *out,
                   const char *text)
{
    mp_inputs_free(&in);
    ck_assert_int_lt(mp_inputs_open(&in, arg, recursive, out, &err), 0);
    ck_assert_msg(strstr(err.text, text), "\"%s\" in \"%s\"", text, err.text);
}

START_TEST(folder_by_suffix_sorted)
{
    make("in/b.PNG");
    make("in/a.jpeg");
    make("in/B.jpg");
    make("in/.hidden.png");
    make("in/.png");
    make("in/png");
    make("in/c.gif");
    make("in/sub/d.png");
    mkdir("in/e.png", 0777);
    open_all("in", 0);
    ck_assert_str_eq(stems(), "B a b");
    ck_assert_uint_eq(in.others, 2);
    open_all("in///", 1);
    ck_assert_str_eq(stems(), "B a b sub/d");
    ck_assert_str_eq(in.at[3].path, "in/sub/d.png");
}
END_TEST

START_TEST(links_are_followed_but_not_in_circles)
{
    make("in/a.png");
    make("other/b.png");
    ck_assert_int_eq(symlink("../other", "in/link"), 0);
    ck_assert_int_eq(symlink("..", "other/up"), 0);
    ck_assert_int_eq(symlink("nowhere.png", "in/none.png"), 0);
    ck_assert_int_eq(symlink("a.png", "in/z.png"), 0);
    open_all("in", 1);
    ck_assert_str_eq(stems(), "a link/b z");
}
END_TEST

START_TEST(out_is_left_out)
{
    make("in/a.png");
    make("in/out/a.labels.png");
    mp_inputs_free(&in);
    ck_assert_int_eq(mp_inputs_open(&in, "in", 1, "in/./out/", &err), 0);
    ck_assert_str_eq(stems(), "a");
    refuse("in", 0, "./in", "both IN and OUT");
    refuse("in/out", 1, "in/out", "both IN and OUT");
}
END_TEST

START_TEST(one_file_whatever_its_name)
{
    make("deep/er/x.y.tif");
    make("deep/.z");
    open_all("deep/er/x.y.tif", 0);
    ck_assert_str_eq(stems(), "x.y");
    open_all("deep/.z", 0);
    ck_assert_str_eq(stems(), ".z");
    refuse("deep/none.png", 0, "out", "deep/none.png: No such file");
}
END_TEST

START_TEST(names_are_bytes)
{
    char name[300] = "in/";

    make("in/a\xff\n b.png");
    open_all("in", 0);
    ck_assert_str_eq(stems(), "a\xff\n b");
    memset(name + 3, 'x', 251);
    strcpy(name + 3 + 251, ".png");
    mkdir("in", 0777);
    ck_assert_int_ge(close(open(name, O_CREAT | O_WRONLY, 0666)), 0);
    open_all("in", 0);
    ck_assert_uint_eq(in.n, 2);
    ck_assert_uint_eq(strlen(in.at[1].stem), 251);
}
END_TEST

START_TEST(lists)
{
    static const char text[] = "a.png\n\n./sub//./b.png\r\n/abs/c.png\n"
                               "../up/d.png\nx/../e.png\nf..g/h\nlast";

    ck_assert_int_eq(mp_file_write("list", text, sizeof text - 1, &err), 0);
    open_all("@list", 0);
    ck_assert_str_eq(stems(), "a sub/b c d e f..g/h last");
    ck_assert_str_eq(in.at[1].path, "./sub//./b.png");
    refuse("@none", 0, "out", "none: No such file");
    ck_assert_int_eq(mp_file_write("list", "\n\n", 2, &err), 0);
    refuse("@list", 0, "out", "no names");
    ck_assert_int_eq(mp_file_write("list", "a\0b\n", 4, &err), 0);
    refuse("@list", 0, "out", "list:1: not a list");
}
END_TEST

START_TEST(standard_input)
{
    int fd;

    make("names");
    ck_assert_int_eq(mp_file_write("names", "p.png\nq/r.png\n", 14, &err), 0);
    fd = open("names", O_RDONLY);
    ck_assert_int_eq(dup2(fd, 0), 0);
    close(fd);
    open_all("-", 0);
    ck_assert_str_eq(stems(), "p q/r");
}
END_TEST

START_TEST(clashes)
{
    make("in/s/a.png");
    make("in/s/a.jpg");
    refuse("in", 1, "out", "in/s/a.jpg and in/s/a.png");
    ck_assert_int_eq(mp_file_write("list", "a\n./b\na\n", 8, &err), 0);
    refuse("@list", 0, "out", "a is named twice");
    ck_assert_int_eq(mp_file_write("list", "/x/a.png\n/y/a.png\n", 18, &err),
                     0);
    refuse("@list", 0, "out", "/x/a.png and /y/a.png");
}
END_TEST

START_TEST(nothing)
{
    make("in/a.txt");
    refuse("in", 0, "out", "-r looks");
    refuse("in", 1, "out", "or below it");
    refuse("none", 0, "out", "none: No such file");
}
END_TEST

START_TEST(shards_by_number)
{
    static const char *const wrong[] = {"",
                                        "0/3",
                                        "4/3",
                                        "1/0",
                                        "1",
                                        "a/b",
                                        "1/",
                                        "/1",
                                        "1/3x",
                                        "-1/3",
                                        "1/99999999999999999999"};
    struct mp_shard s;
    size_t total = 0;

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        ck_assert_msg(mp_shard_parse(&s, wrong[i], &err) < 0, "%s", wrong[i]);
    for (char c = 'a'; c < 'h'; c++) {
        char name[16];

        snprintf(name, sizeof name, "in/%c.png", c);
        make(name);
    }
    for (int i = 1; i <= 3; i++) {
        char text[16];

        snprintf(text, sizeof text, "%d/3", i);
        ck_assert_int_eq(mp_shard_parse(&s, text, &err), 0);
        open_all("in", 0);
        mp_inputs_keep(&in, &s);
        total += in.n;
        if (i == 2)
            ck_assert_str_eq(stems(), "b e");
    }
    ck_assert_uint_eq(total, 7);
}
END_TEST

/* Variables as "NAME=value ...", and the part they ask for; 0/0: none. */
static const struct {
    const char *environment;
    int i, n;
} automatic[] = {
    {"", 0, 0},
    {"SLURM_PROCID=2 SLURM_NTASKS=8", 3, 8},
    {"SLURM_PROCID=8 SLURM_NTASKS=8", 0, 0},
    {"SLURM_PROCID=x SLURM_NTASKS=8", 0, 0},
    {"SLURM_ARRAY_TASK_ID=7 SLURM_ARRAY_TASK_MIN=3 SLURM_ARRAY_TASK_COUNT=4 "
     "SLURM_ARRAY_TASK_STEP=2",
     3, 4},
    {"SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_COUNT=4 "
     "SLURM_PROCID=2 SLURM_NTASKS=3",
     6, 12},
    {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 SLURM_PROCID=0 "
     "SLURM_NTASKS=1",
     2, 2},
    {"PMI_RANK=0 PMI_SIZE=5", 1, 5},
    {"PMI_RANK=0 PMI_SIZE=0", 0, 0},
    {"SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_MIN=0 "
     "SLURM_ARRAY_TASK_COUNT=1000000000 SLURM_PROCID=0 "
     "SLURM_NTASKS=1000000000",
     0, 0},
};

START_TEST(shards_from_the_environment)
{
    char text[256], *save;
    struct mp_shard s;
    int rc;

    clearenv();
    strcpy(text, automatic[_i].environment);
    for (char *p = strtok_r(text, " ", &save); p;
         p = strtok_r(NULL, " ", &save))
        putenv(p);
    rc = mp_shard_parse(&s, "auto", &err);
    ck_assert_int_eq(rc == 0, automatic[_i].n != 0);
    if (rc == 0) {
        ck_assert_int_eq(s.i, automatic[_i].i);
        ck_assert_int_eq(s.n, automatic[_i].n);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("inputs");
    TCase *t = tcase_create("inputs");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(t, enter, leave);
    tcase_add_test(t, folder_by_suffix_sorted);
    tcase_add_test(t, links_are_followed_but_not_in_circles);
    tcase_add_test(t, out_is_left_out);
    tcase_add_test(t, one_file_whatever_its_name);
    tcase_add_test(t, names_are_bytes);
    tcase_add_test(t, lists);
    tcase_add_test(t, standard_input);
    tcase_add_test(t, clashes);
    tcase_add_test(t, nothing);
    tcase_add_test(t, shards_by_number);
    tcase_add_loop_test(t, shards_from_the_environment, 0,
                        sizeof automatic / sizeof *automatic);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
