// A requester's port: translate, then access memory, as one transaction in flight.

package import AddressSpace
package import CLinux
package import DeviceModel
import Glibc
import SMMUv3Spec
import SystemBus

/// One requester's view of memory behind an SMMU, bound to a StreamID.
///
/// A port has one user at a time (see ``DMAPort``). It keeps the last translations it used; they are good as long
/// as nothing near them was invalidated since (``InvalidationGeneration``). A hit allocates nothing, takes no lock, and
/// writes no memory but the port's own; nor does one in the TLB.
package final class StreamPort: DMAPort {
    /// The port's counters in its tracker slot.
    //
    // The first seven share a line with the sequence number; the others, which a hit does not count, are on the line
    // that waiters look at.
    enum Counter {
        /// Transactions that the port's own memory answered, without the SMMU.
        static let directHits = 1
        /// Others whose translation the port knew.
        static let hits = 2
        static let bytesRead = 3
        static let bytesWritten = 4
        static let tlbHits = 5
        /// All transactions but the direct hits.
        static let transactions = 6
        /// Walks, descriptors and other structures of look-ups; see ``LookupAccesses``.
        static let walks = 7
        static let descriptors = 8
        static let structures = 9
        /// Look-ups that the TLB did not answer, where a quick walk followed at once.
        static let tlbMisses = 10
    }

    /// What one transaction moves at most, so that a CMD_SYNC does not wait long for it.
    static let largestTransaction: UInt64 = 1 << 20

    package let streamID: StreamID
    let smmu: SMMUv3
    /// The bus, which the SMMU keeps alive.
    let bus: BusView
    let slot: TransactionTracker.Slot
    /// Between ``beginTransaction()`` and ``endTransaction()``: the transaction has begun already.
    var isBracketed = false
    /// Whether its transactions may wait for software.
    private let canStall: Bool
    /// The fault of a look-up that answered ``Outcome/stalled``, which nobody has heard of yet.
    private var pendingStall: (fault: TranslationFault, transaction: Transaction)?
    /// Commands are executed inside the register write that makes them visible, which may be one of ours.
    private let executesInline: Bool
    /// A port keeps what the SMMU's own caches could keep, and nothing where there are none.
    let keepsTranslations: Bool
    /// Which caches its walks go by.
    let caches: WalkCaches
    /// The SMMU's, which it keeps alive.
    let generations: InvalidationCounts
    /// The SMMU's, which it keeps alive.
    let tlb: TLBTable
    /// The SMMU's, which it keeps alive: filling it counts no reference.
    let translations: Unmanaged<TranslationCache>
    let lookaside: UnsafeMutablePointer<PortTranslation>
    /// The configuration that the port used last: found again for every page that misses above.
    //
    // A pointer: reading what is behind it copies nothing and asks nobody whether somebody is writing it.
    let known: UnsafeMutablePointer<KnownConfiguration>

    init(smmu: SMMUv3, streamID: StreamID, canStall: Bool) {
        self.smmu = smmu
        self.canStall = canStall
        self.streamID = streamID
        bus = smmu.bus.view
        slot = smmu.tracker.acquireSlot()
        executesInline = smmu.options.commandExecution == .inline
        lookaside = Self.allocateLines(PortTranslation.self, PortTranslation.count)
        lookaside.initialize(repeating: PortTranslation(), count: PortTranslation.count)
        known = Self.allocateLines(KnownConfiguration.self, 1)
        known.initialize(to: KnownConfiguration())
        generations = smmu.invalidationGeneration.counts
        tlb = smmu.translationCache.table
        translations = .passUnretained(smmu.translationCache)
        keepsTranslations = smmu.options.tlbEntries > 0
        caches = smmu.walkCaches(.cached)
    }

    deinit {
        smmu.tracker.releaseSlot(slot)
        UnsafeMutableRawPointer(lookaside).deallocate()
        known.deinitialize(count: 1)
        UnsafeMutableRawPointer(known).deallocate()
    }

    /// Memory that begins with a line of the host's caches, and shares none with anything else.
    private static func allocateLines<Element>(_ type: Element.Type, _ count: Int)
        -> UnsafeMutablePointer<Element>
    {
        let lineBytes = 64
        let byteCount = (count * MemoryLayout<Element>.stride + lineBytes - 1) & ~(lineBytes - 1)
        return UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: lineBytes)
            .bindMemory(to: type, capacity: count)
    }

    package func rest() { smmu.tracker.rest() }

    // MARK: DMA

    package func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        guard let own = buffer.baseAddress else { return }
        if let memory = beginHit(.read, at: address, byteCount: buffer.count, attributes) {
            smmud_copy_from_shared(own, memory.host, buffer.count)
            if endHit(memory.lostFlag, Counter.bytesRead, buffer.count) { return }
        }
        try readSlowly(at: address, own, buffer.count, attributes)
    }

    package func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        guard let own = buffer.baseAddress else { return }
        if let memory = beginHit(.write, at: address, byteCount: buffer.count, attributes) {
            smmud_copy_to_shared(memory.host, own, buffer.count)
            if endHit(memory.lostFlag, Counter.bytesWritten, buffer.count) { return }
        }
        try writeSlowly(UnsafeMutableRawPointer(mutating: own), buffer.count, at: address, attributes)
    }

    @inline(never)  // Keeps the hit path small: it needs few registers.
    private func readSlowly(
        at address: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        switch copyWithinPage(.read, address, own, byteCount, attributes) {
        case .done: return
        case .byWalk: try readByWalk(at: address, own, byteCount, attributes)
        case .atLength: try readAtLength(at: address, own, byteCount, attributes)
        }
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func readByWalk(
        at address: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        if walkWithinPage(.read, address, own, byteCount, attributes) { return }
        try readAtLength(at: address, own, byteCount, attributes)
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func readAtLength(
        at address: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        var done = 0
        while done < byteCount {
            let quick = copyQuickly(.read, address, own, done, byteCount, attributes)
            done += quick
            // What stopped it, if there is something left, takes the long way.
            guard quick == 0 else { continue }
            let count = try transfer(.read, at: address, offset: done, of: byteCount, attributes) {
                (output, offset, count) throws(BusError) in
                let piece = UnsafeMutableRawBufferPointer(start: own + offset, count: count)
                if let output {
                    try bus.copyOut(at: output, into: piece)
                } else {
                    piece.initializeMemory(as: UInt8.self, repeating: 0)
                }
            }
            slot.count(Counter.bytesRead, UInt64(truncatingIfNeeded: count))
            done += count
        }
    }

    @inline(never)  // Likewise.
    private func writeSlowly(
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        switch copyWithinPage(.write, address, own, byteCount, attributes) {
        case .done: return
        case .byWalk: try writeByWalk(own, byteCount, at: address, attributes)
        case .atLength: try writeAtLength(own, byteCount, at: address, attributes)
        }
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func writeByWalk(
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        if walkWithinPage(.write, address, own, byteCount, attributes) { return }
        try writeAtLength(own, byteCount, at: address, attributes)
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func writeAtLength(
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        var done = 0
        while done < byteCount {
            let quick = copyQuickly(.write, address, own, done, byteCount, attributes)
            done += quick
            // What stopped it, if there is something left, takes the long way.
            guard quick == 0 else { continue }
            let count = try transfer(.write, at: address, offset: done, of: byteCount, attributes) {
                (output, offset, count) throws(BusError) in
                guard let output else { return }
                try bus.copyIn(UnsafeRawBufferPointer(start: own + offset, count: count), at: output)
            }
            slot.count(Counter.bytesWritten, UInt64(truncatingIfNeeded: count))
            done += count
        }
    }

    package func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool {
        enterTransaction()
        defer { leaveTransaction() }
        slot.count(Counter.transactions)
        var segments: [iovec] = []
        var total = 0
        var translations: UInt64 = 0
        var isLent = true
        defer {
            // Where it is copied instead, that is what counts.
            if isLent, smmu.performance.countsTransactions {
                smmu.performance.recordTransactions(
                    streamID,
                    areTranslated: attributes.isTranslated,
                    translations
                )
            }
        }
        for range in ranges {
            isLent = try append(range, direction, attributes, to: &segments, &translations)
            guard isLent else { return false }
            total &+= range.byteCount
        }
        segments.withUnsafeBufferPointer(body)
        slot.count(direction == .read ? Counter.bytesRead : Counter.bytesWritten, UInt64(max(0, total)))
        return true
    }

    /// Appends the host's segments of one range, translation by translation, and counts those.
    private func append(
        _ range: DMARange,
        _ direction: DMADirection,
        _ attributes: TransactionAttributes,
        to segments: inout [iovec],
        _ translations: inout UInt64
    ) throws(DMAFault) -> Bool {
        var done = 0
        while done < range.byteCount {
            // Past the top of the address space: the copying path says what becomes of it.
            guard let address = range.address.advanced(by: UInt64(done)) else { return false }
            let wanted = UInt64(range.byteCount - done)
            translations &+= 1
            switch translate(address, wanted, direction == .read ? .read : .write, attributes) {
            case .output(let output, let count):
                let piece = Int(truncatingIfNeeded: count)
                guard smmu.bus.appendSegments(at: output, byteCount: piece, for: direction, to: &segments)
                else { return false }
                done += piece
            case .readAsZero: return false
            // A loan cannot wait: its earlier translations would be in flight meanwhile. A copy can.
            case .stalled: return false
            case .terminated(let event):
                throw DMAFault(
                    cause: event.map { .event($0) } ?? .aborted,
                    address: address,
                    bytesTransferred: 0
                )
            }
        }
        return true
    }

    /// One transaction: as much of a DMA as one translation covers.
    ///
    /// `access` moves the bytes; its address is nil where the architecture answers with zeros and ignored writes
    /// (CD.A == 0).
    ///
    /// - Returns: How many bytes it was.
    /// - Throws: ``DMAFault`` where it was terminated, or nobody is at the address that it was translated to.
    @inline(__always)  // Its closure must not become a heap object.
    private func transfer(
        _ kind: TransactionKind,
        at start: IOVirtualAddress,
        offset: Int,
        of total: Int,
        _ attributes: TransactionAttributes,
        _ access: (PhysicalAddress?, Int, Int) throws(BusError) -> Void
    ) throws(DMAFault) -> Int {
        guard let address = start.advanced(by: UInt64(truncatingIfNeeded: offset)) else {
            // Past the top of the address space: no bus has such an address.
            throw DMAFault(
                cause: .bus(.unassigned(PhysicalAddress(.max))),
                address: start,
                bytesTransferred: UInt64(offset)
            )
        }
        let wanted = min(UInt64(total - offset), Self.largestTransaction)
        enterTransaction()
        defer { leaveTransaction() }
        slot.count(Counter.transactions)
        if smmu.performance.countsTransactions {
            smmu.performance.recordTransactions(streamID, areTranslated: attributes.isTranslated)
        }
        let output: PhysicalAddress?
        let count: UInt64
        switch translate(address, wanted, kind, attributes) {
        case .output(let translated, let covered): (output, count) = (translated, covered)
        case .readAsZero(let covered): (output, count) = (nil, covered)
        case .stalled: (output, count) = try waitOutStall(address, wanted, kind, attributes, offset)
        case .terminated(let event):
            throw DMAFault(
                cause: event.map { .event($0) } ?? .aborted,
                address: address,
                bytesTransferred: UInt64(truncatingIfNeeded: offset)
            )
        }
        do throws(BusError) {
            try access(output, offset, Int(truncatingIfNeeded: count))
        } catch {
            // The bus names the byte at which it failed; those before it have been transferred.
            let done = output.map { error.address.rawValue &- $0.rawValue } ?? 0
            throw DMAFault(
                cause: .bus(error),
                address: IOVirtualAddress(address.rawValue &+ done),
                bytesTransferred: UInt64(truncatingIfNeeded: offset) &+ done
            )
        }
        return Int(truncatingIfNeeded: count)
    }

    /// From here on a CMD_SYNC waits, until ``leaveTransaction()``.
    @inline(__always)  // On the hit path of every transaction.
    func enterTransaction() {
        guard !isBracketed else { return }
        if executesInline { smmu.commandProcessor.enterTransaction() }
        slot.enter()
    }

    @inline(__always)  // Likewise.
    func leaveTransaction() {
        guard !isBracketed else { return }
        slot.leave()
        if executesInline { smmu.commandProcessor.leaveTransaction(smmu) }
    }

    private enum Outcome {
        case output(PhysicalAddress, UInt64)
        case readAsZero(UInt64)
        case terminated(UInt8?)
        /// ``StreamPort/pendingStall`` says on what.
        case stalled
    }

    @inline(__always)  // The hit path of every transaction.
    private func translate(
        _ address: IOVirtualAddress,
        _ wanted: UInt64,
        _ kind: TransactionKind,
        _ attributes: TransactionAttributes
    ) -> Outcome {
        let input = address.rawValue
        let entry = lookaside + PortTranslation.index(input)
        if entry.pointee.isOf(input, attributes), entry.pointee.answer & direction(kind) != 0,
            entry.pointee.generation == generations.current(entry.pointee.region)
        {
            slot.count(Counter.hits)
            let offset = input & 0xFFF
            return .output(
                PhysicalAddress(entry.pointee.answer & ~0xFFF | offset),
                min(wanted, UInt64(entry.pointee.byteCount) &- offset)
            )
        }
        let context = Self.context(attributes)
        return translateSlowly(address, wanted, kind, attributes, context, stamp(address, context))
    }

    @inline(never)  // Keeps the hit path small.
    private func translateSlowly(
        _ address: IOVirtualAddress,
        _ wanted: UInt64,
        _ kind: TransactionKind,
        _ attributes: TransactionAttributes,
        _ context: UInt64,
        _ stamp: InvalidationStamp
    ) -> Outcome {
        var accesses = LookupAccesses()
        do {
            let plan = try currentPlan(address, kind, attributes, context, stamp, &accesses)
            if let plan,
                let quick = smmu.translateQuickly(
                    address.rawValue,
                    EffectiveAccess(kind, attributes),
                    plan,
                    stamp,
                    &accesses
                )
            {
                record(accesses)
                keep(
                    quick.output,
                    quick.byteCount,
                    quick.permissions,
                    isOfRegion: quick.isOfRegion,
                    for: address,
                    attributes,
                    stamp
                )
                return .output(PhysicalAddress(quick.output), min(wanted, quick.byteCount))
            }
            let translation = try translateInContext(
                self.transaction(address, kind, attributes),
                plan == nil ? nil : known.pointee.resolved,
                stamp,
                &accesses
            )
            record(accesses)
            keep(
                translation.output.rawValue,
                translation.byteCount,
                translation.incomingPermissions,
                isOfRegion: translation.isOfRegion,
                for: address,
                attributes,
                stamp
            )
            return .output(translation.output, min(wanted, translation.byteCount))
        } catch {
            // First: who sees the event finds it counted.
            record(accesses)
            let transaction = self.transaction(address, kind, attributes)
            if error.response == .stall, canStall, !isBracketed {
                pendingStall = (error, transaction)
                return .stalled
            }
            smmu.report(error, transaction)
            switch error.response {
            case .abort, .stall:
                return .terminated(error.event?.rawValue)
            case .readAsZeroWriteIgnored:
                return .readAsZero(Self.zeroes(wanted, at: address))
            }
        }
    }

    /// Keeps a translation for the port's next transactions.
    @inline(__always)  // For each look-up that misses in the TLB.
    private func keep(
        _ output: UInt64,
        _ byteCount: UInt64,
        _ permissions: Permissions,
        isOfRegion: Bool,
        for address: IOVirtualAddress,
        _ attributes: TransactionAttributes,
        _ stamp: InvalidationStamp
    ) {
        guard keepsTranslations else { return }
        let version = bus.version
        let offset = address.rawValue & 0xFFF
        let page = output &- offset
        // Direct hits are not reported to monitors. Whoever begins to count later ends all that ports keep.
        let isReported = smmu.performance.countsTransactions
        lookaside[PortTranslation.index(address.rawValue)] = PortTranslation(
            address.rawValue,
            attributes,
            stamp,
            isOfRegion: isOfRegion,
            output: page,
            last: byteCount &+ offset &- 1,
            PortTranslation.directions(permissions, attributes),
            version,
            isReported ? nil : bus.hostSpan(at: PhysicalAddress(page))
        )
    }

    /// Waits until software has decided about a transaction that stalls, and does as it says.
    ///
    /// Outside of the slot while it waits: a stalled transaction is not in flight, or the CMD_SYNC before its
    /// CMD_RESUME would wait for ever.
    ///
    /// - Returns: Where it goes, as ``transfer(_:at:offset:of:_:_:)`` has it, and how many bytes that covers.
    @inline(never)  // Keeps the hit path small.
    private func waitOutStall(
        _ address: IOVirtualAddress,
        _ wanted: UInt64,
        _ kind: TransactionKind,
        _ attributes: TransactionAttributes,
        _ offset: Int
    ) throws(DMAFault) -> (PhysicalAddress?, UInt64) {
        var event: UInt8?
        waiting: while let (fault, transaction) = pendingStall {
            pendingStall = nil
            event = fault.event?.rawValue
            guard let stalled = smmu.stall(fault, transaction) else { break }
            slot.leave()
            if executesInline { smmu.commandProcessor.leaveTransaction(smmu) }
            let resolution = stalled.wait()
            if executesInline { smmu.commandProcessor.enterTransaction() }
            slot.enter()
            switch resolution {
            case .abort: break waiting
            case .readAsZeroWriteIgnored: return (nil, Self.zeroes(wanted, at: address))
            case .retry: break
            }
            switch translate(address, wanted, kind, attributes) {
            case .output(let output, let count): return (output, count)
            case .readAsZero(let count): return (nil, count)
            case .terminated(let other):
                event = other
                break waiting
            case .stalled: continue
            }
        }
        throw DMAFault(
            cause: event.map { .event($0) } ?? .aborted,
            address: address,
            bytesTransferred: UInt64(truncatingIfNeeded: offset)
        )
    }

    /// How many bytes an answer of zeroes covers: to the end of the smallest page, because the next may translate.
    private static func zeroes(_ wanted: UInt64, at address: IOVirtualAddress) -> UInt64 {
        min(wanted, 0x1000 &- (address.rawValue & 0xFFF))
    }
}
