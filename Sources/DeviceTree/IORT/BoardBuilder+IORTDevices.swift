// Root complexes and named components of an IORT: hosts and devices of the board, and their IDs.

import ACPITables
import AddressSpace

extension BoardBuilder {
    // MARK: - Root complexes

    /// Gives a root complex's mappings to the tree's host of that segment, or makes a host of its own.
    ///
    /// A host's segment is `linux,pci-domain`, or its place among the tree's hosts where it does not say.
    mutating func addHost(
        _ node: IORTNode,
        _ complex: IORTRootComplex,
        _ context: IORTContext,
        _ parts: inout BoardParts,
        treeHostCount: Int
    ) {
        guard complex.segment <= 0xFFFF else {
            return report(
                node,
                "PCI Segment Number",
                "is \(hex(complex.segment))",
                "a segment has 16 bits"
            )
        }
        guard let maps = requesterMaps(of: node, context) else { return }
        let index = parts.hosts.indices.prefix(treeHostCount).first {
            parts.hosts[$0].domain ?? UInt32(truncatingIfNeeded: $0) == complex.segment
        }
        let limit = addressLimit(node, complex.addressSizeLimit, "Memory Size Limit")
        let path = index.map { parts.hosts[$0].path } ?? node.boardPath
        var reservations = functionReservations(of: maps, path, context, &parts)
        if let limit {
            reservations.append(RequesterReservation(requesters: 0...0xFFFF, iova: limit))
        }
        guard let index else {
            parts.hosts.append(Self.host(path, complex, maps, reservations))
            return
        }
        let host = parts.hosts[index]
        checkConflicts(of: node, complex, maps, host)
        parts.hosts[index] = Self.host(host, complex, maps, reservations)
    }

    /// What a root complex's mappings come to, in the words of a device tree's host.
    struct RequesterMaps {
        var iommu: [RequesterMapEntry] = []
        var msi: [RequesterMapEntry] = []
        var mask: UInt32 = .max
    }

    /// The mappings of a root complex; nil where they are wrong, which is reported.
    private mutating func requesterMaps(of node: IORTNode, _ context: IORTContext) -> RequesterMaps? {
        var maps = RequesterMaps()
        let ranges: [IORTIDRange]
        if let single = node.mappings.first(where: \.isSingle) {
            guard node.mappings.count == 1 else {
                report(
                    node,
                    "ID mappings",
                    "one of \(node.mappings.count) has Single Mapping",
                    "it gives all functions of the root complex one ID, so it stands alone"
                )
                return nil
            }
            maps.mask = 0
            ranges = [
                IORTIDRange(
                    first: 0,
                    last: 0,
                    output: single.outputBase,
                    target: single.outputReference,
                    mapping: 0
                )
            ]
        } else {
            let map = idMap(of: node)
            if let beyond = map.ranges.last, beyond.last > 0xFFFF {
                warn(
                    node,
                    "ID mapping \(beyond.mapping)",
                    "covers IDs up to \(hex(beyond.last))",
                    "RequesterIDs have 16 bits: those above are ignored"
                )
            }
            ranges = map.clipped(0, 0xFFFF)
        }
        for range in ranges { add(range, to: &maps, context) }
        return maps
    }

    /// Follows one range of RequesterIDs to its SMMU and on to its ITS.
    private func add(_ range: IORTIDRange, to maps: inout RequesterMaps, _ context: IORTContext) {
        guard let target = context.table.node(at: range.target) else { return }
        let count = range.last - range.first + 1
        func entry(
            _ from: UInt32,
            _ path: String,
            _ kind: IOMMUReference.Kind?,
            _ output: UInt32,
            _ length: UInt32
        )
            -> RequesterMapEntry
        {
            RequesterMapEntry(
                requesterBase: from,
                targetPath: path,
                iommuKind: kind,
                outputBase: output,
                length: length
            )
        }
        switch target.type {
        case .smmuV3, .smmu:
            let kind = Self.iommuKind(target, range.output)
            maps.iommu.append(entry(range.first, target.boardPath, kind, range.output, count))
            let last = range.output + (count - 1)
            for piece in context.smmuMaps[target.offset, default: .empty].clipped(range.output, last) {
                guard let path = context.itsPath(at: piece.target) else { continue }
                let from = range.first + (piece.first - range.output)
                maps.msi.append(entry(from, path, nil, piece.output, piece.last - piece.first + 1))
            }
        default:
            guard let path = context.itsPath(at: range.target) else { return }
            maps.msi.append(entry(range.first, path, nil, range.output, count))
        }
    }

    private static func iommuKind(_ target: IORTNode, _ streamID: UInt32) -> IOMMUReference.Kind {
        target.type == .smmuV3 ? .smmuv3(StreamID(streamID)) : .other("SMMUv1 or v2")
    }

