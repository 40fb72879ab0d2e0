// A blocking client of the DMA socket, with pipelining for those who want it.

package import ControlProtocol

/// What every transaction of a client says of itself beside its address.
package struct DMAAttributes: Hashable, Sendable {
    /// The SubstreamID; nil is a transaction without one.
    package var substream: UInt32?
    package var isPrivileged: Bool
    /// An instruction fetch; reads only.
    package var isInstruction: Bool

    package init(substream: UInt32? = nil, isPrivileged: Bool = false, isInstruction: Bool = false) {
        self.substream = substream
        self.isPrivileged = isPrivileged
        self.isInstruction = isInstruction
    }

    /// The flags of a request that say it.
    fileprivate var flags: DMAFlags {
        var flags: DMAFlags = []
        if substream != nil { flags.insert(.substream) }
        if isPrivileged { flags.insert(.privileged) }
        if isInstruction { flags.insert(.instruction) }
        return flags
    }
}

/// On whose behalf a client issues DMA.
package enum DMARequester: Hashable, Sendable {
    /// An endpoint that was opened.
    case endpoint(UInt32)
    /// A StreamID of the SMMU with this index.
    case stream(smmu: UInt32, stream: UInt32)
}

/// An endpoint that was opened.
package struct DMAEndpoint: Equatable, Sendable {
    package let handle: UInt32
    /// The StreamID that its transactions carry.
    package let stream: UInt32
    /// The index of its SMMU; nil where there is none before it.
    package let smmu: UInt32?
    /// SubstreamID bits; 0 is none.
    package let substreamBits: Int

    /// For requests.
    package var requester: DMARequester { .endpoint(handle) }
}

/// How a transfer ended.
package struct DMATransfer: Equatable, Sendable {
    package let status: DMAStatus
    package let bytesTransferred: UInt64
    /// The first byte that was not transferred, unless the status is ``DMAStatus/ok``.
    package let address: UInt64
    /// The event number, where the status is ``DMAStatus/fault``.
    package let event: UInt32

    package var isComplete: Bool { status == .ok }

    init(_ response: DMAResponse) {
        status = response.status
        bytesTransferred = response.transferred
        address = response.address
        event = response.event
    }
}

