// The short ways of a transaction: its translation is known to the port itself or to the TLB, or a quick walk finds it.

import AddressSpace
import CLinux
import DeviceModel
import SystemBus

extension StreamPort {
    /// Begins a transaction that the port's own memory answers: a translation that is known, to RAM that is known.
    ///
    /// - Returns: Where the bytes are; then the transaction lasts until ``endHit(_:_:_:)``. Nil where it takes the long
    ///   way, and has not begun.
    @inline(__always)  // The hit path of every transaction.
    func beginHit(
        _ kind: TransactionKind,
        at address: IOVirtualAddress,
        byteCount: Int,
        _ attributes: TransactionAttributes
    ) -> (host: UnsafeMutableRawPointer, lostFlag: UnsafePointer<UInt32>)? {
        let input = address.rawValue
        let entry = lookaside + PortTranslation.index(input)
        let offset = input & 0xFFF
        // All of this is the port's own; what others change is looked at within the transaction.
        guard !isBracketed, byteCount > 0, entry.pointee.isOf(input, attributes),
            offset &+ UInt64(truncatingIfNeeded: byteCount) <= UInt64(entry.pointee.hostByteCount),
            entry.pointee.answer & (direction(kind) &<< PortTranslation.hostShift) != 0
        else { return nil }
        slot.enter()
        guard entry.pointee.generation == generations.current(entry.pointee.region),
            entry.pointee.mapVersion == bus.version
        else {
            slot.leave()
            return nil
        }
        // Where there are bytes, both are there.
        return (
            entry.pointee.host.unsafelyUnwrapped + Int(truncatingIfNeeded: offset),
            entry.pointee.lostFlag.unsafelyUnwrapped
        )
    }

    /// ``PortTranslation/reads`` or ``PortTranslation/writes``.
    @inline(__always)  // Likewise.
    func direction(_ kind: TransactionKind) -> UInt64 {
        kind == .read ? PortTranslation.reads : PortTranslation.writes
    }

    /// Ends it.
    ///
    /// - Returns: Whether it took place: not, where the memory turned out to be lost.
    @inline(__always)  // Likewise.
    func endHit(_ lostFlag: UnsafePointer<UInt32>, _ counter: Int, _ byteCount: Int) -> Bool {
        smmud_compiler_barrier()
        let isLost = smmud_load_u32(lostFlag) != 0
        slot.leave()
        guard !isLost else { return false }
        slot.count(Counter.directHits)
        slot.count(counter, UInt64(truncatingIfNeeded: byteCount))
        return true
    }

    /// What of the attributes decides about the configuration: SSV, SubstreamID, and whether it is translated.
    @inline(__always)  // For each look-up that misses in the port.
    static func context(_ attributes: TransactionAttributes) -> UInt64 { attributes.bits & 0x3_FFFF_FFFF }

    /// What was invalidated before a look-up: near its address, where the configuration says what that is.
    func stamp(_ address: IOVirtualAddress, _ context: UInt64) -> InvalidationStamp {
        guard known.pointee.context == context, let plan = known.pointee.plan else {
            return generations.stamp()
        }
        let stamp = generations.stamp(plan.pointee.region(of: plan.pointee.canonical(address.rawValue)))
        // Another configuration may have another ASID, and so another region.
        return known.pointee.isGood(context, stamp) ? stamp : generations.stamp()
    }

