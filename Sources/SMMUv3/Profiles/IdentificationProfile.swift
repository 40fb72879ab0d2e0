// The SMMUs that can be had by name.

import SMMUv3Spec

/// What an SMMU says it can do, by name.
package enum IdentificationProfile: String, Sendable, CaseIterable {
    /// SMMUv3.2 with stage 1 alone.
    case stage1
    /// SMMUv3.3 with stage 2 alone.
    case stage2
    /// SMMUv3.3 with all that the model implements: both stages, nested, EL2, HTTU.
    case full
    /// The same with 52-bit addresses.
    case full52
    /// Arm's CoreLink MMU-600, as far as the model goes.
    case mmu600 = "mmu-600"
    /// Arm's CoreLink MMU-700, as far as the model goes.
    case mmu700 = "mmu-700"
    /// QEMU's SMMUv3 with `stage=1`, which is its default.
    case qemu
    /// The same with `stage=2`.
    case qemuStage2 = "qemu-stage2"
    /// The same with `stage=nested`.
    case qemuNested = "qemu-nested"

    /// The identification registers.
    ///
    /// - Parameters:
    ///   - streamIDBits: How many bits the board's StreamIDs need. Where a product has more, it keeps them.
    ///   - isCoherent: SMMU_IDR0.COHACC: the device tree's `dma-coherent`.
    ///   - registerByteCount: How large the register window is. Optional pages that do not fit are not there.
    /// - Returns: The registers.
    package func identification(
        streamIDBits: UInt8,
        isCoherent: Bool,
        registerByteCount: UInt64 = Identification.requiredRegisterByteCount
    ) -> Identification {
        var result: Identification
        switch self {
        case .stage1: result = .stage1(streamIDBits: streamIDBits, isCoherent: isCoherent)
        case .stage2: result = .stage2(streamIDBits: streamIDBits, isCoherent: isCoherent)
        case .full: result = .full(streamIDBits: streamIDBits, isCoherent: isCoherent)
        case .full52:
            result = .full(streamIDBits: streamIDBits, isCoherent: isCoherent, outputAddressBits: 52)
        case .mmu600: result = .mmu600(streamIDBits: streamIDBits, isCoherent: isCoherent)
        case .mmu700: result = .mmu700(streamIDBits: streamIDBits, isCoherent: isCoherent)
        case .qemu, .qemuStage2, .qemuNested:
            result = .qemu(
                streamIDBits: streamIDBits,
                isCoherent: isCoherent,
                hasStage1: self != .qemuStage2,
                hasStage2: self != .qemu
            )
        }
        if self == .full || self == .full52 { result.addOptionalPages(within: registerByteCount) }
        return result
    }
}

extension Identification {
    /// Page 0 and page 1: what every register window has.
    package static let requiredRegisterByteCount: UInt64 = 0x2_0000

    /// SMMUv3.3 with stage 2 alone: ``full(streamIDBits:isCoherent:outputAddressBits:)`` without what stage 1 brings.
    package static func stage2(streamIDBits: UInt8 = 16, isCoherent: Bool = true) -> Identification {
        var result = full(streamIDBits: streamIDBits, isCoherent: isCoherent)
        result.idr0.s1P = false
        result.idr0.cd2L = false
        result.idr0.hyp = false
        result.idr1.ssidsize = 0
        result.idr3.had = false
        result.idr3.e0pd = false
        return result
    }
}