/// One connection to a daemon's DMA socket.
///
/// Belongs to one thread at a time.
package final class DMAClient {
    private let socket: UnixSocket
    private let decoder = DMAResponseDecoder()
    private var received = StreamBuffer(capacity: 128 << 10)
    private var outgoing: [UInt8] = []
    private var descriptors: [CInt] = []
    private var lastID: UInt64 = 0

    /// What the daemon lets this connection have.
    package private(set) var limits = DMALimits()
    /// How long to wait for an answer, in milliseconds; nil is for ever.
    package var timeoutMilliseconds: Int?

    /// Connects to the DMA socket at `path`.
    package convenience init(path: String) throws(ClientError) {
        try self.init(UnixSocket(connectingTo: path))
    }

    /// Takes over a socket that is connected already, and closes it in the end.
    package convenience init(adopting descriptor: CInt) throws(ClientError) {
        try self.init(UnixSocket(adopting: descriptor))
    }

    private init(_ socket: consuming UnixSocket) throws(ClientError) {
        self.socket = socket
        let answer = try call(.hello(id: nextID()))
        guard answer.address == DMAProtocol.magic, UInt64(answer.handle) == DMAProtocol.version else {
            throw .violation("the answer to HELLO is none of version \(DMAProtocol.version)")
        }
        limits = answer.limits
    }

    deinit { for descriptor in descriptors { closeDescriptor(descriptor) } }

    // MARK: Endpoints

    /// Opens an endpoint by name or alias, with its first StreamID unless another of them is named.
    package func open(_ device: String, stream: UInt32? = nil) throws(ClientError) -> DMAEndpoint {
        let request = DMARequest(
            .open,
            id: nextID(),
            flags: stream == nil ? [] : .stream,
            stream: stream ?? 0
        )
        return endpoint(try call(request, payload: Array(device.utf8)))
    }

    /// Opens any StreamID of the SMMU with this index.
    package func open(smmu: UInt32, stream: UInt32) throws(ClientError) -> DMAEndpoint {
        endpoint(
            try call(DMARequest(.open, id: nextID(), flags: .direct, endpoint: smmu, stream: stream))
        )
    }

    /// Gives an endpoint back.
    package func close(_ endpoint: DMAEndpoint) throws(ClientError) {
        try call(DMARequest(.close, id: nextID(), endpoint: endpoint.handle))
    }

    private func endpoint(_ answer: DMAResponse) -> DMAEndpoint {
        DMAEndpoint(
            handle: answer.handle,
            stream: UInt32(truncatingIfNeeded: answer.value0),
            smmu: UInt32(exactly: answer.value1),
            substreamBits: Int(truncatingIfNeeded: answer.value2)
        )
    }

    // MARK: Transfers

    /// Reads `count` bytes, at most ``DMALimits/inlineByteCountMax``.
    ///
    /// - Returns: How it ended, and the bytes that were read: all, or those before the fault.
    package func read(
        _ requester: DMARequester,
        at iova: UInt64,
        count: UInt64,
        _ attributes: DMAAttributes = .init()
    ) throws(ClientError) -> (transfer: DMATransfer, bytes: [UInt8]) {
        let request = transferRequest(.read, requester, iova, count, attributes)
        var bytes: [UInt8] = []
        let answer = try call(request) { bytes = Array($0) }
        return (DMATransfer(answer), bytes)
    }

    /// Writes `bytes`, at most ``DMALimits/inlineByteCountMax``.
    package func write(
        _ bytes: [UInt8],
        _ requester: DMARequester,
        at iova: UInt64,
        _ attributes: DMAAttributes = .init()
    ) throws(ClientError) -> DMATransfer {
        let request = transferRequest(.write, requester, iova, UInt64(bytes.count), attributes)
        return DMATransfer(try call(request, payload: bytes))
    }

    /// Reads into an attached buffer, or writes from one.
    ///
    /// - Parameters:
    ///   - opcode: ``DMAOpcode/read`` or ``DMAOpcode/write``.
    ///   - requester: On whose behalf.
    ///   - iova: The address as the device drives it.
    ///   - count: In bytes.
    ///   - buffer: The attached buffer's handle.
    ///   - offset: Where in the buffer.
    ///   - attributes: What the transaction says of itself beside.
    package func transfer(
        _ opcode: DMAOpcode,
        _ requester: DMARequester,
        at iova: UInt64,
        count: UInt64,
        buffer: UInt32,
        offset: UInt64,
        _ attributes: DMAAttributes = .init()
    ) throws(ClientError) -> DMATransfer {
        var request = transferRequest(opcode, requester, iova, count, attributes)
        request.flags.insert(.buffer)
        request.buffer = buffer
        request.offset = offset
        return DMATransfer(try call(request))
    }

    /// A READ or WRITE as the protocol spells it, for those who pipeline.
    ///
    /// Its id is fresh.
    package func transferRequest(
        _ opcode: DMAOpcode,
        _ requester: DMARequester,
        _ iova: UInt64,
        _ count: UInt64,
        _ attributes: DMAAttributes
    ) -> DMARequest {
        var request = DMARequest(opcode, id: nextID(), flags: attributes.flags, iova: iova, count: count)
        request.substream = attributes.substream ?? 0
        switch requester {
        case .endpoint(let handle): request.endpoint = handle
        case .stream(let smmu, let stream):
            request.flags.insert(.direct)
            request.endpoint = smmu
            request.stream = stream
        }
        return request
    }

    /// Has the daemon send `payload` back.
    package func echo(_ payload: [UInt8] = []) throws(ClientError) -> [UInt8] {
        var bytes: [UInt8] = []
        _ = try call(DMARequest(.echo, id: nextID()), payload: payload) { bytes = Array($0) }
        return bytes
    }

    // MARK: Shared memory

    /// Shows the daemon a mapping.
    ///
    /// - Returns: The buffer's handle.
    package func attach(_ mapping: SharedMapping) throws(ClientError) -> UInt32 {
        let request = DMARequest(.attachBuffer, id: nextID(), count: UInt64(mapping.bytes.count))
        return try call(request, descriptors: [mapping.descriptor]).handle
    }

    /// Gives a buffer back.
    ///
    /// The mapping stays ours.
    package func detach(_ buffer: UInt32) throws(ClientError) {
        try call(DMARequest(.detachBuffer, id: nextID(), buffer: buffer))
    }

    /// Lists the regions of RAM.
    package func memoryRegions() throws(ClientError) -> [DMAMemoryRegion] {
        var regions: [DMAMemoryRegion] = []
        _ = try call(DMARequest(.ramInfo, id: nextID())) { regions = DMAMemoryRegion.regions(in: $0) }
        return regions
    }

    /// Maps a whole region of RAM.
    package func map(_ region: DMAMemoryRegion) throws(ClientError) -> SharedMapping {
        let answer = try call(DMARequest(.ramFile, id: nextID(), endpoint: region.index))
        guard !descriptors.isEmpty else { throw .violation("no file descriptor came with RAM_FD's answer") }
        let descriptor = descriptors.removeFirst()
        guard let byteCount = Int(exactly: answer.value1) else {
            closeDescriptor(descriptor)
            throw .violation("a region of \(answer.value1) bytes")
        }
        return try SharedMapping(adopting: descriptor, offset: answer.value2, byteCount: byteCount)
    }

    // MARK: Pipelining

    /// Queues a request.
    ///
    /// Queue at most ``DMALimits/requestsInFlightMax`` before reading their answers: a daemon that cannot
    /// send reads no further.
    package func enqueue(_ request: DMARequest, payload: [UInt8] = []) {
        outgoing += DMARequestEncoder.message(request, payload: payload)
    }

    /// Sends all that is queued.
    package func flush() throws(ClientError) {
        guard !outgoing.isEmpty else { return }
        defer { outgoing.removeAll(keepingCapacity: true) }
        try socket.send(outgoing)
    }

    /// Waits for the next answer, whatever its status.
    ///
    /// Answers come in the order of their requests.
    package func nextAnswer(
        _ body: (DMAResponse, UnsafeRawBufferPointer) -> Void = { _, _ in }
    ) throws(ClientError) -> DMAResponse {
        while true {
            switch decoder.next(in: received.readable) {
            case .response(let response):
                body(response, response.payload(in: received.readable))
                received.consume(Int(response.byteCount))
                return response
            case .needs(let byteCount):
                received.makeRoom(for: byteCount)
                let count = try socket.receive(
                    into: received.freeSpace(),
                    descriptors: &descriptors,
                    timeoutMilliseconds: timeoutMilliseconds
                )
                guard count > 0 else { throw .disconnected(reason: "the daemon closed it") }
                received.filled(count)
            case .broken:
                throw .violation("bytes that are no answer")
            }
        }
    }

    /// An id that no request of this connection has had.
    package func nextID() -> UInt64 {
        lastID &+= 1
        return lastID
    }

    /// Sends a request that descriptors go with, and waits for its answer.
    func call(_ request: DMARequest, descriptors: [CInt]) throws(ClientError) -> DMAResponse {
        try flush()
        try socket.send(DMARequestEncoder.message(request), descriptors: descriptors)
        return try answer(to: request)
    }

    @discardableResult
    func call(
        _ request: DMARequest,
        payload: [UInt8] = [],
        _ body: (UnsafeRawBufferPointer) -> Void = { _ in }
    ) throws(ClientError) -> DMAResponse {
        enqueue(request, payload: payload)
        try flush()
        return try answer(to: request, body)
    }

    private func answer(
        to request: DMARequest,
        _ body: (UnsafeRawBufferPointer) -> Void = { _ in }
    ) throws(ClientError) -> DMAResponse {
        var message = ""
        let answer = try nextAnswer { answer, payload in
            body(payload)
            if !answer.status.isOutcome { message = String(decoding: payload.prefix(1024), as: UTF8.self) }
        }
        guard answer.status.isOutcome else {
            throw .rejected(status: answer.status.rawValue, message: message)
        }
        guard answer.id == request.id, answer.opcode == request.opcode else {
            throw .violation("an answer to request \(answer.id) where \(request.id) was next")
        }
        return answer
    }
}
