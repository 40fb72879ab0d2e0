// What QEMU's SMMUv3 says of itself.

import SMMUv3Spec

extension Identification {
    /// The registers of the `arm-smmuv3` of QEMU 11.1: SMMUv3.1 with 44-bit addresses, no stalls, no SubstreamIDs, no
    /// second-level CD tables, no EL2.
    ///
    /// - Parameters:
    ///   - streamIDBits: As for ``stage1(streamIDBits:isCoherent:)``; QEMU's has 16, and fewer are not to be had.
    ///   - isCoherent: Likewise; QEMU's is.
    ///   - hasStage1: SMMU_IDR0.S1P: QEMU's `stage` is `1` or `nested`.
    ///   - hasStage2: SMMU_IDR0.S2P: QEMU's `stage` is `2` or `nested`.
    /// - Returns: The registers.
    package static func qemu(
        streamIDBits: UInt8 = 16,
        isCoherent: Bool = true,
        hasStage1: Bool = true,
        hasStage2: Bool = true
    ) -> Identification {
        var result = stage1(streamIDBits: max(streamIDBits, 16), isCoherent: isCoherent)
        let sidsize = result.idr1.sidsize
        result.idr0.s1P = hasStage1
        result.idr0.s2P = hasStage2
        result.idr0.cd2L = false
        result.idr0.vmid16 = true
        result.idr0.termModel = true
        result.idr1 = IDR1()
        result.idr1.sidsize = sidsize
        result.idr1.eventqs = 19
        result.idr1.cmdqs = 19
        result.idr3.xnx = hasStage2
        result.idr5.oas = 4  // 44 bits.
        result.aidr = AIDR(rawValue: 0x01)
        return result
    }
}
