// From a StreamID to its STE, and from a SubstreamID to its CD.

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import SystemBus

/// The registers that a translation depends on, read once at its start.
struct TranslationControls: Equatable, Sendable {
    var isEnabled: Bool
    /// What happens while it is not enabled.
    var globalBypass: GBPA
    /// PARTID and PMG of what then passes.
    var globalMPAM: GBPMPAM
    /// CR2.RECINVSID.
    var recordsBadStreamIDs: Bool
    /// CR2.E2H.
    var isE2H: Bool
    /// CR0.ATSCHK.
    var checksTranslated: Bool
    /// CR2.REC_CFG_ATS.
    var recordsATSErrors: Bool
    var tableBase: StrtabBase
    var tableConfiguration: StrtabBaseCfg
    /// The invalidation generation before these were read, and so before anything that the look-up fetches:
    /// what it finds is kept only if nothing has been invalidated since.
    ///
    /// One for the whole look-up: a walk that begins after an invalidation may still start from a CD that was
    /// fetched before it.
    var generation = InvalidationStamp()
}

extension TranslationControls {
    /// SMMU_STRTAB_BASE_CFG.SPLIT; what is Reserved behaves as 6.
    fileprivate var split: UInt8 {
        let split = tableConfiguration.split
        return split == 8 || split == 10 ? split : 6
    }

    /// How many STEs a descriptor leads to; nil where its Span is none.
    fileprivate func entryCount(of l1: L1STD) -> UInt64? {
        l1.span != 0 && l1.span <= 11 && l1.span <= split + 1 ? 1 &<< UInt64(l1.span - 1) : nil
    }

    /// Where a stream's STE is by its descriptor; nil where that leads to none.
    func entryAddress(_ streamID: StreamID, by l1: L1STD) -> UInt64? {
        let index = UInt64(streamID.rawValue) & ((1 &<< UInt64(split)) &- 1)
        guard let entries = entryCount(of: l1), index < entries else { return nil }
        return (l1.l2Ptr & ~(entries &* 64 &- 1)) &+ index &* 64
    }
}

/// What a stream's configuration leads to.
enum StreamOutcome: Equatable, Sendable {
    /// STE.Config 0b1x0, or stage 1 skipped by S1DSS: stage 2, if any, gets the address as it is.
    case bypass
    case stage1(ContextConfiguration)
}

extension SMMUv3 {
    /// Whether look-ups go through the caches.
    ///
    /// Tools look at memory itself.
    enum CachePolicy {
        case cached
        /// Through the caches, and nothing is changed by it: neither a cache nor a descriptor (HTTU).
        case readOnly
        case uncached

        @inline(__always)  // Once for each look-up.
        var looksInCaches: Bool { self != .uncached }
    }

    // MARK: STE

