/* SPDX-License-Identifier: MIT */
/* route.c - tables of addresses. */
#include <stdio.h>
#include <string.h>
#include "config.h"
#include "route.h"

static const struct {
    const char *path;
    enum mp_route route;
} fixed[] = {
    {"/", MP_ROUTE_PAGE},
    {"/metrics", MP_ROUTE_METRICS},
    {"/errors", MP_ROUTE_ERRORS},
    {"/v2", MP_ROUTE_SERVER},
    {"/v2/", MP_ROUTE_SERVER},
    {"/v2/health/live", MP_ROUTE_LIVE},
    {"/v2/health/ready", MP_ROUTE_ALL_READY},
    {"/v2/models/stats", MP_ROUTE_ALL_STATS},
    {"/v2/repository/index", MP_ROUTE_INDEX},
};
static const struct {
    const char *path;
    enum mp_route route;
} of_model[] = {
    {"", MP_ROUTE_MODEL},
    {"/ready", MP_ROUTE_MODEL_READY},
    {"/config", MP_ROUTE_MODEL_CONFIG},
    {"/stats", MP_ROUTE_MODEL_STATS},
    {"/infer", MP_ROUTE_INFER},
    {"/trace/setting", MP_ROUTE_NOT_HERE},
    {"/generate", MP_ROUTE_NOT_HERE},
    {"/generate_stream", MP_ROUTE_NOT_HERE},
};
static const char *const elsewhere[] = {"/v2/logging", "/v2/trace/",
                                        "/v2/systemsharedmemory",
                                        "/v2/cudasharedmemory"};

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* The part up to the next slash, if it can be a name. */
static const char *take_name(char model[MP_ROUTE_NAME], const char *path)
{
    size_t n = strcspn(path, "/");

    if (!mp_is_name(path, n) || n >= MP_ROUTE_NAME)
        return NULL;
    snprintf(model, MP_ROUTE_NAME, "%.*s", (int)n, path);
    return path + n;
}

static enum mp_route model_route(char model[MP_ROUTE_NAME], const char *path)
{
    static const char version[] = "/versions/1";
    const char *rest = take_name(model, path);

    if (!rest)
        return MP_ROUTE_NOWHERE;
    if (!strncmp(rest, version, strlen(version)))
        rest += strlen(version);
    for (size_t i = 0; i < COUNT(of_model); i++)
        if (!strcmp(rest, of_model[i].path))
            return of_model[i].route;
    return MP_ROUTE_NOWHERE;
}

enum mp_route mp_route_find(char model[MP_ROUTE_NAME], const char *url)
{
    static const char models[] = "/v2/models/";
    static const char repository[] = "/v2/repository/models/";
    const char *rest;

    for (size_t i = 0; i < COUNT(fixed); i++)
        if (!strcmp(url, fixed[i].path))
            return fixed[i].route;
    for (size_t i = 0; i < COUNT(elsewhere); i++)
        if (!strncmp(url, elsewhere[i], strlen(elsewhere[i])))
            return MP_ROUTE_NOT_HERE;
    if (!strncmp(url, models, strlen(models)))
        return model_route(model, url + strlen(models));
    if (strncmp(url, repository, strlen(repository)) ||
        !(rest = take_name(model, url + strlen(repository))))
        return MP_ROUTE_NOWHERE;
    return !strcmp(rest, "/load")     ? MP_ROUTE_LOAD
           : !strcmp(rest, "/unload") ? MP_ROUTE_UNLOAD
                                      : MP_ROUTE_NOWHERE;
}

int mp_route_is_post(enum mp_route r)
{
    return r == MP_ROUTE_INFER || r == MP_ROUTE_INDEX || r == MP_ROUTE_LOAD ||
           r == MP_ROUTE_UNLOAD;
}
