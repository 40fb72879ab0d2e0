// Counts of invalidations: what is kept outside of a cache's lock carries them, and is of no use once they change.

import Glibc
import Synchronization

/// The counts as they were when a look-up began.
struct InvalidationStamp: Equatable, Sendable {
    /// Of configuration: STEs, CDs, and the controls in registers.
    fileprivate(set) var configuration: UInt64 = 0
    /// Of translations near the address that is looked up; of any where no address was given.
    fileprivate(set) var near: UInt64 = 0
    /// Of any translations.
    fileprivate(set) var far: UInt64 = 0
    /// Which count `near` is.
    fileprivate(set) var region = InvalidationGeneration.anywhere
}

/// Counts invalidations of every kind.
///
/// What is kept outside a cache's lock carries the counts at which it was found and is of no use at any other. So that
/// an invalidation of one page does not make everything worthless that ports keep, invalidations by address
/// count in the region that they fall into, 2 MiB of one ASID and VMID; regions share 64 counts.
///
/// What covers more than a region (a block of 1 GiB), and what is global and so goes with any ASID, goes by the
/// count of all.
//
// SAFETY of @unchecked Sendable: the pointer never changes, and what it points at is atomic.
final class InvalidationGeneration: @unchecked Sendable {
    /// log2 of the bytes of a region: translations of pages and blocks up to this size go by their region.
    static let log2RegionBytes: UInt64 = 21
    /// Instead of a region: where any invalidation of a translation counts.
    static let anywhere = 1
    /// How many regions one invalidation names at most; more is all of them.
    private static let mostRegions: UInt64 = 8
    private static let regionCount: UInt64 = 64
    private static let firstRegion = 3
    /// Two cache lines for each count: the prefetcher of adjacent lines pairs them.
    fileprivate static let stride = 16
    private static let byteCount = (firstRegion + Int(regionCount)) * stride * 8

    /// The counts, for those who keep this alive by other means.
    let counts: InvalidationCounts

    init() {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: Self.byteCount, alignment: 128)
        let words = memory.bindMemory(to: Atomic<UInt64>.self, capacity: Self.byteCount / 8)
        for index in 0..<(Self.byteCount / 8) { (words + index).initialize(to: Atomic(1)) }
        counts = InvalidationCounts(words: words)
    }

    deinit { UnsafeMutableRawPointer(counts.words).deallocate() }

    private func count(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> { counts.count(index) }
    private var everything: UnsafeMutablePointer<Atomic<UInt64>> { counts.everything }
    private var configuration: UnsafeMutablePointer<Atomic<UInt64>> { counts.configuration }

    /// Which count the translations of an address go by.
    ///
    /// - Parameter address: An input address; its upper bits do not count, so none that may be ignored (TBI) does.
    @inline(__always)  // Once for each page that a port does not remember.
    static func region(of address: UInt64, asid: UInt16, vmid: UInt16) -> Int {
        let number = (address &+ offset(asid: asid, vmid: vmid)) &>> log2RegionBytes
        return firstRegion &+ Int(truncatingIfNeeded: number & (regionCount &- 1))
    }

    /// What an ASID and VMID make of an address: with it added, and neither, it is in the same region.
    static func offset(asid: UInt16, vmid: UInt16) -> UInt64 {
        (UInt64(asid) &* 29 &+ UInt64(vmid) &* 17) &<< log2RegionBytes
    }

    // MARK: Reading

    /// As ``InvalidationCounts/current(_:)``.
    @inline(__always)  // Two loads.
    func current(_ region: Int) -> UInt64 { counts.current(region) }

    /// As ``InvalidationCounts/currentConfiguration``.
    @inline(__always)  // One load.
    var currentConfiguration: UInt64 { counts.currentConfiguration }

    /// As ``InvalidationCounts/stamp(_:)``.
    func stamp(_ region: Int = anywhere) -> InvalidationStamp { counts.stamp(region) }

    /// Whether nothing at all was invalidated since: a table translates more than a region.
    func permitsKeepingTables(_ stamp: InvalidationStamp) -> Bool {
        isCurrentConfiguration(stamp) && current(Self.anywhere) == stamp.far
    }

    /// Whether no configuration was invalidated since.
    @inline(__always)  // One load and a comparison.
    func isCurrentConfiguration(_ stamp: InvalidationStamp) -> Bool {
        currentConfiguration == stamp.configuration
    }

    // MARK: Advancing
    //
    // Sequentially consistent: the waiter's barrier that follows, and the lock that the caller takes next, order it
    // before what they look at.

    /// Makes everything worthless that was found before: configuration and translations.
    func advance() {
        configuration.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
        everything.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
    }

    /// Makes every table worthless that was found before, and what goes by the count of all.
    func advanceTables() { count(Self.anywhere).pointee.wrappingAdd(1, ordering: .sequentiallyConsistent) }

    /// Makes every translation worthless that was found before.
    func advanceTranslations() { everything.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent) }

    /// Makes the translations of these addresses worthless that were found before, of an ASID and VMID.
    func advanceTranslations(first: UInt64, last: UInt64, asid: UInt16, vmid: UInt16) {
        let regions = (last &>> Self.log2RegionBytes) &- (first &>> Self.log2RegionBytes)
        guard last >= first, regions < Self.mostRegions else { return advanceTranslations() }
        if regions == 0 {
            count(Self.region(of: first, asid: asid, vmid: vmid)).pointee
                .wrappingAdd(1, ordering: .sequentiallyConsistent)
            return advanceTables()
        }
        for step in 0...regions {
            let address = first &+ step &<< Self.log2RegionBytes
            count(Self.region(of: address, asid: asid, vmid: vmid)).pointee
                .wrappingAdd(1, ordering: .sequentiallyConsistent)
        }
        advanceTables()
    }
}

