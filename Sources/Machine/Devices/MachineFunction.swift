// The PCIe functions that have a model.

import AddressSpace
import BlockStorage
import DeviceModel
import DeviceTree
package import PCIFunction
import SMMUv3
import SystemBus
import SystemPackage
import Virtio

/// A PCIe function with a model behind it.
package struct MachineFunction: Sendable {
    package let address: PCIAddress
    package let kind: DeviceSpecification.Kind
    package let endpoint: Endpoint
    package let function: PCIFunction
}

/// Views of memory for requesters, without the machine that they belong to.
struct PortMaker: Sendable {
    let bus: SystemBus
    let directTracker: TransactionTracker
    let smmus: [SMMUv3]

    /// A view of memory for one user of a requester's identity.
    func port(for identity: RequesterIdentity) -> any DMAPort {
        guard let index = identity.smmuIndex, smmus.indices.contains(index) else {
            return DirectPort(bus: bus, tracker: directTracker)
        }
        return smmus[index].makePort(for: identity.streamID)
    }
}

/// Builds the devices that specifications ask for.
struct DeviceBuilder {
    let options: MachineOptions
    let ports: PortMaker

    /// A function of a specification that names a PCIe endpoint.
    func function(_ specification: DeviceSpecification, _ endpoint: Endpoint) throws(MachineError)
        -> MachineFunction
    {
        guard let address = endpoint.name.split(separator: "/").last.flatMap({ PCIAddress($0) }) else {
            throw MachineError("\(specification.source): \(endpoint.name) is no PCIe function")
        }
        let identity = RequesterIdentity(
            smmuIndex: endpoint.smmuIndex,
            streamID: endpoint.streams.first ?? StreamID(0)
        )
        let makePort: @Sendable () -> any DMAPort = { [ports] in ports.port(for: identity) }
        do {
            return MachineFunction(
                address: address,
                kind: specification.kind,
                endpoint: endpoint,
                function: try function(specification, named: address.text, makePort)
            )
        } catch let error as MachineError {
            throw error
        } catch {
            throw MachineError("\(specification.source): \((error as? Errno)?.description ?? "\(error)")")
        }
    }

    private func function(
        _ specification: DeviceSpecification,
        named name: String,
        _ makePort: @escaping @Sendable () -> any DMAPort
    ) throws -> PCIFunction {
        let offersMSIX = try specification.flag("msix", default: true)
        switch specification.kind {
        case .virtioBlock:
            return try VirtioPCIFunction.make(
                name: name,
                device: try block(specification),
                options: VirtioPCIOptions(offersMSIX: offersMSIX),
                makePort: makePort
            )
        default:
            throw MachineError("\(specification.source): not there yet")
        }
    }

    // MARK: Devices

    private func block(_ specification: DeviceSpecification) throws(MachineError) -> VirtioBlock {
        VirtioBlock(
            image: try image(specification),
            queueCount: try specification.number("queues", in: 1...64, default: 1),
            serial: specification.values["serial"] ?? ""
        )
    }

    private func image(_ specification: DeviceSpecification) throws(MachineError) -> RawImage {
        let path = try specification.required("file")
        let isReadOnly = try specification.flag("readonly", default: false)
        do throws(RawImageError) {
            return try RawImage(path: path, isReadOnly: isReadOnly)
        } catch {
            throw MachineError("\(specification.source): \(error)")
        }
    }
}
