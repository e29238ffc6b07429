#!/bin/sh
# SPDX-License-Identifier: MIT
# One set of option rows, three places that speak of them: the sample
# configurations and mpipe.conf(5) must know the keys that mpipe --dump-config
# prints, and no others. In the page a section is ".Ss [name]" and a key of it
# is ".It Ic key".
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
mpipe=${MPIPE:-$builddir/mpipe}
page=$srcdir/man/mpipe.conf.5
dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-options.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
failures=0

fail() {
    echo "FAIL: $*"
    failures=$((failures + 1))
}

# "[section] key" of an INI file; unset keys are comments in a dump
keys() {
    sed -n -e 's/^\(\[.*\]\).*/\1/p' \
        -e 's/^;* *\([a-z][a-z0-9_]*\) =.*/\1/p' "$1" |
        awk '/^\[/ { section = $0; next } { print section, $0 }' | sort -u
}

# compare WHAT A B: lines that only one of them has
compare() {
    comm -23 "$2" "$3" > "$dir/only"
    [ ! -s "$dir/only" ] ||
        fail "$1 lacks: $(tr '\n' ';' < "$dir/only")"
    comm -13 "$2" "$3" > "$dir/only"
    [ ! -s "$dir/only" ] ||
        fail "$1 has what mpipe does not: $(tr '\n' ';' < "$dir/only")"
}

: > "$dir/all"
for head in upernet depth pose; do
    "$mpipe" -o pipeline.head=$head --dump-config > "$dir/$head.ini" ||
        fail "--dump-config for $head"
    keys "$dir/$head.ini" > "$dir/$head"
    [ "$(grep -c "^\[$head\]" "$dir/$head")" -gt 0 ] ||
        fail "no keys of $head"
    cat "$dir/$head" >> "$dir/all"
    # what was dumped gives the same again
    "$mpipe" -c "$dir/$head.ini" --dump-config > "$dir/again.ini" &&
        cmp "$dir/$head.ini" "$dir/again.ini" ||
        fail "the dump for $head is not what it says"
done
sort -u "$dir/all" > "$dir/keys"

for file in "$srcdir"/conf/*.ini; do
    [ "${file##*/}" != mpiped.ini ] || continue # of another program
    head=$(sed -n 's/^head = //p' "$file")
    "$mpipe" -c "$file" --dump-config > /dev/null || fail "$file"
    # comments of a sample are prose; its protocol is of its task only, and a
    # daemon of whoever runs it
    grep -v '^;' "$file" > "$dir/sample.ini"
    keys "$dir/sample.ini" | grep -v -E '^\[(eval|daemon)\]' > "$dir/sample"
    grep -v -E '^\[(eval|daemon)\]' "$dir/$head" > "$dir/wanted"
    case ${file##*/} in
    seg.ini | depth*.ini | pose*.ini)
        compare "$file" "$dir/wanted" "$dir/sample" ;;
    esac
done

# page_keys FILE: those of a manual page
page_keys() {
    sed -n -e 's/^\.Ss \(\[[a-z0-9]*\]\).*/\1/p' \
        -e 's/^\.It Ic \([a-z][a-z0-9_]*\).*/\1/p' -e 's/^\.S[hs].*/[]/p' "$1" |
        awk '/^\[/ { section = $0; next } section != "[]" { print section, $0 }' |
        sort -u
}

page_keys "$page" > "$dir/page"
compare "$page" "$dir/keys" "$dir/page"

# mpiped's: all pipelines have the same keys
mpiped=${MPIPED:-$builddir/mpiped}
if [ -x "$mpiped" ]; then
    conf=$srcdir/conf/mpiped.ini page=$srcdir/man/mpiped.conf.5
    "$mpiped" -c "$conf" --dump-config > "$dir/mpiped.ini" ||
        fail "$conf"
    sed 's/^\[pipeline .*/[pipeline]/' "$dir/mpiped.ini" > "$dir/dump"
    keys "$dir/dump" > "$dir/keys"
    grep -v '^;' "$conf" | sed 's/^\[pipeline .*/[pipeline]/' > "$dir/sample.ini"
    keys "$dir/sample.ini" > "$dir/sample"
    compare "$conf" "$dir/keys" "$dir/sample"
    page_keys "$page" > "$dir/page"
    compare "$page" "$dir/keys" "$dir/page"
fi

[ $failures = 0 ] || exit 1
