// Requesters: what DMA can be issued on behalf of, and by what names.

package import AddressSpace
package import DeviceTree
import SMMUv3

/// A requester: a platform device or a PCIe function, whether or not there is a model of it.
package struct Endpoint: Sendable {
    package enum Kind: Sendable { case platform, pcie }

    /// The node's path; for a PCIe function the host bridge's path and `/0000:00:01.0`.
    package let name: String
    /// Shorter names, each of one endpoint alone.
    package var aliases: [String]
    package let kind: Kind
    package let compatible: [String]
    /// The SMMU before it, by its place in ``Machine/smmus``; nil: its DMA goes to plain memory.
    package let smmuIndex: Int?
    /// An IOMMU of another kind before it, which we do not model.
    package let otherIOMMU: String?
    /// Its StreamIDs at that SMMU.
    package let streams: [StreamID]
    /// Bits of SubstreamID that it drives; 0 is none.
    package let substreamBits: UInt32
    package let isCoherent: Bool
    /// IOVAs that are set apart for it.
    package let reservedIOVAs: [ReservedIOVA]
    /// Whether its host bridge passes ATS on (`ats-supported`).
    package var passesATS = false
    /// Whether it bears that its faulting transactions wait (`dma-can-stall`).
    package var canStall = false

    /// Where a PCIe function stands, by the tree; nil for a platform device.
    package var pciAddress: PCIAddress? {
        guard kind == .pcie, let slash = name.lastIndex(of: "/") else { return nil }
        return PCIAddress(name[name.index(after: slash)...])
    }
}

/// Who a transaction is issued as.
package struct RequesterIdentity: Hashable, Sendable {
    /// The SMMU's place in ``Machine/smmus``; nil is plain memory.
    package var smmuIndex: Int?
    package var streamID: StreamID

    package init(smmuIndex: Int?, streamID: StreamID) {
        self.smmuIndex = smmuIndex
        self.streamID = streamID
    }
}

/// `0000:00:01.0`: segment, bus, device and function, as everybody writes them.
package struct PCIAddress: Hashable, Sendable {
    package var segment: UInt32
    /// Bus in bits 15:8, device in 7:3, function in 2:0.
    package var requesterID: UInt16

    init(segment: UInt32, requesterID: UInt16) {
        self.segment = segment
        self.requesterID = requesterID
    }

    /// Reads `0000:00:01.0`, or `00:01.0` of segment 0; nil where it is neither.
    init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2 || parts.count == 3 else { return nil }
        var segment: UInt32 = 0
        if parts.count == 3 {
            guard let value = UInt32(parts[0], radix: 16) else { return nil }
            segment = value
        }
        let last = parts[parts.count - 1].split(separator: ".", omittingEmptySubsequences: false)
        guard let bus = UInt16(parts[parts.count - 2], radix: 16), bus < 256, last.count == 2,
            let device = UInt16(last[0], radix: 16), device < 32,
            let function = UInt16(last[1], radix: 16), function < 8
        else { return nil }
        self.segment = segment
        requesterID = bus << 8 | device << 3 | function
    }

    package var text: String {
        func hex(_ value: some BinaryInteger, _ digits: Int) -> String {
            let text = String(value, radix: 16)
            return String(repeating: "0", count: max(0, digits - text.count)) + text
        }
        return
            "\(hex(segment, 4)):\(hex(requesterID >> 8, 2)):\(hex((requesterID >> 3) & 31, 2)).\(requesterID & 7)"
    }
}

/// Finds endpoints by name.
struct EndpointDirectory: Sendable {
    private(set) var endpoints: [Endpoint] = []
    private var indices: [String: Int] = [:]
    private let board: BoardDescription
    private let smmuIndices: [String: Int]

    /// - Parameter smmuIndices: The places of the SMMUs that were built, by path.
    init(board: BoardDescription, smmuIndices: [String: Int]) {
        self.board = board
        self.smmuIndices = smmuIndices
        for device in board.masters { add(endpoint(of: device)) }
        for (index, host) in board.pcieHosts.enumerated() {
            for child in host.children {
                guard let requesterID = child.requesterID else { continue }
                add(
                    function(
                        of: host,
                        Self.segment(of: host, at: index),
                        requesterID,
                        compatible: child.compatible,
                        nodePath: child.path,
                        reservedIOVAs: child.reservedIOVAs
                    )
                )
            }
        }
        removeSharedAliases()
    }

    static func segment(of host: PCIeHostNode, at index: Int) -> UInt32 {
        host.domain ?? UInt32(truncatingIfNeeded: index)
    }

    private mutating func add(_ endpoint: Endpoint) {
        guard indices[endpoint.name] == nil else { return }
        indices[endpoint.name] = endpoints.count
        endpoints.append(endpoint)
    }

