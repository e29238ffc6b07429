/* SPDX-License-Identifier: MIT */
/* test_host.c - memory and processors of a process, by made-up files. */
#include <check.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "host.h"

#define MIB ((uint64_t)1 << 20)

#define TEMPLATE "/tmp/mpipe-host-XXXXXX" /* mkdtemp() fills it in */
static char root[] = TEMPLATE;

static void begin(void)
{
    memcpy(root, TEMPLATE, sizeof root);
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static void end(void)
{
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A file below root, and the folders it is in. */
static void put(const char *name, const char *text)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof path, "%s%s", root, name);
    for (char *p = path + sizeof root; (p = strchr(p, '/')); *p++ = '/') {
        *p = '\0';
        mkdir(path, 0700);
    }
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    fclose(f);
}

static void put_machine(const char *groups)
{
    put("/proc/meminfo", "MemTotal:       8388608 kB\n"
                         "MemFree:          99999 kB\n"
                         "MemAvailable:   6291456 kB\n");
    put("/proc/self/cgroup", groups);
}

static void expect(uint64_t total_mib, uint64_t free_mib)
{
    struct mp_host_memory m;

    mp_host_memory(&m, root);
    ck_assert_uint_eq(m.total, total_mib * MIB);
    ck_assert_uint_eq(m.free, free_mib * MIB);
}

START_TEST(test_machine)
{
    expect(0, 0); /* nothing there: not known */
    put("/proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n");
    expect(2, 1);
    put_machine("0::/\n"); /* a group without files: the topmost of a machine */
    expect(8192, 6144);
    put("/proc/self/cgroup", "nonsense\n:\n::\n0:memory\n");
    expect(8192, 6144);
}
END_TEST

/* 3 GiB of a limit of 4 are used, 1 of them by cached files. */
START_TEST(test_version_2)
{
    put_machine("0::/system.slice/mpiped.service\n");
    put("/sys/fs/cgroup/system.slice/mpiped.service/memory.max",
        "4294967296\n");
    put("/sys/fs/cgroup/system.slice/mpiped.service/memory.current",
        "3221225472\n");
    expect(4096, 1024);
    put("/sys/fs/cgroup/system.slice/mpiped.service/memory.stat",
        "anon 1\nfile 5\ninactive_file 805306368\nactive_file 268435456\n");
    expect(4096, 2048);

    /* the slice has less left; above it is no limit */
    put("/sys/fs/cgroup/system.slice/memory.max", "6442450944\n");
    put("/sys/fs/cgroup/system.slice/memory.current", "6341787648\n");
    put("/sys/fs/cgroup/memory.max", "max\n");
    put("/sys/fs/cgroup/memory.current", "7000000000\n");
    expect(4096, 96);

    /* more is used than allowed, more is cached than used */
    put("/sys/fs/cgroup/system.slice/memory.max", "1048576\n");
    expect(1, 0);
    put("/sys/fs/cgroup/system.slice/memory.stat",
        "inactive_file 9999999999999\n");
    expect(1, 1);
}
END_TEST

/* The path is the host's: what is there is the container's. */
START_TEST(test_container)
{
    put_machine("0::/docker/0123456789ab\n");
    put("/sys/fs/cgroup/memory.max", "1073741824\n");
    put("/sys/fs/cgroup/memory.current", "268435456\n");
    expect(1024, 768);
}
END_TEST

START_TEST(test_version_1)
{
    put_machine(
        "9:name=systemd:/\n5:cpu,cpuacct:/a\n4:cpu,memory:/a/b\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "9223372036854771712\n"); /* none */
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "9000000000\n");
    expect(8192, 6144);
    put("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "2147483648\n");
    put("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "2147483648\n");
    put("/sys/fs/cgroup/memory/a/b/memory.stat",
        "inactive_file 1\ntotal_inactive_file 1048576\n"
        "total_active_file 2097152\n");
    expect(2048, 3);
}
END_TEST

START_TEST(test_cpus)
{
    ck_assert_int_eq(mp_host_cpus(64, root), 64);
    put_machine("3:cpu,cpuacct:/a\n0::/b\n");
    ck_assert_int_eq(mp_host_cpus(64, root), 64);
    put("/sys/fs/cgroup/b/cpu.max", "max 100000\n");
    ck_assert_int_eq(mp_host_cpus(64, root), 64);
    put("/sys/fs/cgroup/b/cpu.max", "250000 100000\n");
    ck_assert_int_eq(mp_host_cpus(64, root), 3);
    ck_assert_int_eq(mp_host_cpus(2, root), 2);
    put("/sys/fs/cgroup/cpu.max", "10000 100000\n");
    ck_assert_int_eq(mp_host_cpus(64, root), 1);
    put("/sys/fs/cgroup/cpu.max", "0 0\n");
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "50000\n");
    ck_assert_int_eq(mp_host_cpus(64, root), 3);
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n");
    ck_assert_int_eq(mp_host_cpus(64, root), 2);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("host");
    TCase *c = tcase_create("groups");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(c, begin, end);
    tcase_add_test(c, test_machine);
    tcase_add_test(c, test_version_2);
    tcase_add_test(c, test_container);
    tcase_add_test(c, test_version_1);
    tcase_add_test(c, test_cpus);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