    /// What the tree and the IORT say of one host, and cannot both be so.
    private mutating func checkConflicts(
        of node: IORTNode,
        _ complex: IORTRootComplex,
        _ maps: RequesterMaps,
        _ host: PCIeHostNode
    ) {
        let taken = host.iommuMap.first { entry in
            if case .disabledSMMUv3 = entry.iommuKind { false } else { true }
        }
        if let taken, !maps.iommu.isEmpty {
            report(
                node,
                "PCI Segment Number",
                "\(hex(complex.segment)) is \(host.path), whose iommu-map leads to \(taken.targetPath)",
                "the mapping comes from the tree or from the IORT: take iommu-map out of the tree, or give the "
                    + "SMMU there status = \"disabled\""
            )
        }
        if host.isDMACoherent, !complex.memoryAccess.isCoherent {
            warn(
                node,
                "Cache Coherency",
                "is 0, and \(host.path) is dma-coherent",
                "its DMA is taken for coherent"
            )
        }
        let other = Self.host(host.path, complex, maps, [])
        let edges = (host.msiMap + maps.msi).flatMap {
            [$0.requesterBase, $0.requesterBase &+ ($0.length &- 1)]
        }
        for edge in edges {
            guard let requester = UInt16(exactly: edge),
                let one = host.msiController(forRequester: requester),
                let two = other.msiController(forRequester: requester), one != two
            else { continue }
            report(
                node,
                "ID mappings",
                "give RequesterID \(hex(edge)) DeviceID \(hex(two.deviceID)) of \(two.path)",
                "\(host.path) gives it DeviceID \(hex(one.deviceID)) of \(one.path)"
            )
            return
        }
    }

    /// A host of which nothing but its IDs is known.
    private static func host(
        _ path: String,
        _ complex: IORTRootComplex,
        _ maps: RequesterMaps,
        _ reservations: [RequesterReservation]
    ) -> PCIeHostNode {
        PCIeHostNode(
            path: path,
            // The _HID of a PCIe host bridge.
            compatible: ["PNP0A08"],
            registers: [],
            busRange: 0...255,
            windows: [],
            iommuMap: maps.iommu,
            iommuMapMask: maps.mask,
            msiMap: maps.msi,
            msiMapMask: maps.mask,
            interrupts: [],
            interruptRoutes: [],
            children: [],
            isDMACoherent: complex.memoryAccess.isCoherent,
            supportsATS: complex.supportsATS,
            domain: complex.segment,
            functionReservations: reservations
        )
    }

    /// The tree's host with the IORT's mappings.
    private static func host(
        _ host: PCIeHostNode,
        _ complex: IORTRootComplex,
        _ maps: RequesterMaps,
        _ reservations: [RequesterReservation]
    ) -> PCIeHostNode {
        let hasOwnMSIs = !host.msiMap.isEmpty || host.msiParent != nil || maps.msi.isEmpty
        return PCIeHostNode(
            path: host.path,
            compatible: host.compatible,
            registers: host.registers,
            ecam: host.ecam,
            busRange: host.busRange,
            windows: host.windows,
            inboundWindows: host.inboundWindows,
            iommuMap: maps.iommu.isEmpty ? host.iommuMap : maps.iommu,
            iommuMapMask: maps.iommu.isEmpty ? host.iommuMapMask : maps.mask,
            msiMap: hasOwnMSIs ? host.msiMap : maps.msi,
            msiMapMask: hasOwnMSIs ? host.msiMapMask : maps.mask,
            msiParent: host.msiParent,
            interrupts: host.interrupts,
            interruptRoutes: host.interruptRoutes,
            children: host.children,
            isDMACoherent: host.isDMACoherent || complex.memoryAccess.isCoherent,
            supportsATS: host.supportsATS || complex.supportsATS,
            domain: host.domain,
            functionReservations: reservations
        )
    }

    /// IOVAs that functions go on using, by the StreamIDs that their RequesterIDs turn into.
    private func functionReservations(
        of maps: RequesterMaps,
        _ path: String,
        _ context: IORTContext,
        _ parts: inout BoardParts
    ) -> [RequesterReservation] {
        var found: [RequesterReservation] = []
        for reservation in context.reservations {
            for entry in maps.iommu where entry.targetPath == reservation.smmuPath {
                let last = entry.outputBase + (entry.length - 1)
                let low = max(entry.outputBase, reservation.streams.lowerBound)
                let high = min(last, reservation.streams.upperBound)
                guard low <= high, found.count < DiagnosticLog.capacity else { continue }
                let from = UInt16(truncatingIfNeeded: entry.requesterBase + (low - entry.outputBase))
                let to = UInt16(truncatingIfNeeded: entry.requesterBase + (high - entry.outputBase))
                let requesters = maps.mask == 0 ? 0...0xFFFF : from...to
                found.append(RequesterReservation(requesters: requesters, iova: reservation.iova))
                parts.link(reservation, to: path)
            }
        }
        return found
    }

    // MARK: - Named components

