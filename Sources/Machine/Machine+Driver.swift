// What the machine's own operating-system side does for clients.

package import ControlProtocol
import DeviceTree
import IOMMU
import SMMUv3

extension Machine {
    /// Has the machine's own driver take the SMMUs, where the options say so, and attach every endpoint.
    ///
    /// An SMMU that the driver cannot take is left off; ``driverState(ofSMMU:)`` says why. What one endpoint's tree
    /// asks of an SMMU that it cannot have does not stop the others. The calling thread executes the commands.
    ///
    /// - Returns: What did not work, a sentence each.
    @discardableResult
    package func startDriver() -> [String] {
        guard options.driver == .own, operatingSystem.value == nil else { return [] }
        let system = OperatingSystem(self)
        operatingSystem.set(system)
        var complaints: [String] = []
        for (index, smmu) in smmus.enumerated() {
            if case .failed(let error) = system.driverState(index) {
                complaints.append("\(smmu.node.path): \(error)")
            }
        }
        for endpoint in endpoints {
            guard let index = endpoint.smmuIndex, case .running = system.driverState(index) else { continue }
            smmus[index].model.lendingTime {
                do throws(ControlError) {
                    _ = try system.managed(endpoint)
                } catch {
                    complaints.append("\(endpoint.name): not attached: \(error.message)")
                }
            }
        }
        return complaints
    }

    /// Switches the SMMUs off that the machine's own driver runs.
    func stopDriver() { operatingSystem.value?.stop() }

    /// What the own driver does with an SMMU, and why it does not.
    package func driverState(ofSMMU index: Int) -> (state: SMMUInfo.Driver, message: String?) {
        switch operatingSystem.value?.driverState(index) {
        case nil: (.none, nil)
        case .running: (.running, nil)
        case .failed(let error): (.failed, "\(error)")
        }
    }

    /// The domain that an endpoint is in; nil where no driver of ours runs its SMMU.
    package func domainKind(of endpoint: Endpoint) -> DomainKind? {
        operatingSystem.value?.known(endpoint)?.kind
    }

    func system() throws(ControlError) -> OperatingSystem {
        guard let system = operatingSystem.value else {
            throw .noDriver("the daemon's own driver does not run (--driver none): that is yours to do here")
        }
        return system
    }

    func map(_ parameters: Methods.IOMMUMap.Parameters, for endpoint: Endpoint) throws(ControlError)
        -> MappingInfo
    {
        try system().managed(endpoint).map(parameters)
    }

    func unmap(_ parameters: Methods.IOMMUUnmap.Parameters, for endpoint: Endpoint) throws(ControlError)
        -> Methods.IOMMUUnmap.Result
    {
        Methods.IOMMUUnmap.Result(unmapped: Size(try system().managed(endpoint).unmap(parameters)))
    }

    /// What is mapped for an endpoint, by a vfio-user client or over the control socket.
    package func clientMappings(of endpoint: Endpoint) -> [MappingInfo] { mappings(of: endpoint) }

    func mappings(of endpoint: Endpoint?) -> [MappingInfo] {
        guard let system = operatingSystem.value else { return [] }
        guard let endpoint else { return system.allKnown.flatMap(\.mappings) }
        return system.known(endpoint)?.mappings ?? []
    }

    func attach(_ endpoint: Endpoint, to domain: DomainName) throws(ControlError)
        -> Methods.IOMMUAttach.Result
    {
        let group = try system().attach(endpoint, to: domain)
        return Methods.IOMMUAttach.Result(device: endpoint.name, domain: domain, group: group)
    }

    func allocate(_ parameters: Methods.IOMMUAllocate.Parameters, for endpoint: Endpoint)
        throws(ControlError) -> CoherentBufferInfo
    {
        try system().managed(endpoint).allocate(parameters)
    }

    func free(_ iova: UInt64, of endpoint: Endpoint) throws(ControlError) {
        try system().managed(endpoint).coherent.free(iova)
    }

    func allocate(byteCount: UInt64, alignment: UInt64?) throws(ControlError) -> Methods.MemoryAllocate.Result
    {
        let (address, rounded) = try system().allocate(byteCount: byteCount, alignment: alignment ?? 4096)
        return Methods.MemoryAllocate.Result(address: Hex(address), length: Size(rounded))
    }

    func free(_ address: UInt64) throws(ControlError) { try system().free(address) }

    func driverLog(from sequence: UInt64) -> Methods.DriverLog.Result {
        guard let (lines, next) = operatingSystem.value?.log.lines(from: sequence) else {
            return Methods.DriverLog.Result(lines: [], next: Size(sequence))
        }
        return Methods.DriverLog.Result(lines: lines, next: Size(next))
    }
}
