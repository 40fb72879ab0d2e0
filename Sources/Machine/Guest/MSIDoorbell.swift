// Where messages of devices end: the doorbell of a GICv2m frame or an ITS.

import AddressSpace
package import DeviceModel
import DeviceTree
import Synchronization
import SystemBus

/// An MSI controller's doorbell on the machine's bus.
///
/// A message is a DMA write like any other: it is translated, and arrives here. Where a guest runs in QEMU the
/// message is passed on to its interrupt controller, by the window's vectors or by qtest; otherwise it is counted.
package final class MSIDoorbell: RegisterTarget {
    /// The node's path.
    package let path: String
    /// The frame's first byte.
    private let base: UInt64
    /// The doorbell in the frame.
    private let doorbell: UInt64
    /// Whether a message's data is the INTID that becomes pending, as with a GICv2m frame.
    let takesInterruptIDs: Bool
    private struct State: Sendable {
        var count: UInt64 = 0
        var last: UInt32?
        var client: QtestClient?
        weak var window: MachineWindow?
    }
    private let state = Mutex(State())

    init?(_ node: MSIControllerNode) {
        guard let frame = node.registers.first else { return nil }
        path = node.path
        base = frame.range.first
        switch node.kind {
        case .gicV2m: doorbell = 0x40  // MSI_SETSPI_NS
        case .its: doorbell = 0x1_0040  // GITS_TRANSLATER
        case .other: return nil
        }
        takesInterruptIDs = node.kind == .gicV2m
    }

    /// How many messages came, and the last one's data.
    package var messages: (count: UInt64, last: UInt32?) { state.withLock { ($0.count, $0.last) } }

    func connect(_ client: QtestClient) { state.withLock { $0.client = client } }

    /// Has messages go by the window's vectors where its client bound them.
    func connect(_ window: MachineWindow) { state.withLock { $0.window = window } }

    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }

    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard offset == doorbell, width == .word || width == .halfword else { throw .noSuchRegister }
        let data = UInt32(truncatingIfNeeded: value)
        let (client, window) = state.withLock { state in
            state.count &+= 1
            state.last = data
            return (state.client, state.window)
        }
        if let window, window.send(message: data) { return }
        client?.writeWord(data, at: base &+ offset)
    }
}
