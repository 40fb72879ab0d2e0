// Fuzzes a counter group's registers, while its SMMU works and its messages go anywhere.

import AddressSpace
import BareMachine
import DeviceModel
import PMCG
import SMMUv3Spec
import Synchronization
import SystemBus

/// Where the group stands.
private let pages: [UInt64] = [0x0A00_0000, 0x0A01_0000]

/// Offsets that do something; the others are tried too.
private let interestingOffsets: [UInt64] = [
    PMCGRegisterOffset.evcntr, PMCGRegisterOffset.evcntr + 4, PMCGRegisterOffset.evcntr + 8,
    PMCGRegisterOffset.evtyper, PMCGRegisterOffset.evtyper + 4, PMCGRegisterOffset.svr,
    PMCGRegisterOffset.smr,
    PMCGRegisterOffset.smr + 4, PMCGRegisterOffset.cntenset0, PMCGRegisterOffset.cntenclr0,
    PMCGRegisterOffset.intenset0, PMCGRegisterOffset.intenclr0, PMCGRegisterOffset.ovsset0,
    PMCGRegisterOffset.ovsclr0, PMCGRegisterOffset.capr, PMCGRegisterOffset.cr, PMCGRegisterOffset.irqCtrl,
    PMCGRegisterOffset.irqCfg0, PMCGRegisterOffset.irqCfg1, PMCGRegisterOffset.irqStatus,
]

/// Where messages like to go: the group's own registers, the SMMU's, memory, and nowhere.
private let messageAddresses: [UInt64] =
    interestingOffsets.flatMap { [pages[0] + $0, pages[1] + $0] }
    + [BareMachine.Layout.window + RegisterOffset.cmdqProd, BareMachine.Layout.ram, 0x7000_0000, 0]

/// A clock that the input moves.
private final class FuzzTimer: PMCGTimer {
    private struct State {
        var now: UInt64 = 0
        var deadline: UInt64?
        var wake: (@Sendable () -> Void)?
    }
    private let state = Mutex(State())

    var now: UInt64 { state.withLock { $0.now } }

    func arm(_ deadline: UInt64?, _ wake: @escaping @Sendable () -> Void) {
        state.withLock { state in
            precondition(deadline.map { $0 > state.now } ?? true, "a deadline that is over is an overflow")
            state.deadline = deadline
            state.wake = wake
        }
    }

    func stop() {}

    func advance(by nanoseconds: UInt64) {
        let due = state.withLock { state -> (@Sendable () -> Void)? in
            let (sum, isOver) = state.now.addingReportingOverflow(nanoseconds)
            state.now = isOver ? .max : sum
            guard let deadline = state.deadline, deadline <= state.now else { return nil }
            state.deadline = nil
            return state.wake
        }
        due?()
    }
}

func fuzzCounters(_ input: inout FuzzInput) {
    guard let fuzz = try? FuzzMachine(flags: input.next()) else {
        preconditionFailure("no memory for a machine")
    }
    defer { fuzz.close() }
    let machine = fuzz.machine
    try? machine.attach(1)
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    try? machine.enable()
    let timer = FuzzTimer()
    let group = makeGroup(&input, machine, timer)
    defer { group.stop() }
    let cfgr = try? group.page0.read(at: PMCGRegisterOffset.cfgr, width: .word)
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0, 1: access(&input, machine, offset: input.pick(interestingOffsets))
        case 2: access(&input, machine, offset: UInt64(input.next(UInt16.self) & 0x0FFF))
        case 3, 4: fuzz.transact(&input, at: 0x10_0000 &+ UInt64(input.next(UInt16.self)))
        case 5: fuzz.transact(&input, at: input.next(UInt64.self))
        case 6: timer.advance(by: UInt64(input.next(UInt32.self)) << UInt64(input.next() & 31))
        default:
            try? machine.bus.store(
                input.pick(messageAddresses),
                .doubleword,
                at: PhysicalAddress(pages[0] + PMCGRegisterOffset.irqCfg0)
            )
        }
    }
    precondition(
        cfgr == (try? group.page0.read(at: PMCGRegisterOffset.cfgr, width: .word)),
        "an identification register has changed"
    )
    check(group)
}

/// A group of some shape on the machine's bus, beside its SMMU.
private func makeGroup(_ input: inout FuzzInput, _ machine: BareMachine, _ timer: FuzzTimer) -> PMCG {
    let shape = input.next()
    var configuration = PMCGConfiguration()
    configuration.counterCount = Int(input.next() & 63) + 1
    configuration.counterSize = input.pick(PMCGConfiguration.CounterSize.allCases)
    configuration.streamIDBits = input.next() % 33
    configuration.relocatesCounters = shape & 1 != 0
    configuration.hasCapture = shape & 2 == 0
    configuration.hasGlobalFilter = shape & 4 != 0
    let write: PMCG.MessageWrite = { [weak bus = machine.bus] (data, address) throws(BusError) in
        try bus?.store(UInt64(data), .word, at: address)
    }
    let group = PMCG(
        name: "pmu",
        configuration: configuration,
        source: machine.smmu,
        timer: timer,
        sendMessage: shape & 8 == 0 ? write : nil
    )
    for (page, base) in zip([group.page0, group.page1], pages) {
        guard let page, let range = AddressRange(start: base, byteCount: PMCGPage.byteCount) else { continue }
        try? machine.bus.addWindow(page, at: range, name: "pmu")
    }
    return group
}

/// One register access of any width.
private func access(_ input: inout FuzzInput, _ machine: BareMachine, offset: UInt64) {
    let shape = input.next()
    let widths: [AccessWidth] = [.word, .doubleword, .byte, .halfword]
    let address = PhysicalAddress(pages[Int(shape &>> 3 & 1)] + offset)
    if shape & 4 == 0 {
        try? machine.bus.store(input.next(UInt64.self), widths[Int(shape & 3)], at: address)
    } else {
        _ = try? machine.bus.load(widths[Int(shape & 3)], at: address)
    }
}

/// What holds whatever was written.
private func check(_ group: PMCG) {
    let count = group.configuration.counterCount
    let absent = count == 64 ? 0 : UInt64.max << UInt64(count)
    for offset in [
        PMCGRegisterOffset.cntenset0, PMCGRegisterOffset.intenset0, PMCGRegisterOffset.ovsset0,
    ] {
        for page in [group.page0, group.page1] {
            guard let page else { continue }
            let set = (try? page.read(at: offset, width: .doubleword)) ?? .max
            precondition(set & absent == 0, "a counter that is not there has a bit")
        }
    }
    let size = group.configuration.counterSize.rawValue
    let page = group.page1 ?? group.page0
    let stride: UInt64 = size == 32 ? 4 : 8
    for index in 0..<UInt64(count) {
        let value = (try? page.read(at: stride * index, width: stride == 4 ? .word : .doubleword)) ?? .max
        precondition(size == 64 || value >> UInt64(size) == 0, "a counter has bits that it does not have")
    }
    let acknowledged = try? group.page0.read(at: PMCGRegisterOffset.irqCtrlack, width: .word)
    let control = try? group.page0.read(at: PMCGRegisterOffset.irqCtrl, width: .word)
    precondition(acknowledged == control, "a message is still on its way")
}
