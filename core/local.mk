# SPDX-License-Identifier: MIT

# Kernels, for which a product and a sum may be rounded at once.
noinst_LTLIBRARIES += %reldir%/libcpu.la
%canon_reldir%_libcpu_la_SOURCES = \
	%reldir%/cpu/attention.c %reldir%/cpu/attention.h \
	%reldir%/cpu/attention_wide.c \
	%reldir%/cpu/blocks.c \
	%reldir%/cpu/conv.c \
	%reldir%/cpu/cpu.c %reldir%/cpu/cpu.h \
	%reldir%/cpu/dnnl_compat.h \
	%reldir%/cpu/kernels.h \
	%reldir%/cpu/norm.c \
	%reldir%/cpu/own.c \
	%reldir%/cpu/pack.c \
	%reldir%/cpu/pointwise.c \
	%reldir%/cpu/reorder.c \
	%reldir%/cpu/simd.h \
	%reldir%/cpu/spatial.c \
	%reldir%/cpu/store.c %reldir%/cpu/store.h \
	%reldir%/cpu/tiles.h
%canon_reldir%_libcpu_la_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS) \
	-ffp-contract=fast

lib_LTLIBRARIES += libmpipe.la
libmpipe_la_SOURCES = \
	%reldir%/arena.c %reldir%/arena.h \
	%reldir%/base.c \
	%reldir%/boxes.c %reldir%/boxes.h \
	%reldir%/classes.c %reldir%/classes.h \
	%reldir%/client.c %reldir%/client.h \
	%reldir%/conf.c %reldir%/conf.h \
	%reldir%/device.c %reldir%/device.h \
	%reldir%/fold.c %reldir%/fold.h \
	%reldir%/graph.c %reldir%/graph_impl.h \
	%reldir%/host.c %reldir%/host.h \
	%reldir%/image.h \
	%reldir%/inputs.c %reldir%/inputs.h \
	%reldir%/job.c %reldir%/job.h \
	%reldir%/json.c %reldir%/json.h \
	%reldir%/layers.c \
	%reldir%/mapping.c %reldir%/mapping.h \
	%reldir%/module.c %reldir%/module.h \
	%reldir%/npy.c \
	%reldir%/op.c \
	%reldir%/option.c %reldir%/option.h \
	%reldir%/peak.h \
	%reldir%/picture.c \
	%reldir%/picture_job.c %reldir%/picture_job.h \
	%reldir%/picture_write.c \
	%reldir%/pipeline.c %reldir%/pipeline.h \
	%reldir%/places.c %reldir%/places.h \
	%reldir%/png_fast.c %reldir%/png_fast.h \
	%reldir%/png_filter.c \
	%reldir%/program.c %reldir%/program.h \
	%reldir%/progress.c %reldir%/progress.h \
	%reldir%/rainbow.c \
	%reldir%/record.c %reldir%/record.h \
	%reldir%/ref.c %reldir%/ref.h \
	%reldir%/resize.c \
	%reldir%/session.c %reldir%/session.h \
	%reldir%/settings.c %reldir%/settings.h \
	%reldir%/sink.c %reldir%/sink.h \
	%reldir%/text.c %reldir%/text.h \
	%reldir%/warp.c \
	%reldir%/weights.c %reldir%/weights.h %reldir%/weights_impl.h \
	%reldir%/weights_diffusers.c \
	%reldir%/weights_pickle.c \
	%reldir%/weights_safetensors.c \
	%reldir%/weights_torch.c \
	%reldir%/eval/coco.c %reldir%/eval/coco.h \
	%reldir%/eval/depth_metrics.c \
	%reldir%/eval/evaluate.c %reldir%/eval/evaluate.h \
	%reldir%/eval/metrics.h \
	%reldir%/eval/oks.c \
	%reldir%/eval/pairs.c %reldir%/eval/pairs.h \
	%reldir%/eval/report.c \
	%reldir%/eval/seg_metrics.c \
	%reldir%/train/adamw.c %reldir%/train/adamw.h \
	%reldir%/train/augment.c %reldir%/train/augment.h \
	%reldir%/train/loss.c %reldir%/train/loss.h \
	%reldir%/train/schedule.c %reldir%/train/schedule.h
libmpipe_la_CFLAGS = $(AM_CFLAGS) $(OPENMP_CFLAGS)
# The contract is the installed headers; all of mp_ is visible, so that tests
# reach the parts through the very library that heads are linked to.
libmpipe_la_LDFLAGS = $(AM_LDFLAGS) -version-info 0:0:0 -no-undefined \
	-Wl,-z,defs -export-symbols-regex '^mp_'
libmpipe_la_LIBADD = %reldir%/libcpu.la $(ONEDNN_LIBS) $(INIH_LIBS) $(PNG_LIBS) $(JPEG_LIBS) \
	$(DEFLATE_LIBS) $(JANSSON_LIBS) $(LTDL_LIBS)

mpipeincludedir = $(includedir)/mpipe
mpipeinclude_HEADERS = \
	%reldir%/mpipe/backend.h \
	%reldir%/mpipe/base.h \
	%reldir%/mpipe/graph.h \
	%reldir%/mpipe/plugin.h

bin_PROGRAMS += mpipe mpipe-eval mpipe-inspect
mpipe_SOURCES = %reldir%/mpipe_main.c
mpipe_LDADD = libmpipe.la
mpipe_eval_SOURCES = %reldir%/eval_main.c
mpipe_eval_LDADD = libmpipe.la $(JANSSON_LIBS)
mpipe_inspect_SOURCES = %reldir%/inspect_main.c
mpipe_inspect_LDADD = libmpipe.la $(JANSSON_LIBS)

pkgconfigdir = $(libdir)/pkgconfig
nodist_pkgconfig_DATA = %reldir%/mpipe.pc
