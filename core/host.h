/* SPDX-License-Identifier: MIT */
/*
 * host.h - what a process may have of the machine it runs on: what the machine
 * has, or what the process's control groups leave of it (Linux's, version 1 or
 * 2: containers, services of systemd).
 *
 * root is put before all paths: "", or for tests a folder with proc and sys.
 */
#ifndef HOST_H
#define HOST_H

#include <stdint.h>

struct mp_host_memory { /* bytes; 0: not known */
    uint64_t total;
    uint64_t free; /* without swapping; what is cached of files counts */
};

void mp_host_memory(struct mp_host_memory *out, const char *root);

/* Processors, at least 1: `most`, or a group's quota of time, rounded up. */
int mp_host_cpus(int most, const char *root);

#endif
