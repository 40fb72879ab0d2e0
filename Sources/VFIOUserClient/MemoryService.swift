// What a server reaches of our memory by DMA_READ and DMA_WRITE.

import AddressSpace
import CLinux
import Glibc
import GuestMemory
import Synchronization
import VFIOUserProtocol

/// Answers a device's accesses to memory that is not shared with its server by descriptor.
///
/// Called for one access at a time, on a thread of the client, which does nothing else meanwhile: a handler may use
/// the client, and what takes long holds up the device's other accesses only.
public protocol VFIOUserMemoryHandler: AnyObject, Sendable {
    /// Fills `buffer` with the memory at `address`, as the device addresses it.
    ///
    /// - Throws: The error that the server is told; it gets no bytes then.
    func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(VFIOUserMemoryError)
    /// Writes `buffer` to the memory at `address`, as the device addresses it.
    ///
    /// - Throws: The error that the server is told; part of the bytes may have been written.
    func write(_ buffer: UnsafeRawBufferPointer, at address: UInt64) throws(VFIOUserMemoryError)
}

/// What stands in DMA_MAPs, and the server's accesses to it.
///
/// Locks, in order: `serving`, held while a handler runs, then the table's, a leaf.
final class MemoryService: Sendable {
    /// Who has the bytes of a mapping.
    enum Source: Sendable {
        /// A region that the server has a descriptor of, from this offset on.
        case region(MemoryRegion, offset: UInt64)
        case handler(any VFIOUserMemoryHandler)
    }
    struct Mapping: Sendable {
        var isReadable: Bool
        var isWritable: Bool
        var source: Source
    }
    /// A server's command.
    enum Command: Sendable {
        case read(VFIOUserHeader, VFIOUserDMAAccess)
        case write(VFIOUserHeader, VFIOUserDMAAccess, [UInt8])

        var byteCount: Int {
            if case .write(_, _, let data) = self { return data.count }
            return 0
        }
    }

    private let table = Mutex(AddressMap<Mapping>())
    private let serving = Mutex(())
    /// The thread that serves, where one does: it must not wait for itself.
    private let servingThread = Atomic<UInt>(0)

    /// How many mappings there are.
    var count: Int { table.withLock { $0.entries.count } }

    /// Adds a mapping, before the server hears of it: its first access may come before its answer.
    ///
    /// - Returns: Nil, or the mapping's range that is in the way.
    func insert(_ mapping: Mapping, at range: AddressRange) -> AddressRange? {
        table.withLock { table in
            do throws(AddressConflict) {
                try table.insert(mapping, at: range)
                return nil
            } catch {
                return error.existing
            }
        }
    }

    /// Whether this very range is mapped.
    func contains(_ range: AddressRange) -> Bool {
        table.withLock { $0.entry(containing: range.first)?.range == range }
    }

    /// Removes a mapping; when this returns, no access to it is being served any more.
    ///
    /// On the thread that serves, where a handler gives memory back, its own access goes on.
    func remove(_ range: AddressRange) {
        _ = table.withLock { $0.remove(range) }
        guard servingThread.load(ordering: .acquiring) != Self.currentThread else { return }
        serving.withLock { _ in }
    }

    /// Removes all mappings, as ``remove(_:)`` does one.
    func removeAll() {
        table.withLock { $0 = AddressMap() }
        guard servingThread.load(ordering: .acquiring) != Self.currentThread else { return }
        serving.withLock { _ in }
    }

    private static var currentThread: UInt { UInt(pthread_self()) }

    // MARK: Serving

    /// Carries a command out.
    ///
    /// - Returns: The answer; nil where the server wants none.
    func serve(_ command: Command) -> [UInt8]? {
        serving.withLock { _ in
            servingThread.store(Self.currentThread, ordering: .releasing)
            defer { servingThread.store(0, ordering: .releasing) }
            switch command {
            case .read(let header, let access): return read(header, access)
            case .write(let header, let access, let data): return write(header, access, data)
            }
        }
    }

