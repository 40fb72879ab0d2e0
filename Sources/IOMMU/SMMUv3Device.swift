// One SMMU as the parts of its driver share it: registers, memory, command queue, numbers. Linux: arm_smmu_device.

import AddressSpace
import BitFields
import DeviceModel
import IOPageTable
import SMMUv3Spec
import Synchronization

/// Hands out ASIDs, one for all SMMUs, as in the kernel, or one for each; and each SMMU's VMIDs.
package final class ASIDAllocator: Sendable {
    /// Which are in use; 0 is never handed out.
    private let used: Mutex<[Bool]>

    /// An allocator with every ASID free but 0.
    package init() { used = Mutex([true]) }

    /// Takes the lowest free ASID below 2^bits.
    func allocate(bits: Int) -> UInt16? {
        used.withLock { used in
            let limit = 1 << bits
            if let free = used.prefix(limit).firstIndex(of: false) {
                used[free] = true
                return UInt16(free)
            }
            guard used.count < limit else { return nil }
            used.append(true)
            return UInt16(used.count - 1)
        }
    }

    func free(_ asid: UInt16) {
        used.withLock { used in
            if used.indices.contains(Int(asid)) { used[Int(asid)] = false }
        }
    }

    /// How many are in use.
    package var usedCount: Int { used.withLock { $0.count(where: { $0 }) - 1 } }
}

/// What the driver, its domains and its tables share of one SMMU.
final class SMMUv3Device: Sendable {
    let registers: RegisterPort
    let features: SMMUFeatures
    let options: SMMUv3DriverOptions
    let memory: any PhysicalAccess
    let frames: any PhysicalPageAllocator
    let commands: CommandQueue
    let asids: ASIDAllocator
    /// Linux: vmid_map.
    ///
    /// 0 is the VMID of stage 1.
    let vmids = ASIDAllocator()
    let log: DriverLog
    let flushTimer: FlushTimer
    let atsMasters = ATSMasters()
    /// The SMMU could not be switched off when the driver stopped: what it may read is never given back.
    let isOutOfControl = Atomic(false)

    init(
        registers: RegisterPort,
        features: SMMUFeatures,
        options: SMMUv3DriverOptions,
        frames: any PhysicalPageAllocator,
        commands: CommandQueue,
        log: DriverLog
    ) {
        self.registers = registers
        self.features = features
        self.options = options
        memory = registers.access
        self.frames = frames
        self.commands = commands
        asids = options.asids
        self.log = log
        flushTimer = FlushTimer(
            clock: options.clock,
            log: log,
            usesThread: options.interruptHandling == .threads
        )
    }

    /// Whether translations belong to the regime EL2-E2H, as the CPU's.
    var usesE2H: Bool { options.usesE2H && features.flags.contains(.hypervisor) }

    /// Whether a command failed only because the SMMU is off: it caches and walks nothing any more.
    func isOff(_ error: SMMUDriverError) -> Bool {
        error == .stopped && !isOutOfControl.load(ordering: .sequentiallyConsistent)
    }

    /// Sends commands and waits until they are complete.
    func complete(_ commands: [Command]) throws(SMMUDriverError) {
        var batch = CommandBatch(self.commands)
        for command in commands { try batch.add(command) }
        try batch.submit()
    }

    /// Changes an STE or a CD from what memory holds, step by step, with `invalidate` after each step.
    func update(
        at address: PhysicalAddress,
        _ makeUpdate: (SIMD8<UInt64>) -> EntryUpdate,
        invalidate: () throws(SMMUDriverError) -> Void
    ) throws(SMMUDriverError) {
        var words = SIMD8<UInt64>()
        do {
            for index in 0..<8 {
                words[index] = try memory.load(.doubleword, at: Self.word(index, of: address))
            }
        } catch { throw .bus(error) }
        for step in makeUpdate(words).steps {
            do {
                for write in step {
                    try memory.store(write.value, .doubleword, at: Self.word(write.index, of: address))
                }
            } catch { throw .bus(error) }
            try invalidate()
        }
    }

    private static func word(_ index: Int, of address: PhysicalAddress) -> PhysicalAddress {
        PhysicalAddress(address.rawValue &+ UInt64(index) &* 8)
    }
}
