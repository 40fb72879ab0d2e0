// Interrupts of a function: its pin, MSI, MSI-X.

import AddressSpace
import DeviceModel
import PCIFunction
import Synchronization
import Testing

@Suite struct PinTests {
    @Test func pinFollowsItsCauseAndShowsInStatus() {
        let fixture = Fixture()
        fixture.function.setINTx(true)
        #expect(fixture.host.pin)
        // Status.Interrupt Status is bit 3.
        #expect(fixture.read(0x06, 2) == 0x0008)
        fixture.function.setINTx(true)
        #expect(fixture.host.state.withLock { $0.pinChanges } == 1)
        fixture.function.setINTx(false)
        #expect(!fixture.host.pin)
        #expect(fixture.read(0x06, 2) == 0)
    }

    @Test func interruptDisableHidesThePinNotTheStatus() {
        let fixture = Fixture()
        fixture.write(0x0400, 0x04, 2)
        fixture.function.setINTx(true)
        #expect(!fixture.host.pin)
        #expect(fixture.read(0x06, 2) == 0x0008)
        fixture.write(0, 0x04, 2)
        #expect(fixture.host.pin)
        fixture.write(0x0400, 0x04, 2)
        #expect(!fixture.host.pin)
    }

    @Test func messagesTakeThePinsPlace() {
        let fixture = Fixture([.msi(vectorCount: 1)])
        fixture.function.setINTx(true)
        #expect(fixture.host.pin)
        fixture.write(1, 0x42, 2)
        #expect(!fixture.host.pin)
        #expect(fixture.function.interruptMode == .msi(vectorCount: 1))
        fixture.write(0, 0x42, 2)
        #expect(fixture.host.pin)
    }

    @Test func newHostHearsOfALevelThatIsThere() {
        let fixture = Fixture()
        fixture.function.setINTx(true)
        let second = RecordingHost()
        fixture.function.connect(second)
        #expect(second.pin)
    }

    @Test func overrideDecidesUntilItIsTakenBack() {
        let fixture = Fixture([.msi(vectorCount: 1)])
        fixture.enable()
        fixture.function.setInterruptModeOverride(.msix)
        fixture.function.setINTx(true)
        #expect(!fixture.host.pin)
        fixture.function.signal(vector: 3)
        fixture.host.state.withLock { state in
            #expect(state.signals.map(\.0) == [3])
            #expect(state.signals.map(\.1) == [.msix])
        }
        #expect(fixture.memory.taken() == [])
        fixture.function.setInterruptModeOverride(.intx)
        #expect(fixture.host.pin)
        fixture.write(1, 0x42, 2)
        #expect(fixture.host.pin)
        fixture.function.setInterruptModeOverride(nil)
        #expect(!fixture.host.pin)
    }
}

@Suite struct MSITests {
    // MSI stands at 0x40: control 0x42, address 0x44, data 0x4C, mask 0x50, pending 0x54.
    private func fixture(_ vectorCount: Int, enabled: UInt32) -> Fixture {
        let fixture = Fixture([.msi(vectorCount: vectorCount)])
        fixture.enable()
        fixture.write(0xFEE0_1008, 0x44)
        fixture.write(0x0000_0001, 0x48)
        fixture.write(0x4321, 0x4C, 2)
        // MSI Enable, Multiple Message Enable.
        fixture.write(1 | enabled << 4, 0x42, 2)
        return fixture
    }

    @Test func vectorFillsTheLowBitsOfTheData() {
        let fixture = fixture(32, enabled: 3)
        #expect(fixture.function.interruptMode == .msi(vectorCount: 8))
        for vector in 0..<8 { fixture.function.signal(vector: vector) }
        #expect(fixture.memory.taken() == (0x4320...0x4327).map { .message(0x1_FEE0_1008, $0) })
    }

    @Test func noMoreThanCapableOfAndTheLastForThoseBeyond() {
        // 7 is reserved, and MMC is 2 (4 vectors).
        let fixture = fixture(4, enabled: 7)
        #expect(fixture.function.interruptMode == .msi(vectorCount: 4))
        fixture.function.signal(vector: 9)
        fixture.function.signal(vector: -1)
        #expect(fixture.memory.taken() == [.message(0x1_FEE0_1008, 0x4323), .message(0x1_FEE0_1008, 0x4320)])
    }

