// Fuzzes enhanced command queues: their registers, their commands, and what stops them.

import AddressSpace
import BareMachine
import DeviceModel
import SMMUv3
import SMMUv3Spec

/// The queues that a driver set up: the first, the second and the last.
private let driven = [0, 1, 15]
/// Each has room for eight commands.
private let log2Commands: UInt64 = 3

/// Checked after each step, of each queue: EN has been acknowledged; reserved bits are 0; one that is on and has no
/// error has consumed what there is; one with an error stands at it and goes on once it is acknowledged.
func fuzzEnhancedQueues(_ input: inout FuzzInput) {
    let flags = input.next()
    guard let fuzz = try? FuzzMachine(flags: flags & ~0x30 | flags & 0x20, windowByteCount: 0x4_0000) else {
        preconditionFailure("no memory for a machine")
    }
    defer { fuzz.close() }
    let machine = fuzz.machine
    try? machine.attach(1)
    try? fuzz.attachStages()
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    try? machine.enable()
    for queue in driven { start(machine, queue) }
    while !input.isEmpty {
        let queue = input.pick(driven)
        switch input.next() % 8 {
        case 0, 1, 2: issue(&input, machine, queue)
        case 3:
            // Any register of any queue, and of the control page.
            let offset = place(Int(input.next() & 15)) + UInt64(input.next() & 0x1C)
            try? machine.write32(offset, UInt64(input.next(UInt32.self)))
        case 4: start(machine, queue)
        case 5: fuzz.transact(&input, at: 0x10_0000 &+ UInt64(input.next(UInt16.self)))
        case 6:
            // A command that waits, or one of before, anew.
            let slot = UInt64(input.next() & 15) * 8
            change(&input, machine, memory(queue) + slot, isFlip: true)
        default: try? machine.submit(command(&input))
        }
        for number in 0..<16 { check(machine, number) }
    }
}

/// Where a queue's registers are; the control page is the last of the window.
private func place(_ queue: Int) -> UInt64 { 0x3_0000 + UInt64(queue) * 0x1000 }

private func memory(_ queue: Int) -> UInt64 { BareMachine.Layout.ram + 0x1_4000 + UInt64(queue) * 0x100 }

private func producer(_ machine: BareMachine, _ queue: Int) -> ECMDQProd {
    ECMDQProd(rawValue: (try? machine.read32(place(queue) + ECMDQRegisterOffset.prod)) ?? 0)
}

private func consumer(_ machine: BareMachine, _ queue: Int) -> ECMDQCons {
    ECMDQCons(rawValue: (try? machine.read32(place(queue) + ECMDQRegisterOffset.cons)) ?? 0)
}

/// Switches a queue off, gives it its memory, and switches it on, empty.
private func start(_ machine: BareMachine, _ queue: Int) {
    let registers = place(queue)
    let last = producer(machine, queue).rawValue & 0x7FFF_FFFF
    try? machine.write32(registers + ECMDQRegisterOffset.prod, UInt64(last))
    try? machine.write64(registers + ECMDQRegisterOffset.base, memory(queue) | log2Commands)
    try? machine.write32(registers + ECMDQRegisterOffset.cons, 0)
    try? machine.write32(registers + ECMDQRegisterOffset.prod, 0)
    var enabled = ECMDQProd(rawValue: 0)
    enabled.en = true
    try? machine.write32(registers + ECMDQRegisterOffset.prod, UInt64(enabled.rawValue))
}

/// Queues a command where the queue is, and acknowledges an error, as Linux does: a CMD_SYNC in its place.
private func issue(_ input: inout FuzzInput, _ machine: BareMachine, _ queue: Int) {
    let registers = place(queue)
    var next = producer(machine, queue)
    let slot = UInt64(next.wr) & ((1 << log2Commands) - 1)
    let words = command(&input).words
    try? machine.store(words[0], words[1], at: memory(queue) + slot * 16)
    next.wr = (next.wr &+ 1) & ((2 << UInt32(log2Commands)) - 1)
    try? machine.write32(registers + ECMDQRegisterOffset.prod, UInt64(next.rawValue))
    let state = consumer(machine, queue)
    guard state.err != next.errack else { return }
    try? machine.store(0x46, 0, at: memory(queue) + UInt64(state.rd) % (1 << log2Commands) * 16)
    next.errack = state.err
    try? machine.write32(registers + ECMDQRegisterOffset.prod, UInt64(next.rawValue))
    try? machine.write32(
        RegisterOffset.gerrorn,
        UInt64((try? machine.read32(RegisterOffset.gerror)) ?? 0)
    )
}

private func check(_ machine: BareMachine, _ queue: Int) {
    let base = (try? machine.read32(place(queue) + ECMDQRegisterOffset.base)) ?? 0
    let (last, state) = (producer(machine, queue), consumer(machine, queue))
    precondition(last.rawValue & 0x7F70_0000 == 0, "PROD has bits that it does not have")
    precondition(state.rawValue & 0x7870_0000 == 0, "CONS has bits that it does not have")
    precondition(last.en == state.enack, "EN is not acknowledged")
    guard last.en, last.errack == state.err else { return }
    let entries: UInt32 = 1 << min(base & 0x1F, UInt32(machine.smmu.identification.idr1.cmdqs))
    let waiting = (last.wr &- state.rd) & (2 * entries - 1)
    precondition(waiting == 0 || waiting > entries, "a queue that is on and has no error leaves commands")
}