    /// One transaction of RAM whose translations the TLB or quick walks give: as many pages as it has, up to what one
    /// transaction moves.
    ///
    /// - Parameter own: The device's buffer, from `offset` on.
    /// - Returns: How many bytes were moved; what stopped it there, if it is not the end, takes the long way.
    @inline(never)  // Keeps the hit path small.
    func copyQuickly(
        _ kind: TransactionKind,
        _ start: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ offset: Int,
        _ total: Int,
        _ attributes: TransactionAttributes
    ) -> Int {
        let context = Self.context(attributes)
        guard !isBracketed, known.pointee.context == context, let plan = known.pointee.plan,
            plan.pointee.isAnsweredByTLB
        else { return 0 }
        let address = start.rawValue &+ UInt64(truncatingIfNeeded: offset)
        let limit = min(UInt64(truncatingIfNeeded: total &- offset), Self.largestTransaction)
        // Past the top of the address space: the long way says what becomes of it.
        guard address >= start.rawValue, address &+ limit > address else { return 0 }
        let first = plan.pointee.canonical(address)
        // Likewise past that of the upper half, where the top byte is ignored.
        guard first &+ (limit &- 1) >= first else { return 0 }
        slot.enter()
        defer { slot.leave() }
        // Before the configuration is found to be current: what is invalidated from here on shows in one of the two.
        var look = QuickLook(
            needed: required(kind, attributes),
            context: context,
            plan: plan,
            stamp: generations.stamp(plan.pointee.region(of: first))
        )
        guard isCurrent(&look), !smmu.performance.countsTransactions else { return 0 }
        var run = CopyRun(own: own + offset, isWrite: kind == .write)
        var pieces: UInt64 = 0
        // Whether the page before was followed by this one in the output, too.
        var isInRow = true
        var end: UInt64 = 0
        while run.byteCount < limit {
            let rest = limit &- run.byteCount
            let input = first &+ run.byteCount
            if !isInRow, let hit = pageApart(input, look) {
                let lead = input & 0xFFF
                let output = hit.outputBase | lead
                let count = min(rest, 0x1000 &- lead)
                guard run.append(output, count, bus) else { break }
                pieces &+= 1
                isInRow = output == end
                end = output &+ count
                continue
            }
            guard let found = translations(of: input, rest, &look) else { break }
            if run.append(found.output, found.byteCount, bus) {
                pieces &+= found.pieceCount
            } else {
                // Where RAM ends in the middle, one by one.
                guard found.pieceCount > 1, run.append(found.output, found.firstByteCount, bus) else { break }
                pieces &+= 1
            }
            isInRow = found.pieceCount > 1
            end = found.output &+ found.byteCount
        }
        let moved = run.finish()
        if pieces > 0, let structures = look.structures { record(structures) }
        slot.count(Counter.transactions, pieces)
        slot.count(Counter.tlbHits, pieces &- min(look.walks, pieces))
        slot.count(kind == .read ? Counter.bytesRead : Counter.bytesWritten, moved)
        return Int(truncatingIfNeeded: moved)
    }

    /// Whether the configuration that the port knows is still in force.
    @inline(__always)  // Once for each transaction that the port does not answer.
    private func isCurrent(_ look: inout QuickLook) -> Bool {
        known.pointee.isGood(look.context, look.stamp) || isUnchanged(&look)
    }

    /// The same where no configuration is cached, and it is compared with what is in memory.
    @inline(never)  // Keeps the way of a TLB hit small.
    private func isUnchanged(_ look: inout QuickLook) -> Bool {
        guard known.pointee.generation == 0, known.pointee.context == look.context,
            known.pointee.entryGeneration == look.stamp.configuration, let entry = known.pointee.entry
        else { return false }
        var accesses = LookupAccesses()
        guard smmu.isUnchanged(look.plan, entry, look.stamp, &accesses) else { return false }
        look.structures = accesses
        return true
    }

