#!/bin/sh
# SPDX-License-Identifier: MIT
# mpipe and mpiped where the system is not as it mostly is: other locales, no
# HOME and no /tmp, few descriptors, little memory, heads that anybody may write.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
mpiped=${MPIPED:-$builddir/mpiped}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
data=$(cd "$srcdir/tests/data/awkward" && pwd)
conf=$(cd "$srcdir/conf" && pwd)
keys=$(cd "$srcdir/tests/golden/keys" && pwd)
trouble=$(cd "$builddir/tests" && pwd)
top=$(cd "$srcdir" && pwd)

# not below /tmp, which is to be missing
dir=$(mktemp -d "$(cd "$builddir" && pwd)/faults.XXXXXX") || exit 99
pid=
cleanup() {
    [ -z "$pid" ] || kill -9 "$pid" 2> /dev/null
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
cd "$dir" || exit 99
"$make_weights" "$keys/tiny_depth.json" w.safetensors || exit 99
mkdir in models
cp "$data/small_444.jpg" in/a.jpg
cp "$data/rgb8_all_filters.png" in/b.png
ln -s ../w.safetensors models/demo-depth.safetensors
MPIPE_MODEL_PATH=$dir/models
export MPIPE_MODEL_PATH
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failures=$((failures + 1))
}

# depth OUT COMMAND...: mpipe by way of that command
depth() {
    out=$1
    shift
    "$@" "$mpipe" -q -c "$conf/depth.ini" -o compute.backend=cpu \
        -o compute.threads=1 -o depth.color_max=7.25 \
        -o output.formats='png16 color npy' in "$out" 2> err ||
        fail "status $? of mpipe: $*"
}

# same OUT: as in C
same() {
    sed '/"seconds"/,/}/d' "$1/run.json" > "$1.json"
    cmp c.json "$1.json" || fail "$1/run.json differs"
    diff -r -x run.json c "$1" > err || fail "$1 differs"
}

wait_ready() {
    n=0
    until curl -sf --max-time 60 --unix-socket s \
        http://localhost/v2/models/depth/ready > /dev/null 2>&1; do
        n=$((n + 1))
        [ $n -lt 1200 ] || { fail "mpiped is not ready"; return 1; }
        sleep 0.05
    done
}

# serve COMMAND...: mpiped by way of that command, and an answer in numbers
serve() {
    "$@" "$mpiped" -q -c mpiped.ini 2> err &
    pid=$!
    wait_ready || return
    curl -sS --max-time 60 --unix-socket s -o answer --data-binary @request \
        -H "Inference-Header-Content-Length: $(wc -c < json)" \
        http://localhost/v2/models/depth/infer || fail "mpiped: $*"
    kill "$pid"
    wait "$pid" || fail "status $? of mpiped: $*"
    pid=
}

cat > mpiped.ini << END
[http]
socket = $dir/s
[limits]
request_time = 12.5
[pipeline depth]
file = $conf/depth.ini
compute.backend = cpu
compute.threads = 1
depth.color_max = 7.25
output.formats = npy
END
printf '{"inputs":[{"name":"image","shape":[1,1,2,3],"datatype":"UINT8",%s' \
    '"data":[9,8,7,6,5,4]}],"parameters":{"color_max":6.5}}' > json
cp json request

# ---- locales ----

depth c env LC_ALL=C
sed '/"seconds"/,/}/d' c/run.json > c.json
has_daemon=
if [ -x "$mpiped" ] && command -v curl > /dev/null; then
    has_daemon=1
    serve env LC_ALL=C
    grep -q '"data":\[[0-9]*\.[0-9]' answer || fail "no numbers: $(cat answer)"
    mv answer answer.c
else
    echo "SKIP: mpiped, as it was not built or there is no curl"
