#!/bin/sh
# SPDX-License-Identifier: MIT
# make installcheck: the example head of mpipe_plugin(3) is built outside the
# tree with nothing but what was installed, and loaded by the installed
# mpipe-inspect. In the page it lies between the comments
#     .\" example begin: NAME.c
#     .\" example end
set -eu
page=$srcdir/man/mpipe_plugin.3

fail() {
    echo "installcheck: $*" >&2
    exit 1
}

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-installcheck.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

file=$(sed -n 's/^\.\\" example begin: \([a-z][a-z0-9]*\.c\)$/\1/p' "$page")
[ -n "$file" ] || fail "no example in $page"
name=${file%.c}
# Only the lines of text are the program; mdoc writes a backslash as \e.
sed -n '/^\.\\" example begin/,/^\.\\" example end/p' "$page" |
    sed -e '/^\./d' -e 's/\\&//g' -e 's/\\-/-/g' -e 's/\\(aq/'"'"'/g' \
        -e 's/\\(dq/"/g' -e 's/\\e/\\/g' > "$dir/$file"

PKG_CONFIG_PATH=$DESTDIR$libdir/pkgconfig
export PKG_CONFIG_PATH
if [ -n "$DESTDIR" ]; then
    PKG_CONFIG_SYSROOT_DIR=$DESTDIR
    export PKG_CONFIG_SYSROOT_DIR
fi
LD_LIBRARY_PATH=$DESTDIR$libdir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
MPIPE_PLUGIN_PATH=$DESTDIR$pluginsdir
export LD_LIBRARY_PATH MPIPE_PLUGIN_PATH

folder=$($PKG_CONFIG --variable=plugindir mpipe)
case $folder in
*"$pluginsdir") ;;
*) fail "mpipe.pc: plugindir is $folder, heads are in $pluginsdir" ;;
esac

cd "$dir"
# shellcheck disable=SC2046,SC2086
$CC $CFLAGS -Wall -Wextra -Werror -shared -fPIC -o "$name.so" "$file" \
    $($PKG_CONFIG --cflags --libs mpipe)

# Whether the installed mpipe-inspect, called like this, shows this head.
shows() {
    head=$1
    shift
    "$DESTDIR$bindir/mpipe-inspect" "$@" "$head" > out 2>&1 &&
        grep -q "$head" out || {
        cat out >&2
        fail "mpipe-inspect $* $head"
    }
}

shows "$name" -P "$dir"
shows depth
shows upernet
echo "installcheck: $name, built against the installed mpipe, was loaded"
