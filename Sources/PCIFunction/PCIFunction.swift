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
    /// Who has those bytes of configuration space that are not kept here, and which those are; nil where all are.
    let foreign: PCIForeignSpace?
    let msixLayout: PCIMSIXLayout?
    let gate = BusMasterGate()
    private let portFactory: @Sendable () -> any DMAPort
    let state: Mutex<State>
    let messages = Mutex(MessageQueue())

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
        var translationCache: AddressTranslationCache?
    }

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
        foreign = nil
        var writer = CapabilityWriter(Self.header(description))
        for capability in description.capabilities { writer.add(capability) }
        if writer.offsets.pasid != nil { writer.supportEndToEndPrefixes() }
        initial = writer.space
        offsets = writer.offsets
        var layout: PCIMSIXLayout?
        for case .msix(let own) in description.capabilities { layout = own }
        msixLayout = layout
        state = Mutex(State(space: writer.space, table: layout.map { MSIXTable($0) }))
    }

    /// Builds a function whose configuration space is another's.
    ///
    /// - Parameters:
    ///   - image: What it holds, and what of it is kept here.
    ///   - configuration: Answers for the rest.
    ///   - makePort: A new view of memory with the function's identity, for one user.
    package init(
        name: String,
        image: PCIFunctionImage,
        model: any PCIFunctionModel,
        configuration: any PCIForeignConfiguration,
        makePort: @escaping @Sendable () -> any DMAPort
    ) {
        self.name = name
        description = image.description
        self.model = model
        portFactory = makePort
        foreign = PCIForeignSpace(configuration: configuration, isOwn: image.isOwn)
        initial = image.space
        offsets = image.offsets
        msixLayout = image.msix
        state = Mutex(State(space: image.space, table: image.msix.map { MSIXTable($0) }))
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

    /// Command.Bus Master Enable, in D0.
    package var isBusMaster: Bool { gate.isOpen }

    /// Command.Memory Space Enable, in D0.
    package var isMemoryEnabled: Bool {
        state.withLock { $0.space.bit(1, at: Register.command) && isAwake($0) }
    }

    /// Whether the function is in D0: in D3hot it answers configuration accesses only, and issues nothing.
    func isAwake(_ state: State) -> Bool { state.space.isInD0(offsets.powerManagement) }

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
        guard let layout = msixLayout else { return try model.readBAR(index, at: offset, width: width) }
        if let place = layout.tableOffset(index, offset) {
            return try state.withLock { (state) throws(RegisterAccessError) in
                try state.table?.readTable(at: place, width: width) ?? width.allOnes
            }
        }
        if let place = layout.pendingOffset(index, offset) {
            return try state.withLock { (state) throws(RegisterAccessError) in
                try state.table?.readPending(at: place, width: width) ?? width.allOnes
            }
        }
        return try model.readBAR(index, at: offset, width: width)
    }

    /// Writes the low `width` bytes of `value` at `offset` of a BAR.
    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        if let layout = msixLayout {
            if let place = layout.tableOffset(index, offset) {
                try state.withLock { (state) throws(RegisterAccessError) in
                    try state.table?.writeTable(value, at: place, width: width)
                }
                model.vectorsChanged()
                return sendUnmasked()
            }
            // What software writes to pending bits is undefined: it does nothing.
            if layout.pendingOffset(index, offset) != nil { return }
        }
        try model.writeBAR(index, value, at: offset, width: width)
    }

    // MARK: Reset

    /// Resets the device and the function: DEVICE_RESET, function-level reset, or the reset of the bus.
    package func reset() {
        gate.set(false)
        // Whoever waits for a page response goes on, or the model would wait for it.
        let cache = translationCache
        cache?.configure(PCIPageServices())
        model.reset()
        cache?.pageRequests.reset()
        messages.withLock { $0.waiting.removeAll() }
        state.withLock { state in
            state.space = initial
            // Again: software may have written to Command since.
            gate.set(false)
            state.table?.reset()
            state.pendingMSI = 0
            state.isPinCause = false
            updatePin(&state)
        }
        hostIfAny?.configurationChanged(of: self)
    }

    var hostIfAny: (any PCIFunctionHost)? { state.withLock { $0.host } }
}
