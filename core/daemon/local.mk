# SPDX-License-Identifier: MIT

EXTRA_DIST += %reldir%/page.html

if DAEMON
# All of mpiped but its main, so that tests reach the parts.
noinst_LTLIBRARIES += %reldir%/libmpiped.la
%canon_reldir%_libmpiped_la_SOURCES = \
	%reldir%/about.c %reldir%/about.h \
	%reldir%/accept.c %reldir%/accept.h \
	%reldir%/answer.c %reldir%/answer.h \
	%reldir%/ask.c %reldir%/ask.h \
	%reldir%/config.c %reldir%/config.h \
	%reldir%/front.c %reldir%/front.h %reldir%/front_impl.h \
	%reldir%/front_process.c %reldir%/front_request.c \
	%reldir%/front_tell.c %reldir%/front_usage.c \
	%reldir%/http.c %reldir%/http.h %reldir%/http_impl.h \
	%reldir%/http_head.c %reldir%/http_send.c \
	%reldir%/link.c %reldir%/link.h \
	%reldir%/page.h \
	%reldir%/queue.c %reldir%/queue.h \
	%reldir%/repository.c %reldir%/repository.h \
	%reldir%/route.c %reldir%/route.h \
	%reldir%/system.c %reldir%/system.h \
	%reldir%/tally.c %reldir%/tally.h \
	%reldir%/tensor.c %reldir%/tensor.h \
	%reldir%/worker.c %reldir%/worker.h %reldir%/worker_impl.h \
	%reldir%/worker_load.c %reldir%/worker_task.c \
	%reldir%/worker_usage.c \
	%reldir%/zip.c %reldir%/zip.h
nodist_%canon_reldir%_libmpiped_la_SOURCES = %reldir%/page.c
%canon_reldir%_libmpiped_la_LIBADD = libmpipe.la $(MICROHTTPD_LIBS) \
	$(ZLIB_LIBS) $(JANSSON_LIBS)

sbin_PROGRAMS += mpiped
mpiped_SOURCES = core/mpiped_main.c
mpiped_LDADD = %reldir%/libmpiped.la libmpipe.la

# The page as a C text.
CLEANFILES += %reldir%/page.c
%reldir%/page.c: %reldir%/page.html
	$(AM_V_GEN)$(MKDIR_P) %reldir% && { \
	    echo '/* Made from page.html. */'; echo '#include "daemon/page.h"'; \
	    echo 'const char mp_page[] ='; \
	    sed -e 's/[\\"]/\\&/g' -e 's/^/"/' -e 's/$$/\\n"/' \
	        $(srcdir)/%reldir%/page.html; echo ';'; } > $@
endif
