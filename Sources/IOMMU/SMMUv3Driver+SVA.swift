// Processes' address spaces on SubstreamIDs. Linux: arm-smmu-v3-sva.c.

package import AddressSpace
import SMMUv3Spec
import Synchronization

extension SMMUv3Driver {
    /// Puts a process's address space at a SubstreamID.
    ///
    /// Linux: arm_smmu_sva_set_dev_pasid.
    func attach(_ endpoint: IOMMUEndpoint, substream: SubstreamID, to domain: SVADomain) throws(SVAError) {
        try attachments.withLock { (attachments) throws(SVAError) in
            let id = ObjectIdentifier(endpoint)
            guard var state = attachments.states[id] else {
                throw .driver(.unknownEndpoint(endpoint.name))
            }
            guard state.features.contains(.sharedAddresses) else {
                throw .invalid("\(endpoint.name) has sva not enabled")
            }
            // The process's end takes this lock, too: no CD comes after it.
            guard !domain.isQuiet else { throw .processEnded }
            defer { attachments.states[id] = state }
            do throws(SMMUDriverError) {
                try checkFree(substream, of: endpoint, state)
                guard state.domain.vmid == nil else { throw .substreamNeedsStage1 }
                let entry = CD.process(
                    domain.process.configuration,
                    root: domain.process.root,
                    asid: domain.tag.asid,
                    canStall: endpoint.canStall
                )
                // Also where it fails half way: hardware may use it.
                state.processes[substream] = domain
                domain.endpointJoined()
                setATS(true, endpoint, substream, domain.tag.asid)
                try writeContext(entry, substream, endpoint, &state)
                if !state.domain.kind.translates {
                    try install(state.domain, for: endpoint, &state, &attachments.streamTable)
                }
            } catch { throw .driver(error) }
            pageFaults.setTarget(domain, of: endpoint, substream)
        }
    }

    /// Takes a process's address space from a SubstreamID, and waits for the faults that came through it.
    ///
    /// Linux: arm_smmu_remove_dev_pasid, iopf_queue_flush_dev. Not from a fault handler.
    func detachProcess(_ endpoint: IOMMUEndpoint, substream: SubstreamID) throws(SVAError) {
        try attachments.withLock { (attachments) throws(SVAError) in
            let id = ObjectIdentifier(endpoint)
            guard var state = attachments.states[id] else {
                throw .driver(.unknownEndpoint(endpoint.name))
            }
            guard let domain = state.processes[substream] else {
                throw .driver(.substreamNotAttached(substream))
            }
            defer { attachments.states[id] = state }
            // First: what faults from now on is aborted.
            pageFaults.setTarget(nil, of: endpoint, substream)
            do throws(SMMUDriverError) {
                try clearContext(substream, endpoint, state)
                try device.complete([domain.tag.all])
                try device.invalidateATCs(domain.tag.asid)
                setATS(false, endpoint, substream, domain.tag.asid)
                state.processes[substream] = nil
                domain.endpointLeft()
                try dropUnusedTable(of: endpoint, &state, &attachments.streamTable)
            } catch {
                guard device.isOff(error) else { throw .driver(error) }
                if state.processes.removeValue(forKey: substream) != nil { domain.endpointLeft() }
            }
        }
        pageFaults.flush(endpoint)
    }

    /// The process ends: its tables are walked no more, wherever it is attached.
    ///
    /// Linux: arm_smmu_mm_release.
    func quiesce(_ domain: SVADomain) throws(SMMUDriverError) {
        try attachments.withLock { (attachments) throws(SMMUDriverError) in
            domain.becomeQuiet()
            do throws(SMMUDriverError) {
                for (stream, endpoint) in attachments.owners where stream == endpoint.streams.first {
                    guard let state = attachments.states[ObjectIdentifier(endpoint)] else { continue }
                    for (substream, attached) in state.processes where attached === domain {
                        try quiesce(domain, substream, endpoint, state)
                    }
                }
                try device.complete([domain.tag.all])
                try device.invalidateATCs(domain.tag.asid)
            } catch {
                if !device.isOff(error) { throw error }
            }
        }
    }

    private func quiesce(
        _ domain: SVADomain,
        _ substream: SubstreamID,
        _ endpoint: IOMMUEndpoint,
        _ state: Attachments.Attachment
    ) throws(SMMUDriverError) {
        guard let contexts = state.contexts else { return }
        let entry = CD.quiet(
            domain.process.configuration,
            asid: domain.tag.asid,
            canStall: endpoint.canStall,
            mustStall: features.flags.contains(.forcedStalls)
        )
        try update(substream, endpoint, contexts, to: entry)
    }

    /// The process at a SubstreamID; nil where there is none.
    package func process(of endpoint: IOMMUEndpoint, substream: SubstreamID) -> ProcessAddressSpace? {
        attachments.withLock { $0.states[ObjectIdentifier(endpoint)]?.processes[substream]?.process }
    }

    /// The lowest SubstreamID of the endpoint that nothing is attached to and `isTaken` does not hold of.
    func freeSubstream(of endpoint: IOMMUEndpoint, except isTaken: (SubstreamID) -> Bool) -> SubstreamID? {
        attachments.withLock { attachments in
            guard let state = attachments.states[ObjectIdentifier(endpoint)] else { return nil }
            let count = UInt32(1) << UInt32(endpoint.substreamBits)
            // SubstreamID 0 is the CD of transactions that have none.
            return (1..<max(1, count)).lazy.map { SubstreamID($0) }.first {
                state.substreams[$0] == nil && state.processes[$0] == nil && !isTaken($0)
            }
        }
    }
}
