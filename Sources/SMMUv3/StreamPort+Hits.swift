// The ways of a transaction whose translation is known: to the port itself, or to the TLB.

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
        guard !isBracketed, byteCount > 0 else { return nil }
        slot.enter()
        let input = address.rawValue
        let entry = lookaside + PortTranslation.index(input)
        let offset = input & 0xFFF
        guard entry.pointee.page == input & ~0xFFF,
            entry.pointee.generation == generations.current(entry.pointee.region),
            entry.pointee.context == Self.context(attributes),
            entry.pointee.hostPermissions.contains(required(kind, attributes)),
            entry.pointee.mapVersion == bus.version,
            offset &+ UInt64(truncatingIfNeeded: byteCount) <= entry.pointee.hostByteCount,
            !smmu.performance.countsTransactions,
            let host = entry.pointee.host, let lostFlag = entry.pointee.lostFlag,
            smmud_load_u32(lostFlag) == 0
        else {
            slot.leave()
            return nil
        }
        return (host + Int(truncatingIfNeeded: offset), lostFlag)
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
        slot.count(Counter.transactions)
        slot.count(Counter.hits)
        slot.count(counter, UInt64(truncatingIfNeeded: byteCount))
        return true
    }

    /// SSV and SubstreamID of a transaction, or that it is translated.
    @inline(__always)  // Likewise.
    static func context(_ attributes: TransactionAttributes) -> UInt64 {
        // A translated transaction has no SubstreamID that counts (SMMU_IDR3.PASIDTT is 0).
        attributes.isTranslated
            ? 1 << 33 : attributes.substreamID.map { UInt64($0.rawValue) | 1 << 32 } ?? 0
    }

    /// What was invalidated before a look-up: near its address, where the configuration says what that is.
    func stamp(_ address: IOVirtualAddress, _ context: UInt64) -> InvalidationStamp {
        guard known.pointee.context == context, let plan = known.pointee.plan else {
            return generations.stamp()
        }
        let stamp = generations.stamp(plan.pointee.region(of: plan.pointee.canonical(address.rawValue)))
        // Another configuration may have another ASID, and so another region.
        return known.pointee.isGood(context, stamp) ? stamp : generations.stamp()
    }

    /// One transaction that the TLB alone answers: as many pages of RAM as it has, up to what one transaction moves.
    ///
    /// - Parameters:
    ///   - own: The first byte of the device's buffer.
    ///   - offset: How far in the DMA the transaction begins.
    ///   - total: How long the DMA is.
    /// - Returns: How many bytes it moved; 0 where the next takes the long way.
    @inline(never)  // Keeps the hit path small.
    func copyThroughTLB(
        _ kind: TransactionKind,
        _ start: IOVirtualAddress,
        _ own: UnsafeMutableRawPointer,
        _ offset: Int,
        _ total: Int,
        _ attributes: TransactionAttributes
    ) -> Int {
        let context = Self.context(attributes)
        guard !isBracketed, keepsTranslations, known.pointee.context == context,
            let plan = known.pointee.plan, plan.pointee.isAnsweredByTLB
        else { return 0 }
        let address = start.rawValue &+ UInt64(truncatingIfNeeded: offset)
        let limit = min(UInt64(truncatingIfNeeded: total &- offset), Self.largestTransaction)
        // Past the top of the address space: the long way says what becomes of it.
        guard address >= start.rawValue, address &+ limit > address else { return 0 }
        let first = plan.pointee.canonical(address)
        let needed = required(kind, attributes)
        slot.enter()
        defer { slot.leave() }
        // Before the configuration is found to be current: what is invalidated from here on shows in one of the two.
        let stamp = generations.stamp(plan.pointee.region(of: first))
        guard known.pointee.isGood(context, stamp), !smmu.performance.countsTransactions else { return 0 }
        if (address & 0xFFF) &+ limit <= 0x1000,
            let count = copyWithinPage(
                kind,
                address,
                first,
                own + offset,
                limit,
                needed,
                context,
                stamp,
                plan
            )
        {
            return count
        }
        var run = CopyRun(own: own + offset, isWrite: kind == .write)
        var pieces: UInt64 = 0
        while run.byteCount < limit {
            let input = first &+ run.byteCount
            guard let hit = tlb.hit(input, plan.pointee.key),
                hit.permissions.contains(needed)
            else {
                break
            }
            let mask: UInt64 = (1 &<< UInt64(hit.log2Bytes)) &- 1
            let count = min(limit &- run.byteCount, mask &- (input & mask) &+ 1)
            guard run.append(hit.outputBase | (input & mask), count, bus) else { break }
            pieces &+= 1
        }
        let moved = run.finish()
        slot.count(Counter.transactions, pieces)
        slot.count(Counter.tlbHits, pieces)
        slot.count(kind == .read ? Counter.bytesRead : Counter.bytesWritten, moved)
        return Int(truncatingIfNeeded: moved)
    }

    /// The same within a page: a small access, which is likely to be followed by others there, so the port keeps it.
    ///
    /// - Returns: nil where it is not so simple.
    @inline(__always)  // By one caller.
    private func copyWithinPage(
        _ kind: TransactionKind,
        _ address: UInt64,
        _ input: UInt64,
        _ own: UnsafeMutableRawPointer,
        _ byteCount: UInt64,
        _ needed: Permissions,
        _ context: UInt64,
        _ stamp: InvalidationStamp,
        _ plan: UnsafePointer<StreamPlan>
    ) -> Int? {
        let version = bus.version
        guard let hit = tlb.hit(input, plan.pointee.key), hit.permissions.contains(needed)
        else { return nil }
        let mask: UInt64 = (1 &<< UInt64(hit.log2Bytes)) &- 1
        let page = input & ~0xFFF & mask
        let lead = address & 0xFFF
        guard let span = bus.hostSpan(at: PhysicalAddress(hit.outputBase | page)),
            span.last >= lead &+ byteCount &- 1, span.isWritable || kind == .read
        else { return nil }
        let host = span.start + Int(truncatingIfNeeded: lead)
        let count = Int(truncatingIfNeeded: byteCount)
        if kind == .read {
            smmud_copy_from_shared(own, host, count)
        } else {
            smmud_copy_to_shared(host, own, count)
        }
        smmud_compiler_barrier()
        // Lost by now: the long way says so.
        guard smmud_load_u32(span.lostFlag) == 0 else { return nil }
        keep(
            PortTranslation(
                page: address & ~0xFFF,
                context: context,
                region: hit.isOfRegion ? stamp.region : InvalidationGeneration.anywhere,
                generation: hit.isOfRegion ? stamp.near : stamp.far,
                output: hit.outputBase | page,
                byteCount: mask &- page &+ 1,
                permissions: hit.permissions,
                mapVersion: version
            ),
            span
        )
        slot.count(Counter.transactions)
        slot.count(Counter.tlbHits)
        slot.count(kind == .read ? Counter.bytesRead : Counter.bytesWritten, byteCount)
        return count
    }

    /// Keeps a translation in the port.
    ///
    /// - Parameter span: The memory from the page's first byte on, looked up at `mapVersion`; nil where that is no RAM.
    @inline(__always)  // Once for each page that misses in the port.
    func keep(_ translation: PortTranslation, _ span: HostSpan?) {
        let entry = lookaside + PortTranslation.index(translation.page)
        entry.pointee = translation
        guard let span else { return }
        entry.pointee.hostPermissions =
            span.isWritable ? translation.permissions : translation.permissions.subtracting(.write)
        entry.pointee.host = span.start
        entry.pointee.lostFlag = span.lostFlag
        // What one transaction moves at most is far from where adding 1 would wrap.
        entry.pointee.hostByteCount = min(
            translation.byteCount,
            min(span.last, Self.largestTransaction &- 1) &+ 1
        )
    }

    @inline(__always)  // On the hit path of every transaction.
    func required(_ kind: TransactionKind, _ attributes: TransactionAttributes) -> Permissions {
        let base: UInt8 = kind == .write ? 0b010 : attributes.isInstruction ? 0b100 : 0b001
        return Permissions(rawValue: attributes.isPrivileged ? base &<< 3 : base)
    }
}
