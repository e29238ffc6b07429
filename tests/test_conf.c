/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conf.h"

struct cfg {
    int32_t flip, threads, level, any, precision, crop[2], pair[2];
    uint32_t formats;
    double scale, ratio, free_number, low, high;
    char *path, *note;
};

#define AT(f) offsetof(struct cfg, f)

static const struct mp_option rows[] = {
    {"flip", MP_OPT_BOOL, AT(flip), "no", 0, 0, NULL, NULL, "Flip too"},
    {"threads", MP_OPT_INT, AT(threads), "auto", 1, 64, "auto all", NULL,
     "How many threads"},
    {"level", MP_OPT_INT, AT(level), "-3", -5, 5, NULL, "dB", "Level"},
    {"any", MP_OPT_INT, AT(any), "0", 0, 0, NULL, NULL, "Any number"},
    {"precision", MP_OPT_CHOICE, AT(precision), "auto", 0, 0,
     "auto fp32 bf16 fp16", NULL, "Arithmetic"},
    {"crop", MP_OPT_SIZE, AT(crop), "none", 16, 8192, "none full", NULL,
     "Size of a window"},
    {"pair", MP_OPT_SIZE, AT(pair), "-1x2", 0, 0, NULL, NULL, "Two numbers"},
    {"formats", MP_OPT_FLAGS, AT(formats), "labels", 0, 0,
     "labels color overlay probs", NULL, "What to write"},
    {"scale", MP_OPT_FLOAT, AT(scale), "80", 0.1, 1000, NULL, "m", "Scale"},
    {"ratio", MP_OPT_FLOAT, AT(ratio), "0.3333333333333333", 0, 1, NULL, NULL,
     "Ratio"},
    {"free_number", MP_OPT_FLOAT, AT(free_number), "-1.5e-3", 0, 0, NULL, NULL,
     "Free"},
    {"low", MP_OPT_FLOAT, AT(low), "1", 1, HUGE_VAL, NULL, NULL, "Low"},
    {"high", MP_OPT_FLOAT, AT(high), "1", -HUGE_VAL, 9, NULL, NULL, "High"},
    {"path", MP_OPT_STRING, AT(path), "", 0, 0, NULL, NULL, "A file"},
    {"note", MP_OPT_STRING, AT(note), NULL, 0, 0, NULL, NULL, "A remark"},
    {NULL, MP_OPT_BOOL, 0, NULL, 0, 0, NULL, NULL, NULL}};

static struct mp_conf *conf;
static struct cfg cfg;
static struct mp_error e;
static char folder[256], file[300];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(folder, sizeof(folder), "%s/mp_conf.XXXXXX",
             tmp == NULL ? "/tmp" : tmp);
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof(file), "%s/a.ini", folder);
    conf = mp_conf_new();
    ck_assert_ptr_nonnull(conf);
    memset(&cfg, 0x5a, sizeof(cfg));
    memset(&e, 0, sizeof(e));
}

static void teardown(void)
{
    mp_conf_free(conf);
    unlink(file);
    rmdir(folder);
}

static void declare(void)
{
    ck_assert_msg(mp_conf_section(conf, "s", rows, &cfg, &e) == 0, "%s",
                  e.text);
}

static int load_bytes(const char *bytes, size_t n)
{
    FILE *f = fopen(file, "wb");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
    return mp_conf_file(conf, file, &e);
}

static int load(const char *text)
{
    return load_bytes(text, strlen(text));
}

static int reported(int rc)
{
    if (rc != 0)
        fprintf(stderr, "unexpected: %s\n", e.text);
    return rc;
}

/* The text of the error behind "FILE". */
static void expect_behind_file(const char *want)
{
    ck_assert_msg(strncmp(e.text, file, strlen(file)) == 0, "%s", e.text);
    ck_assert_str_eq(e.text + strlen(file), want);
}

