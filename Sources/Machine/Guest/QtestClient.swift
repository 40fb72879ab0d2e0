// Interrupts into a guest of QEMU: by its qtest socket, while the guest runs.

import CLinux
import DeviceModel
import Glibc
import HostIO
package import Logging
import Synchronization
package import SystemPackage

/// Speaks QEMU's qtest protocol: lines of text, each answered in order.
///
/// Whoever signals only leaves a line here; a thread sends them, many at a time. QEMU need not be there yet, and may go
/// and come again: the levels of all lines are told anew to each.
package final class QtestClient: Sendable {
    /// How many SPIs the guest's GIC has as inputs of its own; QEMU ends itself at a number beyond.
    package static let interruptCount: UInt32 = 256

    private struct State: Sendable {
        var lines: [String] = []
        /// The level of each SPI that was ever set, for a QEMU that comes later.
        var levels: [UInt32: Bool] = [:]
        var isStopping = false
        var droppedCount = 0
    }

    private let path: String
    private let controller: String
    private let logger: Logger
    private let state = Mutex(State())
    private let wake: WakeEvent
    private let thread = Mutex<SystemThread.Handle?>(nil)

    /// More than a guest that answers at all ever has outstanding.
    private static let lineCountMax = 65536

    /// - Parameters:
    ///   - path: QEMU's socket (`-qtest unix:PATH,server=on,wait=off`).
    ///   - controller: The QOM path of the guest's interrupt controller.
    /// - Throws: The system's error where it gives no descriptor.
    package init(path: String, controller: String, logger: Logger) throws(Errno) {
        self.path = path
        self.controller = controller
        self.logger = logger
        wake = try WakeEvent()
    }

    /// Starts the thread that connects and sends.
    package func start() throws(Errno) {
        let handle = try SystemThread.start(named: "qtest") { [self] in run() }
        thread.withLock { $0 = handle }
    }

    /// Ends the thread; what was not sent by then is not sent any more.
    package func stop() {
        state.withLock { $0.isStopping = true }
        wake.signal()
        let handle = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        if let handle { SystemThread.join(handle) }
    }

    // MARK: What there is to say

    /// Sets the level of an SPI.
    func setInterrupt(_ number: UInt32, to isAsserted: Bool) {
        guard number < Self.interruptCount else { return }
        state.withLock { state in
            state.levels[number] = isAsserted
            append(interruptLine(number, isAsserted), &state)
        }
        wake.signal()
    }

    /// One edge of an SPI.
    func pulseInterrupt(_ number: UInt32) {
        guard number < Self.interruptCount else { return }
        state.withLock { state in
            append(interruptLine(number, true), &state)
            append(interruptLine(number, state.levels[number] ?? false), &state)
        }
        wake.signal()
    }

    /// Writes a word at a physical address of the guest: a message to its doorbell.
    func writeWord(_ value: UInt32, at address: UInt64) {
        state.withLock {
            append("writel 0x\(String(address, radix: 16)) 0x\(String(value, radix: 16))\n", &$0)
        }
        wake.signal()
    }

    private func interruptLine(_ number: UInt32, _ isAsserted: Bool) -> String {
        "set_irq_in \(controller) unnamed-gpio-in \(number) \(isAsserted ? 1 : 0)\n"
    }

    private func append(_ line: String, _ state: inout State) {
        guard state.lines.count < Self.lineCountMax else {
            // A QEMU that is stopped takes nothing; what counts when it goes on are the levels, and those are kept.
            state.droppedCount += 1
            return
        }
        state.lines.append(line)
    }

    // MARK: The thread

    private func run() {
        while !isStopping {
            guard let socket = connectSocket() else {
                wake.wait(milliseconds: 50)
                // Signals that come meanwhile make this a busy wait otherwise.
                wake.reset()
                _ = poll(nil, 0, 20)
                continue
            }
            talk(socket)
            close(socket)
        }
    }

    private var isStopping: Bool { state.withLock { $0.isStopping } }

    private func connectSocket() -> CInt? {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let descriptor = socket(
            AF_UNIX,
            CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue),
            0
        )
        guard descriptor >= 0 else { return nil }
        let isConnected = withUnsafePointer(to: address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
        guard isConnected else {
            close(descriptor)
            return nil
        }
        return descriptor
    }

    /// Sends what there is until QEMU goes away or this stops.
    private func talk(_ socket: CInt) {
        // What waited is told in its order: an edge before QEMU was there must not be lost. The levels that stand
        // come after it, because not every line of them need be among what waited.
        state.withLock { state in
            for (number, isAsserted) in state.levels.sorted(by: { $0.key < $1.key }) {
                state.lines.append(interruptLine(number, isAsserted))
            }
        }
        var answers = QtestAnswers()
        var entries = [
            pollfd(fd: socket, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wake.descriptor, events: Int16(POLLIN), revents: 0),
        ]
        while true {
            let (text, isStopping) = take(limit: 512 - answers.outstanding)
            guard !isStopping else { return }
            if !text.isEmpty {
                guard send(text.joined(), socket) else { return }
                answers.outstanding += text.count
            }
            // Wait for answers, or for more to say.
            entries[1].events = answers.outstanding < 512 ? Int16(POLLIN) : 0
            guard poll(&entries, 2, -1) >= 0 || errno == EINTR else { return }
            if entries[1].revents != 0 { wake.reset() }
            guard entries[0].revents == 0 || receive(socket, &answers) else { return }
        }
    }

    private func take(limit: Int) -> ([String], Bool) {
        state.withLock { state in
            guard !state.isStopping else { return ([], true) }
            let count = max(0, min(limit, state.lines.count))
            defer { state.lines.removeFirst(count) }
            return (Array(state.lines[..<count]), false)
        }
    }

    private func send(_ text: String, _ socket: CInt) -> Bool {
        let bytes = Array(text.utf8)
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes {
                Glibc.send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL))
            }
            guard count > 0 else {
                if count < 0, errno == EINTR { continue }
                return false
            }
            sent += count
        }
        return true
    }

    private func receive(_ socket: CInt, _ answers: inout QtestAnswers) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = recv(socket, &bytes, bytes.count, 0)
        guard count > 0 else { return count < 0 && errno == EINTR }
        for refusal in answers.take(bytes[..<count]) { logger.warning("qtest: QEMU answers \"\(refusal)\"") }
        return true
    }
}

