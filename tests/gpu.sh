#!/bin/sh
# SPDX-License-Identifier: MIT
# tests/gpu.sh [--dry-run] [--only PART,...] [--jobs N] [BUILD]
# tests/gpu.sh --pack FILE.tar.xz [BUILD]
# All that needs a GPU to be checked, and a table of it at the end. Run it on
# the machine with the GPU; BUILD (default: .) is a built tree, which may have
# been built elsewhere and carried there with this source folder beside it.
# --dry-run: on any machine, everything up to the first call of the device.
# --only: some parts, where time on the machine is short: ops, nets, program,
# memcheck, racecheck, initcheck, synccheck, leaks; the others are told as left
# out.
# --jobs: so many tests side by side, as most of a test is the processor's work
# (default: as many as there are processors, 4 at most). Each has a CUDA context
# of its own, and so takes memory of the device.
# --pack: source/, build/ and lib/ (the libraries that both need, but for CUDA's
# and those that every system has: an older one here would be taken there by
# CUDA's, too), for a machine that has none of them; there:
#     tar xf FILE.tar.xz && MPIPE_LIBRARY_PATH=$PWD/lib source/tests/gpu.sh build
# Environment: COMPUTE_SANITIZER, the program, if it is not on the PATH;
# MPIPE_LIBRARY_PATH, folders of libraries that travelled with the tree.
set -u

parts="ops nets program memcheck racecheck initcheck synccheck leaks"
dry=0 pack='' only=$parts
jobs=$(nproc)
[ "$jobs" -le 4 ] || jobs=4
usage() {
    sed -n 3,4p "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=1 ;;
    --only)
        [ $# -ge 2 ] || usage
        only=$(echo "$2" | tr , ' ')
        shift
        ;;
    --jobs)
        case ${2:-} in
        '' | 0* | *[!0-9]*) usage ;;
        esac
        jobs=$2
        shift
        ;;
    --pack)
        [ $# -ge 2 ] || usage
        pack=$2
        shift
        ;;
    *) break ;;
    esac
    shift
done
[ $# -le 1 ] || usage
for part in $only; do
    case " $parts " in
    *" $part "*) ;;
    *)
        echo "gpu.sh: no part \"$part\": $parts" >&2
        exit 2
        ;;
    esac
