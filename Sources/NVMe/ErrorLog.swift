// The Error Information log: the last commands that failed.

import Synchronization

/// The last errors, newest first when they are read.
final class ErrorLog: Sendable {
    /// ELPE, as a count.
    static let entryCountMax = 16

    private struct Entry {
        var count: UInt64
        var queue: UInt16
        var commandIdentifier: UInt16
        var status: UInt16
        var block: UInt64
        var namespace: UInt32
    }
    private struct State {
        var entries: [Entry] = []
        var count: UInt64 = 0
    }
    private let state = Mutex(State())

    /// How many errors there were since the controller was made.
    var count: UInt64 { state.withLock { $0.count } }

    func add(_ command: SubmissionEntry, _ status: CommandStatus, queue: UInt16) {
        state.withLock { state in
            state.count &+= 1
            let entry = Entry(
                count: state.count,
                queue: queue,
                commandIdentifier: command.commandIdentifier,
                status: status.withMore.rawValue << 1,
                block: queue == 0 ? 0 : command.doubleWord(10),
                namespace: command.namespace
            )
            state.entries.append(entry)
            if state.entries.count > Self.entryCountMax { state.entries.removeFirst() }
        }
    }

    /// The log page: entries of 64 bytes, those that are not there as zeros.
    var page: [UInt8] {
        var block = ByteBlock(byteCount: Self.entryCountMax * 64)
        let entries = state.withLock { $0.entries }
        for (index, entry) in entries.reversed().enumerated() {
            let start = index * 64
            block.set(entry.count, at: start, byteCount: 8)
            block.set(UInt64(entry.queue), at: start + 8, byteCount: 2)
            block.set(UInt64(entry.commandIdentifier), at: start + 10, byteCount: 2)
            block.set(UInt64(entry.status), at: start + 12, byteCount: 2)
            // No one byte of the command is to blame.
            block.set(0xFFFF, at: start + 14, byteCount: 2)
            block.set(entry.block, at: start + 16, byteCount: 8)
            block.set(UInt64(entry.namespace), at: start + 24, byteCount: 4)
        }
        return block.bytes
    }
}
