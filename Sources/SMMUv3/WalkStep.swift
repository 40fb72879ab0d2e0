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
    func entry(of address: UInt64) -> UInt64 { table &+ ((address &>> shift) & mask) }

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
    mutating func goOn(byOrdinary descriptor: UInt64, _ addressMask: UInt64) {
        table = descriptor & addressMask
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
    @inline(__always)  // Once for each walk.
    mutating func goOn(from known: WalkCache.Table, _ half: UnsafePointer<WalkPlan>) {
        table = known.address
        above = known.hierarchical
        shift = known.log2Bytes &- half.pointee.stride &- 3
        mask = half.pointee.indexMask
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
    @inline(__always)  // For each kind of tables.
    func descend(
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ first: WalkStep,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        let keepsTables = walk.fillsWalkCache && half.pointee.usesWalkCache
        // Before a table of pages there is none left to keep. More than four levels are of 52-bit addresses.
        guard half.pointee.isUsual, first.shift <= 36, !keepsTables || first.shift == 9 else {
            return descendByAnyTables(address, half, first, &walk)
        }
        // Tables of pages of 4 KiB, as most are: shifts and masks are constants, which makes a level half as long. What
        // else there is is for the other.
        let unusualMask = half.pointee.unusualMask
        let addressMask = half.pointee.addressMask
        let shift = first.shift
        var entry = first.entry(of: address)
        var above = first.above
        if shift == 36 {
            guard let word = walk.reader.word(at: entry) else { return .none }
            guard WalkPlan.isOrdinary(word, unusualMask) else {
                return goOn(word, 36, above, address, half, since: shift, &walk)
            }
            entry = WalkPlan.entry4KiB(of: address, in: word & addressMask, 27)
            above |= word
        }
        if shift == 27 || shift == 36 {
            guard let word = walk.reader.word(at: entry) else { return .none }
            guard WalkPlan.isOrdinary(word, unusualMask) else {
                return goOn(word, 27, above, address, half, since: shift, &walk)
            }
            entry = WalkPlan.entry4KiB(of: address, in: word & addressMask, 18)
            above |= word
        }
        if shift >= 18 {
            guard let word = walk.reader.word(at: entry) else { return .none }
            guard WalkPlan.isOrdinary(word, unusualMask) else {
                return goOn(word, 18, above, address, half, since: shift, &walk)
            }
            entry = WalkPlan.entry4KiB(of: address, in: word & addressMask, 9)
            above |= word
        }
        guard let word = walk.reader.word(at: entry) else { return .none }
        guard WalkPlan.isOrdinary(word, unusualMask) else {
            return goOn(word, 9, above, address, half, since: shift, &walk)
        }
        let fetched = shift / 9
        walk.descriptors &+= fetched
        walk.descriptorsNotKept = fetched
        return FoundLeaf(descriptor: word, base: word & addressMask, lowBit: 12, above: above)
    }

    /// The same by tables of every shape, whether or not the walk cache is to know them.
    @inline(never)  // Keeps the walk of ordinary tables small.
    private func descendByAnyTables(
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        _ step: WalkStep,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        guard let word = walk.reader.word(at: step.entry(of: address)) else { return .none }
        return goOn(word, step.shift, step.above, address, half, since: step.shift, &walk)
    }

    /// Goes on from an entry that has been read to the leaf.
    ///
    /// - Parameters:
    ///   - shift: As ``WalkStep/shift``, of the table that the entry is in.
    ///   - above: As ``WalkStep/above``.
    ///   - start: The shift of the table that the walk began with.
    @inline(never)  // As above.
    private func goOn(
        _ first: UInt64,
        _ shift: UInt64,
        _ above: UInt64,
        _ address: UInt64,
        _ half: UnsafePointer<WalkPlan>,
        since start: UInt64,
        _ walk: inout QuickWalk
    ) -> FoundLeaf {
        let keepsTables = walk.fillsWalkCache && half.pointee.usesWalkCache
        var step = WalkStep(shift, above: above)
        var fetched = (start &- shift) / half.pointee.stride &+ 1
        var word = first
        while true {
            let descriptor = half.pointee.descriptor(word)
            guard step.shift != half.pointee.pageShift, descriptor & 0b11 == 0b11 else {
                walk.descriptors &+= fetched
                walk.descriptorsNotKept = fetched
                let base = half.pointee.address(in: descriptor, step.lowBit)
                guard half.pointee.isLeaf(descriptor, step.lowBit), half.pointee.reaches(base) else {
                    return .none
                }
                return FoundLeaf(descriptor: descriptor, base: base, lowBit: step.lowBit, above: step.above)
            }
            guard step.goOn(by: descriptor, half) else { return .none }
            if keepsTables {
                guard keep(step, at: step.table, address, half, &walk) else { return .none }
                // Should this walk come to nothing, the next begins here.
                walk.descriptors &+= fetched
                walk.descriptorsKept &+= fetched
                fetched = 0
            }
            guard let next = walk.reader.word(at: step.entry(of: address)) else { return .none }
            word = next
            fetched &+= 1
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
    @inline(__always)  // Once for each walk.
    func lookUp(_ address: UInt64, _ half: UnsafePointer<WalkPlan>) -> Table? {
        lookUp(address, half.pointee.tag, smallest: half.pointee.lastTableBits)
            ?? lookUpFromSecond(address, half)
    }

    /// The same among tables that are not of the last level.
    @inline(never)  // Once for each table of the last level that is not known.
    private func lookUpFromSecond(_ address: UInt64, _ half: UnsafePointer<WalkPlan>) -> Table? {
        lookUp(
            address,
            half.pointee.tag,
            smallest: half.pointee.lastTableBits &+ half.pointee.stride,
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
