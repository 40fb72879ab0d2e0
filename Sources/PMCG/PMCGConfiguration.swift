// What one counter group is built as.

import BitFields
import SMMUv3Spec

/// The choices that the architecture leaves to a counter group: SMMU_PMCG_CFGR and what stands beside it.
package struct PMCGConfiguration: Equatable, Sendable {
    /// Bits of a counter: SMMU_PMCG_CFGR.SIZE + 1.
    package enum CounterSize: UInt8, CaseIterable, Sendable {
        case bits32 = 32
        case bits36 = 36
        case bits40 = 40
        case bits44 = 44
        case bits48 = 48
        case bits64 = 64
    }

    /// How many counters there are, 1...64: SMMU_PMCG_CFGR.NCTR + 1.
    package var counterCount = 8
    package var counterSize = CounterSize.bits64
    /// SMMU_PMCG_CFGR.RELOC_CTRS: counters, shadows, overflow status and capture stand in page 1.
    package var relocatesCounters = false
    /// SMMU_PMCG_CFGR.CAPTURE: SMMU_PMCG_SVRn, SMMU_PMCG_CAPR and OVFCAP are there.
    package var hasCapture = true
    /// SMMU_PMCG_CFGR.SID_FILTER_TYPE: the filter of counter 0 is that of all.
    package var hasGlobalFilter = false
    /// Bits of SMMU_PMCG_SMRn.STREAMID, 0...32: the StreamIDs of the SMMU beside it.
    package var streamIDBits: UInt8 = 32
    /// Bits of a physical address, 0...56: SMMU_PMCG_IRQ_CFG0.ADDR has no more.
    package var physicalAddressBits = 48

    package init() {}

    /// The largest value of a counter.
    var counterMask: UInt64 { .max &>> UInt64(64 - counterSize.rawValue) }

    /// Bytes from one counter to the next (IHI 0070, 10.5.1).
    var counterStride: UInt64 { counterSize == .bits32 ? 4 : 8 }

    /// A bit for each counter.
    var counterSet: UInt64 { .max &>> UInt64(64 - min(max(counterCount, 1), 64)) }

    /// SMMU_PMCG_SMRn.STREAMID with every bit that is there set.
    var streamIDMask: UInt32 {
        streamIDBits >= 32 ? .max : (1 &<< UInt32(streamIDBits)) &- 1
    }

    /// SMMU_PMCG_IRQ_CFG0.ADDR with every bit that is there set.
    var messageAddressMask: UInt64 {
        UInt64.mask(2...55) & ((1 &<< UInt64(min(max(physicalAddressBits, 0), 56))) &- 1)
    }

    /// SMMU_PMCG_CFGR.
    func cfgr(hasMSI: Bool) -> PMCGCfgr {
        var cfgr = PMCGCfgr(rawValue: 0)
        cfgr.nctr = UInt8(truncatingIfNeeded: counterSet.nonzeroBitCount - 1)
        cfgr.size = counterSize.rawValue - 1
        cfgr.relocCtrs = relocatesCounters
        cfgr.msi = hasMSI
        cfgr.capture = hasCapture
        cfgr.sidFilterType = hasGlobalFilter
        return cfgr
    }
}
