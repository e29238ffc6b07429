#!/bin/sh
# SPDX-License-Identifier: MIT
# tests/full.sh [--weights FOLDER] DIR
# Every golden of DIR (golden/, keys/, pth/), full-size ones too. The full-size
# checkpoints are made from DIR/keys in a temporary folder (7.5 GB), or taken
# from FOLDER (seg_ade20k.safetensors, depth_nyu.safetensors). Where protocol/
# and camvid/ lie beside DIR, every case of theirs, and the photographs.
# Run it in the folder where mpipe was built, or set builddir.
set -eu

usage() {
    echo "usage: tests/full.sh [--weights FOLDER] DIR" >&2
    exit 2
}

weights=
if [ "${1:-}" = --weights ]; then
    [ $# -ge 2 ] || usage
    weights=$2
    shift 2
fi
[ $# -eq 1 ] && [ -d "$1/golden" ] && [ -d "$1/keys" ] || usage
dir=$(cd "$1" && pwd)
srcdir=$(cd "$(dirname "$0")/.." && pwd)
build=${builddir:-.}
MPIPE_PLUGIN_PATH=${MPIPE_PLUGIN_PATH:-$(cd "$build" && pwd)/plugins}
MPIPE_DATA_PATH=$srcdir/conf
CK_VERBOSITY=normal
export srcdir MPIPE_PLUGIN_PATH MPIPE_DATA_PATH CK_VERBOSITY

tmp=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-full.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
failed=0

# Tests look for the complete sets in the folder that MPIPE_SHARED names.
ln -s "$dir" "$tmp/reference"
wants=tests/test_net
if [ -d "$dir/../protocol" ] && [ -d "$dir/../camvid" ]; then
    ln -s "${dir%/*}/protocol" "${dir%/*}/camvid" "$tmp"
    wants=$(cd "$srcdir" &&
        grep -lE 'MPIPE_SHARED|shared_path' tests/test_*.c tests/*.sh |
        sed -e '/full\.sh$/d' -e 's/\.c$//' | tr '\n' ' ')
else
    echo "full.sh: no protocol/ and camvid/ beside $dir, so without them"
fi
MPIPE_SHARED=$tmp make -C "$build" check TESTS="$wants" || failed=1
for test in $wants; do
    ! grep MPIPE_SHARED "$build/${test%.sh}.log" || failed=1 # left out
done

for keys in seg_ade20k:full_seg_ade20k_512 depth_nyu:full_depth_nyu_480x640; do
    golden=$dir/golden/${keys#*:}.safetensors
    keys=${keys%:*}
    file=${weights:-$tmp}/$keys.safetensors
    [ -n "$weights" ] ||
        "$build/tests/make_weights" "$dir/keys/$keys.json" "$file"
    for precision in fp32 bf16; do
        rc=0
        "$build/tests/full_net" "${keys%%_*}" "$file" "$golden" "$precision" ||
            rc=$?
        [ $rc -eq 0 ] || [ $rc -eq 77 ] || failed=1
    done
    [ -n "$weights" ] || rm "$file"
done
[ $failed -eq 0 ] && echo "full.sh: all good" || echo "full.sh: FAILED" >&2
exit $failed