/// The counts of an ``InvalidationGeneration``: a pointer that is good as long as that lives.
///
/// For ports, which look at them in each transaction.
// SAFETY of @unchecked Sendable: the pointer never changes, and what it points at is atomic.
struct InvalidationCounts: @unchecked Sendable {
    fileprivate let words: UnsafeMutablePointer<Atomic<UInt64>>

    @inline(__always)  // On the hit path of every transaction.
    fileprivate func count(_ index: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        words + index &* InvalidationGeneration.stride
    }
    @inline(__always)  // Likewise.
    fileprivate var everything: UnsafeMutablePointer<Atomic<UInt64>> { words }
    @inline(__always)  // Likewise.
    fileprivate var configuration: UnsafeMutablePointer<Atomic<UInt64>> { count(2) }

    /// The count of a region, or of ``InvalidationGeneration/anywhere``, together with that of all.
    ///
    /// Equal to an earlier one only where neither has changed: both only rise. Pairs with `advance`.
    @inline(__always)  // Two loads on the hit path.
    func current(_ region: Int) -> UInt64 {
        everything.pointee.load(ordering: .acquiring) &+ count(region).pointee.load(ordering: .acquiring)
    }

    /// The count of configuration.
    @inline(__always)  // One load.
    var currentConfiguration: UInt64 { configuration.pointee.load(ordering: .acquiring) }

    /// Read it before looking up or fetching what is to be kept, and before reading registers that decide about it.
    @inline(__always)  // Once for each page that a port does not remember.
    func stamp(_ region: Int = InvalidationGeneration.anywhere) -> InvalidationStamp {
        InvalidationStamp(
            configuration: currentConfiguration,
            near: current(region),
            far: current(InvalidationGeneration.anywhere),
            region: region
        )
    }

    /// Whether nothing was invalidated since that a translation could depend on.
    ///
    /// - Parameter isOfRegion: As ``CachedTranslation/isOfRegion``.
    @inline(__always)  // Once for each fill.
    func permitsKeeping(isOfRegion: Bool, _ stamp: InvalidationStamp) -> Bool {
        guard currentConfiguration == stamp.configuration else { return false }
        return isOfRegion
            ? current(stamp.region) == stamp.near
            : current(InvalidationGeneration.anywhere) == stamp.far
    }
}
