/* SPDX-License-Identifier: MIT */
/*
 * weights_diffusers.c - a Stable Diffusion folder in the diffusers layout,
 * under the names of the original checkpoint.
 *
 * The original numbers the blocks of the UNet in one sequence: per level the
 * residual blocks, then the down- or upsampler; its VAE decoder counts levels
 * from the image side. Names that follow no rule are kept behind the prefix of
 * their network, so that they show up as unexpected ones.
 */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "weights_impl.h"

struct rename {
    const char *from, *to;
};

static const struct rename unet_resnet[] = {
    {"norm1.", "in_layers.0."},
    {"conv1.", "in_layers.2."},
    {"time_emb_proj.", "emb_layers.1."},
    {"norm2.", "out_layers.0."},
    {"conv2.", "out_layers.3."},
    {"conv_shortcut.", "skip_connection."},
    {NULL, NULL}};
static const struct rename unet_top[] = {
    {"time_embedding.linear_1.", "time_embed.0."},
    {"time_embedding.linear_2.", "time_embed.2."},
    {"conv_in.", "input_blocks.0.0."},
    {"conv_norm_out.", "out.0."},
    {"conv_out.", "out.2."},
    {"mid_block.attentions.0.", "middle_block.1."},
    {NULL, NULL}};
static const struct rename vae_resnet[] = {{"conv_shortcut.", "nin_shortcut."},
                                           {NULL, NULL}};
static const struct rename vae_attention[] = {{"group_norm.", "norm."},
                                              {"to_q.", "q."},
                                              {"query.", "q."},
                                              {"to_k.", "k."},
                                              {"key.", "k."},
                                              {"to_v.", "v."},
                                              {"value.", "v."},
                                              {"to_out.0.", "proj_out."},
                                              {"proj_attn.", "proj_out."},
                                              {NULL, NULL}};
static const struct rename vae_top[] = {{"conv_norm_out.", "norm_out."},
                                        {NULL, NULL}};
static const struct rename as_is[] = {{NULL, NULL}};

struct namer {
    const struct mp_weights *from;
    int per_level;  /* UNet: residual blocks of a level, on the way down */
    int levels;     /* VAE */
    char name[256]; /* the original name */
};

/* If s starts with pattern, where '#' stands for a small number, what follows;
 * the numbers go to at[0], at[1]. */
static const char *match(const char *s, const char *pattern, int at[2])
{
    int n = 0;

    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*s++ != *pattern)
                return NULL;
            continue;
        }
        if (*s < '0' || *s > '9')
            return NULL;
        for (at[n] = 0; *s >= '0' && *s <= '9' && at[n] < 1000; s++)
            at[n] = at[n] * 10 + (*s - '0');
        n++;
    }
    return s;
}

/* The original name: fmt, then s with its start renamed by the first row that
 * fits. */
static void put(struct namer *r, const struct rename *row, const char *s,
                const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static void put(struct namer *r, const struct rename *row, const char *s,
                const char *fmt, ...)
{
    const char *to = "";
    size_t n;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->name, sizeof r->name, fmt, ap);
    va_end(ap);
    for (; row->from; row++)
        if (!strncmp(s, row->from, strlen(row->from))) {
            to = row->to;
            s += strlen(row->from);
            break;
        }
    n = strlen(r->name);
    snprintf(r->name + n, sizeof r->name - n, "%s%s", to, s);
}

static int has(const struct namer *r, const char *fmt, int k)
{
    char name[64];

    snprintf(name, sizeof name, fmt, k);
    return mp_weights_find(r->from, name) != NULL;
}

static void unet_name(struct namer *r, const char *s)
{
    static const char pre[] = "model.diffusion_model";
    int at[2], level = r->per_level + 1;
    const char *t;

    if ((t = match(s, "down_blocks.#.resnets.#.", at)))
        put(r, unet_resnet, t, "%s.input_blocks.%d.0.", pre,
            1 + at[0] * level + at[1]);
    else if ((t = match(s, "down_blocks.#.attentions.#.", at)))
        put(r, as_is, t, "%s.input_blocks.%d.1.", pre,
            1 + at[0] * level + at[1]);
    else if ((t = match(s, "down_blocks.#.downsamplers.0.conv.", at)))
        put(r, as_is, t, "%s.input_blocks.%d.0.op.", pre, (at[0] + 1) * level);
    else if ((t = match(s, "up_blocks.#.resnets.#.", at)))
        put(r, unet_resnet, t, "%s.output_blocks.%d.0.", pre,
            at[0] * level + at[1]);
    else if ((t = match(s, "up_blocks.#.attentions.#.", at)))
        put(r, as_is, t, "%s.output_blocks.%d.1.", pre, at[0] * level + at[1]);
    else if ((t = match(s, "up_blocks.#.upsamplers.0.conv.", at)))
        put(r, as_is, t, "%s.output_blocks.%d.%d.conv.", pre,
            at[0] * level + r->per_level,
            has(r, "up_blocks.%d.attentions.0.norm.weight", at[0]) ? 2 : 1);
    else if ((t = match(s, "mid_block.resnets.#.", at)))
        put(r, unet_resnet, t, "%s.middle_block.%d.", pre, 2 * at[0]);
    else
        put(r, unet_top, s, "%s.", pre);
}

