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
/// Whoever signals sends a line itself where nothing waits to be sent before it, and leaves it to a thread
/// otherwise; it waits for nobody in either case. QEMU need not be there yet, and may go and come again: the levels of
/// all lines are told anew to each.
package final class QtestClient: Sendable {
    /// How many SPIs the guest's GIC has as inputs of its own; QEMU ends itself at a number beyond.
    package static let interruptCount: UInt32 = 256

    private struct State: Sendable {
        var order = QtestOrder()
        /// What of a line did not fit the socket's buffer: it goes before all else.
        var rest: [UInt8] = []
        /// The level of each SPI that was ever set, for a QEMU that comes later.
        var levels: [UInt32: Bool] = [:]
        var isStopping = false
    }

    private let path: String
    private let controller: String
    private let logger: Logger
    private let state = Mutex(State())
    private let wake: WakeEvent
    private let thread = Mutex<SystemThread.Handle?>(nil)

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
        say { state in
            state.levels[number] = isAsserted
            return [interruptLine(number, isAsserted)]
        }
    }

    /// One edge of an SPI.
    func pulseInterrupt(_ number: UInt32) {
        guard number < Self.interruptCount else { return }
        say { [interruptLine(number, true), interruptLine(number, $0.levels[number] ?? false)] }
    }

    /// Writes a word at a physical address of the guest: a message to its doorbell.
    func writeWord(_ value: UInt32, at address: UInt64) {
        say { _ in ["writel 0x\(String(address, radix: 16)) 0x\(String(value, radix: 16))\n"] }
    }

    private func interruptLine(_ number: UInt32, _ isAsserted: Bool) -> String {
        "set_irq_in \(controller) unnamed-gpio-in \(number) \(isAsserted ? 1 : 0)\n"
    }

    /// Sends lines, or leaves them to the thread, in the order of the calls.
    private func say(_ make: (inout State) -> [String]) {
        let mustWake = state.withLock { state in
            let lines = make(&state)
            // The first command after a while: the thread has to look for its answer, but not at once.
            let mustWake = state.order.outstanding == 0
            guard let socket = state.order.admit(lines) else { return true }
            let bytes = Array(lines.joined().utf8)
            let sent = Self.sendAtOnce(bytes[...], socket)
            guard sent < bytes.count else { return mustWake }
            // Full, or gone, which is the thread's to find out.
            state.rest = Array(bytes[sent...])
            state.order.close()
            return true
        }
        if mustWake { wake.signal() }
    }

    /// Sends what fits without waiting; returns how many bytes.
    private static func sendAtOnce(_ bytes: ArraySlice<UInt8>, _ socket: CInt) -> Int {
        max(
            0,
            bytes.withUnsafeBytes {
                Glibc.send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL) | CInt(MSG_DONTWAIT))
            }
        )
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

    /// From how many answers on they are taken at once; fewer are worth no wake-up of their own.
    private static let answersWorthReading = 128
    private static let answerDelayMilliseconds: CInt = 20

    /// Sends what there is until QEMU goes away or this stops.
    private func talk(_ socket: CInt) {
        // What waited is told in its order: an edge before QEMU was there must not be lost. The levels that stand
        // come after it, because not every line of them need be among what waited.
        state.withLock { state in
            let levels = state.levels.sorted { $0.key < $1.key }
            state.order.begin(levels.map { interruptLine($0.key, $0.value) })
        }
        // Before the socket is closed nobody may send to it any more; half a line is of no use to the next QEMU.
        defer {
            state.withLock { state in
                state.order.close()
                state.rest = []
            }
        }
        var answers = QtestAnswers()
        var entries = [
            pollfd(fd: socket, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wake.descriptor, events: Int16(POLLIN), revents: 0),
        ]
        while true {
            guard let (bytes, outstanding) = take(for: socket) else { return }
            guard bytes.isEmpty else {
                guard send(bytes, socket) else { return }
                continue
            }
            // Answers are waited for where many are due. Few are taken after a while: nobody waits for them.
            let isDue = outstanding >= Self.answersWorthReading
            entries[0].events = isDue ? Int16(POLLIN) : 0
            entries[1].events = outstanding < QtestOrder.outstandingMax ? Int16(POLLIN) : 0
            let delay = isDue || outstanding == 0 ? -1 : Self.answerDelayMilliseconds
            let count = poll(&entries, 2, delay)
            guard count >= 0 || errno == EINTR else { return }
            if count > 0, entries[1].revents != 0 { wake.reset() }
            if count == 0 || count > 0 && entries[0].revents != 0 {
                guard receive(socket, &answers) else { return }
            }
        }
    }

    /// What the thread is to send now, and how many answers are due with it; nil where it is to stop.
    ///
    /// Where there is nothing to send, anybody may from here on.
    private func take(for socket: CInt) -> (bytes: [UInt8], outstanding: Int)? {
        state.withLock { state in
            guard !state.isStopping else { return nil }
            let bytes = state.rest + Array(state.order.take().joined().utf8)
            state.rest = []
            if bytes.isEmpty { state.order.open(socket) }
            return (bytes, state.order.outstanding)
        }
    }

    private func send(_ bytes: [UInt8], _ socket: CInt) -> Bool {
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

    /// Takes the answers that are there; false at the end.
    private func receive(_ socket: CInt, _ answers: inout QtestAnswers) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = recv(socket, &bytes, bytes.count, CInt(MSG_DONTWAIT))
        guard count > 0 else { return count < 0 && (errno == EINTR || errno == EAGAIN) }
        let (answered, refusals) = answers.take(bytes[..<count])
        state.withLock { $0.order.answer(answered) }
        for refusal in refusals { logger.warning("qtest: QEMU answers \"\(refusal)\"") }
        return true
    }
}

