// What the device is: its regions and interrupts.

import GuestMemory
import VFIOUserProtocol

extension VFIOUserClient {
    /// DEVICE_GET_INFO's answer.
    public struct DeviceInfo: Equatable, Sendable {
        /// Whether DEVICE_RESET works.
        public var canReset: Bool
        /// Whether it is a PCI function: regions and interrupts are numbered as VFIO numbers those of one.
        public var isPCI: Bool
        public var regionCount: Int
        /// How many kinds of interrupts.
        public var interruptKindCount: Int
    }

    /// Which region; those of PCI functions have names.
    public struct RegionIndex: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: UInt32

        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// BAR `number`, 0 to 5.
        public static func bar(_ number: Int) -> Self { Self(rawValue: UInt32(clamping: number)) }
        /// The expansion ROM.
        public static let rom = Self(rawValue: 6)
        /// The configuration space.
        public static let configuration = Self(rawValue: 7)
        /// The legacy VGA ranges.
        public static let vga = Self(rawValue: 8)

        public var description: String {
            switch rawValue {
            case 0...5: "BAR \(rawValue)"
            case 6: "ROM"
            case 7: "configuration space"
            case 8: "VGA"
            default: "region \(rawValue)"
            }
        }
    }

    /// Part of a region that can be mapped.
    public struct MappableArea: Hashable, Sendable {
        /// From the region's start, in bytes.
        public var offset: UInt64
        /// In bytes.
        public var byteCount: UInt64

        public init(offset: UInt64, byteCount: UInt64) {
            self.offset = offset
            self.byteCount = byteCount
        }
    }

    /// DEVICE_GET_REGION_INFO's answer.
    public struct Region: Equatable, Sendable {
        public var index: RegionIndex
        /// 0 where there is no such region.
        public var byteCount: UInt64
        public var isReadable: Bool
        public var isWritable: Bool
        /// What of it can be mapped, by ``VFIOUserClient/mapRegion(_:)``.
        public var mappableAreas: [MappableArea]
        /// Whether the MSI-X table may stay mapped.
        public var isMSIXMappable: Bool
        /// What a region is that VFIO does not number: type and subtype.
        public var type: UInt32?
        public var subtype: UInt32?
    }

    /// Which kind of interrupts, as VFIO numbers those of a PCI function.
    public struct InterruptKind: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: UInt32

        public init(rawValue: UInt32) { self.rawValue = rawValue }

        public static let intx = Self(rawValue: 0)
        public static let msi = Self(rawValue: 1)
        public static let msix = Self(rawValue: 2)
        /// Errors that the function cannot recover from.
        public static let error = Self(rawValue: 3)
        /// The function asks to be given back.
        public static let request = Self(rawValue: 4)

        public var description: String {
            switch rawValue {
            case 0: "INTx"
            case 1: "MSI"
            case 2: "MSI-X"
            case 3: "ERR"
            case 4: "REQ"
            default: "interrupt \(rawValue)"
            }
        }
    }

    /// DEVICE_GET_IRQ_INFO's answer.
    public struct Interrupts: Equatable, Sendable {
        public var kind: InterruptKind
        /// 0 where there are none of the kind.
        public var vectorCount: Int
        /// Signalled through eventfds.
        public var isEventfd: Bool
        public var isMaskable: Bool
        /// Masked by the server at each signal.
        public var isAutomasked: Bool
        /// Whether vectors can be added without disabling all first.
        public var isResizable: Bool
    }

    /// Asks what the device is.
    ///
    /// - Throws: ``VFIOUserClientError``; also where it claims more regions or interrupts than anybody has.
    public func deviceInfo() throws(VFIOUserClientError) -> DeviceInfo {
        guard case .deviceInfo(let info) = try call(.deviceInfo).reply else {
            throw unexpectedReply(.deviceInfo)
        }
        guard info.regionCount <= 1024, info.interruptCount <= 256 else {
            throw .violation(
                command: VFIOUserCommand.deviceInfo.name,
                reason: "\(info.regionCount) regions and \(info.interruptCount) kinds of interrupts"
            )
        }
        return DeviceInfo(
            canReset: info.flags.contains(.reset),
            isPCI: info.flags.contains(.pci),
            regionCount: Int(info.regionCount),
            interruptKindCount: Int(info.interruptCount)
        )
    }

    /// Asks for a region's size and what can be done with it.
    public func region(_ index: RegionIndex) throws(VFIOUserClientError) -> Region {
        try describeRegion(index).region
    }

    /// Asks for the number and the properties of a kind of interrupts.
    public func interrupts(_ kind: InterruptKind) throws(VFIOUserClientError) -> Interrupts {
        guard case .interruptInfo(let info) = try call(.interruptInfo(index: kind.rawValue)).reply else {
            throw unexpectedReply(.interruptInfo)
        }
        return Interrupts(
            kind: kind,
            vectorCount: Int(info.count),
            isEventfd: info.flags.contains(.eventfd),
            isMaskable: info.flags.contains(.maskable),
            isAutomasked: info.flags.contains(.automasked),
            isResizable: !info.flags.contains(.noResize)
        )
    }

    /// Maps what of a region can be mapped; nothing, where the server gives no descriptor.
    ///
    /// - Throws: ``VFIOUserClientError``; ``VFIOUserClientError/local(_:)`` where the descriptor cannot be mapped.
    public func mapRegion(_ index: RegionIndex) throws(VFIOUserClientError) -> [RegionMapping] {
        let description = try describeRegion(index)
        var mappings: [RegionMapping] = []
        for area in description.region.mappableAreas {
            guard let descriptor = description.descriptor else { return [] }
            let (fileOffset, overflow) = description.fileOffset.addingReportingOverflow(area.offset)
            guard !overflow else { throw Self.badRegion(index, "an offset in its file leaves 64 bits") }
            do throws(GuestMemoryError) {
                let memory = try MemoryRegion.mapping(
                    try descriptor.duplicate(),
                    offset: fileOffset,
                    byteCount: area.byteCount,
                    isWritable: description.region.isWritable
                )
                mappings.append(RegionMapping(area: area, region: memory))
            } catch {
                throw .local("\(index): \(error.description)")
            }
        }
        return mappings
    }

    // MARK: Regions in two steps

    private struct RegionDescription {
        var region: Region
        var fileOffset: UInt64
        var descriptor: SharedDescriptor?
    }

    /// Capabilities of a region take no more than this.
    private static let regionInfoByteCountMax: UInt32 = 1 << 16

    private func describeRegion(_ index: RegionIndex) throws(VFIOUserClientError) -> RegionDescription {
        var answer = try call(.regionInfo(index: index.rawValue, argsz: 32))
        guard case .regionInfo(var info, var capabilities) = answer.reply else {
            throw unexpectedReply(.regionInfo)
        }
        if info.argsz > 32 {
            // The capabilities, and with some servers the descriptor, come only where there is room for them.
            guard info.argsz <= Self.regionInfoByteCountMax else {
                throw Self.badRegion(index, "its capabilities take \(info.argsz) bytes")
            }
            let room = info.argsz
            answer = try call(.regionInfo(index: index.rawValue, argsz: room))
            guard case .regionInfo(let full, let all) = answer.reply else {
                throw unexpectedReply(.regionInfo)
            }
            guard full.argsz <= room else { throw Self.badRegion(index, "its capabilities grew") }
            (info, capabilities) = (full, all)
        }
        let areas = try Self.areas(info, capabilities, index)
        let received = answer.descriptors?.count ?? 0
        guard areas.isEmpty || received <= 1 else {
            throw Self.badRegion(index, "\(received) descriptors came along, and one maps it")
        }
        var region = Region(
            index: index,
            byteCount: info.size,
            isReadable: info.flags.contains(.read),
            isWritable: info.flags.contains(.write),
            mappableAreas: areas,
            isMSIXMappable: capabilities.contains(.msixMappable)
        )
        for case .type(let type, let subtype) in capabilities {
            (region.type, region.subtype) = (type, subtype)
        }
        let descriptor =
            areas.isEmpty ? nil : answer.descriptors?.take(0).map(SharedDescriptor.init(adopting:))
        return RegionDescription(region: region, fileOffset: info.offset, descriptor: descriptor)
    }

    /// What can be mapped: the areas of the capability, or all of the region.
    private static func areas(
        _ info: VFIOUserRegionInfo,
        _ capabilities: [VFIOUserRegionCapability],
        _ index: RegionIndex
    ) throws(VFIOUserClientError) -> [MappableArea] {
        guard info.flags.contains(.mmap), info.size > 0 else { return [] }
        for case .sparseMapping(let areas) in capabilities {
            guard
                areas.allSatisfy({ $0.size > 0 && $0.offset <= info.size && $0.size <= info.size - $0.offset }
                )
            else { throw badRegion(index, "a mappable area lies outside of it") }
            return areas.map { MappableArea(offset: $0.offset, byteCount: $0.size) }
        }
        return [MappableArea(offset: 0, byteCount: info.size)]
    }

    private static func badRegion(_ index: RegionIndex, _ reason: String) -> VFIOUserClientError {
        .violation(command: VFIOUserCommand.regionInfo.name, reason: "\(index): \(reason)")
    }
}
