// Memory types and shareability: where they come from and how stages combine them (IHI 0070, 13.1).

import SMMUv3Spec

/// What a transaction says of the memory that it goes to.
package struct MemoryAttributes: Hashable, Sendable {
    /// The memory type and allocation hints, encoded as a byte of MAIR.
    package var mair: UInt8
    /// SH[1:0]: 0 Non-shareable, 2 Outer Shareable, 3 Inner Shareable.
    package var shareability: UInt8

    /// What the bus of this machine gives with every transaction: Normal iWB-oWB, read- and write-allocate,
    /// Non-shareable.
    static let bus = MemoryAttributes(mair: 0xFF, shareability: 0)

    /// A memory type without hints.
    enum MemoryType: Equatable {
        /// 0 nGnRnE, 1 nGnRE, 2 nGRE, 3 GRE.
        case device(UInt8)
        /// Outer and inner cacheability, the weaker the larger: 0 Non-cacheable, 1 Write-Through, 2 Write-Back.
        case normal(outer: UInt8, inner: UInt8)
    }

    /// One level's cacheability with hints: a nibble of MAIR.
    private struct Cacheability {
        /// 0 Non-cacheable, 1 Write-Through, 2 Write-Back.
        var policy: UInt8
        var allocatesReads: Bool
        var allocatesWrites: Bool
        var isTransient: Bool

        static let writeBack = Cacheability(
            policy: 2,
            allocatesReads: true,
            allocatesWrites: true,
            isTransient: false
        )

        init(policy: UInt8, allocatesReads: Bool, allocatesWrites: Bool, isTransient: Bool) {
            self.policy = policy
            self.allocatesReads = allocatesReads
            self.allocatesWrites = allocatesWrites
            self.isTransient = isTransient
        }

        init(nibble: UInt8) {
            // 0b0100 is Non-cacheable; 0b00RW and 0b01RW are transient; bit 2 tells Write-Back.
            policy = nibble == 0b0100 ? 0 : nibble & 0b0100 != 0 ? 2 : 1
            allocatesReads = nibble & 0b0010 != 0
            allocatesWrites = nibble & 0b0001 != 0
            isTransient = nibble & 0b1000 == 0
        }

        var nibble: UInt8 {
            guard policy != 0 else { return 0b0100 }
            let hints: UInt8 = (allocatesReads ? 0b10 : 0) | (allocatesWrites ? 0b01 : 0)
            // What allocates nothing is not transient: that encoding means something else.
            let keeps: UInt8 = isTransient && hints != 0 ? 0 : 0b1000
            return keeps | (policy == 2 ? 0b0100 : 0) | hints
        }

        func combined(with other: Cacheability) -> Cacheability {
            Cacheability(
                policy: policy,
                allocatesReads: allocatesReads && other.allocatesReads,
                allocatesWrites: allocatesWrites && other.allocatesWrites,
                isTransient: isTransient || other.isTransient
            )
        }

        /// With another policy; what becomes cacheable allocates.
        func with(policy new: UInt8) -> Cacheability {
            guard new != policy else { return self }
            guard policy != 0 else {
                var result = Cacheability.writeBack
                result.policy = new
                return result
            }
            var result = self
            result.policy = new
            return result
        }
    }
}

// MARK: Decoding

extension MemoryAttributes {
    /// A byte of MAIR, with the Reserved encodings replaced by what they behave as (IHI 0070, 5.4, MAIR).
    static func effectiveMAIR(_ byte: UInt8) -> UInt8 {
        if byte & 0xF0 == 0 { return byte & 0b1100 }
        return byte & 0x0F == 0 ? byte | 0b0011 : byte
    }

    /// MemAttr[3:0] as stage 2, STE.MemAttr and GBPA.MemAttr have it; Reserved values are Device-nGnRnE.
    static func type(memAttr: UInt8) -> MemoryType {
        switch memAttr & 0b1111 {
        case 0b0000...0b0011: .device(memAttr & 0b11)
        case 0b0100, 0b1000, 0b1100: .device(0)
        default: .normal(outer: (memAttr >> 2) & 0b11 &- 1, inner: memAttr & 0b11 &- 1)
        }
    }

    var type: MemoryType {
        guard mair & 0xF0 != 0 else { return .device((mair >> 2) & 0b11) }
        return .normal(
            outer: Cacheability(nibble: mair >> 4).policy,
            inner: Cacheability(nibble: mair & 0xF).policy
        )
    }

    /// SH[1:0] with the Reserved value replaced by what it behaves as.
    static func effectiveShareability(_ sh: UInt8) -> UInt8 { sh & 0b11 == 0b01 ? 0 : sh & 0b11 }
}

// MARK: Combining

extension MemoryAttributes {
    /// The stronger shareability: Outer before Inner before Non-shareable.
    static func combineShareability(_ first: UInt8, _ second: UInt8) -> UInt8 {
        if first == 0b10 || second == 0b10 { return 0b10 }
        return max(first, second)
    }

