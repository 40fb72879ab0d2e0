// One connection to a server: its threads, who waits for which answer, and how it ends.

import CLinux
import Glibc
import HostIO
import Synchronization
import SystemPackage
import VFIOUserProtocol

/// Sends commands of any thread and finds the waiter of each answer.
///
/// A thread reads the socket for as long as the connection lives, another serves the server's accesses to memory;
/// with a twin socket, a third reads and serves that one. They hold the connection: ``end(_:)`` lets them go.
///
/// Locks: `state` is a leaf; a socket's is taken with no other held.
final class ClientConnection: Sendable {
    private struct Waiter: Sendable {
        let call: PendingCall
        let command: VFIOUserCommand
    }
    private struct State: Sendable {
        var session: VFIOUserClientSession
        var waiters: [UInt16: Waiter] = [:]
        /// Why there are no more answers.
        var ending: VFIOUserClientError?
        var twin: ClientSocket?
        var threads: [SystemThread.Handle] = []
    }

    let memory = MemoryService()
    private let capabilities: VFIOUserCapabilities
    private let socket: ClientSocket
    private let greeting = PendingCall()
    private let queue = ServiceQueue()
    private let state: Mutex<State>
    private let sendTimeoutMilliseconds: Int?
    private let whenEnded: (@Sendable (VFIOUserClientError) -> Void)?

    /// A command that was sent.
    struct Started: Sendable {
        fileprivate let call: PendingCall
        fileprivate let messageID: UInt16
        let command: VFIOUserCommand
    }

    init(
        _ socket: ClientSocket,
        _ capabilities: VFIOUserCapabilities,
        sendTimeoutMilliseconds: Int?,
        whenEnded: (@Sendable (VFIOUserClientError) -> Void)?
    ) {
        self.whenEnded = whenEnded
        self.socket = socket
        self.capabilities = capabilities
        self.sendTimeoutMilliseconds = sendTimeoutMilliseconds
        state = Mutex(State(session: VFIOUserClientSession(capabilities: capabilities)))
    }

    /// Starts the threads and agrees with the server on a version.
    ///
    /// - Returns: What the server can do, and the minor version.
    func greet(timeoutMilliseconds: Int?) throws(VFIOUserClientError) -> (VFIOUserCapabilities, UInt16) {
        try startThread("vfu-client") { [self] in readMain() }
        try startThread("vfu-client-dma") { [self] in serveQueue() }
        let message = state.withLock { $0.session.greet() }
        if let reason = socket.send(message) { end(.disconnected(reason: reason)) }
        switch greeting.wait(milliseconds: timeoutMilliseconds) {
        case nil: throw .timedOut(command: VFIOUserCommand.version.name)
        case .failure(let error)?: throw error
        case .success?: break
        }
        guard
            let result = state.withLock({ state in
                state.session.server.flatMap { server in state.session.minorVersion.map { (server, $0) } }
            })
        else { throw .notAgreed(reason: "the server named no version") }
        return result
    }

    /// Whether the server's commands have a socket of their own.
    var hasTwinSocket: Bool { state.withLock { $0.twin != nil } }

    /// Why the connection has ended; nil while it lives.
    var ending: VFIOUserClientError? { state.withLock { $0.ending } }

    private func startThread(_ name: String, _ body: @escaping @Sendable () -> Void)
        throws(VFIOUserClientError)
    {
        do throws(Errno) {
            let handle = try SystemThread.start(named: name, body)
            state.withLock { $0.threads.append(handle) }
        } catch {
            throw .local("no thread for a connection: \(error.description)")
        }
    }

    // MARK: Commands

    /// Sends a command; descriptors stay the caller's.
    func start(_ request: VFIOUserClientRequest, descriptors: [CInt] = []) throws(VFIOUserClientError)
        -> Started
    {
        let call = PendingCall()
        let sent: Result<(messageID: UInt16, message: [UInt8]), VFIOUserClientError> = state.withLock {
            state in
            if let ending = state.ending { return .failure(ending) }
            guard let sent = state.session.send(request) else {
                return .failure(.invalid("65536 commands wait for an answer: no more can be sent"))
            }
            state.waiters[sent.messageID] = Waiter(call: call, command: request.command)
            return .success(sent)
        }
        let (messageID, message) = try sent.get()
        if let reason = socket.send(message, descriptors: descriptors) { end(.disconnected(reason: reason)) }
        return Started(call: call, messageID: messageID, command: request.command)
    }

    /// Waits for the answer to a command.
    func finish(_ started: Started, timeoutMilliseconds: Int?) throws(VFIOUserClientError)
        -> PendingCall.Answer
    {
        if let result = started.call.wait(milliseconds: timeoutMilliseconds) { return try result.get() }
        let isForgotten = state.withLock { $0.waiters.removeValue(forKey: started.messageID) != nil }
        guard !isForgotten else { throw .timedOut(command: started.command.name) }
        // The answer came just now, and is about to be handed over.
        guard let result = started.call.wait(milliseconds: nil) else {
            throw .timedOut(command: started.command.name)
        }
        return try result.get()
    }

