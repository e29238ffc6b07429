/* SPDX-License-Identifier: MIT */
/*
 * ref.h - plain C references of the ops, the meaning that backends are tested
 * against. f32 in and out, accumulated in double; see struct mp_op_row.
 */
#ifndef CORE_REF_H
#define CORE_REF_H

#include "mpipe/backend.h"

#define MP_REF(name)                                                           \
    void mp_ref_##name(const struct mp_step *s, const struct mp_value *v,      \
                       void *out, const void *const *in)

MP_REF(conv2d);
MP_REF(deconv2d);
MP_REF(attention);
MP_REF(group_norm);
MP_REF(layer_norm);
MP_REF(batch_norm);
MP_REF(act);
MP_REF(geglu);
MP_REF(binary);
MP_REF(concat);
MP_REF(slice);
MP_REF(copy);
MP_REF(resize);
MP_REF(pool);
MP_REF(pad);
MP_REF(flip);
MP_REF(softmax);
MP_REF(argmax);
MP_REF(heatmap_peaks);
MP_REF(float);

#endif