    @Test func maskedVectorsWaitAndGoOnce() {
        let fixture = fixture(4, enabled: 2)
        fixture.write(0b0110, 0x50)
        for vector in 0..<4 { fixture.function.signal(vector: vector) }
        fixture.function.signal(vector: 1)
        #expect(fixture.memory.taken() == [.message(0x1_FEE0_1008, 0x4320), .message(0x1_FEE0_1008, 0x4323)])
        #expect(fixture.read(0x54) == 0b0110)
        // Pending bits are read-only.
        fixture.write(0, 0x54)
        #expect(fixture.read(0x54) == 0b0110)
        fixture.write(0b0100, 0x50)
        #expect(fixture.memory.taken() == [.message(0x1_FEE0_1008, 0x4321)])
        #expect(fixture.read(0x54) == 0b0100)
        fixture.write(0, 0x50)
        #expect(fixture.memory.taken() == [.message(0x1_FEE0_1008, 0x4322)])
        #expect(fixture.read(0x54) == 0)
    }

    @Test func nothingIsSentWithoutMSIEnableOrBusMaster() {
        let fixture = fixture(1, enabled: 0)
        fixture.write(0x0002, 0x04, 2)
        fixture.function.signal(vector: 0)
        fixture.write(0x0006, 0x04, 2)
        fixture.write(0, 0x42, 2)
        fixture.function.signal(vector: 0)
        #expect(fixture.memory.taken() == [])
        fixture.write(1, 0x42, 2)
        fixture.function.signal(vector: 0)
        #expect(fixture.memory.taken() == [.message(0x1_FEE0_1008, 0x4321)])
    }
}

@Suite struct MSIXTests {
    private static let layout = PCIMSIXLayout(
        vectorCount: 65,
        tableBAR: 0,
        tableOffset: 0x1000,
        pendingBAR: 2,
        pendingOffset: 0x200
    )

    /// MSI-X at 0x40, enabled; vector n writes n + 0x100 to 0xE000 + 16 * n.
    private func fixture() throws -> Fixture {
        let bars = [PCIBAR(index: 0, byteCount: 0x4000), PCIBAR(index: 2, byteCount: 0x1000)]
        let fixture = Fixture(bars: bars, [.msix(Self.layout)])
        fixture.enable()
        fixture.write(0x8000, 0x42, 2)
        for vector in 0..<65 as Range<UInt64> {
            let entry = 0x1000 + 16 * vector
            try fixture.function.writeBAR(0, 0xE000 + 16 * vector, at: entry, width: .doubleword)
            try fixture.function.writeBAR(0, 0x100 + vector, at: entry + 8, width: .word)
        }
        return fixture
    }

    private func mask(_ vector: UInt64, _ isMasked: Bool, _ fixture: Fixture) throws {
        try fixture.function.writeBAR(0, isMasked ? 1 : 0, at: 0x1000 + 16 * vector + 12, width: .word)
    }

    @Test func tableIsMaskedAtFirstAndKeepsWhatItHas() throws {
        let fixture = Fixture(bars: [PCIBAR(index: 0, byteCount: 0x4000)], [.msix(Self.layout)])
        #expect(try fixture.function.readBAR(0, at: 0x1000, width: .doubleword) == 0)
        #expect(try fixture.function.readBAR(0, at: 0x1408, width: .doubleword) == 1 << 32)
        // Address bits 1:0 are 0; vector control has one bit.
        try fixture.function.writeBAR(0, .max, at: 0x1010, width: .doubleword)
        try fixture.function.writeBAR(0, .max, at: 0x1018, width: .doubleword)
        #expect(try fixture.function.readBAR(0, at: 0x1010, width: .word) == 0xFFFF_FFFC)
        #expect(try fixture.function.readBAR(0, at: 0x1014, width: .word) == 0xFFFF_FFFF)
        #expect(try fixture.function.readBAR(0, at: 0x1018, width: .doubleword) == 0x0000_0001_FFFF_FFFF)
    }

