/* SPDX-License-Identifier: MIT */
/* images.c - in the place of machine code: the simulation has C++. */
extern const unsigned long long cuda_attention[], cuda_conv[], cuda_norm[],
    cuda_pointwise[];
const unsigned long long cuda_attention[1], cuda_conv[1], cuda_norm[1],
    cuda_pointwise[1];
