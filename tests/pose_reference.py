#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The pose network in PyTorch, and the goldens that test_net.c compares with.

A tool for who changes the network; no test runs it. It wants torch and
safetensors, and checkpoints made by tests/make_weights:

    make_weights golden/keys/tiny_depth.json depth.safetensors
    pose_reference.py check depth.safetensors golden/tiny_depth_*.safetensors

compares this file's backbone, refinement loop and encoder with the numbers of
the published depth network, from which the pose network takes them, and

    make_weights golden/keys/tiny_pose.json pose.safetensors
    pose_reference.py golden pose.safetensors 1 96 64 tiny_pose.safetensors

writes a golden: N synthetic pictures of H x W, what the network makes of them
in float32 (NAME) and in float64 (NAME.f64), and how far the two are apart.

mpipe_pose(7) tells what is published and what is this project's own: the
encoder is the depth network's, the heads are ViTPose's, and the step between
them, a resize to 1/16 of the picture, is ours.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

HEADS = 8  # of every attention of the UNet


class Net:
    """Functions of a checkpoint w: {name: tensor}."""

    def __init__(self, w, dtype):
        self.w = {k: v.to(dtype) if v.is_floating_point() else v
                  for k, v in w.items()}

    # ---- layers ----

    def conv(self, x, name, stride=1, pad=None):
        w = self.w[name + ".weight"]
        if pad is None:
            pad = (w.shape[2] - 1) // 2
        return F.conv2d(x, w, self.w.get(name + ".bias"), stride, pad)

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"],
                        self.w.get(name + ".bias"))

    def group_norm(self, x, name, groups, eps):
        return F.group_norm(x, groups, self.w[name + ".weight"],
                            self.w[name + ".bias"], eps)

    def layer_norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"],
                            self.w[name + ".bias"], 1e-5)

    def batch_norm(self, x, name):
        return F.batch_norm(x, self.w[name + ".running_mean"],
                            self.w[name + ".running_var"],
                            self.w[name + ".weight"], self.w[name + ".bias"],
                            False, 0, 1e-5)

    def deconv(self, x, name):
        w = self.w[name + ".weight"]
        k = w.shape[2]
        return F.conv_transpose2d(x, w, None, 2, int(k > 2), int(k == 3))

    # ---- VAE encoder ----

    def vae_block(self, x, p):
        h = self.conv(F.silu(self.group_norm(x, p + "norm1", 32, 1e-6)),
                      p + "conv1")
        h = self.conv(F.silu(self.group_norm(h, p + "norm2", 32, 1e-6)),
                      p + "conv2")
        if p + "nin_shortcut.weight" in self.w:
            x = self.conv(x, p + "nin_shortcut")
        return x + h

    def vae_attention(self, x, p):
        n, c, h, w = x.shape
        y = self.group_norm(x, p + "norm", 32, 1e-6)
        q, k, v = (self.conv(y, p + s).flatten(2).transpose(1, 2)
                   for s in "qkv")
        a = torch.softmax(q @ k.transpose(1, 2) * c ** -0.5, -1) @ v
        return x + self.conv(a.transpose(1, 2).reshape(n, c, h, w),
                             p + "proj_out")

    def latents(self, x, p):
        e = p + "encoder."
        x = self.conv(x, e + "conv_in")
        for level in range(4):
            for i in range(2):
                x = self.vae_block(x, f"{e}down.{level}.block.{i}.")
            if level < 3:
                x = self.conv(F.pad(x, (0, 1, 0, 1)),
                              f"{e}down.{level}.downsample.conv", 2, 0)
        x = self.vae_block(x, e + "mid.block_1.")
        x = self.vae_attention(x, e + "mid.attn_1.")
        x = self.vae_block(x, e + "mid.block_2.")
        x = F.silu(self.group_norm(x, e + "norm_out", 32, 1e-6))
        x = self.conv(self.conv(x, e + "conv_out"), p + "quant_conv")
        return x[:, :4]  # the mean; not scaled

    # ---- UNet ----

    def res_block(self, x, emb, p):
        h = self.conv(F.silu(self.group_norm(x, p + "in_layers.0", 32, 1e-5)),
                      p + "in_layers.2")
        h = h + self.linear(F.silu(emb), p + "emb_layers.1")[..., None, None]
        h = self.conv(F.silu(self.group_norm(h, p + "out_layers.0", 32, 1e-5)),
                      p + "out_layers.3")
        if p + "skip_connection.weight" in self.w:
            x = self.conv(x, p + "skip_connection")
        return x + h

    def attention(self, x, context, p):
        def heads(y):
            n, t, c = y.shape
            return y.reshape(n, t, HEADS, c // HEADS).transpose(1, 2)
        q = heads(self.linear(x, p + "to_q"))
        k = heads(self.linear(context, p + "to_k"))
        v = heads(self.linear(context, p + "to_v"))
        a = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, -1) @ v
        return self.linear(a.transpose(1, 2).flatten(2), p + "to_out.0")

    def transformer(self, x, context, p):
        n, c, h, w = x.shape
        y = self.conv(self.group_norm(x, p + "norm", 32, 1e-6), p + "proj_in")
        y = y.flatten(2).transpose(1, 2)
        b = p + "transformer_blocks.0."
        z = self.layer_norm(y, b + "norm1")
        y = y + self.attention(z, z, b + "attn1.")
        y = y + self.attention(self.layer_norm(y, b + "norm2"), context,
                               b + "attn2.")
        value, gate = self.linear(self.layer_norm(y, b + "norm3"),
                                  b + "ff.net.0.proj").chunk(2, -1)
        y = y + self.linear(value * F.gelu(gate), b + "ff.net.2")
        y = y.transpose(1, 2).reshape(n, c, h, w)
        return x + self.conv(y, p + "proj_out")

    def block(self, x, emb, context, p):
        """Whatever modules the block has, told by their keys."""
        for i in range(4):
            q = f"{p}{i}."
            if q + "in_layers.0.weight" in self.w:
                x = self.res_block(x, emb, q)
            elif q + "proj_in.weight" in self.w:
                x = self.transformer(x, context, q)
            elif q + "op.weight" in self.w:
                x = self.conv(x, q + "op", 2, 1)
            elif q + "conv.weight" in self.w:
                x = self.conv(F.interpolate(x, scale_factor=2), q + "conv")
            elif q + "weight" in self.w:
                x = self.conv(x, f"{p}{i}")
        return x

    def unet(self, x, emb, context, p):
        skip, maps = [], []
        for i in range(12):
            x = self.block(x, emb, context, f"{p}input_blocks.{i}.")
            skip.append(x)
        x = self.block(x, emb, context, p + "middle_block.")
        for i in range(12):
            s = skip.pop()
            if s.shape[2:] != x.shape[2:]:
                s = bilinear(s, x.shape[2:])
            x = self.block(torch.cat([x, s], 1), emb, context,
                           f"{p}output_blocks.{i}.")
            if i % 3 == 1 or i == 11:
                maps.append(x)
        return [maps[4], maps[2], maps[1], maps[0]]

    # ---- refinement ----

    def refine(self, x, seen):
        e, u = "encoder.", "encoder.unet.unet.diffusion_model."
        z = seen["latents"] = self.latents(x, e + "encoder_vq.")
        step = 1
        while f"{e}t{step}" in self.w:
            if step > 1:
                z = self.group_norm(maps[0], u + "out.0", 32, 1e-5)
                z = self.conv(F.silu(z), u + "out.2")
            a = f"{e}text_adapter{step}.fc."
            context = self.linear(self.w[f"{e}meta_prompts{step}"], a + "0")
            context = self.linear(F.gelu(context), a + "2")
            maps = self.unet(z, self.w[f"{e}t{step}"], context[None].expand(
                len(x), -1, -1), u)
            step += 1
        seen["out0"] = maps[0]
        return maps, context

    # ---- the encoder of the depth network ----

    def up(self, x, p, stages):
        for i in range(stages):
            x = self.deconv(x, f"{p}deconv_layers.{3 * i}")
            x = F.relu(self.batch_norm(x, f"{p}deconv_layers.{3 * i + 1}"))
        return x

    def conv_norm_relu(self, x, p):
        return F.relu(self.group_norm(self.conv(x, p + "0"), p + "1", 16,
                                      1e-5))

    def prompt_maps(self, x, seen):
        maps, context = self.refine(x, seen)
        joined = [self.conv_norm_relu(maps[0], "encoder.layer1.")]
        for i in range(1, 4):
            p = f"encoder.layer{i + 1}."
            y = self.conv(self.up(maps[i], p, i), p + "conv_layers.0")
            joined.append(F.relu(self.batch_norm(y, p + "conv_layers.1")))
        y = self.conv_norm_relu(torch.cat(joined, 1), "encoder.out_layer.")
        seen["prompt_maps"] = torch.einsum("bchw,nc->bnhw", y, context)
        return seen["prompt_maps"]

    # ---- pose ----

    def pose(self, pixels):
        seen = {}
        n, _, h, w = pixels.shape
        x = bilinear(self.prompt_maps((pixels - 127.5) / 127.5, seen),
                     (h // 16, w // 16))
        k = "keypoint_head."
        if k + "deconv_layers.0.weight" in self.w:
            x = self.up(x, k, 2)
        else:
            x = bilinear(F.relu(x), (h // 4, w // 4))
        seen["heatmaps"] = self.conv(x, k + "final_layer")
        return seen


def bilinear(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear",
                         align_corners=False)


def synthetic(h, w, seed):
    """Shapes, a grid and noise, in integers: the same on every machine."""
    mask = (1 << 64) - 1

    def noise(i):
        z = (i * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return z ^ z >> 31

    img = torch.zeros(h, w, 3, dtype=torch.uint8)
    for y in range(h):
        for x in range(w):
            p = (255 * x // (w - 1), 255 * y // (h - 1),
                 255 * (x + y) // (w + h - 2))
            if (x // 16 + y // 16) % 2:
                p = (255 - p[2], p[0], p[1])
            if (x - w // 3) ** 2 + (y - h // 2) ** 2 <= (min(h, w) // 4) ** 2:
                p = (230, 60 + 40 * x // w, 40)
            z = noise(y * w + x + 1 + (seed << 32))
            for k in range(3):
                v = p[k] + ((z >> 8 * k) & 15) - 8
                img[y, x, k] = min(max(v, 0), 255)
    return img


def rel(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def check(weights, files):
    net = Net(load_file(weights), torch.float64)
    worst = 0
    for path in files:
        gold = load_file(path)
        seen = {}
        net.prompt_maps(depth_input(gold["x"]), seen)
        for name in ("latents", "prompt_maps"):
            want = gold.get(name + ".f64")
            if want is not None:
                e = rel(seen[name], want)
                worst = max(worst, e)
                print(f"{path} {name}: relative L2 {e:.1e}")
    return worst < 1e-9


def depth_input(x):
    h, w = ((s // 64 + 1) * 64 for s in x.shape[2:])
    return bilinear(x.double() * 2 - 1, (h, w))


def golden(weights, n, h, w, out):
    tensors = load_file(weights)
    image = torch.stack([synthetic(h, w, i) for i in range(n)])
    x = image.permute(0, 3, 1, 2)
    one = Net(tensors, torch.float32).pose(x.float())
    two = Net(tensors, torch.float64).pose(x.double())
    kept = {"image_u8": image}
    meta = {"weights": weights, "size": f"{n} x {h} x {w}"}
    for name in ("latents", "out0", "prompt_maps", "heatmaps"):
        meta[f"float32_error.{name}"] = f"{rel(one[name], two[name]):.3e}"
    kept["heatmaps"] = one["heatmaps"].contiguous()
    kept["latents.f64"] = two["latents"].contiguous()
    kept["heatmaps.f64"] = two["heatmaps"].contiguous()
    save_file(kept, out, meta)
    print(out, meta, "heat maps %.2f..%.2f, deviation %.2f" % (
        two["heatmaps"].min(), two["heatmaps"].max(), two["heatmaps"].std()))


def main(argv):
    torch.set_num_threads(2)
    with torch.no_grad():
        if len(argv) > 3 and argv[1] == "check":
            return 0 if check(argv[2], argv[3:]) else 1
        if len(argv) == 7 and argv[1] == "golden":
            golden(argv[2], int(argv[3]), int(argv[4]), int(argv[5]), argv[6])
            return 0
    sys.stderr.write(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
