// What both stages' walks share: the format of their tables, and how one descriptor is read and updated.

import AddressSpace
import BitFields
import DeviceModel
package import SMMUv3Spec
import SystemBus

/// How the descriptors of a VMSAv8-64 table are laid out.
package struct TableFormat: Hashable, Sendable {
    package var stage: Descriptor.Stage
    package var granule: Granule
    /// The 64 KiB granule has output address bits [51:48] in bits [15:12] (SMMU_IDR5.OAS at least 52 bits).
    package var has52BitOutput: Bool
    /// The 4 KiB and 16 KiB granules have output address bits [51:50] in bits [9:8] (CD.DS, STE.S2DS).
    package var ds: Bool
    /// CD.ENDI, STE.S2ENDI.
    package var isBigEndian: Bool

    package init(
        stage: Descriptor.Stage,
        granule: Granule,
        has52BitOutput: Bool = false,
        ds: Bool = false,
        isBigEndian: Bool = false
    ) {
        self.stage = stage
        self.granule = granule
        self.has52BitOutput = has52BitOutput
        self.ds = ds
        self.isBigEndian = isBigEndian
    }
}

extension TableFormat {
    /// The first table's address: the bits below its own size are treated as zero, and with 52-bit outputs those
    /// below 64 bytes.
    static func alignedBase(_ base: UInt64, _ indexBits: Int, _ outputBits: Int) -> UInt64 {
        let size: UInt64 = 8 &<< UInt64(indexBits)
        return base & ~(max(size, outputBits >= 52 ? 64 : 0) &- 1)
    }

    /// Whether a valid descriptor is a page, or a block at a level that has blocks.
    func isLeaf(_ descriptor: Descriptor, level: Int) -> Bool {
        guard level < 3 else { return descriptor.isTableOrPage }
        guard !descriptor.isTableOrPage else { return false }
        return switch granule {
        case .kib4: level == 1 || level == 2 || (level == 0 && ds)
        case .kib16: level == 2 || (level == 1 && ds)
        case .kib64: level == 2 || (level == 1 && has52BitOutput)
        }
    }

    func outputAddress(of descriptor: Descriptor, level: Int) -> UInt64 {
        descriptor.outputAddress(granule: granule, level: level, has52BitOutput: has52BitOutput, ds: ds)
    }

    func nextTable(of descriptor: Descriptor) -> UInt64 {
        guard ds || has52BitOutput else {
            return descriptor.rawValue & UInt64.mask(0...47) & (UInt64.max &<< UInt64(granule.log2Bytes))
        }
        return descriptor.nextTableAddress(granule: granule, has52BitOutput: has52BitOutput, ds: ds)
    }

    /// log2 of the entries that the Contiguous bit groups at a level; 0 where the bit is RES0.
    func log2ContiguousEntries(level: Int) -> Int {
        switch (granule, level) {
        case (.kib4, 1...3): 4
        case (.kib16, 2): 5
        case (.kib16, 3): 7
        case (.kib64, 2...3): 5
        default: 0
        }
    }
}

/// A descriptor and where it was found.
struct LocatedDescriptor {
    /// The physical address that it was read from.
    var location: PhysicalAddress
    var value: Descriptor

    // Those of `Descriptor`, which cannot be inlined here, and are asked for at each level of every walk.
    var isValid: Bool { value.rawValue[bit: 0] }
    var isTableOrPage: Bool { value.rawValue[bit: 1] }
}

extension SMMUv3 {
    /// How often an update of a descriptor that changes all the time is tried before the access is given up.
    ///
    /// Software can keep a descriptor changing for ever, and a transaction must not take for ever.
    static var descriptorUpdateAttempts: Int { 10_000 }

    /// Reads one descriptor, once.
    @inline(__always)  // Once for each level of every walk.
    func loadDescriptor(at location: PhysicalAddress, _ format: TableFormat) throws(BusError)
        -> LocatedDescriptor
    {
        let word = try bus.loadRAM64(at: location)
        let value = Descriptor(rawValue: format.isBigEndian ? word.byteSwapped : word)
        return LocatedDescriptor(location: location, value: value)
    }

    /// Replaces a descriptor if it still is what was read (HTTU).
    ///
    /// - Returns: Whether it was replaced.
    func update(_ descriptor: LocatedDescriptor, to new: Descriptor, _ format: TableFormat) throws(BusError)
        -> Bool
    {
        func word(_ descriptor: Descriptor) -> UInt64 {
            format.isBigEndian ? descriptor.rawValue.byteSwapped : descriptor.rawValue
        }
        let expected = word(descriptor.value)
        let found = try bus.compareExchange64(
            expected: expected,
            desired: word(new),
            at: descriptor.location
        )
        return found == expected
    }
}
