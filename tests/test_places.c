/* SPDX-License-Identifier: MIT */
/*
 * test_places.c - programs of random steps, run on nothing but names: each
 * value writes its name to all bytes of its place, and whoever reads it must
 * find that there, an output at the end, too. What steps have for scratch they
 * fill with something else.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "places.h"

#define MOST   40 /* values */
#define BYTES  (MOST * 1024)
#define ROUNDS 2000

static uint32_t below(uint32_t n)
{
    static uint64_t state = 1;

    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

struct program {
    struct mp_value value[MOST];
    struct mp_step step[MOST];
    uint32_t root[MOST], output[3];
    uint8_t input[MOST];
    size_t wanted[MOST], scratch[MOST]; /* per step: bytes, and where */
    struct mp_places places;
};

static uint32_t add_value(struct program *p, enum mp_place place, size_t count,
                          enum mp_dtype t)
{
    uint32_t i = (uint32_t)p->places.nvalue++;

    p->value[i] = (struct mp_value){.place = place, .count = count, .dtype = t};
    p->root[i] = i;
    p->input[i] = 0;
    return i;
}

/* Few sizes and types, so that many could take another's place. */
static uint32_t any_value(struct program *p, enum mp_place place)
{
    static const size_t count[] = {16, 32, 100, 250};

    return add_value(p, place, count[below(4)], below(4) ? MP_F32 : MP_BF16);
}

static uint32_t earlier(const struct program *p)
{
    return below((uint32_t)p->places.nvalue);
}

static void add_step(struct program *p)
{
    static const enum mp_op op[] = {MP_OP_CONV2D, MP_OP_ADD, MP_OP_MUL,
                                    MP_OP_ACT, MP_OP_CONCAT};
    struct mp_step *s = &p->step[p->places.nstep++];
    uint32_t like;

    *s = (struct mp_step){.op = op[below(5)]};
    s->nin = s->op == MP_OP_CONV2D ? 4 : s->op == MP_OP_ACT ? 1 : 2;
    for (int i = 0; i < s->nin; i++)
        s->in[i] = i > 1 && below(2) ? MP_NO_VALUE : earlier(p);
    like = s->in[s->op == MP_OP_CONV2D ? 3 : 0];
    s->out =
        like != MP_NO_VALUE && below(3)
            ? add_value(p, MP_ARENA, p->value[like].count, p->value[like].dtype)
            : any_value(p, MP_ARENA);
}

/* Another shape of an earlier value that is no constant. */
static void add_reshape(struct program *p)
{
    uint32_t of = earlier(p), i;

    if (p->value[of].place == MP_CONSTANT)
        return;
    i = add_value(p, MP_ARENA, p->value[of].count, p->value[of].dtype);
    p->root[i] = p->root[of];
}

static void make_program(struct program *p, int outside)
{
    uint32_t inputs = 1 + below(2);

    memset(p, 0, sizeof *p);
    any_value(p, MP_CONSTANT);
    while (p->places.nvalue < 1 + inputs)
        p->input[any_value(p, MP_ARENA)] = 1;
    while (p->places.nvalue < MOST - 1)
        if (below(5))
            add_step(p);
        else
            add_reshape(p);
    p->places.noutput = 1 + below(3);
    for (size_t i = 0; i < p->places.noutput; i++)
        do
            p->output[i] = earlier(p);
        while (p->value[p->output[i]].place == MP_CONSTANT);
    p->places.value = p->value;
    p->places.step = p->step;
    p->places.root = p->root;
    p->places.input = p->input;
    p->places.output = p->output;
    p->places.outside = outside;
}

/* The arena, and memory of others. */
struct memory {
    uint8_t arena[BYTES], outside[8][BYTES];
};

static uint8_t *place_of(struct memory *m, const struct mp_value *v)
{
    return v->place == MP_OUTSIDE ? m->outside[v->offset]
                                  : m->arena + v->offset;
}

static void is_there(const struct program *p, struct memory *m, uint32_t value)
{
    const struct mp_value *v = &p->value[value];
    const uint8_t *at = place_of(m, v);
    size_t i = 0; /* asserted once: Check takes long for each */

    while (i < mp_value_bytes(v) && at[i] == p->root[value] + 1)
        i++;
    ck_assert_msg(i == mp_value_bytes(v), "byte %zu of %u is %d's", i, value,
                  at[i] - 1);
}

static void put(const struct program *p, struct memory *m, uint32_t value)
{
    const struct mp_value *v = &p->value[value];

    if (v->place == MP_OUTSIDE)
        ck_assert_uint_lt(v->offset, p->places.noutside);
    else
        ck_assert(v->offset % 64 == 0 &&
                  v->offset + mp_value_bytes(v) <= p->places.arena);
    memset(place_of(m, v), (int)value + 1, mp_value_bytes(v));
}

/* While a step writes its result it may still read this input: only what maps
 * one by one may do both in one place. */
static void is_apart(const struct program *p, const struct mp_step *s, int i)
{
    const struct mp_value *x = &p->value[s->in[i]], *y = &p->value[s->out];
    int one_by_one =
        s->op == MP_OP_CONV2D ? i == 3 : i == 0 && s->op != MP_OP_CONCAT;

    if (x->place != y->place)
        return;
    if (x->offset == y->offset && one_by_one) {
        ck_assert_int_eq(x->dtype, y->dtype);
        ck_assert_uint_eq(x->count, y->count);
        for (int k = 0; k < s->nin; k++)
            ck_assert(k == i || s->in[k] == MP_NO_VALUE ||
                      p->root[s->in[k]] != p->root[s->in[i]]);
    } else if (x->place == MP_OUTSIDE) {
        ck_assert_uint_ne(x->offset, y->offset);
    } else {
        ck_assert(x->offset + mp_value_bytes(x) <= y->offset ||
                  y->offset + mp_value_bytes(y) <= x->offset);
    }
}

static void use_scratch(const struct program *p, struct memory *m, size_t k)
{
    if (!p->places.outside || p->scratch[k] == MP_NO_ROOM)
        return;
    ck_assert_uint_eq(p->scratch[k] % 64, 0);
    ck_assert_uint_le(p->scratch[k] + p->wanted[k], p->places.arena);
    memset(m->arena + p->scratch[k], 0xff, p->wanted[k]);
}

static void run_program(const struct program *p, struct memory *m)
{
    for (uint32_t i = 0; i < p->places.nvalue; i++)
        if (p->input[i])
            put(p, m, i);
    for (size_t k = 0; k < p->places.nstep; k++) {
        const struct mp_step *s = &p->step[k];

        use_scratch(p, m, k);
        for (int i = 0; i < s->nin; i++) {
            if (s->in[i] == MP_NO_VALUE ||
                p->value[s->in[i]].place == MP_CONSTANT)
                continue;
            is_there(p, m, s->in[i]);
            is_apart(p, s, i);
        }
        put(p, m, s->out);
        use_scratch(p, m, k);
        is_there(p, m, s->out);
    }
    for (size_t i = 0; i < p->places.noutput; i++) {
        is_there(p, m, p->output[i]);
        if (p->places.outside) /* nobody has to copy it out of the arena */
            ck_assert_int_eq(p->value[p->output[i]].place, MP_OUTSIDE);
    }
}

/* The bytes that are alive at the same time at most, as a bound from below: of
 * programs with nothing outside, whatever takes another's place. */
static size_t alive(const struct program *p)
{
    size_t most = 0;

    for (size_t k = 0; k < p->places.nstep; k++) {
        size_t sum = 0;

        for (uint32_t r = 0; r < p->places.nvalue; r++) {
            int made = p->input[r], read = 0;

            for (size_t j = 0; j < p->places.nstep; j++) {
                made |= j < k && p->step[j].out == r;
                for (int i = 0; j >= k && i < p->step[j].nin; i++)
                    read |= p->step[j].in[i] != MP_NO_VALUE &&
                            p->root[p->step[j].in[i]] == r;
            }
            for (size_t i = 0; i < p->places.noutput; i++)
                read |= p->root[p->output[i]] == r;
            if (made && read && p->value[r].place != MP_CONSTANT)
                sum += mp_value_bytes(&p->value[r]);
        }
        most = sum > most ? sum : most;
    }
    return most;
}

/* How many steps have it. */
static size_t find_scratch(struct program *p)
{
    const struct mp_program program = {.nvalue = p->places.nvalue,
                                       .nstep = p->places.nstep,
                                       .value = p->value,
                                       .step = p->step,
                                       .arena = p->places.arena};
    struct mp_error err = {0};
    size_t n = 0;

    for (size_t k = 0; k < p->places.nstep; k++)
        p->scratch[k] = p->wanted[k] = below(2) ? 0 : 1 + below(1000);
    ck_assert_int_eq(mp_places_scratch(p->scratch, &program, &err), 0);
    for (size_t k = 0; k < p->places.nstep; k++)
        n += p->wanted[k] && p->scratch[k] != MP_NO_ROOM;
    return n;
}

START_TEST(nothing_is_overwritten)
{
    static struct memory m;
    struct mp_error err = {0};
    size_t shared = 0, scratch = 0;

    for (int round = 0; round < ROUNDS; round++) {
        struct program p;

        make_program(&p, _i);
        ck_assert_int_eq(mp_places_find(&p.places, &err), 0);
        if (_i)
            scratch += find_scratch(&p);
        run_program(&p, &m);
        for (size_t k = 0; k < p.places.nstep; k++)
            for (int i = 0; i < p.step[k].nin; i++)
                shared += p.step[k].in[i] != MP_NO_VALUE &&
                          p.value[p.step[k].in[i]].place ==
                              p.value[p.step[k].out].place &&
                          p.value[p.step[k].in[i]].offset ==
                              p.value[p.step[k].out].offset;
        for (uint32_t i = 0; _i && i < p.places.nvalue; i++)
            if (p.input[i]) /* memory of others */
                is_there(&p, &m, i);
    }
    printf("%s: %d programs, %zu results in the place of an input, %zu steps "
           "with scratch\n",
           _i ? "outside" : "all in the arena", ROUNDS, shared, scratch);
    ck_assert_uint_gt(shared, ROUNDS);
    ck_assert(!_i || scratch > ROUNDS);
}
END_TEST

START_TEST(arena_is_small)
{
    struct mp_error err = {0};
    double taken = 0, needed = 0;

    for (int round = 0; round < ROUNDS / 10; round++) {
        struct program p;

        make_program(&p, 0);
        needed += (double)alive(&p);
        ck_assert_int_eq(mp_places_find(&p.places, &err), 0);
        ck_assert_uint_ge(p.places.arena, alive(&p));
        taken += (double)p.places.arena;
    }
    printf("arenas take %.2f times what is alive at once\n", taken / needed);
    ck_assert(taken < 1.5 * needed);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("places");
    TCase *t = tcase_create("random");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, nothing_is_overwritten, 0, 2);
    tcase_add_test(t, arena_is_small);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
