#!/bin/sh
# SPDX-License-Identifier: MIT
# make bench: where the time goes, per part and per operation, in fp32 and,
# where the device has it, in bf16. Tiny networks always, which say little
# about speed; the full-size ones when MPIPE_BENCH_FULL names a folder with
# seg_ade20k.safetensors or depth_nyu.safetensors (tests/make_weights makes
# them from key lists). BENCH_ARGS are further options of bench/bench.
set -eu
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

for task in seg depth; do
    echo "== tiny $task"
    run --task "$task"
done
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
