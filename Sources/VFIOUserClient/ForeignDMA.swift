// What a machine and a foreign device have to do with one another's memory.

package import AddressSpace
package import DeviceModel
package import GuestMemory
import Synchronization

/// What a machine gives a foreign device of its memory: a view of it with the device's identity, and, where the
/// machine knows them, the mappings that this view goes through.
package protocol ForeignDMA: AnyObject, Sendable {
    /// A view of memory with the device's identity, for one user: each access is translated.
    func makePort() -> any DMAPort
    /// Tells `follower` which addresses are mapped: those that are now, before this returns, and those that come.
    ///
    /// Only for devices that are given memory (``ForeignDevice/Window/mapped``). A machine can tell of mappings that
    /// it makes itself, and of a stream that bypasses translation; what a guest writes into its tables, nobody hears
    /// of.
    func follow(_ follower: any ForeignDMAFollower)
    /// Tells it no more. When this returns, no call to it is under way.
    func unfollow(_ follower: any ForeignDMAFollower)
}

/// Hears of mappings, one call at a time, in the order of what happens to them.
///
/// Both calls wait for the device's server, for as long as its client waits for answers. So they are made with no lock
/// held that a translation or a register access takes; a DMA of the device may be under way meanwhile.
package protocol ForeignDMAFollower: AnyObject, Sendable {
    /// The device may use these addresses from now on.
    ///
    /// A server that refuses it leaves the device without them, which is its loss.
    func mapped(_ mapping: ForeignDMAMapping)
    /// The device may not use these addresses any more; everything for all addresses (`0...UInt64.max`).
    ///
    /// When this returns, the server has answered that it uses the memory no more, or the connection has ended. A
    /// machine calls it after the translation is gone from its caches, and before the CMD_SYNC completes that
    /// follows the invalidation.
    func invalidated(_ range: AddressRange)
}

/// Addresses that lead to shared memory.
package struct ForeignDMAMapping: Sendable {
    /// As the device addresses them.
    package var range: AddressRange
    package var region: MemoryRegion
    /// Where in the region the range begins.
    package var offset: UInt64
    package var isReadable: Bool
    package var isWritable: Bool

    package init(
        range: AddressRange,
        region: MemoryRegion,
        offset: UInt64,
        isReadable: Bool,
        isWritable: Bool
    ) {
        self.range = range
        self.region = region
        self.offset = offset
        self.isReadable = isReadable
        self.isWritable = isWritable
    }
}

/// Serves a foreign device's accesses by message through a port, so that each is translated.
final class TranslatedMemory: VFIOUserMemoryHandler {
    // SAFETY of @unchecked Sendable: the port is only ever used under the lock.
    private struct SendablePort: @unchecked Sendable { let port: any DMAPort }
    private let port: Mutex<SendablePort>

    init(_ port: sending any DMAPort) { self.port = Mutex(SendablePort(port: port)) }

    func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(VFIOUserMemoryError) {
        try access { (port) throws(DMAFault) in
            try port.read(at: IOVirtualAddress(address), into: buffer, .plain)
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at address: UInt64) throws(VFIOUserMemoryError) {
        try access { (port) throws(DMAFault) in
            try port.write(buffer, at: IOVirtualAddress(address), .plain)
        }
    }

    /// Whatever the fault: the SMMU has recorded it, and the device hears that nothing is there.
    private func access(_ body: (any DMAPort) throws(DMAFault) -> Void) throws(VFIOUserMemoryError) {
        let isDone = port.withLock { held in
            do throws(DMAFault) {
                try body(held.port)
                return true
            } catch {
                return false
            }
        }
        guard isDone else { throw .badAddress }
    }
}

/// Shares with a device's server exactly what is mapped for the device.
///
/// Lock: `mappings`, held while the server is asked. The threads that serve the device take it never.
final class MappedWindow: ForeignDMAFollower {
    private let client: VFIOUserClient
    private let handler: any VFIOUserMemoryHandler
    private let report: @Sendable (String) -> Void
    private let mappings = Mutex(AddressMap<ForeignDMAMapping>())

    init(
        _ client: VFIOUserClient,
        servedBy handler: any VFIOUserMemoryHandler,
        report: @escaping @Sendable (String) -> Void
    ) {
        self.client = client
        self.handler = handler
        self.report = report
    }

    func mapped(_ mapping: ForeignDMAMapping) {
        mappings.withLock { mappings in
            // What was there before is not there any more, whether anybody said so or not.
            remove(mapping.range, &mappings)
            add(mapping, &mappings)
        }
    }

    func invalidated(_ range: AddressRange) { mappings.withLock { remove(range, &$0) } }

    private func add(_ mapping: ForeignDMAMapping, _ mappings: inout AddressMap<ForeignDMAMapping>) {
        // The whole of 64 bits has no size that a message could say.
        guard mapping.range.byteCount > 0 else { return report("a mapping of all addresses") }
        var access: VFIOUserClient.MemoryAccess = []
        if mapping.isReadable { access.insert(.read) }
        if mapping.isWritable { access.insert(.write) }
        do throws(VFIOUserClientError) {
            try client.map(
                VFIOUserSharedMemory(mapping.region),
                offset: mapping.offset,
                byteCount: mapping.range.byteCount,
                at: mapping.range.first,
                access: access,
                servedBy: handler
            )
        } catch {
            return report("\(mapping.range) is not shared: \(error)")
        }
        // Cannot conflict: what overlaps was removed.
        try? mappings.insert(mapping, at: mapping.range)
    }

    /// Takes all back that overlaps a range; what sticks out of it is shared again by itself.
    private func remove(_ range: AddressRange, _ mappings: inout AddressMap<ForeignDMAMapping>) {
        for entry in mappings.entries where entry.range.overlaps(range) {
            mappings.remove(entry.range)
            do throws(VFIOUserClientError) {
                try client.unmap(address: entry.range.first, byteCount: entry.range.byteCount)
            } catch {
                // A server that does not give memory back is no device any more.
                client.abandon(reason: "\(entry.range) was not given back: \(error)")
                report("\(entry.range) was not given back: \(error)")
                continue
            }
            if entry.range.first < range.first {
                addPart(of: entry.value, entry.range.first, range.first - 1, &mappings)
            }
            if entry.range.last > range.last {
                addPart(of: entry.value, range.last + 1, entry.range.last, &mappings)
            }
        }
    }

    private func addPart(
        of mapping: ForeignDMAMapping,
        _ first: UInt64,
        _ last: UInt64,
        _ mappings: inout AddressMap<ForeignDMAMapping>
    ) {
        guard let range = AddressRange(first: first, last: last) else { return }
        var part = mapping
        part.range = range
        part.offset = mapping.offset &+ (first - mapping.range.first)
        add(part, &mappings)
    }
}
