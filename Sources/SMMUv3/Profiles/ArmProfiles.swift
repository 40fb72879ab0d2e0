// Arm's own SMMUs, as far as the model goes.

import SMMUv3Spec

// What the hardware has and this model does not is left out of the registers, so that no driver is told what is not
// there: broadcast TLB maintenance (BTM), SEV, page-based hardware attributes (PBHA), MPAM. docs/smmu-profiles.md lists
// the differences register by register.

extension Identification {
    /// Arm's CoreLink MMU-600, r2p2: SMMUv3.1, both stages, no HTTU, 48-bit addresses, 24-bit StreamIDs.
    ///
    /// After the reset values that Intel publishes of the MMU-600 in the Agilex 5: IDR0 0x080F7E3F, IDR1 0x0E739D18,
    /// IDR3 0x0000003C, IDR5 0x00400075, IIDR 0x4832243B, AIDR 0x00000001. Of the 64 stalls and queues of 2^19
    /// entries nothing is left out.
    ///
    /// - Parameters:
    ///   - streamIDBits: As for ``stage1(streamIDBits:isCoherent:)``; 24 at least.
    ///   - isCoherent: As for ``stage1(streamIDBits:isCoherent:)``; an input of the hardware too.
    /// - Returns: The registers.
    package static func mmu600(streamIDBits: UInt8 = 24, isCoherent: Bool = true) -> Identification {
        var result = full(streamIDBits: max(24, streamIDBits), isCoherent: isCoherent)
        result.idr0.httu = 0
        result.idr0.atos = false
        result.idr0.ns1ATS = result.idr0.ats
        result.idr1.cmdqs = 19
        result.idr1.eventqs = 19
        result.idr1.priqs = result.idr0.pri ? 19 : 0
        result.idr3 = IDR3()
        result.idr3.had = true
        result.idr3.xnx = true
        result.idr3.pps = result.idr0.pri
        result.idr5.stallMax = 64
        result.iidr = IIDR(rawValue: 0x4832_243B)
        result.aidr = AIDR(rawValue: 0x01)
        return result
    }

    /// Arm's CoreLink MMU-700, r1p1: SMMUv3.2, both stages, HTTU, 48-bit addresses, 32-bit StreamIDs.
    ///
    /// No table of its registers is public where we looked. ProductID 0x487 and the revision are those by which Linux
    /// keys its errata, the 32 bits of StreamID are what its maintainers say it always advertises, HAD, XNX, FWB, RIL
    /// and BBML are what SMMUv3.2 requires; the rest is as the MMU-600 has it, with HTTU.
    ///
    /// - Parameters:
    ///   - streamIDBits: Not looked at: there are 32.
    ///   - isCoherent: As for ``stage1(streamIDBits:isCoherent:)``; an input of the hardware too.
    /// - Returns: The registers.
    package static func mmu700(streamIDBits: UInt8 = 32, isCoherent: Bool = true) -> Identification {
        var result = mmu600(streamIDBits: 32, isCoherent: isCoherent)
        result.idr0.httu = 2
        result.idr3.fwb = true
        result.idr3.ril = true
        result.idr3.bbml = 1
        result.iidr = IIDR(rawValue: 0x4871_143B)
        result.aidr = AIDR(rawValue: 0x02)
        return result
    }
}
