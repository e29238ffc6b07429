# SPDX-License-Identifier: MIT

# A test: one line here, and its one source. A shell test needs no Check.
unit_tests = \
	%reldir%/test_autotune \
	%reldir%/test_base \
	%reldir%/test_batch \
	%reldir%/test_boxes \
	%reldir%/test_classes \
	%reldir%/test_coco \
	%reldir%/test_conf \
	%reldir%/test_depth \
	%reldir%/test_eval \
	%reldir%/test_fold \
	%reldir%/test_heads \
	%reldir%/test_host \
	%reldir%/test_image \
	%reldir%/test_inputs \
	%reldir%/test_job \
	%reldir%/test_kernels \
	%reldir%/test_metrics \
	%reldir%/test_module \
	%reldir%/test_net \
	%reldir%/test_ops \
	%reldir%/test_places \
	%reldir%/test_png_fast \
	%reldir%/test_pose \
	%reldir%/test_protocol \
	%reldir%/test_resize \
	%reldir%/test_session \
	%reldir%/test_share \
	%reldir%/test_train \
	%reldir%/test_weights
shell_tests = \
	%reldir%/cli.sh \
	%reldir%/cuda.sh \
	%reldir%/depth.sh \
	%reldir%/eval.sh \
	%reldir%/faults.sh \
	%reldir%/inspect.sh \
	%reldir%/layers.sh \
	%reldir%/mpiped.sh \
	%reldir%/options.sh \
	%reldir%/seg.sh \
	%reldir%/triton.sh \
	%reldir%/units.sh

# Parts of a module, with a device of its own.
%canon_reldir%_test_autotune_SOURCES = %reldir%/test_autotune.c \
	core/cuda/choices.c core/cuda/choices.h core/cuda/lib.c core/cuda/lib.h
%canon_reldir%_test_autotune_CPPFLAGS = $(AM_CPPFLAGS) \
	-I$(srcdir)/%reldir%/sim

# What tests of heads share.
%canon_reldir%_test_depth_SOURCES = %reldir%/test_depth.c \
	%reldir%/heads.c %reldir%/heads.h
%canon_reldir%_test_heads_SOURCES = %reldir%/test_heads.c \
	%reldir%/heads.c %reldir%/heads.h
%canon_reldir%_test_resize_SOURCES = %reldir%/test_resize.c \
	%reldir%/heads.c %reldir%/heads.h

# Kernels are no part of the library's interface: compiled in.
%canon_reldir%_test_kernels_SOURCES = %reldir%/test_kernels.c \
	core/cpu/attention.c core/cpu/attention_wide.c \
	core/cpu/blocks.c core/cpu/norm.c \
	core/cpu/pointwise.c core/cpu/reorder.c core/cpu/spatial.c \
	core/cpu/kernels.h core/cpu/simd.h
%canon_reldir%_test_kernels_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS) \
	-ffp-contract=fast
%canon_reldir%_test_kernels_LDADD = $(LDADD) $(ONEDNN_LIBS)

# It compares with libpng itself.
%canon_reldir%_test_png_fast_LDADD = $(LDADD) $(PNG_LIBS)

# The head's parts, beside the head itself.
%canon_reldir%_test_pose_SOURCES = %reldir%/test_pose.c \
	%reldir%/heads.c %reldir%/heads.h \
	plugins/pose/person.c plugins/pose/pose.h plugins/pose/result.c
%canon_reldir%_test_pose_CFLAGS = $(AM_CFLAGS)

if DAEMON
daemon_tests = \
	%reldir%/test_http \
	%reldir%/test_ask \
	%reldir%/test_faults \
	%reldir%/test_queue \
	%reldir%/test_system
%canon_reldir%_test_ask_LDADD = core/daemon/libmpiped.la $(LDADD)
%canon_reldir%_test_faults_SOURCES = %reldir%/test_faults.c \
	%reldir%/served.c %reldir%/served.h %reldir%/inject.h
%canon_reldir%_test_http_SOURCES = %reldir%/test_http.c \
	%reldir%/served.c %reldir%/served.h
%canon_reldir%_test_http_LDADD = $(LDADD) $(ZLIB_LIBS)
%canon_reldir%_test_queue_LDADD = core/daemon/libmpiped.la $(LDADD)
%canon_reldir%_test_system_LDADD = core/daemon/libmpiped.la $(LDADD)
endif

# Preloaded into programs, it makes what they ask of the system fail.
check_LTLIBRARIES += %reldir%/inject.la
%canon_reldir%_inject_la_SOURCES = %reldir%/inject.c %reldir%/inject.h
%canon_reldir%_inject_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-rpath $(abs_builddir)

