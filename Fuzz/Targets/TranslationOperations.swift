// Fuzzes translation by register: GATOS and VATOS.

import AddressSpace
import BareMachine
import DeviceModel
import SMMUv3
import SMMUv3Spec
import SystemBus

/// Where an interface's CTRL is: GATOS's, and VATOS's in the page behind page 1.
private let interfaces: [UInt64] = [RegisterOffset.gatosCtrl, 0x2_0000 + VATOSRegisterOffset.ctrl]

/// Checked: a request ends; PAR has no reserved bits; a request that updates nothing has the same answer twice, and one
/// that was answered by an address is answered by an address that the SMMU can drive.
func fuzzTranslationOperations(_ input: inout FuzzInput) {
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
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0, 1, 2: ask(&input, machine)
        case 3:
            // The registers by themselves, in any width.
            let offset = input.pick(interfaces) + UInt64(input.next() & 0x3F)
            let widths: [AccessWidth] = [.word, .doubleword, .byte, .halfword]
            let address = PhysicalAddress(BareMachine.Layout.window + offset)
            try? machine.bus.store(input.next(UInt64.self), input.pick(widths), at: address)
        case 4:
            let place = input.next()
            let base = place & 0x40 == 0 ? BareMachine.Layout.streamTable : BareMachine.Layout.contexts
            change(&input, machine, base + UInt64(place & 0x3F) * 8, isFlip: place & 0x80 != 0)
        case 5:
            let index = UInt64(input.next() & 0x3F) * 8
            let leaf = (try? machine.leaf(of: 0x10_0000)) ?? BareMachine.Layout.tables
            let table = index & 0x100 == 0 ? leaf & ~0xFFF : FuzzMachine.stage2Tables[2]
            change(&input, machine, table + index & 0xFF, isFlip: true)
        case 6: try? machine.submit(command(&input))
        default:
            // SMMUEN, without which nothing starts.
            try? machine.write32(RegisterOffset.cr0, 0b1100 | UInt64(input.next() & 1))
        }
    }
}

/// One request, and its answer.
private func ask(_ input: inout FuzzInput, _ machine: BareMachine) {
    let shape = input.next()
    let interface = interfaces[Int(shape & 1)]
    var sid = GATOSSid(rawValue: UInt64(input.next() & 3))
    if shape & 2 != 0 {
        sid.substreamID = SubstreamID(UInt32(input.next(UInt16.self)))
        sid.ssidValid = shape & 4 != 0
    }
    var address = GATOSAddr(rawValue: UInt64(input.next()) << 6)
    address.type = shape >> 3 & 3
    address.addr = shape & 32 != 0 ? input.next(UInt64.self) : 0x10_0000 + UInt64(input.next() & 3) << 12
    try? machine.write32(RegisterOffset.vatosSel, UInt64(shape >> 6))
    guard let first = answer(machine, interface, sid, address) else { return }
    if !first.fault {
        let size = UInt64(machine.smmu.identification.outputAddressBits)
        // Of what is as large as addresses are, the size's own bit is one more.
        precondition(first.addr >> max(size, 48) == 0, "an address that the SMMU cannot drive")
        precondition(first.rawValue & 0x4FE == 0, "PAR has bits that it does not have")
    }
    guard address.httui, let second = answer(machine, interface, sid, address) else { return }
    precondition(first == second, "the same request has another answer")
}

/// PAR; nil where nothing was started.
private func answer(_ machine: BareMachine, _ interface: UInt64, _ sid: GATOSSid, _ address: GATOSAddr)
    -> GATOSPar?
{
    try? machine.write64(interface + 8, sid.rawValue)
    try? machine.write64(interface + 16, address.rawValue)
    let isOn = ((try? machine.read32(RegisterOffset.cr0ack)) ?? 0) & 1 == 1
    try? machine.write32(interface, 1)
    precondition(((try? machine.read32(interface)) ?? 0) == 0, "a request does not end")
    guard isOn else { return nil }
    let low = (try? machine.read32(interface + 24)) ?? 0
    let high = (try? machine.read32(interface + 28)) ?? 0
    return GATOSPar(rawValue: UInt64(high) << 32 | UInt64(low))
}
