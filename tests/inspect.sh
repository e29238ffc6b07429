#!/bin/sh
# SPDX-License-Identifier: MIT
# What mpipe-inspect says of heads, backends and checkpoints.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
inspect=${MPIPE_INSPECT:-$builddir/mpipe-inspect}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-inspect.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' "$dir/out"
    failures=$((failures + 1))
}

# shows STATUS TEXT ARGUMENT...
shows() {
    want=$1 text=$2
    shift 2
    "$inspect" "$@" > "$dir/out" 2>&1
    got=$?
    [ $got = "$want" ] || fail "status $got, not $want: mpipe-inspect $*"
    grep -q -e "$text" "$dir/out" || fail "mpipe-inspect $*: no \"$text\""
}

seg=$dir/seg.safetensors
"$make_weights" "$srcdir/tests/golden/keys/tiny_seg.json" "$seg" || exit 99

shows 0 '^  depth  '
shows 0 '^  cpu  '
shows 0 '^formats: labels (default)' upernet
shows 0 '^  stride = 341x341' upernet
shows 0 'precisions: fp32' cpu
shows 0 '^format:     safetensors' "$seg"
shows 0 '^network:    UNet 32,64,128,128;' "$seg"
shows 0 '^  upernet    fits' "$seg"
shows 0 '^  depth      no: .*encoder.layer1.0.weight is missing' "$seg"
shows 0 'upconv1.0.weight is not used by head depth' -v "$seg"
shows 0 '^  f32   conv_seg.weight\|^  f32   decode_head.conv_seg.weight' \
    --keys "$seg"
shows 2 'no head called "nothing"' nothing
shows 2 'neither a safetensors' "$srcdir/conf/seg.ini"
shows 2 'No such file' ./nothing
shows 2 'one head, backend or file' depth upernet
shows 2 'one head, backend or file' --keys
shows 2 'no-such' --no-such

# a file's text stays in its line and does nothing to the terminal: 96 bytes of
# JSON, and a number
printf '\140\0\0\0\0\0\0\0%-96s\0\0\0\0' '{"__metadata__":{"a":"b\u001b\nc"},'"\
"'"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' \
    > "$dir/meta.safetensors"
shows 0 '^metadata:   a = b\\x1b\\x0ac$' "$dir/meta.safetensors"

# a module that is none is named with the reason
mkdir "$dir/heads"
echo text > "$dir/heads/bogus.so"
shows 0 'refused: .*bogus' -P "$dir/heads"
shows 2 'bogus cannot be loaded' -P "$dir/heads" bogus
shows 2 'no such folder' -P "$dir/none"

# converted, every tensor is still what it was
for file in "$srcdir"/tests/data/pth/*.pth "$srcdir"/tests/data/pth/*.ckpt; do
    [ -f "$file" ] || continue
    "$inspect" --keys "$file" 2> "$dir/err" |
        sed -n '/^tensors:$/,$p' | sort > "$dir/before"
    if [ -s "$dir/err" ] || ! [ -s "$dir/before" ]; then
        continue # files that are refused
    fi
    shows 0 '^format:     pytorch' --write "$dir/new.safetensors" "$file"
    "$inspect" --keys "$dir/new.safetensors" |
        sed -n '/^tensors:$/,$p' | sort > "$dir/after"
    cmp "$dir/before" "$dir/after" || fail "$file, converted"
done

[ $failures = 0 ] || exit 1
