// What one SMMUv3 says of itself: its identification registers.

package import SMMUv3Spec

/// The identification registers of one SMMUv3: what it says it can do, and so what it does.
package struct Identification: Equatable, Sendable {
    package var idr0: IDR0
    package var idr1: IDR1
    package var idr3: IDR3
    package var idr5: IDR5
    package var iidr: IIDR
    package var aidr: AIDR
    /// Where the VATOS page is, with SMMU_IDR0.VATOS.
    package var idr2 = IDR2()
    /// How many enhanced command queues there are, with SMMU_IDR1.ECMDQ.
    package var idr6 = IDR6()
    /// Where the command queue control page is, in bytes from page 0, with SMMU_IDR1.ECMDQ.
    package var commandQueueControlPage: UInt64 = 0
    /// The largest PARTID and PMG, with SMMU_IDR3.MPAM.
    package var mpamidr = MPAMIDR()

    /// SMMUv3.2 with stage 1 alone, VMSAv8-64 tables of 4, 16 and 64 KiB, 48-bit addresses.
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

    /// Everything that this model implements: SMMUv3.3 with both stages, EL2, HTTU, 52-bit addresses, AArch32 tables,
    /// tables of either byte order, messages as interrupts, stalls, ATS and PRI, translation by register.
    ///
    /// - Parameters:
    ///   - streamIDBits: As for ``stage1(streamIDBits:isCoherent:)``.
    ///   - isCoherent: As for ``stage1(streamIDBits:isCoherent:)``.
    ///   - outputAddressBits: SMMU_IDR5.OAS: 32, 36, 40, 42, 44, 48 or 52. 52 brings SMMU_IDR5.DS and VAX, so
    ///     52-bit addresses with every granule.
    /// - Returns: The registers.
    package static func full(
        streamIDBits: UInt8 = 16,
        isCoherent: Bool = true,
        outputAddressBits: Int = 48
    ) -> Identification {
        var result = stage1(streamIDBits: streamIDBits, isCoherent: isCoherent)
        result.idr0.s2P = true
        result.idr0.ttf = 0b11  // AArch32 LPAE tables too.
        result.idr0.hyp = true  // Mandatory from v3.2 on with both stages.
        result.idr0.vmid16 = true
        // SEV is an option: no processor's event register can be reached from here, and who relies on it sleeps long.
        result.idr0.msi = true
        result.idr0.stallModel = 0b00  // Stall or terminate, as each stream is configured.
        result.idr5.stallMax = 256
        result.idr0.atos = true
        result.idr0.vmw = true
        result.idr0.httu = 2  // Access flag and dirty state.
        result.idr0.ats = true  // NS1ATS stays 0: split-stage, too.
        result.idr0.atsrecerr = true
        result.idr0.pri = true
        result.idr1.priqs = 10
        result.idr3.pps = true  // Automatic responses carry the PASID of their request.
        result.idr0.ttendian = 0b00  // Mixed: CD.ENDI and STE.S2ENDI choose.
        result.idr1.attrTypesOvr = true
        result.idr3.xnx = true  // Mandatory from v3.1 on with stage 2.
        result.idr3.fwb = true  // Mandatory from v3.2 on.
        result.idr3.stt = true
        result.idr3.mpam = true
        result.mpamidr.partIDMax = 0xFF
        result.mpamidr.pmgMax = 3
        result.idr3.e0pd = true  // Mandatory from v3.3 on.
        result.idr3.ptwnnc = true  // Mandatory from v3.3 on with stage 2.
        result.idr5.oas = AddressSize.encoding(bits: min(outputAddressBits, 52)) ?? 5
        let has52Bits = result.idr5.oas >= 6
        result.idr5.ds = has52Bits
        result.idr5.vax = has52Bits ? 1 : 0
        result.aidr = AIDR(rawValue: 0x03)
        return result
    }

    /// OAS in bits: the size of every physical address that the SMMU drives.
    package var outputAddressBits: Int { AddressSize.bits(encoding: idr5.oas) }

    /// The first address beyond OAS.
    var outputAddressLimit: UInt64 { 1 << UInt64(outputAddressBits) }

    /// Whether descriptors of the 64 KiB granule hold output address bits [51:48] in bits [15:12].
    var has52BitOutput: Bool { idr5.oas >= 6 }

    /// Whether IDR5 advertises tables of this granule.
    func supports(_ granule: Granule) -> Bool {
        switch granule {
        case .kib4: idr5.gran4K
        case .kib16: idr5.gran16K
        case .kib64: idr5.gran64K
        }
    }
}
