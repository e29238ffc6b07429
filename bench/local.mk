# SPDX-License-Identifier: MIT

EXTRA_DIST += \
	%reldir%/RESULTS.md \
	%reldir%/bench.sh \
	%reldir%/daemon.sh \
	%reldir%/gpu.sh \
	%reldir%/peer.py \
	%reldir%/peer_net.py

noinst_PROGRAMS += %reldir%/bench
%canon_reldir%_bench_SOURCES = \
	%reldir%/bench.c \
	%reldir%/peak.c %reldir%/peak.h
%canon_reldir%_bench_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS)
%canon_reldir%_bench_LDADD = tests/libhelp.la libmpipe.la $(JANSSON_LIBS)

# Pictures of the sizes that protocols have.
noinst_PROGRAMS += %reldir%/resize
%canon_reldir%_resize_LDADD = libmpipe.la

.PHONY: bench
bench: all $(demo_weights)
	$(uninstalled) builddir='$(abs_builddir)' srcdir='$(abs_srcdir)' \
	$(SHELL) $(srcdir)/bench/bench.sh

# What mpiped costs, by a client of its own.
noinst_PROGRAMS += %reldir%/load
.PHONY: bench-daemon
bench-daemon: all $(demo_weights) tests/trouble.la
	$(uninstalled); export MPIPE_PLUGIN_PATH MPIPE_BACKEND_PATH \
		MPIPE_DATA_PATH MPIPE_MODEL_PATH; \
	builddir='$(abs_builddir)' srcdir='$(abs_srcdir)' \
	$(SHELL) $(srcdir)/bench/daemon.sh
