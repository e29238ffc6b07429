/* SPDX-License-Identifier: MIT */
/* module.c - the simulated GPU as a backend of its own name. */
#include "cuda/cuda.h"

/* Small ones too, which would not be worth it. */
static int takes(const struct mp_enlarged *e, enum mp_dtype t)
{
    (void)e;
    (void)t;
    return 1;
}

CUDA_BACKEND(gpusim, "the CUDA backend's kernels on the processor, for tests",
             takes);
