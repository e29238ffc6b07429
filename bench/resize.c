/* SPDX-License-Identifier: MIT */
/*
 * resize IN WIDTH HEIGHT OUT.png: a picture in the size that a published
 * protocol has, whatever shape it had.
 */
#include <stdio.h>
#include <stdlib.h>
#include "image.h"

static int resize(const char *in, int32_t w, int32_t h, const char *out,
                  struct mp_error *err)
{
    struct mp_picture p;
    struct mp_png png = {.width = w, .height = h, .channels = 3, .bits = 8};
    uint8_t *px;
    int rc = mp_picture_read(&p, in, err);

    if (rc)
        return mp_fail_in(err, "%s", in);
    px = malloc((size_t)w * (size_t)h * 3);
    rc = px ? mp_resize_u8(px, w, h, p.rgb, p.width, p.height, 3, err)
            : mp_fail(err, MP_ENOMEM, "out of memory");
    png.px = px;
    if (!rc)
        rc = mp_png_write(out, &png, err);
    free(px);
    mp_picture_free(&p);
    return rc;
}

int main(int argc, char **argv)
{
    struct mp_error err = {0};
    int32_t w = argc == 5 ? atoi(argv[2]) : 0,
            h = argc == 5 ? atoi(argv[3]) : 0;

    if (w < 1 || w > 65536 || h < 1 || h > 65536) {
        fputs("usage: resize IN WIDTH HEIGHT OUT.png\n", stderr);
        return 2;
    }
    if (!resize(argv[1], w, h, argv[4], &err))
        return 0;
    fprintf(stderr, "resize: %s\n", err.text);
    return 1;
}