    /// A small access, within a page: one transaction, which is likely to be followed by others there.
    ///
    /// So the port keeps its translation.
    @inline(__always)  // By one caller for each direction.
    func copyWithinPage(
        _ kind: TransactionKind,
        _ start: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        _ attributes: TransactionAttributes
    ) -> SmallAccessEnd {
        let address = start.rawValue
        let lead = address & 0xFFF
        let last = UInt64(truncatingIfNeeded: byteCount &- 1)
        guard lead &+ last < 0x1000, !isBracketed, known.pointee.context == Self.context(attributes),
            let plan = known.pointee.plan, plan.pointee.isAnsweredByTLB
        else { return .atLength }
        guard keepsTranslations else { return .byWalk }
        let access = SmallAccess(kind, address, own, last, attributes, plan)
        slot.enter()
        // Before the configuration is found to be current: what is invalidated from here on shows in one of the two.
        let stamp = generations.stamp(plan.pointee.region(of: access.input))
        let version = bus.version
        guard known.pointee.generation == stamp.configuration, !smmu.performance.countsTransactions,
            let hit = tlb.hitPage(access.input, plan.pointee.key)
        else {
            slot.leave()
            if tlb.hasPagesAlone { return .byWalk }
            return copyOtherwise(kind, address, own, last, attributes, plan)
        }
        let isDone = copy(access, hit, stamp, version)
        if isDone { slot.count(Counter.tlbHits) }
        slot.leave()
        return isDone ? .done : .atLength
    }

    /// The same where the TLB has something else for it than a page of 4 KiB, or nothing.
    @inline(never)  // Keeps the way of a page of 4 KiB small.
    private func copyOtherwise(
        _ kind: TransactionKind,
        _ address: UInt64,
        _ own: UnsafeMutableRawPointer,
        _ last: UInt64,
        _ attributes: TransactionAttributes,
        _ plan: UnsafePointer<StreamPlan>
    ) -> SmallAccessEnd {
        let access = SmallAccess(kind, address, own, last, attributes, plan)
        slot.enter()
        // As above.
        let stamp = generations.stamp(plan.pointee.region(of: access.input))
        let version = bus.version
        guard known.pointee.generation == stamp.configuration, !smmu.performance.countsTransactions,
            let hit = tlb.hit(access.input, plan.pointee.key)
        else {
            slot.leave()
            return .byWalk
        }
        let isDone = copy(access, hit, stamp, version)
        if isDone { slot.count(Counter.tlbHits) }
        slot.leave()
        return isDone ? .done : .atLength
    }

    /// The same by a walk, in the configuration that the port knows if that is still in force.
    ///
    /// - Parameter plan: Of that configuration, which ``copyWithinPage(_:_:_:_:_:)`` has found fit.
    /// - Returns: Whether it took place; otherwise it takes the long way.
    @inline(__always)  // By one caller for each direction.
    func walkWithinPage(
        _ kind: TransactionKind,
        _ start: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ byteCount: Int,
        _ attributes: TransactionAttributes
    ) -> Bool {
        guard let plan = known.pointee.plan else { return false }
        let last = UInt64(truncatingIfNeeded: byteCount &- 1)
        let access = SmallAccess(kind, start.rawValue, own, last, attributes, plan)
        slot.enter()
        defer { slot.leave() }
        // As above.
        let stamp = generations.stamp(access.plan.pointee.region(of: access.input))
        let version = bus.version
        guard !smmu.performance.countsTransactions else { return false }
        var walk = QuickWalk(
            reader: bus.makeDescriptorReader(),
            plan: access.plan,
            generation: stamp,
            caches: caches
        )
        if known.pointee.generation != stamp.configuration {
            guard isUnchanged(stamp, &walk) else { return false }
        }
        // What is not RAM takes the long way, which walks again: then this walk must not count.
        guard smmu.walkQuickly(access.input, required(access.kind, access.attributes), &walk),
            copy(
                access,
                walk.output & ~0xFFF,
                walk.log2Bytes,
                walk.permissions,
                walk.isOfRegion,
                stamp,
                version
            )
        else {
            report(false, &walk, LookupAccesses())
            return false
        }
        count(&walk)
        keepInTLB(&walk, access.input, stamp)
        return true
    }

