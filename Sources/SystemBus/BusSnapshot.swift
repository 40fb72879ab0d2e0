// The address map as readers see it: plain words that never change once they are published.

import AddressSpace
import DeviceModel
import GuestMemory

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
struct BusSnapshot {
    let ram: UnsafeMutableBufferPointer<RAMRecord>
    let windows: UnsafeMutableBufferPointer<WindowRecord>
    let remotes: UnsafeMutableBufferPointer<RemoteRecord>

    init(ram: [RAMRecord], windows: [WindowRecord], remotes: [RemoteRecord]) {
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
