// Which devices work in which processes' address spaces. Linux: iommu-sva.c.

package import AddressSpace
import IOPageTable
import Synchronization

/// A device that is bound to a process.
///
/// Linux: struct iommu_sva.
package final class SVABond: Sendable {
    package let process: ProcessAddressSpace
    package let endpoint: IOMMUEndpoint
    /// The PASID that the device's transactions carry.
    package let substream: SubstreamID
    /// The ASID that the translations carry.
    package let asid: UInt16
    let driver: SMMUv3Driver

    init(
        _ process: ProcessAddressSpace,
        _ endpoint: IOMMUEndpoint,
        _ substream: SubstreamID,
        _ asid: UInt16,
        _ driver: SMMUv3Driver
    ) {
        self.process = process
        self.endpoint = endpoint
        self.substream = substream
        self.asid = asid
        self.driver = driver
    }
}

/// Binds devices to processes, over all SMMUs.
///
/// A process has one PASID for all of its devices. Lock order: its own, then a process's, then the drivers'.
package final class SharedVirtualAddressing: Sendable {
    private struct Entry {
        let bond: SVABond
        var userCount: Int
    }

    private struct State {
        var entries: [Entry] = []
        /// By process.
        ///
        /// Linux: iommu_global_pasid_ida.
        var substreams: [ObjectIdentifier: SubstreamID] = [:]
    }
    private let state = Mutex(State())

    package init() {}

    /// Every bond, in the order in which they were made.
    package var bonds: [SVABond] { state.withLock { $0.entries.map(\.bond) } }

    /// Binds a device to a process, or counts one more user of what is bound.
    ///
    /// Linux: iommu_sva_bind_device. The device has its page faults and SVA enabled.
    package func bind(
        _ endpoint: IOMMUEndpoint,
        of driver: SMMUv3Driver,
        to process: ProcessAddressSpace
    ) throws(SVAError) -> SVABond {
        guard driver.enabledFeatures(of: endpoint).contains(.sharedAddresses) else {
            throw .invalid("\(endpoint.name) has sva not enabled")
        }
        guard !process.hasEnded else { throw .processEnded }
        guard process.configuration.outputAddressBits <= driver.features.outputAddressBits else {
            throw .unsupported("the SMMU drives fewer bits of physical address than the process has")
        }
        return try state.withLock { (state) throws(SVAError) in
            if let index = state.entries.firstIndex(where: {
                $0.bond.endpoint === endpoint && $0.bond.process === process
            }) {
                state.entries[index].userCount += 1
                return state.entries[index].bond
            }
            let substream = try self.substream(of: process, for: endpoint, driver, state)
            let known = process.domain(on: driver.device)
            let domain: SVADomain
            if let known {
                domain = known
            } else {
                domain = try SVADomain(process, driver)
                try process.add(domain)
            }
            do throws(SVAError) {
                try driver.attach(endpoint, substream: substream, to: domain)
            } catch {
                if known == nil { process.remove(domain) }
                throw error
            }
            let bond = SVABond(process, endpoint, substream, domain.tag.asid, driver)
            state.substreams[ObjectIdentifier(process)] = substream
            state.entries.append(Entry(bond: bond, userCount: 1))
            return bond
        }
    }

    private func substream(
        of process: ProcessAddressSpace,
        for endpoint: IOMMUEndpoint,
        _ driver: SMMUv3Driver,
        _ state: State
    ) throws(SVAError) -> SubstreamID {
        if let known = state.substreams[ObjectIdentifier(process)] {
            guard UInt64(known.rawValue) < 1 << UInt64(endpoint.substreamBits) else {
                throw .substreamTooLarge(known, bits: endpoint.substreamBits)
            }
            return known
        }
        let taken = Set(state.substreams.values)
        guard let free = driver.freeSubstream(of: endpoint, except: { taken.contains($0) }) else {
            throw .substreamsExhausted(bits: endpoint.substreamBits)
        }
        return free
    }

    /// One user less; with the last the device reaches the process no more, and its faults have been answered.
    ///
    /// Linux: iommu_sva_unbind_device. Not from a fault handler.
    package func unbind(_ bond: SVABond) throws(SVAError) {
        try state.withLock { (state) throws(SVAError) in
            guard let index = state.entries.firstIndex(where: { $0.bond === bond }) else {
                throw .invalid("\(bond.endpoint.name) is not bound to process \(bond.process.id)")
            }
            guard state.entries[index].userCount == 1 else {
                state.entries[index].userCount -= 1
                return
            }
            do throws(SVAError) {
                try bond.driver.detachProcess(bond.endpoint, substream: bond.substream)
            } catch .driver(.unknownEndpoint), .driver(.substreamNotAttached) {
                // The device has gone, and with it what it reached.
            }
            state.entries.remove(at: index)
            let process = bond.process
            if let domain = process.domain(on: bond.driver.device), domain.endpointCount == 0 {
                process.remove(domain)
            }
            if !state.entries.contains(where: { $0.bond.process === process }) {
                state.substreams[ObjectIdentifier(process)] = nil
            }
        }
    }
}
