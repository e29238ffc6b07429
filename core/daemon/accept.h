/* SPDX-License-Identifier: MIT */
/*
 * accept.h - what a client says that it accepts: lists of types or codings with
 * weights, as in "image/png, application/json;q=0.5". Threads: no state.
 */
#ifndef CORE_DAEMON_ACCEPT_H
#define CORE_DAEMON_ACCEPT_H

/* What a plain result is to be, by the header Accept, NULL: none. */
enum mp_accept {
    MP_ACCEPT_NONE, /* nothing that there is */
    MP_ACCEPT_ANY,
    MP_ACCEPT_PNG,
    MP_ACCEPT_JSON,
    MP_ACCEPT_NPY
};
enum mp_accept mp_accept_type(const char *list);

/* Whether Accept-Encoding, NULL: none, names this coding. */
int mp_accept_coding(const char *list, const char *coding);

#endif