START_TEST(defaults)
{
    declare();
    ck_assert_int_eq(cfg.flip, 0);
    ck_assert_int_eq(cfg.threads, -1);
    ck_assert_int_eq(cfg.level, -3);
    ck_assert_int_eq(cfg.precision, 0);
    ck_assert_int_eq(cfg.crop[0], -1);
    ck_assert_int_eq(cfg.crop[1], -1);
    ck_assert_int_eq(cfg.pair[0], -1);
    ck_assert_int_eq(cfg.pair[1], 2);
    ck_assert_uint_eq(cfg.formats, 1);
    ck_assert_double_eq(cfg.scale, 80);
    ck_assert_double_eq(cfg.free_number, -1.5e-3);
    ck_assert_str_eq(cfg.path, "");
    ck_assert_ptr_null(cfg.note);
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), 0);
    ck_assert_ptr_null(mp_conf_get(conf, "s", "crop"));
    ck_assert_int_eq(mp_conf_given(conf, "s", "crop"), 0);
    ck_assert_str_eq(mp_conf_folder(conf), ".");
}
END_TEST

START_TEST(wrong_default_is_named)
{
    static const struct mp_option bad[] = {
        {"n", MP_OPT_INT, 0, "9", 1, 8, NULL, NULL, "N"},
        {NULL, MP_OPT_BOOL, 0, NULL, 0, 0, NULL, NULL, NULL}};
    int32_t n;

    ck_assert_int_eq(mp_conf_section(conf, "s", bad, &n, &e), MP_EINVAL);
    ck_assert_str_eq(e.text,
                     "default of [s] n: \"9\" is not right: whole number 1..8");
}
END_TEST

START_TEST(every_type_is_read)
{
    declare();
    ck_assert_int_eq(reported(load("# first\n"
                                   "[s]\n"
                                   "flip = yes\n"
                                   "threads=64 ; inline\n"
                                   "  level : -5\n"
                                   "\n"
                                   "any = -2147483648\n"
                                   "precision = bf16\n"
                                   "crop = 512x8192\n"
                                   "pair = 2147483647x-7\n"
                                   "\tformats =  color \t probs\n"
                                   "scale = 1e3\n"
                                   "ratio = .5\n"
                                   "low=1e300\n"
                                   "high = -1e300\n"
                                   "path = a b/c;d=e.pth\n"
                                   "note =")),
                     0);
    ck_assert_int_eq(cfg.flip, 1);
    ck_assert_int_eq(cfg.threads, 64);
    ck_assert_int_eq(cfg.level, -5);
    ck_assert_int_eq(cfg.any, INT32_MIN);
    ck_assert_int_eq(cfg.precision, 2);
    ck_assert_int_eq(cfg.crop[0], 512);
    ck_assert_int_eq(cfg.crop[1], 8192);
    ck_assert_int_eq(cfg.pair[0], INT32_MAX);
    ck_assert_int_eq(cfg.pair[1], -7);
    ck_assert_uint_eq(cfg.formats, 2 | 8);
    ck_assert_double_eq(cfg.scale, 1000);
    ck_assert_double_eq(cfg.ratio, .5);
    ck_assert_double_eq(cfg.low, 1e300);
    ck_assert_double_eq(cfg.high, -1e300);
    ck_assert_str_eq(cfg.path, "a b/c;d=e.pth");
    ck_assert_str_eq(cfg.note, "");
    ck_assert_str_eq(mp_conf_get(conf, "s", "threads"), "64");
    ck_assert_int_eq(mp_conf_given(conf, "s", "note"), 1);
    ck_assert_str_eq(mp_conf_folder(conf), folder);
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), 0);
}
END_TEST

START_TEST(words_of_numbers)
{
    declare();
    ck_assert_int_eq(mp_conf_set(conf, "s.threads=all", &e), 0);
    ck_assert_int_eq(mp_conf_set(conf, "s.crop=full", &e), 0);
    ck_assert_int_eq(cfg.threads, -2);
    ck_assert_int_eq(cfg.crop[0], -2);
    ck_assert_int_eq(cfg.crop[1], -2);
}
END_TEST

