// Under which number a function's requests go up, and whether they do.

package import AddressSpace
package import DeviceModel
package import Glibc
import Synchronization

/// One function's identity on the way up, as the bridges above it are programmed now.
///
/// Made before the function, because the function's ports are made of it; ``PCIHostBridge/add(_:requester:at:)`` brings
/// the two together. Until then nothing goes up.
package final class PCIRequester: Sendable {
    /// Bits 15:0 are the requester ID; bit 16: requests go up.
    private let word = Atomic<UInt32>(0)

    package init() {}

    /// Bus number in bits 15:8, device in 7:3, function in 2:0.
    package var requesterID: UInt16 { UInt16(truncatingIfNeeded: word.load(ordering: .relaxed)) }

    /// Whether the bridges above let requests through.
    package var isOpen: Bool { word.load(ordering: .relaxed) & Self.open != 0 }

    static let open: UInt32 = 1 << 16

    // Relaxed: a write of a bus number that a transaction overtakes is one that came a little later.
    @inline(__always)  // One load on the way of each transaction.
    var current: UInt32 { word.load(ordering: .relaxed) }

    /// Sets both.
    ///
    /// - Returns: Whether the requester ID changed.
    func set(_ requesterID: UInt16, isOpen: Bool) -> Bool {
        let new = UInt32(requesterID) | (isOpen ? Self.open : 0)
        return UInt16(truncatingIfNeeded: word.exchange(new, ordering: .relaxed)) != requesterID
    }
}

/// A function's port that follows its requester ID: what stands behind it is made anew when software has renumbered
/// the buses.
///
/// Each transaction costs one load more than on the port behind. While a bridge above lets nothing through,
/// transactions end in ``DMAFault/Cause/aborted``.
package final class RequesterPort: DMAPort {
    private let requester: PCIRequester
    private let makePort: (UInt16) -> any DMAPort
    private var port: (any DMAPort)?
    /// What ``port`` was made for; no requester's word is 0xFFFF_FFFF.
    private var portWord = UInt32.max

    /// - Parameter makePort: A new view of memory for one user: the StreamID that this requester ID has.
    package init(_ requester: PCIRequester, makePort: @escaping (UInt16) -> any DMAPort) {
        self.requester = requester
        self.makePort = makePort
    }

    package func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try current(address).read(at: address, into: buffer, attributes)
    }

    package func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try current(address).write(buffer, at: address, attributes)
    }

    package func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool {
        let address = ranges.first?.address ?? IOVirtualAddress(0)
        return try current(address).lend(ranges, for: direction, attributes, body)
    }

    package func rest() { port?.rest() }

    @inline(__always)  // A load and a compare on the way of each transaction.
    private func current(_ address: IOVirtualAddress) throws(DMAFault) -> any DMAPort {
        let word = requester.current
        if word == portWord, let port { return port }
        return try renew(word, address)
    }

    private func renew(_ word: UInt32, _ address: IOVirtualAddress) throws(DMAFault) -> any DMAPort {
        guard word & PCIRequester.open != 0 else {
            throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
        }
        let port = makePort(UInt16(truncatingIfNeeded: word))
        self.port = port
        portWord = word
        return port
    }
}
