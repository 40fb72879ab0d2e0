// Fuzzes what says how a stream is translated: stream tables, STEs, L1CDs and CDs.

import AddressSpace
import BareMachine
import DeviceModel
import SMMUv3
import SMMUv3Spec

/// Fields of an STE by their high and low bit: those that decide, each of which the input sets by itself.
private let entryFields: [(high: Int, low: Int)] = [
    (0, 0), (3, 1), (5, 4), (63, 59), (65, 64), (75, 74), (89, 89), (91, 91), (93, 92), (95, 94), (99, 96),
    (100, 100),
    (109, 108), (113, 112), (115, 114), (143, 128), (165, 160), (167, 166), (175, 174), (178, 176),
    (179, 179),
    (180, 180), (181, 181), (182, 182), (183, 183), (184, 184), (185, 185), (186, 186), (194, 194),
    (195, 195),
    // S1MPAM, PARTID, PMG, VMSPtr: of the last, the bits that are in RAM here.
    (90, 90), (287, 272), (327, 320), (344, 332),
]

/// The same of a CD.
private let contextFields: [(high: Int, low: Int)] = [
    (5, 0), (7, 6), (14, 14), (15, 15), (21, 16), (23, 22), (30, 30), (31, 31), (34, 32), (35, 35), (36, 36),
    (38, 38),
    (39, 39), (40, 40), (41, 41), (42, 42), (43, 43), (44, 44), (45, 45), (46, 46), (47, 47), (63, 48),
    (65, 65),
    (66, 66), (67, 67), (129, 129), (130, 130),
    // PARTID, PMG.
    (367, 352), (375, 368),
]

/// Pointers: to where something is, to elsewhere in RAM, and to nobody.
private let pointers: [UInt64] =
    [BareMachine.Layout.contexts, BareMachine.Layout.contexts + 64, BareMachine.Layout.tables]
    + FuzzMachine.stage2Tables + [BareMachine.Layout.ram + 0x1_0000, 0x7000_0000, 1 << 47, 0]

/// Checked: with the caches emptied, or without any, every transaction meets what a look past the caches says.
func fuzzConfiguration(_ input: inout FuzzInput) {
    let flags = input.next()
    guard let fuzz = try? FuzzMachine(flags: flags) else { preconditionFailure("no memory for a machine") }
    defer { fuzz.close() }
    let machine = fuzz.machine
    try? machine.attach(1)
    try? fuzz.attachStages()
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    try? machine.enable()
    let hasNoCaches = flags & 3 == 3
    let ports = [fuzz.port] + fuzz.others
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0, 1: setField(&input, machine, at: entry(&input), entryFields)
        case 2: setField(&input, machine, at: context(&input), contextFields)
        case 3: setPointer(&input, machine)
        case 4:
            let place = input.next()
            let base = place & 0x80 == 0 ? entry(&input) : context(&input)
            change(&input, machine, base + UInt64(place & 7) * 8, isFlip: place & 8 != 0)
        case 5: moveStreamTable(&input, fuzz)
        case 6:
            fuzz.transact(
                &input,
                at: 0x10_0000 ^ UInt64(input.next(UInt16.self)) << (UInt64(input.next()) & 47)
            )
        default:
            if !hasNoCaches { fuzz.emptyCaches() }
            compare(&input, machine, input.pick(ports))
        }
    }
}

private func entry(_ input: inout FuzzInput) -> UInt64 {
    BareMachine.Layout.streamTable + UInt64(input.next() & 3) * 64
}

private func context(_ input: inout FuzzInput) -> UInt64 {
    BareMachine.Layout.contexts + UInt64(input.next() & 7) * 64
}

private func setField(
    _ input: inout FuzzInput,
    _ machine: BareMachine,
    at structure: UInt64,
    _ fields: [(high: Int, low: Int)]
) {
    let field = input.pick(fields)
    let address = structure + UInt64(field.low / 64) * 8
    let ones: UInt64 = (1 << UInt64(field.high - field.low + 1)) - 1
    let mask = ones << UInt64(field.low % 64)
    let value = UInt64(input.next(UInt16.self)) << UInt64(field.low % 64)
    let old = (try? machine.load(address)) ?? 0
    try? machine.store(old & ~mask | value & mask, at: address)
}

/// S1ContextPtr, S2TTB, VMSPtr, TTB0 or TTB1, or a first-level descriptor.
private func setPointer(_ input: inout FuzzInput, _ machine: BareMachine) {
    let pointer = input.pick(pointers)
    let kind = input.next()
    let low = UInt64(input.next())
    let mask: UInt64 = 0xF_FFFF_FFFF_FFC0
    func set(_ address: UInt64) {
        let old = (try? machine.load(address)) ?? 0
        try? machine.store(old & ~mask | pointer & mask, at: address)
    }
    switch kind % 6 {
    case 5:
        // VMSPtr is bits 375:332 of an STE: the whole word is of MPAM.
        let address = entry(&input) + 40
        let old = (try? machine.load(address)) ?? 0
        try? machine.store(old & 0xFFF | pointer & 0xF_FFFF_FFFF_F000, at: address)
    case 0: set(entry(&input))
    case 1: set(entry(&input) + 24)
    case 2: set(context(&input) + 8)
    case 3: set(context(&input) + 16)
    // An L1CD has V in bit 0, an L1STD its Span in bits 4:0.
    default:
        try? machine.store(pointer & ~0x1F | low & 0x1F, at: BareMachine.Layout.ram + 0x1_0000 + low / 32 * 8)
    }
}

/// The table's format, SPLIT, LOG2SIZE and base, as software may change them: while SMMUEN is 0.
private func moveStreamTable(_ input: inout FuzzInput, _ fuzz: FuzzMachine) {
    let machine = fuzz.machine
    try? machine.write32(RegisterOffset.cr0, 0b1100)
    let base = input.next() & 3 == 0 ? input.pick(pointers) : BareMachine.Layout.streamTable
    try? machine.write64(RegisterOffset.strtabBase, base)
    // FMT [17:16], SPLIT [10:6], LOG2SIZE [5:0].
    let shape = input.next()
    let configuration =
        shape & 1 == 0 ? BareMachine.Layout.log2Streams : UInt64(input.next(UInt32.self)) & 0x3_07FF
    try? machine.write32(RegisterOffset.strtabBaseCfg, configuration)
    // RECINVSID, E2H.
    try? machine.write32(RegisterOffset.cr2, UInt64(shape >> 1 & 3 | 2))
    try? machine.write32(RegisterOffset.cr0, 0b1101)
    fuzz.emptyCaches()
}
