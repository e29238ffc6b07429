/* SPDX-License-Identifier: MIT */
/*
 * weights_torch.c - PyTorch files: the zip container, the legacy container,
 * and the way from the pickled object to the state dict.
 *
 * Both containers come down to a table of storages (key, bytes) and one
 * pickled value. Only storages of tensors in the state dict are looked up, so
 * that optimizer state costs nothing.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights_impl.h"

#define MAX_NAME  1024
#define MAX_DEPTH 64 /* of containers inside the state dict */

enum { COLLECTED = 1, NOTED = 2 }; /* mp_val.seen */

struct blob { /* a storage, or any entry of the zip file */
    const uint8_t *name, *data;
    size_t len, size; /* of name, of data */
    uint32_t crc;     /* of data, as the zip file says; 0: not computed */
};

struct torch_file {
    struct mp_weights *w;
    struct mp_pickle *pickle;
    struct blob *blob; /* storages by key, sorted */
    size_t blobs;
    struct mp_error *err;
    char name[MAX_NAME]; /* of what is being collected */
};

/* The length of something of the file, for "%.*s" in an error text. */
static int clip(size_t n)
{
    return n > 150 ? 150 : (int)n;
}

static int by_key(const void *a, const void *b)
{
    const struct blob *x = a, *y = b;
    int c = memcmp(x->name, y->name, x->len < y->len ? x->len : y->len);

    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static struct blob *find_blob(struct blob *b, size_t n, const void *name,
                              size_t len)
{
    const struct blob key = {.name = name, .len = len};

    return n ? bsearch(&key, b, n, sizeof *b, by_key) : NULL;
}

/* Sort; refuse two of one name. */
static int sort_blobs(struct blob *b, size_t n, struct mp_error *err)
{
    size_t k;

    if (n)
        qsort(b, n, sizeof *b, by_key);
    for (k = 1; k < n; k++)
        if (!by_key(&b[k - 1], &b[k]))
            return mp_fail(err, MP_EFORMAT, "two entries are named %.*s",
                           clip(b[k].len), (const char *)b[k].name);
    return 0;
}

/* ---- tensors ---- */

static enum mp_dtype dtype_of(const struct mp_val *class)
{
    static const struct {
        const char *storage, *name;
        enum mp_dtype dtype;
    } known[] = {{"FloatStorage", "float32", MP_F32},
                 {"HalfStorage", "float16", MP_F16},
                 {"BFloat16Storage", "bfloat16", MP_BF16},
                 {"DoubleStorage", "float64", MP_F64},
                 {"CharStorage", "int8", MP_I8},
                 {"ShortStorage", "int16", MP_I16},
                 {"IntStorage", "int32", MP_I32},
                 {"LongStorage", "int64", MP_I64},
                 {"ByteStorage", "uint8", MP_U8},
                 {"BoolStorage", "bool", MP_BOOL},
                 {"UInt16Storage", "uint16", MP_U16}};
    size_t k;

    if (class->kind == VAL_GLOBAL)
        for (k = 0; k < sizeof known / sizeof *known; k++)
            if (mp_val_is(class, known[k].storage) ||
                mp_val_is(class, known[k].name))
                return known[k].dtype;
    return MP_NONE;
}

static int sizes(int64_t *out, const struct mp_val *v)
{
    size_t k;

    if ((v->kind != VAL_TUPLE && v->kind != VAL_LIST) || v->n > MP_WEIGHT_RANK)
        return -1;
    for (k = 0; k < v->n; k++) {
        if (v->u.item[k]->kind != VAL_INT)
            return -1;
        out[k] = v->u.item[k]->u.i;
    }
    return (int)v->n;
}

/* The element type; *unit is that in which the storage's length is counted. */
static enum mp_dtype tensor_dtype(const struct mp_val *v, size_t *unit)
{
    const struct mp_val *class = v->u.item[0]->u.item[1];
    enum mp_dtype t;

    if (class->kind == VAL_GLOBAL && mp_val_is(class, "UntypedStorage")) {
        *unit = 1;
        return v->n > 6 ? dtype_of(v->u.item[6]) : MP_NONE;
    }
    t = dtype_of(class);
    *unit = mp_dtype_size(t);
    return t;
}

static const struct blob *storage_of(const struct torch_file *t,
                                     const struct mp_val *s)
{
    const struct mp_val *key = s->u.item[2];

    if (key->kind != VAL_STR)
        return NULL;
    return find_blob(t->blob, t->blobs, key->u.s, key->n);
}

static int add_tensor(struct torch_file *t, const struct mp_val *v, size_t len)
{
    struct mp_weight_info i = {0};
    const struct mp_val *s = v->u.item[0], *offset = v->u.item[1], *numel;
    const struct blob *b;
    int64_t extent, have;
    size_t unit, size;
    int nstride;

    if (s->kind != VAL_STORAGE)
        return mp_fail(t->err, MP_EFORMAT, "no storage");
    i.dtype = tensor_dtype(v, &unit);
    if (i.dtype == MP_NONE)
        return mp_fail(t->err, MP_ENOTSUP, "its element type is not supported");
    size = mp_dtype_size(i.dtype);
    i.ndim = sizes(i.dim, v->u.item[2]);
    nstride = sizes(i.stride, v->u.item[3]);
    if (i.ndim < 0 || nstride != i.ndim)
        return mp_fail(t->err, MP_EFORMAT, "wrong shape or strides");
    extent = mp_weights_measure(&i);
    if (extent < 0)
        return mp_fail(t->err, MP_EFORMAT, "the shape's product overflows");
    b = storage_of(t, s);
    if (!b)
        return mp_fail(t->err, MP_EFORMAT, "its storage is not in the file");
    numel = s->u.item[4];
    if (numel->kind != VAL_INT || numel->u.i < 0 ||
        (uint64_t)numel->u.i > b->size / unit)
        return mp_fail(t->err, MP_EFORMAT,
                       "its storage has fewer bytes than it claims");
    have = (int64_t)((uint64_t)numel->u.i * unit / size);
    if (offset->kind != VAL_INT || offset->u.i < 0 || offset->u.i > have ||
        extent > have - offset->u.i)
        return mp_fail(t->err, MP_EFORMAT, "it reaches beyond its storage");
    i.data = b->data + (size_t)offset->u.i * size;
    i.storage = (size_t)(b - t->blob);
    return mp_weights_add(t->w, &i, t->name, len, t->err);
}

/* ---- the state dict ---- */

/* "key" or ".key" behind the first len bytes of t->name; the new length, or 0
 * if it does not fit. Only strings and integers are keys. */
static size_t extend(struct torch_file *t, size_t len, const struct mp_val *key)
{
    size_t dot = len ? 1 : 0, n = key->n;
    char number[24];
    const void *text = key->u.s;

    if (key->kind == VAL_INT) {
        text = number;
        n = (size_t)snprintf(number, sizeof number, "%" PRId64, key->u.i);
    } else if (key->kind != VAL_STR) {
        return 0;
    }
    if (n >= sizeof t->name - len - dot)
        return 0;
    if (dot)
        t->name[len++] = '.';
    if (n)
        memcpy(t->name + len, text, n);
    t->name[len + n] = 0;
    return len + n;
}

static int is_list(const struct mp_val *v)
{
    return v->kind == VAL_LIST || v->kind == VAL_TUPLE;
}

/* Entry k of a dict or list: its name is put behind len bytes of t->name, *n
 * is the new length. NULL: no more; *n is 0 if the entry has no usable name. */
static struct mp_val *entry(struct torch_file *t, const struct mp_val *v,
                            size_t k, size_t len, size_t *n)
{
    struct mp_val index = {VAL_INT, 0, 0, {.i = (int64_t)k}};

    if (v->kind == VAL_DICT && k < v->n / 2) {
        *n = extend(t, len, v->u.item[2 * k]);
        return v->u.item[2 * k + 1];
    }
    if (is_list(v) && k < v->n) {
        *n = extend(t, len, &index);
        return v->u.item[k];
    }
    return NULL;
}

static int collect(struct torch_file *t, struct mp_val *v, size_t len,
                   int depth)
{
    struct mp_val *e;
    size_t k, n = 0;
    int rc = 0;

    if (v->kind == VAL_TENSOR) {
        rc = add_tensor(t, v, len);
        if (rc)
            mp_fail_in(t->err, "tensor %.*s", clip(len), t->name);
        return rc;
    }
    if (v->seen & COLLECTED) /* shared, or a cycle */
        return 0;
    v->seen |= COLLECTED;
    if (depth > MAX_DEPTH)
        return mp_fail(t->err, MP_EFORMAT, "nested more than %d deep",
                       MAX_DEPTH);
    for (k = 0; !rc && (e = entry(t, v, k, len, &n)); k++)
        if (e->kind == VAL_TENSOR && !n)
            rc = mp_fail(t->err, MP_EFORMAT,
                         "tensor %zu has no name, or one that is too long", k);
        else if (n &&
                 (e->kind == VAL_TENSOR || e->kind == VAL_DICT || is_list(e)))
            rc = collect(t, e, n, depth + 1);
    return rc;
}

static int has_tensor(const struct mp_val *v)
{
    size_t k;

    for (k = 0; v->kind == VAL_DICT && k < v->n / 2; k++)
        if (v->u.item[2 * k + 1]->kind == VAL_TENSOR)
            return 1;
    return 0;
}

static struct mp_val *lookup(const struct mp_val *dict, const char *key)
{
    size_t k;

    for (k = dict->n / 2; k-- > 0;) /* of equal keys the last one counts */
        if (mp_val_is(dict->u.item[2 * k], key))
            return dict->u.item[2 * k + 1];
    return NULL;
}

/* The innermost dict along the names that savers use; v itself if none. */
static struct mp_val *find_state(struct mp_val *v)
{
    static const char *const names[] = {"state_dict", "model", "module",
                                        "model_state_dict", "network"};
    size_t k;
    int depth;

    for (depth = 0; depth < MAX_DEPTH && v->kind == VAL_DICT; depth++) {
        struct mp_val *in = NULL;

        for (k = 0; k < sizeof names / sizeof *names && !in; k++) {
            in = lookup(v, names[k]);
            if (in && in->kind != VAL_DICT)
                in = NULL;
        }
        if (!in || (has_tensor(v) && !has_tensor(in)))
            break;
        v = in;
    }
    return v;
}

/* ---- notes ---- */

/* One line for a value that is not a tensor; its length. Strings are given
 * whole, by *text. */
static size_t describe(const struct mp_val *v, const char **text, char *buf,
                       size_t cap)
{
    const struct mp_val *of = v->kind == VAL_OBJECT ? v->u.item[0] : v;
    int n = -1;

    *text = buf;
    switch (v->kind) {
    case VAL_NONE:
        n = snprintf(buf, cap, "none");
        break;
    case VAL_BOOL:
        n = snprintf(buf, cap, "%s", v->u.i ? "yes" : "no");
        break;
    case VAL_INT:
        n = snprintf(buf, cap, "%" PRId64, v->u.i);
        break;
    case VAL_BIG:
        n = snprintf(buf, cap, "an integer of %zu bytes", v->n);
        break;
    case VAL_FLOAT:
        n = snprintf(buf, cap, "%.10g", v->u.f);
        break;
    case VAL_STR:
        *text = (const char *)v->u.s;
        return v->n;
    case VAL_BYTES:
        n = snprintf(buf, cap, "%zu bytes", v->n);
        break;
    case VAL_TUPLE:
    case VAL_LIST:
    case VAL_DICT:
        n = snprintf(buf, cap, "%zu items",
                     v->kind == VAL_DICT ? v->n / 2 : v->n);
        break;
    default:
        if (of->kind == VAL_GLOBAL)
            n = snprintf(
                buf, cap, "an object: %.*s.%.*s", clip(of->u.item[0]->n),
                (const char *)of->u.item[0]->u.s, clip(of->u.item[1]->n),
                (const char *)of->u.item[1]->u.s);
        else
            n = snprintf(buf, cap, "an object");
    }
    return n < 0 ? 0 : (size_t)n < cap ? (size_t)n : cap - 1;
}

/* Entries of v that are no tensors; dicts `depth` levels down. */
static int notes(struct torch_file *t, const struct mp_val *v,
                 const struct mp_val *state, size_t len, int depth)
{
    struct mp_val *e;
    const char *text;
    char buf[320];
    size_t k, n = 0, bytes;
    int rc = 0;

    for (k = 0; !rc && v->kind == VAL_DICT && (e = entry(t, v, k, len, &n));
         k++) {
        if (!n || e == state || e->kind == VAL_TENSOR)
            continue;
        if (e->kind == VAL_DICT && depth > 0 && !(e->seen & NOTED)) {
            e->seen |= NOTED;
            rc = notes(t, e, state, n, depth - 1);
            continue;
        }
        bytes = describe(e, &text, buf, sizeof buf);
        rc = mp_weights_note(t->w, t->name, text, bytes, t->err);
    }
    return rc;
}

static int read_top(struct torch_file *t, struct mp_val *v)
{
    struct mp_val *state = find_state(v);
    const char *text;
    char buf[320];
    size_t n;
    int rc;

    if (v->kind == VAL_TENSOR)
        strcpy(t->name, "tensor");
    rc = collect(t, state, v->kind == VAL_TENSOR ? strlen(t->name) : 0, 0);
    if (!rc && !t->w->count) {
        n = describe(v, &text, buf, sizeof buf);
        return mp_fail(t->err, MP_EFORMAT,
                       "no tensors, no state dict: the file holds %.*s",
                       clip(n), text);
    }
    if (!rc)
        rc = notes(t, state, NULL, 0, 0);
    if (!rc && v != state)
        rc = notes(t, v, state, 0, 1);
    return rc;
}

/* ---- the zip container ---- */

enum {
    END_SIZE = 22,     /* end of central directory, without comment */
    END64_SIZE = 56,   /* the same of zip64 */
    LOCATOR_SIZE = 20, /* says where that is */
    CENTRAL_SIZE = 46,
    LOCAL_SIZE = 30
};

struct zip {
    const uint8_t *p;
    size_t n;
    size_t directory, end; /* where the central directory is */
    uint64_t entries;
    struct blob *blob;
    size_t blobs;
};

/* Entries of a zip64 directory, if the end record at `end` has one. */
static int read_end64(struct zip *z, size_t end, uint64_t *at, uint64_t *size,
                      struct mp_error *err)
{
    const uint8_t *p = z->p;
    uint64_t where;

    if (end < LOCATOR_SIZE + END64_SIZE ||
        memcmp(p + end - LOCATOR_SIZE, "PK\6\7", 4))
        return 0;
    where = mp_le(p + end - LOCATOR_SIZE + 8, 8);
    if (where > end - LOCATOR_SIZE - END64_SIZE ||
        memcmp(p + where, "PK\6\6", 4))
        return mp_fail(err, MP_EFORMAT,
                       "zip: the zip64 end record is not "
                       "where it should be");
    z->entries = mp_le(p + where + 32, 8);
    *size = mp_le(p + where + 40, 8);
    *at = mp_le(p + where + 48, 8);
    z->end = (size_t)where;
    return 0;
}

static int read_end(struct zip *z, struct mp_error *err)
{
    size_t least = z->n > END_SIZE + 65535 ? z->n - END_SIZE - 65535 : 0;
    size_t end = z->n < END_SIZE ? 0 : z->n - END_SIZE;
    const uint8_t *p = z->p;
    uint64_t at, size;
    int rc;

    while (end > least && (memcmp(p + end, "PK\5\6", 4) ||
                           mp_le(p + end + 20, 2) != z->n - end - END_SIZE))
        end--;
    if (z->n < END_SIZE || memcmp(p + end, "PK\5\6", 4))
        return mp_fail(err, MP_EFORMAT,
                       "zip: no end record: the file is not "
                       "complete, or something follows it");
    z->entries = mp_le(p + end + 10, 2);
    size = mp_le(p + end + 12, 4);
    at = mp_le(p + end + 16, 4);
    z->end = end;
    rc = read_end64(z, end, &at, &size, err);
    if (rc)
        return rc;
    if (at > z->end || size > z->end - at || z->entries > size / CENTRAL_SIZE)
        return mp_fail(err, MP_EFORMAT,
                       "zip: the directory is not inside the file");
    z->directory = (size_t)at;
    z->end = (size_t)(at + size);
    return 0;
}

/* Replace fields that say "see zip64" by those of the extra field. */
static int read_extra64(const uint8_t *p, size_t n, uint64_t *field[3])
{
    size_t k, len, at;

    for (; n >= 4; p += 4 + len, n -= 4 + len) {
        len = (size_t)mp_le(p + 2, 2);
        if (len > n - 4)
            return -1;
        if (mp_le(p, 2) != 1)
            continue;
        for (k = at = 0; k < 3; k++) {
            if (*field[k] != UINT32_MAX)
                continue;
            if (len - at < 8)
                return -1;
            *field[k] = mp_le(p + 4 + at, 8);
            at += 8;
        }
        return 0;
    }
    return 0;
}

/* The data of an entry, behind its local header. */
static int read_local(struct zip *z, struct blob *b, uint64_t at, uint64_t size,
                      struct mp_error *err)
{
    const uint8_t *p;
    size_t skip;

    if (at > z->directory || z->directory - at < LOCAL_SIZE)
        return mp_fail(err, MP_EFORMAT, "its header is outside the file");
    p = z->p + at;
    if (memcmp(p, "PK\3\4", 4))
        return mp_fail(err, MP_EFORMAT, "its header is missing");
    skip = LOCAL_SIZE + (size_t)mp_le(p + 26, 2) + (size_t)mp_le(p + 28, 2);
    if (skip > z->directory - at || size > z->directory - at - skip)
        return mp_fail(err, MP_EFORMAT,
                       "its %" PRIu64 " bytes are not inside "
                       "the file",
                       size);
    if (mp_le(p + 26, 2) != b->len || memcmp(p + LOCAL_SIZE, b->name, b->len) ||
        mp_le(p + 8, 2))
        return mp_fail(err, MP_EFORMAT, "its header contradicts the directory");
    b->data = p + skip;
    b->size = (size_t)size;
    return 0;
}

/* One entry of the directory at *at, which is advanced. */
static int read_central(struct zip *z, struct blob *b, size_t *at,
                        struct mp_error *err)
{
    const uint8_t *p = z->p + *at;
    size_t room = z->end - *at, extra, comment;
    uint64_t size = 0, packed = 0, where = 0;
    uint64_t *field[3] = {&size, &packed, &where};
    int rc;

    if (room < CENTRAL_SIZE || memcmp(p, "PK\1\2", 4))
        return mp_fail(err, MP_EFORMAT, "zip: broken directory");
    b->len = (size_t)mp_le(p + 28, 2);
    extra = (size_t)mp_le(p + 30, 2);
    comment = (size_t)mp_le(p + 32, 2);
    if (b->len + extra + comment > room - CENTRAL_SIZE)
        return mp_fail(err, MP_EFORMAT, "zip: broken directory");
    b->name = p + CENTRAL_SIZE;
    b->crc = (uint32_t)mp_le(p + 16, 4);
    packed = mp_le(p + 20, 4);
    size = mp_le(p + 24, 4);
    where = mp_le(p + 42, 4);
    *at += CENTRAL_SIZE + b->len + extra + comment;
    if (read_extra64(b->name + b->len, extra, field))
        rc = mp_fail(err, MP_EFORMAT, "broken zip64 field");
    else if (mp_le(p + 8, 2) & 1)
        rc = mp_fail(err, MP_ENOTSUP, "encrypted");
    else if (mp_le(p + 10, 2) != 0 || packed != size)
        rc = mp_fail(err, MP_ENOTSUP,
                     "compressed, which torch.save never "
                     "does: unpack the file and zip it with `zip -0`");
    else
        rc = read_local(z, b, where, size, err);
    if (rc)
        mp_fail_in(err, "zip: entry %.*s", clip(b->len), (const char *)b->name);
    return rc;
}

static int read_directory(struct zip *z, struct mp_error *err)
{
    size_t at;
    int rc = read_end(z, err);

    if (rc)
        return rc;
    z->blob = calloc((size_t)z->entries + 1, sizeof *z->blob);
    if (!z->blob)
        return mp_fail(err, MP_ENOMEM, "out of memory");
    for (at = z->directory; !rc && z->blobs < z->entries; z->blobs++)
        rc = read_central(z, &z->blob[z->blobs], &at, err);
    return rc ? rc : sort_blobs(z->blob, z->blobs, err);
}

static int ends_with(const struct blob *b, const char *tail)
{
    size_t n = strlen(tail);

    return b->len >= n && !memcmp(b->name + b->len - n, tail, n);
}

/* FOLDER/data.pkl, for the one top folder of the archive. */
static int find_pickle(const struct zip *z, struct blob *out,
                       struct mp_error *err)
{
    static const char tail[] = "/data.pkl";
    size_t k, hits = 0;

    for (k = 0; k < z->blobs; k++) {
        const struct blob *b = &z->blob[k];

        if (ends_with(b, tail) &&
            !memchr(b->name, '/', b->len - strlen(tail))) {
            *out = *b;
            hits++;
        }
    }
    if (hits == 1)
        return 0;
    if (hits)
        return mp_fail(err, MP_EFORMAT, "%zu data.pkl in one archive", hits);
    return mp_fail(err, MP_EFORMAT, "a zip archive without FOLDER/data.pkl%s",
                   z->blobs && ends_with(z->blob, ".npy")
                       ? ": this is a NumPy .npz file"
                       : ", so not of torch.save");
}

static uint32_t crc32_of(const uint8_t *p, size_t n)
{
    uint32_t c = UINT32_MAX;
    int k;

    for (; n; n--)
        for (c ^= *p++, k = 0; k < 8; k++)
            c = c >> 1 ^ (0xedb88320u & -(c & 1));
    return ~c;
}

/* PyTorch may be told not to compute checksums, and then stores 0. */
static int check_crc(const struct blob *b, struct mp_error *err)
{
    if (b->crc && crc32_of(b->data, b->size) != b->crc)
        return mp_fail(err, MP_EFORMAT, "zip: the checksum of %.*s is wrong",
                       clip(b->len), (const char *)b->name);
    return 0;
}

static int check_byteorder(struct zip *z, const struct blob *pkl, size_t folder,
                           struct mp_error *err)
{
    char name[MAX_NAME];
    const struct blob *b;
    int n = snprintf(name, sizeof name, "%.*sbyteorder", (int)folder,
                     (const char *)pkl->name);

    if (n < 0 || (size_t)n >= sizeof name)
        return mp_fail(err, MP_EFORMAT, "zip: the archive's name is too long");
    b = find_blob(z->blob, z->blobs, name, (size_t)n);
    if (b && (b->size != 6 || memcmp(b->data, "little", 6)))
        return mp_fail(err, MP_ENOTSUP, "written by a big-endian machine");
    return 0;
}

/* Make t->blob the entries FOLDER/data/KEY, which are neighbours, as KEY. */
static void storages_of(struct torch_file *t, const struct zip *z,
                        const struct blob *pkl, size_t folder)
{
    size_t k, skip = folder + strlen("data/");

    for (k = 0; k < z->blobs; k++) {
        struct blob *b = &z->blob[k];

        if (b->len < skip || memcmp(b->name, pkl->name, folder) ||
            memcmp(b->name + folder, "data/", 5))
            continue;
        b->name += skip;
        b->len -= skip;
        if (!t->blobs++)
            t->blob = b;
    }
}

static int read_zip(struct torch_file *t, struct zip *z)
{
    struct mp_val *v;
    size_t folder, used;
    struct blob pkl = {0};
    int rc = read_directory(z, t->err);

    if (!rc)
        rc = find_pickle(z, &pkl, t->err);
    if (rc)
        return rc;
    folder = pkl.len - strlen("data.pkl");
    rc = check_crc(&pkl, t->err);
    if (!rc)
        rc = check_byteorder(z, &pkl, folder, t->err);
    if (!rc)
        rc = mp_pickle_load(t->pickle, &v, pkl.data, pkl.size, &used, t->err);
    if (rc)
        return rc;
    storages_of(t, z, &pkl, folder);
    return read_top(t, v);
}

int mp_weights_read_zip(struct mp_weights *w, struct mp_error *err)
{
    struct zip z = {.p = w->file, .n = w->size};
    struct torch_file t = {.w = w, .pickle = mp_pickle_new(), .err = err};
    int rc;

    if (t.pickle)
        rc = read_zip(&t, &z);
    else
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    mp_pickle_free(t.pickle);
    free(z.blob);
    return rc;
}

/* ---- the legacy container ---- */

/* Pickles of a magic number, a protocol number, facts about the machine, the
 * object, and a list of keys; then per key an i64 count and the bytes. */
static const uint8_t magic[] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9,
                                0x20, 0x6a, 0xa8, 0x50, 0x19};

