// The commands that a server sends: accesses to memory that the client keeps to itself.

/// Which of a server's commands wait for an answer, and what the answers mean.
///
/// A state machine beside ``VFIOUserServerSession``, so that those who send are not those who read.
package struct VFIOUserServerCommands: Sendable {
    /// What an answer says.
    package enum Outcome: Equatable, Sendable {
        /// The client read this; possibly less than it was asked for.
        case read(messageID: UInt16, [UInt8])
        /// The client wrote so many bytes; possibly less than it was asked for.
        case wrote(messageID: UInt16, byteCount: Int)
        case failed(messageID: UInt16, VFIOUserError)
        /// Nobody waits for it any more.
        case late
        /// It answers nothing that was asked: the connection is to be closed.
        case unexpected(VFIOUserViolation)
    }

    private struct Pending {
        let command: VFIOUserCommand
        let access: VFIOUserDMAAccess
        var isAbandoned = false
    }

    private var pending: [UInt16: Pending] = [:]
    private var nextID: UInt16 = 0

    package init() {}

    /// Whether an answer is outstanding that somebody waits for.
    package var isWaiting: Bool { pending.values.contains { !$0.isAbandoned } }

    /// A command that reads.
    ///
    /// - Returns: Nil where as many commands are outstanding as there are numbers for them.
    package mutating func read(_ access: VFIOUserDMAAccess) -> (messageID: UInt16, message: [UInt8])? {
        guard let id = take(.readDMA, access) else { return nil }
        return (id, VFIOUserHeader.command(.readDMA, messageID: id, payload: access.bytes))
    }

    /// A command that writes.
    ///
    /// - Returns: Nil where as many commands are outstanding as there are numbers for them.
    package mutating func write(
        _ data: UnsafeRawBufferPointer,
        at address: UInt64
    ) -> (messageID: UInt16, message: [UInt8])? {
        let access = VFIOUserDMAAccess(address: address, count: UInt64(data.count))
        guard let id = take(.writeDMA, access) else { return nil }
        return (id, VFIOUserHeader.command(.writeDMA, messageID: id, payload: access.bytes + data))
    }

    /// Notes that nobody waits for this answer any more; its number stays taken until the answer comes.
    package mutating func abandon(_ messageID: UInt16) { pending[messageID]?.isAbandoned = true }

    /// Reads the client's answer.
    package mutating func complete(_ header: VFIOUserHeader, _ payload: [UInt8]) -> Outcome {
        guard let command = pending[header.messageID], command.command == header.command else {
            return .unexpected(.unexpectedReply(header.command))
        }
        pending[header.messageID] = nil
        guard !command.isAbandoned else { return .late }
        guard !header.flags.contains(.error) else {
            let error = header.error == 0 ? .inputOutput : VFIOUserError(rawValue: header.error)
            return .failed(messageID: header.messageID, error)
        }
        // Clients of before 2026 answer in another layout, and have put the data in the wrong place: that is no
        // success, whatever they say.
        guard let access = VFIOUserDMAAccess(payload), access.address == command.access.address,
            access.count <= command.access.count
        else { return .failed(messageID: header.messageID, .protocolViolation) }
        let data = payload.dropFirst(VFIOUserDMAAccess.byteCount)
        guard command.command == .readDMA else {
            return .wrote(messageID: header.messageID, byteCount: Int(access.count))
        }
        guard UInt64(data.count) == access.count else {
            return .failed(messageID: header.messageID, .protocolViolation)
        }
        return .read(messageID: header.messageID, Array(data))
    }

    private mutating func take(_ command: VFIOUserCommand, _ access: VFIOUserDMAAccess) -> UInt16? {
        guard pending.count <= UInt16.max else { return nil }
        while pending[nextID] != nil { nextID &+= 1 }
        defer { nextID &+= 1 }
        pending[nextID] = Pending(command: command, access: access)
        return nextID
    }
}
