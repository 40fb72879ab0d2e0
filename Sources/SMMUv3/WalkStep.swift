// Where a quick walk is: before a table, or at its leaf.

import SMMUv3Spec
import SystemBus

/// Where a walk is.
struct WalkStep {
    /// The table that comes next.
    var table: UInt64
    /// How far an address moves right to be an offset into it, and which bits of that there are.
    var shift: UInt64
    var mask: UInt64
    /// The table descriptors above it, one on the other: of their bits the plan's hierarchical ones count.
    var above: UInt64 = 0

    /// Before the first table.
    @inline(__always)  // Once for each walk.
    init(_ half: UnsafePointer<WalkPlan>) {
        table = half.pointee.table
        shift = half.pointee.firstShift
        mask = half.pointee.firstIndexMask
    }

    /// log2 of what an entry of the table covers.
    @inline(__always)  // Once for each walk.
    var lowBit: UInt64 { shift &+ 3 }

    /// Where the entry for an address is.
    @inline(__always)  // Once for each level of every walk.
    func entry(of address: UInt64) -> UInt64 { table &+ (address &>> shift) & mask }

    /// At an entry of some table: it has been read, and where it was does not matter any more.
    @inline(__always)  // Once for each walk that is not ordinary.
    init(_ shift: UInt64, above: UInt64) {
        table = 0
        mask = 0
        self.shift = shift
        self.above = above
    }

    /// Before the table that a descriptor of an ordinary table of 4 KiB points at; see ``WalkPlan/isUsual``.
    @inline(__always)  // Once for each level of every walk.
    mutating func goOn(byOrdinary descriptor: UInt64) {
        table = descriptor & WalkPlan.addressMask4KiB
        above |= descriptor
        shift &-= 9
        mask = WalkPlan.indexMask4KiB
    }

    /// Before the table that a table descriptor points at.
    ///
    /// - Returns: Whether that is within the output size.
    @inline(__always)  // Likewise.
    mutating func goOn(by descriptor: UInt64, _ half: UnsafePointer<WalkPlan>) -> Bool {
        table = half.pointee.table(in: descriptor)
        above |= descriptor
        shift &-= half.pointee.stride
        mask = half.pointee.indexMask
        return half.pointee.reaches(table)
    }

    /// Before a table that the walk cache knows.
    @inline(__always)  // By few callers.
    mutating func goOn(from known: WalkCache.Table, _ half: UnsafePointer<WalkPlan>) {
        table = known.address
        above = known.hierarchical
        shift = known.log2Bytes &- half.pointee.stride &- 3
        mask = half.pointee.indexMask
    }

    /// The leaf that a descriptor at this place is.
    @inline(__always)  // For each walk that is not ordinary.
    func leaf(_ descriptor: UInt64, _ half: UnsafePointer<WalkPlan>) -> FoundLeaf {
        let base = half.pointee.address(in: descriptor, lowBit)
        guard half.pointee.isLeaf(descriptor, lowBit), half.pointee.reaches(base) else { return .none }
        return FoundLeaf(descriptor: descriptor, base: base, lowBit: lowBit, above: above)
    }

    /// What the walk cache is told of the table, one of whose entries is at `location`.
    func table(at location: UInt64, _ half: UnsafePointer<WalkPlan>) -> WalkCache.Table {
        WalkCache.Table(
            address: location & (UInt64.max &<< half.pointee.pageBits),
            log2Bytes: lowBit &+ half.pointee.stride,
            hierarchical: above & half.pointee.hierarchicalMask
        )
    }
}

/// A leaf and what was found above it.
struct FoundLeaf {
    /// In the processor's byte order; 0 where there is none, or a table or what it maps is out of reach.
    var descriptor: UInt64
    /// The output address of its first byte.
    var base: UInt64
    /// log2 of the page or block.
    var lowBit: UInt64
    /// As ``WalkStep/above``.
    var above: UInt64

    static let none = FoundLeaf(descriptor: 0, base: 0, lowBit: 0, above: 0)
}

extension SMMUv3 {
    /// Goes down tables whose addresses nobody translates, to the leaf.
    @inline(__always)  // For each kind of walk.
    func descend(_ address: UInt64, _ half: UnsafePointer<WalkPlan>, _ walk: inout QuickWalk) -> FoundLeaf {
        ordinaryPage(of: address, half, &walk) { (word, above, _) in
            FoundLeaf(descriptor: word, base: word & WalkPlan.addressMask4KiB, lowBit: 12, above: above)
        } other: { (entry, step, start, walk) in
            goOn(entry, step, address, half, since: start, &walk)
        }
    }

