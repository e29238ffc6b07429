# SPDX-License-Identifier: MIT
"""The network of mpipe in PyTorch: VAE encoder, UNet, refinement loop and the
heads for depth and segmentation. Written apart from mpipe, to time and check
it; attribute names are the keys of the checkpoints."""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

MULTIPLIERS = (1, 2, 4, 4)  # channels per level, UNet and VAE alike
UNET_HEADS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16,
          "fp16": torch.float16}


def bilinear(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear",
                         align_corners=False)


def conv(cin, cout, k=3, stride=1):
    return nn.Conv2d(cin, cout, k, stride, k // 2)


def tokens(x):
    """N x C x H x W -> N x HW x C; free of charge when channels are last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def image(x, like):
    return x.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


class VaeBlock(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, cin, 1e-6)
        self.conv1 = conv(cin, cout)
        self.norm2 = nn.GroupNorm(32, cout, 1e-6)
        self.conv2 = conv(cout, cout)
        self.nin_shortcut = (
            conv(cin, cout, 1) if cin != cout else nn.Identity())

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class VaeAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, 1e-6)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, conv(c, c, 1))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (tokens(f(h)).unsqueeze(1) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(image(h, x))


class VaeEncoder(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.conv_in = conv(3, ch)
        self.down = nn.ModuleList()
        c = ch
        for level, m in enumerate(MULTIPLIERS):
            down = nn.Module()
            down.block = nn.ModuleList([VaeBlock(c, ch * m),
                                        VaeBlock(ch * m, ch * m)])
            c = ch * m
            if level < len(MULTIPLIERS) - 1:
                down.downsample = nn.ModuleDict(
                    {"conv": nn.Conv2d(c, c, 3, 2)})
            self.down.append(down)
        self.mid = nn.ModuleDict({"block_1": VaeBlock(c, c),
                                  "attn_1": VaeAttention(c),
                                  "block_2": VaeBlock(c, c)})
        self.norm_out = nn.GroupNorm(32, c, 1e-6)
        self.conv_out = conv(c, 8)

    def forward(self, x):
        h = self.conv_in(x)
        for down in self.down:
            for block in down.block:
                h = block(h)
            if hasattr(down, "downsample"):  # pads right and bottom only
                h = down.downsample["conv"](F.pad(h, (0, 1, 0, 1)))
        for part in self.mid.values():
            h = part(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Vae(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.encoder = VaeEncoder(ch)
        self.quant_conv = conv(8, 8, 1)

    def forward(self, x):
        return self.quant_conv(self.encoder(x))[:, :4]  # the mean, unscaled


class ResBlock(nn.Module):
    def __init__(self, cin, cout, emb):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, cin, 1e-5), nn.SiLU(), conv(cin, cout))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, cout))
        self.out_layers = nn.Sequential(  # Identity: dropout in training
            nn.GroupNorm(32, cout, 1e-5), nn.SiLU(), nn.Identity(),
            conv(cout, cout))
        self.skip_connection = (
            conv(cin, cout, 1) if cin != cout else nn.Identity())

    def forward(self, x, emb, context):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, c, context):
        super().__init__()
        self.to_q = nn.Linear(c, c, bias=False)
        self.to_k = nn.Linear(context, c, bias=False)
        self.to_v = nn.Linear(context, c, bias=False)
        self.to_out = nn.Sequential(nn.Linear(c, c))

    def forward(self, x, context):
        q, k, v = (f(y).unflatten(2, (UNET_HEADS, -1)).transpose(1, 2)
                   for f, y in ((self.to_q, x), (self.to_k, context),
                                (self.to_v, context)))
        h = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(h.transpose(1, 2).flatten(2))


class GeGlu(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Linear(c, 8 * c)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, c, context):
        super().__init__()
        self.attn1 = Attention(c, c)
        self.attn2 = Attention(c, context)
        self.ff = nn.ModuleDict({"net": nn.Sequential(
            GeGlu(c), nn.Identity(), nn.Linear(4 * c, c))})
        for name in ("norm1", "norm2", "norm3"):
            setattr(self, name, nn.LayerNorm(c))

    def forward(self, x, context):
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff["net"](self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, c, context):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, 1e-6)
        self.proj_in = conv(c, c, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(c, context)])
        self.proj_out = conv(c, c, 1)

    def forward(self, x, emb, context):
        h = tokens(self.proj_in(self.norm(x)))
        h = self.transformer_blocks[0](h, context)
        return x + self.proj_out(image(h, x))


class Resample(nn.Module):
    """One 3x3 convolution, halving the map or after doubling it."""

    def __init__(self, c, name):
        super().__init__()
        self.down = name == "op"
        setattr(self, name, conv(c, c, 3, 2 if self.down else 1))

    def forward(self, x, emb, context):
        if self.down:
            return self.op(x)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Unet(nn.Module):
    def __init__(self, d, emb, context):
        super().__init__()

        def stage(cin, cout, attend):
            parts = [ResBlock(cin, cout, emb)]
            if attend:
                parts.append(Transformer(cout, context))
            return nn.ModuleList(parts)

        self.input_blocks = nn.ModuleList([nn.ModuleList([conv(4, d)])])
        widths, c = [d], d
        for level, m in enumerate(MULTIPLIERS):
            if level:
                self.input_blocks.append(nn.ModuleList([Resample(c, "op")]))
                widths.append(c)
            for _ in range(2):
                self.input_blocks.append(stage(c, d * m, level < 3))
                c = d * m
                widths.append(c)
        self.middle_block = nn.ModuleList([
            ResBlock(c, c, emb), Transformer(c, context),
            ResBlock(c, c, emb)])
        self.output_blocks = nn.ModuleList()
        for level in (3, 2, 1, 0):
            for i in range(3):
                width = d * MULTIPLIERS[level]
                block = stage(c + widths.pop(), width, level < 3)
                c = width
                if i == 2 and level:
                    block.append(Resample(c, "conv"))
                self.output_blocks.append(block)
        self.out = nn.Sequential(
            nn.GroupNorm(32, d, 1e-5), nn.SiLU(), conv(d, 4))

    def forward(self, z, emb, context):
        """The four maps, finest first, and the next step's latent."""
        h, maps = self.input_blocks[0][0](z), []
        skips = [h]
        for block in self.input_blocks[1:]:
            for part in block:
                h = part(h, emb, context)
            skips.append(h)
        for part in self.middle_block:
            h = part(h, emb, context)
        for i, block in enumerate(self.output_blocks):
            skip = skips.pop()
            if skip.shape[2:] != h.shape[2:]:
                skip = bilinear(skip, h.shape[2:])
            h = torch.cat([h, skip], dim=1)
            for part in block:
                h = part(h, emb, context)
            if i in (1, 4, 7, 11):
                maps.insert(0, h)
        return maps, self.out(maps[0])


class ConvBnRelu(nn.Module):
    def __init__(self, cin, cout, k):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, padding=k // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class UperHead(nn.Module):
    def __init__(self, prompts, c, classes):
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), ConvBnRelu(prompts, c, 1))
            for s in (1, 2, 3, 6))
        self.bottleneck = ConvBnRelu(prompts + 4 * c, c, 3)
        self.lateral_convs = nn.ModuleList(
            ConvBnRelu(prompts, c, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvBnRelu(c, c, 3) for _ in range(3))
        self.fpn_bottleneck = ConvBnRelu(4 * c, c, 3)
        self.conv_seg = conv(c, classes, 1)

    def forward(self, feats):
        top = feats[3]
        pooled = [bilinear(f(top), top.shape[2:]) for f in self.psp_modules]
        lateral = [f(x) for f, x in zip(self.lateral_convs, feats)]
        lateral.append(self.bottleneck(torch.cat([top, *pooled], dim=1)))
        for i in (3, 2, 1):
            lateral[i - 1] = lateral[i - 1] + bilinear(
                lateral[i], lateral[i - 1].shape[2:])
        outs = [f(x) for f, x in zip(self.fpn_convs, lateral)] + [lateral[3]]
        outs = [bilinear(x, outs[0].shape[2:]) for x in outs]
        return self.conv_seg(self.fpn_bottleneck(torch.cat(outs, dim=1)))


class DeconvStages(nn.Module):
    """Stages that double the map, then one 3x3 convolution."""

    def __init__(self, state, prefix):
        super().__init__()
        stages, i = [], 0
        while (key := f"{prefix}deconv_layers.{i}.weight") in state:
            cin, cout, k, _ = state[key].shape
            stages += [nn.ConvTranspose2d(cin, cout, k, 2, (k - 1) // 2,
                                          k % 2, bias=False),
                       nn.BatchNorm2d(cout), nn.ReLU()]
            i += 3
        cout, cin = state[f"{prefix}conv_layers.0.weight"].shape[:2]
        self.deconv_layers = nn.Sequential(*stages)
        self.conv_layers = nn.Sequential(
            conv(cin, cout), nn.BatchNorm2d(cout), nn.ReLU())

    def forward(self, x):
        return self.conv_layers(self.deconv_layers(x))


def conv_gn_relu(weight):
    cout, cin = weight.shape[:2]
    return nn.Sequential(
        conv(cin, cout), nn.GroupNorm(16, cout, 1e-5), nn.ReLU())


def parameter(like):
    return nn.Parameter(torch.empty(like.shape), requires_grad=False)


def prompt_product(x, prompts):
    return torch.einsum("bchw,nc->bnhw", x, prompts)


class Refiner(nn.Module):
    """What both tasks share. `note` is told every stage's result."""

    def __init__(self, state):
        super().__init__()
        self.steps = sum(k[0] == "t" and k[1:].isdigit() for k in state)
        for i in range(1, self.steps + 1):
            self.register_parameter(f"t{i}", parameter(state[f"t{i}"]))
        attn2 = "unet.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        vae = "encoder_vq.encoder.conv_in.weight"
        self.encoder_vq = Vae(state[vae].shape[0])
        self.unet = Unet(state["unet.input_blocks.0.0.weight"].shape[0],
                         state["t1"].shape[1], state[attn2].shape[1])

    def forward(self, u8, note):
        # contiguous: else the permuted picture makes all maps channels last
        x = self.prepare(u8.permute(0, 3, 1, 2).contiguous())
        x = x.to(self.t1.dtype)
        z = note("latents", self.encoder_vq(x))
        for i in range(1, self.steps + 1):
            prompts = self.prompts(i)
            # one memory layout in every step, or torch.compile starts anew
            maps, z = self.unet(z.contiguous(), getattr(self, f"t{i}"),
                                prompts[None])
            for j, m in enumerate(maps):
                note(f"step{i}.out{j}", m)
        logits = note("logits", self.head(maps, prompts, u8.shape[1:3]))
        return self.finish(logits, u8.shape[1:3])


class Seg(Refiner):
    def __init__(self, state):
        super().__init__(state)
        self.meta_prompts = parameter(state["meta_prompts"])
        for i in range(1, 5):
            setattr(self, f"upconv{i}",
                    conv_gn_relu(state[f"upconv{i}.0.weight"]))
        classes, c = state["decode_head.conv_seg.weight"].shape[:2]
        self.decode_head = UperHead(len(self.meta_prompts), c, classes)

    def prepare(self, x):
        return (x.float() - 127.5) / 127.5

    def prompts(self, step):
        return self.meta_prompts

    def head(self, maps, prompts, size):
        feats = [bilinear(m, [2 * n for n in m.shape[2:]]) for m in maps]
        return self.decode_head(
            [prompt_product(getattr(self, f"upconv{i}")(x), prompts)
             for i, x in enumerate(feats, 1)])

    def finish(self, logits, size):
        return bilinear(logits, size).argmax(1).to(torch.uint8)


class Depth(Refiner):
    MAX_DEPTH_M, RESIZE_SCALE = 10.0, 1  # NYU; not recoverable from the file

    def __init__(self, state):
        super().__init__(state)
        for i in range(1, self.steps + 1):
            prompts = state[f"meta_prompts{i}"]
            c = prompts.shape[1]
            fc = nn.Sequential(nn.Linear(c, c), nn.GELU(), nn.Linear(c, c))
            self.register_parameter(f"meta_prompts{i}", parameter(prompts))
            setattr(self, f"text_adapter{i}", nn.ModuleDict({"fc": fc}))
        self.layer1 = conv_gn_relu(state["layer1.0.weight"])
        for i in (2, 3, 4):
            setattr(self, f"layer{i}", DeconvStages(state, f"layer{i}."))
        self.out_layer = conv_gn_relu(state["out_layer.0.weight"])
        self.decoder = DeconvStages(state, "decoder.")
        c = state["last_layer_depth.0.weight"].shape[0]
        self.last_layer_depth = nn.Sequential(
            conv(c, c), nn.ReLU(), conv(c, 1))

    def prepare(self, x):
        size = [(n // 64 + self.RESIZE_SCALE) * 64 for n in x.shape[2:]]
        return bilinear(x.float() / 255 * 2 - 1, size)

    def prompts(self, step):
        adapter = getattr(self, f"text_adapter{step}")["fc"]
        return adapter(getattr(self, f"meta_prompts{step}"))

    def head(self, maps, prompts, size):
        x = torch.cat([getattr(self, f"layer{i}")(m)
                       for i, m in enumerate(maps, 1)], dim=1)
        x = prompt_product(self.out_layer(x), prompts)
        x = self.decoder(bilinear(x, [n // 8 for n in size]))
        return self.last_layer_depth(x)

    def finish(self, logits, size):
        return torch.sigmoid(logits.float()) * self.MAX_DEPTH_M


UNET_KEY = "unet.unet.diffusion_model."
UNUSED = ("sd_model.", "unet.time_embed.", "encoder_vq.post_quant_conv.",
          "cross_unet_conv", "auxiliary_head.")


def load(path, task, dtype, how):
    """The model in dtype. `how`: "usual" copies the file's tensors into a
    model that was built first; "mmap" lets the model use the mapped file."""
    state = {k.removeprefix("encoder.").replace(UNET_KEY, "unet."): v
             for k, v in load_file(path).items()}
    with torch.device("meta" if how == "mmap" else "cpu"):
        model = (Seg if task == "seg" else Depth)(state)
    result = model.load_state_dict(state, strict=False, assign=how == "mmap")
    odd = [k for k in result.unexpected_keys if not k.startswith(UNUSED)]
    if result.missing_keys or odd:
        sys.exit(f"peer: {path}: missing {result.missing_keys}, "
                 f"unexpected {odd}")
    return model.to(DTYPES[dtype]).eval().requires_grad_(False)


def verify(model, path):
    """Relative L2 distance to every stage that the golden file holds."""
    golden = load_file(path)

    def note(name, x):
        for key in (f"{name}.f64", name, f"samples.{name}"):
            if key in golden:
                want, got = golden[key].double(), x.double()
                if key.startswith("samples."):
                    k = len(want)
                    got = got.flatten()[::got.numel() // k][:k]
                error = (got.reshape(want.shape) - want).norm() / want.norm()
                print(f"{key:20} {error:.2e}")
                break
        return x

    result = model(golden["image_u8"], note)
    note("depth", result)
    if "argmax" in golden:
        same = (result == golden["argmax"]).double().mean()
        print(f"{'argmax equal':20} {100 * same:.4f} %")