int mp_weights_is_legacy(const uint8_t *p, size_t n)
{
    static const uint8_t head[] = {0x80, 2, 0x8a, 10};

    return n > sizeof head + sizeof magic && p[0] == head[0] && p[1] >= 2 &&
           p[1] <= 5 && !memcmp(p + 2, head + 2, 2) &&
           !memcmp(p + sizeof head, magic, sizeof magic);
}

static int by_storage(const void *a, const void *b)
{
    const struct mp_val *x = (*(struct mp_val *const *)a)->u.item[2];
    const struct mp_val *y = (*(struct mp_val *const *)b)->u.item[2];
    const struct blob bx = {.name = x->u.s, .len = x->n};
    const struct blob by = {.name = y->u.s, .len = y->n};

    return by_key(&bx, &by);
}

/* What the pickle says of its storages, sorted by key, checked. */
static int sort_storages(struct mp_val **s, size_t n, struct mp_error *err)
{
    size_t k;

    for (k = 0; k < n; k++) {
        struct mp_val **item = s[k]->u.item;

        if (item[2]->kind != VAL_STR || item[4]->kind != VAL_INT)
            return mp_fail(err, MP_EFORMAT, "a storage without key or size");
        if (s[k]->n > 5 && item[5]->kind != VAL_NONE)
            return mp_fail(err, MP_ENOTSUP,
                           "a storage that is part of another one, as PyTorch "
                           "before 0.4 wrote them");
    }
    if (n)
        qsort(s, n, sizeof *s, by_storage);
    return 0;
}

