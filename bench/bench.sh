#!/bin/sh
# SPDX-License-Identifier: MIT
# make bench: where the time goes, per part and per operation, in fp32 and,
# where the device has it, in bf16. Then what a picture costs in the published
# protocols beside the passes of the network. Tiny networks always, which say
# little about speed; the full-size ones when MPIPE_BENCH_FULL names a folder
# with seg_ade20k.safetensors, depth_nyu.safetensors or pose_coco.safetensors
# (tests/make_weights makes them from key lists; the last one's is in
# tests/golden/keys). BENCH_ARGS are further options of bench/bench.
set -eu
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
bench=$builddir/bench/bench
full=${MPIPE_BENCH_FULL:-}

run() {
    echo
    # shellcheck disable=SC2086 # several options
    "$bench" "$@" --precision fp32 ${BENCH_ARGS:-}
    echo
    # shellcheck disable=SC2086
    "$bench" "$@" --precision bf16 ${BENCH_ARGS:-} || echo "bf16: skipped"
}

# protocol CHECKPOINT PRESET PICTURE OPTION...: one picture, from the file to its
# results; all of it but loading and compiling, over the network's passes
protocol() {
    checkpoint=$1 preset=$2
    picture=$3
    shift 3
    rm -rf "$dir/out"
    "$builddir/mpipe" -q -c "$srcdir/conf/$preset.ini" "$@" \
        -o model.checkpoint="$checkpoint" "$picture" "$dir/out"
    sed -n 's/^ *"\([a-z_]*\)": \([0-9.e+-]*\),*$/\1 \2/p' "$dir/out/run.json" |
        awk -v name="$preset" '
            { t[$1] = $2 }
            END {
                all = t["total"] - t["load"] - t["compile"]
                printf "%-16s network %.2f s, merge %.3f s, picture %.2f s: " \
                    "%.3f x the network\n", name, t["network"], t["merge"],
                    all, all / t["network"]
            }'
}

# Two windows; four crops; a crop and its mirror image.
protocols() {
    seg=$1 depth=$2 pose=$3
    shift 3
    skier=$srcdir/samples/skier.jpg
    "$builddir/bench/resize" "$srcdir/samples/desk.jpg" 640 480 "$dir/nyu.png"
    [ ! -r "$seg" ] || protocol "$seg" seg-ade20k "$skier" "$@"
    [ ! -r "$depth" ] || protocol "$depth" depth-nyu "$dir/nyu.png"
    [ ! -r "$pose" ] || protocol "$pose" pose "$skier" -o pose.flip=yes
}

for task in seg depth; do
    echo "== tiny $task"
    run --task "$task"
done
echo "== tiny networks in the published protocols"
models=$builddir/models
protocols "$models/demo-seg.safetensors" "$models/demo-depth.safetensors" \
    "$models/demo-pose.safetensors" -o pipeline.classes=demo
if [ -z "$full" ]; then
    echo "full-size networks: skipped, MPIPE_BENCH_FULL is not set"
    exit 0
fi
for file in seg_ade20k depth_nyu; do
    if [ ! -r "$full/$file.safetensors" ]; then
        echo "full-size networks: no $full/$file.safetensors"
        continue
    fi
    echo "== full-size $file"
    run --task "${file%%_*}" --checkpoint "$full/$file.safetensors" --worst 15
done
echo "== full-size networks in the published protocols"
protocols "$full/seg_ade20k.safetensors" "$full/depth_nyu.safetensors" \
    "$full/pose_coco.safetensors"
