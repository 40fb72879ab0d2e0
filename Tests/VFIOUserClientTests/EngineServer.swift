// A function with a small DMA engine behind our own vfio-user server: what a foreign device is taken in from.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import HostIO
import Logging
import PCIFunction
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// The engine's registers in BAR 0.
enum EngineRegister {
    /// A word to keep, 64 bits.
    static let scratch: UInt64 = 0x00
    static let address: UInt64 = 0x08
    /// 1 reads 8 bytes at the address into ``result``, 2 writes the scratch there; reads as how many were done.
    static let start: UInt64 = 0x10
    static let result: UInt64 = 0x18
    /// Whether the last DMA failed.
    static let fault: UInt64 = 0x20
    /// Signals the vector that is written.
    static let signal: UInt64 = 0x30
    /// Sets the pin's level.
    static let pin: UInt64 = 0x38
    /// How often it was reset.
    static let resets: UInt64 = 0x40
}

/// The device's model: DMA on a thread of its own, as its registers must not wait.
final class Engine: PCIFunctionModel {
    private struct State: Sendable {
        var scratch: UInt64 = 0
        var address: UInt64 = 0
        var result: UInt64 = 0
        var fault: UInt64 = 0
        var done: UInt64 = 0
        var resets: UInt64 = 0
        weak var function: PCIFunction?
    }
    private let state = Mutex(State())
    let memory = EngineMemory()

    func attach(_ function: PCIFunction) { state.withLock { $0.function = function } }

    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard index == 0 else { throw .noSuchRegister }
        return try state.withLock { (state) throws(RegisterAccessError) in
            switch offset {
            case EngineRegister.scratch: state.scratch & width.allOnes
            case EngineRegister.scratch + 4 where width == .word: state.scratch >> 32
            case EngineRegister.start: state.done
            case EngineRegister.result: state.result
            case EngineRegister.fault: state.fault
            case EngineRegister.resets: state.resets
            default: throw .noSuchRegister
            }
        }
    }

    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard index == 0 else { throw .noSuchRegister }
        let function = state.withLock { $0.function }
        switch offset {
        case EngineRegister.scratch: state.withLock { $0.scratch = value }
        case EngineRegister.address: state.withLock { $0.address = value }
        case EngineRegister.start: start(value)
        case EngineRegister.signal: function?.signal(vector: Int(value))
        case EngineRegister.pin: function?.setINTx(value != 0)
        default: throw .noSuchRegister
        }
    }

    private func start(_ command: UInt64) {
        let (address, scratch) = state.withLock { ($0.address, $0.scratch) }
        _ = try? SystemThread.start(named: "engine") { [self] in
            var word = scratch
            let isDone = withUnsafeMutableBytes(of: &word) { bytes in
                command == 1
                    ? memory.access(address, bytes, isWrite: false)
                    : memory.access(address, bytes, isWrite: true)
            }
            state.withLock { state in
                if command == 1 { state.result = isDone ? word : UInt64.max }
                state.fault = isDone ? 0 : 1
                state.done += 1
            }
        }
    }

    func reset() {
        state.withLock { state in
            state.scratch = 0
            state.resets += 1
        }
    }
}

/// What a client lends to the engine.
final class EngineMemory: VFIOUserMemory {
    private enum Source: Sendable {
        case region(MemoryRegion)
        case messages(any RemoteMemory)
    }
    private let ranges = Mutex<[VFIOUserMemoryRange: Source]>([:])

