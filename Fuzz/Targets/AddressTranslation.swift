// Fuzzes ATS and PRI: translation requests, translated transactions, page requests, and the commands about them.

import AddressSpace
import BareMachine
import DeviceModel
import SMMUv3
import SMMUv3Spec
import Synchronization

/// Where the PRI queue is, with room for so few requests that it overflows.
private let pageRequestQueue = BareMachine.Layout.ram + 0x1_4000
private let log2PageRequests: UInt64 = 3

/// Checked: a translation is aligned to its size, and gives no permission that was not asked for; what it gives is
/// not forbidden to the function that asked; a page request is either in the queue or answered, never both, and no
/// stop marker is answered; every command is consumed, or stands at its error and goes on after it.
func fuzzAddressTranslation(_ input: inout FuzzInput) {
    let flags = input.next()
    guard let fuzz = try? FuzzMachine(flags: flags) else { preconditionFailure("no memory for a machine") }
    defer { fuzz.close() }
    let machine = fuzz.machine
    let function = FuzzFunction()
    for stream in 1...3 as ClosedRange<UInt32> { machine.smmu.connect(function, at: StreamID(stream)) }
    try? machine.attach(1)
    try? fuzz.attachStages()
    try? fuzz.enableATS(isSplit: flags & 0x40 != 0)
    try? machine.map(0x10_0000, to: BareMachine.Layout.ram + 0x1_0000, byteCount: 0x2000)
    try? machine.enable()
    try? machine.write64(RegisterOffset.priqBase, pageRequestQueue | log2PageRequests)
    try? machine.write32(RegisterOffset.irqCtrl, 0b111)
    var queue = CheckedQueue(machine)
    enable(machine, &queue, 0b11111)
    let ports = [fuzz.port] + fuzz.others
    while !input.isEmpty {
        switch input.next() % 8 {
        case 0: askForTranslation(&input, machine, input.pick(ports))
        case 1: fuzz.transact(&input, at: translatedAddress(&input), isTranslated: true)
        case 2: sendPageRequest(&input, machine, function, input.pick(ports))
        case 3: changePageRequestQueue(&input, machine)
        case 4: queue.issue(translationCommand(&input))
        case 5: function.complete(Int(input.next()))
        case 6: changeConfiguration(&input, machine)
        default:
            let shape = input.next()
            if shape & 1 != 0 {
                // SMMUEN, PRIQEN and ATSCHK are the input's; the other queues stay on. REC_CFG_ATS and RECINVSID.
                try? machine.write32(RegisterOffset.cr2, UInt64(shape >> 1 & 1) << 3 | UInt64(shape & 2))
                enable(machine, &queue, 0b01100 | UInt32(shape >> 3))
            } else {
                fuzz.transact(&input, at: 0x10_0000 &+ UInt64(input.next(UInt16.self)))
            }
        }
    }
    function.complete(.max)
}

/// A function that completes its invalidate requests when the input wants it.
private final class FuzzFunction: ATSEndpoint {
    private struct State {
        var completions: [@Sendable () -> Void] = []
        var responseCount = 0
    }
    private let state = Mutex(State())

    var responseCount: Int { state.withLock { $0.responseCount } }

    func invalidate(_ request: ATCInvalidation, completion: @escaping @Sendable () -> Void) {
        precondition(request.range.lowerBound & 0xFFF == 0, "an invalidate request is not of pages")
        let isFull = state.withLock { state in
            guard state.completions.count < 16 else { return true }
            state.completions.append(completion)
            return false
        }
        if isFull { completion() }
    }

    func receive(_ response: PageRequestGroupResponse) {
        precondition(response.group < 512, "a group has 9 bits")
        state.withLock { $0.responseCount += 1 }
    }

    /// Completes as many as there are up to a number, the last first; they may have been given up.
    func complete(_ count: Int) {
        let ready = state.withLock { state in
            let ready = state.completions.suffix(count)
            state.completions.removeLast(ready.count)
            return ready
        }
        for completion in ready.reversed() { completion() }
    }
}

private func enable(_ machine: BareMachine, _ queue: inout CheckedQueue, _ control: UInt32) {
    try? machine.write32(RegisterOffset.cr0, UInt64(control))
    queue.control = (try? machine.read32(RegisterOffset.cr0)) ?? 0
}

private func substream(_ input: inout FuzzInput, _ isThere: Bool) -> SubstreamID? {
    isThere ? SubstreamID(UInt32(input.next(UInt16.self))) : nil
}

/// Asks, and uses what was answered at once.
private func askForTranslation(_ input: inout FuzzInput, _ machine: BareMachine, _ port: StreamPort) {
    let shape = input.next()
    let high = shape & 16 != 0 ? UInt64(input.next(UInt16.self)) << 48 : 0
    let request = ATSTranslationRequest(
        address: IOVirtualAddress(0x10_0000 &+ UInt64(input.next(UInt16.self)) | high),
        substreamID: substream(&input, shape & 1 != 0),
        noWrite: shape & 2 != 0,
        isExecute: shape & 4 != 0,
        isPrivileged: shape & 8 != 0
    )
    guard case .success(let answer) = port.translate(request) else { return }
    precondition(12...64 ~= answer.log2Bytes, "a translation has no such size")
    precondition(
        answer.output & ((1 << UInt64(answer.log2Bytes)) &- 1) == 0,
        "a translation is not aligned to its size"
    )
    precondition(
        !answer.canExecute || answer.canRead && request.isExecute && request.substreamID != nil,
        "execute permission that was not asked for"
    )
    guard answer.canRead else { return }
    let address = IOVirtualAddress(answer.output)
    var byte: UInt8 = 0
    withUnsafeMutableBytes(of: &byte) { buffer in
        do throws(DMAFault) {
            try port.read(at: address, into: buffer, TransactionAttributes(isTranslated: true))
        } catch {
            precondition(
                error.cause != .event(EventNumber.fTranslForbidden.rawValue),
                "what was answered is forbidden"
            )
        }
    }
}

