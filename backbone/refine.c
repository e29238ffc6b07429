/* SPDX-License-Identifier: MIT */
/* refine.c - the architecture of a checkpoint, and the refinement loop. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "backbone.h"

#define UNET "unet.unet.diffusion_model."
#define VAE  "encoder_vq."

/* ---- reading the architecture ---- */

/* Dimension `axis` of the weight, 0 if there is none. */
static int64_t dim_of(const struct mp_graph *g, int axis, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int64_t dim_of(const struct mp_graph *g, int axis, const char *fmt, ...)
{
    int64_t dim[MP_RANK];
    char name[128];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return mp_weight_shape(g, name, dim) > axis ? dim[axis] : 0;
}

static int find_prefix(struct mp_arch *a, const struct mp_graph *g,
                       struct mp_error *err)
{
    static const char *const prefix[] = {"encoder.", ""};
    static const char conv_in[] = "input_blocks.0.0.weight";

    for (int i = 0; i < 2; i++)
        if (dim_of(g, 0, "%s" UNET "%s", prefix[i], conv_in)) {
            strcpy(a->prefix, prefix[i]);
            return 0;
        }
    if (dim_of(g, 0, "model.diffusion_model.%s", conv_in))
        return mp_fail(err, MP_EFORMAT,
                       "this is a plain Stable Diffusion checkpoint: it has no "
                       "meta prompts and no head");
    return mp_fail(err, MP_EFORMAT,
                   "not a meta-prompt network: it has neither encoder." UNET
                   "%s nor " UNET "%s",
                   conv_in, conv_in);
}

int mp_backbone_probe(struct mp_arch *out, const struct mp_graph *g,
                      struct mp_error *err)
{
    struct mp_arch a = {.heads = 8};
    const char *p = a.prefix, *one = "";
    int rc = find_prefix(&a, g, err);

    if (rc)
        return rc;
    while (dim_of(g, 0, "%st%d", p, (int)a.steps + 1))
        a.steps++;
    if (!a.steps)
        return mp_fail(err, MP_EFORMAT, "no refinement step: %st1 is missing",
                       p);
    if (!dim_of(g, 0, "%smeta_prompts", p)) {
        a.per_step_prompts = 1;
        one = "1";
    }
    a.prompts = dim_of(g, 0, "%smeta_prompts%s", p, one);
    a.text_dim = dim_of(g, 1, "%smeta_prompts%s", p, one);
    if (!a.prompts)
        return mp_fail(err, MP_EFORMAT,
                       "no prompts: neither %smeta_prompts nor %smeta_prompts1",
                       p, p);
    a.adapter = dim_of(g, 0, "%stext_adapter1.fc.0.weight", p) > 0;
    for (int i = 0; i < 4; i++) {
        a.width[i] =
            dim_of(g, 0, "%s" UNET "input_blocks.%d.0.out_layers.3.weight", p,
                   3 * i + 1);
        a.vae_width[i] =
            dim_of(g, 0, "%s" VAE "encoder.down.%d.block.0.conv2.weight", p, i);
    }
    *out = a;
    return 0;
}

static void put_widths(char text[96], const int64_t w[4])
{
    snprintf(text, 96, "%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64, w[0],
             w[1], w[2], w[3]);
}

void mp_backbone_describe(const struct mp_arch *a, char *text, size_t size)
{
    char unet[96], vae[96];

    put_widths(unet, a->width);
    put_widths(vae, a->vae_width);
    snprintf(text, size,
             "UNet %s; VAE %s; %d step%s; %" PRId64 " %sprompts of %" PRId64
             "%s",
             unet, vae, (int)a->steps, a->steps == 1 ? "" : "s", a->prompts,
             a->per_step_prompts ? "per-step " : "", a->text_dim,
             a->adapter ? " with adapter" : "");
}

/* ---- building ---- */

static const int64_t any[MP_RANK] = {-1, -1, -1, -1};

static void full(char name[64], const struct mp_arch *a, const char *tail)
{
    snprintf(name, 64, "%s%s", a->prefix, tail);
}

/* What published checkpoints hold beside the network. */
static void ignore_the_rest(struct mp_graph *g, const struct mp_arch *a)
{
    static const char *const ours[] = {
        VAE "decoder.",     VAE "post_quant_conv.",
        UNET "time_embed.", UNET "out.", /* not used with one step */
        "cross_unet_conv", /* the same layer as out, once for each step */
    };
    char name[64];

    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        full(name, a, ours[i]);
        mp_weight_unused(g, name);
    }
    mp_weight_unused(g, "sd_model."); /* schedule of the diffusion */
    mp_weight_unused(g, "cond_stage_model.");
    mp_weight_unused(g, "model_ema.");
}

/* What step i (from 1) attends to: T,D. */
static mp_node context_of(struct mp_graph *g, const struct mp_arch *a, int i)
{
    char name[32] = "meta_prompts";
    mp_node x;

    if (a->per_step_prompts)
        snprintf(name, sizeof name, "meta_prompts%d", i);
    x = mp_weight(g, name, 2, any);
    if (!a->adapter)
        return x;
    mp_push(g, "text_adapter%d.", i);
    x = mp_act(g, mp_linear_layer(g, x, "fc.0"), MP_GELU);
    x = mp_linear_layer(g, x, "fc.2");
    mp_pop(g);
    return x;
}

/* One layer under several names; a file may keep only one of them. */
static const char *out_layer(const struct mp_graph *g)
{
    static const char alias[] = "cross_unet_conv2";

    if (dim_of(g, 0, UNET "out.2.weight") ||
        !dim_of(g, 0, "%s.2.weight", alias))
        return UNET "out";
    return alias;
}

void mp_backbone_build(struct mp_graph *g, const struct mp_arch *a,
                       mp_node image, struct mp_features *out)
{
    mp_node z, step;
    char name[32];

    mp_push(g, "%s", a->prefix);
    z = out->latents = mp_vae_encode(g, VAE, image);
    for (int i = 1; i <= a->steps; i++) {
        if (i > 1)
            z = mp_unet_out(g, out_layer(g), out->map[0]);
        snprintf(name, sizeof name, "t%d", i);
        step = mp_weight(g, name, 2, any);
        out->prompts = context_of(g, a, i);
        mp_unet(g, UNET, a->heads, z, step, out->prompts, out->map);
    }
    mp_pop(g);
    ignore_the_rest(g, a);
}