    /// What is mapped, in the order of addresses: whether by descriptor.
    var mapped: [(VFIOUserMemoryRange, byDescriptor: Bool)] {
        ranges.withLock { ranges in
            ranges.sorted { $0.key.address < $1.key.address }.map { range, source in
                if case .region = source { return (range, true) }
                return (range, false)
            }
        }
    }

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        let kept: Source
        switch consume source {
        case .descriptor(let descriptor, let offset):
            do throws(GuestMemoryError) {
                kept = .region(
                    try MemoryRegion.mapping(
                        descriptor,
                        offset: offset,
                        byteCount: range.byteCount,
                        isWritable: range.isWritable
                    )
                )
            } catch {
                throw .invalid
            }
        case .messages(let memory): kept = .messages(memory)
        }
        ranges.withLock { $0[range] = kept }
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        let isThere = ranges.withLock { ranges in
            guard let range = ranges.keys.first(where: { $0.address == address && $0.byteCount == byteCount })
            else { return false }
            ranges[range] = nil
            return true
        }
        if !isThere { throw .noEntry }
    }

    func unmapAll() { ranges.withLock { $0 = [:] } }

    func access(_ address: UInt64, _ bytes: UnsafeMutableRawBufferPointer, isWrite: Bool) -> Bool {
        let found = ranges.withLock { ranges in
            ranges.first { address >= $0.key.address && address - $0.key.address < $0.key.byteCount }
        }
        guard let (range, source) = found else { return false }
        let offset = address - range.address
        switch source {
        case .messages(let memory):
            return isWrite
                ? memory.write(UnsafeRawBufferPointer(bytes), at: offset)
                : memory.read(at: offset, into: bytes)
        case .region(let region):
            guard
                let pointer = try? region.pointer(
                    at: offset,
                    count: UInt64(bytes.count),
                    for: isWrite ? .write : .read
                )
            else { return false }
            if isWrite {
                pointer.copyMemory(
                    from: UnsafeRawPointer(bytes.baseAddress ?? pointer),
                    byteCount: bytes.count
                )
            } else {
                bytes.copyMemory(from: UnsafeRawBufferPointer(start: pointer, count: bytes.count))
            }
            return true
        }
    }
}

/// The engine at a socket.
final class EngineServer: Sendable {
    let engine = Engine()
    let path: String
    private let server: VFIOUserServer
    private let function: PCIFunction
    private static let count = Atomic(0)

    init(messagesByMemory: Bool = false) throws {
        let number = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
        path = "/tmp/vfu-engine-\(getpid())-\(number).sock"
        let description = PCIFunctionDescription(
            identity: PCIIdentity(vendorID: 0x1234, deviceID: 0x11e8, classCode: 0x00ff00),
            bars: [
                PCIBAR(index: 0, byteCount: 0x1000), PCIBAR(index: 2, byteCount: 0x1000, space: .memory64),
            ],
            capabilities: [
                .express(.endpoint), .msi(vectorCount: 4),
                .vendor([6, 0xaa, 0xbb, 0xcc], writable: [0, 0xff]),
                .msix(
                    PCIMSIXLayout(
                        vectorCount: 8,
                        tableBAR: 2,
                        tableOffset: 0,
                        pendingBAR: 2,
                        pendingOffset: 0x800
                    )
                ),
            ]
        )
        function = PCIFunction(name: "engine", description, model: engine) { NoPort() }
        engine.attach(function)
        let engine = engine
        server = try VFIOUserServer(
            VFIOUserServer.Configuration(name: "engine"),
            device: PCIFunctionDevice(function, messagesByMemory: messagesByMemory),
            listener: UnixListener(path: path),
            logger: Logger(label: "engine") { _ in SwiftLogNoOpLogHandler() },
            makeMemory: { engine.memory }
        )
        try server.start()
    }

    /// Sets the level that the engine wants of its pin.
    func setPin(_ isAsserted: Bool) { function.setINTx(isAsserted) }

    /// Ends it, as the end of its process would.
    func stop() { server.stop() }

    deinit { server.stop() }
}

/// Memory in which nothing is: the engine's messages go by eventfd.
private final class NoPort: DMAPort {
    func read(at address: IOVirtualAddress, into _: UnsafeMutableRawBufferPointer, _: TransactionAttributes)
        throws(DMAFault)
    {
        throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
    }
    func write(_: UnsafeRawBufferPointer, at address: IOVirtualAddress, _: TransactionAttributes)
        throws(DMAFault)
    {
        throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
    }
    func lend(
        _: [DMARange],
        for _: DMADirection,
        _: TransactionAttributes,
        _: (UnsafeBufferPointer<iovec>) -> Void
    ) -> Bool { false }
}
