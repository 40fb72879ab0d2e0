// A function's view of memory: what its Command register permits.

import AddressSpace
import DeviceModel
import Glibc
import Synchronization

/// A port of one function: while Bus Master Enable is 0 it issues nothing.
final class PCIFunctionPort: DMAPort {
    private let port: any DMAPort
    private let gate: BusMasterGate

    init(_ port: any DMAPort, _ gate: BusMasterGate) {
        self.port = port
        self.gate = gate
    }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try check(address)
        try port.read(at: address, into: buffer, attributes)
    }

    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try check(address)
        try port.write(buffer, at: address, attributes)
    }

    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool {
        try check(ranges.first?.address ?? IOVirtualAddress(0))
        return try port.lend(ranges, for: direction, attributes, body)
    }

    func rest() { port.rest() }

    private func check(_ address: IOVirtualAddress) throws(DMAFault) {
        guard gate.isOpen else { throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0) }
    }
}

/// Command.Bus Master Enable, for those who look at it at each transaction.
final class BusMasterGate: Sendable {
    private let value = Atomic(false)

    // Relaxed: a write of Command that a transaction overtakes is one that came a little later.
    var isOpen: Bool { value.load(ordering: .relaxed) }
    func set(_ isOpen: Bool) { value.store(isOpen, ordering: .relaxed) }
}
