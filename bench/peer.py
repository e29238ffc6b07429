#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time mpipe against the same network in PyTorch, on the same machine.

    peer.py --checkpoint seg_ade20k.safetensors --size 512x512 --dtype bf16 \\
            --mpipe mpipe -o pipeline.classes=ade20k
    peer.py --checkpoint tiny_seg.safetensors --verify golden.safetensors

peer_net.py has the network once more, in PyTorch as one would write it today
(inference mode, fused attention), reading the same safetensors checkpoint.
Every PyTorch variant runs in a process of its own, is warmed up by one
picture, and takes turns with mpipe, so that a change of the machine's load
hits all of them. All variants stay in memory: choose fewer if that is scarce.

With --device cuda both work there: mpipe with compute.backend=cuda, PyTorch
with the pictures put to and the results got from the device inside the time.
The times of its parts are not told then: they would need waits in between.

Variants: contiguous, channels_last, compile (channels last and
torch.compile; on the CPU with frozen weights; needs a C++ compiler), graphs
(on a GPU: compile with mode reduce-overhead, which replays CUDA graphs).
Compiling takes minutes; what it made is kept in TORCHINDUCTOR_CACHE_DIR.
Needs torch >= 2.1, numpy and safetensors; mpipe itself needs none of them.
"""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np

VARIANTS = ("contiguous", "channels_last", "compile", "graphs")


# ---- one PyTorch variant, in a process of its own --------------------------


def peak_rss_gb():
    with open("/proc/self/status") as f:  # unlike ru_maxrss, not the parent's
        return next(int(line.split()[1]) for line in f
                    if line.startswith("VmHWM")) * 1024 / 1e9


def prepare(model, variant):
    import torch
    if variant != "contiguous":
        model = model.to(memory_format=torch.channels_last)
    if variant in ("compile", "graphs"):
        import torch._inductor.config
        torch._inductor.config.freezing = not next(model.parameters()).is_cuda
        mode = "reduce-overhead" if variant == "graphs" else None
        for part in ("encoder_vq", "unet", "head"):
            setattr(model, part, torch.compile(getattr(model, part),
                                               mode=mode))
    return model


def timed_on_gpu(model, u8):
    import torch
    torch.compiler.cudagraph_mark_step_begin()
    torch.cuda.synchronize()
    start = time.perf_counter()
    model(u8.cuda(), lambda name, x: x).cpu()
    nan = float("nan")
    return {"s": (time.perf_counter() - start) / len(u8), "cpu": nan,
            "vae": nan, "unet": nan, "head": nan, "post": nan}


def timed(model, u8):
    if next(model.parameters()).is_cuda:
        return timed_on_gpu(model, u8)
    marks = [("start", time.perf_counter())]

    def note(name, x):
        marks.append((name, time.perf_counter()))
        return x

    cpu = time.process_time()
    note("result", model(u8, note))
    cpu = time.process_time() - cpu
    at = dict(marks)
    steps = [at[f"step{i}.out3"] for i in range(1, model.steps + 1)]
    return {"s": (at["result"] - at["start"]) / len(u8), "cpu": cpu,
            "vae": at["latents"] - at["start"],
            "unet": (steps[-1] - at["latents"]) / len(steps),
            "head": at["logits"] - steps[-1],
            "post": at["result"] - at["logits"]}


def work(a):
    import torch
    from peer_net import load

    def answer(value):
        print(json.dumps(value), flush=True)

    torch.set_num_threads(a.threads)
    start = time.perf_counter()
    model = load(a.checkpoint, a.task, a.dtype, a.load).to(a.device)
    model = prepare(model, a.worker)
    loaded = time.perf_counter()
    u8 = torch.from_numpy(np.stack([picture(*a.size, i)
                                    for i in range(a.batch)]))
    with torch.inference_mode():
        timed(model, u8)
        answer({"load": loaded - start, "warm": time.perf_counter() - loaded,
                "rss": peak_rss_gb(), "torch": torch.__version__})
        for _ in sys.stdin:
            answer({**timed(model, u8), "rss": peak_rss_gb()})


def check(a):
    import torch
    from peer_net import load, verify

    torch.set_num_threads(a.threads)
    with torch.inference_mode():
        model = load(a.checkpoint, a.task, a.dtype, "mmap")
        verify(prepare(model, a.variants[0]), a.verify)


class Variant:
    """The parent's end of a worker."""

    def __init__(self, a, name, how):
        cmd = [sys.executable, __file__, "--worker", name, "--load", how,
               "--checkpoint", a.checkpoint, "--task", a.task,
               "--dtype", a.dtype, "--threads", str(a.threads),
               "--device", a.device, "--batch", str(a.batch), "--size", "%dx%d" % tuple(a.size)]
        self.process = subprocess.Popen(cmd, stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, env=limits(a))
        self.name, self.runs = name, []
        self.start = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"peer: the worker {self.name} ended early")
        return json.loads(line)

    def run(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.runs.append(self.answer())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---- mpipe -----------------------------------------------------------------


def mpipe_time(run):
    """Seconds for a picture: the network and what makes a result of its
    output, without loading, decoding and encoding."""
    return (run["seconds"]["network_median"]
            + run["seconds"]["merge"] / run["counts"]["done"])


def mpipe_run(a, pictures):
    """Seconds for a picture, peak RSS in GB. A GPU works on while results are
    made, so no part of a run tells what a picture costs there: the difference
    that more pictures make does, decoding and encoding included."""
    if a.device == "cpu":
        out, rss = mpipe_start(a, pictures)
        return mpipe_time(out), rss
    few, many = 2 * a.batch, len(os.listdir(pictures))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.writelines(os.path.join(pictures, f"{i}.png") + "\n"
                     for i in range(few))
        f.flush()
        short, _ = mpipe_start(a, "@" + f.name)
    long, rss = mpipe_start(a, pictures)
    return ((long["seconds"]["total"] - short["seconds"]["total"])
            / (many - few)), rss


def mpipe_start(a, pictures):
    """run.json, peak RSS in GB."""
    with tempfile.TemporaryDirectory() as out:
        cmd = [a.mpipe, "-q", "-c", a.config,
               "-o", f"compute.precision={a.dtype}",
               "-o", f"compute.threads={a.threads}",
               "-o", f"compute.backend={a.device}",
               "-o", f"compute.batch={a.batch}",
               "-o", "output.formats=labels" if a.task == "seg" else
               "output.formats=npy",
               "-o", f"model.checkpoint={os.path.abspath(a.checkpoint)}"]
        for o in a.option:
            cmd += ["-o", o]
        process = subprocess.Popen(cmd + [pictures, out], env=limits(a),
                                   stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"peer: {' '.join(cmd)}: status {process.returncode}")
        with open(os.path.join(out, "run.json")) as f:
            return json.load(f), usage.ru_maxrss * 1024 / 1e9


# ---- the comparison --------------------------------------------------------


def limits(a):
    return {**os.environ, "OMP_NUM_THREADS": str(a.threads)}


def picture(h, w, seed):
    """uint8 H x W x 3: gradients with noise."""
    y, x = np.mgrid[:h, :w]
    rgb = np.stack([255 * x // w, 255 * y // h, 255 * (x + y) // (h + w)], -1)
    noise = np.random.default_rng(seed).integers(-20, 21, rgb.shape)
    return (rgb + noise).clip(0, 255).astype(np.uint8)


def write_png(path, rgb):
    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    h, w, _ = rgb.shape
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n"
                + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
                + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def mapped_rss_gb(a, name):
    if name in ("compile", "graphs"):  # minutes, for weights that are repacked anyway
        return float("nan")
    v = Variant(a, name, "mmap")
    v.close()
    return v.start["rss"]


def spread(seconds):
    return (f"{statistics.median(seconds):8.4f} "
            f"({min(seconds):7.4f} ..{max(seconds):8.4f})")


def compare(a, pictures):
    # of which mpipe tells the median: weights are packed by the third
    count = 5 * a.batch
    if a.device == "cuda":
        count = 2 * a.batch + 96
    for i in range(count):
        write_png(os.path.join(pictures, f"{i}.png"), picture(*a.size, i))
    load_before = os.getloadavg()[0]
    variants = [Variant(a, name, "usual") for name in a.variants]
    own, own_rss = [], 0
    for _ in range(a.runs):
        if a.mpipe:
            seconds, rss = mpipe_run(a, pictures)
            own.append(seconds)
            own_rss = max(own_rss, rss)
        for v in variants:
            v.run()
    for v in variants:
        v.close()
    print(f"torch {variants[0].start['torch']}, {a.device}, batch {a.batch},"
          f" {a.threads} threads,"
          f" {a.dtype}, {a.size[0]}x{a.size[1]}, {a.runs} runs, load average"
          f" before, now: {load_before:.1f}, {os.getloadavg()[0]:.1f}")
    print(" " * 15 + " median s (min .. max)       ratio |  cpu s    vae  unet "
          " head  post | RSS GB  mapped | load s  first run s")
    if own:
        print(f"{'mpipe':14}{spread(own)}  1.00 |{'':32}|{own_rss:6.2f}")
    for v in variants:
        mapped = mapped_rss_gb(a, v.name)
        seconds = [r["s"] for r in v.runs]
        mid = {k: statistics.median(r[k] for r in v.runs) for k in v.runs[0]}
        ratio = mid["s"] / statistics.median(own) if own else float("nan")
        print(f"{v.name:14}{spread(seconds)} {ratio:5.2f} |{mid['cpu']:7.1f}"
              f" {mid['vae']:6.2f} {mid['unet']:5.2f} {mid['head']:5.2f}"
              f" {mid['post']:5.2f} |{mid['rss']:6.2f} {mapped:8.2f}"
              f" |{v.start['load']:6.1f} {v.start['warm']:8.1f}", flush=True)


def size(text):
    h, w = text.split("x")
    return [int(h), int(w)]


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="safetensors file")
    p.add_argument("--task", choices=("seg", "depth"), default="seg")
    p.add_argument("--size", type=size, default=[512, 512], metavar="HxW")
    p.add_argument("--dtype", choices=("fp32", "bf16", "fp16"),
                   default="fp32")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--batch", type=int, default=1, help="pictures at a time")
    p.add_argument("--variants", type=lambda s: s.split(","), metavar="A,B",
                   default=list(VARIANTS[:3]),
                   help="of " + ", ".join(VARIANTS))
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--mpipe", help="the mpipe program; without: PyTorch only")
    p.add_argument("--config", help="mpipe's; default: conf/TASK.ini")
    p.add_argument("-o", "--option", action="append", default=[],
                   metavar="SECTION.KEY=VALUE", help="for mpipe")
    p.add_argument("--verify", metavar="GOLDEN",
                   help="compare the stages of the first variant with a file")
    p.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    p.add_argument("--load", choices=("usual", "mmap"), default="usual",
                   help=argparse.SUPPRESS)
    a = p.parse_args()
    if not set(a.variants) <= set(VARIANTS):
        p.error("--variants: choose from " + ", ".join(VARIANTS))
    here = os.path.dirname(os.path.abspath(__file__))
    a.config = a.config or os.path.join(here, "..", "conf", a.task + ".ini")
    return a


def main():
    a = arguments()
    if a.worker:
        work(a)
    elif a.verify:
        check(a)
    else:
        with tempfile.TemporaryDirectory() as pictures:
            compare(a, pictures)


if __name__ == "__main__":
    main()