#define CROP      "AxB, each 16..8192, or none, full"
#define PRECISION "one of auto, fp32, bf16, fp16"
#define FORMATS                                                                \
    "one or more, separated by blanks, of labels, color, overlay, probs"

static const struct {
    const char *key, *value, *right;
} bad[] = {
    {"flip", "true", "yes or no"},
    {"flip", "1", "yes or no"},
    {"flip", "Yes", "yes or no"},
    {"flip", "", "yes or no"},
    {"threads", "0", "whole number 1..64, or auto, all"},
    {"threads", "65", "whole number 1..64, or auto, all"},
    {"threads", "-1", "whole number 1..64, or auto, all"},
    {"threads", "autp", "whole number 1..64, or auto, all; did you mean auto?"},
    {"threads", "", "whole number 1..64, or auto, all"},
    {"level", "6", "whole number -5..5 dB"},
    {"level", "+5", "whole number -5..5 dB"},
    {"level", "1.0", "whole number -5..5 dB"},
    {"level", "1e0", "whole number -5..5 dB"},
    {"level", "0x1", "whole number -5..5 dB"},
    {"level", "1 2", "whole number -5..5 dB"},
    {"level", "-", "whole number -5..5 dB"},
    {"any", "2147483648", "whole number"},
    {"any", "-2147483649", "whole number"},
    {"any", "99999999999999999999999", "whole number"},
    {"precision", "BF16", PRECISION "; did you mean bf16?"},
    {"precision", "fp23", PRECISION "; did you mean fp32?"},
    {"precision", "int8x", PRECISION},
    {"precision", "", PRECISION},
    {"precision", "auto fp32", PRECISION},
    {"crop", "512", CROP},
    {"crop", "512x", CROP},
    {"crop", "x512", CROP},
    {"crop", "512X512", CROP},
    {"crop", "512x512x3", CROP},
    {"crop", "512 x 512", CROP},
    {"crop", "512x8", CROP},
    {"crop", "8x512", CROP},
    {"crop", "-1x-1", CROP},
    {"crop", "nine", CROP "; did you mean none?"},
    {"pair", "1x", "AxB"},
    {"formats", "", FORMATS},
    {"formats", "labels,color", FORMATS},
    {"formats", "labels colour", FORMATS "; did you mean color?"},
    {"scale", "0.09", "number 0.1..1000 m"},
    {"scale", "1000.01", "number 0.1..1000 m"},
    {"scale", "1,5", "number 0.1..1000 m"},
    {"scale", "80m", "number 0.1..1000 m"},
    {"scale", "", "number 0.1..1000 m"},
    {"scale", "nan", "number 0.1..1000 m"},
    {"free_number", "inf", "number"},
    {"free_number", "1e999", "number"},
    {"free_number", "0x10", "number"},
    {"free_number", "1 e3", "number"},
    {"low", "0.5", "number at least 1"},
    {"high", "9.5", "number at most 9"},
};

#define N_BAD (sizeof(bad) / sizeof(bad[0]))

/* The same words from a file, from -o, and when the section is declared last */
START_TEST(wrong_values)
{
    char text[256], want[512];

    declare();
    snprintf(text, sizeof(text), "[s]\n\n%s = %s\n", bad[_i].key,
             bad[_i].value);
    snprintf(want, sizeof(want), ":3: [s] %s: \"%s\" is not right: %s",
             bad[_i].key, bad[_i].value, bad[_i].right);
    ck_assert_int_eq(load(text), MP_EINVAL);
    expect_behind_file(want);

    snprintf(text, sizeof(text), "s.%s=%s", bad[_i].key, bad[_i].value);
    snprintf(want, sizeof(want), "-o %s: \"%s\" is not right: %s", text,
             bad[_i].value, bad[_i].right);
    ck_assert_int_eq(mp_conf_set(conf, text, &e), MP_EINVAL);
    ck_assert_str_eq(e.text, want);

    mp_conf_free(conf);
    conf = mp_conf_new();
    ck_assert_int_eq(mp_conf_set(conf, text, &e), 0);
    ck_assert_int_eq(mp_conf_section(conf, "s", rows, &cfg, &e), MP_EINVAL);
    ck_assert_str_eq(e.text, want);
}
END_TEST

