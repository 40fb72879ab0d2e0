// A process's address space on one SMMU. Linux: iommu_sva_domain, arm-smmu-v3-sva.c.

import AddressSpace
import IOPageTable
import SMMUv3Spec
import Synchronization

/// One process's address space as one SMMU's devices see it: its page table under an ASID.
///
/// Its flags are leaves.
final class SVADomain: Sendable, PageFaultTarget, PageFaultHandler {
    let process: ProcessAddressSpace
    let device: SMMUv3Device
    let tag: TLBTag
    private let driver: Weak
    private let endpoints = Atomic(0)
    private let quiet = Atomic(false)

    /// CMDQ_MAX_TLBI_OPS: more pages than that are not named one by one.
    private static let pagesMax: UInt64 = 512

    private final class Weak: @unchecked Sendable {
        // Unchecked: weak references are safe to read from any thread, and this one is written once.
        private(set) weak var value: SMMUv3Driver?
        init(_ value: SMMUv3Driver) { self.value = value }
    }

    init(_ process: ProcessAddressSpace, _ driver: SMMUv3Driver) throws(SVAError) {
        let device = driver.device
        guard let asid = device.asids.allocate(bits: device.features.asidBits) else {
            throw .driver(.asidsExhausted(count: (1 << device.features.asidBits) - 1))
        }
        self.process = process
        self.device = device
        self.driver = Weak(driver)
        tag = TLBTag(
            asid: asid,
            granule: .kib4,
            usesE2H: device.usesE2H,
            hasRanges: device.features.flags.contains(.rangeInvalidation)
        )
    }

    /// Linux: arm_smmu_sva_domain_free.
    deinit {
        do throws(SMMUDriverError) {
            // Nothing of it may be left when the ASID has its next user.
            try device.complete([tag.all])
            device.asids.free(tag.asid)
        } catch {
            if device.isOff(error) {
                device.asids.free(tag.asid)
            } else {
                device.log.note(.error, "ASID \(tag.asid) is lost: \(error)")
            }
        }
    }

    // MARK: Endpoints

    /// How many SubstreamIDs of endpoints see it.
    var endpointCount: Int { endpoints.load(ordering: .sequentiallyConsistent) }

    func endpointJoined() { endpoints.wrappingAdd(1, ordering: .sequentiallyConsistent) }

    func endpointLeft() { endpoints.wrappingSubtract(1, ordering: .sequentiallyConsistent) }

    /// Whether the process has ended; changes with the driver's attachments locked.
    var isQuiet: Bool { quiet.load(ordering: .sequentiallyConsistent) }

    func becomeQuiet() { quiet.store(true, ordering: .sequentiallyConsistent) }

    // MARK: Of the process

    /// Linux: arm_smmu_mm_release.
    func release() throws(SMMUDriverError) {
        // Without a driver the SMMU is off.
        if let driver = driver.value { try driver.quiesce(self) } else { becomeQuiet() }
    }

    /// What of a range the TLB has goes.
    ///
    /// Linux: arm_smmu_mm_arch_invalidate_secondary_tlbs.
    func invalidate(_ range: AddressRange) throws(SMMUDriverError) {
        let page = ProcessAddressSpace.pageByteCount
        let isLarge = !tag.hasRanges && range.byteCount >= Self.pagesMax * page
        let commands =
            isLarge
            ? [tag.all]
            : tag.commands(range.first, byteCount: range.byteCount, pageByteCount: page, leaf: false)
        do throws(SMMUDriverError) {
            try device.complete(commands)
            try device.invalidateATCs(tag.asid, range)
        } catch {
            if !device.isOff(error) { throw error }
        }
    }

    // MARK: Faults

    var pageFaultHandler: (any PageFaultHandler)? { self }

    /// Linux: iommu_sva_handle_mm.
    func handle(_ fault: PageFault) -> PageFaultResponse {
        guard fault.substream != nil else { return .invalid }
        return process.handleFault(at: fault.address, fault.access)
    }
}

/// Tells every SMMU that has a process's address space what is to be invalidated.
///
/// Linux: mmu_notifier.
struct ProcessGather: PageTableInvalidator {
    private let domains: [SVADomain]
    private var ranges: [AddressRange] = []
    private var failure: SMMUDriverError?

    init(_ domains: [SVADomain]) { self.domains = domains }

    /// Leaves are told of by ``add(_:)``, all in one.
    mutating func gather(_ iova: IOVirtualAddress, byteCount: UInt64, pageByteCount: UInt64) {}

    mutating func flushWalk(_ iova: IOVirtualAddress, byteCount: UInt64, granule: UInt64) -> Bool {
        guard let range = AddressRange(start: iova.rawValue, byteCount: byteCount) else { return true }
        return invalidate(range)
    }

    mutating func add(_ range: AddressRange) { ranges.append(range) }

    mutating func finish() throws(SMMUDriverError) {
        for range in ranges { _ = invalidate(range) }
        if let failure { throw failure }
    }

    private mutating func invalidate(_ range: AddressRange) -> Bool {
        var isDone = true
        for domain in domains {
            do throws(SMMUDriverError) { try domain.invalidate(range) } catch {
                failure = failure ?? error
                isDone = false
            }
        }
        return isDone
    }
}
