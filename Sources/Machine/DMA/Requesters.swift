// On whose behalf a client's DMA goes out: its open endpoints, and StreamIDs that it names directly.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import SMMUv3

/// An endpoint that a client opened.
struct OpenEndpoint {
    let identity: RequesterIdentity
    let substreamBits: UInt32
    /// Made when it is first used.
    var port: (any DMAPort)?
}

/// The requesters of one connection, each with its port.
struct Requesters {
    private let machine: Machine
    /// Clients know an SMMU by its place among all of the tree's, disabled ones included: its place in
    /// ``Machine/smmus`` by that place, and the other way round.
    private let smmuIndices: [Int?]
    private let boardPlaces: [Int]
    private var endpoints: HandleTable<OpenEndpoint>
    /// Ports for StreamIDs that are named directly, by a hash of both numbers.
    private var directPorts: [(identity: RequesterIdentity, port: any DMAPort)?]

    private static let directPortCount = 64

    /// The port of the request before, whose requester most have in common.
    ///
    /// Used where it is, without a retain.
    private var current: (any DMAPort)?
    /// The same where it is behind an SMMU, as most are: found without a table of methods.
    private var currentStream: StreamPort?
    private var isStream = false
    private var currentKey = Key()

    /// What of a request says whose it is; no request's where it is new.
    private struct Key: Equatable {
        var endpoint: UInt32 = 0
        var stream: UInt32 = 0
        /// 0 is none, 1 a handle, 2 a StreamID.
        var kind: UInt8 = 0

        init() {}

        @inline(__always)
        init(_ endpoint: UInt32, stream: UInt32, isDirect: Bool) {
            self.endpoint = endpoint
            self.stream = isDirect ? stream : 0
            kind = isDirect ? 2 : 1
        }
    }

    init(machine: Machine, countMax: Int) {
        self.machine = machine
        let paths = machine.board.smmus.map(\.path)
        smmuIndices = paths.map { path in machine.smmus.firstIndex { $0.node.path == path } }
        boardPlaces = machine.smmus.map { smmu in paths.firstIndex(of: smmu.node.path) ?? 0 }
        endpoints = HandleTable(countMax: countMax)
        directPorts = Array(repeating: nil, count: Self.directPortCount)
    }

    // MARK: Ports

    /// The port that a READ or WRITE goes to.
    mutating func port(for request: DMARequest) throws(DMARejection) -> any DMAPort {
        if request.flags.contains(.direct) { return try directPort(for: request) }
        guard let endpoint = endpoints[request.endpoint] else {
            throw DMARejection(.notFound, "endpoint \(request.endpoint) is not open")
        }
        if let port = endpoint.port { return port }
        let port = machine.makePort(for: endpoint.identity)
        var opened = endpoint
        opened.port = port
        endpoints.update(request.endpoint, to: opened)
        return port
    }

    /// Whether the port that a READ or WRITE goes to is the one that was chosen last.
    @inline(__always)
    func isSelected(_ endpoint: UInt32, stream: UInt32, isDirect: Bool) -> Bool {
        currentKey == Key(endpoint, stream: stream, isDirect: isDirect)
    }

    /// Chooses the port that a READ or WRITE goes to, for ``read(at:into:_:)`` and ``write(_:at:_:)``.
    @inline(__always)
    mutating func select(_ request: DMARequest) throws(DMARejection) {
        let isDirect = request.flags.contains(.direct)
        let key = Key(request.endpoint, stream: request.stream, isDirect: isDirect)
        guard currentKey != key else { return }
        try selectAnother(request, key)
    }

    @inline(never)
    private mutating func selectAnother(_ request: DMARequest, _ key: Key) throws(DMARejection) {
        let port = try port(for: request)
        (current, currentStream) = (port, port as? StreamPort)
        isStream = currentStream != nil
        currentKey = key
    }

    /// Reads as the requester that was chosen last.
    @inline(__always)
    func read(
        at address: IOVirtualAddress,
        into piece: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        if isStream {
            try currentStream?.read(at: address, into: piece, attributes)
        } else {
            try current?.read(at: address, into: piece, attributes)
        }
    }

