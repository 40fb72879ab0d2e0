// The address map as readers see it: plain words that never change once they are published.

public import AddressSpace
public import CLinux
public import DeviceModel
import GuestMemory
public import Synchronization

/// A window's target, at one address for as long as a snapshot may name it.
final class WindowBox: Sendable {
    let target: any RegisterTarget

    init(_ target: any RegisterTarget) { self.target = target }
}

/// Memory of a peer, at one address for as long as a snapshot may name it.
final class RemoteBox: Sendable {
    let memory: any RemoteMemory
    let isWritable: Bool

    init(_ memory: any RemoteMemory, isWritable: Bool) {
        self.memory = memory
        self.isWritable = isWritable
    }
}

/// One range of memory that a peer keeps to itself.
struct RemoteRecord {
    let first: UInt64
    let last: UInt64
    let box: Unmanaged<RemoteBox>
}

/// One range of RAM.
///
/// Nothing in it is counted: what it points at is kept alive by the bus.
struct RAMRecord {
    let first: UInt64
    let last: UInt64
    let host: UnsafeMutableRawPointer
    let lostFlag: UnsafePointer<UInt32>
    let isWritable: Bool
}

/// One window of registers.
struct WindowRecord {
    let first: UInt64
    let last: UInt64
    let box: Unmanaged<WindowBox>
}

/// What of the map one pointer publishes: each kind of entry in ascending order of address.
///
/// RAM has a table of its own so that the accesses of the SMMU search one or two records, not the board's windows.
@usableFromInline struct BusSnapshot {
    /// The first RAM, for readers of descriptors.
    @usableFromInline let firstSpan: DescriptorSpan
    let ram: UnsafeMutableBufferPointer<RAMRecord>
    let windows: UnsafeMutableBufferPointer<WindowRecord>
    let remotes: UnsafeMutableBufferPointer<RemoteRecord>

    init(ram: [RAMRecord], windows: [WindowRecord], remotes: [RemoteRecord]) {
        firstSpan = ram.first.flatMap { DescriptorSpan($0) } ?? DescriptorSpan()
        self.ram = .allocate(capacity: ram.count)
        self.windows = .allocate(capacity: windows.count)
        self.remotes = .allocate(capacity: remotes.count)
        _ = self.ram.initialize(from: ram)
        _ = self.windows.initialize(from: windows)
        _ = self.remotes.initialize(from: remotes)
    }

    /// Gives the tables back, which nobody may read any more.
    func deallocate() {
        ram.deallocate()
        windows.deallocate()
        remotes.deallocate()
    }

    /// The RAM that holds `address`.
    @inline(__always)
    func ram(containing address: UInt64) -> UnsafeMutablePointer<RAMRecord>? {
        guard let base = ram.baseAddress else { return nil }
        var low = 0
        var high = ram.count
        while low < high {
            let middle = (low &+ high) &>> 1
            if base[middle].last < address { low = middle &+ 1 } else { high = middle }
        }
        guard low < ram.count, base[low].first <= address else { return nil }
        return base + low
    }

    /// The window that holds `address`.
    @inline(__always)
    func window(containing address: UInt64) -> UnsafeMutablePointer<WindowRecord>? {
        guard let base = windows.baseAddress else { return nil }
        var low = 0
        var high = windows.count
        while low < high {
            let middle = (low &+ high) &>> 1
            if base[middle].last < address { low = middle &+ 1 } else { high = middle }
        }
        guard low < windows.count, base[low].first <= address else { return nil }
        return base + low
    }

    /// The memory of a peer that holds `address`; there are few, and they are slow.
    func remote(containing address: UInt64) -> RemoteRecord? {
        remotes.first { $0.first <= address && address <= $0.last }
    }
}

/// RAM in one piece, as the host's memory.
public struct HostSpan {
    public let start: UnsafeMutableRawPointer
    /// The distance of its last byte from its first.
    public let last: UInt64
    /// 1 once a peer has truncated the memory and somebody touched what is gone.
    public let lostFlag: UnsafePointer<UInt32>
    public let isWritable: Bool

