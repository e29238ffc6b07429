/* SPDX-License-Identifier: MIT */
/* zip.c - see zip.h. */
#include <limits.h>
#include <stdlib.h>
#include <zlib.h>
#include "zip.h"

int mp_zip(char **out, size_t *n, const char *bytes, size_t size, int gzip)
{
    z_stream z = {.next_in = (Bytef *)bytes, .avail_in = (uInt)size};
    uLong room;
    int rc;

    if (size > UINT_MAX / 2 ||
        deflateInit2(&z, 1, Z_DEFLATED, gzip ? 31 : 15, 8, Z_DEFAULT_STRATEGY))
        return MP_ENOMEM;
    room = deflateBound(&z, (uLong)size);
    *out = malloc(room);
    z.next_out = (Bytef *)*out;
    z.avail_out = (uInt)room;
    rc = *out ? deflate(&z, Z_FINISH) : Z_MEM_ERROR;
    *n = z.total_out;
    deflateEnd(&z);
    if (rc == Z_STREAM_END)
        return 0;
    free(*out);
    return MP_ENOMEM;
}

static int inflate_all(struct mp_blob *out, z_stream *z, size_t most,
                       struct mp_error *err)
{
    unsigned char buf[65536];
    int got = Z_OK, rc = 0;

    while (!rc && got == Z_OK) {
        size_t n;

        z->next_out = buf;
        z->avail_out = sizeof buf;
        got = inflate(z, Z_NO_FLUSH);
        n = sizeof buf - z->avail_out;
        if (got != Z_OK && got != Z_STREAM_END)
            break;
        if (n > most - out->n)
            return mp_fail(err, MP_EINVAL,
                           "the body is larger than %zu MiB when inflated",
                           most >> 20);
        rc = mp_blob_add(out, buf, n, err);
    }
    if (!rc && (got != Z_STREAM_END || z->avail_in))
        rc = mp_fail(err, MP_EINVAL,
                     "the body is not what its "
                     "Content-Encoding says");
    return rc;
}

int mp_unzip(struct mp_blob *out, const struct mp_blob *in, size_t most,
             struct mp_error *err)
{
    z_stream z = {.next_in = in->at, .avail_in = (uInt)in->n};
    int rc = mp_blob_begin(out, err);

    if (rc)
        return rc;
    if (in->n > UINT_MAX || inflateInit2(&z, 15 + 32)) {
        mp_blob_free(out);
        return mp_fail(err, MP_ENOMEM, "out of memory");
    }
    rc = inflate_all(out, &z, most, err);
    inflateEnd(&z);
    if (!rc)
        rc = mp_blob_end(out, err);
    if (rc)
        mp_blob_free(out);
    return rc;
}
