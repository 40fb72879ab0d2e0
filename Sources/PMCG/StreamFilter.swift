// Which StreamIDs a counter counts.

/// SMMU_PMCG_EVTYPERn.FILTER_SID_SPAN with SMMU_PMCG_SMRn.STREAMID (IHI 0070, 10.4).
struct StreamFilter: Equatable, Sendable {
    /// STREAMID: one StreamID; or, with the lowest clear bit and the set bits below it ignored, a span of them.
    var pattern: UInt32
    var isSpan: Bool
    /// The bits of STREAMID that are there.
    var implementedBits: UInt32

    func matches(_ streamID: UInt32) -> Bool {
        // All ones: every StreamID, also one that the field is too narrow for.
        if isSpan, pattern == implementedBits { return true }
        guard streamID & ~implementedBits == 0 else { return false }
        let ignored = isSpan ? pattern ^ (pattern &+ 1) : 0
        return (streamID ^ pattern) & ~ignored == 0
    }
}
