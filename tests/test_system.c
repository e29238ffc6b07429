/* SPDX-License-Identifier: MIT */
/* What passes between mpiped and the service manager; sockets. */
#include <check.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/system.h"

static char folder[] = "/tmp/mpipe-system-XXXXXX";
static struct mp_error err;
static struct mp_listen l;
static struct mp_daemon_conf conf;
static char path[200];

static void setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s", folder);
    memset(&conf, 0, sizeof conf);
    conf.http.socket = path;
    conf.http.mode = (char *)"0620";
    conf.http.group = conf.http.listen = conf.http.token_file = (char *)"none";
    memset(&err, 0, sizeof err);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
}

static void teardown(void)
{
    char command[200];

    mp_listen_close(&l);
    ck_assert_int_ne(access(path, F_OK), 0);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(notifies)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char text[100] = "", name[300];
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    socklen_t n = sizeof at;

    if (_i) { /* abstract */
        snprintf(at.sun_path + 1, sizeof at.sun_path - 1, "mpipe-test-%ld",
                 (long)getpid());
        n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                        strlen(at.sun_path + 1));
        snprintf(name, sizeof name, "@%s", at.sun_path + 1);
    } else {
        snprintf(at.sun_path, sizeof at.sun_path, "%s/n", folder);
        strcpy(name, at.sun_path);
    }
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&at, n), 0);
    setenv("NOTIFY_SOCKET", name, 1);
    mp_notify("READY=1\nSTATUS=%d", 7);
    ck_assert_int_gt(recv(fd, text, sizeof text - 1, MSG_DONTWAIT), 0);
    ck_assert_str_eq(text, "READY=1\nSTATUS=7");
    setenv("NOTIFY_SOCKET", "relative", 1);
    mp_notify("not to anybody");
    unsetenv("NOTIFY_SOCKET");
    mp_notify("not to anybody");
    ck_assert_int_lt(recv(fd, text, sizeof text - 1, MSG_DONTWAIT), 0);
    close(fd);
}
END_TEST

START_TEST(watchdog)
{
    char pid[20];

    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    ck_assert_double_eq(mp_watchdog(), 0);
    setenv("WATCHDOG_USEC", "2500000", 1);
    ck_assert_double_eq(mp_watchdog(), 2.5);
    setenv("WATCHDOG_PID", "1", 1);
    ck_assert_double_eq(mp_watchdog(), 0);
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    ck_assert_double_eq(mp_watchdog(), 2.5);
    setenv("WATCHDOG_USEC", "soon", 1);
    ck_assert_double_eq(mp_watchdog(), 0);
}
END_TEST

/* Its permissions, whatever the process makes other files with. */
START_TEST(own_socket)
{
    static const mode_t masks[] = {0022, 0, 0777};
    struct stat st;

    umask(masks[_i]);
    ck_assert_msg(!mp_listen_open(&l, &conf, &err), "%s", err.text);
    ck_assert_uint_eq(l.n, 1);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0620);
    ck_assert_uint_eq(umask(0022), masks[_i]);
}
END_TEST

START_TEST(second_and_stale)
{
    struct mp_listen other;

    ck_assert_int_eq(mp_listen_open(&l, &conf, &err), 0);
    ck_assert_int_eq(mp_listen_open(&other, &conf, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "another mpiped"));
    ck_assert_int_eq(access(path, F_OK), 0);
    close(l.fd[0]); /* as if killed */
    l.n = 0;
    free(l.path);
    free(l.token);
    ck_assert_msg(!mp_listen_open(&l, &conf, &err), "%s", err.text);
}
END_TEST

START_TEST(in_the_way)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    close(fd);
    ck_assert_int_eq(mp_listen_open(&l, &conf, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "is no socket"));
    ck_assert_int_eq(access(path, F_OK), 0);
    unlink(path);
}
END_TEST

/* 0: may be; else what is said. */
static const struct {
    const char *listen, *says;
} addresses[] = {
    {"127.0.0.1:0", NULL},
    {"127.8.9.1:0", NULL},
    {"0.0.0.0:0", "token_file"},
    {"192.0.2.1:80", "token_file"},
    {"[::]:0", "token_file"},
    {"[::ffff:127.0.0.1]:0", "token_file"},
    {"localhost:80", "ADDRESS:PORT"},
    {"127.0.0.1", "ADDRESS:PORT"},
    {"127.0.0.1:", "ADDRESS:PORT"},
    {"127.0.0.1:65536", "ADDRESS:PORT"},
    {"127.0.0.1:-1", "ADDRESS:PORT"},
    {"127.0.0.1:80x", "ADDRESS:PORT"},
    {"::1:80", "ADDRESS:PORT"},
    {"[::1:80", "ADDRESS:PORT"},
    {"[]:80", "ADDRESS:PORT"},
    {":80", "ADDRESS:PORT"},
};

