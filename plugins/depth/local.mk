# SPDX-License-Identifier: MIT

plugins_LTLIBRARIES += plugins/depth.la
plugins_depth_la_SOURCES = \
	%reldir%/depth.c %reldir%/depth.h \
	%reldir%/results.c
plugins_depth_la_LDFLAGS = $(head_ldflags)
plugins_depth_la_LIBADD = libmpipe.la
