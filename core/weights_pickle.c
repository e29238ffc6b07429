/* SPDX-License-Identifier: MIT */
/*
 * weights_pickle.c - a pickle machine that can only make data.
 *
 * It knows the instructions that torch.save writes, protocols 2 to 5; any
 * other is an error. GLOBAL makes a name, REDUCE looks that name up in a table
 * of a dozen rows (`calls`) and otherwise makes an object without content.
 *
 * What a small pickle can make of memory is bounded by one budget for values,
 * stack and memo together. Once something failed, popping gives a dummy value
 * and pushing does nothing, so that instructions need no error paths.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights_impl.h"

#define BUDGET ((size_t)40 << 20) /* bytes */
#define CHUNK  ((size_t)64 << 10)

struct chunk {
    struct chunk *next;
    max_align_t data[];
};

struct array { /* of struct mp_val * or size_t, both 8 bytes */
    void *p;
    size_t n, cap;
};

struct mp_pickle {
    struct chunk *chunks;
    uint8_t *free_at, *free_end; /* in the newest chunk */
    size_t spent;                /* of BUDGET */
    struct array stack, mark, memo, storage;
    struct mp_val dummy;
    const uint8_t *p, *end; /* next instruction, end of the file */
    const uint8_t *start;
    struct mp_error *err;
    int rc;
    int stopped;
};

/* ---- memory ---- */