    /// Whether the configuration that the port knows is what is in memory, where none is cached.
    @inline(__always)  // By one caller.
    private func isUnchanged(_ stamp: InvalidationStamp, _ walk: inout QuickWalk) -> Bool {
        // What the TLB has is not to be walked: the long way looks there.
        guard !keepsTranslations, known.pointee.generation == 0,
            known.pointee.entryGeneration == stamp.configuration, let entry = known.pointee.entry
        else { return false }
        return smmu.isUnchanged(entry, &walk)
    }

    /// Moves the bytes of a small access whose translation is known, within the transaction that found it.
    // Not @inline(__always): the optimiser calls it all the same, which costs a hit in the TLB 40 instructions.
    @_transparent
    private func copy(
        _ access: SmallAccess,
        _ hit: TLBHit,
        _ stamp: InvalidationStamp,
        _ version: UInt64
    ) -> Bool {
        let log2Bytes = UInt64(hit.log2Bytes)
        let page = access.input & ~0xFFF & ~(UInt64.max &<< log2Bytes)
        return copy(
            access,
            hit.outputBase | page,
            log2Bytes,
            hit.permissions,
            hit.isOfRegion,
            stamp,
            version
        )
    }

    /// - Parameters:
    ///   - output: The output address of the page of 4 KiB.
    ///   - log2Bytes: log2 of the bytes that the translation covers.
    @_transparent  // Likewise.
    private func copy(
        _ access: SmallAccess,
        _ output: UInt64,
        _ log2Bytes: UInt64,
        _ permissions: Permissions,
        _ isOfRegion: @autoclosure () -> Bool,
        _ stamp: InvalidationStamp,
        _ version: UInt64
    ) -> Bool {
        let directions = PortTranslation.directions(permissions, access.attributes)
        let lead = access.input & 0xFFF
        guard directions & direction(access.kind) != 0,
            let span = known.pointee.memory.span(at: output, version, bus),
            span.last >= lead &+ access.last, span.isWritable || access.kind == .read
        else { return false }
        let host = span.start + Int(truncatingIfNeeded: lead)
        if access.kind == .read {
            smmud_copy_from_shared(access.own, host, access.byteCount)
        } else {
            smmud_copy_to_shared(host, access.own, access.byteCount)
        }
        smmud_compiler_barrier()
        // Lost by now: the long way says so.
        guard smmud_load_u32(span.lostFlag) == 0 else { return false }
        if keepsTranslations {
            let mask = ~(UInt64.max &<< log2Bytes)
            lookaside[PortTranslation.index(access.address)] = PortTranslation(
                access.address,
                access.attributes,
                stamp,
                isOfRegion: isOfRegion(),
                output: output,
                last: mask &- (access.input & ~0xFFF & mask),
                directions,
                version,
                span
            )
        }
        // Now that the long way will not count it again.
        slot.count(Counter.transactions)
        slot.count(access.kind == .read ? Counter.bytesRead : Counter.bytesWritten, access.last &+ 1)
        return true
    }

    /// What the TLB has of a page that is probably not followed by the next one in the output.
    @inline(__always)  // Once for each such page of a transaction.
    private func pageApart(_ input: UInt64, _ look: borrowing QuickLook) -> TLBHit? {
        guard keepsTranslations, let hit = tlb.hitPage(input, look.plan.pointee.key) else { return nil }
        // Copies push the sets out of the first caches.
        if input & 0x3000 == 0 { tlb.prefetch(input &+ 32 &<< 12, look.plan.pointee.key) }
        return hit.permissions.contains(look.needed) ? hit : nil
    }

    /// What the TLB or a quick walk makes of a canonical address, and the TLB of what follows it.
    ///
    /// - Parameter wanted: How many bytes are wanted.
    /// - Returns: nil where ``SMMUv3/translate(_:_:_:_:_:)`` has to say what becomes of it.
    @inline(__always)  // Once for each run of pages of a transaction.
    private func translations(of input: UInt64, _ wanted: UInt64, _ look: inout QuickLook) -> TLBRun? {
        guard keepsTranslations, let run = tlb.run(input, wanted, look.plan.pointee.key) else {
            return walkApart(input, wanted &- 1, &look).map { TLBRun($0, input, wanted) }
        }
        return run.permissions.contains(look.needed) ? run : nil
    }

