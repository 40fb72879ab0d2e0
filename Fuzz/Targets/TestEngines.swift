// Fuzzes the test engine's frames, its DMA through an SMMU and its messages.

import AddressSpace
import BareMachine
import DeviceModel
import Glibc
import PlatformDevices
import SMMUv3

/// Addresses that lead somewhere, and some that do not.
private let addresses: [UInt64] = [
    0x10_0000, 0x10_0FF8, 0x10_1FFF, 0x10_2000, BareMachine.Layout.ram + 0x1_0000,
    BareMachine.Layout.window + 0x60, 0,
    .max, .max - 7,
]

/// Checked: every command ends, and as many transactions come back as went out.
func fuzzTestEngine(_ input: inout FuzzInput) {
    guard let fuzz = try? FuzzMachine(flags: input.next()) else {
        preconditionFailure("no memory for a machine")
    }
    defer { fuzz.close() }
    let machine = fuzz.machine
    try? machine.attach(1)
    try? fuzz.attachStages()
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    try? machine.enable()
    let smmu = machine.smmu
    let engine = try? TestEngineDevice(defaultStream: 1) { stream in
        stream < 256 ? smmu.makePort(for: StreamID(stream), canStall: false) : nil
    }
    guard let engine else { preconditionFailure("no thread for an engine") }
    defer { engine.reset() }
    let widths: [AccessWidth] = [.word, .doubleword, .halfword, .byte]
    while !input.isEmpty {
        let frame = UInt64(input.next() & 3) * 128
        switch input.next() % 6 {
        case 0:
            // begin, end_incl and udata[0].
            let address = input.pick(addresses) &+ UInt64(input.next())
            try? engine.write(address, at: frame + input.pick([0x28, 0x30, 0x40, 0x10]), width: .doubleword)
        case 1:
            let start = input.pick(addresses)
            try? engine.write(start, at: frame + 0x28, width: .doubleword)
            let end = start &+ UInt64(input.next(UInt16.self))
            try? engine.write(end, at: frame + 0x30, width: .doubleword)
        case 2:
            // streamid and substreamid.
            let value = UInt64(input.next() & 7)
            try? engine.write(value, at: 0x1_0000 + frame + (input.next() & 1 == 0 ? 8 : 12), width: .word)
        case 3:
            let offset = UInt64(input.next(UInt32.self)) & 0x3_FFFF
            let width = input.pick(widths)
            try? engine.write(input.next(UInt64.self), at: offset, width: width)
            _ = try? engine.read(at: offset, width: width)
            if offset < 0x1_0000 { settle(engine, offset & ~0x7F) }
        default:
            try? engine.write(UInt64(input.next() % 6), at: frame, width: .word)
            settle(engine, frame)
        }
    }
}

/// Waits for a frame's command.
private func settle(_ engine: TestEngineDevice, _ frame: UInt64) {
    func word(_ offset: UInt64) -> UInt64 { (try? engine.read(at: frame + offset, width: .word)) ?? 0 }
    while (2...4).contains(word(0)) { sched_yield() }
    precondition(word(8) == word(12), "a command that has ended is still out")
}
