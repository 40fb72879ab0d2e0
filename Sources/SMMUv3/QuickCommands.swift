// What most writes of SMMU_CMDQ_PROD bring, a page's CMD_TLBI_* and a CMD_SYNC, executed within the registers' lock.

import AddressSpace
import CLinux
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

/// Where SMMU_CMDQ is in the host: worked out once for a map and a SMMU_CMDQ_BASE.
// SAFETY of @unchecked Sendable: the pointers are used by accesses under way alone, which whoever takes memory off the
// bus waits for.
struct CommandQueueMemory: @unchecked Sendable {
    /// ``BusView/version`` when it was found; what no version is says that nothing was looked for.
    private var version = UInt64.max
    /// nil where the queue is not all in one piece of memory of our own.
    private(set) var host: UnsafeMutableRawPointer?
    private(set) var lostFlag: UnsafePointer<UInt32>?

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
        guard let span = map.hostSpan(at: PhysicalAddress(start)), span.last >= byteCount &- 1,
            UInt(bitPattern: span.start) & 7 == 0
        else { return }
        host = span.start
        lostFlag = span.lostFlag
    }
}

extension SMMUv3 {
    /// Writes SMMU_CMDQ_PROD, and executes what there is to execute if the caller may.
    ///
    /// Who holds the registers' lock and finds no consumer is alone with the queue, for whoever becomes the consumer
    /// then looks at the queue within that lock. So what takes no longer than other register accesses can wait is
    /// executed at once, with one lock for all of it; the rest is for ``CommandProcessor/notify(_:_:)``.
    @inline(__always)  // Has one caller.
    func writeProducer(_ value: UInt32) {
        let caller = commandProcessor.caller
        let isOver = registers.withLock { registers in
            registers.writeCmdqProd(value)
            return commandProcessor.isFree(for: caller) && executeQuickly(&registers)
        }
        if !isOver { commandProcessor.notify(self, caller) }
    }

    /// Executes the commands that SMMU_CMDQ begins with, as far as they are of the plainest kind, and moves CONS past
    /// them.
    ///
    /// - Returns: Whether nothing is left to do: no command, nothing to acknowledge.
    @inline(__always)  // As above.
    private func executeQuickly(_ registers: inout RegisterFile) -> Bool {
        guard hasOneCommandQueue, registers.isConsuming else { return false }
        let mask = registers.cmdqIndexMask
        let producer = registers.cmdqProd & mask
        var consumer = registers.cmdqCons.rawValue & mask
        let waiting = (producer &- consumer) & mask
        // Neither a full queue, which is told of when it is so no longer, nor indices that no queue can have; and
        // VMIDs are compared as they are.
        guard waiting <= mask &>> 1, registers.cr0ack.vmw == 0 else { return false }
        commandSlot.enter()
        defer { commandSlot.leave() }
        registers.cmdqMemory.find(registers.cmdqStart, byteCount: registers.cmdqByteCount, in: busView)
        guard let host = registers.cmdqMemory.host, let lostFlag = registers.cmdqMemory.lostFlag else {
            return false
        }
        var remaining = min(waiting, UInt32(CommandRun.most))
        while remaining > 0 {
            let place = host + Int(consumer & (mask &>> 1)) &* Command.byteCount
            let command = Command(words: SIMD2(smmud_load_u64(place), smmud_load_u64(place + 8)))
            // After the words: what cannot be read any more reads as zero.
            guard smmud_load_u32(lostFlag) == 0, executeQuickly(command) else { break }
            consumer = (consumer &+ 1) & mask
            remaining &-= 1
        }
        registers.cmdqCons.rawValue = registers.cmdqCons.rawValue & ~0xF_FFFF | consumer
        return consumer == producer
    }

    /// Executes and counts a CMD_TLBI_NH_VA of a page, or a CMD_SYNC that has nothing to wait for and nobody to tell.
    ///
    /// - Returns: false, having done nothing, where the command is any other.
    @inline(__always)  // Once for each command.
    private func executeQuickly(_ command: Command) -> Bool {
        switch command.opcode {
        case .tlbiNHVA:
            guard identification.idr0.s1P, command.tg == 0 || !identification.idr3.ril else { return false }
            invalidatePage(of: command)
        case .sync:
            guard command.cs == 0, !identification.idr0.ats || atcInvalidations[0].isComplete, tracker.isIdle
            else { return false }
            counters.addAsConsumer(.syncs)
        default:
            return false
        }
        counters.addCommands(command.opcode.rawValue, 1)
        return true
    }
}

extension RegisterFile {
    /// Whether SMMU_CMDQ is enabled, that is acknowledged, and no error stops it.
    @inline(__always)  // Once for each write of SMMU_CMDQ_PROD.
    fileprivate var isConsuming: Bool { cr0.cmdqen && cr0ack.cmdqen && !activeErrors.cmdqErr }

    /// How many bytes SMMU_CMDQ takes.
    fileprivate var cmdqByteCount: UInt64 { UInt64(Command.byteCount) &<< UInt64(cmdqLog2Entries) }
}
