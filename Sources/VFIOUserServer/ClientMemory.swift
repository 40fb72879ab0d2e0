// Memory that the client keeps to itself, reached by DMA_READ and DMA_WRITE.

import DeviceModel
import Glibc
import HostIO
import Synchronization
import VFIOUserProtocol

/// The questions that are put to one client about its memory, and who waits for which answer.
///
/// The thread that serves the client delivers the answers. It may not put questions itself: it would wait for
/// itself, and so is refused at once.
///
/// Lock order: a leaf. The stream is written to without it.
final class ClientMemory: Sendable {
    /// How many bytes go in one message at most, whatever the client says: one client writes no answer that does
    /// not fit into its socket at once.
    static let pieceByteCountMax = 64 << 10

    /// Who waits for one answer.
    private final class Waiter: Sendable {
        let semaphore = TimedSemaphore()
        let range: ClientMemoryRange
        let outcome = Mutex<VFIOUserServerCommands.Outcome?>(nil)

        init(_ range: ClientMemoryRange) { self.range = range }
    }

    private struct State: Sendable {
        var commands = VFIOUserServerCommands()
        var waiters: [UInt16: Waiter] = [:]
        /// Where questions go; nil before VERSION and after the end.
        var stream: (any ClientStream)?
        var pieceByteCount = 0
        /// A question was not answered in time, and nothing has been since.
        var isSilent = false
        /// What waits is broken off and what comes is refused: whoever serves the client waits for those who ask.
        var isPaused = false
        var ranges: [VFIOUserMemoryRange: ClientMemoryRange] = [:]
    }
    private let state = Mutex(State())
    private let timeoutMilliseconds: Int64
    /// The thread that serves the client, as a number.
    private let server = Atomic<UInt>(0)

    init(timeoutMilliseconds: Int64) { self.timeoutMilliseconds = timeoutMilliseconds }

    /// Says that the calling thread is the one that delivers answers.
    func servedByThisThread() { server.store(Self.thisThread, ordering: .relaxed) }

    private static var thisThread: UInt { UInt(pthread_self()) }

    /// Questions can be put from now on.
    func open(_ stream: any ClientStream, dataByteCountMax: UInt64) {
        state.withLock { state in
            state.stream = stream
            state.pieceByteCount = Int(clamping: min(dataByteCountMax, UInt64(Self.pieceByteCountMax)))
        }
    }

    /// Ends it: who waits gets no answer, and nobody asks any more.
    func close() {
        let waiters = state.withLock { state in
            state.stream = nil
            for range in state.ranges.values { range.close() }
            state.ranges = [:]
            return Self.breakOff(&state) { _ in true }
        }
        for waiter in waiters { waiter.semaphore.signal() }
    }

    // MARK: Ranges

    /// The memory of one DMA_MAP; the same object for the same range.
    func range(_ range: VFIOUserMemoryRange) -> ClientMemoryRange {
        state.withLock { state in
            if let known = state.ranges[range] { return known }
            let new = ClientMemoryRange(self, range)
            state.ranges[range] = new
            return new
        }
    }

    /// Forgets a range that was refused, unless it was known before.
    func forget(_ range: VFIOUserMemoryRange) { state.withLock { $0.ranges[range] = nil } }

    func isKnown(_ range: VFIOUserMemoryRange) -> Bool { state.withLock { $0.ranges[range] != nil } }

    /// Takes back the ranges that lie wholly in these bytes: who waits for one gets no answer, so that `body`, which
    /// waits for those who use it, does not wait for what only this thread could deliver.
    ///
    /// Where `body` throws they are as before.
    func unmapping<Failure: Error>(
        _ bytes: ClosedRange<UInt64>,
        _ body: () throws(Failure) -> Void
    ) throws(Failure) {
        let (ranges, waiters) = state.withLock { state in
            let ranges = state.ranges.values.filter { $0.range.isInside(bytes) }
            for range in ranges { range.close() }
            return (ranges, Self.breakOff(&state) { waiter in ranges.contains { $0 === waiter.range } })
        }
        for waiter in waiters { waiter.semaphore.signal() }
        do throws(Failure) {
            try body()
        } catch {
            for range in ranges { range.reopen() }
            throw error
        }
        state.withLock { state in for range in ranges { state.ranges[range.range] = nil } }
    }

    /// Runs `body`, which waits for those who use the client's memory: who waits for an answer gets none.
    func pausing<Failure: Error>(_ body: () throws(Failure) -> Void) throws(Failure) {
        let waiters = state.withLock { state in
            state.isPaused = true
            return Self.breakOff(&state) { _ in true }
        }
        for waiter in waiters { waiter.semaphore.signal() }
        defer { state.withLock { $0.isPaused = false } }
        try body()
    }