fi
for name in de_DE.UTF-8 tr_TR.UTF-8; do
    if ! locale -a 2> /dev/null | tr -d - | grep -qix "$(echo $name | tr -d -)"
    then
        echo "SKIP: $name is not installed"
        continue
    fi
    depth "$name" env LC_ALL=$name
    same "$name"
    if [ -n "$has_daemon" ]; then
        serve env LC_ALL=$name
        cmp answer answer.c || fail "mpiped answers otherwise in $name"
    fi
done

# ---- no HOME, no /tmp ----

depth nowhere env -u HOME TMPDIR=/nonexistent XDG_RUNTIME_DIR=/nonexistent
same nowhere
# hide COMMAND...: /tmp is empty and cannot be written, but for what lies here
cat > hide << END
set -e
mount --rbind "$top" /mnt
mount -t tmpfs -o size=64k none /tmp
mkdir -p "$top"
mount --rbind /mnt "$top"
mount -o remount,ro /tmp
cd "$dir"
exec "\$@"
END
case $dir/,$top in
"$top"/*) hidden=$(unshare -rm sh hide sh -c 'echo /tmp/*' 2> /dev/null) ;;
*) hidden= ;;
esac
case $hidden in
'/tmp/*' | "/tmp/$(echo "$top" | cut -d/ -f3)")
    depth bare unshare -rm sh hide
    same bare
    if [ -n "$has_daemon" ]; then
        serve unshare -rm sh hide
        cmp answer answer.c || fail "mpiped answers otherwise without /tmp"
    fi
    ;;
*) echo "SKIP: runs without /tmp: no namespaces, or the build is elsewhere" ;;
esac

# ---- limits ----

depth few sh -c 'ulimit -n 16 && exec "$@"' sh
same few
# Under the sanitizers nothing can be said of address space.
if ! grep -q __asan_init "$builddir/.libs/libmpipe.so" 2> /dev/null; then
    for kib in 60000 90000 100000 110000 120000 140000 180000 240000 500000; do
        rm -rf small
        (ulimit -v $kib && exec "$mpipe" -q -P "$trouble" \
            -o pipeline.head=trouble -o model.checkpoint="$dir/w.safetensors" -o model.strict=no \
            -o compute.backend=ref in small) 2> err
        got=$?
        [ $got = 0 ] || [ $got = 127 ] || { [ $got -le 3 ] &&
            grep -q '^mpipe: ' err; } || fail "status $got with $kib KiB"
    done
    [ $got = 0 ] || fail "500000 KiB are not enough"
fi
if [ -n "$has_daemon" ]; then
    (ulimit -n 16 && exec "$mpiped" -c mpiped.ini) 2> err
    got=$?
    [ $got = 3 ] || fail "status $got, not 3, with 16 descriptors"
    grep -q '^mpipe: 16 open files .* needed' err || fail "does not say so"
    [ ! -e s ] || fail "leaves a socket behind"
fi

# ---- heads of everybody ----

if [ -n "$has_daemon" ]; then
    mkdir heads
    cp "$trouble/.libs/trouble.so" heads
    chmod o+w heads/trouble.so
    printf '[pipeline]\nhead = trouble\n[model]\ncheckpoint = %s\n' \
        "$dir/w.safetensors" > trouble.ini
    cat >> mpiped.ini << END
[pipeline trouble]
file = trouble.ini
END
    "$mpiped" -q -P heads -c mpiped.ini 2> err &
    pid=$!
    wait_ready
    curl -sS --max-time 60 --unix-socket s -o answer -X POST \
        http://localhost/v2/repository/index
    grep -q '"name":"trouble".*UNAVAILABLE.*everybody may write' answer ||
        fail "a head that everybody may write: $(cat answer)"
    grep -q "$dir" answer && fail "tells folders: $(cat answer)"
    kill "$pid"
    wait "$pid" || fail "status $? of mpiped"
    pid=
fi

[ $failures = 0 ] || {
    echo "faults: $failures failures"
    exit 1
}
echo "faults: all as it should be"