/// Physical addresses, IPAs, and anything.
private func translatedAddress(_ input: inout FuzzInput) -> UInt64 {
    let low = UInt64(input.next(UInt16.self))
    let shape = input.next()
    return shape & 3 == 0 ? low << UInt64(shape >> 2) : BareMachine.Layout.ram &+ low << 1
}

private func sendPageRequest(
    _ input: inout FuzzInput,
    _ machine: BareMachine,
    _ function: FuzzFunction,
    _ port: StreamPort
) {
    let shape = input.next()
    let request = PageRequest(
        address: IOVirtualAddress(UInt64(input.next(UInt32.self)) << 12),
        substreamID: substream(&input, shape & 1 != 0),
        group: shape & 2 != 0 ? input.next(UInt16.self) : UInt16(input.next()),
        isLast: shape & 4 != 0,
        wantsRead: shape & 8 != 0,
        wantsWrite: shape & 16 != 0,
        wantsExecute: shape & 32 != 0,
        isPrivileged: shape & 64 != 0
    )
    func read(_ offset: UInt64) -> UInt32 { (try? machine.read32(offset)) ?? 0 }
    // A message may go anywhere, to the command queue's doorbell too: then nothing is known of responses.
    let hasNoMessage = read(RegisterOffset.priqIrqCfg0) == 0 && read(RegisterOffset.gerrorIrqCfg0) == 0
    let before = (index: read(RegisterOffset.priqProd) & 0xF_FFFF, responses: function.responseCount)
    port.sendPageRequest(request)
    guard hasNoMessage else { return }
    let isQueued = read(RegisterOffset.priqProd) & 0xF_FFFF != before.index
    let responses = function.responseCount - before.responses
    let isAnswerable = !request.isStopMarker && !isQueued
    precondition(responses == 0 || isAnswerable && responses == 1, "a response that nobody waits for")
}

/// As software consumes the queue, acknowledges its overflow, moves it, or writes whatever it likes.
private func changePageRequestQueue(_ input: inout FuzzInput, _ machine: BareMachine) {
    let shape = input.next()
    switch shape & 3 {
    case 0:
        // Everything is consumed, and an overflow acknowledged.
        try? machine.write32(
            RegisterOffset.priqCons,
            UInt64((try? machine.read32(RegisterOffset.priqProd)) ?? 0)
        )
    case 1: try? machine.write32(RegisterOffset.priqCons, UInt64(input.next(UInt32.self)))
    case 2: try? machine.write32(RegisterOffset.priqIrqCfg2, UInt64(shape) << 24)
    default:
        let offset = input.pick([
            RegisterOffset.priqBase, RegisterOffset.priqBase + 4, RegisterOffset.priqProd,
            RegisterOffset.priqIrqCfg2,
        ])
        try? machine.write32(offset, UInt64(input.next(UInt32.self)))
    }
}

/// CMD_ATC_INV, CMD_PRI_RESP and CMD_SYNC with any fields, or another.
private func translationCommand(_ input: inout FuzzInput) -> Command {
    let shape = input.next()
    let opcode: Opcode
    switch shape & 3 {
    case 0: opcode = .atcInv
    case 1: opcode = .priResp
    case 2: opcode = .sync
    default: return command(&input)
    }
    // SSV and Global, SubstreamID; whom it is for; Size and the address, or PRGIndex and Resp.
    var low = UInt64(opcode.rawValue) | UInt64(shape >> 2 & 3) << 10 | UInt64(input.next() & 3) << 32
    if shape & 16 != 0 { low |= UInt64(input.next(UInt16.self)) << 12 }
    var high = UInt64(input.next(UInt16.self))
    if shape & 32 != 0 { high |= UInt64(input.next(UInt32.self)) << 12 }
    return Command(words: [low, high])
}

/// A bit of an STE, of a CD or of a descriptor.
private func changeConfiguration(_ input: inout FuzzInput, _ machine: BareMachine) {
    let place = input.next()
    let stream = UInt64(place >> 3 & 3) * 64
    let word = UInt64(place & 7) * 8
    let structure: UInt64 =
        switch place >> 5 {
        case 0, 1: BareMachine.Layout.streamTable + stream
        case 2, 3: BareMachine.Layout.contexts + stream
        case 4, 5: (try? machine.leaf(of: 0x10_0000)) ?? BareMachine.Layout.tables
        default: FuzzMachine.stage2Tables[2] + 0x80
        }
    change(&input, machine, structure + word, isFlip: true)
}
