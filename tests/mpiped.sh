#!/bin/sh
# SPDX-License-Identifier: MIT
# mpiped as its users see it: pictures in, results out, the same bytes as mpipe
# makes; workers that die; signals; what is refused at the start.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
mpiped=${MPIPED:-$builddir/mpiped}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
[ -x "$mpiped" ] || { echo "SKIP: mpiped was not built"; exit 77; }
command -v curl > /dev/null || { echo "SKIP: there is no curl"; exit 77; }
data=$(cd "$srcdir/tests/data/awkward" && pwd)
conf=$(cd "$srcdir/conf" && pwd)
page=$(cd "$srcdir/man" && pwd)/mpipe_http.7
keys=$(cd "$srcdir/tests/golden/keys" && pwd)

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpiped.XXXXXX") || exit 99
pid=
cleanup() {
    [ -z "$pid" ] || kill -9 "$pid" 2> /dev/null
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
mkdir "$dir/models"
"$make_weights" "$keys/tiny_seg.json" "$dir/models/demo-seg.safetensors" &&
    "$make_weights" "$keys/tiny_depth.json" \
        "$dir/models/demo-depth.safetensors" &&
    "$make_weights" "$keys/tiny_pose.json" \
        "$dir/models/demo-pose.safetensors" || exit 99
MPIPE_MODEL_PATH=$dir/models
export MPIPE_MODEL_PATH
cd "$dir" || exit 99
: > log
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' log
    failures=$((failures + 1))
}

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
    left=$(($1 * 20))
    shift
    until "$@" > /dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 0.05
    done
}

get() {
    curl -sS --max-time 60 --unix-socket s "$@"
}

# status CODE ARGUMENT...: of curl; the body is in body
status() {
    want=$1
    shift
    got=$(get -o body -w '%{http_code}' "$@")
    [ "$got" = "$want" ] || fail "status $got, not $want: $*: $(cat body)"
}

# says TEXT: the last body or the log does
says() {
    grep -q -- "$1" body || fail "does not say \"$1\": $(cat body)"
}
logs() {
    wait_for 60 grep -q -- "$1" log || fail "does not log \"$1\""
}

is_ready() {
    get -f http://localhost/v2/health/ready
}

start() {
    "$mpiped" -v -c mpiped.ini "$@" 2> log &
    pid=$!
    wait_for 60 is_ready || fail "not ready after 60 s"
}

# stop: SIGTERM, and it ends with 0
stop() {
    kill -TERM "$pid"
    wait "$pid" || fail "status $? after SIGTERM"
    pid=
    [ ! -e s ] || fail "the socket is still there"
}

in_flight() {
    get http://localhost/metrics | grep -q '^mpipe_in_flight{.*} [1-9]'
}

worker() {
    cat "/proc/$pid/task/$pid/children"
}

cat > mpiped.ini << END
[http]
socket = $dir/s

[worker]
deaths = 3
within = 3600

[pipeline seg]
file = $conf/seg.ini
compute.backend = cpu

[pipeline depth]
file = $conf/depth.ini
compute.backend = cpu
output.formats = png16 color npy

[pipeline pose]
file = $conf/pose.ini
load = on-demand
compute.backend = cpu
compute.batch = 8
END
url=http://localhost/v2/models
start

# ---- the examples of mpipe_http(7), word for word ----

# .\\" example: CHECK, and a command; its output is in out
ln -s s mpiped.sock
cp "$data/rgb8_all_filters.png" desk.jpg
for run in 'seg seg' 'depth depth' 'seg faint -o upernet.opacity=0.2'; do
    set -- $run
    head=$1 out=$2
    shift 2
    "$mpipe" -q -c "$conf/$head.ini" -o compute.backend=cpu "$@" desk.jpg $out ||
        fail "mpipe: $run"
done
awk '/^\.\\" example: / { sub(/^[^:]*: /, ""); n++; print > n ".check" }
    /^\.Bd/ { inside = 1; next } /^\.Ed/ { inside = 0 }
    inside { gsub(/\\e/, "\\"); print > n ".example" }' \
    "$page"
for check in [0-9]*.check; do
    n=${check%.check}
    sh -e "$n.example" > out 2> err || fail "$(cat "$n.example" err)"
    sh "$check" || fail "$(cat "$n.example" "$check" out)"
done
[ "$(ls [0-9]*.check | wc -l)" = 10 ] || fail "not 10 examples"
rm -rf seg depth faint

# its metrics, all of them
get http://localhost/metrics | awk '/^# TYPE/ { print $3 }' | sort > told
grep -o '\(mpipe\|process\)_[a-z_]*' "$page" | grep -v '^mpipe_http$' |
    sort -u > described
