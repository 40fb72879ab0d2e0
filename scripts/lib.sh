# What the other scripts share: steps with their times, packages, the toolchain. Source it; it runs nothing.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$(basename "$0")
# Where SwiftPM builds. Set SMMUD_SCRATCH to keep two builds of one work tree apart.
scratch=${SMMUD_SCRATCH:-$root/.build}

fail() {
    echo "$script: $*" >&2
    exit 1
}

# A directory for logs, and what removes it when all went well.
start_log() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/smmud-$script.XXXXXX")
    log=$work/log
    : >"$log"
    started=$SECONDS
}

# 7 s, 3 min 5 s.
duration() {
    if [ "$1" -lt 60 ]; then echo "$1 s"; else echo "$(($1 / 60)) min $(($1 % 60)) s"; fi
}

# What SwiftPM's last "[12/345]" says of the time that is left, or nothing.
time_left() {
    local done_count total
    read -r done_count total < <(
        tr '\r' '\n' <"$1" 2>/dev/null | sed -n 's/^\[\([0-9]*\)\/\([0-9]*\)\].*/\1 \2/p' | tail -n 1
    ) || return 0
    [ "${done_count:-0}" -gt 0 ] || return 0
    echo ", $done_count of $total, about $(duration $(($2 * (total - done_count) / done_count))) left"
}

# step NAME COMMAND...: runs it with its output in a log; prints one line with the time that it took. On a terminal
# that line moves while it runs; elsewhere a line comes once a minute. Fails as the command does, with the end of
# its log shown.
step() {
    local name=$1 began=$SECONDS status=0 elapsed
    shift
    step_log=$work/${name//[^A-Za-z0-9]/-}.log
    [ -t 1 ] && printf '%-24s' "$name"
    "$@" >"$step_log" 2>&1 </dev/null &
    local child=$!
    step_child=$child
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        elapsed=$((SECONDS - began))
        if [ -t 1 ]; then
            [ "$elapsed" -lt 2 ] || printf '\r%-24s%s%s\033[K' "$name" "$(duration "$elapsed")" "$(time_left "$step_log" "$elapsed")"
        elif [ "$elapsed" -gt 0 ] && [ $((elapsed % 60)) -eq 0 ]; then
            echo "  $name: $(duration "$elapsed") so far$(time_left "$step_log" "$elapsed")"
            sleep 1
        fi
    done
    wait "$child" || status=$?
    step_child=
    elapsed=$((SECONDS - began))
    [ -t 1 ] && printf '\r\033[K'
    {
        echo "== $name"
        cat "$step_log"
    } >>"$log"
    if [ "$status" -ne 0 ]; then
        printf '%-24s%s  FAILED (exit code %s)\n' "$name" "$(duration "$elapsed")" "$status"
        return "$status"
    fi
    printf '%-24s%s%s\n' "$name" "$(duration "$elapsed")" "${step_note:+  $step_note}"
    step_note=
}

# must STEP...: a step without which nothing after it makes sense.
must() {
    step "$@" && return
    echo "---- the end of its output; all of it is in $step_log" >&2
    tail -n "${tail_lines:-40}" "$step_log" >&2
    fail "$1 failed"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "needs root to install packages: run it as root, or install sudo"
    fi
}

missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
    done
}

apt_install() {
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
    "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"
}

# need_packages NAME...: installs those that are missing. Says nothing where none is.
need_packages() {
    local missing
    command -v dpkg-query >/dev/null || fail "needs Debian or one of its kin: there is no dpkg here"
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -eq 0 ] && return
    # Here, not in the step: sudo may have to ask for a password, and its question must be seen.
    [ "$(id -u)" = 0 ] || as_root true || fail "cannot become root to install: ${missing[*]}"
    step_note=${missing[*]}
    must "packages" apt_install "${missing[@]}"
}

# need_swift: there is a compiler that can read Package.swift.
need_swift() {
    local version
    command -v swift >/dev/null || fail "there is no swift in PATH.
Swift 6.2 or newer for this Debian is at https://www.swift.org/install/linux/: unpack it, and put its usr/bin into PATH."
    version=$(swift --version 2>/dev/null | sed -n 's/.*Swift version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p' | head -n 1)
    # shellcheck disable=SC2086
    set -- $version
    [ "${1:-0}" -gt 6 ] || { [ "${1:-0}" -eq 6 ] && [ "${2:-0}" -ge 2 ]; } ||
        fail "swift is version ${1:-?}.${2:-?}; 6.2 or newer is needed: https://www.swift.org/install/linux/"
}
