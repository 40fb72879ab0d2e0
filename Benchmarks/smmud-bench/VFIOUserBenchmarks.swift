// A register of a PCIe function over vfio-user, against a bare socket that carries the same bytes.

import AddressSpace
import DeviceModel
import Glibc
import HostIO
import Logging
import PCIFunction
import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// MSG_WAITALL, whose type depends on which module brings it along.
private let waitForAll: CInt = 0x100

/// A function with one register, at a socket of its own, and a client that has been greeted.
private final class ServedRegister {
    let socket: CInt
    private let server: VFIOUserServer

    private final class Model: PCIFunctionModel {
        private let register = Atomic<UInt64>(0)

        func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
            -> UInt64
        {
            register.load(ordering: .relaxed)
        }
        func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
            throws(RegisterAccessError)
        { register.store(value, ordering: .relaxed) }
        func reset() {}
    }

    /// No memory: the model issues no DMA.
    private final class NoPort: DMAPort {
        private func fault(_ address: IOVirtualAddress) -> DMAFault {
            DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
        }
        func read(
            at address: IOVirtualAddress,
            into buffer: UnsafeMutableRawBufferPointer,
            _ attributes: TransactionAttributes
        ) throws(DMAFault) { throw fault(address) }
        func write(
            _ buffer: UnsafeRawBufferPointer,
            at address: IOVirtualAddress,
            _ attributes: TransactionAttributes
        ) throws(DMAFault) { throw fault(address) }
        func lend(
            _ ranges: [DMARange],
            for direction: DMADirection,
            _ attributes: TransactionAttributes,
            _ body: (UnsafeBufferPointer<iovec>) -> Void
        ) throws(DMAFault) -> Bool { false }

        func rest() {}
    }

    private final class NoMemory: VFIOUserMemory {
        func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource)
            throws(VFIOUserError)
        { throw .noSpace }
        func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) { throw .noEntry }
        func unmapAll() {}
    }

    init() throws {
        let function = PCIFunction(
            name: "bench",
            PCIFunctionDescription(
                identity: PCIIdentity(vendorID: 0x1b36, deviceID: 1, classCode: 0xff_0000),
                bars: [PCIBAR(index: 0, byteCount: 4096)]
            ),
            model: Model(),
            makePort: { NoPort() }
        )
        let path = "/tmp/smmud-bench-\(getpid())-vfio.sock"
        server = try VFIOUserServer(
            VFIOUserServer.Configuration(name: "bench"),
            device: PCIFunctionDevice(function),
            listener: UnixListener(path: path),
            logger: Logger(label: "bench") { _ in SwiftLogNoOpLogHandler() }
        ) { NoMemory() }
        try server.start()
        socket = try VFIOUserMessage.greet(path)
    }

    deinit {
        close(socket)
        server.stop()
    }
}

/// Messages of a vfio-user client, byte by byte.
enum VFIOUserMessage {
    /// A command with its payload.
    static func command(_ number: UInt8, _ payload: [UInt8]) -> [UInt8] {
        [1, 0, number, 0, UInt8(16 + payload.count), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] + payload
    }

    /// REGION_READ or REGION_WRITE, 4 bytes at offset 0 of region 0.
    static func region(_ number: UInt8, _ bytes: [UInt8] = []) -> [UInt8] {
        command(number, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0] + bytes)
    }

    static let read = region(9)
    static let readAnswerByteCount = 36

    /// Connects to a server and exchanges VERSION with it.
    static func greet(_ path: String) throws -> CInt {
        let socket = try BareServer.connect(path)
        // VERSION of no text, whose answer is as long as its header says.
        let greeting = command(1, [0, 0, 0, 0])
        var head = [UInt8](repeating: 0, count: 16)
        guard send(socket, greeting, greeting.count, 0) == greeting.count,
            recv(socket, &head, 16, waitForAll) == 16
        else { throw SocketBenchmarkError(description: "no answer to VERSION") }
        var rest = [UInt8](repeating: 0, count: Int(head[4]) - 16)
        _ = recv(socket, &rest, rest.count, waitForAll)
        return socket
    }
}

/// A register of a function that a daemon offers.
final class OfferedRegister {
    private let daemon: RunningDaemon
    private let socket: CInt

    init(_ board: ServedBoard) throws {
        daemon = try RunningDaemon(board)
        socket = try VFIOUserMessage.greet(daemon.enginePath)
    }

    deinit { close(socket) }

    func read(_ count: Int) throws {
        for _ in 0..<count {
            try BareServer.exchange(
                socket,
                VFIOUserMessage.read,
                answerByteCount: VFIOUserMessage.readAnswerByteCount
            )
        }
    }
}

/// One command after the other, each with its answer, against bare exchanges of as many bytes.
private func roundTrips(_ message: [UInt8], answerByteCount: Int) throws -> (
    subject: (Int) throws -> Void, floor: (Int) throws -> Void
) {
    // The server's thread takes after who starts it.
    let cpus = Affinity.one()
    let register = try ServedRegister()
    let bare = try BareServer(requestByteCount: message.count, answerByteCount: answerByteCount)
    func run(_ socket: CInt, _ count: Int) throws {
        for _ in 0..<count {
            try BareServer.exchange(socket, message, answerByteCount: answerByteCount)
        }
    }
    return (
        { count in try withExtendedLifetime(cpus) { try run(register.socket, count) } },
        { try run(bare.socket, $0) }
    )
}

var vfioUserBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "vfio-user-read",
            subject: "REGION_READ of 4 B, a register of a function",
            floor: "a bare socket, same bytes, one CPU",
            prepare: {
                try roundTrips(
                    VFIOUserMessage.read,
                    answerByteCount: VFIOUserMessage.readAnswerByteCount
                )
            }
        ),
        Benchmark(
            name: "vfio-user-write",
            subject: "REGION_WRITE of 4 B, a register of a function",
            floor: "a bare socket, same bytes, one CPU",
            prepare: {
                try roundTrips(VFIOUserMessage.region(10, [1, 2, 3, 4]), answerByteCount: 32)
            }
        ),
    ]
}
