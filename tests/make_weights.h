/* SPDX-License-Identifier: MIT */
/*
 * make_weights.h - checkpoints of made-up numbers, the same on every machine.
 *
 * A key list (JSON) names the tensors; element i of the tensor called key is
 *
 *     h = FNV-1a-64 of key;  z = h + (i + 1) * 0x9E3779B97F4A7C15
 *     z = splitmix64's finaliser of z;  u = (z >> 40) * 2^-23 - 1
 *     value = scale * u + offset, in f32, rounded after each operation
 *
 * Integer tensors are zeros. {"alias_of": k}: the values of tensor k. A list
 * may begin with those of another file of its folder, "base", but "without"
 * the tensors that begin with one of these prefixes.
 */
#ifndef TESTS_MAKE_WEIGHTS_H
#define TESTS_MAKE_WEIGHTS_H

#include "mpipe/base.h"

/* Write the checkpoint of a key list as safetensors. */
int make_weights(const char *keys, const char *out, struct mp_error *err);

#endif
