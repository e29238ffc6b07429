#!/bin/sh
# SPDX-License-Identifier: MIT
# For developers: SOAK_SECONDS (600) of all that clients do to an mpiped, and
# what is left of it: memory grows by less than 10 MiB, descriptors not at all,
# nothing dies, and every request is answered. Run it by make soak.
set -eu
: "${SOAK_SECONDS:=600}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-soak.XXXXXX")
load=$builddir/bench/load
pid='' jobs=''
end() {
    # shellcheck disable=SC2086 # several
    [ -z "$pid$jobs" ] || kill $pid $jobs 2> /dev/null || :
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' HUP INT TERM

MPIPE_PLUGIN_PATH=$MPIPE_PLUGIN_PATH:$builddir/tests
export MPIPE_PLUGIN_PATH
"$builddir/tests/make_weights" "$srcdir/tests/golden/keys/tiny_depth.json" \
    "$dir/w.safetensors"
cat > "$dir/trouble.ini" << END
[pipeline]
head = trouble
[model]
checkpoint = $dir/w.safetensors
strict = no
[compute]
backend = cpu
threads = 1
END
cat > "$dir/mpiped.ini" << END
[http]
socket = $dir/s
[pipeline trouble]
file = trouble.ini
[pipeline seg]
file = $srcdir/conf/seg.ini
worker = other
compute.threads = 1
END
"$builddir/mpiped" -q -c "$dir/mpiped.ini" 2> "$dir/log" &
pid=$!
until "$load" -n 1 "$dir/s" /v2/health/ready > /dev/null 2>&1; do
    kill -0 "$pid"
    sleep 0.1
done

# KiB of the front and its workers, and their descriptors
state() {
    memory=0 files=0
    for p in $pid $(cat "/proc/$pid/task/$pid/children"); do
        n=$(awk '/^VmRSS/ { print $2 }' "/proc/$p/status")
        memory=$((memory + n))
        n=$(ls "/proc/$p/fd" | wc -l)
        files=$((files + n))
    done
    echo "$1 s: $memory KiB, $files descriptors"
}

small=$srcdir/tests/data/awkward/one_pixel.png
infer=/v2/models/trouble/infer?output=latents
"$load" -n 2000 -c 4 -b "$small" "$dir/s" "$infer" > /dev/null
"$load" -n 20 -b "$small" "$dir/s" /v2/models/seg/infer > /dev/null
state 0
memory0=$memory files0=$files

"$load" -s "$SOAK_SECONDS" -r 200 -c 4 -b "$small" "$dir/s" "$infer" \
    > "$dir/pictures" & jobs=$!
pictures=$!
"$load" -s "$SOAK_SECONDS" -r 2 -b "$small" "$dir/s" /v2/models/seg/infer \
    > "$dir/seg" & jobs="$jobs $!"
seg=$!
"$load" -s "$SOAK_SECONDS" -r 1 "$dir/s" /metrics > "$dir/metrics" &
jobs="$jobs $!"
metrics=$!

# What is not right, and clients that go: with the load that is right.
began=$(date +%s)
while :; do
    passed=$(($(date +%s) - began))
    [ $passed -lt "$SOAK_SECONDS" ] || break
    curl -s -o "$dir/body" --unix-socket "$dir/s" --data-binary nonsense \
        "http://localhost$infer" || :
    curl -s -o "$dir/body" --unix-socket "$dir/s" --data-binary @"$small" \
        --max-time 0.001 "http://localhost$infer" || :
    curl -s -o "$dir/body" --unix-socket "$dir/s" --data-binary '{"inputs":[' \
        "http://localhost$infer" || :
    curl -s -o "$dir/body" --unix-socket "$dir/s" http://localhost/ || :
    [ $((passed % 60)) != 0 ] || state $passed
    sleep 1
done
wait $pictures && wait $seg && wait $metrics || {
    echo "FAIL: not all were answered"
    cat "$dir/log" "$dir/pictures" "$dir/seg" "$dir/metrics"
    exit 1
}
jobs=
sleep 2
state "$SOAK_SECONDS"
cat "$dir/pictures" "$dir/seg" "$dir/metrics"
[ $((memory - memory0)) -lt 10240 ] || { echo "FAIL: memory"; exit 1; }
[ "$files" -le "$files0" ] || { echo "FAIL: descriptors"; exit 1; }
deaths=$(curl -s --unix-socket "$dir/s" http://localhost/metrics |
    awk '/^mpipe_worker_deaths_total/ { n += $2 } END { print n }')
[ "$deaths" = 0 ] || { echo "FAIL: $deaths deaths"; cat "$dir/log"; exit 1; }
kill "$pid"
wait "$pid" || { echo "FAIL: status $?"; exit 1; }
pid=
echo "soak: all as it should be"