    private static func breakOff(_ state: inout State, where isConcerned: (Waiter) -> Bool) -> [Waiter] {
        let concerned = state.waiters.filter { isConcerned($0.value) }
        for id in concerned.keys {
            state.waiters[id] = nil
            state.commands.abandon(id)
        }
        return Array(concerned.values)
    }

    // MARK: Questions

    /// Reads the client's memory; the bytes are in the range.
    func read(at address: UInt64, of range: ClientMemoryRange, into buffer: UnsafeMutableRawBufferPointer)
        -> Bool
    {
        inPieces(buffer.count) { offset, count in
            let access = VFIOUserDMAAccess(address: address &+ UInt64(offset), count: UInt64(count))
            guard case .read(_, let bytes) = ask(range, { $0.read(access) }), bytes.count == count else {
                return false
            }
            UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<offset + count]).copyBytes(from: bytes)
            return true
        }
    }

    /// Writes the client's memory; the bytes are in the range.
    func write(_ buffer: UnsafeRawBufferPointer, at address: UInt64, of range: ClientMemoryRange) -> Bool {
        inPieces(buffer.count) { offset, count in
            let piece = UnsafeRawBufferPointer(rebasing: buffer[offset..<offset + count])
            let outcome = ask(range) { $0.write(piece, at: address &+ UInt64(offset)) }
            guard case .wrote(_, let written) = outcome else { return false }
            return written == count
        }
    }

    private func inPieces(_ byteCount: Int, _ body: (_ offset: Int, _ byteCount: Int) -> Bool) -> Bool {
        let pieceByteCount = state.withLock { $0.stream == nil ? 0 : $0.pieceByteCount }
        guard pieceByteCount > 0 else { return byteCount == 0 }
        for offset in stride(from: 0, to: byteCount, by: pieceByteCount) {
            guard body(offset, min(pieceByteCount, byteCount - offset)) else { return false }
        }
        return true
    }

    /// Puts one question and waits for its answer; nil where there is none.
    private func ask(
        _ range: ClientMemoryRange,
        _ make: (inout VFIOUserServerCommands) -> (messageID: UInt16, message: [UInt8])?
    ) -> VFIOUserServerCommands.Outcome? {
        guard server.load(ordering: .relaxed) != Self.thisThread else { return nil }
        let waiter = Waiter(range)
        let question: (stream: any ClientStream, id: UInt16, message: [UInt8])? = state.withLock { state in
            guard let stream = state.stream, !state.isPaused, !state.isSilent, range.isOpen,
                let (id, message) = make(&state.commands)
            else { return nil }
            state.waiters[id] = waiter
            return (stream, id, message)
        }
        guard let question else { return nil }
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        let isSent = question.message.withUnsafeBytes {
            question.stream.send($0, lending: [], until: deadline)
        }
        guard isSent, waiter.semaphore.wait(until: deadline) else {
            state.withLock { state in
                guard state.waiters[question.id] === waiter else { return }
                state.waiters[question.id] = nil
                // A question that was never sent has no answer that could come late, but its number is lost
                // with the stream anyhow.
                state.commands.abandon(question.id)
                state.isSilent = true
            }
            return nil
        }
        return waiter.outcome.withLock { $0 }
    }

    /// Takes an answer.
    ///
    /// - Returns: Why the connection is to be closed, where it answers nothing.
    func deliver(_ header: VFIOUserHeader, _ payload: [UInt8]) -> VFIOUserViolation? {
        let (waiter, violation): (Waiter?, VFIOUserViolation?) = state.withLock { state in
            let outcome = state.commands.complete(header, payload)
            if case .unexpected(let violation) = outcome { return (nil, violation) }
            state.isSilent = false
            let waiter = state.waiters.removeValue(forKey: header.messageID)
            waiter?.outcome.withLock { $0 = outcome }
            return (waiter, nil)
        }
        waiter?.semaphore.signal()
        return violation
    }
}

/// The memory of one DMA_MAP without a descriptor.
final class ClientMemoryRange: RemoteMemory {
    private let memory: ClientMemory
    let range: VFIOUserMemoryRange
    private let flag = Atomic(true)

    init(_ memory: ClientMemory, _ range: VFIOUserMemoryRange) {
        self.memory = memory
        self.range = range
    }

    // Relaxed: it is written and decided upon under the lock of `memory`.
    var isOpen: Bool { flag.load(ordering: .relaxed) }
    func close() { flag.store(false, ordering: .relaxed) }
    func reopen() { flag.store(true, ordering: .relaxed) }

    private func contains(_ offset: UInt64, _ byteCount: Int) -> Bool {
        offset <= range.byteCount && UInt64(byteCount) <= range.byteCount - offset
    }

    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
        guard range.isReadable, contains(offset, buffer.count) else { return false }
        return memory.read(at: range.address &+ offset, of: self, into: buffer)
    }

    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> Bool {
        guard range.isWritable, contains(offset, buffer.count) else { return false }
        return memory.write(buffer, at: range.address &+ offset, of: self)
    }
}
