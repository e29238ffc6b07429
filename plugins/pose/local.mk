# SPDX-License-Identifier: MIT

plugins_LTLIBRARIES += plugins/pose.la
plugins_pose_la_SOURCES = \
	%reldir%/person.c \
	%reldir%/pose.c %reldir%/pose.h \
	%reldir%/result.c
plugins_pose_la_LDFLAGS = $(head_ldflags)
plugins_pose_la_LIBADD = libmpipe.la
