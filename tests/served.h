/* SPDX-License-Identifier: MIT */
/*
 * served.h - an mpiped to try things on, and a small client of it.
 *
 * Life cycle: serve; ask; serve_end, which checks that it ended as it should.
 * One at a time. Whatever goes wrong fails the test.
 */
#ifndef TESTS_SERVED_H
#define TESTS_SERVED_H

#include <stddef.h>
#include <sys/types.h>

extern pid_t server;       /* the front */
extern char serve_dir[64]; /* mpiped.ini, log, s: the socket; trouble.ini: the
                              network of a small checkpoint and trouble.so */

/* conf: what follows the section [http] in mpiped.ini. env: "NAME=value", NULL
 * ends them; NULL: none. before: what the process does before it becomes
 * mpiped; NULL: nothing. */
void serve(const char *conf, const char *const *env, void (*before)(void));
void serve_end(void);
/* Until "trouble" is loaded. */
int is_ready(void);
void wait_ready(void);

double now(void);
void pause_for(double seconds);
size_t memory_of(pid_t pid); /* resident, KiB */
size_t files_of(pid_t pid);  /* open */
size_t memory_of_all(void);  /* with the workers, KiB */
/* That many KiB, and no more than most: of long runs, in which the memory of a
 * sanitizer grows. There it is only told. */
void hold_memory(size_t kib, size_t most);
pid_t worker_pid(void); /* the first; 0: there is none */
void signal_workers(int number);

/* ---- bytes ---- */

int try_dial(void); /* -1: nobody listens */
int dial(void);
/* What is not taken any more is nobody's loss: -1. */
int put(int fd, const void *bytes, size_t n);
int put_text(int fd, const char *text);

struct reply {
    int status; /* 0: the connection ended before */
    char head[4096];
    char *body;
    size_t n;
};
/* Bodies of errors must not tell of files or addresses. Free body. */
struct reply hear(int fd);
struct reply ask_bytes(const void *bytes, size_t n);
struct reply ask(const char *text);
int status_of(const char *text);

/* ---- requests ---- */

#define INFER "/v2/models/trouble/infer"
#define POST(head, body)                                                       \
    "POST " INFER " HTTP/1.1\r\nHost: x\r\n" head "\r\n" body
#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

#define IMAGE(shape, more)                                                     \
    "{\"inputs\":[{\"name\":\"image\",\"datatype\":\"UINT8\",\"shape\":" shape \
        more "}]}"
#define SIZE(n) ",\"parameters\":{\"binary_data_size\":" n "}"

extern const char pixels[12]; /* of a picture of 2 x 2 */

/* A request with a JSON part and what follows it; its bytes. */
size_t compose(char *out, size_t size, const char *path, const char *more_head,
               const char *json, const void *data, size_t n);
/* parameters: ",\"key\":value" */
struct reply infer(const char *parameters, const char *data, size_t n);
struct reply trouble(const char *fault, const char *place);
int good(void); /* status of a request that is right */
/* The number behind a metric's name and labels. */
double metric(const char *name);

#endif