START_TEST(tcp)
{
    int rc;

    conf.http.listen = (char *)addresses[_i].listen;
    ck_assert_int_eq(!mp_listen_check(&conf, &err), !addresses[_i].says);
    memset(&err, 0, sizeof err);
    rc = mp_listen_open(&l, &conf, &err);
    ck_assert_msg(!rc == !addresses[_i].says, "%s: %s", conf.http.listen,
                  err.text);
    if (rc)
        ck_assert_ptr_nonnull(strstr(err.text, addresses[_i].says));
    else
        ck_assert_uint_eq(l.n, 2);
}
END_TEST

static void write_token(const char *text, mode_t mode)
{
    static char name[200];
    FILE *f;

    snprintf(name, sizeof name, "%s/token", folder);
    f = fopen(name, "w");
    fputs(text, f);
    fclose(f);
    chmod(name, mode);
    conf.http.token_file = name;
}

static const struct {
    const char *text;
    mode_t mode;
    const char *says;
} tokens[] = {
    {"0123456789abcdef\n", 0600, NULL},
    {"0123456789abcdef", 0640, NULL},
    {"0123456789abcdef\nmore", 0600, NULL},
    {"0123456789abcdef\n", 0644, "chmod"},
    {"0123456789abcdef\n", 0660, "chmod"},
    {"0123456789abcde\n", 0600, "16"},
    {"", 0600, "16"},
    {"0123456789 abcdef\n", 0600, "printable"},
    {"0123456789\xe4"
     "abcdef\n",
     0600, "printable"},
};

START_TEST(token)
{
    int rc;

    write_token(tokens[_i].text, tokens[_i].mode);
    conf.http.listen = (char *)"0.0.0.0:0";
    ck_assert_int_eq(!mp_listen_check(&conf, &err), !tokens[_i].says);
    memset(&err, 0, sizeof err);
    rc = mp_listen_open(&l, &conf, &err);
    ck_assert_msg(!rc == !tokens[_i].says, "%s", err.text);
    if (rc)
        ck_assert_ptr_nonnull(strstr(err.text, tokens[_i].says));
    else
        ck_assert_str_eq(l.token, "0123456789abcdef");
}
END_TEST

/* What holds of sockets given as a service manager does, as descriptor 3: a bit
 * for each. In a process of its own, as 3 may be anybody's. */
enum { STATUS = 1, SOCKET = 2, UNSET = 4, TEXT = 8 };

static int take_given(int kind, int fd)
{
    int want = kind == 1 ? MP_EINVAL : 0, rc;
    char pid[20];

    dup2(fd, 3);
    snprintf(pid, sizeof pid, "%ld", (long)(kind == 2 ? 1 : getpid()));
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    rc = mp_listen_open(&l, &conf, &err);
    fd = l.fd[0];
    mp_listen_close(&l);
    return (rc == want ? STATUS : 0) | ((fd == 3) == (kind != 2) ? SOCKET : 0) |
           (!getenv("LISTEN_FDS") ? UNSET : 0) |
           (!rc || strstr(err.text, "token_file") ? TEXT : 0);
}

START_TEST(given)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), status;
    pid_t child;

    if (_i == 1)
        a.sin_addr.s_addr = 0; /* any */
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    ck_assert_int_eq(listen(fd, 1), 0);
    child = fork();
    if (!child)
        _exit(take_given(_i, fd));
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), STATUS | SOCKET | UNSET | TEXT);
}
END_TEST

/* What is wrong is found without a socket; nothing is left of the check. */
START_TEST(checked)
{
    ck_assert_msg(!mp_listen_check(&conf, &err), "%s", err.text);
    ck_assert_int_ne(access(path, F_OK), 0);
    conf.http.mode = (char *)"0980";
    ck_assert_int_eq(mp_listen_check(&conf, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "octal"));
    conf.http.mode = (char *)"0600";
    conf.http.group = (char *)"no.such.group";
    ck_assert_int_eq(mp_listen_check(&conf, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "there is none"));
    conf.http.group = (char *)"none";
    conf.http.socket = (char *)"";
    ck_assert_int_eq(mp_listen_check(&conf, &err), MP_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "1 to 107 bytes"));
}
END_TEST

START_TEST(nobody)
{
    conf.http.socket = (char *)"none";
    ck_assert_int_eq(mp_listen_open(&l, &conf, &err), MP_EINVAL);
}
END_TEST

#define COUNT(table) (int)(sizeof(table) / sizeof *(table))

int main(void)
{
    Suite *s = suite_create("system");
    TCase *c = tcase_create("system");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, notifies, 0, 2);
    tcase_add_test(c, watchdog);
    tcase_add_loop_test(c, own_socket, 0, 3);
    tcase_add_test(c, second_and_stale);
    tcase_add_test(c, in_the_way);
    tcase_add_loop_test(c, tcp, 0, COUNT(addresses));
    tcase_add_loop_test(c, token, 0, COUNT(tokens));
    tcase_add_loop_test(c, given, 0, 3);
    tcase_add_test(c, checked);
    tcase_add_test(c, nobody);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
