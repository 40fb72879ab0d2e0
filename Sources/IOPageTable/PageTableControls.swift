// What a CD or an STE says of a page table.

/// The fields of a CD that follow from the page table's shape; values are as the fields encode them.
package struct StageOneControls: Hashable, Sendable {
    /// CD.T0SZ [5:0]: 64 less the input size.
    package let t0sz: UInt8
    /// CD.TG0 [7:6]: 0 is 4 KiB, 1 is 64 KiB, 2 is 16 KiB.
    package let tg0: UInt8
    /// CD.IR0 [9:8]: inner cacheability of walks, 0 non-cacheable, 1 write-back.
    package let ir0: UInt8
    /// CD.OR0 [11:10]: outer cacheability of walks.
    package let or0: UInt8
    /// CD.SH0 [13:12]: shareability of walks, 2 outer, 3 inner.
    package let sh0: UInt8
    /// CD.IPS [34:32]: 0...6 for 32, 36, 40, 42, 44, 48, 52 bits.
    package let ips: UInt8
    /// CD.MAIR0 and MAIR1: the memory types that the leaves' AttrIndx selects.
    package let mair: UInt64
}

/// The fields of an STE that follow from the page table's shape; values are as the fields encode them.
package struct StageTwoControls: Hashable, Sendable {
    /// STE.S2T0SZ [165:160]: 64 less the IPA size.
    package let s2T0SZ: UInt8
    /// STE.S2SL0 [167:166]: the start level, encoded by granule.
    package let s2SL0: UInt8
    /// STE.S2IR0 [169:168]: inner cacheability of walks, 0 non-cacheable, 1 write-back.
    package let s2IR0: UInt8
    /// STE.S2OR0 [171:170]: outer cacheability of walks.
    package let s2OR0: UInt8
    /// STE.S2SH0 [173:172]: shareability of walks, 2 outer, 3 inner.
    package let s2SH0: UInt8
    /// STE.S2TG [175:174]: 0 is 4 KiB, 1 is 64 KiB, 2 is 16 KiB.
    package let s2TG: UInt8
    /// STE.S2PS [178:176]: 0...6 for 32, 36, 40, 42, 44, 48, 52 bits.
    package let s2PS: UInt8
    /// STE.S2FWB [89].
    package let s2FWB: Bool

    package init(
        s2T0SZ: UInt8,
        s2SL0: UInt8,
        s2IR0: UInt8,
        s2OR0: UInt8,
        s2SH0: UInt8,
        s2TG: UInt8,
        s2PS: UInt8,
        s2FWB: Bool
    ) {
        self.s2T0SZ = s2T0SZ
        self.s2SL0 = s2SL0
        self.s2IR0 = s2IR0
        self.s2OR0 = s2OR0
        self.s2SH0 = s2SH0
        self.s2TG = s2TG
        self.s2PS = s2PS
        self.s2FWB = s2FWB
    }
}

extension PageTableConfiguration {
    /// Index 0: 0x44 non-cacheable; 1: 0xFF write-back; 2: 0x04 Device-nGnRE; 3: 0xF4 inner non-cacheable.
    static let memoryAttributes: UInt64 = 0x0000_0000_F404_FF44

    /// TG0 and S2TG.
    private var granuleField: UInt8 {
        switch granule {
        case .kib4: 0
        case .kib64: 1
        case .kib16: 2
        }
    }

    /// IPS and S2PS.
    private var outputSizeField: UInt8 {
        UInt8(Self.physicalSizes.firstIndex(of: outputAddressBits) ?? 5)
    }

    /// What an STE has to say for a walker to read this table as stage 2.
    package var stageTwoControls: StageTwoControls {
        StageTwoControls(
            s2T0SZ: UInt8(64 - inputAddressBits),
            // Level 3 of the small tables with 4 KiB pages does not come up: inputs have 25 bits at least.
            s2SL0: UInt8((granule == .kib4 ? 2 : 3) - startLevel),
            s2IR0: isCoherent ? 1 : 0,
            s2OR0: isCoherent ? 1 : 0,
            s2SH0: isCoherent ? 3 : 2,
            s2TG: granuleField,
            s2PS: outputSizeField,
            s2FWB: stage == .two(forcesWriteBack: true)
        )
    }

    /// What a CD has to say for a walker to read this table as stage 1.
    package var controls: StageOneControls {
        return StageOneControls(
            t0sz: UInt8(64 - inputAddressBits),
            tg0: granuleField,
            ir0: isCoherent ? 1 : 0,
            or0: isCoherent ? 1 : 0,
            sh0: isCoherent ? 3 : 2,
            ips: outputSizeField,
            mair: Self.memoryAttributes
        )
    }
}
