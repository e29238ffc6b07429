# SPDX-License-Identifier: MIT
# Options of mpipe, mpiped and mpipe-inspect, and keys after -o, as the programs
# tell them.

_mpipe_keys() {
    "$@" --dump-config 2> /dev/null | awk '
        /^\[/ { gsub(/[][]/, ""); section = $0; next }
        /^;? ?[a-z][a-z0-9_]* = / {
            sub(/^; ?/, ""); sub(/ =.*/, ""); print section "." $0 "=" }'
}

_mpipe() {
    local word=$2 before=$3 program=$1 i config=()
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD - 1; i++)); do
        case ${COMP_WORDS[i]} in
        -c | --config) config=(-c "${COMP_WORDS[i + 1]}") ;;
        esac
    done
    case $before in
    -c | --config)
        mapfile -t COMPREPLY < <(compgen -f -X '!*.ini' -- "$word"
            compgen -d -- "$word")
        return ;;
    -P | --plugins)
        mapfile -t COMPREPLY < <(compgen -d -- "$word")
        return ;;
    -o | --option)
        mapfile -t COMPREPLY < <(compgen -W \
            "$(_mpipe_keys "$program" "${config[@]}")" -- "$word")
        compopt -o nospace 2> /dev/null
        return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2> /dev/null |
            grep -oE -- '--[a-z-]+' | sort -u)" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -o filenames -F _mpipe mpipe mpiped mpipe-eval mpipe-inspect
