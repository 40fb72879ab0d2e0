// What a device is: its regions and its interrupts.

/// The flags of DEVICE_GET_INFO's reply.
package struct VFIOUserDeviceFlags: OptionSet, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// DEVICE_RESET works.
    package static let reset = Self(rawValue: 0x1)
    /// A PCI function: regions and interrupts are numbered as VFIO numbers those of one.
    package static let pci = Self(rawValue: 0x2)
}

/// DEVICE_GET_INFO, both ways.
package struct VFIOUserDeviceInfo: VFIOUserFixedPayload {
    package static let byteCount = 16

    package var argsz: UInt32
    package var flags: VFIOUserDeviceFlags
    package var regionCount: UInt32
    package var interruptCount: UInt32

    package init(
        argsz: UInt32 = 16,
        flags: VFIOUserDeviceFlags = [],
        regionCount: UInt32 = 0,
        interruptCount: UInt32 = 0
    ) {
        self.argsz = argsz
        self.flags = flags
        self.regionCount = regionCount
        self.interruptCount = interruptCount
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self),
            let regions = payload.word(at: 8, as: UInt32.self),
            let interrupts = payload.word(at: 12, as: UInt32.self)
        else { return nil }
        self.init(
            argsz: argsz,
            flags: VFIOUserDeviceFlags(rawValue: flags),
            regionCount: regions,
            interruptCount: interrupts
        )
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags.rawValue)
        bytes.append(word: regionCount)
        bytes.append(word: interruptCount)
    }
}

/// Which region: open, as a device may have more than VFIO names.
package struct VFIOUserRegionIndex: RawRepresentable, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// BAR `number`, 0 to 5.
    package static func bar(_ number: UInt32) -> Self { Self(rawValue: number) }
    /// The expansion ROM.
    package static let rom = Self(rawValue: 6)
    /// The configuration space.
    package static let configuration = Self(rawValue: 7)
    /// The legacy VGA ranges.
    package static let vga = Self(rawValue: 8)
    /// How many a PCI function has.
    package static let pciCount = 9
}

/// The flags of DEVICE_GET_REGION_INFO's reply.
package struct VFIOUserRegionFlags: OptionSet, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let read = Self(rawValue: 0x1)
    package static let write = Self(rawValue: 0x2)
    /// A descriptor comes along that can be mapped.
    package static let mmap = Self(rawValue: 0x4)
    /// Capabilities follow.
    package static let capabilities = Self(rawValue: 0x8)
}

/// DEVICE_GET_REGION_INFO, both ways; capabilities follow in the reply.
package struct VFIOUserRegionInfo: VFIOUserFixedPayload {
    package static let byteCount = 32

    package var argsz: UInt32
    package var flags: VFIOUserRegionFlags
    package var index: UInt32
    /// From the start of this struct to the first capability; 0 where there is none.
    package var capabilityOffset: UInt32
    package var size: UInt64
    /// Where in the descriptor the region begins.
    package var offset: UInt64

    package init(
        argsz: UInt32 = 32,
        flags: VFIOUserRegionFlags = [],
        index: UInt32,
        capabilityOffset: UInt32 = 0,
        size: UInt64 = 0,
        offset: UInt64 = 0
    ) {
        self.argsz = argsz
        self.flags = flags
        self.index = index
        self.capabilityOffset = capabilityOffset
        self.size = size
        self.offset = offset
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self),
            let index = payload.word(at: 8, as: UInt32.self),
            let capabilityOffset = payload.word(at: 12, as: UInt32.self),
            let size = payload.word(at: 16, as: UInt64.self),
            let offset = payload.word(at: 24, as: UInt64.self)
        else { return nil }
        self.init(
            argsz: argsz,
            flags: VFIOUserRegionFlags(rawValue: flags),
            index: index,
            capabilityOffset: capabilityOffset,
            size: size,
            offset: offset
        )
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags.rawValue)
        bytes.append(word: index)
        bytes.append(word: capabilityOffset)
        bytes.append(word: size)
        bytes.append(word: offset)
    }
}

/// The start of DEVICE_GET_REGION_IO_FDS, both ways; ``VFIOUserIOEvent``s follow in the reply.
package struct VFIOUserRegionIODescriptors: VFIOUserFixedPayload {
    package static let byteCount = 16

    package var argsz: UInt32
    package var flags: UInt32
    package var index: UInt32
    /// How many entries follow.
    package var count: UInt32

    package init(argsz: UInt32, flags: UInt32 = 0, index: UInt32, count: UInt32 = 0) {
        self.argsz = argsz
        self.flags = flags
        self.index = index
        self.count = count
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self),
            let index = payload.word(at: 8, as: UInt32.self),
            let count = payload.word(at: 12, as: UInt32.self)
        else { return nil }
        self.init(argsz: argsz, flags: flags, index: index, count: count)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags)
        bytes.append(word: index)
        bytes.append(word: count)
    }
}

/// An ioeventfd of a region: writes to an offset become signals, without a message.
package struct VFIOUserIOEvent: VFIOUserFixedPayload {
    package static let byteCount = 40

    /// Where in the region.
    package var offset: UInt64
    /// How wide the writes are; 0 for any.
    package var size: UInt64
    /// Which of the reply's descriptors.
    package var descriptorIndex: UInt32
    /// 0 for an ioeventfd, 1 for an ioregionfd.
    package var type: UInt32
    /// KVM_IOEVENTFD's: 1 where only writes of ``dataMatch`` count.
    package var flags: UInt32
    /// What is to be written; an ioregionfd's user data.
    package var dataMatch: UInt64

    package init(
        offset: UInt64,
        size: UInt64,
        descriptorIndex: UInt32,
        type: UInt32 = 0,
        flags: UInt32 = 0,
        dataMatch: UInt64 = 0
    ) {
        self.offset = offset
        self.size = size
        self.descriptorIndex = descriptorIndex
        self.type = type
        self.flags = flags
        self.dataMatch = dataMatch
    }

    package init?(_ payload: [UInt8]) {
        guard let offset = payload.word(at: 0, as: UInt64.self),
            let size = payload.word(at: 8, as: UInt64.self),
            let descriptorIndex = payload.word(at: 16, as: UInt32.self),
            let type = payload.word(at: 20, as: UInt32.self),
            let flags = payload.word(at: 24, as: UInt32.self),
            let dataMatch = payload.word(at: 32, as: UInt64.self)
        else { return nil }
        self.init(
            offset: offset,
            size: size,
            descriptorIndex: descriptorIndex,
            type: type,
            flags: flags,
            dataMatch: dataMatch
        )
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: offset)
        bytes.append(word: size)
        bytes.append(word: descriptorIndex)
        bytes.append(word: type)
        bytes.append(word: flags)
        bytes.append(word: UInt32(0))
        bytes.append(word: dataMatch)
    }
}
