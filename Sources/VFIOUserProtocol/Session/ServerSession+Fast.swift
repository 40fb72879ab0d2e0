// The two commands that a guest waits for, read where they lie: without a copy and without an allocation.

/// A whole REGION_READ or REGION_WRITE that was checked against the device's description.
package struct VFIOUserRegionRequest: Equatable, Sendable {
    package var messageID: UInt16
    package var isWrite: Bool
    package var wantsReply: Bool
    package var access: VFIOUserRegionAccess
}

/// What an access to a region is checked against.
struct RegionBounds: Sendable {
    let size: UInt64
    let isReadable: Bool
    let isWritable: Bool

    init(_ region: VFIOUserRegionDescription) {
        size = region.size
        isReadable = region.isReadable
        isWritable = region.isWritable
    }
}

extension VFIOUserServerSession {
    /// Where a header and the fields of an access end, and data begins.
    package static let accessByteCount = VFIOUserHeader.byteCount + VFIOUserRegionAccess.byteCount

    /// Reads a message that lies whole in memory and came without descriptors, where it is an access to be carried
    /// out.
    ///
    /// Where it is not, or not one that is permitted, the same bytes go to
    /// ``receive(_:descriptorCount:areDescriptorsLost:)``, which says what follows. A write's data is behind the
    /// fields.
    ///
    /// - Returns: Nil too where the message is not the next one.
    package func regionRequest(_ message: UnsafeRawBufferPointer) -> VFIOUserRegionRequest? {
        guard isServing, isBetweenMessages, message.count >= Self.accessByteCount else { return nil }
        let command = VFIOUserCommand(rawValue: message.halfword(at: 2))
        let isWrite = command == .writeRegion
        guard isWrite || command == .readRegion, message.word(at: 4) == UInt32(clamping: message.count)
        else { return nil }
        let flags = VFIOUserHeader.Flags(rawValue: message.word(at: 8))
        guard flags.type == 0 else { return nil }
        let access = VFIOUserRegionAccess(
            offset: message.doubleword(at: 16),
            region: message.word(at: 24),
            count: message.word(at: 28)
        )
        guard access.count > 0, access.count <= limits.dataByteCountMax, access.region < bounds.count,
            message.count - Self.accessByteCount == (isWrite ? Int(access.count) : 0)
        else { return nil }
        let region = bounds[Int(access.region)]
        guard isWrite ? region.isWritable : region.isReadable,
            access.offset <= region.size, UInt64(access.count) <= region.size - access.offset
        else { return nil }
        return VFIOUserRegionRequest(
            messageID: message.halfword(at: 0),
            isWrite: isWrite,
            wantsReply: !flags.contains(.noReply),
            access: access
        )
    }
}

extension VFIOUserRegionRequest {
    /// Writes the start of the reply that says that it succeeded; a read's data follows.
    ///
    /// - Parameter reply: At least ``VFIOUserServerSession/accessByteCount`` bytes.
    /// - Returns: How many bytes the reply has.
    package func writeSuccess(to reply: UnsafeMutableRawBufferPointer) -> Int {
        let byteCount = VFIOUserServerSession.accessByteCount + (isWrite ? 0 : Int(access.count))
        reply.store(messageID, at: 0)
        reply.store((isWrite ? VFIOUserCommand.writeRegion : .readRegion).rawValue, at: 2)
        reply.store(UInt32(truncatingIfNeeded: byteCount), at: 4)
        reply.store(VFIOUserHeader.Flags.reply.rawValue, at: 8)
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
        guard bytes.count >= Self.byteCount else { return nil }
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
