// What the device reaches of the client's memory.

import AddressSpace
import Glibc
import GuestMemory
import VFIOUserProtocol

extension VFIOUserClient {
    /// What a device may do with memory.
    public struct MemoryAccess: OptionSet, Hashable, Sendable {
        public var rawValue: UInt32

        public init(rawValue: UInt32) { self.rawValue = rawValue }

        public static let read = Self(rawValue: 1)
        public static let write = Self(rawValue: 2)
    }

    /// Lets the device reach shared memory at an address of its own (DMA_MAP with a descriptor).
    ///
    /// A server that does not map it asks for the bytes instead, and is answered from the memory.
    ///
    /// - Parameters:
    ///   - offset: Where in the memory the range begins.
    ///   - address: What the device calls its first byte.
    /// - Throws: ``VFIOUserClientError``; ``VFIOUserClientError/invalid(_:)`` where the device has something there
    ///   already, or the range is not all in the memory.
    public func map(
        _ memory: VFIOUserSharedMemory,
        offset: UInt64 = 0,
        byteCount: UInt64,
        at address: UInt64,
        access: MemoryAccess = [.read, .write]
    ) throws(VFIOUserClientError) {
        let source = MemoryService.Source.region(memory.region, offset: offset)
        try map(memory, offset: offset, byteCount: byteCount, at: address, access: access, servedBy: source)
    }

    /// Lets the device reach an address range by asking for each access (DMA_MAP without a descriptor).
    ///
    /// - Parameter handler: Answers; see ``VFIOUserMemoryHandler``.
    /// - Throws: As ``map(_:offset:byteCount:at:access:)``.
    public func map(
        _ handler: any VFIOUserMemoryHandler,
        byteCount: UInt64,
        at address: UInt64,
        access: MemoryAccess = [.read, .write]
    ) throws(VFIOUserClientError) {
        try map(
            nil,
            offset: 0,
            byteCount: byteCount,
            at: address,
            access: access,
            servedBy: .handler(handler)
        )
    }

    /// Shares memory by its descriptor, with accesses by message answered by a handler of their own.
    package func map(
        _ memory: VFIOUserSharedMemory?,
        offset: UInt64,
        byteCount: UInt64,
        at address: UInt64,
        access: MemoryAccess,
        servedBy handler: any VFIOUserMemoryHandler
    ) throws(VFIOUserClientError) {
        try map(
            memory,
            offset: offset,
            byteCount: byteCount,
            at: address,
            access: access,
            servedBy: .handler(handler)
        )
    }

    private func map(
        _ memory: VFIOUserSharedMemory?,
        offset: UInt64,
        byteCount: UInt64,
        at address: UInt64,
        access: MemoryAccess,
        servedBy source: MemoryService.Source
    ) throws(VFIOUserClientError) {
        let range = try Self.range(address, byteCount)
        var fileOffset: UInt64 = 0
        var descriptors: [CInt] = []
        if let memory {
            guard offset <= memory.byteCount, byteCount <= memory.byteCount - offset else {
                throw .invalid(
                    "\(byteCount) bytes at \(offset) leave the memory of \(memory.byteCount) bytes"
                )
            }
            guard descriptorsPerMessage > 0 else { throw .unsupported("memory by descriptor") }
            fileOffset = memory.region.fileOffset + offset
            descriptors = [memory.region.fileDescriptor]
        }
        guard connection.memory.count < server.mappingCountMax else {
            throw .unsupported("more than \(server.mappingCountMax) mappings")
        }
        let mapping = MemoryService.Mapping(
            isReadable: access.contains(.read),
            isWritable: access.contains(.write),
            source: source
        )
        if let existing = connection.memory.insert(mapping, at: range) {
            throw .invalid("\(range) is mapped already, or part of it: \(existing)")
        }
        let request = VFIOUserDMAMap(
            flags: VFIOUserDMAFlags(rawValue: access.rawValue & 3),
            offset: fileOffset,
            address: address,
            size: byteCount
        )
        do throws(VFIOUserClientError) {
            _ = try call(.mapDMA(request), descriptors: descriptors)
        } catch {
            connection.memory.remove(range)
            throw error
        }
    }

    /// Takes a range back that was mapped as it is.
    ///
    /// When this returns without an error the server has let go of the memory, and no handler is called for it any
    /// more (but one that calls this). A server that does not answer has not let go of what it was given a
    /// descriptor of: no client can take that from it.
    public func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserClientError) {
        let range = try Self.range(address, byteCount)
        guard connection.memory.contains(range) else { throw .invalid("\(range) is not mapped as it is") }
        _ = try call(.unmapDMA(VFIOUserDMAUnmap(address: address, size: byteCount)))
        connection.memory.remove(range)
    }

    private static func range(_ address: UInt64, _ byteCount: UInt64) throws(VFIOUserClientError)
        -> AddressRange
    {
        guard let range = AddressRange(start: address, byteCount: byteCount) else {
            throw .invalid("\(byteCount) bytes at \(address) are none, or leave 64 bits")
        }
        return range
    }
}
