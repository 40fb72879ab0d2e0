// A scripted SMMU and its RAM: registers that acknowledge, a command queue that is consumed and recorded. It
// translates nothing; every layout that it reads is spelled out here by hand.

import AddressSpace
import DeviceModel
import Synchronization

@testable import IOMMU

/// One command as the driver wrote it.
struct RawCommand: Equatable, CustomStringConvertible {
    var low: UInt64
    var high: UInt64

    init(_ low: UInt64, _ high: UInt64) {
        self.low = low
        self.high = high
    }

    /// CMD_SYNC with CS = SEV, MSH = Inner Shareable, MSIAttr = write-back.
    static let sync = RawCommand(0x0FC0_2046, 0)

    var description: String { "(0x\(String(low, radix: 16)), 0x\(String(high, radix: 16)))" }
}

/// What hardware reads and writes, at 0x905_0000, and RAM from 0x4000_0000 on.
final class FakeSMMU: PhysicalAccess {
    static let registerBase: UInt64 = 0x905_0000
    static let ramBase: UInt64 = 0x4000_0000
    static let ramByteCount: UInt64 = 64 << 20

    /// What it does out of the ordinary.
    struct Script {
        /// Opcodes for which the queue stops with CERROR_ILL.
        var illegalOpcodes: Set<UInt8> = []
        /// CMDQ_CONS does not move.
        var isQueueHung = false
        /// CR0ACK does not follow CR0.
        var ignoresCR0 = false
        /// IRQ_CTRLACK does not follow IRQ_CTRL.
        var ignoresIRQCtrl = false
        /// GBPA.Update stays.
        var ignoresGBPA = false
        /// Commands are consumed only when ``FakeSMMU/runCommands()`` is called.
        var consumesByHand = false
    }

    private struct State {
        var registers: [UInt64: UInt32] = [:]
        var ram: [UInt64: UInt64] = [:]
        var commands: [RawCommand] = []
        var script = Script()
        /// Lines to pulse once the lock is let go.
        var gerrorPulses = 0
        var stores: [(address: UInt64, value: UInt64)] = []
    }
    private let state: Mutex<State>
    let eventqLine = FakeSMMU.line("eventq", 106)
    let gerrorLine = FakeSMMU.line("gerror", 109)

    /// - Parameter identification: IDR0, IDR1, IDR3, IDR5, IIDR and AIDR by offset.
    init(_ identification: [UInt64: UInt32] = FakeSMMU.identification) {
        var state = State()
        state.registers = identification
        self.state = Mutex(state)
    }

    /// Stage 1, AArch64 tables, coherent, 16-bit ASIDs and VMIDs, 2-level CD and stream tables, little-endian, no
    /// stalls; 16 bits of StreamID, 2^19 commands and events; RIL; 44 bits of physical address, all granules.
    static let identification: [UInt64: UInt32] = [
        0x0: 0x094C_101A, 0x4: 0x0273_0010, 0xC: 0x400, 0x14: 0x74, 0x18: 0, 0x1C: 2,
    ]

    private static func line(_ label: String, _ number: UInt32) -> InterruptLine {
        InterruptLine(
            identity: InterruptIdentity(
                controller: "/intc",
                specifier: [0, number - 32, 1],
                interruptID: number,
                trigger: .edgeRising
            ),
            label: label
        )
    }

    // MARK: For tests

    func script(_ change: (inout Script) -> Void) { state.withLock { change(&$0.script) } }

    /// The commands consumed since the last call.
    func takeCommands() -> [RawCommand] {
        state.withLock { state in
            defer { state.commands = [] }
            return state.commands
        }
    }

    /// The RAM stores of 64 bits since the last call.
    func takeStores() -> [(address: UInt64, value: UInt64)] {
        state.withLock { state in
            defer { state.stores = [] }
            return state.stores
        }
    }

    func register(_ offset: UInt64) -> UInt32 { state.withLock { $0.registers[offset] ?? 0 } }

    func setRegister(_ offset: UInt64, _ value: UInt32) { state.withLock { $0.registers[offset] = value } }

    func word(_ address: UInt64) -> UInt64 { state.withLock { $0.ram[address] ?? 0 } }

    func words(_ address: UInt64, _ count: Int = 8) -> [UInt64] {
        (0..<count).map { word(address + UInt64($0) * 8) }
    }

    func runCommands() { mutate { state in consume(&state) } }

