// Where messages of devices end: the doorbell of a GICv2m frame or an ITS.

import AddressSpace
package import DeviceModel
import DeviceTree
import Synchronization
import SystemBus

/// An MSI controller's doorbell on the machine's bus.
///
/// A message is a DMA write like any other: it is translated, and arrives here. Where a guest runs in QEMU the
/// message is passed on to its interrupt controller; otherwise it is counted.
package final class MSIDoorbell: RegisterTarget {
    /// The node's path.
    package let path: String
    /// The frame's first byte.
    private let base: UInt64
    /// The doorbell in the frame.
    private let doorbell: UInt64
    private let client: QtestClient?
    private let received = Mutex<(count: UInt64, last: UInt32?)>((0, nil))

    init?(_ node: MSIControllerNode, client: QtestClient?) {
        guard let frame = node.registers.first else { return nil }
        path = node.path
        base = frame.range.first
        self.client = client
        switch node.kind {
        case .gicV2m: doorbell = 0x40  // MSI_SETSPI_NS
        case .its: doorbell = 0x1_0040  // GITS_TRANSLATER
        case .other: return nil
        }
    }

    /// How many messages came, and the last one's data.
    package var messages: (count: UInt64, last: UInt32?) { received.withLock { $0 } }

    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }

    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard offset == doorbell, width == .word || width == .halfword else { throw .noSuchRegister }
        let data = UInt32(truncatingIfNeeded: value)
        received.withLock { $0 = ($0.count &+ 1, data) }
        client?.writeWord(data, at: base &+ offset)
    }
}