/* The bytes of one element of the storage `key`; 0: unknown. */
static size_t element_size(struct mp_val **s, size_t n,
                           const struct mp_val *key, int64_t *numel)
{
    struct mp_val *item[3] = {NULL, NULL, (struct mp_val *)key};
    struct mp_val probe = {VAL_STORAGE, 0, 3, {.item = item}}, *p = &probe;
    struct mp_val **hit;

    hit = n ? bsearch(&p, s, n, sizeof *s, by_storage) : NULL;
    if (!hit)
        return 0;
    *numel = (*hit)->u.item[4]->u.i;
    if (mp_val_is((*hit)->u.item[1], "UntypedStorage"))
        return 1;
    return mp_dtype_size(dtype_of((*hit)->u.item[1]));
}

/* The storages behind the pickles, in the order of `keys`. */
static int read_storages(struct torch_file *t, const struct mp_val *keys,
                         const uint8_t *p, size_t n)
{
    struct mp_val **s;
    size_t ns, k, size;
    int64_t numel;
    int rc;

    s = mp_pickle_storages(t->pickle, &ns);
    rc = sort_storages(s, ns, t->err);
    if (rc)
        return rc;
    t->blob = calloc(keys->n + 1, sizeof *t->blob);
    if (!t->blob)
        return mp_fail(t->err, MP_ENOMEM, "out of memory");
    for (k = 0; k < keys->n; k++) {
        const struct mp_val *key = keys->u.item[k];

        if (key->kind != VAL_STR)
            return mp_fail(t->err, MP_EFORMAT, "a storage key is no string");
        size = element_size(s, ns, key, &numel);
        if (!size)
            return mp_fail(t->err, MP_ENOTSUP,
                           "storage %.*s is of no supported type", clip(key->n),
                           (const char *)key->u.s);
        if (n < 8 || mp_le(p, 8) != (uint64_t)numel ||
            (uint64_t)numel > (n - 8) / size)
            return mp_fail(t->err, MP_EFORMAT,
                           "storage %.*s is cut short or of another size",
                           clip(key->n), (const char *)key->u.s);
        t->blob[k] =
            (struct blob){key->u.s, p + 8, key->n, (size_t)numel * size, 0};
        p += 8 + t->blob[k].size;
        n -= 8 + t->blob[k].size;
    }
    t->blobs = keys->n;
    return sort_blobs(t->blob, t->blobs, t->err);
}

