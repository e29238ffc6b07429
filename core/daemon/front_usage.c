/* SPDX-License-Identifier: MIT */
/* front_usage.c - what workers use, and what goes when it is too much. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "front_impl.h"

size_t mp_process_memory(pid_t pid)
{
    char path[48];
    unsigned long all = 0, resident = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%ld/statm", (long)pid);
    file = fopen(path, "r");
    if (!file)
        return 0;
    if (fscanf(file, "%lu %lu", &all, &resident) != 2)
        resident = 0;
    fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE) / 1024;
}

/* utime and stime are the 14th and 15th word; the 2nd, in parentheses, may hold
 * anything. */
double mp_process_cpu(pid_t pid)
{
    char path[48], line[1024];
    unsigned long user = 0, system = 0;
    const char *at;
    FILE *file;
    size_t n;

    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    file = fopen(path, "r");
    if (!file)
        return 0;
    n = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[n] = '\0';
    at = strrchr(line, ')');
    if (!at || sscanf(at + 1,
                      "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu "
                      "%lu",
                      &user, &system) != 2)
        return 0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

size_t mp_process_files(pid_t pid)
{
    char path[48];
    size_t n = 0;
    DIR *folder;

    snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
    folder = opendir(path);
    if (!folder)
        return 0;
    for (const struct dirent *e; (e = readdir(folder));)
        n += e->d_name[0] != '.';
    closedir(folder);
    return n - (pid == getpid()); /* but for the folder itself */
}

/* Of the process, and what it holds of devices with their own, MiB. */
static uint64_t memory_of(const struct worker *w)
{
    uint64_t bytes = (uint64_t)mp_process_memory(w->pid) << 10;

    for (size_t i = 0; i < MP_LEDGER_DEVICES; i++)
        if (atomic_load(&w->ledger->device[i].apart))
            bytes += atomic_load(&w->ledger->device[i].memory[MP_MEMORY_HELD]);
    return bytes >> 20;
}

static int is_over(const struct mp_front *f, const struct worker *w)
{
    int32_t limit = mp_front_conf(f)->limits.memory;

    return limit >= 0 && memory_of(w) > (uint64_t)limit;
}

static int may_go(const struct pipeline *p)
{
    return p->state == READY && !p->nflight && !p->queue.n &&
           p->entry->load == MP_ON_DEMAND && p->used > 0;
}

void mp_front_save_memory(struct mp_front *f, struct worker *w)
{
    struct pipeline *oldest = NULL;

    if (!w->pid || !is_over(f, w))
        return;
    for (struct pipeline *p = f->pipelines; p; p = p->next) {
        if (p->worker == w && p->state == UNLOADING)
            return; /* one at a time */
        if (p->worker == w && may_go(p) && (!oldest || p->used < oldest->used))
            oldest = p;
    }
    if (!oldest)
        return;
    mp_log(MP_LOG_INFO, oldest->entry->name, "unloaded to save memory");
    mp_front_unload(f, oldest);
}
