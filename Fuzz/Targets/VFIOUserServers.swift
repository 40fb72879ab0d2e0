// Fuzzes what serves a vfio-user client: its stream, with descriptors, against a device that interrupts.

import CLinux
import DeviceModel
import Glibc
import HostIO
import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// One connection from its first byte to its last.
///
/// The first byte's lowest bit greets the client beforehand. Records follow: a byte with the length of a piece in its
/// low 6 bits (0 is 16 times the next byte) and a number of descriptors in its high 2, a byte that says of which
/// kinds they are where there are any, and the piece.
func fuzzVFIOUserServer(_ input: inout FuzzInput) {
    let isGreeted = input.next() & 1 != 0
    let stream = ScriptedStream(input.rest, greeting: isGreeted ? greeting : [])
    var configuration = VFIOUserServer.Configuration(name: "fuzz")
    // It would have a thread of its own.
    configuration.limits.offersTwinSocket = false
    configuration.limits.dataByteCountMax = 4096
    let memory = FuzzMemory()
    let connection = ServedConnection(
        stream,
        device: FuzzDevice(),
        memory: memory,
        configuration: configuration
    )
    _ = connection.serve()
    precondition(memory.isEmpty, "memory of a client that is gone")
    stream.checkDescriptors()
}

private let greeting: [UInt8] = {
    let text = #"{"capabilities":{"max_msg_fds":8,"write_multiple":true}}"#
    let size = 16 + 4 + text.utf8.count + 1
    return [9, 0, 1, 0, UInt8(size), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] + text.utf8 + [0]
}()

/// A client made of the fuzzer's bytes.
private final class ScriptedStream: ClientStream {
    private struct State {
        var input: [UInt8]
        var position = 0
        /// What is left of the piece.
        var piece: [UInt8]
        var descriptors: [CInt] = []
        /// Read ends of pipes whose write ends were given away.
        var readEnds: [CInt] = []
    }
    private let state: Mutex<State>

    init(_ bytes: UnsafeRawBufferPointer, greeting: [UInt8]) {
        state = Mutex(State(input: Array(bytes), piece: greeting))
    }

    func receive(into bytes: UnsafeMutableRawBufferPointer, _ descriptors: inout ReceivedDescriptors) -> Int {
        precondition(!bytes.isEmpty, "no room for a byte")
        return state.withLock { state in
            while state.piece.isEmpty {
                guard state.position < state.input.count else { return 0 }
                Self.nextPiece(&state)
            }
            if !state.descriptors.isEmpty {
                var received = ReceivedDescriptors(adopting: state.descriptors)
                state.descriptors = []
                descriptors.replace(with: &received)
            }
            let count = min(bytes.count, state.piece.count)
            bytes.copyBytes(from: state.piece[..<count])
            state.piece.removeFirst(count)
            return count
        }
    }

    /// What is sent is always there already.
    func receiveAtOnce(into bytes: UnsafeMutableRawBufferPointer, _ descriptors: inout ReceivedDescriptors)
        -> Int?
    {
        receive(into: bytes, &descriptors)
    }

    private static func nextPiece(_ state: inout State) {
        func next() -> UInt8 {
            guard state.position < state.input.count else { return 0 }
            defer { state.position += 1 }
            return state.input[state.position]
        }
        let control = next()
        var kinds = control >> 6 > 0 ? next() : 0
        let length = control & 0x3F == 0 ? Int(next()) * 16 : Int(control & 0x3F)
        let end = min(state.input.count, state.position + length)
        state.piece = Array(state.input[state.position..<end])
        state.position = end
        guard !state.piece.isEmpty else { return }
        for _ in 0..<control >> 6 {
            addDescriptor(isEventfd: kinds & 1 != 0, &state)
            kinds >>= 1
        }
    }

    private static func addDescriptor(isEventfd: Bool, _ state: inout State) {
        if isEventfd {
            let descriptor = smmud_eventfd()
            if descriptor >= 0 { state.descriptors.append(descriptor) }
            return
        }
        var ends: [CInt] = [-1, -1]
        guard pipe(&ends) == 0 else { return }
        state.readEnds.append(ends[0])
        state.descriptors.append(ends[1])
    }

    func send(_ bytes: UnsafeRawBufferPointer, lending descriptors: [CInt], until deadline: Deadline) -> Bool
    {
        let message = Array(bytes)
        guard let header = VFIOUserHeader(message) else { preconditionFailure("an answer is short") }
        precondition(Int(header.messageByteCount) == message.count, "an answer is not as long as it says")
        precondition(header.flags.contains(.reply), "an answer is none")
        let isError = header.flags.contains(.error)
        precondition(isError == (header.error != 0), "an error has no number, or a success has one")
        precondition(
            !isError || message.count == 16 && descriptors.isEmpty,
            "an error brings something along"
        )
        for descriptor in descriptors {
            precondition(fcntl(descriptor, F_GETFD) >= 0, "a descriptor that is lent is closed")
        }
        return true
    }

