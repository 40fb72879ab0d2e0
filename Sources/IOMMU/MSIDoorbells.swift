// Where a domain has the doorbells to which its endpoints' MSIs are written. Linux: iommu_dma_prepare_msi.

package import AddressSpace
import IOPageTable
import Synchronization

/// A domain's doorbell pages: each is mapped once and stays until the domain goes.
struct MSIDoorbells: Sendable {
    /// The IOVA of each page, by its physical address.
    var pages: [PhysicalAddress: IOVirtualAddress] = [:]
    /// Regions that hardware does not translate.
    var untranslated: [AddressRange] = []
    /// Where the next page of a domain with a cookie goes, and the last address there is for it.
    var cookie: (next: UInt64, last: UInt64)?
}

extension ReservedRegion {
    /// What the SMMUv3 driver gives for MSIs where the kernel maps doorbells: MSI_IOVA_BASE, MSI_IOVA_LENGTH.
    package static let softwareMSI: ReservedRegion? = AddressRange(start: 0x0800_0000, byteCount: 0x10_0000)
        .map {
            ReservedRegion(.softwareMSI, $0, permissions: [.write, .noExecute, .device])
        }
}

extension IOMMUDomain {
    /// Says where doorbells go in a domain whose owner maps by hand and keeps away from there.
    ///
    /// Linux: iommu_get_msi_cookie.
    /// - Throws: ``SMMUDriverError/invalidCookie(_:)``: the kernel's EINVAL for a domain of another kind, EBUSY for a
    ///   second cookie.
    package func setMSICookie(_ region: AddressRange) throws(SMMUDriverError) {
        guard let translation, kind == .unmanaged else {
            throw .invalidCookie("a domain of kind \(kind.rawValue) has no MSI cookie (EINVAL)")
        }
        let isSet = translation.doorbells.withLock { doorbells in
            guard doorbells.cookie == nil else { return false }
            doorbells.cookie = (region.first, region.last)
            return true
        }
        guard isSet else { throw .invalidCookie("the domain has an MSI cookie already (EBUSY)") }
    }

    /// The address that an endpoint of this domain has to write to, to reach a doorbell.
    ///
    /// The doorbell's page is mapped when it is first asked for, and shared from then on. Untranslated are doorbells
    /// of identity and blocked domains, of domains of an owner who set no cookie, and those in a region of kind
    /// ``ReservedRegion/Kind/msi``.
    /// - Parameters:
    ///   - doorbell: Its physical address.
    ///   - limit: The last address that the endpoint can drive: its DMA mask.
    /// - Throws: ``SMMUDriverError/iovasExhausted(byteCount:)`` or ``SMMUDriverError/pageTable(_:)``.
    package func prepareMSI(_ doorbell: PhysicalAddress, limit: UInt64 = .max) throws(SMMUDriverError)
        -> IOVirtualAddress
    {
        guard let translation else { return IOVirtualAddress(doorbell.rawValue) }
        return try translation.prepareMSI(
            doorbell,
            limit: limit,
            usesCookie: kind == .unmanaged
        )
    }

    /// The doorbell pages that are mapped, by physical address.
    package var doorbellPages: [PhysicalAddress: IOVirtualAddress] {
        translation?.doorbells.withLock { $0.pages } ?? [:]
    }
}

extension DomainTranslation {
    /// Lock order: the doorbells', then a domain's state.
    fileprivate func prepareMSI(_ doorbell: PhysicalAddress, limit: UInt64, usesCookie: Bool)
        throws(SMMUDriverError) -> IOVirtualAddress
    {
        let size = configuration.granule.byteCount
        let page = PhysicalAddress(doorbell.rawValue & ~(size - 1))
        let offset = doorbell.rawValue & (size - 1)
        return try doorbells.withLock { (doorbells) throws(SMMUDriverError) in
            if doorbells.untranslated.contains(where: { $0.contains(doorbell.rawValue) }) {
                return IOVirtualAddress(doorbell.rawValue)
            }
            if let known = doorbells.pages[page] { return IOVirtualAddress(known.rawValue | offset) }
            if usesCookie, doorbells.cookie == nil { return IOVirtualAddress(doorbell.rawValue) }
            let iova = try iovaForDoorbell(&doorbells, usesCookie: usesCookie, size, limit)
            do throws(SMMUDriverError) {
                try map(
                    iova,
                    to: page,
                    byteCount: size,
                    permissions: [.write, .noExecute, .device]
                )
            } catch {
                if !usesCookie { freeIOVA(iova, size) }
                throw error
            }
            doorbells.pages[page] = iova
            return IOVirtualAddress(iova.rawValue | offset)
        }
    }

    private func iovaForDoorbell(
        _ doorbells: inout MSIDoorbells,
        usesCookie: Bool,
        _ size: UInt64,
        _ limit: UInt64
    ) throws(SMMUDriverError) -> IOVirtualAddress {
        guard usesCookie else {
            guard let iova = allocateIOVA(size, limit: limit, isLastTry: true) else {
                throw .iovasExhausted(byteCount: size)
            }
            return iova
        }
        guard let cookie = doorbells.cookie, cookie.next <= cookie.last,
            cookie.last - cookie.next >= size - 1
        else { throw .iovasExhausted(byteCount: size) }
        doorbells.cookie?.next = cookie.next &+ size
        // The region ends with the address space: there is no page after this one.
        if cookie.next &+ size == 0 { doorbells.cookie = (1, 0) }
        return IOVirtualAddress(cookie.next)
    }
}
