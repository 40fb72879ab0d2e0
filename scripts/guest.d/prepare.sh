# What a guest needs before it can start: packages, smmud, QEMU, a kernel, the guest's programs and its initial RAM
# disk. Source it after lib.sh; it runs nothing.
# shellcheck shell=bash disable=SC2034

# The guest's own programs, from C: the Swift toolchain's clang compiles for any machine.
compile_programs() {
    local source clang
    clang=$(dirname "$(readlink -f "$(command -v swift)")")/clang
    command -v "$clang" >/dev/null || clang=clang
    mkdir -p "$cache/programs" || return
    for source in scripts/guest.d/guest/*.c; do
        "$clang" --target=aarch64-linux-gnu --sysroot="$cache/guest" -fuse-ld=lld -static -s -O1 -Wall -Wextra -Werror \
            -o "$cache/programs/$(basename "$source" .c)" "$source" || return
    done
}

# Whether a source is newer than its program.
programs_are_old() {
    local source
    for source in scripts/guest.d/guest/*.c; do
        [ "$cache/programs/$(basename "$source" .c)" -nt "$source" ] || return 0
    done
    return 1
}

# prepare_guest: makes what $smmud, $kernel and $initrd do not name yet, with $release's kernel, in $cache.
prepare_guest() {
    start_log
    trap 'rm -rf "$work"' EXIT
    need_packages python3 device-tree-compiler libfdt-dev ca-certificates
    if [ -z "$smmud" ]; then
        need_swift
        must "build" swift build --scratch-path "$scratch" -c release --product smmud
        smmud=$(swift build --scratch-path "$scratch" -c release --show-bin-path)/smmud
    fi
    if ! scripts/guest.d/fetch --is-done "$cache" "$release"; then
        step_note="QEMU and Linux from Debian's archive"
        must "fetch" scripts/guest.d/fetch "$cache" "$release"
    fi
    if [ -z "$initrd" ]; then
        if programs_are_old; then
            need_swift
            must "guest's programs" compile_programs
        fi
        scripts/guest.d/initrd.py "$cache" "$release" "$cache"/programs/*
    fi
    kernel=${kernel:-$cache/kernel-$release/vmlinuz}
    initrd=${initrd:-$cache/initrd-$release}
    rm -rf "$work"
    trap - EXIT
}
