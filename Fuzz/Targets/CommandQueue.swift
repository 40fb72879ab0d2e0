// Fuzzes the command queue: every command with any fields, errors and their recovery, and stalled transactions.

import AddressSpace
import BareMachine
import DeviceModel
import Glibc
import SMMUv3
import SMMUv3Spec
import Synchronization

/// Addresses that mean something in a command: translations that are there, the SMMU's registers, memory, nobody.
private let addresses: [UInt64] = [
    0x10_0000, 0x10_1000, 0, BareMachine.Layout.ram, BareMachine.Layout.ram + 0x1_0000,
    BareMachine.Layout.window, BareMachine.Layout.window + RegisterOffset.cmdqProd, 0x7000_0000,
    0xFFFF_FFFF_FFFF_F000,
]

/// Commands of all kinds, and what they do to transactions.
///
/// Checked of every command: it is consumed, or the queue stands at it with CERROR_ILL and CMDQ_ERR, and goes on once
/// the command has been replaced. With the caches emptied, a transaction meets what memory says. Whoever stalls goes on
/// at the end.
func fuzzCommandQueue(_ input: inout FuzzInput) {
    let flags = input.next()
    guard let fuzz = try? FuzzMachine(flags: flags) else { preconditionFailure("no memory for a machine") }
    defer { fuzz.close() }
    let machine = fuzz.machine
    try? machine.attach(1)
    try? fuzz.attachStages()
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    if flags & 0x40 != 0, machine.smmu.identification.idr0.stallModel != 1 {
        // CD.S: bit 44.
        try? machine.store(
            ((try? machine.load(BareMachine.Layout.contexts + 64)) ?? 0) | 1 << 44,
            at: BareMachine.Layout.contexts + 64
        )
    }
    try? machine.enable()
    var queue = CheckedQueue(machine)
    var requesters: [StallingRequester] = []
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0, 1, 2, 3: queue.issue(command(&input))
        case 4: fuzz.transact(&input, at: 0x10_0000 &+ UInt64(input.next(UInt16.self)))
        case 5:
            let entry = (try? machine.leaf(of: 0x10_0000 + UInt64(input.next() & 1) << 12)) ?? 0
            change(&input, machine, entry, isFlip: true)
        case 6:
            guard requesters.count < 4 else { continue }
            let address = 0x10_0000 &+ UInt64(input.next(UInt16.self))
            requesters.append(StallingRequester(machine.smmu, address, before: requesters))
        default:
            for command in fuzz.invalidations { queue.issue(command) }
            compare(&input, machine, input.pick([fuzz.port] + fuzz.others))
        }
    }
    machine.smmu.endStalls()
    for requester in requesters { requester.join() }
}

/// A command: mostly one that there is, with fields that mean something.
func command(_ input: inout FuzzInput) -> Command {
    let shape = input.next()
    guard shape & 0xC0 != 0xC0 else {
        return Command(words: [input.next(UInt64.self), input.next(UInt64.self)])
    }
    var low = UInt64(input.pick(Opcode.all).rawValue)
    // SSec, SSV and their neighbours; SubstreamID, or NUM and SCALE, or CS.
    if shape & 1 != 0 { low |= UInt64(input.next() & 0xF) << 8 }
    if shape & 2 != 0 { low |= UInt64(input.next(UInt16.self)) << 12 }
    // The StreamID, or VMID and ASID.
    low |= shape & 4 != 0 ? UInt64(input.next(UInt32.self)) << 32 : UInt64(input.next() & 3) << 32
    if shape & 8 != 0 { low |= UInt64(input.next() & 7) << 48 }
    // Leaf, TTL, TG, Range, Size, STAG; the address.
    var high = shape & 16 != 0 ? UInt64(input.next(UInt16.self)) : UInt64(input.next() & 1)
    if shape & 32 != 0 { high |= input.pick(addresses) }
    return Command(words: [low, high])
}

/// The queue as its driver left it, and the checks of each command.
struct CheckedQueue {
    let machine: BareMachine
    /// SMMU_CR0 as its driver left it.
    var control: UInt32 = 0b1101
    private var submitted: UInt32 = 0
    private var acknowledged: UInt32 = 0
    /// Somebody else has written the queue's registers: nothing is known of it any more.
    private var isOutOfHand = false

    init(_ machine: BareMachine) { self.machine = machine }

    private func read(_ offset: UInt64) -> UInt32 { (try? machine.read32(offset)) ?? .max }