START_TEST(strings_refuse_control_characters)
{
    declare();
    ck_assert_int_eq(mp_conf_set(conf, "s.path=a\nb", &e), MP_EINVAL);
    ck_assert_str_eq(e.text, "-o s.path=a?b: \"a?b\" is not right: text "
                             "without control characters");
    ck_assert_int_eq(mp_conf_set(conf, "s.path=a\tb\xc3\xa9", &e), 0);
}
END_TEST

/* ------------------------------------------------------- files as they are */

static const struct {
    const char *text, *error; /* NULL: fine, and s.any is 5, s.level 4 */
} files[] = {
    {"[s]\r\nany = 5\r\nlevel=4\r\n", NULL},
    {"\xef\xbb\xbf[s]\nany = 5\nlevel=4", NULL},
    {"\xef\xbb\xbf; c\n[s]\nany = 5\nlevel=4", NULL},
    {"[s] ; comment\n any = 5\n  level = 4\n", NULL},
    {"[s]\nany=5\n[t]\n[s]\nlevel=4\n", NULL},
    {"[s]\nany=5\nlevel=4\r", NULL},
    {"", ""},
    {"[s]\nany=1\nlevel=1\nany=2\n", ":4: [s] any is given twice, first at "},
    {"[s]\nany=1\n any=2\n", ":3: [s] any is given twice, first at "},
    {"[s]\nany=1\n[s]\n\nany=2\n", ":5: [s] any is given twice, first at "},
    {"any = 1\n", ":1: \"any\" stands before any [section]"},
    {"[]\nany = 1\n", ":1: a section has no name"},
    {"[s]\nany\n", ":2: neither [section] nor key = value"},
    {"[s]\nany = 1\n\n more\n", ":4: neither [section] nor key = value"},
    {"[s\nany=1\n", ":1: neither [section] nor key = value"},
    {"x\n[s]\nany=1\nany=2\n", ":1: neither [section] nor key = value"},
    {"[s]\n= 3\n", ":2: no key before \"=\""},
    {"[s] any = 5\n", ":1: \"any = 5\" behind [section] on the same line"},
    {"[s]\nany = 1\rlevel = 2\n", ":2: not a text file: byte 0x0d"},
    {"[s]\n; \033[0m\n", ":2: not a text file: byte 0x1b"},
    {"[1234567890123456789012345678901234567890123456789]\n", ""},
    {"\n[12345678901234567890123456789012345678901234567890]\n",
     ":2: section name longer than 49 bytes"},
};

#define N_FILES (sizeof(files) / sizeof(files[0]))

START_TEST(file_forms)
{
    const char *want = files[_i].error;

    declare();
    if (want == NULL) {
        ck_assert_int_eq(reported(load(files[_i].text)), 0);
        ck_assert_int_eq(cfg.any, 5);
        ck_assert_int_eq(cfg.level, 4);
    } else if (want[0] == '\0') {
        ck_assert_int_eq(reported(load(files[_i].text)), 0);
    } else {
        ck_assert_int_lt(load(files[_i].text), 0);
        ck_assert_msg(strncmp(e.text + strlen(file), want, strlen(want)) == 0,
                      "%s", e.text);
    }
}
END_TEST

START_TEST(nul_bytes)
{
    static const char text[] = "[s]\nany = 1\0\n", utf16[] = "[\0s\0]\0";

    ck_assert_int_eq(load_bytes(text, sizeof(text) - 1), MP_EFORMAT);
    expect_behind_file(":2: not a text file: byte 0x00");
    ck_assert_int_eq(load_bytes(utf16, sizeof(utf16)), MP_EFORMAT);
    expect_behind_file(":1: not a text file: byte 0x00");
}
END_TEST

