#!/bin/sh
# SPDX-License-Identifier: MIT
# Segmentation as users get it: sizes, classes and colours of the results; one
# size of the picture, several, and windows of them. The checkpoint's numbers
# are made up. Frames of CamVid are taken from $MPIPE_SHARED, if that is set.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
data=$(cd "$srcdir/tests/data/awkward" && pwd)
conf=$(cd "$srcdir/conf" && pwd)
keys=$(cd "$srcdir/tests/golden/keys" && pwd)

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-seg.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
"$make_weights" "$keys/tiny_seg_camvid.json" "$dir/tiny.safetensors" || exit 99
cd "$dir" || exit 99
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failures=$((failures + 1))
}

# seg ARGUMENT...: mpipe ends well
seg() {
    "$mpipe" -q -c "$conf/seg.ini" -o model.checkpoint="$dir/tiny.safetensors" \
        -o pipeline.classes=camvid -o compute.backend=cpu \
        -o "output.formats=labels color overlay probs" "$@" 2> err ||
        fail "status $?: seg $*"
}

# Width and height of a PNG.
size() {
    od -An -tu1 -j16 -N8 "$1" | awk '{print $3*256+$4 "x" $7*256+$8}'
}

# result STEM WxH: all results of this size; probabilities of 11 classes that
# add up to 1 everywhere
result() {
    w=${2%x*} h=${2#*x}
    for kind in labels color overlay; do
        [ "$(size "$1.$kind.png")" = "$2" ] || fail "$1.$kind.png is not $2"
    done
    head -c 128 "$1.probs.npy" | grep -aq "'<f4'.*: (11, $h, $w)," ||
        fail "$1.probs.npy is no float32 of 11 x $h x $w"
    tail -c +129 "$1.probs.npy" | od -An -v -tf4 -w4 |
        awk -v n=$((w * h)) '
            { i = (NR - 1) % n; sum[i] += $1; bad += !($1 >= 0 && $1 <= 1) }
            END {
                for (i in sum)
                    bad += sum[i] < 0.99999 || sum[i] > 1.00001
                exit !(NR == 11 * n && bad + 0 == 0)
            }' || fail "$1.probs.npy does not hold probabilities"
}

# The classes as CamVid knows them.
named() {
    for name in Sky Building Road Pedestrian Bicyclist; do
        grep -q "\"$name\"" "$1/labels.json" || fail "$1: no class $name"
    done
}

mkdir in
cp "$data/odd_37x29_420.jpg" in/odd.jpg
cp "$data/one_pixel.png" in/one.png

seg in whole
result whole/odd 37x29
result whole/one 1x1
named whole

# the published multi-scale protocol, made small; batches change no labels
ms='-o upernet.mode=slide -o upernet.crop=32x32 -o upernet.stride=21x21
    -o upernet.scale=64x32 -o upernet.flip=yes'
# shellcheck disable=SC2086 # words
for batch in 1 5; do
    seg $ms -o "upernet.ratios=0.5 1 1.5" -o compute.batch=$batch in ms$batch
    result ms$batch/odd 37x29
done
cmp ms1/odd.labels.png ms5/odd.labels.png 2> err ||
    fail "labels depend on the batch"

if [ -z "${MPIPE_SHARED:-}" ]; then
    echo "SKIPPED: frames of CamVid, as MPIPE_SHARED is not set"
else
    mkdir camvid
    for f in $(sed -n '1p;100p;200p' "$MPIPE_SHARED/camvid/test.txt"); do
        cp "$MPIPE_SHARED/camvid/images/test/$f.jpg" camvid
    done
    seg -o upernet.mode=slide -o upernet.crop=256x256 \
        -o upernet.stride=171x171 camvid frames
    for f in camvid/*.jpg; do
        f=${f##*/}
        result "frames/${f%.jpg}" 480x360
    done
    named frames
fi

[ $failures = 0 ] || exit 1
