// Which TLBI commands an unmap needs, and when.

import AddressSpace
import IOPageTable
import SMMUv3Spec

/// One domain's translations in the TLB: how they are named, and how they go.
struct TLBTag: Sendable {
    /// The ASID of a stage-1 domain; 0 where there is a VMID.
    let asid: UInt16
    /// The VMID of a stage-2 domain; nil for stage 1, whose VMID is 0.
    var vmid: UInt16?
    /// The domain's smallest page.
    let granule: PageTableGranule
    /// Whether the regime is EL2-E2H: other opcodes, the same fields.
    let usesE2H: Bool
    /// Whether ranges can be named (IDR3.RIL).
    let hasRanges: Bool

    /// The commands that invalidate a range.
    ///
    /// - Parameters:
    ///   - iova: The first address, a multiple of the granule.
    ///   - byteCount: A multiple of `pageByteCount`.
    ///   - pageByteCount: The size of the leaves; without ranges there is one command for each.
    ///   - leaf: Whether table entries on the way may stay.
    func commands(_ iova: UInt64, byteCount: UInt64, pageByteCount: UInt64, leaf: Bool) -> [Command] {
        guard hasRanges else {
            return (0..<byteCount / pageByteCount).map {
                command(iova &+ $0 &* pageByteCount, leaf: leaf, range: nil)
            }
        }
        let tg = granule.log2
        // The level of the leaves; for tables nobody knows it.
        let ttl = leaf ? 4 - (pageByteCount.trailingZeroBitCount - 3) / (tg - 3) : 0
        var pages = byteCount &>> UInt64(tg)
        // NUM, SCALE and TTL all zero is reserved: one page more where the last command would come out so.
        if !leaf, pages & 31 == 1 { pages &+= 1 }
        var address = iova
        var commands: [Command] = []
        while pages > 0 {
            // SCALE has five bits where nobody says IDR5.DS; what is larger goes by NUM, and by several commands.
            let scale = min(UInt64(pages.trailingZeroBitCount), 31)
            let count = scale < 31 ? (pages &>> scale) & 31 : min(pages &>> scale, 32)
            let range = TLBIRange(
                num: UInt8(count - 1),
                scale: UInt8(scale),
                ttl: UInt8(ttl),
                tg: UInt8((tg - 10) / 2)
            )
            commands.append(command(address, leaf: leaf, range: range))
            address &+= count &<< (scale &+ UInt64(tg))
            pages &-= count &<< scale
        }
        return commands
    }

    /// The command that invalidates everything of the domain.
    ///
    /// Linux: arm_smmu_tlb_inv_context.
    var all: Command {
        if let vmid { return .tlbiS12VMAll(vmid: vmid) }
        return usesE2H ? .tlbiEL2ASID(asid: asid) : .tlbiNHASID(vmid: 0, asid: asid)
    }

    private func command(_ address: UInt64, leaf: Bool, range: TLBIRange?) -> Command {
        if let vmid { return .tlbiS2IPA(vmid: vmid, ipa: address, leaf: leaf, range: range) }
        return usesE2H
            ? .tlbiEL2VA(asid: asid, address: address, leaf: leaf, range: range)
            : .tlbiNHVA(vmid: 0, asid: asid, address: address, leaf: leaf, range: range)
    }
}

/// Collects what an unmap clears, and invalidates it.
///
/// Linux: iommu_iotlb_gather.
///
/// Neighbouring leaves of one size go in one command list; what does not fit to the range so far is invalidated and
/// waited for first.
struct TLBGather: PageTableInvalidator {
    private let device: SMMUv3Device
    private let tag: TLBTag
    private var pending: (start: UInt64, byteCount: UInt64, pageByteCount: UInt64)?
    /// The first thing that went wrong: from then on the TLB may hold what memory does not say any more.
    private(set) var failure: SMMUDriverError?

    init(_ device: SMMUv3Device, _ tag: TLBTag) {
        self.device = device
        self.tag = tag
    }

    mutating func gather(_ iova: IOVirtualAddress, byteCount: UInt64, pageByteCount: UInt64) {
        if let open = pending {
            if open.pageByteCount == pageByteCount {
                if open.start &+ open.byteCount == iova.rawValue {
                    pending?.byteCount &+= byteCount
                    return
                }
                if iova.rawValue &+ byteCount == open.start {
                    pending = (iova.rawValue, open.byteCount &+ byteCount, pageByteCount)
                    return
                }
            }
            flush()
        }
        pending = (iova.rawValue, byteCount, pageByteCount)
    }

    mutating func flushWalk(_ iova: IOVirtualAddress, byteCount: UInt64, granule: UInt64) -> Bool {
        invalidate(
            tag.commands(iova.rawValue, byteCount: byteCount, pageByteCount: granule, leaf: false),
            AddressRange(start: iova.rawValue, byteCount: byteCount)
        )
    }

    /// Invalidates what is left and waits for it.
    mutating func finish() throws(SMMUDriverError) {
        flush()
        if let failure { throw failure }
    }

    private mutating func flush() {
        guard let open = pending else { return }
        pending = nil
        _ = invalidate(
            tag.commands(
                open.start,
                byteCount: open.byteCount,
                pageByteCount: open.pageByteCount,
                leaf: true
            ),
            AddressRange(start: open.start, byteCount: open.byteCount)
        )
    }

    private mutating func invalidate(_ commands: [Command], _ range: AddressRange?) -> Bool {
        do throws(SMMUDriverError) {
            try device.complete(commands)
            try device.invalidateATCs(tag.asid, range)
            return true
        } catch {
            if device.isOff(error) { return true }
            failure = failure ?? error
            return false
        }
    }
}
