// Endpoints come and go, and are attached to domains.

package import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Synchronization

/// Who has which stream, and what each endpoint is attached to.
struct Attachments {
    /// One endpoint's state.
    struct Attachment {
        /// What transactions without a SubstreamID meet.
        var domain: IOMMUDomain
        /// What each SubstreamID meets.
        var substreams: [SubstreamID: IOMMUDomain] = [:]
        /// The SubstreamIDs that see a process's address space.
        var processes: [SubstreamID: SVADomain] = [:]
        /// What was asked for by ``SMMUv3Driver/enable(_:for:)``.
        var features: Set<EndpointFeature> = []
        /// Whether ATS is enabled in its function.
        var hasATS = false
        /// Domains to which changing over failed half way: hardware may use them, so they stay.
        var doubtful: [IOMMUDomain] = []
        /// Built at the first use of stage 1.
        var contexts: ContextTable?

        var usesSubstreams: Bool { !substreams.isEmpty || !processes.isEmpty }
    }

    var streamTable: StreamTable
    var owners: [StreamID: IOMMUEndpoint] = [:]
    var states: [ObjectIdentifier: Attachment] = [:]

    init(streamTable: StreamTable) { self.streamTable = streamTable }

    /// Keeps all tables from being given back.
    func abandonMemory() {
        streamTable.abandon()
        for state in states.values { state.contexts?.abandon() }
    }
}

extension SMMUv3Driver {
    // MARK: Endpoints

    /// Makes a device known by its StreamIDs; it stays as it is, blocked or bypassing, until it is attached.
    ///
    /// - Parameters:
    ///   - name: For people.
    ///   - streams: Its StreamIDs on this SMMU; one that comes twice counts once.
    ///   - substreamBits: How many bits of SubstreamID it wants (`pasid-num-bits`); the SMMU may have fewer.
    ///   - canStall: `dma-can-stall`.
    ///   - reservedRegions: What firmware says of IOVAs.
    ///   - services: Its function's ATS, PRI and PASID, which the driver then sets.
    /// - Throws: ``SMMUDriverError/streamOutOfRange(_:count:)``, ``SMMUDriverError/streamInUse(_:endpoint:)``,
    ///   ``SMMUDriverError/noStreams(endpoint:)``, or what memory for tables costs.
    package func addEndpoint(
        _ name: String,
        streams: [StreamID],
        substreamBits: Int = 0,
        canStall: Bool = false,
        reservedRegions: [ReservedRegion] = [],
        services: (any PageServices)? = nil
    ) throws(SMMUDriverError) -> IOMMUEndpoint {
        var unique: [StreamID] = []
        for stream in streams where !unique.contains(stream) { unique.append(stream) }
        guard !unique.isEmpty else { throw .noStreams(endpoint: name) }
        // Without two levels a table of more than 2^10 CDs would be too large.
        let hasLeaves = features.flags.contains(.twoLevelCDTable)
        let bits = min(
            max(0, substreamBits),
            features.substreamIDBits,
            hasLeaves ? .max : ContextTable.split
        )
        let flags = features.flags
        let endpoint = IOMMUEndpoint(
            name: name,
            streams: unique,
            substreamBits: bits,
            canStall: flags.contains(.stalls) && canStall || flags.contains(.forcedStalls),
            reservedRegions: reservedRegions,
            services: services
        )
        try attachments.withLock { (attachments) throws(SMMUDriverError) in
            for stream in unique {
                if let owner = attachments.owners[stream] {
                    throw .streamInUse(stream, endpoint: owner.name)
                }
                _ = try attachments.streamTable.entry(for: stream)
            }
            for stream in unique { attachments.owners[stream] = endpoint }
            attachments.states[ObjectIdentifier(endpoint)] = Attachments.Attachment(
                domain: device.options.disablesBypass ? blockedDomain : identityDomain
            )
            pageFaults.add(endpoint)
        }
        // Before ATS: with it on, PASID cannot change.
        if bits > 0 { endpoint.services?.setPASID(true) }
        return endpoint
    }

