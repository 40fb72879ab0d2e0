// Arm's test engine as its drivers know it: Hafnium's and TF-A's tests, and smmute.

import AddressSpace
import DeviceModel
import Glibc
import PCIFunction
import PlatformDevices
import Synchronization
import Testing

@Suite struct TestEngineTests {
    let machine: TestMachine
    let device: TestEngineDevice
    static let halted: UInt64 = 1
    static let error: UInt64 = 0xFFFF_FFFF
    static let misconfigured: UInt64 = 0xFFFF_FFFE

    init() throws {
        let machine = try TestMachine()
        self.machine = machine
        device = try TestEngineDevice(defaultStream: 0x11) { stream in
            stream == 0x11 || stream == 0x22 ? machine.makePort() : nil
        }
    }

    private func set32(_ value: UInt64, _ offset: UInt64) throws {
        try device.write(value, at: offset, width: .word)
    }
    private func set64(_ value: UInt64, _ offset: UInt64) throws {
        try device.write(value, at: offset, width: .doubleword)
    }
    private func get32(_ offset: UInt64) throws -> UInt64 { try device.read(at: offset, width: .word) }
    private func get64(_ offset: UInt64) throws -> UInt64 { try device.read(at: offset, width: .doubleword) }

    /// Writes a command, as drivers do, and waits for its end.
    private func run(_ command: UInt64, frame: UInt64 = 0) throws -> UInt64 {
        let user = frame * 0x80
        try set32(command, user)
        try waitUntil("the end of command \(command)") { try !(2...4).contains(get32(user)) }
        return try get32(user)
    }

    @Test func registersAfterPowerOn() throws {
        for frame: UInt64 in [0, 1, 511] {
            #expect(try get32(frame * 0x80) == Self.halted)
            #expect(try get64(frame * 0x80 + 0x38) == 1)
            #expect(try get32(0x1_0000 + frame * 0x80 + 0x08) == 0x11)
            #expect(try get32(0x1_0000 + frame * 0x80 + 0x0C) == 0xFFFF_FFFF)
        }
        // Registers keep what is written in any width; the counts are the engine's.
        try device.write(0xAB, at: 0x29, width: .byte)
        try device.write(0xCDEF, at: 0x2A, width: .halfword)
        #expect(try get64(0x28) == 0xCDEF_AB00)
        try set32(77, 0x08)
        #expect(try get32(0x08) == 0)
        #expect(throws: RegisterAccessError.misaligned) { try device.read(at: 2, width: .word) }
        #expect(try get64(0x2_0000) == 0)
    }

