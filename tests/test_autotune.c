/* SPDX-License-Identifier: MIT */
/*
 * Plans that are chosen by measurement, on a device and with a library that are
 * made up here: time passes as the tests want it. The file of what was found
 * is real.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cuda/lib.h"

/* ---- the device ---- */

struct gpu_graph {
    double seconds;
};

static struct gpu device;
static struct gpu_graph *recording;
static double now_at, mark[2];
static int allocations, replays, no_memory, broken;

int gpu_enter(struct gpu *g, struct mp_error *err)
{
    (void)err;
    ck_assert_ptr_eq(g, &device);
    return 0;
}

int gpu_info(int index, struct mp_device_info *out, struct mp_error *err)
{
    (void)err;
    ck_assert_int_eq(index, 3);
    snprintf(out->name, sizeof out->name, "Fake/GPU 1, sm_95");
    return 0;
}

void vendor_versions(const struct gpu *g, char *text, size_t n)
{
    (void)g;
    snprintf(text, n, "lib-12");
}

int gpu_alloc(struct gpu *g, size_t bytes, const char *what, mp_addr *out,
              struct mp_error *err)
{
    (void)g;
    if (no_memory)
        return mp_fail(err, MP_ENOMEM, "%zu bytes for %s", bytes, what);
    *out = (mp_addr)(uintptr_t)calloc(1, bytes);
    allocations++;
    return 0;
}

void gpu_free(struct gpu *g, mp_addr a)
{
    (void)g;
    free((void *)(uintptr_t)a);
    allocations--;
}

int gpu_put(struct gpu *g, mp_addr dst, const void *src, size_t n,
            struct mp_error *err)
{
    (void)g;
    (void)err;
    memcpy((void *)(uintptr_t)dst, src, n);
    return 0;
}

int gpu_copy(struct gpu *g, mp_addr dst, mp_addr src, size_t n,
             struct mp_error *err)
{
    ck_assert(dst >= src + n || src >= dst + n);
    return gpu_put(g, dst, (void *)(uintptr_t)src, n, err);
}

int gpu_record(struct gpu *g, struct mp_error *err)
{
    (void)g;
    (void)err;
    ck_assert_ptr_null(recording);
    recording = calloc(1, sizeof *recording);
    return 0;
}

int gpu_recorded(struct gpu *g, struct gpu_graph **out, struct mp_error *err)
{
    (void)g;
    (void)err;
    ck_assert_ptr_nonnull(recording);
    *out = recording;
    recording = NULL;
    return 0;
}

int gpu_replay(struct gpu *g, struct gpu_graph *r, struct mp_error *err)
{
    (void)g;
    (void)err;
    /* the first of a recording takes longest */
    now_at += replays++ % 6 ? r->seconds : 1;
    return 0;
}

void gpu_graph_free(struct gpu_graph *r)
{
    free(r);
}

int gpu_mark(struct gpu *g, size_t i, struct mp_error *err)
{
    (void)g;
    (void)err;
    ck_assert_uint_lt(i, 2);
    mark[i] = now_at;
    return 0;
}

int gpu_between(struct gpu *g, size_t first, size_t last, double *seconds,
                struct mp_error *err)
{
    (void)g;
    *seconds = mark[last] - mark[first];
    return broken ? mp_fail(err, MP_EIO, "the device fails") : 0;
}

/* ---- the library ---- */

/* Ways, in the order that the library gives them. */
static struct way {
    const char *choice;
    double seconds;
    enum { FINE, NO_PLAN, NO_RUN, NO_RECORDING } what;
} ways[LIB_CHOICES];
static int plans, measured, sizes_vary;

struct fake {
    struct lib_plan base;
    const struct way *way; /* NULL: the library's own choice */
};

static void check_filled(mp_addr at, int64_t count, enum mp_dtype t)
{
    const uint8_t *bytes = (void *)(uintptr_t)at;

    for (size_t i = 1; i < (size_t)count * mp_dtype_size(t); i += 2)
        ck_assert(bytes[i] == 0x3f || bytes[i] == 0xbf);
}

static int run(struct lib_plan *base, const struct lib_data *d,
               struct mp_error *err)
{
    const struct fake *p = (struct fake *)base;