/// Who sends what, so that lines go out in the order in which they were said.
package struct QtestOrder: Sendable {
    /// How many commands may be without an answer.
    package static let outstandingMax = 512
    /// More than a guest that answers at all ever has outstanding.
    package static let lineCountMax = 65536

    /// What waits to be sent by the thread.
    package private(set) var lines: [String] = []
    /// How many commands have no answer yet.
    package private(set) var outstanding = 0
    /// QEMU's socket while lines may be sent to it by anybody: nothing waits, and nothing is being sent by the thread.
    private(set) var idleSocket: CInt?

    /// Nothing waits, and nobody may send yet.
    package init() {}

    /// Where lines are to be sent at once; nil where they wait for the thread.
    package mutating func admit(_ lines: [String]) -> CInt? {
        if let idleSocket, outstanding + lines.count <= Self.outstandingMax {
            outstanding += lines.count
            return idleSocket
        }
        // From the first line that waits on all do, until the thread has sent it: answers may come before it does so.
        close()
        // A QEMU that is stopped takes nothing; what counts when it goes on are the levels, and those are kept.
        if self.lines.count + lines.count <= Self.lineCountMax { self.lines.append(contentsOf: lines) }
        return nil
    }

    /// What the thread is to send now.
    package mutating func take() -> [String] {
        close()
        let count = max(0, min(Self.outstandingMax - outstanding, lines.count))
        defer { lines.removeFirst(count) }
        outstanding += count
        return Array(lines[..<count])
    }

    /// The thread has sent all that it took; anybody may send, unless more waits.
    package mutating func open(_ socket: CInt) {
        idleSocket = lines.isEmpty ? socket : nil
    }

    /// What is said from here on waits for the thread.
    package mutating func close() {
        idleSocket = nil
    }

    /// Another QEMU owes no answers, and is told these lines after all that waits.
    package mutating func begin(_ levels: [String]) {
        lines += levels
        outstanding = 0
    }

    /// Answers came.
    package mutating func answer(_ count: Int) {
        outstanding = max(0, outstanding - count)
    }
}

/// QEMU's answers, line by line.
struct QtestAnswers {
    private var rest: [UInt8] = []

    /// Takes bytes that came.
    ///
    /// - Returns: How many answers, and those that are no success.
    mutating func take(_ bytes: ArraySlice<UInt8>) -> (count: Int, refusals: [String]) {
        var count = 0
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
            count += 1
            if !line.hasPrefix("OK") { refusals.append(line) }
        }
        return (count, refusals)
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
