// A device's page fault, and what becomes of it. Linux: struct iommu_fault_page_request, enum iommu_page_response_code.

package import AddressSpace
import SMMUv3Spec
import Synchronization

/// A transaction that waits for a page, or a page that a function asks for.
package struct PageFault: Hashable, Sendable {
    /// What the device wants to do; Linux's `IOMMU_FAULT_PERM_*` and their bits.
    package struct Access: OptionSet, Hashable, Sendable {
        package let rawValue: UInt8

        package init(rawValue: UInt8) { self.rawValue = rawValue }

        package static let read = Self(rawValue: 1 << 0)
        package static let write = Self(rawValue: 1 << 1)
        package static let execute = Self(rawValue: 1 << 2)
        package static let privileged = Self(rawValue: 1 << 3)
    }

    /// Where it came from, and so how it is answered.
    package enum Source: String, Sendable {
        /// An event with Stall = 1: CMD_RESUME.
        case stall
        /// An entry of the PRI queue: CMD_PRI_RESP.
        case pageRequest = "page-request"
    }

    package let source: Source
    package let stream: StreamID
    /// The PASID; nil is a transaction without one.
    package let substream: SubstreamID?
    /// STAG, or PRGIndex: what the answer names.
    package let group: UInt16
    /// The untranslated address; of a page request the page's.
    package let address: UInt64
    package let access: Access
    /// Whether the group is complete: only then is there an answer.
    package let isLast: Bool

    /// A fault as a test or a device model makes it.
    package init(
        _ source: Source,
        stream: StreamID,
        substream: SubstreamID? = nil,
        group: UInt16,
        address: UInt64,
        access: Access,
        isLast: Bool = true
    ) {
        self.source = source
        self.stream = stream
        self.substream = substream
        self.group = group
        self.address = address
        self.access = access
        self.isLast = isLast
    }

    /// A stalled transaction: a group of its own.
    init(_ record: EventRecord) {
        var access: Access = record.rnw ? .read : .write
        if record.ind { access.insert(.execute) }
        if record.pnu { access.insert(.privileged) }
        self.init(
            .stall,
            stream: record.streamID,
            substream: record.ssv ? record.substreamID : nil,
            group: record.stag,
            address: record.inputAddress,
            access: access
        )
    }

    init(_ entry: PRIEntry) {
        var access: Access = []
        if entry.r { access.insert(.read) }
        if entry.w { access.insert(.write) }
        if entry.x { access.insert(.execute) }
        if entry.priv { access.insert(.privileged) }
        self.init(
            .pageRequest,
            stream: entry.streamID,
            substream: entry.ssv ? entry.substreamID : nil,
            group: entry.prgIndex,
            address: entry.pageAddress,
            access: access,
            isLast: entry.last
        )
    }
}

/// The answer to a fault group; the kernel's names.
package enum PageFaultResponse: String, Sendable {
    /// The page is there: the transaction is tried again.
    case success
    /// There is no such page, or not for that access: the transaction is aborted.
    case invalid
    /// Faults of this device are served no more; a stalled transaction is aborted.
    case failure

    /// CMD_RESUME: retry, or abort.
    ///
    /// Linux: arm_smmu_page_response.
    func resume(_ fault: PageFault) -> Command {
        .resume(fault.stream, stag: fault.group, ac: self == .success, ab: self != .success)
    }

    /// CMD_PRI_RESP, with the request's PASID.
    func pageResponse(_ fault: PageFault) -> Command {
        let response: PageResponse =
            switch self {
            case .success: .success
            case .invalid: .invalidRequest
            case .failure: .failure
            }
        return .priResp(fault.stream, fault.substream, prgIndex: fault.group, response: response)
    }

    /// The command that answers a group by its last fault.
    func command(_ fault: PageFault) -> Command {
        fault.source == .stall ? resume(fault) : pageResponse(fault)
    }
}

/// Who brings pages in for a domain.
///
/// Linux: iommu_domain's iopf_handler.
package protocol PageFaultHandler: AnyObject, Sendable {
    /// Maps the page, or refuses.
    ///
    /// On a thread of the fault queue, with no lock of the driver's held. It may map and unmap, but not detach the
    /// device: that waits for it.
    func handle(_ fault: PageFault) -> PageFaultResponse
}

/// What a stream or a SubstreamID is attached to, as the fault queue knows it.
protocol PageFaultTarget: AnyObject, Sendable {
    /// Nil where nobody handles the domain's faults.
    var pageFaultHandler: (any PageFaultHandler)? { get }
}

extension IOMMUDomain: PageFaultTarget {
    var pageFaultHandler: (any PageFaultHandler)? { faultHandler.withLock { $0 } }

    /// From now on faults of endpoints in this domain are handled, where they have ``EndpointFeature/pageFaults``.
    ///
    /// Faults that wait already go to whoever was the handler when they came. Nil: faults are aborted, and logged.
    package func setFaultHandler(_ handler: (any PageFaultHandler)?) {
        faultHandler.withLock { $0 = handler }
    }
}

/// The PRI queue and its lock.
final class PageRequestQueue: Sendable {
    private let queue: Mutex<OutputQueue>

    init(_ queue: OutputQueue) { self.queue = Mutex(queue) }

    func withLock<Result, Failure>(_ body: (inout OutputQueue) throws(Failure) -> Result) throws(Failure)
        -> Result
    {
        try queue.withLock { (queue) throws(Failure) in try body(&queue) }
    }
}

extension SMMUv3Device {
    /// Answers a fault group by its last fault; no CMD_SYNC follows, as nobody waits for it but the device.
    func answer(_ fault: PageFault, _ response: PageFaultResponse) {
        do throws(SMMUDriverError) {
            try commands.issue([response.command(fault)], thenSync: false)
        } catch {
            // Off, the SMMU has aborted what was stalled.
            if !isOff(error) {
                log.note(.error, "a page fault of \(fault.stream) cannot be answered: \(error)")
            }
        }
    }
}
