// The machine's own PCIe buses: host bridges of the tree, their root ports, and the functions that stand there.

import AddressSpace
import DeviceModel
import DeviceTree
import PCIFunction
import PCIHost
import Synchronization
import SystemBus

/// Builds host bridges as the tree has them.
struct MachineBuses {
    /// A root port of the tree.
    struct Port: Sendable {
        /// The node's path.
        let path: String
        let port: PCIRootPort
    }

    private(set) var bridges: [PCIHostBridge] = []
    private var hosts: [PCIeHostNode] = []
    private(set) var rootPorts: [Port] = []

    /// Where a function of these buses is to stand, and by what number its requests go up.
    struct Seat {
        let bridge: PCIHostBridge
        let place: PCIPlace
        let requester: PCIRequester
        let makePort: @Sendable (AddressTranslationCache?) -> any DMAPort
    }

    /// - Parameters:
    ///   - line: The line of an interrupt controller's input.
    ///   - settle: Returns when every DMA that was in flight has ended.
    init(
        of board: BoardDescription,
        on bus: SystemBus,
        line: (InterruptIdentity, String) -> InterruptLine,
        settle: @escaping @Sendable () -> Void
    ) throws(MachineError) {
        for host in board.pcieHosts {
            guard let ecam = host.ecam else { continue }
            var lines: [InterruptIdentity: InterruptLine] = [:]
            for route in host.interruptRoutes where lines[route.identity] == nil {
                lines[route.identity] = line(route.identity, host.path)
            }
            let bridge: PCIHostBridge
            do throws(PCIHostError) {
                bridge = try PCIHostBridge(
                    bus: bus,
                    name: host.path,
                    ecam: ecam,
                    buses: host.busRange,
                    windows: host.windows.filter { $0.space == .memory32 || $0.space == .memory64 }.map {
                        PCIHostWindow(pciAddress: $0.pciAddress, cpuRange: $0.cpuRange)
                    },
                    interruptLine: { [lines] requesterID, pin in
                        host.interrupt(forRequester: requesterID, pin: UInt32(pin)).flatMap { lines[$0] }
                    },
                    settle: settle
                )
                bridges.append(bridge)
                hosts.append(host)
                try addRootPorts(of: host, to: bridge)
            } catch {
                throw MachineError("\(host.path): \(error)")
            }
        }
    }

    /// A root port for each node on the host's own bus below which the tree has another.
    private mutating func addRootPorts(of host: PCIeHostNode, to bridge: PCIHostBridge) throws(PCIHostError) {
        let parents = Set(host.children.map(\.parentPath))
        for child in host.children where child.parentPath == host.path && parents.contains(child.path) {
            let port = PCIRootPort(
                name: child.path,
                identity: PCIIdentity(vendorID: 0x1234, deviceID: 0x5250, classCode: 0x06_0400),
                // 13 bits; a tree with more ports than that has numbers twice, and software goes by bus numbers.
                slotNumber: UInt16(rootPorts.count % 8192)
            )
            try bridge.add(port, device: child.deviceFunction >> 3, function: child.deviceFunction & 7)
            rootPorts.append(Port(path: child.path, port: port))
        }
    }

    /// Where the function of an endpoint stands; nil where its host has no ECAM.
    func seat(
        for endpoint: Endpoint,
        _ board: BoardDescription,
        _ ports: PortMaker,
        _ smmuIndices: [String: Int]
    )
        throws(MachineError) -> Seat?
    {
        guard let slash = endpoint.name.lastIndex(of: "/"),
            let index = hosts.firstIndex(where: { $0.path == endpoint.name[..<slash] }),
            let address = PCIAddress(endpoint.name[endpoint.name.index(after: slash)...])
        else { return nil }
        let host = hosts[index]
        let place: PCIPlace
        if UInt8(truncatingIfNeeded: address.requesterID >> 8) == host.busRange.lowerBound {
            place = .rootBus(
                device: UInt8(truncatingIfNeeded: address.requesterID >> 3) & 31,
                function: UInt8(truncatingIfNeeded: address.requesterID) & 7
            )
        } else {
            let node = host.children.first { $0.requesterID == address.requesterID }
            guard let port = rootPorts.first(where: { $0.path == node?.parentPath }) else {
                throw MachineError(
                    "\(endpoint.name): no root port leads there; give the tree a node for the port, and one for the "
                        + "function below it"
                )
            }
            place = .below(port.port, function: UInt8(truncatingIfNeeded: address.requesterID) & 7)
        }
        let requester = PCIRequester()
        return Seat(
            bridge: bridges[index],
            place: place,
            requester: requester,
            makePort: { cache in
                RequesterPort(requester) { requesterID in
                    let iommu = host.iommu(forRequester: requesterID)
                    let streamID = iommu?.streamID
                    return ports.port(
                        for: RequesterIdentity(
                            smmuIndex: streamID == nil ? nil : iommu.flatMap { smmuIndices[$0.path] },
                            streamID: streamID ?? StreamID(0)
                        ),
                        .pcie,
                        cache
                    )
                }
            }
        )
    }
}
