// A PCIe host bridge of the machine: what stands below it, and where.

package import AddressSpace
package import DeviceModel
package import PCIFunction
import Synchronization
package import SystemBus
package import SystemPackage

/// One memory window of a host bridge (`ranges` in its node): CPU addresses that turn into PCI addresses.
package struct PCIHostWindow: Hashable, Sendable {
    /// Where it starts on the PCI side.
    package var pciAddress: UInt64
    /// Where the CPU sees it.
    package var cpuRange: AddressRange

    package init(pciAddress: UInt64, cpuRange: AddressRange) {
        self.pciAddress = pciAddress
        self.cpuRange = cpuRange
    }
}

/// Where a function stands.
package enum PCIPlace: Hashable, Sendable {
    /// On the host bridge's own bus: device 0...31, function 0...7.
    case rootBus(device: UInt8, function: UInt8)
    /// Below a root port, as device 0, which is the only one that a link leads to; function 0...7.
    case below(PCIRootPort, function: UInt8)

    package static func == (left: Self, right: Self) -> Bool {
        switch (left, right) {
        case (.rootBus(let left, let one), .rootBus(let right, let other)): left == right && one == other
        case (.below(let left, let one), .below(let right, let other)): left === right && one == other
        default: false
        }
    }

    package func hash(into hasher: inout Hasher) {
        hasher.combine(deviceFunction)
        if case .below(let port, _) = self { hasher.combine(ObjectIdentifier(port)) }
    }

    /// Device in bits 7:3, function in bits 2:0.
    package var deviceFunction: UInt8 {
        switch self {
        case .rootBus(let device, let function): device << 3 | function
        case .below(_, let function): function
        }
    }

    var isPossible: Bool {
        switch self {
        case .rootBus(let device, let function): device < 32 && function < 8
        case .below(_, let function): function < 8
        }
    }
}

/// Why a host bridge, or what was to stand below it, is not there.
package enum PCIHostError: Error, Equatable, Sendable {
    /// Something is where the ECAM window has to be.
    case ecam(AddressConflict)
    /// The ECAM window is shorter than the 1 MiB that its first bus takes.
    case ecamTooShort(AddressRange)
    /// The host permits no more threads.
    case noThread(Errno)
    /// There is no such device or function number, or the root port is not this bridge's.
    case noSuchPlace
    /// Something of this name is there already.
    case placeTaken(by: String)
    /// Function 0 of the device, of this name, does not say that there are others (Header Type, bit 7): software
    /// would not look for them.
    case notMultiFunction(String)
}

