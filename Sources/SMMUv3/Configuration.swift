// What one SMMUv3 is built as: its identification registers, cache sizes and choices.

package import SMMUv3Spec

/// The identification registers of one SMMUv3: what it says it can do, and so what it does.
package struct Identification: Equatable, Sendable {
    package var idr0: IDR0
    package var idr1: IDR1
    package var idr3: IDR3
    package var idr5: IDR5
    package var iidr: IIDR
    package var aidr: AIDR

    /// What this model implements today: SMMUv3.2, stage 1 alone, VMSAv8-64 tables of 4, 16 and 64 KiB.
    ///
    /// - Parameters:
    ///   - streamIDBits: SMMU_IDR1.SIDSIZE, 0...32. The smallest that holds every StreamID of the board, and at
    ///     least 16.
    ///   - isCoherent: SMMU_IDR0.COHACC: the device tree's `dma-coherent`.
    /// - Returns: The registers.
    package static func stage1(streamIDBits: UInt8 = 16, isCoherent: Bool = true) -> Identification {
        var idr0 = IDR0()
        idr0.s1P = true
        idr0.ttf = 0b10  // AArch64 tables.
        idr0.cohacc = isCoherent
        idr0.asid16 = true
        idr0.cd2L = true
        idr0.ttendian = 0b10  // Little-endian.
        idr0.stallModel = 0b01  // No stalls.
        idr0.stLevel = 0b01  // Linear and 2-level.

        var idr1 = IDR1()
        idr1.sidsize = min(streamIDBits, 32)
        idr1.ssidsize = 20
        idr1.cmdqs = 12
        idr1.eventqs = 11
        idr1.attrPermsOvr = true

        var idr3 = IDR3()
        idr3.had = true  // Mandatory from v3.1 on with stage 1.
        idr3.ril = true  // Mandatory from v3.2 on.
        idr3.bbml = 2  // 1 or 2 from v3.2 on. A look-up gives an old or a new translation, never a conflict.

        var idr5 = IDR5()
        idr5.oas = 5  // 48 bits.
        idr5.gran4K = true
        idr5.gran16K = true
        idr5.gran64K = true

        return Identification(
            idr0: idr0,
            idr1: idr1,
            idr3: idr3,
            idr5: idr5,
            // No implementer's code: this is nobody's product, and drivers key their errata on it.
            iidr: IIDR(rawValue: 0),
            aidr: AIDR(rawValue: 0x02)
        )
    }

    /// OAS in bits: the size of every physical address that the SMMU drives.
    package var outputAddressBits: Int { AddressSize.bits(encoding: idr5.oas) }

    /// The first address beyond OAS.
    var outputAddressLimit: UInt64 { 1 << UInt64(outputAddressBits) }

    /// Whether IDR5 advertises tables of this granule.
    func supports(_ granule: Granule) -> Bool {
        switch granule {
        case .kib4: idr5.gran4K
        case .kib16: idr5.gran16K
        case .kib64: idr5.gran64K
        }
    }
}

/// Where the architecture leaves a choice, and how large the caches are.
package struct SMMUv3Options: Equatable, Sendable {
    /// Where commands are executed.
    package enum CommandExecution: String, Sendable {
        /// On a thread of the SMMU's own: a register write returns at once (the default).
        case thread
        /// Inside the register write that makes them visible: one input gives one run, bit for bit.
        case inline
    }

    package var commandExecution = CommandExecution.thread
    /// How many translations the TLB holds; 0 is none, and then no port keeps any either.
    package var tlbEntries = 4096
    /// How many STEs, and how many CDs, the configuration cache holds; 0 is none.
    package var configurationCacheEntries = 1024
    /// Whether a structure that was fetched but is invalid (V = 0, or ILLEGAL) is kept until it is
    /// invalidated.
    ///
    /// The architecture permits either. Keeping it shows a driver the CMD_CFGI that it forgot.
    package var cachesInvalidStructures = true
    /// Whether page 0 offsets 0xA8, 0xAC, 0xC8 and 0xCC alias the queue pointers of page 1
    /// (`cavium,cn9900-broken-page1-regspace`).
    package var aliasesPage1InPage0 = false
    /// How many event records are kept for people to look at, whether or not the queue took them.
    package var eventLogCapacity = 1024

    package init() {}
}