    @inlinable public init(
        start: UnsafeMutableRawPointer,
        last: UInt64,
        lostFlag: UnsafePointer<UInt32>,
        isWritable: Bool
    ) {
        (self.start, self.last, self.lostFlag, self.isWritable) = (start, last, lostFlag, isWritable)
    }
}

/// The map of a ``SystemBus`` without the bus: a pointer that is good as long as the bus lives.
///
/// For ports: counting references to the bus would cost a hit as much as all the rest of it.
// SAFETY of @unchecked Sendable: the pointer never changes, and what it points at is atomic.
public struct BusView: @unchecked Sendable {
    /// In memory of its own, which nothing else shares: every access reads it.
    @usableFromInline let published: UnsafeMutablePointer<Atomic<UnsafeMutablePointer<BusSnapshot>>>
    /// Beside it: how often the map has changed.
    @usableFromInline let changes: UnsafeMutablePointer<UInt64>

    init(publishing first: UnsafeMutablePointer<BusSnapshot>) {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
        published = memory.bindMemory(to: Atomic<UnsafeMutablePointer<BusSnapshot>>.self, capacity: 1)
        published.initialize(to: Atomic(first))
        changes = (memory + 8).bindMemory(to: UInt64.self, capacity: 1)
        changes.initialize(to: 0)
    }

    /// Gives the pointer's memory back, not what it points at.
    func deallocate() {
        published.deinitialize(count: 1)
        UnsafeMutableRawPointer(published).deallocate()
    }

    /// Publishes another map; one thread at a time.
    ///
    /// - Returns: The one before.
    func publish(_ next: UnsafeMutablePointer<BusSnapshot>) -> UnsafeMutablePointer<BusSnapshot> {
        let old = published.pointee.exchange(next, ordering: .sequentiallyConsistent)
        // After the map: who finds the new count finds the new map.
        smmud_store_u64(changes, changes.pointee &+ 1)
        return old
    }

    /// How often the map has changed.
    ///
    /// Where it is what it was before ``hostSpan(at:)``, what that found is still in the map, and stays until those
    /// who are under way now have ended.
    @inlinable public var version: UInt64 { smmud_load_u64(changes) }

    /// The RAM from an address on, as far as it is in one piece; nil where there is none.
    public func hostSpan(at address: PhysicalAddress) -> HostSpan? {
        guard let record = snapshot.pointee.ram(containing: address.rawValue), !record.pointee.isLost else {
            return nil
        }
        return HostSpan(
            start: record.pointee.hostPointer(to: address.rawValue),
            last: record.pointee.last &- address.rawValue,
            lostFlag: record.pointee.lostFlag,
            isWritable: record.pointee.isWritable
        )
    }

    /// Whether some memory in the map is a peer's, so that an access may have to wait for it; for an access under way.
    public var hasRemoteMemory: Bool { !snapshot.pointee.remotes.isEmpty }

    /// All RAM in one piece that an address lies in, and the address of its first byte; nil where there is none.
    public func hostMemory(containing address: PhysicalAddress) -> (first: UInt64, span: HostSpan)? {
        guard let record = snapshot.pointee.ram(containing: address.rawValue) else { return nil }
        let first = record.pointee.first
        return hostSpan(at: PhysicalAddress(first)).map { (first, $0) }
    }

    /// The map as it is now, for those for whom the caller of ``SystemBus/reclaim(through:)`` waits.
    @inline(__always)  // Once for each look-up that misses, and more.
    @inlinable var snapshot: UnsafeMutablePointer<BusSnapshot> {
        published.pointee.load(ordering: .acquiring)
    }

    /// As ``SystemBus/copyOut(at:into:)``.
    public func copyOut(at address: PhysicalAddress, into buffer: UnsafeMutableRawBufferPointer)
        throws(BusError)
    {
        try SystemBus.copyOut(at: address, into: buffer, in: snapshot)
    }

    /// As ``SystemBus/copyIn(_:at:)``.
    public func copyIn(_ buffer: UnsafeRawBufferPointer, at address: PhysicalAddress) throws(BusError) {
        try SystemBus.copyIn(buffer, at: address, in: snapshot)
    }
}