static void fail(struct mp_pickle *m, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void fail(struct mp_pickle *m, int code, const char *fmt, ...)
{
    char text[160];
    va_list ap;

    if (m->rc)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    m->rc = mp_fail(m->err, code, "pickle, byte %zu: %s",
                    (size_t)(m->p - m->start), text);
}

static int spend(struct mp_pickle *m, size_t n)
{
    if (n > BUDGET - m->spent) {
        fail(m, MP_ENOTSUP, "more than %zu MiB of values besides the tensors",
             BUDGET >> 20);
        return -1;
    }
    m->spent += n;
    return 0;
}

/* n bytes that live as long as the machine, or NULL. */
static void *take_memory(struct mp_pickle *m, size_t n)
{
    size_t room = n > CHUNK ? n : CHUNK;
    struct chunk *c;
    void *p;

    if (m->rc)
        return NULL;
    if (n > (size_t)(m->free_end - m->free_at)) {
        if (spend(m, room))
            return NULL;
        c = malloc(sizeof *c + room);
        if (!c) {
            fail(m, MP_ENOMEM, "out of memory");
            return NULL;
        }
        c->next = m->chunks;
        m->chunks = c;
        m->free_at = (uint8_t *)c->data;
        m->free_end = m->free_at + room;
    }
    p = m->free_at;
    m->free_at += n;
    return p;
}

static struct mp_val *new_val(struct mp_pickle *m, enum mp_val_kind kind)
{
    struct mp_val *v = take_memory(m, sizeof *v);

    if (!v)
        return &m->dummy;
    memset(v, 0, sizeof *v);
    v->kind = kind;
    return v;
}

/* Room for entry i; nonzero on failure. */
static int reserve(struct mp_pickle *m, struct array *a, size_t i)
{
    size_t cap = a->cap ? a->cap : 256;
    void *p;

    if (m->rc)
        return -1;
    if (i < a->cap)
        return 0;
    while (cap <= i && cap < BUDGET)
        cap *= 2;
    if (spend(m, (cap - a->cap) * sizeof(void *)))
        return -1;
    p = realloc(a->p, cap * sizeof(void *));
    if (!p) {
        fail(m, MP_ENOMEM, "out of memory");
        return -1;
    }
    memset((char *)p + a->cap * sizeof(void *), 0,
           (cap - a->cap) * sizeof(void *));
    a->p = p;
    a->cap = cap;
    return 0;
}

static void append(struct mp_pickle *m, struct array *a, struct mp_val *v)
{
    if (!reserve(m, a, a->n))
        ((struct mp_val **)a->p)[a->n++] = v;
}

/* Lists and dicts grow by powers of two, from 4: so n tells their capacity. */
static void add_item(struct mp_pickle *m, struct mp_val *c, struct mp_val *v)
{
    if (c->n == 0 || (c->n >= 4 && (c->n & (c->n - 1)) == 0)) {
        size_t cap = c->n ? c->n * 2 : 4;
        struct mp_val **item = take_memory(m, cap * sizeof *item);

        if (!item)
            return;
        if (c->n)
            memcpy(item, c->u.item, c->n * sizeof *item);
        c->u.item = item;
    }
    c->u.item[c->n++] = v;
}

/* ---- stack and input ---- */

static size_t floor_of(const struct mp_pickle *m)
{
    return m->mark.n ? ((size_t *)m->mark.p)[m->mark.n - 1] : 0;
}

static void push(struct mp_pickle *m, struct mp_val *v)
{
    append(m, &m->stack, v);
}

static struct mp_val *top(struct mp_pickle *m)
{
    if (!m->rc && m->stack.n > floor_of(m))
        return ((struct mp_val **)m->stack.p)[m->stack.n - 1];
    fail(m, MP_EFORMAT, "the stack is empty");
    return &m->dummy;
}

static struct mp_val *pop(struct mp_pickle *m)
{
    struct mp_val *v = top(m);

    if (!m->rc)
        m->stack.n--;
    return v;
}

/* Everything above the last mark, which is removed: *n values, valid until
 * the next push. */
static struct mp_val **pop_mark(struct mp_pickle *m, size_t *n)
{
    size_t from = floor_of(m);

    *n = 0;
    if (!m->rc && !m->mark.n)
        fail(m, MP_EFORMAT, "no mark on the stack");
    if (m->rc)
        return NULL;
    m->mark.n--;
    *n = m->stack.n - from;
    m->stack.n = from;
    return *n ? (struct mp_val **)m->stack.p + from : NULL;
}

static const uint8_t *take(struct mp_pickle *m, uint64_t n)
{
    const uint8_t *s = m->p;

    if (m->rc)
        return NULL;
    if (n > (uint64_t)(m->end - m->p)) {
        fail(m, MP_EFORMAT, "cut short");
        return NULL;
    }
    m->p += n;
    return s;
}

/* A number of n <= 8 bytes; 0 at the end. */
static uint64_t number(struct mp_pickle *m, int n)
{
    const uint8_t *s = take(m, (uint64_t)n);

    return s ? mp_le(s, n) : 0;
}

static struct mp_val *text_val(struct mp_pickle *m, enum mp_val_kind kind,
                               const uint8_t *s, size_t n)
{
    struct mp_val *v = new_val(m, kind);

    v->u.s = s;
    v->n = n;
    return v;
}

static struct mp_val *int_val(struct mp_pickle *m, enum mp_val_kind kind,
                              int64_t i)
{
    struct mp_val *v = new_val(m, kind);

    v->u.i = i;
    return v;
}

static struct mp_val *tuple_val(struct mp_pickle *m, struct mp_val **item,
                                size_t n)
{
    struct mp_val **copy = take_memory(m, n * sizeof *copy);
    struct mp_val *v = new_val(m, VAL_TUPLE);

    if (m->rc)
        return v;
    if (n)
        memcpy(copy, item, n * sizeof *copy);
    v->u.item = copy;
    v->n = n;
    return v;
}

static int same_text(const struct mp_val *v, const char *text)
{
    return v->kind == VAL_STR && v->n == strlen(text) &&
           !memcmp(v->u.s, text, v->n);
}

int mp_val_is(const struct mp_val *v, const char *text)
{
    return same_text(v->kind == VAL_GLOBAL ? v->u.item[1] : v, text);
}

/* ---- calls ---- */

static struct mp_val *call_first(struct mp_pickle *m, struct mp_val *args)
{
    if (args->n)
        return args->u.item[0];
    fail(m, MP_EFORMAT, "a parameter of nothing");
    return &m->dummy;
}

static struct mp_val *call_sequence(struct mp_pickle *m, struct mp_val *args)
{
    struct mp_val *v = args->n ? args->u.item[0] : NULL;

    if (v && (v->kind == VAL_TUPLE || v->kind == VAL_LIST))
        return v;
    return new_val(m, VAL_LIST);
}

/* OrderedDict(), or OrderedDict([(key, value), ...]) of Python 2. */
static struct mp_val *call_dict(struct mp_pickle *m, struct mp_val *args)
{
    struct mp_val *v = new_val(m, VAL_DICT), *from;
    size_t k;

    if (!args->n)
        return v;
    from = args->u.item[0];
    if (from->kind != VAL_LIST && from->kind != VAL_TUPLE)
        return v;
    for (k = 0; k < from->n && !m->rc; k++) {
        struct mp_val *pair = from->u.item[k];

        if ((pair->kind != VAL_LIST && pair->kind != VAL_TUPLE) ||
            pair->n != 2) {
            fail(m, MP_EFORMAT, "a dict of something else than pairs");
            break;
        }
        add_item(m, v, pair->u.item[0]);
        add_item(m, v, pair->u.item[1]);
    }
    return v;
}

static struct mp_val *call_tensor(struct mp_pickle *m, struct mp_val *args)
{
    struct mp_val *v = new_val(m, VAL_TENSOR);

    if (args->n < 4)
        fail(m, MP_EFORMAT, "a tensor of %zu arguments", args->n);
    v->u.item = args->u.item;
    v->n = args->n;
    return v;
}

static const struct {
    const char *module, *name;
    struct mp_val *(*make)(struct mp_pickle *m, struct mp_val *args);
} calls[] = {
    {"torch._utils", "_rebuild_tensor_v2", call_tensor},
    {"torch._utils", "_rebuild_tensor_v3", call_tensor},
    {"torch._utils", "_rebuild_tensor", call_tensor},
    {"torch._utils", "_rebuild_parameter", call_first},
    {"torch._utils", "_rebuild_parameter_with_state", call_first},
    {"collections", "OrderedDict", call_dict},
    {"torch", "Size", call_sequence},
    {"__builtin__", "set", call_sequence},
    {"__builtin__", "frozenset", call_sequence},
    {"builtins", "set", call_sequence},
    {"builtins", "frozenset", call_sequence},
};

/* R, NEWOBJ, NEWOBJ_EX: what `fn` makes of `args`. */
static void call(struct mp_pickle *m, struct mp_val *fn, struct mp_val *args)
{
    struct mp_val *v, **of;
    size_t k;

    if (!m->rc && args->kind != VAL_TUPLE)
        fail(m, MP_EFORMAT, "a call without arguments");
    if (m->rc)
        return;
    if (fn->kind == VAL_GLOBAL)
        for (k = 0; k < sizeof calls / sizeof *calls; k++)
            if (same_text(fn->u.item[0], calls[k].module) &&
                same_text(fn->u.item[1], calls[k].name)) {
                push(m, calls[k].make(m, args));
                return;
            }
    of = take_memory(m, sizeof *of);
    v = new_val(m, VAL_OBJECT);
    if (m->rc)
        return;
    *of = fn;
    v->u.item = of;
    v->n = 1;
    push(m, v);
}

/* ---- instructions; arg comes from the table below ---- */

static void op_proto(struct mp_pickle *m, int arg)
{
    int version = (int)number(m, arg);

    if (!m->rc && (version < 2 || version > 5))
        fail(m, MP_ENOTSUP, "protocol %d, only 2 to 5 are read", version);
}

static void op_skip(struct mp_pickle *m, int arg)
{
    take(m, (uint64_t)arg);
}

static void op_stop(struct mp_pickle *m, int arg)
{
    m->stopped = 1 + arg;
}

static void op_mark(struct mp_pickle *m, int arg)
{
    (void)arg;
    if (!reserve(m, &m->mark, m->mark.n))
        ((size_t *)m->mark.p)[m->mark.n++] = m->stack.n;
}

static void op_pop(struct mp_pickle *m, int arg)
{
    size_t n;

    if (arg || (m->mark.n && m->stack.n == floor_of(m)))
        pop_mark(m, &n);
    else
        pop(m);
}

static void op_dup(struct mp_pickle *m, int arg)
{
    (void)arg;
    push(m, top(m));
}

static void op_none(struct mp_pickle *m, int arg)
{
    push(m, new_val(m, (enum mp_val_kind)arg));
}

static void op_bool(struct mp_pickle *m, int arg)
{
    push(m, int_val(m, VAL_BOOL, arg));
}

static void op_int(struct mp_pickle *m, int arg)
{
    uint64_t i = number(m, arg);

    push(m, int_val(m, VAL_INT, arg == 4 ? (int32_t)(uint32_t)i : (int64_t)i));
}

static void op_long(struct mp_pickle *m, int arg)
{
    uint64_t n = number(m, arg), i;
    const uint8_t *s = take(m, n);

    if (!s)
        return;
    if (n > 8) {
        push(m, text_val(m, VAL_BIG, s, (size_t)n));
        return;
    }
    i = mp_le(s, (int)n);
    if (n && n < 8 && s[n - 1] & 0x80)
        i |= UINT64_MAX << 8 * n;
    push(m, int_val(m, VAL_INT, (int64_t)i));
}

static void op_float(struct mp_pickle *m, int arg)
{
    struct mp_val *v = new_val(m, VAL_FLOAT);
    uint64_t bits = __builtin_bswap64(number(m, arg));

    memcpy(&v->u.f, &bits, sizeof bits);
    push(m, v);
}

static void op_text(struct mp_pickle *m, int arg)
{
    uint64_t n = number(m, arg);
    const uint8_t *s = take(m, n);

    push(m, text_val(m, VAL_STR, s, (size_t)n));
}

static void op_bytes(struct mp_pickle *m, int arg)
{
    uint64_t n = number(m, arg);
    const uint8_t *s = take(m, n);

    push(m, text_val(m, VAL_BYTES, s, (size_t)n));
}

static void op_tuple(struct mp_pickle *m, int arg)
{
    struct mp_val *item[3];
    int k;

    for (k = arg - 1; k >= 0; k--)
        item[k] = pop(m);
    push(m, tuple_val(m, item, (size_t)arg));
}

static void op_tuple_mark(struct mp_pickle *m, int arg)
{
    size_t n;
    struct mp_val **item = pop_mark(m, &n);

    (void)arg;
    push(m, tuple_val(m, item, n));
}

static void op_collect(struct mp_pickle *m, int arg) /* LIST, DICT, FROZENSET */
{
    size_t n, k;
    struct mp_val **item = pop_mark(m, &n);
    struct mp_val *v = new_val(m, (enum mp_val_kind)arg);

    if (arg == VAL_DICT && n % 2)
        fail(m, MP_EFORMAT, "a key without a value");
    for (k = 0; k < n && !m->rc; k++)
        add_item(m, v, item[k]);
    push(m, v);
}

/* What items can be added to; objects of unknown classes swallow them. */
static struct mp_val *container(struct mp_pickle *m, int kind)
{
    struct mp_val *c = top(m);

    if (!m->rc && c->kind != (enum mp_val_kind)kind && c->kind != VAL_OBJECT)
        fail(m, MP_EFORMAT, "items for something that holds none");
    return c;
}

static void add_to(struct mp_pickle *m, struct mp_val *c, struct mp_val **item,
                   size_t n)
{
    size_t k;

    for (k = 0; k < n && !m->rc && c->kind != VAL_OBJECT; k++)
        add_item(m, c, item[k]);
}

static void op_append(struct mp_pickle *m, int arg) /* APPEND, SETITEM */
{
    struct mp_val *item[2] = {NULL, NULL};
    size_t n = arg == VAL_DICT ? 2 : 1, k;

    for (k = n; k-- > 0;)
        item[k] = pop(m);
    add_to(m, container(m, arg), item, n);
}

static void op_extend(struct mp_pickle *m, int arg) /* APPENDS, SETITEMS */
{
    size_t n;
    struct mp_val **item = pop_mark(m, &n);

    if (arg == VAL_DICT && n % 2)
        fail(m, MP_EFORMAT, "a key without a value");
    add_to(m, container(m, arg), item, n);
}

static void push_global(struct mp_pickle *m, struct mp_val *module,
                        struct mp_val *name)
{
    struct mp_val *pair[2] = {module, name}, *v;

    if (!m->rc && (module->kind != VAL_STR || name->kind != VAL_STR))
        fail(m, MP_EFORMAT, "a class whose name is not text");
    v = tuple_val(m, pair, 2);
    v->kind = VAL_GLOBAL;
    push(m, v);
}

static struct mp_val *line(struct mp_pickle *m)
{
    const uint8_t *s = m->p, *nl = memchr(s, '\n', (size_t)(m->end - s));

    if (!nl)
        fail(m, MP_EFORMAT, "cut short");
    else
        m->p = nl + 1;
    return text_val(m, VAL_STR, s, nl ? (size_t)(nl - s) : 0);
}

static void op_global(struct mp_pickle *m, int arg)
{
    struct mp_val *module, *name;

    if (arg) { /* STACK_GLOBAL */
        name = pop(m);
        module = pop(m);
    } else {
        module = line(m);
        name = line(m);
    }
    push_global(m, module, name);
}

static void op_call(struct mp_pickle *m, int arg)
{
    struct mp_val *args, *fn;

    if (arg) /* NEWOBJ_EX: keyword arguments, which nothing of ours has */
        pop(m);
    args = pop(m);
    fn = pop(m);
    call(m, fn, args);
}

static void op_build(struct mp_pickle *m, int arg)
{
    (void)arg;
    pop(m); /* the state: attributes, never the content of our containers */
    top(m);
}

static void op_persid(struct mp_pickle *m, int arg)
{
    struct mp_val *id = pop(m), *v;

    (void)arg;
    if (m->rc)
        return;
    if (id->kind != VAL_TUPLE || id->n < 5 ||
        !same_text(id->u.item[0], "storage")) {
        push(m, new_val(m, VAL_NONE));
        return;
    }
    v = new_val(m, VAL_STORAGE);
    v->u.item = id->u.item;
    v->n = id->n;
    push(m, v);
    append(m, &m->storage, v);
}

static void put(struct mp_pickle *m, size_t i)
{
    struct mp_val *v = top(m);

    /* an index far above the number of entries would be a bomb */
    if (!m->rc && i > 2 * m->memo.n + 4096)
        fail(m, MP_EFORMAT, "memo index %zu out of sequence", i);
    if (reserve(m, &m->memo, i))
        return;
    ((struct mp_val **)m->memo.p)[i] = v;
    if (m->memo.n <= i)
        m->memo.n = i + 1;
}

static void op_put(struct mp_pickle *m, int arg)
{
    put(m, arg ? number(m, arg) : m->memo.n);
}

static void op_get(struct mp_pickle *m, int arg)
{
    uint64_t i = number(m, arg);
    struct mp_val *v = i < m->memo.n ? ((struct mp_val **)m->memo.p)[i] : NULL;

    if (v)
        push(m, v);
    else
        fail(m, MP_EFORMAT, "memo has no entry %llu", (unsigned long long)i);
}

static const struct {
    void (*run)(struct mp_pickle *m, int arg);
    int arg; /* length of the number that follows, kind, or variant */
} ops[256] = {
    [0x80] = {op_proto, 1},
    [0x95] = {op_skip, 8}, /* FRAME */
    ['.'] = {op_stop, 0},
    ['('] = {op_mark, 0},
    ['0'] = {op_pop, 0},
    ['1'] = {op_pop, 1},
    ['2'] = {op_dup, 0},
    ['N'] = {op_none, VAL_NONE},
    [0x88] = {op_bool, 1},
    [0x89] = {op_bool, 0},
    ['K'] = {op_int, 1},
    ['M'] = {op_int, 2},
    ['J'] = {op_int, 4},
    [0x8a] = {op_long, 1},
    [0x8b] = {op_long, 4},
    ['G'] = {op_float, 8},
    [0x8c] = {op_text, 1},
    ['X'] = {op_text, 4},
    [0x8d] = {op_text, 8},
    ['U'] = {op_text, 1}, /* str of Python 2 */
    ['T'] = {op_text, 4},
    ['C'] = {op_bytes, 1},
    ['B'] = {op_bytes, 4},
    [0x8e] = {op_bytes, 8},
    [0x96] = {op_bytes, 8}, /* BYTEARRAY8 */
    [')'] = {op_tuple, 0},
    [0x85] = {op_tuple, 1},
    [0x86] = {op_tuple, 2},
    [0x87] = {op_tuple, 3},
    ['t'] = {op_tuple_mark, 0},
    [']'] = {op_none, VAL_LIST},
    ['}'] = {op_none, VAL_DICT},
    [0x8f] = {op_none, VAL_LIST}, /* EMPTY_SET */
    ['l'] = {op_collect, VAL_LIST},
    ['d'] = {op_collect, VAL_DICT},
    [0x91] = {op_collect, VAL_LIST}, /* FROZENSET */
    ['a'] = {op_append, VAL_LIST},
    ['s'] = {op_append, VAL_DICT},
    ['e'] = {op_extend, VAL_LIST},
    [0x90] = {op_extend, VAL_LIST}, /* ADDITEMS */
    ['u'] = {op_extend, VAL_DICT},
    ['c'] = {op_global, 0},
    [0x93] = {op_global, 1},
    ['R'] = {op_call, 0},
    [0x81] = {op_call, 0}, /* NEWOBJ */
    [0x92] = {op_call, 1}, /* NEWOBJ_EX */
    ['b'] = {op_build, 0},
    ['Q'] = {op_persid, 0},
    ['q'] = {op_put, 1},
    ['r'] = {op_put, 4},
    [0x94] = {op_put, 0}, /* MEMOIZE */
    ['h'] = {op_get, 1},
    ['j'] = {op_get, 4},
};

/* ---- the machine ---- */

struct mp_pickle *mp_pickle_new(void)
{
    return calloc(1, sizeof(struct mp_pickle));
}

void mp_pickle_free(struct mp_pickle *m)
{
    if (!m)
        return;
    while (m->chunks) {
        struct chunk *next = m->chunks->next;

        free(m->chunks);
        m->chunks = next;
    }
    free(m->stack.p);
    free(m->mark.p);
    free(m->memo.p);
    free(m->storage.p);
    free(m);
}

int mp_pickle_load(struct mp_pickle *m, struct mp_val **out, const uint8_t *s,
                   size_t n, size_t *used, struct mp_error *err)
{
    m->start = m->p = s;
    m->end = s + n;
    m->err = err;
    m->rc = m->stopped = 0;
    m->stack.n = m->mark.n = 0;
    if (m->memo.n)
        memset(m->memo.p, 0, m->memo.n * sizeof(void *));
    m->memo.n = 0;
    while (!m->rc && !m->stopped) {
        int op = (int)number(m, 1);

        if (m->rc)
            break;
        if (ops[op].run)
            ops[op].run(m, ops[op].arg);
        else
            fail(m, MP_EFORMAT, "instruction 0x%02x is not one of torch.save",
                 (unsigned)op);
    }
    *out = pop(m);
    *used = (size_t)(m->p - s);
    return m->rc;
}

struct mp_val **mp_pickle_storages(struct mp_pickle *m, size_t *n)
{
    *n = m->storage.n;
    return m->storage.p;
}