    /// Forgets a device: its streams are blocked, or bypass where firmware has memory mapped for it.
    ///
    /// Its page faults are refused, and those that are being handled waited for.
    package func removeEndpoint(_ endpoint: IOMMUEndpoint) throws(SMMUDriverError) {
        // Before the lock: a handler may want it.
        pageFaults.disable(endpoint)
        try attachments.withLock { (attachments) throws(SMMUDriverError) in
            let id = ObjectIdentifier(endpoint)
            guard var state = attachments.states[id] else { throw .unknownEndpoint(endpoint.name) }
            let resting = endpoint.needsDirectRegions ? identityDomain : blockedDomain
            for substream in (Array(state.substreams.keys) + state.processes.keys).sorted() {
                try clearContext(substream, endpoint, state)
            }
            for (substream, domain) in state.processes {
                setATS(false, endpoint, substream, domain.tag.asid)
                domain.endpointLeft()
            }
            for (substream, domain) in state.substreams {
                if let asid = domain.asid { setATS(false, endpoint, substream, asid) }
            }
            if state.features.contains(.pageFaults) { endpoint.services?.setPRI(outstandingRequests: nil) }
            state.substreams = [:]
            state.processes = [:]
            try install(resting, for: endpoint, &state, &attachments.streamTable)
            if endpoint.substreamBits > 0 { endpoint.services?.setPASID(false) }
            attachments.states[id] = nil
            for stream in endpoint.streams { attachments.owners[stream] = nil }
            pageFaults.remove(endpoint)
        }
    }

    /// The endpoint with this StreamID.
    package func endpoint(of stream: StreamID) -> IOMMUEndpoint? {
        attachments.withLock { $0.owners[stream] }
    }

    /// Every endpoint, in the order of their first StreamIDs.
    package var endpoints: [IOMMUEndpoint] {
        attachments.withLock { attachments in
            attachments.owners.filter { $0.key == $0.value.streams.first }
                .sorted { $0.key < $1.key }.map(\.value)
        }
    }

    /// What the endpoint's transactions meet; nil where nothing is attached to the SubstreamID.
    package func domain(of endpoint: IOMMUEndpoint, substream: SubstreamID? = nil) -> IOMMUDomain? {
        attachments.withLock { attachments in
            let state = attachments.states[ObjectIdentifier(endpoint)]
            guard let substream else { return state?.domain }
            return state?.substreams[substream]
        }
    }

    // MARK: Attach

    /// Puts an endpoint, or one of its SubstreamIDs, into a domain.
    ///
    /// Direct regions are mapped before. Once it returns, the SMMU uses the new domain for every transaction that
    /// comes, and what went through the old one is done.
    package func attach(_ endpoint: IOMMUEndpoint, substream: SubstreamID? = nil, to domain: IOMMUDomain)
        throws(SMMUDriverError)
    {
        guard domain.device === device else { throw .domainOfAnotherSMMU }
        if let translation = domain.translation {
            for region in endpoint.reservedRegions { try translation.apply(region) }
        }
        try attachments.withLock { (attachments) throws(SMMUDriverError) in
            let id = ObjectIdentifier(endpoint)
            guard var state = attachments.states[id] else { throw .unknownEndpoint(endpoint.name) }
            // Also where it fails half way: what was built is in the tables that hardware reads.
            defer { attachments.states[id] = state }
            if let substream {
                try attach(substream, of: endpoint, to: domain, &state, &attachments.streamTable)
            } else {
                guard state.domain !== domain else { return }
                if domain.kind == .blocked, endpoint.needsDirectRegions {
                    throw .endpointNeedsDirectRegions(endpoint.name)
                }
                // Linux: EBUSY.
                guard domain.vmid == nil || !state.usesSubstreams else {
                    throw .substreamsInUse(endpoint: endpoint.name)
                }
                state.doubtful.append(domain)
                try install(domain, for: endpoint, &state, &attachments.streamTable)
                state.doubtful.removeLast()
                state.domain = domain
                pageFaults.setTarget(domain, of: endpoint, nil)
            }
        }
    }

