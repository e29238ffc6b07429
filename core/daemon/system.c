/* SPDX-License-Identifier: MIT */
/* system.c - see system.h. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "system.h"

#define TOKEN_LEAST 16 /* bytes */
#define TOKEN_MOST  1024
#define BACKLOG     512

/* ---- the service manager ---- */

static int unix_address(struct sockaddr_un *a, socklen_t *n, const char *path)
{
    size_t len = strlen(path);

    if (!len || len >= sizeof a->sun_path)
        return -1;
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    memcpy(a->sun_path, path, len);
    *n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    if (*path == '@')
        a->sun_path[0] = '\0';
    else
        ++*n;
    return 0;
}

void mp_notify(const char *fmt, ...)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to;
    socklen_t n;
    char text[256];
    va_list ap;
    int fd;

    if (!path || (*path != '/' && *path != '@') || unix_address(&to, &n, path))
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&to,
               n) < 0)
        mp_log(MP_LOG_WARNING, "system", "NOTIFY_SOCKET: %s", strerror(errno));
    close(fd);
}

static int is_ours(const char *pid)
{
    return !pid || strtol(pid, NULL, 10) == (long)getpid();
}

double mp_watchdog(void)
{
    const char *usec = getenv("WATCHDOG_USEC");
    double seconds =
        usec && is_ours(getenv("WATCHDOG_PID")) ? strtod(usec, NULL) / 1e6 : 0;

    return seconds > 0 && seconds < 1e6 ? seconds : 0;
}

/* Sockets from 3 on. */
static size_t given_sockets(void)
{
    const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
    long count = pid && n && is_ours(pid) ? strtol(n, NULL, 10) : 0;

    unsetenv("LISTEN_PID"); /* they are not for the workers */
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return count > 0 && count <= MP_LISTEN_MAX ? (size_t)count : 0;
}

/* ---- the Unix socket ---- */

static int parse_mode(mode_t *out, const char *text, struct mp_error *err)
{
    char *end;
    long v = strtol(text, &end, 8);

    if (*end || end == text || v < 0 || v > 0777)
        return mp_fail(err, MP_EINVAL, "[http] mode = %s: octal, as 0660",
                       text);
    *out = (mode_t)v;
    return 0;
}

/* -1: as it is. */
static int find_group(gid_t *out, const char *name, struct mp_error *err)
{
    const struct group *g;

    *out = (gid_t)-1;
    if (!strcmp(name, "none"))
        return 0;
    g = getgrnam(name);
    if (!g)
        return mp_fail(err, MP_EINVAL, "[http] group = %s: there is none",
                       name);
    *out = g->gr_gid;
    return 0;
}

/* What the configuration says of the Unix socket. */
struct unix_socket {
    struct sockaddr_un at;
    socklen_t n; /* 0: none is wanted */
    mode_t mode;
    gid_t group;
};

static int read_unix(struct unix_socket *u, const struct mp_daemon_conf *c,
                     struct mp_error *err)
{
    const char *path = c->http.socket;
    int rc = parse_mode(&u->mode, c->http.mode, err);

    if (!rc)
        rc = find_group(&u->group, c->http.group, err);
    u->n = 0;
    if (rc || !strcmp(path, "none"))
        return rc;
    if (*path == '@' || unix_address(&u->at, &u->n, path))
        return mp_fail(err, MP_EINVAL,
                       "[http] socket: a path of 1 to %zu bytes, not \"%s\"",
                       sizeof u->at.sun_path - 1, path);
    return 0;
}

/* A socket that nobody listens on is a leftover. */
static int remove_stale(const char *path, const struct unix_socket *u,
                        struct mp_error *err)
{
    struct stat st;
    int fd, rc, code;

