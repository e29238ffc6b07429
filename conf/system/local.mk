# SPDX-License-Identifier: MIT
# What the system needs to know of mpiped. Below the prefix; a package says
# where else: make install systemdsystemunitdir=/usr/lib/systemd/system

EXTRA_DIST += \
	%reldir%/completion.bash \
	%reldir%/mpiped-gpu.service.in \
	%reldir%/mpiped.service.in \
	%reldir%/mpiped.socket \
	%reldir%/sysusers.conf \
	%reldir%/tmpfiles.conf

systemdsystemunitdir = $(prefix)/lib/systemd/system
sysusersdir = $(prefix)/lib/sysusers.d
tmpfilesdir = $(prefix)/lib/tmpfiles.d
completionsdir = $(datadir)/bash-completion/completions

units = %reldir%/mpiped.service %reldir%/mpiped-gpu.service
if DAEMON
nodist_systemdsystemunit_DATA = $(units) %reldir%/mpiped.socket
CLEANFILES += $(units)
$(units): Makefile
	$(AM_V_GEN)$(MKDIR_P) %reldir% && sed \
		-e 's,@sbindir\@,$(sbindir),' -e 's,@sysconfdir\@,$(sysconfdir),' \
		$(srcdir)/$@.in > $@
%reldir%/mpiped.service: %reldir%/mpiped.service.in
%reldir%/mpiped-gpu.service: %reldir%/mpiped-gpu.service.in

install-data-hook: install-system
install-system:
	$(MKDIR_P) "$(DESTDIR)$(sysusersdir)" "$(DESTDIR)$(tmpfilesdir)"
	$(INSTALL_DATA) $(srcdir)/%reldir%/sysusers.conf \
		"$(DESTDIR)$(sysusersdir)/mpipe.conf"
	$(INSTALL_DATA) $(srcdir)/%reldir%/tmpfiles.conf \
		"$(DESTDIR)$(tmpfilesdir)/mpipe.conf"
uninstall-hook: uninstall-system
uninstall-system:
	rm -f "$(DESTDIR)$(sysusersdir)/mpipe.conf" \
		"$(DESTDIR)$(tmpfilesdir)/mpipe.conf"
endif

# One file for all programs; bash looks for it by the program's name.
install-data-local:
	$(MKDIR_P) "$(DESTDIR)$(completionsdir)"
	$(INSTALL_DATA) $(srcdir)/%reldir%/completion.bash \
		"$(DESTDIR)$(completionsdir)/mpipe"
	cd "$(DESTDIR)$(completionsdir)" && \
		for p in mpiped mpipe-eval mpipe-inspect; do $(LN_S) -f mpipe $$p; done
uninstall-local:
	cd "$(DESTDIR)$(completionsdir)" && rm -f mpipe mpiped mpipe-eval \
		mpipe-inspect
