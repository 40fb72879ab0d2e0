// Reads and writes of a device's regions, and the commands beside them.

/// The start of REGION_READ and REGION_WRITE, and of their replies; data follows in a write and in a read's reply.
package struct VFIOUserRegionAccess: VFIOUserFixedPayload {
    package static let byteCount = 16

    /// From the region's start, in bytes.
    package var offset: UInt64
    package var region: UInt32
    /// In bytes.
    package var count: UInt32

    package init(offset: UInt64, region: UInt32, count: UInt32) {
        self.offset = offset
        self.region = region
        self.count = count
    }

    package init?(_ payload: [UInt8]) {
        guard let offset = payload.word(at: 0, as: UInt64.self),
            let region = payload.word(at: 8, as: UInt32.self),
            let count = payload.word(at: 12, as: UInt32.self)
        else { return nil }
        self.init(offset: offset, region: region, count: count)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: offset)
        bytes.append(word: region)
        bytes.append(word: count)
    }
}

/// One write of REGION_WRITE_MULTI, which has a 64-bit count of them before the first.
package struct VFIOUserSmallWrite: VFIOUserFixedPayload {
    package static let byteCount = 24

    package var offset: UInt64
    package var region: UInt32
    /// How many of the bytes of ``data`` count: 1 to 8.
    package var count: UInt32
    /// The bytes, the first in the lowest 8 bits.
    package var data: UInt64

    package init(offset: UInt64, region: UInt32, count: UInt32, data: UInt64) {
        self.offset = offset
        self.region = region
        self.count = count
        self.data = data
    }

    package init?(_ payload: [UInt8]) {
        guard let offset = payload.word(at: 0, as: UInt64.self),
            let region = payload.word(at: 8, as: UInt32.self),
            let count = payload.word(at: 12, as: UInt32.self),
            let data = payload.word(at: 16, as: UInt64.self)
        else { return nil }
        self.init(offset: offset, region: region, count: count, data: data)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: offset)
        bytes.append(word: region)
        bytes.append(word: count)
        bytes.append(word: data)
    }
}

/// The start of DEVICE_FEATURE, both ways; the feature's data follows.
package struct VFIOUserDeviceFeature: VFIOUserFixedPayload {
    package static let byteCount = 8

    package var argsz: UInt32
    /// The feature's number in bits 0 to 15, and what is to be done with it above.
    package var flags: UInt32

    package static let get: UInt32 = 1 << 16
    package static let set: UInt32 = 1 << 17
    package static let probe: UInt32 = 1 << 18

    package init(argsz: UInt32, flags: UInt32) {
        self.argsz = argsz
        self.flags = flags
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let flags = payload.word(at: 4, as: UInt32.self)
        else { return nil }
        self.init(argsz: argsz, flags: flags)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: flags)
    }
}

/// The start of MIG_DATA_READ and MIG_DATA_WRITE; data follows in a write and in a read's reply.
package struct VFIOUserMigrationData: VFIOUserFixedPayload {
    package static let byteCount = 8

    package var argsz: UInt32
    /// In bytes.
    package var size: UInt32

    package init(argsz: UInt32, size: UInt32) {
        self.argsz = argsz
        self.size = size
    }

    package init?(_ payload: [UInt8]) {
        guard let argsz = payload.word(at: 0, as: UInt32.self),
            let size = payload.word(at: 4, as: UInt32.self)
        else { return nil }
        self.init(argsz: argsz, size: size)
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: argsz)
        bytes.append(word: size)
    }
}