    @Test func aCopyOfAnyBytesArrivesAndIsCounted() throws {
        let bytes = (0..<10_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        try machine.write(bytes, at: TestMachine.ram + 0x123)
        // As TF-A's tests: privileged frame first, then the user frame, then the command.
        try set32(0, 0x1_0000 + 0x80)
        try set32(0x22, 0x1_0000 + 0x88)
        try set32(0xFFFF_FFFF, 0x1_0000 + 0x8C)
        try set32(0, 0x84)
        try set64(TestMachine.ram + 0x123, 0xA8)
        try set64(TestMachine.ram + 0x123 + 9999, 0xB0)
        try set64(1, 0xB8)
        try set64(TestMachine.ram + 0x8_0001, 0xC0)
        #expect(try run(2, frame: 1) == Self.halted)
        #expect(try machine.read(10_000, at: TestMachine.ram + 0x8_0001) == bytes)
        #expect(try machine.read(1, at: TestMachine.ram + 0x8_0001 + 10_000) == [0])
        #expect(try get32(0x88) == 1)
        #expect(try get32(0x8C) == 1)
        #expect(try get32(0x08) == 0)
    }

    @Test func aSumIsOfWholeDoublewords() throws {
        // As smmute: each doubleword is 1.
        let bytes = (0..<1024).flatMap { _ in [1, 0, 0, 0, 0, 0, 0, 0] as [UInt8] }
        try machine.write(bytes, at: TestMachine.ram)
        try set64(TestMachine.ram, 0x28)
        try set64(TestMachine.ram + 8191, 0x30)
        #expect(try run(4) == Self.halted)
        #expect(try get64(0x48) == 1024)
        // A stride of 64 bytes takes every eighth.
        try set64(64, 0x38)
        #expect(try run(4) == Self.halted)
        #expect(try get64(0x48) == 128)
        // smmute says that sizes that are no doublewords are rejected.
        try set64(TestMachine.ram + 8190, 0x30)
        #expect(try run(4) == Self.misconfigured)
    }

    @Test func randomBytesAreThoseThatSmmuteExpects() throws {
        try set32(42, 0x24)
        try set64(TestMachine.ram + 0xFFE, 0x28)
        try set64(TestMachine.ram + 0x1001, 0x30)
        #expect(try run(3) == Self.halted)
        // Worked out apart, by the C of smmute's check: seed 42, addresses 0x40000ffe and, afresh, 0x40001000.
        #expect(try machine.read(4, at: TestMachine.ram + 0xFFE) == Self.expectedRandomBytes)
        #expect(try machine.read(1, at: TestMachine.ram + 0x1002) == [0])
    }

    static let expectedRandomBytes: [UInt8] = [0x10, 0x7C, 0x5F, 0xE3]

    @Test func anAbortedTransactionSaysWhere() throws {
        try set64(TestMachine.ram + 0xF_F000, 0x28)
        try set64(TestMachine.ram + 0x10_0FFF, 0x30)
        #expect(try run(3) == Self.error)
        #expect(try get64(0x50) == TestMachine.ram + 0x10_0000)
        #expect(try get32(0x0C) == 1)
        // Of a copy, the side that was aborted.
        try set64(TestMachine.ram, 0x28)
        try set64(TestMachine.ram + 7, 0x30)
        try set64(0x1000, 0x40)
        #expect(try run(2) == Self.error)
        #expect(try get64(0x50) == 0x1000)
        try set64(TestMachine.ram + 0x100, 0x40)
        #expect(try run(2) == Self.halted)
    }

    @Test func impossibleFramesAreMisconfiguredAtOnce() throws {
        func expect(_ command: UInt64 = 3, _ change: () throws -> Void) throws {
            device.reset()
            try set64(TestMachine.ram, 0x28)
            try set64(TestMachine.ram + 63, 0x30)
            try change()
            try set32(command, 0)
            #expect(try get32(0) == Self.misconfigured)
            #expect(try get32(0x08) == 0)
        }
        try expect { try set64(TestMachine.ram - 1, 0x30) }
        try expect { try set64(TestMachine.ram + 1 << 32, 0x30) }
        try expect { try set64(0, 0x38) }
        try expect { try set64(12, 0x38) }
        try expect(4) { try set64(TestMachine.ram + 4, 0x28) }
        // A SubstreamID of more than 20 bits, as smmute writes it to stop DMA.
        try expect { try set32(0x10_0000, 0x1_000C) }
        try expect(5) {}
        try expect(0x8000_0000) {}
        // A stream that the device has not: found out by the thread.
        device.reset()
        try set64(TestMachine.ram, 0x28)
        try set64(TestMachine.ram + 63, 0x30)
        try set32(0x33, 0x1_0008)
        #expect(try run(3) == Self.misconfigured)
        // Halting what is halted clears what was.
        try set32(1, 0)
        #expect(try get32(0) == Self.halted)
    }

    @Test func theMessageComesAfterTheCommandsEnd() throws {
        try set64(TestMachine.ram, 0x28)
        try set64(TestMachine.ram + 63, 0x30)
        try set64(TestMachine.doorbell + 0x40, 0x10)
        try set32(0x99, 0x18)
        try set32(3, 0)
        try waitUntil("the message") { machine.messages.received == [0x99] }
        #expect(try get32(0) == Self.halted)
        // One that is aborted sets bit 0 of uctrl.
        try set64(0x1000, 0x10)
        try set32(3, 0)
        try waitUntil("the message was aborted") { try get32(0x04) == 1 }
    }

    @Test func allFramesAtOnceAreWorkedOff() throws {
        for frame: UInt64 in 0..<512 {
            try set64(TestMachine.ram + frame * 64, frame * 0x80 + 0x28)
            try set64(TestMachine.ram + frame * 64 + 63, frame * 0x80 + 0x30)
            try set32(3, frame * 0x80)
        }
        for frame: UInt64 in 0..<512 {
            try waitUntil("frame \(frame)") { try get32(frame * 0x80) == Self.halted }
            #expect(try get32(frame * 0x80 + 0x0C) == 1)
        }
    }

    @Test func aResetEndsAnEndlessTransfer() throws {
        // 4 GiB of a register window's worth of addresses, over and over: the destination stays.
        let endless = try TestEngineDevice(defaultStream: 0) { _ in EndlessPort() }
        try endless.write(0, at: 0x28, width: .doubleword)
        try endless.write(0xFFFF_FFFF, at: 0x30, width: .doubleword)
        try endless.write(3, at: 0, width: .word)
        #expect(try endless.read(at: 0, width: .word) == 3)
        endless.reset()
        #expect(try endless.read(at: 0, width: .word) == 1)
        #expect(try endless.read(at: 0x28, width: .doubleword) == 0)
    }

    @Test func theFunctionSignalsVectors() throws {
        let machine = machine
        let function = try TestEngineFunction.makeFunction(name: "engine", offersPASID: true) {
            machine.makePort()
        }
        #expect(function.readConfiguration(at: 0, byteCount: 4) == 0xFF80_13B5)
        #expect(function.readConfiguration(at: 8, byteCount: 4) == 0xFF00_000F)
        function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        function.setInterruptModeOverride(.msix)
        let host = VectorHost()
        function.connect(host)
        // A frame of the second pair: its user page starts at 0x2_0000.
        let user: UInt64 = 0x2_0000 + 0x80 * 5
        try function.writeBAR(0, TestMachine.ram, at: user + 0x28, width: .doubleword)
        try function.writeBAR(0, TestMachine.ram + 4095, at: user + 0x30, width: .doubleword)
        try function.writeBAR(0, TestMachine.ram + 0x2000, at: user + 0x40, width: .doubleword)
        try function.writeBAR(0, 1, at: user + 0x10, width: .doubleword)
        try function.writeBAR(0, 7, at: user + 0x18, width: .word)
        try machine.write([UInt8](repeating: 0x3C, count: 4096), at: TestMachine.ram)
        try function.writeBAR(0, 2, at: user, width: .word)
        try waitUntil("vector 7") { host.vectors == [7] }
        #expect(try function.readBAR(0, at: user, width: .word) == 1)
        #expect(try machine.read(4096, at: TestMachine.ram + 0x2000).allSatisfy { $0 == 0x3C })
        // Without bus mastering every transaction is aborted.
        function.writeConfiguration(0x0002, at: 0x04, byteCount: 2)
        try function.writeBAR(0, 2, at: user, width: .word)
        try waitUntil("the abort") { try function.readBAR(0, at: user, width: .word) == Self.error }
        function.reset()
        #expect(try function.readBAR(0, at: user, width: .word) == 1)
    }
}

/// Memory without end that takes everything.
private final class EndlessPort: DMAPort {
    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {}
    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {}
    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool { false }

    func rest() {}
}

/// A host that takes vectors.
private final class VectorHost: PCIFunctionHost {
    private let signalled = Mutex<[Int]>([])

    func setINTx(_ isAsserted: Bool, of function: PCIFunction) {}
    func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction) {
        signalled.withLock { $0.append(vector) }
    }
    func configurationChanged(of function: PCIFunction) {}

    var vectors: [Int] { signalled.withLock { $0 } }
}
