/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mpipe/base.h"

START_TEST(fail_sets_code_and_text)
{
    struct mp_error e = {0, ""};

    ck_assert_int_eq(mp_fail(&e, MP_EIO, "%s: %d", "a.png", 7), MP_EIO);
    ck_assert_int_eq(e.code, MP_EIO);
    ck_assert_str_eq(e.text, "a.png: 7");
    ck_assert_int_eq(mp_fail(NULL, MP_ENOMEM, "x"), MP_ENOMEM);
    ck_assert_int_lt(mp_fail_in(NULL, "x"), 0);
}
END_TEST

START_TEST(fail_in_prefixes)
{
    struct mp_error e = {0, ""};

    mp_fail(&e, MP_EFORMAT, "not a PNG");
    ck_assert_int_eq(mp_fail_in(&e, "image %s", "a"), MP_EFORMAT);
    ck_assert_int_eq(mp_fail_in(&e, "job %d", 3), MP_EFORMAT);
    ck_assert_str_eq(e.text, "job 3: image a: not a PNG");
}
END_TEST

START_TEST(fail_may_quote_its_own_text)
{
    struct mp_error e = {0, ""};

    mp_fail(&e, MP_EIO, "inner");
    mp_fail(&e, MP_EABI, "outer (%s)", e.text);
    ck_assert_str_eq(e.text, "outer (inner)");
}
END_TEST

START_TEST(fail_is_one_printable_line)
{
    struct mp_error e = {0, ""};

    mp_fail(&e, MP_EIO, "%s", "a\nb\tc\033[31m\177\xc3\xa9");
    ck_assert_str_eq(e.text, "a?b?c?[31m?\xc3\xa9");
}
END_TEST

START_TEST(fail_cuts_long_text)
{
    struct mp_error e = {0, ""};
    char longer[2000];
    size_t room = sizeof(e.text) - 1;

    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    longer[room] = '\0';
    mp_fail(&e, MP_EIO, "%s", longer);
    ck_assert_str_eq(e.text, longer);

    longer[room] = 'x';
    mp_fail(&e, MP_EIO, "%s", longer);
    ck_assert_uint_eq(strlen(e.text), room);
    ck_assert_str_eq(e.text + room - 4, "x...");
    mp_fail_in(&e, "%s", longer);
    ck_assert_uint_eq(strlen(e.text), room);
    ck_assert_str_eq(e.text + room - 4, "x...");

    /* two-byte characters are cut between, never inside */
    for (int shift = 0; shift < 2; shift++) {
        for (size_t i = 0; i + 1 < sizeof(longer); i++)
            longer[i] = i % 2 == 0 ? '\xc3' : '\xa9';
        mp_fail(&e, MP_EIO, "%s%s", shift ? "x" : "", longer);
        ck_assert_str_eq(strchr(e.text, '.') - 2, "\xc3\xa9...");
    }
}
END_TEST

/* Standard error, as a file to be read back. */
static FILE *capture(void)
{
    FILE *f = tmpfile();

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(dup2(fileno(f), STDERR_FILENO), STDERR_FILENO);
    return f;
}

static void expect_line(FILE *f, const char *want)
{
    char line[4096];

    ck_assert_ptr_nonnull(fgets(line, sizeof(line), f));
    ck_assert_str_eq(line, want);
}

START_TEST(log_writes_lines_by_level)
{
    FILE *f = capture();
    char line[8];

    ck_assert_int_eq(mp_log_get(), MP_LOG_WARNING);
    errno = EDOM;
    mp_log(MP_LOG_ERROR, "conf", "%d bad", 1);
    mp_log(MP_LOG_WARNING, "conf", "odd\n%s", "two");
    mp_log(MP_LOG_INFO, "conf", "unheard");
    mp_log_set(MP_LOG_DEBUG);
    mp_log(MP_LOG_DEBUG, NULL, "plain");
    mp_log_set(MP_LOG_ERROR);
    mp_log(MP_LOG_WARNING, "conf", "unheard");
    ck_assert_int_eq(errno, EDOM);

    rewind(f);
    expect_line(f, "mpipe: conf: 1 bad\n");
    expect_line(f, "mpipe: warning: conf: odd?two\n");
    expect_line(f, "mpipe: plain\n");
    ck_assert_ptr_null(fgets(line, sizeof(line), f));
    fclose(f);
}
END_TEST

