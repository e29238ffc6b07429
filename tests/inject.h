/* SPDX-License-Identifier: MIT */
/*
 * inject.h - what a test says to inject.so, which is preloaded into a program
 * and makes what that asks of the system fail.
 *
 * They share a file of one struct inject, whose path is in MPIPE_INJECT. All
 * zero, nothing fails. Numbers are counted for each role, as the front and the
 * workers of an mpiped share the file, too.
 */
#ifndef TESTS_INJECT_H
#define TESTS_INJECT_H

enum inject_role { INJECT_MAIN, INJECT_WORKER };

struct inject {
    struct {
        _Atomic long fail;  /* allocations until one fails; below 1: none */
        _Atomic long every; /* then again after so many; 0: only that one */
        _Atomic long failed;
    } role[2];
    _Atomic int trickle; /* reads and writes are interrupted, or short */
    _Atomic long trickled;
    _Atomic long clock; /* seconds that CLOCK_REALTIME is wrong by */
};

#endif