/* "path = xxx", n bytes, and a key behind it. */
static int load_line(const char *start, size_t n)
{
    char text[1000];
    size_t at = (size_t)sprintf(text, "[s]\n%s", start);

    memset(text + at, 'x', sizeof(text) - at);
    strcpy(text + 4 + n, "\nany = 5\n");
    return load(text);
}

START_TEST(line_lengths)
{
    declare();
    ck_assert_int_eq(reported(load_line("path = ", 198)), 0);
    ck_assert_uint_eq(strlen(cfg.path), 198 - strlen("path = "));
    ck_assert_int_eq(cfg.any, 5);
    for (size_t n = 199; n < 620; n++) {
        char want[80];

        ck_assert_int_eq(load_line("path = ", n), MP_EFORMAT);
        snprintf(want, sizeof(want), ":2: line of %zu bytes, longer than 198",
                 n);
        expect_behind_file(want);
    }
}
END_TEST

START_TEST(comments_may_be_long)
{
    declare();
    ck_assert_int_eq(reported(load_line(";", 700)), 0);
    ck_assert_int_eq(cfg.any, 5);
}
END_TEST

START_TEST(unreadable_files)
{
    ck_assert_int_eq(mp_conf_file(conf, file, &e), MP_EIO);
    expect_behind_file(": No such file or directory");
    ck_assert_int_eq(mp_conf_file(conf, folder, &e), MP_EIO);
    ck_assert_str_eq(e.text + strlen(folder), ": Is a directory");
}
END_TEST

START_TEST(standard_input)
{
    FILE *f;

    declare();
    ck_assert_int_eq(load("[s]\nany = 7\nlevel = x\n"), MP_EINVAL);
    mp_conf_free(conf);
    conf = mp_conf_new();
    declare();
    f = freopen(file, "r", stdin);
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(mp_conf_file(conf, "-", &e), MP_EINVAL);
    ck_assert_str_eq(e.text, "standard input:3: [s] level: \"x\" is not right: "
                             "whole number -5..5 dB");
    ck_assert_int_eq(cfg.any, 7);
    ck_assert_str_eq(mp_conf_folder(conf), ".");
}
END_TEST

START_TEST(folders)
{
    ck_assert_int_eq(load(""), 0);
    ck_assert_int_eq(chdir(folder), 0);
    ck_assert_int_eq(mp_conf_file(conf, "a.ini", &e), 0);
    ck_assert_str_eq(mp_conf_folder(conf), ".");
    ck_assert_int_eq(mp_conf_file(conf, "./a.ini", &e), 0);
    ck_assert_str_eq(mp_conf_folder(conf), ".");
}
END_TEST

/* ------------------------------------------------------------ precedence */

START_TEST(assignments_win)
{
    declare();
    ck_assert_int_eq(reported(load("[s]\nany = 1\npath = file\n")), 0);
    ck_assert_int_eq(mp_conf_set(conf, "s.any=2", &e), 0);
    ck_assert_int_eq(mp_conf_set(conf, " s . any = 3 ", &e), 0);
    ck_assert_int_eq(mp_conf_set(conf, "s.path=a=b ;c", &e), 0);
    ck_assert_int_eq(cfg.any, 3);
    ck_assert_str_eq(cfg.path, "a=b ;c");
    ck_assert_str_eq(mp_conf_get(conf, "s", "any"), "3");
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), 0);
}
END_TEST

START_TEST(assignments_win_over_later_files)
{
    declare();
    ck_assert_int_eq(mp_conf_set(conf, "s.any=2", &e), 0);
    ck_assert_int_eq(reported(load("[s]\nany = 1\nlevel = 1\n")), 0);
    ck_assert_int_eq(cfg.any, 2);
    ck_assert_int_eq(cfg.level, 1);
    ck_assert_str_eq(mp_conf_get(conf, "s", "any"), "2");
}
END_TEST