    func fetchSTE(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> STE {
        let streamID = transaction.streamID
        if policy.looksInCaches, let ste = configurationCache.stream(streamID) { return ste }
        let address = try steAddress(transaction, controls, &observer)
        let ste: STE
        observer.accessing(.configuration)
        do {
            ste = STE(words: try bus.loadRAM64x8(at: PhysicalAddress(address)))
        } catch {
            throw fetchAbort(.fSTEFetch, transaction, address)
        }
        observer.fetchedConfiguration(counters)
        observer.fetched(.ste(PhysicalAddress(address), ste))
        if policy == .cached, options.cachesInvalidStructures || identification.violation(of: ste) == nil {
            configurationCache.fill(streamID, ste, fetchedAt: controls.generation)
        }
        return ste
    }

    /// Where a stream's STE is (IHI 0070, 3.3.1 and 5.1).
    private func steAddress(
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> UInt64 {
        let log2Size = min(controls.tableConfiguration.log2size, identification.idr1.sidsize)
        guard UInt64(transaction.streamID.rawValue) < 1 << UInt64(log2Size) else {
            throw badStreamID(
                transaction,
                controls,
                "StreamID \(transaction.streamID) is beyond the stream table's 2^\(log2Size)"
            )
        }
        guard let l1Address = levelOneAddress(transaction.streamID, controls) else {
            return linearEntryAddress(transaction.streamID, controls)
        }
        let l1: L1STD
        observer.accessing(.configuration)
        do {
            l1 = L1STD(word: try bus.loadRAM64(at: PhysicalAddress(l1Address)))
        } catch {
            throw fetchAbort(.fSTEFetch, transaction, l1Address)
        }
        observer.fetchedConfiguration(counters)
        observer.fetched(.l1std(PhysicalAddress(l1Address), l1))
        guard let entries = controls.entryCount(of: l1) else {
            throw badStreamID(transaction, controls, "the level-1 descriptor's Span \(l1.span) holds no STEs")
        }
        guard let address = controls.entryAddress(transaction.streamID, by: l1) else {
            throw badStreamID(
                transaction,
                controls,
                "StreamID \(transaction.streamID) is beyond the \(entries) STEs of its Span"
            )
        }
        return address
    }

    /// Where the STE of a stream is that is within a linear stream table.
    func linearEntryAddress(_ streamID: StreamID, _ controls: TranslationControls) -> UInt64 {
        // The smart shift gives 0, and so base 0, for a size that no address has room for.
        let tableBytes: UInt64 = 64 << UInt64(controls.tableConfiguration.log2size)
        return (controls.tableBase.addr & ~(tableBytes &- 1)) &+ UInt64(streamID.rawValue) &* 64
    }

    /// Where the L1STD of a stream is that is within the stream table; nil where the table is linear.
    func levelOneAddress(_ streamID: StreamID, _ controls: TranslationControls) -> UInt64? {
        let configuration = controls.tableConfiguration
        guard identification.idr0.stLevel != 0 && configuration.fmt == 0b01 else { return nil }
        let split = controls.split
        let l1Count = configuration.log2size > split ? UInt64(configuration.log2size - split) : 0
        let l1Base = controls.tableBase.addr & ~(max(64, 8 << l1Count) &- 1)
        return l1Base &+ (UInt64(streamID.rawValue) &>> UInt64(split)) &* 8
    }

    private func badStreamID(_ transaction: Transaction, _ controls: TranslationControls, _ reason: String)
        -> TranslationFault
    {
        .abort(
            .configuration(
                .cBadStreamID,
                streamID: transaction.streamID,
                substreamID: transaction.attributes.substreamID
            ),
            isRecorded: controls.recordsBadStreamIDs,
            reason
        )
    }

    private func fetchAbort(_ number: EventNumber, _ transaction: Transaction, _ address: UInt64)
        -> TranslationFault
    {
        .abort(
            .fetchAbort(
                number,
                streamID: transaction.streamID,
                substreamID: transaction.attributes.substreamID,
                fetchAddress: address
            ),
            "nobody answers at 0x\(String(address, radix: 16))"
        )
    }

    private func configurationFault(_ number: EventNumber, _ transaction: Transaction, _ reason: String)
        -> TranslationFault
    {
        .abort(
            .configuration(
                number,
                streamID: transaction.streamID,
                substreamID: transaction.attributes.substreamID
            ),
            reason
        )
    }

    // MARK: From the STE on

    /// Checks an STE and decodes it; an abort configuration and an invalid STE end here.
    func configuration(of ste: STE, _ transaction: Transaction, _ controls: TranslationControls)
        throws(TranslationFault) -> StreamConfiguration
    {
        if let reason = identification.violation(of: ste) {
            throw configurationFault(.cBadSTE, transaction, reason)
        }
        if ste.config.abortsSilently {
            throw .silentAbort("STE.Config is 0b\(String(ste.config.rawValue, radix: 2)): abort, no event")
        }
        return identification.decode(ste, isE2H: controls.isE2H)
    }

    /// What a stream does with a transaction: the checks of SubstreamIDs and the CD (IHI 0070, 3.3.2 and 5.3).
    func resolve(
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> StreamOutcome {
        guard let index = try contextIndex(stream, transaction, &observer) else { return .bypass }
        let cd = try fetchCD(index, stream, transaction, controls, policy, nil, &observer)
        let lookup = LookupScope(policy: policy, generation: controls.generation)
        return .stage1(try context(of: cd, stream, transaction, lookup, &observer))
    }

    /// Which CD a transaction uses; nil where it bypasses stage 1.
    func contextIndex(
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> UInt32? {
        let table = stream.contextTable
        if let substreamID = transaction.attributes.substreamID {
            guard stream.config.translatesStage1, table.log2Count > 0,
                UInt64(substreamID.rawValue) < 1 << UInt64(table.log2Count)
            else {
                let contexts = table.log2Count == 0 ? "no substreams" : "2^\(table.log2Count) CDs"
                throw configurationFault(
                    .cBadSubstreamID,
                    transaction,
                    "SubstreamID \(substreamID) with \(contexts)"
                )
            }
            if table.defaultSubstream == 0b10, substreamID.rawValue == 0 {
                throw configurationFault(
                    .fStreamDisabled,
                    transaction,
                    "SubstreamID 0 while STE.S1DSS gives CD 0 to plain traffic"
                )
            }
            return substreamID.rawValue
        }
        guard stream.config.translatesStage1 else { return nil }
        guard table.log2Count > 0 else {
            return 0
        }
        switch table.defaultSubstream {
        case 0b01:
            observer.note("STE.S1DSS is 1: a transaction without a SubstreamID bypasses stage 1")
            return nil
        case 0b10:
            return 0
        default:
            throw configurationFault(
                .fStreamDisabled,
                transaction,
                "STE.S1DSS terminates transactions without a SubstreamID"
            )
        }
    }

    // MARK: CD

    /// Checks a CD and decodes it.
    func context(
        of cd: CD,
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ lookup: LookupScope,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> ContextConfiguration {
        if let reason = identification.violation(of: cd, in: stream) {
            throw configurationFault(.cBadCD, transaction, reason)
        }
        var context = identification.decode(cd, in: stream)
        if identification.idr3.mpam {
            context.mpam = try mpam(of: cd, stream, transaction, lookup, &observer)
        }
        return context
    }

    /// - Parameter plan: What is known of the stream, if anything is.
    func fetchCD(
        _ index: UInt32,
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ controls: TranslationControls,
        _ policy: CachePolicy,
        _ plan: UnsafePointer<StreamPlan>?,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> CD {
        let key = ConfigurationCache.ContextKey(streamID: transaction.streamID, index: index)
        if policy.looksInCaches, let cd = configurationCache.context(key) { return cd }
        let lookup = LookupScope(policy: policy, generation: controls.generation)
        let address = try cdAddress(index, stream, transaction, lookup, plan, &observer)
        let location = try physicalContext(address, stream, transaction, lookup, plan, &observer)
        let cd: CD
        observer.accessing(.configuration)
        do {
            cd = CD(words: try bus.loadRAM64x8(at: location))
        } catch {
            throw fetchAbort(.fCDFetch, transaction, location.rawValue)
        }
        observer.fetchedConfiguration(counters)
        observer.fetched(.cd(location, cd))
        if policy == .cached,
            options.cachesInvalidStructures || identification.violation(of: cd, in: stream) == nil
        {
            configurationCache.fill(key, cd, fetchedAt: controls.generation)
        }
        return cd
    }

    /// Where a CD or L1CD is: behind stage 2 where that translates.
    private func physicalContext(
        _ address: UInt64,
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ lookup: LookupScope,
        _ plan: UnsafePointer<StreamPlan>?,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> PhysicalAddress {
        guard let stage2 = stream.stage2 else { return PhysicalAddress(address) }
        if let plan, let location = locateQuickly(address, plan, lookup, &observer) {
            return PhysicalAddress(location)
        }
        let request = Stage2Request(
            transaction: transaction,
            access: EffectiveAccess(transaction).overridden(by: stream),
            purpose: .context,
            ipa: address,
            lookup: lookup
        )
        let (translation, _) = try translateStage2(request, stage2, &observer)
        return PhysicalAddress(translation.output(for: address))
    }

    /// The address of a CD; an IPA where stage 2 translates.
    private func cdAddress(
        _ index: UInt32,
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ lookup: LookupScope,
        _ plan: UnsafePointer<StreamPlan>?,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> UInt64 {
        let table = stream.contextTable
        guard let leaf = table.log2LeafCount else { return table.base &+ UInt64(index) &* 64 }
        let l1Address = table.base &+ (UInt64(index) &>> UInt64(leaf)) &* 8
        let location = try physicalContext(l1Address, stream, transaction, lookup, plan, &observer)
        let l1: L1CD
        observer.accessing(.configuration)
        do {
            l1 = L1CD(word: try bus.loadRAM64(at: location))
        } catch {
            throw fetchAbort(.fCDFetch, transaction, location.rawValue)
        }
        observer.fetchedConfiguration(counters)
        observer.fetched(.l1cd(location, l1))
        let leafBytes: UInt64 = 64 &<< UInt64(leaf)
        let leafBase = l1.l2Ptr & ~(leafBytes &- 1)
        let limit =
            stream.stage2 == nil ? identification.outputAddressLimit : identification.inputAddressLimit
        guard l1.v, l1.l2Ptr < limit else {
            throw .abort(
                // The SubstreamID field is always valid here: 0 where S1DSS led to CD 0.
                .configuration(
                    .cBadSubstreamID,
                    streamID: transaction.streamID,
                    substreamID: transaction.attributes.substreamID ?? SubstreamID(0)
                ),
                l1.v
                    ? "the level-1 CD descriptor's L2Ptr is beyond the output address size"
                    : "the level-1 CD descriptor is invalid"
            )
        }
        return leafBase &+ (UInt64(index) & ((1 &<< UInt64(leaf)) &- 1)) &* 64
    }
}