    private func read(_ header: VFIOUserHeader, _ access: VFIOUserDMAAccess) -> [UInt8]? {
        // The count has been checked against what we take; the answer is one allocation.
        let lead = VFIOUserHeader.byteCount + VFIOUserDMAAccess.byteCount
        var message = header.success(payload: access.bytes + [UInt8](repeating: 0, count: Int(access.count)))
        let error: VFIOUserMemoryError? = message.withUnsafeMutableBytes { bytes in
            forEachPiece(access, isWrite: false) {
                (mapping, delta, address, range) throws(VFIOUserMemoryError) in
                let buffer = UnsafeMutableRawBufferPointer(
                    rebasing: bytes[(lead + range.lowerBound)...].prefix(range.count)
                )
                switch mapping.source {
                case .handler(let handler): try handler.read(at: address, into: buffer)
                case .region(let region, let offset):
                    try Self.copy(region, offset &+ delta, buffer.count, .read) { shared in
                        smmud_copy_from_shared(buffer.baseAddress, shared, buffer.count)
                    }
                }
            }
        }
        guard header.wantsReply else { return nil }
        if let error { return header.failure(error.onWire) }
        return message
    }

    private func write(_ header: VFIOUserHeader, _ access: VFIOUserDMAAccess, _ data: [UInt8]) -> [UInt8]? {
        let error: VFIOUserMemoryError? = data.withUnsafeBytes { bytes in
            forEachPiece(access, isWrite: true) {
                (mapping, delta, address, range) throws(VFIOUserMemoryError) in
                let buffer = UnsafeRawBufferPointer(rebasing: bytes[range])
                switch mapping.source {
                case .handler(let handler): try handler.write(buffer, at: address)
                case .region(let region, let offset):
                    try Self.copy(region, offset &+ delta, buffer.count, .write) { shared in
                        smmud_copy_to_shared(shared, buffer.baseAddress, buffer.count)
                    }
                }
            }
        }
        guard header.wantsReply else { return nil }
        if let error { return header.failure(error.onWire) }
        return header.success(payload: access.bytes)
    }

    /// Calls `body` for each mapping that an access touches, in the order of addresses, until one fails.
    ///
    /// - Parameter body: Gets the mapping, how far behind its start the piece lies, the piece's address, and which
    ///   of the access's bytes it is.
    private func forEachPiece(
        _ access: VFIOUserDMAAccess,
        isWrite: Bool,
        _ body: (Mapping, UInt64, UInt64, Range<Int>) throws(VFIOUserMemoryError) -> Void
    ) -> VFIOUserMemoryError? {
        var done: UInt64 = 0
        while done < access.count {
            let address = access.address &+ done
            guard let entry = table.withLock({ $0.entry(containing: address) }) else { return .badAddress }
            guard isWrite ? entry.value.isWritable : entry.value.isReadable else { return .notPermitted }
            // To the last byte of the mapping, which may be the last of 64 bits.
            let count = min(access.count - done, (entry.range.last - address) &+ 1)
            guard count > 0 else { return .badAddress }
            do throws(VFIOUserMemoryError) {
                try body(entry.value, address - entry.range.first, address, Int(done)..<Int(done + count))
            } catch {
                return error
            }
            done += count
        }
        return nil
    }

    private static func copy(
        _ region: MemoryRegion,
        _ offset: UInt64,
        _ count: Int,
        _ access: MemoryAccess,
        _ body: (UnsafeMutableRawPointer) -> Void
    ) throws(VFIOUserMemoryError) {
        do throws(GuestMemoryError) {
            body(try region.pointer(at: offset, count: UInt64(count), for: access))
        } catch {
            throw .badAddress
        }
        guard !region.isLost else { throw .badAddress }
    }
}

extension VFIOUserMemoryError {
    fileprivate var onWire: VFIOUserError { VFIOUserError(rawValue: UInt32(bitPattern: max(0, errno))) }
}