    func abandon() {}

    /// All that was given away is closed: so the pipes say.
    func checkDescriptors() {
        state.withLock { state in
            for descriptor in state.descriptors { close(descriptor) }
            for end in state.readEnds {
                var entry = pollfd(fd: end, events: Int16(POLLIN), revents: 0)
                precondition(poll(&entry, 1, 0) == 1, "a descriptor is left open")
                precondition(entry.revents & Int16(POLLHUP) != 0, "something was written to a pipe")
                close(end)
            }
        }
    }
}

/// Memory of which nothing but the ranges is looked at.
private final class FuzzMemory: VFIOUserMemory {
    private let ranges = Mutex<[VFIOUserMemoryRange]>([])

    var isEmpty: Bool { ranges.withLock { $0.isEmpty } }

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        if case .messages(let remote) = consume source {
            // From the thread that serves the client: refused, and no deadlock.
            var byte: UInt8 = 0
            let wasRead = withUnsafeMutableBytes(of: &byte) { remote.read(at: 0, into: $0) }
            precondition(!wasRead, "a read that nobody answered")
        }
        let isTaken = ranges.withLock { ranges in
            guard ranges.count < 16, !ranges.contains(range) else { return false }
            ranges.append(range)
            return true
        }
        if !isTaken { throw .exists }
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        let isFound = ranges.withLock { ranges in
            let count = ranges.count
            ranges.removeAll { $0.address == address && $0.byteCount == byteCount }
            return ranges.count < count
        }
        if !isFound { throw .noEntry }
    }

    func unmapAll() { ranges.withLock { $0 = [] } }
}

/// A device whose writes are interrupts.
private final class FuzzDevice: VFIOUserDevice {
    private let interrupts = Mutex<(any VFIOUserInterrupts)?>(nil)

    let description = VFIOUserDeviceDescription.pci(
        regions: [
            .bar(0): VFIOUserRegionDescription(size: 0x100),
            .bar(1): VFIOUserRegionDescription(
                size: 0x2000,
                mapping: .init(areas: [VFIOUserMappableArea(offset: 0x1000, size: 0x1000)])
            ),
            .bar(2): VFIOUserRegionDescription(
                size: 0x20,
                ioEvents: (0..<3).map {
                    VFIOUserIOEvent(offset: $0 * 8, size: 4, descriptorIndex: UInt32($0))
                }
            ),
            .rom: VFIOUserRegionDescription(size: 16, isWritable: false),
            .configuration: VFIOUserRegionDescription(size: 4096),
        ],
        interrupts: [
            .intx: .intx, .msi: VFIOUserInterruptDescription(count: 4),
            .msix: VFIOUserInterruptDescription(count: 64), .error: VFIOUserInterruptDescription(count: 1),
            .request: VFIOUserInterruptDescription(count: 1),
        ]
    )

    func clientAttached(_ interrupts: any VFIOUserInterrupts) { self.interrupts.withLock { $0 = interrupts } }
    func clientDetached() { interrupts.withLock { $0 = nil } }

    func readRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        into buffer: UnsafeMutableRawBufferPointer
    ) throws(VFIOUserError) {
        check(region, offset, buffer.count)
        if offset == 0x80 { throw .inputOutput }
        for index in buffer.indices { buffer[index] = UInt8(truncatingIfNeeded: index) }
    }

    func writeRegion(_ region: VFIOUserRegionIndex, at offset: UInt64, _ buffer: UnsafeRawBufferPointer)
        throws(VFIOUserError)
    {
        check(region, offset, buffer.count)
        if offset == 0x80 { throw .inputOutput }
        let value = Int(buffer[0])
        guard let interrupts = interrupts.withLock({ $0 }) else { return }
        switch offset {
        case 0: interrupts.setINTx(value & 1 != 0)
        case 4: interrupts.signal(.msi, vector: value)
        case 8: interrupts.signal(.msix, vector: value)
        default: interrupts.signal(VFIOUserInterruptIndex(rawValue: UInt32(value)), vector: 0)
        }
    }

    /// What comes here has been checked against the description.
    private func check(_ region: VFIOUserRegionIndex, _ offset: UInt64, _ byteCount: Int) {
        let size = description.regions[Int(region.rawValue)].size
        precondition(byteCount > 0 && offset <= size && UInt64(byteCount) <= size - offset, "out of bounds")
    }

    func interruptsChanged(_ index: VFIOUserInterruptIndex, boundVectors: Int) {}
    func reset() {}

    func stopsDMA(byWriting buffer: UnsafeRawBufferPointer, to region: VFIOUserRegionIndex, at offset: UInt64)
        -> Bool
    {
        offset == 0x10
    }

    func regionDescriptor(_ region: VFIOUserRegionIndex) -> CInt? { STDIN_FILENO }
}