START_TEST(sections_may_be_declared_last)
{
    ck_assert_int_eq(mp_conf_set(conf, "s.any=2", &e), 0);
    ck_assert_int_eq(reported(load("[s]\nany = 1\nlevel = 1\n")), 0);
    ck_assert_str_eq(mp_conf_get(conf, "s", "level"), "1");
    declare();
    ck_assert_int_eq(cfg.any, 2);
    ck_assert_int_eq(cfg.level, 1);
    ck_assert_int_eq(cfg.threads, -1);
}
END_TEST

START_TEST(bad_assignments)
{
    static const char *const text[] = {"s.any", "any=3", ".any=3", "s.=3",
                                       "=",     "",      "s any=", " .any=2"};
    char want[80];

    for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++) {
        ck_assert_int_eq(mp_conf_set(conf, text[i], &e), MP_EINVAL);
        snprintf(want, sizeof(want), "-o %s: must be section.key=value",
                 text[i]);
        ck_assert_str_eq(e.text, want);
    }
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), 0);
}
END_TEST

START_TEST(section_names_may_hold_dots)
{
    ck_assert_int_eq(mp_conf_section(conf, "pipeline a.b", rows, &cfg, &e), 0);
    ck_assert_int_eq(mp_conf_set(conf, "pipeline a.b.scale=2.5", &e), 0);
    ck_assert_double_eq(cfg.scale, 2.5);
}
END_TEST

START_TEST(two_tables_of_one_section)
{
    static const struct mp_option more[] = {
        {"extra", MP_OPT_INT, 0, "1", 0, 0, NULL, NULL, "Extra"},
        {NULL, MP_OPT_BOOL, 0, NULL, 0, 0, NULL, NULL, NULL}};
    int32_t extra;

    declare();
    ck_assert_int_eq(reported(load("[s]\nany = 4\nextra = 6\n")), 0);
    ck_assert_int_eq(mp_conf_section(conf, "s", more, &extra, &e), 0);
    ck_assert_int_eq(extra, 6);
    ck_assert_int_eq(cfg.any, 4);
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), 0);
}
END_TEST

/* ---------------------------------------------------------- unknown names */

static const struct {
    const char *text, *error;
} unknown[] = {
    {"[s]\nany = 1\nthread = 2\n",
     ":3: [s] thread: no such key; did you mean threads?"},
    {"[s]\nformat = x\n", ":2: [s] format: no such key; did you mean formats?"},
    {"[s]\nparis = 1\n", ":2: [s] paris: no such key; did you mean pair?"},
    {"[s]\nzzzzzz = 1\n", ":2: [s] zzzzzz: no such key"},
    {"[s]\nany = 1\n[upernt]\n[xy]\n",
     ":3: [upernt]: no such section; did you mean upernet?"},
    {"\n[detph]\nany = 1\n",
     ":2: [detph]: no such section; did you mean depth?"},
    {"[something]\nany = 1\n", ":1: [something]: no such section"},
    {"[depth]\nwhatever = 1\n[s]\nany=1\n", NULL},
};

#define N_UNKNOWN (sizeof(unknown) / sizeof(unknown[0]))

START_TEST(unknown_names)
{
    static const char *const known[] = {"depth", "upernet", NULL};

    declare();
    ck_assert_int_eq(reported(load(unknown[_i].text)), 0);
    if (unknown[_i].error == NULL) {
        ck_assert_int_eq(mp_conf_finish(conf, known, &e), 0);
        ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), MP_EINVAL);
    } else {
        ck_assert_int_eq(mp_conf_finish(conf, known, &e), MP_EINVAL);
        expect_behind_file(unknown[_i].error);
    }
}
END_TEST

START_TEST(unknown_assignments)
{
    declare();
    ck_assert_int_eq(mp_conf_set(conf, "s.corp=1", &e), 0);
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), MP_EINVAL);
    ck_assert_str_eq(e.text, "-o s.corp=1: no such key; did you mean crop?");
}
END_TEST

