// Things that cannot both be so: two owners of one address, two devices with one StreamID.

import AddressSpace

/// A node's claim on a range of physical addresses.
struct AddressClaim {
    enum Kind: Equatable {
        case ram
        case smmu(hasPage1: Bool)
        case pmcg
        case interruptController
        case pcieHost
        /// A device behind an SMMUv3.
        case master
        /// Any other device.
        case device
    }

    let range: AddressRange
    let kind: Kind
    let path: String
    let property: String
    var origin = DeviceTreeDiagnostic.Origin.deviceTree

    /// Whether the two may share addresses.
    ///
    /// PMCGs stand in the implementation defined part of an SMMU's region, behind its two pages. Devices that
    /// we build nothing of may stand in each other: trees of real boards give one block of registers to
    /// several nodes.
    func mayOverlap(_ other: Self) -> Bool {
        // Regions of one node may share addresses, but a host's windows may not cover its ECAM.
        if path == other.path { return kind != .ram && property == other.property }
        switch (kind, other.kind) {
        case (.smmu(let hasPage1), .pmcg): return !Self.pages(of: range, hasPage1).overlaps(other.range)
        case (.pmcg, .smmu(let hasPage1)): return !Self.pages(of: other.range, hasPage1).overlaps(range)
        case (.device, let kind), (let kind, .device): return kind != .ram && !kind.isSMMU && kind != .pmcg
        default: return false
        }
    }

    private static func pages(of range: AddressRange, _ hasPage1: Bool) -> AddressRange {
        AddressRange(start: range.first, byteCount: SMMUv3Node.minimumByteCount(hasPage1: hasPage1)) ?? range
    }
}

extension AddressClaim.Kind {
    var isSMMU: Bool { if case .smmu = self { true } else { false } }
}

extension BoardBuilder {
    /// Notes a node's claim on some ranges; ``checkClaims()`` compares them all.
    mutating func claim(
        _ regions: [RegisterRegion],
        _ kind: AddressClaim.Kind,
        _ node: DeviceTreeNode,
        property: String = "reg"
    ) {
        claims += regions.map {
            AddressClaim(range: $0.range, kind: kind, path: node.path, property: property)
        }
    }

    /// Reports addresses with two owners, each pair of neighbours once.
    mutating func checkClaims() {
        let sorted = claims.enumerated().sorted {
            ($0.element.range.first, $0.offset) < ($1.element.range.first, $1.offset)
        }.map(\.element)
        // Claims that reach beyond the start of the next one; few at a time, for few things overlap.
        var open: [AddressClaim] = []
        for claim in sorted {
            open.removeAll { $0.range.last < claim.range.first }
            for other in open where !other.mayOverlap(claim) { reportOverlap(claim, other) }
            // A tree in which everything overlaps everything is reported as such soon enough.
            if open.count < DiagnosticLog.capacity { open.append(claim) }
        }
    }

    private mutating func reportOverlap(_ claim: AddressClaim, _ other: AddressClaim) {
        // The later of two nodes is the more likely to be wrong; RAM hardly ever is.
        let (subject, object) = claim.kind == .ram && other.kind != .ram ? (other, claim) : (claim, other)
        log.report(
            DeviceTreeDiagnostic(
                path: subject.path,
                property: subject.property,
                problem:
                    "\(subject.range) overlaps \(object.range), which is "
                    + "\(object.kind.noun) of \(object.path)",
                remedy: "RAM and register regions each need addresses of their own",
                origin: subject.origin
            )
        )
    }

    // MARK: - StreamIDs

    /// The StreamIDs of one SMMU that one device drives.
    private struct StreamClaim {
        let smmu: String
        let ids: ClosedRange<UInt32>
        let path: String
        let property: String
    }

    /// Warns of StreamIDs that two devices drive: they share one stream table entry, so one domain.
    mutating func checkStreams(devices: [PlatformDevice], hosts: [PCIeHostNode]) {
        var claims: [StreamClaim] = []
        // Loops, because the optimizer of Swift 6.3.1 crashes at the same in closures.
        for device in devices {
            for reference in device.iommus {
                guard let streamID = reference.streamID?.rawValue else { continue }
                claims.append(
                    StreamClaim(
                        smmu: reference.path,
                        ids: streamID...streamID,
                        path: device.path,
                        property: "iommus"
                    )
                )
            }
        }
        for host in hosts {
            for entry in host.iommuMap {
                guard case .smmuv3 = entry.iommuKind else { continue }
                claims.append(
                    StreamClaim(
                        smmu: entry.targetPath,
                        ids: entry.outputBase...(entry.outputBase + (entry.length - 1)),
                        path: host.path,
                        property: "iommu-map"
                    )
                )
            }
        }
        let bySMMU = Dictionary(grouping: claims, by: \.smmu)
        for (_, claims) in bySMMU.sorted(by: { $0.key < $1.key }) { checkStreams(claims) }
    }

    private mutating func checkStreams(_ claims: [StreamClaim]) {
        let sorted = claims.enumerated().sorted {
            ($0.element.ids.lowerBound, $0.offset) < ($1.element.ids.lowerBound, $1.offset)
        }.map(\.element)
        var widest: StreamClaim?
        for claim in sorted {
            if let other = widest, other.ids.upperBound >= claim.ids.lowerBound { warnShared(claim, other) }
            if claim.ids.upperBound >= widest?.ids.upperBound ?? 0 { widest = claim }
        }
    }

    private func origin(of path: String) -> DeviceTreeDiagnostic.Origin {
        iortPaths.contains(path) ? .iort : .deviceTree
    }

    private mutating func warnShared(_ claim: StreamClaim, _ other: StreamClaim) {
        let first = StreamID(claim.ids.lowerBound)
        guard claim.path != other.path else {
            log.warn(
                DeviceTreeDiagnostic(
                    path: claim.path,
                    property: claim.property,
                    problem: "gives StreamID \(first) of \(claim.smmu) twice",
                    origin: origin(of: claim.path)
                )
            )
            return
        }
        log.warn(
            DeviceTreeDiagnostic(
                path: claim.path,
                property: claim.property,
                problem: "StreamID \(first) of \(claim.smmu) is also that of \(other.path)",
                remedy: "devices that share a StreamID share their translations",
                origin: origin(of: claim.path)
            )
        )
    }
}

extension AddressClaim.Kind {
    var noun: String { self == .ram ? "RAM" : "a register region" }
}