    /// Whether nobody else has written the queue's registers: messages and DMA may.
    private var isUntouched: Bool {
        read(RegisterOffset.cmdqProd) == submitted & ((2 << UInt32(BareMachine.Layout.log2Commands)) - 1)
            && UInt64(read(RegisterOffset.cmdqBase))
                == BareMachine.Layout.commandQueue | BareMachine.Layout.log2Commands
            && read(RegisterOffset.cmdqBase + 4) == 0 && read(RegisterOffset.gerrorn) == acknowledged
            && read(RegisterOffset.cr0) == control
    }

    /// Queues a command, lets it run, and goes on after its error.
    mutating func issue(_ command: Command) {
        let before = read(RegisterOffset.cmdqCons) & 0xFFFFF
        if !isUntouched { isOutOfHand = true }
        try? machine.submit(command)
        submitted &+= 1
        let isIdle = waitUntilIdle()
        if !isUntouched { isOutOfHand = true }
        guard !isIdle, !isOutOfHand else { return }
        let error = recover(at: before)
        precondition(error == .cerrorIll || error == .cerrorAtcInvSync, "another error than could be")
        if waitUntilIdle() || !isUntouched { return }
        // The CMD_SYNC waited for invalidate requests in vain; they are given up, and the next one does not.
        precondition(recover(at: before) == .cerrorAtcInvSync, "a CMD_SYNC is illegal")
        precondition(waitUntilIdle() || !isUntouched, "the queue does not go on")
    }

    /// As Linux goes on: a CMD_SYNC in the command's place, then the acknowledgement of all that there is.
    private mutating func recover(at index: UInt32) -> CommandError {
        let gerror = read(RegisterOffset.gerror)
        let consumer = CmdqCons(rawValue: read(RegisterOffset.cmdqCons))
        precondition(consumer.rd == index, "the queue does not stand at the command")
        let slot = UInt64(index) & ((1 << BareMachine.Layout.log2Commands) - 1)
        try? machine.store(0x46, 0, at: BareMachine.Layout.commandQueue + slot * 16)
        try? machine.write32(RegisterOffset.gerrorn, UInt64(gerror))
        acknowledged = gerror
        return consumer.err
    }

    /// Waits until every command is consumed, or the queue has stopped.
    ///
    /// Beside transactions on other threads commands run as those leave. One that is neither consumed nor an error is a
    /// run without an end.
    ///
    /// - Returns: Whether every command is consumed.
    private func waitUntilIdle() -> Bool {
        while !isOutOfHand, (try? machine.isIdle) != true {
            if (read(RegisterOffset.gerror) ^ read(RegisterOffset.gerrorn)) & 1 == 1 { return false }
            guard isUntouched else { return true }
            sched_yield()
        }
        return true
    }
}

/// A read on a thread of its own, which may stall.
private final class StallingRequester {
    private final class Shared: Sendable {
        let isDone = Atomic(false)
        let smmu: SMMUv3
        let address: UInt64

        init(_ smmu: SMMUv3, _ address: UInt64) { (self.smmu, self.address) = (smmu, address) }

        func run() {
            let port = smmu.makePort(for: StreamID(1))
            var word: UInt64 = 0
            withUnsafeMutableBytes(of: &word) { buffer in
                do throws(DMAFault) {
                    try port.read(at: IOVirtualAddress(address), into: buffer, .plain)
                } catch {
                    precondition(error.bytesTransferred <= 8, "more was transferred than asked for")
                }
            }
            isDone.store(true, ordering: .releasing)
        }
    }
    private let shared: Shared
    private var thread = pthread_t()

    /// Starts it, and waits until it has ended or waits itself.
    ///
    /// - Parameter others: Who may be waiting before.
    init(_ smmu: SMMUv3, _ address: UInt64, before others: [StallingRequester]) {
        shared = Shared(smmu, address)
        let context = Unmanaged.passRetained(shared).toOpaque()
        let error = pthread_create(
            &thread,
            nil,
            { context in
                guard let context else { return nil }
                Unmanaged<Shared>.fromOpaque(context).takeRetainedValue().run()
                return nil
            },
            context
        )
        precondition(error == 0, "no thread")
        while !shared.isDone.load(ordering: .acquiring) {
            let waiting = smmu.statistics.filter { $0.name.hasPrefix("stalled-") }.reduce(0) { $0 + $1.value }
            let running = others.filter { !$0.shared.isDone.load(ordering: .acquiring) }.count
            if waiting > running { break }
            sched_yield()
        }
    }

    func join() { pthread_join(thread, nil) }
}