    static func combine(_ first: MemoryType, _ second: MemoryType) -> MemoryType {
        switch (first, second) {
        case (.device(let one), .device(let other)): .device(min(one, other))
        case (.device, _): first
        case (_, .device): second
        case (.normal(let outer, let inner), .normal(let otherOuter, let otherInner)):
            .normal(outer: min(outer, otherOuter), inner: min(inner, otherInner))
        }
    }

    /// The same with another type; hints stay where they still mean something.
    func with(_ type: MemoryType) -> MemoryAttributes {
        var result = self
        switch type {
        case .device(let kind):
            result.mair = kind << 2
        case .normal(let outer, let inner):
            let isDevice = mair & 0xF0 == 0
            let nonCacheable: UInt8 = 0b0100
            let outerNow = Cacheability(nibble: isDevice ? nonCacheable : mair >> 4)
            let innerNow = Cacheability(nibble: isDevice ? nonCacheable : mair & 0xF)
            result.mair = outerNow.with(policy: outer).nibble << 4 | innerNow.with(policy: inner).nibble
        }
        return result
    }

    /// Stage 2's attributes on top of these, which are stage 1's or the incoming ones.
    ///
    /// - Parameters:
    ///   - memAttr: MemAttr[3:0] of the stage-2 leaf.
    ///   - sh: SH of the stage-2 leaf.
    ///   - forcesWriteBack: STE.S2FWB.
    /// - Returns: The combination.
    func combined(memAttr: UInt8, sh: UInt8, forcesWriteBack: Bool) -> MemoryAttributes {
        // Write-Back weakens nothing: what most stage-2 tables say.
        if memAttr & 0b1111 == 0b1111, !forcesWriteBack {
            return MemoryAttributes(
                mair: mair,
                shareability: Self.combineShareability(shareability, Self.effectiveShareability(sh))
            )
        }
        let result: MemoryType
        if forcesWriteBack {
            switch memAttr & 0b111 {
            case 0b101: result = Self.combine(type, .normal(outer: 0, inner: 0))
            case 0b110: result = .normal(outer: 2, inner: 2)
            case 0b111: result = type
            case 0b100: result = .device(0)  // Reserved: the strongest.
            default: result = Self.combine(type, .device(memAttr & 0b11))
            }
        } else {
            result = Self.combine(type, Self.type(memAttr: memAttr))
        }
        var combined = with(result)
        combined.shareability = Self.combineShareability(shareability, Self.effectiveShareability(sh))
        return combined
    }

    /// A stage-1 translation's attributes with the allocation hints of `incoming`, where those are of cacheable
    /// memory.
    func combined(withHintsOf incoming: MemoryAttributes) -> MemoryAttributes {
        guard incoming.mair & 0xF0 != 0, incoming.mair != 0x44, mair & 0xF0 != 0 else { return self }
        var result = self
        let outer = Cacheability(nibble: mair >> 4)
        let inner = Cacheability(nibble: mair & 0xF)
        let incomingOuter = Cacheability(nibble: incoming.mair >> 4)
        let incomingInner = Cacheability(nibble: incoming.mair & 0xF)
        result.mair =
            outer.combined(with: incomingOuter.policy == 0 ? incomingInner : incomingOuter).nibble << 4
            | inner.combined(with: incomingInner.policy == 0 ? incomingOuter : incomingInner).nibble
        return result
    }

    /// As they go to the bus: Device and Normal iNC-oNC memory is Outer Shareable.
    var outgoing: MemoryAttributes {
        guard mair & 0xF0 == 0 || mair == 0x44 else { return self }
        return MemoryAttributes(mair: mair, shareability: 0b10)
    }

    /// These replaced by STE.MTCFG, MemAttr, SHCFG and ALLOCCFG, or by GBPA's.
    func overridden(memAttr: UInt8?, shCfg: UInt8, allocCfg: UInt8) -> MemoryAttributes {
        var result = self
        if let memAttr { result = result.with(Self.type(memAttr: memAttr)) }
        if shCfg & 0b11 != 0b01 { result.shareability = shCfg & 0b11 }
        // ALLOCCFG 0b1RWT: these hints, inner and outer.
        if allocCfg & 0b1000 != 0, result.mair & 0xF0 != 0 {
            func replaced(_ nibble: UInt8) -> UInt8 {
                Cacheability(
                    policy: Cacheability(nibble: nibble).policy,
                    allocatesReads: allocCfg & 0b0100 != 0,
                    allocatesWrites: allocCfg & 0b0010 != 0,
                    isTransient: allocCfg & 0b0001 != 0
                ).nibble
            }
            result.mair = replaced(result.mair >> 4) << 4 | replaced(result.mair & 0xF)
        }
        return result
    }
}