cmp -s told described || fail "metrics: $(diff told described)"

# device NAME: its memory, all of it and what the worker holds, in told and held
device() {
    wait_for 60 has_memory "$1" || fail "no memory of $1: $(cat body)"
    told=$(sed -n "s/^mpipe_device_memory_bytes{.*device=\"$1\"} //p" body)
    held=$(sed -n "s/^mpipe_device_memory_held_bytes{.*device=\"$1\"} //p" body)
    [ "$held" -gt 0 ] && [ "$held" -lt "$told" ] ||
        fail "$1: $held of $told bytes"
}
has_memory() {
    get -o body http://localhost/metrics
    grep -q "^mpipe_device_memory_free_bytes{.*device=\"$1\"} [1-9]" body
}
device cpu:0
all=$(awk '/^MemTotal/ { printf "%.0f", $2 * 1024 }' /proc/meminfo)
[ "$told" -le "$all" ] || fail "cpu:0 has $told bytes, the machine $all"

# ---- the same bytes ----

mkdir in
cp "$data/rgb8_all_filters.png" in/rgb8.png
cp "$data/exif_orientation_6.jpg" in/turned.jpg
ok=1
for head in seg depth; do
    "$mpipe" -q -c "$conf/$head.ini" -o compute.backend=cpu in $head || ok=0
