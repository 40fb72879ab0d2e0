// What the tests of functions are built of: a model that records, memory that records, a host that records.

import AddressSpace
import DeviceModel
import Glibc
import PCIFunction
import Synchronization
import Testing

/// Registers of 64 KiB in each BAR, and what happened to the model.
final class RecordingModel: PCIFunctionModel {
    struct State {
        var registers: [UInt64: UInt64] = [:]
        var resets = 0
        var changes = 0
        var liveReads: [Int] = []
        var liveWrites: [Int] = []
        var liveAnswer: UInt32?
    }
    let state = Mutex(State())

    var resets: Int { state.withLock { $0.resets } }
    var changes: Int { state.withLock { $0.changes } }

    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard offset < 0x1_0000 else { throw .noSuchRegister }
        return state.withLock { $0.registers[UInt64(index) << 32 | offset] ?? 0 }
    }

    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard offset < 0x1_0000 else { throw .noSuchRegister }
        state.withLock { $0.registers[UInt64(index) << 32 | offset] = value }
    }

    func reset() { state.withLock { $0.resets += 1 } }
    func configurationChanged() { state.withLock { $0.changes += 1 } }

    func readLiveCapability(at offset: Int, byteCount: Int) -> UInt32? {
        state.withLock { state in
            state.liveReads.append(offset)
            return state.liveAnswer
        }
    }

    func liveCapabilityWritten(at offset: Int, byteCount: Int) {
        state.withLock { $0.liveWrites.append(offset) }
    }
}

/// One write that reached memory.
struct SeenWrite: Equatable, Sendable {
    var address: UInt64
    var bytes: [UInt8]

    /// A message: 4 bytes, little-endian.
    static func message(_ address: UInt64, _ data: UInt32) -> Self {
        Self(address: address, bytes: (0..<4).map { UInt8(truncatingIfNeeded: data >> (8 * $0)) })
    }
}

/// Memory that notes what is written to it, and reads as zeros.
final class RecordingMemory: Sendable {
    private let writes = Mutex<[SeenWrite]>([])
    /// Called with each write, without a lock.
    let reaction = Mutex<(@Sendable (SeenWrite) -> Void)?>(nil)

    /// What was written since the last question.
    func taken() -> [SeenWrite] {
        writes.withLock { writes in
            defer { writes = [] }
            return writes
        }
    }

    fileprivate func note(_ write: SeenWrite) {
        writes.withLock { $0.append(write) }
        reaction.withLock { $0 }?(write)
    }

    func makePort() -> any DMAPort { Port(self) }

    private final class Port: DMAPort {
        private let memory: RecordingMemory
        init(_ memory: RecordingMemory) { self.memory = memory }

        func read(
            at address: IOVirtualAddress,
            into buffer: UnsafeMutableRawBufferPointer,
            _ attributes: TransactionAttributes
        ) throws(DMAFault) {
            buffer.initializeMemory(as: UInt8.self, repeating: 0)
        }

        func write(
            _ buffer: UnsafeRawBufferPointer,
            at address: IOVirtualAddress,
            _ attributes: TransactionAttributes
        ) throws(DMAFault) {
            memory.note(SeenWrite(address: address.rawValue, bytes: Array(buffer)))
        }

        func lend(
            _ ranges: [DMARange],
            for direction: DMADirection,
            _ attributes: TransactionAttributes,
            _ body: (UnsafeBufferPointer<iovec>) -> Void
        ) throws(DMAFault) -> Bool { false }

        func rest() {}
    }
}

/// Notes what a function tells its host.
final class RecordingHost: PCIFunctionHost {
    struct State {
        var pin = false
        var pinChanges = 0
        var configurationChanges = 0
        var signals: [(Int, PCIInterruptMode)] = []
    }
    let state = Mutex(State())

    var pin: Bool { state.withLock { $0.pin } }
    var configurationChanges: Int { state.withLock { $0.configurationChanges } }

    func setINTx(_ isAsserted: Bool, of function: PCIFunction) {
        state.withLock { state in
            state.pin = isAsserted
            state.pinChanges += 1
        }
    }

    func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction) {
        state.withLock { $0.signals.append((vector, mode)) }
    }

    func configurationChanged(of function: PCIFunction) { state.withLock { $0.configurationChanges += 1 } }
}

/// A function with all that it stands between.
struct Fixture {
    let model = RecordingModel()
    let memory = RecordingMemory()
    let host = RecordingHost()
    let function: PCIFunction

    static let identity = PCIIdentity(
        vendorID: 0x1234,
        deviceID: 0x5678,
        subsystemVendorID: 0xCAFE,
        subsystemID: 0xBEEF,
        classCode: 0x010802,
        revisionID: 0x07
    )

    init(bars: [PCIBAR] = [], _ capabilities: [PCICapability] = [], interruptPin: UInt8 = 2) {
        let memory = memory
        function = PCIFunction(
            name: "test",
            PCIFunctionDescription(
                identity: Self.identity,
                bars: bars,
                capabilities: capabilities,
                interruptPin: interruptPin
            ),
            model: model
        ) { memory.makePort() }
        function.connect(host)
    }

    func read(_ offset: Int, _ byteCount: Int = 4) -> UInt32 {
        function.readConfiguration(at: offset, byteCount: byteCount)
    }

    func write(_ value: UInt32, _ offset: Int, _ byteCount: Int = 4) {
        function.writeConfiguration(value, at: offset, byteCount: byteCount)
    }

    /// Command: Memory Space Enable and Bus Master Enable.
    func enable() { write(0x0006, 0x04, 2) }
}

/// The function's registers as dwords by offset: those that are not 0.
func nonzeroWords(_ count: Int = 4096, _ read: (Int) -> UInt32) -> [Int: UInt32] {
    var words: [Int: UInt32] = [:]
    for offset in stride(from: 0, to: count, by: 4) {
        let word = read(offset)
        if word != 0 { words[offset] = word }
    }
    return words
}
