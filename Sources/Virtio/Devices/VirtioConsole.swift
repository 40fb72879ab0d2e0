// A console (section 5.3): one port, without VIRTIO_CONSOLE_F_MULTIPORT.

import AddressSpace
package import DeviceModel
import Glibc
import Synchronization

extension VirtioFeatures {
    /// VIRTIO_CONSOLE_F_SIZE.
    package static let consoleSize = Self(bit: 0)
    /// VIRTIO_CONSOLE_F_EMERG_WRITE.
    package static let consoleEmergencyWrite = Self(bit: 2)
}

/// A virtio console: bytes between port 0's two queues and the host.
package final class VirtioConsole: VirtioDevice {
    package let type = VirtioDeviceType.console
    package let features: VirtioFeatures = [.consoleSize, .consoleEmergencyWrite]
    /// Port 0's receive queue, then its transmit queue.
    package let queueSizesMax: [UInt16] = [256, 256]
    package let threadQueues = [[0, 1]]
    package let statistics = VirtioStatistics()
    let backend: any ConsoleBackend

    private struct State {
        var columns: UInt16
        var rows: UInt16
        var listener: (@Sendable () -> Void)?
    }
    private let state: Mutex<State>

    package init(backend: any ConsoleBackend, columns: UInt16 = 80, rows: UInt16 = 25) {
        self.backend = backend
        state = Mutex(State(columns: columns, rows: rows))
    }

    /// struct virtio_console_config: cols (2), rows (2), max_nr_ports (4), emerg_wr (4).
    package var configuration: [UInt8] {
        let (columns, rows) = state.withLock { ($0.columns, $0.rows) }
        return [
            UInt8(truncatingIfNeeded: columns), UInt8(truncatingIfNeeded: columns >> 8),
            UInt8(truncatingIfNeeded: rows), UInt8(truncatingIfNeeded: rows >> 8), 1, 0, 0, 0, 0, 0, 0, 0,
        ]
    }

    /// emerg_wr, at offset 8: a byte goes out at once, without a queue, before DRIVER_OK too.
    package func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {
        guard offset == 8 else { return }
        var byte = UInt8(truncatingIfNeeded: value)
        let sent = withUnsafeBytes(of: &byte) { backend.send($0) }
        statistics.countRequest(fromDriver: sent ?? 0)
    }

    package func connect(_ listener: @escaping @Sendable () -> Void) {
        state.withLock { $0.listener = listener }
    }

    /// The terminal on the host's side has another size now.
    package func resize(columns: UInt16, rows: UInt16) {
        let listener = state.withLock { state in
            state.columns = columns
            state.rows = rows
            return state.listener
        }
        listener?()
    }

    package func makeWorker(_ thread: Int) -> any VirtioWorker { ConsoleWorker(self) }
}

private final class ConsoleWorker: VirtioWorker {
    private let device: VirtioConsole
    private let backend: any ConsoleBackend
    private var received = DescriptorChain()
    private var sending = DescriptorChain()
    /// Whether `sending` holds a chain of which bytes are left, and how many of it are gone.
    private var sent: Int?
    private var sendingActivation: UInt64 = 0
    /// Input that waits for a buffer.
    private var input: [UInt8] = []
    private var isInputWanted = false
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 16)

    init(_ device: VirtioConsole) {
        self.device = device
        backend = device.backend
    }

    deinit { buffer.deallocate() }

    var pollEntries: [pollfd] { backend.pollEntries(reading: isInputWanted, writing: sent != nil) }

    func serve(_ queues: [VirtioQueue?]) throws(VirtqueueError) {
        backend.prepare()
        if let queue = queues[1] { try transmit(queue) } else { sent = nil }
        isInputWanted = false
        if let queue = queues[0] { try receive(queue) }
    }

    // MARK: To the host

    private func transmit(_ queue: VirtioQueue) throws(VirtqueueError) {
        if sendingActivation != queue.activation {
            sent = nil
            sendingActivation = queue.activation
        }
        repeat {
            try queue.disarm()
            while try takeNext(queue) {
                guard try drainChain(queue) else {
                    // The host takes no more for now: poll(2) says when it does.
                    try queue.publish()
                    return
                }
                try queue.complete(sending, writtenByteCount: 0)
                sent = nil
            }
            try queue.publish()
        } while try queue.arm()
    }

    /// Whether there is a chain that is sent: the one of which a part has gone, or the next.
    private func takeNext(_ queue: VirtioQueue) throws(VirtqueueError) -> Bool {
        guard sent == nil else { return true }
        guard try queue.next(&sending) else { return false }
        sent = 0
        return true
    }

    /// Sends what is left of a chain; false where the host takes no more.
    private func drainChain(_ queue: VirtioQueue) throws(VirtqueueError) -> Bool {
        var place = sent ?? 0
        defer { if sent != nil { sent = place } }
        while place < sending.readableByteCount {
            let count = min(buffer.count, sending.readableByteCount - place)
            let piece = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
            do throws(DMAFault) {
                _ = try queue.port.gather(sending.readable, from: place, into: piece)
            } catch {
                throw queue.failed(error)
            }
            guard let taken = backend.send(UnsafeRawBufferPointer(piece)) else {
                // Nobody is there to read: what is printed is gone, as on a line that is not plugged in.
                device.statistics.countDrop()
                break
            }
            guard taken > 0 else { return false }
            place += taken
        }
        device.statistics.countRequest(fromDriver: sending.readableByteCount)
        return true
    }

    // MARK: From the host

    private func receive(_ queue: VirtioQueue) throws(VirtqueueError) {
        repeat {
            try queue.disarm()
            while true {
                if input.isEmpty {
                    guard let count = backend.receive(buffer), count > 0 else {
                        isInputWanted = true
                        break
                    }
                    input = Array(buffer[..<count])
                }
                guard try queue.next(&received) else { break }
                let written = try input.withUnsafeBytesThrowing { (bytes) throws(VirtqueueError) in
                    try queue.write(bytes, to: self.received, from: 0)
                }
                try queue.complete(received, writtenByteCount: written)
                device.statistics.countRequest(toDriver: written)
                input.removeFirst(written)
            }
            try queue.publish()
            // While there is no input nobody waits for buffers.
            guard !input.isEmpty else { return }
        } while try queue.arm()
    }
}

extension [UInt8] {
    /// `withUnsafeBytes`, for a body that throws what queues throw.
    func withUnsafeBytesThrowing<Value>(
        _ body: (UnsafeRawBufferPointer) throws(VirtqueueError) -> Value
    ) throws(VirtqueueError) -> Value {
        let result: Result<Value, VirtqueueError> = withUnsafeBytes { bytes in
            do throws(VirtqueueError) { return .success(try body(bytes)) } catch { return .failure(error) }
        }
        return try result.get()
    }
}
