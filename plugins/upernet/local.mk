# SPDX-License-Identifier: MIT

plugins_LTLIBRARIES += plugins/upernet.la
plugins_upernet_la_SOURCES = %reldir%/upernet.c
plugins_upernet_la_LDFLAGS = $(head_ldflags)
plugins_upernet_la_LIBADD = libmpipe.la