    /// Sends a command that the server does not answer.
    func post(_ request: VFIOUserClientRequest) throws(VFIOUserClientError) {
        let sent: Result<[UInt8], VFIOUserClientError> = state.withLock { state in
            if let ending = state.ending { return .failure(ending) }
            guard let sent = state.session.send(request, noReply: true) else {
                return .failure(.invalid("65536 commands wait for an answer: no more can be sent"))
            }
            return .success(sent.message)
        }
        guard let reason = socket.send(try sent.get()) else { return }
        let error = VFIOUserClientError.disconnected(reason: reason)
        end(error)
        throw error
    }

    // MARK: The end

    /// Ends the connection: every call that waits, and every later one, gets `error`.
    ///
    /// Only the first reason counts.
    func end(_ error: VFIOUserClientError) {
        let ended: (waiters: [UInt16: Waiter], twin: ClientSocket?)? = state.withLock { state in
            guard state.ending == nil else { return nil }
            state.ending = error
            defer { state.waiters = [:] }
            return (state.waiters, state.twin)
        }
        guard let ended else { return }
        greeting.complete(.failure(error))
        for waiter in ended.waiters.values { waiter.call.complete(.failure(error)) }
        socket.abandon()
        ended.twin?.abandon()
        queue.stop()
        whenEnded?(error)
    }

    /// Ends the connection and waits for its threads, but for the one that calls.
    func stop() {
        end(.disconnected(reason: "this client closed it"))
        let threads = state.withLock { state in
            defer { state.threads = [] }
            return state.threads
        }
        for thread in threads {
            if pthread_equal(thread, pthread_self()) != 0 {
                pthread_detach(thread)
            } else {
                SystemThread.join(thread)
            }
        }
    }
}

// MARK: - The threads

extension ClientConnection {
    /// What a session says of bytes that came, and what is to be read next.
    private struct Step {
        var action: VFIOUserClientAction
        var byteCountWanted: Int
        var isBetweenMessages: Bool
    }

    private func readMain() {
        let error = pump(socket) { bytes, descriptorCount, areLost in
            state.withLock { state in
                Step(
                    action: state.session.receive(
                        bytes,
                        descriptorCount: descriptorCount,
                        areDescriptorsLost: areLost
                    ),
                    byteCountWanted: state.session.byteCountWanted,
                    isBetweenMessages: state.session.isBetweenMessages
                )
            }
        } handle: { action, descriptors, areLost in
            handle(action, descriptors, areLost)
        }
        end(error)
    }

    private func readTwin(_ twin: ClientSocket) {
        var session = VFIOUserClientSession.twin(capabilities: capabilities)
        let error = pump(twin) { bytes, descriptorCount, areLost in
            Step(
                action: session.receive(bytes, descriptorCount: descriptorCount, areDescriptorsLost: areLost),
                byteCountWanted: session.byteCountWanted,
                isBetweenMessages: session.isBetweenMessages
            )
        } handle: { action, _, _ in
            // Nobody else reads this socket, so its reader can serve.
            let answer: [UInt8]?
            switch action {
            case .readMemory(let header, let access): answer = memory.serve(.read(header, access))
            case .writeMemory(let header, let access, let data):
                answer = memory.serve(.write(header, access, data))
            case .send(let message): answer = message
            case .close(let violation): return .disconnected(reason: violation.description)
            case .more, .negotiated, .reply, .failed: return nil
            }
            guard let answer, let reason = twin.send(answer) else { return nil }
            return .disconnected(reason: reason)
        }
        end(error)
    }

