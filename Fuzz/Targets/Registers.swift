// Fuzzes the register window and the command queue.

import AddressSpace
import BareMachine
import DeviceModel
import SMMUv3
import SMMUv3Spec
import SystemBus

/// Offsets that do something; the others are tried too.
private let interestingOffsets: [UInt64] = [
    RegisterOffset.cr0, RegisterOffset.cr0ack, RegisterOffset.cr1, RegisterOffset.cr2, RegisterOffset.gbpa,
    RegisterOffset.irqCtrl, RegisterOffset.gerror, RegisterOffset.gerrorn, RegisterOffset.gerrorIrqCfg0,
    RegisterOffset.strtabBase, RegisterOffset.strtabBaseCfg, RegisterOffset.cmdqBase, RegisterOffset.cmdqProd,
    RegisterOffset.cmdqCons, RegisterOffset.eventqBase, RegisterOffset.eventqProd, RegisterOffset.eventqCons,
    RegisterOffset.priqBase, RegisterOffset.gatosCtrl, 0xA8, 0xAC, 0x8, RegisterOffset.gmpam,
    RegisterOffset.gbpmpam, RegisterOffset.priqProd, RegisterOffset.priqCons, RegisterOffset.vatosSel, 0xC8,
    0xCC,
]

func fuzzRegisters(_ input: inout FuzzInput) {
    let flags = input.next()
    guard let fuzz = try? FuzzMachine(flags: flags) else { preconditionFailure("no memory for a machine") }
    defer { fuzz.close() }
    let machine = fuzz.machine
    // Half of the inputs start behind a bring-up that a fuzzer would take long to find.
    if flags & 0x80 == 0 {
        try? machine.attach(1)
        try? fuzz.attachStages()
        try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
        try? machine.enable()
    }
    var producer: UInt64 = 0
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0: access(&input, machine, offset: input.pick(interestingOffsets))
        case 1: access(&input, machine, offset: UInt64(input.next(UInt32.self) & 0x1_FFFF))
        case 2:
            let word = input.next(UInt16.self)
            try? machine.store(
                input.next(UInt64.self),
                at: BareMachine.Layout.ram + UInt64(word) * 8 % FuzzMachine.ramByteCount
            )
        case 3, 4:
            // A command where the bring-up put the queue, and the doorbell.
            let slot = producer & ((1 << BareMachine.Layout.log2Commands) - 1)
            try? machine.store(
                input.next(UInt64.self),
                input.next(UInt64.self),
                at: BareMachine.Layout.commandQueue + slot * 16
            )
            producer = (producer + 1) & ((2 << BareMachine.Layout.log2Commands) - 1)
            try? machine.write32(RegisterOffset.cmdqProd, producer)
        case 5: fuzz.transact(&input, at: 0x10_0000 &+ UInt64(input.next(UInt16.self)))
        case 6: fuzz.transact(&input, at: input.next(UInt64.self))
        default:
            try? machine.write32(
                RegisterOffset.gerrorn,
                UInt64((try? machine.read32(RegisterOffset.gerror)) ?? 0)
            )
        }
    }
    check(machine)
}

/// One register access of any width.
private func access(_ input: inout FuzzInput, _ machine: BareMachine, offset: UInt64) {
    let shape = input.next()
    let widths: [AccessWidth] = [.word, .doubleword, .byte, .halfword]
    let width = widths[Int(shape & 3)]
    let address = PhysicalAddress(BareMachine.Layout.window + offset)
    if shape & 4 == 0 {
        try? machine.bus.store(input.next(UInt64.self), width, at: address)
    } else {
        _ = try? machine.bus.load(width, at: address)
    }
}

/// What holds whatever was written.
private func check(_ machine: BareMachine) {
    for offset in stride(from: UInt64(0), to: RegisterOffset.windowByteCount, by: 0x1000 / 64) {
        precondition((try? machine.read32(offset & ~3)) != nil, "an aligned word of the window has no answer")
    }
    precondition(
        (try? machine.read32(RegisterOffset.idr0)) == machine.smmu.identification.idr0.rawValue,
        "an identification register has changed"
    )
    let consumer = (try? machine.read32(RegisterOffset.cmdqCons)) ?? .max
    precondition(consumer & 0x80F0_0000 == 0, "CMDQ_CONS has bits that it does not have")
    let producer = (try? machine.read32(RegisterOffset.eventqProd)) ?? .max
    precondition(producer & 0x7FF0_0000 == 0, "EVENTQ_PROD has bits that it does not have")
}
