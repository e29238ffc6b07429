/* SPDX-License-Identifier: MIT */
/* page.h - the status page: one text, nothing from elsewhere. */
#ifndef CORE_DAEMON_PAGE_H
#define CORE_DAEMON_PAGE_H

extern const char mp_page[];
/* What a browser may do on it. */
#define MP_PAGE_POLICY                                                         \
    "default-src 'none'; style-src 'unsafe-inline'; script-src "               \
    "'unsafe-inline'; img-src blob:; connect-src 'self'; base-uri 'none'; "    \
    "form-action 'none'; frame-ancestors 'none'"

#endif
