/* SPDX-License-Identifier: MIT */
/* repository.c - see repository.h. */
#include <jansson.h>
#include <string.h>
#include "json.h"
#include "repository.h"

/* *out is new, or NULL; an empty body is an empty object. */
static int parse(json_t **out, const void *body, size_t n, struct mp_error *err)
{
    json_error_t why;
    int rc = 0;

    *out = NULL;
    if (n)
        rc = mp_json_parse(out, body, n, &why, err);
    else if (!(*out = json_object()))
        rc = mp_fail(err, MP_ENOMEM, "out of memory");
    if (rc == MP_ENOMEM || json_is_object(*out))
        return rc;
    rc = mp_fail(err, MP_EINVAL, "the request is no JSON object: %s",
                 *out ? "something else" : why.text);
    json_decref(*out);
    *out = NULL;
    return rc;
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
    json_t *o;
    int rc = parse(&o, body, n, err);

    if (!rc)
        rc = take_flag(ready, o, "ready", err);
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
    json_t *o, *all, *v;
    int rc = parse(&o, body, n, err);
    const char *key;

    all = json_object_get(o, "parameters");
    if (all && !json_is_object(all))
        rc = mp_fail(err, MP_EINVAL, "parameters: an object");
    json_object_foreach(all, key, v) if (!rc) rc = check_parameter(key, v, err);
    json_decref(o);
    return rc;
}
