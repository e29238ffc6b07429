# SPDX-License-Identifier: MIT

dist_man_MANS = \
	%reldir%/mpipe-eval.1 \
	%reldir%/mpipe-inspect.1 \
	%reldir%/mpipe.1 \
	%reldir%/mpipe.conf.5 \
	%reldir%/mpipe_pose.7 \
	%reldir%/mpipe_plugin.3
