#!/bin/sh
# SPDX-License-Identifier: MIT
# bench/gpu.sh [--dry-run] [--quick] [BUILD]
# Where the time goes on a GPU: by part and operation against the measured peak
# of matrix products, bytes against the measured rate of copies, and a race
# with PyTorch in the same run. BUILD and the environment as of tests/gpu.sh.
# Full-size networks: MPIPE_BENCH_FULL names a folder with
# seg_ade20k.safetensors or depth_nyu.safetensors, as of bench/bench.sh; without
# it they are made from GPU_BENCH_KEYS, a folder with their key lists
# (seg_ade20k.json), or else only tiny networks run, which say little.
# --quick: what bounds are given for, where time on the machine is short:
# segmentation in bf16, one picture and 16 at a time, against what was PyTorch's
# fastest way with each: it takes more than a minute to compile.
set -u

dry=0 batches='1 2 4 8 16' tasks='seg depth' precisions='bf16 fp16'
runs='1 2 tuned' variants=channels_last,compile,graphs one=$variants
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=1 ;;
    --quick)
        batches='1 16' tasks=seg precisions=bf16 runs='1 tuned'
        variants=compile one=graphs
        ;;
    *) break ;;
    esac
    shift
done
if [ $# -gt 1 ]; then
    sed -n 3p "$0" >&2
    exit 2
fi
build=$(cd "${1:-.}" && pwd) || exit 2
srcdir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-gpu.XXXXXX") || exit 99
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
wheels=$(python3 -c 'import glob, os, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
print(":".join(sorted(glob.glob(site + "/nvidia/*/lib"))))' 2>/dev/null)
LD_LIBRARY_PATH=$build/.libs:${MPIPE_LIBRARY_PATH:-}:${LD_LIBRARY_PATH:-}:$wheels
MPIPE_BACKEND_PATH=$build/backends
MPIPE_PLUGIN_PATH=$build/plugins
MPIPE_DATA_PATH=$srcdir/conf
MPIPE_MODEL_PATH=${MPIPE_BENCH_FULL:-$work}
export srcdir LD_LIBRARY_PATH MPIPE_BACKEND_PATH MPIPE_PLUGIN_PATH \
    MPIPE_DATA_PATH MPIPE_MODEL_PATH

program() {
    dir=$(dirname "$1")
    name=$(basename "$1")
    if [ -x "$build/$dir/.libs/$name" ]; then
        echo "$build/$dir/.libs/$name"
    else
        echo "$build/$1"
    fi
}
bench=$(program bench/bench)
mpipe=$(program mpipe)
for f in "$bench" "$mpipe" "$build/backends"/cuda.*; do
    [ -e "$f" ] && continue
    echo "gpu.sh: no $f: build it first" >&2
    exit 2
done

date -u
"$(program mpipe-inspect)" cuda
rc=$?
# The full-size network of a task.
full_of() {
    case $1 in
    seg) echo seg_ade20k ;;
    depth) echo depth_nyu ;;
    esac
}
full=${MPIPE_BENCH_FULL:-}
if [ -z "$full" ] && [ -n "${GPU_BENCH_KEYS:-}" ]; then
    full=$work
    [ $dry = 1 ] || for task in $tasks; do
        keys=$(full_of "$task")
        "$(program tests/make_weights)" "$GPU_BENCH_KEYS/$keys.json" \
            "$full/$keys.safetensors" || exit 99
    done
fi
if [ $dry = 1 ]; then
    python3 "$srcdir/bench/peer.py" --help > /dev/null ||
        echo "no PyTorch race here: peer.py does not start"
    echo "dry run: full-size networks from ${full:-nowhere}; all that follows" \
        "calls the device"
    exit 0
fi
[ $rc = 0 ] || exit 77

# The most that the device does in bf16 products (random data, several sizes,
# median of 20) and in copies within its memory: what the rest is held against.
cat > "$work/peak.py" <<'PY'
import statistics
import torch


def median_ms(f):
    times = []
    for _ in range(23):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        f()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times[3:])


best = 0
for n in (4096, 8192, 12288):
    x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
            for _ in range(2))
    best = max(best, 2 * n ** 3 / median_ms(lambda: x @ y) / 1e6)
z = torch.randn(1 << 28, device="cuda")
w = torch.empty_like(z)
rate = 2 * z.numel() * 4 / median_ms(lambda: w.copy_(z)) / 1e6
host = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
dev = host.cuda()
print(f"{best:.0f} {rate:.0f}"
      f" {host.numel() / median_ms(lambda: dev.copy_(host)) / 1e6:.1f}")
PY
peaks=$(python3 "$work/peak.py") || peaks="0 0 0"
# shellcheck disable=SC2086 # three numbers
set -- $peaks
peak=$1
echo "measured: bf16 products $1 GFLOP/s, copies $2 GB/s, from the host $3 GB/s"

# Every case twice: the difference is the noise. Then with plans that were
# measured.
for batch in $batches; do
    for task in $tasks; do
        file=$full/$(full_of "$task").safetensors
        if [ -z "$full" ] || [ ! -r "$file" ]; then
            [ "$batch" = 1 ] || continue
            file=
        fi
        for precision in $precisions; do
            for again in $runs; do
                tune=
                [ "$again" != tuned ] || tune=--autotune
                echo
                echo "== $task $precision batch $batch${file:+ full-size}, run $again"
                # shellcheck disable=SC2046,SC2086
                "$bench" --backend cuda --task $task --precision $precision \
                    --batch $batch --runs 20 --worst 15 $tune \
                    ${file:+--checkpoint "$file"} \
                    $([ "$peak" = 0 ] || echo --peak "$peak")
            done
        done
    done
done

[ -n "$full" ] && [ -r "$full/seg_ade20k.safetensors" ] || exit 0
for batch in 1 16; do
    race=$variants
    [ "$batch" != 1 ] || race=$one
    for dtype in $precisions; do
        echo
        echo "== race: seg $dtype batch $batch"
        python3 "$srcdir/bench/peer.py" --device cuda --dtype "$dtype" \
            --batch $batch --checkpoint "$full/seg_ade20k.safetensors" \
            --variants "$race" --runs 7 --mpipe "$mpipe" \
            -o pipeline.classes=ade20k
    done
done
