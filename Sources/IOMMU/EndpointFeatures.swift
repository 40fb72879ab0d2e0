// What a device's driver has to ask for before the device may do it. Linux: iommu_dev_enable_feature.

package import AddressSpace
import Synchronization

/// A feature of a device behind an SMMU; the kernel's `IOMMU_DEV_FEAT_*`.
package enum EndpointFeature: String, Sendable, CaseIterable {
    /// IOMMU_DEV_FEAT_IOPF: transactions and page requests wait for pages.
    case pageFaults = "iopf"
    /// IOMMU_DEV_FEAT_SVA: the device works in address spaces of processes.
    case sharedAddresses = "sva"
}

/// Why a feature was refused, or an address space could not be shared; with the kernel's error number.
package enum SVAError: Error, Equatable, Sendable {
    /// `-ENODEV`: the SMMU or the device has no such feature.
    case unsupported(String)
    /// `-EINVAL`: what it builds on is not there, or the request makes no sense.
    case invalid(String)
    /// `-EBUSY`: it is enabled already, or somebody uses it.
    case busy(String)
    /// `-ENOSPC`: no SubstreamID that the device could use is free.
    case substreamsExhausted(bits: Int)
    /// `-EOVERFLOW`: the process's PASID has more bits than the device takes.
    case substreamTooLarge(SubstreamID, bits: Int)
    /// `-ESRCH`: the process has ended.
    case processEnded
    /// The SMMU's driver failed.
    case driver(SMMUDriverError)
}

extension SVAError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .unsupported(let reason): "\(reason) (ENODEV)"
        case .invalid(let reason): "\(reason) (EINVAL)"
        case .busy(let reason): "\(reason) (EBUSY)"
        case .substreamsExhausted(let bits): "no SubstreamID of \(bits) bits is free (ENOSPC)"
        case .substreamTooLarge(let substream, let bits):
            "the process has PASID \(substream), and the device only \(bits) bits of them (EOVERFLOW)"
        case .processEnded: "the process has ended (ESRCH)"
        case .driver(let error): "\(error)"
        }
    }
}

extension SMMUv3Driver {
    /// Whether the endpoint's faults can wait: by stalls, or by page requests where its function has those enabled.
    ///
    /// Linux: arm_smmu_master_iopf_supported.
    package func supportsPageFaults(_ endpoint: IOMMUEndpoint) -> Bool {
        endpoint.canStall
            || pageRequestQueue != nil && endpoint.services?.hasATS == true
                && endpoint.services?.hasPRI == true
    }

    /// How many page requests of one function may be outstanding.
    private static let outstandingRequests = 32

    /// Enables a feature of a device.
    ///
    /// Linux: arm_smmu_dev_enable_feature. SVA of a device that can fault takes page faults first.
    package func enable(_ feature: EndpointFeature, for endpoint: IOMMUEndpoint) throws(SVAError) {
        try withState(of: endpoint) { (state) throws(SVAError) in
            switch feature {
            case .pageFaults:
                guard supportsPageFaults(endpoint) else {
                    throw .invalid("\(endpoint.name) has neither stalls nor page requests")
                }
                // Page requests are for those who asked for a translation first.
                guard endpoint.canStall || state.hasATS else {
                    throw .invalid(
                        "\(endpoint.name) has its ATS not enabled: attach it to a domain that translates"
                    )
                }
            case .sharedAddresses:
                guard features.flags.contains(.sharedVirtualAddresses), endpoint.substreamBits > 0 else {
                    throw .invalid(
                        endpoint.substreamBits > 0
                            ? "the SMMU cannot walk a process's tables"
                            : "\(endpoint.name) has no SubstreamIDs"
                    )
                }
                guard !supportsPageFaults(endpoint) || state.features.contains(.pageFaults) else {
                    throw .invalid("\(endpoint.name) has its page faults not enabled")
                }
            }
            guard state.features.insert(feature).inserted else {
                throw .busy("\(feature.rawValue) of \(endpoint.name) is enabled already")
            }
            if feature == .pageFaults {
                pageFaults.enable(endpoint)
                if state.hasATS { endpoint.services?.setPRI(outstandingRequests: Self.outstandingRequests) }
            }
        }
    }

    /// Disables a feature of a device; faults that wait are refused.
    ///
    /// Linux: arm_smmu_dev_disable_feature. Not from a fault handler.
    package func disable(_ feature: EndpointFeature, for endpoint: IOMMUEndpoint) throws(SVAError) {
        try withState(of: endpoint) { (state) throws(SVAError) in
            guard state.features.contains(feature) else {
                throw .invalid("\(feature.rawValue) of \(endpoint.name) is not enabled")
            }
            switch feature {
            case .pageFaults:
                guard !state.features.contains(.sharedAddresses) else {
                    throw .busy("\(endpoint.name) has sva enabled, which needs its page faults")
                }
            case .sharedAddresses:
                guard state.processes.isEmpty else {
                    log.note(.error, "cannot disable SVA, device is bound")
                    throw .busy("\(endpoint.name) is bound")
                }
            }
            state.features.remove(feature)
        }
        if feature == .pageFaults {
            endpoint.services?.setPRI(outstandingRequests: nil)
            pageFaults.disable(endpoint)
        }
    }

    /// What of an endpoint is enabled.
    package func enabledFeatures(of endpoint: IOMMUEndpoint) -> Set<EndpointFeature> {
        attachments.withLock { $0.states[ObjectIdentifier(endpoint)]?.features ?? [] }
    }

    private func withState(
        of endpoint: IOMMUEndpoint,
        _ body: (inout Attachments.Attachment) throws(SVAError) -> Void
    ) throws(SVAError) {
        try attachments.withLock { (attachments) throws(SVAError) in
            let id = ObjectIdentifier(endpoint)
            guard var state = attachments.states[id] else {
                throw .driver(.unknownEndpoint(endpoint.name))
            }
            try body(&state)
            attachments.states[id] = state
        }
    }
}