static int read_legacy(struct torch_file *t)
{
    const uint8_t *p = t->w->file;
    size_t n = t->w->size, used;
    struct mp_val *part[5]; /* magic, protocol, machine, object, keys */
    int k, rc;

    for (k = 0; k < 5; k++) {
        rc = mp_pickle_load(t->pickle, &part[k], p, n, &used, t->err);
        if (rc)
            return rc;
        p += used;
        n -= used;
    }
    if (part[1]->kind != VAL_INT || part[1]->u.i != 1001)
        return mp_fail(t->err, MP_ENOTSUP,
                       "not version 1001 of the legacy format");
    if (part[2]->kind == VAL_DICT) {
        const struct mp_val *le = lookup(part[2], "little_endian");

        if (le && le->kind == VAL_BOOL && !le->u.i)
            return mp_fail(t->err, MP_ENOTSUP,
                           "written by a big-endian machine");
    }
    if (part[4]->kind != VAL_LIST)
        return mp_fail(t->err, MP_EFORMAT, "no list of storages");
    rc = read_storages(t, part[4], p, n);
    return rc ? rc : read_top(t, part[3]);
}

int mp_weights_read_legacy(struct mp_weights *w, struct mp_error *err)
{
    struct torch_file t = {.w = w, .pickle = mp_pickle_new(), .err = err};
    int rc;

    if (t.pickle)
        rc = read_legacy(&t);
    else
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    mp_pickle_free(t.pickle);
    free(t.blob);
    return rc;
}
