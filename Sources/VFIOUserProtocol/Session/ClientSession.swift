// A client's side of one connection as a state machine without I/O.

/// What follows from bytes that came from a server.
package enum VFIOUserClientAction: Equatable, Sendable {
    /// Nothing: go on reading.
    case more
    /// The server takes the connection; ``VFIOUserClientSession/server`` says what it can do.
    case negotiated
    case reply(messageID: UInt16, VFIOUserClientReply, descriptorCount: Int)
    case failed(messageID: UInt16, VFIOUserError)
    /// The server wants to read our memory: send ``VFIOUserHeader/success(payload:)`` with the access and the
    /// data, or ``VFIOUserHeader/failure(_:)``.
    case readMemory(VFIOUserHeader, VFIOUserDMAAccess)
    /// The server wants to write our memory: send ``VFIOUserHeader/success(payload:)`` with the access, or
    /// ``VFIOUserHeader/failure(_:)``.
    case writeMemory(VFIOUserHeader, VFIOUserDMAAccess, [UInt8])
    /// Send this, and go on.
    case send([UInt8])
    /// End the connection.
    case close(VFIOUserViolation)
}

/// Commands in and messages out, and bytes of a server in and answers out.
///
/// Read as with ``VFIOUserServerSession``: at most ``byteCountWanted`` bytes at a time.
package struct VFIOUserClientSession: Sendable {
    private enum Phase: Equatable {
        case idle
        case greeting
        case serving
    }

    /// What the server can do, with the specification's value for each thing that it did not say; nil before it
    /// answered.
    package private(set) var server: VFIOUserCapabilities?
    /// The minor version that is spoken; nil before the server answered.
    package private(set) var minorVersion: UInt16?
    /// Why the server refused VERSION, where it did and said so.
    package private(set) var refusal: VFIOUserError?
    private let capabilities: VFIOUserCapabilities
    private var phase = Phase.idle
    private var pending: [UInt16: VFIOUserClientRequest] = [:]
    private var nextID: UInt16 = 0
    private var framer: MessageFramer

    /// - Parameter capabilities: What to tell the server. One server insists on being told something.
    package init(
        capabilities: VFIOUserCapabilities = VFIOUserCapabilities(
            descriptorCountMax: 16,
            dataByteCountMax: 1 << 20,
            mappingCountMax: 65535,
            pageSizes: 4096,
            writeMultiple: true
        )
    ) {
        self.capabilities = capabilities
        let data = Int(min(capabilities.overDefaults.dataByteCountMax ?? 0, 1 << 26))
        framer = MessageFramer(
            messageByteCountMax: VFIOUserHeader.byteCount + VFIOUserRegionAccess.byteCount
                + max(data, 1 << 16),
            skippedByteCountMax: 0
        )
    }

    /// The session of a twin socket: the server's commands and their answers, and nothing else.
    package static func twin(capabilities: VFIOUserCapabilities) -> Self {
        var session = Self(capabilities: capabilities)
        session.phase = .serving
        return session
    }

    /// How many bytes may be read at once; 0 once the connection is to be closed.
    package var byteCountWanted: Int { framer.byteCountWanted }

    /// Whether the server may leave here without breaking a message off.
    package var isBetweenMessages: Bool { framer.isAtMessageStart }

    /// How many commands wait for an answer.
    package var pendingCount: Int { pending.count }

    /// The first message to send, once.
    package mutating func greet() -> [UInt8] {
        precondition(phase == .idle, "greeted twice")
        phase = .greeting
        let version = VFIOUserVersion(minor: VFIOUserServerSession.minorVersion, capabilities: capabilities)
        return VFIOUserHeader.command(.version, messageID: 0, payload: version.bytes)
    }

    /// A command to send.
    ///
    /// - Returns: The number that its answer will have, and the message; nil where as many commands are
    ///   outstanding as there are numbers for them.
    package mutating func send(_ request: VFIOUserClientRequest, noReply: Bool = false)
        -> (messageID: UInt16, message: [UInt8])?
    {
        precondition(phase == .serving, "a command before the server took the connection")
        guard pending.count <= UInt16.max else { return nil }
        while pending[nextID] != nil { nextID &+= 1 }
        defer { nextID &+= 1 }
        if !noReply { pending[nextID] = request }
        let message = VFIOUserHeader.command(
            request.command,
            messageID: nextID,
            payload: request.payload,
            noReply: noReply
        )
        return (nextID, message)
    }

    /// Takes bytes that came, and says what follows; descriptors as in
    /// ``VFIOUserServerSession/receive(_:descriptorCount:areDescriptorsLost:)``.
    package mutating func receive(
        _ bytes: UnsafeRawBufferPointer,
        descriptorCount: Int = 0,
        areDescriptorsLost: Bool = false
    ) -> VFIOUserClientAction {
        switch framer.receive(bytes, descriptorCount: descriptorCount, areDescriptorsLost: areDescriptorsLost)
        {
        case .more: return .more
        case .broken(_, let violation): return .close(violation)
        case .skipped(let header): return .close(.unexpectedReply(header.command))
        case .message(let header, let payload):
            switch phase {
            case .idle: return .close(.unexpectedReply(header.command))
            case .greeting: return negotiate(header, payload)
            case .serving:
                return header.flags.contains(.reply) ? complete(header, payload) : serve(header, payload)
            }
        }
    }

    private mutating func negotiate(_ header: VFIOUserHeader, _ payload: [UInt8]) -> VFIOUserClientAction {
        if header.flags == [.reply, .error] { refusal = VFIOUserError(rawValue: header.error) }
        guard header.flags == .reply, header.command == .version, header.messageID == 0,
            let version = VFIOUserVersion(payload), version.major == 0,
            version.minor <= VFIOUserServerSession.minorVersion,
            version.capabilities?.dataByteCountMax != 0,
            version.capabilities?.twinSocket != true || capabilities.twinSocket == true
        else { return .close(.badVersion) }
        phase = .serving
        server = (version.capabilities ?? VFIOUserCapabilities()).overDefaults
        minorVersion = version.minor
        return .negotiated
    }

    private mutating func complete(_ header: VFIOUserHeader, _ payload: [UInt8]) -> VFIOUserClientAction {
        guard let request = pending[header.messageID], request.command == header.command else {
            return .close(.unexpectedReply(header.command))
        }
        pending[header.messageID] = nil
        if header.flags.contains(.error) {
            let error = header.error == 0 ? VFIOUserError.inputOutput : VFIOUserError(rawValue: header.error)
            return .failed(messageID: header.messageID, error)
        }
        guard let reply = VFIOUserClientReply(to: request, payload) else {
            return .failed(messageID: header.messageID, .protocolViolation)
        }
        return .reply(messageID: header.messageID, reply, descriptorCount: framer.descriptorCount)
    }

    private func serve(_ header: VFIOUserHeader, _ payload: [UInt8]) -> VFIOUserClientAction {
        let limit = capabilities.overDefaults.dataByteCountMax ?? 0
        let refusal: VFIOUserClientAction = header.wantsReply ? .send(header.failure(.invalid)) : .more
        guard header.command == .readDMA || header.command == .writeDMA,
            let access = VFIOUserDMAAccess(payload), access.count <= limit,
            access.count == 0 || !access.address.addingReportingOverflow(access.count - 1).overflow
        else { return refusal }
        guard header.command == .writeDMA else { return .readMemory(header, access) }
        let data = payload.dropFirst(VFIOUserDMAAccess.byteCount)
        guard UInt64(data.count) == access.count else { return refusal }
        return .writeMemory(header, access, Array(data))
    }
}