    /// Goes down ordinary tables, whose addresses nobody translates, to an ordinary page.
    ///
    /// Where tables are of 4 KiB, shifts and masks are constants, which makes a level half as long.
    ///
    /// - Parameters:
    ///   - page: What comes of the page's descriptor and of the tables' above it, as in ``WalkStep/above``.
    ///   - other: What comes of anything else: it goes on from an entry, which it reads for itself. Its parameters
    ///     are as ``goOn(_:_:_:_:since:_:)`` has them.
    @inline(__always)  // Likewise.
    func ordinaryPage<Result>(
        of address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk,
        _ page: (UInt64, UInt64, inout QuickWalk) -> Result,
        other: (UInt64, WalkStep, UInt64, inout QuickWalk) -> Result
    ) -> Result {
        guard half.pointee.isUsual else {
            let (step, start) = firstStep(address, half, walk)
            return other(step.entry(of: address), step, start, &walk)
        }
        let unusualMask = half.pointee.unusualMask
        var table: UInt64
        var offset: UInt64
        var above: UInt64 = 0
        var fetched: UInt64
        if walk.looksInWalkCache {
            guard let known = walkCache.lastTable4KiB(address, half.pointee.tag) else {
                let (step, start) = firstStep(address, half, walk)
                return other(step.entry(of: address), step, start, &walk)
            }
            table = known.address
            above = known.hierarchical
            offset = WalkPlan.offset4KiB(of: address, 9)
            fetched = 1
        } else {
            let start = half.pointee.firstShift
            table = half.pointee.table
            offset = (address &>> start) & half.pointee.firstIndexMask
            if start == 36 {
                guard let word = walk.reader.word(in: table, at: offset),
                    WalkPlan.isOrdinary(word, unusualMask)
                else { return other(table &+ offset, WalkStep(36, above: above), start, &walk) }
                table = word & WalkPlan.addressMask4KiB
                offset = WalkPlan.offset4KiB(of: address, 27)
                above |= word
            }
            if start >= 27 {
                guard let word = walk.reader.word(in: table, at: offset),
                    WalkPlan.isOrdinary(word, unusualMask)
                else { return other(table &+ offset, WalkStep(27, above: above), start, &walk) }
                table = word & WalkPlan.addressMask4KiB
                offset = WalkPlan.offset4KiB(of: address, 18)
                above |= word
            }
            if start >= 18 {
                guard let word = walk.reader.word(in: table, at: offset),
                    WalkPlan.isOrdinary(word, unusualMask)
                else { return other(table &+ offset, WalkStep(18, above: above), start, &walk) }
                table = word & WalkPlan.addressMask4KiB
                offset = WalkPlan.offset4KiB(of: address, 9)
                above |= word
            }
            fetched = half.pointee.levels
        }
        guard let word = walk.reader.word(in: table, at: offset), half.pointee.isOrdinaryLeaf(word) else {
            let start: UInt64 = fetched == 1 ? 9 : half.pointee.firstShift
            return other(table &+ offset, WalkStep(9, above: above), start, &walk)
        }
        walk.descriptors &+= fetched
        walk.descriptorsNotKept = fetched
        return page(word, above, &walk)
    }

    /// Before the table with which a walk begins, and the shift of that: where the walk cache knows one, or at the
    /// first.
    @inline(never)  // Keeps the walk of ordinary tables small.
    private func firstStep(_ address: UInt64, _ half: UnsafePointer<WalkPlan>, _ walk: borrowing QuickWalk)
        -> (WalkStep, UInt64)
    {
        var step = WalkStep(half)
        if walk.looksInWalkCache, let known = walkCache.lookUp(address, half) { step.goOn(from: known, half) }
        return (step, step.shift)
    }

    /// Goes on from an entry to the leaf, by tables of every shape, whether or not the walk cache is to know them.
    ///
    /// - Parameters:
    ///   - entry: Where the entry is.
    ///   - first: At that entry.
    ///   - start: The shift of the table that the walk began with.
    @inline(never)  // Keeps the walk of ordinary tables small.
    func goOn(
        _ entry: UInt64,
        _ first: WalkStep,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        since start: UInt64,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        let keepsTables = walk.fillsWalkCache && half.pointee.usesWalkCache
        var step = first
        var fetched = (start &- step.shift) / half.pointee.stride
        var location = entry
        while true {
            guard let word = walk.reader.word(at: location) else { return .none }
            fetched &+= 1
            let descriptor = half.pointee.descriptor(word)
            guard step.shift != half.pointee.pageShift, descriptor & 0b11 == 0b11 else {
                walk.descriptors &+= fetched
                walk.descriptorsNotKept = fetched
                return step.leaf(descriptor, half)
            }
            guard step.goOn(by: descriptor, half) else { return .none }
            if keepsTables {
                guard keep(step, at: step.table, address, half, &walk) else { return .none }
                // Should this walk come to nothing, the next begins here.
                walk.descriptors &+= fetched
                walk.descriptorsKept &+= fetched
                fetched = 0
            }
            location = step.entry(of: address)
        }
    }

    /// Has the walk cache keep the table that comes next.
    ///
    /// - Parameter location: The physical address of any of its entries.
    /// - Returns: Whether all that was read so far was there.
    @inline(never)  // Once for each table that was not known.
    func keep(
        _ step: WalkStep,
        at location: UInt64,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ walk: inout QuickWalk
    ) -> Bool {
        guard walk.reader.isIntact else { return false }
        walkCache.insert(
            step.table(at: location, half),
            for: address,
            half.pointee.tag,
            walkedAt: walk.generation
        )
        return true
    }
}

extension WalkCache {
    /// The table that is furthest on the way to `address` in tables of this shape.
    func lookUp(_ address: UInt64, _ half: UnsafePointer<WalkPlan>) -> Table? {
        lookUp(
            address,
            half.pointee.tag,
            smallest: half.pointee.lastTableBits,
            stride: half.pointee.stride,
            largest: half.pointee.firstShift &+ 3
        )
    }

    /// The table that is furthest on the way to a canonical address of a stream's.
    func lookUp(_ address: UInt64, _ plan: UnsafePointer<StreamPlan>) -> Table? {
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        guard half.pointee.isUsable, half.pointee.usesWalkCache else { return nil }
        return lookUp(address, half)
    }
}
