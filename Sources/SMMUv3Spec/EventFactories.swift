// Each event record with the fields that it has; what it does not have stays zero.

public import AddressSpace

extension EventRecord {
    /// A record of that number about a stream with all its other bits zero.
    public init(_ number: EventNumber, streamID: StreamID, substreamID: SubstreamID? = nil) {
        self.init()
        self.number = number
        self.streamID = streamID
        if let substreamID {
            ssv = true
            self.substreamID = substreamID
        }
    }

    /// F_TRANSLATION, F_ADDR_SIZE, F_ACCESS and F_PERMISSION.
    ///
    /// - Parameters:
    ///   - number: Which of the four.
    ///   - streamID: The stream.
    ///   - substreamID: The substream, if the transaction has one.
    ///   - pnu: The access is privileged, after STE.PRIVCFG.
    ///   - ind: The access is an instruction fetch, after STE.INSTCFG.
    ///   - rnw: The access is a read.
    ///   - s2: The fault is stage 2's.
    ///   - eventClass: What was being translated.
    ///   - inputAddress: The address as the device sent it.
    ///   - ipa: With `s2` the faulting address; its low 12 bits are dropped.
    ///   - stag: Names the stalled transaction; nil where it is terminated.
    ///   - ttRnW: F_PERMISSION of a table access: it was a read.
    /// - Returns: The record.
    public static func translationRelated(
        _ number: EventNumber,
        streamID: StreamID,
        substreamID: SubstreamID?,
        pnu: Bool,
        ind: Bool,
        rnw: Bool,
        s2: Bool,
        eventClass: EventClass,
        inputAddress: UInt64,
        ipa: UInt64 = 0,
        stag: UInt16? = nil,
        ttRnW: Bool = false
    ) -> Self {
        var record = Self(number, streamID: streamID, substreamID: substreamID)
        record.setAccess(pnu: pnu, ind: ind, rnw: rnw, inputAddress: inputAddress)
        record.s2 = s2
        record.eventClass = eventClass
        record.ipa = ipa
        record.ttRnW = ttRnW
        if let stag {
            record.stall = true
            record.stag = stag
        }
        return record
    }

    /// F_WALK_EABT: the fetch of the descriptor at `fetchAddress` aborted.
    public static func walkExternalAbort(
        streamID: StreamID,
        substreamID: SubstreamID?,
        pnu: Bool,
        ind: Bool,
        rnw: Bool,
        s2: Bool,
        eventClass: EventClass,
        inputAddress: UInt64,
        fetchAddress: UInt64,
        reason: UInt16 = 0
    ) -> Self {
        var record = Self(.fWalkEABT, streamID: streamID, substreamID: substreamID)
        record.setAccess(pnu: pnu, ind: ind, rnw: rnw, inputAddress: inputAddress)
        record.s2 = s2
        record.eventClass = eventClass
        record.fetchAddress = fetchAddress
        record.reason = reason
        return record
    }

    /// C_BAD_STREAMID, C_BAD_STE, F_STREAM_DISABLED, C_BAD_SUBSTREAMID and C_BAD_CD.
    ///
    /// C_BAD_SUBSTREAMID has no SSV: its SubstreamID always counts, and none is recorded as 0.
    public static func configuration(
        _ number: EventNumber,
        streamID: StreamID,
        substreamID: SubstreamID?
    ) -> Self {
        var record = Self(number, streamID: streamID, substreamID: substreamID)
        if number == .cBadSubstreamID { record.ssv = false }
        return record
    }

    /// F_STE_FETCH, F_CD_FETCH and F_VMS_FETCH: the fetch of the structure at `fetchAddress` aborted.
    public static func fetchAbort(
        _ number: EventNumber,
        streamID: StreamID,
        substreamID: SubstreamID?,
        fetchAddress: UInt64,
        reason: UInt16 = 0
    ) -> Self {
        var record = Self(number, streamID: streamID, substreamID: substreamID)
        record.fetchAddress = fetchAddress
        record.reason = reason
        return record
    }

    /// F_UUT: an unsupported transaction, with the properties it came with.
    public static func unsupportedTransaction(
        streamID: StreamID,
        substreamID: SubstreamID?,
        pnu: Bool,
        ind: Bool,
        rnw: Bool,
        inputAddress: UInt64,
        reason: UInt16 = 0
    ) -> Self {
        var record = Self(.fUUT, streamID: streamID, substreamID: substreamID)
        record.setAccess(pnu: pnu, ind: ind, rnw: rnw, inputAddress: inputAddress)
        record.reason = reason
        return record
    }

    /// F_BAD_ATS_TREQ: an ATS translation request that was refused.
    public static func badATSTranslationRequest(
        streamID: StreamID,
        substreamID: SubstreamID?,
        inputAddress: UInt64
    ) -> Self {
        var record = Self(.fBadATSTreq, streamID: streamID, substreamID: substreamID)
        record.inputAddress = inputAddress
        return record
    }

    /// F_TRANSL_FORBIDDEN: ATS-translated traffic that was refused.
    public static func translationForbidden(
        streamID: StreamID,
        substreamID: SubstreamID?,
        rnw: Bool,
        inputAddress: UInt64
    ) -> Self {
        var record = Self(.fTranslForbidden, streamID: streamID, substreamID: substreamID)
        record.rnw = rnw
        record.inputAddress = inputAddress
        return record
    }

    /// F_TLB_CONFLICT: two TLB entries match; `ipa` counts with `s2`.
    public static func tlbConflict(
        streamID: StreamID,
        substreamID: SubstreamID?,
        pnu: Bool,
        ind: Bool,
        rnw: Bool,
        s2: Bool,
        inputAddress: UInt64,
        ipa: UInt64 = 0,
        reason: UInt16 = 0
    ) -> Self {
        var record = Self(.fTLBConflict, streamID: streamID, substreamID: substreamID)
        record.setAccess(pnu: pnu, ind: ind, rnw: rnw, inputAddress: inputAddress)
        record.s2 = s2
        record.ipa = ipa
        record.reason = reason
        return record
    }

    /// F_CFG_CONFLICT: two configuration cache entries match.
    public static func configurationConflict(
        streamID: StreamID,
        substreamID: SubstreamID?,
        reason: UInt16 = 0
    ) -> Self {
        var record = Self(.fCFGConflict, streamID: streamID, substreamID: substreamID)
        record.reason = reason
        return record
    }

    /// E_PAGE_REQUEST: a device hints that it will want `span` pages of 4 KiB; the permissions are yet to
    /// set.
    public static func pageRequest(
        streamID: StreamID,
        substreamID: SubstreamID?,
        address: UInt64,
        span: UInt8
    ) -> Self {
        var record = Self(.ePageRequest, streamID: streamID, substreamID: substreamID)
        record.pageAddress = address
        record.span = span
        return record
    }

    private mutating func setAccess(pnu: Bool, ind: Bool, rnw: Bool, inputAddress: UInt64) {
        self.pnu = pnu
        self.ind = ind
        self.rnw = rnw
        self.inputAddress = inputAddress
    }
}

extension PRIEntry {
    /// Whether this is a stop marker, which ends the use of a PASID and wants no response.
    public var isStopMarker: Bool { ssv && last && !r && !w }
}
