#!/bin/sh
# SPDX-License-Identifier: MIT
# Every reader of tests/fuzz.c for FUZZ_SECONDS (60) each, from what lies in
# tests/data; with other arguments, those readers alone. What it learns stays in
# fuzz/READER for the next time, what fails a reader in fuzz/READER-*; to see
# that again: MPIPE_FUZZ=READER tests/fuzz FILE.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
data=$srcdir/tests/data
UBSAN_OPTIONS=print_stacktrace=1
ASAN_OPTIONS=allocator_may_return_null=1
export UBSAN_OPTIONS ASAN_OPTIONS
failed=0

# What tests/data has nothing of: a first try for each.
seed() { # READER FORMAT [ARGUMENT]
    # shellcheck disable=SC2059 # a format it is
    printf "$2" ${3:+"$3"} > "$builddir/fuzz/$1/seed"
}
person='{"image_id": 785, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}'
image='{"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3]'

[ $# -gt 0 ] || set -- weights picture npy boxes classes conf request
for reader; do
    mkdir -p "$builddir/fuzz/$reader" || exit 99
    from='' most=2000
    case $reader in
    weights) from=$data/pth most=20000 ;;
    picture) from=$data/awkward most=8000 ;;
    npy) seed npy '\223NUMPY\1\0\106\0%-69s\n\0\0\0\0\0\0\200\77' \
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }" ;;
    boxes) seed boxes '[%s]' "$person" ;;
    classes) seed classes \
        '{"classes": [{"name": "a", "color": [1, 2, 3], "label_id": 7}]}' ;;
    conf) seed conf '[before]\nnumber = 3\nis = yes ; so\n[later]\ntext = a\n' ;;
    request) seed request '\377\377{"inputs": [%s, "data": [1, 2, 3, 4, 5, 6]}]}' \
        "$image" ;;
    esac
    # shellcheck disable=SC2086 # none, or one folder
    if MPIPE_FUZZ=$reader "$builddir/tests/fuzz" \
        -max_total_time="${FUZZ_SECONDS:-60}" -max_len=$most -timeout=20 \
        -rss_limit_mb=4096 -artifact_prefix="$builddir/fuzz/$reader-" \
        "$builddir/fuzz/$reader" $from > "$builddir/fuzz/$reader.log" 2>&1; then
        echo "ok      $reader: $(tail -n 1 "$builddir/fuzz/$reader.log")"
    else
        echo "FAILED  $reader, see fuzz/$reader.log"
        failed=1
    fi
done
exit $failed
