/* SPDX-License-Identifier: MIT */
/* accept.c - see accept.h. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "accept.h"

#define BLANK " \t"

struct item {
    const char *at;
    size_t n; /* of the name, without parameters */
    double weight;
};

/* The next one, and the list behind it; 0: the end. */
static int next_item(const char **list, struct item *it)
{
    const char *at = *list + strspn(*list, BLANK ",");
    size_t n = strcspn(at, ",");
    const char *q;

    if (!n)
        return 0;
    *list = at + n;
    *it = (struct item){at, strcspn(at, ",;" BLANK), 1};
    for (q = memchr(at, ';', n); q; q = memchr(q, ';', (size_t)(*list - q))) {
        q += 1 + strspn(q + 1, BLANK);
        if (!strncasecmp(q, "q=", 2))
            it->weight = strtod(q + 2, NULL);
    }
    return 1;
}

static int is_name(const struct item *it, const char *name)
{
    return it->n == strlen(name) && !strncasecmp(it->at, name, it->n);
}

static enum mp_accept type_of(const struct item *it)
{
    static const struct {
        const char *name;
        enum mp_accept type;
    } table[] = {
        {"*/*", MP_ACCEPT_ANY},
        {"image/png", MP_ACCEPT_PNG},
        {"image/*", MP_ACCEPT_PNG},
        {"application/json", MP_ACCEPT_JSON},
        {"application/octet-stream", MP_ACCEPT_NPY},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (is_name(it, table[i].name))
            return table[i].type;
    return MP_ACCEPT_NONE;
}

/* The heaviest; of equals, the first. */
enum mp_accept mp_accept_type(const char *list)
{
    enum mp_accept best = MP_ACCEPT_NONE;
    double weight = 0;
    struct item it;

    if (!list || !*list)
        return MP_ACCEPT_ANY;
    while (next_item(&list, &it))
        if (it.weight > weight && type_of(&it) != MP_ACCEPT_NONE) {
            best = type_of(&it);
            weight = it.weight;
        }
    return best;
}

int mp_accept_coding(const char *list, const char *coding)
{
    struct item it;

    while (list && next_item(&list, &it))
        if (is_name(&it, coding))
            return it.weight > 0;
    return 0;
}
