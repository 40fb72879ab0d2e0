# What init and the scenarios of the guest share. Sourced by busybox's sh, in the guest.
# shellcheck shell=dash disable=SC3043

export PATH=/bin:/sbin:/usr/bin:/usr/sbin

# parameter NAME: its value on the kernel's command line, or nothing.
parameter() {
    tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1
}

# load NAME: a kernel module, after those that it needs. Nothing where this kernel has no such module.
load() {
    local folder name file module
    folder=/lib/modules/$(uname -r)
    name=$1
    [ -f "$folder/order" ] || return 0
    # shellcheck disable=SC2013 # words, not lines
    for file in $(sed -n "s/^$name: //p" "$folder/order"); do
        module=$(echo "$file" | tr - _)
        [ -d "/sys/module/$module" ] || insmod "$folder/$file.ko" || return 1
    done
}

# until_true SECONDS COMMAND...: runs it until it succeeds.
until_true() {
    local end
    end=$(($(cut -d. -f1 /proc/uptime) + $1))
    shift
    until "$@"; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt "$end" ] || return 1
        usleep 20000
    done
}

# Drivers probe in the background, and disks appear after that.
no_probe_is_pending() {
    local state
    for state in /sys/class/nvme/*/state; do
        [ -e "$state" ] || continue
        case $(cat "$state" 2>/dev/null) in live | dead | deleting*) ;; *) return 1 ;; esac
        # A live controller scans for namespaces.
        [ "$(cat "$state" 2>/dev/null)" != live ] || ls "${state%/state}"/nvme*n* >/dev/null 2>&1 || return 1
    done
}

wait_for_devices() {
    until_true 10 no_probe_is_pending || echo "guest: an NVMe controller is not done with its start"
}

# driver_of DEVICE-FOLDER
driver_of() {
    [ ! -e "$1/driver" ] || basename "$(readlink "$1/driver")"
}

# Every device that has an IOMMU in front of it, as: its name, its driver, its group and the group's type.
show_machine() {
    local group device
    for group in /sys/kernel/iommu_groups/*; do
        [ -d "$group" ] || continue
        for device in "$group"/devices/*; do
            echo "  $(basename "$device") $(driver_of "$device") group $(basename "$group") $(cat "$group/type")"
        done
    done
}

# check NAME COMMAND...: a line that a test can read, and the command's output if it failed.
check() {
    local name status=0
    name=$1
    shift
    "$@" >/tmp/check 2>&1 </dev/null || status=$?
    checks=$((checks + 1))
    if [ "$status" = 0 ]; then
        echo "CHECK $name ok $(head -n 1 /tmp/check)"
        return 0
    fi
    failures=$((failures + 1))
    echo "CHECK $name FAILED exit code $status: $(tr '\n' '|' </tmp/check | head -c 800)"
    return 1
}

# same A B: two texts are equal.
same() {
    [ "$1" = "$2" ] || {
        echo "'$1' is not '$2'"
        return 1
    }
}

scenario_names() {
    sed -n 's/^scenario_\([a-z0-9]*\)() .*/\1/p' /smmud/scenarios-*.sh | tr '\n' ' ' | sed 's/ $//'
}

# run_tests NAME[:ARGUMENT]...: 0 if all their checks went well.
run_tests() {
    local scenario name
    checks=0
    failures=0
    for scenario; do
        name=${scenario%%:*}
        if ! type "scenario_$name" >/dev/null 2>&1; then
            check "$name" sh -c "echo there is no such scenario; exit 1"
            continue
        fi
        case $scenario in *:*) "scenario_$name" "${scenario#*:}" ;; *) "scenario_$name" ;; esac
        echo "SCENARIO $scenario done at $(cut -d' ' -f1 /proc/uptime) s"
    done
    echo "CHECKS $checks, $failures failed"
    # None at all is no success.
    [ "$checks" -gt 0 ] && [ "$failures" = 0 ]
}

for scenarios in /smmud/scenarios-*.sh; do
    # shellcheck source=/dev/null
    . "$scenarios"
done
