/* SPDX-License-Identifier: MIT */
/* Heads that cannot be had, each for its own reason: copies of trouble.so with
 * a few bytes changed. */
#include <check.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "module.h"

static char dir[] = "/tmp/mpipe-module-XXXXXX";
static char *bytes; /* of trouble.so */
static size_t nbytes;

static void setup(void)
{
    const char *build = getenv("builddir");
    char path[300];
    struct stat st;
    FILE *f;

    snprintf(path, sizeof path, "%s/tests/.libs/trouble.so",
             build ? build : ".");
    f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s", path);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    nbytes = (size_t)st.st_size;
    bytes = malloc(nbytes);
    ck_assert_uint_eq(fread(bytes, 1, nbytes, f), nbytes);
    fclose(f);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    setenv("MPIPE_PLUGIN_PATH", dir, 1);
}

static void teardown(void)
{
    char command[100];

    free(bytes);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

static void write_module(const char *folder, const char *name, const char *from,
                         size_t n)
{
    char path[300];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(from, 1, n, f), n);
    fclose(f);
}

/* Change byte `at` of these n, wherever they are. */
static void change(const void *what, size_t n, size_t at, char to)
{
    char *from = bytes, *end = bytes + nbytes;
    int times = 0;

    for (; (from = memmem(from, (size_t)(end - from), what, n)); times++)
        from[at] = to;
    ck_assert_int_ge(times, 1);
}

static void other_abi(void)
{
    uint32_t head[] = {MP_PLUGIN_ABI, sizeof(struct mp_plugin)};

    change(head, sizeof head, 0, MP_PLUGIN_ABI + 1);
}

static void other_size(void)
{
    uint32_t head[] = {MP_PLUGIN_ABI, sizeof(struct mp_plugin)};

    change(head, sizeof head, sizeof *head, sizeof(struct mp_plugin) + 8);
}

static void other_name(void)
{
    change("\0trouble", sizeof "\0trouble", 1, 'd');
}

static void no_symbol(void)
{
    change("\0trouble_LTX_mp_plugin", sizeof "\0trouble_LTX_mp_plugin", 1, 'd');
}

static void undefined(void)
{
    change("\0mp_sink_npy", sizeof "\0mp_sink_npy", sizeof "mp_sink_npy" - 1,
           'z');
}

static void other_machine(void)
{
    ((Elf64_Ehdr *)(void *)bytes)->e_machine ^= 1;
}

static void no_elf(void)
{
    memcpy(bytes, "text", 4);
}

static void empty(void)
{
    nbytes = 0;
}

static void only_a_head(void)
{
    nbytes = sizeof(Elf64_Ehdr) - 1;
}

static const struct {
    void (*change)(void);
    const char *says;
} misfits[] = {
    {other_abi, "was built for head interface"},
    {other_size, "was built with a struct of"},
    {other_name, "calls itself drouble, not trouble"},
    {no_symbol, "has no trouble_LTX_mp_plugin"},
    {undefined, "undefined symbol: mp_sink_npz"},
    {other_machine, "cannot be loaded: /tmp/"},
    {no_elf, "invalid ELF header"},
    {empty, "file too short"},
    {only_a_head, "file too short"},
};

START_TEST(misfit)
{
    const struct mp_plugin *p;
    struct mp_error err = {0};

    misfits[_i].change();
    write_module(dir, "trouble.so", bytes, nbytes);
    ck_assert_int_eq(mp_head_find(&p, "trouble", &err), MP_EABI);
    ck_assert_ptr_null(p);
    ck_assert_msg(strstr(err.text, misfits[_i].says) != NULL, "%s", err.text);
    ck_assert_ptr_nonnull(strstr(err.text, dir)); /* which file */
}
END_TEST