    if (lstat(path, &st))
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return mp_fail(err, MP_EINVAL, "%s is there, and is no socket", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return mp_fail(err, MP_EIO, "socket: %s", strerror(errno));
    rc = connect(fd, (const struct sockaddr *)&u->at, u->n);
    code = errno;
    close(fd);
    if (!rc || code == EAGAIN)
        return mp_fail(err, MP_EINVAL, "%s: another mpiped listens there",
                       path);
    if (code != ECONNREFUSED)
        return mp_fail(err, MP_EIO, "%s: %s", path, strerror(code));
    unlink(path);
    return 0;
}

static int open_unix(struct mp_listen *l, const struct mp_daemon_conf *c,
                     struct mp_error *err)
{
    const char *path = c->http.socket;
    struct unix_socket u;
    mode_t before;
    int fd, rc = read_unix(&u, c, err);

    if (rc || !u.n)
        return rc;
    rc = remove_stale(path, &u, err);
    if (rc)
        return rc;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    before = umask(0777 & ~u.mode);
    if (fd < 0 || bind(fd, (struct sockaddr *)&u.at, u.n) ||
        listen(fd, BACKLOG))
        rc = mp_fail(err, MP_EIO, "%s: %s", path, strerror(errno));
    umask(before);
    if (!rc && !(l->path = strdup(path)))
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    if (!rc && u.group != (gid_t)-1 && chown(path, (uid_t)-1, u.group))
        rc = mp_fail(err, MP_EIO, "%s: group %s: %s", path, c->http.group,
                     strerror(errno));
    if (!rc)
        l->fd[l->n++] = fd;
    else if (fd >= 0)
        close(fd);
    return rc;
}

/* ---- TCP ---- */

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* "127.0.0.1:8000", "[::1]:8000" */
static int parse_address(union address *a, const char *text)
{
    const char *colon = strrchr(text, ':');
    char host[64], *end;
    long port = colon ? strtol(colon + 1, &end, 10) : 0;
    size_t n = colon ? (size_t)(colon - text) : 0;

    if (!colon || *end || port < 0 || port > 65535 || n < 2 ||
        n >= sizeof host || colon[1] == '\0')
        return -1;
    memset(a, 0, sizeof *a);
    if (*text == '[' && colon[-1] == ']') {
        snprintf(host, sizeof host, "%.*s", (int)n - 2, text + 1);
        a->v6.sin6_family = AF_INET6;
        a->v6.sin6_port = htons((uint16_t)port);
        return inet_pton(AF_INET6, host, &a->v6.sin6_addr) == 1 ? 0 : -1;
    }
    snprintf(host, sizeof host, "%.*s", (int)n, text);
    a->v4.sin_family = AF_INET;
    a->v4.sin_port = htons((uint16_t)port);
    return inet_pton(AF_INET, host, &a->v4.sin_addr) == 1 ? 0 : -1;
}

static int is_loopback(const union address *a)
{
    if (a->any.sa_family == AF_INET)
        return ntohl(a->v4.sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr);
}

/* AF_UNSPEC: none is wanted. */
static int read_tcp(union address *a, const struct mp_daemon_conf *c,
                    const char *token, struct mp_error *err)
{
    const char *text = c->http.listen;

    a->any.sa_family = AF_UNSPEC;
    if (!strcmp(text, "none"))
        return 0;
    if (parse_address(a, text))
        return mp_fail(err, MP_EINVAL,
                       "[http] listen = %s: ADDRESS:PORT, as 127.0.0.1:8000 or "
                       "[::1]:8000",
                       text);
    if (!is_loopback(a) && !token)
        return mp_fail(err, MP_EINVAL,
                       "[http] listen = %s: an address beyond loopback needs "
                       "token_file",
                       text);
    return 0;
}

static int open_tcp(struct mp_listen *l, const struct mp_daemon_conf *c,
                    struct mp_error *err)
{
    union address a;
    int fd, yes = 1, rc = read_tcp(&a, c, l->token, err);

