// Endpoints: who sends the transactions.

package import AddressSpace

/// One device behind an SMMU: its StreamIDs there, and what its transactions can be.
///
/// Linux: arm_smmu_master.
package final class IOMMUEndpoint: Sendable {
    package let name: String
    /// Without duplicates, in the order in which firmware names them.
    package let streams: [StreamID]
    /// How many bits of SubstreamID it uses, no more than the SMMU takes; 0 for none.
    package let substreamBits: Int
    /// Whether its faulting transactions may be stalled (`dma-can-stall`).
    package let canStall: Bool
    package let reservedRegions: [ReservedRegion]
    /// Its function's ATS, PRI and PASID; nil for what is no PCIe function, or has none of them.
    let services: (any PageServices)?

    init(
        name: String,
        streams: [StreamID],
        substreamBits: Int,
        canStall: Bool,
        reservedRegions: [ReservedRegion],
        services: (any PageServices)? = nil
    ) {
        self.name = name
        self.streams = streams
        self.substreamBits = substreamBits
        self.canStall = canStall
        self.reservedRegions = reservedRegions
        self.services = services
    }

    /// Whether it accesses memory that only a mapping of its own, or none at all, lets through.
    var needsDirectRegions: Bool { reservedRegions.contains { $0.kind == .direct } }
}
