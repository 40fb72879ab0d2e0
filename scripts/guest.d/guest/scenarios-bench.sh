# How fast disks are. scripts/bench-guest asks, over the console.
# shellcheck shell=dash disable=SC3043

# A disk that is not behind an SMMU would be measured for something else.
is_translated() {
    case $(cat "$(parent_of_disk "$1")/iommu_group/type") in
    DMA | DMA-FQ) cat "$(parent_of_disk "$1")/iommu_group/type" ;;
    *) return 1 ;;
    esac
}

# bench: reads lines "KIND PATTERN DIRECTION BLOCK-BYTES DEPTH MILLISECONDS" from the console until there is one that
# says "end", and measures each; the check's line says what disk-bench says.
scenario_bench() {
    local kind pattern direction block depth milliseconds
    stty -echo
    for kind in pci nvme; do
        check "bench:$kind disk" disk_of "$kind" || return
        check "bench:$kind translated" is_translated "$(disk_of "$kind")" || return
    done
    echo "BENCH ready"
    while read -r kind pattern direction block depth milliseconds && [ "$kind" != end ]; do
        check bench disk-bench "$(disk_of "$kind")" "$pattern" "$direction" "$block" "$depth" "$milliseconds"
    done
}