/* The first of a name counts, whatever it is; after it nobody looks. */
START_TEST(first_of_a_name)
{
    char first[100];
    const struct mp_plugin *p;
    struct mp_error err = {0};

    snprintf(first, sizeof first, "%s/first", dir);
    ck_assert_int_eq(mkdir(first, 0755), 0);
    write_module(dir, "trouble.so", bytes, nbytes);
    if (_i)
        other_abi();
    write_module(first, "trouble.so", bytes, nbytes);
    ck_assert_int_eq(mp_module_path(first, &err), 0);
    ck_assert_int_eq(mp_head_find(&p, "trouble", &err), _i ? MP_EABI : 0);
    if (_i)
        ck_assert_ptr_nonnull(strstr(err.text, "/first/trouble"));
    else
        ck_assert_str_eq(p->name, "trouble");
}
END_TEST

/* A file, or a folder, that everybody may write. */
static const struct {
    mode_t file, folder;
    int rc;
    const char *says;
} rights[] = {
    {0755, 0755, 0, NULL},
    {0775, 0775, 0, NULL},
    {0755, 01777, 0, NULL},
    {0757, 0755, MP_EABI, "everybody may write /tmp/"},
    {0757, 01777, MP_EABI, "everybody may write /tmp/"},
    {0755, 0777, MP_EABI, "everybody may write the folder of /tmp/"},
};

START_TEST(strict)
{
    const struct mp_plugin *p;
    struct mp_error err = {0};
    char path[100];

    write_module(dir, "trouble.so", bytes, nbytes);
    snprintf(path, sizeof path, "%s/trouble.so", dir);
    ck_assert_int_eq(chmod(path, rights[_i].file), 0);
    ck_assert_int_eq(chmod(dir, rights[_i].folder), 0);
    mp_module_strict();
    ck_assert_int_eq(mp_head_find(&p, "trouble", &err), rights[_i].rc);
    if (rights[_i].rc)
        ck_assert_msg(strstr(err.text, rights[_i].says) != NULL, "%s",
                      err.text);
}
END_TEST

/* What is not strict does not mind. */
START_TEST(lenient)
{
    const struct mp_plugin *p;
    struct mp_error err = {0};

    write_module(dir, "trouble.so", bytes, nbytes);
    ck_assert_int_eq(chmod(dir, 0777), 0);
    ck_assert_int_eq(mp_head_find(&p, "trouble", &err), 0);
}
END_TEST

struct seen {
    int fit, refused;
    char why[500];
};

static void see(void *user, const char *file, const struct mp_plugin *p,
                const char *why)
{
    struct seen *s = user;

    (void)file;
    s->fit += p != NULL;
    s->refused += why != NULL;
    if (why)
        snprintf(s->why, sizeof s->why, "%s", why);
}

/* One that is cut short kills who touches what is missing. */
START_TEST(listed)
{
    struct seen s = {0};
    struct mp_error err = {0};

    write_module(dir, "trouble.so", bytes, nbytes);
    write_module(dir, "short.so", bytes, nbytes / 4);
    ck_assert_int_eq(mp_head_list(see, &s, &err), 0);
    ck_assert_int_eq(s.fit, 1);
    ck_assert_int_eq(s.refused, 1);
    ck_assert_msg(strstr(s.why, "/short cannot be loaded: ") != NULL, "%s",
                  s.why);
}
END_TEST

static void see_name(void *user, const char *name)
{
    strcat(strcat(user, name), " ");
}

START_TEST(names)
{
    char all[200] = "";
    struct mp_error err = {0};

    write_module(dir, "trouble.so", bytes, nbytes);
    write_module(dir, "trouble.la", bytes, nbytes);
    write_module(dir, "short.so", bytes, nbytes / 4);
    ck_assert_int_eq(mp_head_names(see_name, all, &err), 0);
    ck_assert_msg(strstr(all, "short ") && strstr(all, "trouble ") &&
                      strlen(all) == strlen("short trouble "),
                  "%s", all);
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof *(table))

int main(void)
{
    Suite *s = suite_create("module");
    TCase *c = tcase_create("module");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, misfit, 0, COUNT(misfits));
    tcase_add_loop_test(c, first_of_a_name, 0, 2);
    tcase_add_loop_test(c, strict, 0, COUNT(rights));
    tcase_add_test(c, lenient);
    tcase_add_test(c, listed);
    tcase_add_test(c, names);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