# A head to try patience with; -rpath, or libtool makes no shared object.
check_LTLIBRARIES += %reldir%/trouble.la
%canon_reldir%_trouble_la_SOURCES = %reldir%/trouble.c
%canon_reldir%_trouble_la_LDFLAGS = $(head_ldflags) -rpath $(abs_builddir)
%canon_reldir%_trouble_la_LIBADD = libmpipe.la

LDADD = %reldir%/libhelp.la libmpipe.la $(CHECK_LIBS) $(JANSSON_LIBS)
noinst_LTLIBRARIES += %reldir%/libhelp.la
%canon_reldir%_libhelp_la_SOURCES = \
	%reldir%/golden.c %reldir%/golden.h \
	%reldir%/make_weights.c %reldir%/make_weights.h

# The CUDA backend without a GPU: its code as it is, on a driver that runs its
# kernels as C++.
if HAVE_CXX
check_LTLIBRARIES += %reldir%/sim/gpusim.la %reldir%/sim/libcuda.la
endif
# -rpath: a check_ library is static otherwise.
sim_ldflags = $(AM_LDFLAGS) -module -avoid-version -shared -rpath /nowhere
sim_cppflags = $(AM_CPPFLAGS) -I$(srcdir)/%reldir%/sim
%canon_reldir%_sim_libcuda_la_SOURCES = %reldir%/sim/cuda.h \
	%reldir%/sim/libcuda.cc %reldir%/sim/sim.cc %reldir%/sim/sim.h
%canon_reldir%_sim_libcuda_la_CPPFLAGS = $(sim_cppflags)
%canon_reldir%_sim_libcuda_la_CXXFLAGS = $(AM_CXXFLAGS) -O2 -ffp-contract=off \
	-fvisibility=hidden
%canon_reldir%_sim_libcuda_la_LDFLAGS = $(sim_ldflags)
%canon_reldir%_sim_gpusim_la_SOURCES = $(cuda_host) \
	%reldir%/sim/images.c \
	%reldir%/sim/module.c \
	%reldir%/sim/vendor.c
%canon_reldir%_sim_gpusim_la_CPPFLAGS = $(sim_cppflags) \
	-DMP_CUDA_DRIVER='"$(abs_builddir)/%reldir%/sim/.libs/libcuda.so"' \
	-DMP_CUDA_RING='((size_t)64 << 10)' -DMP_CUDA_TAPS='((size_t)16 << 10)'
%canon_reldir%_sim_gpusim_la_LDFLAGS = $(head_ldflags) -rpath /nowhere
%canon_reldir%_sim_gpusim_la_LIBADD = libmpipe.la

if HAVE_CUDA
vendor_tests = %reldir%/cudnn_plans %reldir%/lt_choices
check_PROGRAMS += $(vendor_tests)
TESTS += $(vendor_tests)
endif
%canon_reldir%_cudnn_plans_SOURCES = %reldir%/cudnn_plans.c \
	core/cuda/lib_cudnn.c core/cuda/lib.h
%canon_reldir%_cudnn_plans_CPPFLAGS = $(AM_CPPFLAGS) $(CUDA_CFLAGS) \
	-DMP_CUDA_LIBDIR='"$(CUDA_LIBDIR)"'
%canon_reldir%_cudnn_plans_LDADD = libmpipe.la
%canon_reldir%_lt_choices_SOURCES = %reldir%/lt_choices.c \
	core/cuda/lib_lt.c core/cuda/lib.h
%canon_reldir%_lt_choices_CPPFLAGS = $(AM_CPPFLAGS) $(CUDA_CFLAGS)
%canon_reldir%_lt_choices_LDADD = libmpipe.la

# The longest first: several at a time end together.
if HAVE_CHECK
check_PROGRAMS += $(unit_tests) $(daemon_tests)
TESTS += $(daemon_tests) $(shell_tests) $(unit_tests)
else
check-local:
	@echo "Check was not found when mpipe was configured:" \
		"its unit tests were not built."
TESTS += $(shell_tests)
endif
TEST_EXTENSIONS = .sh
SH_LOG_COMPILER = $(SHELL)
# Check's limits are for what hangs, not for machines that are slow. Tests run
# side by side: threads that wait shall leave the processor to the others.
AM_TESTS_ENVIRONMENT = builddir='$(abs_builddir)' $(uninstalled) \
	MPIPE_TEST_SIM='$(abs_builddir)/%reldir%/sim' \
	CK_DEFAULT_TIMEOUT=60 CK_TIMEOUT_MULTIPLIER=4 OMP_WAIT_POLICY=passive; \
	export builddir MPIPE_PLUGIN_PATH MPIPE_BACKEND_PATH \
	MPIPE_DATA_PATH MPIPE_MODEL_PATH MPIPE_TEST_SIM \
	CK_DEFAULT_TIMEOUT CK_TIMEOUT_MULTIPLIER OMP_WAIT_POLICY;

