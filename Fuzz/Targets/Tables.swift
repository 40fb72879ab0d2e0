// Fuzzes what translation reads from memory: stream table entries, context descriptors, page tables.

import AddressSpace
import BareMachine
import DeviceModel
import SMMUv3
import SMMUv3Spec

func fuzzTables(_ input: inout FuzzInput) {
    guard let fuzz = try? FuzzMachine(flags: input.next()) else {
        preconditionFailure("no memory for a machine")
    }
    defer { fuzz.close() }
    let machine = fuzz.machine
    // A good configuration first: changes to it reach further than noise does.
    try? machine.attach(1)
    try? fuzz.attachStages()
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    try? machine.enable()
    let known = (try? machine.leaf(of: 0x10_0000)) ?? BareMachine.Layout.tables
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0:
            // A word of the STE or of the CD, whole or by one bit.
            let place = input.next()
            let base = place & 8 == 0 ? BareMachine.Layout.streamTable + 64 : BareMachine.Layout.contexts + 64
            change(&input, machine, base + UInt64(place & 7) * 8, isFlip: place & 16 != 0)
        case 1:
            let index = UInt64(input.next() & 7)
            change(&input, machine, (known & ~0xFFF) + index * 8, isFlip: index & 1 != 0)
        case 2:
            // A descriptor that points at some page of RAM, the tables' own among them.
            let page = UInt64(input.next() & 31)
            let low = UInt64(input.next(UInt16.self) & 0xFFF)
            let high = UInt64(input.next()) << 52
            let entry =
                BareMachine.Layout.ram + UInt64(input.next(UInt16.self)) * 8 % FuzzMachine.ramByteCount
            try? machine.store((BareMachine.Layout.ram + page << 12) | low | high, at: entry)
        case 3:
            let entry =
                BareMachine.Layout.ram + UInt64(input.next(UInt16.self)) * 8 % FuzzMachine.ramByteCount
            try? machine.store(input.next(UInt64.self), at: entry)
        case 4:
            fuzz.emptyCaches()
            compare(&input, machine, input.pick([fuzz.port] + fuzz.others))
        case 5: fuzz.transact(&input, at: input.next(UInt64.self))
        case 6:
            fuzz.transact(
                &input,
                at: 0x10_0000 ^ UInt64(input.next(UInt32.self)) << (UInt64(input.next()) & 31)
            )
        default:
            _ = machine.smmu.explain(
                Transaction(
                    streamID: StreamID(UInt32(input.next())),
                    attributes: .plain,
                    kind: .read,
                    address: IOVirtualAddress(input.next(UInt64.self))
                )
            )
        }
    }
}

/// One word of memory anew, or with one bit turned over.
func change(_ input: inout FuzzInput, _ machine: BareMachine, _ address: UInt64, isFlip: Bool) {
    if isFlip {
        let old = (try? machine.load(address)) ?? 0
        try? machine.store(old ^ 1 << UInt64(input.next() & 63), at: address)
    } else {
        try? machine.store(input.next(UInt64.self), at: address)
    }
}

/// With the caches empty, what a transaction meets is what a look past the caches says.
func compare(_ input: inout FuzzInput, _ machine: BareMachine, _ port: StreamPort) {
    let address = IOVirtualAddress(0x10_0000 ^ UInt64(input.next(UInt32.self)) << (UInt64(input.next()) & 31))
    let attributes = TransactionAttributes(isPrivileged: input.next() & 1 != 0)
    // A command error stops the queue, and then the caches are not empty.
    guard (try? machine.isIdle) == true else { return }
    let probed = machine.smmu.probe(
        Transaction(streamID: port.streamID, attributes: attributes, kind: .read, address: address)
    )
    var byte: UInt8 = 0
    let fault: DMAFault? = withUnsafeMutableBytes(of: &byte) { buffer in
        do throws(DMAFault) {
            try port.read(at: address, into: buffer, attributes)
            return nil
        } catch {
            return error
        }
    }
    switch (probed, fault?.cause) {
    case (.translated, nil), (.translated, .bus): break
    case (.fault(let expected), .event(let number)):
        precondition(expected.event?.rawValue == number, "the port met another event than the look-up")
    case (.fault(let expected), .aborted):
        precondition(expected.event == nil, "the port met no event where the look-up has one")
    case (.fault(let expected), nil):
        precondition(expected.response == .readAsZeroWriteIgnored && byte == 0, "a fault let a read through")
    default:
        preconditionFailure("the port and the look-up differ: \(probed), \(String(describing: fault))")
    }
}
