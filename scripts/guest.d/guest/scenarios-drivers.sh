# What drivers can do with an SMMU beyond DMA mappings: VFIO and its stage 2, faults, performance monitors.
# shellcheck shell=dash disable=SC3043

nvme_function() {
    local path
    path=$(readlink -f /sys/class/nvme/nvme0/device) && [ -e "$path/iommu_group" ] && basename "$path"
}

# give FUNCTION DRIVER: takes a PCI function from its driver and gives it to another one.
give() {
    local device=/sys/bus/pci/devices/$1
    [ ! -e "$device/driver" ] || echo "$1" >"$device/driver/unbind"
    echo "$2" >"$device/driver_override"
    echo "$1" >/sys/bus/pci/drivers_probe
    until_true 10 test -e "$device/driver" && same "$(driver_of "$device")" "$2"
}

load_vfio() {
    load vfio-pci
    # Linux takes no MSI frame for one that keeps apart who sends what. In this guest nobody else is harmed.
    load vfio_iommu_type1 && echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
}

events_in_log() { dmesg | grep -c 'event 0x'; }

# More event records than there were: the SMMU told the kernel of the fault. The log is rate-limited, so at least one.
fault_was_reported() {
    until_true 5 sh -c "[ \$(dmesg | grep -c 'event 0x') -gt $1 ]" || {
        echo "there is no event record in the kernel's log"
        return 1
    }
    dmesg | grep 'event 0x' | tail -n 1 | sed 's/^[^a]*//'
}

# The words of the last event record, which the kernel logs below its line, most significant digits first.
last_event_words() { dmesg | grep -A 4 'event 0x' | tail -n 4 | sed -n 's/.*\t\(0x[0-9a-f]*\)$/\1/p' | tr '\n' ' '; }

# The record names who it was and where: FUNCTION ADDRESS of an F_TRANSLATION.
fault_names() {
    local words stream
    words=$(last_event_words)
    stream=$(printf '0x%08x00000010' "$(stream_of "$1")")
    # shellcheck disable=SC2086
    set -- $words "$2"
    if [ "$1" != "$stream" ] || [ "$3" != "$5" ]; then
        echo "the record is $words, not of $stream at $5"
        return 1
    fi
    echo "$words"
}

# What arm-smmu-v3 calls ARM_SMMU_FEAT_TRANS_S2 is bit 10 of the features that it logs. Without it, it quietly takes
# stage 1 for everything.
every_smmu_has_stage_2() {
    local features
    for features in $(dmesg | sed -n 's/.*arm-smmu-v3 .*(features \(0x[0-9a-f]*\)).*/\1/p'); do
        [ $((features >> 10 & 1)) = 1 ] || {
            echo "an SMMU has features $features"
            return 1
        }
    done
    [ -n "$features" ]
}

# vfio[:stage2]: a driver in user space for the NVMe controller. Its mappings are of the stage that the kernel likes
# best, which is 1 if there is one; with stage2 of stage 2, for which VFIO has to be asked in a way that only kernels
# up to 6.6 know.
scenario_vfio() {
    local function group nested= events
    [ "${1:-}" != stage2 ] || nested=--nested
    check "vfio function" nvme_function || return
    function=$(nvme_function)
    group=$(basename "$(readlink "/sys/bus/pci/devices/$function/iommu_group")")
    [ -z "$nested" ] || check "vfio stage 2 is there" every_smmu_has_stage_2 || return
    check "vfio modules" load_vfio || return
    check "vfio bind" give "$function" vfio-pci || return
    events=$(events_in_log)
    check "vfio driver" nvme-vfio "$function" "$group" $nested && cat /tmp/check
    # The driver provoked it: a write to a page that is not mapped any more.
    check "vfio fault reported" fault_was_reported "$events"
    # The address is the program's: nvme-vfio.c.
    check "vfio fault's record" fault_names "$function" 0x0000007654321000
    check "vfio give back" give "$function" nvme
    check "vfio disk is back" until_true 20 disk_is_there nvme
}

# The PMUs of the SMMUs, and what they are named by: the address of their registers.
pmcgs() { find /sys/bus/event_source/devices/ -name 'smmuv3_pmcg_*' | sort; }

read_disk() { dd if="$1" of=/dev/null bs=64k count=64 2>/dev/null; }

count_while_reading() {
    echo 3 >/proc/sys/vm/drop_caches
    pmu-count "$1" "$2" dd "if=$3" of=/dev/null bs=64k count=64
}

# The count of an event in the output of pmu-count.
count_of() { sed -n "s/^$1 //p" /tmp/counts; }

positive() {
    [ "${2:-0}" -gt 0 ] || {
        echo "$1 is '$2': $(tr '\n' ' ' </tmp/counts)"
        return 1
    }
    echo "$1 $2"
}

# The StreamID of a PCI function in a machine whose StreamIDs are RequesterIDs: 0000:00:01.0 is 8.
stream_of() {
    echo "$1" | awk -F'[:.]' '{ printf "%d\n", ("0x" $2) * 256 + ("0x" $3) * 8 + $4 }'
}

pmu_of_disk() {
    local kind pmu disk stream
    kind=$1
    pmu=$2
    check "pmu:$kind disk" disk_of "$kind" || return
    disk=$(disk_of "$kind")
    count_while_reading "$pmu" transaction,tlb_miss,trans_table_walk_access "$disk" >/tmp/counts 2>&1
    check "pmu:$kind transactions" positive transaction "$(count_of transaction)"
    check "pmu:$kind misses" positive tlb_miss "$(count_of tlb_miss)"
    case $kind in mmio) return ;; esac
    # Of this function's StreamID there are some; of one that nobody has there are none.
    stream=$(stream_of "$(basename "$(parent_of_disk "$disk")")")
    count_while_reading "$pmu" "transaction=$((stream | 1 << 33)),transaction=$((0x7f00 | 1 << 33))" \
        "$disk" >/tmp/counts 2>&1
    check "pmu:$kind one stream" positive transaction "$(count_of transaction | head -n 1)"
    check "pmu:$kind no other stream" same "$(count_of transaction | tail -n 1)" 0
}

# pmu: the counters of the SMMU of PCIe count what a disk behind it does, by StreamID as well.
scenario_pmu() {
    check "pmu devices" sh -c 'ls -d /sys/bus/event_source/devices/smmuv3_pmcg_*' || return
    pmu_of_disk "${1:-pci}" "$(basename "$(pmcgs | head -n 1)")"
}
