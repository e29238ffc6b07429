# SPDX-License-Identifier: MIT

# What the tests run on the processor too, with a driver of their own.
cuda_host = %reldir%/attention.c %reldir%/choices.c %reldir%/choices.h \
	%reldir%/conv.c %reldir%/cuda.c %reldir%/cuda.h \
	%reldir%/driver.h %reldir%/gpu.c %reldir%/gpu.h %reldir%/kernels.h \
	%reldir%/lib.c %reldir%/lib.h %reldir%/own.c
cuda_kernels = %reldir%/attention.cu %reldir%/conv.cu %reldir%/norm.cu \
	%reldir%/pointwise.cu
EXTRA_DIST += $(cuda_kernels) %reldir%/prelude.cuh

if HAVE_CUDA
backends_LTLIBRARIES += backends/cuda.la
backends_cuda_la_SOURCES = $(cuda_host) \
	%reldir%/lib_cudnn.c \
	%reldir%/lib_lt.c \
	%reldir%/module.c \
	%reldir%/vendor.c %reldir%/vendor.h
nodist_backends_cuda_la_SOURCES = $(cuda_images)
backends_cuda_la_CPPFLAGS = $(AM_CPPFLAGS) $(CUDA_CFLAGS) \
	-DMP_CUDA_LIBDIR='"$(CUDA_LIBDIR)"'
backends_cuda_la_LDFLAGS = $(head_ldflags)
backends_cuda_la_LIBADD = libmpipe.la

# A kernel file: machine code for each GPU in one file, that in a C array, and
# beside it what ptxas says of registers and spills. Spills are warnings: which
# kernels have some depends on the version of ptxas.
cuda_images = %reldir%/attention.image.c %reldir%/conv.image.c \
	%reldir%/norm.image.c %reldir%/pointwise.image.c
CLEANFILES += $(cuda_images) $(cuda_images:.c=) $(cuda_images:.image.c=.log)
AM_V_NVCC = $(am__v_NVCC_@AM_V@)
am__v_NVCC_ = $(am__v_NVCC_@AM_DEFAULT_V@)
am__v_NVCC_0 = @echo "  NVCC     $@";
$(cuda_images): %reldir%/prelude.cuh %reldir%/kernels.h core/peak.h %reldir%/nvcc.sh
%reldir%/attention.image.c: %reldir%/attention.cu
%reldir%/conv.image.c: %reldir%/conv.cu
%reldir%/norm.image.c: %reldir%/norm.cu
%reldir%/pointwise.image.c: %reldir%/pointwise.cu
$(cuda_images):
	$(AM_V_NVCC)$(MKDIR_P) %reldir% && NVCC='$(NVCC)' BIN2C='$(BIN2C)' \
		WERROR=$(enable_werror) $(SHELL) $(srcdir)/%reldir%/nvcc.sh \
		$(srcdir)/$(@:.image.c=.cu) $@ $(NVCCFLAGS) $(CUDA_ARCHS) -I$(srcdir)/core
endif
EXTRA_DIST += %reldir%/nvcc.sh