    /// Takes a SubstreamID out of its domain: its transactions fault from now on.
    package func detach(_ endpoint: IOMMUEndpoint, substream: SubstreamID) throws(SMMUDriverError) {
        try attachments.withLock { (attachments) throws(SMMUDriverError) in
            let id = ObjectIdentifier(endpoint)
            guard var state = attachments.states[id] else { throw .unknownEndpoint(endpoint.name) }
            guard state.substreams[substream] != nil else { throw .substreamNotAttached(substream) }
            defer { attachments.states[id] = state }
            pageFaults.setTarget(nil, of: endpoint, substream)
            let asid = state.substreams[substream]?.asid
            try clearContext(substream, endpoint, state)
            if let asid {
                try device.invalidateATCs(asid)
                setATS(false, endpoint, substream, asid)
            }
            state.substreams[substream] = nil
            try dropUnusedTable(of: endpoint, &state, &attachments.streamTable)
        }
    }

    /// Without SubstreamIDs the stream needs no CD table to be blocked or to bypass.
    func dropUnusedTable(
        of endpoint: IOMMUEndpoint,
        _ state: inout Attachments.Attachment,
        _ streamTable: inout StreamTable
    ) throws(SMMUDriverError) {
        guard !state.usesSubstreams, !state.domain.kind.translates else { return }
        try install(state.domain, for: endpoint, &state, &streamTable)
    }

    private func attach(
        _ substream: SubstreamID,
        of endpoint: IOMMUEndpoint,
        to domain: IOMMUDomain,
        _ state: inout Attachments.Attachment,
        _ streamTable: inout StreamTable
    ) throws(SMMUDriverError) {
        guard let translation = domain.translation else {
            try checkFree(substream, of: endpoint, state)
            throw .substreamNeedsTranslation(domain.kind)
        }
        try checkFree(substream, of: endpoint, state)
        guard translation.tag.vmid == nil, state.domain.vmid == nil else { throw .substreamNeedsStage1 }
        state.doubtful.append(domain)
        setATS(true, endpoint, substream, translation.tag.asid)
        try writeContext(translation, substream, endpoint, &state)
        state.doubtful.removeLast()
        state.substreams[substream] = domain
        pageFaults.setTarget(domain, of: endpoint, substream)
        if !state.domain.kind.translates {
            try install(state.domain, for: endpoint, &state, &streamTable)
        }
    }

    /// Whether something can be attached to the SubstreamID.
    func checkFree(_ substream: SubstreamID, of endpoint: IOMMUEndpoint, _ state: Attachments.Attachment)
        throws(SMMUDriverError)
    {
        // SubstreamID 0 is the CD of transactions that have none.
        guard substream.rawValue > 0, UInt64(substream.rawValue) < 1 << UInt64(endpoint.substreamBits) else {
            throw .substreamOutOfRange(substream, bits: endpoint.substreamBits)
        }
        guard state.substreams[substream] == nil, state.processes[substream] == nil else {
            throw .substreamInUse(substream)
        }
    }

    // MARK: Structures

    /// Writes the CD, where there is one, and the STEs for a domain, in the order that keeps both valid together.
    func install(
        _ domain: IOMMUDomain,
        for endpoint: IOMMUEndpoint,
        _ state: inout Attachments.Attachment,
        _ streamTable: inout StreamTable
    ) throws(SMMUDriverError) {
        prepareATS(endpoint, domain, state)
        let stage1 = domain.asid == nil ? nil : domain.translation
        if let stage1 { try writeContext(stage1, SubstreamID(0), endpoint, &state) }
        let entry = streamTableEntry(domain, endpoint, state)
        for stream in endpoint.streams {
            try write(entry, for: stream, in: &streamTable)
        }
        if stage1 == nil { try clearContext(SubstreamID(0), endpoint, state) }
        try commitATS(endpoint, from: state.domain, to: domain, &state)
    }

