#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs of mpipe as users see them: names of results, exit status, what is left
# behind. Most on the plain C backend, which has nothing to compile.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
data=$(cd "$srcdir/tests/data/awkward" && pwd)
conf=$(cd "$srcdir/conf" && pwd)
keys=$(cd "$srcdir/tests/golden/keys" && pwd)

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-cli.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$dir/models"
"$make_weights" "$keys/tiny_seg.json" "$dir/models/demo-seg.safetensors" &&
    "$make_weights" "$keys/tiny_depth.json" \
        "$dir/models/demo-depth.safetensors" || exit 99
MPIPE_MODEL_PATH=$dir/models
export MPIPE_MODEL_PATH
cd "$dir" || exit 99
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failures=$((failures + 1))
}

# run STATUS ARGUMENT...: mpipe ends with this status; out and err are kept.
run() {
    want=$1
    shift
    "$mpipe" "$@" > out 2> err
    got=$?
    [ $got = "$want" ] || fail "status $got, not $want: mpipe $*"
}

seg() {
    want=$1
    shift
    run "$want" -c "$conf/seg.ini" -o compute.backend=ref "$@"
}

# says TEXT: the last run said so, in a single line that begins with "mpipe: "
says() {
    grep -q "^mpipe: .*$1" err || fail "does not say \"$1\""
}

has() {
    for f; do
        [ -s "$f" ] || fail "$f is not there"
    done
}

has_not() {
    for f; do
        [ ! -e "$f" ] || fail "$f is there"
    done
}

# Same results, whatever the runs say of themselves.
same() {
    diff -r -x 'run*.json' "$1" "$2" > err || fail "$1 and $2 differ"
}

# Width and height of a PNG.
size() {
    od -An -tu1 -j16 -N8 "$1" | awk '{print $3*256+$4 "x" $7*256+$8}'
}

in_json() { # FILE "KEY": VALUE
    grep -q "$2" "$1" || fail "$1 has no $2"
}

mkdir -p in/sub/deep
cp "$data/odd_37x29_420.jpg" in/a.jpg
cp "$data/small_444.jpg" in/b.JPEG
cp "$data/interlaced_3x2.png" in/sub/c.png
cp "$data/one_pixel.png" "in/sub/deep/d d.png"
echo text > in/notes.txt
cp "$data/one_pixel.png" in/.hidden.png

# ---- results ----

seg 0 in flat
has flat/a.labels.png flat/a.overlay.png flat/b.labels.png flat/labels.json \
    flat/run.json
has_not flat/a.color.png flat/sub flat/notes.labels.png flat/errors.jsonl \
    flat/.hidden.labels.png
[ "$(size flat/a.labels.png)" = 37x29 ] || fail "a.labels.png is not 37x29"
[ "$(size flat/b.overlay.png)" = 64x44 ] || fail "b.overlay.png is not 64x44"
in_json flat/run.json '"state": "done"'
in_json flat/run.json '"done": 2'

seg 0 -r -o output.formats="probs color raw" in deep
has deep/a.probs.npy deep/sub/c.color.png "deep/sub/deep/d d.probs.npy" \
    deep/b.raw.npy
has_not deep/a.labels.png
[ "$(wc -c < deep/a.probs.npy)" = $((128 + 7 * 29 * 37 * 4)) ] ||
    fail "the size of a.probs.npy"

run 0 -q -c "$conf/depth.ini" -o compute.backend=cpu -o compute.threads=1 \
    in/a.jpg depth
has depth/a.png16.png depth/a.color.png depth/a.npy.npy
has_not depth/labels.json
[ "$(size depth/a.png16.png)" = 37x29 ] || fail "a.png16.png is not 37x29"
[ "$(wc -c < depth/a.npy.npy)" = $((128 + 29 * 37 * 4)) ] ||
    fail "the size of a.npy.npy"
[ ! -s err ] || fail "-q is not quiet"

# the same bytes again, over what is there; and with any batch and threads
cp -r flat before
seg 0 in flat
same flat before
mkdir many
for i in 1 2 3 4 5 6 7; do cp "$data/interlaced_3x2.png" many/p$i.png; done
cp "$data/one_pixel.jpg" many/p8.jpg
cp "$data/odd_37x29_420.jpg" many/p3x.jpg
seg 0 -o output.formats=labels many one
seg 0 -o output.formats=labels -o compute.batch=3 many three
same one three

