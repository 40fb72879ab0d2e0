// The port of a device that no SMMU stands before.

public import AddressSpace
public import DeviceModel
public import Glibc
import GuestMemory

/// A device's view of plain memory: its addresses are physical addresses.
///
/// A device cannot tell it from a port behind an SMMU, except that nothing is translated and nothing is recorded.
public final class DirectPort: DMAPort {
    private let bus: SystemBus
    private let view: BusView
    private let tracker: TransactionTracker
    private let slot: TransactionTracker.Slot

    /// - Parameter tracker: Where the port shows that it is inside a transaction; it outlives the port.
    public init(bus: SystemBus, tracker: TransactionTracker) {
        self.bus = bus
        view = bus.view
        self.tracker = tracker
        slot = tracker.acquireSlot()
    }

    deinit { tracker.releaseSlot(slot) }

    public func rest() { tracker.rest() }

    public func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        slot.enter()
        defer { slot.leave() }
        do {
            try view.copyOut(at: PhysicalAddress(address.rawValue), into: buffer)
        } catch {
            throw fault(error, address, buffer.count)
        }
    }

    public func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        slot.enter()
        defer { slot.leave() }
        do {
            try view.copyIn(buffer, at: PhysicalAddress(address.rawValue))
        } catch {
            throw fault(error, address, buffer.count)
        }
    }

    public func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool {
        slot.enter()
        defer { slot.leave() }
        var segments: [iovec] = []
        for range in ranges where range.byteCount > 0 {
            guard
                bus.appendSegments(
                    at: PhysicalAddress(range.address.rawValue),
                    byteCount: range.byteCount,
                    for: direction,
                    to: &segments
                )
            else { return false }
        }
        segments.withUnsafeBufferPointer(body)
        return true
    }

    /// The fault's place, from the physical address at which the bus gave up.
    private func fault(_ error: BusError, _ start: IOVirtualAddress, _ count: Int) -> DMAFault {
        let done = min(error.address.rawValue &- start.rawValue, UInt64(truncatingIfNeeded: count))
        return DMAFault(
            cause: .bus(error),
            address: IOVirtualAddress(start.rawValue &+ done),
            bytesTransferred: done
        )
    }
}