    /// Writes as the requester that was chosen last.
    @inline(__always)
    func write(
        _ piece: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        if isStream {
            try currentStream?.write(piece, at: address, attributes)
        } else {
            try current?.write(piece, at: address, attributes)
        }
    }

    /// Who an endpoint that is open issues transactions as.
    func identity(of request: DMARequest) throws(DMARejection) -> RequesterIdentity {
        if request.flags.contains(.direct) { return try directIdentity(of: request) }
        guard let endpoint = endpoints[request.endpoint] else {
            throw DMARejection(.notFound, "endpoint \(request.endpoint) is not open")
        }
        return endpoint.identity
    }

    private mutating func directPort(for request: DMARequest) throws(DMARejection) -> any DMAPort {
        let place =
            Int(truncatingIfNeeded: (request.stream ^ (request.stream >> 16)) &+ request.endpoint &* 31)
            & (Self.directPortCount - 1)
        let identity = try directIdentity(of: request)
        if let known = directPorts[place], known.identity == identity { return known.port }
        let port = machine.makePort(for: identity)
        directPorts[place] = (identity, port)
        return port
    }

    private func directIdentity(of request: DMARequest) throws(DMARejection) -> RequesterIdentity {
        guard let place = Int(exactly: request.endpoint), place < smmuIndices.count,
            let smmuIndex = smmuIndices[place]
        else {
            throw DMARejection(
                .notFound,
                "there is no enabled SMMU of index \(request.endpoint); the board describes \(smmuIndices.count)"
            )
        }
        return RequesterIdentity(smmuIndex: smmuIndex, streamID: StreamID(request.stream))
    }

    // MARK: OPEN and CLOSE

    /// Opens an endpoint by name, or by StreamID.
    mutating func open(_ request: DMARequest, name: UnsafeRawBufferPointer) throws(DMARejection)
        -> DMAResponse
    {
        let endpoint: OpenEndpoint
        if request.flags.contains(.direct) {
            // What no device of the tree is may still drive any SubstreamID.
            endpoint = OpenEndpoint(identity: try directIdentity(of: request), substreamBits: 20)
        } else {
            endpoint = try namedEndpoint(request, String(decoding: name, as: UTF8.self))
        }
        guard let handle = endpoints.insert(endpoint) else {
            throw DMARejection(.limit, "\(endpoints.countMax) endpoints are open; close one first")
        }
        return DMAResponse(
            to: request,
            handle: handle,
            value0: UInt64(endpoint.identity.streamID.rawValue),
            value1: endpoint.identity.smmuIndex.map { UInt64(boardPlaces[$0]) } ?? .max,
            value2: UInt64(endpoint.substreamBits)
        )
    }

    private func namedEndpoint(_ request: DMARequest, _ name: String) throws(DMARejection) -> OpenEndpoint {
        guard let endpoint = machine.endpoint(named: name) else {
            throw DMARejection(
                .notFound,
                "there is no endpoint \"\(name)\"; give a node's path, its last part, or a PCIe function's "
                    + "address such as 0000:00:01.0"
            )
        }
        var streamID = endpoint.streams.first ?? StreamID(0)
        if request.flags.contains(.stream) {
            streamID = StreamID(request.stream)
            guard endpoint.streams.contains(streamID) else {
                throw DMARejection(.notFound, "\(endpoint.name) has no StreamID \(Hex(request.stream))")
            }
        }
        return OpenEndpoint(
            identity: RequesterIdentity(smmuIndex: endpoint.smmuIndex, streamID: streamID),
            substreamBits: endpoint.substreamBits
        )
    }

    /// Gives a handle back.
    mutating func close(_ request: DMARequest) throws(DMARejection) -> DMAResponse {
        guard endpoints.remove(request.endpoint) != nil else {
            throw DMARejection(.notFound, "endpoint \(request.endpoint) is not open")
        }
        // The handle may be given out again.
        (current, currentStream, currentKey) = (nil, nil, Key())
        isStream = false
        return DMAResponse(to: request)
    }
}
