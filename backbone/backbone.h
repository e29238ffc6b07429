/* SPDX-License-Identifier: MIT */
/*
 * backbone.h - the VAE encoder, the UNet and the refinement loop between them,
 * described with <mpipe/graph.h>.
 *
 * The layout is that of Stable Diffusion 1.5: four levels, two residual blocks
 * each, transformers on the three finer ones. Widths, number of steps and
 * prompts, shared or per-step prompts, text adapters: read off the checkpoint.
 *
 * Errors are the graph's, see mp_graph_check().
 */
#ifndef BACKBONE_BACKBONE_H
#define BACKBONE_BACKBONE_H

#include "mpipe/plugin.h"

struct mp_arch {
    char prefix[16];          /* of all keys: "" or "encoder." */
    int32_t steps;            /* passes through the UNet */
    int32_t per_step_prompts; /* each step has its own, else one set for all */
    int32_t adapter;          /* an MLP between prompts and UNet */
    int32_t heads;            /* of every attention. No key tells: 8; set it
                                 before mp_backbone_build to change it */
    int64_t prompts, text_dim;
    int64_t width[4], vae_width[4]; /* channels per level, finest first */
};

/* Read the architecture off the keys and shapes. What a step is missing is
 * found when it is built. */
int mp_backbone_probe(struct mp_arch *out, const struct mp_graph *g,
                      struct mp_error *err);
/* One line: "UNet 320,640,1280,1280; VAE 128,256,512,512; 3 steps; ...". */
void mp_backbone_describe(const struct mp_arch *a, char *text, size_t size);

/* image: N x H x W x 3, -1..1, any H and W of at least 8. Fills all of out but
 * the size of the view. */
void mp_backbone_build(struct mp_graph *g, const struct mp_arch *a,
                       mp_node image, struct mp_features *out);

/* The parts. prefix: of the names of their weights. */

/* N,H,W,3 -> the mean of the latents N, H/8, W/8, 4 (rounded down), not scaled.
 */
mp_node mp_vae_encode(struct mp_graph *g, const char *prefix, mp_node image);

/* One pass. latents N,h,w,4; step 1,E or N,E takes the place of the time
 * embedding; context T,D or N,T,D. map: finest first, of size 8*ceil(h/8), its
 * half, quarter and eighth, and so for w. */
void mp_unet(struct mp_graph *g, const char *prefix, int heads, mp_node latents,
             mp_node step, mp_node context, mp_node map[4]);
/* The finest map of one pass -> the latents of the next, by the layer of this
 * name. */
mp_node mp_unet_out(struct mp_graph *g, const char *name, mp_node map);

#endif