    private func endpoint(of device: PlatformDevice) -> Endpoint {
        // A device behind two SMMUs is an endpoint of the first; its other StreamIDs can be used by number.
        let first = device.iommus.first { $0.streamID != nil && smmuIndices[$0.path] != nil }
        let streams = device.iommus.filter { $0.path == first?.path }.compactMap(\.streamID)
        return Endpoint(
            name: device.path,
            aliases: [Self.lastComponent(device.path)],
            kind: .platform,
            compatible: device.compatible,
            smmuIndex: first.flatMap { smmuIndices[$0.path] },
            otherIOMMU: first == nil ? device.iommus.first?.path : nil,
            streams: Self.unique(streams),
            substreamBits: device.pasidBits,
            isCoherent: device.isDMACoherent,
            reservedIOVAs: device.reservedIOVAs,
            canStall: device.canStall
        )
    }

    private func function(
        of host: PCIeHostNode,
        _ segment: UInt32,
        _ requesterID: UInt16,
        compatible: [String] = [],
        nodePath: String? = nil,
        reservedIOVAs: [ReservedIOVA] = []
    ) -> Endpoint {
        let address = PCIAddress(segment: segment, requesterID: requesterID).text
        let iommu = host.iommu(forRequester: requesterID)
        let smmuIndex = iommu.flatMap { $0.streamID == nil ? nil : smmuIndices[$0.path] }
        return Endpoint(
            name: host.path + "/" + address,
            aliases: [address] + (nodePath.map { [$0, Self.lastComponent($0)] } ?? []),
            kind: .pcie,
            compatible: compatible,
            smmuIndex: smmuIndex,
            otherIOMMU: smmuIndex == nil ? iommu?.path : nil,
            streams: smmuIndex == nil ? [] : iommu.flatMap { $0.streamID }.map { [$0] } ?? [],
            // How many bits of PASID a function has is its own affair (its PASID capability), and there is no
            // model that says so: enough for a few hundred, without a large CD table for each function.
            substreamBits: 8,
            isCoherent: host.isDMACoherent,
            reservedIOVAs: reservedIOVAs + host.reservedIOVAs(forRequester: requesterID),
            passesATS: host.supportsATS
        )
    }

    /// The endpoint of that name or alias.
    ///
    /// A PCIe function that the tree does not mention is an endpoint all the same: it is made when it is first
    /// asked for.
    mutating func endpoint(named name: String) -> Endpoint? {
        if let index = indices[name] { return endpoints[index] }
        if let device = plainDevice(named: name) {
            add(endpoint(of: device))
            indices[name] = indices[device.path]
            return indices[name].map { endpoints[$0] }
        }
        let (hostPath, addressText) = Self.splitPCIName(name)
        guard let address = PCIAddress(addressText) else { return nil }
        for (index, host) in board.pcieHosts.enumerated() {
            guard hostPath == nil || hostPath == host.path,
                Self.segment(of: host, at: index) == address.segment,
                host.busRange.contains(UInt8(truncatingIfNeeded: address.requesterID >> 8))
            else { continue }
            // `0:1.0` and `0000:00:01.0` are one name.
            let function = function(of: host, address.segment, address.requesterID)
            if let known = indices[function.name] { return endpoints[known] }
            add(function)
            indices[address.text] = endpoints.count - 1
            return endpoints.last
        }
        return nil
    }

    /// A device without `iommus`, by its path or by its last part if that is its own alone.
    ///
    /// Whether such a device does DMA the tree does not say, so they are endpoints when they are asked for.
    private func plainDevice(named name: String) -> PlatformDevice? {
        let matches = board.devices.filter { device in
            device.iommus.isEmpty && (device.path == name || Self.lastComponent(device.path) == name)
        }
        guard let device = matches.first, matches.count == 1 else { return nil }
        return device
    }

    /// The endpoint with that StreamID.
    func endpoint(at identity: RequesterIdentity) -> Endpoint? {
        endpoints.first { $0.smmuIndex == identity.smmuIndex && $0.streams.contains(identity.streamID) }
    }

    private static func splitPCIName(_ name: String) -> (host: String?, address: Substring) {
        guard let slash = name.lastIndex(of: "/") else { return (nil, name[...]) }
        return (String(name[..<slash]), name[name.index(after: slash)...])
    }

    private mutating func removeSharedAliases() {
        var owners: [String: Int] = [:]
        for endpoint in endpoints {
            for alias in Set(endpoint.aliases) { owners[alias, default: 0] += 1 }
        }
        for index in endpoints.indices {
            let name = endpoints[index].name
            endpoints[index].aliases.removeAll { owners[$0] != 1 || $0 == name || indices[$0] != nil }
        }
        for (index, endpoint) in endpoints.enumerated() {
            for alias in endpoint.aliases { indices[alias] = index }
        }
    }

    private static func lastComponent(_ path: String) -> String {
        path.split(separator: "/").last.map(String.init) ?? path
    }

    private static func unique(_ streams: [StreamID]) -> [StreamID] {
        var seen: Set<StreamID> = []
        return streams.filter { seen.insert($0).inserted }
    }
}
