/* SPDX-License-Identifier: MIT */
/* Whose turn it is. */
#include <check.h>
#include <string.h>

#include "daemon/queue.h"

static struct mp_queue q;
static struct mp_queued e[8];

static void put(int i, int priority, uint64_t client, double deadline)
{
    e[i] = (struct mp_queued){
        .priority = priority, .client = client, .deadline = deadline};
    ck_assert_int_eq(mp_queue_put(&q, &e[i]), 0);
}

static struct mp_queued *take(void)
{
    struct mp_queued *next = mp_queue_next(&q);

    if (next)
        mp_queue_drop(&q, next);
    return next;
}

/* "031": in this order they are taken. */
static void taken(const char *order)
{
    for (; *order; order++)
        ck_assert_int_eq(take() - e, *order - '0');
    ck_assert_ptr_null(take());
    ck_assert_uint_eq(q.n, 0);
}

START_TEST(old_first)
{
    mp_queue_init(&q, 8);
    put(0, 5, 1, 0);
    put(1, 5, 1, 0);
    put(2, 5, 1, 0);
    taken("012");
}
END_TEST

START_TEST(urgent_first)
{
    mp_queue_init(&q, 8);
    put(0, 5, 1, 0);
    put(1, 9, 2, 0);
    put(2, 1, 1, 0);
    put(3, 1, 1, 0);
    taken("2301");
}
END_TEST

START_TEST(clients_take_turns)
{
    mp_queue_init(&q, 8);
    for (int i = 0; i < 4; i++)
        put(i, 5, 1, 0);
    put(4, 5, 2, 0);
    put(5, 5, 2, 0);
    put(6, 5, 3, 0);
    taken("0461523");
}
END_TEST

/* One that stays, as it has several pictures, takes turns like others, and is
 * the first of its client. */
START_TEST(several_turns)
{
    mp_queue_init(&q, 8);
    put(0, 5, 1, 0);
    put(1, 5, 1, 0);
    put(2, 5, 2, 0);
    put(3, 5, 2, 0);
    ck_assert_ptr_eq(mp_queue_next(&q), &e[0]);
    ck_assert_ptr_eq(take(), &e[2]);
    ck_assert_ptr_eq(mp_queue_next(&q), &e[0]);
    ck_assert_uint_eq(q.n, 3);
    ck_assert_ptr_eq(mp_queue_next(&q), &e[3]);
    taken("031");
}
END_TEST

START_TEST(full)
{
    mp_queue_init(&q, 2);
    put(0, 5, 1, 0);
    put(1, 5, 1, 0);
    e[2] = (struct mp_queued){.priority = 1};
    ck_assert_int_eq(mp_queue_put(&q, &e[2]), -1);
    mp_queue_drop(&q, &e[0]);
    ck_assert_ptr_null(e[0].next);
    ck_assert_int_eq(mp_queue_put(&q, &e[2]), 0);
    taken("21");
}
END_TEST

/* More clients than are remembered: nobody is lost. */
START_TEST(many_clients)
{
    struct mp_queued many[2 * MP_QUEUE_CLIENTS] = {{0}};
    int got[2 * MP_QUEUE_CLIENTS] = {0};

    mp_queue_init(&q, 2 * MP_QUEUE_CLIENTS);
    for (int i = 0; i < 2 * MP_QUEUE_CLIENTS; i++) {
        many[i].client = (uint64_t)i;
        ck_assert_int_eq(mp_queue_put(&q, &many[i]), 0);
    }
    for (int i = 0; i < 2 * MP_QUEUE_CLIENTS; i++)
        got[take() - many]++;
    for (int i = 0; i < 2 * MP_QUEUE_CLIENTS; i++)
        ck_assert_int_eq(got[i], 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("queue");
    TCase *c = tcase_create("queue");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_test(c, old_first);
    tcase_add_test(c, urgent_first);
    tcase_add_test(c, clients_take_turns);
    tcase_add_test(c, several_turns);
    tcase_add_test(c, full);
    tcase_add_test(c, many_clients);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
