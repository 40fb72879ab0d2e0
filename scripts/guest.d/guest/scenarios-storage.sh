# Disks: file systems, checksums, and what happens to them when drivers come and go.
# shellcheck shell=dash disable=SC3043

# disk_of KIND: the block device of a kind, by where it is attached.
disk_of() {
    local block path
    for block in /sys/block/*; do
        path=$(readlink -f "$block")
        case $1:$path in
        pci:*/pci*/virtio*/block/*) ;;
        mmio:*/platform/*virtio*/virtio*/block/*) ;;
        nvme:*/nvme/*) ;;
        *) continue ;;
        esac
        case $1:$path in mmio:*/pci*) continue ;; esac
        echo "/dev/$(basename "$block")"
        return 0
    done
    echo "there is no disk of kind $1"
    return 1
}

# The device in sysfs that has the IOMMU in front of it: a PCI function or a platform device.
parent_of_disk() {
    local path
    path=$(readlink -f "/sys/block/$(basename "$1")")
    while [ "$path" != /sys/devices ] && [ ! -e "$path/iommu_group" ]; do path=$(dirname "$path"); done
    echo "$path"
}

has_iommu_group() {
    local parent
    parent=$(parent_of_disk "$1")
    [ -e "$parent/iommu_group" ] || {
        echo "$(basename "$1") has no IOMMU in front of it"
        return 1
    }
    echo "$(basename "$parent") $(cat "$parent/iommu_group/type")"
}

# write_files FOLDER SUMS: some files, and their checksums into SUMS.
write_files() {
    local folder number
    folder=$1
    mkdir "$folder/small" &&
        cp /bin/busybox "$folder/program" &&
        dd if=/dev/urandom of="$folder/random" bs=64k count=64 2>/dev/null || return 1
    for number in $(seq 50); do echo "file $number" >"$folder/small/$number" || return 1; done
    (cd "$folder" && find . -type f -exec sha256sum {} +) >"$2"
    sync
    echo "$(wc -l <"$2") files, $(du -sm "$folder" | cut -f1) MiB"
}

compare_files() {
    echo 3 >/proc/sys/vm/drop_caches
    (cd "$1" && sha256sum -c "$2") >"$2.compared" || {
        grep -v ': OK$' "$2.compared"
        return 1
    }
    same "$(grep -c ': OK$' "$2.compared")" "$(wc -l <"$2")"
}

one_disk() {
    local kind disk
    kind=$1
    check "storage:$kind disk" disk_of "$kind" || return
    disk=$(disk_of "$kind")
    check "storage:$kind iommu group" has_iommu_group "$disk"
    check "storage:$kind mkfs" /sbin/mke2fs -q -F -t ext4 "$disk" || return
    check "storage:$kind mount" mount -t ext4 "$disk" /mnt || return
    check "storage:$kind write" write_files /mnt /tmp/sums
    check "storage:$kind unmount" umount /mnt
    check "storage:$kind mount again" mount -t ext4 "$disk" /mnt || return
    check "storage:$kind compare" compare_files /mnt /tmp/sums
    check "storage:$kind unmount again" umount /mnt
    check "storage:$kind fsck" /sbin/e2fsck -f -n "$disk"
}

# storage[:KIND]: pci, nvme, mmio. All three without a kind.
scenario_storage() {
    local kind
    for kind in ${1:-pci nvme mmio}; do one_disk "$kind"; done
}

# sum_of DISK: of its first 4 MiB, read past the page cache.
sum_of() {
    echo 3 >/proc/sys/vm/drop_caches
    dd if="$1" bs=64k count=64 2>/dev/null | sha256sum | cut -d' ' -f1
}

disk_is_there() { disk_of "$1" >/dev/null; }

# Takes a disk's device from its driver and gives it back.
rebind_once() {
    local kind parent driver
    kind=$1
    parent=$(parent_of_disk "$(disk_of "$kind")")
    driver=$(readlink -f "$parent/driver")
    basename "$parent" >"$driver/unbind" || return 1
    if disk_is_there "$kind"; then
        echo "the disk is still there after unbind"
        return 1
    fi
    basename "$parent" >"$driver/bind" || return 1
    until_true 10 disk_is_there "$kind" || {
        echo "no disk after bind"
        return 1
    }
}

rebind_disk() {
    local kind round
    kind=$1
    check "rebind:$kind disk" disk_of "$kind" || return
    dd if=/dev/urandom of="$(disk_of "$kind")" bs=64k count=64 2>/dev/null
    sync
    before=$(sum_of "$(disk_of "$kind")")
    for round in 1 2 3; do
        check "rebind:$kind round $round" rebind_once "$kind" || return
        check "rebind:$kind data $round" same "$(sum_of "$(disk_of "$kind")")" "$before"
    done
}

# rebind[:KIND]: driver unbind and bind, three times, with the data unchanged.
scenario_rebind() {
    local kind
    for kind in ${1:-pci nvme mmio}; do rebind_disk "$kind"; done
}

# Three rounds of files on one disk, beside others that do the same.
churn() {
    local kind round folder
    kind=$1
    folder=/tmp/mnt-$kind
    mkdir -p "$folder"
    /sbin/mke2fs -q -F -t ext4 "$(disk_of "$kind")" || return 1
    for round in 1 2 3; do
        mount -t ext4 "$(disk_of "$kind")" "$folder" || return 1
        rm -rf "${folder:?}"/*
        write_files "$folder" "/tmp/sums-$kind" || return 1
        umount "$folder" || return 1
        mount -t ext4 "$(disk_of "$kind")" "$folder" || return 1
        compare_files "$folder" "/tmp/sums-$kind" || return 1
        umount "$folder" || return 1
    done
    /sbin/e2fsck -f -n "$(disk_of "$kind")"
}

# stress: all disks that there are, at once.
scenario_stress() {
    local kind kinds=
    for kind in pci nvme mmio; do
        disk_is_there "$kind" || continue
        kinds="$kinds $kind"
        (
            churn "$kind" >"/tmp/churn-$kind" 2>&1
            echo $? >"/tmp/churn-$kind.status"
        ) &
    done
    wait
    check "stress disks" test -n "$kinds"
    for kind in $kinds; do
        check "stress:$kind" sh -c "cat /tmp/churn-$kind; exit \$(cat /tmp/churn-$kind.status)"
    done
}
