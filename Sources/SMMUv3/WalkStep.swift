// Where a quick walk is: between two tables, or at its leaf.

import SMMUv3Spec

/// Where a walk is.
struct WalkStep {
    var level: Int
    /// log2 of what an entry of the table covers.
    var lowBit: UInt64
    /// Which bits of an offset into the table there are.
    var mask: UInt64
    var table: UInt64
    var hierarchical: UInt64 = 0

    /// Before the first table.
    @inline(__always)  // Once for each walk.
    init(_ half: UnsafePointer<WalkPlan>) {
        level = half.pointee.firstLevel
        lowBit = half.pointee.firstLowBit
        mask = half.pointee.firstIndexMask
        table = half.pointee.table
    }

    /// Before the table that a descriptor points at.
    ///
    /// - Returns: Whether that is within the output size.
    @inline(__always)  // Once for each level of every walk.
    mutating func goOn(by descriptor: UInt64, _ half: UnsafePointer<WalkPlan>) -> Bool {
        table = half.pointee.table(in: descriptor)
        hierarchical |= descriptor & half.pointee.hierarchicalMask
        level &+= 1
        lowBit &-= half.pointee.stride
        mask = half.pointee.indexMask
        return half.pointee.reaches(table)
    }

    /// Before a table that the walk cache knows.
    @inline(__always)  // Once for each walk.
    mutating func goOn(from known: WalkCache.Table, _ half: UnsafePointer<WalkPlan>) {
        table = known.address
        hierarchical = known.hierarchical & half.pointee.hierarchicalMask
        lowBit = known.log2Bytes &- half.pointee.stride
        mask = half.pointee.indexMask
        level = half.pointee.level(ofEntriesCovering: lowBit)
    }

    /// What the walk cache is told of the table, one of whose entries is at `location`.
    @inline(__always)  // Once for each table that was not known.
    func table(at location: UInt64, _ half: UnsafePointer<WalkPlan>) -> WalkCache.Table {
        WalkCache.Table(
            address: location & (UInt64.max &<< half.pointee.pageBits),
            log2Bytes: lowBit &+ half.pointee.stride,
            hierarchical: hierarchical
        )
    }
}

extension WalkCache {
    /// The table that is furthest on the way to `address` in tables of this shape.
    @inline(__always)  // Once for each walk.
    func lookUp(_ address: UInt64, _ tag: Tag, _ half: UnsafePointer<WalkPlan>) -> Table? {
        lookUp(
            address,
            tag,
            smallest: half.pointee.pageBits &+ half.pointee.stride,
            stride: half.pointee.stride,
            largest: half.pointee.firstLowBit
        )
    }

    /// The table that is furthest on the way to a canonical address of a stream's.
    func lookUp(_ address: UInt64, _ plan: UnsafePointer<StreamPlan>) -> Table? {
        let half = plan.pointee.isUpper(address) ? plan.pointee.upper : plan.pointee.lower
        guard half.pointee.isUsable, half.pointee.usesWalkCache else { return nil }
        return lookUp(address, plan.pointee.walkTag, half)
    }
}

/// A leaf and what was found above it.
struct FoundLeaf {
    var descriptor: UInt64
    /// log2 of the page or block, and its level.
    var lowBit: UInt64
    var level: Int
    /// The tables' hierarchical attributes, where a descriptor has them.
    var hierarchical: UInt64
    /// How many descriptors on the way to it the walk cache does not know.
    var descriptorsNotKept: UInt64 = 0

    @inline(__always)  // Once for each walk.
    init(_ descriptor: UInt64, _ step: WalkStep) {
        self.descriptor = descriptor
        lowBit = step.lowBit
        level = step.level
        hierarchical = step.hierarchical
    }
}