/// QEMU's answers, line by line.
struct QtestAnswers {
    /// How many commands have no answer yet.
    var outstanding = 0
    private var rest: [UInt8] = []

    /// Takes bytes that came.
    ///
    /// - Returns: Answers that are no success.
    mutating func take(_ bytes: ArraySlice<UInt8>) -> [String] {
        var refusals: [String] = []
        for byte in bytes {
            guard byte == UInt8(ascii: "\n") else {
                if rest.count < 4096 { rest.append(byte) }
                continue
            }
            let line = String(decoding: rest, as: UTF8.self)
            rest = []
            // Lines of IRQ tell of interrupts that somebody listens to, and answer nothing.
            if line.hasPrefix("IRQ") { continue }
            outstanding = max(0, outstanding - 1)
            if !line.hasPrefix("OK") { refusals.append(line) }
        }
        return refusals
    }
}

/// Passes the signals of one of our lines on to the guest's interrupt controller.
final class QtestInterruptSink: InterruptSink {
    private let client: QtestClient
    private let number: UInt32

    /// - Parameter number: The SPI, from 0.
    init(_ client: QtestClient, number: UInt32) {
        self.client = client
        self.number = number
    }

    func signal(_ signal: InterruptSignal, on line: InterruptLine) {
        switch signal {
        case .pulse: client.pulseInterrupt(number)
        case .asserted: client.setInterrupt(number, to: true)
        case .deasserted: client.setInterrupt(number, to: false)
        }
    }
}
