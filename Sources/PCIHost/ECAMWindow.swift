// Configuration space as software reaches it (PCI Express Base Specification, 7.2.2: ECAM).

import DeviceModel
import Glibc
import HostIO
import PCIFunction
import Synchronization
import SystemPackage

/// The ECAM window: 4 KiB for each function, 1 MiB for each bus.
///
/// Holds the bridge weakly: the bus holds the window.
final class ECAMWindow: RegisterTarget {
    private weak let bridge: PCIHostBridge?

    init(_ bridge: PCIHostBridge) { self.bridge = bridge }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        guard let bridge else { return width.allOnes }
        guard width == .doubleword else {
            return UInt64(bridge.readConfiguration(at: offset, byteCount: width.rawValue)) & width.allOnes
        }
        // A configuration request has 4 bytes at most.
        let low = UInt64(bridge.readConfiguration(at: offset, byteCount: 4))
        return low | UInt64(bridge.readConfiguration(at: offset &+ 4, byteCount: 4)) << 32
    }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        guard let bridge else { return }
        let low = UInt32(truncatingIfNeeded: value)
        guard width == .doubleword else {
            return bridge.writeConfiguration(low, at: offset, byteCount: width.rawValue)
        }
        bridge.writeConfiguration(low, at: offset, byteCount: 4)
        bridge.writeConfiguration(UInt32(truncatingIfNeeded: value >> 32), at: offset &+ 4, byteCount: 4)
    }
}

/// Who answers a configuration request.
enum ConfigurationTarget: Sendable {
    case function(PCIFunction)
    case port(PCIRootPort)

    var name: String {
        switch self {
        case .function(let function): function.name
        case .port(let port): port.name
        }
    }

    func read(at offset: Int, byteCount: Int) -> UInt32 {
        switch self {
        case .function(let function): function.readConfiguration(at: offset, byteCount: byteCount)
        case .port(let port): port.readConfiguration(at: offset, byteCount: byteCount)
        }
    }
}

extension PCIHostBridge.State {
    /// Who stands at a place, ready or not.
    func occupant(at place: PCIPlace) -> ConfigurationTarget? {
        if let slot = slots.first(where: { $0.place == place }) { return .function(slot.function) }
        guard case .rootBus = place else { return nil }
        return ports.first { $0.deviceFunction == place.deviceFunction }.map { .port($0.port) }
    }

    /// Who answers requests for a bus, device and function; nil is nobody, or one that is being reset.
    ///
    /// - Parameter rootBus: The number of the bridge's own bus.
    func target(bus: UInt8, deviceFunction: UInt8, rootBus: UInt8) -> ConfigurationTarget? {
        if bus == rootBus {
            if let port = ports.first(where: { $0.deviceFunction == deviceFunction })?.port {
                return .port(port)
            }
            return ready { $0.place.port == nil && $0.place.deviceFunction == deviceFunction }
        }
        for (port, _) in ports {
            let forwarding = port.forwarding
            guard let buses = forwarding.buses, buses.contains(bus) else { continue }
            // No bridge stands below a root port, so other buses than the secondary one have nobody.
            guard bus == forwarding.secondaryBus else { return nil }
            return ready { $0.place.port === port && $0.place.deviceFunction == deviceFunction }
        }
        return nil
    }

    private func ready(_ isSought: (PCIHostBridge.Slot) -> Bool) -> ConfigurationTarget? {
        guard let slot = slots.first(where: isSought), !slot.isResetting else { return nil }
        return .function(slot.function)
    }
}

extension PCIHostBridge {
    /// Reads 1, 2 or 4 bytes, aligned, at an offset in the ECAM window; 1s where nobody answers.
    func readConfiguration(at offset: UInt64, byteCount: Int) -> UInt32 {
        target(offset)?.read(at: Int(offset & 0xFFF), byteCount: byteCount) ?? .max
    }

    /// Writes 1, 2 or 4 bytes, aligned, at an offset in the ECAM window.
    func writeConfiguration(_ value: UInt32, at offset: UInt64, byteCount: Int) {
        let register = Int(offset & 0xFFF)
        switch target(offset) {
        case .function(let function):
            if function.initiatesReset(value, at: register, byteCount: byteCount) {
                return startReset(of: function)
            }
            function.writeConfiguration(value, at: register, byteCount: byteCount)
        case .port(let port): port.writeConfiguration(value, at: register, byteCount: byteCount)
        case nil: break
        }
    }

    private func target(_ offset: UInt64) -> ConfigurationTarget? {
        let (number, isBeyond) = buses.lowerBound.addingReportingOverflow(
            UInt8(truncatingIfNeeded: offset >> 20)
        )
        guard offset >> 28 == 0, !isBeyond, buses.contains(number) else { return nil }
        let deviceFunction = UInt8(truncatingIfNeeded: offset >> 12)
        return state.withLock { state in
            state.target(bus: number, deviceFunction: deviceFunction, rootBus: buses.lowerBound)
        }
    }

    // MARK: Resets that software asks for

    /// Whether a reset that software asked for is not over.
    package var isResetting: Bool { state.withLock { state in state.slots.contains(where: \.isResetting) } }

    /// Resets a function on a thread of its own: a reset waits for the device's DMA, and a register access for nothing.
    ///
    /// Until it is over nobody answers for the function, and its requests go nowhere.
    func startReset(of function: PCIFunction) {
        let isFirst = state.withLock { state in
            guard let index = state.slots.firstIndex(where: { $0.function === function }) else {
                return false
            }
            guard !state.slots[index].isResetting else {
                state.slots[index].isResetDue = true
                return false
            }
            state.slots[index].isResetting = true
            return true
        }
        guard isFirst else { return }
        update()
        do throws(Errno) {
            let thread = try SystemThread.start(named: "pci-reset") { [self] in reset(function) }
            pthread_detach(thread)
        } catch {
            // Without a thread to spare it is better to hold this one up than not to do it.
            reset(function)
        }
    }

    private func reset(_ function: PCIFunction) {
        var isDue = true
        while isDue {
            function.reset()
            isDue = state.withLock { state in
                guard let index = state.slots.firstIndex(where: { $0.function === function }) else {
                    return false
                }
                let isDue = state.slots[index].isResetDue
                state.slots[index].isResetDue = false
                if !isDue { state.slots[index].isResetting = false }
                return isDue
            }
        }
        update()
    }
}