done
[ $ok = 1 ] || fail "mpipe"
for f in in/*; do
    stem=${f##*/}
    stem=${stem%.*}
    for r in seg/$stem.labels.png seg/$stem.overlay.png depth/$stem.png16.png \
        depth/$stem.color.png depth/$stem.npy.npy; do
        kind=${r#*"$stem".}
        status 200 --data-binary @"$f" "$url/${r%%/*}/infer?output=${kind%.*}"
        cmp body "$r" || fail "$r differs"
    done
    status 200 --data-binary @"$f" -H 'Accept: image/png' $url/seg/infer
    cmp body "seg/$stem.overlay.png" || fail "not the overlay"
done
"$mpipe" -q -c "$conf/seg.ini" -o compute.backend=cpu -o upernet.opacity=0.9 \
    in faint
status 200 --data-binary @in/rgb8.png "$url/seg/infer?opacity=0.9"
cmp body faint/rgb8.overlay.png || fail "the option makes no difference"

# ---- mpipe as a client ----

mkdir many
for n in 1 2 3 4 5 6 7 8 9; do
    cp "$data/rgb8_all_filters.png" many/$n.png
done
cp "$data/exif_orientation_6.jpg" many/turned.jpg
cp many/1.png "many/$(printf '%0220d' 8).png"
cp many/1.png "many/$(printf '\351t\351').png" # no UTF-8
echo nonsense > many/bad.png
ln -s nowhere many/dangling.png
both() {
    "$mpipe" -v -c "$conf/seg.ini" -o compute.backend=cpu \
        -o output.formats='labels overlay probs' -o daemon.socket="$dir/s" "$@"
}
# same COMMAND: it leaves the same with and without the daemon, and fails for
# some pictures
same() {
    "$1" --daemon never many here 2> err
    [ $? = 1 ] || fail "status of mpipe: $(cat err)"
    "$1" --daemon require many there 2> err.client
    [ $? = 1 ] || fail "status of the client: $(cat err.client)"
    grep -q '^mpipe: daemon: ' err.client || fail "no daemon: $(cat err.client)"
    for run in here there; do
        sed -e '/"seconds"/,/}/d' -e '/"socket"/d' $run/run.json > $run.json
        rm $run/run.json
    done
    diff -r here there > diff || fail "the client's results differ: $(cat diff)"
    cmp here.json there.json ||
        fail "run.json differs: $(diff here.json there.json)"
}
same both
# persons of a file, one of them in no picture; and a pipeline that is loaded
# for who asks
cat > boxes.json << END
[{"image_id": 1, "category_id": 1, "bbox": [1.1, 2, 20.3, 30], "score": 0.9},
 {"image_id": 1, "category_id": 1, "bbox": [-3, 0, 9, 9.7], "score": 0.3},
 {"image_id": 7, "category_id": 1, "bbox": [0.7, 0.1, 11, 9], "score": 1}]
END
persons() {
    "$mpipe" -v -c "$conf/pose.ini" -o compute.backend=cpu \
        -o pipeline.boxes="$dir/boxes.json" -o pose.input=64x48 -o pose.flip=yes \
        -o pose.most_alike=1 -o compute.batch=8 -o output.formats='json keypoints' \
        -o daemon.socket="$dir/s" "$@"
}
mv here here.seg
mv there there.seg
same persons
grep -q '"image_id": *7' there/keypoints.json ||
    fail "nobody in picture 7: $(cat there/keypoints.json)"
grep -q 'bad.png.*read' there/errors.jsonl || fail "bad.png: $(cat there/errors.jsonl)"
grep -q 'turned.jpg.*views' there/errors.jsonl ||
    fail "turned.jpg: $(cat there/errors.jsonl)"
# as many pictures at once as there are places: twice its batch and 3
mkdir crowd
for n in $(seq 24); do
    cp "$data/rgb8_all_filters.png" crowd/$n.png
done
under_way() {
    get http://localhost/metrics | awk -v want="$1" \
        '/^mpipe_(in_flight|queue_length){model="pose"/ { n += $2 }
        END { exit n != want }'
}
kill -STOP $(worker)
persons --daemon require crowd crowd.out 2> err.client &
client=$!
wait_for 60 under_way 19 || fail "not 19 pictures under way"
kill -CONT $(worker)
wait $client || fail "status $? of the client: $(cat err.client)"
status 200 -X POST http://localhost/v2/repository/models/pose/unload
both --daemon auto -o model.strict=no in auto 2> err ||
    fail "auto with another pipeline: $(cat err)"
grep -q 'not used: .*strict' err || fail "does not say why: $(cat err)"
both --daemon require -o compute.precision=bf16 in no 2> err
[ $? = 2 ] || fail "required, but another precision"
both --daemon require -o daemon.socket="$dir/none" in no 2> err
[ $? = 2 ] || fail "required, but not there"
both -o daemon.socket="$dir/none" in alone 2> err || fail "auto: $(cat err)"

# ---- what is refused ----

status 400 --data-binary nonsense $url/seg/infer
says '"error":"neither PNG nor JPEG","stage":"read"'
status 400 --data-binary @in/rgb8.png "$url/seg/infer?opacty=0.9"
says 'did you mean opacity?'
status 400 --data-binary @in/rgb8.png "$url/seg/infer?opacity=9"
says '0..1'
status 400 --data-binary @in/rgb8.png "$url/seg/infer?output=lables"
says 'did you mean labels?'
status 406 --data-binary @in/rgb8.png -H 'Accept: application/json' \
    $url/seg/infer
status 406 --data-binary @in/rgb8.png -H 'Accept: image/jpeg' $url/seg/infer
says 'results are image/png'
status 400 -F file=@in/rgb8.png $url/seg/infer
says 'a form is no picture'
status 400 -d garbage http://localhost/v2/repository/index
status 400 -d garbage http://localhost/v2/repository/models/seg/unload
status 501 -d '{"parameters": {"config": "{}"}}' \
    http://localhost/v2/repository/models/seg/load
says 'parameter config'
status 501 $url/seg/trace/setting
status 400 -X POST $url/seg/infer
status 404 --data-binary @in/rgb8.png $url/none/infer
status 404 http://localhost/nowhere
status 405 -X DELETE $url/seg
status 404 $url/..%2fseg

# ---- a worker that dies ----

before=$(worker)
kill -9 $before
logs 'killed by signal 9'
status 200 --data-binary @in/rgb8.png $url/seg/infer
[ "$(worker)" != "$before" ] || fail "the same worker"
for n in 1 2 3; do
    wait_for 60 get -f $url/seg/ready || fail "seg is not ready for death $n"
    wait_for 60 get -f $url/depth/ready
    kill -STOP $(worker)
    get -o body -w '%{http_code}' --data-binary @in/rgb8.png \
        $url/seg/infer > got &
    client=$!
    wait_for 60 in_flight
    kill -9 $(worker)
    wait $client
    [ "$(cat got)" = 500 ] || fail "status $(cat got) of a request that died"
    says 'killed by signal 9'
done
status 503 --data-binary @in/rgb8.png $url/seg/infer
says 'died 3 times in 3600 s'
wait_for 60 get -f $url/depth/ready
status 200 --data-binary @in/rgb8.png $url/depth/infer
status 200 -X POST http://localhost/v2/repository/index
says '"name":"seg","version":"1","state":"UNAVAILABLE","reason":"its worker'
status 200 -X POST http://localhost/v2/repository/models/seg/load
status 200 --data-binary @in/rgb8.png $url/seg/infer

# ---- signals ----

cp mpiped.ini good.ini
printf '[http]\nno such line\n' >> mpiped.ini
kill -HUP "$pid"
logs 'stays as it was'
status 200 --data-binary @in/rgb8.png $url/seg/infer
sed -e 's/^\[http\]/&\nmode = 0999/' -e 's/^\[pipeline depth\]/[pipeline no]/' \
    good.ini > mpiped.ini
kill -HUP "$pid"
logs 'mode = 0999: octal'
status 404 $url/no
status 200 $url/depth/ready
sed -e 's/^\[pipeline depth\]/[pipeline deep]/' good.ini > mpiped.ini
kill -HUP "$pid"
logs 'read again'
wait_for 60 get -f $url/deep/ready || fail "deep is not ready"
status 404 $url/depth
status 200 --data-binary @in/rgb8.png $url/deep/infer
cp good.ini mpiped.ini
kill -STOP $(worker)
get -o body -w '%{http_code}' --data-binary @in/rgb8.png $url/seg/infer > got &
client=$!
wait_for 60 in_flight
kill -TERM "$pid"
logs ending
kill -CONT $(worker)
wait $client
[ "$(cat got)" = 200 ] || fail "status $(cat got) of what was under way"
wait "$pid" || fail "status $? after SIGTERM"
pid=
[ ! -e s ] || fail "the socket is still there"

# ---- a picture that the daemon does not take ----

mkdir big
cp in/rgb8.png big
head -c 3000000 /dev/zero > big/zero.png
start -o limits.body=1
both --daemon require big big.out 2> err
[ $? = 1 ] || fail "status of the client: $(cat err)"
[ -f big.out/rgb8.labels.png ] || fail "no result beside a large picture"
grep -q 'zero.png.*larger than 1 MiB' big.out/errors.jsonl ||
    fail "zero.png: $(cat big.out/errors.jsonl)"
stop

# ---- memory ----

# An idle pipeline on demand goes when there is too much, comes back for a
# request, and one that is loaded at the start stays. These have no file.
cat >> mpiped.ini << END

[pipeline spare]
load = on-demand
pipeline.head = depth
model.checkpoint = demo-depth.safetensors
compute.backend = cpu

[pipeline wrong]
load = on-demand
pipeline.head = depth
depth.max_dept = 10
END
start -o limits.memory=1
status 400 $url/spare
status 400 -X POST http://localhost/v2/repository/models/wrong/load
says '\[pipeline wrong\] depth.max_dept=10: no such key'
status 200 --data-binary @in/rgb8.png $url/spare/infer
logs 'spare: unloaded to save memory'
is_unloaded() {
    get -X POST http://localhost/v2/repository/index | grep -q \
        '"name":"spare","version":"1","state":"UNAVAILABLE","reason":"not loaded"'
}
wait_for 60 is_unloaded || fail "spare is still there"
status 200 $url/seg/ready
status 200 --data-binary @in/rgb8.png $url/spare/infer
stop
cp good.ini mpiped.ini

# ---- a GPU, simulated: what a device with memory of its own tells ----

sim=$(cd "$builddir/tests/sim" 2> /dev/null && pwd) || sim=
if [ -n "$sim" ] && [ -e "$sim/.libs/libcuda.so" ]; then
    cat >> mpiped.ini << END

[pipeline second]
load = on-demand
pipeline.head = depth
model.checkpoint = demo-depth.safetensors
worker = second
compute.backend = gpusim:1
END
    export MPIPE_SIM_DEVICES=2 MPIPE_SIM_MEMORY=1073741824
    export MPIPE_SIM_KERNELS=no MPIPE_BACKEND_PATH="$sim"
    start
    status 200 --data-binary @in/rgb8.png "$url/second/infer"
    device gpusim:1
    [ "$told" = 1073741824 ] || fail "gpusim:1 has $told bytes"
    grep -q '^mpipe_device_memory_bytes{.*gpusim:0' body && fail "gpusim:0"
    grep -q '^mpipe_device_busy_seconds_total{worker="second"} .*[1-9]' body ||
        fail "it was never busy: $(cat body)"
    status 200 $url/second/stats
    says "{\"type\":\"GPU\",\"id\":1,\"byte_size\":$held}"
    status 200 -X POST http://localhost/v2/repository/models/second/unload
    has_memory gpusim:1 && fail "it is closed, and has memory"
    # what it holds counts for [limits] memory
    status 200 --data-binary @in/rgb8.png "$url/second/infer"
    device gpusim:1
    process=$(sed -n \
        's/^mpipe_worker_resident_bytes{worker="second"} //p' body)
    stop
    start -o limits.memory=$(((process + held / 2) / 1048576))
    status 200 --data-binary @in/rgb8.png "$url/second/infer"
    logs 'second: unloaded to save memory'
    stop
    unset MPIPE_SIM_DEVICES MPIPE_SIM_MEMORY MPIPE_SIM_KERNELS
    unset MPIPE_BACKEND_PATH
else
    echo "SKIP: memory of a GPU: its simulation was not built"
fi
cp good.ini mpiped.ini

# ---- TCP ----

# tcp CODE ARGUMENT...: status of a request over TCP
port=$((20000 + $$ % 20000))
tcp() {
    want=$1
    shift
    got=$(curl -sS --max-time 60 -o body -w '%{http_code}' "$@" \
        "http://127.0.0.1:$port/v2/health/live")
    [ "$got" = "$want" ] || fail "status $got, not $want over TCP: $*"
}
start -o http.listen=127.0.0.1:$port
# the status page: its script asks for all that it shows
browser=$(command -v chromium || command -v chromium-browser) || browser=
if [ -n "$browser" ]; then
    timeout 60 "$browser" --headless=new --no-sandbox --disable-gpu \
        --user-data-dir="$dir/chromium" --virtual-time-budget=3000 \
        --dump-dom "http://127.0.0.1:$port/" > body 2> /dev/null
    says '<td>seg</td><td>READY</td>'
    says '<td>pose</td><td>on demand</td>'
    says '<option>seg</option>'
else
    echo "SKIP: the status page in a browser: there is no chromium"
fi
tcp 200
tcp 200 -H "Host: localhost:$port" -H "Origin: http://localhost:$port"
tcp 403 -H 'Host: pictures.example'
tcp 403 -H 'Origin: http://pictures.example'
tcp 403 -H 'Origin: null'
stop
echo 0123456789abcdef > token
chmod 600 token
start -o http.listen=127.0.0.1:$port -o http.token_file=token
tcp 401
says '"error":"a token is needed'
tcp 401 -H 'Authorization: Bearer 0123456789abcdeg'
tcp 401 -H 'Authorization: Bearer 0123456789abcdef0'
tcp 401 -H 'Authorization: Bearer '
tcp 401 -H 'Authorization: Basic 0123456789abcdef'
tcp 200 -H 'Authorization: Bearer 0123456789abcdef'
status 200 http://localhost/v2/health/live
# the page itself tells nothing; what it shows needs the token
curl -sS -o body "http://127.0.0.1:$port/" || fail "no page without a token"
says '<title>mpiped</title>'
got=$(curl -sS -o body -w '%{http_code}' "http://127.0.0.1:$port/metrics")
[ "$got" = 401 ] || fail "status $got of the metrics without a token"
stop

# ---- what is refused at the start ----

# refused TEXT ARGUMENT...: mpiped ends with 2 and says so
refused() {
    want=$1
    shift
    "$mpiped" -c mpiped.ini "$@" 2> log
    got=$?
    [ $got = 2 ] || fail "status $got, not 2: $*"
    grep -q "^mpipe: .*$want" log || fail "does not say \"$want\": $*"
}
refused 'beyond loopback' -o http.listen=0.0.0.0:0
refused 'ADDRESS:PORT' -o http.listen=localhost
refused 'ADDRESS:PORT' -o http.listen=127.0.0.1:99999
refused '1 to 107 bytes' -o "http.socket=/$(printf '%0107d' 0)"
refused 'octal' -o http.mode=rw
refused 'octal' -t -o http.mode=rw
refused 'ADDRESS:PORT' -t -o http.listen=localhost
refused 'cannot be read' -t -o 'pipeline seg.file=none.ini'
refused 'there is none' -o http.group=no.such.group
refused 'both none' -o http.socket=none
refused 'did you mean connections?' -o limits.conections=3
echo secret > token
chmod 600 token
refused '16 to 1024' -o http.token_file=token
chmod 644 token
refused 'others must not read it' -o http.token_file=token
printf '[pipeline a/b]\nfile = x\n' > bad.ini
refused "a pipeline's name" -c bad.ini
printf '[pipeline a]\nfile = x.ini\n' > bad.ini
refused 'x.ini cannot be read' -c bad.ini
printf '[pipeline a]\nload = on-demand\n' > bad.ini
refused 'pipeline.head is needed' -c bad.ini
start
refused 'another mpiped listens there'
kill -9 "$pid"
wait "$pid" 2> /dev/null
[ -S s ] || fail "no stale socket to try with"
start
stop

[ $failures = 0 ] || {
    echo "mpiped: $failures failures"
    exit 1
}
echo "mpiped: all as it should be"
