// A function whose configuration space is another's: what of it is kept here, and what is asked for.

/// Answers for configuration space that is not kept here.
///
/// Accesses come from any thread, and may wait for whoever has it.
package protocol PCIForeignConfiguration: AnyObject, Sendable {
    /// Reads 1 to 4 bytes; nil where nobody answers.
    func readForeignConfiguration(at offset: Int, byteCount: Int) -> UInt32?
    /// Writes 1 to 4 bytes.
    func writeForeignConfiguration(_ value: UInt32, at offset: Int, byteCount: Int)
}

/// The bytes of a function's configuration space that are another's.
struct PCIForeignSpace: Sendable {
    let configuration: any PCIForeignConfiguration
    /// For each byte, whether it is kept here.
    let isOwn: [Bool]

    /// Puts together what is kept here and what is not.
    ///
    /// - Returns: Nil where nothing of it is another's.
    func read(at offset: Int, byteCount: Int, own: UInt32) -> UInt32? {
        guard offset >= 0, byteCount > 0, offset + byteCount <= isOwn.count,
            isOwn[offset..<offset + byteCount].contains(false)
        else { return nil }
        let other = configuration.readForeignConfiguration(at: offset, byteCount: byteCount) ?? UInt32.max
        var value: UInt32 = 0
        for index in 0..<min(byteCount, 4) {
            let mask = UInt32(0xFF) &<< UInt32(8 * index)
            value |= (isOwn[offset + index] ? own : other) & mask
        }
        return value
    }
}

/// Why bytes are no configuration space of a function that can be carried.
package enum PCIImageError: Error, Equatable, Sendable {
    /// Neither 256 nor 4096 bytes.
    case size(Int)
    /// A header of another type than 0, or no function at all (all 1s).
    case header(UInt8)
    /// A BAR whose size does not suit its kind.
    case bar(Int, byteCount: UInt64)
    /// An MSI-X capability whose table or pending bits lie outside of a BAR.
    case msix
    /// A list of capabilities that leaves the space or does not end.
    case capabilities
}

extension PCIImageError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .size(let count): "a configuration space of \(count) bytes; it has 256 or 4096"
        case .header(let type): "a header of type 0x\(String(type, radix: 16)); only type 0 can be carried"
        case .bar(let index, let count): "BAR \(index) of \(count) bytes, which does not suit its kind"
        case .msix: "an MSI-X table or its pending bits outside of a BAR"
        case .capabilities: "a list of capabilities that leaves its space or does not end"
        }
    }
}

/// What another's configuration space holds, as far as a ``PCIFunction`` must know.
///
/// The header is kept here, as a host that places BARs needs it, and so are MSI and MSI-X where their interrupts come
/// by other ways than messages; everything else stays with the other.
package struct PCIFunctionImage: Sendable {
    package let description: PCIFunctionDescription
    let space: ConfigurationSpace
    let offsets: CapabilityOffsets
    let isOwn: [Bool]
    let msix: PCIMSIXLayout?

    /// Reads a configuration space.
    ///
    /// - Parameters:
    ///   - bytes: All of it.
    ///   - barByteCounts: The size of each BAR, by index; 0 for none.
    ///   - keepsMSI: Whether MSI is kept here.
    ///   - keepsMSIX: Whether MSI-X is kept here, its table too.
    ///   - resetsHere: Whether Initiate Function Level Reset is to be ``PCIFunction/reset()``.
    /// - Throws: ``PCIImageError``.
    package init(
        _ bytes: [UInt8],
        barByteCounts: [UInt64],
        keepsMSI: Bool,
        keepsMSIX: Bool,
        resetsHere: Bool
    ) throws(PCIImageError) {
        guard bytes.count == 256 || bytes.count == 4096 else { throw .size(bytes.count) }
        let type = bytes[0x0E]
        guard type & 0x7F == 0, bytes[0] & bytes[1] != 0xFF else { throw .header(type) }
        var reader = ImageReader(bytes)
        let bars = try reader.readHeader(barByteCounts)
        var capabilities: [PCICapability] = []
        var msix: PCIMSIXLayout?
        for (id, offset) in try reader.capabilities() {
            switch id {
            case 0x05 where keepsMSI && reader.offsets.msi == nil:
                capabilities.append(.msi(vectorCount: try reader.keepMSI(at: offset)))
            case 0x11 where keepsMSIX && msix == nil:
                let layout = try reader.keepMSIX(at: offset, bars)
                capabilities.append(.msix(layout))
                msix = layout
            case 0x10 where resetsHere && reader.canReset(at: offset): reader.offsets.express = offset
            default: break
            }
        }
        try reader.hideExtended()
        description = PCIFunctionDescription(
            identity: reader.identity,
            bars: bars,
            capabilities: capabilities,
            interruptPin: bytes[0x3D] <= 4 ? bytes[0x3D] : 0,
            isMultiFunction: type & 0x80 != 0
        )
        space = reader.space
        offsets = reader.offsets
        isOwn = reader.isOwn
        self.msix = msix
    }
}