    /// Reads a socket until it ends, and says why it did.
    private func pump(
        _ socket: ClientSocket,
        receive: (UnsafeRawBufferPointer, Int, Bool) -> Step,
        handle: (VFIOUserClientAction, ReceivedDescriptors?, Bool) -> VFIOUserClientError?
    ) -> VFIOUserClientError {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 8)
        defer { buffer.deallocate() }
        var wanted = VFIOUserHeader.byteCount
        var isFirst = true
        var descriptors: ReceivedDescriptors?
        var areLost = false
        while true {
            let space = UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(wanted, buffer.count)])
            switch socket.receive(into: space, takesDescriptors: isFirst) {
            case .end(let reason):
                let place = isFirst ? "" : " in the middle of a message"
                return .disconnected(reason: reason ?? "the server closed it\(place)")
            case .bytes(let count, let fresh, let isLost):
                if isFirst {
                    descriptors = fresh
                    areLost = isLost
                }
                let bytes = UnsafeRawBufferPointer(rebasing: space[..<count])
                let step = receive(bytes, isFirst ? fresh?.count ?? 0 : 0, isFirst && isLost)
                wanted = step.byteCountWanted
                isFirst = step.isBetweenMessages
                if let error = handle(step.action, descriptors, areLost) { return error }
                // Descriptors that nobody took are closed here.
                if isFirst { descriptors = nil }
            }
        }
    }

    private func handle(_ action: VFIOUserClientAction, _ descriptors: ReceivedDescriptors?, _ areLost: Bool)
        -> VFIOUserClientError?
    {
        switch action {
        case .more: break
        case .negotiated:
            if let error = startTwin(descriptors) { return error }
            greeting.complete(.success(PendingCall.Answer(reply: .done, descriptors: nil)))
        case .reply(let messageID, let reply, _):
            guard let waiter = takeWaiter(messageID) else { return nil }
            guard !areLost else {
                let reason = "more than \(SMMUD_MAX_FDS) descriptors came along"
                waiter.call.complete(.failure(.violation(command: waiter.command.name, reason: reason)))
                return nil
            }
            waiter.call.complete(.success(PendingCall.Answer(reply: reply, descriptors: descriptors)))
        case .failed(let messageID, let error):
            guard let waiter = takeWaiter(messageID) else { return nil }
            waiter.call.complete(.failure(VFIOUserClientError(error, of: waiter.command)))
        case .readMemory(let header, let access): queue.append(.read(header, access))
        case .writeMemory(let header, let access, let data): queue.append(.write(header, access, data))
        case .send(let message):
            if let reason = socket.send(message) { return .disconnected(reason: reason) }
        case .close(.badVersion):
            let refusal = state.withLock { $0.session.refusal }
            return .notAgreed(
                reason: refusal.map { "it answered VERSION: \(errorText(CInt(bitPattern: $0.rawValue)))" }
                    ?? VFIOUserViolation.badVersion.description
            )
        case .close(let violation): return .disconnected(reason: violation.description)
        }
        return nil
    }

    private func takeWaiter(_ messageID: UInt16) -> Waiter? {
        state.withLock { $0.waiters.removeValue(forKey: messageID) }
    }

    /// Takes the socket for the server's commands, where the server gives one.
    private func startTwin(_ descriptors: ReceivedDescriptors?) -> VFIOUserClientError? {
        guard let server = state.withLock({ $0.session.server }), server.twinSocket == true else {
            return nil
        }
        guard let index = server.twinSocketIndex, index < UInt64(descriptors?.count ?? 0),
            let descriptor = descriptors?.take(Int(index))
        else {
            return .notAgreed(
                reason: "twin_socket.fd_index names no descriptor that came with VERSION's reply"
            )
        }
        let twin = ClientSocket(adopting: descriptor, sendTimeoutMilliseconds: sendTimeoutMilliseconds)
        // Under one lock with the look at the end: who ends the connection must see the socket.
        let isEnded = state.withLock { state in
            state.twin = twin
            return state.ending != nil
        }
        guard !isEnded else { return nil }
        do throws(VFIOUserClientError) {
            try startThread("vfu-client-twin") { [self] in readTwin(twin) }
            return nil
        } catch {
            return error
        }
    }

    private func serveQueue() {
        while let commands = queue.takeAll() {
            for command in commands {
                guard let answer = memory.serve(command) else { continue }
                if let reason = socket.send(answer) { return end(.disconnected(reason: reason)) }
            }
        }
    }
}

extension VFIOUserClientError {
    /// What a command's failure is to its caller.
    init(_ error: VFIOUserError, of command: VFIOUserCommand) {
        guard error != .protocolViolation else {
            self = .violation(command: command.name, reason: "it contradicts itself or the question")
            return
        }
        self = .failed(command: command.name, errno: CInt(bitPattern: error.rawValue))
    }
}

extension VFIOUserCommand {
    /// The specification's name for it, without its prefix.
    var name: String {
        switch self {
        case .version: "VERSION"
        case .mapDMA: "DMA_MAP"
        case .unmapDMA: "DMA_UNMAP"
        case .deviceInfo: "DEVICE_GET_INFO"
        case .regionInfo: "DEVICE_GET_REGION_INFO"
        case .regionIODescriptors: "DEVICE_GET_REGION_IO_FDS"
        case .interruptInfo: "DEVICE_GET_IRQ_INFO"
        case .setInterrupts: "DEVICE_SET_IRQS"
        case .readRegion: "REGION_READ"
        case .writeRegion: "REGION_WRITE"
        case .readDMA: "DMA_READ"
        case .writeDMA: "DMA_WRITE"
        case .reset: "DEVICE_RESET"
        case .writeRegions: "REGION_WRITE_MULTI"
        case .deviceFeature: "DEVICE_FEATURE"
        case .readMigrationData: "MIG_DATA_READ"
        case .writeMigrationData: "MIG_DATA_WRITE"
        default: "command \(rawValue)"
        }
    }
}