    /// Records an event as hardware does: record, EVENTQ_PROD, interrupt.
    ///
    /// Full queues lose it and flip OVFLG.
    func post(_ record: [UInt64]) {
        let isWritten = state.withLock { state -> Bool in
            let log2 = (state.registers[0xA0] ?? 0) & 0x1F
            let mask = (UInt32(2) << log2) - 1
            let producer = state.registers[0x100A8] ?? 0
            let consumer = state.registers[0x100AC] ?? 0
            if (producer ^ consumer) & mask == 1 << log2 {
                if (producer ^ consumer) >> 31 == 0 { state.registers[0x100A8] = producer ^ 1 << 31 }
                return false
            }
            let slot = UInt64(producer & (mask >> 1))
            let base = register64(state, 0xA0) & 0x000F_FFFF_FFFF_FFE0 & ~((UInt64(32) << UInt64(log2)) - 1)
            for (index, word) in record.enumerated() {
                state.ram[base + slot * 32 + UInt64(index) * 8] = word
            }
            state.registers[0x100A8] = (producer & 1 << 31) | (producer + 1) & mask
            return true
        }
        if isWritten { eventqLine.pulse() }
    }

    /// Activates global errors.
    func raise(_ bits: UInt32) {
        mutate { state in
            state.registers[0x60] = (state.registers[0x60] ?? 0) ^ bits
            state.gerrorPulses += 1
        }
    }

    // MARK: Hardware

    private func mutate(_ body: (inout State) -> Void) {
        let pulses = state.withLock { state in
            body(&state)
            defer { state.gerrorPulses = 0 }
            return state.gerrorPulses
        }
        for _ in 0..<pulses { gerrorLine.pulse() }
    }

    private func register64(_ state: State, _ offset: UInt64) -> UInt64 {
        UInt64(state.registers[offset] ?? 0) | UInt64(state.registers[offset + 4] ?? 0) << 32
    }

    private func consume(_ state: inout State) {
        guard (state.registers[0x20] ?? 0) & 8 != 0, !state.script.isQueueHung else { return }
        let log2 = (state.registers[0x90] ?? 0) & 0x1F
        let mask = (UInt32(2) << log2) - 1
        let base = register64(state, 0x90) & 0x000F_FFFF_FFFF_FFE0 & ~((UInt64(16) << UInt64(log2)) - 1)
        while ((state.registers[0x60] ?? 0) ^ (state.registers[0x64] ?? 0)) & 1 == 0 {
            let producer = (state.registers[0x98] ?? 0) & mask
            let consumer = (state.registers[0x9C] ?? 0) & mask
            guard producer != consumer else { return }
            let address = base + UInt64(consumer & (mask >> 1)) * 16
            let command = RawCommand(state.ram[address] ?? 0, state.ram[address + 8] ?? 0)
            if state.script.illegalOpcodes.contains(UInt8(command.low & 0xFF)) {
                state.registers[0x9C] = consumer | 1 << 24
                state.registers[0x60] = (state.registers[0x60] ?? 0) ^ 1
                state.gerrorPulses += 1
                return
            }
            state.commands.append(command)
            state.registers[0x9C] = (consumer + 1) & mask
            // CMD_SYNC with CS = IRQ writes MSIData to MSIAddr.
            let doorbell = command.high & 0x00FF_FFFF_FFFF_FFFC
            if command.low & 0x30FF == 0x1046, doorbell != 0 {
                let old = state.ram[doorbell & ~7] ?? 0
                state.ram[doorbell & ~7] = old & 0xFFFF_FFFF_0000_0000 | command.low >> 32
            }
        }
    }

    private func writeRegister(_ offset: UInt64, _ value: UInt32, _ state: inout State) {
        switch offset {
        case 0x20:
            state.registers[0x20] = value
            if !state.script.ignoresCR0 { state.registers[0x24] = value }
            consume(&state)
        case 0x44:
            state.registers[0x44] = state.script.ignoresGBPA ? value : value & 0x7FFF_FFFF
        case 0x50:
            state.registers[0x50] = value
            if !state.script.ignoresIRQCtrl { state.registers[0x54] = value }
        case 0x64:
            state.registers[0x64] = value
            if !state.script.consumesByHand { consume(&state) }
        case 0x98:
            state.registers[0x98] = value
            if !state.script.consumesByHand { consume(&state) }
        case 0x0, 0x4, 0xC, 0x14, 0x18, 0x1C, 0x24, 0x54, 0x60: break
        default: state.registers[offset] = value
        }
    }

    // MARK: PhysicalAccess

