// The chain of capabilities behind a region's information.

/// Part of a region that can be mapped.
package struct VFIOUserMappableArea: Hashable, Sendable {
    /// From the region's start, in bytes.
    package var offset: UInt64
    /// In bytes.
    package var size: UInt64

    package init(offset: UInt64, size: UInt64) {
        self.offset = offset
        self.size = size
    }
}

/// One capability of a region.
package enum VFIOUserRegionCapability: Hashable, Sendable {
    /// Only these areas of the region can be mapped, all of them through one descriptor.
    case sparseMapping([VFIOUserMappableArea])
    /// What a region is that VFIO does not number.
    case type(UInt32, subtype: UInt32)
    /// The MSI-X table may stay mapped.
    case msixMappable
    /// Another, with the bytes after its header.
    case unknown(id: UInt16, version: UInt16, [UInt8])

    private static let headerByteCount = 8

    private var id: UInt16 {
        switch self {
        case .sparseMapping: 1
        case .type: 2
        case .msixMappable: 3
        case .unknown(let id, _, _): id
        }
    }

    private var version: UInt16 {
        if case .unknown(_, let version, _) = self { return version }
        return 1
    }

    private var body: [UInt8] {
        var bytes: [UInt8] = []
        switch self {
        case .sparseMapping(let areas):
            bytes.append(word: UInt32(truncatingIfNeeded: areas.count))
            bytes.append(word: UInt32(0))
            for area in areas {
                bytes.append(word: area.offset)
                bytes.append(word: area.size)
            }
        case .type(let type, let subtype):
            bytes.append(word: type)
            bytes.append(word: subtype)
        case .msixMappable: break
        case .unknown(_, _, let body): bytes = body
        }
        return bytes
    }

    /// The chain as it follows a region's information, which is where its offsets count from.
    package static func chain(_ capabilities: [Self]) -> [UInt8] {
        var bytes: [UInt8] = []
        for (index, capability) in capabilities.enumerated() {
            var body = capability.body
            // Each begins at a multiple of 8, for clients that point a struct at it.
            body.append(contentsOf: repeatElement(0, count: (8 - body.count % 8) % 8))
            let end = VFIOUserRegionInfo.byteCount + bytes.count + headerByteCount + body.count
            bytes.append(word: capability.id)
            bytes.append(word: capability.version)
            bytes.append(word: index == capabilities.count - 1 ? 0 : UInt32(truncatingIfNeeded: end))
            bytes.append(contentsOf: body)
        }
        return bytes
    }

    /// Reads the chain of a reply; nil where it leaves the payload, runs backwards or does not end.
    ///
    /// - Parameters:
    ///   - payload: The whole payload, from the region's information on.
    ///   - first: The information's offset of the first capability; 0 for none.
    package static func parse(_ payload: [UInt8], from first: UInt32) -> [Self]? {
        var capabilities: [Self] = []
        var offset = Int(first)
        var previousEnd = VFIOUserRegionInfo.byteCount
        while offset != 0 {
            // Forward only: a chain that ends in itself is no chain.
            guard offset >= previousEnd, let id = payload.word(at: offset, as: UInt16.self),
                let version = payload.word(at: offset + 2, as: UInt16.self),
                let next = payload.word(at: offset + 4, as: UInt32.self)
            else { return nil }
            let start = offset + headerByteCount
            let end = next == 0 ? payload.count : Int(next)
            guard end >= start, end <= payload.count,
                let capability = Self(id: id, version: version, Array(payload[start..<end]))
            else { return nil }
            capabilities.append(capability)
            previousEnd = start
            offset = Int(next)
        }
        return capabilities
    }

    private init?(id: UInt16, version: UInt16, _ body: [UInt8]) {
        switch (id, version) {
        case (1, 1):
            guard let count = body.word(at: 0, as: UInt32.self), Int(count) <= max(0, body.count - 8) / 16
            else { return nil }
            var areas: [VFIOUserMappableArea] = []
            for index in 0..<Int(count) {
                guard let offset = body.word(at: 8 + index * 16, as: UInt64.self),
                    let size = body.word(at: 16 + index * 16, as: UInt64.self)
                else { return nil }
                areas.append(VFIOUserMappableArea(offset: offset, size: size))
            }
            self = .sparseMapping(areas)
        case (2, 1):
            guard let type = body.word(at: 0, as: UInt32.self),
                let subtype = body.word(at: 4, as: UInt32.self)
            else { return nil }
            self = .type(type, subtype: subtype)
        case (3, 1): self = .msixMappable
        default: self = .unknown(id: id, version: version, body)
        }
    }
}
