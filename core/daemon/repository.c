/* SPDX-License-Identifier: MIT */
/* repository.c - see repository.h. */
#include <jansson.h>
#include <string.h>
#include "repository.h"

/* New; an empty body is an empty object. */
static json_t *parse(const void *body, size_t n, struct mp_error *err)
{
    json_error_t why;
    json_t *o =
        n ? json_loadb(body, n, JSON_REJECT_DUPLICATES, &why) : json_object();

    if (json_is_object(o))
        return o;
    mp_fail(err, MP_EINVAL, "the request is no JSON object: %s",
            o || !n ? "something else" : why.text);
    json_decref(o);
    return NULL;
}

/* key is true or false, or not there. */
static int take_flag(int *out, const json_t *o, const char *key,
                     struct mp_error *err)
{
    const json_t *v = json_object_get(o, key);

    if (v && !json_is_boolean(v))
        return mp_fail(err, MP_EINVAL, "%s: true or false", key);
    *out = json_is_true(v);
    return 0;
}

int mp_repository_index(const void *body, size_t n, int *ready,
                        struct mp_error *err)
{
    json_t *o = parse(body, n, err);
    int rc = o ? take_flag(ready, o, "ready", err) : MP_EINVAL;

    json_decref(o);
    return rc;
}

static int check_parameter(const char *key, const json_t *v,
                           struct mp_error *err)
{
    if (!strcmp(key, "unload_dependents"))
        return json_is_boolean(v)
                   ? 0
                   : mp_fail(err, MP_EINVAL, "%s: true or false", key);
    if (!strcmp(key, "config") || !strncmp(key, "file:", 5))
        return mp_fail(err, MP_ENOTSUP,
                       "parameter %.60s: what a model is, mpiped's "
                       "configuration says, not its clients",
                       key);
    return mp_fail(err, MP_EINVAL, "parameter %.60s: there is none", key);
}

int mp_repository_change(const void *body, size_t n, struct mp_error *err)
{
    json_t *o = parse(body, n, err);
    json_t *all = json_object_get(o, "parameters"), *v;
    int rc = o ? 0 : MP_EINVAL;
    const char *key;

    if (all && !json_is_object(all))
        rc = mp_fail(err, MP_EINVAL, "parameters: an object");
    json_object_foreach(all, key, v) if (!rc) rc = check_parameter(key, v, err);
    json_decref(o);
    return rc;
}
