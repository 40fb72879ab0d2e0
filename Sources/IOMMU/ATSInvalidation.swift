// Functions that keep translations themselves: which ones have what, and how they are told to drop it. Linux: pci_ats,
// arm_smmu_atc_inv_domain.

import AddressSpace
import IOPageTable
import SMMUv3Spec
import Synchronization

/// A function's ATS, PRI and PASID registers, as the driver sets them.
///
/// Linux: pci-ats.c.
///
/// Called with the driver's attachments locked: it takes no lock but leaves, and waits for nothing.
package protocol PageServices: AnyObject, Sendable {
    /// Whether it has ATS, and its host bridge passes that on.
    var hasATS: Bool { get }
    /// Whether it has page requests.
    var hasPRI: Bool { get }
    /// Whether its page request responses are to carry the PASID (PRG Response PASID Required).
    var responsesNeedPASID: Bool { get }
    /// pci_enable_ats, with Smallest Translation Unit 2^`log2PageBytes`; nil disables it.
    func setATS(log2PageBytes: Int?)
    /// pci_enable_pri, with so many requests outstanding; nil disables it.
    func setPRI(outstandingRequests: Int?)
    /// pci_enable_pasid, pci_disable_pasid.
    func setPASID(_ isEnabled: Bool)
}

/// Which functions may keep translations of which ASID.
///
/// Its lock is a leaf.
final class ATSMasters: Sendable {
    /// One function's stream, as it sees one ASID.
    struct Master: Hashable, Sendable {
        let stream: StreamID
        /// Nil for transactions without one.
        let substream: SubstreamID?
    }

    private let masters = Mutex<[UInt16: Set<Master>]>([:])
    /// How many there are: mostly none, and then nobody takes the lock.
    ///
    /// Linux: nr_ats_masters.
    private let count = Atomic(0)

    func add(_ master: Master, of asid: UInt16) {
        masters.withLock { masters in
            if masters[asid, default: []].insert(master).inserted {
                // Before any translation can be kept: who unmaps after that sees it.
                count.wrappingAdd(1, ordering: .sequentiallyConsistent)
            }
        }
    }

    func remove(_ master: Master, of asid: UInt16) {
        masters.withLock { masters in
            guard masters[asid]?.remove(master) != nil else { return }
            count.wrappingSubtract(1, ordering: .sequentiallyConsistent)
            if masters[asid]?.isEmpty == true { masters[asid] = nil }
        }
    }

    /// The commands after which no function has a translation of the range; of everything where there is none.
    func commands(_ asid: UInt16, _ range: AddressRange? = nil) -> [Command] {
        guard count.load(ordering: .sequentiallyConsistent) > 0 else { return [] }
        let found = masters.withLock { $0[asid] ?? [] }
        let span = range.map { Self.span($0) } ?? (address: 0, size: Self.everything)
        return found.sorted {
            ($0.stream, $0.substream?.rawValue ?? 0) < ($1.stream, $1.substream?.rawValue ?? 0)
        }
        .map { .atcInv($0.stream, $0.substream, address: span.address, size: span.size) }
    }

    /// ATC_INV_SIZE_ALL.
    static let everything: UInt8 = 52

    /// The smallest aligned power of two of pages that holds the range: Address and Size of CMD_ATC_INV.
    ///
    /// Linux: arm_smmu_atc_inv_to_cmd.
    static func span(_ range: AddressRange) -> (address: UInt64, size: UInt8) {
        let (first, last) = (range.first >> 12, range.last >> 12)
        let size = 64 - (first ^ last).leadingZeroBitCount
        let mask: UInt64 = size >= 64 ? .max : (1 << UInt64(size)) - 1
        return ((first & ~mask) << 12, UInt8(size))
    }
}

extension SMMUv3Device {
    /// After the TLB, which may still have answered a function: what functions keep of a range goes, too.
    func invalidateATCs(_ asid: UInt16, _ range: AddressRange? = nil) throws(SMMUDriverError) {
        let commands = atsMasters.commands(asid, range)
        if !commands.isEmpty { try complete(commands) }
    }
}

extension SMMUv3Driver {
    /// Whether the endpoint's function is to keep translations of this domain.
    ///
    /// Linux: arm_smmu_ats_supported.
    func wantsATS(_ endpoint: IOMMUEndpoint, in domain: IOMMUDomain) -> Bool {
        features.flags.contains(.translationRequests) && domain.asid != nil
            && endpoint.services?.hasATS == true
    }

    /// Before the STE: nobody asks for translations that are not served any more, and whoever unmaps from now on tells
    /// the function.
    ///
    /// Linux: arm_smmu_attach_prepare.
    func prepareATS(_ endpoint: IOMMUEndpoint, _ domain: IOMMUDomain, _ state: Attachments.Attachment) {
        guard wantsATS(endpoint, in: domain) else {
            if state.hasATS { endpoint.services?.setATS(log2PageBytes: nil) }
            return
        }
        guard let asid = domain.asid else { return }
        for stream in endpoint.streams {
            device.atsMasters.add(ATSMasters.Master(stream: stream, substream: nil), of: asid)
        }
    }

    /// After the STE: what the function kept of the old domain goes; one that kept nothing may begin to.
    ///
    /// Linux: arm_smmu_attach_commit.
    func commitATS(
        _ endpoint: IOMMUEndpoint,
        from old: IOMMUDomain,
        to domain: IOMMUDomain,
        _ state: inout Attachments.Attachment
    ) throws(SMMUDriverError) {
        let wants = wantsATS(endpoint, in: domain)
        guard wants || state.hasATS else { return }
        try device.complete(
            endpoint.streams.map { .atcInv($0, address: 0, size: ATSMasters.everything) }
        )
        if wants, !state.hasATS {
            endpoint.services?.setATS(log2PageBytes: features.granules.first?.log2 ?? 12)
        }
        state.hasATS = wants
        guard old !== domain, let asid = old.asid else { return }
        for stream in endpoint.streams {
            device.atsMasters.remove(ATSMasters.Master(stream: stream, substream: nil), of: asid)
        }
    }

    /// A SubstreamID of a function with ATS sees an ASID from now on, or does no more.
    func setATS(_ isAttached: Bool, _ endpoint: IOMMUEndpoint, _ substream: SubstreamID, _ asid: UInt16) {
        guard endpoint.services?.hasATS == true else { return }
        for stream in endpoint.streams {
            let master = ATSMasters.Master(stream: stream, substream: substream)
            if isAttached {
                device.atsMasters.add(master, of: asid)
            } else {
                device.atsMasters.remove(master, of: asid)
            }
        }
    }
}
