// What a port remembers: translations with the memory behind them, and the configuration that they come from.

import AddressSpace
import CLinux
import DeviceModel
import SMMUv3Spec
import SystemBus

/// A translation of one 4 KiB page of input addresses, and where in the host its memory is.
struct PortTranslation {
    /// How many of them a port keeps.
    static let count = 64

    /// The input address without its low 12 bits, or 1, which is no page, in an empty entry.
    var page: UInt64 = 1
    /// SSV and SubstreamID, or that it is of translated transactions.
    var context: UInt64 = 0
    /// Which count of invalidations it goes by, and what that was.
    var region = InvalidationGeneration.anywhere
    var generation: UInt64 = 0
    /// The output address of the page's first byte.
    var output: UInt64 = 0
    /// How many bytes the translation covers from the page's first byte on.
    var byteCount: UInt64 = 0
    /// What is permitted to transactions.
    var permissions = Permissions()
    /// What of that the host's memory takes directly; nothing where the output is not RAM.
    var hostPermissions = Permissions()
    /// ``BusView/version`` when `host` was found.
    var mapVersion: UInt64 = 0
    /// The page's first byte.
    var host: UnsafeMutableRawPointer?
    /// How many bytes of the translation are at `host` in one piece; 0 where it is not known.
    var hostByteCount: UInt64 = 0
    var lostFlag: UnsafePointer<UInt32>?

    /// Where a port keeps the translation of an address.
    @inline(__always)  // On the hit path of every transaction.
    static func index(_ address: UInt64) -> Int {
        Int(truncatingIfNeeded: (address &>> 12) & UInt64(count - 1))
    }
}

/// The configuration that a port used last.
struct KnownConfiguration {
    /// SSV and SubstreamID; all ones where there is no configuration.
    var context = UInt64.max
    /// The count of invalidations of configuration: no count is 0, where the next look-up looks it up again.
    var generation: UInt64 = 0
    var resolved: ResolvedStream?
    /// The plan of `resolved`.
    //
    // Apart from it: looking here counts no reference.
    var plan: UnsafePointer<StreamPlan>?
    /// Where the STE is, if it is all that decides beside the CD; nil where it has to be looked up.
    var entryAddress: UInt64?
    /// The count of invalidations of configuration before the registers were read that `entryAddress` comes from.
    var entryGeneration: UInt64 = 0

    /// Whether it is of these transactions, and nothing of it was invalidated before the stamp was taken.
    @inline(__always)  // For each look-up that misses in the port.
    func isGood(_ context: UInt64, _ stamp: InvalidationStamp) -> Bool {
        self.context == context && generation == stamp.configuration
    }
}

/// What the look-ups of one transaction have in common.
struct QuickLook {
    let access: EffectiveAccess
    /// What has to be permitted.
    let needed: Permissions
    /// SSV and SubstreamID.
    let context: UInt64
    let plan: UnsafePointer<StreamPlan>
    /// Near the address that was looked up last.
    var stamp: InvalidationStamp
    /// What finding the configuration fetched, until the first walk reports it; nil where nothing was.
    //
    // Where there is no walk the long way fetches it again, and reports that.
    var structures: LookupAccesses?
    /// Walks that found what was sought.
    var walks: UInt64 = 0
}

/// Bytes that are gathered while they lie in a row in the host's memory, and then moved at once.
struct CopyRun {
    /// The device's buffer, and which way the bytes go.
    private let own: UnsafeMutableRawPointer
    private let isWrite: Bool
    /// The RAM that the last piece was in, and its first byte's physical address.
    private(set) var span: HostSpan?
    private(set) var spanStart: UInt64 = 0
    /// What is gathered and not yet moved.
    private var host: UnsafeMutableRawPointer?
    private var pending: UInt64 = 0
    /// What has been moved.
    private var moved: UInt64 = 0
    private var isLost = false

    init(own: UnsafeMutableRawPointer, isWrite: Bool) { (self.own, self.isWrite) = (own, isWrite) }

    /// How many bytes there are so far.
    @inline(__always)  // For each page.
    var byteCount: UInt64 { moved &+ pending }

    /// Adds bytes at a physical address.
    ///
    /// - Returns: Whether they are RAM in one piece that takes them.
    @inline(__always)  // Likewise.
    mutating func append(_ output: UInt64, _ count: UInt64, _ bus: BusView) -> Bool {
        if let span, output >= spanStart, span.last >= output &- spanStart,
            span.last &- (output &- spanStart) >= count &- 1
        {
            return append(span.start + Int(truncatingIfNeeded: output &- spanStart), count)
        }
        guard let found = bus.hostSpan(at: PhysicalAddress(output)), found.last >= count &- 1,
            found.isWritable || !isWrite
        else { return false }
        // Before the span is another: what is gathered is of this one.
        guard pending == 0 || flush() else { return false }
        (span, spanStart) = (found, output)
        return append(found.start, count)
    }

    @inline(__always)  // Likewise.
    private mutating func append(_ start: UnsafeMutableRawPointer, _ count: UInt64) -> Bool {
        if pending > 0 {
            if let host, host + Int(truncatingIfNeeded: pending) == start {
                pending &+= count
                return true
            }
            guard flush() else { return false }
        }
        (host, pending) = (start, count)
        return true
    }

    /// Moves what is gathered.
    ///
    /// - Returns: Whether the memory was there; where a peer has truncated it, what is gathered counts as not moved.
    private mutating func flush() -> Bool {
        guard !isLost, let host, let span else { return false }
        let buffer = own + Int(truncatingIfNeeded: moved)
        if isWrite {
            smmud_copy_to_shared(host, buffer, Int(truncatingIfNeeded: pending))
        } else {
            smmud_copy_from_shared(buffer, host, Int(truncatingIfNeeded: pending))
        }
        smmud_compiler_barrier()
        isLost = smmud_load_u32(span.lostFlag) != 0
        if !isLost { moved &+= pending }
        pending = 0
        return !isLost
    }

    /// Moves the rest.
    ///
    /// - Returns: How many bytes were moved in all.
    mutating func finish() -> UInt64 {
        if pending > 0 { _ = flush() }
        return moved
    }
}
