#!/bin/sh
# SPDX-License-Identifier: MIT
# mpiped as tritonclient[http] from PyPI sees it; triton.py does the asking.
# PYTHON: an interpreter that has it.
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
mpiped=${MPIPED:-$builddir/mpiped}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
python=${PYTHON:-python3}
[ -x "$mpiped" ] || { echo "SKIP: mpiped was not built"; exit 77; }
"$python" -c 'import tritonclient.http' 2> /dev/null || {
    echo "SKIP: $python has no tritonclient[http]; see PYTHON in this script"
    exit 77
}
data=$(cd "$srcdir/tests/data/awkward" && pwd)
conf=$(cd "$srcdir/conf" && pwd)
tests=$(cd "$srcdir/tests" && pwd)

dir=$(mktemp -d "${TMPDIR:-/tmp}/triton.XXXXXX") || exit 99
pid=
cleanup() {
    [ -z "$pid" ] || kill -9 "$pid" 2> /dev/null
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
mkdir "$dir/models"
for head in seg depth pose; do
    "$make_weights" "$tests/golden/keys/tiny_$head.json" \
        "$dir/models/demo-$head.safetensors" || exit 99
done
MPIPE_MODEL_PATH=$dir/models
export MPIPE_MODEL_PATH
cd "$dir" || exit 99
cat > mpiped.ini << END
[http]
socket = none
listen = 127.0.0.1:$((20000 + $$ % 20000))

[limits]
pictures = 5

[pipeline seg]
file = $conf/seg.ini
compute.backend = cpu
compute.threads = 1
output.formats = labels

[pipeline depth]
file = $conf/depth.ini
compute.backend = cpu
compute.threads = 1
output.formats = npy

[pipeline pose]
file = $conf/pose.ini
load = on-demand
compute.backend = cpu
compute.threads = 1
output.formats = json
END
cp "$data/rgb8_all_filters.png" picture.png
"$mpipe" -q -c "$conf/seg.ini" -o compute.backend=cpu -o compute.threads=1 \
    -o output.formats=labels picture.png out || exit 99
"$mpiped" -c mpiped.ini 2> log &
pid=$!
"$python" "$tests/triton.py" "127.0.0.1:$((20000 + $$ % 20000))" picture.png \
    out/picture.labels.png || { sed 's/^/    /' log; exit 1; }
kill -TERM "$pid"
wait "$pid" || { echo "FAIL: status $? after SIGTERM"; exit 1; }
pid=
