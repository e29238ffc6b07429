# SPDX-License-Identifier: MIT

dist_man_MANS = \
	%reldir%/mpipe-eval.1 \
	%reldir%/mpipe-inspect.1 \
	%reldir%/mpipe.1 \
	%reldir%/mpipe.conf.5 \
	%reldir%/mpipe_pose.7 \
	%reldir%/mpipe_plugin.3
if DAEMON
dist_man_MANS += \
	%reldir%/mpipe_http.7 \
	%reldir%/mpiped.8 \
	%reldir%/mpiped.conf.5
else
EXTRA_DIST += \
	%reldir%/mpipe_http.7 \
	%reldir%/mpiped.8 \
	%reldir%/mpiped.conf.5
endif