/// Takes another's configuration space apart.
private struct ImageReader {
    private(set) var space: ConfigurationSpace
    private(set) var isOwn: [Bool]
    var offsets = CapabilityOffsets()
    private let bytes: [UInt8]

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
        space = ConfigurationSpace(byteCount: bytes.count)
        for (offset, byte) in bytes.enumerated() { space.set(UInt64(byte), at: offset, byteCount: 1) }
        isOwn = Array(repeating: false, count: bytes.count)
    }

    private func word(_ offset: Int, _ byteCount: Int) -> UInt32 {
        space.read(at: offset, byteCount: byteCount)
    }

    private mutating func own(_ range: Range<Int>) {
        for offset in range where isOwn.indices.contains(offset) { isOwn[offset] = true }
    }

    var identity: PCIIdentity {
        PCIIdentity(
            vendorID: UInt16(truncatingIfNeeded: word(0x00, 2)),
            deviceID: UInt16(truncatingIfNeeded: word(0x02, 2)),
            subsystemVendorID: UInt16(truncatingIfNeeded: word(0x2C, 2)),
            subsystemID: UInt16(truncatingIfNeeded: word(0x2E, 2)),
            classCode: word(0x08, 4) >> 8,
            revisionID: bytes[0x08]
        )
    }

    /// The header is kept here, in its state after a reset; I/O BARs and the ROM are not offered.
    mutating func readHeader(_ byteCounts: [UInt64]) throws(PCIImageError) -> [PCIBAR] {
        own(0..<0x40)
        space.set(0, at: 0x04, byteCount: 2)
        space.permit(0x0546, at: 0x04, byteCount: 2)
        // Of Status only Capabilities List stays.
        space.set(UInt64(word(0x06, 2) & 0x10), at: 0x06, byteCount: 2)
        space.permitClearing(0xF900, at: 0x06, byteCount: 2)
        space.permit(0xFF, at: 0x0C, byteCount: 1)
        space.permit(0xFF, at: 0x3C, byteCount: 1)
        space.set(0, at: 0x30, byteCount: 4)
        var bars: [PCIBAR] = []
        for index in 0..<6 {
            let register = 0x10 + 4 * index
            let flags = UInt32(bytes[register] & 0xF)
            let isUpperHalf = bars.contains { $0.index == index - 1 && $0.space == .memory64 }
            space.set(0, at: register, byteCount: 4)
            let count = byteCounts.indices.contains(index) ? byteCounts[index] : 0
            guard !isUpperHalf, count > 0, flags & 1 == 0 else { continue }
            let isWide = flags >> 1 & 3 == 2
            // Regions of vendors that are no power of two are rounded up, as their BAR must be.
            guard let size = Self.barByteCount(count, isWide: isWide), !isWide || index < 5 else {
                throw .bar(index, byteCount: count)
            }
            bars.append(
                PCIBAR(
                    index: index,
                    byteCount: size,
                    space: isWide ? .memory64 : .memory32,
                    isPrefetchable: flags & 8 != 0
                )
            )
            space.set(UInt64(flags), at: register, byteCount: 4)
            space.permit(~(size - 1) & ~0xF, at: register, byteCount: isWide ? 8 : 4)
        }
        return bars
    }

    private static func barByteCount(_ count: UInt64, isWide: Bool) -> UInt64? {
        guard count <= (isWide ? 1 << 62 : 1 << 31) else { return nil }
        var size: UInt64 = 16
        while size < count { size <<= 1 }
        return size
    }

    /// The list of capabilities: identifiers and where they stand.
    func capabilities() throws(PCIImageError) -> [(id: UInt8, offset: Int)] {
        guard word(0x06, 2) & 0x10 != 0 else { return [] }
        var found: [(id: UInt8, offset: Int)] = []
        var offset = Int(bytes[0x34] & ~3)
        while offset != 0 {
            // No list is longer than there are places for capabilities in it.
            guard offset >= 0x40, offset <= 0xFC, found.count < 48 else { throw .capabilities }
            found.append((bytes[offset], offset))
            offset = Int(bytes[offset + 1] & ~3)
        }
        return found
    }

    mutating func keepMSI(at offset: Int) throws(PCIImageError) -> Int {
        let control = word(offset + 2, 2)
        offsets.isMSIWide = control & 0x80 != 0
        offsets.hasMSIMasks = control & 0x100 != 0
        let data = offset + (offsets.isMSIWide ? 12 : 8)
        let end = data + (offsets.hasMSIMasks ? 12 : 2)
        guard end <= 0x100 else { throw .capabilities }
        offsets.msi = offset
        // Not the pointer to the next, which is as good here as there.
        own(offset..<end)
        let vectorCount = 1 << Int(min((control >> 1) & 7, 5))
        space.set(UInt64(control & ~0x71), at: offset + 2, byteCount: 2)
        space.permit(0x0071, at: offset + 2, byteCount: 2)
        space.set(0, at: offset + 4, byteCount: end - offset - 4)
        space.permit(0xFFFF_FFFC, at: offset + 4, byteCount: 4)
        if offsets.isMSIWide { space.permit(0xFFFF_FFFF, at: offset + 8, byteCount: 4) }
        space.permit(0xFFFF, at: data, byteCount: 2)
        if offsets.hasMSIMasks { space.permit((1 << UInt64(vectorCount)) - 1, at: data + 4, byteCount: 4) }
        return vectorCount
    }

    mutating func keepMSIX(at offset: Int, _ bars: [PCIBAR]) throws(PCIImageError) -> PCIMSIXLayout {
        guard offset + 12 <= 0x100 else { throw .capabilities }
        let control = word(offset + 2, 2)
        let (table, pending) = (word(offset + 4, 4), word(offset + 8, 4))
        let count = Int(control & 0x7FF) + 1
        let layout = PCIMSIXLayout(
            vectorCount: count,
            tableBAR: Int(table & 7),
            tableOffset: table & ~7,
            pendingBAR: Int(pending & 7),
            pendingOffset: pending & ~7
        )
        let pendingByteCount = UInt64((count + 63) / 64 * 8)
        guard Self.isInside(layout.tableBAR, layout.tableOffset, UInt64(count * 16), bars),
            Self.isInside(layout.pendingBAR, layout.pendingOffset, pendingByteCount, bars)
        else { throw .msix }
        offsets.msix = offset
        own(offset..<offset + 12)
        space.set(UInt64(control & 0x7FF), at: offset + 2, byteCount: 2)
        space.permit(0xC000, at: offset + 2, byteCount: 2)
        return layout
    }

    private static func isInside(_ index: Int, _ offset: UInt32, _ byteCount: UInt64, _ bars: [PCIBAR])
        -> Bool
    {
        bars.contains { $0.index == index && UInt64(offset) + byteCount <= $0.byteCount }
    }

    /// Device Capabilities, Function Level Reset Capability.
    func canReset(at offset: Int) -> Bool { offset + 12 <= 0x100 && word(offset + 4, 4) & 1 << 28 != 0 }

    /// SR-IOV, ARI, ATS, PRI and PASID are hidden: nothing of them goes over vfio-user.
    ///
    /// Their identifiers become 0xFFFF, which no software knows, so that the list stays whole.
    mutating func hideExtended() throws(PCIImageError) {
        guard bytes.count == 4096 else { return }
        var offset = 0x100
        var count = 0
        while offset != 0 {
            guard offset >= 0x100, offset <= 0xFFC, count < 960 else { throw .capabilities }
            let header = word(offset, 4)
            if [0x000E, 0x000F, 0x0010, 0x0013, 0x001B].contains(header & 0xFFFF) {
                space.set(0xFFFF, at: offset, byteCount: 2)
                own(offset..<offset + 2)
            }
            offset = Int(header >> 20) & ~3
            count += 1
        }
    }
}
