// What a client shares of its memory, and how a server reaches what it does not share.

/// The flags of DMA_MAP.
package struct VFIOUserDMAFlags: OptionSet, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// The device may read.
    package static let readable = Self(rawValue: 0x1)
    /// The device may write.
    package static let writable = Self(rawValue: 0x2)
    /// The descriptor is to be mapped.
    package static let mapped = Self(rawValue: 0x4)
    /// The descriptor is to be read and written by system calls.
    package static let fileAccess = Self(rawValue: 0x8)

    /// All that the specification names.
    package static let known: Self = [.readable, .writable, .mapped, .fileAccess]
}

/// DMA_MAP's request, beside at most one descriptor.
package struct VFIOUserDMAMap: VFIOUserFixedPayload {
    package static let byteCount = 32

    /// The size of this request, not of an answer.
    package var argsz: UInt32
    package var flags: VFIOUserDMAFlags
    /// Where in the descriptor's file the memory begins.
    package var offset: UInt64
    /// The first byte, as the device addresses it.
    package var address: UInt64
    /// In bytes.
    package var size: UInt64

    package init(
        flags: VFIOUserDMAFlags,
        offset: UInt64 = 0,
        address: UInt64,
        size: UInt64,
        argsz: UInt32 = 32
    ) {
        self.argsz = argsz
        self.flags = flags
        self.offset = offset
        self.address = address
        self.size = size
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self),
            let offset = payload.word(at: 8, as: UInt64.self),
            let address = payload.word(at: 16, as: UInt64.self),
            let size = payload.word(at: 24, as: UInt64.self)
        else { return nil }
        self.init(
            flags: VFIOUserDMAFlags(rawValue: flags),
            offset: offset,
            address: address,
            size: size,
            argsz: argsz
        )
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags.rawValue)
        bytes.append(word: offset)
        bytes.append(word: address)
        bytes.append(word: size)
    }
}

/// DMA_UNMAP's request, and its reply.
package struct VFIOUserDMAUnmap: VFIOUserFixedPayload {
    package static let byteCount = 24

    /// The flags, which the specification's text has none of and clients send.
    package struct Flags: OptionSet, Hashable, Sendable {
        package var rawValue: UInt32

        package init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Old: with a bitmap of dirty pages.
        package static let dirtyBitmap = Self(rawValue: 0x1)
        /// Everything; address and size are 0.
        package static let all = Self(rawValue: 0x2)
    }

    /// How large an answer may be.
    package var argsz: UInt32
    package var flags: Flags
    package var address: UInt64
    package var size: UInt64

    package init(flags: Flags = [], address: UInt64, size: UInt64, argsz: UInt32 = 24) {
        self.argsz = argsz
        self.flags = flags
        self.address = address
        self.size = size
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self),
            let address = payload.word(at: 8, as: UInt64.self),
            let size = payload.word(at: 16, as: UInt64.self)
        else { return nil }
        self.init(flags: Flags(rawValue: flags), address: address, size: size, argsz: argsz)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags.rawValue)
        bytes.append(word: address)
        bytes.append(word: size)
    }
}

/// The start of DMA_READ and DMA_WRITE, and of their replies; data follows in a write and in a read's reply.
package struct VFIOUserDMAAccess: VFIOUserFixedPayload {
    package static let byteCount = 16

    package var address: UInt64
    /// In bytes: 64 bits wide.
    package var count: UInt64

    package init(address: UInt64, count: UInt64) {
        self.address = address
        self.count = count
    }

    package init?(_ payload: [UInt8]) {
        guard let address = payload.word(at: 0, as: UInt64.self),
            let count = payload.word(at: 8, as: UInt64.self)
        else { return nil }
        self.init(address: address, count: count)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: address)
        bytes.append(word: count)
    }
}