# Checkpoints of made-up numbers for the demo, from the tests' key lists.
noinst_PROGRAMS += %reldir%/make_weights
%canon_reldir%_make_weights_SOURCES = %reldir%/make_weights_main.c
%canon_reldir%_make_weights_LDADD = %reldir%/libhelp.la libmpipe.la \
	$(JANSSON_LIBS)

# For full.sh; it wants gigabytes, so it is none of the tests.
noinst_PROGRAMS += %reldir%/full_net
%canon_reldir%_full_net_SOURCES = %reldir%/full_net.c
%canon_reldir%_full_net_LDADD = %reldir%/libhelp.la libmpipe.la \
	$(JANSSON_LIBS)

demo_weights = models/demo-depth.safetensors models/demo-pose.safetensors \
	models/demo-seg.safetensors
CLEANFILES += $(demo_weights)
models/demo-depth.safetensors: %reldir%/golden/keys/tiny_depth.json
models/demo-pose.safetensors: %reldir%/golden/keys/tiny_pose.json \
	%reldir%/golden/keys/tiny_depth.json
models/demo-seg.safetensors: %reldir%/golden/keys/tiny_seg.json
$(demo_weights): %reldir%/make_weights$(EXEEXT)
	$(AM_V_GEN)$(MKDIR_P) models && %reldir%/make_weights$(EXEEXT) \
		$(srcdir)/%reldir%/golden/keys/$(@:models/demo-%.safetensors=tiny_%.json) $@
.PHONY: demo-weights
demo-weights: $(demo_weights)

EXTRA_DIST += $(shell_tests) \
	%reldir%/full.sh \
	%reldir%/fuzz.c \
	%reldir%/fuzz.sh \
	%reldir%/gpu.sh \
	%reldir%/installcheck.sh \
	%reldir%/pose_reference.py \
	%reldir%/soak.sh \
	%reldir%/triton.py \
	%reldir%/data \
	%reldir%/golden

# A folder; make would link it from golden.c where that is newer.
%reldir%/golden: ;

# Ten minutes of everything; see soak.sh.
.PHONY: soak
soak: all $(demo_weights) tests/trouble.la
	$(uninstalled); export MPIPE_PLUGIN_PATH MPIPE_BACKEND_PATH \
		MPIPE_DATA_PATH MPIPE_MODEL_PATH; \
	builddir='$(abs_builddir)' srcdir='$(abs_srcdir)' \
	$(SHELL) $(srcdir)/%reldir%/soak.sh

# What reads untrusted bytes, for FUZZ_SECONDS a reader; see fuzz.sh. It needs
# clang, with its libFuzzer.
CLANG = clang
FUZZ_SECONDS = 60
fuzz_sources = $(srcdir)/%reldir%/fuzz.c $(srcdir)/core/base.c \
	$(srcdir)/core/boxes.c $(srcdir)/core/classes.c $(srcdir)/core/conf.c \
	$(srcdir)/core/eval/coco.c $(srcdir)/core/json.c $(srcdir)/core/mapping.c \
	$(srcdir)/core/npy.c $(srcdir)/core/option.c $(srcdir)/core/picture.c \
	$(srcdir)/core/picture_write.c $(srcdir)/core/png_fast.c \
	$(srcdir)/core/png_filter.c $(srcdir)/core/text.c \
	$(srcdir)/core/weights.c $(srcdir)/core/weights_diffusers.c \
	$(srcdir)/core/weights_pickle.c $(srcdir)/core/weights_safetensors.c \
	$(srcdir)/core/weights_torch.c $(srcdir)/core/daemon/ask.c \
	$(srcdir)/core/daemon/link.c $(srcdir)/core/daemon/tensor.c
CLEANFILES += %reldir%/fuzz
%reldir%/fuzz: $(fuzz_sources)
	$(AM_V_CC)$(CLANG) $(DEFS) $(AM_CPPFLAGS) $(CPPFLAGS) -std=c11 -g -O1 \
		-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
		$(fuzz_sources) -o $@ $(PNG_LIBS) $(JPEG_LIBS) $(JANSSON_LIBS) \
		$(DEFLATE_LIBS) $(INIH_LIBS) -lm
.PHONY: fuzz
fuzz: %reldir%/fuzz
	FUZZ_SECONDS='$(FUZZ_SECONDS)' builddir='$(abs_builddir)' \
	srcdir='$(abs_srcdir)' $(SHELL) $(srcdir)/%reldir%/fuzz.sh
clean-local:
	rm -rf fuzz

installcheck-local:
	CC='$(CC)' CFLAGS='$(CFLAGS) $(SANITIZE_CFLAGS)' \
	PKG_CONFIG='$(PKG_CONFIG)' srcdir='$(srcdir)' DESTDIR='$(DESTDIR)' \
	bindir='$(bindir)' libdir='$(libdir)' pluginsdir='$(pluginsdir)' \
	$(SHELL) $(srcdir)/%reldir%/installcheck.sh
