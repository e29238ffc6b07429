#!/bin/sh
# SPDX-License-Identifier: MIT
# Depth as users get it: shape, scale and gaps of the results, for the options
# that decide how a picture is looked at. The checkpoint's numbers are made up.
# Photographs are taken from $MPIPE_SHARED, if that is set.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
data=$(cd "$srcdir/tests/data/awkward" && pwd)
conf=$(cd "$srcdir/conf" && pwd)
keys=$(cd "$srcdir/tests/golden/keys" && pwd)

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-depth.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
"$make_weights" "$keys/tiny_depth.json" "$dir/tiny.safetensors" || exit 99
cd "$dir" || exit 99
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failures=$((failures + 1))
}

# depth STATUS PRESET ARGUMENT...: mpipe ends with this status
depth() {
    want=$1
    preset=$2
    shift 2
    "$mpipe" -q -c "$conf/$preset.ini" \
        -o model.checkpoint="$dir/tiny.safetensors" -o compute.backend=cpu -o compute.threads=1 "$@" 2> err
    got=$?
    [ $got = "$want" ] || fail "status $got, not $want: $preset $*"
}

# Width and height of a PNG.
size() {
    od -An -tu1 -j16 -N8 "$1" | awk '{print $3*256+$4 "x" $7*256+$8}'
}

# result STEM WxH SCALE NANS [PNG...]: all results of this size, so many
# pixels without depth, the others between 0 and 80 m; the scale is declared
result() {
    w=${2%x*} h=${2#*x} stem=$1 scale=$3 nans=$4
    shift 4
    for kind in png16 "$@"; do
        [ "$(size "$stem.$kind.png")" = "${w}x$h" ] ||
            fail "$stem.$kind.png is not ${w}x$h"
    done
    head -c 128 "$stem.npy.npy" | grep -aq "'<f4'.*: ($h, $w)," ||
        fail "$stem.npy.npy is no float32 of $h x $w"
    tail -c +129 "$stem.npy.npy" | od -An -v -tf4 -w4 |
        awk -v n=$((w * h)) -v nans="$nans" '
            tolower($1) ~ /nan/ { nan++; next }
            $1 > 0 && $1 < 80 { good++ }
            END { exit !(nan + 0 == nans && good == n - nans) }' ||
        fail "$stem.npy.npy: not $nans pixels without depth, or wrong ones"
    LC_ALL=C tr '\0' '=' < "$stem.png16.png" |
        grep -aq "tEXtdepth_scale=$scale" ||
        fail "$stem.png16.png does not declare $scale"
}

# The JPEG $1 turned by an EXIF orientation that is put in front.
turned() {
    printf '\377\330\377\341\000\042Exif\000\000MM\000*\000\000\000\010'
    printf '\000\001\001\022\000\003\000\000\000\001\000\006\000\000'
    printf '\000\000\000\000'
    tail -c +3 "$1"
}

# ---- small pictures ----

mkdir small
cp "$data/odd_37x29_420.jpg" small/odd.jpg # 8 columns wider than high
turned small/odd.jpg > small/tall.jpg
cp "$data/one_pixel.png" small/one.png
all='npy png16 color vis'

depth 0 depth -o output.formats="$all" small once
depth 0 depth-nyu -o output.formats="$all" small nyu
depth 0 depth -o output.formats="$all" -o depth.windows=4 small cover
depth 0 depth -o output.formats="$all" -o depth.windows=4 \
    -o depth.faithful=yes -o depth.flip=yes small faithful
for run in once nyu cover faithful; do
    gap=0
    [ $run = faithful ] && gap=$((2 * 29)) # windows begin at 0, 2, 4, 6
    result $run/odd 37x29 1000 $gap color
    result $run/one 1x1 1000 0 color
    result $run/tall 29x37 1000 0 color
done
depth 0 depth -o depth.windows=4 -o depth.flip=yes -o depth.size=network \
    small network
result network/odd 32x24 1000 0 color
grep -q '"units_per_metre": 1000' once/run.json &&
    grep -q '"metres_per_unit": 0.001' once/run.json ||
    fail "run.json does not declare the scale"
# windows and mirror images change what is found
cmp -s once/odd.npy.npy nyu/odd.npy.npy && fail "windows change nothing"
cmp -s once/tall.npy.npy nyu/tall.npy.npy && fail "flip changes nothing"
cmp -s once/tall.npy.npy cover/tall.npy.npy ||
    fail "a picture that is higher than wide is cut into windows"
# the picture, a gap, colours, a bar
[ "$(size once/odd.vis.png)" = 196x29 ] || fail "the size of odd.vis.png"

depth 1 depth-kitti small/odd.jpg kitti
grep -q '1216 x 352 pixels.* only 37 x 29' kitti/errors.jsonl ||
    fail "a picture that is too small for the crop"

# ---- a folder of many ----

# The most memory that a run over so many pictures has at a time, in kB.
peak() {
    mkdir "many$1"
    i=0
    while [ $i -lt "$1" ]; do
        ln small/odd.jpg "many$1/$i.jpg"
        i=$((i + 1))
    done
    "$mpipe" -q -c "$conf/depth.ini" -o compute.backend=cpu \
        -o model.checkpoint="$dir/tiny.safetensors" -o compute.threads=1 \
        -o output.formats=png16 "many$1" "results$1" 2> err &
    most=0 alive=1
    while [ $alive = 1 ]; do # it tells no memory once it has ended
        alive=0
        while read -r name now _; do
            [ "$name" != VmHWM: ] || alive=1 most=$now
        done < "/proc/$!/status"
        sleep .02
    done 2> /dev/null
    wait $! || exit
    echo "$most"
}
if grep -q __asan_init "$builddir/.libs/libmpipe.so" 2> /dev/null; then
    echo "memory of many pictures: SKIPPED under the sanitizers, which keep it"
else
    few=$(peak 10) many=$(peak 1000)
    echo "memory: $few kB for 10 pictures, $many kB for 1000"
    [ $((100 * many)) -le $((105 * few)) ] ||
        fail "memory grows with the folder: $few and $many kB"
fi

# ---- photographs ----

samples=${MPIPE_SHARED:-}/protocol/samples
if [ -z "${MPIPE_SHARED:-}" ] || [ ! -d "$samples" ]; then
    echo "photographs: SKIPPED, as MPIPE_SHARED names none"
else
    nyu=$samples/depth_nyu
    depth 0 depth-nyu "$nyu/bookstore_0001d_00001.jpg" photo
    result photo/bookstore_0001d_00001 160x120 1000 0
    turned "$nyu/bookstore_0001d_00001.jpg" > upright.jpg
    depth 0 depth-nyu upright.jpg photo
    result photo/upright 120x160 1000 0
    depth 0 depth-nyu "$nyu/open3d_nyu_color.png" full
    result full/open3d_nyu_color 640x480 1000 0
    # smaller views than published; the last 9 columns lie bare
    depth 0 depth-kitti -o depth.flip=no -o depth.resize_scale=0 \
        -o depth.faithful=yes "$samples/depth_kitti/000008.png" kb
    result kb/000008 1216x352 256 $((9 * 352))
    depth 0 depth-kitti -o depth.flip=no -o depth.windows=4 \
        -o depth.resize_scale=0 -o depth.size=input \
        "$samples/depth_kitti/000008.png" whole
    result whole/000008 1242x375 256 $((1242 * 375 - 1216 * 352))
fi

[ $failures = 0 ] || {
    echo "depth: $failures failures"
    exit 1
}
echo "depth: all as it should be"
