// Clients whose address spaces devices share, and which devices those are.

package import ControlProtocol
import DeviceTree
import IOMMU
import IOPageTable
import SMMUv3
import Synchronization

/// The clients that have an address space here, by number, and what is bound to them.
///
/// Lock order: `state`, then a process's and what binding takes.
package final class ClientProcesses: Sendable {
    private struct State {
        var processes: [UInt32: ClientProcess] = [:]
        var nextID: UInt32 = 1
    }
    private let state = Mutex(State())
    private let sva = SharedVirtualAddressing()
    /// Held while devices are bound and unbound: enabling features and binding are one step.
    private let binding = Mutex(())

    /// How many clients may have an address space.
    private static let countMax = 1024

    init() {}

    /// Every process, by number.
    package var all: [ClientProcess] {
        state.withLock { $0.processes.values.sorted { $0.space.id < $1.space.id } }
    }

    var bonds: [SVABond] { sva.bonds }

    fileprivate func add(_ make: (UInt32) throws(ControlError) -> ClientProcess) throws(ControlError)
        -> ClientProcess
    {
        try state.withLock { (state) throws(ControlError) in
            guard state.processes.count < Self.countMax else {
                throw .limit("\(Self.countMax) clients share their addresses already")
            }
            while state.processes[state.nextID] != nil || state.nextID == 0 { state.nextID &+= 1 }
            let process = try make(state.nextID)
            state.processes[state.nextID] = process
            state.nextID &+= 1
            return process
        }
    }

    /// The client has gone: devices are unbound from it, and what they had of it is given back.
    package func remove(_ process: ClientProcess) {
        // First: what is stalled is answered, and nothing more comes in.
        process.end()
        for bond in sva.bonds where bond.process === process.space { unbindEntirely(bond) }
        state.withLock { $0.processes[process.space.id] = nil }
    }

    private func unbindEntirely(_ bond: SVABond) {
        // As often as it was bound; what cannot be unbound stays, quiet.
        while (try? unbind(bond)) != nil {}
    }

    fileprivate func bind(
        _ endpoint: IOMMUEndpoint,
        of driver: SMMUv3Driver,
        to process: ClientProcess
    ) throws(SVAError) -> SVABond {
        try binding.withLock { (_) throws(SVAError) in
            guard driver.supportsPageFaults(endpoint) else {
                throw .unsupported(
                    "\(endpoint.name) cannot wait for a page: it has neither stalls (dma-can-stall) nor page requests"
                )
            }
            // What its driver would ask for at its start.
            let enabled = driver.enabledFeatures(of: endpoint)
            for feature in [EndpointFeature.pageFaults, .sharedAddresses] where !enabled.contains(feature) {
                try driver.enable(feature, for: endpoint)
            }
            return try sva.bind(endpoint, of: driver, to: process.space)
        }
    }

    fileprivate func unbind(_ bond: SVABond) throws(SVAError) {
        try binding.withLock { (_) throws(SVAError) in try sva.unbind(bond) }
    }
}

extension Machine {
    /// A client's address space, empty.
    package func makeClientProcess() throws(ControlError) -> ClientProcess {
        guard let system = operatingSystem.value else {
            throw .noDriver(
                "the daemon's own driver does not run (--driver none): nobody would bring pages in"
            )
        }
        let bits = min(48, smmus.map(\.model.identification.outputAddressBits).min() ?? 48)
        return try clientProcesses.add { (id) throws(ControlError) in
            do throws(IOPageTableError) {
                let space = try ProcessAddressSpace(
                    id: id,
                    physicalAddressBits: bits,
                    memory: bus,
                    frames: system.frames
                )
                return ClientProcess(space, lentMemory, physicalWindows)
            } catch { throw .exhausted("no page table for the address space: \(error)") }
        }
    }

    /// Has a device work in a client's address space.
    package func bind(_ endpoint: Endpoint, to process: ClientProcess) throws(ControlError) -> SVABondInfo {
        let (driver, iommuEndpoint) = try driven(endpoint)
        do throws(SVAError) {
            return SVABondInfo(try clientProcesses.bind(iommuEndpoint, of: driver, to: process))
        } catch { throw Self.controlError(error) }
    }

    /// The reverse, once for each time that it was bound.
    package func unbind(_ endpoint: Endpoint, from process: ClientProcess) throws(ControlError) {
        let bond = clientProcesses.bonds.first {
            $0.process === process.space && $0.endpoint.name == endpoint.name
        }
        guard let bond else {
            throw .notMapped(at: 0, "\(endpoint.name) is not bound to process \(process.space.id)")
        }
        do throws(SVAError) { try clientProcesses.unbind(bond) } catch { throw Self.controlError(error) }
    }

    private func driven(_ endpoint: Endpoint) throws(ControlError) -> (SMMUv3Driver, IOMMUEndpoint) {
        guard let system = operatingSystem.value else {
            throw .noDriver("the daemon's own driver does not run (--driver none): that is yours to do here")
        }
        _ = try system.managed(endpoint)
        guard let index = endpoint.smmuIndex, case .running(let driver) = system.driverState(index),
            let stream = endpoint.streams.first, let iommuEndpoint = driver.endpoint(of: stream)
        else { throw .noDriver("no driver has \(endpoint.name)") }
        return (driver, iommuEndpoint)
    }

    private static func controlError(_ error: SVAError) -> ControlError {
        switch error {
        case .substreamsExhausted, .substreamTooLarge: .exhausted("\(error)")
        case .busy: .conflict(at: 0, "\(error)")
        default: .failed("\(error)")
        }
    }
}
