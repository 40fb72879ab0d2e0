// What most writes of SMMU_CMDQ_PROD bring, a page's CMD_TLBI_* and a CMD_SYNC, executed within the registers' lock.

import AddressSpace
import CLinux
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// Where SMMU_CMDQ is in the host, and the RAM around it: worked out once for a map and a SMMU_CMDQ_BASE.
// SAFETY of @unchecked Sendable: the pointers are used by accesses under way alone, which whoever takes memory off the
// bus waits for.
struct CommandQueueMemory: @unchecked Sendable {
    /// ``BusView/version`` when it was found; what no version is says that nothing was looked for.
    private var version = UInt64.max
    /// nil where the queue is not all in one piece of memory of our own.
    private(set) var host: UnsafeMutableRawPointer?
    private(set) var lostFlag: UnsafePointer<UInt32>?
    /// The first address of the RAM that the queue is in, and where that is in the host.
    private var first: UInt64 = 0
    private var firstHost: UnsafeMutableRawPointer?
    /// How many words of 32 bits may be written there.
    private var writableWords: UInt64 = 0

    /// Finds it where the map may have changed; by an access that is under way.
    @inline(__always)  // Once for each write of SMMU_CMDQ_PROD.
    mutating func find(_ start: UInt64, byteCount: UInt64, in map: BusView) {
        // Before the look at the map: what is found there is then no older than this.
        let current = map.version
        if version != current { find(start, byteCount: byteCount, in: map, version: current) }
    }

    @inline(never)  // Once for each change of the map.
    private mutating func find(_ start: UInt64, byteCount: UInt64, in map: BusView, version: UInt64) {
        self = CommandQueueMemory()
        self.version = version
        guard let (first, span) = map.hostMemory(containing: PhysicalAddress(start)) else { return }
        let offset = start &- first
        let place = span.start + Int(truncatingIfNeeded: offset)
        guard span.last &- offset >= byteCount &- 1, UInt(bitPattern: place) & 7 == 0 else { return }
        host = place
        lostFlag = span.lostFlag
        // Words are aligned in the host only where both begin so.
        guard span.isWritable, (first | UInt64(UInt(bitPattern: span.start))) & 3 == 0 else { return }
        (self.first, firstHost) = (first, span.start)
        writableWords = (span.last &- 3) &>> 2 &+ 1
    }

    /// Where the 32-bit word at an address is, a multiple of 4; nil where it is not in the same RAM.
    @inline(__always)  // Once for each CMD_SYNC with a message.
    func place(ofWordAt address: UInt64) -> UnsafeMutableRawPointer? {
        let offset = address &- first
        guard offset &>> 2 < writableWords, let firstHost else { return nil }
        return firstHost + Int(truncatingIfNeeded: offset)
    }
}

/// What remains to be done of commands that were executed within the registers' lock, once it is released.
private struct QuickRemainder: OptionSet {
    let rawValue: UInt8
    /// There may be more commands, or something to acknowledge.
    static let commands = QuickRemainder(rawValue: 1)
    /// The edge of the CMD_SYNC that was executed last, on a line of its own.
    static let edge = QuickRemainder(rawValue: 2)
    /// The message of a global error: that CMD_SYNC's own went to memory that is lost.
    static let errorMessage = QuickRemainder(rawValue: 4)
}

extension SMMUv3 {
    /// How many pages a range may have that is invalidated within the registers' lock.
    private static let mostQuickPages: UInt64 = 32

    /// Writes SMMU_CMDQ_PROD, and executes what there is to execute if the caller may.
    ///
    /// Who holds the registers' lock and finds no consumer is alone with the queue, for whoever becomes the consumer
    /// then looks at the queue within that lock. So what takes no longer than other register accesses can wait is
    /// executed at once, with one lock for all of it; the rest is for ``CommandProcessor/notify(_:_:)``.
    @inline(__always)  // Has one caller.
    func writeProducer(_ value: UInt32) {
        let caller = commandProcessor.caller
        let remainder = registers.withLock { registers in
            registers.writeCmdqProd(value)
            return commandProcessor.isFree(for: caller) ? executeQuickly(&registers) : .commands
        }
        if remainder.rawValue != 0 { finish(remainder, caller) }
    }

    @inline(never)  // Keeps the way small that most writes take.
    private func finish(_ remainder: QuickRemainder, _ caller: CommandProcessor.Caller) {
        if remainder.contains(.errorMessage) { sendMessages() }
        if remainder.contains(.edge) { interrupts.commandSync?.pulse() }
        if remainder.contains(.commands) { commandProcessor.notify(self, caller) }
    }

