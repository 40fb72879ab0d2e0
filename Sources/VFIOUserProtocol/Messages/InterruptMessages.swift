// What interrupts a device has, and where they go.

/// Which kind of interrupt, as VFIO numbers those of a PCI function; open.
package struct VFIOUserInterruptIndex: RawRepresentable, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let intx = Self(rawValue: 0)
    package static let msi = Self(rawValue: 1)
    package static let msix = Self(rawValue: 2)
    /// Errors that the function cannot recover from.
    package static let error = Self(rawValue: 3)
    /// The function asks to be given back.
    package static let request = Self(rawValue: 4)
    /// How many a PCI function has.
    package static let pciCount = 5
}

/// The flags of DEVICE_GET_IRQ_INFO's reply.
package struct VFIOUserInterruptFlags: OptionSet, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Signalled through eventfds.
    package static let eventfd = Self(rawValue: 0x1)
    package static let maskable = Self(rawValue: 0x2)
    /// Masked by the server at each signal.
    package static let automasked = Self(rawValue: 0x4)
    /// Vectors cannot be added without disabling all first.
    package static let noResize = Self(rawValue: 0x8)
}

/// DEVICE_GET_IRQ_INFO, both ways.
package struct VFIOUserInterruptInfo: VFIOUserFixedPayload {
    package static let byteCount = 16

    package var argsz: UInt32
    package var flags: VFIOUserInterruptFlags
    package var index: UInt32
    /// How many vectors.
    package var count: UInt32

    package init(argsz: UInt32 = 16, flags: VFIOUserInterruptFlags = [], index: UInt32, count: UInt32 = 0) {
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
        self.init(argsz: argsz, flags: VFIOUserInterruptFlags(rawValue: flags), index: index, count: count)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags.rawValue)
        bytes.append(word: index)
        bytes.append(word: count)
    }
}

/// The start of DEVICE_SET_IRQS; a byte for each vector follows where the data is ``Flags/bool``.
package struct VFIOUserInterruptSet: VFIOUserFixedPayload {
    package static let byteCount = 20

    /// One bit of the first three, the data, and one of the last three, the action.
    package struct Flags: OptionSet, Hashable, Sendable {
        package var rawValue: UInt32

        package init(rawValue: UInt32) { self.rawValue = rawValue }

        package static let none = Self(rawValue: 0x1)
        package static let bool = Self(rawValue: 0x2)
        package static let eventfd = Self(rawValue: 0x4)
        package static let mask = Self(rawValue: 0x8)
        package static let unmask = Self(rawValue: 0x10)
        package static let trigger = Self(rawValue: 0x20)
    }

    /// The size of this request, not of an answer.
    package var argsz: UInt32
    package var flags: Flags
    package var index: UInt32
    /// The first vector.
    package var start: UInt32
    /// How many vectors.
    package var count: UInt32

    package init(argsz: UInt32 = 20, flags: Flags, index: UInt32, start: UInt32 = 0, count: UInt32 = 0) {
        self.argsz = argsz
        self.flags = flags
        self.index = index
        self.start = start
        self.count = count
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self),
            let index = payload.word(at: 8, as: UInt32.self),
            let start = payload.word(at: 12, as: UInt32.self),
            let count = payload.word(at: 16, as: UInt32.self)
        else { return nil }
        self.init(argsz: argsz, flags: Flags(rawValue: flags), index: index, start: start, count: count)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags.rawValue)
        bytes.append(word: index)
        bytes.append(word: start)
        bytes.append(word: count)
    }
}
