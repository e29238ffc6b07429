# SPDX-License-Identifier: MIT

libmpipe_la_SOURCES += \
	%reldir%/backbone.h \
	%reldir%/encoder.c \
	%reldir%/refine.c \
	%reldir%/unet.c \
	%reldir%/vae.c
