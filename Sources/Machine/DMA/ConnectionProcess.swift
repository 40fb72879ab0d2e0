// The address space that a client of the DMA socket shares with devices.

import AddressSpace
import ControlProtocol
import GuestMemory

/// One connection's address space; it ends with the connection.
struct ConnectionProcess: ~Copyable {
    private let machine: Machine
    /// Made when it is first used.
    private var process: ClientProcess?

    init(_ machine: Machine) { self.machine = machine }

    deinit { if let process { machine.clientProcesses.remove(process) } }

    private mutating func existing() throws(DMARejection) -> ClientProcess {
        if let process { return process }
        do throws(ControlError) {
            let made = try machine.makeClientProcess()
            process = made
            return made
        } catch { throw DMARejection(error) }
    }

    /// PROCESS_MAP.
    mutating func map(_ request: DMARequest, _ descriptor: consuming OwnedDescriptor) throws(DMARejection)
        -> DMAResponse
    {
        let protection = DMAProtection(rawValue: request.stream)
        guard protection.isSubset(of: .all), protection.contains(.read) else {
            throw DMARejection(.parameter, "the protection is read 1, and with it write 2 and execute 4")
        }
        // A file that cannot be written has no pages that can.
        guard !protection.contains(.write) || descriptor.isWritable else {
            throw DMARejection(.parameter, "the file is not open for writing")
        }
        let range = try Self.range(of: request)
        let process = try existing()
        do throws(ControlError) {
            try process.map(descriptor, offset: request.offset, at: range, protection: protection)
        } catch { throw DMARejection(error) }
        return DMAResponse(to: request, value0: UInt64(process.number))
    }

    /// PROCESS_UNMAP.
    mutating func unmap(_ request: DMARequest) throws(DMARejection) -> DMAResponse {
        let range = try Self.range(of: request)
        let process = try existing()
        do throws(ControlError) { try process.unmap(range) } catch { throw DMARejection(error) }
        return DMAResponse(to: request)
    }

    /// PROCESS_BIND.
    mutating func bind(_ request: DMARequest, _ identity: RequesterIdentity) throws(DMARejection)
        -> DMAResponse
    {
        let endpoint = try endpoint(identity)
        let process = try existing()
        do throws(ControlError) {
            let bond = try machine.bind(endpoint, to: process)
            return DMAResponse(
                to: request,
                handle: UInt32(truncatingIfNeeded: bond.substream.value),
                value0: UInt64(process.number),
                value1: bond.asid.value
            )
        } catch { throw DMARejection(error) }
    }

    /// PROCESS_UNBIND.
    mutating func unbind(_ request: DMARequest, _ identity: RequesterIdentity) throws(DMARejection)
        -> DMAResponse
    {
        let endpoint = try endpoint(identity)
        let process = try existing()
        do throws(ControlError) { try machine.unbind(endpoint, from: process) } catch {
            throw DMARejection(error)
        }
        return DMAResponse(to: request)
    }

    private func endpoint(_ identity: RequesterIdentity) throws(DMARejection) -> Endpoint {
        guard let endpoint = machine.endpoint(at: identity) else {
            throw DMARejection(.notFound, "no device of the tree has this StreamID")
        }
        return endpoint
    }

    private static func range(of request: DMARequest) throws(DMARejection) -> AddressRange {
        guard let range = AddressRange(start: request.iova, byteCount: request.count) else {
            throw DMARejection(.range, "the range is empty or leaves 64 bits")
        }
        return range
    }
}

extension DMARejection {
    /// Why the machine refused, as the DMA socket says it.
    init(_ error: ControlError) {
        let status: DMAStatus =
            switch error.code {
            case .invalidParameters, .conflict: .parameter
            case .notFound, .notMapped: .notFound
            case .limit, .exhausted: .limit
            default: .failed
            }
        self.init(status, error.message)
    }
}
