# What the kernel found: SMMUs, groups, interrupts, random numbers, the network.
# shellcheck shell=dash disable=SC3043

# How many nodes of the device tree are compatible with a name.
nodes_compatible_with() {
    find /sys/firmware/devicetree/base/ -name compatible -exec cat {} + | tr '\0' '\n' | grep -cx "$1"
}

# As many IOMMUs as the tree has.
every_smmu_is_there() {
    same "$(find /sys/class/iommu/ -name 'smmu3.*' | wc -l)" "$(nodes_compatible_with arm,smmu-v3)"
}

# The same for performance monitors.
every_pmcg_is_there() {
    same "$(find /sys/bus/event_source/devices/ -name 'smmuv3_pmcg_*' | wc -l)" \
        "$(nodes_compatible_with arm,smmu-v3-pmcg)"
}

smmu_lines() {
    dmesg | grep 'arm-smmu-v3 .*ias ' | sed 's/^[^a]*//' | tr '\n' ';'
}

no_smmu_complaint() {
    dmesg | grep -E 'arm-smmu-v3|arm-smmu-v3-pmcg' |
        grep -E 'event 0x|failed|timeout|timed out|CMDQ error|GERROR|unexpected|broken|abort' && return 1
    return 0
}

# boot: the drivers took the SMMUs, without a complaint.
scenario_boot() {
    check "boot smmus" every_smmu_is_there
    check "boot features" smmu_lines
    check "boot pmcgs" every_pmcg_is_there
    check "boot no complaint" no_smmu_complaint
    check "boot msi frame" sh -c "dmesg | grep -o 'GICv2m: .*'"
}

# The type that groups have by what the command line says.
expected_group_type() {
    case " $(cat /proc/cmdline) " in
    *" iommu.passthrough=1 "*) echo identity ;;
    *" iommu.strict=0 "*) echo DMA-FQ ;;
    *) echo DMA ;;
    esac
}

every_group_has_type() {
    local group count=0 wrong=0
    for group in /sys/kernel/iommu_groups/*; do
        [ -d "$group" ] || continue
        count=$((count + 1))
        [ "$(cat "$group/type")" = "$1" ] || {
            echo "group $(basename "$group") ($(ls "$group/devices")) is of type $(cat "$group/type"), not $1"
            wrong=1
        }
    done
    [ "$wrong" = 0 ] || return 1
    echo "$count groups of type $1"
    [ "$count" -gt 0 ]
}

every_function_has_a_group() {
    local device
    for device in /sys/bus/pci/devices/* /sys/bus/platform/devices/*.virtio; do
        [ -e "$device" ] || continue
        # Host bridges do no DMA, and QEMU's is not behind an SMMU.
        case $(cat "$device/class" 2>/dev/null) in 0x06*) continue ;; esac
        [ -e "$device/iommu_group" ] || {
            echo "$(basename "$device") is in no group"
            return 1
        }
    done
}

# groups: every device is in a group of the type that the command line asks for.
scenario_groups() {
    check "groups members" every_function_has_a_group
    check "groups type" every_group_has_type "$(expected_group_type)"
}

interrupts_counted() {
    local line
    line=$(grep -E "$1" /proc/interrupts) || {
        echo "no interrupt like $1"
        return 1
    }
    echo "$line" | awk '{ n = 0; for (i = 2; i <= NF; i++) { if ($i !~ /^[0-9]+$/) break; n += $i } sum += n }
        END { print sum " interrupts"; exit sum == 0 }'
}

# interrupts[:PATTERN]: the interrupts of each device came. After another scenario that uses them.
scenario_interrupts() {
    local pattern
    for pattern in ${1:-virtio nvme}; do check "interrupts $pattern" interrupts_counted "$pattern"; done
}

read_random() {
    dd if=/dev/hwrng bs=64 count=16 2>/dev/null | sha256sum
}

random_numbers_differ() {
    local first second
    first=$(read_random)
    second=$(read_random)
    if [ "$first" = "$second" ]; then
        echo "two reads of 1 KiB are the same"
        return 1
    fi
}

rng_is_virtio() {
    local current
    current=$(cat /sys/class/misc/hw_random/rng_current)
    case $current in virtio_rng*) echo "$current" ;; *) echo "the random number generator is $current"; return 1 ;; esac
}

read_a_kibibyte() { same "$(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c)" 1024; }

# rng: virtio-rng gives random numbers.
scenario_rng() {
    check "rng driver" rng_is_virtio || return
    check "rng read" read_a_kibibyte
    check "rng differ" random_numbers_differ
}

# console: what is written to virtio-console arrives outside; run.py looks there when the guest has ended.
scenario_console() {
    check "console device" until_true 20 test -c /dev/hvc0 || return
    check "console write" sh -c 'echo "written through the SMMU" >/dev/hvc0'
}

# The network interfaces of virtio functions, without those that have gone into another namespace.
virtio_interfaces() {
    local link
    for link in /sys/class/net/*; do
        case $(readlink -f "$link") in */virtio*/net/*) basename "$link" ;; esac
    done
}

two_interfaces() { same "$(virtio_interfaces | wc -l)" 2; }

# In the other end's namespace.
there() { nsenter -t "$other" -n "$@"; }

connect_interfaces() {
    local here_link there_link
    here_link=$(virtio_interfaces | head -n 1)
    there_link=$(virtio_interfaces | tail -n 1)
    ip link set "$there_link" netns "$other" &&
        ip addr add 10.0.0.1/24 dev "$here_link" && ip link set "$here_link" up &&
        there ip addr add 10.0.0.2/24 dev "$there_link" && there ip link set "$there_link" up
}

# all_came SIZE: twenty pings of that size, each answered.
all_came() {
    ping -c 20 -i 0.05 -W 5 -s "$1" 10.0.0.2 >/tmp/ping || {
        cat /tmp/ping
        return 1
    }
    grep -q ' 20 packets received' /tmp/ping || {
        cat /tmp/ping
        return 1
    }
}

# 4 MiB over TCP.
transfer() {
    local status=0 server
    mkdir -p /tmp/served
    dd if=/dev/urandom of=/tmp/served/data bs=64k count=64 2>/dev/null
    there httpd -f -p 80 -h /tmp/served &
    server=$!
    until_true 5 there sh -c 'netstat -lnt | grep -q :80' || return 1
    wget -q -T 10 -O /tmp/received http://10.0.0.2/data || status=1
    same "$(sha256sum </tmp/received)" "$(sha256sum </tmp/served/data)" || status=1
    kill "$server"
    return $status
}

# net: two virtio-net functions, each in a network namespace of its own, reach each other.
scenario_net() {
    check "net interfaces" two_interfaces || return
    unshare -n sh -c 'ip link set lo up; exec sleep 1000000' &
    other=$!
    until_true 5 sh -c "[ \$(readlink /proc/$other/ns/net) != \$(readlink /proc/self/ns/net) ]"
    check "net connect" connect_interfaces &&
        check "net ping" all_came 56 &&
        check "net ping 1400" all_came 1400 &&
        check "net ping in fragments" all_came 8000 &&
        check "net transfer" transfer
    kill "$other"
}