# ---- ways to name pictures ----

printf '%s\n' in/a.jpg '' ./in//sub/c.png > list
seg 0 @list listed
has listed/in/a.labels.png listed/in/sub/c.labels.png
printf '%s\r\n' "$dir/in/a.jpg" | seg 0 - piped
has piped/a.labels.png
cp "$data/one_pixel.png" no-suffix
seg 0 no-suffix named
has named/no-suffix.labels.png
bytes=$(printf 'x\377y\nz')
mkdir odd
cp "$data/one_pixel.png" "odd/$bytes.png"
cp "$data/zero_bytes.png" "odd/$bytes.bad.png"
long=$(printf '%0240d' 0)
cp "$data/one_pixel.png" "odd/$long.png"
seg 1 odd odd-out -o output.formats=labels
has "odd-out/$bytes.labels.png" "odd-out/$long.labels.png"
in_json odd-out/errors.jsonl '"input":"odd/x'
[ "$(wc -l < odd-out/errors.jsonl)" = 1 ] || fail "errors.jsonl: not one line"
cp "$data/one_pixel.png" "odd/1234567$long.png"
seg 1 odd odd-long
says 'longer than 255 bytes'

ln -s ../sub in/sub/loop
seg 0 -r -o output.formats=labels in links
has links/sub/c.labels.png
has_not links/sub/loop
rm -f in/sub/loop
mkdir inside
cp "$data/one_pixel.png" inside/p.png
seg 0 -r inside inside/out
seg 0 -r inside inside/out
has inside/out/p.labels.png
has_not inside/out/out

cp in/a.jpg in/a.png
seg 2 in clash
says 'in/a.jpg and in/a.png'
has_not clash
rm -f in/a.png
seg 2 in in
says 'both IN and OUT'
seg 2 nowhere out2
says 'nowhere: No such file'
mkdir empty
seg 2 empty out2
says 'no .png'
echo 'missing.png' | seg 1 - missing
says 'missing.png: '

# ---- a picture that is none ----

mkdir bad
cp "$data/one_pixel.png" bad/1.png
cp "$data/text.jpg" bad/2.jpg
cp "$data/bomb_60000x60000.png" bad/3.png
cp "$data/one_pixel.png" bad/4.png
seg 1 bad mixed
has mixed/1.labels.png mixed/4.labels.png mixed/errors.jsonl
has_not mixed/2.labels.png
[ "$(grep -c '"stage":"read"' mixed/errors.jsonl)" = 2 ] ||
    fail "errors.jsonl: not two lines"
head -n 1 mixed/errors.jsonl | grep -q '^{"input":"bad/2.jpg"' ||
    fail "errors.jsonl is not in order"
[ "$(grep -c '^mpipe: bad/' err)" = 2 ] || fail "not one line for each"
in_json mixed/run.json '"failed": 2'

# ---- resume ----

cp -r one partly
rm -f partly/p3.labels.png partly/p8.labels.png
seg 0 -o output.formats=labels --resume many partly
same one partly
in_json partly/run.json '"skipped": 7'
seg 0 -o output.formats=labels --resume many partly
in_json partly/run.json '"skipped": 9'
for more in "" --resume; do
    # shellcheck disable=SC2086
    seg 2 -o output.formats=labels -o upernet.mode=slide $more many partly
    says '\[upernet\] mode was whole, is slide'
done
touch -d 2001-01-01 models/demo-seg.safetensors
seg 2 -o output.formats=labels --resume many partly
says "checkpoint's modified"
echo rubbish > partly/run.json
seg 2 -o output.formats=labels --resume many partly
says 'not what mpipe writes'

# a signal leaves what can be resumed, with the same results in the end
mkdir lots
i=0
while [ $i -lt 16 ]; do
    cp "$data/odd_37x29_420.jpg" lots/$((1000 + i)).jpg
    i=$((i + 1))
