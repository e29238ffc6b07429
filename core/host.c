/* SPDX-License-Identifier: MIT */
/* host.c - reads /proc/meminfo and the files of control groups. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "host.h"

#define PATH_SIZE 4096

/* The number after name, or, if that is "", the file's first. Returns 0 if
 * there is none: no limit is "max" or negative. */
static int number_of(const char *dir, const char *file, const char *name,
                     uint64_t *out)
{
    char path[2 * PATH_SIZE], line[256];
    size_t n = strlen(name);
    int64_t x = -1;
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, file);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, n) && sscanf(line + n, " %" SCNd64, &x) == 1)
            break;
    if (f)
        fclose(f);
    *out = x < 0 ? 0 : (uint64_t)x;
    return x >= 0;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What a group, whose files are in dir, leaves. */
typedef void visit(void *out, const char *dir, int version);

static void limit_memory(void *out, const char *dir, int version)
{
    static const char *const names[][4] = {
        {"memory.limit_in_bytes", "memory.usage_in_bytes",
         "total_inactive_file ", "total_active_file "},
        {"memory.max", "memory.current", "inactive_file ", "active_file "}};
    const char *const *name = names[version - 1];
    struct mp_host_memory *m = out;
    uint64_t limit, used, cached;

    if (!number_of(dir, name[0], "", &limit) ||
        !number_of(dir, name[1], "", &used))
        return;
    for (int i = 2; i < 4; i++)
        if (number_of(dir, "memory.stat", name[i], &cached))
            used -= less(cached, used);
    m->total = less(m->total, limit);
    m->free = less(m->free, limit - less(used, limit));
}

static void limit_cpus(void *out, const char *dir, int version)
{
    const char *quotas = version == 1 ? "cpu.cfs_quota_us" : "cpu.max";
    const char *periods = version == 1 ? "cpu.cfs_period_us" : "cpu.max";
    char before[32] = ""; /* of version 2: both in one line */
    uint64_t *cpus = out, quota, period;

    if (!number_of(dir, quotas, "", &quota) || quota == 0)
        return;
    if (version == 2)
        snprintf(before, sizeof before, "%" PRIu64 " ", quota);
    if (number_of(dir, periods, before, &period) && period)
        *cpus = less(*cpus, (quota - 1) / period + 1);
}

/* A group and those it is in. In a container their path may be the host's, of
 * which only the end of the way up is there. */
static void visit_up(const char *root, const char *top, const char *path,
                     int version, visit *f, void *out)
{
    char dir[PATH_SIZE];
    size_t n = strlen(root) + strlen(top);

    if ((size_t)snprintf(dir, sizeof dir, "%s%s%s", root, top, path) >=
        sizeof dir)
        return;
    for (;;) {
        char *end = strrchr(dir + n, '/');

        f(out, dir, version);
        if (!end)
            break;
        *end = '\0';
    }
}

static int has_word(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = strstr(list, word); p; p = strstr(p + 1, word))
        if ((p == list || p[-1] == ',') && (p[n] == ',' || !p[n]))
            return 1;
    return 0;
}

/* All groups that are about something ("memory") of this process. */
static void visit_groups(const char *root, const char *about, visit *f,
                         void *out)
{
    char path[PATH_SIZE], line[PATH_SIZE];
    FILE *in;

    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    in = fopen(path, "r");
    while (in && fgets(line, sizeof line, in)) {
        /* number:words:path; of version 2 without words */
        char *words = strchr(line, ':');
        char *at = words ? strchr(++words, ':') : NULL;

        if (!at)
            continue;
        *at++ = '\0';
        at[strcspn(at, "\n")] = '\0';
        if (!*words) {
            visit_up(root, "/sys/fs/cgroup", at, 2, f, out);
        } else if (has_word(words, about)) {
            snprintf(path, sizeof path, "/sys/fs/cgroup/%s", about);
            visit_up(root, path, at, 1, f, out);
        }
    }
    if (in)
        fclose(in);
}

void mp_host_memory(struct mp_host_memory *out, const char *root)
{
    char proc[PATH_SIZE];

    snprintf(proc, sizeof proc, "%s/proc", root);
    number_of(proc, "meminfo", "MemTotal:", &out->total);
    number_of(proc, "meminfo", "MemAvailable:", &out->free);
    out->total <<= 10;
    out->free <<= 10;
    visit_groups(root, "memory", limit_memory, out);
}

int mp_host_cpus(int most, const char *root)
{
    uint64_t cpus = (uint64_t)most;

    visit_groups(root, "cpu", limit_cpus, &cpus);
    return cpus ? (int)cpus : 1;
}