    ck_assert_ptr_nonnull(p->way);
    ck_assert_uint_ne(d->y, 0);
    if (sizes_vary) {
        measured += !recording;
        if (recording)
            recording->seconds += p->way->seconds;
        return 0;
    }
    check_filled(d->x, 2 * 8 * 8 * 16, MP_BF16);
    check_filled(d->w, 32 * 3 * 3 * 16, MP_BF16);
    check_filled(d->bias, 32, MP_F32);
    check_filled(d->residual, 2 * 8 * 8 * 32, MP_F32);
    memset((void *)(uintptr_t)d->work, 1, LIB_WORK);
    if (p->way->what == NO_RUN || (p->way->what == NO_RECORDING && recording))
        return mp_fail(err, MP_EIO, "%s does not run", p->way->choice);
    if (recording)
        recording->seconds += p->way->seconds;
    else
        measured++;
    return 0;
}

static void plan_free(struct lib_plan *p)
{
    plans--;
    free(p);
}

static int plan_new(struct lib_plan **out, struct gpu *g,
                    const struct lib_conv *c, const char *choice,
                    struct mp_error *err)
{
    struct fake *p;
    const struct way *w = NULL;

    (void)c;
    for (int i = 0; choice && i < LIB_CHOICES; i++)
        if (ways[i].choice && !strcmp(ways[i].choice, choice))
            w = &ways[i];
    if (choice && (!w || w->what == NO_PLAN))
        return mp_fail(err, MP_ENOTSUP, "%s makes no plan", choice);
    p = calloc(1, sizeof *p);
    p->base = (struct lib_plan){.gpu = g, .run = run, .free = plan_free};
    snprintf(p->base.name, sizeof p->base.name, "%s", choice ? choice : "own");
    p->way = w;
    plans++;
    *out = &p->base;
    return 0;
}

static int choices(char choice[][CHOICE_BYTES], size_t *n, struct gpu *g,
                   const struct lib_conv *c, struct mp_error *err)
{
    (void)g;
    (void)c;
    for (; *n < LIB_CHOICES && ways[*n].choice; ++*n)
        snprintf(choice[*n], CHOICE_BYTES, "%s", ways[*n].choice);
    return *n ? 0 : mp_fail(err, MP_ENOTSUP, "there is no way");
}

const struct lib_kind lib_lt = {plan_new, choices};
const struct lib_kind lib_dnn = {plan_new, choices};

/* ---- help ---- */

static char folder[64], file[256], messages[96];
static const struct lib_conv conv = {
    .type = MP_BF16,
    .y_type = MP_F32,
    .n = 2,
    .h = 8,
    .w = 8,
    .c = 16,
    .k = 32,
    .r = 3,
    .s = 3,
    .oh = 8,
    .ow = 8,
    .conv = {1, 1, 1, 1, 1},
    .bias = 1,
};
#define KEY                                                                    \
    "bf16 f32 2 8 8 16 32 3 3 8 8 stride 1 pad 1 1 1 1 bias 1 residual 0 act " \
    "0 tf32 0"

static void enter(void)
{
    strcpy(folder, "/tmp/mpipe-autotune.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/mpipe/Fake_GPU_1__sm_95-lib-12.txt",
             folder);
    snprintf(messages, sizeof messages, "%s/messages", folder);
    ck_assert_ptr_nonnull(freopen(messages, "w", stderr));
    setenv("XDG_CACHE_HOME", folder, 1);
    no_memory = broken = replays = sizes_vary = 0;
    memset(ways, 0, sizeof ways);
    ways[0] = (struct way){"slow", 3, FINE};
    ways[1] = (struct way){"fast", 1, FINE};
    ways[2] = (struct way){"middle", 2, FINE};
}

