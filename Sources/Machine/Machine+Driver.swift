// The machine's own operating-system side: drivers, domains, and memory that they and their clients take.

package import ControlProtocol

extension Machine {
    /// What the own driver does with an SMMU.
    package func driverState(ofSMMU index: Int) -> (state: SMMUInfo.Driver, message: String?) { (.none, nil) }

    /// The domain that an endpoint is in; nil where no driver of ours runs its SMMU.
    package func domainKind(of endpoint: Endpoint) -> DomainKind? { nil }

    private func noDriver(_ endpoint: Endpoint) -> ControlError {
        .noDriver("no driver of the daemon's own runs the SMMU before \(endpoint.name) (--driver none)")
    }

    func map(_ parameters: Methods.IOMMUMap.Parameters, for endpoint: Endpoint) throws(ControlError)
        -> MappingInfo
    {
        throw noDriver(endpoint)
    }

    func unmap(_ parameters: Methods.IOMMUUnmap.Parameters, for endpoint: Endpoint) throws(ControlError)
        -> Methods.IOMMUUnmap.Result
    {
        throw noDriver(endpoint)
    }

    func mappings(of endpoint: Endpoint?) -> [MappingInfo] { [] }

    func attach(_ endpoint: Endpoint, to kind: DomainKind) throws(ControlError) -> Methods.IOMMUAttach.Result
    {
        throw noDriver(endpoint)
    }

    func allocate(byteCount: UInt64, alignment: UInt64?) throws(ControlError) -> Methods.MemoryAllocate.Result
    {
        throw .noDriver("the daemon's own driver does not run: nobody manages RAM here (--driver none)")
    }

    func free(_ address: UInt64) throws(ControlError) {
        throw .noDriver("the daemon's own driver does not run: nobody manages RAM here (--driver none)")
    }

    func driverLog(from sequence: UInt64) -> Methods.DriverLog.Result {
        Methods.DriverLog.Result(lines: [], next: 0)
    }
}