    /// Executes the commands that SMMU_CMDQ begins with, as far as they are of the plainest kind, and moves CONS past
    /// them.
    @inline(__always)  // As above.
    private func executeQuickly(_ registers: inout RegisterFile) -> QuickRemainder {
        guard registers.isConsuming, !registers.hasTranslationRequest else { return .commands }
        let mask = registers.cmdqIndexMask
        let producer = registers.cmdqProd & mask
        var consumer = registers.cmdqCons.rawValue & mask
        let waiting = (producer &- consumer) & mask
        // Neither a full queue, which is told of when it is so no longer, nor indices that no queue can have; and
        // VMIDs are compared as they are.
        guard waiting <= mask &>> 1, registers.cr0ack.vmw == 0 else { return .commands }
        commandSlot.enter()
        defer { commandSlot.leave() }
        registers.cmdqMemory.find(registers.cmdqStart, byteCount: registers.cmdqByteCount, in: busView)
        guard let host = registers.cmdqMemory.host, let lostFlag = registers.cmdqMemory.lostFlag else {
            return .commands
        }
        var remaining = min(waiting, UInt32(CommandRun.most))
        var remainder = QuickRemainder()
        while remaining > 0, remainder.isEmpty {
            let place = host + Int(consumer & (mask &>> 1)) &* Command.byteCount
            let command = Command(words: SIMD2(smmud_load_u64(place), smmud_load_u64(place + 8)))
            // After the words: what cannot be read any more reads as zero.
            guard smmud_load_u32(lostFlag) == 0, let rest = executeQuickly(command, &registers) else { break }
            remainder = rest
            counters.addCommands(command.opcode.rawValue, 1)
            consumer = (consumer &+ 1) & mask
            remaining &-= 1
        }
        registers.cmdqCons.rawValue = registers.cmdqCons.rawValue & ~0xF_FFFF | consumer
        return consumer == producer ? remainder : remainder.union(.commands)
    }

    /// Executes a CMD_TLBI_NH_VA of a page or a few, or a CMD_SYNC that has nothing to wait for.
    ///
    /// - Returns: nil, having done nothing, where the command is any other.
    @inline(__always)  // Once for each command.
    private func executeQuickly(_ command: Command, _ registers: inout RegisterFile) -> QuickRemainder? {
        switch command.opcode {
        case .tlbiNHVA:
            guard identification.idr0.s1P else { return nil }
            guard command.tg == 0 || !identification.idr3.ril else {
                return invalidateRange(of: command, upTo: Self.mostQuickPages) ? [] : nil
            }
            invalidatePage(of: command)
            return []
        case .sync:
            guard command.cs == 0 else { return synchronizeAndTell(command, &registers) }
            return synchronizeQuickly() ? [] : nil
        default:
            return nil
        }
    }

    /// Counts a CMD_SYNC that has nothing to wait for.
    @inline(__always)  // As above.
    private func synchronizeQuickly() -> Bool {
        guard !identification.idr0.ats || atcInvalidations[0].isComplete, tracker.isIdle else { return false }
        counters.addAsConsumer(.syncs)
        return true
    }

    /// Executes a CMD_SYNC that has nothing to wait for, and tells of it by a word of the RAM that the queue is in, or
    /// not at all.
    ///
    /// - Returns: nil, having done nothing, where it is another.
    @inline(never)  // Keeps its needs of registers to itself.
    private func synchronizeAndTell(_ command: Command, _ registers: inout RegisterFile) -> QuickRemainder? {
        guard command.cs == CompletionSignal.sigIRQ.rawValue else {
            // SIG_SEV without IDR0.SEV is as SIG_NONE.
            guard command.cs == CompletionSignal.sigSEV.rawValue, !identification.idr0.sev else { return nil }
            return synchronizeQuickly() ? [] : nil
        }
        let address = command.msiAddress
        guard identification.idr0.msi, address != 0,
            let place = registers.cmdqMemory.place(ofWordAt: address & (registers.outputAddressLimit &- 1)),
            let lostFlag = registers.cmdqMemory.lostFlag, synchronizeQuickly()
        else { return nil }
        // Before CONS moves, which nobody sees who does not take the registers' lock.
        smmud_store_u32(place, command.msiData)
        smmud_compiler_barrier()
        var remainder: QuickRemainder = interrupts.commandSync == nil ? [] : .edge
        if smmud_load_u32(lostFlag) != 0 {
            reportAbortOfSyncMessage(in: &registers)
            remainder.insert(.errorMessage)
        }
        return remainder
    }
}

extension RegisterFile {
    /// Whether SMMU_CMDQ is enabled, that is acknowledged, and no error stops it.
    @inline(__always)  // Once for each write of SMMU_CMDQ_PROD.
    fileprivate var isConsuming: Bool { cr0.cmdqen && cr0ack.cmdqen && !activeErrors.cmdqErr }

    /// Whether a translation request waits, which is answered before commands are executed.
    @inline(__always)  // Likewise.
    fileprivate var hasTranslationRequest: Bool { gatos.isRunning || vatos.isRunning }

    /// How many bytes SMMU_CMDQ takes.
    fileprivate var cmdqByteCount: UInt64 { UInt64(Command.byteCount) &<< UInt64(cmdqLog2Entries) }
}
