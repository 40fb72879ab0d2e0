// A root port: a function with a header of type 1, and what it forwards.

package import AddressSpace
import Synchronization

/// Whoever carries a root port: a host bridge.
package protocol PCIRootPortHost: AnyObject, Sendable {
    /// What the port forwards may have changed: bus numbers, windows, Command, its link or its power state.
    func forwardingChanged(of port: PCIRootPort)
    /// The link went down: by Bridge Control.Secondary Bus Reset, or Link Control.Link Disable.
    ///
    /// What stands below is to be reset.
    func linkWentDown(of port: PCIRootPort)
}

/// A PCI Express root port (PCI-to-PCI Bridge Architecture Specification, 3.2; PCI Express Base Specification, type 1
/// header).
///
/// It forwards memory and configuration accesses, no I/O. It has nothing of its own to interrupt for, so its pin
/// stays quiet, and it has no MSI.
///
/// Its lock is a leaf: the host is called without it.
package final class PCIRootPort: Sendable {
    /// What people call it.
    package let name: String
    private let offsets: CapabilityOffsets
    private let initial: ConfigurationSpace
    private let state: Mutex<State>

    private struct State: Sendable {
        var space: ConfigurationSpace
        /// Whether something stands below; it outlives a reset.
        var isOccupied = false
        weak var host: (any PCIRootPortHost)?
    }

    private enum Register {
        static let command = 0x04
        static let primaryBus = 0x18
        static let secondaryBus = 0x19
        static let subordinateBus = 0x1A
        static let memoryBase = 0x20
        static let prefetchableBase = 0x24
        static let prefetchableBaseUpper = 0x28
        static let prefetchableLimitUpper = 0x2C
        static let bridgeControl = 0x3E
    }

    /// Builds a root port in its state after power-on.
    ///
    /// - Parameters:
    ///   - identity: Its class code is a PCI-to-PCI bridge's, 0x060400, whatever is given.
    ///   - slotNumber: The number on the slot, 0...8191; nil where what stands below is soldered on.
    ///   - interruptPin: 0: none; 1 to 4: INTA to INTD.
    ///   - isMultiFunction: Whether other functions stand beside it in its device.
    package init(
        name: String,
        identity: PCIIdentity,
        slotNumber: UInt16? = nil,
        interruptPin: UInt8 = 1,
        isMultiFunction: Bool = false
    ) {
        self.name = name
        var writer = CapabilityWriter(Self.header(identity, interruptPin, isMultiFunction))
        writer.add(.powerManagement)
        writer.addExpress(.rootPort, slotNumber: slotNumber)
        writer.addSubsystem(identity)
        writer.supportEndToEndPrefixes()
        // Source Validation, P2P Request Redirect, P2P Completion Redirect, Upstream Forwarding. All of it is so
        // whatever software sets: what comes from below goes to the root complex, under its function's own number.
        writer.add(.acs(bits: 0x001D))
        initial = writer.space
        offsets = writer.offsets
        state = Mutex(State(space: initial))
        state.withLock { updateStatus(&$0) }
    }

    private static func header(_ identity: PCIIdentity, _ pin: UInt8, _ isMultiFunction: Bool)
        -> ConfigurationSpace
    {
        var space = ConfigurationSpace(byteCount: 4096)
        space.set(UInt64(identity.vendorID), at: 0x00, byteCount: 2)
        space.set(UInt64(identity.deviceID), at: 0x02, byteCount: 2)
        // Memory Space, Bus Master, Parity Error Response, SERR#, Interrupt Disable; no I/O space.
        space.permit(0x0546, at: Register.command, byteCount: 2)
        space.permitClearing(0xF900, at: 0x06, byteCount: 2)
        space.set(UInt64(identity.revisionID) | 0x060400 << 8, at: 0x08, byteCount: 4)
        space.permit(0xFF, at: 0x0C, byteCount: 1)
        space.set(isMultiFunction ? 0x81 : 0x01, at: 0x0E, byteCount: 1)
        space.permit(0xFF_FFFF, at: Register.primaryBus, byteCount: 3)
        // Secondary Status.
        space.permitClearing(0xF900, at: 0x1E, byteCount: 2)
        space.permit(0xFFF0_FFF0, at: Register.memoryBase, byteCount: 4)
        // Prefetchable memory has 64-bit addresses.
        space.set(0x0001_0001, at: Register.prefetchableBase, byteCount: 4)
        space.permit(0xFFF0_FFF0, at: Register.prefetchableBase, byteCount: 4)
        space.permit(0xFFFF_FFFF, at: Register.prefetchableBaseUpper, byteCount: 4)
        space.permit(0xFFFF_FFFF, at: Register.prefetchableLimitUpper, byteCount: 4)
        space.permit(0xFF, at: 0x3C, byteCount: 1)
        space.set(UInt64(pin), at: 0x3D, byteCount: 1)
        // Parity Error Response, SERR#, Secondary Bus Reset.
        space.permit(0x0043, at: Register.bridgeControl, byteCount: 2)
        return space
    }

    /// Says who carries the port.
    package func connect(_ host: (any PCIRootPortHost)?) { state.withLock { $0.host = host } }

    /// Says whether a function stands below, which Slot Status and Link Status show.
    package func setOccupied(_ isOccupied: Bool) {
        state.withLock { state in
            state.isOccupied = isOccupied
            updateStatus(&state)
        }
    }

    // MARK: Configuration space

    /// How many bytes of configuration space there are.
    package var configurationByteCount: Int { initial.bytes.count }

    /// Reads 1 to 4 bytes of configuration space; beyond its end are 1s.
    package func readConfiguration(at offset: Int, byteCount: Int) -> UInt32 {
        state.withLock { $0.space.read(at: offset, byteCount: byteCount) }
    }

    /// Writes 1 to 4 bytes of configuration space.
    package func writeConfiguration(_ value: UInt32, at offset: Int, byteCount: Int) {
        guard offset >= 0, offset < configurationByteCount, (1...4).contains(byteCount) else { return }
        let (host, hasGoneDown) = state.withLock { state in
            let wasUp = isLinkUp(state)
            state.space.write(
                value,
                at: offset,
                byteCount: byteCount,
                powerManagement: offsets.powerManagement
            )
            updateStatus(&state)
            return (state.host, wasUp && !isLinkUp(state))
        }
        host?.forwardingChanged(of: self)
        if hasGoneDown { host?.linkWentDown(of: self) }
    }

    /// Puts the port into its state after power-on.
    ///
    /// What stands below is the host's to reset.
    package func reset() {
        let host = state.withLock { state in
            state.space = initial
            updateStatus(&state)
            return state.host
        }
        host?.forwardingChanged(of: self)
    }

    // MARK: What is forwarded

    /// What the port lets through as it is set up now.
    package var forwarding: PCIForwarding {
        state.withLock { state in
            guard isLinkUp(state), state.space.isInD0(offsets.powerManagement) else {
                return PCIForwarding(secondaryBus: state.space.bytes[Register.secondaryBus])
            }
            let space = state.space
            let secondary = space.bytes[Register.secondaryBus]
            let subordinate = space.bytes[Register.subordinateBus]
            return PCIForwarding(
                secondaryBus: secondary,
                buses: secondary <= subordinate ? secondary...subordinate : nil,
                memory: space.bit(1, at: Register.command) ? Self.windows(space) : [],
                isUpstreamOpen: space.bit(2, at: Register.command)
            )
        }
    }

    /// The memory window and the prefetchable one; one whose base lies above its limit is closed.
    private static func windows(_ space: ConfigurationSpace) -> [AddressRange] {
        let memory = space.read32(at: Register.memoryBase)
        let prefetchable = space.read32(at: Register.prefetchableBase)
        // Bits 15:4 of base and limit are bits 31:20 of an address.
        func base(_ word: UInt32) -> UInt64 { UInt64(word & 0xFFF0) << 16 }
        func limit(_ word: UInt32) -> UInt64 { UInt64(word >> 16 & 0xFFF0) << 16 | 0xF_FFFF }
        let upperBase = UInt64(space.read32(at: Register.prefetchableBaseUpper)) << 32
        let upperLimit = UInt64(space.read32(at: Register.prefetchableLimitUpper)) << 32
        return [
            AddressRange(first: base(memory), last: limit(memory)),
            AddressRange(first: upperBase | base(prefetchable), last: upperLimit | limit(prefetchable)),
        ].compactMap { $0 }
    }

    /// Whether the link to what stands below is neither disabled nor held in reset.
    private func isLinkUp(_ state: State) -> Bool {
        // Secondary Bus Reset; Link Disable.
        guard !state.space.bit(6, at: Register.bridgeControl), let express = offsets.express else {
            return false
        }
        return !state.space.bit(4, at: express + 16)
    }

    /// Shows in Link Status and Slot Status what is the case below.
    private func updateStatus(_ state: inout State) {
        guard let express = offsets.express else { return }
        // Data Link Layer Link Active.
        state.space.setBit(13, at: express + 18, to: state.isOccupied && isLinkUp(state))
        // Presence Detect State: a port without a slot always says that something is there.
        let hasSlot = state.space.bit(8, at: express + 2)
        state.space.setBit(6, at: express + 26, to: state.isOccupied || !hasSlot)
    }
}

/// What a bridge lets through.
package struct PCIForwarding: Equatable, Sendable {
    /// Secondary Bus Number: the bus of what stands directly below.
    package var secondaryBus: UInt8
    /// Buses whose configuration accesses go down; nil where none do.
    package var buses: ClosedRange<UInt8>?
    /// PCI addresses whose memory accesses go down.
    package var memory: [AddressRange]
    /// Whether requests from below go up (Command.Bus Master Enable).
    package var isUpstreamOpen: Bool

    package init(
        secondaryBus: UInt8,
        buses: ClosedRange<UInt8>? = nil,
        memory: [AddressRange] = [],
        isUpstreamOpen: Bool = false
    ) {
        self.secondaryBus = secondaryBus
        self.buses = buses
        self.memory = memory
        self.isUpstreamOpen = isUpstreamOpen
    }
}
