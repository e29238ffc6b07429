#!/bin/sh
# SPDX-License-Identifier: MIT
# The layers of the source tree, by grep: who may include what, who may call
# the libraries of a device, and what a library never does.
LC_ALL=C
export LC_ALL
cd "${srcdir:-.}" || exit 99
failed=0

# Whatever reaches standard input is against the rule.
none() {
    found=$(cat)
    [ -z "$found" ] || {
        printf 'against the rule: %s\n%s\n' "$1" "$found"
        return 1
    }
}

files() {
    find "$@" -name '*.[ch]' | sort
}

# Code without comments and strings, as "file:line:text".
code() {
    for f in "$@"; do
        awk -v name="$f" '{
            line = $0; out = ""
            gsub(/\\./, "", line)
            gsub(/\047"\047/, "0", line)
            gsub(/"[^"]*"/, "\"\"", line)
            while (line != "") {
                if (inside) {
                    i = index(line, "*/")
                    if (!i) break
                    inside = 0; line = substr(line, i + 2)
                } else {
                    i = index(line, "/*")
                    if (!i) { out = out line; break }
                    out = out substr(line, 1, i - 1)
                    inside = 1; line = substr(line, i + 2)
                }
            }
            print name ":" NR ":" out
        }' "$f"
    done
}

# name(...) as a call: not a member, not the end of a longer name
calls() {
    grep -E "(^|[^A-Za-z0-9_.>])($1)[[:space:]]*\("
}

libc='assert|complex|ctype|errno|float|inttypes|limits|math|stdarg|stdbool'
libc="$libc|stddef|stdint|stdio|stdlib|string"

[ -d backbone ] && [ -d plugins ] && [ -d core ] || {
    echo "layers.sh: $PWD is not mpipe's source tree"
    exit 99
}

for f in $(files backbone plugins); do
    own=$(cd "$(dirname "$f")" && ls ./*.h 2>/dev/null |
        sed 's,^\./\(.*\)\.h$,\1,' | tr '\n' '|')
    grep -nHE '^[[:space:]]*#[[:space:]]*include' "$f" |
        grep -vE "[<\"]mpipe/(base|graph|plugin|backend)\.h[\">]" |
        grep -vE "<($libc)\.h>" |
        grep -vE "\"(${own%|})\.h\""
done | none "backbone and heads include <mpipe/...>, their own headers and C's" ||
    failed=1

grep -nHE '#[[:space:]]*include.*(dnnl|oneapi|omp\.h|immintrin)' \
    $(files core backbone plugins) /dev/null | grep -v '^core/cpu/' |
    none "oneDNN, OpenMP and intrinsics are core/cpu's" ||
    failed=1

code $(files core backbone plugins) | grep -v '^core/cpu/' |
    calls 'dnnl_[a-z0-9_]+|omp_[a-z_]+' |
    none "no oneDNN or OpenMP call outside core/cpu" ||
    failed=1

code $(files core backbone plugins) | grep -v '^core/cuda/' |
    calls 'cu[A-Z][A-Za-z0-9]*|(cuda|cudnn|cublas|cublasLt)[A-Z][A-Za-z0-9]*' |
    none "no CUDA call outside core/cuda" ||
    failed=1

# A child in which a module is loaded for a try has nowhere to return to.
code $(files core backbone plugins) | grep -v '^core/[a-z_]*_main\.c:' |
    grep -vE '^core/module\.c:[0-9]+:[[:space:]]*_exit\(LOADED\);' |
    calls 'exit|_exit|quick_exit|abort|printf|vprintf|puts|putchar|perror' |
    none "a library neither ends the process nor writes to its stdout" ||
    failed=1

exit $failed