    if (rc || a.any.sa_family == AF_UNSPEC)
        return rc;
    fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (fd < 0 ||
        bind(fd, &a.any,
             a.any.sa_family == AF_INET ? sizeof a.v4 : sizeof a.v6) ||
        listen(fd, BACKLOG))
        rc = mp_fail(err, MP_EIO, "[http] listen = %s: %s", c->http.listen,
                     strerror(errno));
    if (!rc)
        l->fd[l->n++] = fd;
    else if (fd >= 0)
        close(fd);
    return rc;
}

/* The first line of a file that others cannot read. */
static int read_token(char **out, const char *path, struct mp_error *err)
{
    char line[TOKEN_MOST + 2] = "";
    struct stat st;
    FILE *f;
    size_t n;

    if (!strcmp(path, "none"))
        return 0;
    f = fopen(path, "re");
    if (!f || fstat(fileno(f), &st)) {
        if (f)
            fclose(f);
        return mp_fail(err, MP_EIO, "[http] token_file = %s: %s", path,
                       strerror(errno));
    }
    if (!fgets(line, sizeof line, f))
        line[0] = '\0';
    fclose(f);
    n = strcspn(line, "\r\n");
    line[n] = '\0';
    if (st.st_mode & (S_IRWXO | S_IWGRP))
        return mp_fail(err, MP_EINVAL,
                       "[http] token_file = %s: others must not read it, nor "
                       "its group write it: chmod 640",
                       path);
    if (n < TOKEN_LEAST || n > TOKEN_MOST ||
        line[strspn(line, "!\"#$%&'()*+,-./"
                          "0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"
                          "abcdefghijklmnopqrstuvwxyz{|}~")])
        return mp_fail(err, MP_EINVAL,
                       "[http] token_file = %s: its first line must be %d to "
                       "%d printable characters",
                       path, TOKEN_LEAST, TOKEN_MOST);
    *out = strdup(line);
    return *out ? 0 : mp_fail(err, MP_ENOMEM, "out of memory");
}

/* ---- both ---- */

/* Is this socket TCP beyond loopback? */
static int is_exposed(int fd)
{
    union address a = {.any.sa_family = AF_UNSPEC};
    socklen_t n = sizeof a;

    if (getsockname(fd, &a.any, &n) ||
        (a.any.sa_family != AF_INET && a.any.sa_family != AF_INET6))
        return 0;
    return !is_loopback(&a);
}

static int take_given(struct mp_listen *l, size_t n, struct mp_error *err)
{
    for (size_t i = 0; i < n; i++) {
        int fd = (int)i + 3;

        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        l->fd[l->n++] = fd;
        if (is_exposed(fd) && !l->token)
            return mp_fail(err, MP_EINVAL,
                           "a socket beyond loopback was given: it needs "
                           "[http] token_file");
    }
    return 0;
}

int mp_listen_check(const struct mp_daemon_conf *c, struct mp_error *err)
{
    struct unix_socket u;
    union address a;
    char *token = NULL;
    int rc = read_token(&token, c->http.token_file, err);

    if (!rc)
        rc = read_unix(&u, c, err);
    if (!rc)
        rc = read_tcp(&a, c, token, err);
    free(token);
    return rc;
}

int mp_listen_open(struct mp_listen *l, const struct mp_daemon_conf *c,
                   struct mp_error *err)
{
    size_t given = given_sockets();
    int rc;

    *l = (struct mp_listen){0};
    rc = read_token(&l->token, c->http.token_file, err);
    if (rc)
        return rc;
    if (given)
        return take_given(l, given, err);
    rc = open_unix(l, c, err);
    if (!rc)
        rc = open_tcp(l, c, err);
    if (!rc && !l->n)
        rc = mp_fail(err, MP_EINVAL,
                     "[http] socket and listen are both none: nobody could "
                     "ask");
    return rc;
}

void mp_listen_close(struct mp_listen *l)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->fd[i] >= 0)
            close(l->fd[i]);
    if (l->path)
        unlink(l->path);
    free(l->path);
    free(l->token);
    *l = (struct mp_listen){0};
}
