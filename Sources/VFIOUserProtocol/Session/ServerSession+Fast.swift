// The two commands that a guest waits for, read where they lie: without a copy and without an allocation.
//
// Numbers are written out: names of constants are calls, between modules.

/// A whole REGION_READ or REGION_WRITE that was checked against the device's description.
package struct VFIOUserRegionRequest: Equatable, Sendable {
    package var messageID: UInt16
    package var isWrite: Bool
    package var wantsReply: Bool
    package var access: VFIOUserRegionAccess
}

/// Reads accesses to regions where they lie, once the client has been greeted.
package struct VFIOUserRegionRequestReader: Sendable {
    private struct Bounds: Sendable {
        let size: UInt64
        let isReadable: Bool
        let isWritable: Bool
    }

    private let bounds: [Bounds]
    private let dataByteCountMax: Int

    /// Where a header and the fields of an access end, and data begins.
    package static var headByteCount: Int { 32 }

    package init(device: VFIOUserDeviceDescription, limits: VFIOUserServerLimits) {
        bounds = device.regions.map { region in
            Bounds(size: region.size, isReadable: region.isReadable, isWritable: region.isWritable)
        }
        dataByteCountMax = limits.dataByteCountMax
    }

    /// Reads a message that lies whole in memory and came without descriptors, where it is an access to be carried
    /// out.
    ///
    /// Where it is not, or not one that is permitted, the same bytes go to
    /// ``VFIOUserServerSession/receive(_:descriptorCount:areDescriptorsLost:)``, which says what follows. A write's
    /// data is behind the first 32 bytes.
    package func request(_ message: UnsafeRawBufferPointer) -> VFIOUserRegionRequest? {
        guard message.count >= 32 else { return nil }
        let command = message.halfword(at: 2)
        let isWrite = command == 10
        guard isWrite || command == 9, message.word(at: 4) == UInt32(clamping: message.count) else {
            return nil
        }
        let flags = message.word(at: 8)
        guard flags & 0xf == 0 else { return nil }
        let access = VFIOUserRegionAccess(
            offset: message.doubleword(at: 16),
            region: message.word(at: 24),
            count: message.word(at: 28)
        )
        guard access.count > 0, access.count <= dataByteCountMax, access.region < bounds.count,
            message.count - 32 == (isWrite ? Int(access.count) : 0)
        else { return nil }
        let region = bounds[Int(access.region)]
        guard isWrite ? region.isWritable : region.isReadable,
            access.offset <= region.size, UInt64(access.count) <= region.size - access.offset
        else { return nil }
        return VFIOUserRegionRequest(
            messageID: message.halfword(at: 0),
            isWrite: isWrite,
            wantsReply: flags & 0x10 == 0,
            access: access
        )
    }
}

extension VFIOUserRegionRequest {
    /// Writes the start of the reply that says that it succeeded; a read's data follows.
    ///
    /// - Parameter reply: At least ``VFIOUserRegionRequestReader/headByteCount`` bytes.
    /// - Returns: How many bytes the reply has.
    package func writeSuccess(to reply: UnsafeMutableRawBufferPointer) -> Int {
        let byteCount = 32 + (isWrite ? 0 : Int(access.count))
        reply.store(messageID, at: 0)
        reply.store(UInt16(isWrite ? 10 : 9), at: 2)
        reply.store(UInt32(truncatingIfNeeded: byteCount), at: 4)
        reply.store(UInt32(1), at: 8)
        reply.store(UInt32(0), at: 12)
        reply.store(access.offset, at: 16)
        reply.store(access.region, at: 24)
        reply.store(access.count, at: 28)
        return byteCount
    }

    /// The header of the command, to say that it failed.
    package var header: VFIOUserHeader {
        VFIOUserHeader(
            messageID: messageID,
            command: isWrite ? .writeRegion : .readRegion,
            flags: wantsReply ? [] : .noReply
        )
    }
}

extension VFIOUserHeader {
    /// Reads a header where it lies; nil where it is not all there.
    package init?(at bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= 16 else { return nil }
        self.init(
            messageID: bytes.halfword(at: 0),
            command: VFIOUserCommand(rawValue: bytes.halfword(at: 2)),
            flags: Flags(rawValue: bytes.word(at: 8)),
            error: bytes.word(at: 12)
        )
        messageByteCount = bytes.word(at: 4)
    }
}

// Offsets are our own, and checked by who calls.
extension UnsafeRawBufferPointer {
    fileprivate func halfword(at offset: Int) -> UInt16 {
        UInt16(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }
    fileprivate func word(at offset: Int) -> UInt32 {
        UInt32(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }
    fileprivate func doubleword(at offset: Int) -> UInt64 {
        UInt64(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }
}

extension UnsafeMutableRawBufferPointer {
    fileprivate func store<Word: FixedWidthInteger>(_ word: Word, at offset: Int) {
        storeBytes(of: word.littleEndian, toByteOffset: offset, as: Word.self)
    }
}
