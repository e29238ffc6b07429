#!/bin/sh
# SPDX-License-Identifier: MIT
# The unit files: right by systemd's own word, and as closed as they claim.
# The score of "systemd-analyze security" is 0 (closed) to 10.
set -u
builddir=${builddir:-.}
srcdir=${srcdir:-.}
command -v systemd-analyze > /dev/null || {
    echo "SKIP: there is no systemd-analyze"
    exit 77
}
[ -f "$builddir/conf/system/mpiped.service" ] || {
    echo "SKIP: mpiped was not built"
    exit 77
}
failures=0
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-units.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
# their program need not be installed yet
for unit in mpiped mpiped-gpu; do
    sed 's,^ExecStart=.*,ExecStart=/bin/true,' \
        "$builddir/conf/system/$unit.service" > "$dir/$unit.service"
done
cp "$srcdir/conf/system/mpiped.socket" "$dir"
systemd-analyze security --offline=true "$dir/mpiped.service" > "$dir/out" 2>&1
grep -q 'exposure level' "$dir/out" || {
    echo "SKIP: this systemd-analyze cannot judge files"
    exit 77
}
for unit in mpiped mpiped-gpu; do
    systemd-analyze security --offline=true --threshold=20 \
        "$dir/$unit.service" > "$dir/out" 2>&1 || {
        echo "FAIL: $unit.service: $(tail -n 1 "$dir/out")"
        failures=$((failures + 1))
    }
    tail -n 1 "$dir/out"
done
grep -h '@' "$builddir/conf/system/mpiped.service" \
    "$builddir/conf/system/mpiped-gpu.service" | grep -v 'SystemCallFilter' && {
    echo "FAIL: a name was not filled in"
    failures=$((failures + 1))
}
[ $failures = 0 ]
