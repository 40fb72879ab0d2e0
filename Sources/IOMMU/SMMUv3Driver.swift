// The SMMUv3 driver: what it owns, how it starts and how it stops.

package import AddressSpace
package import DeviceModel
package import IOPageTable
import SMMUv3Spec
import Synchronization

/// Drives one SMMUv3 through its registers, memory and interrupt lines, as Linux's arm-smmu-v3 does.
///
/// Any thread may call any of it. Lock order: `attachments`, a process's or a domain's state, `eventQueue` and
/// `pageRequestQueue`, `errorHandling`, the command queue, and as leaves the fault queue's, the log, the trace and
/// interrupt lines.
package final class SMMUv3Driver: Sendable {
    package let name: String
    /// What probing found.
    package let features: SMMUFeatures
    package let log: DriverLog
    /// The domain in which everything is aborted.
    package let blockedDomain: IOMMUDomain
    /// The domain in which nothing is translated.
    package let identityDomain: IOMMUDomain

    let device: SMMUv3Device
    let attachments: Mutex<Attachments>
    let eventQueue: Mutex<OutputQueue>
    /// Nil where the SMMU has no page requests.
    let pageRequestQueue: PageRequestQueue?
    let pageFaults: PageFaultQueue
    let errorHandling = Mutex(())
    let interrupts: InterruptHandlers
    private let isStopped = Atomic(false)

    /// Probes the SMMU, builds its queues and tables, resets it and switches it on.
    ///
    /// - Parameters:
    ///   - access: The bus that leads to its registers and to memory.
    ///   - registerBase: Where its register window is.
    ///   - registerByteCount: How large that window is.
    ///   - frames: What tables and queues are made of.
    ///   - interrupts: Its lines.
    ///   - options: What firmware and parameters say.
    /// - Throws: Why the SMMU cannot be driven. It is off then, as far as it obeys.
    package init(
        access: any PhysicalAccess,
        registerBase: PhysicalAddress,
        registerByteCount: UInt64,
        frames: any PhysicalPageAllocator,
        interrupts: SMMUInterrupts,
        options: SMMUv3DriverOptions
    ) throws(SMMUDriverError) {
        let log = DriverLog(name: options.name, sink: options.logSink)
        let needed = options.hasBrokenPage1 ? RegisterOffset.page1 : RegisterOffset.windowByteCount
        guard registerByteCount >= needed, registerBase.advanced(by: needed - 1) != nil else {
            let last = registerBase.rawValue &+ registerByteCount &- 1
            log.note(
                .error,
                "MMIO region too small ([mem 0x\(hex(registerBase.rawValue, digits: 8))-0x\(hex(last, digits: 8))])"
            )
            throw .registerWindowTooSmall(byteCount: registerByteCount, needed: needed)
        }
        let registers = RegisterPort(
            access: access,
            base: registerBase,
            page1: options.hasBrokenPage1 ? 0 : RegisterOffset.page1,
            trace: options.trace,
            clock: options.clock
        )
        var probe = HardwareProbe(
            registers: registers,
            isCoherent: options.isCoherent,
            httuOverride: options.httuOverride,
            log: log
        )
        let features: SMMUFeatures
        do throws(SMMUDriverError) {
            features = try probe.run()
        } catch {
            if case .unsupportedHardware(_, _, let reason) = error { log.note(.error, reason) }
            throw error
        }
        let structures = try DriverStructures(registers, features, options, frames, log)

        name = options.name
        self.features = features
        self.log = log
        let device = SMMUv3Device(
            registers: registers,
            features: features,
            options: options,
            frames: frames,
            commands: structures.commands,
            log: log
        )
        self.device = device
        blockedDomain = try IOMMUDomain(.blocked, device: device, granule: nil)
        identityDomain = try IOMMUDomain(.identity, device: device, granule: nil)
        attachments = Mutex(Attachments(streamTable: structures.streamTable))
        eventQueue = Mutex(structures.eventQueue)
        pageRequestQueue = structures.pageRequestQueue.map { PageRequestQueue($0) }
        pageFaults = PageFaultQueue(usesThread: options.interruptHandling == .threads) { fault, response in
            device.answer(fault, response)
        }
        self.interrupts = InterruptHandlers(interrupts)
        do throws(SMMUDriverError) {
            try reset()
        } catch {
            log.note(.error, "\(error)")
            stop()
            throw error
        }
    }

    deinit { stop() }

    /// Switches the SMMU off and ends the handlers; after that nothing of it reads memory.
    ///
    /// Transactions that come later bypass or are aborted as GBPA says.
    package func stop() {
        guard !isStopped.exchange(true, ordering: .acquiringAndReleasing) else { return }
        do throws(SMMUDriverError) {
            try disable()
        } catch {
            // It may go on reading its structures: they are lost rather than used twice.
            log.note(.error, "failed to disable the SMMU, its memory is lost: \(error)")
            device.isOutOfControl.store(true, ordering: .sequentiallyConsistent)
            device.commands.memory.abandon()
            eventQueue.withLock { $0.memory.abandon() }
            pageRequestQueue?.withLock { $0.memory.abandon() }
            attachments.withLock { $0.abandonMemory() }
        }
        // Not before: who waits for an invalidation may use the memory again when the wait ends with the SMMU off.
        device.commands.stop()
        pageFaults.stop()
        device.flushTimer.stop()
        device.commands.setWhileWaiting(nil)
        interrupts.stop()
    }

    /// CR0 = 0.
    func disable() throws(SMMUDriverError) {
        try device.registers.write32(
            RegisterOffset.cr0,
            0,
            acknowledgedBy: RegisterOffset.cr0ack,
            named: "SMMU_CR0ACK"
        )
    }

    /// A new domain of this SMMU.
    ///
    /// - Parameters:
    ///   - kind: What it does; blocked and identity domains are all alike.
    ///   - granule: The smallest page; nil takes the driver's choice.
    ///   - tracksDirtyState: Whether hardware notes what is written; ``SMMUDriverError/noDirtyTracking`` where it
    ///     cannot.
    ///   - isNestingParent: Whether it is stage 2, for others to nest in, though the SMMU has stage 1
    ///     (IOMMU_HWPT_ALLOC_NEST_PARENT); ``SMMUDriverError/noNesting`` where it has not both.
    package func makeDomain(
        _ kind: IOMMUDomainKind,
        granule: PageTableGranule? = nil,
        tracksDirtyState: Bool = false,
        isNestingParent: Bool = false
    ) throws(SMMUDriverError) -> IOMMUDomain {
        guard !isStopped.load(ordering: .acquiring) else { throw .stopped }
        return switch kind {
        case .blocked: blockedDomain
        case .identity: identityDomain
        case .dma, .dmaFQ, .unmanaged:
            try IOMMUDomain(
                kind,
                device: device,
                granule: granule,
                tracksDirtyState: tracksDirtyState,
                isNestingParent: isNestingParent
            )
        }
    }

    /// The events from `sequence` on that are still kept.
    package func events(since sequence: UInt64 = 0) -> [DriverEvent] { log.events(since: sequence) }

    /// Flushes the flush queues whose 10 ms are over; for drivers without threads, whose clock is somebody else's.
    package func pollTimers() { device.flushTimer.expire() }

    /// Waits until every command so far is complete, and with them every transaction that they concern.
    package func synchronize() throws(SMMUDriverError) { try device.complete([]) }
}

