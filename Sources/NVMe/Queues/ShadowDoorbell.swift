// A doorbell in memory: what Doorbell Buffer Config gives a queue.

import AddressSpace
import DeviceModel
import Synchronization

/// Where a queue's doorbell stands in the shadow doorbell buffer, and its entry in the EventIdx buffer.
///
/// Software writes the register only where its new value passes the EventIdx; else the controller finds the value
/// in memory while it is at work anyway.
final class ShadowDoorbell: Sendable {
    private static let none = UInt64.max
    private let doorbell = Atomic(ShadowDoorbell.none)
    private let eventIndex = Atomic(ShadowDoorbell.none)

    var isEnabled: Bool { doorbell.load(ordering: .acquiring) != Self.none }

    /// Puts `value` into both buffers, and uses them from now on.
    func enable(doorbell: UInt64, eventIndex: UInt64, value: UInt32, _ port: any DMAPort) throws(DMAFault) {
        try port.store(UInt64(value), .word, at: IOVirtualAddress(doorbell))
        try port.store(UInt64(value), .word, at: IOVirtualAddress(eventIndex))
        self.eventIndex.store(eventIndex, ordering: .releasing)
        self.doorbell.store(doorbell, ordering: .releasing)
    }

    /// Goes back to the register alone.
    func disable() { doorbell.store(Self.none, ordering: .releasing) }

    /// What software wrote; nil where there is no shadow.
    func load(_ port: any DMAPort) throws(DMAFault) -> UInt32? {
        let address = doorbell.load(ordering: .acquiring)
        guard address != Self.none else { return nil }
        return UInt32(truncatingIfNeeded: try port.load(.word, at: IOVirtualAddress(address)))
    }

    /// Asks for a register write as soon as software goes beyond `value`, then looks once more.
    ///
    /// Either software sees this EventIdx, or this sees what software wrote: both sides write, take a full barrier,
    /// and read.
    func arm(_ value: UInt32, _ port: any DMAPort) throws(DMAFault) -> UInt32? {
        guard isEnabled else { return nil }
        let address = eventIndex.load(ordering: .acquiring)
        try port.store(UInt64(value), .word, at: IOVirtualAddress(address))
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return try load(port)
    }
}