    private func streamTableEntry(
        _ domain: IOMMUDomain,
        _ endpoint: IOMMUEndpoint,
        _ state: Attachments.Attachment
    ) -> STE {
        if let translation = domain.translation, let vmid = translation.tag.vmid {
            return .translatingStage2(
                translation.configuration,
                root: translation.root,
                vmid: vmid,
                canStall: endpoint.canStall,
                features: features
            )
        }
        let needsTable = domain.kind.translates || state.usesSubstreams
        guard needsTable, let contexts = state.contexts else {
            return domain.kind == .identity ? .bypassing(features) : .aborting
        }
        let unsubstreamed: STE.Unsubstreamed =
            switch domain.kind {
            case .blocked: .terminates
            case .identity: .bypasses
            case .dma, .dmaFQ, .unmanaged: .usesFirstContext
            }
        return .translating(
            contexts,
            unsubstreamed: unsubstreamed,
            canStall: endpoint.canStall,
            usesE2H: device.usesE2H,
            features: features,
            ats: wantsATS(endpoint, in: domain) ? endpoint.services : nil
        )
    }

    private func write(_ entry: STE, for stream: StreamID, in streamTable: inout StreamTable)
        throws(SMMUDriverError)
    {
        let address = try streamTable.entry(for: stream)
        try device.update(at: address) {
            EntryUpdate(from: STE(words: $0), to: entry)
        } invalidate: { () throws(SMMUDriverError) in
            try device.complete([.cfgiSTE(stream, leaf: true)])
        }
        // The endpoint is going to be used.
        if !device.options.hasBrokenPrefetch {
            try device.commands.issue([.prefetchConfig(stream)], thenSync: false)
        }
    }

    private func writeContext(
        _ translation: DomainTranslation,
        _ substream: SubstreamID,
        _ endpoint: IOMMUEndpoint,
        _ state: inout Attachments.Attachment
    ) throws(SMMUDriverError) {
        let entry = CD(
            translation.configuration,
            root: translation.root,
            asid: translation.tag.asid,
            canStall: endpoint.canStall
        )
        try writeContext(entry, substream, endpoint, &state)
    }

    /// Writes a CD, in a table that is built if this is the first one.
    func writeContext(
        _ entry: CD,
        _ substream: SubstreamID,
        _ endpoint: IOMMUEndpoint,
        _ state: inout Attachments.Attachment
    ) throws(SMMUDriverError) {
        var contexts: ContextTable
        if let existing = state.contexts {
            contexts = existing
        } else {
            contexts = try ContextTable(
                substreamBits: endpoint.substreamBits,
                features: features,
                memory: device.memory,
                frames: device.frames
            )
        }
        let isNewLeaf = try contexts.makeRoom(for: substream)
        state.contexts = contexts
        if isNewLeaf { try invalidateContext(substream, endpoint, leaf: false) }
        try update(substream, endpoint, contexts, to: entry)
    }

    func clearContext(
        _ substream: SubstreamID,
        _ endpoint: IOMMUEndpoint,
        _ state: Attachments.Attachment
    ) throws(SMMUDriverError) {
        guard let contexts = state.contexts else { return }
        try update(substream, endpoint, contexts, to: CD())
    }

    func update(
        _ substream: SubstreamID,
        _ endpoint: IOMMUEndpoint,
        _ contexts: ContextTable,
        to entry: CD
    ) throws(SMMUDriverError) {
        guard let address = contexts.entry(for: substream) else { return }
        try device.update(at: address) {
            EntryUpdate(from: CD(words: $0), to: entry)
        } invalidate: { () throws(SMMUDriverError) in
            try invalidateContext(substream, endpoint, leaf: true)
        }
    }

    private func invalidateContext(_ substream: SubstreamID, _ endpoint: IOMMUEndpoint, leaf: Bool)
        throws(SMMUDriverError)
    {
        try device.complete(endpoint.streams.map { .cfgiCD($0, substream, leaf: leaf) })
    }
}
