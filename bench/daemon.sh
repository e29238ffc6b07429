#!/bin/sh
# SPDX-License-Identifier: MIT
# make bench-daemon: what mpiped costs beside mpipe by itself, on small networks,
# where it shows most; clients and daemon share the processors. How many requests
# it answers that need no network; pictures per second of both, in turns; how
# long a picture takes at half of that load; and memory and descriptors over
# BENCH_REQUESTS pictures. BENCH_THREADS are the threads of the network.
set -eu
: "${BENCH_REQUESTS:=20000}" "${BENCH_PICTURES:=200}" "${BENCH_THREADS:=auto}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-bench.XXXXXX")
pid=
end() {
    [ -z "$pid" ] || kill "$pid" 2> /dev/null || :
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' HUP INT TERM
load=$builddir/bench/load
small=$srcdir/tests/data/awkward/small_444.jpg

MPIPE_PLUGIN_PATH=$MPIPE_PLUGIN_PATH:$builddir/tests
export MPIPE_PLUGIN_PATH
"$builddir/tests/make_weights" "$srcdir/tests/golden/keys/tiny_depth.json" \
    "$dir/w.safetensors"
cat > "$dir/vae.ini" << END
[pipeline]
head = trouble
[model]
checkpoint = $dir/w.safetensors
strict = no
END
cat > "$dir/mpiped.ini" << END
[http]
socket = $dir/s
[pipeline seg]
file = $srcdir/conf/seg.ini
compute.threads = $BENCH_THREADS
[pipeline vae]
file = vae.ini
worker = other
compute.threads = 1
END
"$builddir/mpiped" -q -c "$dir/mpiped.ini" &
pid=$!
until "$load" -n 1 "$dir/s" /v2/health/ready > /dev/null 2>&1; do
    kill -0 "$pid"
    sleep 0.1
done

# ask OPTION... PATH: a line of numbers
ask() {
    "$load" "$@" > "$dir/line" || { cat "$dir/line"; exit 1; }
    echo "  $(cat "$dir/line")"
}
# number of the last line behind or before a word
rate() {
    sed 's,.* \([0-9.]*\)/s;.*,\1,' "$dir/line"
}

echo "GET /v2/health/live, 4 connections"
"$load" -c 4 -s 1 "$dir/s" /v2/health/live > /dev/null
ask -c 4 -s 5 "$dir/s" /v2/health/live

echo "$BENCH_PICTURES pictures of 44 x 64, in turns: mpipe, mpiped with 4" \
    "connections"
mkdir "$dir/in"
n=0
while [ $n -lt "$BENCH_PICTURES" ]; do
    cp "$small" "$dir/in/$n.jpg"
    n=$((n + 1))
done
: > "$dir/rates"
for turn in 1 2 3 4 5; do
    rm -rf "$dir/out"
    "$builddir/mpipe" -q -c "$srcdir/conf/seg.ini" \
        -o compute.threads="$BENCH_THREADS" -o output.formats=overlay \
        "$dir/in" "$dir/out"
    alone=$(sed -n 's/^ *"\([a-z_]*\)": \([0-9.e+-]*\),*$/\1 \2/p' \
        "$dir/out/run.json" | awk '{ t[$1] = $2 } END {
            print t["done"] / (t["total"] - t["load"] - t["compile"]) }')
    ask -c 4 -n "$BENCH_PICTURES" -b "$small" "$dir/s" \
        /v2/models/seg/infer > /dev/null
    echo "$turn $alone $(rate)" | tee -a "$dir/rates" |
        awk '{ printf "  %.1f/s  %.1f/s  %.1f %%\n", $2, $3, 100 * $3 / $2 }'
done
best=$(sort -n -k3 "$dir/rates" | sed -n '3s/.* //p') # the median

echo "at half of that, 8 connections"
ask -c 8 -s 20 -r "$(awk -v x="$best" 'BEGIN { print x / 2 }')" -b "$small" \
    "$dir/s" /v2/models/seg/infer
sed 's/.*median \([0-9.]*\).*p99 \([0-9.]*\).*/\1 \2/' "$dir/line" |
    awk '{ printf "  p99 is %.2f times the median\n", $2 / $1 }'

# memory of the front and its workers, KiB, and their descriptors
state() {
    for p in $pid $(cat "/proc/$pid/task/$pid/children"); do
        awk -v n="$(ls "/proc/$p/fd" | wc -l)" \
            '/^VmRSS/ { printf " %d KiB and %d files;", $2, n }' "/proc/$p/status"
    done
    echo
}

echo "memory over $BENCH_REQUESTS pictures (VAE only), 4 connections: front," \
    "seg, vae"
ask -c 4 -n 1000 -b "$small" "$dir/s" /v2/models/vae/infer?output=latents \
    > /dev/null
echo "  after  1000:$(state)"
ask -c 4 -n "$BENCH_REQUESTS" -b "$small" "$dir/s" \
    "/v2/models/vae/infer?output=latents"
echo "  at the end:$(state)"
