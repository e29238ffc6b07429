/* SPDX-License-Identifier: MIT */
/* route.h - which address means what: mpipe_http(7). Threads: no state. */
#ifndef CORE_DAEMON_ROUTE_H
#define CORE_DAEMON_ROUTE_H

enum mp_route {
    MP_ROUTE_NOWHERE,
    MP_ROUTE_PAGE,
    MP_ROUTE_METRICS,
    MP_ROUTE_SERVER,
    MP_ROUTE_LIVE,
    MP_ROUTE_ALL_READY,
    MP_ROUTE_ALL_STATS,
    MP_ROUTE_MODEL,
    MP_ROUTE_MODEL_READY,
    MP_ROUTE_MODEL_CONFIG,
    MP_ROUTE_MODEL_STATS,
    MP_ROUTE_INFER,
    MP_ROUTE_INDEX,
    MP_ROUTE_LOAD,
    MP_ROUTE_UNLOAD,
    MP_ROUTE_ERRORS,
    MP_ROUTE_NOT_HERE
};

#define MP_ROUTE_NAME 64 /* bytes of a model's name, with its end */

/* model: set if the address has one. */
enum mp_route mp_route_find(char model[MP_ROUTE_NAME], const char *url);
/* By POST; else by GET or HEAD. */
int mp_route_is_post(enum mp_route r);

#endif
