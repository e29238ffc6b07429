/* SPDX-License-Identifier: MIT */
#include "image.h"
#include "golden.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char folder[256];

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(folder, sizeof(folder), "%s/test_image.XXXXXX",
             tmp && *tmp ? tmp : "/tmp");
    ck_assert(mkdtemp(folder) != NULL);
}

static void empty(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *e;
    char name[PATH_MAX];

    while (d && (e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        if (unlink(name) != 0)
            empty(name);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

static void teardown(void)
{
    empty(folder);
}

/* Entries of the folder, those whose name begins with a dot too. */
static int entries(void)
{
    DIR *d = opendir(folder);
    int n = 0;

    ck_assert(d != NULL);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static const char *in_folder(const char *name)
{
    static char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

struct bytes {
    uint8_t *p;
    size_t n;
};

static struct bytes slurp(const char *path)
{
    struct bytes b = {malloc(1 << 20), 0};
    FILE *f = fopen(path, "rb");

    ck_assert_msg(f != NULL, "no %s", path);
    b.n = fread(b.p, 1, 1 << 20, f);
    ck_assert(b.n < 1 << 20);
    fclose(f);
    return b;
}

static const char *awkward(const char *name)
{
    return golden_path("../data/awkward/%s", name);
}

/* A copy of exactly n bytes is decoded, for the address sanitizer. */
static int decode(struct mp_picture *p, const void *bytes, size_t n,
                  struct mp_error *err)
{
    void *copy = malloc(n ? n : 1);
    int rc;

    memcpy(copy, bytes, n);
    *err = (struct mp_error){0};
    rc = mp_picture_decode(p, copy, n, err);
    free(copy);
    if (rc == 0)
        ck_assert(p->width > 0 && p->height > 0 && p->rgb && !err->text[0]);
    else
        ck_assert((rc == MP_EFORMAT || rc == MP_ENOTSUP) && !p->rgb &&
                  err->code == rc && err->text[0]);
    return rc;
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t table[256], crc = ~0u;

    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
    }
    for (size_t i = 0; i < n; i++)
        crc = crc >> 8 ^ table[(crc ^ p[i]) & 255];
    return ~crc;
}

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/*
 * What OpenCV makes of them
 */

static void check_colors(const char *path, json_t *want)
{
    json_t *hw = json_object_get(want, "hw");
    struct mp_error err = {0};
    struct mp_picture p;

    ck_assert_msg(mp_picture_read(&p, path, &err) == 0, "%s: %s", path,
                  err.text);
    ck_assert_int_eq(p.height, json_integer_value(json_array_get(hw, 0)));
    ck_assert_int_eq(p.width, json_integer_value(json_array_get(hw, 1)));
    ck_assert_msg(crc32_of(p.rgb, (size_t)p.width * (size_t)p.height * 3) ==
                      json_integer_value(json_object_get(want, "crc32_rgb")),
                  "%s: other colours", path);
    mp_picture_free(&p);
    ck_assert(p.rgb == NULL);
}

static void check_map(const char *path, json_t *crc, int wide)
{
    struct mp_error err = {0};
    int32_t w, h;
    uint16_t *map;
    uint8_t *bytes;
    size_t n;
    int bits, beyond = 0;

    ck_assert_msg(mp_map_read(&map, &w, &h, &bits, path, &err) == 0, "%s: %s",
                  path, err.text);
    ck_assert((bits == 16) == wide);
    n = (size_t)w * (size_t)h;
    bytes = malloc(2 * n);
    for (size_t i = 0; i < n; i++) {
        beyond |= map[i] >> bits;
        bytes[wide ? 2 * i : i] = (uint8_t)(wide ? map[i] >> 8 : map[i]);
        if (wide)
            bytes[2 * i + 1] = (uint8_t)map[i];
    }
    ck_assert_msg(!beyond, "%s: more than %d bits", path, bits);
    ck_assert_msg(crc32_of(bytes, wide ? 2 * n : n) == json_integer_value(crc),
                  "%s: other values", path);
    free(bytes);
    free(map);
}

static void check_refused(const char *path)
{
    struct mp_error err = {0};
    struct mp_picture p;
    int rc = mp_picture_read(&p, path, &err);

    ck_assert_msg(rc < 0 && err.code == rc && err.text[0], "%s: %d %s", path,
                  rc, err.text);
    ck_assert(p.rgb == NULL);
}

/* "error ..." and "ok or ..." leave a choice: we refuse what is damaged, and
 * do not support CMYK and formats that are neither PNG nor JPEG. */
static int refused(const char *file, const char *verdict)
{
    static const char *const ours[] = {
        "cmyk_adobe.jpg", "cmyk_ycck_420.jpg", "bmp.bmp",
        "ppm.ppm",        "no_iend.png",
    };

    for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
        if (strcmp(file, ours[i]) == 0)
            return 1;
    return strncmp(verdict, "ok", 2) != 0;
}

static void check_verdict(const char *path, const char *file, json_t *c)
{
    json_t *opencv = json_object_get(c, "opencv");
    json_t *map = json_object_get(c, "map");

    if (refused(file, json_string_value(json_object_get(c, "verdict"))))
        check_refused(path);
    else
        check_colors(path, opencv ? opencv : c);
    if (map)
        check_map(path, json_object_get(map, "crc32"),
                  json_is_true(json_object_get(map, "wide")));
}

START_TEST(verdicts)
{
    json_t *json = golden_json(golden_path("image_decode.json")), *c;
    size_t i;

    json_array_foreach(json_object_get(json, "cases"), i, c)
    {
        const char *file = json_string_value(json_object_get(c, "file"));

        check_verdict(awkward(file), file, c);
    }
    ck_assert_uint_eq(i, 54);
    json_decref(json);
}
END_TEST

/* Five of them are not there: names that some file systems refuse, which
 * the test `names` makes itself. */
START_TEST(verdicts_complete)
{
    json_t *json, *c;
    size_t i, n = 0;

    if (!shared_path(".")) {
        puts("SKIPPED: all of image_decode wants MPIPE_SHARED");
        return;
    }
    json = golden_json(shared_path("protocol/golden/image_decode.json"));
    ck_assert(json != NULL);
    json_array_foreach(json_object_get(json, "cases"), i, c)
    {
        const char *file = json_string_value(json_object_get(c, "file"));
        const char *path = shared_path("protocol/samples/awkward/%s", file);

        if (access(path, R_OK) == 0) {
            check_verdict(path, file, c);
            n++;
        }
    }
    ck_assert_uint_eq(i, 89);
    ck_assert_uint_eq(n, 84);
    json_decref(json);
}
END_TEST

START_TEST(photos_complete)
{
    json_t *json, *c, *map;
    size_t i;

    if (!shared_path(".")) {
        puts("SKIPPED: photos_complete wants MPIPE_SHARED");
        return;
    }
    json = golden_json(shared_path("protocol/samples/expected.json"));
    ck_assert(json != NULL);
    json_array_foreach(json_object_get(json, "images"), i, c)
    {
        const char *path =
            shared_path("protocol/samples/%s",
                        json_string_value(json_object_get(c, "file")));

        check_colors(path, c);
        map = json_object_get(c, "palette_indices");
        if (map)
            check_map(path, json_object_get(map, "crc32"), 0);
        map = json_object_get(c, "single_channel");
        if (map)
            check_map(path, json_object_get(map, "crc32_native"),
                      strstr(path, "depth") != NULL);
    }
    ck_assert_uint_eq(i, 32);
    json_decref(json);
}
END_TEST

START_TEST(names)
{
    static const char *const name[] = {
        "%s%n%d.png",
        "-leading-dash.png",
        "a;b&c$(d)`e`.png",
        "h\xc3\xb6he_\xe6\xb7\xb1\xe5\xba\xa6_\xf0\x9f\x98\x80.png",
        "line\nbreak.png",
        "not utf-8 \xff\xfe.png",
        "no suffix",
        "x.JPG",
    };
    struct bytes b = slurp(awkward("rgb8_all_filters.png"));
    struct mp_picture p;

    ck_assert_int_eq(mp_file_write(in_folder(name[_i]), b.p, b.n, NULL), 0);
    ck_assert_int_eq(mp_picture_read(&p, in_folder(name[_i]), NULL), 0);
    ck_assert_uint_eq(crc32_of(p.rgb, 64 * 44 * 3), 75871293);
    mp_picture_free(&p);
    free(b.p);
}
END_TEST

/*
 * Not pictures at all
 */

START_TEST(special_files)
{
    struct mp_error err;
    struct mp_picture p;
    char longest[5000];
    const char *path = in_folder("x.png");
    int fd;

    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    check_refused(longest);
    check_refused(path); /* not there */
    check_refused("");
    check_refused("/dev/zero");
    check_refused("/dev/null");
    check_refused(folder);
    ck_assert_int_eq(symlink("nowhere", path), 0);
    check_refused(path);
    unlink(path);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    check_refused(path); /* at once: the test has a time limit */
    unlink(path);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    ck_assert_int_eq(ftruncate(fd, ((off_t)1 << 30) + 1), 0);
    close(fd);
    ck_assert_int_eq(mp_picture_read(&p, path, &err), MP_EFORMAT);
    ck_assert_str_eq(err.text, "the file is larger than 1 GiB");
    if (geteuid() != 0) { /* who may read everything */
        chmod(path, 0);
        check_refused(path);
    }
}
END_TEST

START_TEST(maps_refused)
{
    static const char *const name[] = {
        "rgb8_all_filters.png",
        "gray_alpha.png",
        "small_420.jpg",
        "zero_bytes.png",
        "truncated.png",
        "bomb_60000x60000.png",
        "nothing",
        "short_idat_data.png",
    };
    struct mp_error err = {0};
    int32_t w, h;
    uint16_t *map;
    int bits, rc;

    rc = mp_map_read(&map, &w, &h, &bits, awkward(name[_i]), &err);
    ck_assert_msg(rc < 0 && err.code == rc && err.text[0] && !map, "%s",
                  name[_i]);
}
END_TEST

/*
 * Damage
 */

static const char *const whole[] = {
    "rgb8_all_filters.png", "small_420.jpg", "progressive.jpg",
    "interlaced_palette1.png", "arithmetic.jpg"};

START_TEST(truncated)
{
    struct bytes b = slurp(awkward(whole[_i]));
    struct mp_error err;
    struct mp_picture p;

    for (size_t k = 0; k < 100; k++)
        ck_assert_msg(decode(&p, b.p, b.n * k / 100, &err) < 0,
                      "%s is good at %zu %%", whole[_i], k);
    for (size_t k = 1; k < 20; k++)
        ck_assert_msg(decode(&p, b.p, b.n - k, &err) < 0,
                      "%s is good without the last %zu", whole[_i], k);
    ck_assert_int_eq(decode(&p, b.p, b.n, &err), 0);
    mp_picture_free(&p);
    free(b.p);
}
END_TEST

START_TEST(flipped)
{
    struct bytes b = slurp(awkward(whole[_i]));
    struct mp_error err;
    struct mp_picture p;
    uint32_t state = 1 + (uint32_t)_i;

    for (int k = 0; k < (b.n < 8000 ? 2000 : 200); k++) {
        uint8_t *copy = malloc(b.n);

        memcpy(copy, b.p, b.n);
        for (int flips = k % 4; flips >= 0; flips--) {
            state = state * 1664525 + 1013904223;
            copy[(state >> 8) % b.n] ^= (uint8_t)(1 << (state >> 5) % 8);
        }
        if (decode(&p, copy, b.n, &err) == 0)
            mp_picture_free(&p);
        free(copy);
    }
    free(b.p);
}
END_TEST

/* The head of a PNG of w x h colours, and nothing more. */
static size_t png_head(uint8_t *p, uint32_t w, uint32_t h)
{
    memcpy(p,
           "\x89PNG\r\n\x1a\n\0\0\0\rIHDR--------\x8\2\0\0\0----\0\0\0\0"
           "IDAT\x35\xaf\x06\x1e",
           45);
    put_be32(p + 16, w);
    put_be32(p + 20, h);
    put_be32(p + 29, crc32_of(p + 12, 17));
    return 45;
}

START_TEST(claims)
{
    static const uint32_t size[][2] = {{65535, 65535},
                                       {0x7fffffff, 1},
                                       {1, 0x7fffffff},
                                       {16384, 16385},
                                       {0x10000001, 1}};
    const uint32_t *wh = size[_i];
    struct rusage before, after;
    struct mp_error err;
    struct mp_picture p;
    uint8_t png[64];
    clock_t start;
    size_t n = png_head(png, wh[0], wh[1]);

    getrusage(RUSAGE_SELF, &before);
    start = clock();
    ck_assert_int_eq(decode(&p, png, n, &err), MP_EFORMAT);
    ck_assert_msg(strstr(err.text, "more than the limit") != NULL, "%s",
                  err.text);
    getrusage(RUSAGE_SELF, &after);
    ck_assert((double)(clock() - start) < CLOCKS_PER_SEC * 0.05 * slowness());
    ck_assert(after.ru_maxrss - before.ru_maxrss < 16 * 1024); /* KiB */

    /* as much as is allowed is tried, and found to be missing */
    n = png_head(png, 16384, 16384);
    ck_assert_int_eq(decode(&p, png, n, &err), MP_EFORMAT);
    ck_assert(strstr(err.text, "more than the limit") == NULL);
}
END_TEST

/* The last scan k times. */
static struct bytes with_scans(size_t k)
{
    struct bytes b = slurp(awkward("two_scans.jpg")), out;
    size_t from = b.n - 2, len;

    while (b.p[from] != 0xff || b.p[from + 1] != 0xda)
        from--;
    len = b.n - 2 - from;
    out.p = malloc(b.n + k * len);
    memcpy(out.p, b.p, from);
    out.n = from;
    for (size_t i = 0; i < k; i++, out.n += len)
        memcpy(out.p + out.n, b.p + from, len);
    memcpy(out.p + out.n, "\xff\xd9", 2);
    out.n += 2;
    free(b.p);
    return out;
}

START_TEST(scans)
{
    struct mp_error err;
    struct mp_picture p;
    struct bytes b = with_scans(50);

    ck_assert_int_eq(decode(&p, b.p, b.n, &err), 0);
    mp_picture_free(&p);
    free(b.p);
    b = with_scans(10000);
    ck_assert_int_eq(decode(&p, b.p, b.n, &err), MP_EFORMAT);
    ck_assert_str_eq(err.text, "JPEG: more than 100 scans");
    free(b.p);
}
END_TEST

/*
 * Orientation
 */

static size_t exif(uint8_t *p, int big, uint32_t ifd, unsigned count,
                   unsigned value)
{
    static const uint8_t intel[26] = {'I', 'I',  '*', 0, 8, 0, 0, 0, 1,
                                      0,   0x12, 1,   3, 0, 1, 0, 0, 0};
    static const uint8_t motorola[26] = {'M', 'M', 0,    '*', 0, 0, 0, 8, 0,
                                         1,   1,   0x12, 0,   3, 0, 0, 0, 1};

    memcpy(p, big ? motorola : intel, 26);
    for (int i = 0; i < 4; i++)
        p[4 + (big ? 3 - i : i)] = (uint8_t)(ifd >> (8 * i));
    for (int i = 0; i < 2; i++) {
        p[8 + (big ? 1 - i : i)] = (uint8_t)(count >> (8 * i));
        p[18 + (big ? 1 - i : i)] = (uint8_t)(value >> (8 * i));
    }
    return 26;
}

static struct bytes jpeg_with(const uint8_t *block, size_t n)
{
    struct bytes b = slurp(awkward("small_444.jpg"));
    uint8_t head[10] = {
        0xff, 0xe1, (uint8_t)((n + 8) >> 8), (uint8_t)((n + 8) & 255), 'E', 'x',
        'i',  'f'};

    memmove(b.p + 2 + 10 + n, b.p + 2, b.n - 2);
    memcpy(b.p + 2, head, 10);
    memcpy(b.p + 12, block, n);
    b.n += 10 + n;
    return b;
}

/* after: behind the pixels, where the standard allows it too */
static struct bytes png_with(const uint8_t *block, size_t n, int after)
{
    struct bytes b = slurp(awkward("rgb8_all_filters.png"));
    size_t at = after ? b.n - 12 : 33;
    uint8_t *p = b.p + at;

    memmove(p + 12 + n, p, b.n - at);
    put_be32(p, (uint32_t)n);
    memcpy(p + 4, "eXIf", 4);
    memcpy(p + 8, block, n);
    put_be32(p + 8 + n, crc32_of(p + 4, 4 + n));
    b.n += 12 + n;
    return b;
}

/* (x, y) of a picture turned by orientation o is that of the w x h upright
 * one, in the words of the standard: where row 0 and column 0 lie. */
static void source(int o, int w, int h, int x, int y, int *sx, int *sy)
{
    int row = o >= 5 ? x : y, column = o >= 5 ? y : x;

    *sx = o == 2 || o == 3 || o == 7 || o == 8 ? w - 1 - column : column;
    *sy = o == 3 || o == 4 || o == 6 || o == 7 ? h - 1 - row : row;
}

static void check_turned(const struct bytes *b, int o)
{
    struct mp_picture p, up;
    struct mp_error err;
    int sx, sy, wrong = 0;

    ck_assert_msg(decode(&p, b->p, b->n, &err) == 0, "%s", err.text);
    ck_assert_int_eq(
        mp_picture_read(
            &up,
            awkward(b->p[0] == 0xff ? "small_444.jpg" : "rgb8_all_filters.png"),
            NULL),
        0);
    ck_assert_int_eq(p.width, o >= 5 ? up.height : up.width);
    ck_assert_int_eq(p.height, o >= 5 ? up.width : up.height);
    for (int y = 0; y < p.height; y++)
        for (int x = 0; x < p.width; x++) {
            source(o, up.width, up.height, x, y, &sx, &sy);
            wrong += memcmp(p.rgb + 3 * (y * p.width + x),
                            up.rgb + 3 * (sy * up.width + sx), 3) != 0;
        }
    ck_assert_int_eq(wrong, 0);
    mp_picture_free(&up);
    mp_picture_free(&p);
}

START_TEST(orientations)
{
    uint8_t block[26];

    for (unsigned o = 0; o < 10; o++) {
        size_t n = exif(block, _i, 8, 1, o);
        int want = o >= 1 && o <= 8 ? (int)o : 1;
        struct bytes b[3] = {jpeg_with(block, n), png_with(block, n, 0),
                             png_with(block, n, 1)};

        for (int k = 0; k < 3; k++) {
            check_turned(&b[k], want);
            free(b[k].p);
        }
    }
}
END_TEST

START_TEST(bad_exif)
{
    static const struct {
        uint32_t ifd;
        unsigned count;
        size_t cut;
        int want;
    } row[] = {
        {8, 65535, 0, 6},      {8, 0, 0, 1},          {0, 1, 0, 1},
        {7, 1, 0, 1},          {26, 1, 0, 1},         {25, 1, 0, 1},
        {24, 65535, 0, 1},     {0xffffffff, 1, 0, 1}, {0xfffffffe, 1, 0, 1},
        {8, 1, 22, 6},         {8, 1, 21, 1},         {8, 1, 9, 1},
        {8, 1, 8, 1},          {8, 1, 7, 1},          {8, 1, 1, 1},
        {0x80000000, 1, 0, 1},
    };

    for (size_t i = 0; i < sizeof(row) / sizeof(*row); i++) {
        uint8_t block[26];
        size_t n = exif(block, _i, row[i].ifd, row[i].count, 6);
        struct bytes b = jpeg_with(block, row[i].cut ? row[i].cut : n);

        check_turned(&b, row[i].want);
        free(b.p);
    }
}
END_TEST

/*
 * Writing
 */

static void fill(void *p, size_t n)
{
    uint32_t state = 5;

    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)((state = state * 1664525 + 7) >> 24);
}

START_TEST(png_round_trip)
{
    enum { W = 37, H = 21 };
    int channels = _i & 1 ? 3 : 1, bits = _i & 2 ? 16 : 8;
    uint16_t px[W * H * 3];
    uint8_t *byte = (uint8_t *)px;
    struct mp_png png = {W, H, channels, bits, px, NULL, 0, NULL, 0};
    struct mp_error err = {0};
    struct mp_picture p;
    uint16_t *map;
    int32_t w, h;
    int got, wrong = 0;

    fill(px, sizeof(px));
    ck_assert_msg(mp_png_write(in_folder("a.png"), &png, &err) == 0, "%s",
                  err.text);
    ck_assert_int_eq(mp_picture_read(&p, in_folder("a.png"), NULL), 0);
    ck_assert(p.width == W && p.height == H);
    for (int i = 0; i < W * H * 3; i++) {
        int k = channels == 3 ? i : i / 3;

        wrong += p.rgb[i] != (bits == 16 ? px[k] >> 8 : byte[k]);
    }
    ck_assert_int_eq(wrong, 0);
    mp_picture_free(&p);
    if (channels == 1) {
        ck_assert_int_eq(
            mp_map_read(&map, &w, &h, &got, in_folder("a.png"), NULL), 0);
        ck_assert(w == W && h == H && got == bits);
        for (int i = 0; i < W * H; i++)
            wrong += map[i] != (bits == 16 ? px[i] : byte[i]);
        ck_assert_int_eq(wrong, 0);
        free(map);
    }
    ck_assert_int_eq(entries(), 1);
}
END_TEST

START_TEST(png_palette_text)
{
    static const uint8_t px[6] = {0, 1, 2, 2, 1, 0};
    static const uint8_t palette[9] = {9, 8, 7, 255, 0, 1, 30, 40, 50};
    static const struct mp_png_text text[] = {{"Software", "mpipe"},
                                              {"depth_scale", "1000"}};
    struct mp_png png = {3, 2, 1, 8, px, palette, 3, text, 2};
    struct mp_error err = {0};
    struct mp_picture p;
    struct bytes a, b;

    ck_assert_int_eq(mp_png_write(in_folder("a.png"), &png, NULL), 0);
    ck_assert_int_eq(mp_png_write(in_folder("b.png"), &png, NULL), 0);
    a = slurp(in_folder("a.png"));
    b = slurp(in_folder("b.png"));
    ck_assert(a.n == b.n && memcmp(a.p, b.p, a.n) == 0);
    ck_assert(memmem(a.p, a.n,
                     "tEXtdepth_scale\0"
                     "1000",
                     20) != NULL);
    ck_assert(memmem(a.p, a.n, "tEXtSoftware\0mpipe", 18) != NULL);
    ck_assert_int_eq(mp_picture_read(&p, in_folder("a.png"), NULL), 0);
    for (int i = 0; i < 6; i++)
        ck_assert(memcmp(p.rgb + 3 * i, palette + 3 * px[i], 3) == 0);
    mp_picture_free(&p);

    png.ncolor = 2;
    ck_assert_int_eq(mp_png_write(in_folder("a.png"), &png, &err), MP_EINVAL);
    ck_assert_str_eq(err.text, "index 2 in a palette of 2");
    free(b.p);
    b = slurp(in_folder("a.png"));
    ck_assert(a.n == b.n && memcmp(a.p, b.p, a.n) == 0);
    ck_assert_int_eq(entries(), 2);
    free(a.p);
    free(b.p);
}
END_TEST

START_TEST(png_refused)
{
    static const uint8_t px[64];
    static const struct mp_png_text empty_key = {"", "x"};
    static const struct mp_png wrong[] = {
        {0, 1, 1, 8, px, NULL, 0, NULL, 0},
        {1, -1, 1, 8, px, NULL, 0, NULL, 0},
        {1, 1, 2, 8, px, NULL, 0, NULL, 0},
        {1, 1, 1, 32, px, NULL, 0, NULL, 0},
        {1, 1, 3, 8, px, px, 1, NULL, 0},
        {1, 1, 1, 16, px, px, 1, NULL, 0},
        {1, 1, 1, 8, px, px, 0, NULL, 0},
        {1, 1, 1, 8, px, px, 257, NULL, 0},
        {1, 1, 1, 8, px, NULL, 0, &empty_key, 1},
    };
    struct mp_error err = {0};
    int rc = mp_png_write(in_folder("a.png"), &wrong[_i], &err);

    ck_assert_msg(rc < 0 && err.code == rc && err.text[0], "%d", rc);
    ck_assert_int_eq(entries(), 0);
}
END_TEST

/* The depth pictures of the published code. */
START_TEST(png16)
{
    static const char *const id[] = {"nyu", "kitti"};
    struct golden *g = golden_open(golden_path("png16.safetensors"));
    const struct golden_tensor *want;
    struct mp_png png = {.channels = 1, .bits = 16};
    char name[32];
    uint16_t *map;
    int32_t w, h;
    int bits;

    ck_assert(g != NULL);
    snprintf(name, sizeof(name), "%s.u16", id[_i]);
    want = golden_get(g, name);
    png.px = want->data;
    png.height = (int32_t)want->dim[0];
    png.width = (int32_t)want->dim[1];
    ck_assert_int_eq(mp_png_write(in_folder("a.png"), &png, NULL), 0);
    for (int ours = 0; ours < 2; ours++) {
        ck_assert_int_eq(mp_map_read(&map, &w, &h, &bits,
                                     ours ? in_folder("a.png")
                                          : golden_path("png16_%s.png", id[_i]),
                                     NULL),
                         0);
        ck_assert(w == png.width && h == png.height && bits == 16);
        ck_assert(memcmp(map, want->data, want->count * 2) == 0);
        free(map);
    }
    golden_free(g);
}
END_TEST

START_TEST(npy)
{
    static const int64_t dim[] = {2, 3, 1};
    static const struct {
        enum mp_dtype type;
        int ndim;
        const char *head;
        size_t bytes;
    } row[] = {
        {MP_F32, 3,
         "{'descr': '<f4', 'fortran_order': False, 'shape': "
         "(2, 3, 1), }",
         24},
        {MP_U8, 1, "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }",
         2},
        {MP_U16, 2,
         "{'descr': '<u2', 'fortran_order': False, 'shape': "
         "(2, 3), }",
         12},
        {MP_I32, 0, "{'descr': '<i4', 'fortran_order': False, 'shape': (), }",
         4},
    };
    struct mp_error err = {0};
    uint8_t data[24];
    struct bytes b;
    size_t head;

    fill(data, sizeof(data));
    ck_assert_msg(mp_npy_write(in_folder("a.npy"), row[_i].type, row[_i].ndim,
                               dim, data, &err) == 0,
                  "%s", err.text);
    b = slurp(in_folder("a.npy"));
    ck_assert(memcmp(b.p, "\x93NUMPY\1\0", 8) == 0);
    head = 10 + b.p[8] + 256u * b.p[9];
    ck_assert(head % 64 == 0 && b.p[head - 1] == '\n');
    ck_assert(memcmp(b.p + 10, row[_i].head, strlen(row[_i].head)) == 0);
    for (size_t i = 10 + strlen(row[_i].head); i < head - 1; i++)
        ck_assert_int_eq(b.p[i], ' ');
    ck_assert_uint_eq(b.n, head + row[_i].bytes);
    ck_assert(memcmp(b.p + head, data, row[_i].bytes) == 0);
    ck_assert_int_eq(entries(), 1);
    free(b.p);
}
END_TEST

START_TEST(npy_limits)
{
    int64_t dim[9] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX,
                      INT64_MAX, INT64_MAX, 0,         0};
    const char *path = in_folder("a.npy");
    struct bytes b;

    ck_assert_int_eq(mp_npy_write(path, MP_F32, 8, dim, NULL, NULL), MP_EINVAL);
    ck_assert_int_eq(mp_npy_write(path, MP_F32, 9, dim, NULL, NULL), MP_EINVAL);
    ck_assert_int_eq(mp_npy_write(path, MP_F64, 0, dim, NULL, NULL), MP_EINVAL);
    dim[0] = -1;
    ck_assert_int_eq(mp_npy_write(path, MP_F32, 1, dim, NULL, NULL), MP_EINVAL);
    ck_assert_int_eq(entries(), 0);
    dim[0] = 0;
    dim[1] = INT64_MAX; /* nothing, however large */
    ck_assert_int_eq(mp_npy_write(path, MP_F32, 7, dim, "", NULL), 0);
    b = slurp(path);
    ck_assert_uint_eq(b.n % 64, 0);
    free(b.p);
}
END_TEST

/* A dictionary in a file of this version with `data` bytes behind it: floats 0,
 * 1, 2 .. in this byte order. */
static void put_npy(int version, const char *dictionary, size_t data, int big)
{
    FILE *f = fopen(in_folder("a.npy"), "wb");
    size_t n = strlen(dictionary);

    ck_assert_ptr_nonnull(f);
    fprintf(f, "\x93NUMPY%c%c%c%c", version, 0, (int)(n & 255), (int)(n >> 8));
    if (version > 1)
        fwrite("\0\0", 1, 2, f);
    fputs(dictionary, f);
    for (size_t i = 0; i < data; i++) {
        float v = (float)(i / 4);
        uint8_t b[4];

        memcpy(b, &v, 4);
        fputc(b[big ? 3 - i % 4 : i % 4], f);
    }
    ck_assert_int_eq(fclose(f), 0);
}

#define HEAD(type, order, shape)                                               \
    "{'descr': " type ", 'fortran_order': " order ", 'shape': " shape ", }\n"

START_TEST(npy_read)
{
    static const struct {
        int version, big;
        const char *head;
    } row[] = {
        {1, 0, HEAD("'<f4'", "False", "(2, 3)")},
        {1, 1, HEAD("'>f4'", "False", "(2, 3)")},
        {2, 0, HEAD("'<f4'", "False", "(2,3)")},
        {3, 0, "{'shape':(2, 3),'fortran_order':False,'descr':'<f4'}"},
    };
    struct mp_error err = {0};
    float *v;
    int32_t w, h;

    put_npy(row[_i].version, row[_i].head, 24, row[_i].big);
    ck_assert_msg(mp_npy_read(&v, &w, &h, in_folder("a.npy"), &err) == 0, "%s",
                  err.text);
    ck_assert(w == 3 && h == 2);
    for (int i = 0; i < 6; i++)
        ck_assert_float_eq(v[i], (float)i);
    free(v);
}
END_TEST

static const struct {
    const char *head;
    size_t data;
    const char *error;
} bad_npy[] = {
    {HEAD("'<f8'", "False", "(2, 3)"), 48, "float32 ('<f4'), not '<f8'"},
    {HEAD("[('a', '<f4')]", "False", "(2, 3)"), 24, "must be float32"},
    {HEAD("'<f4'", "True", "(2, 3)"), 24, "C order"},
    {HEAD("'<f4'", "False", "(6,)"), 24, "(height, width), not (6,)"},
    {HEAD("'<f4'", "False", "(1, 2, 3)"), 24, "not (1, 2, 3)"},
    {HEAD("'<f4'", "False", "(0, 3)"), 0, "(height, width)"},
    {HEAD("'<f4'", "False", "(-2, -3)"), 24, "(height, width)"},
    {HEAD("'<f4'", "False", "(99999999999, 3)"), 24, "(height, width)"},
    {HEAD("'<f4'", "False", "(999999999, 999999999)"), 24, "(height, width)"},
    {HEAD("'<f4'", "False", "(2, 3"), 24, "(height, width)"},
    {HEAD("'<f4'", "False", "(2, 3)"), 23, "23 bytes of data, not the 24"},
    {HEAD("'<f4'", "False", "(2, 3)"), 25, "25 bytes of data, not the 24"},
    {"{}", 24, "must be float32"},
    {"", 24, "must be float32"},
};

START_TEST(npy_refused)
{
    struct mp_error err = {0};
    float *v;
    int32_t w, h;

    put_npy(1, bad_npy[_i].head, bad_npy[_i].data, 0);
    ck_assert_int_eq(mp_npy_read(&v, &w, &h, in_folder("a.npy"), &err),
                     MP_EFORMAT);
    ck_assert_ptr_null(v);
    ck_assert_msg(strstr(err.text, bad_npy[_i].error) != NULL, "%s", err.text);
}
END_TEST

/* Every length of a file that is cut off, and every version. */
START_TEST(npy_cut)
{
    struct mp_error err = {0};
    struct bytes b;
    float *v;
    int32_t w, h;

    put_npy(1, HEAD("'<f4'", "False", "(2, 3)"), 24, 0);
    b = slurp(in_folder("a.npy"));
    for (size_t n = 0; n < b.n; n++) {
        ck_assert_int_eq(mp_file_write(in_folder("a.npy"), b.p, n, &err), 0);
        ck_assert_int_eq(mp_npy_read(&v, &w, &h, in_folder("a.npy"), &err),
                         MP_EFORMAT);
    }
    b.p[6] = 4;
    ck_assert_int_eq(mp_file_write(in_folder("a.npy"), b.p, b.n, &err), 0);
    ck_assert_int_eq(mp_npy_read(&v, &w, &h, in_folder("a.npy"), &err),
                     MP_EFORMAT);
    free(b.p);
    ck_assert_int_eq(mp_npy_read(&v, &w, &h, in_folder("none"), &err), MP_EIO);
}
END_TEST

START_TEST(png_text)
{
    static const uint8_t px[] = {7};
    static const struct mp_png_text text[] = {{"Comment", "c"},
                                              {"depth_scale", "256"}};
    struct mp_png png = {.width = 1,
                         .height = 1,
                         .channels = 1,
                         .bits = 8,
                         .px = px,
                         .text = text,
                         .ntext = 2};
    struct mp_error err = {0};
    char value[4];
    struct bytes b;

    ck_assert_int_eq(mp_png_write(in_folder("a.png"), &png, NULL), 0);
    ck_assert_int_eq(
        mp_png_text(value, 4, in_folder("a.png"), "depth_scale", &err), 1);
    ck_assert_str_eq(value, "256");
    ck_assert_int_eq(
        mp_png_text(value, 3, in_folder("a.png"), "depth_scale", &err), 0);
    ck_assert_int_eq(mp_png_text(value, 4, in_folder("a.png"), "depth", &err),
                     0);
    b = slurp(in_folder("a.png"));
    for (size_t n = 0; n < b.n; n++) {
        ck_assert_int_eq(mp_file_write(in_folder("b.png"), b.p, n, &err), 0);
        ck_assert_int_ge(
            mp_png_text(value, 4, in_folder("b.png"), "depth_scale", &err), 0);
    }
    free(b.p);
    ck_assert_int_eq(
        mp_png_text(value, 4, in_folder("none"), "depth_scale", &err), MP_EIO);
}
END_TEST

START_TEST(files)
{
    struct mp_error err = {0};
    char name[256];
    struct bytes b;

    /* as long as a name can be, and two bytes at a time */
    for (int i = 0; i < 254; i += 2)
        memcpy(name + i, "\xc3\xb6", 2);
    memcpy(name + 254, "x", 2);
    for (int turn = 0; turn < 2; turn++) {
        ck_assert_msg(mp_file_write(in_folder(name), "hello", 5, &err) == 0,
                      "%s", err.text);
        b = slurp(in_folder(name));
        ck_assert(b.n == 5 && memcmp(b.p, "hello", 5) == 0);
        free(b.p);
    }
    ck_assert_int_eq(entries(), 1);
    ck_assert_int_eq(mp_file_write(in_folder("no/x"), "", 0, &err), MP_EIO);
    ck_assert(strstr(err.text, "no/x: No such file") != NULL);
    ck_assert_int_eq(mp_file_write(in_folder(""), "", 0, NULL), MP_EINVAL);
    ck_assert_int_eq(mp_file_write("", "", 0, NULL), MP_EINVAL);
    mkdir(in_folder("d"), 0700);
    ck_assert_int_eq(mp_file_write(in_folder("d"), "", 0, NULL), MP_EIO);
    ck_assert_int_eq(entries(), 2);
}
END_TEST

/* What was there before stays, and nothing else. */
START_TEST(disk_full)
{
    static uint8_t px[100000];
    struct rlimit old, small;
    struct mp_png png = {400, 250, 1, 8, px, NULL, 0, NULL, 0};
    int64_t dim = sizeof(px);
    struct mp_error err = {0};
    const char *path = in_folder("a");
    struct bytes b;

    fill(px, sizeof(px));
    ck_assert_int_eq(mp_file_write(path, "before", 6, NULL), 0);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 20000;
    setrlimit(RLIMIT_FSIZE, &small);
    ck_assert_int_eq(mp_file_write(path, px, sizeof(px), NULL), MP_EIO);
    ck_assert_int_eq(mp_npy_write(path, MP_U8, 1, &dim, px, NULL), MP_EIO);
    ck_assert_int_eq(mp_png_write(path, &png, &err), MP_EIO);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_DFL);
    ck_assert_msg(strstr(err.text, "/a: File too large") != NULL, "%s",
                  err.text);
    b = slurp(path);
    ck_assert(b.n == 6 && memcmp(b.p, "before", 6) == 0);
    free(b.p);
    ck_assert_int_eq(entries(), 1);
}
END_TEST

START_TEST(parents)
{
    char path[PATH_MAX];
    struct mp_error err = {0};

    snprintf(path, sizeof(path), "%s", in_folder("a/b//c/x.png"));
    for (int turn = 0; turn < 2; turn++) {
        ck_assert_msg(mp_file_parents(path, &err) == 0, "%s", err.text);
        ck_assert_int_eq(mp_file_write(path, "", 0, NULL), 0);
    }
    ck_assert_int_eq(mp_file_parents("x.png", NULL), 0);
    ck_assert_int_eq(mp_file_parents("/x.png", NULL), 0);
    ck_assert_int_eq(mp_file_parents("", NULL), 0);
    strcat(path, "/below/x.png");
    ck_assert_int_eq(mp_file_parents(path, &err), MP_EIO);
    ck_assert(strstr(err.text, "x.png: Not a directory") != NULL);
    ck_assert_int_eq(mp_file_parents("/proc/nothing/x", &err), MP_EIO);
    ck_assert_int_eq(entries(), 1);
}
END_TEST

START_TEST(rainbow)
{
    json_t *json = golden_json(golden_path("colormap_rainbow.json"));
    json_t *rgb = json_object_get(json, "rgb");

    ck_assert_uint_eq(json_array_size(rgb), 256);
    for (size_t i = 0; i < 256; i++)
        for (size_t c = 0; c < 3; c++)
            ck_assert_int_eq(
                mp_rainbow[i][c],
                json_integer_value(json_array_get(json_array_get(rgb, i), c)));
    json_decref(json);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("image");
    TCase *read = tcase_create("read"), *write = tcase_create("write");

    tcase_add_checked_fixture(read, setup, teardown);
    tcase_add_test(read, verdicts);
    tcase_add_test(read, verdicts_complete);
    tcase_add_test(read, photos_complete);
    tcase_add_loop_test(read, names, 0, 8);
    tcase_add_test(read, special_files);
    tcase_add_loop_test(read, maps_refused, 0, 8);
    tcase_add_loop_test(read, truncated, 0, 5);
    tcase_add_loop_test(read, flipped, 0, 5);
    tcase_add_loop_test(read, claims, 0, 5);
    tcase_add_test(read, scans);
    tcase_add_loop_test(read, orientations, 0, 2);
    tcase_add_loop_test(read, bad_exif, 0, 2);
    tcase_set_timeout(read, 60);
    suite_add_tcase(s, read);

    tcase_add_checked_fixture(write, setup, teardown);
    tcase_add_loop_test(write, png_round_trip, 0, 4);
    tcase_add_test(write, png_palette_text);
    tcase_add_loop_test(write, png_refused, 0, 9);
    tcase_add_loop_test(write, png16, 0, 2);
    tcase_add_loop_test(write, npy, 0, 4);
    tcase_add_test(write, npy_limits);
    tcase_add_loop_test(write, npy_read, 0, 4);
    tcase_add_loop_test(write, npy_refused, 0,
                        sizeof(bad_npy) / sizeof(*bad_npy));
    tcase_add_test(write, npy_cut);
    tcase_add_test(write, png_text);
    tcase_add_test(write, files);
    tcase_add_test(write, disk_full);
    tcase_add_test(write, parents);
    tcase_add_test(write, rainbow);
    suite_add_tcase(s, write);
    return s;
}

int main(void)
{
    SRunner *r = srunner_create(suite());
    int bad;

    srunner_run_all(r, CK_ENV);
    bad = srunner_ntests_failed(r);
    srunner_free(r);
    return bad != 0;
}
