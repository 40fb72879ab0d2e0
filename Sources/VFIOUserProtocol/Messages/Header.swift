// The 16 bytes that every message starts with, and the numbers in them.

/// A command's number.
///
/// Open: a peer may write any.
package struct VFIOUserCommand: RawRepresentable, Hashable, Sendable {
    package var rawValue: UInt16

    package init(rawValue: UInt16) { self.rawValue = rawValue }

    /// VFIO_USER_VERSION: the first message, from the client.
    package static let version = Self(rawValue: 1)
    /// VFIO_USER_DMA_MAP.
    package static let mapDMA = Self(rawValue: 2)
    /// VFIO_USER_DMA_UNMAP.
    package static let unmapDMA = Self(rawValue: 3)
    /// VFIO_USER_DEVICE_GET_INFO.
    package static let deviceInfo = Self(rawValue: 4)
    /// VFIO_USER_DEVICE_GET_REGION_INFO.
    package static let regionInfo = Self(rawValue: 5)
    /// VFIO_USER_DEVICE_GET_REGION_IO_FDS.
    package static let regionIODescriptors = Self(rawValue: 6)
    /// VFIO_USER_DEVICE_GET_IRQ_INFO.
    package static let interruptInfo = Self(rawValue: 7)
    /// VFIO_USER_DEVICE_SET_IRQS.
    package static let setInterrupts = Self(rawValue: 8)
    /// VFIO_USER_REGION_READ.
    package static let readRegion = Self(rawValue: 9)
    /// VFIO_USER_REGION_WRITE.
    package static let writeRegion = Self(rawValue: 10)
    /// VFIO_USER_DMA_READ, from the server.
    package static let readDMA = Self(rawValue: 11)
    /// VFIO_USER_DMA_WRITE, from the server.
    package static let writeDMA = Self(rawValue: 12)
    /// VFIO_USER_DEVICE_RESET.
    package static let reset = Self(rawValue: 13)
    /// VFIO_USER_REGION_WRITE_MULTI.
    package static let writeRegions = Self(rawValue: 15)
    /// VFIO_USER_DEVICE_FEATURE.
    package static let deviceFeature = Self(rawValue: 16)
    /// VFIO_USER_MIG_DATA_READ.
    package static let readMigrationData = Self(rawValue: 17)
    /// VFIO_USER_MIG_DATA_WRITE.
    package static let writeMigrationData = Self(rawValue: 18)
}

/// A positive UNIX error number of Linux, as an error reply carries it.
package struct VFIOUserError: Error, RawRepresentable, Hashable, Sendable {
    package var rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// EPERM.
    package static let notPermitted = Self(rawValue: 1)
    /// ENOENT.
    package static let noEntry = Self(rawValue: 2)
    /// EIO.
    package static let inputOutput = Self(rawValue: 5)
    /// E2BIG.
    package static let tooBig = Self(rawValue: 7)
    /// ENOMEM.
    package static let noMemory = Self(rawValue: 12)
    /// EFAULT.
    package static let badAddress = Self(rawValue: 14)
    /// EEXIST.
    package static let exists = Self(rawValue: 17)
    /// EINVAL.
    package static let invalid = Self(rawValue: 22)
    /// EMFILE.
    package static let tooManyOpenFiles = Self(rawValue: 24)
    /// ENOTTY.
    package static let noSuchFeature = Self(rawValue: 25)
    /// ENOSPC.
    package static let noSpace = Self(rawValue: 28)
    /// EPROTO.
    package static let protocolViolation = Self(rawValue: 71)
    /// EOPNOTSUPP (ENOTSUP).
    package static let notSupported = Self(rawValue: 95)
    /// ENOTCONN.
    package static let notConnected = Self(rawValue: 107)
    /// ETIMEDOUT.
    package static let timedOut = Self(rawValue: 110)
}

/// A message's header.
package struct VFIOUserHeader: VFIOUserFixedPayload {
    package static let byteCount = 16

    /// Chosen by who sends the command; comes back in the reply.
    ///
    /// A peer may use one for several commands at a time.
    package var messageID: UInt16
    package var command: VFIOUserCommand
    /// The whole message in bytes, this header included.
    package var messageByteCount: UInt32
    package var flags: Flags
    /// In a reply with ``Flags/error``: why; 0 in commands.
    package var error: UInt32

    /// The word of flags.
    package struct Flags: OptionSet, Hashable, Sendable {
        package var rawValue: UInt32

        package init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Type 1: a reply.
        package static let reply = Self(rawValue: 0x1)
        /// No_reply: the command gets no answer, not even an error.
        package static let noReply = Self(rawValue: 0x10)
        /// Error: the reply says why the command failed, and nothing else.
        package static let error = Self(rawValue: 0x20)

        /// Bits 0 to 3: 0 is a command, 1 is a reply.
        package var type: UInt32 { rawValue & 0xf }
    }

    package init(
        messageID: UInt16,
        command: VFIOUserCommand,
        payloadByteCount: Int = 0,
        flags: Flags = [],
        error: UInt32 = 0
    ) {
        self.messageID = messageID
        self.command = command
        self.messageByteCount = UInt32(truncatingIfNeeded: Self.byteCount &+ payloadByteCount)
        self.flags = flags
        self.error = error
    }

    package init?(_ bytes: [UInt8]) {
        guard let messageID = bytes.word(at: 0, as: UInt16.self),
            let command = bytes.word(at: 2, as: UInt16.self),
            let messageByteCount = bytes.word(at: 4, as: UInt32.self),
            let flags = bytes.word(at: 8, as: UInt32.self),
            let error = bytes.word(at: 12, as: UInt32.self)
        else { return nil }
        self.messageID = messageID
        self.command = VFIOUserCommand(rawValue: command)
        self.messageByteCount = messageByteCount
        self.flags = Flags(rawValue: flags)
        self.error = error
    }

    package func append(to bytes: inout [UInt8]) {
        bytes.append(word: messageID)
        bytes.append(word: command.rawValue)
        bytes.append(word: messageByteCount)
        bytes.append(word: flags.rawValue)
        bytes.append(word: error)
    }

    /// How many bytes follow; 0 where the length is less than a header's.
    package var payloadByteCount: Int { max(0, Int(messageByteCount) - Self.byteCount) }

    /// Whether the sender waits for an answer.
    package var wantsReply: Bool { !flags.contains(.noReply) }

    // MARK: Whole messages

    /// A command with its payload.
    package static func command(
        _ command: VFIOUserCommand,
        messageID: UInt16,
        payload: [UInt8] = [],
        noReply: Bool = false
    ) -> [UInt8] {
        let header = Self(
            messageID: messageID,
            command: command,
            payloadByteCount: payload.count,
            flags: noReply ? .noReply : []
        )
        return header.bytes + payload
    }

    /// The reply to this command that says that it succeeded.
    package func success(payload: [UInt8] = []) -> [UInt8] {
        let header = Self(
            messageID: messageID,
            command: command,
            payloadByteCount: payload.count,
            flags: .reply
        )
        return header.bytes + payload
    }

    /// The reply to this command that says that it failed.
    ///
    /// Never with error 0, which some clients take for success.
    package func failure(_ error: VFIOUserError) -> [UInt8] {
        let number = error.rawValue == 0 ? VFIOUserError.inputOutput.rawValue : error.rawValue
        return Self(messageID: messageID, command: command, flags: [.reply, .error], error: number).bytes
    }
}
