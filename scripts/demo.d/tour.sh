# shellcheck shell=bash
# The tour: the life of a DMA buffer from probe to fault, with what is seen of it. scripts/demo --tour runs it; the
# chapters of docs/tour.md have the same numbers.
# shellcheck disable=SC2154  # $dma, $nic, $work: scripts/demo sets them.

# A remark between commands.
say() { printf '%s\n' "$*" | fold -s -w 100; }
# The number that the driver's next command will have.
next_command() { smmuctl trace --smmu 0 --limit 1 --brief | sed -n 's/^#\([0-9]*\).*/\1/p' | awk '{print $1 + 1}'; }

tell "1. Probe: the driver finds an SMMUv3 in the device tree, and reads what it can do"
run dtc -q -I dts -O dtb -o "$work/soc.dtb" dts/soc.dts
start_daemon --smmu full
run smmuctl dmesg | head -n 12
say "What it read: the identification registers, field by field."
run smmuctl regs idr0 idr5 --smmu 0

tell "2. Structures: queues, a stream table of two levels, and CR0 at last"
run smmuctl regs strtab_base strtab_base_cfg cmdq_base eventq_base cr0 --smmu 0 --brief
say "The commands of a reset: forget every configuration, forget every translation, and wait."
run smmuctl trace --smmu 0 --limit 200 | head -n 6

tell "3. Groups and domains: who shares page tables with whom"
run smmuctl groups | head -n 8
run smmuctl domains | head -n 5

tell "4. Map: an IOVA, a page table entry, and no command at all"
first=$(next_command)
run smmuctl map "$dma" 64K --iova 0x10000
run smmuctl trace --smmu 0 --since "$first"
say "A page that was not there before needs no invalidation: the TLB keeps no faults."

tell "5. DMA: the first transaction walks, the second hits"
run smmuctl dma write "$dma" 0x10ff8 --text "written across a page boundary"
run smmuctl dma read "$dma" 0x10ff8 30
run smmuctl stats | grep -E '^/iommu@2b400000|transactions |tlb-(hits|misses)|walks' | head -n 5
say "Each structure on the way, as it stands in memory:"
run smmuctl explain "$dma" 0x10ff8

tell "6. Unmap, strict: the entry is cleared, TLBI by address, SYNC; then nobody reaches the memory"
first=$(next_command)
run smmuctl unmap "$dma" 0x10000
run smmuctl trace --smmu 0 --since "$first"

tell "7. Fault: the same DMA again. An event record, an interrupt, a line in the log"
run_to_fault smmuctl dma read "$dma" 0x10ff8 30
run smmuctl events
run smmuctl dmesg | tail -n 6

tell "8. Coherent memory, and one buffer for a PCIe function"
run smmuctl alloc "$dma" 8K
run smmuctl map "$nic" 16K --iova 0x7f0000000
run smmuctl dma write "$nic" 0x7f0000000 --text "and this by a network card"
run smmuctl dma read "$nic" 0x7f0000000 26

tell "9. Strict beside lazy: what an unmap costs, and what lazy leaves open for a while"
run smmuctl strict-lazy display@200000 --buffers 300

tell "10. Shared virtual addresses: a device works at a program's own addresses, page by page as it needs them"
run python3 examples/sva_client.py --socket "$work/dma.sock" accelerator@400000
run smmuctl sva

tell "11. Three ways around the SMMU. First: a device that the tree gives none"
run smmuctl dma write ethernet@600000 0x90000000 --text "a physical address"
run smmuctl mem read 0x90000000 18
stop_daemon
say "Second: iommu.passthrough=1. Default domains are identity, and the STE says bypass."
start_daemon --append iommu.passthrough=1
run smmuctl groups | head -n 3
run smmuctl dma write "$dma" 0x90000000 --text "not translated"
run smmuctl mem read 0x90000000 14
stop_daemon
say "Third: arm-smmu-v3.disable_bypass=0. A stream that no device has bypasses; by default it is aborted."
start_daemon --append arm-smmu-v3.disable_bypass=0
run smmuctl dma read sid:0:0x14 0x90000000 4
stop_daemon
start_daemon
run_to_fault smmuctl dma read sid:0:0x14 0x90000000 4