done
seg 0 -o output.formats=labels lots whole
for signal in INT TERM; do
    rm -rf cut
    "$mpipe" -c "$conf/seg.ini" -o compute.backend=ref \
        -o output.formats=labels lots cut 2> err &
    child=$!
    n=0
    until ls cut/10*.labels.png > /dev/null 2>&1 || [ $n = 600 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    kill -$signal $child
    wait $child
    got=$?
    case $signal,$got in
    INT,130 | TERM,143) in_json cut/run.json '"state": "interrupted"' ;;
    *) fail "status $got after SIG$signal" ;;
    esac
    [ ! -e cut/1015.labels.png ] || fail "SIG$signal came too late"
done
ls cut/.*.tmp > /dev/null 2>&1 && fail "temporary files stay behind"
seg 0 -o output.formats=labels --resume lots cut
same whole cut

# a disk that is full ends the run
(
    trap '' XFSZ
    ulimit -f 8
    "$mpipe" -c "$conf/seg.ini" -o compute.backend=ref \
        -o output.formats=probs lots full > out 2> err
    [ $? = 3 ]
) || fail "a full disk does not end the run with 3"
says 'full/1.*probs.npy'
[ "$(grep -c '^mpipe: full' err)" = 1 ] || fail "it goes on with a full disk"
in_json full/run.json '"state": "stopped"'

# ---- shards ----

for i in 1 2 3; do
    seg 0 -o output.formats=labels --shard $i/3 many parts
    has parts/run.$i-of-3.json
done
same one parts
[ "$(ls parts/*.labels.png | wc -l)" = 9 ] || fail "parts: not 9 results"
SLURM_PROCID=1 SLURM_NTASKS=3 seg 0 -o output.formats=labels --shard auto \
    many slurm
has slurm/run.2-of-3.json slurm/p2.labels.png
has_not slurm/p1.labels.png
seg 2 --shard 4/3 many shard
says '4/3'
seg 2 --shard auto many shard

# ---- what is wrong with the call or the configuration ----

run 2
says 'IN and OUT'
run 2 --no-such in out2
says 'no-such'
run 2 -c nowhere.ini in out2
says 'nowhere.ini'
seg 2 -o upernet.mood=slide in out2
says 'did you mean mode?'
seg 2 -o upernet.mode=slid in out2
says slide
seg 2 -o output.formats=lables in out2
says 'did you mean labels?'
seg 2 -o pipeline.head=unet in out2
says 'unet'
seg 2 -o model.checkpoint=none.ckpt in out2
says 'none.ckpt'
seg 2 -o pipeline.classes=none in out2
says 'classes is not set'
seg 2 -o pipeline.classes=camvid in out2
says 'has 7 classes'
has_not out2
seg 2 -o model.checkpoint="$dir/models/demo-depth.safetensors" in out3
has_not out3
seg 2 -o compute.backend=none in out3
has_not out3
run 0 --version
grep -q '^mpipe [0-9]' out || fail "--version"
run 0 --help
grep -q '^usage: mpipe' out || fail "--help"
# threads turn but briefly while they wait, unless that is asked for
turns() { # ENVIRONMENT...
    env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT OMP_DISPLAY_ENV=verbose "$@" \
        "$mpipe" --version 2>&1 |
        sed -n "s/.*GOMP_SPINCOUNT = '\(.*\)'/\1/p" | tail -n 1
}
if [ -n "$(turns)" ]; then # GCC's OpenMP
    [ "$(turns)" = 1000 ] || fail "threads do not turn briefly"
    [ "$(turns GOMP_SPINCOUNT=7)" = 7 ] || fail "GOMP_SPINCOUNT is lost"
    [ "$(turns OMP_WAIT_POLICY=passive)" = 0 ] ||
        fail "OMP_WAIT_POLICY is lost"
fi
# a file may hold the sections of several heads
{
    cat "$conf/seg.ini"
    printf '[depth]\nmax_depth = 80\n'
} > both.ini
run 0 -c both.ini --dump-config
run 0 -c both.ini -o pipeline.head=depth -o output.formats=npy --dump-config
grep -q '^max_depth = 80' out || fail "both.ini: max_depth"

[ $failures = 0 ] || {
    echo "cli: $failures failures"
    exit 1
}
echo "cli: all as it should be"
