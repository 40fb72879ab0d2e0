// One PCIe function: its configuration space, and what follows from it for registers, DMA and interrupts.

import AddressSpace
package import DeviceModel
import Synchronization

/// A function with a header of type 0, for whoever carries it: a host bridge of the machine, or a VMM.
///
/// Locks, in order: the message port's, then the function's own. The model is called with neither; a pin's host is
/// called under the function's, as a leaf.
package final class PCIFunction: Sendable {
    /// What people call it.
    package let name: String
    package let description: PCIFunctionDescription
    package let model: any PCIFunctionModel
    let offsets: CapabilityOffsets
    let initial: ConfigurationSpace
    let gate = BusMasterGate()
    private let portFactory: @Sendable () -> any DMAPort
    let state: Mutex<State>
    private let messages = Mutex(MessagePort())

    struct State: Sendable {
        var space: ConfigurationSpace
        var table: MSIXTable?
        /// MSI vectors that wait for being unmasked.
        var pendingMSI: UInt32 = 0
        /// What the model wants of the pin.
        var isPinCause = false
        /// What the host was told last.
        var isPinAsserted = false
        var override: PCIInterruptMode?
        weak var host: (any PCIFunctionHost)?
    }

    /// The one user of the port through which messages go.
    private struct MessagePort { var port: SendablePort? }
    // SAFETY of @unchecked Sendable: it is only ever used under the lock of `messages`.
    private struct SendablePort: @unchecked Sendable { let port: any DMAPort }

    /// Builds a function in its state after power-on.
    ///
    /// - Parameters:
    ///   - makePort: A new view of memory with the function's identity, for one user.
    package init(
        name: String,
        _ description: PCIFunctionDescription,
        model: any PCIFunctionModel,
        makePort: @escaping @Sendable () -> any DMAPort
    ) {
        self.name = name
        self.description = description
        self.model = model
        portFactory = makePort
        var writer = CapabilityWriter(Self.header(description))
        for capability in description.capabilities { writer.add(capability) }
        initial = writer.space
        offsets = writer.offsets
        var table: MSIXTable?
        for case .msix(let layout) in description.capabilities { table = MSIXTable(layout) }
        state = Mutex(State(space: writer.space, table: table))
    }

    /// Says who carries the function.
    package func connect(_ host: (any PCIFunctionHost)?) {
        state.withLock { state in
            state.host = host
            if state.isPinAsserted { host?.setINTx(true, of: self) }
        }
    }

    /// A view of memory for one user, through which nothing goes while Bus Master Enable is 0.
    package func makePort() -> any DMAPort { PCIFunctionPort(portFactory(), gate) }

    /// Command.Bus Master Enable.
    package var isBusMaster: Bool { gate.isOpen }

    /// Command.Memory Space Enable.
    package var isMemoryEnabled: Bool { state.withLock { $0.space.bit(1, at: Register.command) } }

    /// The BAR that starts at this index.
    package func bar(_ index: Int) -> PCIBAR? { description.bars.first { $0.index == index } }

    /// Where software put a BAR; of meaning while Memory Space Enable is 1.
    package func address(ofBAR index: Int) -> UInt64 {
        state.withLock { state in
            let low = UInt64(state.space.read32(at: Register.bars + 4 * index) & ~0xF)
            guard bar(index)?.space == .memory64 else { return low }
            return low | UInt64(state.space.read32(at: Register.bars + 4 * index + 4)) << 32
        }
    }

    /// Where a capability of a vendor stands, in the order of the description.
    package func vendorCapabilityOffset(_ number: Int) -> Int { offsets.vendor[number] }

    /// How many bytes of configuration space there are.
    package var configurationByteCount: Int { initial.bytes.count }

    enum Register {
        static let command = 0x04
        static let status = 0x06
        static let bars = 0x10
    }

    private static func header(_ description: PCIFunctionDescription) -> ConfigurationSpace {
        var space = ConfigurationSpace(byteCount: 4096)
        let identity = description.identity
        space.set(UInt64(identity.vendorID), at: 0x00, byteCount: 2)
        space.set(UInt64(identity.deviceID), at: 0x02, byteCount: 2)
        // Memory Space, Bus Master, Parity Error Response, SERR#, Interrupt Disable; no I/O space.
        space.permit(0x0546, at: Register.command, byteCount: 2)
        space.permitClearing(0xF900, at: Register.status, byteCount: 2)
        space.set(UInt64(identity.revisionID) | UInt64(identity.classCode) << 8, at: 0x08, byteCount: 4)
        space.permit(0xFF, at: 0x0C, byteCount: 1)
        space.set(description.isMultiFunction ? 0x80 : 0, at: 0x0E, byteCount: 1)
        for bar in description.bars {
            let offset = Register.bars + 4 * bar.index
            let isWide = bar.space == .memory64
            let flags: UInt64 = (isWide ? 0b100 : 0) | (bar.isPrefetchable ? 0b1000 : 0)
            space.set(flags, at: offset, byteCount: 4)
            let mask = ~(bar.byteCount - 1) & ~0xF
            space.permit(isWide ? mask : mask & 0xFFFF_FFFF, at: offset, byteCount: isWide ? 8 : 4)
        }
        space.set(UInt64(identity.subsystemVendorID), at: 0x2C, byteCount: 2)
        space.set(UInt64(identity.subsystemID), at: 0x2E, byteCount: 2)
        space.permit(0xFF, at: 0x3C, byteCount: 1)
        space.set(UInt64(description.interruptPin), at: 0x3D, byteCount: 1)
        return space
    }

    // MARK: BARs

    /// Reads `width` bytes at `offset` of a BAR: the MSI-X table, or a register of the model.
    package func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
        -> UInt64
    {
        if let table = state.withLock({ $0.table }) {
            if let place = table.tableOffset(index, offset) {
                return try table.readTable(at: place, width: width)
            }
            if let place = table.pendingOffset(index, offset) {
                return try table.readPending(at: place, width: width)
            }
        }
        return try model.readBAR(index, at: offset, width: width)
    }

    /// Writes the low `width` bytes of `value` at `offset` of a BAR.
    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        enum Place { case model, table, pending, refused(RegisterAccessError) }
        let place: Place = state.withLock { state in
            guard let table = state.table else { return .model }
            if table.pendingOffset(index, offset) != nil { return .pending }
            guard let offset = table.tableOffset(index, offset) else { return .model }
            do throws(RegisterAccessError) {
                try state.table?.writeTable(value, at: offset, width: width)
                return .table
            } catch {
                return .refused(error)
            }
        }
        switch place {
        case .model: try model.writeBAR(index, value, at: offset, width: width)
        case .table: sendUnmasked()
        // Software's writes to pending bits are undefined: they do nothing.
        case .pending: break
        case .refused(let error): throw error
        }
    }

    // MARK: Reset

    /// Resets the device and the function: DEVICE_RESET, function-level reset, or the reset of the bus.
    package func reset() {
        gate.set(false)
        model.reset()
        state.withLock { state in
            state.space = initial
            state.table?.reset()
            state.pendingMSI = 0
            state.isPinCause = false
            updatePin(&state)
        }
        hostIfAny?.configurationChanged(of: self)
    }

    var hostIfAny: (any PCIFunctionHost)? { state.withLock { $0.host } }

    // MARK: Messages

    /// Writes a message to memory as the function's DMA.
    func send(_ message: PCIMessage) {
        messages.withLock { messages in
            let port = messages.port?.port ?? makePort()
            messages.port = SendablePort(port: port)
            // What becomes of a message that faults is the SMMU's to record; the function has nobody to tell.
            try? port.store(UInt64(message.data), .word, at: IOVirtualAddress(message.address))
        }
    }
}