static void leave(void)
{
    char command[128];

    ck_assert_int_eq(allocations, 0);
    ck_assert_int_eq(plans, 0);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

/* Messages so far. */
static int told(const char *what)
{
    char line[512];
    FILE *f = fopen(messages, "r");
    int n = 0;

    fflush(stderr);
    while (fgets(line, sizeof line, f))
        n += strstr(line, what) != NULL;
    fclose(f);
    return n;
}

static const char *content(void)
{
    static char text[1 << 16];
    FILE *f = fopen(file, "r");

    text[f ? fread(text, 1, sizeof text - 1, f) : 0] = '\0';
    if (f)
        fclose(f);
    return text;
}

static void write_content(const void *text, size_t n)
{
    char path[96];
    FILE *f;

    snprintf(path, sizeof path, "%s/mpipe", folder);
    mkdir(path, 0700);
    f = fopen(file, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void start(void)
{
    struct mp_error err = {0};

    device = (struct gpu){.plans = NULL};
    measured = 0;
    ck_assert_msg(!lib_autotune(&device, 3, &err), "%s", err.text);
}

static void end(void)
{
    choices_free(device.choices);
    device.choices = NULL;
}

/* The plan's name for c. */
static const char *plan_of(const struct lib_conv *c)
{
    static char name[64];
    struct mp_error err = {0};
    struct lib_plan *p;

    ck_assert_msg(!lib_plan_new(&p, &device, c, &err), "%s", err.text);
    strcpy(name, lib_plan_name(p));
    lib_plan_free(p);
    return name;
}

/* The same from start to end. */
static const char *plan_at_start(void)
{
    const char *name;

    start();
    name = plan_of(&conv);
    end();
    return name;
}

/* ---- tests ---- */

START_TEST(the_fastest_is_kept)
{
    char first[4096];

    ck_assert_str_eq(plan_at_start(), "fast");
    ck_assert_int_eq(measured, 3);
    strcpy(first, content());
    ck_assert_str_eq(first, "mpipe choices 1\n" KEY " = fast\n");
    /* Nothing is measured again, even if it would be another now. */
    ways[1].seconds = 9;
    ck_assert_str_eq(plan_at_start(), "fast");
    ck_assert_int_eq(measured, 0);
    ck_assert_str_eq(content(), first);
    ck_assert_int_eq(told(""), 0);
    /* Of each run, however many are measured at once. */
    unlink(file);
    ways[1].seconds = 1;
    mp_log_set(MP_LOG_INFO);
    ck_assert_str_eq(plan_at_start(), "fast");
    ck_assert_int_eq(told("1000000.0 us, the library's first 3000000.0: fast"),
                     1);
    mp_log_set(MP_LOG_WARNING);
    /* And without autotune nothing is. */
    device = (struct gpu){.plans = NULL};
    ck_assert_str_eq(plan_of(&conv), "own");
}
END_TEST

START_TEST(equal_plans_are_measured_once)
{
    struct mp_error err = {0};
    struct lib_conv other = conv;
    struct lib_plan *p[3];

    other.tf32 = 1;
    start();
    ck_assert(!lib_plan_new(&p[0], &device, &conv, &err));
    ck_assert(!lib_plan_new(&p[1], &device, &conv, &err));
    ck_assert_ptr_eq(p[0], p[1]);
    ck_assert_int_eq(measured, 3);
    ways[1].seconds = 9;
    ck_assert(!lib_plan_new(&p[2], &device, &other, &err));
    ck_assert_str_eq(lib_plan_name(p[2]), "middle");
    for (int i = 0; i < 3; i++)
        lib_plan_free(p[i]);
    end();
    ck_assert_ptr_nonnull(strstr(content(), "tf32 0 = fast\n"));
    ck_assert_ptr_nonnull(strstr(content(), "tf32 1 = middle\n"));
}
END_TEST

/* Whatever a plan is for is in its key: each of these has a line of its own. */
START_TEST(keys_differ)
{
    struct lib_conv c[18];
    size_t lines = 0;

    for (int i = 0; i < 18; i++)
        c[i] = conv;
    c[1].type = MP_F16;
    c[2].y_type = MP_BF16;
    c[3].n++;
    c[4].h++;
    c[5].w++;
    c[6].c++;
    c[7].k++;
    c[8].r++;
    c[9].s++;
    c[10].oh++;
    c[11].ow++;
    c[12].conv.stride++;
    c[13].conv.top++;
    c[14].conv.right++;
    c[15].residual++;
    c[16].act++;
    c[17].bias--;
    sizes_vary = 1;
    start();
    for (int i = 0; i < 18; i++)
        ck_assert_str_eq(plan_of(&c[i]), "fast");
    ck_assert_int_eq(measured, 18 * 3);
    end();
    for (const char *at = content(); (at = strchr(at, '\n')); at++)
        lines++;
    ck_assert_uint_eq(lines, 1 + 18);
}
END_TEST

START_TEST(what_fails_is_left_out)
{
    ways[1].what = NO_PLAN + _i;
    ck_assert_str_eq(plan_at_start(), "middle");
    ways[0].what = ways[2].what = ways[1].what;
    unlink(file);
    ck_assert_str_eq(plan_at_start(), "own");
    ck_assert_str_eq(content(), "");
}
END_TEST

START_TEST(no_way_to_measure)
{
    no_memory = _i == 0;
    broken = _i == 1;
    if (_i == 2)
        ways[0].choice = NULL;
    ck_assert_str_eq(plan_at_start(), "own");
    ck_assert_str_eq(content(), "");
}
END_TEST

/* The library has changed, though it has the same version. */
START_TEST(kept_and_of_no_use)
{
    const char old[] = "mpipe choices 1\nother = x\n" KEY " = gone\n";

    write_content(old, sizeof old - 1);
    ck_assert_str_eq(plan_at_start(), "fast");
    ck_assert_int_eq(told("measured again: gone makes no plan"), 1);
    ck_assert_str_eq(content(), "mpipe choices 1\nother = x\n" KEY " = fast\n");
}
END_TEST

#define OK "mpipe choices 1\n"
START_TEST(damaged_files)
{
    static const struct {
        const char *text;
        size_t n;
        const char *kept; /* of key "k" */
        const char *said; /* NULL: nothing */
    } row[] = {
#define ROW(text, kept, said) {text, sizeof(text) - 1, kept, said}
        ROW(OK, NULL, NULL),
        ROW(OK "k = one\n", "one", NULL),
        ROW(OK "k = one\nk = two\n", "two", NULL),
        ROW("", NULL, "it has no choices"),
        ROW("\n", NULL, "it has no choices"),
        ROW("mpipe choices 2\nk = one\n", NULL, "it has no choices"),
        ROW("mpipe choices 1", NULL, "it has no choices"),
        ROW("\0", NULL, "it has no choices"),
        ROW(OK "k = one", NULL, "1 damaged line is"),
        ROW(OK "k = on\0e\n", NULL, "1 damaged line is"),
        ROW(OK "k = \0\n", NULL, "1 damaged line is"),
        ROW(OK "k = one two\n", NULL, "1 damaged line is"),
        ROW(OK "k = one\r\n", NULL, "1 damaged line is"),
        ROW(OK "k = \n", NULL, "1 damaged line is"),
        ROW(OK " = one\n", NULL, "1 damaged line is"),
        ROW(OK "k =\n = one\nk\n\n", NULL, "4 damaged lines are"),
        ROW(OK "\xff\xfe = one\nk = one\n", "one", "1 damaged line is"),
        ROW(OK "k = \x1b[2J\n", NULL, "1 damaged line is"),
        ROW(OK "j = " OK "k = one\n", "one", "1 damaged line is"),
    };
    struct mp_error err = {0};
    struct choices *c = NULL;
    const char *found;

    write_content(row[_i].text, row[_i].n);
    ck_assert(!choices_open(&c, "Fake/GPU 1, sm_95-lib-12.txt", &err));
    found = choices_find(c, "k");
    ck_assert_msg(row[_i].kept ? found && !strcmp(found, row[_i].kept) : !found,
                  "%s", found ? found : "none");
    ck_assert_int_eq(told(""), row[_i].said != NULL);
    ck_assert_int_eq(told(row[_i].said ? row[_i].said : "x"), told(""));
    /* What is written is good again, and nothing more is said. */
    ck_assert(!choices_add(c, "new", "three", &err));
    ck_assert_int_eq(told(""), row[_i].said != NULL);
    choices_free(c);
    ck_assert(!choices_open(&c, "Fake/GPU 1, sm_95-lib-12.txt", &err));
    ck_assert_str_eq(choices_find(c, "new"), "three");
    ck_assert_int_eq(told(""), row[_i].said != NULL);
    choices_free(c);
}
END_TEST

/* Lines of any length, and bytes of any kind. */
START_TEST(noise)
{
    uint32_t state = (uint32_t)_i * 2 + 1;
    struct mp_error err = {0};
    struct choices *c = NULL;
    char text[8192];
    size_t n;

    n = (size_t)snprintf(text, sizeof text, OK);
    while (n < sizeof text - 1400) {
        int long_key = (int)(state >> 20) % 700;

        n +=
            (size_t)snprintf(text + n, sizeof text - n, "%0*d = ", long_key, 1);
        state = state * 1664525 + 1013904223;
        n += (size_t)snprintf(text + n, sizeof text - n, "%0*d\n",
                              (int)(state >> 20) % 700, 2);
        state = state * 1664525 + 1013904223;
    }
    for (int i = 0; i < _i; i++) {
        text[strlen(OK) + state % (n - strlen(OK))] = (char)(state >> 24);
        state = state * 1664525 + 1013904223;
    }
    write_content(text, n);
    ck_assert(!choices_open(&c, "Fake/GPU 1, sm_95-lib-12.txt", &err));
    ck_assert_int_le(told(""), 1);
    ck_assert(!choices_add(c, "new", "three", &err));
    choices_free(c);
    ck_assert(!choices_open(&c, "Fake/GPU 1, sm_95-lib-12.txt", &err));
    ck_assert_str_eq(choices_find(c, "new"), "three");
    ck_assert_int_le(told(""), 1);
    choices_free(c);
}
END_TEST

START_TEST(two_processes)
{
    struct mp_error err = {0};
    struct choices *a, *b;

    ck_assert(!choices_open(&a, "Fake/GPU 1, sm_95-lib-12.txt", &err));
    ck_assert(!choices_open(&b, "Fake/GPU 1, sm_95-lib-12.txt", &err));
    ck_assert(!choices_add(a, "x", "of-a", &err));
    ck_assert(!choices_add(a, "y", "of-a", &err));
    ck_assert(!choices_add(b, "y", "of-b", &err));
    ck_assert_str_eq(content(), "mpipe choices 1\nx = of-a\ny = of-b\n");
    ck_assert_str_eq(choices_find(b, "x"), "of-a");
    ck_assert_str_eq(choices_find(a, "y"), "of-a");
    choices_free(a);
    choices_free(b);
}
END_TEST

START_TEST(folders)
{
    char path[128];

    snprintf(path, sizeof path, "%s/a/b", folder);
    setenv("XDG_CACHE_HOME", path, 1);
    ck_assert_str_eq(plan_at_start(), "fast");
    snprintf(file, sizeof file, "%s/mpipe/Fake_GPU_1__sm_95-lib-12.txt", path);
    ck_assert_ptr_nonnull(strstr(content(), "= fast"));
    /* No absolute path: as if it were not set. */
    setenv("XDG_CACHE_HOME", "a", 1);
    setenv("HOME", folder, 1);
    ck_assert_str_eq(plan_at_start(), "fast");
    snprintf(file, sizeof file, "%s/.cache/mpipe/Fake_GPU_1__sm_95-lib-12.txt",
             folder);
    ck_assert_ptr_nonnull(strstr(content(), "= fast"));
    ck_assert_int_eq(told(""), 0);
    /* Nowhere: told, and still tuned. */
    unsetenv("HOME");
    ck_assert_str_eq(plan_at_start(), "fast");
    ck_assert_int_eq(told("neither XDG_CACHE_HOME nor HOME"), 1);
    ck_assert_int_eq(measured, 3);
}
END_TEST

/* A file is where a folder should be: told once, and still tuned. */
START_TEST(cannot_be_written)
{
    struct lib_conv other = conv;

    setenv("XDG_CACHE_HOME", messages, 1);
    start();
    ck_assert_str_eq(plan_of(&conv), "fast");
    ck_assert_int_eq(told("what is measured is not kept"), 1);
    ways[1].seconds = 9;
    other.tf32 = 1;
    ck_assert_str_eq(plan_of(&other), "middle");
    ck_assert_str_eq(plan_of(&conv), "fast");
    ck_assert_int_eq(told(""), 1);
    end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("autotune");
    TCase *t = tcase_create("autotune");
    SRunner *r;
    int failed;

    suite_add_tcase(s, t);
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, enter, leave);
    tcase_add_test(t, the_fastest_is_kept);
    tcase_add_test(t, equal_plans_are_measured_once);
    tcase_add_test(t, keys_differ);
    tcase_add_loop_test(t, what_fails_is_left_out, 0, 3);
    tcase_add_loop_test(t, no_way_to_measure, 0, 3);
    tcase_add_test(t, kept_and_of_no_use);
    tcase_add_loop_test(t, damaged_files, 0, 19);
    tcase_add_loop_test(t, noise, 0, 64);
    tcase_add_test(t, two_processes);
    tcase_add_test(t, folders);
    tcase_add_test(t, cannot_be_written);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