    /// Gives a named component's mappings to the tree's device of that name, or makes a device of its own.
    mutating func addDevice(
        _ node: IORTNode,
        _ component: IORTNamedComponent,
        _ context: IORTContext,
        _ names: inout IORTDeviceNames,
        _ parts: inout BoardParts
    ) {
        let substreamBits = component.substreamBits
        if substreamBits > 20 {
            report(
                node,
                "Node Flags",
                "has a Substream width of \(substreamBits)",
                "a SubstreamID has at most 20 bits"
            )
        }
        let found = names.device(named: component.objectName)
        let path = found.map { parts.devices[$0].path } ?? node.boardPath
        guard names.take(path) else {
            return warn(
                node,
                "Device Name",
                "\"\(component.objectName)\" is also that of a node before it",
                "Linux takes the first one alone, and so is it here"
            )
        }
        if let found, !parts.devices[found].iommus.isEmpty {
            return report(
                node,
                "Device Name",
                "\"\(component.objectName)\" is \(path), which has iommus",
                "StreamIDs come from the tree or from the IORT: take iommus out of the tree"
            )
        }
        let (iommus, msiParent) = ids(of: node, context)
        var reserved: [ReservedIOVA] = []
        for reservation in context.reservations {
            let isMine = iommus.contains {
                $0.path == reservation.smmuPath
                    && $0.streamID.map { reservation.streams.contains($0.rawValue) } ?? false
            }
            guard isMine else { continue }
            reserved.append(reservation.iova)
            parts.link(reservation, to: path)
        }
        if let limit = addressLimit(node, component.addressSizeLimit, "Memory Size Limit") {
            reserved.append(limit)
        }
        let device = Self.device(
            found.map { parts.devices[$0] },
            path,
            component,
            iommus,
            msiParent,
            reserved
        )
        if let found { parts.devices[found] = device } else { parts.devices.append(device) }
    }

    /// The StreamIDs of a named component and where its messages go.
    ///
    /// As in Linux a device has the IDs of its single mappings; ranges are for buses whose devices have IDs themselves.
    private mutating func ids(of node: IORTNode, _ context: IORTContext) -> ([IOMMUReference], MSIParent?) {
        var iommus: [IOMMUReference] = []
        var msiParent: MSIParent?
        for (index, mapping) in node.mappings.enumerated() {
            guard mapping.isSingle else {
                warn(
                    node,
                    "ID mapping \(index): Flags",
                    "has no Single Mapping",
                    "the device gets no ID from it, as in Linux: a range is for a bus whose devices have IDs"
                )
                continue
            }
            guard let target = context.table.node(at: mapping.outputReference) else { continue }
            let id = mapping.outputBase
            if target.type == .itsGroup {
                msiParent = msiParent ?? Self.msiParent(context, target: mapping.outputReference, id)
                continue
            }
            let kind = Self.iommuKind(target, id)
            iommus.append(IOMMUReference(path: target.boardPath, kind: kind, specifier: [id]))
            guard let range = context.smmuMaps[target.offset]?.range(of: id) else { continue }
            msiParent = msiParent ?? Self.msiParent(context, target: range.target, range.output(for: id))
        }
        return (iommus, msiParent)
    }

    private static func msiParent(_ context: IORTContext, target: UInt32, _ deviceID: UInt32) -> MSIParent? {
        context.itsPath(at: target).map { MSIParent(controllerPath: $0, specifier: [deviceID]) }
    }

    private static func device(
        _ known: PlatformDevice?,
        _ path: String,
        _ component: IORTNamedComponent,
        _ iommus: [IOMMUReference],
        _ msiParent: MSIParent?,
        _ reserved: [ReservedIOVA]
    ) -> PlatformDevice {
        PlatformDevice(
            path: path,
            compatible: known?.compatible ?? [],
            registers: known?.registers ?? [],
            interrupts: known?.interrupts ?? [],
            iommus: iommus,
            isDMACoherent: known?.isDMACoherent ?? false || component.memoryAccess.isCoherent,
            pasidBits: max(known?.pasidBits ?? 0, min(component.substreamBits, 20)),
            canStall: known?.canStall ?? false || component.canStall,
            memoryRegions: known?.memoryRegions ?? [],
            reservedIOVAs: (known?.reservedIOVAs ?? []) + reserved,
            msiParent: known?.msiParent ?? msiParent
        )
    }

    // MARK: - Address size limits

    /// The IOVAs that a device cannot drive; nil where it drives all.
    private mutating func addressLimit(_ node: IORTNode, _ limit: UInt8?, _ field: String) -> ReservedIOVA? {
        guard let limit else { return nil }
        switch limit {
        case 0:
            warn(node, field, "is 0", "it is the number of address bits, 1 to 64; it is taken for 64")
            return nil
        case 64: return nil
        case 1...63:
            return AddressRange(first: 1 << UInt64(limit), last: .max).map {
                ReservedIOVA(range: $0, kind: .reserved, regionPath: node.boardPath)
            }
        default:
            report(node, field, "is \(limit)", "it is the number of address bits, 1 to 64")
            return nil
        }
    }
}

extension BoardParts {
    /// Notes whose a reserved memory range is.
    fileprivate mutating func link(_ reservation: IORTContext.Reservation, to path: String) {
        let address = IOMMUAddress(devicePath: path, range: reservation.iova.range)
        // Several mappings of one device come one after the other.
        guard reserved[reservation.region].iommuAddresses.last != address else { return }
        reserved[reservation.region].iommuAddresses.append(address)
    }
}
