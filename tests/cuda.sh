#!/bin/sh
# SPDX-License-Identifier: MIT
# The CUDA backend without a GPU: its kernels and its code on the processor
# (tests/sim), and that the module itself, where it was built, refuses with one
# true sentence and "auto" goes on to the CPU where it cannot run.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
keys=$srcdir/tests/golden/keys
failures=0
tested=0

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-cuda.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' "$dir/err"
    failures=$((failures + 1))
}

# ---- kernels and host code ----

sim=$builddir/tests/sim/.libs/libcuda.so
if [ ! -e "$sim" ]; then
    echo "SKIPPED: kernels on the processor: there is no C++17 compiler"
elif [ ! -e "$builddir/tests/test_ops" ]; then
    echo "SKIPPED: kernels on the processor: Check was not found"
else
    tested=1
    MPIPE_BACKEND_PATH=$builddir/tests/sim MPIPE_TEST_BACKEND=gpusim \
        "$builddir/tests/test_ops" > "$dir/err" 2>&1 ||
        fail "test_ops on the simulated GPU"
    MPIPE_SIM_LIBRARY=yes CK_RUN_CASE=bf16_inside \
        MPIPE_BACKEND_PATH=$builddir/tests/sim MPIPE_TEST_BACKEND=gpusim \
        "$builddir/tests/test_ops" > "$dir/err" 2>&1 ||
        fail "test_ops on the simulated GPU with a library"
    CK_RUN_CASE=merging MPIPE_BACKEND_PATH=$builddir/tests/sim \
        MPIPE_TEST_BACKEND=gpusim "$builddir/tests/test_pose" \
        > "$dir/err" 2>&1 || fail "key points on the simulated GPU"
    # Streams that do things in any order that they may.
    for order in late early 1 2 3 4 5 6 7 8; do
        MPIPE_SIM_ORDER=$order CK_RUN_CASE=memory \
            MPIPE_BACKEND_PATH=$builddir/tests/sim \
            MPIPE_TEST_BACKEND=gpusim "$builddir/tests/test_session" \
            > "$dir/err" 2>&1 || fail "test_session, order $order"
    done
fi

# ---- from pictures to results ----

# results NAME BACKEND BATCH: into $dir/NAME.
results() {
    MPIPE_BACKEND_PATH=$builddir/tests/sim MPIPE_MODEL_PATH=$dir/models \
        "$builddir/mpipe" -q -c "$srcdir/conf/seg.ini" -o compute.batch="$3" \
        -o compute.backend="$2" -o compute.precision=fp32 \
        -o output.formats="labels probs raw" "$dir/in" "$dir/$1" \
        2> "$dir/err" || fail "backend $2, batch $3"
}

mkdir "$dir/models" "$dir/in"
if [ -e "$sim" ]; then
    for f in rgb8_all_filters palette8 gray8; do
        cp "$srcdir/tests/data/awkward/$f.png" "$dir/in" || exit 99
    done
    "$builddir/tests/make_weights" "$keys/tiny_seg.json" \
        "$dir/models/demo-seg.safetensors" || exit 99
    results one gpusim 1
    MPIPE_SIM_DEVICES=2 MPIPE_SIM_ORDER=3 results two gpusim:all 2
    # Times are in run.json.
    diff -rq -x run.json "$dir/one" "$dir/two" > "$dir/err" 2>&1 ||
        fail "two devices and a batch of 2 are not the same bytes as one"
    [ "$(find "$dir/two" -name '*.npy' | wc -l)" = 6 ] || fail "no results"
    # A device that breaks down on the way ends the run, and all is put away.
    for at in 1 1000 2000; do
        MPIPE_SIM_FAULT=$at MPIPE_SIM_KERNELS=no \
            MPIPE_BACKEND_PATH=$builddir/tests/sim MPIPE_MODEL_PATH=$dir/models \
            "$builddir/mpipe" -q -c "$srcdir/conf/seg.ini" \
            -o compute.backend=gpusim "$dir/in" "$dir/broken$at" \
            > "$dir/out" 2> "$dir/err"
        status=$?
        [ $status = 3 ] && grep -q "illegal memory access" "$dir/err" ||
            fail "broken device: status $status"
    done
fi

# ---- the module ----

# refuses WHAT TEXT: with that wrong with the fake driver, it says TEXT.
refuses() {
    FAKE_CUDA=$1 LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
        "$builddir/mpipe-inspect" cuda > "$dir/out" 2> "$dir/err"
    status=$?
    [ $status != 0 ] || fail "$1: status 0"
    [ "$(wc -l < "$dir/err")" = 1 ] && grep -q "^mpipe: cuda.*$2" "$dir/err" ||
        fail "$1: not one line with \"$2\""
}

if [ ! -e "$builddir/backends/cuda.la" ]; then
    echo "SKIPPED: the module: configured without CUDA"
elif [ ! -e "$sim" ]; then
    echo "SKIPPED: the module: there is no C++17 compiler for its driver"
else
    tested=1
    MPIPE_BACKEND_PATH=$builddir/backends
    export MPIPE_BACKEND_PATH
    cp "$sim" "$dir/libcuda.so.1" || exit 99
    refuses none "there is no NVIDIA GPU"
    refuses "old driver" "is for CUDA 11.4, .* update the driver"
    refuses "old device" "Fake 1000 has compute capability 7.5, .* needs 8.0"
    refuses closed "Fake 1000: not permitted"

    # The module itself, kernels and all, on the simulated driver.
    if [ -e "$builddir/tests/test_session" ]; then
        MPIPE_CUDA_LIBRARIES=no MPIPE_TEST_BACKEND=cuda \
            LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
            "$builddir/tests/test_session" > "$dir/err" 2>&1 ||
            fail "test_session with the module"
    fi

    # auto: says why, and computes on the CPU.
    "$builddir/tests/make_weights" "$keys/tiny_depth.json" \
        "$dir/models/demo-depth.safetensors" || exit 99
    FAKE_CUDA=none LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
        MPIPE_MODEL_PATH=$dir/models "$builddir/mpipe" -v \
        -c "$srcdir/conf/depth.ini" "$srcdir/samples/living_room.png" \
        "$dir/results" \
        > "$dir/out" 2> "$dir/err" || fail "auto without a GPU"
    grep -q "not on a GPU: cuda: there is no NVIDIA GPU" "$dir/err" ||
        fail "auto does not say why"
fi

[ $failures = 0 ] || exit 1
[ $tested = 1 ] || exit 77
