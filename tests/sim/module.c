/* SPDX-License-Identifier: MIT */
/* module.c - the simulated GPU as a backend of its own name. */
#include "cuda/cuda.h"

CUDA_BACKEND(gpusim, "the CUDA backend's kernels on the processor, for tests");