    @Test func messagesGoWhereTheTableSays() throws {
        let fixture = try fixture()
        #expect(fixture.function.interruptMode == .msix)
        for vector in [0, 31, 64] as [UInt64] { try mask(vector, false, fixture) }
        fixture.function.signal(vector: 64)
        fixture.function.signal(vector: 0)
        fixture.function.signal(vector: 31)
        // No such vectors.
        fixture.function.signal(vector: 65)
        fixture.function.signal(vector: -1)
        #expect(
            fixture.memory.taken() == [
                .message(0xE400, 0x140), .message(0xE000, 0x100), .message(0xE1F0, 0x11F),
            ]
        )
    }

    @Test func maskedVectorsArePendingAndGoWhenUnmasked() throws {
        let fixture = try fixture()
        for vector in [1, 63, 64, 64] { fixture.function.signal(vector: vector) }
        #expect(fixture.memory.taken() == [])
        #expect(try fixture.function.readBAR(2, at: 0x200, width: .doubleword) == 1 << 63 | 1 << 1)
        #expect(try fixture.function.readBAR(2, at: 0x208, width: .doubleword) == 1)
        #expect(try fixture.function.readBAR(2, at: 0x204, width: .word) == 1 << 31)
        // Software's writes to pending bits do nothing.
        try fixture.function.writeBAR(2, 0, at: 0x200, width: .doubleword)
        try mask(64, false, fixture)
        #expect(fixture.memory.taken() == [.message(0xE400, 0x140)])
        #expect(try fixture.function.readBAR(2, at: 0x208, width: .doubleword) == 0)
        try mask(1, false, fixture)
        try mask(63, false, fixture)
        #expect(fixture.memory.taken() == [.message(0xE010, 0x101), .message(0xE3F0, 0x13F)])
    }

    @Test func functionMaskHoldsAllBack() throws {
        let fixture = try fixture()
        try mask(0, false, fixture)
        try mask(1, false, fixture)
        fixture.write(0xC000, 0x42, 2)
        fixture.function.signal(vector: 0)
        fixture.function.signal(vector: 1)
        fixture.function.signal(vector: 2)
        #expect(fixture.memory.taken() == [])
        #expect(try fixture.function.readBAR(2, at: 0x200, width: .word) == 0b111)
        fixture.write(0x8000, 0x42, 2)
        #expect(fixture.memory.taken() == [.message(0xE000, 0x100), .message(0xE010, 0x101)])
        #expect(try fixture.function.readBAR(2, at: 0x200, width: .word) == 0b100)
    }

    @Test func structuresTake4And8AlignedBytesOnly() throws {
        let fixture = try fixture()
        let table = fixture.function
        #expect(throws: RegisterAccessError.unsupportedWidth) {
            try table.readBAR(0, at: 0x1000, width: .byte)
        }
        #expect(throws: RegisterAccessError.unsupportedWidth) {
            try table.writeBAR(0, 0, at: 0x1002, width: .halfword)
        }
        #expect(throws: RegisterAccessError.misaligned) {
            try table.readBAR(0, at: 0x1004, width: .doubleword)
        }
        #expect(throws: RegisterAccessError.misaligned) { try table.readBAR(2, at: 0x202, width: .word) }
        // The model's registers begin where the structures end.
        try table.writeBAR(0, 0x77, at: 0x1410, width: .byte)
        #expect(try table.readBAR(0, at: 0x1410, width: .byte) == 0x77)
        try table.writeBAR(2, 0x88, at: 0x210, width: .byte)
        #expect(try table.readBAR(2, at: 0x210, width: .byte) == 0x88)
        #expect(try table.readBAR(2, at: 0x1000, width: .word) == 0)
    }

    // Software can let a vector's address be the function's own table, so that one message unmasks the next vector.
    @Test func messageThatUnmasksAnotherVectorOfItsFunctionIsSentToo() throws {
        let fixture = try fixture()
        let function = fixture.function
        fixture.memory.reaction.withLock { reaction in
            reaction = { [weak function] write in
                guard write.address == 0xE000 else { return }
                try? function?.writeBAR(0, 0, at: 0x1000 + 16 + 12, width: .word)
            }
        }
        function.signal(vector: 1)
        try mask(0, false, fixture)
        function.signal(vector: 0)
        #expect(fixture.memory.taken() == [.message(0xE000, 0x100), .message(0xE010, 0x101)])
    }

    @Test func messagesToEachOthersTablesEnd() throws {
        let (first, second) = (try fixture(), try fixture())
        let functions = [first.function, second.function]
        // Each message to memory of the one unmasks, and masks again, vector 0 of the other, and signals it.
        for (memory, other) in [(first.memory, 1), (second.memory, 0)] {
            let left = CountDown(100)
            memory.reaction.withLock { reaction in
                reaction = { [weak function = functions[other]] _ in
                    guard left.next(), let function else { return }
                    function.signal(vector: 0)
                    try? function.writeBAR(0, 0, at: 0x100C, width: .word)
                }
            }
        }
        try mask(0, false, first)
        first.function.signal(vector: 0)
        #expect(first.memory.taken().count == 101)
        #expect(second.memory.taken().count >= 100)
    }
}

/// Says yes so many times.
private final class CountDown: Sendable {
    private let left: Mutex<Int>
    init(_ count: Int) { left = Mutex(count) }
    func next() -> Bool {
        left.withLock { left in
            left -= 1
            return left >= 0
        }
    }
}
