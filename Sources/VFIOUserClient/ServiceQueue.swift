// The server's commands that wait for the thread that serves them.

import DeviceModel
import Synchronization

/// A bounded queue with one reader.
///
/// Whoever reads the socket does not serve: a handler that waits for an answer of the server would wait for ever.
final class ServiceQueue: Sendable {
    /// More than a server has under way: beyond, the socket is read no further until there is room.
    static let commandCountMax = 256
    /// In bytes of DMA_WRITE's data.
    static let dataByteCountMax = 16 << 20

    private struct State {
        var commands: [MemoryService.Command] = []
        var byteCount = 0
        var isWriterWaiting = false
        var isStopped = false
    }
    private let state = Mutex(State())
    private let filled = Semaphore()
    private let emptied = Semaphore()

    /// Adds a command; waits while there are too many.
    func append(_ command: MemoryService.Command) {
        while true {
            let isAdded = state.withLock { state in
                if state.isStopped { return true }
                guard
                    state.commands.isEmpty
                        || state.commands.count < Self.commandCountMax
                            && state.byteCount + command.byteCount <= Self.dataByteCountMax
                else {
                    state.isWriterWaiting = true
                    return false
                }
                state.commands.append(command)
                state.byteCount += command.byteCount
                if state.commands.count == 1 { filled.signal() }
                return true
            }
            if isAdded { return }
            emptied.wait()
        }
    }

    /// Waits for commands and takes all that there are; nil once the queue is stopped.
    func takeAll() -> [MemoryService.Command]? {
        while true {
            filled.wait()
            let (commands, isStopped) = state.withLock { state in
                defer {
                    state.commands = []
                    state.byteCount = 0
                    if state.isWriterWaiting { emptied.signal() }
                    state.isWriterWaiting = false
                }
                return (state.commands, state.isStopped)
            }
            if isStopped { return nil }
            if !commands.isEmpty { return commands }
        }
    }

    /// Ends all waiting.
    func stop() {
        state.withLock { state in
            state.isStopped = true
            if state.isWriterWaiting { emptied.signal() }
            state.isWriterWaiting = false
        }
        filled.signal()
    }
}