START_TEST(nearest)
{
    static const char *const words[] = {"labels",    "color", "overlay",
                                        "max_depth", "px",    NULL};
    static const struct {
        const char *word, *want;
    } t[] = {{"labels", "labels"},
             {"lables", "labels"},
             {"LABEL", "labels"},
             {"colours", "color"},
             {"maxdepth", "max_depth"},
             {"max_dpeht", "max_depth"},
             {"overlay_of_all", NULL},
             {"zz", NULL},
             {"", NULL},
             {"01234567890123456789012345678901234567890123456789012345678901"
              "23456789",
              NULL}};

    for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
        const char *got = mp_nearest(t[i].word, words);

        ck_assert_msg(t[i].want == NULL
                          ? got == NULL
                          : got != NULL && strcmp(got, t[i].want) == 0,
                      "%s: %s", t[i].word, got == NULL ? "none" : got);
    }
}
END_TEST

/* --------------------------------------------------------- dump and print */

static char *dump(int want)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(mp_conf_dump(conf, f), want);
    ck_assert_int_eq(fclose(f), 0);
    return text;
}

static void assert_same(const struct cfg *a, const struct cfg *b)
{
    ck_assert_int_eq(a->flip, b->flip);
    ck_assert_int_eq(a->threads, b->threads);
    ck_assert_int_eq(a->level, b->level);
    ck_assert_int_eq(a->any, b->any);
    ck_assert_int_eq(a->precision, b->precision);
    ck_assert_mem_eq(a->crop, b->crop, sizeof(a->crop));
    ck_assert_mem_eq(a->pair, b->pair, sizeof(a->pair));
    ck_assert_uint_eq(a->formats, b->formats);
    ck_assert(a->scale == b->scale && a->ratio == b->ratio);
    ck_assert(a->free_number == b->free_number && a->low == b->low);
    ck_assert(a->high == b->high);
    ck_assert_str_eq(a->path, b->path);
    ck_assert_pstr_eq(a->note, b->note);
}

static const char *const assignments[][8] = {
    {NULL},
    {"s.flip=yes", "s.threads=all", "s.crop=full", "s.precision=fp16",
     "s.formats=probs labels", "s.note=x", NULL},
    {"s.threads=3", "s.crop=16x17", "s.pair=-2x-2", "s.any=-2147483648",
     "s.free_number=0.1000000000000000055", "s.path=a;b # c", NULL},
    {"s.free_number=2.2250738585072014e-308", "s.scale=0.3333333333333333",
     "s.ratio=1e-17", "s.high=-123456789.12345678", "s.note=", NULL},
};

#define N_ASSIGN (sizeof(assignments) / sizeof(assignments[0]))

START_TEST(dump_is_read_again)
{
    struct cfg first;
    int null_note;
    char *text, *again;

    declare();
    for (int i = 0; assignments[_i][i] != NULL; i++)
        ck_assert_int_eq(reported(mp_conf_set(conf, assignments[_i][i], &e)),
                         0);
    null_note = cfg.note == NULL;
    text = dump(null_note ? MP_EINVAL : 0);
    ck_assert_ptr_nonnull(
        strstr(text, "\n; Scale (number 0.1..1000 m)\nscale = "));

    first = cfg;
    mp_conf_free(conf);
    conf = mp_conf_new();
    declare();
    ck_assert_int_eq(reported(load(text)), 0);
    ck_assert_int_eq(mp_conf_finish(conf, NULL, &e), 0);
    again = dump(null_note ? MP_EINVAL : 0);
    ck_assert_str_eq(again, text);
    /* the strings of the first configuration are gone with it */
    first.path = cfg.path;
    first.note = cfg.note;
    assert_same(&first, &cfg);
    free(text);
    free(again);
}
END_TEST