START_TEST(log_cuts_long_lines)
{
    FILE *f = capture();
    char text[6000], line[6000];

    memset(text, 'y', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    mp_log(MP_LOG_ERROR, "a", "%s", text);
    mp_log(MP_LOG_ERROR, text, "%s", text);
    rewind(f);
    for (int i = 0; i < 2; i++) {
        ck_assert_ptr_nonnull(fgets(line, sizeof(line), f));
        ck_assert_str_eq(line + strlen(line) - 5, "y...\n");
    }
    ck_assert_ptr_null(fgets(line, sizeof(line), f));
    fclose(f);
}
END_TEST

#define THREADS 4
#define LINES   200

static void *log_many(void *user)
{
    const char *name = user;

    for (int i = 0; i < LINES; i++)
        mp_log(MP_LOG_ERROR, name, "%s%s%s%d", name, name, name, i);
    return NULL;
}

START_TEST(log_lines_of_threads_stay_whole)
{
    FILE *f = capture();
    char *names[THREADS] = {"aaaa", "bbbb", "cccc", "dddd"};
    int next[THREADS] = {0}, total = 0;
    pthread_t t[THREADS];
    char line[128], want[128];

    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&t[i], NULL, log_many, names[i]), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    rewind(f);
    for (; fgets(line, sizeof(line), f) != NULL; total++) {
        int i = line[7] - 'a';

        ck_assert(i >= 0 && i < THREADS);
        snprintf(want, sizeof(want), "mpipe: %s: %s%s%s%d\n", names[i],
                 names[i], names[i], names[i], next[i]++);
        ck_assert_str_eq(line, want);
    }
    ck_assert_int_eq(total, THREADS * LINES);
    fclose(f);
}
END_TEST

START_TEST(log_survives_a_closed_stderr)
{
    close(STDERR_FILENO);
    mp_log(MP_LOG_ERROR, "a", "nobody reads this");
}
END_TEST

START_TEST(dtype_tables)
{
    static const struct {
        enum mp_dtype t;
        size_t size;
        const char *name;
    } want[] = {{MP_NONE, 0, "none"}, {MP_F32, 4, "f32"}, {MP_F16, 2, "f16"},
                {MP_BF16, 2, "bf16"}, {MP_F64, 8, "f64"}, {MP_I8, 1, "i8"},
                {MP_I16, 2, "i16"},   {MP_I32, 4, "i32"}, {MP_I64, 8, "i64"},
                {MP_U8, 1, "u8"},     {MP_U16, 2, "u16"}, {MP_BOOL, 1, "bool"}};

    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        ck_assert_uint_eq(mp_dtype_size(want[i].t), want[i].size);
        ck_assert_str_eq(mp_dtype_name(want[i].t), want[i].name);
    }
    ck_assert_uint_eq(mp_dtype_size((enum mp_dtype)99), 0);
    ck_assert_str_eq(mp_dtype_name((enum mp_dtype)99), "none");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base");
    TCase *errors = tcase_create("errors"), *log = tcase_create("log"),
          *dtype = tcase_create("dtype");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_test(errors, fail_sets_code_and_text);
    tcase_add_test(errors, fail_in_prefixes);
    tcase_add_test(errors, fail_may_quote_its_own_text);
    tcase_add_test(errors, fail_is_one_printable_line);
    tcase_add_test(errors, fail_cuts_long_text);
    tcase_add_test(log, log_writes_lines_by_level);
    tcase_add_test(log, log_cuts_long_lines);
    tcase_add_test(log, log_lines_of_threads_stay_whole);
    tcase_add_test(log, log_survives_a_closed_stderr);
    tcase_add_test(dtype, dtype_tables);
    suite_add_tcase(s, errors);
    suite_add_tcase(s, log);
    suite_add_tcase(s, dtype);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
