// A function with a small DMA engine behind our own vfio-user server: what a foreign device is taken in from.

import AddressSpace
import DeviceModel
import HostIO
import PCIFunction
import Synchronization

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
    private let memory: LentMemory

    init(_ memory: LentMemory) { self.memory = memory }

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

/// The engine at a socket.
final class EngineServer: Sendable {
    private let server: FunctionServer

    var path: String { server.path }
    var memory: LentMemory { server.memory }

    init(messagesByMemory: Bool = false) throws {
        server = try FunctionServer(messagesByMemory: messagesByMemory) { memory in
            let engine = Engine(memory)
            let description = PCIFunctionDescription(
                identity: PCIIdentity(vendorID: 0x1234, deviceID: 0x11e8, classCode: 0x00ff00),
                bars: [
                    PCIBAR(index: 0, byteCount: 0x1000),
                    PCIBAR(index: 2, byteCount: 0x1000, space: .memory64),
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
            let function = PCIFunction(name: "engine", description, model: engine) { LentPort(memory) }
            engine.attach(function)
            return function
        }
    }

    /// Sets the level that the engine wants of its pin.
    func setPin(_ isAsserted: Bool) { server.function.setINTx(isAsserted) }

    /// Ends it, as the end of its process would.
    func stop() { server.stop() }
}