START_TEST(dump_refuses_what_no_file_holds)
{
    static const char *const values[] = {"a ;b", "a\t;b", ";a"};
    char set[400] = "s.path=", *text;

    declare();
    ck_assert_int_eq(mp_conf_set(conf, "s.note=", &e), 0);
    for (size_t i = 0; i < 4; i++) {
        if (i < 3)
            strcpy(set + 7, values[i]);
        else
            memset(set + 7, 'x', 192);
        ck_assert_int_eq(mp_conf_set(conf, set, &e), 0);
        text = dump(MP_EINVAL);
        ck_assert_ptr_nonnull(strstr(text, "\n; path = "));
        ck_assert_ptr_null(strstr(text, "\npath = "));
        free(text);
    }
    set[7 + 191] = '\0';
    ck_assert_int_eq(mp_conf_set(conf, set, &e), 0);
    text = dump(0);
    ck_assert_int_eq(reported(load(text)), 0);
    free(text);
}
END_TEST

START_TEST(dump_to_a_full_disk)
{
    FILE *f = fopen("/dev/full", "w");

    declare();
    if (f == NULL)
        return;
    ck_assert_int_eq(mp_conf_dump(conf, f), MP_EIO);
    fclose(f);
}
END_TEST

START_TEST(row_is_printed)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    ck_assert_ptr_nonnull(f);
    mp_option_print(&rows[5], f);
    mp_option_print(&rows[14], f);
    fclose(f);
    ck_assert_str_eq(text, "  crop = none\n      Size of a window\n"
                           "      (AxB, each 16..8192, or none, full)\n"
                           "  note = \n      A remark\n"
                           "      (text without control characters)\n");
    free(text);
}
END_TEST

/* A decimal comma must change nothing. */
START_TEST(locale_is_ignored)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "de_DE",
                                        "fr_FR.UTF-8", "fr_FR"};
    const char *set = NULL;
    char *text;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !set; i++)
        set = setlocale(LC_ALL, names[i]);
    if (set == NULL || strcmp(localeconv()->decimal_point, ",") != 0) {
        fprintf(stderr, "skipped: no locale with a decimal comma\n");
        return;
    }
    declare();
    ck_assert_int_eq(mp_conf_set(conf, "s.scale=1.5", &e), 0);
    ck_assert_double_eq(cfg.scale, 1.5);
    ck_assert_int_eq(mp_conf_set(conf, "s.scale=1,5", &e), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(e.text, "0.1..1000 m"));
    text = dump(MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(text, "\nscale = 1.5\n"));
    free(text);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("conf");
    TCase *t = tcase_create("conf");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, defaults);
    tcase_add_test(t, wrong_default_is_named);
    tcase_add_test(t, every_type_is_read);
    tcase_add_test(t, words_of_numbers);
    tcase_add_loop_test(t, wrong_values, 0, (int)N_BAD);
    tcase_add_test(t, strings_refuse_control_characters);
    tcase_add_loop_test(t, file_forms, 0, (int)N_FILES);
    tcase_add_test(t, nul_bytes);
    tcase_add_test(t, line_lengths);
    tcase_add_test(t, comments_may_be_long);
    tcase_add_test(t, unreadable_files);
    tcase_add_test(t, standard_input);
    tcase_add_test(t, folders);
    tcase_add_test(t, assignments_win);
    tcase_add_test(t, assignments_win_over_later_files);
    tcase_add_test(t, sections_may_be_declared_last);
    tcase_add_test(t, bad_assignments);
    tcase_add_test(t, section_names_may_hold_dots);
    tcase_add_test(t, two_tables_of_one_section);
    tcase_add_loop_test(t, unknown_names, 0, (int)N_UNKNOWN);
    tcase_add_test(t, unknown_assignments);
    tcase_add_test(t, nearest);
    tcase_add_loop_test(t, dump_is_read_again, 0, (int)N_ASSIGN);
    tcase_add_test(t, dump_refuses_what_no_file_holds);
    tcase_add_test(t, dump_to_a_full_disk);
    tcase_add_test(t, row_is_printed);
    tcase_add_test(t, locale_is_ignored);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
