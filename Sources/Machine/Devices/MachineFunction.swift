// The devices that have a model: PCIe functions and platform devices.

package import AddressSpace
import DeviceModel
import DeviceTree
package import PCIFunction
import SMMUv3
import SystemBus
import Virtio

/// A PCIe function with a model behind it.
package struct MachineFunction: Sendable {
    package let address: PCIAddress
    package let kind: DeviceSpecification.Kind
    package let endpoint: Endpoint
    package let function: PCIFunction
    /// What is told of mappings, for a device of another program that is lent memory.
    var foreignMemory: ForeignMemory?
    /// What it counts, in the order in which to show it.
    let statistics: @Sendable () -> [(name: String, value: UInt64)]
    /// Ends its threads.
    let shutDown: @Sendable () -> Void
}

/// Views of memory for requesters, without the machine that they belong to.
struct PortMaker: Sendable {
    let bus: SystemBus
    let directTracker: TransactionTracker
    let smmus: [SMMUv3]

    /// A view of memory for one user of a requester's identity.
    ///
    /// - Parameters:
    ///   - identity: Whose transactions they are.
    ///   - kind: What the requester is: PCIe has no stalls.
    ///   - cache: The ATC of the function that the port is for, if it has one.
    func port(
        for identity: RequesterIdentity,
        _ kind: Endpoint.Kind,
        _ cache: AddressTranslationCache? = nil
    ) -> any DMAPort {
        guard let index = identity.smmuIndex, smmus.indices.contains(index) else {
            return DirectPort(bus: bus, tracker: directTracker)
        }
        let port = smmus[index].makePort(for: identity.streamID, canStall: kind != .pcie)
        guard let cache else { return port }
        smmus[index].connect(cache, at: identity.streamID)
        return ATCPort(cache, port)
    }

    /// The physical addresses that a requester reaches where nothing translates.
    func reach(ofSMMU index: Int?) -> AddressRange {
        let bits = index.map { UInt64(smmus[$0].identification.outputAddressBits) } ?? 64
        guard let range = AddressRange(first: 0, last: bits < 64 ? (1 << bits) - 1 : .max) else {
            preconditionFailure("no address is below 0")
        }
        return range
    }
}

/// A platform device with a model: registers at the address that the tree names, and an interrupt.
package struct MachinePlatformDevice: Sendable {
    package let kind: DeviceSpecification.Kind
    package let endpoint: Endpoint
    package let registers: AddressRange
    let virtio: VirtioMMIODevice?

    /// What it counts, in the order in which to show it.
    var statistics: [(name: String, value: UInt64)] {
        virtio?.device.statistics.list.map { ($0.name, $0.value) } ?? []
    }

    /// Ends its threads.
    func shutDown() { virtio?.shutdown() }
}
