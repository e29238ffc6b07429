#!/bin/sh
# SPDX-License-Identifier: MIT
# nvcc.sh KERNELS.cu IMAGE.c FLAG...: compile kernels, put their machine code
# into a C array cuda_KERNELS, and what ptxas tells of them into KERNELS.log.
# Tells if a kernel spills registers to memory, which depends on the compiler's
# version; with WERROR=yes that is an error.
set -eu
source=$1 image=$2
shift 2
name=$(basename "$source" .cu)
binary=${image%.c}
log=${image%.image.c}.log

"$NVCC" -std=c++17 -fatbin -Xfatbin -compress-all -Xptxas -v "$@" -o "$binary" "$source" \
    > "$log" 2>&1 || { cat "$log" >&2; exit 1; }
if grep -q 'warning' "$log"; then
    grep -A 3 'warning' "$log" >&2
fi
if grep -Eq '[1-9][0-9]* bytes spill' "$log"; then
    echo "nvcc.sh: $source: registers are spilled to memory:" >&2
    grep -E -B 2 '[1-9][0-9]* bytes spill' "$log" >&2
    [ "${WERROR:-no}" = no ] || exit 1
fi
awk '/Compiling entry/ { gsub("\047", ""); kernel = $7 " " $9 }
    / bytes spill/ { spills = / 0 bytes spill stores/ ? "no spills" : "spills" }
    /Used/ { for (i = 1; i < NF; i++) if ($i == "Used") n = $(i + 1)
        print "  " kernel ": " n " registers, " spills }' "$log" > "$log.tmp"
mv "$log.tmp" "$log"
"$BIN2C" --const --type longlong --name "cuda_$name" "$binary" > "$image.tmp"
mv "$image.tmp" "$image"