done
build=$(cd "${1:-.}" && pwd) || exit 2
srcdir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-gpu.XXXXXX") || exit 99
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# PyTorch's wheels carry cuDNN and cuBLAS: for a machine without a toolkit.
wheels=$(python3 -c 'import glob, os, torch
site = os.path.dirname(os.path.dirname(torch.__file__))
print(":".join(sorted(glob.glob(site + "/nvidia/*/lib"))))' 2>/dev/null)
LD_LIBRARY_PATH=$build/.libs:${MPIPE_LIBRARY_PATH:-}:${LD_LIBRARY_PATH:-}:$wheels
MPIPE_BACKEND_PATH=$build/backends
MPIPE_PLUGIN_PATH=$build/plugins
MPIPE_DATA_PATH=$srcdir/conf
MPIPE_MODEL_PATH=$work/models
MPIPE_TEST_BACKEND=cuda
CK_FORK=no # CUDA must not be used after fork; and one context serves all
export srcdir LD_LIBRARY_PATH MPIPE_BACKEND_PATH MPIPE_PLUGIN_PATH \
    MPIPE_DATA_PATH MPIPE_MODEL_PATH MPIPE_TEST_BACKEND CK_FORK

# Programs behind libtool's wrappers, which look for the folder of the build.
program() {
    dir=$(dirname "$1")
    name=$(basename "$1")
    if [ -x "$build/$dir/.libs/$name" ]; then
        echo "$build/$dir/.libs/$name"
    else
        echo "$build/$1"
    fi
}
mpipe=$(program mpipe)
inspect=$(program mpipe-inspect)
ops=$(program tests/test_ops)
net=$(program tests/test_net)
pose=$(program tests/test_pose)
session=$(program tests/test_session)
batch=$(program tests/test_batch)
make_weights=$(program tests/make_weights)

if [ -n "$pack" ]; then
    mkdir -p "$work/lib" "$work/build/backends" || exit 99
    for f in mpipe mpipe-inspect tests/test_ops tests/test_net tests/test_pose \
        tests/test_session tests/test_batch tests/full_net tests/make_weights \
        bench/bench; do
        mkdir -p "$work/build/$(dirname "$f")"
        cp "$(program $f)" "$work/build/$f" || exit 99
    done
    cp -r "$build/plugins" "$work/build/" &&
        cp "$build/backends/.libs/cuda.so" "$work/build/backends/" || exit 99
    for f in "$work"/build/plugins/.libs/*.so; do
        mv "$f" "$work/build/plugins/"
    done
    rm -rf "$work"/build/plugins/.libs "$work"/build/plugins/*.la
    ldd "$mpipe" "$ops" | awk '$3 ~ /^\// { print $3 }' | sort -u |
        grep -vE '/lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z)\.so' |
        while read -r f; do cp -L "$f" "$work/lib/"; done
    (cd "$srcdir" && tar cf - conf samples tests bench) |
        (mkdir "$work/source" && cd "$work/source" && tar xf -) || exit 99
    tar cJf "$pack" -C "$work" source build lib && ls -l "$pack"
    exit
fi

failed=0
note() { # RESULT WHAT DETAIL
    printf '%-8s %-34s %s\n' "$1" "$2" "$3" | tee -a "$work/table"
    [ "$1" != FAILED ] || failed=1
}
# Whether a part is to run; told if not.
wants() {
    case " $only " in
    *" $1 "*) return 0 ;;
    esac
    note "left out" "$1" "--only"
    return 1
}

# start WHAT COMMAND...: when one of the jobs is free; finish waits for all,
# shows what they said, and counts their statuses. A job is a line in a pipe.
mkfifo "$work/free" && exec 3<> "$work/free" || exit 99
yes | head -n "$jobs" >&3
started=0
start() {
    what=$1
    shift
    echo "$what" > "$work/what$started"
    read -r _ <&3
    (
        exec 4>&3 3>&-
        echo "== $what: $*" > "$work/log$started"
        begun=$(date +%s)
        "$@" >> "$work/log$started" 2>&1 4>&-
        echo "$? $(($(date +%s) - begun))" > "$work/status$started"
        echo >&4
    ) &
    started=$((started + 1))
}
# The same for the cases of test_ops, in as many parts as there are jobs.
start_ops() {
    cases=$1
    shift
    part=1
    while [ "$part" -le "$jobs" ]; do
        start "$cases, $part of $jobs" env MPIPE_TEST_SHARE=$part/"$jobs" "$@"
        part=$((part + 1))
    done
}
finish() {
    wait
    i=0
    while [ $i -lt $started ]; do
        read -r status seconds < "$work/status$i"
        head -n 1 "$work/log$i"
        tail -n +2 "$work/log$i" | tail -n 40
        last=$(grep -aE 'Checks:|ERROR SUMMARY|passed|differ|^SKIP' \
            "$work/log$i" | tail -n 1)
        last="$seconds s${last:+, $last}"
        case $status in
        0) note ok "$(cat "$work/what$i")" "$last" ;;
        77) note SKIPPED "$(cat "$work/what$i")" "$last" ;;
        *) note FAILED "$(cat "$work/what$i")" "status $status; $last" ;;
        esac
        i=$((i + 1))
    done
    started=0
}
try() {
    start "$@"
    finish
}

for f in "$mpipe" "$inspect" "$ops" "$net" "$pose" "$session" "$batch" \
    "$make_weights" "$build/backends"/cuda.*; do
    [ -e "$f" ] && continue
    echo "gpu.sh: no $f: build it first, with CUDA and Check" >&2
    exit 2
done
mkdir "$work/models"
for task in seg depth pose; do
    "$make_weights" "$srcdir/tests/golden/keys/tiny_$task.json" \
        "$work/models/demo-$task.safetensors" || exit 99
done

"$inspect" cuda > "$work/inspect" 2>&1
rc=$?
cat "$work/inspect"
if [ $rc != 0 ] && [ $dry = 0 ]; then
    echo "gpu.sh: there is no GPU to test on" >&2
    exit 77
fi
if [ $dry = 1 ]; then
    grep -q '^cuda: NVIDIA GPUs' "$work/inspect" || {
        echo "gpu.sh: the module does not load" >&2
        exit 1
    }
    echo "dry run: the module, the programs and the weights are there; all" \
        "that follows calls the device"
    exit 0
fi

# ---- every op, whole networks ----

if wants ops; then
    start_ops "ops" "$ops"
    start "ops, autotune" env MPIPE_TEST_AUTOTUNE=yes MPIPE_TEST_LARGE=yes \
        CK_RUN_CASE=bf16_inside XDG_CACHE_HOME="$work" "$ops"
    # Our kernels alone: what else happens only where a library has no way.
    start_ops "ops without libraries" MPIPE_CUDA_LIBRARIES=no "$ops"
    finish
fi
if wants nets; then
    start "networks against goldens" "$net"
    start "networks without libraries" env MPIPE_CUDA_LIBRARIES=no "$net"
    start "key points" env CK_RUN_CASE=merging "$pose"
    start "sessions" "$session"
    start "batches that fit" "$batch"
    finish
fi

# ---- the program ----

# run NAME TASK OPTION...: results into $work/NAME.
# shellcheck disable=SC2317 # called by name
run() {
    name=$1 task=$2
    shift 2
    "$mpipe" -q -c "$srcdir/conf/$task.ini" -o compute.backend=cuda "$@" \
        "$srcdir/samples" "$work/$name"
}
# The same bytes, whatever else a run differs in: times are in run*.json.
# shellcheck disable=SC2317
same() {
    diff -rq -x 'run*.json' "$work/$1" "$work/$2"
}
if wants program; then
    for precision in fp32 tf32 bf16 fp16; do
        start "mpipe seg $precision" run "seg-$precision" seg \
            -o compute.precision=$precision
        start "mpipe depth $precision" run "depth-$precision" depth \
            -o compute.precision=$precision
        start "mpipe pose $precision" run "pose-$precision" pose \
            -o compute.precision=$precision -o pose.flip=yes
    done
    start "mpipe seg bf16 again" run again seg -o compute.precision=bf16
    for n in 1 3; do
        start "batch $n, libraries" run "lib$n" seg -o compute.batch=$n
        MPIPE_CUDA_LIBRARIES=no
        export MPIPE_CUDA_LIBRARIES
        start "batch $n, own kernels" run "own$n" seg -o compute.batch=$n
        unset MPIPE_CUDA_LIBRARIES
    done
    finish
    try "the same run twice, bytes" same seg-bf16 again
    try "bytes for any batch, own kernels" same own1 own3
    # Libraries may choose another way for another batch: told, not failed.
    if same lib1 lib3 > "$work/log"; then
        note ok "bytes for any batch, libraries" ""
    else
        note told "bytes for any batch, libraries" "$(wc -l < "$work/log") differ"
    fi
fi

# ---- memory ----

sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer)}
for tool in memcheck racecheck initcheck synccheck; do
    wants $tool || continue
    if [ -z "$sanitizer" ]; then
        note SKIPPED "compute-sanitizer $tool" "not found"
        continue
    fi
    # Our kernels; those of f32 and those of 16 bits.
    for kind in fp32 bf16_inside; do
        start_ops "$tool, $kind" CK_RUN_CASE=$kind MPIPE_CUDA_LIBRARIES=no \
            "$sanitizer" --tool $tool --error-exitcode 9 "$ops"
    done
done
finish

# Memory in use must not grow with the number of runs.
# shellcheck disable=SC2154,SC2317
leaks() {
    for n in 20 1000; do
        mkdir -p "$work/many$n"
        i=0
        while [ "$i" -lt "$n" ]; do
            ln -s "$srcdir/samples/desk.jpg" "$work/many$n/$i.jpg"
            i=$((i + 1))
        done
        "$mpipe" -q -c "$srcdir/conf/depth.ini" -o compute.backend=cuda \
            "$work/many$n" "$work/leak$n" &
        pid=$!
        most=0
        while kill -0 "$pid" 2>/dev/null; do
            now=$(nvidia-smi --query-compute-apps=used_memory \
                --format=csv,noheader,nounits 2>/dev/null | sort -n | tail -n 1)
            [ "${now:-0}" -gt "$most" ] 2>/dev/null && most=$now
            sleep 0.2
        done
        wait "$pid" || return 1
        echo "$n pictures: at most $most MiB"
        eval "most$n=$most"
    done
    echo "passed: 20 pictures $most20 MiB, 1000 pictures $most1000 MiB"
    [ "$most1000" -le $((most20 + 64)) ]
}
if wants leaks; then
    if command -v nvidia-smi > /dev/null; then
        try "memory of 1000 runs" leaks
    else
        note SKIPPED "memory of 1000 runs" "no nvidia-smi"
    fi
fi

echo
cat "$work/table"
if [ $failed != 0 ]; then
    echo "gpu.sh: FAILED" >&2
elif [ "$only" != "$parts" ]; then
    echo "gpu.sh: good, but not all was run"
else
    echo "gpu.sh: all good"
fi
exit $failed
