/* SPDX-License-Identifier: MIT */
/*
 * fuzz.c - what reads untrusted bytes, given bytes that libFuzzer makes up:
 * "make fuzz". No reader may do what the sanitizers see, nor fail without a
 * reason. MPIPE_FUZZ names the reader.
 */
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "boxes.h"
#include "classes.h"
#include "conf.h"
#include "daemon/ask.h"
#include "image.h"
#include "weights.h"

#define SMALL 100000 /* elements that are read, pixels that are decoded */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

/* They want a file. */
static const char *file_of(const uint8_t *bytes, size_t n)
{
    static char path[40];
    static int fd = -1;

    if (fd >= 0)
        close(fd);
    fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, bytes, n) != (ssize_t)n)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return path;
}

static int read_weights(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    struct mp_weights *w;
    const char *key, *value;
    int rc = mp_weights_open(&w, file_of(bytes, n), err);

    if (rc)
        return rc;
    for (size_t i = 0; mp_weights_meta(w, i, &key, &value); i++)
        if (!key[0] && !value[0])
            abort();
    for (size_t i = 0; i < mp_weights_count(w); i++) {
        const struct mp_weight_info *t = mp_weights_at(w, i);
        float *all;

        if (!mp_weights_find(w, t->name))
            abort();
        if (t->count > SMALL)
            continue;
        all = malloc((t->count + 1) * sizeof *all);
        mp_weight_f32(t, all);
        free(all);
    }
    rc = mp_weights_check(w, err);
    mp_weights_close(w);
    return rc;
}

/* Nobody guesses a checksum: chunks of a PNG get the right ones. */
static void mend_png(uint8_t *png, size_t n)
{
    for (size_t at = 8; n >= 12 && at <= n - 12;) {
        size_t size = (size_t)png[at] << 24 | (size_t)png[at + 1] << 16 |
                      (size_t)png[at + 2] << 8 | png[at + 3];
        uint32_t crc;

        if (size > n - 12 - at)
            return;
        crc = libdeflate_crc32(0, png + at + 4, size + 4);
        at += size + 8;
        for (int i = 0; i < 4; i++)
            png[at++] = (uint8_t)(crc >> (24 - 8 * i));
    }
}

static int read_picture(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    int is_png = n > 8 && !memcmp(bytes, "\x89PNG\r\n\x1a\n", 8);
    struct mp_error other = {0};
    struct mp_picture p;
    uint16_t *map;
    int32_t w, h;
    int bits, rc;
    char text[80];
    uint8_t *copy = malloc(n + 1);

    memcpy(copy, bytes, n);
    if (is_png)
        mend_png(copy, n);
    rc = mp_picture_decode(&p, copy, n, err);
    if (!rc)
        mp_picture_free(&p);
    if (is_png) {
        const char *path = file_of(copy, n);

        if (!mp_map_read(&map, &w, &h, &bits, path, &other))
            free(map);
        mp_png_text(text, sizeof text, path, "mpipe", &other);
    }
    free(copy);
    return rc;
}

static int read_npy(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    int32_t w, h;
    float *all;
    int rc = mp_npy_read(&all, &w, &h, file_of(bytes, n), err);

    if (!rc)
        free(all);
    return rc;
}

static int read_boxes(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    struct mp_boxes *b;
    struct mp_box *box;
    struct mp_error other = {0};
    int64_t id;
    size_t k;
    int rc = mp_boxes_open(&b, file_of(bytes, n), err);

    if (rc)
        return rc;
    if (!mp_boxes_of(b, "000000000785", &id, &box, &k, &other))
        free(box);
    mp_boxes_free(b);
    return 0;
}

static int read_classes(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    struct mp_classes *c;
    int rc = mp_classes_open(&c, file_of(bytes, n), err);

    if (!rc)
        mp_classes_free(c);
    return rc;
}

struct values {
    int32_t number, is, one_of;
    double part;
    const char *text;
};

static const struct mp_option rows[] = {
    {"number", MP_OPT_INT, offsetof(struct values, number), "1", 0, 100, NULL,
     "pixels", "A number"},
    {"is", MP_OPT_BOOL, offsetof(struct values, is), "no", 0, 0, NULL, NULL,
     "Yes or no"},
    {"one_of", MP_OPT_CHOICE, offsetof(struct values, one_of), "a", 0, 0,
     "a b cde", NULL, "One of some"},
    {"part", MP_OPT_FLOAT, offsetof(struct values, part), "0.5", 0, 1, NULL,
     NULL, "A part"},
    {"text", MP_OPT_STRING, offsetof(struct values, text), "", 0, 0, NULL, NULL,
     "A text"},
    {0}};

static int read_conf(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    struct mp_conf *c = mp_conf_new();
    struct values before, later;
    FILE *out;
    int rc = mp_conf_section(c, "before", rows, &before, err);

    if (!rc)
        rc = mp_conf_file(c, file_of(bytes, n), err);
    if (!rc)
        rc = mp_conf_section(c, "later", rows, &later, err);
    if (!rc)
        rc = mp_conf_finish(c, NULL, err);
    if (!rc && (out = fopen("/dev/null", "w"))) {
        mp_conf_dump(c, out);
        fclose(out);
    }
    mp_conf_free(c);
    return rc;
}

/* Its first two bytes say how much of it is JSON. */
static int read_request(const uint8_t *bytes, size_t n, struct mp_error *err)
{
    static const struct mp_ask_most most = {.json = 1 << 16, .pictures = 8};
    int64_t head = n < 2 ? -1 : bytes[0] | bytes[1] << 8;
    size_t skip = n < 2 ? n : 2;
    struct mp_ask a;
    int rc = mp_ask_begin(&a, err);

    if (!rc)
        rc = mp_ask_parse(&a, bytes + skip, n - skip,
                          head == 0xffff ? -1 : head, &most, err);
    if (!rc)
        rc = mp_ask_check(&a, err);
    mp_ask_free(&a);
    return rc;
}

static const struct {
    const char *name;
    int (*read)(const uint8_t *bytes, size_t n, struct mp_error *err);
} reader[] = {{"weights", read_weights}, {"picture", read_picture},
              {"npy", read_npy},         {"boxes", read_boxes},
              {"classes", read_classes}, {"conf", read_conf},
              {"request", read_request}};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    const char *name = getenv("MPIPE_FUZZ");
    struct mp_error err = {0};

    for (size_t i = 0; name && i < sizeof reader / sizeof *reader; i++) {
        int rc;

        if (strcmp(name, reader[i].name))
            continue;
        rc = reader[i].read(bytes, n, &err);
        if (rc && !err.text[0])
            abort();
        return 0;
    }
    fprintf(stderr, "MPIPE_FUZZ: no such reader\n");
    exit(2);
}