    private static func registerOffset(_ address: PhysicalAddress) -> UInt64? {
        let offset = address.rawValue &- registerBase
        return offset < 0x2_0000 ? offset : nil
    }

    private static func checkRAM(_ address: PhysicalAddress, _ byteCount: UInt64) throws(BusError) {
        let offset = address.rawValue &- ramBase
        guard offset < ramByteCount, byteCount <= ramByteCount - offset else { throw .unassigned(address) }
    }

    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        if let offset = Self.registerOffset(address) {
            return state.withLock { state in
                width == .doubleword ? register64(state, offset) : UInt64(state.registers[offset] ?? 0)
            }
        }
        try Self.checkRAM(address, UInt64(width.rawValue))
        let word = word(address.rawValue & ~7)
        return (word >> ((address.rawValue & 7) * 8)) & width.allOnes
    }

    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        if let offset = Self.registerOffset(address) {
            mutate { state in
                writeRegister(offset, UInt32(truncatingIfNeeded: value), &state)
                if width == .doubleword {
                    writeRegister(offset + 4, UInt32(truncatingIfNeeded: value >> 32), &state)
                }
            }
            return
        }
        try Self.checkRAM(address, UInt64(width.rawValue))
        state.withLock { state in
            let aligned = address.rawValue & ~7
            let shift = (address.rawValue & 7) * 8
            let mask = width.allOnes << shift
            state.ram[aligned] = (state.ram[aligned] ?? 0) & ~mask | (value << shift) & mask
            if width == .doubleword { state.stores.append((address.rawValue, value)) }
        }
    }

    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        try Self.checkRAM(address, UInt64(byteCount))
        return (0..<UInt64(byteCount)).map { offset in
            let at = address.rawValue + offset
            return UInt8(truncatingIfNeeded: word(at & ~7) >> ((at & 7) * 8))
        }
    }

    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
        try Self.checkRAM(address, UInt64(bytes.count))
        // The driver writes whole words.
        guard address.rawValue.isMultiple(of: 8), bytes.count.isMultiple(of: 8) else {
            throw .unassigned(address)
        }
        state.withLock { state in
            for start in stride(from: 0, to: bytes.count, by: 8) {
                let word = bytes[start..<start + 8].reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
                state.ram[address.rawValue + UInt64(start)] = word
            }
        }
    }

    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        try Self.checkRAM(address, byteCount)
        state.withLock { state in
            for offset in stride(from: 0, to: byteCount, by: 8) { state.ram[address.rawValue + offset] = nil }
        }
    }

    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
    {
        try Self.checkRAM(address, 8)
        return state.withLock { state in
            let old = state.ram[address.rawValue] ?? 0
            if old == expected { state.ram[address.rawValue] = desired }
            return old
        }
    }
}

/// Time that passes only when someone waits: a second's timeout is over at once.
final class SteppingClock: DriverClock {
    private let now = Atomic<UInt64>(0)

    func nanoseconds() -> UInt64 { now.load(ordering: .relaxed) }

    func pause(attempt: Int) { now.wrappingAdd(1_000_000, ordering: .relaxed) }
}

/// A driver on a fake SMMU.
struct DriverBench {
    let smmu: FakeSMMU
    let frames: PhysicalFrameAllocator
    let trace = DriverTrace()
    var options: SMMUv3DriverOptions

    init(_ identification: [UInt64: UInt32] = [:]) {
        smmu = FakeSMMU(FakeSMMU.identification.merging(identification) { $1 })
        let ram = AddressRange(start: FakeSMMU.ramBase, byteCount: FakeSMMU.ramByteCount)
        frames = PhysicalFrameAllocator(memory: smmu, ranges: ram.map { [$0] } ?? [])
        options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        options.trace = trace
        options.interruptHandling = .inline
        options.clock = SteppingClock()
    }

    func start(registerByteCount: UInt64 = 0x2_0000) throws(SMMUDriverError) -> SMMUv3Driver {
        try SMMUv3Driver(
            access: smmu,
            registerBase: PhysicalAddress(FakeSMMU.registerBase),
            registerByteCount: registerByteCount,
            frames: frames,
            interrupts: .named(eventq: smmu.eventqLine, gerror: smmu.gerrorLine),
            options: options
        )
    }
}

extension SMMUv3Driver {
    /// The log's lines without the device's name.
    var messages: [String] {
        log.lines().map { line in
            let prefix = "arm-smmu-v3 9050000.iommu: "
            return line.text.hasPrefix(prefix) ? String(line.text.dropFirst(prefix.count)) : line.text
        }
    }
}