/// A PCIe host bridge as `pci-host-ecam-generic` has it: configuration space by ECAM, memory windows, interrupt pins.
///
/// Wiring, for each function: make a ``PCIRequester``; make the function with ports that are ``RequesterPort``s of it,
/// each of which makes the SMMU's port for a requester ID; ``add(_:requester:at:)``. From then on software sees it in
/// the ECAM window, its BARs appear on the bus while software enables them, its pin is swizzled through the root ports
/// to a line, and its requester ID follows the bus numbers that software programs.
///
/// No register access waits: what a BAR's removal leaves on the bus is freed by a thread, and a reset that software
/// asks for (function-level, or of a secondary bus) runs on a thread while the function's configuration space reads
/// as 1s, as that of one that is not ready yet.
///
/// The bus holds no bridge, and a bridge that goes takes its windows along. Functions hold their host weakly.
///
/// Lock order: the bridge's, then a function's, then `pins`, then an interrupt line's. The bus's, a root port's are
/// leaves. Under the bridge's no device's model is called, and nobody is told of anything.
package final class PCIHostBridge: Sendable {
    /// What people call it: its path in the device tree.
    package let name: String
    /// Where configuration space is.
    package let ecam: AddressRange
    /// The buses that the ECAM window holds; the first is the bridge's own.
    package let buses: ClosedRange<UInt8>
    package let windows: [PCIHostWindow]
    let bus: SystemBus
    let state = Mutex(State())
    /// The interrupt line's input of each function that has a pin with a line.
    ///
    /// A lock of its own, because functions change their pins under theirs.
    private let pins = Mutex<[ObjectIdentifier: InterruptLevelInput]>([:])
    private let interruptLine: @Sendable (UInt16, UInt8) -> InterruptLine?
    private let requesterIDChanged: @Sendable (PCIFunction) -> Void
    private let log: @Sendable (String) -> Void
    private let reclaimer: Reclaimer

    /// A function with its place.
    struct Slot: Sendable {
        let function: PCIFunction
        let requester: PCIRequester
        let place: PCIPlace
        /// Software has asked for a reset, which is not over.
        var isResetting = false
        /// A reset was asked for while one was under way.
        var isResetDue = false
    }

    struct State: Sendable {
        /// In the order in which they were added.
        var slots: [Slot] = []
        var ports: [(port: PCIRootPort, deviceFunction: UInt8)] = []
        var memory = MappedBARs()
        var isShutDown = false
    }

    /// Builds a host bridge with nothing below it, and puts its ECAM window onto the bus.
    ///
    /// - Parameters:
    ///   - ecam: 1 MiB for each bus of `buses`, the first bus first. Where it is shorter, the last buses are not there.
    ///   - windows: Memory windows only.
    ///   - interruptLine: Where a pin goes (`interrupt-map`): the requester ID of a function on the bridge's own bus,
    ///     and 1 for INTA to 4 for INTD. Nil is nowhere. Several functions may share a line.
    ///   - settle: Returns once every DMA of the machine that was in flight when it was called has ended
    ///     (`TransactionTracker.waitForTransactionsInFlight()` of all trackers). Called on a thread of the bridge's.
    ///   - requesterIDChanged: A function has another requester ID: see ``requesterID(of:)``. Ports that are
    ///     ``RequesterPort``s have noticed by themselves.
    ///   - log: One sentence for people.
    package init(
        bus: SystemBus,
        name: String,
        ecam: AddressRange,
        buses: ClosedRange<UInt8>,
        windows: [PCIHostWindow],
        interruptLine: @escaping @Sendable (_ requesterID: UInt16, _ pin: UInt8) -> InterruptLine?,
        settle: @escaping @Sendable () -> Void,
        requesterIDChanged: @escaping @Sendable (PCIFunction) -> Void = { _ in },
        log: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(PCIHostError) {
        let held = (ecam.last - ecam.first) >> 20 + ((ecam.last - ecam.first) & 0xF_FFFF == 0xF_FFFF ? 1 : 0)
        let count = min(UInt64(buses.count), held)
        guard count > 0, let range = AddressRange(start: ecam.first, byteCount: count << 20) else {
            throw .ecamTooShort(ecam)
        }
        self.name = name
        self.ecam = range
        self.buses = buses.lowerBound...buses.lowerBound + UInt8(count - 1)
        self.windows = windows
        self.bus = bus
        self.interruptLine = interruptLine
        self.requesterIDChanged = requesterIDChanged
        self.log = log
        reclaimer = Reclaimer(bus, settle: settle)
        do throws(AddressConflict) {
            try bus.addWindow(ECAMWindow(self), at: range, name: name + " configuration")
        } catch {
            throw .ecam(error)
        }
        do throws(Errno) {
            try reclaimer.start()
        } catch {
            bus.removeWindow(at: range)
            throw .noThread(error)
        }
    }

    // The last reference may go under a function's lock, which held it to tell of a pin. So nobody is called here, and
    // nothing is waited for.
    deinit {
        takeOffBus()
        reclaimer.stop(isWaiting: false)
    }

    /// Takes everything off the bus and ends the bridge's thread; waits for DMA in flight.
    ///
    /// Afterwards the bridge is of no use.
    package func shutDown() {
        for slot in takeOffBus() { disconnect(slot) }
        reclaimer.stop(isWaiting: true)
    }

    /// Removes every window, and forgets what stands below.
    @discardableResult
    private func takeOffBus() -> [Slot] {
        state.withLock { state in
            // Once: by the second time somebody else's window may be where ours was.
            guard !state.isShutDown else { return [] }
            state.isShutDown = true
            state.memory.removeAll(from: bus)
            bus.removeWindow(at: ecam)
            defer {
                state.slots = []
                state.ports = []
            }
            return state.slots
        }
    }

    // MARK: What stands below

    /// Adds a root port to the bridge's own bus.
    package func add(_ port: PCIRootPort, device: UInt8, function: UInt8 = 0) throws(PCIHostError) {
        let place = PCIPlace.rootBus(device: device, function: function)
        let error: PCIHostError? = state.withLock { state in
            if let error = Self.whyNot(place, state) { return error }
            state.ports.append((port, place.deviceFunction))
            return nil
        }
        if let error { throw error }
        port.connect(self)
    }

    /// Adds a function; software finds it from now on.
    ///
    /// - Parameter requester: What the function's ports were made of.
    package func add(_ function: PCIFunction, requester: PCIRequester, at place: PCIPlace)
        throws(PCIHostError)
    {
        let error: PCIHostError? = state.withLock { state in
            if let error = Self.whyNot(place, state) { return error }
            state.slots.append(Slot(function: function, requester: requester, place: place))
            return nil
        }
        if let error { throw error }
        if let line = line(of: function, at: place) {
            pins.withLock { $0[ObjectIdentifier(function)] = InterruptLevelInput(of: line) }
        }
        if case .below(let port, _) = place { port.setOccupied(true) }
        function.connect(self)
        update()
    }

    /// Takes a function away, as pulling a card does: its configuration space and BARs read as nobody's, its requests
    /// go nowhere, its pin is released.
    package func remove(_ function: PCIFunction) {
        let (slot, isEmpty) = state.withLock { state -> (Slot?, Bool) in
            guard let index = state.slots.firstIndex(where: { $0.function === function }) else {
                return (nil, false)
            }
            let slot = state.slots.remove(at: index)
            guard case .below(let port, _) = slot.place else { return (slot, false) }
            return (slot, !state.slots.contains { $0.place.port === port })
        }
        guard let slot else { return }
        if isEmpty { slot.place.port?.setOccupied(false) }
        disconnect(slot)
        update()
    }

    private func disconnect(_ slot: Slot) {
        _ = slot.requester.set(slot.requester.requesterID, isOpen: false)
        slot.function.connect(nil)
        // The input's end releases the line.
        _ = pins.withLock { $0.removeValue(forKey: ObjectIdentifier(slot.function)) }
    }

    private static func whyNot(_ place: PCIPlace, _ state: State) -> PCIHostError? {
        guard place.isPossible, !state.isShutDown else { return .noSuchPlace }
        if let port = place.port, !state.ports.contains(where: { $0.port === port }) { return .noSuchPlace }
        if let taken = state.occupant(at: place) { return .placeTaken(by: taken.name) }
        guard place.deviceFunction & 7 != 0, let first = state.occupant(at: place.functionZero) else {
            return nil
        }
        let headerType = first.read(at: 0x0E, byteCount: 1)
        return headerType & 0x80 != 0 ? nil : .notMultiFunction(first.name)
    }

    /// Every function with its place and the requester ID that it has now.
    package var functions: [(function: PCIFunction, place: PCIPlace, requesterID: UInt16)] {
        state.withLock { state in state.slots.map { ($0.function, $0.place, $0.requester.requesterID) } }
    }

    /// The requester ID of a function as software has numbered the buses; nil for one that is not here.
    package func requesterID(of function: PCIFunction) -> UInt16? {
        state.withLock { state in
            state.slots.first { $0.function === function }?.requester.requesterID
        }
    }

    /// Resets everything below, as the machine's reset does; waits for the functions' DMA.
    package func reset() {
        let (slots, ports) = state.withLock { ($0.slots, $0.ports.map(\.port)) }
        for slot in slots { slot.function.reset() }
        for port in ports { port.reset() }
    }

    // MARK: What follows from what software programmed

    /// Brings requester IDs and the BARs on the bus up to date.
    func update() {
        let (renumbered, remarks) = state.withLock { state in
            var renumbered: [PCIFunction] = []
            for slot in state.slots {
                let (requesterID, isOpen) = route(slot)
                if slot.requester.set(requesterID, isOpen: isOpen) { renumbered.append(slot.function) }
            }
            let (hasChanged, remarks) = state.memory.update(to: visibleBARs(state), on: bus)
            if hasChanged { reclaimer.request() }
            return (renumbered, remarks)
        }
        for function in renumbered { requesterIDChanged(function) }
        for remark in remarks { log(name + ": " + remark) }
    }

    private func route(_ slot: Slot) -> (requesterID: UInt16, isOpen: Bool) {
        let low = UInt16(slot.place.deviceFunction)
        guard let port = slot.place.port else {
            return (UInt16(buses.lowerBound) << 8 | low, !slot.isResetting)
        }
        let forwarding = port.forwarding
        return (UInt16(forwarding.secondaryBus) << 8 | low, forwarding.isUpstreamOpen && !slot.isResetting)
    }

    // MARK: Interrupt pins

    /// Where a function's pin goes: through a root port it is turned by the device number below it, and device 0's
    /// stays as it is (PCI-to-PCI Bridge Architecture Specification, 9.1).
    private func line(of function: PCIFunction, at place: PCIPlace) -> InterruptLine? {
        let pin = function.description.interruptPin
        guard (1...4).contains(pin) else { return nil }
        let bus = UInt16(buses.lowerBound) << 8
        guard let port = place.port else { return interruptLine(bus | UInt16(place.deviceFunction), pin) }
        let deviceFunction = state.withLock { state in state.ports.first { $0.port === port }?.deviceFunction
        }
        guard let deviceFunction else { return nil }
        let device = place.deviceFunction >> 3
        return interruptLine(bus | UInt16(deviceFunction), (pin - 1 + device) % 4 + 1)
    }
}

extension PCIHostBridge: PCIFunctionHost {
    package func setINTx(_ isAsserted: Bool, of function: PCIFunction) {
        pins.withLock { $0[ObjectIdentifier(function)] }?.set(isAsserted)
    }

    /// Interrupts go as configuration space says: nobody overrides that here.
    package func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction) {}

    package func configurationChanged(of function: PCIFunction) { update() }
}

extension PCIHostBridge: PCIRootPortHost {
    package func forwardingChanged(of port: PCIRootPort) { update() }

    package func linkWentDown(of port: PCIRootPort) {
        let functions = state.withLock { state in
            state.slots.filter { $0.place.port === port }.map(\.function)
        }
        for function in functions { startReset(of: function) }
    }
}

extension PCIPlace {
    /// The root port that it is below.
    var port: PCIRootPort? {
        guard case .below(let port, _) = self else { return nil }
        return port
    }

    /// Function 0 of the same device.
    var functionZero: PCIPlace {
        switch self {
        case .rootBus(let device, _): .rootBus(device: device, function: 0)
        case .below(let port, _): .below(port, function: 0)
        }
    }
}
