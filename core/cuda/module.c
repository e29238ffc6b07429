/* SPDX-License-Identifier: MIT */
/* module.c - what libltdl finds. */
#include "cuda/cuda.h"

CUDA_BACKEND(cuda, "NVIDIA GPUs", cuda_commutes);
