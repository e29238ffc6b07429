/* SPDX-License-Identifier: MIT */
/* link.c - messages and sealed memory between front and worker. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "json.h"
#include "link.h"

struct head {
    uint32_t type;
    int32_t code;
    uint64_t id;
};

/* ---- blobs ---- */

static int fail_blob(struct mp_blob *b, struct mp_error *err)
{
    int code = errno;

    mp_blob_free(b);
    return mp_fail(err, MP_ENOMEM, "shared memory: %s", strerror(code));
}

int mp_blob_begin(struct mp_blob *b, struct mp_error *err)
{
    *b = MP_NO_BLOB;
    b->fd = memfd_create("mpipe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return b->fd < 0 ? fail_blob(b, err) : 0;
}

int mp_blob_add(struct mp_blob *b, const void *bytes, size_t n,
                struct mp_error *err)
{
    const char *from = bytes;

    while (n) {
        ssize_t k = write(b->fd, from, n);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return fail_blob(b, err);
        from += k;
        n -= (size_t)k;
        b->n += (size_t)k;
    }
    return 0;
}

static int map(struct mp_blob *b, int how, struct mp_error *err)
{
    void *at;

    if (!b->n)
        return 0;
    at = mmap(NULL, b->n, how, MAP_SHARED, b->fd, 0);
    if (at == MAP_FAILED)
        return fail_blob(b, err);
    b->at = at;
    return 0;
}

int mp_blob_end(struct mp_blob *b, struct mp_error *err)
{
    if (fcntl(b->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
        return fail_blob(b, err);
    return map(b, PROT_READ, err);
}

int mp_blob_new(struct mp_blob *b, size_t n, struct mp_error *err)
{
    int rc = mp_blob_begin(b, err);

    if (rc)
        return rc;
    b->n = n;
    if (ftruncate(b->fd, (off_t)n) ||
        fcntl(b->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
        return fail_blob(b, err);
    return map(b, PROT_READ | PROT_WRITE, err);
}

/* One that the other side has made. */
static int adopt(struct mp_blob *b, struct mp_error *err)
{
    int seals = fcntl(b->fd, F_GET_SEALS);
    struct stat st;

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(b->fd, &st) ||
        st.st_size < 0) {
        mp_blob_free(b);
        return mp_fail(err, MP_EFORMAT, "shared memory that is not sealed");
    }
    b->n = (size_t)st.st_size;
    return map(b, PROT_READ, err);
}

void mp_blob_free(struct mp_blob *b)
{
    if (b->at)
        munmap(b->at, b->n);
    if (b->fd >= 0)
        close(b->fd);
    *b = MP_NO_BLOB;
}

/* ---- messages ---- */

int mp_link_send(int sock, const struct mp_message *m, struct mp_error *err)
{
    struct head head = {(uint32_t)m->type, m->code, m->id};
    char *text = m->text ? mp_json_dump(m->text, JSON_COMPACT) : NULL;
    struct iovec part[2] = {{&head, sizeof head},
                            {text, text ? strlen(text) : 0}};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct msghdr msg = {.msg_iov = part, .msg_iovlen = text ? 2 : 1};
    ssize_t n;
    int rc = 0;

    if (m->text && !text)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    if (part[1].iov_len > MP_TEXT_MAX) {
        rc = mp_fail(err, MP_EINVAL, "%zu bytes of text: at most %d",
                     part[1].iov_len, MP_TEXT_MAX);
        free(text);
        return rc;
    }
    if (m->blob.fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        *CMSG_FIRSTHDR(&msg) =
            (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                             .cmsg_type = SCM_RIGHTS,
                             .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &m->blob.fd, sizeof(int));
    }
    do
        n = sendmsg(sock, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        rc = mp_fail(err, MP_EIO, "socket pair: %s", strerror(errno));
    free(text);
    return rc;
}

static void take_fd(struct mp_message *m, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
            c->cmsg_len == CMSG_LEN(sizeof(int)))
            memcpy(&m->blob.fd, CMSG_DATA(c), sizeof(int));
}

/* What is in the buffer, of n bytes. */
static int unpack(struct mp_message *m, const char *buf, size_t n,
                  struct mp_error *err)
{
    struct head head;
    json_error_t why;
    int rc;

    if (n < sizeof head)
        return mp_fail(err, MP_EFORMAT, "a message of %zu bytes", n);
    memcpy(&head, buf, sizeof head);
    m->type = (enum mp_message_type)head.type;
    m->code = head.code;
    m->id = head.id;
    if (n > sizeof head) {
        rc = mp_json_parse(&m->text, buf + sizeof head, n - sizeof head, &why,
                           err);
        if (rc == MP_ENOMEM)
            return rc;
        if (!json_is_object(m->text))
            return mp_fail(err, MP_EFORMAT, "a message that is no JSON object");
    }
    return m->blob.fd >= 0 ? adopt(&m->blob, err) : 0;
}

int mp_link_receive(int sock, struct mp_message *m, struct mp_error *err)
{
    char buf[sizeof(struct head) + MP_TEXT_MAX];
    struct iovec part = {buf, sizeof buf};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = &part,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof control.bytes};
    struct mp_error why = {0};
    ssize_t n;
    int rc;

    *m = (struct mp_message){.blob = MP_NO_BLOB};
    do
        n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n == 0 || errno == ECONNRESET
                   ? 0
                   : mp_fail(err, MP_EIO, "socket pair: %s", strerror(errno));
    take_fd(m, &msg);
    rc = msg.msg_flags & MSG_TRUNC
             ? mp_fail(&why, MP_EFORMAT, "a message that is too long")
             : unpack(m, buf, (size_t)n, &why);
    if (!rc && msg.msg_flags & MSG_CTRUNC)
        rc = MP_ENOMEM; /* of descriptors */
    if (!rc)
        return 1;
    mp_message_free(m);
    if (rc != MP_ENOMEM)
        return mp_fail(err, rc, "%s", why.text);
    m->code = rc;
    return 1;
}

void mp_message_free(struct mp_message *m)
{
    json_decref(m->text);
    m->text = NULL;
    mp_blob_free(&m->blob);
}
