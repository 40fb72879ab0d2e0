// A server's side of one connection as a state machine without I/O.

/// Bytes of a client in, things to do out.
///
/// Read at most ``byteCountWanted`` bytes, with the descriptors that come along, and hand them to
/// ``receive(_:descriptorCount:areDescriptorsLost:)``; do what it says before reading on. All questions about
/// the device are answered here, out of its description, and what is to be carried out has been checked against
/// it. Descriptors that an operation does not speak of are to be closed.
package struct VFIOUserServerSession: Sendable {
    /// The device that this connection is about.
    package let device: VFIOUserDeviceDescription
    package let limits: VFIOUserServerLimits
    /// What the client can do, with the specification's value for each thing that it did not say; nil before
    /// VERSION.
    package private(set) var client: VFIOUserCapabilities?
    private var framer: MessageFramer

    /// The highest minor version of major version 0 that is spoken here.
    package static let minorVersion: UInt16 = 1

    package init(device: VFIOUserDeviceDescription, limits: VFIOUserServerLimits = VFIOUserServerLimits()) {
        self.device = device
        self.limits = limits
        // A header, the fields of an access and its data: nothing is longer.
        framer = MessageFramer(
            messageByteCountMax: VFIOUserHeader.byteCount + VFIOUserRegionAccess.byteCount
                + limits.dataByteCountMax
        )
    }

    /// How many bytes may be read at once: never beyond the end of a header or of a message.
    ///
    /// 0 once the connection is to be closed.
    package var byteCountWanted: Int { framer.byteCountWanted }

    /// Whether the client may have left here without breaking a message off.
    package var isBetweenMessages: Bool { framer.isAtMessageStart }

    /// Takes bytes that came, and says what follows.
    ///
    /// - Parameters:
    ///   - bytes: At most ``byteCountWanted``.
    ///   - descriptorCount: How many descriptors came along. Only those that come with a message's first byte are
    ///     its; others are to be closed, and are not counted here.
    ///   - areDescriptorsLost: Whether there were more than could be received.
    package mutating func receive(
        _ bytes: UnsafeRawBufferPointer,
        descriptorCount: Int = 0,
        areDescriptorsLost: Bool = false
    ) -> VFIOUserServerAction {
        switch framer.receive(
            bytes,
            descriptorCount: descriptorCount,
            areDescriptorsLost: areDescriptorsLost
        ) {
        case .more: return .more
        case .broken(let header, let violation): return close(header, violation)
        case .skipped(let header):
            guard client != nil else { return close(header, .notGreeted(header.command)) }
            guard !header.flags.contains(.reply) else {
                return close(header, .unexpectedReply(header.command))
            }
            return reply(to: header, .invalid)
        case .message(let header, let payload):
            if header.flags.contains(.reply) {
                guard client != nil else { return close(header, .notGreeted(header.command)) }
                return .deliver(header, payload: payload)
            }
            guard client != nil else { return greet(header, payload) }
            do throws(VFIOUserError) {
                return try take(header, payload)
            } catch {
                return reply(to: header, error)
            }
        }
    }

    // MARK: Answers

    private func reply(to header: VFIOUserHeader, _ error: VFIOUserError) -> VFIOUserServerAction {
        header.wantsReply ? .send(header.failure(error), attaching: .none) : .more
    }

    private func reply(
        to header: VFIOUserHeader,
        payload: [UInt8],
        attaching attachment: VFIOUserAttachment = .none
    ) -> VFIOUserServerAction {
        header.wantsReply ? .send(header.success(payload: payload), attaching: attachment) : .more
    }

    private func close(_ header: VFIOUserHeader, _ violation: VFIOUserViolation) -> VFIOUserServerAction {
        // No answer to an answer.
        let isAnswered = header.flags.type != 1 && header.wantsReply
        return .close(isAnswered ? header.failure(.invalid) : nil, violation)
    }

    // MARK: Greeting

    private mutating func greet(_ header: VFIOUserHeader, _ payload: [UInt8]) -> VFIOUserServerAction {
        guard header.command == .version else { return close(header, .notGreeted(header.command)) }
        guard framer.descriptorCount == 0, !framer.areDescriptorsLost,
            let version = VFIOUserVersion(payload), version.major == 0
        else { return close(header, .badVersion) }
        let offer = version.capabilities ?? VFIOUserCapabilities()
        client = offer.overDefaults
        let agreed = agree(to: offer)
        let reply = VFIOUserVersion(minor: min(version.minor, Self.minorVersion), capabilities: agreed)
        return self.reply(
            to: header,
            payload: reply.bytes,
            attaching: agreed.twinSocket == true ? .twinSocket : .none
        )
    }

    /// What to say: our own limits always, because some clients insist on a text, and else only what the client
    /// spoke of, because some have no room for a reply that is longer than their request.
    private func agree(to offer: VFIOUserCapabilities) -> VFIOUserCapabilities {
        // A client that takes no descriptors cannot be given one.
        let usesTwinSocket =
            offer.twinSocket == true && limits.offersTwinSocket && offer.descriptorCountMax != 0
        return VFIOUserCapabilities(
            descriptorCountMax: UInt64(limits.descriptorCountMax),
            dataByteCountMax: min(offer.dataByteCountMax ?? .max, UInt64(limits.dataByteCountMax)),
            mappingCountMax: offer.mappingCountMax.map { min($0, UInt64(limits.mappingCountMax)) },
            pageSizes: offer.pageSizes.map { _ in limits.pageSizes },
            twinSocket: usesTwinSocket ? true : nil,
            twinSocketIndex: usesTwinSocket ? 0 : nil,
            writeMultiple: offer.writeMultiple.map { $0 && limits.takesMultipleWrites }
        )
    }

    // MARK: Commands

    private func take(_ header: VFIOUserHeader, _ payload: [UInt8]) throws(VFIOUserError)
        -> VFIOUserServerAction
    {
        if header.command == .version { return close(header, .greetedTwice) }
        try checkDescriptors(of: header.command)
        switch header.command {
        case .deviceInfo: return reply(to: header, payload: try deviceInfo(payload))
        case .regionInfo:
            let (reply, attachment) = try regionInfo(payload)
            return self.reply(to: header, payload: reply, attaching: attachment)
        case .regionIODescriptors:
            let (reply, attachment) = try ioDescriptors(payload)
            return self.reply(to: header, payload: reply, attaching: attachment)
        case .interruptInfo: return reply(to: header, payload: try interruptInfo(payload))
        case .deviceFeature: throw featureError(payload)
        case .readMigrationData, .writeMigrationData:
            throw VFIOUserMigrationData(payload) == nil ? .invalid : .notSupported
        default: break
        }
        if let operation = try operation(header.command, payload) { return .perform(operation, header) }
        // Nothing to read or to write, which succeeds without the fields of a reply.
        return reply(to: header, payload: [])
    }

    /// Nil where nothing is to be done.
    private func operation(_ command: VFIOUserCommand, _ payload: [UInt8]) throws(VFIOUserError)
        -> VFIOUserOperation?
    {
        switch command {
        case .mapDMA: return try mapDMA(payload)
        case .unmapDMA: return try unmapDMA(payload)
        case .setInterrupts: return .setInterrupts(try interruptChange(payload))
        case .readRegion: return try readRegion(payload)
        case .writeRegion: return try writeRegion(payload)
        case .writeRegions: return .writeRegions(try writeRegions(payload))
        case .reset:
            guard payload.isEmpty else { throw .invalid }
            guard device.flags.contains(.reset) else { throw .notSupported }
            return .reset
        default: throw .invalid
        }
    }

    private func checkDescriptors(of command: VFIOUserCommand) throws(VFIOUserError) {
        guard !framer.areDescriptorsLost else { throw .invalid }
        let isPermitted =
            switch command {
            // One client sends its descriptor a second time to say what it takes back.
            case .unmapDMA, .setInterrupts: true
            case .mapDMA: framer.descriptorCount <= 1
            default: framer.descriptorCount == 0
            }
        guard isPermitted else { throw .invalid }
    }

    /// How many descriptors came with the message that is looked at.
    var descriptorCount: Int { framer.descriptorCount }
}

extension VFIOUserCapabilities {
    /// These, with the specification's value for each that is not given.
    package var overDefaults: Self {
        let defaults = Self.default
        return Self(
            descriptorCountMax: descriptorCountMax ?? defaults.descriptorCountMax,
            dataByteCountMax: dataByteCountMax ?? defaults.dataByteCountMax,
            mappingCountMax: mappingCountMax ?? defaults.mappingCountMax,
            pageSizes: pageSizes ?? defaults.pageSizes,
            twinSocket: twinSocket ?? defaults.twinSocket,
            twinSocketIndex: twinSocketIndex,
            writeMultiple: writeMultiple ?? defaults.writeMultiple
        )
    }
}