/// What is allocated between probe and reset.
struct DriverStructures {
    let commands: CommandQueue
    let eventQueue: OutputQueue
    let pageRequestQueue: OutputQueue?
    let streamTable: StreamTable

    init(
        _ registers: RegisterPort,
        _ features: SMMUFeatures,
        _ options: SMMUv3DriverOptions,
        _ frames: any PhysicalPageAllocator,
        _ log: DriverLog
    ) throws(SMMUDriverError) {
        let usesMSIPolling =
            !options.disablesMSIPolling && features.flags.isSuperset(of: [.msi, .coherent])
        let limit = max(7, options.queueLog2Limit)
        let commands = try Self.queue(
            "cmdq",
            entryByteCount: Command.byteCount,
            log2: min(features.commandQueueLog2, limit),
            frames,
            log
        )
        self.commands = CommandQueue(
            log2Count: commands.log2,
            memory: commands.memory,
            registers: registers,
            features: features,
            usesMSIPolling: usesMSIPolling,
            log: log
        )
        let events = try Self.queue(
            "evtq",
            entryByteCount: EventRecord.byteCount,
            log2: min(features.eventQueueLog2, limit),
            frames,
            log
        )
        eventQueue = OutputQueue(.events, memory: events.memory, log2Count: events.log2)
        if features.flags.contains(.pageRequests) {
            let requests = try Self.queue(
                "priq",
                entryByteCount: PRIEntry.byteCount,
                log2: min(features.pageRequestQueueLog2, limit),
                frames,
                log
            )
            pageRequestQueue = OutputQueue(.pageRequests, memory: requests.memory, log2Count: requests.log2)
        } else {
            pageRequestQueue = nil
        }

        let preset = options.disablesBypass ? STE.aborting : .bypassing(features)
        var streamTable = try StreamTable(
            features,
            preset: preset,
            memory: registers.access,
            frames: frames,
            log: log
        )
        // Nothing reads the table yet: the entries can be written as they come.
        for stream in options.firmwareStreams {
            let entry = try streamTable.entry(for: stream)
            let bypass = STE.bypassing(features)
            do {
                for index in 0..<2 {
                    try registers.access.store(
                        bypass.words[index],
                        .doubleword,
                        at: PhysicalAddress(entry.rawValue &+ UInt64(index) &* 8)
                    )
                }
            } catch { throw .bus(error) }
        }
        self.streamTable = streamTable
    }

    /// Memory for a queue: as many entries as there can be, halved until they can be had, down to a page.
    private static func queue(
        _ name: String,
        entryByteCount: Int,
        log2: Int,
        _ frames: any PhysicalPageAllocator,
        _ log: DriverLog
    ) throws(SMMUDriverError) -> (memory: OwnedFrames, log2: Int) {
        var log2 = log2
        while true {
            let byteCount = UInt64(entryByteCount) << UInt64(log2)
            do {
                let memory = try OwnedFrames(frames, byteCount: byteCount, alignment: 32)
                log.note(.info, "allocated \(1 << log2) entries for \(name)")
                return (memory, log2)
            } catch {
                guard byteCount > 4096 else {
                    log.note(.error, "failed to allocate queue (0x\(hex(byteCount)) bytes) for \(name)")
                    throw .noMemory(purpose: name, error)
                }
                log2 -= 1
            }
        }
    }
}
