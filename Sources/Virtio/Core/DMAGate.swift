// How a reset keeps a queue's thread from touching memory that is the driver's again.

import AddressSpace
import CLinux
import DeviceModel
import Glibc
import Synchronization

/// Says whether a queue may issue DMA, and whether it is at it.
///
/// Both sides store first and look then, sequentially consistent: either the thread sees that the gate is closed,
/// or whoever closes it sees that the thread is inside.
final class DMAGate: Sendable {
    /// Which activation of the queue may issue DMA; 0 is none.
    private let permitted = Atomic<UInt64>(0)
    /// Under which activation a transaction is in flight; 0 is none.
    private let inside = Atomic<UInt64>(0)

    func open(_ activation: UInt64) { permitted.store(activation, ordering: .sequentiallyConsistent) }
    func close() { permitted.store(0, ordering: .sequentiallyConsistent) }
    func isOpen(_ activation: UInt64) -> Bool { permitted.load(ordering: .relaxed) == activation }

    /// Begins a transaction.
    ///
    /// - Returns: Whether it may be issued; where not, there is nothing to leave.
    func enter(_ activation: UInt64) -> Bool {
        inside.store(activation, ordering: .sequentiallyConsistent)
        if permitted.load(ordering: .sequentiallyConsistent) == activation { return true }
        inside.store(0, ordering: .releasing)
        return false
    }

    func leave() { inside.store(0, ordering: .releasing) }

    /// Whether no transaction of a former activation is in flight.
    var isQuiet: Bool {
        let activation = inside.load(ordering: .sequentiallyConsistent)
        return activation == 0 || activation == permitted.load(ordering: .sequentiallyConsistent)
    }

    /// Waits for the transaction in flight, if there is one: it moves 1 MiB at most.
    func waitUntilQuiet() {
        var attempt: CInt = 0
        while !isQuiet {
            smmud_wait_a_little(attempt)
            if attempt < 1 << 20 { attempt += 1 }
        }
    }
}

/// A queue's view of memory during one activation: nothing passes once its gate is closed.
final class GatedPort: DMAPort {
    private let port: any DMAPort
    private let gate: DMAGate
    private let activation: UInt64

    init(_ port: any DMAPort, _ gate: DMAGate, _ activation: UInt64) {
        self.port = port
        self.gate = gate
        self.activation = activation
    }

    var isOpen: Bool { gate.isOpen(activation) }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try enter(address)
        defer { gate.leave() }
        try port.read(at: address, into: buffer, attributes)
    }

    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try enter(address)
        defer { gate.leave() }
        try port.write(buffer, at: address, attributes)
    }

    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool {
        try enter(ranges.first?.address ?? IOVirtualAddress(0))
        defer { gate.leave() }
        return try port.lend(ranges, for: direction, attributes, body)
    }

    func rest() { port.rest() }

    /// Runs `body`, which interrupts the driver, unless the queue was stopped meanwhile.
    func interrupt(_ body: () -> Void) {
        guard gate.enter(activation) else { return }
        defer { gate.leave() }
        body()
    }

    private func enter(_ address: IOVirtualAddress) throws(DMAFault) {
        guard gate.enter(activation) else {
            throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
        }
    }
}