    @inline(never)  // Keeps the way of a TLB hit small.
    private func walkApart(_ input: UInt64, _ last: UInt64, _ look: inout QuickLook) -> TLBHit? {
        walk(input, last, &look)
    }

    @inline(__always)  // By two callers.
    private func walk(_ input: UInt64, _ last: UInt64, _ look: inout QuickLook) -> TLBHit? {
        let region = look.plan.pointee.region(of: input)
        if region != look.stamp.region {
            look.stamp = generations.stamp(region)
            // The TLB would take it for a translation in the new configuration.
            guard known.pointee.isGood(look.context, look.stamp) else { return nil }
        }
        var walk = QuickWalk(
            reader: bus.makeDescriptorReader(),
            plan: look.plan,
            generation: look.stamp,
            caches: caches
        )
        // What is not RAM takes the long way, which walks again: then this walk must not count.
        let isDone =
            smmu.walkQuickly(input, look.needed, &walk)
            && isRAM(walk, input, last, isWrite: look.needed.includesWrite)
        if isDone, look.structures == nil {
            count(&walk)
        } else {
            report(isDone, &walk, isDone ? look.structures ?? LookupAccesses() : LookupAccesses())
            guard isDone else { return nil }
            look.structures = nil
        }
        look.walks &+= 1
        keepInTLB(&walk, input, look.stamp)
        return TLBHit(walk)
    }

    /// Counts a walk that has found what was sought.
    @inline(__always)  // By two callers.
    private func count(_ walk: inout QuickWalk) {
        if smmu.performance.countsAnything { return report(true, &walk, LookupAccesses()) }
        slot.count(Counter.walks, walk.walks)
        slot.count(Counter.descriptors, walk.descriptors)
        if walk.structures != 0 { slot.count(Counter.structures, walk.structures) }
    }

    /// Keeps what a walk has found where there is a TLB.
    @inline(__always)  // Likewise.
    private func keepInTLB(_ walk: inout QuickWalk, _ input: UInt64, _ stamp: InvalidationStamp) {
        guard keepsTranslations else { return }
        slot.count(Counter.tlbMisses)
        translations._withUnsafeGuaranteedRef { $0.fill(&walk, of: input, walkedAt: stamp) }
    }

    /// Whether what a walk has found is RAM that takes the access, as far as both go.
    @inline(__always)  // By one caller.
    private func isRAM(
        _ walk: borrowing QuickWalk,
        _ input: UInt64,
        _ last: UInt64,
        isWrite: Bool
    ) -> Bool {
        let below = ~(UInt64.max &<< walk.log2Bytes)
        // As a rule it is where the tables are.
        if !isWrite, walk.reader.isInSameRAM(walk.output, last) { return true }
        guard let span = bus.hostSpan(at: PhysicalAddress(walk.output)) else { return false }
        guard span.isWritable || !isWrite else { return false }
        return span.last >= min(last, below &- (input & below))
    }

    /// Reports a walk that failed, that followed a look at the configuration, or that somebody else counts.
    ///
    /// - Parameter accesses: What was fetched before it.
    @inline(never)  // Keeps the walk small.
    private func report(_ isDone: Bool, _ walk: inout QuickWalk, _ accesses: LookupAccesses) {
        var accesses = accesses
        walk.report(isDone, to: &accesses, smmu.counters)
        if isDone { accesses.fetchedStructures(walk.structures) }
        record(accesses)
    }

    @inline(__always)  // For each look-up at length.
    func required(_ kind: TransactionKind, _ attributes: TransactionAttributes) -> Permissions {
        let base: UInt8 = kind == .write ? 0b010 : attributes.isInstruction ? 0b100 : 0b001
        return Permissions(rawValue: attributes.isPrivileged ? base &<< 3 : base)
    }
}