static void vae_name(struct namer *r, const char *s)
{
    static const char pre[] = "first_stage_model";
    const char *half = strncmp(s, "decoder.", 8) ? "encoder" : "decoder", *t;
    int at[2];

    if ((t = match(s, "encoder.down_blocks.#.resnets.#.", at)))
        put(r, vae_resnet, t, "%s.encoder.down.%d.block.%d.", pre, at[0],
            at[1]);
    else if ((t = match(s, "encoder.down_blocks.#.downsamplers.0.", at)))
        put(r, as_is, t, "%s.encoder.down.%d.downsample.", pre, at[0]);
    else if ((t = match(s, "decoder.up_blocks.#.resnets.#.", at)))
        put(r, vae_resnet, t, "%s.decoder.up.%d.block.%d.", pre,
            r->levels - 1 - at[0], at[1]);
    else if ((t = match(s, "decoder.up_blocks.#.upsamplers.0.", at)))
        put(r, as_is, t, "%s.decoder.up.%d.upsample.", pre,
            r->levels - 1 - at[0]);
    else if ((t = match(s, "encoder.mid_block.resnets.#.", at)) ||
             (t = match(s, "decoder.mid_block.resnets.#.", at)))
        put(r, vae_resnet, t, "%s.%s.mid.block_%d.", pre, half, 1 + at[0]);
    else if ((t = match(s, "encoder.mid_block.attentions.0.", at)) ||
             (t = match(s, "decoder.mid_block.attentions.0.", at)))
        put(r, vae_attention, t, "%s.%s.mid.attn_1.", pre, half);
    else if ((t = match(s, "encoder.", at)) || (t = match(s, "decoder.", at)))
        put(r, vae_top, t, "%s.%s.", pre, half);
    else
        put(r, as_is, s, "%s.", pre);
}

/* The VAE's attention is made of 1x1 convolutions in the original, of linear
 * layers here: the same numbers. */
static void as_convolution(struct mp_weight_info *i, const char *name)
{
    if (i->ndim != 2 || !strstr(name, ".mid.attn_1."))
        return;
    i->ndim = 4;
    i->dim[2] = i->dim[3] = 1;
    i->stride[2] = i->stride[3] = 1;
}

static int add_part(struct mp_weights *w, struct namer *r,
                    void (*rename_one)(struct namer *, const char *),
                    size_t storage, struct mp_error *err)
{
    size_t k;
    int rc = 0;

    for (k = 0; k < r->from->count && !rc; k++) {
        struct mp_weight_info i = r->from->info[k];

        if (strlen(i.name) > sizeof r->name / 2)
            return mp_fail(err, MP_EFORMAT,
                           "%s: tensor %s: the name is too "
                           "long",
                           r->from->path, i.name);
        rename_one(r, i.name);
        as_convolution(&i, r->name);
        i.storage += storage;
        rc = mp_weights_add(w, &i, r->name, strlen(r->name), err);
    }
    return rc;
}

static int open_part(struct mp_weights **out, const char *folder,
                     const char *network, struct mp_error *err)
{
    static const char *const names[] = {
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"};
    char path[PATH_MAX];
    size_t k;

    for (k = 0; k < sizeof names / sizeof *names; k++) {
        int n =
            snprintf(path, sizeof path, "%s/%s/%s", folder, network, names[k]);

        if (n < 0 || (size_t)n >= sizeof path)
            return mp_fail(err, MP_EINVAL, "%s: the path is too long", folder);
        if (!access(path, F_OK))
            return mp_weights_open_file(out, path, err);
    }
    return mp_fail(err, MP_EFORMAT,
                   "%s: a folder without %s/%s: not in the diffusers layout",
                   folder, network, names[0]);
}

static size_t storages(const struct mp_weights *w)
{
    size_t k, most = 0;

    for (k = 0; k < w->count; k++)
        if (most <= w->info[k].storage)
            most = w->info[k].storage + 1;
    return most;
}

int mp_weights_read_diffusers(struct mp_weights *w, struct mp_error *err)
{
    struct namer unet = {0}, vae = {0};
    int rc;

    w->format = "diffusers";
    rc = open_part(&w->part[0], w->path, "unet", err);
    if (!rc)
        rc = open_part(&w->part[1], w->path, "vae", err);
    if (rc)
        return rc;
    unet.from = w->part[0];
    while (has(&unet, "down_blocks.0.resnets.%d.norm1.weight", unet.per_level))
        unet.per_level++;
    vae.from = w->part[1];
    while (has(&vae, "decoder.up_blocks.%d.resnets.0.norm1.weight", vae.levels))
        vae.levels++;
    rc = add_part(w, &unet, unet_name, 0, err);
    if (!rc)
        rc = add_part(w, &vae, vae_name, storages(w->part[0]), err);
    return rc;
}
